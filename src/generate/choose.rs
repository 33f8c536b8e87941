//! Which token comes next, given logits.
//!
//! Scores are f64, and a temperature divides their distances to the highest, which are 0 or below: so
//! the smallest temperature is greedy, the largest draws all candidates alike, and nothing is NaN.

use super::{Options, Text};
use crate::base::Rng;
use crate::model::Model;
use crate::tokenizer::Special;

/// What may be chosen and how.
pub struct Chooser {
    options: Options,
    /// Ids of the tokenizer; rows of the embedding behind them mean nothing.
    known: usize,
    /// Never chosen: what only frames a text.
    banned: Vec<u32>,
    /// End the text: `<eos>`, and what begins somebody else's turn.
    ends: Vec<u32>,
}

impl Chooser {
    pub fn new(model: &Model, options: &Options) -> Self {
        let ids = |all: &[Special]| -> Vec<u32> {
            all.iter().filter_map(|s| model.tokenizer.special(*s)).collect()
        };
        let mut ends = ids(&[Special::Eos, Special::User, Special::Assistant, Special::System]);
        ends.extend(model.tokenizer.turn_start());
        // One token may both begin and end a text, as GPT-2's does.
        let mut banned = ids(&[Special::Pad, Special::Unk, Special::Bos]);
        banned.retain(|id| !ends.contains(id));
        Chooser {
            options: options.clone(),
            known: model.tokenizer.vocab_size().min(model.transformer.config.vocab_size),
            banned,
            ends,
        }
    }

    pub fn ends(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Logits with the penalty applied and what may not be chosen at minus infinity.
    pub fn scores(&self, text: &Text) -> Vec<f64> {
        let mut scores: Vec<f64> = text.logits.iter().take(self.known).map(|l| f64::from(*l)).collect();
        let penalty = self.options.repetition_penalty;
        if penalty != 1.0 {
            let mut seen: Vec<u32> = text.tokens.clone();
            seen.sort_unstable();
            seen.dedup();
            for id in seen.into_iter().filter(|id| !self.ends(*id)) {
                if let Some(score) = scores.get_mut(id as usize) {
                    let pushed = if *score > 0.0 { *score / penalty } else { *score * penalty };
                    // Of two infinities the difference would be NaN.
                    *score = pushed.clamp(f64::MIN, f64::MAX);
                }
            }
        }
        for id in &self.banned {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score = f64::NEG_INFINITY;
            }
        }
        scores
    }

    pub fn likeliest(&self, text: &Text) -> u32 {
        argmax(&self.scores(text))
    }

    pub fn draw(&self, text: &Text, rng: &mut Rng) -> u32 {
        let candidates = candidates(&self.scores(text), &self.options);
        let weights: Vec<f64> = candidates.iter().map(|(_, p)| *p).collect();
        rng.weighted(&weights).map_or(0, |i| candidates[i].0)
    }
}

/// The first of the highest.
pub fn argmax(scores: &[f64]) -> u32 {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best as u32
}

/// `ln softmax`.
pub fn log_probabilities(scores: &[f64]) -> Vec<f64> {
    let distances = distances(scores);
    let ln = libm::log(distances.iter().map(|d| libm::exp(*d)).sum());
    distances.iter().map(|d| d - ln).collect()
}

/// How far each score lies below the highest: 0 or less.
fn distances(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter().map(|s| s - max).collect()
}

/// What temperature, top-k and top-p leave, likeliest first, with probabilities that need not sum to 1.
pub fn candidates(scores: &[f64], options: &Options) -> Vec<(u32, f64)> {
    let cooled: Vec<f64> = distances(scores).iter().map(|d| d / options.temperature).collect();
    let logs = log_probabilities(&cooled);
    let mut all: Vec<(u32, f64)> = logs.iter().enumerate().map(|(i, p)| (i as u32, libm::exp(*p))).collect();
    // By score: at the highest temperatures the probabilities no longer differ.
    let score = |id: u32| scores[id as usize];
    all.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then(a.0.cmp(&b.0)));
    if options.top_k > 0 {
        all.truncate(options.top_k);
    }
    let total: f64 = all.iter().map(|(_, p)| p).sum();
    let mut sum = 0.0;
    let kept = all.iter().position(|(_, p)| {
        sum += p / total;
        sum >= options.top_p
    });
    all.truncate(kept.map_or(all.len(), |i| i + 1));
    all
}
