//! The gradient of a batch, and the loss of one, on candle. The batch is split into parts of a fixed
//! number of tokens; parts run side by side, their sums are added in order.

use rayon::prelude::*;

use super::data::Row;
use crate::base::{Error, Monitor, Result};
use crate::model::{Dropout, Gpt, cross_entropy, math};

/// Tokens of a part: small enough that its activations stay in cache, and a batch has several.
const PART_TOKENS: usize = 512;

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

fn part_rows(row: &Row) -> usize {
    (PART_TOKENS / row.ids.len().max(1)).max(1)
}

fn loss_of(gpt: &Gpt, rows: &[Row], dropout: Option<&mut Dropout>) -> Result<(candle_core::Tensor, u64)> {
    let ids: Vec<&[u32]> = rows.iter().map(|r| r.ids.as_slice()).collect();
    let targets: Vec<u32> = rows.iter().flat_map(|r| r.targets.iter().copied()).collect();
    let count = targets.iter().filter(|t| **t != crate::model::IGNORE).count() as u64;
    let loss = gpt.forward(&ids, dropout).and_then(|logits| cross_entropy(&logits, targets)).map_err(math)?;
    Ok((loss, count))
}

fn nats(loss: &candle_core::Tensor) -> Result<f64> {
    loss.to_scalar::<f32>().map(f64::from).map_err(math)
}

/// Adds the gradient of the sum of `rows`' losses to `into`, which is laid out like
/// [`super::flat`]. `label` seeds the dropout of this batch.
///
/// # Errors
/// When candle fails.
pub fn gradient(gpt: &Gpt, rows: &[Row], seed: u64, label: &str, into: &mut [f32]) -> Result<Loss> {
    let mut loss = Loss::default();
    let Some(first) = rows.first() else { return Ok(loss) };
    let parts: Vec<(usize, &[Row])> = rows.chunks(part_rows(first)).enumerate().collect();
    // As many at a time as there are threads: more would only hold memory.
    for wave in parts.chunks(rayon::current_num_threads().max(1)) {
        let done: Vec<Result<(Loss, Vec<f32>)>> =
            wave.par_iter().map(|(i, part)| one_part(gpt, part, seed, &format!("{label}/{i}"))).collect();
        for part in done {
            let (part_loss, gradient) = part?;
            loss += part_loss;
            into.iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += g);
        }
    }
    Ok(loss)
}

fn one_part(gpt: &Gpt, rows: &[Row], seed: u64, label: &str) -> Result<(Loss, Vec<f32>)> {
    let mut dropout = Dropout::new(gpt.config.dropout, seed, label);
    let (loss, targets) = loss_of(gpt, rows, Some(&mut dropout))?;
    let gradients = loss.backward().map_err(math)?;
    let mut flat = Vec::with_capacity(gpt.config.parameters());
    for p in gpt.parameters() {
        let g = gradients
            .get(p.var.as_tensor())
            .ok_or_else(|| Error::bug(format!("no gradient of {}", p.name)))?;
        flat.extend(g.flatten_all().and_then(|g| g.to_vec1::<f32>()).map_err(math)?);
    }
    Ok((Loss { nats: nats(&loss)?, targets }, flat))
}

/// The loss over `rows` without dropout.
///
/// # Errors
/// When candle fails or somebody asked to stop.
pub fn evaluate(gpt: &Gpt, rows: &[Row], monitor: &dyn Monitor) -> Result<Loss> {
    let mut loss = Loss::default();
    let Some(first) = rows.first() else { return Ok(loss) };
    let parts: Vec<&[Row]> = rows.chunks(part_rows(first)).collect();
    let one = |part: &&[Row]| {
        monitor.check()?;
        let (sum, targets) = loss_of(gpt, part, None)?;
        Ok(Loss { nats: nats(&sum)?, targets })
    };
    let done: Vec<Result<Loss>> = parts.par_iter().map(one).collect();
    for part in done {
        loss += part?;
    }
    Ok(loss)
}
