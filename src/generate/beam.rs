//! Beam search, as the `transformers` library defines it: of all continuations by one token, the `num_beams`
//! most probable are followed. Texts that ended are compared by the sum of their tokens' log-probabilities, that
//! of the end token included, over `length ^ length_penalty` (Wu et al., 2016), length in tokens with the end
//! token.
//!
//! A text ends with an end token, a stop string or `max_new_tokens`, and counts if it is among the `num_beams`
//! most probable continuations of its step. The `num_beams` best such texts are kept. The search ends early
//! when that many have ended and the most probable open beam, at its present length, would not be better than
//! the worst of them (`early_stopping=False`): with a length penalty above 0 a longer text might still have
//! become better. With one beam it is greedy search.

use super::sampler::Sampler;
use super::search::Branch;
use super::writer::Writer;
use super::{Continuation, Finish, Options};

/// Texts that ended, the best first, with what they are compared by; `num_beams` at most.
#[derive(Default)]
pub struct Finished(Vec<(f64, Continuation)>);

impl Finished {
    fn add(&mut self, score: f64, writer: Writer, finish: Finish, most: usize) {
        let at = self.0.iter().take_while(|(other, _)| *other >= score).count();
        self.0.insert(at, (score, writer.end(finish)));
        self.0.truncate(most);
    }

    /// The result, when the search is over: no beam is open, or none is likely to become better.
    pub fn result(&mut self, open: &[Branch], options: &Options) -> Option<Continuation> {
        let better = |best: &Branch| {
            let worst = self.0.last().filter(|_| self.0.len() == options.num_beams);
            let score = best.score / length(best.writer.tokens().len(), options);
            worst.is_none_or(|(worst, _)| score > *worst)
        };
        let greedy = options.num_beams == 1 && !self.0.is_empty();
        if !greedy && open.first().is_some_and(better) {
            return None;
        }
        Some(self.0.swap_remove(0).1)
    }
}

/// What the score of a text of `tokens` tokens is divided by.
fn length(tokens: usize, options: &Options) -> f64 {
    libm::pow(tokens as f64, options.length_penalty)
}

/// A beam extended by one token: the beam's index, the token, the new score.
type Step = (usize, u32, f64);

/// Extends `beams` by the most probable tokens; texts that end with them become `finished`. Gives the beams to
/// follow, the most probable first, and what each is to read.
pub fn step(beams: &[Branch], finished: &mut Finished, sampler: &Sampler) -> (Vec<Branch>, Vec<u32>) {
    let options = sampler.options();
    let (mut grown, mut next) = (Vec::new(), Vec::new());
    for (rank, (b, id, score)) in top_continuations(beams, sampler).into_iter().enumerate() {
        let (counts, open) = (rank < options.num_beams, grown.len() < options.num_beams);
        if !counts && !open {
            break;
        }
        let mut writer = beams[b].writer.clone();
        let tokens = writer.tokens().len() + 1;
        let finish = match sampler.is_end(id) {
            true => Some(Finish::End),
            false => writer.push(sampler.token(&beams[b].sequence, id), options.max_new_tokens),
        };
        match finish {
            Some(finish) if counts => {
                finished.add(score / length(tokens, options), writer, finish, options.num_beams);
            }
            None if open => {
                grown.push(Branch { sequence: beams[b].sequence.clone(), writer, score });
                next.push(id);
            }
            _ => {}
        }
    }
    if grown.is_empty() && finished.0.is_empty() {
        // Nothing can follow: the tokenizer has no token that may be chosen.
        finished.add(0.0, beams[0].writer.clone(), Finish::Length, 1);
    }
    (grown, next)
}

/// The top continuations of all beams by one token, best first: of each beam so many that `num_beams` are left
/// when all end tokens are among them.
fn top_continuations(beams: &[Branch], sampler: &Sampler) -> Vec<Step> {
    let options = sampler.options();
    let mut all: Vec<Step> = Vec::new();
    for (b, beam) in beams.iter().enumerate() {
        let best = sampler.most_probable(&beam.sequence, options.num_beams + sampler.end_count());
        all.extend(best.into_iter().map(|(id, logprob)| (b, id, beam.score + logprob)));
    }
    all.sort_by(|x, y| y.2.total_cmp(&x.2).then((x.0, x.1).cmp(&(y.0, y.1))));
    all
}
