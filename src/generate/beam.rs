//! Beam search: the `num_beams` likeliest beginnings are followed side by side; the answer is the one
//! with the highest mean log-probability a token (Wu et al., 2016, with exponent 1).

use super::choose::{Chooser, log_probabilities};
use super::{Options, Session, Text};
use crate::base::Result;

struct Beam {
    text: Text,
    new: Vec<u32>,
    score: f64,
}

struct Finished {
    ids: Vec<u32>,
    mean: f64,
}

/// A way to go on: which beam, with which token, to which score.
type Step = (usize, u32, f64);

/// The new tokens, without the end token. The session itself stays where it is.
pub fn search(session: &mut Session, chooser: &Chooser, options: &Options) -> Result<Vec<u32>> {
    let mut beams = vec![Beam { text: session.text.clone(), new: Vec::new(), score: 0.0 }];
    let mut finished: Vec<Finished> = Vec::new();
    for _ in 0..options.max_new_tokens {
        let mut grown: Vec<Step> = Vec::new();
        for (b, id, score) in steps(&beams, chooser, options.num_beams) {
            if grown.len() == options.num_beams {
                break;
            }
            if !chooser.ends(id) {
                grown.push((b, id, score));
                continue;
            }
            let new = &beams[b].new;
            finished.push(Finished { ids: new.clone(), mean: score / (new.len() + 1) as f64 });
            // One beam is greedy search: it ends where greedy ends.
            if options.num_beams == 1 {
                break;
            }
        }
        beams = follow(session, &beams, &grown)?;
        if beams.is_empty() || finished.len() >= options.num_beams {
            break;
        }
    }
    let open = beams.into_iter().map(|b| Finished { mean: b.score / b.new.len().max(1) as f64, ids: b.new });
    let all = finished.into_iter().chain(open);
    Ok(all.reduce(|a, b| if b.mean > a.mean { b } else { a }).map(|f| f.ids).unwrap_or_default())
}

/// The likeliest ways on of all beams, best first; twice as many of each as there are beams, since half
/// may be ends.
fn steps(beams: &[Beam], chooser: &Chooser, num_beams: usize) -> Vec<Step> {
    let mut next: Vec<Step> = Vec::new();
    for (b, beam) in beams.iter().enumerate() {
        let logs = log_probabilities(&chooser.scores(&beam.text));
        let mut best: Vec<(u32, f64)> = logs.iter().enumerate().map(|(i, p)| (i as u32, *p)).collect();
        best.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)));
        // What has no probability is no way on, however few others there are.
        let possible = best.into_iter().take(2 * num_beams).filter(|(_, p)| p.is_finite());
        next.extend(possible.map(|(id, p)| (b, id, beam.score + p)));
    }
    next.sort_by(|x, y| y.2.total_cmp(&x.2).then((x.0, x.1).cmp(&(y.0, y.1))));
    next
}

/// Takes the steps, all of them in one reading.
fn follow(session: &mut Session, beams: &[Beam], steps: &[Step]) -> Result<Vec<Beam>> {
    let mut texts: Vec<Text> = steps.iter().map(|(b, _, _)| beams[*b].text.clone()).collect();
    let ids: Vec<u32> = steps.iter().map(|(_, id, _)| *id).collect();
    session.read_each(&mut texts, &ids)?;
    let grown = texts.into_iter().zip(steps).map(|(text, (b, id, score))| {
        let new = beams[*b].new.iter().copied().chain([*id]).collect();
        Beam { text, new, score: *score }
    });
    Ok(grown.collect())
}
