//! The likeliest ids of each row, as a teacher gives them to a student.

use super::super::math::exp;
use super::super::simd::{F, LANES, simd};
use super::super::team::{Parts, Team};
use super::{BLOCK, max_with};

/// `logits: [N, V]` become `softmax(logits / temperature)` by rows.
pub fn soften(team: &Team, logits: &mut [f32], v: usize, temperature: f32) {
    let n = logits.len() / v;
    let logits = Parts::new(logits);
    team.ranges(n, 1, |rows| {
        for i in rows {
            // SAFETY: each row has one task.
            soften_row(team.isa, unsafe { logits.take(i * v..(i + 1) * v) }, 1.0 / temperature);
        }
    });
}

/// `sums += distributions`.
pub fn add(team: &Team, distributions: &[f32], sums: &mut [f32]) {
    let (len, sums) = (sums.len(), Parts::new(sums));
    team.ranges(len, BLOCK, |some| {
        // SAFETY: the ranges are disjoint.
        add_some(team.isa, &distributions[some.clone()], unsafe { sums.take(some) });
    });
}

/// The `k` likeliest ids of each row of `sums: [N, V]`, sums of as many distributions as `parts` says, and
/// their mean probabilities, `[N, k]` each: the likeliest first, and of equals the lower id.
pub fn top_k(
    team: &Team,
    sums: &[f32],
    v: usize,
    parts: usize,
    k: usize,
    ids: &mut [u32],
    probabilities: &mut [f32],
) {
    let (n, parts) = (sums.len() / v, parts as f32);
    let (ids, probabilities) = (Parts::new(ids), Parts::new(probabilities));
    team.ranges(n, 1, |rows| {
        let mut keys = Vec::with_capacity(2 * k);
        for i in rows {
            // SAFETY: each row has one task.
            let (ids, probabilities) =
                unsafe { (ids.take(i * k..(i + 1) * k), probabilities.take(i * k..(i + 1) * k)) };
            largest(&sums[i * v..(i + 1) * v], k, &mut keys);
            for ((key, id), p) in keys.iter().zip(ids).zip(probabilities) {
                (*id, *p) = (!(*key as u32), f32::from_bits((*key >> 32) as u32) / parts);
            }
        }
    });
}

/// The `k` largest of `values`, none negative, in descending order: a number's bits above the inverse of its
/// index, so that of equals the one with the lower index is larger. `keys` is scratch and result.
fn largest(values: &[f32], k: usize, keys: &mut Vec<u64>) {
    keys.clear();
    // What is no larger is not among them.
    let mut least = 0;
    for (i, value) in values.iter().enumerate() {
        // Bits of numbers that are not negative are ordered as the numbers are.
        let key = u64::from(value.to_bits()) << 32 | u64::from(!(i as u32));
        if key <= least {
            continue;
        }
        if keys.len() == 2 * k {
            keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            keys.truncate(k);
            least = keys[k - 1];
            if key <= least {
                continue;
            }
        }
        keys.push(key);
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.truncate(k);
}

simd! {
    fn add_some<S>(from: &[f32], to: &mut [f32]) {
        for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
            (F::<S>::load_some(to, 0.0) + F::load_some(from, 0.0)).store_some(to);
        }
    }

    fn soften_row<S>(logits: &mut [f32], inverse: f32) {
        let max = F::splat(max_with::<S>(logits, f32::NEG_INFINITY));
        let inverse = F::splat(inverse);
        let mut total = 0.0;
        for block in logits.chunks_mut(BLOCK) {
            let mut sum = F::<S>::splat(0.0);
            for x in block.chunks_mut(LANES) {
                exp((F::<S>::load_some(x, 0.0) - max) * inverse).store_some(x);
                sum = sum + F::load_some(x, 0.0);
            }
            total += f64::from(sum.sum());
        }
        let factor = F::splat((1.0 / total) as f32);
        for x in logits.chunks_mut(LANES) {
            (F::<S>::load_some(x, 0.0) * factor).store_some(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, numbers, same_everywhere, wide};

    #[test]
    fn softened_rows_are_those_of_the_definition() {
        let (v, logits) = (2 * BLOCK + 37, numbers("logits", 3 * (2 * BLOCK + 37), 5.0));
        let found = same_everywhere(|team| {
            let (mut first, mut other) = (logits.clone(), logits.clone());
            soften(team, &mut first, v, 2.5);
            soften(team, &mut other, v, 0.5);
            add(team, &other, &mut first);
            vec![other, first]
        });
        let softmax = |t: f64| -> Vec<f64> {
            let row = |x: &[f64]| {
                let exps: Vec<f64> = x.iter().map(|x| (x / t).exp()).collect();
                let sum: f64 = exps.iter().sum();
                exps.into_iter().map(move |x| x / sum)
            };
            wide(&logits).chunks(v).flat_map(row).collect()
        };
        let (other, first) = (softmax(0.5), softmax(2.5));
        near("softmax", &found[0], &other, 1e-6);
        let sums: Vec<f64> = other.iter().zip(&first).map(|(a, b)| a + b).collect();
        near("sum", &found[1], &sums, 1e-6);
    }

    /// Against sorting all of them; many are equal.
    #[test]
    fn the_largest_come_first_and_of_equals_the_lower_id() {
        let (team, v) = (Team::new(2), 500);
        let values: Vec<f32> = numbers("p", 4 * v, 9.0).iter().map(|x| x.round().abs()).collect();
        for k in [1, 2, 17, v] {
            let (mut ids, mut probabilities) = (vec![0; 4 * k], vec![0.0; 4 * k]);
            top_k(&team, &values, v, 2, k, &mut ids, &mut probabilities);
            for (i, row) in values.chunks(v).enumerate() {
                let mut all: Vec<usize> = (0..v).collect();
                all.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
                let expected: Vec<(u32, f32)> =
                    all[..k].iter().map(|id| (*id as u32, row[*id] / 2.0)).collect();
                let some = i * k..(i + 1) * k;
                let found: Vec<(u32, f32)> =
                    ids[some.clone()].iter().copied().zip(probabilities[some].iter().copied()).collect();
                assert_eq!(found, expected, "row {i}, k = {k}");
            }
        }
    }
}
