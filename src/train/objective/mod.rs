//! What a model is to learn: the loss of a batch, and its gradient.
//!
//! The loop ([`super::run`]) knows an [`Objective`] only; what is compared with what is the objective's.

mod distill;
mod next_token;

pub use distill::{Distill, DistillOptions, Likeliest, Source, Teachers};
pub use next_token::NextToken;

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
    /// Called before [`Objective::gradient`] with the same batch: for what has to be read or computed for it.
    ///
    /// # Errors
    /// When it cannot be.
    fn prepare(&mut self, _: &Batch) -> Result<()> {
        Ok(())
    }

    /// Adds the gradient of the sum of the batch's losses to `into`, which is laid out like
    /// [`Transformer::trained`]. `key` decides what dropout drops. Called with training batches only.
    fn gradient(
        &mut self,
        executor: &mut Executor,
        transformer: &Transformer,
        batch: &Batch,
        key: u64,
        into: &mut [f32],
    ) -> Loss;

    /// The loss that models are compared by, without dropout. Called with validation batches only.
    fn loss(&mut self, executor: &mut Executor, transformer: &Transformer, batch: &Batch) -> Loss;

    /// Further figures of the batches that [`Objective::loss`] was called with since the last report, such as
    /// an accuracy, by name. They go into the row of metrics that has the validation loss. A name is that of
    /// no [`Metric`](super::Metric)'s own column.
    fn report(&mut self) -> Vec<(&'static str, f64)> {
        Vec::new()
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
    let step = (round_of(data.length()) / data.sequences()).max(1);
    for first in (0..rows).step_by(step) {
        monitor.check()?;
        batch.fill(data, first..(first + step).min(rows));
        loss += objective.loss(executor, transformer, &batch);
    }
    Ok(loss)
}
