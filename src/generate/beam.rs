//! Beam search: the `num_beams` likeliest beginnings are followed side by side; the answer is the one
//! with the highest mean log-probability a token (Wu et al., 2016, with exponent 1).

use super::choose::{Chooser, log_probabilities};
use super::{Options, Session};
use crate::base::Result;

#[derive(Clone)]
struct Beam<'a> {
    session: Session<'a>,
    new: Vec<u32>,
    score: f64,
}

struct Finished {
    ids: Vec<u32>,
    mean: f64,
}

/// The new tokens, without the end token.
pub fn search(session: &Session, chooser: &Chooser, options: &Options) -> Result<Vec<u32>> {
    let mut beams = vec![Beam { session: session.clone(), new: Vec::new(), score: 0.0 }];
    let mut finished: Vec<Finished> = Vec::new();
    for _ in 0..options.max_new_tokens {
        let mut next: Vec<(usize, u32, f64)> = Vec::new();
        for (b, beam) in beams.iter().enumerate() {
            let logs = log_probabilities(&chooser.scores(&beam.session));
            let mut best: Vec<(u32, f64)> = logs.iter().enumerate().map(|(i, p)| (i as u32, *p)).collect();
            best.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)));
            next.extend(best.into_iter().take(2 * options.num_beams).map(|(id, p)| (b, id, beam.score + p)));
        }
        next.sort_by(|x, y| y.2.total_cmp(&x.2).then((x.0, x.1).cmp(&(y.0, y.1))));
        let mut grown = Vec::new();
        for (b, id, score) in next {
            if grown.len() == options.num_beams {
                break;
            }
            let beam = &beams[b];
            if chooser.ends(id) {
                finished.push(Finished { ids: beam.new.clone(), mean: score / (beam.new.len() + 1) as f64 });
                // One beam is greedy search: it ends where greedy ends.
                if options.num_beams == 1 {
                    break;
                }
                continue;
            }
            let mut beam = beam.clone();
            beam.session.feed(&[id])?;
            beam.new.push(id);
            beam.score = score;
            grown.push(beam);
        }
        beams = grown;
        if beams.is_empty() || finished.len() >= options.num_beams {
            break;
        }
    }
    let open = beams.into_iter().map(|b| Finished { mean: b.score / b.new.len().max(1) as f64, ids: b.new });
    let all = finished.into_iter().chain(open);
    Ok(all.reduce(|a, b| if b.mean > a.mean { b } else { a }).map(|f| f.ids).unwrap_or_default())
}
