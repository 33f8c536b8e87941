//! Functions of the vectors in [`super::simd`], as polynomials of our own: the C library's differ between
//! systems, and even between CPUs of one.

use super::simd::{F, Simd, U};

/// `e^x` to about 1 unit in the last place; 0 and infinity are not reached (x is held to -87 … 88).
/// Not-a-number stays what it is.
///
/// `2^n · p(r)` with `x = n ln 2 + r`, |r| ≤ ln 2 / 2 (Cody and Waite's reduction in two parts), and p the
/// Taylor polynomial of degree 7.
#[inline(always)]
pub fn exp<S: Simd>(x: F<S>) -> F<S> {
    let c = F::<S>::splat;
    // In this order of arguments not-a-number passes through.
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

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(x: F<S>) -> F<S> {
    let one = F::splat(1.0);
    one / (one + exp(F::splat(0.0) - x))
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
    }

    #[test]
    fn exp_is_close_everywhere_and_the_same_on_every_cpu() {
        let x: Vec<f32> = (-86_000..87_984).map(|i| i as f32 / 1000.0).collect();
        let mut first = vec![0.0; x.len()];
        exp_of(Isa::best(), &x, &mut first);
        for (x, found) in x.iter().zip(&first) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*found) - exact).abs() <= 1.5e-7 * exact, "exp({x}) = {found}, not {exact}");
        }
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            exp_of(isa, &x, &mut out);
            assert!(out == first, "{}", isa.name());
            let mut odd = vec![0.0; 16];
            exp_of(isa, &[f32::NAN; 16], &mut odd);
            assert!(odd.iter().all(|x| x.is_nan()), "{}", isa.name());
        }
    }
}
