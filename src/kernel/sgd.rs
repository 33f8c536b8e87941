//! Stochastic gradient descent, with momentum where it has memory for it, in one pass over flat memory.

use super::adamw::CHUNK;
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// What one update does to every number it is given.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Multiplies the gradient: what makes a mean of a sum, and clipping.
    pub scale: f32,
    /// The learning rate.
    pub rate: f32,
    /// Multiplies the velocity before the gradient is added to it.
    pub momentum: f32,
    /// Multiplies the weight first: decoupled decay.
    pub keep: f32,
}

/// Updates the weights; reads the gradient and sets it to 0. Without momentum `velocity` is empty.
pub fn update(team: &Team, how: Update, weights: &mut [f32], gradient: &mut [f32], velocity: &mut [f32]) {
    let (n, has_velocity) = (weights.len(), !velocity.is_empty());
    let [weights, gradient, velocity] = [weights, gradient, velocity].map(Parts::new);
    team.each(n.div_ceil(CHUNK), |task| {
        let range = task * CHUNK..((task + 1) * CHUNK).min(n);
        // SAFETY: the ranges are disjoint.
        let [w, g] = [weights, gradient].map(|part| unsafe { part.take(range.clone()) });
        if has_velocity {
            with_momentum(team.isa, how, w, g, unsafe { velocity.take(range) });
        } else {
            plain(team.isa, how, w, g);
        }
    });
}

simd! {
    fn plain<S>(how: Update, w: &mut [f32], g: &mut [f32]) {
        let c = F::<S>::splat;
        for (w, g) in w.chunks_mut(LANES).zip(g.chunks_mut(LANES)) {
            let gradient = F::<S>::load_some(g, 0.0) * c(how.scale);
            (F::load_some(w, 0.0) * c(how.keep) - c(how.rate) * gradient).store_some(w);
            c(0.0).store_some(g);
        }
    }

    fn with_momentum<S>(how: Update, w: &mut [f32], g: &mut [f32], v: &mut [f32]) {
        let c = F::<S>::splat;
        for ((w, g), v) in w.chunks_mut(LANES).zip(g.chunks_mut(LANES)).zip(v.chunks_mut(LANES)) {
            let gradient = F::<S>::load_some(g, 0.0) * c(how.scale);
            let velocity = F::load_some(v, 0.0).mul_add(c(how.momentum), gradient);
            (F::load_some(w, 0.0) * c(how.keep) - c(how.rate) * velocity).store_some(w);
            velocity.store_some(v);
            c(0.0).store_some(g);
        }
    }
}
