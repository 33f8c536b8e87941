//! Prediction of the next token.

use super::{Loss, Objective};
use crate::model::{Executor, Transformer};
use crate::train::Batch;

/// Each token is to be followed by its target.
#[derive(Debug, Clone, Copy, Default)]
pub struct NextToken {
    /// The share of a target's probability that all tokens divide among themselves while training
    /// (Szegedy et al., 2016). The loss that models are compared by has none.
    pub label_smoothing: f64,
}

impl Objective for NextToken {
    fn gradient(
        &mut self,
        executor: &mut Executor,
        transformer: &Transformer,
        batch: &Batch,
        key: u64,
        into: &mut [f32],
    ) -> Loss {
        let smoothing = self.label_smoothing as f32;
        let nats = executor.gradient(transformer, batch.sequences(), key, smoothing, into);
        Loss { nats, targets: batch.counted() }
    }

    fn loss(&mut self, executor: &mut Executor, transformer: &Transformer, batch: &Batch) -> Loss {
        Loss { nats: executor.loss(transformer, batch.sequences()), targets: batch.counted() }
    }
}
