//! The split residual vector quantizer: one semantic codebook, and a chain of acoustic ones.

use candle::Result;

use super::read;
use crate::arena::{Arena, Piece};
use crate::gemm::{multiply, Input, Output, Panels};
use crate::weights::Weights;

const MIN_USAGE: f32 = 1e-5;

/// Sizes of the quantizer.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Width of a latent.
    pub width: usize,
    /// Width of a codebook's entries, and how many there are.
    pub entry: usize,
    pub cardinality: usize,
    /// Codebooks in the file, and how many are encoded to.
    pub books: usize,
    pub active: usize,
}

struct Book {
    /// Entries row by row.
    entries: Piece<f32>,
    search: Option<Search>,
}

/// What finds the nearest entry.
struct Search {
    entries: Panels,
    /// Half the squared norm of every entry, negative.
    bias: Vec<f32>,
}

/// A chain of codebooks, each quantizing what the ones before it left.
struct Group {
    input: Panels,
    output: Panels,
    books: Vec<Book>,
}

pub struct Quantizer {
    sizes: Sizes,
    semantic: Group,
    acoustic: Group,
}

/// Scratch memory of several slots.
pub struct Scratch {
    residual: Vec<f32>,
    scores: Vec<f32>,
}

impl Quantizer {
    pub fn load(weights: &Weights, arena: &mut Arena, name: &str, sizes: Sizes) -> Result<Self> {
        let mut load = |group: &str, books: usize, active: usize| {
            Group::load(weights, arena, &format!("{name}.rvq_{group}"), sizes, books, active)
        };
        let semantic = load("first", 1, 1)?;
        let acoustic = load("rest", sizes.books - 1, sizes.active - 1)?;
        Ok(Self { sizes, semantic, acoustic })
    }

    pub fn new_scratch(&self, slots: usize) -> Scratch {
        let Sizes { entry, cardinality, .. } = self.sizes;
        Scratch { residual: vec![0.0; slots * entry], scores: vec![0.0; slots * cardinality] }
    }

    /// The nearest entries of latents `[slots][width]`, as `[slots][active]`.
    pub fn encode(&self, latents: &[f32], codes: &mut [i64], scratch: &mut Scratch) {
        let active = self.sizes.active;
        self.semantic.encode(latents, codes, active, 0, 1, scratch);
        self.acoustic.encode(latents, codes, active, 1, active - 1, scratch);
    }

    /// Codes `[slots][count]` to latents `[slots][width]`; codes were checked.
    pub fn decode(&self, codes: &[i64], count: usize, latents: &mut [f32], scratch: &mut Scratch) {
        self.semantic.decode(codes, count, 0..1, latents, scratch);
        if count > 1 {
            self.acoustic.decode(codes, count, 1..count, latents, scratch);
        }
    }
}

impl Group {
    fn load(
        weights: &Weights,
        arena: &mut Arena,
        name: &str,
        sizes: Sizes,
        books: usize,
        active: usize,
    ) -> Result<Self> {
        let Sizes { width, entry, .. } = sizes;
        let mut project = |part: &str, outputs: usize, inputs: usize| {
            let name = format!("{name}.{part}.weight");
            let weight = read(weights, &[&name], &[outputs, inputs, 1])?;
            Panels::pack(arena, &weight, outputs, inputs)
        };
        let input = project("input_proj", entry, width)?;
        let output = project("output_proj", width, entry)?;
        let books = (0..books)
            .map(|i| {
                let name = format!("{name}.vq.layers.{i}._codebook");
                Book::load(weights, arena, &name, sizes, i < active)
            })
            .collect::<Result<_>>()?;
        Ok(Self { input, output, books })
    }

    fn encode(
        &self,
        latents: &[f32],
        codes: &mut [i64],
        stride: usize,
        first: usize,
        count: usize,
        scratch: &mut Scratch,
    ) {
        let (slots, entry) = (codes.len() / stride, self.input.outputs);
        let residual = &mut scratch.residual[..slots * entry];
        let input = Input::dense(latents, slots, self.input.inputs);
        multiply(input, self.input.view(), Output::dense(residual, entry));
        for (k, book) in self.books[..count].iter().enumerate() {
            let Some(search) = &book.search else { continue };
            let cardinality = search.entries.outputs;
            let scores = &mut scratch.scores[..slots * cardinality];
            // Half the squared distance, negative, without the part that all entries share.
            let output = Output { bias: Some(&search.bias), ..Output::dense(scores, cardinality) };
            multiply(Input::dense(residual, slots, entry), search.entries.view(), output);
            let rows = residual.chunks_exact_mut(entry).zip(scores.chunks_exact(cardinality));
            for (slot, (residual, scores)) in rows.enumerate() {
                let code = first_largest(scores);
                codes[slot * stride + first + k] = code as i64;
                for (rest, value) in residual.iter_mut().zip(book.entry(code, entry)) {
                    *rest -= value;
                }
            }
        }
    }

    fn decode(
        &self,
        codes: &[i64],
        stride: usize,
        part: std::ops::Range<usize>,
        latents: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (slots, entry, width) = (codes.len() / stride, self.input.outputs, self.output.outputs);
        let add = part.start > 0;
        let totals = &mut scratch.residual[..slots * entry];
        for (total, codes) in totals.chunks_exact_mut(entry).zip(codes.chunks_exact(stride)) {
            total.fill(0.0);
            for (book, code) in self.books.iter().zip(&codes[part.clone()]) {
                for (total, value) in total.iter_mut().zip(book.entry(*code as usize, entry)) {
                    *total += value;
                }
            }
        }
        let output = Output { add, ..Output::dense(latents, width) };
        multiply(Input::dense(totals, slots, entry), self.output.view(), output);
    }
}

impl Book {
    fn load(
        weights: &Weights,
        arena: &mut Arena,
        name: &str,
        sizes: Sizes,
        active: bool,
    ) -> Result<Self> {
        let Sizes { entry, cardinality, .. } = sizes;
        let usage = read(weights, &[&format!("{name}.cluster_usage")], &[cardinality])?;
        let sum = format!("{name}.embedding_sum");
        let mut entries = read(weights, &[&sum], &[cardinality, entry])?;
        for (row, usage) in entries.chunks_exact_mut(entry).zip(usage) {
            row.iter_mut().for_each(|value| *value /= usage.max(MIN_USAGE));
        }
        let half_norm = |row: &[f32]| {
            -(row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / 2.0) as f32
        };
        let search = if active {
            let bias = entries.chunks_exact(entry).map(half_norm).collect();
            Some(Search { entries: Panels::pack(arena, &entries, cardinality, entry)?, bias })
        } else {
            None
        };
        Ok(Self { entries: arena.put(&entries)?, search })
    }

    fn entry(&self, code: usize, width: usize) -> &[f32] {
        &self.entries[code * width..(code + 1) * width]
    }
}

fn first_largest(scores: &[f32]) -> usize {
    let (mut best, mut largest) = (0, f32::NEG_INFINITY);
    for (i, score) in scores.iter().enumerate() {
        if *score > largest {
            (best, largest) = (i, *score);
        }
    }
    best
}
