//! Products of many inputs with 8-bit blocks by AMX, which multiplies tiles of 16 by 16.
//!
//! Tiles hold bytes, so an input of 16 bits is multiplied as its high and its low byte; the sums
//! are those of the other instructions, to the bit. The compiler has no names for these
//! instructions yet.

#![allow(clippy::needless_range_loop)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{rounded, AHEAD, BLOCK, BYTES, SCALES, WIDE};

/// Inputs of a tile.
pub const TILE: usize = 16;
/// Bytes of a block of a tile of inputs, high or low.
const HALF: usize = TILE * BLOCK;

/// Whether the processor has it and the system lets this process use it.
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        const TILES_AND_INT8: u32 = 1 << 24 | 1 << 25;
        const REQUEST_PERMISSION: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_int = 18;
        // SAFETY: every processor of this kind that has AVX-512 has this leaf, and the system
        // refuses what it does not know.
        is_x86_feature_detected!("avx512f")
            && __cpuid_count(7, 0).edx & TILES_AND_INT8 == TILES_AND_INT8
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    })
}

/// Inputs in groups of 16, the last filled up with zeros: `[blocks, high and low, 16, 32]` bytes
/// and `[blocks, 16]` scales of each.
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
    scales: &'a [[f32; TILE]],
}

impl Tiles {
    pub fn new(x: &[f32], count: usize) -> Self {
        let blocks = x.len() / count / BLOCK;
        let size = count.div_ceil(TILE) * blocks;
        let (bytes, scales) = (vec![[0; 2 * HALF]; size], vec![[0.0; TILE]; size]);
        let mut tiles = Self { count, blocks, bytes, scales };
        // SAFETY: `available` was asked.
        unsafe { tiles.fill(x) };
        tiles
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn fill(&mut self, x: &[f32]) {
        for (i, x) in x.chunks_exact(self.blocks * BLOCK).enumerate() {
            let (first, lane) = (i / TILE * self.blocks, i % TILE);
            for (block, x) in x.chunks_exact(BLOCK).enumerate() {
                let (quants, scale) = rounded(x);
                self.scales[first + block][lane] = scale;
                let (high, low) = self.bytes[first + block].split_at_mut(HALF);
                for (k, quant) in quants.into_iter().enumerate() {
                    high[lane * BLOCK + k] = (quant >> 8) as u8;
                    low[lane * BLOCK + k] = quant as u8;
                }
            }
        }
    }

    pub fn groups(&self) -> impl Iterator<Item = Tile<'_>> {
        (0..self.count).step_by(TILE).map(|first| {
            let span = first / TILE * self.blocks..(first / TILE + 1) * self.blocks;
            let count = TILE.min(self.count - first);
            Tile { first, count, bytes: &self.bytes[span.clone()], scales: &self.scales[span] }
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
    assert_eq!(tile.bytes.len(), tile.scales.len());
    // SAFETY: `available` was asked, and sizes just before.
    unsafe { dots_checked(weights, tile, sums) }
}

#[target_feature(enable = "avx512f")]
fn dots_checked(weights: &[i8], tile: &Tile, sums: &mut [[f32; WIDE]; TILE]) {
    let mut totals = [_mm512_setzero_ps(); TILE];
    // Two, so that one block is multiplied while the one before it is added.
    let mut scratch = [const { Sums([[[0; WIDE]; TILE]; 2]) }; 2];
    // SAFETY: the shapes are those that the loop reads and writes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
    for i in 0..=tile.bytes.len() {
        let (now, before) = if i % 2 == 0 { (0, 1) } else { (1, 0) };
        // SAFETY: as `dots` checked, the blocks are there; what is asked for ahead may be anywhere.
        unsafe {
            let at = weights.as_ptr().wrapping_add(i * BYTES);
            if let Some(bytes) = tile.bytes.get(i) {
                for line in (0..BYTES).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + line));
                }
                multiply(at.add(SCALES), bytes, &mut scratch[now]);
            }
            if i == 0 {
                continue;
            }
            let (sums, scales) = (&scratch[before], &tile.scales[i - 1]);
            let own = _mm512_cvtph_ps(_mm256_loadu_si256(at.sub(BYTES).cast()));
            for n in 0..TILE {
                let high = _mm512_load_si512(sums.0[0][n].as_ptr().cast());
                let low = _mm512_load_si512(sums.0[1][n].as_ptr().cast());
                let whole = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let part = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(scales[n]));
                totals[n] = _mm512_fmadd_ps(part, own, totals[n]);
            }
        }
    }
    // SAFETY: no tile is used any more; sums are sixteen numbers each.
    unsafe {
        asm!("tilerelease", options(nostack, nomem));
        for n in 0..TILE {
            _mm512_storeu_ps(sums[n].as_mut_ptr(), totals[n]);
        }
    }
}

/// # Safety
///
/// Tiles must have their shapes, and a block of weights must follow.
#[inline(always)]
unsafe fn multiply(weights: *const i8, inputs: &[u8; 2 * HALF], sums: &mut Sums) {
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "tileloadd tmm4, [{weights} + {wide}]",
        "tileloadd tmm2, [{high} + {block}]",
        "tileloadd tmm3, [{low} + {block}]",
        "tdpbssd tmm0, tmm2, tmm4",
        "tdpbusd tmm1, tmm3, tmm4",
        "tilestored [{first} + {wide}], tmm0",
        "tilestored [{second} + {wide}], tmm1",
        weights = in(reg) weights,
        high = in(reg) inputs.as_ptr(),
        low = in(reg) inputs.as_ptr().add(HALF),
        first = in(reg) sums.0[0].as_mut_ptr(),
        second = in(reg) sums.0[1].as_mut_ptr(),
        wide = in(reg) 4 * WIDE,
        block = in(reg) BLOCK,
        out("tmm0") _,
        out("tmm1") _,
        out("tmm2") _,
        out("tmm3") _,
        out("tmm4") _,
        options(nostack),
    );
}
