//! The next token from logits: greedy or sampled, with biases, penalties, temperature, top-k, top-p and min-p.
//!
//! Logits are f64 here, and a temperature divides their differences to the maximum, which are 0 or below:
//! so the smallest temperature is greedy, the largest draws all candidates alike, and nothing is NaN.

use std::collections::BTreeMap;

use super::{Options, Sequence};
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
    /// Whether any option changes logits.
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
                || !options.logit_bias.is_empty(),
            ends,
            options: options.clone(),
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether there is a token that may be chosen.
    pub fn may_choose(&self) -> bool {
        let open = |id: &u32| (*id as usize) < self.vocab_size && self.banned.binary_search(id).is_err();
        if self.forced.is_empty() {
            (0..self.vocab_size as u32).any(|id| open(&id))
        } else {
            self.forced.iter().any(open)
        }
    }

    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// How many tokens end generation.
    pub fn end_count(&self) -> usize {
        self.ends.len()
    }

    /// Logits of the next token with biases and penalties applied and banned tokens at minus infinity.
    pub fn logits(&self, sequence: &Sequence) -> Vec<f64> {
        self.allowed(self.penalized(sequence))
    }

    /// The `k` most probable next tokens that may be chosen, the most probable first, with their
    /// log-probabilities after biases and penalties: of all ids of the model, as its own distribution is.
    pub fn most_probable(&self, sequence: &Sequence, k: usize) -> Vec<(u32, f64)> {
        let logs = self.allowed(log_softmax(&self.penalized(sequence)));
        let best = likeliest(&logs, k).into_iter().map(|id| (id, logs[id as usize]));
        // Banned tokens are no continuation, however few others there are.
        best.filter(|(_, logprob)| logprob.is_finite()).collect()
    }

    /// The `k` most probable next tokens by the model's own distribution, whether or not they may be chosen, with
    /// their log-probabilities; `chosen` is a token and its log-probability.
    pub fn top(&self, sequence: &Sequence, k: usize, chosen: (u32, f64)) -> Vec<(u32, f64)> {
        if k == 0 {
            return Vec::new();
        }
        let logits = logits_of(sequence);
        // What all logits are less by, so that a token has the same figure here and where it is chosen.
        let log_sum = logits[chosen.0 as usize] - chosen.1;
        let logprob = |id: u32| if id == chosen.0 { chosen.1 } else { logits[id as usize] - log_sum };
        likeliest(&logits[..self.vocab_size], k).into_iter().map(|id| (id, logprob(id))).collect()
    }

    /// Logits of all ids of the model after biases and penalties, without bans.
    fn penalized(&self, sequence: &Sequence) -> Vec<f64> {
        let mut logits = logits_of(sequence);
        if self.changes {
            self.add_biases(&mut logits);
            self.penalize_repetition(sequence, &mut logits);
            self.penalize_new(sequence, &mut logits);
        }
        logits
    }

    fn add_biases(&self, logits: &mut [f64]) {
        for (id, bias) in &self.options.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
    }

    /// The penalties of OpenAI's API, of tokens of the new text: `logit[j] -= count[j] * frequency_penalty +
    /// (count[j] > 0) * presence_penalty`.
    fn penalize_new(&self, sequence: &Sequence, logits: &mut [f64]) {
        let Options { presence_penalty, frequency_penalty, .. } = self.options;
        if presence_penalty == 0.0 && frequency_penalty == 0.0 {
            return;
        }
        let mut counts = BTreeMap::<u32, u32>::new();
        sequence.tokens[sequence.prompt..].iter().for_each(|id| *counts.entry(*id).or_default() += 1);
        for (id, count) in counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= f64::from(count) * frequency_penalty + presence_penalty;
            }
        }
    }

    fn penalize_repetition(&self, sequence: &Sequence, logits: &mut [f64]) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let mut seen: Vec<u32> = sequence.tokens.clone();
        seen.sort_unstable();
        seen.dedup();
        for id in seen.into_iter().filter(|id| !self.is_end(*id)) {
            if let Some(logit) = logits.get_mut(id as usize) {
                let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                // The difference of two infinities would be NaN.
                *logit = penalized.clamp(f64::MIN, f64::MAX);
            }
        }
    }

    /// Of numbers of all ids those of the tokens; banned ones at minus infinity.
    fn allowed(&self, mut all: Vec<f64>) -> Vec<f64> {
        all.truncate(self.vocab_size);
        if !self.forced.is_empty() {
            let forced = |id: usize| self.forced.binary_search(&(id as u32)).is_ok();
            let others = all.iter_mut().enumerate().filter(|(id, _)| !forced(*id));
            others.for_each(|(_, number)| *number = f64::NEG_INFINITY);
        }
        for id in &self.banned {
            if let Some(number) = all.get_mut(*id as usize) {
                *number = f64::NEG_INFINITY;
            }
        }
        all
    }

    pub fn greedy(&self, sequence: &Sequence) -> u32 {
        let all = &sequence.logits[..self.vocab_size.min(sequence.logits.len())];
        let best = loss::likeliest(self.isa, all) as u32;
        if !self.changes && self.banned.binary_search(&best).is_err() {
            return best;
        }
        argmax(&self.logits(sequence))
    }

    pub fn sample(&self, sequence: &Sequence, rng: &mut Rng) -> u32 {
        let candidates = candidates(&self.logits(sequence), &self.options);
        let weights: Vec<f64> = candidates.iter().map(|(_, p)| *p).collect();
        rng.weighted(&weights).map_or(0, |i| candidates[i].0)
    }
}

/// The logits of all ids of the model.
fn logits_of(sequence: &Sequence) -> Vec<f64> {
    sequence.logits.iter().map(|l| f64::from(*l)).collect()
}

/// The id of the maximum; the lowest of equal ones.
pub fn argmax(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let shifted = minus_max(logits);
    let log_sum = libm::log(shifted.iter().map(|x| libm::exp(*x)).sum());
    shifted.iter().map(|x| x - log_sum).collect()
}

fn minus_max(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter().map(|x| x - max).collect()
}

/// The `k` ids of the largest logits, the largest first, and of equals the lower id. By logit: at the highest
/// temperatures the probabilities no longer differ.
fn likeliest(logits: &[f64], k: usize) -> Vec<u32> {
    /// Logits that are compared at once.
    const BLOCK: usize = 16;
    let logit = |id: u32| logits[id as usize];
    let order = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    // Most logits are below the k-th of those before them, and so looked at but once.
    let room = k.saturating_mul(2).min(logits.len());
    let (mut best, mut least) = (Vec::with_capacity(room), f64::NEG_INFINITY);
    // The k largest are at least the k-th of the maxima of groups, each of every n-th logit.
    let groups = logits.len().div_ceil(BLOCK);
    if k < groups {
        let mut largest = vec![f64::NEG_INFINITY; groups];
        for some in logits.chunks(groups) {
            largest.iter_mut().zip(some).for_each(|(max, x)| *max = if *x > *max { *x } else { *max });
        }
        let (_, last, _) = largest.select_nth_unstable_by(k.saturating_sub(1), |a, b| b.total_cmp(a));
        least = *last;
    }
    for (i, some) in logits.chunks(BLOCK).enumerate() {
        // All, without an early end: that takes whole vectors.
        if !some.iter().fold(false, |any, x| any | (*x >= least)) {
            continue;
        }
        for id in (i * BLOCK) as u32..(i * BLOCK + some.len()) as u32 {
            if logit(id) < least {
                continue;
            }
            best.push(id);
            if best.len() == room && k < room {
                let (_, last, _) = best.select_nth_unstable_by(k - 1, order);
                least = logit(*last);
                best.truncate(k);
            }
        }
    }
    best.sort_unstable_by(order);
    best.truncate(k);
    best
}

/// The tokens that temperature, top-k, top-p and min-p leave, in this order, as in the `transformers` library;
/// the most probable first, with numbers that their probabilities are proportional to.
pub fn candidates(logits: &[f64], options: &Options) -> Vec<(u32, f64)> {
    let k = if options.top_k > 0 { options.top_k } else { logits.len() };
    let ids = likeliest(logits, k);
    let max = ids.first().map_or(0.0, |id| logits[*id as usize]);
    let weight = |id: u32| libm::exp((logits[id as usize] - max) / options.temperature);
    let mut all: Vec<(u32, f64)> = ids.into_iter().map(|id| (id, weight(id))).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside sorting all: many equal logits, zeros of both signs, banned ones; few and many of them.
    #[test]
    fn the_likeliest_are_the_first_of_all_sorted() {
        let mut rng = Rng::new(1, "logits");
        for (n, kinds) in [(1, 3), (15, 2), (16, 9), (17, 1), (100, 5), (700, 9), (2048, 100_000)] {
            let logit = |rng: &mut Rng| match rng.index(8) {
                0 => f64::NEG_INFINITY,
                1 => [0.0, -0.0][rng.index(2)],
                _ => rng.index(kinds) as f64 - kinds as f64 / 2.0,
            };
            let logits: Vec<f64> = (0..n).map(|_| logit(&mut rng)).collect();
            let mut all: Vec<u32> = (0..n as u32).collect();
            all.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            for k in [0, 1, 2, 5, 40, 43, 44, n / 2, n, n + 1] {
                assert_eq!(likeliest(&logits, k), all[..k.min(n)], "{k} of {n}");
            }
        }
    }
}
