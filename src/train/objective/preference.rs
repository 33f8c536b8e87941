//! Direct preference optimization: of two answers to one prompt the chosen one is to become likelier, compared
//! with the rejected one, than it is for the reference, which is the model before this training.
//!
//! Rafailov et al., 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
//! equation 7. With y the tokens of an answer, its reward is `r = β · (log π(y) − log π_ref(y))`, and the loss of a pair
//!
//! ```text
//! h    = r(chosen) − r(rejected)
//! loss = −(1 − ε) · log σ(h) − ε · log σ(−h) + α · (−log π(chosen) / tokens of chosen)
//! ```
//!
//! ε is the label smoothing of conservative DPO (Mitchell, 2023; `label_smoothing` of trl's `DPOConfig`), α the
//! weight of the chosen answer's own cross-entropy (Pang et al., 2024, "Iterative Reasoning Preference
//! Optimization"; `rpo_alpha` of trl). The gradient is that of a cross-entropy in which each answer has a weight of its
//! own: `∂loss/∂(−log π)` is `β · ((1 − ε) − σ(h)) + α / tokens` for the chosen answer, and the negative of the first term for
//! the rejected one. It takes a forward pass for the weights, with the numbers dropped that the gradient
//! drops, and then a usual gradient.
//!
//! Memory beyond the model, its gradient and the optimizer: 16 bytes a pair for the reference, whose weights
//! are needed before training only, and 4 bytes a token of a batch for the weights.

use super::reference::{PairNats, by_pairs};
use super::{Loss, Objective};
use crate::model::{Executor, IGNORE, Sequences, Transformer};
use crate::train::data::Batch;

/// How answers are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
    /// How much the model may differ from the reference: the higher, the less. `β`.
    pub beta: f64,
    /// The share of pairs in which the rejected answer is taken to be the better one. `ε`.
    pub label_smoothing: f64,
    /// `α`.
    pub nll_weight: f64,
}

impl Dpo {
    /// The rewards of the chosen and the rejected answer: `β · (log π − log π_ref)`.
    pub fn rewards(&self, nats: PairNats, reference: PairNats) -> [f64; 2] {
        [0, 1].map(|i| self.beta * (reference[i] - nats[i]))
    }

    /// The loss of a pair, whose chosen answer has so many tokens, and its derivatives by both `nats`.
    pub fn loss(&self, nats: PairNats, reference: PairNats, tokens: usize) -> (f64, PairNats) {
        let [chosen, rejected] = self.rewards(nats, reference);
        let (h, wrong) = (chosen - rejected, self.label_smoothing);
        let nll = self.nll_weight / tokens as f64;
        let loss = (1.0 - wrong) * softplus(-h) + wrong * softplus(h) + nll * nats[0];
        let slope = self.beta * ((1.0 - wrong) - sigmoid(h));
        (loss, [slope + nll, -slope])
    }
}

/// `ln(1 + e^x)`, which is `−log σ(−x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// What a model gives the answers of pairs, compared with the reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Compared {
    pub pairs: u64,
    /// Pairs whose chosen answer has the higher reward.
    pub won: u64,
    /// Pairs whose answers have the same reward.
    pub tied: u64,
    /// Sums over the pairs: of the loss without label smoothing and cross-entropy, and of rewards.
    pub loss: f64,
    pub chosen_reward: f64,
    pub rejected_reward: f64,
}

impl Compared {
    pub fn add(&mut self, dpo: &Dpo, nats: PairNats, reference: PairNats) {
        let [chosen, rejected] = dpo.rewards(nats, reference);
        self.pairs += 1;
        self.won += u64::from(chosen > rejected);
        self.tied += u64::from(chosen == rejected);
        self.loss += softplus(rejected - chosen);
        self.chosen_reward += chosen;
        self.rejected_reward += rejected;
    }

    /// The share of pairs whose chosen answer has the higher reward; of ties, one half counts.
    pub fn accuracy(&self) -> f64 {
        (self.won as f64 + 0.5 * self.tied as f64) / self.pairs as f64
    }

    /// The mean of `r(chosen) − r(rejected)`.
    pub fn margin(&self) -> f64 {
        (self.chosen_reward - self.rejected_reward) / self.pairs as f64
    }
}

/// Chosen answers are to be preferred to rejected ones. For rows of two sequences, as those of
/// [`Pairs`](crate::train::Pairs).
pub struct Preference {
    dpo: Dpo,
    /// Of the rows that are trained on, and of those to validate on.
    train: Vec<PairNats>,
    validation: Vec<PairNats>,
    /// Of the rows that were validated since the last report.
    compared: Compared,
    /// One a row of the batch, `[N]`.
    weights: Vec<f32>,
}

impl Preference {
    /// `train` and `validation` are what the reference gives the pairs of the data, by
    /// [`pair_nats`](super::pair_nats).
    pub fn new(dpo: Dpo, train: Vec<PairNats>, validation: Vec<PairNats>) -> Self {
        Preference { dpo, train, validation, compared: Compared::default(), weights: Vec::new() }
    }
}

impl Objective for Preference {
    fn gradient(
        &mut self,
        executor: &mut Executor,
        transformer: &Transformer,
        batch: &Batch,
        key: u64,
        into: &mut [f32],
    ) -> Loss {
        let all = batch.sequences();
        let nats = by_pairs(&executor.sequence_nats(transformer, all, Some(key)));
        let mut loss = Loss { nats: 0.0, targets: nats.len() as u64 };
        self.weights.clear();
        for (i, nats) in nats.into_iter().enumerate() {
            let reference = self.train[batch.rows[i]];
            let (of_pair, slopes) = self.dpo.loss(nats, reference, counted(all, 2 * i));
            loss.nats += of_pair;
            for slope in slopes {
                self.weights.resize(self.weights.len() + all.length, slope as f32);
            }
        }
        let weighted = Sequences { weights: Some(&self.weights), ..all };
        executor.gradient(transformer, weighted, key, 0.0, into);
        loss
    }

    fn loss(&mut self, executor: &mut Executor, transformer: &Transformer, batch: &Batch) -> Loss {
        let nats = by_pairs(&executor.sequence_nats(transformer, batch.sequences(), None));
        let mut compared = Compared::default();
        for (row, nats) in batch.rows.iter().zip(nats) {
            compared.add(&self.dpo, nats, self.validation[*row]);
            self.compared.add(&self.dpo, nats, self.validation[*row]);
        }
        Loss { nats: compared.loss, targets: compared.pairs }
    }

    fn report(&mut self) -> Vec<(&'static str, f64)> {
        let compared = std::mem::take(&mut self.compared);
        if compared.pairs == 0 {
            return Vec::new();
        }
        vec![("accuracy", compared.accuracy()), ("margin", compared.margin())]
    }
}

/// Targets of sequence `i`.
fn counted(all: Sequences, i: usize) -> usize {
    let targets = &all.targets[i * all.length..][..all.length];
    targets.iter().filter(|target| **target != IGNORE).count()
}
