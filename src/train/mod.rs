//! Training: rows of tokens in, a better model out.
//!
//! [`Trainer`] computes one step; [`run`] is the loop around it: schedule, validation, early stopping,
//! samples, metrics. The gradient of a batch is the sum over parts of a fixed size, computed side by
//! side and added in their order, so that the bytes do not depend on the number of threads.
//!
//! What is deliberately absent: wall-clock figures in anything that is written (they go to the
//! monitor), and kernels of our own (the gradient is candle's; [`gradient`] is the seam).

mod data;
mod gradient;
mod metrics;
mod optimizer;
mod packing;
mod schedule;

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use data::{Data, Order, Packed, Row, Windows};
pub use gradient::{Loss, evaluate, gradient};
pub use metrics::{Metric, Metrics, Sample, json_lines};
pub use optimizer::AdamW;
pub use packing::{Packing, pack};
pub use schedule::Schedule;

use crate::base::{Error, Monitor, Progress, Result, machine, units};
use crate::generate::{self, Strategy};
use crate::model::{Model, Parameter, math};

/// Which weights are kept at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Those with the lowest validation loss.
    #[default]
    Best,
    /// Those of the last step.
    Last,
}

/// How to train.
#[derive(Debug, Clone)]
pub struct Options {
    /// Updates of the weights.
    pub steps: u64,
    /// Rows of a forward and backward pass.
    pub batch_size: usize,
    /// Batches whose gradients are added up before an update.
    pub accumulate: usize,
    pub schedule: Schedule,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    /// The gradient's global norm is scaled down to this; 0 leaves it.
    pub clip: f64,
    /// Steps between validations; 0 validates at the end only.
    pub eval_every: u64,
    /// Rows of a validation at most.
    pub eval_rows: usize,
    /// Validations without improvement before it stops; 0 never stops early.
    pub patience: u32,
    /// Steps between samples; 0 writes them at the end only.
    pub sample_every: u64,
    pub prompts: Vec<String>,
    pub keep: Keep,
    pub seed: u64,
}

/// What training came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub steps: u64,
    pub tokens: u64,
    /// Mean over the last logged stretch, nats a token.
    pub loss: f64,
    /// Of the weights that were kept; `None` without validation rows.
    pub val_loss: Option<f64>,
    pub stopped_early: bool,
}

/// Steps between two rows of metrics.
const LOG_EVERY: u64 = 10;

/// Trains `model` in place and writes `metrics.jsonl`, `metrics.parquet` and `samples.jsonl`.
///
/// # Errors
/// Too little data, a loss that is not finite, a full disk, a wish to stop.
pub fn run(
    model: &Model,
    train: &dyn Data,
    validation: &dyn Data,
    options: &Options,
    folder: &Path,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let mut run = Run::new(model, train, validation, options, monitor)?;
    run.announce()?;
    while run.step < options.steps && !run.stopped_early {
        run.one_step()?;
    }
    run.finish(folder)
}

struct Run<'a> {
    model: &'a Model,
    train: &'a dyn Data,
    validation: &'a dyn Data,
    options: &'a Options,
    monitor: &'a dyn Monitor,
    order: Order,
    optimizer: AdamW,
    metrics: Metrics,
    step: u64,
    tokens: u64,
    /// Nats and targets since the last logged row.
    since: Loss,
    last_loss: f64,
    best: Option<(f64, Vec<f32>)>,
    bad_evals: u32,
    stopped_early: bool,
    begun: Instant,
}

impl<'a> Run<'a> {
    fn new(
        model: &'a Model,
        train: &'a dyn Data,
        validation: &'a dyn Data,
        options: &'a Options,
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        if train.rows() == 0 {
            return Err(Error::input("there is not one row of tokens to train on")
                .help("give it more text, or a smaller seq_len"));
        }
        Ok(Run {
            model,
            train,
            validation,
            options,
            monitor,
            order: Order::new(train.rows(), options.seed),
            optimizer: AdamW::new(model.gpt.parameters(), options)?,
            metrics: Metrics::default(),
            step: 0,
            tokens: 0,
            since: Loss::default(),
            last_loss: f64::NAN,
            best: None,
            bad_evals: 0,
            stopped_early: false,
            begun: Instant::now(),
        })
    }

    fn rows_per_step(&self) -> usize {
        self.options.batch_size * self.options.accumulate
    }

    /// Says how many parameters, how many tokens and about how long, from one gradient whose result
    /// is thrown away.
    fn announce(&mut self) -> Result<()> {
        let config = &self.model.gpt.config;
        let tokens = self.rows_per_step() as u64 * config.seq_len as u64;
        let batch: Vec<Row> =
            (0..self.options.batch_size).map(|i| self.train.row(i % self.train.rows())).collect();
        let begun = Instant::now();
        gradient(&self.model.gpt, &batch, self.options.seed, "announce", &mut self.optimizer.gradient)?;
        self.optimizer.gradient.fill(0.0);
        let about = begun.elapsed() * self.options.accumulate as u32 * self.options.steps.max(1) as u32;
        tracing::info!(
            "{} parameters; {} steps of {} tokens = {} tokens, {:.1} times over the data; about {} on {} threads",
            units::count(config.parameters() as u64),
            units::count(self.options.steps),
            units::count(tokens),
            units::count(tokens * self.options.steps),
            (self.rows_per_step() as u64 * self.options.steps) as f64 / self.train.rows() as f64,
            units::duration(about),
            rayon::current_num_threads()
        );
        self.begun = Instant::now();
        Ok(())
    }

    fn one_step(&mut self) -> Result<()> {
        self.monitor.check()?;
        let mut loss = Loss::default();
        for part in 0..self.options.accumulate {
            let batch: Vec<Row> =
                (0..self.options.batch_size).map(|_| self.train.row(self.order.next())).collect();
            let label = format!("dropout/{}/{part}", self.step);
            let target = &mut self.optimizer.gradient;
            loss += gradient(&self.model.gpt, &batch, self.options.seed, &label, target)?;
            self.tokens += batch.iter().map(|r| r.tokens as u64).sum::<u64>();
        }
        self.step += 1;
        if !loss.nats.is_finite() {
            return Err(Error::input(format!("the loss at step {} is {}", self.step, loss.nats))
                .help("lower `learning_rate`, raise `warmup_steps`, or set `clip: 1.0`"));
        }
        let rate = self.options.schedule.rate(self.step, self.options.steps);
        let norm = self.optimizer.update(self.model.gpt.parameters(), rate, loss.targets)?;
        self.since += loss;
        let done = self.step == self.options.steps;
        let every = |n: u64| n > 0 && self.step.is_multiple_of(n);
        let (evaluate, sample) = (every(self.options.eval_every) || done, every(self.options.sample_every));
        if every(LOG_EVERY) || evaluate {
            self.log(rate, norm, evaluate)?;
        }
        if sample && !done {
            self.sample()?;
        }
        self.report(loss);
        Ok(())
    }

    fn log(&mut self, rate: f64, norm: f64, evaluate: bool) -> Result<()> {
        let loss = std::mem::take(&mut self.since);
        self.last_loss = loss.mean();
        let val_loss = if evaluate { self.evaluate()? } else { None };
        let metric = Metric {
            step: self.step,
            tokens: self.tokens,
            loss: self.last_loss,
            val_loss,
            learning_rate: rate,
            grad_norm: norm,
        };
        match val_loss {
            Some(v) => tracing::info!("step {}: loss {:.4}, validation {v:.4}", self.step, self.last_loss),
            None => tracing::debug!("step {}: loss {:.4}", self.step, self.last_loss),
        }
        self.metrics.rows.push(metric);
        Ok(())
    }

    /// The validation loss; keeps the best weights and counts what is no better.
    fn evaluate(&mut self) -> Result<Option<f64>> {
        let rows = self.validation.rows().min(self.options.eval_rows);
        if rows == 0 {
            return Ok(None);
        }
        let batch: Vec<Row> = (0..rows).map(|i| self.validation.row(i)).collect();
        let loss = evaluate(&self.model.gpt, &batch, self.monitor)?.mean();
        if self.best.as_ref().is_none_or(|(best, _)| loss < *best) {
            let weights =
                if self.options.keep == Keep::Best { self.optimizer.weights.clone() } else { Vec::new() };
            self.best = Some((loss, weights));
            self.bad_evals = 0;
        } else {
            self.bad_evals += 1;
            self.stopped_early = self.options.patience > 0 && self.bad_evals >= self.options.patience;
        }
        Ok(Some(loss))
    }

    fn sample(&mut self) -> Result<()> {
        for (i, prompt) in self.options.prompts.iter().enumerate() {
            let options = generate::Options {
                strategy: Strategy::Sample,
                temperature: 0.8,
                top_k: 40,
                max_new_tokens: 60,
                seed: self.options.seed.wrapping_add(i as u64),
                ..Default::default()
            };
            let text = generate::text(self.model, prompt, &options)?;
            tracing::info!("sample at step {}: {prompt}{text}", self.step);
            self.metrics.samples.push(Sample { step: self.step, prompt: prompt.clone(), text });
        }
        Ok(())
    }

    fn report(&self, loss: Loss) {
        let rate = self.tokens as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        self.monitor.progress(Progress {
            phase: "training".into(),
            done: self.step,
            total: Some(self.options.steps),
            unit: "steps",
            note: format!("loss {:.3} · {} tok/s", loss.mean(), units::count(rate as u64)),
        });
    }

    fn finish(mut self, folder: &Path) -> Result<Outcome> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let kept = self.best.take();
        if let Some((_, weights)) =
            kept.as_ref().filter(|(_, w)| self.options.keep == Keep::Best && !w.is_empty())
        {
            optimizer::put(self.model.gpt.parameters(), weights)?;
        }
        self.sample()?;
        self.metrics.save(folder)?;
        self.monitor.measure("tokens_per_s", self.tokens as f64 / seconds.max(1e-9), "tok/s");
        if let Some(peak) = machine::peak_memory() {
            self.monitor.measure("peak_memory", peak as f64 / f64::from(1 << 20), "MiB");
        }
        if self.stopped_early {
            tracing::info!(
                "stopped early at step {}: {} validations without improvement",
                self.step,
                self.bad_evals
            );
        }
        let last = self.metrics.rows.iter().rev().find_map(|m| m.val_loss);
        let best = kept.map(|(loss, _)| loss);
        Ok(Outcome {
            steps: self.step,
            tokens: self.tokens,
            loss: self.last_loss,
            val_loss: if self.options.keep == Keep::Best { best } else { last },
            stopped_early: self.stopped_early,
        })
    }
}

/// All parameters end to end, in their order.
pub fn flat(parameters: &[Parameter]) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    for p in parameters {
        out.extend(p.var.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(math)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
