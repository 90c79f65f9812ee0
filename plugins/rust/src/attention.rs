//! Rings of keys and values, and attention of one new position over each.

use candle::{DType, Device, Result, Tensor};
use half::bf16;
use rayon::prelude::*;

use crate::linear::Placement;

/// Shape of an attention.
#[derive(Clone, Copy)]
pub struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
}

/// Keys and values of one layer of one stream: `[heads, capacity, width]`.
pub enum Ring {
    F32(Vec<f32>, Vec<f32>),
    Bf16(Vec<bf16>, Vec<bf16>),
    Plain(Tensor, Tensor),
}

impl Ring {
    pub fn new(heads: Heads, capacity: usize, dtype: DType, place: &Placement) -> Result<Self> {
        let size = heads.keys * capacity * heads.width;
        if place.own() {
            return Ok(match dtype {
                DType::BF16 => Self::Bf16(vec![bf16::ZERO; size], vec![bf16::ZERO; size]),
                _ => Self::F32(vec![0.0; size], vec![0.0; size]),
            });
        }
        let shape = (1, heads.keys, capacity, heads.width);
        let zeros = || Tensor::zeros(shape, place.compute(), &place.device);
        Ok(Self::Plain(zeros()?, zeros()?))
    }
}

/// One stream's place in its rings.
#[derive(Clone, Copy)]
pub struct Place {
    pub position: usize,
    pub capacity: usize,
}

impl Place {
    fn write(&self) -> usize {
        self.position % self.capacity
    }

    fn length(&self) -> usize {
        (self.position + 1).min(self.capacity)
    }
}

/// Rotations of one step, `[n, width / 2]` each; None without rotary positions.
pub struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotation {
    pub fn new(places: &[Place], width: usize, max_period: f32) -> Self {
        let half = width / 2;
        let factor = -max_period.ln() * 2.0 / width as f32;
        let angles: Vec<f32> = places
            .iter()
            .flat_map(|place| {
                let time = place.position as f32;
                (0..half).map(move |e| (e as f32 * factor).exp() * time)
            })
            .collect();
        Self {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            half,
        }
    }

    /// Rotates the heads of row `n` in place: pairs are neighbours.
    fn apply(&self, n: usize, heads: &mut [f32]) {
        let span = n * self.half..(n + 1) * self.half;
        let (cos, sin) = (&self.cos[span.clone()], &self.sin[span]);
        for head in heads.chunks_exact_mut(2 * self.half) {
            for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                let (real, imag) = (pair[0], pair[1]);
                pair[0] = real * cos - imag * sin;
                pair[1] = real * sin + imag * cos;
            }
        }
    }

    fn tensors(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (self.cos.len() / self.half, 1, self.half);
        Ok((
            Tensor::from_slice(&self.cos, shape, device)?,
            Tensor::from_slice(&self.sin, shape, device)?,
        ))
    }
}

/// Writes each row's new key and value into its ring, then attends over what the ring holds.
///
/// `projected` is `[n, (queries + 2 keys) * width]`; `rings[i]` belongs to row i. Gives
/// `[n, queries * width]`.
pub fn attend(
    projected: &Tensor,
    heads: Heads,
    rings: &mut [&mut Ring],
    places: &[Place],
    rotation: Option<&Rotation>,
) -> Result<Tensor> {
    if matches!(rings.first(), Some(Ring::Plain(..))) {
        return attend_plain(projected, heads, rings, places, rotation);
    }
    let count = places.len();
    let mut values = projected.flatten_all()?.to_vec1::<f32>()?;
    let stride = values.len() / count;
    let size = heads.queries * heads.width;
    let mut out = vec![0f32; count * size];
    let rows =
        values.chunks_exact_mut(stride).zip(rings.iter_mut()).zip(out.chunks_exact_mut(size));
    for (n, ((row, ring), out)) in rows.enumerate() {
        let (place, kv) = (places[n], heads.keys * heads.width);
        if let Some(rotation) = rotation {
            rotation.apply(n, &mut row[..size + kv]);
        }
        let (q, rest) = row.split_at(size);
        let (k, v) = rest.split_at(kv);
        match ring {
            Ring::F32(keys, held) => {
                write(keys, k, heads, place, |x| x);
                write(held, v, heads, place, |x| x);
                over_heads(q, keys, held, heads, place, out);
            }
            Ring::Bf16(keys, held) => {
                write(keys, k, heads, place, bf16::from_f32);
                write(held, v, heads, place, bf16::from_f32);
                over_heads(q, keys, held, heads, place, out);
            }
            Ring::Plain(..) => candle::bail!("rings of two kinds in one step"),
        }
    }
    Tensor::from_vec(out, (count, size), &Device::Cpu)
}

fn write<T>(ring: &mut [T], new: &[f32], heads: Heads, place: Place, cast: impl Fn(f32) -> T) {
    let width = heads.width;
    for (ring, new) in ring.chunks_exact_mut(place.capacity * width).zip(new.chunks_exact(width)) {
        let entry = &mut ring[place.write() * width..(place.write() + 1) * width];
        entry.iter_mut().zip(new).for_each(|(y, x)| *y = cast(*x));
    }
}

trait Number: Copy + Send + Sync {
    fn wide(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}

fn over_heads<T: Number>(
    q: &[f32],
    keys: &[T],
    values: &[T],
    heads: Heads,
    place: Place,
    out: &mut [f32],
) {
    let (width, repeat) = (heads.width, heads.queries / heads.keys);
    let size = place.capacity * width;
    let one = |(h, out): (usize, &mut [f32])| {
        let span = h / repeat * size..h / repeat * size + place.length() * width;
        let q = &q[h * width..(h + 1) * width];
        over_ring(q, &keys[span.clone()], &values[span], out);
    };
    if rayon::current_num_threads() > 1 && heads.keys * place.length() * width > 1 << 16 {
        out.par_chunks_exact_mut(width).enumerate().for_each(one);
    } else {
        out.chunks_exact_mut(width).enumerate().for_each(one);
    }
}

fn over_ring<T: Number>(q: &[f32], keys: &[T], values: &[T], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the instructions were asked for just before.
        return unsafe { over_ring_avx2(q, keys, values, out) };
    }
    over_ring_inner(q, keys, values, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn over_ring_avx2<T: Number>(q: &[f32], keys: &[T], values: &[T], out: &mut [f32]) {
    over_ring_inner(q, keys, values, out)
}

#[inline(always)]
fn over_ring_inner<T: Number>(q: &[f32], keys: &[T], values: &[T], out: &mut [f32]) {
    const LANES: usize = 8;
    let width = q.len();
    let scale = (width as f32).sqrt().recip();
    let mut scores: Vec<f32> = keys
        .chunks_exact(width)
        .map(|key| {
            let mut lanes = [0f32; LANES];
            let (heads, tails) = (q.chunks_exact(LANES), key.chunks_exact(LANES));
            let rest: f32 =
                heads.remainder().iter().zip(tails.remainder()).map(|(a, b)| a * b.wide()).sum();
            for (a, b) in heads.zip(tails) {
                for l in 0..LANES {
                    lanes[l] += a[l] * b[l].wide();
                }
            }
            (lanes.iter().sum::<f32>() + rest) * scale
        })
        .collect();
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
        total += *score;
    }
    out.fill(0.0);
    for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
        let weight = score / total;
        for (y, v) in out.iter_mut().zip(value) {
            *y += weight * v.wide();
        }
    }
}

/// The same by candle's operations, for other devices.
fn attend_plain(
    projected: &Tensor,
    heads: Heads,
    rings: &mut [&mut Ring],
    places: &[Place],
    rotation: Option<&Rotation>,
) -> Result<Tensor> {
    let (count, _) = projected.dims2()?;
    let (num_q, num_kv, width) = (heads.queries, heads.keys, heads.width);
    let dtype = projected.dtype();
    let x = projected.reshape((count, num_q + 2 * num_kv, 1, width))?;
    let v = x.narrow(1, num_q + num_kv, num_kv)?.contiguous()?;
    let mut turned = x.narrow(1, 0, num_q + num_kv)?.contiguous()?;
    if let Some(rotation) = rotation {
        let (cos, sin) = rotation.tensors(x.device())?;
        let wide = turned.to_dtype(DType::F32)?;
        turned = candle_nn::rotary_emb::rope_i(&wide, &cos, &sin)?.to_dtype(dtype)?;
    }
    let q = turned.narrow(1, 0, num_q)?;
    let k = turned.narrow(1, num_q, num_kv)?.contiguous()?;
    let mut out = Vec::with_capacity(count);
    for (n, ring) in rings.iter_mut().enumerate() {
        let Ring::Plain(keys, values) = ring else {
            candle::bail!("rings of two kinds in one step")
        };
        let place = places[n];
        keys.slice_set(&k.narrow(0, n, 1)?.contiguous()?, 2, place.write())?;
        values.slice_set(&v.narrow(0, n, 1)?.contiguous()?, 2, place.write())?;
        let keys = keys.narrow(2, 0, place.length())?.contiguous()?;
        let values = values.narrow(2, 0, place.length())?.contiguous()?;
        // Queries that share a key head are further rows of one product.
        let q = q.narrow(0, n, 1)?.reshape((1, num_kv, num_q / num_kv, width))?.contiguous()?;
        let scores = (q.matmul(&keys.t()?)? * (width as f64).sqrt().recip())?;
        let weights = candle_nn::ops::softmax_last_dim(&scores.to_dtype(DType::F32)?)?;
        let y = weights.to_dtype(dtype)?.matmul(&values)?;
        out.push(y.reshape((1, num_q * width))?);
    }
    Tensor::cat(&out, 0)
}
