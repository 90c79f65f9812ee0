//! Mimi, and Moshi on candle, as a Python extension; `moshi_pipe_rust` is its only caller.

mod arena;
mod attention;
mod blocks;
mod codec;
mod cpu;
mod fault;
mod gemm;
mod linear;
mod lm;
mod math;
mod mimi;
#[cfg(feature = "peer")]
mod peer;
mod rows;
mod sampling;
mod team;
#[cfg(test)]
mod testing;
mod weights;

use std::collections::HashSet;
use std::path::PathBuf;

use candle::{DType, Device, Result};
use numpy::ndarray::{ArrayD, IxDyn};
use numpy::{IntoPyArray, PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use fault::{detached, plain, NativeError};

/// `cpu`, `cuda`, `cuda:1` or `metal`, where the extension was built for it.
fn open_device(name: &str) -> Result<Device> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let Ok(index) = index.parse() else { candle::bail!("'{name}' does not name a device") };
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Device::new_cuda(index),
        "metal" => Device::new_metal(index),
        _ => candle::bail!("'{name}' does not name a device"),
    }
}

fn refuse(error: impl std::fmt::Display) -> PyErr {
    NativeError::new_err(plain(&error.to_string()))
}

/// The numbers of an array, in C order.
fn numbers<T: numpy::Element + Copy>(array: &PyReadonlyArrayDyn<'_, T>) -> PyResult<Vec<T>> {
    Ok(array.as_slice().map_err(refuse)?.to_vec())
}

fn shaped<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    Ok(ArrayD::from_shape_vec(IxDyn(shape), values).map_err(refuse)?.into_pyarray(py))
}

type Array<'py, T> = Bound<'py, PyArrayDyn<T>>;

/// Streams on their way in.
#[pyclass]
struct EncoderState(codec::EncoderState);

#[pymethods]
impl EncoderState {
    fn reset(&mut self, slot: usize) -> PyResult<()> {
        self.0.reset(slot).map_err(refuse)
    }
}

/// Streams on their way out.
#[pyclass]
struct DecoderState(codec::DecoderState);

#[pymethods]
impl DecoderState {
    fn reset(&mut self, slot: usize) -> PyResult<()> {
        self.0.reset(slot).map_err(refuse)
    }
}

/// Weights of a codec, on the CPU. Its states may be stepped by different threads at once.
#[pyclass(frozen)]
struct Codec(codec::Codec);

#[pymethods]
impl Codec {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, spec: &str, check_finite: bool) -> PyResult<Self> {
        let spec = serde_json::from_str(spec).map_err(refuse)?;
        detached(py, || codec::Codec::load(&path, spec, check_finite)).map(Self)
    }

    fn new_encoder_state(&self, slots: usize) -> PyResult<EncoderState> {
        self.0.new_encoder_state(slots).map(EncoderState).map_err(refuse)
    }

    fn new_decoder_state(&self, slots: usize) -> PyResult<DecoderState> {
        self.0.new_decoder_state(slots).map(DecoderState).map_err(refuse)
    }

    fn encode<'py>(
        &self,
        py: Python<'py>,
        pcm: PyReadonlyArrayDyn<'py, f32>,
        valid: Vec<bool>,
        state: &mut EncoderState,
    ) -> PyResult<Array<'py, i64>> {
        let (pcm, state) = (numbers(&pcm)?, &mut state.0);
        let codes = detached(py, || self.0.encode(&pcm, &valid, state))?;
        let count = codes.len().checked_div(valid.len()).unwrap_or(0);
        shaped(py, codes, &[valid.len(), count])
    }

    fn decode<'py>(
        &self,
        py: Python<'py>,
        codes: PyReadonlyArrayDyn<'py, i64>,
        valid: Vec<bool>,
        state: &mut DecoderState,
    ) -> PyResult<Array<'py, f32>> {
        let count = codes.shape().last().copied().unwrap_or(0);
        let (codes, state) = (numbers(&codes)?, &mut state.0);
        let pcm = detached(py, || self.0.decode(&codes, count, &valid, state))?;
        let (channels, size) = self.0.spec.frame();
        shaped(py, pcm, &[valid.len(), channels, size])
    }
}

/// What a language model remembers of its sessions.
#[pyclass]
struct LmState(lm::State);

#[pymethods]
impl LmState {
    #[getter]
    fn num_slots(&self) -> usize {
        self.0.num_slots()
    }
}

/// Weights of a language model.
#[pyclass(frozen)]
struct Lm(lm::Model);

#[pymethods]
impl Lm {
    /// `dtype` is `float32` or `bfloat16` (`float16` off the CPU); `portable` uses candle's own
    /// operations on the CPU too, as on another device.
    #[new]
    #[pyo3(signature = (path, spec, device, dtype, quantize, check_finite, portable = false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        spec: &str,
        device: &str,
        dtype: &str,
        quantize: bool,
        check_finite: bool,
        portable: bool,
    ) -> PyResult<Self> {
        let spec = serde_json::from_str(spec).map_err(refuse)?;
        let dtype = parse_dtype(dtype)?;
        detached(py, || {
            let device = open_device(device)?;
            let place = linear::Placement::new(device, dtype, quantize, portable);
            lm::Model::load(&weights::Weights::open(&path, check_finite)?, spec, place)
        })
        .map(Self)
    }

    /// As the constructor, from tensors that `read(name)` gives as float32 arrays.
    #[staticmethod]
    #[pyo3(signature = (read, names, shown, spec, device, dtype, quantize, check_finite))]
    #[allow(clippy::too_many_arguments)]
    fn given(
        py: Python<'_>,
        read: Py<PyAny>,
        names: HashSet<String>,
        shown: String,
        spec: &str,
        device: &str,
        dtype: &str,
        quantize: bool,
        check_finite: bool,
    ) -> PyResult<Self> {
        let spec = serde_json::from_str(spec).map_err(refuse)?;
        let dtype = parse_dtype(dtype)?;
        let weights = weights::Weights::given(read, names, shown, check_finite);
        detached(py, || {
            let device = open_device(device)?;
            let place = linear::Placement::new(device, dtype, quantize, false);
            lm::Model::load(&weights, spec, place)
        })
        .map(Self)
    }

    #[getter]
    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    #[getter]
    fn holds_bfloat16(&self) -> bool {
        self.0.holds_bfloat16()
    }

    fn new_state(
        &self,
        py: Python<'_>,
        slots: usize,
        per_slot: usize,
        kv_dtype: &str,
    ) -> PyResult<LmState> {
        let kv = parse_dtype(kv_dtype)?;
        detached(py, || self.0.new_state(slots, per_slot, kv)).map(LmState)
    }

    /// Forgets a slot; `conditions` has one vector per row of it, or none.
    fn reset(&self, state: &mut LmState, slot: usize, conditions: Vec<Vec<f32>>) -> PyResult<()> {
        self.0.reset(&mut state.0, slot, &conditions).map_err(refuse)
    }

    /// Returns text logits `[B, V]`, extra heads `[B, heads, classes]`, and whether text logits were
    /// finite `[B]`.
    fn temporal<'py>(
        &self,
        py: Python<'py>,
        column: PyReadonlyArrayDyn<'py, i64>,
        valid: Vec<bool>,
        guidance: Option<Vec<f32>>,
        state: &mut LmState,
    ) -> PyResult<(Array<'py, f32>, Array<'py, f32>, Vec<bool>)> {
        let (column, state) = (numbers(&column)?, &mut state.0);
        let found = detached(py, || self.0.temporal(&column, &valid, guidance.as_deref(), state))?;
        let (text, heads, classes) = self.0.spec.heads();
        Ok((
            shaped(py, found.text_logits, &[valid.len(), text])?,
            shaped(py, found.extra, &[valid.len(), heads, classes])?,
            found.finite,
        ))
    }

    /// Draws a token from each valid row of logits `[B, V]` as `depth` draws codes, 0 from others;
    /// noise is `[B, draws]`.
    #[staticmethod]
    fn sample(
        py: Python<'_>,
        logits: PyReadonlyArrayDyn<'_, f32>,
        valid: Vec<bool>,
        temperature: Vec<f32>,
        top_k: Vec<i64>,
        noise: Option<PyReadonlyArrayDyn<'_, f32>>,
    ) -> PyResult<Vec<i64>> {
        let (&[count, size], noise) = (logits.shape(), Noise::new(noise)?) else {
            return Err(refuse("logits are a row for every slot"));
        };
        let sizes = [valid.len(), temperature.len(), top_k.len(), noise.rows(count)];
        if sizes.iter().any(|&size| size != count) {
            return Err(refuse(format!("{count} rows of logits, settings or noise for {sizes:?}")));
        }
        let logits = numbers(&logits)?;
        let mut tokens = vec![0; count];
        detached(py, || {
            let sampling = noise.sampling(&temperature, &top_k);
            team::shared().chunks(&mut tokens, 1, |slot, token| {
                if valid[slot] {
                    let logits = &logits[slot * size..(slot + 1) * size];
                    token[0] = sampling::sample(logits, &sampling.draw(slot, slot)) as i64;
                }
            });
            Ok(())
        })?;
        Ok(tokens)
    }

    /// Samples the codes that follow the last temporal step; returns codes `[B, K]` and whether
    /// logits were finite `[B]`.
    #[allow(clippy::too_many_arguments)]
    fn depth<'py>(
        &self,
        py: Python<'py>,
        text: Vec<i64>,
        temperature: Vec<f32>,
        top_k: Vec<i64>,
        noise: Option<PyReadonlyArrayDyn<'py, f32>>,
        guidance: Option<Vec<f32>>,
        state: &mut LmState,
    ) -> PyResult<(Array<'py, i64>, Vec<bool>)> {
        let (state, noise) = (&mut state.0, Noise::new(noise)?);
        let wanted = text.len() * (1 + self.0.num_codes());
        if noise.rows(wanted) < wanted {
            return Err(refuse("noise has too few rows"));
        }
        if temperature.len() < text.len() || top_k.len() < text.len() {
            return Err(refuse("sampling settings have too few slots"));
        }
        let (codes, finite) = detached(py, || {
            let sampling = noise.sampling(&temperature, &top_k);
            self.0.depth(&text, &sampling, guidance.as_deref(), state)
        })?;
        Ok((shaped(py, codes, &[text.len(), self.0.num_codes()])?, finite))
    }
}

/// Exponential draws, `[rows.., draws]`.
struct Noise(Option<(Vec<f32>, usize)>);

impl Noise {
    fn new(array: Option<PyReadonlyArrayDyn<'_, f32>>) -> PyResult<Self> {
        let Some(array) = array else { return Ok(Self(None)) };
        Ok(Self(Some((numbers(&array)?, array.shape().last().copied().unwrap_or(0)))))
    }

    /// How many rows there are; where there is no noise, as many as are wanted.
    fn rows(&self, wanted: usize) -> usize {
        match &self.0 {
            Some((numbers, draws)) if *draws > 0 => numbers.len() / draws,
            _ => wanted,
        }
    }

    fn sampling<'a>(&'a self, temperature: &'a [f32], top_k: &'a [i64]) -> sampling::Sampling<'a> {
        let noise = self.0.as_ref().map(|(noise, draws)| (&noise[..], *draws));
        sampling::Sampling { temperature, top_k, noise }
    }
}

fn parse_dtype(name: &str) -> PyResult<DType> {
    match name {
        "float32" => Ok(DType::F32),
        "bfloat16" => Ok(DType::BF16),
        "float16" => Ok(DType::F16),
        _ => Err(refuse(format!("'{name}' is not a type that models run in"))),
    }
}

/// Reads one tensor of a file of weights as float32.
#[pyfunction]
fn read_tensor<'py>(py: Python<'py>, path: PathBuf, name: &str) -> PyResult<Array<'py, f32>> {
    let (values, shape) = detached(py, || {
        let file = weights::Weights::open(&path, true)?;
        let tensor = file.tensor(name, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok((tensor.flatten_all()?.to_vec1::<f32>()?, tensor.dims().to_vec()))
    })?;
    shaped(py, values, &shape)
}

/// Runs the `moshi` crate's own language model, for comparison: see `peer::greedy`.
#[cfg(feature = "peer")]
#[pyfunction]
fn peer_greedy(
    py: Python<'_>,
    path: PathBuf,
    config: &str,
    columns: Vec<Vec<i64>>,
) -> PyResult<Vec<(u32, Vec<u32>)>> {
    let config = serde_json::from_str(config).map_err(refuse)?;
    detached(py, || peer::greedy(&path, config, &columns))
}

/// What the extension was built for, and how many threads it uses.
#[pyfunction]
fn build_info() -> (Vec<&'static str>, usize) {
    let mut devices = vec!["cpu"];
    if cfg!(feature = "cuda") {
        devices.push("cuda");
    }
    if cfg!(feature = "metal") {
        devices.push("metal");
    }
    (devices, team::shared().threads())
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_class::<Codec>()?;
    module.add_class::<EncoderState>()?;
    module.add_class::<DecoderState>()?;
    module.add_class::<Lm>()?;
    module.add_class::<LmState>()?;
    module.add_function(wrap_pyfunction!(read_tensor, module)?)?;
    #[cfg(feature = "peer")]
    module.add_function(wrap_pyfunction!(peer_greedy, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)
}
