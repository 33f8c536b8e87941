//! AdamW (Loshchilov and Hutter, 2019) and clipping, each in one pass over flat memory.

use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// Numbers of a task; the norm is a sum over such chunks, in their order.
pub(super) const CHUNK: usize = 16 * 1024;

/// What one update does to every number it is given.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Multiplies the gradient: what makes a mean of a sum, and clipping.
    pub scale: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// The learning rate over the first moment's correction.
    pub step: f32,
    /// 1 / sqrt of the second moment's correction.
    pub root: f32,
    pub epsilon: f32,
    /// Multiplies the weight first: decoupled decay.
    pub keep: f32,
}

/// The flat memory of some parameters.
pub struct State<'a> {
    pub weights: &'a mut [f32],
    /// Read, and set to 0 for the next step.
    pub gradient: &'a mut [f32],
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

/// Updates the weights.
pub fn update(team: &Team, how: Update, state: State) {
    let n = state.weights.len();
    let all = [state.weights, state.gradient, state.first, state.second].map(Parts::new);
    team.each(n.div_ceil(CHUNK), |task| {
        let range = task * CHUNK..((task + 1) * CHUNK).min(n);
        // SAFETY: the ranges are disjoint.
        let [w, g, m, v] = all.map(|part| unsafe { part.take(range.clone()) });
        update_part(team.isa, how, w, g, m, v);
    });
}

/// The sum of squares.
pub fn squares(team: &Team, x: &[f32]) -> f64 {
    let mut sums = vec![0f32; x.len().div_ceil(CHUNK)];
    let parts = Parts::new(&mut sums);
    team.each(x.len().div_ceil(CHUNK), |task| {
        let part = &x[task * CHUNK..((task + 1) * CHUNK).min(x.len())];
        // SAFETY: each task has its own.
        let sum = unsafe { parts.take(task..task + 1) };
        sum[0] = squares_part(team.isa, part);
    });
    sums.iter().map(|s| f64::from(*s)).sum()
}

simd! {
    fn update_part<S>(how: Update, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let c = F::<S>::splat;
        let vectors = w.chunks_mut(LANES).zip(g.chunks_mut(LANES));
        for ((w, g), (m, v)) in vectors.zip(m.chunks_mut(LANES).zip(v.chunks_mut(LANES))) {
            let gradient = F::<S>::load_some(g, 0.0) * c(how.scale);
            let fresh = gradient * c(1.0 - how.beta1);
            let first = F::load_some(m, 0.0).mul_add(c(how.beta1), fresh);
            let fresh = gradient * gradient * c(1.0 - how.beta2);
            let second = F::load_some(v, 0.0).mul_add(c(how.beta2), fresh);
            let divisor = second.sqrt().mul_add(c(how.root), c(how.epsilon));
            let weight = F::load_some(w, 0.0) * c(how.keep) - c(how.step) * first / divisor;
            weight.store_some(w);
            first.store_some(m);
            second.store_some(v);
            c(0.0).store_some(g);
        }
    }

    /// The sum of squares.
    pub fn squares_part<S>(x: &[f32]) -> f32 {
        let mut sum = F::<S>::splat(0.0);
        for x in x.chunks(LANES) {
            let x = F::load_some(x, 0.0);
            sum = x.mul_add(x, sum);
        }
        sum.sum()
    }
}
