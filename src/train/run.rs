//! The loop: batches, updates, validations, samples, metrics. It knows objectives and optimizers, no
//! architectures.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::averaging::Average;
use super::data::{Batch, Data, Order};
use super::early_stop::EarlyStop;
use super::metrics::{Metric, Metrics, Sample};
use super::objective::{Loss, Objective, dropout_key, evaluate};
use super::optimizer::Optimizer;
use super::{Keep, Options, Outcome};
use crate::base::{Error, Monitor, Progress, Result, machine, units};
use crate::generate::{self, Strategy};
use crate::kernel::Team;
use crate::model::{Executor, Model};

/// Steps between two rows of metrics.
const LOG_EVERY: u64 = 10;

/// Trains `model` in place and writes `metrics.jsonl`, `metrics.parquet` and `samples.jsonl`.
///
/// # Errors
/// Too little data, a loss that is not finite, a full disk, a wish to stop.
pub fn run(
    model: &mut Model,
    objective: &mut dyn Objective,
    train: &dyn Data,
    validation: &dyn Data,
    options: &Options,
    folder: &Path,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let mut run = Run::new(model, objective, train, validation, options, monitor)?;
    if validation.rows() == 0 {
        tracing::warn!("{}", without_validation(options));
    }
    if options.schedule.floor > options.schedule.peak {
        tracing::warn!(
            "`min_learning_rate` {} is above `learning_rate` {}: the learning rate rises to it",
            options.schedule.floor,
            options.schedule.peak
        );
    }
    run.announce()?;
    while run.step < run.steps && !run.early_stop.is_due() {
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
    objective: &'a mut dyn Objective,
    train: &'a dyn Data,
    validation: &'a dyn Data,
    options: &'a Options,
    monitor: &'a dyn Monitor,
    order: Order,
    executor: Executor,
    batch: Batch,
    optimizer: Optimizer,
    average: Option<Average>,
    metrics: Metrics,
    step: u64,
    /// In all.
    steps: u64,
    tokens: u64,
    /// Nats and targets since the last logged row.
    since: Loss,
    last_loss: f64,
    early_stop: EarlyStop,
    begun: Instant,
    /// Spent on filling batches: what the kernels wait for data.
    waited: Duration,
}

impl<'a> Run<'a> {
    fn new(
        model: &'a mut Model,
        objective: &'a mut dyn Objective,
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
            optimizer: Optimizer::new(&model.transformer, &options.optimizer),
            average: options.average.map(|decay| Average::new(decay, model.transformer.trained())),
            model,
            objective,
            train,
            validation,
            options,
            monitor,
            order: Order::new(train.rows(), options.seed),
            metrics: Metrics::default(),
            step: 0,
            steps: options.steps(train.rows()),
            tokens: 0,
            since: Loss::default(),
            last_loss: f64::NAN,
            early_stop: EarlyStop::new(options.keep, options.patience),
            begun: Instant::now(),
            waited: Duration::ZERO,
        })
    }

    /// Says how many parameters, how many tokens and about how long, from one gradient whose result
    /// is thrown away.
    fn announce(&mut self) -> Result<()> {
        let row = self.train.sequences() * self.train.length();
        let tokens = (self.options.rows_per_step() * row) as u64;
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
        let about = took.as_secs_f64() * self.options.accumulate as f64 * self.steps as f64;
        tracing::info!(
            "{} parameters; {} steps of {} tokens = {} tokens, {:.1} times over the data; about {} on {} threads",
            units::count(self.model.transformer.weights.len() as u64),
            units::count(self.steps),
            units::count(tokens),
            units::count(tokens.saturating_mul(self.steps)),
            self.options.rows_per_step() as f64 * self.steps as f64 / self.train.rows() as f64,
            units::duration(Duration::try_from_secs_f64(about).unwrap_or(Duration::MAX)),
            self.executor.team().threads()
        );
        self.begun = Instant::now();
        Ok(())
    }

    /// Adds the gradient of the batch.
    fn gradient(&mut self, label: &str) -> Loss {
        let (transformer, key) = (&self.model.transformer, dropout_key(self.options.seed, label));
        let into = &mut self.optimizer.gradient;
        self.objective.gradient(&mut self.executor, transformer, &self.batch, key, into)
    }

    fn one_step(&mut self) -> Result<()> {
        self.monitor.check()?;
        let loss = self.batches();
        self.step += 1;
        self.finite("loss", loss.nats)?;
        let rate = self.options.schedule.rate(self.step, self.steps);
        let norm = self.update(rate, loss.targets)?;
        self.since += loss;
        let done = self.step == self.steps;
        let every = |n: u64| n > 0 && self.step.is_multiple_of(n);
        let (evaluate, sample) = (every(self.options.eval_every) || done, every(self.options.sample_every));
        if every(LOG_EVERY) || evaluate {
            self.log(rate, norm, evaluate)?;
        }
        if sample && !done {
            self.swap_average();
            self.sample()?;
            self.swap_average();
        }
        self.report(loss);
        Ok(())
    }

    /// Adds the gradients of the batches of a step.
    fn batches(&mut self) -> Loss {
        let mut loss = Loss::default();
        for batch in 0..self.options.accumulate {
            let begun = Instant::now();
            let rows: Vec<usize> = (0..self.options.batch_size).map(|_| self.order.next()).collect();
            self.batch.fill(self.train, rows.into_iter());
            self.waited += begun.elapsed();
            loss += self.gradient(&format!("dropout/{}/{batch}", self.step));
            self.tokens += self.batch.tokens;
        }
        loss
    }

    /// Changes the weights by the gradient, a sum over `targets`; gives the norm of its mean.
    fn update(&mut self, rate: f64, targets: u64) -> Result<f64> {
        let norm = self.optimizer.norm(self.executor.team(), targets);
        self.finite("norm of the gradient", norm)?;
        let (team, weights) = (self.executor.team(), self.model.transformer.trained_mut());
        self.optimizer.update(team, weights, rate, targets, norm);
        if let Some(average) = &mut self.average {
            average.add(team, weights);
        }
        Ok(norm)
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
        let (val_loss, further) = if evaluate { self.evaluate()? } else { Default::default() };
        let metric = Metric {
            step: self.step,
            tokens: self.tokens,
            loss: self.last_loss,
            val_loss,
            learning_rate: rate,
            grad_norm: norm,
            further,
        };
        match val_loss {
            Some(v) => tracing::info!(
                "step {}: loss {:.4}, validation {v:.4}{}",
                self.step,
                self.last_loss,
                metric.further.iter().map(|(name, x)| format!(", {name} {x:.4}")).collect::<String>()
            ),
            None => tracing::debug!("step {}: loss {:.4}", self.step, self.last_loss),
        }
        self.metrics.rows.push(metric);
        Ok(())
    }

    /// Changes the weights for their average, if there is one, and back when called again.
    fn swap_average(&mut self) {
        if let Some(average) = &mut self.average {
            average.swap(self.model.transformer.trained_mut());
        }
    }

    /// The validation loss and what else the objective reports; keeps the best weights and counts what is no
    /// better.
    fn evaluate(&mut self) -> Result<(Option<f64>, BTreeMap<String, f64>)> {
        let rows = self.validation.rows().min(self.options.eval_rows);
        if rows == 0 {
            return Ok(Default::default());
        }
        self.swap_average();
        let transformer = &self.model.transformer;
        let executor = &mut self.executor;
        let loss =
            evaluate(self.objective, executor, transformer, self.validation, rows, self.monitor)?.mean();
        self.finite("validation loss", loss)?;
        self.early_stop.add(loss, self.model.transformer.trained());
        self.swap_average();
        let further = self.objective.report().into_iter().map(|(name, x)| (name.to_string(), x)).collect();
        Ok((Some(loss), further))
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
            total: Some(self.steps),
            unit: "steps",
            note: format!("loss {:.3} · {} tok/s", loss.mean(), units::count(rate as u64)),
        });
    }

    fn finish(mut self, folder: &Path) -> Result<Outcome> {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.swap_average();
        if let Some(weights) = self.early_stop.best_weights() {
            self.model.transformer.trained_mut().copy_from_slice(weights);
        }
        // Without validation, what the last update made was looked at by nobody yet.
        let odd = self.model.transformer.trained().iter().find(|w| !w.is_finite());
        self.finite("last update's weight", odd.map_or(0.0, |w| f64::from(*w)))?;
        self.sample()?;
        self.metrics.save(folder)?;
        self.monitor.measure("tokens_per_s", self.tokens as f64 / seconds.max(1e-9), "tok/s");
        let waited = 100.0 * self.waited.as_secs_f64() / seconds.max(1e-9);
        self.monitor.measure("waiting_for_data", waited, "%");
        if let Some(peak) = machine::peak_memory() {
            self.monitor.measure("peak_memory", peak as f64 / f64::from(1 << 20), "MiB");
        }
        if self.early_stop.is_due() {
            tracing::info!(
                "stopped early at step {}: {} validations without improvement",
                self.step,
                self.options.patience
            );
        }
        let last = self.metrics.rows.iter().rev().find_map(|m| m.val_loss);
        Ok(Outcome {
            steps: self.step,
            tokens: self.tokens,
            loss: self.last_loss,
            val_loss: if self.options.keep == Keep::Best { self.early_stop.best_loss() } else { last },
            stopped_early: self.early_stop.is_due(),
        })
    }
}
