//! The parts of Mimi, streaming, for several slots over the same weights.
//!
//! Activations are time-major, `[slots][steps][channels]`: a window of the input is then one run of
//! memory, and a convolution is a product of windows that overlap. What a slot remembers is small
//! (the last steps of each convolution's input, keys and values); everything else is scratch memory
//! that all slots share. A step allocates its results alone.

pub mod conv;
pub mod quantizer;
pub mod seanet;
pub mod transformer;

use candle::{DType, Device, Result};

use crate::weights::{Piece, Weights};

/// Reads a tensor of the named shape as float32; further names are what other files call it.
pub fn read(weights: &Weights, names: &[&str], shape: &[usize]) -> Result<Vec<f32>> {
    let pieces: Vec<Piece> = names.iter().map(|name| Piece::whole(*name)).collect();
    let piece = weights.find(&pieces)?;
    let tensor = weights.read(piece, &Device::Cpu)?;
    if tensor.dims() != shape {
        candle::bail!("'{}' is {:?}, the config says {shape:?}", piece.name, tensor.dims())
    }
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
