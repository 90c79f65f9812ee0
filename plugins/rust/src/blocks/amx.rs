//! Products of many inputs with 8-bit blocks by AMX, which multiplies tiles of 16 by 16.
//!
//! Tiles hold bytes, so an input of 16 bits is multiplied as its high and its low byte; the sums
//! are those of the other instructions, to the bit. The compiler has no names for these
//! instructions yet.

#![allow(clippy::needless_range_loop)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{Steps, AHEAD, BLOCK, BYTES, SCALES, WIDE};

/// Inputs of a tile.
pub const TILE: usize = 16;
/// How far ahead weights are asked into the second cache: the processor does not foresee the loads of
/// tiles.
const FAR: usize = 6144;
/// Bytes of a block of a tile of inputs, high or low.
const HALF: usize = TILE * BLOCK;

/// Whether the processor has it and the system lets this process use it.
pub fn available() -> bool {
    const TILES_AND_INT8: u32 = 1 << 24 | 1 << 25;
    const REQUEST_PERMISSION: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_int = 18;
    // SAFETY: every processor of this kind that has AVX-512 has this leaf, and the system refuses
    // what it does not know.
    is_x86_feature_detected!("avx512f")
        && __cpuid_count(7, 0).edx & TILES_AND_INT8 == TILES_AND_INT8
        && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
}

/// Inputs in groups of 16, the last filled up with zeros: `[blocks, high and low, 16, 32]` bytes and
/// 16 scales of each.
pub struct Tiles {
    count: usize,
    blocks: usize,
    bytes: Vec<[u8; 2 * HALF]>,
    scales: Vec<[f32; TILE]>,
}

pub struct Tile<'a> {
    pub first: usize,
    pub count: usize,
    bytes: &'a [[u8; 2 * HALF]],
    scales: &'a [f32; TILE],
}

impl Tiles {
    pub fn new(x: &[f32], count: usize) -> Self {
        let (blocks, groups) = (x.len() / count / BLOCK, count.div_ceil(TILE));
        let (bytes, scales) = (vec![[0; 2 * HALF]; groups * blocks], vec![[0.0; TILE]; groups]);
        let mut tiles = Self { count, blocks, bytes, scales };
        // SAFETY: `available` was asked.
        unsafe { tiles.fill(x) };
        tiles
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn fill(&mut self, x: &[f32]) {
        for (i, x) in x.chunks_exact(self.blocks * BLOCK).enumerate() {
            let (group, lane) = (i / TILE, i % TILE);
            let steps = Steps::new(x);
            self.scales[group][lane] = steps.scale;
            let bytes = &mut self.bytes[group * self.blocks..];
            for (bytes, x) in bytes.iter_mut().zip(x.chunks_exact(BLOCK)) {
                let quants = steps.round(x);
                let (high, low) = bytes.split_at_mut(HALF);
                let high = high[lane * BLOCK..].iter_mut();
                high.zip(&quants).for_each(|(byte, quant)| *byte = (quant >> 8) as u8);
                let low = low[lane * BLOCK..].iter_mut();
                low.zip(&quants).for_each(|(byte, quant)| *byte = *quant as u8);
            }
        }
    }

    pub fn groups(&self) -> impl Iterator<Item = Tile<'_>> {
        (0..self.count).step_by(TILE).map(|first| {
            let span = first / TILE * self.blocks..(first / TILE + 1) * self.blocks;
            let count = TILE.min(self.count - first);
            Tile { first, count, bytes: &self.bytes[span], scales: &self.scales[first / TILE] }
        })
    }
}

/// What the tiles are: bytes of a row and rows of each.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    _reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles 0 and 1 are sums, 2 and 3 inputs, 4 is weights.
static SHAPES: Shapes = {
    let (wide, block, tile) = (4 * WIDE as u16, BLOCK as u16, TILE as u8);
    Shapes {
        palette: 1,
        start: 0,
        _reserved: [0; 14],
        row_bytes: [wide, wide, block, block, wide, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [tile, tile, tile, tile, BLOCK as u8 / 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }
};

/// Sums of high and of low bytes, `[16 inputs, 16 outputs]`.
#[repr(C, align(64))]
struct Sums([[[i32; WIDE]; TILE]; 2]);

/// Products of a panel of weights with a tile of inputs.
pub fn dots(weights: &[i8], tile: &Tile, sums: &mut [[f32; WIDE]; TILE]) {
    assert_eq!(weights.len(), tile.bytes.len() * BYTES);
    // SAFETY: `available` was asked, and sizes just before.
    unsafe { dots_checked(weights, tile, sums) }
}

#[target_feature(enable = "avx512f")]
fn dots_checked(weights: &[i8], tile: &Tile, sums: &mut [[f32; WIDE]; TILE]) {
    let mut totals = Totals([_mm512_setzero_ps(); TILE]);
    // Two, so that one block is multiplied while the one before it is added.
    let mut scratch = [const { MaybeUninit::<Sums>::uninit() }; 2];
    let [mut now, mut before] = scratch.each_mut().map(MaybeUninit::as_mut_ptr);
    let mut blocks = weights.chunks_exact(BYTES).map(|block| block.as_ptr()).zip(tile.bytes);
    let Some((mut at, inputs)) = blocks.next() else { return };
    // SAFETY: the shapes are those that the loop reads and writes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
    // SAFETY: pointers are to whole blocks, and to sums that were written. What is asked for ahead
    // may be anywhere.
    unsafe {
        multiply_high(at, inputs);
        multiply_low(inputs);
        store_high(now);
        store_low(now);
        for (next, inputs) in blocks {
            (now, before) = (before, now);
            // Additions stand between the instructions of tiles, to be done beside them.
            let done = Done::new(at, &*before);
            multiply_high(next, inputs);
            totals.add::<0, 5>(&done);
            multiply_low(inputs);
            totals.add::<5, 10>(&done);
            store_high(now);
            totals.add::<10, TILE>(&done);
            store_low(now);
            at = next;
        }
        let done = Done::new(at, &*now);
        // In one loop, the compiler would keep totals in memory.
        totals.add::<0, 5>(&done);
        totals.add::<5, 10>(&done);
        totals.add::<10, TILE>(&done);
        asm!("tilerelease", options(nostack, nomem));
    }
    for (n, sums) in sums.iter_mut().enumerate() {
        let scaled = _mm512_mul_ps(totals.0[n], _mm512_set1_ps(tile.scales[n]));
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), scaled) };
    }
}

/// A block that has been multiplied.
struct Done<'a> {
    weights: *const i8,
    scales: __m512,
    sums: &'a Sums,
}

impl<'a> Done<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn new(weights: *const i8, sums: &'a Sums) -> Self {
        Self { weights, scales: _mm512_cvtph_ps(_mm256_loadu_si256(weights.cast())), sums }
    }
}

struct Totals([__m512; TILE]);

impl Totals {
    /// Adds some rows, and asks for as large a part of a block further on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add<const FROM: usize, const TO: usize>(&mut self, done: &Done) {
        for n in FROM..TO {
            if n % 2 == 0 || n == TILE - 1 {
                let line = done.weights.wrapping_add(n.div_ceil(2) * 64);
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD));
                _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(FAR));
            }
            let high = _mm512_load_si512(done.sums.0[0][n].as_ptr().cast());
            let low = _mm512_load_si512(done.sums.0[1][n].as_ptr().cast());
            let whole = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
            self.0[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), done.scales, self.0[n]);
        }
    }
}

/// # Safety
///
/// Tiles must have their shapes, and a block of weights must follow.
#[inline(always)]
unsafe fn multiply_high(weights: *const i8, inputs: &[u8; 2 * HALF]) {
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "tileloadd tmm4, [{weights} + {wide}]",
        "tileloadd tmm2, [{high} + {block}]",
        "tdpbssd tmm0, tmm2, tmm4",
        weights = in(reg) weights.add(SCALES),
        high = in(reg) inputs.as_ptr(),
        wide = in(reg) 4 * WIDE,
        block = in(reg) BLOCK,
        out("tmm0") _,
        out("tmm1") _,
        out("tmm2") _,
        out("tmm4") _,
        options(nostack, readonly),
    );
}

/// # Safety
///
/// After `multiply_high` of the same block.
#[inline(always)]
unsafe fn multiply_low(inputs: &[u8; 2 * HALF]) {
    asm!(
        "tileloadd tmm3, [{low} + {block}]",
        "tdpbusd tmm1, tmm3, tmm4",
        low = in(reg) inputs.as_ptr().add(HALF),
        block = in(reg) BLOCK,
        out("tmm1") _,
        out("tmm3") _,
        options(nostack, readonly),
    );
}

/// # Safety
///
/// After `multiply_high`.
#[inline(always)]
unsafe fn store_high(sums: *mut Sums) {
    asm!(
        "tilestored [{sums} + {wide}], tmm0",
        sums = in(reg) sums,
        wide = in(reg) 4 * WIDE,
        options(nostack),
    );
}

/// # Safety
///
/// After `multiply_low`.
#[inline(always)]
unsafe fn store_low(sums: *mut Sums) {
    asm!(
        "tilestored [{sums} + {wide}], tmm1",
        sums = in(reg) sums.cast::<[[i32; WIDE]; TILE]>().add(1),
        wide = in(reg) 4 * WIDE,
        options(nostack),
    );
}
