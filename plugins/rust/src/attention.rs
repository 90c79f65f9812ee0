//! Rings of keys and values, and attention of one new position over each.
//!
//! A ring takes memory as it fills, and is read from its start in one stream, for all heads at once.

use candle::{DType, Device, Result, Tensor};
use half::bf16;

use crate::arena::Buffer;
use crate::cpu::{self, Level};
use crate::linear::Placement;
use crate::math::exponentials;
use crate::team;

/// Numbers of keys that are worth a second thread.
const WORTH_SHARING: usize = 1 << 16;

/// Shape of an attention.
#[derive(Clone, Copy)]
pub struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
}

impl Heads {
    /// Numbers of the keys that a place sees.
    fn numbers(&self, place: &Place) -> usize {
        place.length() * self.keys * self.width
    }
}

/// Keys and values of one layer of one stream: `[capacity, heads, width]`, with candle's operations
/// `[1, heads, capacity, width]`.
pub enum Ring {
    F32(Buffer<f32>, Buffer<f32>),
    Bf16(Buffer<bf16>, Buffer<bf16>),
    Plain(Tensor, Tensor),
}

impl Ring {
    pub fn new(heads: Heads, capacity: usize, dtype: DType, place: &Placement) -> Result<Self> {
        let size = heads.keys * capacity * heads.width;
        if place.own() {
            return Ok(match dtype {
                DType::BF16 => Self::Bf16(Buffer::zeros(size)?, Buffer::zeros(size)?),
                _ => Self::F32(Buffer::zeros(size)?, Buffer::zeros(size)?),
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
/// `projected` is `[n, (queries + 2 keys) * width]` and is changed; `rings[i]` belongs to row i.
/// `out` becomes `[n, queries * width]`.
pub fn attend(
    projected: &mut [f32],
    heads: Heads,
    rings: &mut [&mut Ring],
    places: &[Place],
    rotation: Option<&Rotation>,
    out: &mut Vec<f32>,
) {
    let count = places.len();
    out.resize(count * heads.queries * heads.width, 0.0);
    let stride = projected.len() / count;
    let values = projected.chunks_exact_mut(stride);
    let outs = out.chunks_exact_mut(heads.queries * heads.width);
    let mut rows: Vec<Row> = values
        .zip(outs)
        .zip(rings)
        .zip(places)
        .map(|(((values, out), ring), &place)| Row { values, out, ring, place })
        .collect();
    let filled: usize = places.iter().map(|place| heads.numbers(place)).sum();
    // Fewer rows than threads are attended to in turn, each by all threads.
    let worth = count >= team::shared().threads() && filled >= WORTH_SHARING;
    team::shared_if(worth).chunks(&mut rows, 1, |n, rows| rows[0].attend(n, heads, rotation));
}

/// What one position is projected to, what it attends to, and where its result goes.
struct Row<'a> {
    values: &'a mut [f32],
    ring: &'a mut Ring,
    place: Place,
    out: &'a mut [f32],
}

impl Row<'_> {
    fn attend(&mut self, n: usize, heads: Heads, rotation: Option<&Rotation>) {
        let &mut Self { place, ref mut out, .. } = self;
        let (size, kv) = (heads.queries * heads.width, heads.keys * heads.width);
        if let Some(rotation) = rotation {
            rotation.apply(n, &mut self.values[..size + kv]);
        }
        let (q, rest) = self.values.split_at(size);
        let (k, v) = rest.split_at(kv);
        match &mut self.ring {
            Ring::F32(keys, held) => {
                write(keys, k, place, |x| x);
                write(held, v, place, |x| x);
                over_heads(q, keys, held, heads, place, out);
            }
            Ring::Bf16(keys, held) => {
                write(keys, k, place, bf16::from_f32);
                write(held, v, place, bf16::from_f32);
                over_heads(q, keys, held, heads, place, out);
            }
            Ring::Plain(..) => unreachable!("rings of another device"),
        }
    }
}

fn write<T>(ring: &mut [T], new: &[f32], place: Place, cast: impl Fn(f32) -> T) {
    let entry = &mut ring[place.write() * new.len()..][..new.len()];
    entry.iter_mut().zip(new).for_each(|(y, x)| *y = cast(*x));
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
    let filled = heads.numbers(&place);
    let seen = Seen { q, keys: &keys[..filled], values: &values[..filled], heads };
    let team = team::shared_if(filled >= WORTH_SHARING);
    let share = heads.queries.div_ceil(team.threads());
    team.chunks(out, share * heads.width, |i, out| seen.attend(i * share, out));
}

/// What one position attends to.
#[derive(Clone, Copy)]
struct Seen<'a, T> {
    q: &'a [f32],
    keys: &'a [T],
    values: &'a [T],
    heads: Heads,
}

impl<T: Number> Seen<'_, T> {
    /// As many heads as `out` has, from head `first` on.
    fn attend(self, first: usize, out: &mut [f32]) {
        match cpu::level() {
            // SAFETY: the level is one that this machine has.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { attend_avx512(self, first, out) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { attend_avx2(self, first, out) },
            Level::Portable => self.attend_inner(first, out),
        }
    }

    #[inline(always)]
    fn attend_inner(self, first: usize, out: &mut [f32]) {
        let Heads { queries, keys, width } = self.heads;
        let (count, repeat) = (self.keys.len() / (keys * width), queries / keys);
        let scale = (width as f32).sqrt().recip();
        let mut scores = vec![0f32; out.len() / width * count];
        for (p, key) in self.keys.chunks_exact(keys * width).enumerate() {
            for (h, scores) in scores.chunks_exact_mut(count).enumerate() {
                let q = &self.q[(first + h) * width..][..width];
                let key = &key[(first + h) / repeat * width..][..width];
                fetch(key, keys * width);
                scores[p] = dot(q, key) * scale;
            }
        }
        for scores in scores.chunks_exact_mut(count) {
            let total = exponentials(scores);
            scores.iter_mut().for_each(|score| *score /= total);
        }
        out.fill(0.0);
        for (p, value) in self.values.chunks_exact(keys * width).enumerate() {
            let heads = out.chunks_exact_mut(width).zip(scores.chunks_exact(count));
            for (h, (out, scores)) in heads.enumerate() {
                let value = &value[(first + h) / repeat * width..][..width];
                fetch(value, keys * width);
                for (y, v) in out.iter_mut().zip(value) {
                    *y += scores[p] * v.wide();
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn attend_avx512<T: Number>(seen: Seen<T>, first: usize, out: &mut [f32]) {
    seen.attend_inner(first, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn attend_avx2<T: Number>(seen: Seen<T>, first: usize, out: &mut [f32]) {
    seen.attend_inner(first, out)
}

/// Asks for what lies `ahead` numbers after these, which are read next.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn fetch<T>(numbers: &[T], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: it may be anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(ahead).cast()) }
    }
}

#[inline(always)]
fn dot<T: Number>(q: &[f32], key: &[T]) -> f32 {
    const LANES: usize = 16;
    let (heads, tails) = (q.chunks_exact(LANES), key.chunks_exact(LANES));
    let ends = heads.remainder().iter().zip(tails.remainder());
    let rest: f32 = ends.map(|(a, b)| a * b.wide()).sum();
    let mut lanes = [0f32; LANES];
    for (a, b) in heads.zip(tails) {
        let product: [f32; LANES] = std::array::from_fn(|l| a[l] * b[l].wide());
        lanes = std::array::from_fn(|l| lanes[l] + product[l]);
    }
    let lanes: [f32; 8] = std::array::from_fn(|l| lanes[l] + lanes[l + 8]);
    let lanes: [f32; 4] = std::array::from_fn(|l| lanes[l] + lanes[l + 4]);
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]) + rest
}

/// The same by candle's operations, for other devices.
pub fn attend_plain(
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
