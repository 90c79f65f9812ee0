//! Mimi's transformer: pre-norm blocks, rotary positions, and rings of keys and values.
//!
//! Rings are kept as panels, so that attention is two products: of queries with keys, and of what
//! softmax makes of them with values.

use candle::Result;

use super::read;
use crate::arena::{Arena, Buffer};
use crate::gemm::{multiply, Input, Output, Panels, View, WIDTH};
use crate::math::{exponentials, gelu, layer_norm};
use crate::team;
use crate::weights::Weights;

/// Numbers in rings that are worth a second thread.
const WORTH_SHARING: usize = 1 << 17;

#[derive(Clone, Copy)]
pub struct Sizes {
    pub width: usize,
    pub heads: usize,
    pub layers: usize,
    pub feedforward: usize,
    /// How far back a position sees, itself included.
    pub context: usize,
    pub max_period: usize,
    /// Positions of a frame.
    pub steps: usize,
}

impl Sizes {
    fn head(&self) -> usize {
        self.width / self.heads
    }

    /// Of the keys of one head: panels of entries.
    fn keys(&self) -> usize {
        self.context.next_multiple_of(WIDTH) * self.head()
    }

    /// Of the values of one head: panels of their width.
    fn values(&self) -> usize {
        self.head().next_multiple_of(WIDTH) * self.context
    }

    /// Of one layer of one slot.
    fn ring(&self) -> usize {
        self.heads * (self.keys() + self.values())
    }

    /// Scratch memory of one head of one slot: results, sums, scores.
    fn work(&self) -> usize {
        self.steps * (self.head() + 1 + self.context)
    }
}

struct Norm {
    scale: Vec<f32>,
    bias: Vec<f32>,
}

/// Layer scales are multiplied into the matrices before them.
struct Layer {
    norm1: Norm,
    attention_in: Panels,
    attention_out: Panels,
    norm2: Norm,
    linear1: Panels,
    linear2: Panels,
}

pub struct Transformer {
    sizes: Sizes,
    layers: Vec<Layer>,
    /// Of every pair of a head's numbers.
    frequencies: Vec<f32>,
}

/// What slots remember, and scratch memory.
pub struct State {
    /// Next position of every slot; it never wraps.
    positions: Vec<usize>,
    /// `[layers][slots][heads]` times keys and values.
    rings: Buffer,
    /// Input and output: `[slots][steps][width]` of the slots that are stepped.
    pub x: Vec<f32>,
    normal: Vec<f32>,
    projected: Vec<f32>,
    work: Vec<f32>,
    hidden: Vec<f32>,
    /// Cosines and sines, `[slots][steps][head / 2]`.
    turns: Vec<(f32, f32)>,
}

impl Transformer {
    pub fn load(weights: &Weights, arena: &mut Arena, name: &str, sizes: Sizes) -> Result<Self> {
        let Sizes { width, heads, context, steps, .. } = sizes;
        if heads == 0 || !width.is_multiple_of(2 * heads) || steps > context {
            candle::bail!(
                "{heads} heads, width {width}, {steps} positions in a window of {context}"
            )
        }
        let layers = (0..sizes.layers)
            .map(|i| Layer::load(weights, arena, &format!("{name}.layers.{i}"), sizes))
            .collect::<Result<_>>()?;
        let slope = -(sizes.max_period as f64).ln() * 2.0 / sizes.head() as f64;
        let frequencies = (0..sizes.head() / 2).map(|e| (e as f32 * slope as f32).exp()).collect();
        Ok(Self { sizes, layers, frequencies })
    }

    pub fn new_state(&self, slots: usize) -> Result<State> {
        let Sizes { width, heads, layers, feedforward, steps, .. } = self.sizes;
        let rows = slots * steps;
        Ok(State {
            positions: vec![0; slots],
            rings: Buffer::zeros(layers * slots * self.sizes.ring())?,
            x: vec![0.0; rows * width],
            normal: vec![0.0; rows * width],
            projected: vec![0.0; rows * 3 * width],
            work: vec![0.0; slots * heads * self.sizes.work()],
            hidden: vec![0.0; rows * feedforward],
            turns: vec![(0.0, 0.0); rows * self.frequencies.len()],
        })
    }

    /// Steps the named slots, from and to [`State::x`].
    pub fn step(&self, slots: &[usize], state: &mut State) {
        self.turn(slots, state);
        for (i, layer) in self.layers.iter().enumerate() {
            self.attend(i, layer, slots, state);
            self.feed(layer, slots.len() * self.sizes.steps, state);
        }
        for &slot in slots {
            state.positions[slot] += self.sizes.steps;
        }
    }

    /// Computes the rotations of this step's positions.
    fn turn(&self, slots: &[usize], state: &mut State) {
        let mut turns = state.turns.chunks_exact_mut(self.frequencies.len());
        for &slot in slots {
            for (step, turns) in (0..self.sizes.steps).zip(&mut turns) {
                let time = state.positions[slot] as f32 + step as f32;
                for (turn, frequency) in turns.iter_mut().zip(&self.frequencies) {
                    let angle = frequency * time;
                    *turn = (angle.cos(), angle.sin());
                }
            }
        }
    }

    fn attend(&self, index: usize, layer: &Layer, slots: &[usize], state: &mut State) {
        let Sizes { width, heads, steps, .. } = self.sizes;
        let (rows, ring) = (slots.len() * steps, self.sizes.ring());
        let all = state.positions.len();
        let State { positions, rings, x, normal, projected, work, turns, .. } = state;
        let (x, normal) = (&mut x[..rows * width], &mut normal[..rows * width]);
        let projected = &mut projected[..rows * 3 * width];
        layer.norm1.apply(x, normal);
        let output = Output::dense(projected, 3 * width);
        multiply(Input::dense(normal, rows, width), layer.attention_in.view(), output);
        self.rotate(projected, turns);
        let rings = &mut rings[index * all * ring..(index + 1) * all * ring];
        let per_slot = projected.chunks_exact(steps * 3 * width);
        for (&slot, projected) in slots.iter().zip(per_slot) {
            let ring = &mut rings[slot * ring..(slot + 1) * ring];
            self.remember(projected, positions[slot], ring);
        }
        let size = self.sizes.work();
        let work = &mut work[..slots.len() * heads * size];
        let one = |i: usize, work: &mut [f32]| {
            let (slot, head) = (slots[i / heads], i % heads);
            let size = ring / heads;
            let ring = &rings[slot * ring + head * size..slot * ring + (head + 1) * size];
            let queries = &projected[i / heads * steps * 3 * width + head * self.sizes.head()..];
            self.look(queries, positions[slot], ring, work)
        };
        let held = |slot: &usize| positions[*slot].min(self.sizes.context);
        let numbers = slots.iter().map(held).sum::<usize>() * 2 * width;
        team::shared_if(numbers >= WORTH_SHARING).chunks(work, size, one);
        self.collect(work, normal);
        let output = Output { add: true, ..Output::dense(x, width) };
        multiply(Input::dense(normal, rows, width), layer.attention_out.view(), output);
    }

    fn feed(&self, layer: &Layer, rows: usize, state: &mut State) {
        let Sizes { width, feedforward, .. } = self.sizes;
        let (x, normal) = (&mut state.x[..rows * width], &mut state.normal[..rows * width]);
        let hidden = &mut state.hidden[..rows * feedforward];
        layer.norm2.apply(x, normal);
        let output = Output::dense(hidden, feedforward);
        multiply(Input::dense(normal, rows, width), layer.linear1.view(), output);
        gelu(hidden);
        let output = Output { add: true, ..Output::dense(x, width) };
        multiply(Input::dense(hidden, rows, feedforward), layer.linear2.view(), output);
    }

    /// Rotates queries and keys `[rows][3][heads][head]` by pairs of neighbours, and scales queries.
    fn rotate(&self, projected: &mut [f32], turns: &[(f32, f32)]) {
        let (width, pairs) = (self.sizes.width, self.frequencies.len());
        let scale = 1.0 / (self.sizes.head() as f32).sqrt();
        for (row, turns) in projected.chunks_exact_mut(3 * width).zip(turns.chunks_exact(pairs)) {
            let (queries, keys) = row[..2 * width].split_at_mut(width);
            for (part, scale) in [(queries, scale), (keys, 1.0)] {
                for head in part.chunks_exact_mut(2 * pairs) {
                    for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(turns) {
                        let (real, imag) = (pair[0], pair[1]);
                        pair[0] = (real * cos - imag * sin) * scale;
                        pair[1] = (real * sin + imag * cos) * scale;
                    }
                }
            }
        }
    }

    /// Writes a slot's new keys and values over the oldest ones.
    fn remember(&self, projected: &[f32], position: usize, ring: &mut [f32]) {
        let Sizes { width, heads, context, .. } = self.sizes;
        let (head, keys) = (self.sizes.head(), self.sizes.keys());
        for (step, row) in projected.chunks_exact(3 * width).enumerate() {
            let at = (position + step) % context;
            for (h, ring) in ring.chunks_exact_mut(ring.len() / heads).enumerate() {
                let (ring_keys, ring_values) = ring.split_at_mut(keys);
                let panel = &mut ring_keys[at / WIDTH * WIDTH * head..][..WIDTH * head];
                let key = &row[width + h * head..width + (h + 1) * head];
                for (panel, value) in panel.chunks_exact_mut(WIDTH).zip(key) {
                    panel[at % WIDTH] = *value;
                }
                let value = &row[2 * width + h * head..2 * width + (h + 1) * head];
                let panels = ring_values.chunks_exact_mut(WIDTH * context);
                for (panel, value) in panels.zip(value.chunks(WIDTH)) {
                    panel[at * WIDTH..][..value.len()].copy_from_slice(value);
                }
            }
        }
    }

    /// One head of one slot attends over its ring; `queries` are `3 * width` numbers apart.
    fn look(&self, queries: &[f32], position: usize, ring: &[f32], work: &mut [f32]) {
        let Sizes { width, context, steps, .. } = self.sizes;
        let head = self.sizes.head();
        let (keys, values) = ring.split_at(self.sizes.keys());
        let held = context.min(position + steps);
        let (results, rest) = work.split_at_mut(steps * head);
        let (sums, scores) = rest.split_at_mut(steps);
        let scores = &mut scores[..steps * held];
        let input = Input { row_stride: 3 * width, ..Input::dense(queries, steps, head) };
        let keys = View { data: keys, outputs: held, inputs: head, stride: WIDTH * head };
        multiply(input, keys, Output::dense(scores, held));
        for (step, (scores, sum)) in scores.chunks_exact_mut(held).zip(&mut *sums).enumerate() {
            // What was written for later steps of this frame.
            for later in step + 1..steps {
                scores[(position + later) % context] = f32::NEG_INFINITY;
            }
            *sum = exponentials(scores);
        }
        let values = View { data: values, outputs: head, inputs: held, stride: WIDTH * context };
        multiply(Input::dense(scores, steps, held), values, Output::dense(results, head));
        for (result, sum) in results.chunks_exact_mut(head).zip(&*sums) {
            result.iter_mut().for_each(|value| *value /= *sum);
        }
    }

    /// Brings results of heads `[slots][heads][steps][head]` to `[slots][steps][width]`.
    fn collect(&self, work: &[f32], to: &mut [f32]) {
        let Sizes { width, heads, steps, .. } = self.sizes;
        let head = self.sizes.head();
        for (i, work) in work.chunks_exact(self.sizes.work()).enumerate() {
            let (slot, h) = (i / heads, i % heads);
            for (step, result) in work[..steps * head].chunks_exact(head).enumerate() {
                let at = (slot * steps + step) * width + h * head;
                to[at..at + head].copy_from_slice(result);
            }
        }
    }
}

impl State {
    /// Forgets a slot; what its rings hold is not read before it is written.
    pub fn reset(&mut self, slot: usize) {
        self.positions[slot] = 0;
    }
}

impl Norm {
    fn load(weights: &Weights, name: &str, width: usize) -> Result<Self> {
        let part = |part: &str| read(weights, &[&format!("{name}.{part}")], &[width]);
        Ok(Self { scale: part("weight")?, bias: part("bias")? })
    }

    fn apply(&self, x: &[f32], y: &mut [f32]) {
        layer_norm(x, &self.scale, &self.bias, y)
    }
}

impl Layer {
    fn load(weights: &Weights, arena: &mut Arena, name: &str, sizes: Sizes) -> Result<Self> {
        let Sizes { width, feedforward, .. } = sizes;
        let scales = [1, 2].map(|i| format!("{name}.layer_scale_{i}.scale"));
        let mut load = |names: [&str; 2], outputs: usize, inputs: usize, scale: Option<&str>| {
            let names = names.map(|part| format!("{name}.{part}"));
            let mut weight = read(weights, &[&names[0], &names[1]], &[outputs, inputs])?;
            if let Some(scale) = scale {
                let scales = read(weights, &[scale], &[outputs])?;
                for (row, scale) in weight.chunks_exact_mut(inputs).zip(scales) {
                    row.iter_mut().for_each(|value| *value *= scale);
                }
            }
            Panels::pack(arena, &weight, outputs, inputs)
        };
        let own = |part| [part, part];
        Ok(Self {
            norm1: Norm::load(weights, &format!("{name}.norm1"), width)?,
            attention_in: load(
                ["self_attn.in_proj_weight", "self_attn.in_projs.0.weight"],
                3 * width,
                width,
                None,
            )?,
            attention_out: load(
                ["self_attn.out_proj.weight", "self_attn.out_projs.0.weight"],
                width,
                width,
                Some(&scales[0]),
            )?,
            norm2: Norm::load(weights, &format!("{name}.norm2"), width)?,
            linear1: load(own("linear1.weight"), feedforward, width, None)?,
            linear2: load(own("linear2.weight"), width, feedforward, Some(&scales[1]))?,
        })
    }
}
