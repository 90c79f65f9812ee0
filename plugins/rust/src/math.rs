//! Functions of many numbers, in loops that become wide instructions.
//!
//! They are exact to a few units in the last place, and a number's result does not depend on where
//! in a vector it stands.

// Counted loops over lanes are what the compiler turns into wide instructions.
#![allow(clippy::needless_range_loop)]

use crate::cpu::{self, Level};

const LANES: usize = 16;

/// Makes a function run the widest form of another, which is generic over fused multiplication.
macro_rules! widest {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? => $with:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $result)? {
                $with::<true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $result)? {
                $with::<true>($($arg),*)
            }
            match cpu::level() {
                // SAFETY: the level is one that this machine has.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($arg),*) },
                Level::Portable => $with::<{ !cfg!(target_arch = "x86_64") }>($($arg),*),
            }
        }
    };
}

widest! {
    /// `y = x` where positive, else `exp(x) - 1`.
    fn elu(x: &[f32], y: &mut [f32]) => elu_with
}
widest! {
    /// `x / 2 * (1 + erf(x / sqrt(2)))` in place.
    fn gelu(x: &mut [f32]) => gelu_with
}
widest! {
    /// Puts `exp(x - max(x))` into place and returns the sum.
    fn exponentials(x: &mut [f32]) -> f32 => exponentials_with
}
widest! {
    /// Normalises rows as wide as `scale`, with 1e-5 added to the variance.
    fn layer_norm(x: &[f32], scale: &[f32], bias: &[f32], y: &mut [f32]) => layer_norm_with
}
widest! {
    /// Rows as wide as `scale`, over the root of their mean square.
    fn rms_norm(x: &[f32], scale: &[f32], eps: f32, y: &mut [f32]) => rms_norm_with
}
widest! {
    /// `y = silu(a) * b` for rows `a, b` of `x`, of which `y` has `count`.
    fn gated(x: &[f32], count: usize, y: &mut [f32]) => gated_with
}

/// Rounded to even where the machine fuses, twice where not.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction, a fused multiplication is a call of the C library.
    if FUSED {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// `s` and `p` with `exp(x) = s * (1 + p)`, for `x` in -87 .. 88.
#[inline(always)]
fn exp_parts<const F: bool>(x: f32) -> (f32, f32) {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: whole numbers end up in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // 9 bits, so that products are exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = multiply_add::<F>(x, std::f32::consts::LOG2_E, SHIFT);
    let whole = shifted - SHIFT;
    let rest = multiply_add::<F>(whole, -LN2_HIGH, x);
    let rest = multiply_add::<F>(whole, -LN2_LOW, rest);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let mut p = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = multiply_add::<F>(p, rest, factor);
    }
    (scale, multiply_add::<F>(p, rest * rest, rest))
}

/// `exp(x) - 1` for `x <= 0`.
#[inline(always)]
fn exp_minus_one<const F: bool>(x: f32) -> f32 {
    let (scale, p) = exp_parts::<F>(if x < -40.0 { -40.0 } else { x });
    multiply_add::<F>(scale, p, scale - 1.0)
}

#[inline(always)]
fn elu_with<const F: bool>(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        let negative = exp_minus_one::<F>(if x < 0.0 { x } else { 0.0 });
        *y = if x < 0.0 { negative } else { x };
    }
}

/// `-ln(1 - erf(z)) / z` for `z` in 0 .. 4, by powers of `z`: weighted least squares, with an error
/// of erf below 1e-9.
const ERF: [f32; 11] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    std::f32::consts::FRAC_2_PI,
    0.102_771_6,
    -1.911_996e-2,
    -2.451_844_3e-4,
    1.784_148_3e-3,
    -7.233_803_6e-4,
    1.556_508_6e-4,
    -1.660_304e-5,
    1.643_633_7e-7,
    9.234_548e-8,
];

#[inline(always)]
fn gelu_with<const F: bool>(x: &mut [f32]) {
    for x in x {
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let z = if z > 4.0 { 4.0 } else { z };
        let mut p = ERF[10];
        for i in (0..10).rev() {
            p = multiply_add::<F>(p, z, ERF[i]);
        }
        let erf = -exp_minus_one::<F>(-p * z);
        let half = 0.5 * *x;
        *x = multiply_add::<F>(half, if *x < 0.0 { -erf } else { erf }, half);
    }
}

/// Folds numbers in 16 lanes, then the lanes.
#[inline(always)]
fn fold(x: &[f32], start: f32, each: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = each(lanes[l], chunk[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = each(*lane, x);
    }
    lanes.into_iter().fold(start, each)
}

#[inline(always)]
fn exponentials_with<const F: bool>(x: &mut [f32]) -> f32 {
    let most = fold(x, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    for x in x.iter_mut() {
        let below = *x - most;
        let (scale, p) = exp_parts::<F>(if below < -87.0 { -87.0 } else { below });
        let found = multiply_add::<F>(scale, p, scale);
        *x = if below < -87.0 { 0.0 } else { found };
    }
    fold(x, 0.0, |a, b| a + b)
}

#[inline(always)]
fn layer_norm_with<const F: bool>(x: &[f32], scale: &[f32], bias: &[f32], y: &mut [f32]) {
    let width = scale.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean = fold(x, 0.0, |a, b| a + b) / width as f32;
        for (y, x) in y.iter_mut().zip(x) {
            *y = x - mean;
        }
        let mut lanes = [0f32; LANES];
        for chunk in y.chunks(LANES) {
            for (lane, &y) in lanes.iter_mut().zip(chunk) {
                *lane = multiply_add::<F>(y, y, *lane);
            }
        }
        let variance = lanes.into_iter().sum::<f32>() / width as f32;
        let factor = 1.0 / (variance + 1e-5).sqrt();
        for ((y, scale), bias) in y.iter_mut().zip(scale).zip(bias) {
            *y = multiply_add::<F>(*y * factor, *scale, *bias);
        }
    }
}

#[inline(always)]
fn rms_norm_with<const F: bool>(x: &[f32], scale: &[f32], eps: f32, y: &mut [f32]) {
    let width = scale.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mut lanes = [0f32; LANES];
        for chunk in x.chunks(LANES) {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = multiply_add::<F>(x, x, *lane);
            }
        }
        let square = lanes.into_iter().sum::<f32>() / width as f32;
        let factor = 1.0 / (square + eps).sqrt();
        for ((y, x), scale) in y.iter_mut().zip(x).zip(scale) {
            *y = x * factor * scale;
        }
    }
}

#[inline(always)]
fn gated_with<const F: bool>(x: &[f32], count: usize, y: &mut [f32]) {
    let width = y.len() / count;
    for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
        let (a, b) = x.split_at(width);
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            let minus = if *a > 87.0 { -87.0 } else { -a };
            let (scale, p) = exp_parts::<F>(if minus > 87.0 { 87.0 } else { minus });
            *y = a / (1.0 + multiply_add::<F>(scale, p, scale)) * b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(low: f32, high: f32) -> Vec<f32> {
        (0..=10_000).map(|i| low + (high - low) * i as f32 / 10_000.0).collect()
    }

    /// By the series, which is exact enough where it is used here.
    fn erf(z: f64) -> f64 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= -z * z / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn elu_is_exact_to_a_few_places() {
        let x = points(-100.0, 3.0).into_iter().chain(points(-1.0, 1.0)).chain([-1e-8, -0.0]);
        let x: Vec<f32> = x.collect();
        let mut y = vec![0.0; x.len()];
        elu(&x, &mut y);
        for (x, y) in x.iter().zip(y) {
            let exact = if *x > 0.0 { *x as f64 } else { (*x as f64).exp_m1() };
            assert!((exact - y as f64).abs() <= 2.5e-7 * exact.abs(), "{x} {y} {exact}");
        }
    }

    #[test]
    fn gelu_is_exact_to_a_few_places_of_its_input() {
        let x: Vec<f32> = points(-5.0, 5.0).into_iter().chain(points(-0.1, 0.1)).collect();
        let mut y = x.clone();
        gelu(&mut y);
        for (x, y) in x.iter().zip(y) {
            let x = *x as f64;
            let exact = x / 2.0 * (1.0 + erf(x / 2f64.sqrt()));
            assert!((exact - y as f64).abs() <= 1.5e-7 * x.abs(), "{x} {y} {exact}");
        }
    }

    #[test]
    fn exponentials_are_those_below_the_largest() {
        let mut x = points(-120.0, 2.0);
        x[7] = f32::NEG_INFINITY;
        let given = x.clone();
        let sum = exponentials(&mut x);
        let wanted: Vec<f64> = given.iter().map(|x| ((x - 2.0) as f64).exp()).collect();
        for (y, exact) in x.iter().zip(&wanted) {
            assert!((exact - *y as f64).abs() <= 3e-7 * exact + 2e-38, "{y} {exact}");
        }
        let exact: f64 = wanted.iter().sum();
        assert!((exact - sum as f64).abs() < 1e-5 * exact && x[7] == 0.0);
    }

    #[test]
    fn rows_are_normalised() {
        let x: Vec<f32> = points(-1.0, 4.0)[..70].to_vec();
        let (scale, bias, mut y) = (vec![2.0; 35], vec![1.0; 35], vec![0.0; 70]);
        layer_norm(&x, &scale, &bias, &mut y);
        for (x, y) in x.chunks_exact(35).zip(y.chunks_exact(35)) {
            let mean = x.iter().map(|x| *x as f64).sum::<f64>() / 35.0;
            let variance = x.iter().map(|x| (*x as f64 - mean).powi(2)).sum::<f64>() / 35.0;
            for (x, y) in x.iter().zip(y) {
                let exact = (*x as f64 - mean) / (variance + 1e-5).sqrt() * 2.0 + 1.0;
                assert!((exact - *y as f64).abs() < 1e-4, "{y} {exact}");
            }
        }
    }

    #[test]
    fn gates_are_exact_to_a_few_places() {
        let (a, b) = (points(-100.0, 100.0), 0.7f32);
        let x: Vec<f32> = a.iter().copied().chain(a.iter().map(|_| b)).collect();
        let mut y = vec![0.0; a.len()];
        gated(&x, 1, &mut y);
        for (a, y) in a.iter().zip(y) {
            let exact = *a as f64 / (1.0 + (-*a as f64).exp()) * b as f64;
            assert!((exact - y as f64).abs() < 1e-6 * exact.abs() + 1e-30, "{a} {y} {exact}");
        }
    }

    #[test]
    fn rows_are_scaled_to_their_mean_square() {
        let x: Vec<f32> = points(-1.0, 4.0)[..70].to_vec();
        let (scale, mut y) = (vec![2.0; 35], vec![0.0; 70]);
        rms_norm(&x, &scale, 1e-5, &mut y);
        for (x, y) in x.chunks_exact(35).zip(y.chunks_exact(35)) {
            let square = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / 35.0;
            for (x, y) in x.iter().zip(y) {
                let exact = *x as f64 / (square + 1e-5).sqrt() * 2.0;
                assert!((exact - *y as f64).abs() < 1e-6 * exact.abs(), "{y} {exact}");
            }
        }
    }
}
