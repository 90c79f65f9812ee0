//! Products with 8-bit blocks by AVX-512 and AVX2.

#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::{Group, Inputs, AHEAD, BYTES, FOUR, GROUP, PAIRS, SCALES, WIDE};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn fill_avx512(inputs: &mut Inputs, x: &[f32]) {
    inputs.fill(x)
}

#[target_feature(enable = "avx2")]
pub fn fill_avx2(inputs: &mut Inputs, x: &[f32]) {
    inputs.fill(x)
}

/// `N` inputs; each block is summed in `CHAINS` parts, which do not wait for each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub fn dots_vnni<const N: usize, const CHAINS: usize>(
    weights: &[i8],
    group: &Group,
    sums: &mut [[f32; WIDE]; GROUP],
) {
    let blocks = weights.len() / BYTES;
    assert!(group.pairs.len() >= blocks * PAIRS * N && group.scales.len() == N);
    let mut totals = [_mm512_setzero_ps(); N];
    let mut at = weights.as_ptr();
    let mut x = group.pairs.as_ptr().cast::<i32>();
    for _ in 0..blocks {
        // SAFETY: a block is `BYTES` long; inputs have been counted above. What is asked for
        // ahead may be anywhere.
        unsafe {
            let own = _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()));
            let mut whole = [[_mm512_setzero_si512(); CHAINS]; N];
            for two in 0..PAIRS / 4 {
                for i in 0..2 {
                    let four = 2 * two + i;
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + FOUR * four));
                    let quants = _mm512_loadu_si512(at.add(SCALES + FOUR * four).cast());
                    let odd = _mm512_srai_epi16::<8>(quants);
                    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(quants));
                    for (half, quants) in [even, odd].into_iter().enumerate() {
                        for n in 0..N {
                            let x = x.add((2 * four + half) * N + n).read();
                            let sum = &mut whole[n][(2 * i + half) % CHAINS];
                            *sum = dpwssd(*sum, quants, _mm512_set1_epi32(x));
                        }
                    }
                }
            }
            for n in 0..N {
                let mut sum = whole[n][0];
                for chain in 1..CHAINS {
                    sum = _mm512_add_epi32(sum, whole[n][chain]);
                }
                totals[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), own, totals[n]);
            }
            at = at.add(BYTES);
            x = x.add(PAIRS * N);
        }
    }
    for n in 0..N {
        let scaled = _mm512_mul_ps(totals[n], _mm512_set1_ps(group.scales[n]));
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(sums[n].as_mut_ptr(), scaled) };
    }
}

/// The instruction itself: of its intrinsic, the compiler makes two others in long sums.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: it changes one register.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// As above; outputs are in two halves, and chains are what they are there.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn dots_avx2<const N: usize, const CHAINS: usize>(
    weights: &[i8],
    group: &Group,
    sums: &mut [[f32; WIDE]; GROUP],
) {
    let blocks = weights.len() / BYTES;
    assert!(group.pairs.len() >= blocks * PAIRS * N && group.scales.len() == N);
    let mut totals = [[_mm256_setzero_ps(); 2]; N];
    let mut at = weights.as_ptr();
    let mut x = group.pairs.as_ptr().cast::<i32>();
    for _ in 0..blocks {
        // SAFETY: as above.
        unsafe {
            let mut whole = [[_mm256_setzero_si256(); 2]; N];
            for four in 0..PAIRS / 2 {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + FOUR * four));
                for half in 0..2 {
                    let quants = at.add(SCALES + FOUR * four + FOUR / 2 * half);
                    let quants = _mm256_loadu_si256(quants.cast());
                    let odd = _mm256_srai_epi16::<8>(quants);
                    let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(quants));
                    for (i, quants) in [even, odd].into_iter().enumerate() {
                        for n in 0..N {
                            let x = x.add((2 * four + i) * N + n).read();
                            let part = _mm256_madd_epi16(quants, _mm256_set1_epi32(x));
                            whole[n][half] = _mm256_add_epi32(whole[n][half], part);
                        }
                    }
                }
            }
            for half in 0..2 {
                let own = _mm256_cvtph_ps(_mm_loadu_si128(at.add(WIDE * half).cast()));
                for n in 0..N {
                    let part = _mm256_cvtepi32_ps(whole[n][half]);
                    totals[n][half] = _mm256_fmadd_ps(part, own, totals[n][half]);
                }
            }
            at = at.add(BYTES);
            x = x.add(PAIRS * N);
        }
    }
    for n in 0..N {
        for half in 0..2 {
            let scaled = _mm256_mul_ps(totals[n][half], _mm256_set1_ps(group.scales[n]));
            // SAFETY: eight numbers.
            unsafe { _mm256_storeu_ps(sums[n].as_mut_ptr().add(8 * half), scaled) };
        }
    }
}
