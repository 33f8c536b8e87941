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
use super::state::{Places, Restored, State, States, kept_file};
use super::tensors::{self, Reader, Stored, Tensor, named};
use super::{Keep, Options, Outcome};
use crate::base::{Error, Monitor, Progress, Result, fs, machine, units};
use crate::generate::{self, Strategy};
use crate::kernel::Team;
use crate::model::{Executor, Model, Parameter, Transformer};

/// Steps between two rows of metrics.
const LOG_EVERY: u64 = 10;

/// Trains `model` in place and writes `metrics.jsonl`, `metrics.parquet` and `samples.jsonl`. Saves states as
/// it goes, and begins with the last that there is: what comes out is the same.
///
/// # Errors
/// Too little data, a step to be kept that is none, a loss that is not finite, a full disk, cancellation.
pub fn run(
    model: &mut Model,
    objective: &mut dyn Objective,
    train: &dyn Data,
    validation: &dyn Data,
    options: &Options,
    places: Places,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let mut run = Run::new(model, objective, train, validation, options, places, monitor)?;
    run.warn();
    run.go_on()?;
    run.announce()?;
    monitor.check()?;
    if run.step > 0 {
        run.log_step()?;
    }
    while run.step < run.steps && !run.early_stop.is_due(options.patience) {
        run.one_step()?;
    }
    run.finish()
}

/// Puts the weights of a step that was kept (see [`Outcome::kept`]) in place of the trained ones.
///
/// # Errors
/// When the file can't be read or is of another model.
pub fn load_kept(path: &Path, transformer: &mut Transformer) -> Result<()> {
    let parameters = transformer.trained_parameters();
    let mut tensors = named("", &parameters, transformer.trained_mut());
    Reader::open(path, &tensors)?.read(&mut tensors)
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
    places: Places<'a>,
    /// Those that are trained.
    parameters: Vec<Parameter>,
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
    /// Of the last step.
    grad_norm: f64,
    early_stop: EarlyStop,
    /// The weights of the best validation, where they are to be kept: on disk, not twice in memory.
    best: Option<Stored>,
    /// Those of the steps that are to be kept.
    kept: BTreeMap<u64, Stored>,
    states: Option<States<'a>>,
    /// The step of the last state, and when it was.
    saved: (u64, Instant),
    begun: Instant,
    /// Tokens of earlier trainings.
    tokens_before: u64,
    /// Spent on filling batches: what the kernels wait for data.
    waited: Duration,
    /// Spent on saving states.
    saving: Duration,
}

impl<'a> Run<'a> {
    fn new(
        model: &'a mut Model,
        objective: &'a mut dyn Objective,
        train: &'a dyn Data,
        validation: &'a dyn Data,
        options: &'a Options,
        places: Places<'a>,
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        if train.rows() == 0 {
            return Err(Error::input("there is not one token to train on").help("give it more text"));
        }
        let steps = options.steps(train.rows());
        if let Some(step) = options.keep_steps.iter().find(|step| **step > steps) {
            let what = format!("`keep_checkpoints`: {step} is after the last step, {steps}");
            return Err(Error::input(what).help("leave it away, or train longer"));
        }
        let team = Team::new(rayon::current_num_threads()).in_dtype(options.dtype);
        Ok(Run {
            executor: Executor::training(&model.transformer.config, team),
            batch: Batch::default(),
            optimizer: Optimizer::new(&model.transformer, &options.optimizer),
            parameters: model.transformer.trained_parameters(),
            average: options.average.map(|decay| Average::new(decay, model.transformer.trained())),
            model,
            objective,
            train,
            validation,
            options,
            monitor,
            places,
            order: Order::new(train.rows(), options.seed),
            metrics: Metrics::default(),
            step: 0,
            steps,
            tokens: 0,
            since: Loss::default(),
            last_loss: f64::NAN,
            grad_norm: 0.0,
            early_stop: EarlyStop::default(),
            best: None,
            kept: BTreeMap::new(),
            states: States::new(places, options, train.rows()),
            saved: (0, Instant::now()),
            begun: Instant::now(),
            tokens_before: 0,
            waited: Duration::ZERO,
            saving: Duration::ZERO,
        })
    }

    /// Warns of options without effect, or with a surprising one.
    fn warn(&self) {
        if self.validation.rows() == 0 {
            tracing::warn!("{}", without_validation(self.options));
        }
        let schedule = &self.options.schedule;
        if schedule.floor > schedule.peak {
            tracing::warn!(
                "`min_learning_rate` {} is above `learning_rate` {}: the learning rate rises to it",
                schedule.floor,
                schedule.peak
            );
        }
    }

    /// All that is trained, and what is kept of it from step to step.
    fn tensors<'b>(
        parameters: &[Parameter],
        transformer: &'b mut Transformer,
        optimizer: &'b mut Optimizer,
        average: &'b mut Option<Average>,
    ) -> Vec<Tensor<'b>> {
        let mut tensors = named("weights/", parameters, transformer.trained_mut());
        tensors.extend(optimizer.tensors());
        if let Some(average) = average {
            tensors.extend(named("average/", parameters, average.state().1));
        }
        tensors
    }

    /// Continues from the last state of an earlier training, if there is one.
    fn go_on(&mut self) -> Result<()> {
        let Some(states) = &mut self.states else { return Ok(()) };
        let transformer = &mut self.model.transformer;
        let mut tensors =
            Self::tensors(&self.parameters, transformer, &mut self.optimizer, &mut self.average);
        let Some(restored) = states.newest(&tensors) else { return Ok(()) };
        let state = restored.state.clone();
        self.best = restored.best();
        self.kept = kept(&restored, &self.options.keep_steps);
        restored.read(&mut tensors)?;
        self.restore(state)?;
        for row in &self.metrics.rows {
            self.monitor.metrics(row.step, &row.figures());
        }
        tracing::info!(
            "goes on from step {} of {}, saved by an earlier training",
            units::count(self.step),
            units::count(self.steps)
        );
        Ok(())
    }

    /// What a state holds beside tensors.
    fn restore(&mut self, state: State) -> Result<()> {
        let taken = state.step.saturating_mul(self.options.rows_per_step() as u64);
        self.order = Order::after(self.train.rows(), self.options.seed, taken);
        for (name, number) in self.optimizer.numbers() {
            let missing = || Error::bug(format!("the saved state has no `{name}`"));
            *number = *state.optimizer.get(name).ok_or_else(missing)?;
        }
        if let Some(average) = &mut self.average {
            *average.state().0 = state.averaged;
        }
        self.last_loss = state.metrics.rows.last().map_or(f64::NAN, |row| row.loss);
        (self.step, self.tokens, self.tokens_before) = (state.step, state.tokens, state.tokens);
        (self.since, self.grad_norm) = (state.since, state.grad_norm);
        (self.early_stop, self.metrics) = (state.early_stop, state.metrics);
        self.saved.0 = state.step;
        Ok(())
    }

    /// Saves the state after the update of the last step.
    fn save(&mut self) {
        let Some(states) = &mut self.states else { return };
        if self.saved.0 == self.step {
            return;
        }
        let begun = Instant::now();
        let numbers = self.optimizer.numbers().into_iter();
        let state = State {
            step: self.step,
            rates: self.options.schedule.digest(self.step, self.steps),
            rows: self.train.rows() as u64,
            tokens: self.tokens,
            since: self.since,
            grad_norm: self.grad_norm,
            optimizer: numbers.map(|(name, number)| (name.to_string(), *number)).collect(),
            averaged: self.average.as_mut().map_or(0, |average| *average.state().0),
            early_stop: self.early_stop,
            metrics: std::mem::take(&mut self.metrics),
        };
        let transformer = &mut self.model.transformer;
        let tensors = Self::tensors(&self.parameters, transformer, &mut self.optimizer, &mut self.average);
        states.save(&state, &tensors, self.best.as_ref(), &self.kept);
        self.metrics = state.metrics;
        self.saved = (self.step, Instant::now());
        self.saving += begun.elapsed();
    }

    /// Whether it is time to save, or longer trainings would like to begin here.
    fn is_save_due(&self) -> bool {
        let Options { save_every, save_minutes, .. } = *self.options;
        let minutes = self.saved.1.elapsed().as_secs_f64() / 60.0;
        save_every > 0 && self.step.is_multiple_of(save_every)
            || save_minutes > 0.0 && minutes >= save_minutes
            || (save_every > 0 || save_minutes > 0.0)
                && self.states.as_ref().is_some_and(|states| states.is_shared(self.step))
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
            self.gradient("announce")?;
            took = begun.elapsed();
        }
        self.optimizer.gradient.fill(0.0);
        let left = (self.steps - self.step) as f64;
        let about = took.as_secs_f64() * self.options.accumulate as f64 * left;
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
        (self.begun, self.saved.1) = (Instant::now(), Instant::now());
        Ok(())
    }

    /// Adds the gradient of the batch.
    fn gradient(&mut self, label: &str) -> Result<Loss> {
        self.objective.prepare(&self.batch)?;
        let (transformer, key) = (&self.model.transformer, dropout_key(self.options.seed, label));
        let into = &mut self.optimizer.gradient;
        Ok(self.objective.gradient(&mut self.executor, transformer, &self.batch, key, into))
    }

    /// An update of the weights, then its logging. The state between the two is that of longer trainings as
    /// well.
    fn one_step(&mut self) -> Result<()> {
        let loss = self.batches()?;
        self.step += 1;
        self.finite("loss", loss.nats)?;
        self.grad_norm = self.update(loss.targets)?;
        self.since += loss;
        if self.options.keep_steps.contains(&self.step) {
            let stored = self.store(&kept_file(self.step), true)?;
            self.kept.insert(self.step, stored);
        }
        let cancelled = self.monitor.check();
        if cancelled.is_err() || self.is_save_due() {
            self.save();
        }
        cancelled?;
        self.log_step()?;
        self.report(loss);
        Ok(())
    }

    /// Logs, validates and samples after the last step, where it is time to.
    fn log_step(&mut self) -> Result<()> {
        let done = self.step == self.steps;
        let every = |n: u64| n > 0 && self.step.is_multiple_of(n);
        let (evaluate, sample) = (every(self.options.eval_every) || done, every(self.options.sample_every));
        if every(LOG_EVERY) || evaluate {
            self.log(evaluate)?;
        }
        if sample && !done {
            self.swap_average();
            self.sample()?;
            self.swap_average();
        }
        Ok(())
    }

    /// Writes the trained weights, or their average where there is one and it is asked for, into the folder of
    /// temporaries.
    fn store(&mut self, name: &str, averaged: bool) -> Result<Stored> {
        if averaged {
            self.swap_average();
        }
        let tensors = named("", &self.parameters, self.model.transformer.trained_mut());
        let stored = tensors::write(&self.places.scratch.join(name), &tensors);
        if averaged {
            self.swap_average();
        }
        stored
    }

    /// Adds the gradients of the batches of a step.
    fn batches(&mut self) -> Result<Loss> {
        let mut loss = Loss::default();
        for batch in 0..self.options.accumulate {
            let begun = Instant::now();
            let rows: Vec<usize> = (0..self.options.batch_size).map(|_| self.order.next()).collect();
            self.batch.fill(self.train, rows.into_iter());
            self.waited += begun.elapsed();
            loss += self.gradient(&format!("dropout/{}/{batch}", self.step))?;
            self.tokens += self.batch.tokens;
        }
        Ok(loss)
    }

    /// Changes the weights by the gradient, a sum over `targets`; gives the norm of its mean.
    fn update(&mut self, targets: u64) -> Result<f64> {
        let rate = self.options.schedule.rate(self.step, self.steps);
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

    fn log(&mut self, evaluate: bool) -> Result<()> {
        // First what may be stopped: then the state is still that after the update.
        let (val_loss, further) = if evaluate { self.evaluate()? } else { Default::default() };
        let loss = std::mem::take(&mut self.since);
        // One NaN for all kinds of CPU: that of 0 / 0 differs.
        self.last_loss = if loss.targets == 0 { f64::NAN } else { loss.mean() };
        let metric = Metric {
            step: self.step,
            tokens: self.tokens,
            loss: self.last_loss,
            val_loss,
            learning_rate: self.options.schedule.rate(self.step, self.steps),
            grad_norm: self.grad_norm,
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
        let speed = [("tokens_per_s", self.tokens_per_second())];
        self.monitor.metrics(self.step, &[&metric.figures()[..], &speed].concat());
        self.metrics.rows.push(metric);
        Ok(())
    }

    /// Of this training, not of one that it goes on from.
    fn tokens_per_second(&self) -> f64 {
        (self.tokens - self.tokens_before) as f64 / self.begun.elapsed().as_secs_f64().max(1e-9)
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
        let loss = self.validated(rows);
        let best = loss.and_then(|loss| self.keep_best(loss).map(|()| loss));
        self.swap_average();
        match best {
            Err(e) if e.is_cancelled() => {
                self.save();
                Err(e)
            }
            Err(e) => Err(e),
            Ok(loss) => {
                let named =
                    |(name, x): (&str, f64)| (name.to_string(), if x.is_nan() { f64::NAN } else { x });
                Ok((Some(loss), self.objective.report().into_iter().map(named).collect()))
            }
        }
    }

    /// The loss over the first `rows` to validate on.
    fn validated(&mut self, rows: usize) -> Result<f64> {
        let (transformer, executor) = (&self.model.transformer, &mut self.executor);
        let loss = evaluate(self.objective, executor, transformer, self.validation, rows, self.monitor)?;
        self.finite("validation loss", loss.mean())?;
        Ok(loss.mean())
    }

    /// Keeps the weights if they are the best so far.
    fn keep_best(&mut self, loss: f64) -> Result<()> {
        if !self.early_stop.add(loss) || self.options.keep != Keep::Best {
            return Ok(());
        }
        // Under a name of its own: states may share the file of the best before.
        let stored = self.store(&format!("best-{}.safetensors", self.step), false)?;
        if let Some(before) = self.best.replace(stored) {
            fs::remove(&before.path)?;
        }
        Ok(())
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
        let rate = self.tokens_per_second();
        self.monitor.progress(Progress {
            phase: "training".into(),
            done: self.step,
            total: Some(self.steps),
            unit: "steps",
            note: format!("loss {:.3} · {} tok/s", loss.mean(), units::count(rate as u64)),
        });
    }

    /// Figures of the `seconds` that this training took.
    fn measure(&self, seconds: f64) {
        let seconds = seconds.max(1e-9);
        let tokens = self.tokens - self.tokens_before;
        self.monitor.measure("tokens_per_s", tokens as f64 / seconds, "tok/s");
        let share = |part: Duration| 100.0 * part.as_secs_f64() / seconds;
        self.monitor.measure("waiting_for_data", share(self.waited), "%");
        if self.states.is_some() {
            self.monitor.measure("saving_states", share(self.saving), "%");
        }
        if let Some(peak) = machine::peak_memory() {
            self.monitor.measure("peak_memory", peak as f64 / f64::from(1 << 20), "MiB");
        }
    }

    fn finish(mut self) -> Result<Outcome> {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.swap_average();
        if let Some(best) = &self.best {
            load_kept(&best.path, &mut self.model.transformer)?;
            fs::remove(&best.path)?;
        }
        // Without validation, what the last update made was looked at by nobody yet.
        let odd = self.model.transformer.trained().iter().find(|w| !w.is_finite());
        self.finite("last update's weight", odd.map_or(0.0, |w| f64::from(*w)))?;
        self.sample()?;
        self.metrics.save(self.places.output)?;
        self.measure(seconds);
        let stopped_early = self.early_stop.is_due(self.options.patience);
        if stopped_early {
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
            val_loss: if self.options.keep == Keep::Best { self.early_stop.best } else { last },
            stopped_early,
            kept: self.kept.into_iter().map(|(step, stored)| (step, stored.path)).collect(),
        })
    }
}

/// The files of the steps that are to be kept, as far as the state has them.
fn kept(restored: &Restored, steps: &[u64]) -> BTreeMap<u64, Stored> {
    steps.iter().filter_map(|step| Some((*step, restored.kept(*step)?))).collect()
}
