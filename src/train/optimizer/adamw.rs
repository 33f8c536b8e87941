//! AdamW: moving means of gradients and of their squares.

use super::{Group, Options, Rule, Step, end_to_end, numbers};
use crate::kernel::adamw::{State, Update, update};
use crate::kernel::{Buffer, Team};

/// Its state holds the groups end to end.
pub(super) struct AdamW {
    groups: Vec<Group>,
    first: Buffer,
    second: Buffer,
    /// `beta^steps`, of each moment.
    powers: [f64; 2],
    betas: [f64; 2],
    eps: f64,
}

impl AdamW {
    pub(super) fn new(groups: Vec<Group>, options: &Options) -> Self {
        let n = numbers(&groups);
        AdamW {
            groups,
            first: Buffer::new(n),
            second: Buffer::new(n),
            powers: [1.0; 2],
            betas: [options.beta1, options.beta2],
            eps: options.eps,
        }
    }
}

impl Rule for AdamW {
    fn update(&mut self, team: &Team, step: Step, weights: &mut [f32], gradient: &mut [f32]) {
        let ([beta1, beta2], [power1, power2]) = (self.betas, &mut self.powers);
        *power1 *= beta1;
        *power2 *= beta2;
        for (own, Group { range, ratio, weight_decay }) in end_to_end(&self.groups) {
            let rate = step.rate * ratio;
            let how = Update {
                scale: step.scale as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                step: (rate / (1.0 - *power1)) as f32,
                root: (1.0 / (1.0 - *power2).sqrt()) as f32,
                epsilon: self.eps as f32,
                keep: (1.0 - rate * weight_decay) as f32,
            };
            let state = State {
                weights: &mut weights[range.clone()],
                gradient: &mut gradient[range.clone()],
                first: &mut self.first[own.clone()],
                second: &mut self.second[own],
            };
            update(team, how, state);
        }
    }

    fn moments(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        vec![("adamw.first", &mut self.first), ("adamw.second", &mut self.second)]
    }

    fn numbers(&mut self) -> Vec<(&'static str, &mut f64)> {
        let [power1, power2] = &mut self.powers;
        vec![("adamw.beta1_power", power1), ("adamw.beta2_power", power2)]
    }
}
