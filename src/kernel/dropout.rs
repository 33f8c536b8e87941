//! Dropout (Srivastava et al., 2014): zeroes numbers with probability p and scales the rest by 1/(1-p).
//!
//! No mask is kept. Whether a number is dropped is a hash of its row and column, so that the backward pass drops
//! the same ones, whatever the threads and the order of work.

use std::ops::Range;

use super::matmul::View;
use super::simd::{F, LANES, Simd, U, simd};
use super::team::{Parts, Team};

/// One place in the model where numbers are dropped, in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    p: f32,
    key: [u32; 2],
}

impl Dropout {
    /// What is dropped under different keys is independent.
    pub fn new(p: f64, key: u64) -> Self {
        Dropout { p: p as f32, key: [key as u32, (key >> 32) as u32] }
    }

    /// Drops nothing.
    pub const NONE: Dropout = Dropout { p: 0.0, key: [0; 2] };

    pub fn is_none(self) -> bool {
        self.p == 0.0
    }

    /// 16 random bits decide one number: p is met to 1 in 65,536.
    fn threshold(self) -> u32 {
        (self.p * 65_536.0).round() as u32
    }

    /// What is kept is scaled by this.
    pub fn scale(self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// Whether the number in this row and column is kept: the plain twin of what the vectors below do.
    pub fn keeps(self, row: usize, column: usize, columns: usize) -> bool {
        let group = row * columns.div_ceil(2 * LANES) + column / (2 * LANES);
        let bits = hash_one((group * LANES + column % LANES) as u32, self.key);
        let half = if (column / LANES).is_multiple_of(2) { bits & 0xffff } else { bits >> 16 };
        half >= self.threshold()
    }
}

/// Wellons' `lowbias32` (<https://nullprogram.com/blog/2018/07/31/>) with a key before and within.
fn hash_one(x: u32, key: [u32; 2]) -> u32 {
    let x = x.wrapping_mul(0x9e37_79b9) ^ key[0];
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d) ^ key[1];
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[inline(always)]
fn hash<S: Simd>(x: U<S>, key: [u32; 2]) -> U<S> {
    let x = (x * U::splat(0x9e37_79b9)).xor(U::splat(key[0]));
    let x = (x.xor(x.shr::<16>()) * U::splat(0x7feb_352d)).xor(U::splat(key[1]));
    let x = x.xor(x.shr::<15>()) * U::splat(0x846c_a68b);
    x.xor(x.shr::<16>())
}

/// The factors, 0 or the scale, of the 32 numbers in a group; 1 where nothing is dropped.
#[inline(always)]
pub(super) fn factors<S: Simd>(dropout: Dropout, row: usize, group: usize, columns: usize) -> [F<S>; 2] {
    if dropout.is_none() {
        return [F::splat(1.0); 2];
    }
    let first = (row * columns.div_ceil(2 * LANES) + group) * LANES;
    let lanes = U::from_array(std::array::from_fn(|i| i as u32));
    let bits = hash::<S>(U::splat(first as u32) + lanes, dropout.key);
    let (scale, threshold) = (F::splat(dropout.scale()), U::splat(dropout.threshold()));
    let low = bits.shl::<16>().shr::<16>();
    [scale.keep_ge(low, threshold), scale.keep_ge(bits.shr::<16>(), threshold)]
}

/// `y = x · factor`, or `y += x · factor` where `add`; both `[N, C]`, their first row being `first` of the
/// batch.
pub fn apply(
    team: &Team,
    dropout: Dropout,
    columns: usize,
    first: usize,
    x: &[f32],
    y: &mut [f32],
    add: bool,
) {
    let y = Parts::new(y);
    team.ranges(x.len() / columns, 16, |rows| {
        let all = rows.start * columns..rows.end * columns;
        // SAFETY: the ranges of rows are disjoint.
        let y = unsafe { y.take(all.clone()) };
        apply_rows(team.isa, dropout, columns, first + rows.start, &x[all], y, add);
    });
}

/// As [`apply`] for `rows` of the batch, of which `x` has the numbers, both with rows that need not lie end to
/// end: those of y begin every `stride`.
#[allow(clippy::too_many_arguments)]
pub fn rows(
    team: &Team,
    dropout: Dropout,
    columns: usize,
    rows: Range<usize>,
    x: View,
    y: &mut [f32],
    stride: usize,
    add: bool,
) {
    let y = Parts::new(y);
    team.ranges(rows.len(), 16, |some| {
        for i in some {
            // SAFETY: each row has one task.
            let y = unsafe { y.take(i * stride..i * stride + columns) };
            apply_rows(team.isa, dropout, columns, rows.start + i, &x.row(i)[..columns], y, add);
        }
    });
}

/// `x = x · factor`, as [`apply`].
pub fn in_place(team: &Team, dropout: Dropout, columns: usize, first: usize, x: &mut [f32]) {
    let n = x.len() / columns;
    let x = Parts::new(x);
    team.ranges(n, 16, |rows| {
        for i in rows {
            // SAFETY: each row has one task.
            let row = unsafe { x.take(i * columns..(i + 1) * columns) };
            drop_row(team.isa, dropout, first + i, columns, row);
        }
    });
}

simd! {
    fn apply_rows<S>(dropout: Dropout, columns: usize, first: usize, x: &[f32], y: &mut [f32], add: bool) {
        for (i, (x, y)) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)).enumerate() {
            let groups = x.chunks(2 * LANES).zip(y.chunks_mut(2 * LANES));
            for (group, (x, y)) in groups.enumerate() {
                let factors = factors::<S>(dropout, first + i, group, columns);
                for ((x, y), factor) in x.chunks(LANES).zip(y.chunks_mut(LANES)).zip(factors) {
                    let x = F::load_some(x, 0.0);
                    let sum = if add { x.mul_add(factor, F::load_some(y, 0.0)) } else { x * factor };
                    sum.store_some(y);
                }
            }
        }
    }

    /// Multiplies the beginning of a row of `columns` by its factors.
    fn drop_row<S>(dropout: Dropout, row: usize, columns: usize, x: &mut [f32]) {
        for (group, x) in x.chunks_mut(2 * LANES).enumerate() {
            for (x, factor) in x.chunks_mut(LANES).zip(factors::<S>(dropout, row, group, columns)) {
                (F::load_some(x, 0.0) * factor).store_some(x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::simd::Isa;

    #[test]
    fn the_rate_is_met_and_vectors_do_what_one_at_a_time_does() {
        let (rows, columns) = (40, 250);
        let dropout = Dropout::new(0.25, 0x1234_5678_9abc_def0);
        for isa in Isa::available() {
            let team = Team::with(2, isa);
            let x = vec![1.0; rows * columns];
            let mut y = vec![0.0; rows * columns];
            apply(&team, dropout, columns, 7, &x, &mut y, false);
            for (i, y) in y.iter().enumerate() {
                let kept = dropout.keeps(7 + i / columns, i % columns, columns);
                assert_eq!(*y, if kept { dropout.scale() } else { 0.0 }, "{i} on {}", isa.name());
            }
            let zeros = y.iter().filter(|y| **y == 0.0).count();
            assert!((2_350..2_650).contains(&zeros), "{zeros} of 10,000 dropped");
        }
    }

    #[test]
    fn keys_are_independent() {
        let [a, b] = [1, 2].map(|key| Dropout::new(0.5, key));
        let same = (0..10_000).filter(|i| a.keeps(0, *i, 10_000) == b.keeps(0, *i, 10_000)).count();
        assert!((4_800..5_200).contains(&same), "{same} of 10,000 alike");
    }
}
