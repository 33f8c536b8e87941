//! AdamW over a model's parameters: what decays, what a step's size is, and the memory of the moments.

use super::Options;
use crate::kernel::adamw::{State, Update, squares, update};
use crate::kernel::{Buffer, Team};
use crate::model::Transformer;

const EPSILON: f32 = 1e-8;

/// The optimizer's state. All memory is laid out like the weights.
pub struct AdamW {
    pub gradient: Buffer,
    first: Buffer,
    second: Buffer,
    /// (length, decays): matrices decay, norms and biases do not.
    spans: Vec<(usize, bool)>,
    /// `beta^steps`, of each moment.
    powers: [f64; 2],
    beta1: f64,
    beta2: f64,
    decay: f64,
    clip: f64,
}

impl AdamW {
    pub fn new(transformer: &Transformer, options: &Options) -> Self {
        let n = transformer.weights.len();
        let mut spans: Vec<(usize, bool)> = Vec::new();
        for p in transformer.parameters() {
            let decays = p.shape.len() > 1;
            match spans.last_mut() {
                Some((len, same)) if *same == decays => *len += p.range.len(),
                _ => spans.push((p.range.len(), decays)),
            }
        }
        AdamW {
            gradient: Buffer::new(n),
            first: Buffer::new(n),
            second: Buffer::new(n),
            spans,
            powers: [1.0; 2],
            beta1: options.beta1,
            beta2: options.beta2,
            decay: options.weight_decay,
            clip: options.clip,
        }
    }

    /// The norm of the mean gradient, where `gradient` is a sum over `targets`.
    pub fn norm(&self, team: &Team, targets: u64) -> f64 {
        squares(team, &self.gradient).sqrt() / targets.max(1) as f64
    }

    /// Applies the gradient, a sum over `targets` whose mean has this `norm`, and clears it.
    pub fn update(&mut self, team: &Team, weights: &mut [f32], rate: f64, targets: u64, norm: f64) {
        let mean = 1.0 / targets.max(1) as f64;
        let scale = if self.clip > 0.0 && norm > self.clip { mean * self.clip / norm } else { mean };
        self.powers[0] *= self.beta1;
        self.powers[1] *= self.beta2;
        let mut start = 0;
        for (len, decays) in &self.spans {
            let span = start..start + len;
            start += len;
            let how = Update {
                scale: scale as f32,
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                step: (rate / (1.0 - self.powers[0])) as f32,
                root: (1.0 / (1.0 - self.powers[1]).sqrt()) as f32,
                epsilon: EPSILON,
                keep: if *decays { (1.0 - rate * self.decay) as f32 } else { 1.0 },
            };
            let state = State {
                weights: &mut weights[span.clone()],
                gradient: &mut self.gradient[span.clone()],
                first: &mut self.first[span.clone()],
                second: &mut self.second[span],
            };
            update(team, how, state);
        }
    }
}
