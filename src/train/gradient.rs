//! Batches, and what the kernels make of them: the loss, and its gradient.

use super::data::Data;
use crate::base::{Monitor, Result, Rng};
use crate::model::{Executor, IGNORE, Sequences, Transformer, round_of};

/// A sum of cross-entropies.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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

/// Rows of one length, end to end, in memory that is used again for the next batch.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    pub length: usize,
    /// Ids that are not padding.
    pub tokens: u64,
}

impl Batch {
    /// The rows of `data` with these numbers.
    pub fn fill(&mut self, data: &dyn Data, rows: impl ExactSizeIterator<Item = usize>) {
        self.length = data.length();
        self.tokens = 0;
        let size = rows.len() * self.length;
        self.ids.resize(size, 0);
        self.targets.resize(size, IGNORE);
        let places = self.ids.chunks_exact_mut(self.length).zip(self.targets.chunks_exact_mut(self.length));
        for (row, (ids, targets)) in rows.zip(places) {
            self.tokens += data.fill(row, ids, targets) as u64;
        }
    }

    fn sequences(&self) -> Sequences<'_> {
        Sequences { ids: &self.ids, targets: &self.targets, length: self.length }
    }

    fn counted(&self) -> u64 {
        self.targets.iter().filter(|t| **t != IGNORE).count() as u64
    }
}

/// Adds the gradient of the sum of the batch's losses to `into`, which is laid out like the weights.
/// `label` seeds the dropout of this batch.
pub fn gradient(
    executor: &mut Executor,
    transformer: &Transformer,
    batch: &Batch,
    seed: u64,
    label: &str,
    into: &mut [f32],
) -> Loss {
    let key = Rng::new(seed, label).next_u64();
    Loss { nats: executor.gradient(transformer, batch.sequences(), key, 0.0, into), targets: batch.counted() }
}

/// The loss over the first `rows` of `data`, without dropout.
///
/// # Errors
/// When somebody asked to stop.
pub fn evaluate(
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
        loss += Loss { nats: executor.loss(transformer, batch.sequences()), targets: batch.counted() };
    }
    Ok(loss)
}
