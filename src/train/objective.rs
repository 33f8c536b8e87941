//! What a model is to learn: the loss of a batch, and its gradient.
//!
//! The loop ([`super::run`]) knows an [`Objective`] only; what is compared with what is the objective's.

use serde::{Deserialize, Serialize};

use super::data::{Batch, Data};
use crate::base::{Monitor, Result, Rng};
use crate::model::{Executor, Transformer, round_of};

/// A sum of losses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    pub nats: f64,
    pub targets: u64,
}

impl Loss {
    /// Nats a target.
    pub fn mean(&self) -> f64 {
        self.nats / self.targets as f64
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        self.nats += other.nats;
        self.targets += other.targets;
    }
}

/// Something to learn from batches.
pub trait Objective {
    /// Adds the gradient of the sum of the batch's losses to `into`, which is laid out like
    /// [`Transformer::trained`].
    /// `key` decides what dropout drops.
    fn gradient(
        &mut self,
        executor: &mut Executor,
        transformer: &Transformer,
        batch: &Batch,
        key: u64,
        into: &mut [f32],
    ) -> Loss;

    /// The loss that models are compared by, without dropout.
    fn loss(&mut self, executor: &mut Executor, transformer: &Transformer, batch: &Batch) -> Loss;
}

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

/// What decides which numbers are dropped in the batch of this `label`.
pub fn dropout_key(seed: u64, label: &str) -> u64 {
    Rng::new(seed, label).next_u64()
}

/// The loss over the first `rows` of `data`, without dropout.
///
/// # Errors
/// When somebody asked to stop.
pub fn evaluate(
    objective: &mut dyn Objective,
    executor: &mut Executor,
    transformer: &Transformer,
    data: &dyn Data,
    rows: usize,
    monitor: &dyn Monitor,
) -> Result<Loss> {
    let mut loss = Loss::default();
    let mut batch = Batch::default();
    let step = round_of(data.length());
    for first in (0..rows).step_by(step) {
        monitor.check()?;
        batch.fill(data, first..(first + step).min(rows));
        loss += objective.loss(executor, transformer, &batch);
    }
    Ok(loss)
}
