//! Stochastic gradient descent; with momentum, the velocity is `v ← momentum · v + gradient`.

use super::{Group, Options, Rule, Step, end_to_end, numbers};
use crate::kernel::sgd::{Update, update};
use crate::kernel::{Buffer, Team};

/// Its state holds the groups end to end, if there is momentum.
pub(super) struct Sgd {
    groups: Vec<Group>,
    velocity: Buffer,
    momentum: f64,
}

impl Sgd {
    pub(super) fn new(groups: Vec<Group>, options: &Options) -> Self {
        let n = numbers(&groups);
        let velocity = Buffer::new(if options.momentum > 0.0 { n } else { 0 });
        Sgd { groups, velocity, momentum: options.momentum }
    }
}

impl Rule for Sgd {
    fn update(&mut self, team: &Team, step: Step, weights: &mut [f32], gradient: &mut [f32]) {
        for (own, Group { range, ratio, weight_decay }) in end_to_end(&self.groups) {
            let rate = step.rate * ratio;
            let how = Update {
                scale: step.scale as f32,
                rate: rate as f32,
                momentum: self.momentum as f32,
                keep: (1.0 - rate * weight_decay) as f32,
            };
            let velocity = if self.velocity.is_empty() { &mut [] } else { &mut self.velocity[own] };
            update(team, how, &mut weights[range.clone()], &mut gradient[range.clone()], velocity);
        }
    }

    fn moments(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        if self.velocity.is_empty() { Vec::new() } else { vec![("sgd.velocity", &mut self.velocity)] }
    }
}
