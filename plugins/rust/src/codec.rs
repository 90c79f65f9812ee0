//! The codec: the `moshi` crate's Mimi, one streaming copy per slot.
//!
//! A model is cloned while it holds no state: clones share the weights, which are counted
//! references, and each grows its own state. The crate's own batched form resets a slot by writing
//! zeros over its state, which is not how a stream begins: the down-sampling pads the first frame
//! with copies of it. A new clone is.

use std::collections::HashMap;
use std::path::Path;

use candle::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use moshi::mimi::Mimi;
use moshi::{conv, mimi, seanet, transformer, NormType, StreamMask};
use rayon::prelude::*;
use serde::Deserialize;

use crate::weights::require_finite;

/// Every number of a Mimi; written by `moshi_pipe_rust.backend`.
#[derive(Deserialize, Clone)]
pub struct Spec {
    sample_rate: f64,
    frame_size: usize,
    channels: usize,
    dimension: usize,
    num_filters: usize,
    ratios: Vec<usize>,
    kernel_size: usize,
    residual_kernel_size: usize,
    last_kernel_size: usize,
    num_residual_layers: usize,
    dilation_base: usize,
    compress: usize,
    quantizer_dim: usize,
    num_active: usize,
    cardinality: usize,
    width: usize,
    num_heads: usize,
    num_layers: usize,
    feedforward: usize,
    context: usize,
    max_period: usize,
}

impl Spec {
    fn config(&self, codebooks: usize) -> mimi::Config {
        mimi::Config {
            channels: self.channels,
            sample_rate: self.sample_rate,
            frame_rate: self.sample_rate / self.frame_size as f64,
            renormalize: true,
            resample_method: mimi::ResampleMethod::Conv,
            seanet: seanet::Config {
                dimension: self.dimension,
                channels: self.channels,
                causal: true,
                n_filters: self.num_filters,
                n_residual_layers: self.num_residual_layers,
                activation: candle_nn::Activation::Elu(1.0),
                compress: self.compress,
                dilation_base: self.dilation_base,
                disable_norm_outer_blocks: 0,
                final_activation: None,
                kernel_size: self.kernel_size,
                residual_kernel_size: self.residual_kernel_size,
                last_kernel_size: self.last_kernel_size,
                lstm: 0,
                norm: conv::Norm::WeightNorm, // files hold the product, which the crate takes
                pad_mode: conv::PadMode::Constant,
                ratios: self.ratios.clone(),
                true_skip: true,
            },
            transformer: transformer::Config {
                d_model: self.width,
                num_heads: self.num_heads,
                num_layers: self.num_layers,
                causal: true,
                norm_first: true,
                bias_ff: false,
                bias_attn: false,
                layer_scale: Some(0.01),
                context: self.context,
                conv_kernel_size: 5,
                use_conv_bias: true,
                use_conv_block: false,
                cross_attention: None,
                max_period: self.max_period,
                gating: None,
                norm: NormType::LayerNorm,
                positional_embedding: transformer::PositionalEmbedding::Rope,
                dim_feedforward: self.feedforward,
                kv_repeat: 1,
                conv_layout: true,
                max_seq_len: 8192, // not read where the cache is a ring
                shared_cross_attn: false,
            },
            quantizer_n_q: codebooks,
            quantizer_bins: self.cardinality,
            quantizer_dim: self.quantizer_dim,
        }
    }
}

/// Weights of a codec.
pub struct Codec {
    pub spec: Spec,
    device: Device,
    tensors: HashMap<String, Tensor>,
    /// With all codebooks in use; without state.
    full: Mimi,
}

/// One direction of several streams; each is a model of its own, made at its first frame.
pub struct State {
    slots: Vec<Option<Mimi>>,
    /// A model without state, of as many codebooks as the stream has.
    fresh: Mimi,
    codebooks: usize,
}

impl Codec {
    pub fn load(path: &Path, spec: Spec, device: Device, check_finite: bool) -> Result<Self> {
        // SAFETY: as every mapped file, it must not be cut short while it is read.
        let file = unsafe { candle::safetensors::MmapedSafetensors::new(path)? };
        let mut tensors = HashMap::new();
        for (name, _) in file.tensors() {
            let tensor = file.load(&name, &device)?.to_dtype(DType::F32)?;
            if check_finite {
                require_finite(&tensor, &name)?;
            }
            tensors.insert(name, tensor);
        }
        let full = build(&tensors, &spec, spec.num_active, &device)?;
        Ok(Self { spec, device, tensors, full })
    }

    pub fn new_state(&self, slots: usize) -> State {
        State {
            slots: (0..slots).map(|_| None).collect(),
            fresh: self.full.clone(),
            codebooks: self.spec.num_active,
        }
    }

    /// Encodes a frame of each valid slot: PCM `[slots, channels, frame_size]` to codes
    /// `[slots, codebooks]`, 0 where not valid.
    pub fn encode(&self, pcm: &[f32], valid: &[bool], state: &mut State) -> Result<Vec<i64>> {
        let size = self.spec.channels * self.spec.frame_size;
        let shape = (1, self.spec.channels, self.spec.frame_size);
        let run = |slot: usize, mimi: &mut Mimi| -> Result<Vec<i64>> {
            let frame = &pcm[slot * size..(slot + 1) * size];
            let frame = Tensor::from_slice(frame, shape, &self.device)?;
            let codes = mimi.encode_step(&frame.into(), &StreamMask::empty())?;
            let Some(codes) = codes.as_option() else { candle::bail!("a frame gave no codes") };
            codes.i((0, .., 0))?.to_dtype(DType::I64)?.to_vec1()
        };
        self.each(valid, state, self.spec.num_active, size, pcm.len(), run)
    }

    /// Decodes a frame of each valid slot: codes `[slots, count]` to PCM
    /// `[slots, channels, frame_size]`, 0 where not valid.
    pub fn decode(
        &self,
        codes: &[i64],
        count: usize,
        valid: &[bool],
        state: &mut State,
    ) -> Result<Vec<f32>> {
        if count != state.codebooks {
            if !(1..=self.spec.num_active).contains(&count) {
                candle::bail!("{count} codes per frame, the codec has {}", self.spec.num_active)
            }
            if state.slots.iter().any(Option::is_some) {
                candle::bail!("{count} codes per frame after {} in one stream", state.codebooks)
            }
            state.fresh = build(&self.tensors, &self.spec, count, &self.device)?;
            state.codebooks = count;
        }
        let cardinality = self.spec.cardinality as i64;
        let run = |slot: usize, mimi: &mut Mimi| -> Result<Vec<f32>> {
            let frame = &codes[slot * count..(slot + 1) * count];
            if let Some(code) = frame.iter().find(|code| !(0..cardinality).contains(*code)) {
                candle::bail!("code {code} is not in 0 .. {}", cardinality - 1)
            }
            let frame: Vec<u32> = frame.iter().map(|&code| code as u32).collect();
            let frame = Tensor::from_vec(frame, (1, count, 1), &self.device)?;
            let pcm = mimi.decode_step(&frame.into(), &StreamMask::empty())?;
            match pcm.as_option() {
                Some(pcm) => pcm.flatten_all()?.to_vec1(),
                None => candle::bail!("a frame gave no audio"),
            }
        };
        let size = self.spec.channels * self.spec.frame_size;
        self.each(valid, state, size, count, codes.len(), run)
    }

    /// Runs one step of each valid slot, and puts `width` numbers of each together.
    fn each<T: Copy + Default + Send>(
        &self,
        valid: &[bool],
        state: &mut State,
        width: usize,
        given: usize,
        total: usize,
        run: impl Fn(usize, &mut Mimi) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        if total != valid.len() * given {
            candle::bail!("a frame has {given} numbers per slot")
        }
        if valid.len() > state.slots.len() {
            candle::bail!("{} slots, the state has {}", valid.len(), state.slots.len())
        }
        let fresh = &state.fresh;
        let one = |(slot, held): (usize, &mut Option<Mimi>)| -> Result<Vec<T>> {
            if !valid[slot] {
                return Ok(vec![T::default(); width]);
            }
            let found = run(slot, held.get_or_insert_with(|| fresh.clone()))?;
            if found.len() != width {
                candle::bail!("a frame gave {} numbers, wanted {width}", found.len())
            }
            Ok(found)
        };
        let slots = &mut state.slots[..valid.len()];
        let found: Vec<Vec<T>> = if self.device.is_cpu() {
            slots.par_iter_mut().enumerate().map(one).collect::<Result<_>>()?
        } else {
            slots.iter_mut().enumerate().map(one).collect::<Result<_>>()?
        };
        Ok(found.into_iter().flatten().collect())
    }
}

impl State {
    /// Forgets a slot: its next frame starts a new model.
    pub fn reset(&mut self, slot: usize) -> Result<()> {
        match self.slots.get_mut(slot) {
            Some(held) => *held = None,
            None => candle::bail!("there is no slot {slot}"),
        }
        Ok(())
    }
}

fn build(
    tensors: &HashMap<String, Tensor>,
    spec: &Spec,
    codebooks: usize,
    device: &Device,
) -> Result<Mimi> {
    let source = VarBuilder::from_tensors(tensors.clone(), DType::F32, device);
    Mimi::new(spec.config(codebooks), source)
}

impl Spec {
    /// Channels and samples of one frame.
    pub fn frame(&self) -> (usize, usize) {
        (self.channels, self.frame_size)
    }
}
