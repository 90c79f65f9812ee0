//! SEANet: the convolutional half of Mimi, between samples and latents.
//!
//! Layers of many rows have small weights and go slot by slot, so that what passes between them
//! stays in the cache; layers of few rows have large weights, which are read once for all slots.

use std::ops::Range;

use candle::Result;

use super::conv::{Conv, Scratch, Shape};
use crate::arena::Arena;
use crate::weights::Weights;

/// Rows of a product, per slot, from which on slots go one by one.
const MANY_ROWS: usize = 32;

enum Layer {
    /// After ELU, or not.
    Conv(Conv, bool),
    /// `x + narrow(ELU(wide(ELU(x))))`.
    Block { wide: Conv, narrow: Conv },
}

pub struct Seanet {
    layers: Vec<Layer>,
    /// Which layers follow each other, and whether for all slots at once.
    spans: Vec<(Range<usize>, bool)>,
}

/// Sizes that both directions share.
pub struct Sizes<'a> {
    pub channels: usize,
    pub dimension: usize,
    pub num_filters: usize,
    pub ratios: &'a [usize],
    pub kernel: usize,
    pub residual_kernel: usize,
    pub last_kernel: usize,
    pub residual_layers: usize,
    pub dilation_base: usize,
    pub compress: usize,
    /// Samples of a frame.
    pub frame: usize,
}

/// What slots remember, and scratch memory.
pub struct State {
    /// One per layer, `[slots][numbers]`.
    memory: Vec<Vec<f32>>,
    /// What passes between spans of layers, `stride` numbers per slot.
    held: Vec<f32>,
    stride: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    scratch: Scratch,
}

impl Seanet {
    pub fn encoder(
        weights: &Weights,
        arena: &mut Arena,
        name: &str,
        sizes: &Sizes,
    ) -> Result<Self> {
        let mut load = Loader { weights, arena, name, sizes, layers: vec![], index: 0 };
        let (mut width, mut steps) = (sizes.num_filters, sizes.frame);
        load.conv(Shape::new(sizes.channels, width, sizes.kernel), steps, false)?;
        for &stride in sizes.ratios.iter().rev() {
            load.blocks(width, steps)?;
            let shape = Shape { stride, ..Shape::new(width, 2 * width, 2 * stride) };
            load.conv(shape, steps, true)?;
            (width, steps) = (2 * width, steps / stride);
        }
        load.conv(Shape::new(width, sizes.dimension, sizes.last_kernel), steps, true)?;
        Ok(Self::new(load.layers))
    }

    pub fn decoder(
        weights: &Weights,
        arena: &mut Arena,
        name: &str,
        sizes: &Sizes,
    ) -> Result<Self> {
        let mut load = Loader { weights, arena, name, sizes, layers: vec![], index: 0 };
        let mut width = sizes.num_filters << sizes.ratios.len();
        let mut steps = sizes.frame / sizes.ratios.iter().product::<usize>();
        load.conv(Shape::new(sizes.dimension, width, sizes.kernel), steps, false)?;
        for &stride in sizes.ratios {
            load.transposed(width, stride, steps)?;
            (width, steps) = (width / 2, steps * stride);
            load.blocks(width, steps)?;
        }
        load.conv(Shape::new(width, sizes.channels, sizes.last_kernel), steps, true)?;
        Ok(Self::new(load.layers))
    }

    fn new(layers: Vec<Layer>) -> Self {
        let together: Vec<bool> = layers.iter().map(|layer| layer.rows() < MANY_ROWS).collect();
        let mut spans = vec![];
        for run in together.chunk_by(|a, b| a == b) {
            let start = spans.last().map_or(0, |(span, _): &(Range<usize>, bool)| span.end);
            spans.push((start..start + run.len(), run[0]));
        }
        Self { layers, spans }
    }

    pub fn new_state(&self, slots: usize) -> State {
        let mut state = State {
            memory: self.layers.iter().map(|layer| vec![0.0; slots * layer.memory()]).collect(),
            held: vec![],
            stride: 0,
            x: vec![],
            y: vec![],
            scratch: Scratch::default(),
        };
        for (span, together) in &self.spans {
            let group = if *together { slots } else { 1 };
            for layer in &self.layers[span.clone()] {
                let (width, hidden) = layer.widths();
                for held in [&mut state.x, &mut state.y] {
                    held.resize(held.len().max(group * width.max(hidden)), 0.0);
                }
                layer.reserve(group, &mut state.scratch);
            }
            let (first, last) = (&self.layers[span.start], &self.layers[span.end - 1]);
            state.stride = state.stride.max(first.width_in()).max(last.width_out());
        }
        state.held = vec![0.0; slots * state.stride];
        state
    }

    /// Steps the named slots, from and to [`State::held`].
    pub fn step(&self, slots: &[usize], state: &mut State) {
        for (span, together) in &self.spans {
            let layers = span.clone();
            if *together {
                self.run(layers, 0, slots, state);
            } else {
                for (i, slot) in slots.iter().enumerate() {
                    self.run(layers.clone(), i, std::slice::from_ref(slot), state);
                }
            }
        }
    }

    /// Runs some layers for some slots, the first of which is at `first` in what is held.
    fn run(&self, layers: Range<usize>, first: usize, slots: &[usize], state: &mut State) {
        let State { memory, held, stride, x, y, scratch } = state;
        let held = &mut held[first * *stride..];
        let width = self.layers[layers.start].width_in();
        for (x, held) in x.chunks_exact_mut(width).zip(held.chunks(*stride)).take(slots.len()) {
            x.copy_from_slice(&held[..width]);
        }
        for (layer, memory) in self.layers[layers.clone()].iter().zip(&mut memory[layers.clone()]) {
            match layer {
                Layer::Conv(conv, activate) => {
                    conv.step(x, slots, memory, scratch, y, *activate, false);
                    std::mem::swap(x, y);
                }
                Layer::Block { wide, narrow } => {
                    wide.step(x, slots, memory, scratch, y, true, false);
                    narrow.step(y, slots, &mut [], scratch, x, true, true);
                }
            }
        }
        let width = self.layers[layers.end - 1].width_out();
        for (x, held) in x.chunks_exact(width).zip(held.chunks_mut(*stride)).take(slots.len()) {
            held[..width].copy_from_slice(x);
        }
    }
}

impl State {
    /// Input or output of the `i`-th slot that is stepped.
    pub fn held(&mut self, i: usize) -> &mut [f32] {
        &mut self.held[i * self.stride..(i + 1) * self.stride]
    }

    pub fn reset(&mut self, slot: usize, slots: usize) {
        for memory in &mut self.memory {
            let size = memory.len() / slots;
            memory[slot * size..(slot + 1) * size].fill(0.0);
        }
    }
}

impl Layer {
    /// The convolution that comes first, and that which comes last.
    fn ends(&self) -> (&Conv, &Conv) {
        match self {
            Self::Conv(conv, _) => (conv, conv),
            Self::Block { wide, narrow } => (wide, narrow),
        }
    }

    fn rows(&self) -> usize {
        self.ends().0.rows()
    }

    fn memory(&self) -> usize {
        self.ends().0.memory()
    }

    fn width_in(&self) -> usize {
        self.ends().0.width_in()
    }

    fn width_out(&self) -> usize {
        self.ends().1.width_out()
    }

    /// The wider of input and output, and what lies between.
    fn widths(&self) -> (usize, usize) {
        (self.width_in().max(self.width_out()), self.ends().0.width_out())
    }

    fn reserve(&self, slots: usize, scratch: &mut Scratch) {
        let (first, last) = self.ends();
        first.reserve(slots, scratch);
        last.reserve(slots, scratch);
    }
}

/// Loads layers in order; an ELU has a number among them.
struct Loader<'a> {
    weights: &'a Weights,
    arena: &'a mut Arena,
    name: &'a str,
    sizes: &'a Sizes<'a>,
    layers: Vec<Layer>,
    index: usize,
}

impl Loader<'_> {
    fn conv(&mut self, shape: Shape, steps: usize, activate: bool) -> Result<()> {
        self.index += activate as usize;
        let name = format!("{}.model.{}.conv.conv", self.name, self.index);
        let conv = Conv::load(self.weights, self.arena, &name, shape, steps)?;
        self.push(Layer::Conv(conv, activate));
        Ok(())
    }

    /// Halves the width.
    fn transposed(&mut self, width: usize, stride: usize, steps: usize) -> Result<()> {
        self.index += 1;
        let name = format!("{}.model.{}.convtr.convtr", self.name, self.index);
        let (weights, arena) = (self.weights, &mut *self.arena);
        let conv = Conv::load_transposed(weights, arena, &name, width, width / 2, stride, steps)?;
        self.push(Layer::Conv(conv, true));
        Ok(())
    }

    fn blocks(&mut self, width: usize, steps: usize) -> Result<()> {
        let hidden = width / self.sizes.compress;
        for i in 0..self.sizes.residual_layers {
            let name = format!("{}.model.{}.block", self.name, self.index);
            let dilation = self.sizes.dilation_base.pow(i as u32);
            let shape = Shape::new(width, hidden, self.sizes.residual_kernel);
            let wide = Shape { dilation, ..shape };
            let narrow = Shape::new(hidden, width, 1);
            let mut load = |part: usize, shape: Shape| {
                let name = format!("{name}.{part}.conv.conv");
                Conv::load(self.weights, self.arena, &name, shape, steps)
            };
            let block = Layer::Block { wide: load(1, wide)?, narrow: load(3, narrow)? };
            self.push(block);
        }
        Ok(())
    }

    fn push(&mut self, layer: Layer) {
        self.layers.push(layer);
        self.index += 1;
    }
}
