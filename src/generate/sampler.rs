//! The next token from logits: greedy or sampled, with temperature, top-k, top-p and repetition penalty.
//!
//! Logits are f64 here, and a temperature divides their differences to the maximum, which are 0 or below:
//! so the smallest temperature is greedy, the largest draws all candidates alike, and nothing is NaN.

use super::{Options, Sequence};
use crate::base::Rng;
use crate::kernel::{Isa, loss};
use crate::model::Model;
use crate::tokenizer::Special;

/// Chooses next tokens of one model by given options.
pub struct Sampler {
    options: Options,
    isa: Isa,
    /// Ids from here on have a row in the embedding but no token in the tokenizer.
    vocab_size: usize,
    /// Never chosen: `<pad>`, `<unk>`, `<bos>`.
    banned: Vec<u32>,
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
        Sampler {
            options: options.clone(),
            isa: Isa::best(),
            vocab_size: model.tokenizer.vocab_size().min(model.transformer.config.vocab_size),
            banned,
            ends,
        }
    }

    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Logits of the next token with the repetition penalty applied and banned tokens at minus infinity.
    pub fn logits(&self, sequence: &Sequence) -> Vec<f64> {
        let mut logits: Vec<f64> =
            sequence.logits.iter().take(self.vocab_size).map(|l| f64::from(*l)).collect();
        let penalty = self.options.repetition_penalty;
        if penalty != 1.0 {
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
        for id in &self.banned {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f64::NEG_INFINITY;
            }
        }
        logits
    }

    pub fn greedy(&self, sequence: &Sequence) -> u32 {
        let all = &sequence.logits[..self.vocab_size.min(sequence.logits.len())];
        let best = loss::likeliest(self.isa, all) as u32;
        if self.options.repetition_penalty == 1.0 && !self.banned.contains(&best) {
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
    let logit = |id: u32| logits[id as usize];
    let order = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    // Most logits are below the k-th of those before them, and so looked at but once.
    let room = k.saturating_mul(2).min(logits.len());
    let (mut best, mut least) = (Vec::with_capacity(room), f64::NEG_INFINITY);
    for id in 0..logits.len() as u32 {
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
    best.sort_unstable_by(order);
    best.truncate(k);
    best
}

/// The tokens that temperature, top-k and top-p leave, most probable first, with numbers that their
/// probabilities are proportional to.
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
    let least = options.min_p * all.first().map_or(0.0, |(_, p)| *p);
    all.retain(|(_, p)| *p >= least);
    all
}
