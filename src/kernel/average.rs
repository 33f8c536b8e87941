//! Exponential moving averages.

use super::adamw::CHUNK;
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// `average += share · (x - average)`.
///
/// # Panics
/// When the lengths differ.
pub fn average(team: &Team, share: f32, average: &mut [f32], x: &[f32]) {
    assert_eq!(average.len(), x.len(), "an average of as many numbers");
    let (n, all) = (x.len(), Parts::new(average));
    team.each(n.div_ceil(CHUNK), |task| {
        let range = task * CHUNK..((task + 1) * CHUNK).min(n);
        // SAFETY: the ranges are disjoint.
        average_part(team.isa, share, unsafe { all.take(range.clone()) }, &x[range]);
    });
}

simd! {
    fn average_part<S>(share: f32, average: &mut [f32], x: &[f32]) {
        for (average, x) in average.chunks_mut(LANES).zip(x.chunks(LANES)) {
            let old = F::<S>::load_some(average, 0.0);
            (F::load_some(x, 0.0) - old).mul_add(F::splat(share), old).store_some(average);
        }
    }
}
