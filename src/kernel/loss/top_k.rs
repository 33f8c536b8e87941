//! The likeliest ids of a row: those that a text goes on with, and those of each row that a teacher gives to a
//! student.

use super::super::math::exp;
use super::super::simd::{F, Isa, LANES, simd};
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
        let mut keys = Vec::new();
        for i in rows {
            // SAFETY: each row has one task.
            let (ids, probabilities) =
                unsafe { (ids.take(i * k..(i + 1) * k), probabilities.take(i * k..(i + 1) * k)) };
            largest_keys(team.isa, &sums[i * v..(i + 1) * v], k, &mut keys);
            for ((key, id), p) in keys.iter().zip(ids).zip(probabilities) {
                (*id, *p) = (id_of(*key), value_of(*key) / parts);
            }
        }
    });
}

/// The ids of the `k` largest of `values`: the largest first, and of equals the lower id. NaN is larger than others.
pub fn largest(isa: Isa, values: &[f32], k: usize) -> Vec<u32> {
    let mut keys = Vec::new();
    largest_keys(isa, values, k, &mut keys);
    keys.into_iter().map(id_of).collect()
}

/// A value and its id as a number: ordered as the values are (by [`f32::total_cmp`]), and of equals the lower id is
/// the larger.
fn key(value: f32, id: usize) -> i64 {
    let bits = value.to_bits() as i32;
    let ordered = bits ^ ((bits >> 31) as u32 >> 1) as i32;
    i64::from(ordered) << 32 | i64::from(!(id as u32))
}

fn id_of(key: i64) -> u32 {
    !(key as u32)
}

fn value_of(key: i64) -> f32 {
    let ordered = (key >> 32) as i32;
    f32::from_bits((ordered ^ ((ordered >> 31) as u32 >> 1) as i32) as u32)
}

simd! {
    /// The keys of the `k` largest of `values`, in descending order. `keys` is scratch and result.
    fn largest_keys<S>(values: &[f32], k: usize, keys: &mut Vec<i64>) {
        keys.clear();
        // The k largest are at least the k-th of the maxima of groups, each of every n-th value.
        let groups = values.len().div_ceil(LANES);
        let mut least = f32::NEG_INFINITY;
        if (1..groups).contains(&k) {
            for i in (0..groups).step_by(LANES) {
                let mut max = F::<S>::splat(f32::NEG_INFINITY);
                for some in values.chunks(groups).filter(|some| some.len() > i) {
                    max = max.max(F::load_some(&some[i..some.len().min(i + LANES)], f32::NEG_INFINITY));
                }
                let max = max.to_array();
                keys.extend(max.iter().take(groups - i).map(|max| key(*max, i)));
            }
            let (_, last, _) = keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            least = value_of(*last);
            keys.clear();
        }
        let least = F::<S>::splat(least);
        for (i, some) in values.chunks(LANES).enumerate() {
            let mut found = F::load_some(some, 0.0).not_less(least) & (!0 >> (32 - some.len()));
            while found != 0 {
                let lane = found.trailing_zeros() as usize;
                keys.push(key(some[lane], i * LANES + lane));
                found &= found - 1;
            }
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys.truncate(k);
    }
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
    use crate::base::Rng;
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

    /// Beside sorting all: many equal values, zeros of both signs, infinities; few and many of them.
    #[test]
    fn the_largest_come_first_and_of_equals_the_lower_id() {
        let mut rng = Rng::new(1, "values");
        for (n, kinds) in [(1, 3), (15, 2), (16, 9), (17, 1), (100, 5), (700, 9), (2048, 100_000)] {
            let value = |rng: &mut Rng| match rng.index(8) {
                0 => f32::NEG_INFINITY,
                1 => [0.0, -0.0][rng.index(2)],
                _ => rng.index(kinds) as f32 - kinds as f32 / 2.0,
            };
            let values: Vec<f32> = (0..n).map(|_| value(&mut rng)).collect();
            let mut all: Vec<u32> = (0..n as u32).collect();
            all.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
            for (k, isa) in [0, 1, 2, 5, 40, 43, 44, n / 2, n, n + 1, usize::MAX]
                .into_iter()
                .zip(Isa::available().into_iter().cycle())
            {
                assert_eq!(largest(isa, &values, k), all[..k.min(n)], "{k} of {n} by {}", isa.name());
            }
        }
        let mut values = vec![1.0; 300];
        values[77] = f32::NAN;
        assert_eq!(largest(Isa::best(), &values, 3), [77, 0, 1]);
    }

    #[test]
    fn top_k_gives_each_row_its_own() {
        let (team, v, k) = (Team::new(2), 500, 17);
        let values: Vec<f32> = numbers("p", 4 * v, 9.0).iter().map(|x| x.round().abs()).collect();
        let (mut ids, mut probabilities) = (vec![0; 4 * k], vec![0.0; 4 * k]);
        top_k(&team, &values, v, 2, k, &mut ids, &mut probabilities);
        for (i, row) in values.chunks(v).enumerate() {
            assert_eq!(ids[i * k..(i + 1) * k], largest(team.isa, row, k));
            let own = ids[i * k..(i + 1) * k].iter().zip(&probabilities[i * k..]);
            own.for_each(|(id, p)| assert_eq!(*p, row[*id as usize] / 2.0, "row {i}"));
        }
    }
}
