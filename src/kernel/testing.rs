//! What tests of layers share: the same bytes for any instructions and threads, and gradients of a plain twin
//! in f64 by finite differences.

use super::{Isa, Team};
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
    let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    let expected = f(&Team::with(1, Isa::best()));
    for isa in Isa::available() {
        for threads in [1, 3] {
            let found = f(&Team::with(threads, isa));
            assert!(bits(&found) == bits(&expected), "{} by {threads} threads", isa.name());
        }
    }
    expected
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
