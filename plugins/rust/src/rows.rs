//! Tables that stay on the CPU as rows of float32, bfloat16 or 8-bit blocks.

use candle::quantized::{GgmlDType, QTensor};
use candle::{DType, Result, Tensor};
use half::{bf16, f16};

use crate::arena::Buffer;
use crate::blocks::BLOCK;

enum Stored {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    Q8 { quants: Buffer<i8>, scales: Vec<f16> },
}

/// A table `[rows, cols]`, row by row.
pub struct Rows {
    pub rows: usize,
    pub cols: usize,
    stored: Stored,
}

impl Rows {
    /// Takes a tensor on the CPU in its own type: float32 or bfloat16, anything else as float32.
    pub fn from_tensor(weight: &Tensor) -> Result<Self> {
        let (rows, cols) = weight.dims2()?;
        let flat = weight.flatten_all()?;
        let stored = match weight.dtype() {
            DType::BF16 => Stored::Bf16(Buffer::of(&flat.to_vec1()?)?),
            _ => Stored::F32(Buffer::of(&flat.to_dtype(DType::F32)?.to_vec1()?)?),
        };
        Ok(Self { rows, cols, stored })
    }

    /// Takes Q8_0 blocks without loss.
    pub fn from_q8(weight: &QTensor) -> Result<Self> {
        let (rows, cols) = weight.shape().dims2()?;
        if weight.dtype() != GgmlDType::Q8_0 || cols % BLOCK != 0 {
            candle::bail!("rows of {:?} are not Q8_0", weight.dtype())
        }
        let data = weight.data()?;
        let mut quants = Vec::with_capacity(rows * cols);
        let mut scales = Vec::with_capacity(rows * cols / BLOCK);
        for block in data.chunks_exact(2 + BLOCK) {
            scales.push(f16::from_le_bytes([block[0], block[1]]));
            quants.extend(block[2..].iter().map(|&byte| byte as i8));
        }
        Ok(Self { rows, cols, stored: Stored::Q8 { quants: Buffer::of(&quants)?, scales } })
    }

    /// One row, as float32.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let span = index * self.cols..(index + 1) * self.cols;
        match &self.stored {
            Stored::F32(values) => out.copy_from_slice(&values[span]),
            Stored::Bf16(values) => {
                out.iter_mut().zip(&values[span]).for_each(|(y, w)| *y = w.to_f32())
            }
            Stored::Q8 { quants, scales } => {
                let first = span.start / BLOCK;
                for (i, (y, q)) in out.iter_mut().zip(&quants[span]).enumerate() {
                    *y = *q as f32 * scales[first + i / BLOCK].to_f32();
                }
            }
        }
    }

    pub fn copy_row(&mut self, from: usize, to: usize) {
        let cols = self.cols;
        let span = from * cols..(from + 1) * cols;
        match &mut self.stored {
            Stored::F32(values) => values.copy_within(span, to * cols),
            Stored::Bf16(values) => values.copy_within(span, to * cols),
            Stored::Q8 { quants, scales } => {
                quants.copy_within(span, to * cols);
                let blocks = cols / BLOCK;
                scales.copy_within(from * blocks..(from + 1) * blocks, to * blocks);
            }
        }
    }

    pub fn num_bytes(&self) -> usize {
        match &self.stored {
            Stored::F32(values) => 4 * values.len(),
            Stored::Bf16(values) => 2 * values.len(),
            Stored::Q8 { quants, scales } => quants.len() + 2 * scales.len(),
        }
    }
}
