//! The language model: a temporal transformer per frame, a depth transformer per codebook.
//!
//! Our own, on the CPU with kernels of its own and elsewhere on candle's tensors: several streams read every weight once, each stream has its own
//! position, and the caller's noise decides what is sampled. None of that is open in the `moshi`
//! crate, whose model has one position for all streams and keeps its depth transformer private.
//!
//! Source of the architecture: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm.py; of the names in
//! candle's files: rust/moshi-core/src/lm.rs.

use candle::{DType, Device, Result, Tensor, D};
use serde::Deserialize;

use crate::attention::{attend, attend_plain, Heads, Place, Ring, Rotation};
use crate::linear::{by_rows, on_slices, Linear, Placement, Table};
use crate::math::{gated, rms_norm};
use crate::sampling::{sample, Sampling};
use crate::weights::{Piece, Weights};

/// One stack of blocks.
#[derive(Deserialize)]
pub struct StackSpec {
    dim: usize,
    num_heads: usize,
    num_kv_heads: usize,
    num_layers: usize,
    /// Hidden size of the gated feed-forward, per weight set.
    hidden: Vec<usize>,
    eps: f32,
}

impl StackSpec {
    fn heads(&self) -> Heads {
        let width = self.dim / self.num_heads;
        Heads { queries: self.num_heads, keys: self.num_kv_heads, width }
    }
}

#[derive(Deserialize)]
struct DepthSpec {
    stack: StackSpec,
    /// Weight set of each codebook.
    sets: Vec<usize>,
    multi_linear: bool,
    low_rank: Option<usize>,
}

/// Every number of a model that the steps need; written by `moshi_pipe_rust.backend`.
#[derive(Deserialize)]
pub struct Spec {
    temporal: StackSpec,
    context: usize,
    max_period: f32,
    num_codebooks: usize,
    cardinality: usize,
    text_cardinality: usize,
    text_head_size: usize,
    num_extra_heads: usize,
    extra_head_size: usize,
    depth: Option<DepthSpec>,
    /// The end of a stream is read as padding: Hibiki emits it too early.
    end_as_padding: bool,
}

struct Norm {
    alpha: Alpha,
    eps: f32,
}

enum Alpha {
    Own(Vec<f32>),
    Plain(Tensor),
}

impl Norm {
    fn load(
        weights: &Weights,
        pieces: &[Piece],
        dim: usize,
        eps: f32,
        place: &Placement,
    ) -> Result<Self> {
        let name = &weights.find(pieces)?.name;
        let alpha = weights.tensor(name, &Device::Cpu)?;
        if alpha.elem_count() != dim {
            candle::bail!("'{name}' is {:?}, the config says {dim} values", alpha.dims())
        }
        let alpha = alpha.flatten_all()?.to_dtype(place.compute())?.to_device(&place.device)?;
        let alpha = if place.own() { Alpha::Own(alpha.to_vec1()?) } else { Alpha::Plain(alpha) };
        Ok(Self { alpha, eps })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.alpha {
            Alpha::Own(_) => on_slices(x, |x, y| self.apply(x, y)),
            Alpha::Plain(alpha) => candle_nn::ops::rms_norm(x, alpha, self.eps),
        }
    }

    /// By our own kernels; `y` becomes as long as `x`.
    fn apply(&self, x: &[f32], y: &mut Vec<f32>) -> Result<()> {
        let Alpha::Own(alpha) = &self.alpha else {
            candle::bail!("a norm on another device was given numbers on the CPU")
        };
        y.resize(x.len(), 0.0);
        rms_norm(x, alpha, self.eps, y);
        Ok(())
    }
}

/// What differs between the weight sets of a block.
struct WeightSet {
    in_proj: Linear,
    out_proj: Linear,
    gate_in: Linear,
    gate_out: Linear,
}

struct Block {
    norm1: Norm,
    norm2: Norm,
    sets: Vec<WeightSet>,
}

struct Stack {
    heads: Heads,
    blocks: Vec<Block>,
    /// Whether steps are by our own kernels.
    own: bool,
}

/// What a step of our own kernels works in.
#[derive(Default)]
struct Scratch {
    normal: Vec<f32>,
    projected: Vec<f32>,
    seen: Vec<f32>,
    gates: Vec<f32>,
    hidden: Vec<f32>,
}

impl Stack {
    /// Loads the temporal transformer, or the depth transformer when `sets` says which weights each
    /// codebook uses.
    fn load(
        weights: &Weights,
        spec: &StackSpec,
        sets: Option<&[usize]>,
        place: &Placement,
    ) -> Result<Self> {
        let heads = spec.heads();
        let projected = (heads.queries + 2 * heads.keys) * heads.width;
        let count = spec.hidden.len();
        let mut blocks = Vec::with_capacity(spec.num_layers);
        for layer in 0..spec.num_layers {
            let prefix = if sets.is_some() { "depformer" } else { "transformer" };
            let block = format!("{prefix}.layers.{layer}");
            // Candle's files have a whole transformer per codebook.
            let slice = |set: usize| {
                let first = sets.and_then(|sets| sets.iter().position(|&s| s == set));
                first.map(|k| format!("depformer.{k}.transformer.layers.{layer}"))
            };
            let norm = |which: &str| {
                let mut pieces = vec![Piece::whole(format!("{block}.{which}.alpha"))];
                pieces.extend(slice(0).map(|s| Piece::whole(format!("{s}.{which}.alpha"))));
                Norm::load(weights, &pieces, spec.dim, spec.eps, place)
            };
            let mut loaded = Vec::with_capacity(count);
            for (set, &hidden) in spec.hidden.iter().enumerate() {
                let attention = |fused: &str, split: &str, shape| {
                    let mut pieces = vec![
                        Piece::whole(format!("{block}.self_attn.{split}.{set}.weight")),
                        Piece::of(format!("{block}.self_attn.{fused}"), set, count),
                    ];
                    let own = slice(set).map(|s| Piece::whole(format!("{s}.self_attn.{fused}")));
                    pieces.extend(own);
                    Linear::load(weights, &pieces, shape, place)
                };
                let gate = |which: &str, shape| {
                    let mut pieces = vec![Piece::whole(format!("{block}.gating.{set}.{which}"))];
                    pieces.extend(slice(set).map(|s| Piece::whole(format!("{s}.gating.{which}"))));
                    pieces.push(Piece::whole(format!("{block}.gating.{which}")));
                    Linear::load(weights, &pieces, shape, place)
                };
                loaded.push(WeightSet {
                    in_proj: attention("in_proj_weight", "in_projs", (projected, spec.dim))?,
                    out_proj: attention("out_proj.weight", "out_projs", (spec.dim, spec.dim))?,
                    gate_in: gate("linear_in.weight", (2 * hidden, spec.dim))?,
                    gate_out: gate("linear_out.weight", (spec.dim, hidden))?,
                });
            }
            blocks.push(Block { norm1: norm("norm1")?, norm2: norm("norm2")?, sets: loaded });
        }
        Ok(Self { heads, blocks, own: place.own() })
    }

    /// One position per row; `rings[row][layer]`.
    fn step(
        &self,
        mut x: Tensor,
        set: usize,
        rings: &mut [&mut Vec<Ring>],
        places: &[Place],
        rotation: Option<&Rotation>,
        scratch: &mut Scratch,
    ) -> Result<Tensor> {
        if self.own {
            return on_slices(&x, |x, y| {
                y.extend(x);
                self.step_numbers(y, set, rings, places, rotation, scratch)
            });
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let weights = &block.sets[set];
            let projected = weights.in_proj.forward(&block.norm1.forward(&x)?)?;
            let mut own: Vec<&mut Ring> = rings.iter_mut().map(|rings| &mut rings[layer]).collect();
            let seen = attend_plain(&projected, self.heads, &mut own, places, rotation)?;
            x = (x + weights.out_proj.forward(&seen)?)?;
            let gates = weights.gate_in.forward(&block.norm2.forward(&x)?)?.chunk(2, D::Minus1)?;
            let hidden = (gates[0].contiguous()?.silu()? * &gates[1])?;
            x = (x + weights.gate_out.forward(&hidden)?)?;
        }
        Ok(x)
    }

    /// The same by our own kernels, `x` in place.
    fn step_numbers(
        &self,
        x: &mut [f32],
        set: usize,
        rings: &mut [&mut Vec<Ring>],
        places: &[Place],
        rotation: Option<&Rotation>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { normal, projected, seen, gates, hidden } = scratch;
        for (layer, block) in self.blocks.iter().enumerate() {
            let weights = &block.sets[set];
            block.norm1.apply(x, normal)?;
            weights.in_proj.multiply(normal, projected)?;
            let mut own: Vec<&mut Ring> = rings.iter_mut().map(|rings| &mut rings[layer]).collect();
            attend(projected, self.heads, &mut own, places, rotation, seen);
            weights.out_proj.multiply_add(seen, x)?;
            block.norm2.apply(x, normal)?;
            weights.gate_in.multiply(normal, gates)?;
            hidden.resize(gates.len() / 2, 0.0);
            by_rows(gates, hidden, places.len(), |gates, hidden| gated(gates, 1, hidden));
            weights.gate_out.multiply_add(hidden, x)?;
        }
        Ok(())
    }

    fn rings(&self, capacity: usize, dtype: DType, place: &Placement) -> Result<Vec<Ring>> {
        self.blocks.iter().map(|_| Ring::new(self.heads, capacity, dtype, place)).collect()
    }

    fn num_bytes(&self) -> usize {
        let sets = self.blocks.iter().flat_map(|block| &block.sets);
        sets.map(|set| {
            set.in_proj.num_bytes()
                + set.out_proj.num_bytes()
                + set.gate_in.num_bytes()
                + set.gate_out.num_bytes()
        })
        .sum()
    }
}

struct Depth {
    stack: Stack,
    sets: Vec<usize>,
    inputs: Vec<Linear>,
    tables: Vec<Table>,
    low_rank: Vec<Linear>,
    heads: Vec<Linear>,
}

impl Depth {
    fn load(weights: &Weights, spec: &Spec, own: &DepthSpec, place: &Placement) -> Result<Self> {
        let dim = own.stack.dim;
        let mut inputs = Vec::new();
        for set in 0..if own.multi_linear { own.stack.hidden.len() } else { 1 } {
            let first = own.sets.iter().position(|&s| s == set).unwrap_or(0);
            let pieces = [
                Piece::whole(format!("depformer_in.{set}.weight")),
                Piece::whole(format!("depformer.{first}.linear_in.weight")),
            ];
            inputs.push(Linear::load(weights, &pieces, (dim, spec.temporal.dim), place)?);
        }
        let (mut tables, mut low_rank, mut heads) = (vec![], vec![], vec![]);
        for k in 0..own.sets.len() {
            let (stem, rows) = match k {
                0 => ("depformer_text_emb".to_string(), spec.text_cardinality + 1),
                _ => (format!("depformer_emb.{}", k - 1), spec.cardinality + 1),
            };
            let named = |tail: &str| {
                [
                    Piece::whole(format!("{stem}.{tail}")),
                    Piece::whole(format!("depformer.{k}.emb.{tail}")),
                ]
            };
            let width = own.low_rank.unwrap_or(dim);
            tables.push(Table::load(weights, &named("weight"), (rows, width), place)?);
            if own.low_rank.is_some() {
                let pieces = named("low_rank.weight");
                low_rank.push(Linear::load(weights, &pieces, (dim, width), place)?);
            }
            let pieces = [
                Piece::whole(format!("linears.{k}.weight")),
                Piece::whole(format!("depformer.{k}.linear_out.weight")),
            ];
            heads.push(Linear::load(weights, &pieces, (spec.cardinality, dim), place)?);
        }
        let stack = Stack::load(weights, &own.stack, Some(&own.sets), place)?;
        Ok(Self { stack, sets: own.sets.clone(), inputs, tables, low_rank, heads })
    }

    fn num_bytes(&self) -> usize {
        let linears = self.inputs.iter().chain(&self.low_rank).chain(&self.heads);
        self.stack.num_bytes()
            + linears.map(Linear::num_bytes).sum::<usize>()
            + self.tables.iter().map(Table::num_bytes).sum::<usize>()
    }
}

/// Weights of a language model.
pub struct Model {
    pub spec: Spec,
    place: Placement,
    text_table: Table,
    tables: Vec<Table>,
    stack: Stack,
    out_norm: Norm,
    text_head: Linear,
    extra_heads: Vec<Linear>,
    depth: Option<Depth>,
}

/// What one session's rows remember.
struct Row {
    rings: Vec<Ring>,
    position: usize,
    condition: Option<Tensor>,
}

/// What the model remembers of all sessions; the rows of a slot lie side by side.
pub struct State {
    rows: Vec<Row>,
    per_slot: usize,
    depth: Vec<Vec<Ring>>,
    scratch: Scratch,
    /// Slots of the last temporal step, and its outputs `[rows, dim]`.
    last: Option<(Vec<usize>, Tensor)>,
}

/// What a temporal step gives, row by row for every slot that was asked for.
pub struct Temporal {
    /// `[slots, text_head_size]`; zero where not valid.
    pub text_logits: Vec<f32>,
    /// `[slots, num_extra_heads, extra_head_size]`, probabilities.
    pub extra: Vec<f32>,
    /// Whether each slot's text logits are finite.
    pub finite: Vec<bool>,
}

impl Model {
    pub fn load(weights: &Weights, spec: Spec, place: Placement) -> Result<Self> {
        if weights.is_gguf() && !place.quantize {
            candle::bail!("the file holds quantized weights, which quant=none does not run")
        }
        let dim = spec.temporal.dim;
        let shape = (spec.text_cardinality + 1, dim);
        let pieces = [Piece::whole("text_emb.weight")];
        let mut text_table = Table::load(weights, &pieces, shape, &place)?;
        if spec.end_as_padding {
            text_table.copy_row(3, 2)?;
        }
        let tables = (0..spec.num_codebooks)
            .map(|k| {
                let pieces = [Piece::whole(format!("emb.{k}.weight"))];
                Table::load(weights, &pieces, (spec.cardinality + 1, dim), &place)
            })
            .collect::<Result<Vec<_>>>()?;
        let head = |name: String, rows: usize| {
            Linear::load(weights, &[Piece::whole(name)], (rows, dim), &place)
        };
        let extra_heads = (0..spec.num_extra_heads)
            .map(|i| head(format!("extra_heads.{i}.weight"), spec.extra_head_size))
            .collect::<Result<Vec<_>>>()?;
        let pieces = [Piece::whole("out_norm.alpha")];
        Ok(Self {
            text_table,
            tables,
            stack: Stack::load(weights, &spec.temporal, None, &place)?,
            out_norm: Norm::load(weights, &pieces, dim, spec.temporal.eps, &place)?,
            text_head: head("text_linear.weight".into(), spec.text_head_size)?,
            extra_heads,
            depth: match &spec.depth {
                Some(own) => Some(Depth::load(weights, &spec, own, &place)?),
                None => None,
            },
            spec,
            place,
        })
    }

    pub fn num_codes(&self) -> usize {
        self.depth.as_ref().map_or(0, |depth| depth.sets.len())
    }

    /// Whether linear weights are held in bfloat16, as under `dtype` float32 those of such a file.
    pub fn holds_bfloat16(&self) -> bool {
        matches!(self.text_head, Linear::Bf16(_))
    }

    /// Bytes of all matrices and tables.
    pub fn num_bytes(&self) -> usize {
        let heads = self.extra_heads.iter().chain([&self.text_head]);
        let tables = self.tables.iter().chain([&self.text_table]);
        self.stack.num_bytes()
            + heads.map(Linear::num_bytes).sum::<usize>()
            + tables.map(Table::num_bytes).sum::<usize>()
            + self.depth.as_ref().map_or(0, Depth::num_bytes)
    }

    pub fn new_state(&self, slots: usize, per_slot: usize, kv: DType) -> Result<State> {
        let row = |_| -> Result<Row> {
            let rings = self.stack.rings(self.spec.context, kv, &self.place)?;
            Ok(Row { rings, position: 0, condition: None })
        };
        let rows = (0..slots * per_slot).map(row).collect::<Result<Vec<_>>>()?;
        let depth = match &self.depth {
            None => vec![],
            Some(depth) => (0..slots * per_slot)
                .map(|_| depth.stack.rings(depth.sets.len(), DType::F32, &self.place))
                .collect::<Result<Vec<_>>>()?,
        };
        Ok(State { rows, per_slot, depth, scratch: Scratch::default(), last: None })
    }

    /// Advances the valid slots. `column` is `[slots, 1 + num_codebooks]`.
    pub fn temporal(
        &self,
        column: &[i64],
        valid: &[bool],
        guidance: Option<&[f32]>,
        state: &mut State,
    ) -> Result<Temporal> {
        let (streams, size) = (1 + self.spec.num_codebooks, self.spec.text_head_size);
        if column.len() != valid.len() * streams {
            candle::bail!("a column has {streams} ids per slot")
        }
        if valid.len() * state.per_slot > state.rows.len() {
            candle::bail!("{} slots, the state has fewer", valid.len())
        }
        let extra_size = self.spec.num_extra_heads * self.spec.extra_head_size;
        let mut out = Temporal {
            text_logits: vec![0.0; valid.len() * size],
            extra: vec![0.0; valid.len() * extra_size],
            finite: vec![true; valid.len()],
        };
        let slots: Vec<usize> = (0..valid.len()).filter(|&slot| valid[slot]).collect();
        state.last = None;
        if slots.is_empty() {
            return Ok(out);
        }
        let per_slot = state.per_slot;
        let ids = |stream: usize| -> Vec<i64> {
            let of = |slot: &usize| std::iter::repeat_n(column[slot * streams + stream], per_slot);
            slots.iter().flat_map(of).collect()
        };
        // Codebooks in order, text last, as sums of narrow types depend on it.
        let mut x: Option<Tensor> = None;
        for (stream, table) in self.tables.iter().chain([&self.text_table]).enumerate() {
            let y = table.lookup(&ids((stream + 1) % streams))?;
            x = Some(match x {
                None => y,
                Some(x) => (x + y)?,
            });
        }
        let Some(mut x) = x else { candle::bail!("a model without streams") };
        let running: Vec<usize> =
            slots.iter().flat_map(|slot| slot * per_slot..(slot + 1) * per_slot).collect();
        x = self.add_conditions(x, &running, state)?;
        let capacity = self.spec.context;
        let places: Vec<Place> = running
            .iter()
            .map(|&row| Place { position: state.rows[row].position, capacity })
            .collect();
        let rotation = Rotation::new(&places, self.stack.heads.width, self.spec.max_period);
        let mut rings: Vec<&mut Vec<Ring>> = state
            .rows
            .iter_mut()
            .enumerate()
            .filter(|(row, _)| running.binary_search(row).is_ok())
            .map(|(_, row)| &mut row.rings)
            .collect();
        let scratch = &mut state.scratch;
        let x = self.stack.step(x, 0, &mut rings, &places, Some(&rotation), scratch)?;
        let hidden = self.out_norm.forward(&x)?;
        let logits = Logits::new(&self.text_head.forward(&hidden)?, guidance, per_slot)?;
        for (n, &slot) in slots.iter().enumerate() {
            let own = &mut out.text_logits[slot * size..(slot + 1) * size];
            logits.copy(n, slot, own);
            out.finite[slot] = own.iter().all(|x| x.is_finite());
        }
        for (i, head) in self.extra_heads.iter().enumerate() {
            let wide = head.forward(&hidden)?.to_dtype(DType::F32)?;
            let found = candle_nn::ops::softmax_last_dim(&wide)?.to_vec2::<f32>()?;
            for (n, slot) in slots.iter().enumerate() {
                let start = slot * extra_size + i * self.spec.extra_head_size;
                let own = &found[n * per_slot];
                out.extra[start..start + own.len()].copy_from_slice(own);
            }
        }
        for &row in &running {
            state.rows[row].position += 1;
        }
        state.last = Some((slots, hidden));
        Ok(out)
    }

    fn add_conditions(&self, x: Tensor, running: &[usize], state: &State) -> Result<Tensor> {
        if running.iter().all(|&row| state.rows[row].condition.is_none()) {
            return Ok(x);
        }
        let zero = Tensor::zeros((1, self.spec.temporal.dim), x.dtype(), x.device())?;
        let rows: Vec<&Tensor> = running
            .iter()
            .map(|&row| state.rows[row].condition.as_ref().unwrap_or(&zero))
            .collect();
        x + Tensor::cat(&rows, 0)?
    }

    /// Samples the codes of the slots of the last temporal step.
    ///
    /// Gives codes `[slots, codebooks]` and whether each slot's logits were finite.
    pub fn depth(
        &self,
        text: &[i64],
        sampling: &Sampling,
        guidance: Option<&[f32]>,
        state: &mut State,
    ) -> Result<(Vec<i64>, Vec<bool>)> {
        let count = self.num_codes();
        let mut codes = vec![0i64; text.len() * count];
        let mut finite = vec![true; text.len()];
        let (Some(depth), Some((slots, hidden))) = (&self.depth, &state.last) else {
            return Ok((codes, finite));
        };
        if slots.last().is_some_and(|&last| last >= text.len()) {
            candle::bail!("{} text tokens are fewer than slots", text.len())
        }
        let per_slot = state.per_slot;
        let mut rings: Vec<&mut Vec<Ring>> =
            state.depth.iter_mut().take(slots.len() * per_slot).collect();
        let mut previous: Vec<i64> = slots.iter().map(|&slot| text[slot]).collect();
        let mut projected: Option<(usize, Tensor)> = None;
        let mut logits = vec![0f32; self.spec.cardinality];
        for k in 0..count {
            let set = depth.sets[k];
            let input = if depth.inputs.len() > 1 { set } else { 0 };
            let base = match projected {
                Some((known, base)) if known == input => base,
                _ => depth.inputs[input].forward(hidden)?,
            };
            let ids: Vec<i64> =
                previous.iter().flat_map(|&id| std::iter::repeat_n(id, per_slot)).collect();
            let mut embedded = depth.tables[k].lookup(&ids)?;
            if let Some(wider) = depth.low_rank.get(k) {
                embedded = wider.forward(&embedded)?;
            }
            let x = (&base + embedded)?;
            projected = Some((input, base));
            let place = Place { position: k, capacity: count };
            let places = vec![place; rings.len()];
            let x = depth.stack.step(x, set, &mut rings, &places, None, &mut state.scratch)?;
            let found = Logits::new(&depth.heads[k].forward(&x)?, guidance, per_slot)?;
            for (n, slot) in slots.iter().enumerate() {
                found.copy(n, *slot, &mut logits);
                finite[*slot] &= logits.iter().all(|x| x.is_finite());
                let draw = sampling.draw(*slot, slot * (1 + count) + 1 + k);
                previous[n] = sample(&logits, &draw) as i64;
                codes[slot * count + k] = previous[n];
            }
        }
        Ok((codes, finite))
    }

    /// Forgets what a slot heard; its conditions follow.
    pub fn reset(&self, state: &mut State, slot: usize, conditions: &[Vec<f32>]) -> Result<()> {
        for i in 0..state.per_slot {
            let Some(row) = state.rows.get_mut(slot * state.per_slot + i) else {
                candle::bail!("there is no slot {slot}")
            };
            // Only entries up to the position are read, so what the rings held needs no erasing.
            row.position = 0;
            row.condition = match conditions.get(i) {
                None => None,
                Some(values) => Some(
                    Tensor::from_slice(values, (1, values.len()), &self.place.device)?
                        .to_dtype(self.place.compute())?,
                ),
            };
        }
        Ok(())
    }
}

impl State {
    pub fn num_slots(&self) -> usize {
        self.rows.len() / self.per_slot
    }
}

/// What a head gave, some rows for every slot that was stepped.
struct Logits<'a> {
    rows: Vec<f32>,
    guidance: Option<&'a [f32]>,
    per_slot: usize,
}

impl<'a> Logits<'a> {
    fn new(rows: &Tensor, guidance: Option<&'a [f32]>, per_slot: usize) -> Result<Self> {
        let rows = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { rows, guidance, per_slot })
    }

    /// Writes the logits of the nth slot that was stepped, whose number is `slot`: with guidance,
    /// `unwanted + (wanted - unwanted) * weight`.
    fn copy(&self, n: usize, slot: usize, out: &mut [f32]) {
        let size = out.len();
        let (wanted, unwanted) = self.rows[n * self.per_slot * size..].split_at(size);
        out.copy_from_slice(wanted);
        let weight = self.guidance.map_or(1.0, |guidance| guidance[slot]);
        if self.per_slot == 2 && weight != 1.0 {
            for (out, unwanted) in out.iter_mut().zip(unwanted) {
                *out = unwanted + (*out - unwanted) * weight;
            }
        }
    }
}

impl Spec {
    /// Size of the text head, number of extra heads and their size.
    pub fn heads(&self) -> (usize, usize, usize) {
        (self.text_head_size, self.num_extra_heads, self.extra_head_size)
    }
}
