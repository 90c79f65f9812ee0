//! The `moshi` crate's own language model, greedy: what tests compare ours with.

use std::path::Path;

use candle::{DType, Device, IndexOp, Result, Tensor, D};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use moshi::lm::{load_lm_model, Config};
use moshi::StreamMask;

/// Feeds columns of ids to a fresh model, -1 as a muted stream; returns the text token and codes
/// that follow each.
pub fn greedy(path: &Path, config: Config, columns: &[Vec<i64>]) -> Result<Vec<(u32, Vec<u32>)>> {
    let device = Device::Cpu;
    let mut model = load_lm_model(config, path, DType::F32, &device)?;
    let mut chooser = LogitsProcessor::from_sampling(0, Sampling::ArgMax);
    let id = |id: i64| -> Result<Option<Tensor>> {
        Ok(if id < 0 { None } else { Some(Tensor::new(&[[id as u32]], &device)?) })
    };
    let mut found = Vec::with_capacity(columns.len());
    for column in columns {
        let Some((text, codes)) = column.split_first() else { candle::bail!("an empty column") };
        let codes = codes.iter().map(|&code| id(code)).collect::<Result<Vec<_>>>()?;
        let (logits, hidden) = model.forward(id(*text)?, codes, &StreamMask::empty())?;
        let text = logits.i((0, 0))?.argmax(D::Minus1)?.to_scalar::<u32>()?;
        let codes = model.depformer_sample(&hidden, Some(text), &[], &mut chooser)?;
        found.push((text, codes.unwrap_or_default()));
    }
    Ok(found)
}
