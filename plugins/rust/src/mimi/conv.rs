//! Causal streaming convolutions, each as one product.

use candle::Result;

use super::read;
use crate::arena::Arena;
use crate::gemm::{multiply, Input, Output, Panels};
use crate::math::elu;
use crate::weights::Weights;

/// Sizes of a convolution.
#[derive(Clone, Copy)]
pub struct Shape {
    pub inputs: usize,
    pub outputs: usize,
    pub taps: usize,
    pub stride: usize,
    pub dilation: usize,
    pub bias: bool,
}

impl Shape {
    /// With a bias, of stride and dilation 1.
    pub fn new(inputs: usize, outputs: usize, taps: usize) -> Self {
        Self { inputs, outputs, taps, stride: 1, dilation: 1, bias: true }
    }
}

/// A convolution that sees its past only.
///
/// A transposed one, whose kernel is twice its stride, is one as well: its output steps, as many as
/// the stride, are together one wide output of the last two inputs.
pub struct Conv {
    shape: Shape,
    /// Input steps of a frame.
    steps: usize,
    weight: Panels,
    bias: Option<Vec<f32>>,
}

/// Where convolutions put their input together.
#[derive(Default)]
pub struct Scratch {
    window: Vec<f32>,
    /// Windows with gaps, closed.
    gathered: Vec<f32>,
}

impl Conv {
    /// Loads `[outputs, inputs, taps]`; `steps` is how many a frame brings.
    pub fn load(
        weights: &Weights,
        arena: &mut Arena,
        name: &str,
        shape: Shape,
        steps: usize,
    ) -> Result<Self> {
        let Shape { inputs, outputs, taps, .. } = shape;
        let stored = read(weights, &[&format!("{name}.weight")], &[outputs, inputs, taps])?;
        let mut matrix = vec![0f32; stored.len()];
        for (row, stored) in
            matrix.chunks_exact_mut(taps * inputs).zip(stored.chunks_exact(taps * inputs))
        {
            for (i, weight) in stored.iter().enumerate() {
                row[i % taps * inputs + i / taps] = *weight;
            }
        }
        let bias = if shape.bias {
            Some(read(weights, &[&format!("{name}.bias")], &[outputs])?)
        } else {
            None
        };
        if !steps.is_multiple_of(shape.stride) {
            candle::bail!("'{name}' has stride {}, a frame has {steps} steps", shape.stride)
        }
        let weight = Panels::pack(arena, &matrix, outputs, taps * inputs)?;
        Ok(Self { shape, steps, weight, bias })
    }

    /// Loads the transposed `[inputs, outputs, 2 * stride]`.
    pub fn load_transposed(
        weights: &Weights,
        arena: &mut Arena,
        name: &str,
        inputs: usize,
        outputs: usize,
        stride: usize,
        steps: usize,
    ) -> Result<Self> {
        let shape = [inputs, outputs, 2 * stride];
        let stored = read(weights, &[&format!("{name}.weight")], &shape)?;
        let bias = read(weights, &[&format!("{name}.bias")], &[outputs])?;
        let mut matrix = vec![0f32; stored.len()];
        for (i, weight) in stored.iter().enumerate() {
            let (input, output, tap) =
                (i / (2 * stride) / outputs, i / (2 * stride) % outputs, i % (2 * stride));
            // The first half of the taps belongs to this input, the second to the one before.
            let (step, past) = (tap % stride, tap / stride);
            matrix[(step * outputs + output) * 2 * inputs + (1 - past) * inputs + input] = *weight;
        }
        let weight = Panels::pack(arena, &matrix, stride * outputs, 2 * inputs)?;
        let shape = Shape::new(inputs, stride * outputs, 2);
        Ok(Self { shape, steps, weight, bias: Some(bias.repeat(stride)) })
    }

    /// Steps of the past that a slot remembers.
    fn past(&self) -> usize {
        let Shape { taps, stride, dilation, .. } = self.shape;
        (taps - 1) * dilation + 1 - stride
    }

    /// Numbers that a slot remembers.
    pub fn memory(&self) -> usize {
        self.past() * self.shape.inputs
    }

    /// Rows of the product, per slot.
    pub fn rows(&self) -> usize {
        self.steps / self.shape.stride
    }

    /// Numbers of a slot's input of a frame.
    pub fn width_in(&self) -> usize {
        self.steps * self.shape.inputs
    }

    /// Numbers of a slot's output of a frame.
    pub fn width_out(&self) -> usize {
        self.rows() * self.shape.outputs
    }

    /// Makes scratch memory as large as `slots` need.
    pub fn reserve(&self, slots: usize, scratch: &mut Scratch) {
        let grow = |held: &mut Vec<f32>, size: usize| held.resize(size.max(held.len()), 0.0);
        grow(&mut scratch.window, slots * (self.memory() + self.width_in()));
        if self.shape.dilation > 1 {
            grow(&mut scratch.gathered, slots * self.rows() * self.weight.inputs);
        }
    }

    /// Fills the past of a slot that has none with the first step of its input.
    pub fn replicate(&self, x: &[f32], memory: &mut [f32]) {
        for past in memory.chunks_exact_mut(self.shape.inputs) {
            past.copy_from_slice(&x[..self.shape.inputs]);
        }
    }

    /// Convolves a frame of the named slots.
    ///
    /// `x` and `y` hold the named slots one after the other, `memory` every slot; with `activate`,
    /// ELU comes before; with `add`, the result is added to `y`.
    #[allow(clippy::too_many_arguments)]
    pub fn step(
        &self,
        x: &[f32],
        slots: &[usize],
        memory: &mut [f32],
        scratch: &mut Scratch,
        y: &mut [f32],
        activate: bool,
        add: bool,
    ) {
        let (past, size) = (self.memory(), self.memory() + self.width_in());
        let window = &mut scratch.window[..slots.len() * size];
        for (i, (&slot, window)) in slots.iter().zip(window.chunks_exact_mut(size)).enumerate() {
            let memory = &mut memory[slot * past..(slot + 1) * past];
            let (before, now) = window.split_at_mut(past);
            before.copy_from_slice(memory);
            let x = &x[i * self.width_in()..(i + 1) * self.width_in()];
            if activate {
                elu(x, now);
            } else {
                now.copy_from_slice(x);
            }
            memory.copy_from_slice(&window[size - past..]);
        }
        let y = &mut y[..slots.len() * self.width_out()];
        let output =
            Output { bias: self.bias.as_deref(), add, ..Output::dense(y, self.shape.outputs) };
        if self.shape.dilation > 1 {
            let rows = slots.len() * self.rows();
            self.gather(window, size, &mut scratch.gathered);
            let input = Input::dense(&scratch.gathered, rows, self.weight.inputs);
            return multiply(input, self.weight.view(), output);
        }
        let input = Input {
            data: window,
            groups: slots.len(),
            group_stride: size,
            rows: self.rows(),
            row_stride: self.shape.stride * self.shape.inputs,
        };
        multiply(input, self.weight.view(), output)
    }

    /// Puts the taps of every window side by side.
    fn gather(&self, window: &[f32], size: usize, gathered: &mut [f32]) {
        let Shape { inputs, taps, stride, dilation, .. } = self.shape;
        let mut rows = gathered.chunks_exact_mut(taps * inputs);
        for window in window.chunks_exact(size) {
            for (row, gathered) in (0..self.rows()).zip(&mut rows) {
                for (tap, gathered) in gathered.chunks_exact_mut(inputs).enumerate() {
                    let at = (row * stride + tap * dilation) * inputs;
                    gathered.copy_from_slice(&window[at..at + inputs]);
                }
            }
        }
    }
}

/// The transposed convolution with one filter per channel, kernel twice the stride, that turns a
/// frame into `stride` latents.
pub struct Upsample {
    /// `[2 * stride][width]`.
    weight: Vec<f32>,
    width: usize,
}

impl Upsample {
    pub fn load(weights: &Weights, name: &str, width: usize, stride: usize) -> Result<Self> {
        let stored = read(weights, &[&format!("{name}.weight")], &[width, 1, 2 * stride])?;
        let mut weight = vec![0f32; stored.len()];
        for (i, value) in stored.iter().enumerate() {
            weight[i % (2 * stride) * width + i / (2 * stride)] = *value;
        }
        Ok(Self { weight, width })
    }

    /// Turns one slot's `x` `[width]` and the one before it into `y` `[stride][width]`.
    pub fn step(&self, x: &[f32], before: &mut [f32], y: &mut [f32]) {
        let (now, past) = self.weight.split_at(self.weight.len() / 2);
        let rows = now.chunks_exact(self.width).zip(past.chunks_exact(self.width));
        for (y, (now, past)) in y.chunks_exact_mut(self.width).zip(rows) {
            for c in 0..self.width {
                y[c] = x[c] * now[c] + before[c] * past[c];
            }
        }
        before.copy_from_slice(x);
    }
}
