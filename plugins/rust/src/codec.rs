//! The codec: Mimi, streaming, many slots over the same weights, on the CPU.

use std::path::Path;

use candle::Result;
use serde::Deserialize;

use crate::arena::Arena;
use crate::mimi::conv::{self, Conv, Shape, Upsample};
use crate::mimi::quantizer::{self, Quantizer};
use crate::mimi::seanet::{self, Seanet};
use crate::mimi::transformer::{self, Transformer};
use crate::weights::Weights;

/// Every number of a Mimi; written by `moshi_pipe_rust.codec`.
#[derive(Deserialize, Clone)]
pub struct Spec {
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
    num_codebooks: usize,
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
    /// Channels and samples of one frame.
    pub fn frame(&self) -> (usize, usize) {
        (self.channels, self.frame_size)
    }

    /// Latents of one frame, before they become one.
    fn stride(&self) -> Result<usize> {
        let hop: usize = self.ratios.iter().product();
        if self.frame_size == 0
            || !self.frame_size.is_multiple_of(hop)
            || self.width != self.dimension
        {
            candle::bail!(
                "frames of {} samples, ratios {:?}, widths {} and {} do not make a codec",
                self.frame_size,
                self.ratios,
                self.dimension,
                self.width
            )
        }
        Ok(self.frame_size / hop)
    }

    fn seanet(&self) -> seanet::Sizes<'_> {
        seanet::Sizes {
            channels: self.channels,
            dimension: self.dimension,
            num_filters: self.num_filters,
            ratios: &self.ratios,
            kernel: self.kernel_size,
            residual_kernel: self.residual_kernel_size,
            last_kernel: self.last_kernel_size,
            residual_layers: self.num_residual_layers,
            dilation_base: self.dilation_base,
            compress: self.compress,
            frame: self.frame_size,
        }
    }

    fn transformer(&self, steps: usize) -> transformer::Sizes {
        transformer::Sizes {
            width: self.width,
            heads: self.num_heads,
            layers: self.num_layers,
            feedforward: self.feedforward,
            context: self.context,
            max_period: self.max_period,
            steps,
        }
    }

    fn quantizer(&self) -> quantizer::Sizes {
        quantizer::Sizes {
            width: self.dimension,
            entry: self.quantizer_dim,
            cardinality: self.cardinality,
            books: self.num_codebooks,
            active: self.num_active,
        }
    }
}

/// Weights of a codec, in the order in which a frame reads them.
pub struct Codec {
    pub spec: Spec,
    encoder: Seanet,
    encoder_transformer: Transformer,
    downsample: Conv,
    quantizer: Quantizer,
    upsample: Upsample,
    decoder_transformer: Transformer,
    decoder: Seanet,
}

/// Streams on their way in.
pub struct EncoderState {
    seanet: seanet::State,
    transformer: transformer::State,
    /// What the down-sampling remembers, and whether a slot is yet to see a frame.
    past: Vec<f32>,
    fresh: Vec<bool>,
    scratch: conv::Scratch,
    latents: Vec<f32>,
    quantizer: quantizer::Scratch,
    slots: Vec<usize>,
}

/// Streams on their way out.
pub struct DecoderState {
    quantizer: quantizer::Scratch,
    latents: Vec<f32>,
    /// What the up-sampling remembers.
    past: Vec<f32>,
    transformer: transformer::State,
    seanet: seanet::State,
    slots: Vec<usize>,
    num_slots: usize,
}

impl Codec {
    pub fn load(path: &Path, spec: Spec, check_finite: bool) -> Result<Self> {
        let weights = &Weights::open(path, check_finite)?;
        let arena = &mut Arena::default();
        let (stride, width) = (spec.stride()?, spec.dimension);
        let transformer = spec.transformer(stride);
        let down = Shape { stride, bias: false, ..Shape::new(width, width, 2 * stride) };
        Ok(Self {
            encoder: Seanet::encoder(weights, arena, "encoder", &spec.seanet())?,
            encoder_transformer: Transformer::load(
                weights,
                arena,
                "encoder_transformer.transformer",
                transformer,
            )?,
            downsample: Conv::load(weights, arena, "downsample.conv.conv.conv", down, stride)?,
            quantizer: Quantizer::load(weights, arena, "quantizer", spec.quantizer())?,
            upsample: Upsample::load(weights, "upsample.convtr.convtr.convtr", width, stride)?,
            decoder_transformer: Transformer::load(
                weights,
                arena,
                "decoder_transformer.transformer",
                transformer,
            )?,
            decoder: Seanet::decoder(weights, arena, "decoder", &spec.seanet())?,
            spec,
        })
    }

    pub fn new_encoder_state(&self, slots: usize) -> Result<EncoderState> {
        let mut scratch = conv::Scratch::default();
        self.downsample.reserve(slots, &mut scratch);
        Ok(EncoderState {
            seanet: self.encoder.new_state(slots),
            transformer: self.encoder_transformer.new_state(slots)?,
            past: vec![0.0; slots * self.downsample.memory()],
            fresh: vec![true; slots],
            scratch,
            latents: vec![0.0; slots * self.spec.dimension],
            quantizer: self.quantizer.new_scratch(slots),
            slots: Vec::with_capacity(slots),
        })
    }

    pub fn new_decoder_state(&self, slots: usize) -> Result<DecoderState> {
        Ok(DecoderState {
            quantizer: self.quantizer.new_scratch(slots),
            latents: vec![0.0; slots * self.spec.dimension],
            past: vec![0.0; slots * self.spec.dimension],
            transformer: self.decoder_transformer.new_state(slots)?,
            seanet: self.decoder.new_state(slots),
            slots: Vec::with_capacity(slots),
            num_slots: slots,
        })
    }

    /// Encodes a frame of each valid slot: PCM `[slots, channels, frame_size]` to codes
    /// `[slots, codebooks]`, 0 where not valid.
    pub fn encode(
        &self,
        pcm: &[f32],
        valid: &[bool],
        state: &mut EncoderState,
    ) -> Result<Vec<i64>> {
        let (channels, size) = self.spec.frame();
        check(pcm.len(), channels * size, valid, state.fresh.len())?;
        let EncoderState { seanet, transformer, past, fresh, scratch, latents, .. } = state;
        let slots = &mut state.slots;
        name(valid, slots);
        for (i, &slot) in slots.iter().enumerate() {
            let pcm = &pcm[slot * channels * size..(slot + 1) * channels * size];
            interleave(pcm, channels, &mut seanet.held(i)[..channels * size]);
        }
        self.encoder.step(slots, seanet);
        let width = self.downsample.width_in();
        for (i, x) in transformer.x.chunks_exact_mut(width).enumerate().take(slots.len()) {
            x.copy_from_slice(&seanet.held(i)[..width]);
        }
        self.encoder_transformer.step(slots, transformer);
        let x = &transformer.x[..slots.len() * width];
        let size = self.downsample.memory();
        for (&slot, x) in slots.iter().zip(x.chunks_exact(width)) {
            if std::mem::take(&mut fresh[slot]) {
                self.downsample.replicate(x, &mut past[slot * size..(slot + 1) * size]);
            }
        }
        let latents = &mut latents[..slots.len() * self.spec.dimension];
        self.downsample.step(x, slots, past, scratch, latents, false, false);
        let active = self.spec.num_active;
        let mut codes = vec![0; slots.len() * active];
        self.quantizer.encode(latents, &mut codes, &mut state.quantizer);
        Ok(scatter(&codes, active, slots, valid.len()))
    }

    /// Decodes a frame of each valid slot: codes `[slots, count]` to PCM
    /// `[slots, channels, frame_size]`, 0 where not valid.
    pub fn decode(
        &self,
        codes: &[i64],
        count: usize,
        valid: &[bool],
        state: &mut DecoderState,
    ) -> Result<Vec<f32>> {
        let width = self.spec.dimension;
        check(codes.len(), count, valid, state.num_slots)?;
        let codes = self.checked(codes, count, valid)?;
        let DecoderState { quantizer, latents, past, transformer, seanet, slots, .. } = state;
        name(valid, slots);
        let latents = &mut latents[..slots.len() * width];
        self.quantizer.decode(&codes, count, latents, quantizer);
        let size = self.downsample.width_in();
        let rows = latents.chunks_exact(width).zip(transformer.x.chunks_exact_mut(size));
        for (&slot, (latent, x)) in slots.iter().zip(rows) {
            self.upsample.step(latent, &mut past[slot * width..(slot + 1) * width], x);
        }
        self.decoder_transformer.step(slots, transformer);
        for (i, x) in transformer.x.chunks_exact(size).enumerate().take(slots.len()) {
            seanet.held(i)[..size].copy_from_slice(x);
        }
        self.decoder.step(slots, seanet);
        let (channels, size) = self.spec.frame();
        let mut pcm = vec![0f32; valid.len() * channels * size];
        for (i, &slot) in slots.iter().enumerate() {
            let pcm = &mut pcm[slot * channels * size..(slot + 1) * channels * size];
            interleave(&seanet.held(i)[..channels * size], size, pcm);
        }
        Ok(pcm)
    }

    /// The codes of the valid slots, all of which are in their codebooks.
    fn checked(&self, codes: &[i64], count: usize, valid: &[bool]) -> Result<Vec<i64>> {
        let (most, cardinality) = (self.spec.num_codebooks, self.spec.cardinality as i64);
        if !(1..=most).contains(&count) {
            candle::bail!("{count} codes per frame, the codec has {most}")
        }
        let rows = codes.chunks_exact(count).zip(valid).filter(|(_, valid)| **valid);
        let codes: Vec<i64> = rows.flat_map(|(codes, _)| codes.iter().copied()).collect();
        if let Some(code) = codes.iter().find(|code| !(0..cardinality).contains(*code)) {
            candle::bail!("code {code} is not in 0 .. {}", cardinality - 1)
        }
        Ok(codes)
    }
}

impl EncoderState {
    /// Starts a slot anew.
    pub fn reset(&mut self, slot: usize) -> Result<()> {
        let slots = self.fresh.len();
        check_slot(slot, slots)?;
        self.seanet.reset(slot, slots);
        self.transformer.reset(slot);
        self.fresh[slot] = true;
        Ok(())
    }
}

impl DecoderState {
    /// Starts a slot anew.
    pub fn reset(&mut self, slot: usize) -> Result<()> {
        let slots = self.num_slots;
        check_slot(slot, slots)?;
        let width = self.past.len() / slots;
        self.past[slot * width..(slot + 1) * width].fill(0.0);
        self.transformer.reset(slot);
        self.seanet.reset(slot, slots);
        Ok(())
    }
}

fn check_slot(slot: usize, slots: usize) -> Result<()> {
    if slot >= slots {
        candle::bail!("there is no slot {slot}")
    }
    Ok(())
}

fn check(numbers: usize, per_slot: usize, valid: &[bool], slots: usize) -> Result<()> {
    if numbers != valid.len() * per_slot {
        candle::bail!("a frame has {per_slot} numbers per slot")
    }
    if valid.len() > slots {
        candle::bail!("{} slots, the state has {slots}", valid.len())
    }
    Ok(())
}

/// Puts the indices of the valid slots into `slots`.
fn name(valid: &[bool], slots: &mut Vec<usize>) {
    slots.clear();
    slots.extend((0..valid.len()).filter(|&slot| valid[slot]));
}

/// Turns `[rows][columns]` into `[columns][rows]`.
fn interleave(from: &[f32], rows: usize, to: &mut [f32]) {
    let columns = from.len() / rows;
    for (i, row) in from.chunks_exact(columns).enumerate() {
        for (j, value) in row.iter().enumerate() {
            to[j * rows + i] = *value;
        }
    }
}

/// Puts the rows of the named slots where they belong among `count`.
fn scatter(rows: &[i64], width: usize, slots: &[usize], count: usize) -> Vec<i64> {
    let mut found = vec![0; count * width];
    for (&slot, row) in slots.iter().zip(rows.chunks_exact(width)) {
        found[slot * width..(slot + 1) * width].copy_from_slice(row);
    }
    found
}
