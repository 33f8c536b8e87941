//! GELU in its tanh form (Hendrycks and Gimpel, 2016), which is `x · sigmoid(2u)` with
//! `u = sqrt(2/π) (x + 0.044715 x³)`.

use super::math::sigmoid;
use super::simd::{F, LANES, Simd, simd};
use super::team::{Parts, Team};

/// Numbers that are worth a task.
const GRAIN: usize = 4096;

const TWICE_ROOT: f32 = 1.595_769_2; // 2 sqrt(2/π)
const CUBE: f32 = 0.044_715;

/// `y = gelu(x)`.
pub fn forward(team: &Team, x: &[f32], y: &mut [f32]) {
    let y = Parts::new(y);
    team.ranges(x.len(), GRAIN, |range| {
        // SAFETY: the ranges are disjoint.
        forward_part(team.isa, &x[range.clone()], unsafe { y.take(range) });
    });
}

/// `x` becomes `gelu(x)` again, and `dy` becomes `dx = dy · gelu'(x)`: both are wanted, and the
/// exponential is the dear part.
pub fn backward(team: &Team, x: &mut [f32], dy: &mut [f32]) {
    let n = x.len();
    let (x, dy) = (Parts::new(x), Parts::new(dy));
    team.ranges(n, GRAIN, |range| {
        // SAFETY: the ranges are disjoint.
        let (x, dy) = unsafe { (x.take(range.clone()), dy.take(range)) };
        backward_part(team.isa, x, dy);
    });
}

/// `sigmoid(2u)`.
#[inline(always)]
fn gate<S: Simd>(x: F<S>) -> F<S> {
    let inner = (x * x).mul_add(F::splat(TWICE_ROOT * CUBE), F::splat(TWICE_ROOT));
    sigmoid(x * inner)
}

simd! {
    pub fn forward_part<S>(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
            let x = F::<S>::load_some(x, 0.0);
            (x * gate(x)).store_some(y);
        }
    }

    /// `gelu' = s + x s (1 - s) · 2u'` with `s = sigmoid(2u)`.
    fn backward_part<S>(x: &mut [f32], dy: &mut [f32]) {
        for (x, dy) in x.chunks_mut(LANES).zip(dy.chunks_mut(LANES)) {
            let v = F::<S>::load_some(x, 0.0);
            let s = gate(v);
            let slope = (v * v).mul_add(F::splat(3.0 * TWICE_ROOT * CUBE), F::splat(TWICE_ROOT));
            let y = v * s;
            let d = (y * (F::splat(1.0) - s)).mul_add(slope, s);
            (F::load_some(dy, 0.0) * d).store_some(dy);
            y.store_some(x);
        }
    }
}
