//! Products of float32 with float32 or bfloat16 matrices, for weights that are read once per step.
//!
//! Weights lie in panels of [`WIDTH`] outputs, `[outputs / WIDTH][inputs][WIDTH]`, so that a product
//! of a few rows reads them from end to end, two panels side by side, as fast as the memory gives
//! them. With many rows, a block of two panels stays in the cache while all rows pass over it.
//!
//! A number of the result is a sum over blocks of [`BLOCK`] inputs, each summed in order: it depends
//! neither on the rows that are multiplied along with it nor on the number of threads.

// Counted loops over lanes are what the compiler keeps in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use candle::Result;
use half::bf16;

use crate::arena::{Arena, Piece, Plain};
use crate::cpu::{self, Level};
use crate::team::{self, Team};

/// Outputs that lie side by side: one vector of the widest instructions.
pub const WIDTH: usize = 16;
/// Inputs that are summed before the sum is added to the result: better rounding than one long sum,
/// and 32 kB of weights.
const BLOCK: usize = 512;
/// Bytes that weights are asked for ahead of their use, of what was tried the fastest.
const AHEAD: usize = 2048;
/// Weights that are worth a turn of a thread.
const PART: usize = 1 << 15;
/// Rows that the widest instructions take at once.
const MANY: usize = 12;
/// Multiplications that are worth a second thread, and weights that are.
const WORTH_ROWS: usize = 1 << 20;
const WORTH_WEIGHTS: usize = 1 << 16;
/// Weights that every thread may read: they stay in its cache.
const SMALL: usize = 1 << 19;

/// A matrix `[outputs, inputs]` in panels.
pub struct Panels<W = f32> {
    data: Piece<W>,
    pub outputs: usize,
    pub inputs: usize,
}

/// Panels that someone else holds, `stride` numbers from one to the next.
#[derive(Clone, Copy)]
pub struct View<'a, W = f32> {
    pub data: &'a [W],
    pub outputs: usize,
    pub inputs: usize,
    pub stride: usize,
}

/// Rows of inputs, which may overlap: `groups` times `rows` of them.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub data: &'a [f32],
    pub groups: usize,
    pub group_stride: usize,
    pub rows: usize,
    pub row_stride: usize,
}

/// Rows of results, `stride` numbers from one to the next.
pub struct Output<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    /// Added to every row.
    pub bias: Option<&'a [f32]>,
    /// Add to what is there, instead of writing over it.
    pub add: bool,
}

impl<W: Weight> Panels<W> {
    /// Packs a matrix that is given row by row.
    pub fn pack(arena: &mut Arena, weight: &[W], outputs: usize, inputs: usize) -> Result<Self> {
        assert_eq!(weight.len(), outputs * inputs);
        let mut data = vec![W::default(); outputs.div_ceil(WIDTH) * WIDTH * inputs];
        let panels = data.chunks_exact_mut(WIDTH * inputs);
        for (panel, rows) in panels.zip(weight.chunks(WIDTH * inputs)) {
            for (o, row) in rows.chunks_exact(inputs).enumerate() {
                for (i, weight) in row.iter().enumerate() {
                    panel[i * WIDTH + o] = *weight;
                }
            }
        }
        Ok(Self { data: arena.put(&data)?, outputs, inputs })
    }

    pub fn num_bytes(&self) -> usize {
        self.outputs * self.inputs * size_of::<W>()
    }

    pub fn view(&self) -> View<'_, W> {
        let &Self { outputs, inputs, .. } = self;
        View { data: &self.data, outputs, inputs, stride: WIDTH * inputs }
    }
}

impl<'a> Input<'a> {
    /// Rows that follow each other without gaps.
    pub fn dense(data: &'a [f32], rows: usize, width: usize) -> Self {
        Self { data, groups: 1, group_stride: 0, rows, row_stride: width }
    }

    fn start(&self, row: usize) -> usize {
        row / self.rows * self.group_stride + row % self.rows * self.row_stride
    }
}

impl<'a> Output<'a> {
    /// Rows that follow each other without gaps.
    pub fn dense(data: &'a mut [f32], width: usize) -> Self {
        Self { data, stride: width, bias: None, add: false }
    }
}

/// `output = input @ weight.T`, by all threads where that is worth it.
pub fn multiply<W: Weight>(input: Input, weight: View<W>, output: Output) {
    multiply_by(cpu::level(), team::shared(), input, weight, output)
}

fn multiply_by<W: Weight>(
    level: Level,
    team: &Team,
    input: Input,
    weight: View<W>,
    output: Output,
) {
    let job = Job::new(input, weight, output);
    let (rows, panels) = (input.groups * input.rows, weight.outputs.div_ceil(WIDTH));
    let weights = weight.inputs * weight.outputs;
    let threads = team.threads();
    let shared = threads > 1 && (weights >= WORTH_WEIGHTS || weights * rows >= WORTH_ROWS);
    if !shared {
        job.run(level, 0..rows, 0..panels);
    } else if weights <= SMALL && rows >= 2 * threads * MANY {
        team.spread(rows.div_ceil(MANY), 1, |many| {
            job.run(level, MANY * many.start..rows.min(MANY * many.end), 0..panels)
        });
    } else {
        let pairs = (PART / (2 * WIDTH * weight.inputs)).max(1);
        team.spread(panels.div_ceil(2), pairs, |pairs| {
            job.run(level, 0..rows, 2 * pairs.start..panels.min(2 * pairs.end))
        });
    }
}

/// A product whose sizes were checked.
struct Job<'a, W> {
    input: Input<'a>,
    weight: View<'a, W>,
    bias: Option<&'a [f32]>,
    add: bool,
    output: *mut f32,
    stride: usize,
}

// SAFETY: threads write different numbers of the output, which is borrowed for as long.
unsafe impl<W: Weight> Sync for Job<'_, W> {}

impl<'a, W: Weight> Job<'a, W> {
    fn new(input: Input<'a>, weight: View<'a, W>, output: Output<'a>) -> Self {
        let rows = input.groups * input.rows;
        let panels = weight.outputs.div_ceil(WIDTH);
        if rows > 0 && panels > 0 {
            let last = (input.groups - 1) * input.group_stride;
            let last = last + (input.rows - 1) * input.row_stride;
            assert!(last + weight.inputs <= input.data.len(), "too few inputs");
            let last = (panels - 1) * weight.stride;
            assert!(last + weight.inputs * WIDTH <= weight.data.len(), "too few weights");
            assert!(weight.outputs <= output.stride || rows == 1, "rows of results overlap");
            let last = (rows - 1) * output.stride;
            assert!(last + weight.outputs <= output.data.len(), "too few results");
        }
        assert!(output.bias.is_none_or(|bias| bias.len() == weight.outputs), "a bias per output");
        let Output { data, stride, bias, add } = output;
        Self { input, weight, bias, add, output: data.as_mut_ptr(), stride }
    }

    /// Computes the named rows and panels.
    fn run(&self, level: Level, rows: Range<usize>, panels: Range<usize>) {
        // SAFETY: the level is one that this machine has, and `new` checked the sizes.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => x86::run_avx512(self, rows, panels),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => x86::run_avx2(self, rows, panels),
                Level::Portable => {
                    self.by_blocks(rows, panels, 3, 1, |block, rows, _| match rows {
                        1 => block.tile::<Lanes, 2, 1>(),
                        2 => block.tile::<Lanes, 2, 2>(),
                        _ => block.tile::<Lanes, 2, 3>(),
                    })
                }
            }
        }
    }

    /// Calls `tile` for blocks of inputs and of at most so many rows and panels, weights in order of
    /// memory.
    #[inline(always)]
    fn by_blocks(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        most_rows: usize,
        most_panels: usize,
        tile: impl Fn(Block<W>, usize, usize),
    ) {
        if rows.is_empty() {
            return;
        }
        let share = rows.len().div_ceil(rows.len().div_ceil(most_rows)); // even blocks
        for panel in panels.clone().step_by(most_panels) {
            let mut input = 0;
            while input < self.weight.inputs || input == 0 {
                let count = BLOCK.min(self.weight.inputs - input);
                for row in rows.clone().step_by(share) {
                    let block = Block { job: self, panel, row, input, count };
                    tile(block, share.min(rows.end - row), most_panels.min(panels.end - panel));
                }
                input += BLOCK;
            }
        }
    }
}

/// Some rows, panels and inputs, each from the first that is named.
struct Block<'a, W> {
    job: &'a Job<'a, W>,
    panel: usize,
    row: usize,
    input: usize,
    count: usize,
}

impl<W: Weight> Block<'_, W> {
    /// `M` rows by `N` vectors, of one panel or several.
    #[inline(always)]
    unsafe fn tile<V: Vector, const N: usize, const M: usize>(self) {
        let Self { job, panel, row, input, count } = self;
        let mut weights = [job.weight.data.as_ptr().add(input * WIDTH); N];
        for n in 0..N {
            let (panel, lane) = (panel + n * V::LEN / WIDTH, n * V::LEN % WIDTH);
            weights[n] = weights[n].add(panel * job.weight.stride + lane);
        }
        let mut inputs = [job.input.data.as_ptr().add(input); M];
        for m in 0..M {
            inputs[m] = inputs[m].add(job.input.start(row + m));
        }
        let sums = sum::<W, V, N, M>(inputs, weights, count);
        let first = panel * WIDTH;
        let width = job.weight.outputs - first;
        let bias = if input == 0 { job.bias } else { None };
        let bias = bias.map(|bias| bias.as_ptr().add(first));
        let add = job.add || input > 0;
        for m in 0..M {
            let output = job.output.add((row + m) * job.stride + first);
            if width >= N * V::LEN {
                write::<V, N>(sums[m], output, bias, add);
            } else {
                write_part::<V, N>(sums[m], output, bias, add, width);
            }
        }
    }
}

#[inline(always)]
unsafe fn sum<W: Weight, V: Vector, const N: usize, const M: usize>(
    inputs: [*const f32; M],
    weights: [*const W; N],
    count: usize,
) -> [[V; N]; M] {
    let mut sums = [[V::zero(); N]; M];
    for i in 0..count {
        let mut row = [V::zero(); N];
        for n in 0..N {
            let at = weights[n].add(i * WIDTH);
            if n * V::LEN % WIDTH == 0 {
                V::fetch(at.cast::<u8>().wrapping_add(AHEAD));
            }
            row[n] = W::load(at);
        }
        for m in 0..M {
            let x = V::splat(*inputs[m].add(i));
            for n in 0..N {
                sums[m][n] = V::multiply_add(x, row[n], sums[m][n]);
            }
        }
    }
    sums
}

/// `N` vectors of one row.
#[inline(always)]
unsafe fn write<V: Vector, const N: usize>(
    sums: [V; N],
    output: *mut f32,
    bias: Option<*const f32>,
    add: bool,
) {
    for n in 0..N {
        let (mut value, at) = (sums[n], n * V::LEN);
        if let Some(bias) = bias {
            value = V::add(value, V::load(bias.add(at)));
        }
        if add {
            value = V::add(value, V::load(output.add(at)));
        }
        V::store(value, output.add(at));
    }
}

/// The first `width` numbers of them.
#[inline(always)]
unsafe fn write_part<V: Vector, const N: usize>(
    sums: [V; N],
    output: *mut f32,
    bias: Option<*const f32>,
    add: bool,
    width: usize,
) {
    let mut values = [0f32; 2 * WIDTH];
    for n in 0..N {
        V::store(sums[n], values.as_mut_ptr().add(n * V::LEN));
    }
    for (i, value) in values.iter().enumerate().take(width) {
        let mut value = *value;
        if let Some(bias) = bias {
            value += *bias.add(i);
        }
        if add {
            value += *output.add(i);
        }
        *output.add(i) = value;
    }
}

/// What weights are stored as. Products are float32 whatever it is.
pub trait Weight: Plain + Default + Send + Sync {
    /// # Safety
    ///
    /// So many weights as a vector has numbers must follow.
    unsafe fn load<V: Vector>(at: *const Self) -> V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const f32) -> V {
        V::load(at)
    }
}

impl Weight for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const bf16) -> V {
        V::widen(at)
    }
}

/// Numbers that instructions take at once.
#[allow(clippy::missing_safety_doc)] // of pointers, so many numbers as it has must follow
pub trait Vector: Copy {
    const LEN: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(at: *const f32) -> Self;
    unsafe fn widen(at: *const bf16) -> Self;
    unsafe fn store(self, at: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn multiply_add(self, other: Self, sum: Self) -> Self;
    /// Asks for a line of memory that will be read soon.
    unsafe fn fetch(at: *const u8);
}

/// For any machine: the compiler makes of it what it can.
#[derive(Clone, Copy)]
struct Lanes([f32; 8]);

impl Vector for Lanes {
    const LEN: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        Self(at.cast::<[f32; 8]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn widen(at: *const bf16) -> Self {
        let halves = at.cast::<[u16; 8]>().read_unaligned();
        Self(halves.map(|half| f32::from_bits((half as u32) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        at.cast::<[f32; 8]>().write_unaligned(self.0)
    }
    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for l in 0..8 {
            self.0[l] += other.0[l];
        }
        self
    }
    #[inline(always)]
    unsafe fn multiply_add(self, other: Self, mut sum: Self) -> Self {
        for l in 0..8 {
            // On x86 without the instruction, a fused multiplication is a call of a function.
            sum.0[l] = if cfg!(target_arch = "x86_64") {
                self.0[l] * other.0[l] + sum.0[l]
            } else {
                self.0[l].mul_add(other.0[l], sum.0[l])
            };
        }
        sum
    }
    #[inline(always)]
    unsafe fn fetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use half::bf16;

    use super::{Job, Vector, Weight, MANY};

    /// Calls the tile of so many rows, up to the last of those that are listed.
    macro_rules! by_rows {
        ($block:ident, $rows:ident, $vector:ty, $n:literal, $($m:literal)* | $last:literal) => {
            match $rows {
                $($m => $block.tile::<$vector, $n, $m>(),)*
                _ => $block.tile::<$vector, $n, $last>(),
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    pub fn run_avx512<W: Weight>(job: &Job<W>, rows: Range<usize>, panels: Range<usize>) {
        // SAFETY: the job's sizes were checked.
        job.by_blocks(rows, panels, MANY, 2, |block, rows, panels| unsafe {
            if panels == 1 {
                by_rows!(block, rows, __m512, 1, 1 2 3 4 5 6 7 8 9 10 11 | 12)
            } else {
                by_rows!(block, rows, __m512, 2, 1 2 3 4 5 6 7 8 9 10 11 | 12)
            }
        })
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn run_avx2<W: Weight>(job: &Job<W>, rows: Range<usize>, panels: Range<usize>) {
        // SAFETY: as above.
        job.by_blocks(rows, panels, 6, 1, |block, rows, _| unsafe {
            by_rows!(block, rows, __m256, 2, 1 2 3 4 5 | 6)
        })
    }

    macro_rules! vector {
        ($type:ty, $len:literal, $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident,
         $multiply_add:ident, |$at:ident| $widen:expr) => {
            impl Vector for $type {
                const LEN: usize = $len;
                #[inline(always)]
                unsafe fn zero() -> Self {
                    $zero()
                }
                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    $splat(value)
                }
                #[inline(always)]
                unsafe fn load(at: *const f32) -> Self {
                    $load(at)
                }
                #[inline(always)]
                unsafe fn widen($at: *const bf16) -> Self {
                    $widen
                }
                #[inline(always)]
                unsafe fn store(self, at: *mut f32) {
                    $store(at, self)
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    $add(self, other)
                }
                #[inline(always)]
                unsafe fn multiply_add(self, other: Self, sum: Self) -> Self {
                    $multiply_add(self, other, sum)
                }
                #[inline(always)]
                unsafe fn fetch(at: *const u8) {
                    _mm_prefetch::<_MM_HINT_T0>(at.cast())
                }
            }
        };
    }

    vector!(
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps,
        |at| {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    );
    vector!(
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps,
        |at| {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    struct Case {
        rows: usize,
        outputs: usize,
        inputs: usize,
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        panels: Panels,
    }

    impl Case {
        fn new(rows: usize, outputs: usize, inputs: usize) -> Result<Self> {
            let (x, weight) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
            let panels = Panels::pack(&mut Arena::default(), &weight, outputs, inputs)?;
            Ok(Self { rows, outputs, inputs, x, weight, bias: numbers(outputs, 3), panels })
        }

        fn run(&self, level: Level, team: &Team, add: bool) -> Vec<f32> {
            let mut y = vec![0.5; self.rows * self.outputs];
            let input = Input::dense(&self.x, self.rows, self.inputs);
            let bias = Some(&self.bias[..]);
            let output = Output { bias, add, ..Output::dense(&mut y, self.outputs) };
            multiply_by(level, team, input, self.panels.view(), output);
            y
        }

        fn exact(&self, row: usize, output: usize, add: bool) -> f64 {
            let weight = &self.weight[output * self.inputs..][..self.inputs];
            let x = &self.x[row * self.inputs..][..self.inputs];
            let sum: f64 = weight.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
            sum + self.bias[output] as f64 + if add { 0.5 } else { 0.0 }
        }
    }

    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 64, 96), (2, 40, 1100), (5, 1, 9), (13, 100, 512), (16, 64, 513), (97, 33, 40)];

    #[test]
    fn every_form_gives_the_product() -> Result<()> {
        for (rows, outputs, inputs) in SHAPES {
            let case = Case::new(rows, outputs, inputs)?;
            for level in Level::all() {
                for add in [false, true] {
                    let found = case.run(level, &Team::new(1), add);
                    for (i, found) in found.iter().enumerate() {
                        let exact = case.exact(i / outputs, i % outputs, add);
                        let error = (exact - *found as f64).abs();
                        assert!(error < 3e-7 * (inputs as f64 + 4.0), "{level:?} {error}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn company_and_threads_change_no_bit() -> Result<()> {
        let (alone, teams) = (Team::new(1), [Team::new(2), Team::new(3)]);
        for (rows, outputs, inputs) in SHAPES.into_iter().chain([(100, 320, 600), (3, 256, 600)]) {
            let case = Case::new(rows, outputs, inputs)?;
            for level in Level::all() {
                let together = case.run(level, &alone, false);
                for team in &teams {
                    assert_eq!(together, case.run(level, team, false));
                }
                for row in 0..rows {
                    let x = case.x[row * inputs..][..inputs].to_vec();
                    let panels =
                        Panels::pack(&mut Arena::default(), &case.weight, outputs, inputs)?;
                    let (weight, bias) = (case.weight.clone(), case.bias.clone());
                    let one = Case { rows: 1, x, weight, bias, panels, ..case };
                    assert_eq!(one.run(level, &alone, false), together[row * outputs..][..outputs]);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn rows_may_overlap_and_lie_in_groups() -> Result<()> {
        let (groups, rows, inputs, outputs) = (3, 4, 6, 5);
        let (group_stride, row_stride) = (20, 2);
        let (data, weight) = (numbers(60, 1), numbers(outputs * inputs, 2));
        let panels = Panels::pack(&mut Arena::default(), &weight, outputs, inputs)?;
        let mut gathered = vec![];
        for start in (0..groups).flat_map(|g| (0..rows).map(move |r| 20 * g + 2 * r)) {
            gathered.extend_from_slice(&data[start..start + inputs]);
        }
        let (mut found, mut wanted) = (vec![0.0; 60], vec![0.0; 60]);
        let input = Input { data: &data, groups, group_stride, rows, row_stride };
        multiply(input, panels.view(), Output::dense(&mut found, outputs));
        let input = Input::dense(&gathered, groups * rows, inputs);
        multiply(input, panels.view(), Output::dense(&mut wanted, outputs));
        assert_eq!(found, wanted);
        Ok(())
    }

    #[test]
    fn bfloat16_weights_give_what_their_values_give() -> Result<()> {
        for (rows, outputs, inputs) in SHAPES {
            let (x, weight) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
            let narrow: Vec<bf16> = weight.iter().map(|&w| bf16::from_f32(w)).collect();
            let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let narrow = Panels::pack(&mut Arena::default(), &narrow, outputs, inputs)?;
            let wide = Panels::pack(&mut Arena::default(), &wide, outputs, inputs)?;
            let one = Team::new(1);
            for level in Level::all() {
                let (mut found, mut wanted) =
                    (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
                let input = Input::dense(&x, rows, inputs);
                multiply_by(level, &one, input, narrow.view(), Output::dense(&mut found, outputs));
                multiply_by(level, &one, input, wide.view(), Output::dense(&mut wanted, outputs));
                assert_eq!(found, wanted, "{level:?}");
            }
        }
        Ok(())
    }

    #[test]
    #[should_panic(expected = "too few inputs")]
    fn inputs_that_are_too_short_are_refused() {
        let panels = Panels::pack(&mut Arena::default(), &[0f32; 64], 1, 64).unwrap();
        let input = Input::dense(&[0.0; 64], 2, 64);
        multiply(input, panels.view(), Output::dense(&mut [0.0; 2], 1));
    }
}
