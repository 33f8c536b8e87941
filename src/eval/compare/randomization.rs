//! Whether two figures differ by more than chance: randomization tests, which assume nothing of how the
//! figures are distributed.
//!
//! Over the items (Noreen, 1989, "Computer-intensive methods for testing hypotheses"): if it made no
//! difference which of two models an item's figures are of, swapping the two at random, item by item, would
//! give differences as large as the one found just as often. p is how often that happens, the one found
//! included. It says something of these two models on items like these, not of other models of their recipes.
//!
//! Over the members of two entries (Fisher, 1935; Pitman, 1937): the same for which member is of which entry,
//! exactly, over all ways to share them out. Of three against three there are 20, so that no p is below 0.1.

use rayon::prelude::*;

use crate::base::rng;

/// Random permutations that a p-value over items is made of.
pub const PERMUTATIONS: usize = 9999;

/// Members of two entries together at most whose permutations are all counted.
const MOST_MEMBERS: usize = 20;

/// Differences count as equal up to this share of the sum of all items': they are summed in different orders.
const ROUNDING: f64 = 1e-10;

/// The two-sided p-value of each list of differences, item by item, of two models whose denominators are equal:
/// (1 + permutations with as large a sum as the one found) / (1 + [`PERMUTATIONS`]).
///
/// The sign of item `i` of `n` in permutation `t` is that of output `t·n + i` of SplitMix64 from `seed`, seen as a
/// signed number; the same for all lists.
pub fn p_values(differences: &[Vec<f64>], seed: u64) -> Vec<f64> {
    let n = differences.first().map_or(0, Vec::len);
    let least: Vec<f64> = differences.iter().map(|list| least(list)).collect();
    let as_large = |t: usize| -> Vec<u64> {
        let mut sums = vec![0.0; differences.len()];
        for i in 0..n {
            let is_swapped = rng::at(seed, (t * n + i) as u64) >> 63 == 1;
            for (sum, list) in sums.iter_mut().zip(differences) {
                *sum += if is_swapped { -list[i] } else { list[i] };
            }
        }
        sums.iter().zip(&least).map(|(sum, least): (&f64, _)| u64::from(sum.abs() >= *least)).collect()
    };
    let add = |a: Vec<u64>, b: Vec<u64>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let counts = (0..PERMUTATIONS).into_par_iter().map(as_large).reduce(|| vec![0; differences.len()], add);
    counts.into_iter().map(|count| (1 + count) as f64 / (1 + PERMUTATIONS) as f64).collect()
}

/// The least sum that is as large as that of the list.
fn least(list: &[f64]) -> f64 {
    list.iter().sum::<f64>().abs() - ROUNDING * list.iter().map(|d| d.abs()).sum::<f64>()
}

/// The exact two-sided p-value of the difference between two means. `None` where one has fewer than two
/// members, or there are more than [`MOST_MEMBERS`] together.
pub fn exact(a: &[f64], b: &[f64]) -> Option<f64> {
    let all = [a, b].concat();
    if a.len() < 2 || b.len() < 2 || all.len() > MOST_MEMBERS {
        return None;
    }
    let total: f64 = all.iter().sum();
    let difference = |chosen: u32| -> f64 {
        let of_chosen = all.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1).map(|(_, value)| value);
        let sum: f64 = of_chosen.sum();
        (sum / a.len() as f64 - (total - sum) / b.len() as f64).abs()
    };
    let found = difference((1 << a.len()) - 1);
    let least = found - ROUNDING * all.iter().map(|value| value.abs()).sum::<f64>();
    let ways = (0..1u32 << all.len()).filter(|chosen| chosen.count_ones() as usize == a.len());
    let (ways, as_large) =
        ways.fold((0, 0), |(ways, n), chosen| (ways + 1, n + u32::from(difference(chosen) >= least)));
    Some(f64::from(as_large) / f64::from(ways))
}

/// Holm's correction: the least p-value times how many there are, the next times one less, and so on; none
/// below one before it, and none above 1.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut corrected, mut most) = (vec![0.0; p.len()], 0.0);
    for (rank, i) in order.into_iter().enumerate() {
        most = f64::max(most, (p[i] * (p.len() - rank) as f64).min(1.0));
        corrected[i] = most;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::sign_test;

    #[test]
    fn p_is_that_of_the_sign_test_where_items_are_right_or_wrong() {
        // 40 items on which both agree change nothing.
        let list = |wins: usize, losses: usize| [vec![1.0; wins], vec![-1.0; losses], vec![0.0; 40]].concat();
        for (wins, losses) in [(8, 2), (60, 40), (5, 5), (0, 0), (3, 0)] {
            let exact = sign_test::p_value(wins as u64, losses as u64);
            let found = p_values(&[list(wins, losses)], 3)[0];
            let error = 4.0 * (exact * (1.0 - exact) / PERMUTATIONS as f64).sqrt() + 2e-4;
            assert!((found - exact).abs() <= error, "{wins} to {losses}: {found}, not {exact}");
        }
    }

    #[test]
    fn p_is_what_numpy_computes_of_the_same_permutations() {
        let list = |k: usize| (0..23).map(|i| ((i * k) % 11) as f64 / 7.0 - 0.6).collect::<Vec<f64>>();
        assert_eq!(p_values(&[list(3), list(5)], 42), P_VALUES);
        assert_eq!(p_values(&[list(5)], 42), P_VALUES[1..], "whatever else is compared");
    }
    const P_VALUES: [f64; 2] = [0.4085, 0.4188];

    #[test]
    fn of_few_members_all_permutations_are_counted() {
        assert_eq!(exact(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), Some(0.1), "2 of 20");
        assert_eq!(exact(&[1.0, 2.0], &[1.0, 2.0]), Some(1.0));
        assert_eq!(exact(&[1.0, 3.0], &[2.0, 4.0, 9.0]), Some(0.4), "4 of 10");
        assert_eq!((exact(&[1.0], &[2.0, 3.0]), exact(&[1.0; 11], &[2.0; 10])), (None, None));
    }

    #[test]
    fn holm_multiplies_and_keeps_the_order() {
        assert_eq!(holm(&[0.03, 0.01, 0.04]), [0.06, 0.03, 0.06]);
        assert_eq!(holm(&[0.5, 0.9]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
