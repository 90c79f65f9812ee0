//! Products with weights and lookups in tables, on whatever device the model is on.

use std::sync::{Arc, Mutex, MutexGuard};

use candle::quantized::{GgmlDType, QMatMul, QTensor};
use candle::{DType, Device, Module, Result, Tensor, D};
use half::bf16;

use crate::arena::Arena;
use crate::blocks::{Blocks, BLOCK};
use crate::gemm::{multiply, Input, Output, Panels, Weight};
use crate::rows::Rows;
use crate::team;
use crate::weights::{Piece, Weights};

/// Numbers that are worth a turn of a thread.
const PART: usize = 1 << 13;

/// How weights are kept and where.
#[derive(Clone)]
pub struct Placement {
    pub device: Device,
    /// Of weights that are not quantized; but see `held`.
    pub dtype: DType,
    /// Linear weights become Q8_0 where the file does not quantize them already.
    pub quantize: bool,
    /// Use candle's own operations on the CPU too, as another device does.
    pub portable: bool,
    /// Where matrices on the CPU lie.
    pub arena: Arc<Mutex<Arena>>,
}

impl Placement {
    pub fn new(device: Device, dtype: DType, quantize: bool, portable: bool) -> Self {
        Self { device, dtype, quantize, portable, arena: Arc::default() }
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether our own CPU kernels are used.
    pub fn own(&self) -> bool {
        self.device.is_cpu() && !self.portable
    }

    /// A weight as our own kernels hold it.
    ///
    /// They widen bfloat16 as they read it, so what a file has in bfloat16 is the same number in
    /// float32, at half the memory and time.
    fn held(&self, weight: Tensor) -> Result<Tensor> {
        if self.dtype == DType::F32 && weight.dtype() == DType::BF16 {
            return Ok(weight);
        }
        weight.to_dtype(self.dtype)
    }

    /// Type of activations: candle has no bfloat16 products on a CPU, and none with quantized
    /// weights.
    pub fn compute(&self) -> DType {
        if self.device.is_cpu() || self.quantize {
            DType::F32
        } else {
            self.dtype
        }
    }
}

/// `x @ weight.T`.
pub enum Linear {
    Blocks(Blocks),
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
    Plain(Tensor),
    Quantized(QMatMul),
}

impl Linear {
    /// Loads the first of several pieces that the file has.
    pub fn load(
        weights: &Weights,
        pieces: &[Piece],
        shape: (usize, usize),
        place: &Placement,
    ) -> Result<Self> {
        let piece = weights.find(pieces)?;
        let name = &piece.name;
        if piece.parts == 1 {
            if let Some(stored) = weights.quantized(name, &Device::Cpu)? {
                expect(name, stored.shape().dims(), shape)?;
                if is_blocks(&stored) {
                    return Self::quantized(weights, name, stored, place);
                }
            }
        }
        let tensor = weights.read(piece, &Device::Cpu)?;
        expect(name, tensor.dims(), shape)?;
        if place.quantize && shape.1.is_multiple_of(BLOCK) {
            let stored = Arc::new(QTensor::quantize(&tensor, GgmlDType::Q8_0)?);
            if place.own() {
                return Self::blocks(&stored, place);
            }
            let tensor = tensor.to_dtype(DType::F32)?;
            let moved = QTensor::quantize_onto(&tensor, GgmlDType::Q8_0, &place.device)?;
            return Ok(Self::Quantized(QMatMul::from_arc(Arc::new(moved))?));
        }
        if place.own() {
            return Self::panels(&place.held(tensor)?, place);
        }
        Ok(Self::Plain(tensor.to_dtype(place.compute())?.to_device(&place.device)?))
    }

    fn blocks(stored: &QTensor, place: &Placement) -> Result<Self> {
        Ok(Self::Blocks(Blocks::pack(stored, &mut place.arena())?))
    }

    /// Float32 or bfloat16, anything else as float32.
    fn panels(weight: &Tensor, place: &Placement) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let (flat, mut arena) = (weight.flatten_all()?, place.arena());
        Ok(match weight.dtype() {
            DType::BF16 => Self::Bf16(Panels::pack(&mut arena, &flat.to_vec1()?, outputs, inputs)?),
            _ => {
                let flat = flat.to_dtype(DType::F32)?.to_vec1()?;
                Self::F32(Panels::pack(&mut arena, &flat, outputs, inputs)?)
            }
        })
    }

    fn quantized(
        weights: &Weights,
        name: &str,
        stored: Arc<QTensor>,
        place: &Placement,
    ) -> Result<Self> {
        if place.own() && stored.dtype() == GgmlDType::Q8_0 {
            return Self::blocks(&stored, place);
        }
        let stored = if place.device.is_cpu() {
            stored
        } else {
            match weights.quantized(name, &place.device)? {
                Some(moved) => moved,
                None => stored,
            }
        };
        Ok(Self::Quantized(QMatMul::from_arc(stored)?))
    }

    /// `[n, in]` to `[n, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => x.matmul(&weight.t()?),
            // On a thread of rayon's, as candle shares out every row.
            Self::Quantized(weight) => rayon::scope(|_| weight.forward(x)),
            _ => {
                let (inputs, width) = (self.shape()?.1, x.dim(D::Minus1)?);
                if width != inputs {
                    candle::bail!("{width} numbers were given to what takes {inputs}")
                }
                on_slices(x, |x, y| self.multiply(x, y))
            }
        }
    }

    /// The same of numbers on the CPU; `y` becomes as long as the result.
    pub fn multiply(&self, x: &[f32], y: &mut Vec<f32>) -> Result<()> {
        let (outputs, inputs) = self.shape()?;
        y.resize(x.len() / inputs * outputs, 0.0);
        self.multiply_to(x, y, false)
    }

    /// Adds the result to what `y` is.
    pub fn multiply_add(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.multiply_to(x, y, true)
    }

    fn multiply_to(&self, x: &[f32], y: &mut [f32], add: bool) -> Result<()> {
        match self {
            Self::Blocks(weight) => weight.multiply(x, y, add),
            Self::F32(weight) => by_panels(x, weight, y, add),
            Self::Bf16(weight) => by_panels(x, weight, y, add),
            // As candle has them, for the forms of GGUF that have no kernel here.
            Self::Plain(_) | Self::Quantized(_) => {
                let (_, inputs) = self.shape()?;
                let x = Tensor::from_slice(x, (x.len() / inputs, inputs), &Device::Cpu)?;
                with_numbers(&self.forward(&x)?, |found| {
                    for (y, found) in y.iter_mut().zip(found) {
                        *y = if add { *y + found } else { *found };
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Outputs and inputs.
    fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Blocks(weight) => Ok((weight.rows, weight.cols)),
            Self::F32(weight) => Ok((weight.outputs, weight.inputs)),
            Self::Bf16(weight) => Ok((weight.outputs, weight.inputs)),
            Self::Plain(weight) => weight.dims2(),
            Self::Quantized(QMatMul::QTensor(weight)) => weight.shape().dims2(),
            Self::Quantized(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => weight.dims2(),
        }
    }

    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.num_bytes(),
            Self::F32(panels) => panels.num_bytes(),
            Self::Bf16(panels) => panels.num_bytes(),
            Self::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantized(QMatMul::QTensor(stored)) => stored.storage_size_in_bytes(),
            Self::Quantized(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => {
                weight.elem_count() * weight.dtype().size_in_bytes()
            }
        }
    }
}

/// A table of embeddings.
pub enum Table {
    Rows(Rows),
    Plain(Tensor),
}

impl Table {
    pub fn load(
        weights: &Weights,
        pieces: &[Piece],
        shape: (usize, usize),
        place: &Placement,
    ) -> Result<Self> {
        let name = &weights.find(pieces)?.name;
        if place.own() {
            if let Some(stored) = weights.quantized(name, &Device::Cpu)? {
                if stored.dtype() == GgmlDType::Q8_0 {
                    expect(name, stored.shape().dims(), shape)?;
                    return Ok(Self::Rows(Rows::from_q8(&stored)?));
                }
            }
        }
        let tensor = weights.tensor(name, &Device::Cpu)?;
        expect(name, tensor.dims(), shape)?;
        if place.own() {
            return Ok(Self::Rows(Rows::from_tensor(&place.held(tensor)?)?));
        }
        Ok(Self::Plain(tensor.to_dtype(place.compute())?.to_device(&place.device)?))
    }

    /// Makes one row equal to another.
    pub fn copy_row(&mut self, from: usize, to: usize) -> Result<()> {
        match self {
            Self::Rows(rows) => rows.copy_row(from, to),
            Self::Plain(table) => {
                let row = table.narrow(0, from, 1)?.copy()?;
                table.slice_set(&row, 0, to)?
            }
        }
        Ok(())
    }

    /// Looks ids up: `[n, width]`. -1 gives zero, any other negative id acts as 0.
    pub fn lookup(&self, ids: &[i64]) -> Result<Tensor> {
        let (height, width) = match self {
            Self::Rows(rows) => (rows.rows, rows.cols),
            Self::Plain(table) => table.dims2()?,
        };
        if let Some(id) = ids.iter().find(|&&id| id >= height as i64) {
            candle::bail!("id {id} is beyond a table of {height} rows")
        }
        let at = |id: i64| id.max(0) as usize;
        match self {
            Self::Rows(rows) => {
                let mut out = vec![0f32; ids.len() * width];
                for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
                    if *id != -1 {
                        rows.row(at(*id), out)
                    }
                }
                Tensor::from_vec(out, (ids.len(), width), &Device::Cpu)
            }
            Self::Plain(table) => {
                let device = table.device();
                let index: Vec<u32> = ids.iter().map(|&id| at(id) as u32).collect();
                let found = table.index_select(&Tensor::new(index, device)?, 0)?;
                if ids.iter().all(|&id| id != -1) {
                    return Ok(found);
                }
                let keep: Vec<f32> = ids.iter().map(|&id| f32::from(id != -1)).collect();
                let keep = Tensor::from_vec(keep, (ids.len(), 1), device)?;
                found.broadcast_mul(&keep.to_dtype(found.dtype())?)
            }
        }
    }

    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.num_bytes(),
            Self::Plain(table) => table.elem_count() * table.dtype().size_in_bytes(),
        }
    }
}

fn by_panels<W: Weight>(x: &[f32], weight: &Panels<W>, y: &mut [f32], add: bool) {
    let count = x.len() / weight.inputs;
    let output = Output { add, ..Output::dense(y, weight.outputs) };
    multiply(Input::dense(x, count, weight.inputs), weight.view(), output)
}

/// `[n, inputs]` to `[n, outputs]` by numbers of float32 on the CPU, which `work` appends.
pub fn on_slices(
    x: &Tensor,
    work: impl FnOnce(&[f32], &mut Vec<f32>) -> Result<()>,
) -> Result<Tensor> {
    let (count, mut y) = (x.dim(0)?, vec![]);
    with_numbers(x, |x| work(x, &mut y))??;
    let outputs = y.len() / count;
    Tensor::from_vec(y, (count, outputs), &Device::Cpu)
}

/// Calls `work` with every row of `x` and of `y`, on all threads where that is worth it.
pub fn by_rows(x: &[f32], y: &mut [f32], count: usize, work: impl Fn(&[f32], &mut [f32]) + Sync) {
    let (inputs, outputs) = (x.len() / count, y.len() / count);
    let rows = PART.div_ceil(inputs);
    team::shared().chunks(y, rows * outputs, |i, y| {
        let x = x[i * rows * inputs..].chunks_exact(inputs);
        x.zip(y.chunks_exact_mut(outputs)).for_each(|(x, y)| work(x, y));
    });
}

/// Calls `work` with the numbers of a float32 tensor on the CPU.
fn with_numbers<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let candle::Storage::Cpu(storage) = &*storage else {
        candle::bail!("weights on the CPU were given an input elsewhere")
    };
    let start = layout.start_offset();
    Ok(work(&storage.as_slice::<f32>()?[start..start + x.elem_count()]))
}

fn is_blocks(stored: &QTensor) -> bool {
    !matches!(stored.dtype(), GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
}

fn expect(name: &str, got: &[usize], wanted: (usize, usize)) -> Result<()> {
    if got != [wanted.0, wanted.1] {
        candle::bail!("'{name}' is {got:?}, the config says [{}, {}]", wanted.0, wanted.1)
    }
    Ok(())
}
