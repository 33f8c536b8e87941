//! The next token from logits: greedy or sampled, with biases, penalties, temperature, top-k, top-p and min-p.
//!
//! Logits that options change are f64, as are the numbers that tokens are drawn by; a temperature divides
//! differences to the maximum, which are 0 or below: so the smallest temperature is greedy, the largest draws all
//! candidates alike, and nothing is NaN.

use std::collections::BTreeMap;

use super::{Options, Sequence, Token};
use crate::base::Rng;
use crate::kernel::{Isa, loss};
use crate::model::Model;
use crate::tokenizer::Special;

/// The biases that ban an id and that force it.
const BAN: f64 = -100.0;
const FORCE: f64 = 100.0;

/// Chooses next tokens of one model by given options.
pub struct Sampler {
    options: Options,
    isa: Isa,
    /// Ids from here on have a row in the embedding but no token in the tokenizer.
    vocab_size: usize,
    /// Never chosen: `<pad>`, `<unk>`, `<bos>`, and what `logit_bias` bans; sorted.
    banned: Vec<u32>,
    /// What `logit_bias` forces: if anything, only these are chosen; sorted.
    forced: Vec<u32>,
    /// Whether any option changes logits, other than by a ban.
    changes: bool,
    /// Tokens that end generation: `<eos>`, and those that begin the turn of a role.
    ends: Vec<u32>,
}

impl Sampler {
    pub fn new(model: &Model, options: &Options) -> Self {
        let ids = |all: &[Special]| -> Vec<u32> {
            all.iter().filter_map(|s| model.tokenizer.special(*s)).collect()
        };
        let mut ends = ids(&[Special::Eos, Special::User, Special::Assistant, Special::System]);
        ends.extend(model.tokenizer.turn_start());
        ends.extend(model.tokenizer.turn_ends());
        // One token may be both `<bos>` and `<eos>`, as in GPT-2.
        let mut banned = ids(&[Special::Pad, Special::Unk, Special::Bos]);
        banned.retain(|id| !ends.contains(id));
        let biased =
            |bias: f64| options.logit_bias.iter().filter(move |(_, b)| **b == bias).map(|(id, _)| *id);
        banned.extend(biased(BAN));
        banned.sort_unstable();
        let penalties = [options.presence_penalty, options.frequency_penalty];
        Sampler {
            isa: Isa::best(),
            vocab_size: model.tokenizer.vocab_size().min(model.transformer.config.vocab_size),
            banned,
            forced: biased(FORCE).collect(),
            changes: options.repetition_penalty != 1.0
                || penalties != [0.0; 2]
                || options.logit_bias.values().any(|bias| *bias != BAN),
            ends,
            options: options.clone(),
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether there is a token that may be chosen.
    pub fn may_choose(&self) -> bool {
        if self.forced.is_empty() {
            (0..self.vocab_size as u32).any(|id| self.may_be(id))
        } else {
            self.forced.iter().any(|id| self.may_be(*id))
        }
    }

    /// Whether an id is a token that is not banned.
    fn may_be(&self, id: u32) -> bool {
        (id as usize) < self.vocab_size && self.banned.binary_search(&id).is_err()
    }

    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// How many tokens end generation.
    pub fn end_count(&self) -> usize {
        self.ends.len()
    }

    /// The `k` tokens with the largest logits after biases and penalties among those that may be chosen, with these
    /// logits; the largest first, and of equals the lower id.
    pub fn best(&self, sequence: &Sequence, k: usize) -> Vec<(u32, f64)> {
        let changed = self.changed(sequence);
        let logit = |id: u32| changed.get(&id).copied().unwrap_or(f64::from(sequence.logits[id as usize]));
        let mut best: Vec<u32>;
        if self.forced.is_empty() {
            let tokens = &sequence.logits[..self.vocab_size];
            // As many more as may be left out.
            best = loss::largest(self.isa, tokens, k.saturating_add(self.banned.len() + changed.len()));
            best.retain(|id| self.may_be(*id) && !changed.contains_key(id));
            best.extend(changed.keys().filter(|id| self.may_be(**id)));
        } else {
            best = self.forced.iter().copied().filter(|id| self.may_be(*id)).collect();
        }
        let mut best: Vec<(u32, f64)> = best.into_iter().map(|id| (id, logit(id))).collect();
        if !changed.is_empty() {
            best.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        }
        best.truncate(k);
        best
    }

    /// The `k` most probable next tokens that may be chosen, the most probable first, with their
    /// log-probabilities after biases and penalties: of all ids of the model, as its own distribution is.
    pub fn most_probable(&self, sequence: &Sequence, k: usize) -> Vec<(u32, f64)> {
        let mut all: Vec<f64> = sequence.logits.iter().map(|logit| f64::from(*logit)).collect();
        self.changed(sequence).into_iter().for_each(|(id, logit)| all[id as usize] = logit);
        let logs = log_softmax(&all);
        self.best(sequence, k).into_iter().map(|(id, _)| (id, logs[id as usize])).collect()
    }

    /// `id` as the token behind `sequence`, with its log-probability and those of the most probable tokens, as many as
    /// the options ask for, by the model's own distribution: whether or not they may be chosen.
    pub fn token(&self, sequence: &Sequence, id: u32) -> Token {
        let logprob = loss::logprob(self.isa, &sequence.logits, id);
        let logit = |id: u32| f64::from(sequence.logits[id as usize]);
        // What all logits are less by, so that a token has the same figure here and where it is chosen.
        let log_sum = logit(id) - logprob;
        let with_logprob = |other: u32| (other, if other == id { logprob } else { logit(other) - log_sum });
        let best = match self.options.top_logprobs {
            0 => Vec::new(),
            k => loss::largest(self.isa, &sequence.logits[..self.vocab_size], k),
        };
        Token { id, logprob, top: best.into_iter().map(with_logprob).collect() }
    }

    /// The logits that biases and penalties change, after them.
    fn changed(&self, sequence: &Sequence) -> BTreeMap<u32, f64> {
        let mut changed = BTreeMap::new();
        if self.changes {
            let mut logits = Changed { model: &sequence.logits, changed: &mut changed };
            self.add_biases(&mut logits);
            self.penalize_repetition(sequence, &mut logits);
            self.penalize_new(sequence, &mut logits);
        }
        changed
    }

    fn add_biases(&self, logits: &mut Changed) {
        for (id, bias) in &self.options.logit_bias {
            logits.change(*id, |logit| logit + bias);
        }
    }

    /// The penalties of OpenAI's API, of tokens of the new text: `logit[j] -= count[j] * frequency_penalty +
    /// (count[j] > 0) * presence_penalty`.
    fn penalize_new(&self, sequence: &Sequence, logits: &mut Changed) {
        let Options { presence_penalty, frequency_penalty, .. } = self.options;
        if presence_penalty == 0.0 && frequency_penalty == 0.0 {
            return;
        }
        let mut counts = BTreeMap::<u32, u32>::new();
        sequence.tokens[sequence.prompt..].iter().for_each(|id| *counts.entry(*id).or_default() += 1);
        for (id, count) in counts {
            logits.change(id, |logit| logit - (f64::from(count) * frequency_penalty + presence_penalty));
        }
    }

    fn penalize_repetition(&self, sequence: &Sequence, logits: &mut Changed) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let mut seen: Vec<u32> = sequence.tokens.clone();
        seen.sort_unstable();
        seen.dedup();
        for id in seen.into_iter().filter(|id| !self.is_end(*id)) {
            logits.change(id, |logit| {
                let penalized = if logit > 0.0 { logit / penalty } else { logit * penalty };
                // The difference of two infinities would be NaN.
                penalized.clamp(f64::MIN, f64::MAX)
            });
        }
    }

    pub fn greedy(&self, sequence: &Sequence) -> u32 {
        let best = loss::likeliest(self.isa, &sequence.logits[..self.vocab_size]) as u32;
        if !self.changes && self.banned.binary_search(&best).is_err() {
            return best;
        }
        self.best(sequence, 1).first().map_or(0, |(id, _)| *id)
    }

    pub fn sample(&self, sequence: &Sequence, rng: &mut Rng) -> u32 {
        let k = if self.options.top_k > 0 { self.options.top_k } else { self.vocab_size };
        let candidates = candidates(self.best(sequence, k), &self.options);
        let weights: Vec<f64> = candidates.iter().map(|(_, p)| *p).collect();
        rng.weighted(&weights).map_or(0, |i| candidates[i].0)
    }
}

/// The logits of a model, some of them changed.
struct Changed<'a> {
    model: &'a [f32],
    changed: &'a mut BTreeMap<u32, f64>,
}

impl Changed<'_> {
    /// An id that the model doesn't have has none.
    fn change(&mut self, id: u32, f: impl FnOnce(f64) -> f64) {
        if let Some(logit) = self.model.get(id as usize) {
            let logit = self.changed.entry(id).or_insert(f64::from(*logit));
            *logit = f(*logit);
        }
    }
}

pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = libm::log(logits.iter().map(|x| libm::exp(x - max)).sum());
    logits.iter().map(|x| x - max - log_sum).collect()
}

/// Of the `top_k` tokens with the largest logits, the largest first, those that top-p and min-p leave, in this
/// order, as in the `transformers` library; with numbers that their probabilities are proportional to.
pub fn candidates(best: Vec<(u32, f64)>, options: &Options) -> Vec<(u32, f64)> {
    let max = best.first().map_or(0.0, |(_, logit)| *logit);
    let mut all = best;
    all.iter_mut().for_each(|(_, x)| *x = libm::exp((*x - max) / options.temperature));
    let total: f64 = all.iter().map(|(_, p)| p).sum();
    let mut sum = 0.0;
    let kept = all.iter().position(|(_, p)| {
        sum += p / total;
        sum >= options.top_p
    });
    all.truncate(kept.map_or(all.len(), |i| i + 1));
    // The most probable has the number 1.
    all.retain(|(_, p)| *p >= options.min_p);
    all
}
