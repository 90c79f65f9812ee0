//! Matrices that stay on the CPU as rows of float32, bfloat16 or 8-bit blocks.
//!
//! With one or a few inputs, a product reads every weight once and is bound by memory: what counts
//! is how few bytes a weight takes. All arithmetic is float32, whatever the rows are stored as, so
//! that 8-bit rows give what their dequantized values give. A result does not depend on how many
//! inputs are multiplied together, nor on the number of threads.

// Counted loops over lanes are what the compiler turns into wide instructions.
#![allow(clippy::needless_range_loop)]

use candle::quantized::{GgmlDType, QTensor};
use candle::{DType, Device, Result, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Weights per scale of an 8-bit row, as in GGML's Q8_0.
pub const BLOCK: usize = 32;

const LANES: usize = 16;
const UNROLL: usize = 2;
/// Products of a matrix below this size are not worth a second thread.
const WORTH_SHARING: usize = 1 << 17;

enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Q8 { quants: Vec<i8>, scales: Vec<f32> },
}

/// A matrix `[rows, cols]`, row by row.
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
            DType::BF16 => Stored::Bf16(flat.to_vec1()?),
            _ => Stored::F32(flat.to_dtype(DType::F32)?.to_vec1()?),
        };
        Ok(Self { rows, cols, stored })
    }

    /// Takes Q8_0 blocks; scales become float32.
    pub fn from_q8(weight: &QTensor) -> Result<Self> {
        let (rows, cols) = weight.shape().dims2()?;
        if weight.dtype() != GgmlDType::Q8_0 || cols % BLOCK != 0 {
            candle::bail!("rows of {:?} are not Q8_0", weight.dtype())
        }
        let data = weight.data()?;
        let mut quants = Vec::with_capacity(rows * cols);
        let mut scales = Vec::with_capacity(rows * cols / BLOCK);
        for block in data.chunks_exact(2 + BLOCK) {
            scales.push(half::f16::from_le_bytes([block[0], block[1]]).to_f32());
            quants.extend(block[2..].iter().map(|&byte| byte as i8));
        }
        Ok(Self { rows, cols, stored: Stored::Q8 { quants, scales } })
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
                    *y = *q as f32 * scales[first + i / BLOCK];
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
            Stored::Q8 { quants, scales } => quants.len() + 4 * scales.len(),
        }
    }

    /// `x @ self.T` for `x` of `[n, cols]` on the CPU, float32; gives `[n, rows]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (count, cols) = x.dims2()?;
        if cols != self.cols {
            candle::bail!("a product of [{}, {}] with inputs of {cols}", self.rows, self.cols)
        }
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let candle::Storage::Cpu(storage) = &*storage else {
            candle::bail!("rows on the CPU were given an input elsewhere")
        };
        let start = layout.start_offset();
        let x = &storage.as_slice::<f32>()?[start..start + count * cols];
        let mut y = vec![0f32; count * self.rows];
        self.multiply(x, count, &mut y);
        Tensor::from_vec(y, (count, self.rows), &Device::Cpu)
    }

    fn multiply(&self, x: &[f32], count: usize, y: &mut [f32]) {
        if count == 1 {
            return self.share(x, 1, y);
        }
        let mut by_row = vec![0f32; y.len()]; // [rows, count]
        self.share(x, count, &mut by_row);
        for (row, values) in by_row.chunks_exact(count).enumerate() {
            for (i, value) in values.iter().enumerate() {
                y[i * self.rows + row] = *value;
            }
        }
    }

    /// Splits the rows over the threads; `y` is `[rows, count]`.
    fn share(&self, x: &[f32], count: usize, y: &mut [f32]) {
        let threads = rayon::current_num_threads();
        if threads == 1 || self.rows * self.cols < WORTH_SHARING {
            return self.span(0, x, count, y);
        }
        let rows = self.rows.div_ceil(4 * threads).max(16);
        y.par_chunks_mut(rows * count)
            .enumerate()
            .for_each(|(i, y)| self.span(i * rows, x, count, y));
    }

    fn span(&self, first: usize, x: &[f32], count: usize, y: &mut [f32]) {
        let skip = first * self.cols;
        match &self.stored {
            Stored::F32(values) => dots(F32Rows(&values[skip..]), self.cols, x, count, y),
            Stored::Bf16(values) => dots(Bf16Rows(&values[skip..]), self.cols, x, count, y),
            Stored::Q8 { quants, scales } => {
                let rows = Q8Rows(&quants[skip..], &scales[skip / BLOCK..]);
                #[cfg(target_arch = "x86_64")]
                if q8::available() {
                    return q8::dots(rows, self.cols, x, count, y);
                }
                dots(rows, self.cols, x, count, y)
            }
        }
    }
}

/// Weights that can be read as float32, sixteen at once.
trait Source: Copy {
    fn lanes(&self, at: usize) -> [f32; LANES];
    fn one(&self, at: usize) -> f32;
}

#[derive(Clone, Copy)]
struct F32Rows<'a>(&'a [f32]);

impl Source for F32Rows<'_> {
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        let w = &self.0[at..at + LANES];
        std::array::from_fn(|l| w[l])
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        self.0[at]
    }
}

#[derive(Clone, Copy)]
struct Bf16Rows<'a>(&'a [bf16]);

impl Source for Bf16Rows<'_> {
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        let w = &self.0[at..at + LANES];
        std::array::from_fn(|l| f32::from_bits((w[l].to_bits() as u32) << 16))
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        self.0[at].to_f32()
    }
}

#[derive(Clone, Copy)]
struct Q8Rows<'a>(&'a [i8], &'a [f32]);

impl Source for Q8Rows<'_> {
    #[inline(always)]
    fn lanes(&self, at: usize) -> [f32; LANES] {
        let (w, scale) = (&self.0[at..at + LANES], self.1[at / BLOCK]);
        std::array::from_fn(|l| w[l] as f32 * scale)
    }
    #[inline(always)]
    fn one(&self, at: usize) -> f32 {
        self.0[at] as f32 * self.1[at / BLOCK]
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction, a fused multiplication is a call of the C library.
    if FUSED {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// Dot products of one row of weights with `N` inputs.
#[inline(always)]
fn dot_row<S: Source, const N: usize, const FUSED: bool>(
    weights: S,
    start: usize,
    cols: usize,
    x: [&[f32]; N],
) -> [f32; N] {
    const STEP: usize = LANES * UNROLL;
    let mut sums = [[[0f32; LANES]; UNROLL]; N];
    let whole = cols / STEP * STEP;
    let mut at = 0;
    while at < whole {
        for u in 0..UNROLL {
            let w = weights.lanes(start + at + u * LANES);
            for n in 0..N {
                let x = &x[n][at + u * LANES..at + (u + 1) * LANES];
                for l in 0..LANES {
                    sums[n][u][l] = multiply_add::<FUSED>(w[l], x[l], sums[n][u][l]);
                }
            }
        }
        at += STEP;
    }
    std::array::from_fn(|n| {
        let mut total = 0f32;
        for l in 0..LANES {
            let mut lane = 0f32;
            for u in 0..UNROLL {
                lane += sums[n][u][l];
            }
            total += lane;
        }
        for i in whole..cols {
            total += weights.one(start + i) * x[n][i];
        }
        total
    })
}

#[inline(always)]
fn dot_group<S: Source, const N: usize, const FUSED: bool>(
    weights: S,
    cols: usize,
    x: &[f32],
    count: usize,
    first: usize,
    y: &mut [f32],
) {
    let inputs: [&[f32]; N] =
        std::array::from_fn(|n| &x[(first + n) * cols..(first + n + 1) * cols]);
    for (row, y) in y.chunks_exact_mut(count).enumerate() {
        let dots = dot_row::<S, N, FUSED>(weights, row * cols, cols, inputs);
        y[first..first + N].copy_from_slice(&dots);
    }
}

#[inline(always)]
fn dots_with<S: Source, const FUSED: bool>(
    weights: S,
    cols: usize,
    x: &[f32],
    count: usize,
    y: &mut [f32],
) {
    let mut first = 0;
    while first < count {
        match count - first {
            1 => dot_group::<S, 1, FUSED>(weights, cols, x, count, first, y),
            2 => dot_group::<S, 2, FUSED>(weights, cols, x, count, first, y),
            3 => dot_group::<S, 3, FUSED>(weights, cols, x, count, first, y),
            _ => dot_group::<S, 4, FUSED>(weights, cols, x, count, first, y),
        }
        first += 4;
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{dots_with, Source};

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    pub fn dots_avx512<S: Source>(w: S, cols: usize, x: &[f32], count: usize, y: &mut [f32]) {
        dots_with::<S, true>(w, cols, x, count, y)
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn dots_avx2<S: Source>(w: S, cols: usize, x: &[f32], count: usize, y: &mut [f32]) {
        dots_with::<S, true>(w, cols, x, count, y)
    }
}

/// 8-bit rows by hand: the compiler does not find the widening of bytes by itself, and its form
/// takes seven times as long.
#[cfg(target_arch = "x86_64")]
mod q8 {
    use std::arch::x86_64::*;

    use super::{Q8Rows, BLOCK};

    pub fn available() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }

    pub fn dots(rows: Q8Rows, cols: usize, x: &[f32], count: usize, y: &mut [f32]) {
        dots_by(is_x86_feature_detected!("avx512f"), rows, cols, x, count, y)
    }

    #[cfg(test)]
    pub fn dots_narrow(rows: Q8Rows, cols: usize, x: &[f32], count: usize, y: &mut [f32]) {
        dots_by(false, rows, cols, x, count, y)
    }

    fn dots_by(wide: bool, rows: Q8Rows, cols: usize, x: &[f32], count: usize, y: &mut [f32]) {
        let mut first = 0;
        while first < count {
            // SAFETY: `available` was asked, and here for the wider form.
            unsafe {
                match (count - first, wide) {
                    (1, true) => group_avx512::<1>(rows, cols, x, count, first, y),
                    (2, true) => group_avx512::<2>(rows, cols, x, count, first, y),
                    (3, true) => group_avx512::<3>(rows, cols, x, count, first, y),
                    (_, true) => group_avx512::<4>(rows, cols, x, count, first, y),
                    (1, false) => group_avx2::<1>(rows, cols, x, count, first, y),
                    (2, false) => group_avx2::<2>(rows, cols, x, count, first, y),
                    (3, false) => group_avx2::<3>(rows, cols, x, count, first, y),
                    (_, false) => group_avx2::<4>(rows, cols, x, count, first, y),
                }
            }
            first += 4;
        }
    }

    #[target_feature(enable = "avx512f")]
    fn group_avx512<const N: usize>(
        rows: Q8Rows,
        cols: usize,
        x: &[f32],
        count: usize,
        first: usize,
        y: &mut [f32],
    ) {
        let Q8Rows(quants, scales) = rows;
        let x: [&[f32]; N] = std::array::from_fn(|n| &x[(first + n) * cols..][..cols]);
        let blocks = cols / BLOCK;
        for (row, y) in y.chunks_exact_mut(count).enumerate() {
            let quants = &quants[row * cols..(row + 1) * cols];
            let scales = &scales[row * blocks..(row + 1) * blocks];
            let mut sums = [_mm512_setzero_ps(); N];
            for (block, (quants, scale)) in quants.chunks_exact(BLOCK).zip(scales).enumerate() {
                // SAFETY: a block is 32 bytes of weights and 32 numbers of every input.
                unsafe {
                    let at = quants.as_ptr().cast::<__m128i>();
                    let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
                    let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.add(1))));
                    let scale = _mm512_set1_ps(*scale);
                    for n in 0..N {
                        let x = x[n].as_ptr().add(block * BLOCK);
                        let part = _mm512_mul_ps(low, _mm512_loadu_ps(x));
                        let part = _mm512_fmadd_ps(high, _mm512_loadu_ps(x.add(16)), part);
                        sums[n] = _mm512_fmadd_ps(part, scale, sums[n]);
                    }
                }
            }
            for n in 0..N {
                y[first + n] = _mm512_reduce_add_ps(sums[n]);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn group_avx2<const N: usize>(
        rows: Q8Rows,
        cols: usize,
        x: &[f32],
        count: usize,
        first: usize,
        y: &mut [f32],
    ) {
        let Q8Rows(quants, scales) = rows;
        let x: [&[f32]; N] = std::array::from_fn(|n| &x[(first + n) * cols..][..cols]);
        let blocks = cols / BLOCK;
        for (row, y) in y.chunks_exact_mut(count).enumerate() {
            let quants = &quants[row * cols..(row + 1) * cols];
            let scales = &scales[row * blocks..(row + 1) * blocks];
            let mut sums = [_mm256_setzero_ps(); N];
            for (block, (quants, scale)) in quants.chunks_exact(BLOCK).zip(scales).enumerate() {
                // SAFETY: a block is 32 bytes of weights and 32 numbers of every input.
                unsafe {
                    let at = quants.as_ptr().cast::<__m128i>();
                    let (a, b) = (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)));
                    let wide = [a, _mm_srli_si128::<8>(a), b, _mm_srli_si128::<8>(b)]
                        .map(|half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half)));
                    let scale = _mm256_set1_ps(*scale);
                    for n in 0..N {
                        let x = x[n].as_ptr().add(block * BLOCK);
                        let mut part = _mm256_mul_ps(wide[0], _mm256_loadu_ps(x));
                        for (i, w) in wide.iter().enumerate().skip(1) {
                            part = _mm256_fmadd_ps(*w, _mm256_loadu_ps(x.add(8 * i)), part);
                        }
                        sums[n] = _mm256_fmadd_ps(part, scale, sums[n]);
                    }
                }
            }
            for n in 0..N {
                let mut lanes = [0f32; 8];
                // SAFETY: eight numbers.
                unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[n]) };
                y[first + n] = lanes.iter().sum();
            }
        }
    }
}

/// Dot products of rows with `count` inputs, by the widest instructions of this machine; `y` is
/// `[rows, count]`.
fn dots<S: Source>(weights: S, cols: usize, x: &[f32], count: usize, y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the instructions were asked for just before.
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            return unsafe { wide::dots_avx512(weights, cols, x, count, y) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return unsafe { wide::dots_avx2(weights, cols, x, count, y) };
        }
        dots_with::<S, false>(weights, cols, x, count, y)
    }
    #[cfg(not(target_arch = "x86_64"))]
    dots_with::<S, true>(weights, cols, x, count, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Every stored form against sums in double precision, for one to six inputs and odd widths.
    #[test]
    fn products_are_those_of_the_values_that_are_stored() -> Result<()> {
        for (rows, cols) in [(5, 96), (3, 64), (7, 70), (2, 31)] {
            let weight = Tensor::from_vec(numbers(rows * cols, 1), (rows, cols), &Device::Cpu)?;
            let mut forms = vec![
                Rows::from_tensor(&weight)?,
                Rows::from_tensor(&weight.to_dtype(DType::BF16)?)?,
            ];
            if cols % BLOCK == 0 {
                forms.push(Rows::from_q8(&QTensor::quantize(&weight, GgmlDType::Q8_0)?)?);
            }
            for form in forms {
                let mut values = vec![vec![0f32; cols]; rows];
                values.iter_mut().enumerate().for_each(|(i, row)| form.row(i, row));
                for count in 1..=6 {
                    let x = numbers(count * cols, 2);
                    let input = Tensor::from_slice(&x, (count, cols), &Device::Cpu)?;
                    let y = form.product(&input)?.to_vec2::<f32>()?;
                    for (x, y) in x.chunks_exact(cols).zip(&y) {
                        for (row, y) in values.iter().zip(y) {
                            let exact: f64 =
                                row.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
                            assert!((exact - *y as f64).abs() < 1e-5, "{exact} {y}");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_narrower_instructions_agree() -> Result<()> {
        let (rows, cols, count) = (6, 128, 3);
        let weight = Tensor::from_vec(numbers(rows * cols, 1), (rows, cols), &Device::Cpu)?;
        let stored = Rows::from_q8(&QTensor::quantize(&weight, GgmlDType::Q8_0)?)?;
        let Stored::Q8 { quants, scales } = &stored.stored else { candle::bail!("not Q8_0") };
        let x = numbers(count * cols, 2);
        let mut plain = vec![0f32; rows * count];
        dots_with::<_, false>(Q8Rows(quants, scales), cols, &x, count, &mut plain);
        let mut found = vec![0f32; rows * count];
        if q8::available() {
            q8::dots_narrow(Q8Rows(quants, scales), cols, &x, count, &mut found);
            for (a, b) in plain.iter().zip(&found) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
        Ok(())
    }
}
