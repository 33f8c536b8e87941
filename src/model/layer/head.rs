//! The output projection and the loss, for the rows whose target counts.

use std::ops::Range;

use super::Pass;
use crate::kernel::loss::{self, CHUNK, Head, Logits, Targets};
use crate::model::Transformer;
use crate::model::ordered::Turns;

/// The projection of a model, with the logits that it makes.
pub fn head<'a>(model: &'a Transformer, smoothing: f32, logits: &'a mut Logits) -> Head<'a> {
    let output = model.output();
    Head { weight: output.weight, bias: output.bias, cap: output.cap, c: output.c, smoothing, logits }
}

/// Copies some rows of `from: [N, C]`, in their order, to the beginning of `to`.
pub fn gather(from: &[f32], c: usize, rows: &[usize], to: &mut [f32]) {
    for (row, to) in rows.iter().zip(to.chunks_exact_mut(c)) {
        to.copy_from_slice(&from[row * c..(row + 1) * c]);
    }
}

/// The inverse of [`gather`]: other rows become 0.
pub fn scatter(from: &[f32], c: usize, rows: &[usize], to: &mut [f32]) {
    to.fill(0.0);
    for (row, from) in rows.iter().zip(from.chunks_exact(c)) {
        to[row * c..(row + 1) * c].copy_from_slice(from);
    }
}

/// The summed loss of `x: [N, C]`, in nats.
pub fn loss(pass: &Pass, smoothing: f32, logits: &mut Logits, x: &[f32], targets: Targets) -> f64 {
    let mut head = head(pass.model, smoothing, logits);
    let c = head.c;
    chunks(targets.ids.len())
        .map(|rows| head.loss(pass.team, &x[rows.start * c..rows.end * c], targets.part(rows), false))
        .sum()
}

/// Adds the cross-entropy of each row of `x: [N, C]` with its target, in nats, to the sum that `sum_of` gives
/// of the row.
pub fn add_nats(
    pass: &Pass,
    logits: &mut Logits,
    x: &[f32],
    targets: &[u32],
    mut sum_of: impl FnMut(usize) -> usize,
    sums: &mut [f64],
) {
    let mut head = head(pass.model, 0.0, logits);
    let c = head.c;
    for rows in chunks(targets.len()) {
        let x = &x[rows.start * c..rows.end * c];
        head.loss(pass.team, x, Targets::new(&targets[rows.clone()]), false);
        rows.zip(head.row_nats()).for_each(|(row, nats)| sums[sum_of(row)] += nats);
    }
}

/// Rows whose logits exist at a time.
fn chunks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(CHUNK).map(move |first| first..(first + CHUNK).min(n))
}

/// The summed loss of `x: [N, C]`, whose gradient goes into `dx`; accumulates that of the projection.
pub fn loss_and_backward(
    pass: &Pass,
    smoothing: f32,
    logits: &mut Logits,
    x: &[f32],
    targets: Targets,
    dx: &mut [f32],
    turns: &mut Turns,
) -> f64 {
    let (layout, team, v) = (&pass.model.layout, pass.team, pass.config().vocab_size);
    let mut head = head(pass.model, smoothing, logits);
    let c = head.c;
    let (mut nats, all) = (0.0, targets.ids.len());
    for rows in chunks(all) {
        let (left, of) = (all - rows.end, rows.start * c..rows.end * c);
        let (x, dx, targets) = (&x[of.clone()], &mut dx[of], targets.part(rows));
        nats += head.loss(team, x, targets, true);
        for (block, ids) in loss::blocks(v).enumerate() {
            head.gradient(team, targets, ids.clone());
            head.input(team, ids.clone(), dx);
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
    if all == 0 {
        loss::blocks(v).for_each(|_| {
            turns.wait(0);
            turns.done();
        });
    }
    nats
}
