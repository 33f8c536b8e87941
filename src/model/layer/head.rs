//! The output projection and the loss, for the rows whose target counts.

use super::Pass;
use crate::kernel::loss::{self, CHUNK, Head, IGNORE, Logits};
use crate::model::Transformer;
use crate::model::ordered::Turns;

/// The projection of a model, with the logits that it makes.
pub fn head<'a>(model: &'a Transformer, smoothing: f32, logits: &'a mut Logits) -> Head<'a> {
    let output = model.output();
    Head { weight: output.weight, bias: output.bias, cap: output.cap, c: output.c, smoothing, logits }
}

/// Copies the rows of `from: [N, C]` whose target counts to the beginning of `to`; gives their targets.
pub fn gather(from: &[f32], c: usize, targets: &[u32], to: &mut [f32]) -> Vec<u32> {
    let counted = targets.iter().enumerate().filter(|(_, target)| **target != IGNORE);
    let mut found = Vec::with_capacity(targets.len());
    for (i, target) in counted {
        let at = found.len() * c;
        to[at..at + c].copy_from_slice(&from[i * c..(i + 1) * c]);
        found.push(*target);
    }
    found
}

/// The inverse of [`gather`]: rows whose target doesn't count become 0.
pub fn scatter(from: &[f32], c: usize, targets: &[u32], to: &mut [f32]) {
    let mut rows = from.chunks_exact(c);
    for (row, target) in to.chunks_exact_mut(c).zip(targets) {
        if *target == IGNORE {
            row.fill(0.0);
        } else {
            row.copy_from_slice(rows.next().expect("a row for each target that counts"));
        }
    }
}

/// The summed loss of `x: [N, C]`, in nats.
pub fn loss(pass: &Pass, smoothing: f32, logits: &mut Logits, x: &[f32], targets: &[u32]) -> f64 {
    let mut head = head(pass.model, smoothing, logits);
    let chunks = x.chunks(CHUNK * head.c).zip(targets.chunks(CHUNK));
    chunks.map(|(x, targets)| head.loss(pass.team, &x[..targets.len() * head.c], targets, false)).sum()
}

/// The summed loss of `x: [N, C]`, whose gradient goes into `dx`; accumulates that of the projection where it
/// is trained.
pub fn loss_and_backward(
    pass: &Pass,
    smoothing: f32,
    logits: &mut Logits,
    x: &[f32],
    targets: &[u32],
    dx: &mut [f32],
    turns: &mut Turns,
) -> f64 {
    let (layout, team, v) = (&pass.model.layout, pass.team, pass.config().vocab_size);
    let mut head = head(pass.model, smoothing, logits);
    let (c, is_trained) = (head.c, turns.is_trained(&layout.head));
    let (mut nats, mut left) = (0.0, targets.len());
    let chunks = x.chunks(CHUNK * c).zip(dx.chunks_mut(CHUNK * c)).zip(targets.chunks(CHUNK));
    for ((x, dx), targets) in chunks {
        left -= targets.len();
        nats += head.loss(team, x, targets, true);
        for (block, ids) in loss::blocks(v).enumerate() {
            head.gradient(team, targets, ids.clone());
            head.input(team, ids.clone(), dx);
            if !is_trained {
                continue;
            }
            // All chunks of a micro-batch are one addition to each block, made with the last of them.
            turns.wait(if left == 0 { 0 } else { block });
            head.weights(team, ids.clone(), x, &mut turns.tensor(layout.head.start + ids.start * c));
            if let Some(bias) = &layout.head_bias {
                head.bias(team, ids.clone(), &mut turns.tensor(bias.start + ids.start));
            }
            if left == 0 {
                turns.done();
            }
        }
    }
    if targets.is_empty() && is_trained {
        loss::blocks(v).for_each(|_| {
            turns.wait(0);
            turns.done();
        });
    }
    nats
}
