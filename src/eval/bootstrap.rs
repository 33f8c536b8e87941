//! How sure a figure is: between which values it lies when the items that it was measured on are drawn anew.
//!
//! The bootstrap (Efron, 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7):
//! as many items as there are, each drawn from them all with replacement, give the figure of one resample;
//! the middle 95 % of the figures of many resamples are its percentile interval. Items are whole documents,
//! conversations or questions, as the tokens of one text depend on each other.
//!
//! Draws are counted, not streamed: draw `j` of resample `r` of `n` items is output `r·n + j` of SplitMix64
//! from `seed` (Steele, Lea and Flood, 2014), so that threads share the resamples, and that numpy draws the
//! same with `c = arange(1, R*n + 1, dtype=uint64); z = mix(seed + c * 0x9E3779B97F4A7C15)`, where `mix` is
//! SplitMix64's finalizer, and `((z >> 11) * 2.0**-53 * n).astype(int).reshape(R, n)`.

use rayon::prelude::*;

use crate::base::rng;

/// Resamples that an interval is made of.
pub const RESAMPLES: usize = 2000;

/// The item that draw `j` of resample `r` of `n` items falls on.
pub fn draw(seed: u64, r: usize, j: usize, n: usize) -> usize {
    let uniform = (rng::at(seed, (r * n + j) as u64) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
    (uniform * n as f64) as usize
}

/// The 95 % percentile interval of Σ numerator / Σ denominator over [`RESAMPLES`] resamples of whole items.
///
/// `None` below two items, and where a resample may have nothing to divide by.
pub fn interval(pairs: &[(f64, f64)], seed: u64) -> Option<[f64; 2]> {
    if pairs.len() < 2 {
        return None;
    }
    let figure = |r| {
        let drawn = (0..pairs.len()).map(|j| pairs[draw(seed, r, j, pairs.len())]);
        let (numerator, denominator) = drawn.fold((0.0, 0.0), |sum, item| (sum.0 + item.0, sum.1 + item.1));
        numerator / denominator
    };
    percentiles((0..RESAMPLES).into_par_iter().map(figure).collect())
}

/// The 2.5 % and 97.5 % quantiles, interpolated linearly between two values as `numpy.quantile` does it.
/// `None` where a value is no finite number or there is none.
pub fn percentiles(mut figures: Vec<f64>) -> Option<[f64; 2]> {
    if figures.is_empty() || figures.iter().any(|figure| !figure.is_finite()) {
        return None;
    }
    figures.sort_unstable_by(f64::total_cmp);
    Some([0.025, 0.975].map(|share| {
        let place = share * (figures.len() - 1) as f64;
        let (low, above) = (figures[place as usize], figures[place.ceil() as usize]);
        low + (above - low) * place.fract()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Option<[f64; 2]>, expected: [f64; 2]) {
        let found = found.unwrap();
        let off = (0..2).map(|i| (found[i] - expected[i]).abs()).fold(0.0, f64::max);
        assert!(off < 1e-12, "{found:?}, not {expected:?}");
    }

    #[test]
    fn draws_are_those_of_numpy() {
        let drawn = |r| (0..10).map(|j| draw(42, r, j, 10)).collect::<Vec<_>>();
        assert_eq!(drawn(0), [7, 1, 2, 3, 0, 8, 2, 8, 3, 6]);
        assert_eq!(drawn(1), [2, 4, 5, 5, 6, 2, 1, 4, 0, 6]);
    }

    #[test]
    fn intervals_are_those_of_numpy() {
        let numerators = [3.5, 10.25, 7.0, 1.0, 22.125, 5.0, 8.75, 0.5, 13.0, 4.0];
        let denominators = [4.0, 9.0, 8.0, 2.0, 17.0, 6.0, 9.0, 1.0, 12.0, 5.0];
        let ratios: Vec<(f64, f64)> = numerators.into_iter().zip(denominators).collect();
        near(interval(&ratios, 42), RATIOS);
        // Scores of 0 and 1.
        let rates: Vec<(f64, f64)> = (0..57).map(|i| (f64::from(i * i % 7 < 3), 1.0)).collect();
        near(interval(&rates, u64::MAX), RATES);
    }
    const RATIOS: [f64; 2] = [0.8546390503875969, 1.1495143427741465];
    const RATES: [f64; 2] = [0.5964912280701754, 0.8421052631578947];

    #[test]
    fn what_is_always_the_same_has_an_interval_without_width_and_too_little_has_none() {
        near(interval(&[(1.0, 1.0); 5], 7), [1.0, 1.0]);
        assert_eq!(interval(&[(1.0, 1.0)], 7), None);
        assert_eq!(interval(&[(1.0, 1.0), (0.0, 0.0)], 7), None, "a resample of the second item alone");
        near(percentiles(vec![3.0, 1.0, 2.0]), [1.05, 2.95]);
    }
}
