//! Distillation: a model learns what others expect next, beside what the text says (Hinton, Vinyals and Dean,
//! "Distilling the Knowledge in a Neural Network", 2015).
//!
//! The loss of a position is `(1 - s) · cross-entropy + s · T² · KL(teacher ‖ student)`, see [`Soft`]. What is
//! validated is the cross-entropy alone, as everywhere.
//!
//! Beyond the model, its gradient and the optimizer, memory holds the ids and probabilities of a batch, 8 bytes
//! for each of `k` ids a position; and where models are asked as it goes, their weights, a workspace a thread
//! for their forward pass, and some rows of logits.

use super::{Loss, Objective};
use crate::base::{Error, Monitor, Result};
use crate::kernel::{Dtype, Team};
use crate::model::{self, Executor, Prediction, Sequences, Soft, Transformer, round_of};
use crate::shard::logits::{Table, log_prob, probability};
use crate::train::data::{Batch, Data};

/// Models of one vocabulary whose next-token distributions, or the mean of them, are learned from.
pub struct Teachers<'a>(Vec<(Executor, &'a Transformer)>);

impl<'a> Teachers<'a> {
    /// For this number of threads, with matrix products of `dtype`.
    ///
    /// # Errors
    /// When there are none, or their vocabularies are of different sizes.
    pub fn new(models: &[&'a Transformer], threads: usize, dtype: Dtype) -> Result<Self> {
        let Some(first) = models.first() else { return Err(Error::input("there is no model to learn from")) };
        let tokens = first.config.vocab_size;
        if let Some(other) = models.iter().find(|model| model.config.vocab_size != tokens) {
            let what = format!("one has room for {tokens} tokens, one for {}", other.config.vocab_size);
            return Err(Error::input(format!(
                "the models to learn from have different vocabularies: {what}"
            ))
            .help("train them with the same `vocab_size`"));
        }
        let executor = |model: &'a Transformer| {
            let team = Team::new(threads).in_dtype(dtype);
            (Executor::forward_only(&model.config, team), model)
        };
        Ok(Teachers(models.iter().map(|model| executor(model)).collect()))
    }

    /// Their `vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.0[0].1.config.vocab_size
    }

    /// Tokens that each of them can see at once.
    pub fn seq_len(&self) -> usize {
        self.0.iter().map(|(_, model)| model.config.seq_len).min().unwrap_or(0)
    }

    /// As how long sequences they see sequences of `length` tokens: whole, or cut into equal windows where one
    /// of them is made for shorter ones.
    ///
    /// # Errors
    /// When the windows would not be equal.
    pub fn window(&self, length: usize) -> Result<usize> {
        let window = self.seq_len().min(length);
        if length.is_multiple_of(window) {
            return Ok(window);
        }
        let what =
            format!("sequences of {length} tokens don't divide into the {window} that the teacher sees");
        Err(Error::input(what).help(format!("set `seq_len` to at most {window}, or a multiple of it")))
    }

    /// The likeliest ids at every position of sequences of at most [`Teachers::window`], without dropout.
    ///
    /// # Errors
    /// When a probability is not a number.
    pub fn likeliest(&mut self, all: Sequences, temperature: f32, into: &mut Likeliest) -> Result<()> {
        into.resize(all.ids.len());
        let mut models: Vec<_> = self.0.iter_mut().map(|(executor, model)| (executor, *model)).collect();
        let Likeliest { top_k, ids, probabilities } = into;
        model::mean_top_k(&mut models, all, temperature, *top_k, ids, probabilities);
        if probabilities.iter().all(|p| p.is_finite()) {
            return Ok(());
        }
        Err(Error::input("the teacher's probabilities are not numbers")
            .help("its weights, or its activations for this text, are too large"))
    }

    /// The losses over all rows of `data`: of each model, and of the mean of their distributions.
    ///
    /// # Errors
    /// When somebody asked to stop; as [`Teachers::window`].
    pub fn losses(&mut self, data: &dyn Data, monitor: &dyn Monitor) -> Result<(Vec<Loss>, Loss)> {
        let (window, step, rows) = (self.window(data.length())?, round_of(data.length()), data.rows());
        let (mut each, mut mean) = (vec![Loss::default(); self.0.len()], Loss::default());
        let mut batch = Batch::default();
        for first in (0..rows).step_by(step) {
            monitor.step("evaluating", first as u64, Some(rows as u64), "rows")?;
            batch.fill(data, first..(first + step).min(rows));
            let all = Sequences::new(&batch.ids, &batch.targets, window);
            let targets = batch.counted();
            for ((executor, model), loss) in self.0.iter_mut().zip(&mut each) {
                *loss += Loss { nats: executor.loss(model, all), targets };
            }
            mean += Loss { nats: self.mean_nats(all), targets };
        }
        Ok(if each.len() > 1 { (each, mean) } else { (each.clone(), each[0]) })
    }

    /// The sum of `-ln p(target)` under the mean of several models' distributions.
    fn mean_nats(&mut self, all: Sequences) -> f64 {
        let several = self.0.len() as f64;
        if several < 2.0 {
            return 0.0;
        }
        let models = self.0.iter_mut();
        let found: Vec<Vec<Prediction>> =
            models.map(|(executor, model)| executor.predictions(model, all)).collect();
        let nats = |i: usize| {
            let sum: f64 = found.iter().map(|predictions| libm::exp(-predictions[i].nats)).sum();
            -libm::log(sum / several)
        };
        (0..found[0].len()).map(nats).sum()
    }
}

/// The likeliest ids at some positions and their probabilities, `[N, top_k]` each.
pub struct Likeliest {
    pub top_k: usize,
    pub ids: Vec<u32>,
    pub probabilities: Vec<f32>,
}

impl Likeliest {
    pub fn new(top_k: usize) -> Self {
        Likeliest { top_k, ids: Vec::new(), probabilities: Vec::new() }
    }

    fn resize(&mut self, positions: usize) {
        self.ids.resize(positions * self.top_k, 0);
        self.probabilities.resize(positions * self.top_k, 0.0);
    }

    /// Probabilities as they are read back where they were stored in between.
    fn round(&mut self) {
        self.probabilities.iter_mut().for_each(|p| *p = probability(log_prob(*p)));
    }
}

/// Where a teacher's distributions come from.
pub enum Source<'a> {
    /// Computed for each batch.
    Models(Teachers<'a>),
    /// Computed beforehand; the rows of the training data begin every `stride` positions.
    Table { table: Table, stride: usize },
}

/// Text and a teacher's distributions are learned from at one time.
pub struct Distill<'a> {
    source: Source<'a>,
    options: DistillOptions,
    /// Of the batch that is learned from.
    soft: Likeliest,
}

/// What is learned of a teacher.
#[derive(Debug, Clone, Copy)]
pub struct DistillOptions {
    /// T, which the logits of both are divided by.
    pub temperature: f64,
    /// s, the share of the divergence in the loss.
    pub share: f64,
    /// Ids a position.
    pub top_k: usize,
    /// Whether probabilities are what they are after they were stored, so that it makes no difference whether
    /// they were.
    pub rounded: bool,
    /// Of the cross-entropy: the share of a target's probability that all tokens divide among themselves.
    pub label_smoothing: f64,
}

impl<'a> Distill<'a> {
    pub fn new(source: Source<'a>, options: DistillOptions) -> Self {
        Distill { source, options, soft: Likeliest::new(options.top_k) }
    }
}

impl Objective for Distill<'_> {
    fn prepare(&mut self, batch: &Batch) -> Result<()> {
        match &mut self.source {
            Source::Models(teachers) => {
                let all = Sequences::new(&batch.ids, &batch.targets, teachers.window(batch.length)?);
                teachers.likeliest(all, self.options.temperature as f32, &mut self.soft)?;
                if self.options.rounded {
                    self.soft.round();
                }
                Ok(())
            }
            Source::Table { table, stride } => read(table, *stride, batch, &mut self.soft),
        }
    }

    fn gradient(
        &mut self,
        executor: &mut Executor,
        transformer: &Transformer,
        batch: &Batch,
        key: u64,
        into: &mut [f32],
    ) -> Loss {
        let DistillOptions { temperature, share, top_k, label_smoothing, .. } = self.options;
        let Likeliest { ids, probabilities, .. } = &self.soft;
        let (temperature, share) = (temperature as f32, share as f32);
        let soft = Some(Soft { k: top_k, ids, probabilities, temperature, share });
        let all = Sequences { soft, ..batch.sequences() };
        let nats = executor.gradient(transformer, all, key, label_smoothing as f32, into);
        Loss { nats, targets: batch.counted() }
    }

    fn loss(&mut self, executor: &mut Executor, transformer: &Transformer, batch: &Batch) -> Loss {
        Loss { nats: executor.loss(transformer, batch.sequences()), targets: batch.counted() }
    }
}

/// Reads what belongs to the rows of `batch`, which begin every `stride` positions.
fn read(table: &mut Table, stride: usize, batch: &Batch, soft: &mut Likeliest) -> Result<()> {
    soft.resize(batch.ids.len());
    let row = batch.length * soft.top_k;
    let places = soft.ids.chunks_exact_mut(row).zip(soft.probabilities.chunks_exact_mut(row));
    for (i, (ids, probabilities)) in batch.rows.iter().zip(places) {
        let start = i * stride;
        let end = (start + batch.length).min(table.positions());
        let known = (end - start) * soft.top_k;
        table.read(start..end, &mut ids[..known], &mut probabilities[..known])?;
        // Padding, which nothing is learned of.
        ids[known..].fill(0);
        probabilities[known..].fill(0.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use crate::model::{Config, IGNORE, gpt2};
    use crate::shard::TokenStream;
    use crate::train::{NextToken, Windows};

    const VOCAB: usize = 13;

    fn model(d_model: usize, seed: u64) -> Transformer {
        let config = Config { d_ff: 16, dropout: 0.0, ..gpt2(VOCAB, d_model, 1, 2, 8) };
        let mut model = Transformer::fresh(&config, seed);
        // So that distributions are not all alike.
        let matrices: Vec<_> = model.parameters().iter().filter(|p| p.shape.len() == 2).cloned().collect();
        matrices.iter().for_each(|p| model.weights[p.range.clone()].iter_mut().for_each(|w| *w *= 8.0));
        model
    }

    fn batch() -> Batch {
        let ids: Vec<u32> = (0..24).map(|i| i * 5 % VOCAB as u32).collect();
        let mut targets: Vec<u32> = ids.iter().map(|id| (id + 3) % VOCAB as u32).collect();
        targets[7] = IGNORE;
        Batch { ids, targets, length: 8, tokens: 24, rows: vec![0, 1, 2] }
    }

    fn distributions(models: &[&Transformer], temperature: f32) -> Vec<f64> {
        let (batch, mut all) = (batch(), Likeliest::new(VOCAB));
        let sequences = Sequences::new(&batch.ids, &batch.targets, 8);
        Teachers::new(models, 1, Dtype::F32).unwrap().likeliest(sequences, temperature, &mut all).unwrap();
        let mut dense = vec![0.0; all.ids.len()];
        for (i, (id, p)) in all.ids.iter().zip(&all.probabilities).enumerate() {
            dense[i / VOCAB * VOCAB + *id as usize] = f64::from(*p);
        }
        dense
    }

    /// The loss by its definition: the `k` likeliest ids of the teachers' mean and one bucket for all others.
    fn by_definition(teachers: &[&Transformer], student: &Transformer, options: &DistillOptions) -> f64 {
        let DistillOptions { temperature: t, share, top_k, .. } = *options;
        let theirs = distributions(teachers, t as f32);
        let (soft, own) = (distributions(&[student], t as f32), distributions(&[student], 1.0));
        let mut loss = 0.0;
        for (i, target) in batch().targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
            let row = i * VOCAB..(i + 1) * VOCAB;
            let (p, q) = (&theirs[row.clone()], &soft[row.clone()]);
            let mut order: Vec<usize> = (0..VOCAB).collect();
            order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
            let term = |p: f64, q: f64| if p > 1e-7 { p * (p / q).ln() } else { 0.0 };
            let rest = |of: &[f64]| order[top_k..].iter().map(|id| of[*id]).sum::<f64>();
            let known: f64 = order[..top_k].iter().map(|id| term(p[*id], q[*id])).sum();
            loss -= (1.0 - share) * own[row][*target as usize].ln();
            loss += share * t * t * (known + term(rest(p), rest(q)));
        }
        loss
    }

    fn gradient(
        teachers: &[&Transformer],
        student: &Transformer,
        options: DistillOptions,
    ) -> (f64, Vec<f32>) {
        let teachers = Teachers::new(teachers, 2, Dtype::F32).unwrap();
        let mut objective = Distill::new(Source::Models(teachers), options);
        let mut executor = Executor::training(&student.config, Team::new(2));
        let (batch, mut into) = (batch(), vec![0.0; student.trained().len()]);
        objective.prepare(&batch).unwrap();
        let loss = objective.gradient(&mut executor, student, &batch, 1, &mut into);
        assert_eq!(loss.targets, 23);
        (loss.nats, into)
    }

    #[test]
    fn loss_and_gradient_are_those_of_the_definition() {
        let (one, two, mut student) = (model(8, 1), model(4, 2), model(6, 3));
        for (teachers, top_k, share, temperature) in [
            (vec![&one], VOCAB, 1.0, 1.0),
            (vec![&one], 3, 0.7, 2.0),
            (vec![&one, &two], VOCAB, 0.5, 3.0),
            (vec![&two, &one], 1, 0.3, 0.7),
        ] {
            let options = DistillOptions { temperature, share, top_k, rounded: true, label_smoothing: 0.0 };
            let (found, into) = gradient(&teachers, &student, options);
            let expected = by_definition(&teachers, &student, &options);
            let what = format!("{} teachers, {top_k} ids", teachers.len());
            assert!((found - expected).abs() < 1e-4 * expected.abs(), "{what}: {found}, not {expected}");
            // Along the gradient the loss grows by its square.
            let square: f64 = into.iter().map(|g| f64::from(*g).powi(2)).sum();
            let step = 1e-3 / square.sqrt();
            let own = student.weights.to_vec();
            let mut at = |step: f64| {
                let moved = own.iter().zip(&into).map(|(w, g)| (f64::from(*w) + step * f64::from(*g)) as f32);
                student.weights.iter_mut().zip(moved).for_each(|(w, moved)| *w = moved);
                by_definition(&teachers, &student, &options)
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            student.weights.copy_from_slice(&own);
            assert!((slope / square - 1.0).abs() < 0.01, "{what}: {slope}, not {square}");
        }
    }

    #[test]
    fn who_equals_the_teacher_has_nothing_to_learn_of_it() {
        let teacher = model(8, 1);
        for top_k in [2, VOCAB] {
            let options =
                DistillOptions { temperature: 2.0, share: 1.0, top_k, rounded: false, label_smoothing: 0.0 };
            let (loss, into) = gradient(&[&teacher], &teacher, options);
            let (plain, largest) = (by_definition(&[&teacher], &teacher, &options), |all: &[f32]| {
                all.iter().fold(0.0_f32, |most, g| most.max(g.abs()))
            });
            assert!(loss.abs() < 1e-3 && plain.abs() < 1e-3, "{loss}, by definition {plain}");
            assert!(largest(&into) < 1e-3, "{}", largest(&into));
        }
    }

    #[test]
    fn losses_of_several_are_those_of_each_and_of_their_mean() {
        let (one, two) = (model(8, 1), model(4, 2));
        let mut stream = TokenStream::new(VOCAB);
        stream.push(&(0..90).map(|i| i * i % VOCAB as u32).collect::<Vec<_>>());
        let windows = Windows::new(&stream, 8, 0);
        let losses = |models: &[&Transformer]| {
            Teachers::new(models, 2, Dtype::F32).unwrap().losses(&windows, &Quiet).unwrap()
        };
        let (each, mean) = losses(&[&one, &two]);
        for (model, found) in [&one, &two].into_iter().zip(&each) {
            let mut executor = Executor::forward_only(&model.config, Team::new(1));
            let objective = &mut NextToken::default();
            let rows = windows.rows();
            let expected = crate::train::evaluate(objective, &mut executor, model, &windows, rows, &Quiet);
            assert_eq!(*found, expected.unwrap());
        }
        let twice = losses(&[&one, &one]).1;
        assert!((twice.nats / each[0].nats - 1.0).abs() < 1e-6, "{twice:?}, {each:?}");
        assert!(mean.nats < 0.5 * (each[0].nats + each[1].nats), "the mean is better than on average");
        assert_eq!(losses(&[&two]).1, each[1]);
    }

    #[test]
    fn models_of_shorter_sequences_see_equal_windows_or_none() {
        let (one, two) = (model(8, 1), model(4, 2));
        let teachers = Teachers::new(&[&one, &two], 1, Dtype::F32).unwrap();
        let found: Vec<Option<usize>> = [4, 8, 16, 12].map(|n| teachers.window(n).ok()).to_vec();
        assert_eq!(found, [Some(4), Some(8), Some(8), None]);
        let wider = Transformer::fresh(&gpt2(VOCAB + 1, 8, 1, 2, 8), 1);
        let error = Teachers::new(&[&one, &wider], 1, Dtype::F32).err().unwrap().to_string();
        assert!(error.contains("room for 13 tokens, one for 14"), "{error}");
    }
}
