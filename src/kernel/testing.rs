//! What tests of layers share: the same bytes for any instructions and threads, and gradients of a plain twin
//! in f64 by finite differences.

use super::{Dtype, Isa, Team};
use crate::base::Rng;

/// Normal numbers of this standard deviation.
pub fn numbers(name: &str, n: usize, std: f64) -> Vec<f32> {
    let mut rng = Rng::new(1, name);
    (0..n).map(|_| (rng.normal() * std) as f32).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// What `f` gives, which must be the same bytes on all instructions that run here, by 1 and by 3 threads.
pub fn same_everywhere(f: impl Fn(&Team) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    same_in(Dtype::F32, &f)
}

/// The same with products in `bf16_tile`; by matrix tiles, too, which are simulated where the CPU has none, if it can
/// pack their numbers.
pub fn same_in_tiles(f: impl Fn(&Team) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let found = same_in(Dtype::Bf16Tile, &f);
    if Isa::best().has_pairs() {
        assert!(bits(&f(&Team::new(2).simulating_tiles())) == bits(&found), "matrix tiles");
    }
    found
}

fn bits(all: &[Vec<f32>]) -> Vec<u32> {
    // Which NaN is not defined.
    all.iter().flatten().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
}

fn same_in(dtype: Dtype, f: &impl Fn(&Team) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let expected = f(&Team::with(1, Isa::best()).in_dtype(dtype));
    for isa in Isa::available() {
        for threads in [1, 3] {
            let found = f(&Team::with(threads, isa).in_dtype(dtype));
            assert!(bits(&found) == bits(&expected), "{} by {threads} threads", isa.name());
        }
    }
    expected
}

/// `begin + Σ x · y` in `bf16_tile`: blocks of 32 of k, in each a sum over the even ones and one over the odd, whose sum
/// is added to what was there; subnormal numbers are 0 wherever they occur. `factors` are rounded here.
pub fn in_tiles(k: usize, begin: f32, factors: impl Fn(usize) -> (f32, f32)) -> f32 {
    let normal = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    (0..k.div_ceil(32)).fold(begin, |c, block| {
        let mut sums = [0.0; 2];
        for k in 32 * block..(32 * block + 32).min(k) {
            let (x, y) = factors(k);
            sums[k % 2] = normal(rounded(x).mul_add(rounded(y), sums[k % 2]));
        }
        normal(normal(c) + normal(sums[0] + sums[1]))
    })
}

/// Rounded to bf16, ties to even, with integers; 0 below 2^-55.
pub fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.abs() < 2f32.powi(-55) {
        return 0.0;
    }
    if !x.is_finite() {
        return f32::from_bits(bits & 0xffff_0000);
    }
    let (kept, rest) = (bits >> 16, bits & 0xffff);
    let up = rest > 0x8000 || (rest == 0x8000 && kept % 2 == 1);
    f32::from_bits((kept + u32::from(up)) << 16)
}

/// Numbers of magnitudes that differ from kind to kind, of which there are four: ordinary ones, some around 2^-55 and,
/// of label 3, around 2^-126, some of all sizes up to infinity, and infinite ones and NaN among ordinary ones.
pub fn strange(kind: usize, i: usize, label: u32) -> f32 {
    let bits = (i as u32).wrapping_mul(0x9e37_79b1).wrapping_add(label.wrapping_mul(0x85eb_ca6b));
    let bits = (bits ^ bits >> 15).wrapping_mul(0x2c1b_3c6d);
    let sizes = match kind {
        0 => 110..144,
        // Around 2^-55, where products are 2^-110: C begins with numbers around 2^-126.
        1 if label == 3 => 0..30,
        1 => 60..90,
        // Products of all sizes, up to infinity.
        2 => 0..255,
        _ if i % 211 == 7 => 255..256,
        _ => 120..130,
    };
    let exponent = sizes.start + (bits >> 23) % (sizes.end - sizes.start);
    // Infinity and NaN that bf16 has, too.
    let mantissa = if exponent == 255 { bits & 0x0040_0000 } else { bits & 0x007f_ffff };
    f32::from_bits((bits << 8 & 0x8000_0000) | exponent << 23 | mantissa)
}

pub fn near(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= tolerance * expected.abs().max(1.0), "{what}, {i}: {found}, not {expected}");
    }
}

/// Some of the gradient that was `found` against central differences of `loss` at `x`.
pub fn near_differences(what: &str, found: &[f32], x: &[f32], loss: impl Fn(&[f64]) -> f64, tolerance: f64) {
    assert_eq!(found.len(), x.len(), "{what}");
    let mut x = wide(x);
    let step = (x.len() / 50).max(1) | 1;
    for i in (0..x.len()).step_by(step) {
        let (own, h) = (x[i], 1e-4);
        let mut at = |value: f64| {
            x[i] = value;
            loss(&x)
        };
        let expected = (at(own + h) - at(own - h)) / (2.0 * h);
        x[i] = own;
        let off = (f64::from(found[i]) - expected).abs();
        assert!(off <= tolerance * expected.abs().max(1.0), "{what}, {i}: {}, not {expected}", found[i]);
    }
}
