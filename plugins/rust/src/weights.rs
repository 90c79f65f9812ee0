//! Named tensors out of a file, safetensors or GGUF, or from Python, one at a time.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle::quantized::gguf_file;
use candle::quantized::QTensor;
use candle::safetensors::MmapedSafetensors;
use candle::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use numpy::{PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

enum Kind {
    Safetensors(MmapedSafetensors),
    Gguf { content: gguf_file::Content, file: Mutex<BufReader<File>> },
    Given { read: Py<PyAny>, names: HashSet<String> },
}

/// One of `parts` equal parts of the rows of a tensor: released files stack sets of weights.
pub struct Piece {
    pub name: String,
    pub part: usize,
    pub parts: usize,
}

impl Piece {
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), part: 0, parts: 1 }
    }

    pub fn of(name: impl Into<String>, part: usize, parts: usize) -> Self {
        Self { name: name.into(), part, parts }
    }
}

/// A file of weights. Tensors are read when they are asked for.
pub struct Weights {
    kind: Kind,
    path: String,
    check_finite: bool,
}

impl Weights {
    pub fn open(path: &Path, check_finite: bool) -> Result<Self> {
        let shown = path.display().to_string();
        let kind = if path.extension().is_some_and(|end| end == "gguf") {
            let mut file = BufReader::new(File::open(path)?);
            let content = gguf_file::Content::read(&mut file)?;
            Kind::Gguf { content, file: Mutex::new(file) }
        } else {
            // SAFETY: as every mapped file, it must not be cut short while it is read.
            Kind::Safetensors(unsafe { MmapedSafetensors::new(path)? })
        };
        Ok(Self { kind, path: shown, check_finite })
    }

    /// Tensors that `read(name)` gives as float32 arrays; `shown` is what errors call them.
    pub fn given(read: Py<PyAny>, names: HashSet<String>, shown: String, finite: bool) -> Self {
        Self { kind: Kind::Given { read, names }, path: shown, check_finite: finite }
    }

    pub fn is_gguf(&self) -> bool {
        matches!(self.kind, Kind::Gguf { .. })
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Safetensors(file) => file.get(name).is_ok(),
            Kind::Gguf { content, .. } => content.tensor_infos.contains_key(name),
            Kind::Given { names, .. } => names.contains(name),
        }
    }

    /// The first of several pieces whose tensor the file has.
    pub fn find<'n>(&self, pieces: &'n [Piece]) -> Result<&'n Piece> {
        match pieces.iter().find(|piece| self.has(&piece.name)) {
            Some(piece) => Ok(piece),
            None => {
                let names: Vec<&str> = pieces.iter().map(|piece| piece.name.as_str()).collect();
                candle::bail!("{} has no tensor '{}'", self.path, names.join("' or '"))
            }
        }
    }

    /// A tensor as the file quantized it; None where it holds plain numbers.
    pub fn quantized(&self, name: &str, device: &Device) -> Result<Option<Arc<QTensor>>> {
        match &self.kind {
            Kind::Safetensors(_) | Kind::Given { .. } => Ok(None),
            Kind::Gguf { content, file } => {
                let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                Ok(Some(Arc::new(content.tensor(&mut *file, name, device)?)))
            }
        }
    }

    /// A piece in the file's type; quantized ones as float32.
    pub fn read(&self, piece: &Piece, device: &Device) -> Result<Tensor> {
        let tensor = self.slice(piece, device)?;
        if self.check_finite {
            require_finite(&tensor, &piece.name)?;
        }
        Ok(tensor)
    }

    fn slice(&self, piece: &Piece, device: &Device) -> Result<Tensor> {
        let &Piece { ref name, part, parts } = piece;
        match &self.kind {
            Kind::Safetensors(file) => {
                let view = file.get(name)?;
                let (mut shape, data) = (view.shape().to_vec(), view.data());
                if shape.is_empty() || shape[0] % parts != 0 {
                    candle::bail!("'{name}' {shape:?} does not hold {parts} sets of weights")
                }
                shape[0] /= parts;
                let size = data.len() / parts;
                let dtype = DType::try_from(view.dtype())?;
                let bytes = &data[part * size..(part + 1) * size];
                Tensor::from_raw_buffer(bytes, dtype, &shape, device)
            }
            Kind::Gguf { .. } => {
                let whole = match self.quantized(name, &Device::Cpu)? {
                    Some(tensor) => tensor.dequantize(device)?,
                    None => candle::bail!("no tensor '{name}'"),
                };
                part_of(&whole, piece)
            }
            Kind::Given { read, .. } => part_of(&ask(read, name)?.to_device(device)?, piece),
        }
    }

    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.read(&Piece::whole(name), device)
    }
}

fn part_of(whole: &Tensor, piece: &Piece) -> Result<Tensor> {
    let &Piece { ref name, part, parts } = piece;
    if parts == 1 {
        return Ok(whole.clone());
    }
    let rows = whole.dim(0)?;
    if rows % parts != 0 {
        candle::bail!("'{name}' {rows} rows do not hold {parts} sets of weights")
    }
    // A copy: candle quantizes from the start of the storage, wherever a view begins.
    whole.narrow(0, part * (rows / parts), rows / parts)?.force_contiguous()
}

fn ask(read: &Py<PyAny>, name: &str) -> Result<Tensor> {
    Python::attach(|py| {
        let array = read.bind(py).call1((name,))?;
        let array: PyReadonlyArrayDyn<'_, f32> = array.extract()?;
        let shape = array.shape().to_vec();
        Ok(Tensor::from_vec(array.to_vec()?, shape, &Device::Cpu))
    })
    .map_err(|error: PyErr| candle::Error::Msg(format!("'{name}': {error}")))?
}

/// Refuses NaN and infinity.
pub fn require_finite(tensor: &Tensor, name: &str) -> Result<()> {
    let flat = tensor.flatten_all()?;
    let finite = match tensor.dtype() {
        DType::BF16 => flat.to_vec1::<bf16>()?.iter().all(|x| x.is_finite()),
        DType::F16 => flat.to_vec1::<f16>()?.iter().all(|x| x.is_finite()),
        DType::F32 => flat.to_vec1::<f32>()?.iter().all(|x| x.is_finite()),
        _ => true,
    };
    if !finite {
        candle::bail!("'{name}' has numbers that are not finite")
    }
    Ok(())
}
