//! Training: rows of tokens in, a better model out.
//!
//! [`run`] is the loop: batches, schedule, validation, early stopping, samples, metrics. The gradient and
//! the update are the kernels' ([`crate::model::Executor`], [`AdamW`]); the bytes do not depend on the number
//! of threads.
//!
//! What is deliberately absent: wall-clock figures in anything that is written (they go to the
//! monitor).

mod data;
mod gradient;
mod metrics;
mod optimizer;
mod packing;
mod schedule;

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use data::{Data, Order, Packed, Windows};
pub use gradient::{Batch, Loss, evaluate, gradient};
pub use metrics::{Metric, Metrics, Sample, json_lines};
pub use optimizer::AdamW;
pub use packing::{Packing, pack, shortest_row};
pub use schedule::Schedule;

use crate::base::{Error, Monitor, Progress, Result, machine, units};
use crate::generate::{self, Strategy};
use crate::kernel::{Dtype, Team};
use crate::model::{Executor, Model};

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
    /// Of matrix products.
    pub dtype: Dtype,
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
    model: &mut Model,
    train: &dyn Data,
    validation: &dyn Data,
    options: &Options,
    folder: &Path,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let mut run = Run::new(model, train, validation, options, monitor)?;
    if validation.rows() == 0 {
        tracing::warn!("{}", without_validation(options));
    }
    run.announce()?;
    while run.step < options.steps && !run.stopped_early {
        run.one_step()?;
    }
    run.finish(folder)
}

/// What a training without validation rows does not do.
fn without_validation(options: &Options) -> String {
    let mut text = "nothing is held out: no validation loss is measured".to_string();
    if options.keep == Keep::Best {
        text += "; `keep: best` keeps the weights of the last step";
    }
    if options.patience > 0 {
        text += &format!("; `patience: {}` never stops the training", options.patience);
    }
    text
}

struct Run<'a> {
    model: &'a mut Model,
    train: &'a dyn Data,
    validation: &'a dyn Data,
    options: &'a Options,
    monitor: &'a dyn Monitor,
    order: Order,
    executor: Executor,
    batch: Batch,
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
    /// Spent on filling batches: what the kernels wait for data.
    waited: Duration,
}

impl<'a> Run<'a> {
    fn new(
        model: &'a mut Model,
        train: &'a dyn Data,
        validation: &'a dyn Data,
        options: &'a Options,
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        if train.rows() == 0 {
            return Err(Error::input("there is not one token to train on").help("give it more text"));
        }
        let team = Team::new(rayon::current_num_threads()).in_dtype(options.dtype);
        Ok(Run {
            executor: Executor::training(&model.transformer.config, team),
            batch: Batch::default(),
            optimizer: AdamW::new(&model.transformer, options),
            model,
            train,
            validation,
            options,
            monitor,
            order: Order::new(train.rows(), options.seed),
            metrics: Metrics::default(),
            step: 0,
            tokens: 0,
            since: Loss::default(),
            last_loss: f64::NAN,
            best: None,
            bad_evals: 0,
            stopped_early: false,
            begun: Instant::now(),
            waited: Duration::ZERO,
        })
    }

    fn rows_per_step(&self) -> usize {
        self.options.batch_size * self.options.accumulate
    }

    /// Says how many parameters, how many tokens and about how long, from one gradient whose result
    /// is thrown away.
    fn announce(&mut self) -> Result<()> {
        let config = self.model.transformer.config.clone();
        let tokens = self.rows_per_step() as u64 * config.seq_len as u64;
        let rows = self.train.rows();
        self.batch.fill(self.train, (0..self.options.batch_size).map(|i| i % rows));
        let mut took = Duration::ZERO;
        // The first touches the memory; the second tells.
        for _ in 0..2 {
            let begun = Instant::now();
            self.gradient("announce");
            took = begun.elapsed();
        }
        self.optimizer.gradient.fill(0.0);
        let about = took * self.options.accumulate as u32 * self.options.steps.max(1) as u32;
        tracing::info!(
            "{} parameters; {} steps of {} tokens = {} tokens, {:.1} times over the data; about {} on {} threads",
            units::count(config.parameters() as u64),
            units::count(self.options.steps),
            units::count(tokens),
            units::count(tokens * self.options.steps),
            (self.rows_per_step() as u64 * self.options.steps) as f64 / self.train.rows() as f64,
            units::duration(about),
            self.executor.team().threads()
        );
        self.begun = Instant::now();
        Ok(())
    }

    /// Adds the gradient of the batch.
    fn gradient(&mut self, label: &str) -> Loss {
        let target = &mut self.optimizer.gradient;
        gradient(&mut self.executor, &self.model.transformer, &self.batch, self.options.seed, label, target)
    }

    fn one_step(&mut self) -> Result<()> {
        self.monitor.check()?;
        let mut loss = Loss::default();
        for part in 0..self.options.accumulate {
            let begun = Instant::now();
            let rows: Vec<usize> = (0..self.options.batch_size).map(|_| self.order.next()).collect();
            self.batch.fill(self.train, rows.into_iter());
            self.waited += begun.elapsed();
            loss += self.gradient(&format!("dropout/{}/{part}", self.step));
            self.tokens += self.batch.tokens;
        }
        self.step += 1;
        self.finite("loss", loss.nats)?;
        let rate = self.options.schedule.rate(self.step, self.options.steps);
        let norm = self.optimizer.norm(self.executor.team(), loss.targets);
        self.finite("norm of the gradient", norm)?;
        self.optimizer.update(
            self.executor.team(),
            &mut self.model.transformer.weights,
            rate,
            loss.targets,
            norm,
        );
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

    /// A figure from which on nothing can be learned is an error, not something to save.
    fn finite(&self, what: &str, value: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        Err(Error::input(format!("the {what} at step {} is {value}", self.step))
            .help("lower `learning_rate`, raise `warmup_steps`, or set `clip: 1.0`"))
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
        let loss =
            evaluate(&mut self.executor, &self.model.transformer, self.validation, rows, self.monitor)?
                .mean();
        self.finite("validation loss", loss)?;
        if self.best.as_ref().is_none_or(|(best, _)| loss < *best) {
            let weights = if self.options.keep == Keep::Best {
                self.model.transformer.weights.to_vec()
            } else {
                Vec::new()
            };
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
            let text = generate::text(self.model, prompt, &options, self.executor.team().threads())?;
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
            self.model.transformer.weights.copy_from_slice(weights);
        }
        // Without validation, what the last update made was looked at by nobody yet.
        let odd = self.model.transformer.weights.iter().find(|w| !w.is_finite());
        self.finite("last update's weight", odd.map_or(0.0, |w| f64::from(*w)))?;
        self.sample()?;
        self.metrics.save(folder)?;
        self.monitor.measure("tokens_per_s", self.tokens as f64 / seconds.max(1e-9), "tok/s");
        let waited = 100.0 * self.waited.as_secs_f64() / seconds.max(1e-9);
        self.monitor.measure("waiting_for_data", waited, "%");
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

#[cfg(test)]
mod tests;
