//! Matrices of 8-bit blocks, multiplied in integers at the speed of memory.
//!
//! A block is 32 weights along the inputs and one scale, as in GGML's Q8_0. An input is rounded to
//! 32767 steps to its largest number. Where its numbers are alike, a product of 4096 is off by 3e-5 of
//! its size for it, against 5e-3 for the rounding of weights; where one outweighs all others, by a
//! tenth of what weights cost (sqrt(n) / 545, as weights are off by 0.0048 of their size). Sums within a
//! block are exact, hence the same for any number of inputs, threads and set of instructions.
//!
//! Weights lie in the order in which they are read: panels of 16 outputs, in each its blocks one
//! after the other, in each block 16 scales and then the weights of four inputs for every output.

// Counted loops over lanes are what the compiler turns into wide instructions.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::sync::OnceLock;

use candle::quantized::{GgmlDType, QTensor};
use candle::Result;
use half::f16;

use crate::arena::{Arena, Piece};
use crate::team;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Weights per scale.
pub const BLOCK: usize = 32;

/// Outputs of a panel.
const WIDE: usize = 16;
const PAIRS: usize = BLOCK / 2;
/// Weights of four inputs for every output.
const FOUR: usize = 4 * WIDE;
/// Bytes of the scales of a block of a panel, float16.
const SCALES: usize = 2 * WIDE;
const BYTES: usize = SCALES + WIDE * BLOCK;
/// Inputs that share a reading of the weights from the caches.
const GROUP: usize = 8;
/// Inputs that fill a tile well enough.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const WORTH_TILES: usize = 9;
/// How far ahead of its use memory is asked for.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;
/// Bytes of weights that are worth a turn of a thread.
const PART: usize = 1 << 16;

/// A matrix `[rows, cols]` as panels of blocks.
pub struct Blocks {
    pub rows: usize,
    pub cols: usize,
    bytes: Piece<i8>,
}

/// Sets of instructions that there is a kernel for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Level {
    /// Tiles for many inputs, else as the next.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Level {
    /// The fastest that this machine has.
    fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available()[0])
    }

    /// What this machine has, the fastest first.
    fn available() -> Vec<Self> {
        let mut levels = vec![];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                #[cfg(target_os = "linux")]
                if amx::available() {
                    levels.push(Self::Amx);
                }
                levels.push(Self::Vnni);
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self::Avx2);
            }
        }
        levels.push(Self::Portable);
        levels
    }
}

/// Inputs as 16-bit integers, in groups that a kernel takes at once.
///
/// A group of n inputs lies as `[blocks, 16 pairs, n]`. Of four numbers, the first pair has the first
/// and third, as weights are taken apart by halves of words.
struct Inputs {
    count: usize,
    cols: usize,
    pairs: Vec<[i16; 2]>,
    /// One for every input.
    scales: Vec<f32>,
}

struct Group<'a> {
    first: usize,
    count: usize,
    pairs: &'a [[i16; 2]],
    scales: &'a [f32],
}

impl Inputs {
    fn new(level: Level, x: &[f32], count: usize) -> Self {
        let (cols, pairs) = (x.len() / count, vec![[0; 2]; x.len() / 2]);
        let mut inputs = Self { count, cols, pairs, scales: vec![0.0; count] };
        match level {
            // SAFETY: a level is only taken where its instructions are available.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx => unsafe { x86::fill_avx512(&mut inputs, x) },
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => unsafe { x86::fill_avx512(&mut inputs, x) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::fill_avx2(&mut inputs, x) },
            Level::Portable => inputs.fill(x),
        }
        inputs
    }

    #[inline(always)]
    fn fill(&mut self, x: &[f32]) {
        let &mut Self { count, cols, .. } = self;
        for (i, x) in x.chunks_exact(cols).enumerate() {
            let first = i / GROUP * GROUP;
            let (of, at) = (GROUP.min(count - first), i - first);
            let pairs = &mut self.pairs[first * cols / 2..];
            let steps = Steps::new(x);
            self.scales[i] = steps.scale;
            for (block, x) in x.chunks_exact(BLOCK).enumerate() {
                let quants = steps.round(x);
                let pairs = &mut pairs[block * PAIRS * of..];
                for (four, q) in quants.chunks_exact(4).enumerate() {
                    pairs[2 * four * of + at] = [q[0], q[2]];
                    pairs[(2 * four + 1) * of + at] = [q[1], q[3]];
                }
            }
        }
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        (0..self.count).step_by(GROUP).map(|first| {
            let count = GROUP.min(self.count - first);
            let pairs = &self.pairs[first * self.cols / 2..(first + count) * self.cols / 2];
            Group { first, count, pairs, scales: &self.scales[first..first + count] }
        })
    }
}

/// What an input is rounded to: 32767 steps to its largest number.
struct Steps {
    /// Size of a step; not a number where any of the input is not finite.
    scale: f32,
    back: f32,
}

impl Steps {
    #[inline(always)]
    fn new(x: &[f32]) -> Self {
        const MOST: f32 = i16::MAX as f32;
        // As integers, what is not finite is above all that is.
        let bits = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(bits);
        let scale = if largest.is_finite() { largest / MOST } else { f32::NAN };
        let back = if largest > 0.0 { MOST / largest } else { 0.0 };
        Self { scale, back }
    }

    #[inline(always)]
    fn round(&self, block: &[f32]) -> [i16; BLOCK] {
        // Added to a number, the low bits of the sum are the nearest integer: without an instruction
        // for it, rounding is a call of a function.
        const MAGIC: f32 = (3 << 22) as f32;
        let mut quants = [0; BLOCK];
        for (quant, x) in quants.iter_mut().zip(block) {
            *quant = (x * self.back + MAGIC).to_bits() as i16;
        }
        quants
    }
}

/// `[inputs, rows]` numbers of which several threads write different columns.
struct Columns<'a> {
    start: *mut f32,
    len: usize,
    rows: usize,
    add: bool,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write different columns.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(y: &'a mut [f32], rows: usize, add: bool) -> Self {
        Self { start: y.as_mut_ptr(), len: y.len(), rows, add, _borrowed: PhantomData }
    }

    /// Writes or adds one input's results from column `first` on; those beyond the last are left out.
    ///
    /// # Safety
    ///
    /// No other thread may write these columns.
    unsafe fn write(&self, input: usize, first: usize, values: &[f32]) {
        let count = values.len().min(self.rows - first);
        let at = input * self.rows + first;
        assert!(at + count <= self.len);
        let y = std::slice::from_raw_parts_mut(self.start.add(at), count);
        if self.add {
            y.iter_mut().zip(values).for_each(|(y, value)| *y += value);
        } else {
            y.copy_from_slice(&values[..count]);
        }
    }
}

impl Blocks {
    /// Packs Q8_0 blocks without loss.
    pub fn pack(weight: &QTensor, arena: &mut Arena) -> Result<Self> {
        let (rows, cols) = weight.shape().dims2()?;
        if weight.dtype() != GgmlDType::Q8_0 || cols % BLOCK != 0 {
            candle::bail!("blocks of {:?} are not Q8_0", weight.dtype())
        }
        let data = weight.data()?;
        let blocks = cols / BLOCK;
        let mut bytes = vec![0i8; rows.div_ceil(WIDE) * blocks * BYTES];
        for (i, stored) in data.chunks_exact(2 + BLOCK).enumerate() {
            let (row, block) = (i / blocks, i % blocks);
            let lane = row % WIDE;
            let packed = &mut bytes[(row / WIDE * blocks + block) * BYTES..][..BYTES];
            let (scales, quants) = packed.split_at_mut(SCALES);
            scales[2 * lane] = stored[0] as i8;
            scales[2 * lane + 1] = stored[1] as i8;
            for (k, &quant) in stored[2..].iter().enumerate() {
                quants[k / 4 * FOUR + 4 * lane + k % 4] = quant as i8;
            }
        }
        Ok(Self { rows, cols, bytes: arena.put(&bytes)? })
    }

    pub fn num_bytes(&self) -> usize {
        self.rows * self.cols / BLOCK * (2 + BLOCK)
    }

    /// `y = x @ self.T`, of as many rows as `x` has, or that added to `y`.
    pub fn multiply(&self, x: &[f32], y: &mut [f32], add: bool) {
        self.multiply_by(Level::best(), x, y, add)
    }

    fn multiply_by(&self, level: Level, x: &[f32], y: &mut [f32], add: bool) {
        let count = x.len() / self.cols;
        assert!(x.len() == count * self.cols && y.len() == count * self.rows);
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if level == Level::Amx && count >= WORTH_TILES {
            let tiles = amx::Tiles::new(x, count);
            return self.by_panels(y, add, |weights, write| {
                for tile in tiles.groups() {
                    let mut sums = [[0f32; WIDE]; amx::TILE];
                    amx::dots(weights, &tile, &mut sums);
                    write(tile.first, &sums[..tile.count]);
                }
            });
        }
        let inputs = Inputs::new(level, x, count);
        self.by_panels(y, add, |weights, write| {
            for group in inputs.groups() {
                let mut sums = [[0f32; WIDE]; GROUP];
                dots(level, weights, &group, &mut sums);
                write(group.first, &sums[..group.count]);
            }
        });
    }

    /// Calls `work` with every panel, on several threads, and with what writes the results of
    /// consecutive inputs.
    fn by_panels(
        &self,
        y: &mut [f32],
        add: bool,
        work: impl Fn(&[i8], &dyn Fn(usize, &[[f32; WIDE]])) + Sync,
    ) {
        let size = self.cols / BLOCK * BYTES;
        let y = Columns::new(y, self.rows, add);
        let one = |panel: usize| {
            let write = |first: usize, sums: &[[f32; WIDE]]| {
                for (i, sums) in sums.iter().enumerate() {
                    // SAFETY: each panel is given to one thread.
                    unsafe { y.write(first + i, panel * WIDE, sums) };
                }
            };
            work(&self.bytes[panel * size..(panel + 1) * size], &write)
        };
        let panels = self.rows.div_ceil(WIDE);
        team::shared().spread(panels, PART.div_ceil(size), |panels| panels.for_each(one));
    }
}

fn dots(level: Level, weights: &[i8], group: &Group, sums: &mut [[f32; WIDE]; GROUP]) {
    #[cfg(target_arch = "x86_64")]
    macro_rules! by_count {
        ($kernel:ident) => {
            match group.count {
                1 => x86::$kernel::<1, 4>(weights, group, sums),
                2 => x86::$kernel::<2, 2>(weights, group, sums),
                3 => x86::$kernel::<3, 2>(weights, group, sums),
                4 => x86::$kernel::<4, 1>(weights, group, sums),
                5 => x86::$kernel::<5, 1>(weights, group, sums),
                6 => x86::$kernel::<6, 1>(weights, group, sums),
                7 => x86::$kernel::<7, 1>(weights, group, sums),
                _ => x86::$kernel::<8, 1>(weights, group, sums),
            }
        };
    }
    match level {
        // SAFETY: a level is only taken where its instructions are available.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Level::Amx => unsafe { by_count!(dots_vnni) },
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => unsafe { by_count!(dots_vnni) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { by_count!(dots_avx2) },
        Level::Portable => dots_portable(weights, group, sums),
    }
}

fn dots_portable(weights: &[i8], group: &Group, sums: &mut [[f32; WIDE]; GROUP]) {
    for (block, weights) in weights.chunks_exact(BYTES).enumerate() {
        let (scales, quants) = weights.split_at(SCALES);
        let scales: [f32; WIDE] = std::array::from_fn(|lane| {
            f16::from_le_bytes([scales[2 * lane] as u8, scales[2 * lane + 1] as u8]).to_f32()
        });
        for n in 0..group.count {
            let mut whole = [0i32; WIDE];
            for (four, quants) in quants.chunks_exact(FOUR).enumerate() {
                let at = (block * PAIRS + 2 * four) * group.count + n;
                let ([a, c], [b, d]) = (group.pairs[at], group.pairs[at + group.count]);
                for l in 0..WIDE {
                    for (i, x) in [a, b, c, d].into_iter().enumerate() {
                        whole[l] += quants[4 * l + i] as i32 * x as i32;
                    }
                }
            }
            for l in 0..WIDE {
                sums[n][l] += whole[l] as f32 * scales[l];
            }
        }
    }
    for (sums, scale) in sums.iter_mut().zip(group.scales) {
        sums.iter_mut().for_each(|sum| *sum *= scale);
    }
}

#[cfg(test)]
mod tests {
    use candle::{Device, Tensor};

    use super::*;
    use crate::testing::numbers;

    fn exact(values: &[f32], cols: usize, x: &[f32]) -> Vec<f64> {
        let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
        x.chunks_exact(cols).flat_map(|x| values.chunks_exact(cols).map(|w| dot(w, x))).collect()
    }

    /// Against sums of the dequantized values in double precision, for one to nineteen inputs.
    #[test]
    fn products_are_those_of_the_dequantized_values_at_every_level() -> Result<()> {
        for (rows, cols) in [(5, 96), (16, 32), (35, 64), (48, 160)] {
            let weight = Tensor::from_vec(numbers(rows * cols, 1), (rows, cols), &Device::Cpu)?;
            let stored = QTensor::quantize(&weight, GgmlDType::Q8_0)?;
            let values = stored.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            let packed = Blocks::pack(&stored, &mut Arena::default())?;
            for count in 1..=19 {
                let mut x = numbers(count * cols, 2);
                x[cols / 3] *= 1000.0; // steps of the first input are those of this number
                let wanted = exact(&values, cols, &x);
                for level in Level::available() {
                    let mut y = vec![0f32; count * rows];
                    packed.multiply_by(level, &x, &mut y, false);
                    for (i, (y, wanted)) in y.iter().zip(&wanted).enumerate() {
                        // An input is off by half of 1 / 32767 of its largest number at most.
                        let row = &values[i % rows * cols..][..cols];
                        let x = &x[i / rows * cols..][..cols];
                        let largest = x.iter().fold(0f32, |most, x| most.max(x.abs())) as f64;
                        let most = row.iter().map(|w| w.abs() as f64).sum::<f64>();
                        let most = 2e-5 * largest * most;
                        let error = (wanted - *y as f64).abs();
                        assert!(error < most, "{level:?} {wanted} {y}");
                    }
                    for (i, x) in x.chunks_exact(cols).enumerate() {
                        let mut alone = vec![0f32; rows];
                        packed.multiply_by(level, x, &mut alone, false);
                        assert_eq!(alone, y[i * rows..(i + 1) * rows], "{level:?}");
                        let mut added = vec![0.5f32; rows];
                        packed.multiply_by(level, x, &mut added, true);
                        assert!(added.iter().zip(alone).all(|(sum, y)| *sum == 0.5 + y));
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn inputs_that_are_not_finite_give_outputs_that_are_not() -> Result<()> {
        let weight = Tensor::ones((3, 64), candle::DType::F32, &Device::Cpu)?;
        let stored = QTensor::quantize(&weight, GgmlDType::Q8_0)?;
        let packed = Blocks::pack(&stored, &mut Arena::default())?;
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let (mut x, mut y) = (vec![1f32; 2 * 64], vec![0f32; 2 * 3]);
            x[64 + 40] = bad;
            packed.multiply(&x, &mut y, false);
            assert!(y[..3].iter().all(|y| (y - 64.0).abs() < 0.01), "{y:?}");
            assert!(y[3..].iter().all(|y| !y.is_finite()), "{y:?}");
        }
        Ok(())
    }
}
