//! When no weights will be better than the best.

use serde::{Deserialize, Serialize};

/// What the validations so far came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// The lowest loss.
    pub best: Option<f64>,
    without_improvement: u32,
}

impl EarlyStop {
    /// A validation; gives whether it is the best so far.
    pub fn add(&mut self, loss: f64) -> bool {
        if self.best.is_some_and(|best| loss >= best) {
            self.without_improvement += 1;
            return false;
        }
        self.best = Some(loss);
        self.without_improvement = 0;
        true
    }

    /// Whether `patience` validations brought no improvement; with 0 it never is.
    pub fn is_due(&self, patience: u32) -> bool {
        patience > 0 && self.without_improvement >= patience
    }
}
