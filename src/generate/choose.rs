//! Which token comes next, given logits.

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
    /// End the text: `<eos>`, and the role tokens, which begin somebody else's turn.
    ends: Vec<u32>,
}

impl Chooser {
    pub fn new(model: &Model, options: &Options) -> Self {
        let ids = |all: &[Special]| all.iter().filter_map(|s| model.tokenizer.special(*s)).collect();
        Chooser {
            options: options.clone(),
            known: model.tokenizer.vocab_size().min(model.gpt.config.vocab_size),
            banned: ids(&[Special::Pad, Special::Unk, Special::Bos]),
            ends: ids(&[Special::Eos, Special::User, Special::Assistant, Special::System]),
        }
    }

    pub fn ends(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Logits with the penalty applied and what may not be chosen at minus infinity.
    pub fn scores(&self, text: &Text) -> Vec<f32> {
        let mut scores = text.logits.clone();
        scores.truncate(self.known);
        let penalty = self.options.repetition_penalty as f32;
        if penalty != 1.0 {
            let mut seen: Vec<u32> = text.tokens.clone();
            seen.sort_unstable();
            seen.dedup();
            for id in seen.into_iter().filter(|id| !self.ends(*id)) {
                if let Some(score) = scores.get_mut(id as usize) {
                    *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
                }
            }
        }
        for id in &self.banned {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score = f32::NEG_INFINITY;
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
pub fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best as u32
}

/// `ln softmax`.
pub fn log_probabilities(scores: &[f32]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|s| libm::exp(f64::from(s - max))).sum();
    let ln = libm::log(sum);
    scores.iter().map(|s| f64::from(s - max) - ln).collect()
}

/// What temperature, top-k and top-p leave, likeliest first, with probabilities that need not sum to 1.
pub fn candidates(scores: &[f32], options: &Options) -> Vec<(u32, f64)> {
    let scaled: Vec<f32> = scores.iter().map(|s| s / options.temperature as f32).collect();
    let logs = log_probabilities(&scaled);
    let mut all: Vec<(u32, f64)> = logs.iter().enumerate().map(|(i, p)| (i as u32, libm::exp(*p))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
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
