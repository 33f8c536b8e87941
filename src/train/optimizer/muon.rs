//! Muon, for hidden matrices: each of those that lie side by side in a tensor for itself.

use super::{Options, Rule, Step};
use crate::kernel::muon::{Matrices, Matrix, State, Update, update};
use crate::kernel::{Buffer, Team};
use crate::model::Parameter;

/// Its state holds the tensors end to end.
pub(super) struct Muon {
    matrices: Matrices,
    momenta: Buffer,
    momentum: f64,
    /// Its learning rate over that of the schedule.
    ratio: f64,
    weight_decay: f64,
}

impl Muon {
    pub(super) fn new(tensors: &[&Parameter], options: &Options) -> Self {
        let (mut matrices, mut end) = (Vec::new(), 0);
        for tensor in tensors {
            matrices.extend(tensor.columns.iter().map(|columns| Matrix {
                start: tensor.range.start + columns.start,
                momentum: end + columns.start,
                rows: tensor.shape[0],
                columns: columns.len(),
                stride: tensor.shape[1],
            }));
            end += tensor.range.len();
        }
        Muon {
            matrices: Matrices::new(matrices),
            momenta: Buffer::new(end),
            momentum: options.momentum,
            ratio: options.muon_learning_rate / options.learning_rate,
            weight_decay: options.muon_weight_decay,
        }
    }
}

impl Rule for Muon {
    fn update(&mut self, team: &Team, step: Step, weights: &mut [f32], gradient: &mut [f32]) {
        let rate = step.rate * self.ratio;
        let how = Update {
            scale: step.scale as f32,
            momentum: self.momentum as f32,
            rate,
            keep: (1.0 - rate * self.weight_decay) as f32,
        };
        update(team, how, &self.matrices, State { weights, gradient, momentum: &mut self.momenta });
    }

    fn moments(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        vec![("muon.momentum", &mut self.momenta)]
    }
}
