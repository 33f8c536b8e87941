//! Beam search: the `num_beams` most probable continuations are extended side by side; the result is the
//! one with the highest mean log-probability of its tokens (Wu et al., 2016, with length penalty 1).

use super::sampler::{Sampler, log_softmax};
use super::{Options, Sequence, Session};
use crate::base::Result;

struct Beam {
    sequence: Sequence,
    new: Vec<u32>,
    /// The sum of the new tokens' log-probabilities.
    score: f64,
}

struct Finished {
    ids: Vec<u32>,
    /// By which the result is chosen.
    score: f64,
}

/// A beam extended by one token: the beam's index, the token, the new score.
type Step = (usize, u32, f64);

/// The new tokens, with the end token where the text ends. The session's sequence is not changed.
pub fn search(session: &mut Session, sampler: &Sampler, options: &Options) -> Result<Vec<u32>> {
    let mut beams = vec![Beam { sequence: session.sequence.clone(), new: Vec::new(), score: 0.0 }];
    let mut finished: Vec<Finished> = Vec::new();
    for _ in 0..options.max_new_tokens {
        let mut grown: Vec<Step> = Vec::new();
        for (b, id, score) in top_continuations(&beams, sampler, options.num_beams) {
            if grown.len() == options.num_beams {
                break;
            }
            if !sampler.is_end(id) {
                grown.push((b, id, score));
                continue;
            }
            let new = &beams[b].new;
            let ids = new.iter().copied().chain([id]).collect();
            finished.push(Finished { ids, score: score / length(new.len() + 1, options) });
            // With one beam this is greedy search, which ends at the first end token.
            if options.num_beams == 1 {
                break;
            }
        }
        beams = extend(session, &beams, &grown)?;
        if beams.is_empty() || finished.len() >= options.num_beams {
            break;
        }
    }
    let open = beams
        .into_iter()
        .map(|b| Finished { score: b.score / length(b.new.len().max(1), options), ids: b.new });
    let all = finished.into_iter().chain(open);
    Ok(all.reduce(|a, b| if b.score > a.score { b } else { a }).map(|f| f.ids).unwrap_or_default())
}

/// What scores of texts of `tokens` tokens are divided by.
fn length(tokens: usize, options: &Options) -> f64 {
    libm::pow(tokens as f64, options.length_penalty)
}

/// The top continuations of all beams by one token, best first; `2 * num_beams` of each beam, since half
/// may be end tokens.
fn top_continuations(beams: &[Beam], sampler: &Sampler, num_beams: usize) -> Vec<Step> {
    let mut next: Vec<Step> = Vec::new();
    for (b, beam) in beams.iter().enumerate() {
        let logs = log_softmax(&sampler.logits(&beam.sequence));
        let mut best: Vec<(u32, f64)> = logs.iter().enumerate().map(|(i, p)| (i as u32, *p)).collect();
        best.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)));
        // Banned tokens have a probability of 0 and are no continuation, however few others there are.
        let possible = best.into_iter().take(2 * num_beams).filter(|(_, p)| p.is_finite());
        next.extend(possible.map(|(id, p)| (b, id, beam.score + p)));
    }
    next.sort_by(|x, y| y.2.total_cmp(&x.2).then((x.0, x.1).cmp(&(y.0, y.1))));
    next
}

/// Extends the beams by the steps, read as one batch.
fn extend(session: &mut Session, beams: &[Beam], steps: &[Step]) -> Result<Vec<Beam>> {
    let mut sequences: Vec<Sequence> = steps.iter().map(|(b, _, _)| beams[*b].sequence.clone()).collect();
    let ids: Vec<u32> = steps.iter().map(|(_, id, _)| *id).collect();
    session.read_each(&mut sequences, &ids)?;
    let grown = sequences.into_iter().zip(steps).map(|(sequence, (b, id, score))| {
        let new = beams[*b].new.iter().copied().chain([*id]).collect();
        Beam { sequence, new, score: *score }
    });
    Ok(grown.collect())
}
