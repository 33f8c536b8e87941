//! How sure a share of wins is: whether it differs from one half by more than chance, and where it may lie.

/// The two-sided p-value of the sign test: how likely so uneven a result, or a more uneven one, is where
/// a win and a loss are equally likely. Exact (binomial); ties are not counted.
pub fn p_value(wins: u64, losses: u64) -> f64 {
    let (n, fewer) = (wins + losses, wins.min(losses));
    // The logarithm of C(n, k) / 2^n, from one k to the next, as the number itself may be below f64's.
    let mut log = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=fewer {
        tail += libm::exp(log);
        log += libm::log((n - k) as f64) - libm::log((k + 1) as f64);
    }
    (2.0 * tail).min(1.0)
}

/// The 95 % interval of a share that was found in `n` observations (Wilson, 1927, score interval).
pub fn interval(share: f64, n: u64) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    let n = n as f64;
    let spread = Z * ((share * (1.0 - share) + Z * Z / (4.0 * n)) / n).sqrt();
    let scale = 1.0 + Z * Z / n;
    let middle = share + Z * Z / (2.0 * n);
    [(middle - spread) / scale, (middle + spread) / scale].map(|bound| bound.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_the_binomial_tails() {
        // 2 · Σ C(n, k) / 2^n over k up to the fewer, in fractions.
        let expected = [
            (8, 2, 0.109375),
            (60, 40, 0.05688793364098),
            (700, 500, 8.535366081034e-9),
            (5, 5, 1.0),
            (0, 0, 1.0),
        ];
        for (wins, losses, p) in expected {
            for found in [p_value(wins, losses), p_value(losses, wins)] {
                assert!((found / p - 1.0).abs() < 1e-9, "{wins} to {losses}: {found}, not {p}");
            }
        }
        let tiny = p_value(3000, 1000) / 2.49151453863e-229;
        assert!((tiny - 1.0).abs() < 1e-6, "{tiny}");
    }

    #[test]
    fn intervals_are_wilsons() {
        let expected = [
            (0.8, 10, 0.49016247, 0.94331785),
            (0.6, 100, 0.50200259, 0.69059871),
            (0.0, 5, 0.0, 0.43448246),
        ];
        for (share, n, low, high) in expected {
            let found = interval(share, n);
            assert!(
                (found[0] - low).abs() < 1e-7 && (found[1] - high).abs() < 1e-7,
                "{share} of {n}: {found:?}"
            );
        }
    }
}
