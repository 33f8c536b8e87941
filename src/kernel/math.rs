//! Elementary functions of the vectors in [`super::simd`]: `exp`, `sigmoid`, `tanh` and the normal
//! distribution. They are polynomials of our own because the C library's differ between systems, and even
//! between CPUs of one system. NaN gives NaN.

use super::simd::{F, Simd, U};

/// `e^x` to about 1 unit in the last place. x is clamped to -87 … 88, so the result is never 0 or infinite.
///
/// `2^n · p(r)` with `x = n ln 2 + r`, |r| ≤ ln 2 / 2 (Cody and Waite's reduction in two parts), and p the
/// Taylor polynomial of degree 7.
#[inline(always)]
pub fn exp<S: Simd>(x: F<S>) -> F<S> {
    let c = F::<S>::splat;
    // `max` and `min` give their second argument where either is NaN: in this order NaN passes through.
    let x = c(88.0).min(c(-87.0).max(x));
    let round = c(12_582_912.0); // 1.5 · 2^23: adding it rounds to a whole number
    let shifted = x.mul_add(c(std::f32::consts::LOG2_E), round);
    let n = shifted - round;
    let r = n.mul_add(c(-0.693_359_4), x);
    let r = n.mul_add(c(2.121_944_4e-4), r);
    let p = c(1.0 / 5040.0);
    let p = p.mul_add(r, c(1.0 / 720.0));
    let p = p.mul_add(r, c(1.0 / 120.0));
    let p = p.mul_add(r, c(1.0 / 24.0));
    let p = p.mul_add(r, c(1.0 / 6.0));
    let p = p.mul_add(r, c(0.5));
    let p = p.mul_add(r, c(1.0));
    let p = p.mul_add(r, c(1.0));
    // The low bits of `shifted` are n; they go into the exponent.
    let power = shifted.bits().shl::<23>() + U::splat(127 << 23);
    p * power.float()
}

/// `e^x` with the bits that ggml's kernels for x86-64 with AVX2 have (`ggml_v_expf` of its `ggml-cpu/vec.h`, after
/// Arm's optimized routines), to about 1.5 units in the last place. x is clamped to -87 … 87.
///
/// `2^n + 2^n (p(b) - 1)` with `x = n ln 2 + b` as in [`exp`], and p a minimax polynomial of degree 5.
#[inline(always)]
pub fn exp_as_ggml<S: Simd>(x: F<S>) -> F<S> {
    let c = F::<S>::splat;
    let x = c(87.0).min(c(-87.0).max(x));
    let round = c(12_582_912.0);
    let shifted = x.mul_add(c(std::f32::consts::LOG2_E), round);
    let n = shifted - round;
    let b = n.mul_add(c(-0.693_145_75), x);
    let b = n.mul_add(c(-1.428_606_8e-6), b);
    let power = (shifted.bits().shl::<23>() + U::splat(127 << 23)).float();
    let square = b * b;
    let high = c(0.008_247_39).mul_add(b, c(0.041_899_767));
    let low = c(0.166_683_96).mul_add(b, c(0.499_991_27));
    let p = high.mul_add(square, low).mul_add(square, c(0.999_999_4) * b);
    p.mul_add(power, power)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(x: F<S>) -> F<S> {
    let one = F::splat(1.0);
    one / (one + exp(F::splat(0.0) - x))
}

/// From this size on [`tanh`] uses the exponential.
const TANH_BY_EXP: f32 = 0.625;

/// `tanh(x)`, to an absolute error of 1e-7 and a relative error of 2e-7 (also near 0).
///
/// Cephes' `tanhf` (Moshier, 1989): `x + x³ p(x²)` below 0.625, else `1 - 2 / (e^(2|x|) + 1)` with the sign
/// of x.
#[inline(always)]
pub fn tanh<S: Simd>(x: F<S>) -> F<S> {
    let c = F::<S>::splat;
    let square = x * x;
    let p = c(-5.704_988_7e-3);
    let p = p.mul_add(square, c(2.063_908_8e-2));
    let p = p.mul_add(square, c(-5.373_971_6e-2));
    let p = p.mul_add(square, c(1.333_144_2e-1));
    let p = p.mul_add(square, c(-3.333_328e-1));
    let small = (p * square).mul_add(x, x);
    let size = x.abs();
    let large = c(1.0) - c(2.0) / (exp(size + size) + c(1.0));
    let sign = x.bits().xor(size.bits());
    let large = large.bits().xor(sign).float();
    // Bits of numbers that are not negative are ordered as the numbers are; NaN counts as large.
    let (size, bound) = (size.bits(), U::splat(TANH_BY_EXP.to_bits()));
    large.keep_ge(size, bound) + small.keep_ge(U::splat(TANH_BY_EXP.to_bits() - 1), size)
}

/// The standard normal distribution: `Φ(x) = (1 + erf(x / √2)) / 2` and `e^(-x²/2)`, which is its density
/// times √(2π). Φ has an absolute error of 1.5e-7, and for x from -5 to 0 a relative error of 1.5e-6.
///
/// With `a = |x|`, `Φ(-a) = e^(-a²/2) t q(v)` where `t = 1 / (1 + 0.35 a)` and `v = 1 - t`. The polynomial q
/// is a minimax fit (least squares on Chebyshev nodes, reweighted by Lawson's method) of degree 8 to
/// `Φ(-a) e^(a²/2) / t` for a from 0 to 13.2, with a relative error of 3.2e-8. Numerical Recipes' `erfc` has
/// the same form, but its polynomial is in the exponent, which would take a second exponential.
#[inline(always)]
pub fn normal<S: Simd>(x: F<S>) -> (F<S>, F<S>) {
    let c = F::<S>::splat;
    let a = x.abs();
    let scaled = a * c(0.35);
    let t = c(1.0) / (scaled + c(1.0));
    let v = scaled * t;
    let q = c(-0.029_108_923);
    let q = q.mul_add(v, c(0.089_083_21));
    let q = q.mul_add(v, c(-0.063_859_77));
    let q = q.mul_add(v, c(-0.016_210_916));
    let q = q.mul_add(v, c(-0.064_127_16));
    let q = q.mul_add(v, c(0.102_631_47));
    let q = q.mul_add(v, c(0.261_045_84));
    let q = q.mul_add(v, c(-0.639_832));
    let q = q.mul_add(v, c(0.5));
    let density = exp(c(-0.5) * (a * a));
    let tail = q * t * density;
    // The sign bit: a number is negative where its bits are as a signed integer.
    let (sign, below) = (x.bits(), U::splat(u32::MAX));
    let phi = (c(1.0) - tail).keep_ge(sign, U::splat(0)) + tail.keep_ge(below, sign);
    (phi, density)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::simd::{Isa, simd};

    simd! {
        fn exp_of<S>(x: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                exp(F::<S>::load(x)).store(out);
            }
        }

        fn exp_as_ggml_of<S>(x: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                exp_as_ggml(F::<S>::load(x)).store(out);
            }
        }

        fn tanh_of<S>(x: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                tanh(F::<S>::load(x)).store(out);
            }
        }

        fn phi_of<S>(x: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                normal(F::<S>::load(x)).0.store(out);
            }
        }

        fn density_of<S>(x: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                normal(F::<S>::load(x)).1.store(out);
            }
        }
    }

    type Function = fn(Isa, &[f32], &mut [f32]);

    /// What `f` gives, after checking that every CPU gives these bits, and NaN of NaN.
    fn everywhere(f: Function, x: &[f32]) -> Vec<f32> {
        assert!(x.len().is_multiple_of(16));
        let mut first = vec![0.0; x.len()];
        f(Isa::best(), x, &mut first);
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            f(isa, x, &mut out);
            let same = out.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}", isa.name());
            f(isa, &[f32::NAN; 16], &mut out);
            assert!(out[..16].iter().all(|x| x.is_nan()), "{}", isa.name());
        }
        first
    }

    /// Positive and negative sizes from 1e-9 to 100.
    fn of_all_sizes() -> Vec<f32> {
        let sizes = (0..60_000).map(|i| 10f64.powf(f64::from(i) * 11.0 / 60_000.0 - 9.0) as f32);
        sizes.flat_map(|x| [x, -x]).collect()
    }

    #[test]
    fn exp_is_close_everywhere_and_the_same_on_every_cpu() {
        let x: Vec<f32> = (-86_000..87_984).map(|i| i as f32 / 1000.0).collect();
        for (x, found) in x.iter().zip(everywhere(exp_of, &x)) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(found) - exact).abs() <= 1.5e-7 * exact, "exp({x}) = {found}, not {exact}");
        }
    }

    #[test]
    fn exp_as_ggml_is_close_everywhere_and_the_same_on_every_cpu() {
        let x: Vec<f32> = (-86_000..87_008).map(|i| i as f32 / 1000.0).map(|x| x.min(87.0)).collect();
        for (x, found) in x.iter().zip(everywhere(exp_as_ggml_of, &x)) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(found) - exact).abs() <= 2e-7 * exact, "exp({x}) = {found}, not {exact}");
        }
    }

    #[test]
    fn tanh_is_close_everywhere_and_the_same_on_every_cpu() {
        let dense = (-96_000..96_000).map(|i| i as f32 / 9600.0);
        let special = [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, f32::MAX];
        let mut x: Vec<f32> = dense.chain(of_all_sizes()).chain(special).collect();
        x.resize(x.len().next_multiple_of(16), 0.0);
        for (x, found) in x.iter().zip(everywhere(tanh_of, &x)) {
            let exact = libm::tanh(f64::from(*x));
            let error = (f64::from(found) - exact).abs();
            assert!(error <= (2e-7 * exact.abs()).min(1e-7), "tanh({x}) = {found}, not {exact}");
        }
    }

    #[test]
    fn the_normal_distribution_is_close_everywhere_and_the_same_on_every_cpu() {
        let dense = (-96_000..96_000).map(|i| i as f32 / 7000.0);
        let mut x: Vec<f32> = dense.chain(of_all_sizes()).chain([0.0, -0.0]).collect();
        x.resize(x.len().next_multiple_of(16), 0.0);
        let (phi, density) = (everywhere(phi_of, &x), everywhere(density_of, &x));
        for ((x, phi), density) in x.iter().zip(phi).zip(density) {
            let wide = f64::from(*x);
            let exact = 0.5 * libm::erfc(-wide * std::f64::consts::FRAC_1_SQRT_2);
            let error = (f64::from(phi) - exact).abs();
            let bound = if (-5.0..0.0).contains(x) { (1.5e-6 * exact).min(1.5e-7) } else { 1.5e-7 };
            assert!(error <= bound, "Φ({x}) = {phi}, not {exact}: {error:e}");
            let exact = libm::exp(-0.5 * wide * wide);
            let error = (f64::from(density) - exact).abs();
            assert!(error <= 1.5e-7, "e^(-{x}²/2) = {density}, not {exact}");
        }
    }
}
