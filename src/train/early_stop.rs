//! Which weights were the best, and when none will be better.

use super::Keep;

/// What the validations so far came to.
pub struct EarlyStop {
    keep: Keep,
    /// Validations without improvement before it is due; 0: never.
    patience: u32,
    best: Option<f64>,
    /// Those of the best validation, where they are to be kept.
    weights: Vec<f32>,
    without_improvement: u32,
}

impl EarlyStop {
    pub fn new(keep: Keep, patience: u32) -> Self {
        EarlyStop { keep, patience, best: None, weights: Vec::new(), without_improvement: 0 }
    }

    /// A validation of `weights`.
    pub fn add(&mut self, loss: f64, weights: &[f32]) {
        if self.best.is_some_and(|best| loss >= best) {
            self.without_improvement += 1;
            return;
        }
        self.best = Some(loss);
        self.without_improvement = 0;
        if self.keep == Keep::Best {
            self.weights.clear();
            self.weights.extend_from_slice(weights);
        }
    }

    pub fn is_due(&self) -> bool {
        self.patience > 0 && self.without_improvement >= self.patience
    }

    pub fn best_loss(&self) -> Option<f64> {
        self.best
    }

    /// Those of the best validation, if there was one and they are what is kept.
    pub fn best_weights(&self) -> Option<&[f32]> {
        (!self.weights.is_empty()).then_some(&self.weights)
    }
}
