//! Causal attention (Vaswani et al., 2017): `softmax(Q Kᵀ / sqrt(D)) V` for each head of each sequence.
//!
//! The scores of all queries with all keys are never there at once: a block of [`BLOCK`] queries passes by
//! the keys that it may see, in a scratch of its thread. Of a row of weights only the greatest score and
//! the sum are kept, from which the way back makes them again (Dao et al., "FlashAttention", 2022).
//!
//! Products leave out what is ahead of a query, in steps of 32 keys; the rest up to such a step is 0.

use std::cell::RefCell;
use std::ops::Range;

use super::dropout::{Dropout, factors};
use super::math::exp;
use super::matmul::{Product, Start, View};
use super::simd::{F, Isa, LANES, simd};
use super::team::{Parts, Team};

/// Queries of a block.
const BLOCK: usize = 128;

/// Keys by which products leave out what is ahead.
const STEP: usize = 32;

/// Sequences that attend, each to itself.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Queries of each.
    pub queries: usize,
    /// Keys before the first query: what a cache holds.
    pub start: usize,
    pub heads: usize,
    /// Width of a head, `D`.
    pub width: usize,
    /// Sequences of the batch before these; decides what dropout drops.
    pub first: usize,
}

impl Shape {
    fn keys(&self) -> usize {
        self.start + self.queries
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// Where the rows of queries, keys or values lie: head h of position t of sequence s begins at
/// `s * sequence + t * row + h * D`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub sequence: usize,
    pub row: usize,
}

impl<'a> Rows<'a> {
    fn head(&self, shape: &Shape, s: usize, h: usize) -> View<'a> {
        View::new(&self.data[s * self.sequence + h * shape.width..], self.row)
    }
}

thread_local! {
    /// The scores of a block, twice: the way back needs two.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch(shape: &Shape, f: impl FnOnce(&mut [f32], &mut [f32], usize)) {
    let width = shape.keys().next_multiple_of(STEP);
    SCRATCH.with_borrow_mut(|scratch| {
        let size = BLOCK * width;
        if scratch.len() < 2 * size {
            scratch.resize(2 * size, 0.0);
        }
        let (a, b) = scratch.split_at_mut(size);
        f(a, &mut b[..size], width);
    });
}

/// `out: [B*T, H*D]`; `moments: [B*H*T, 2]` takes each row's greatest score and 1 / sum, for [`backward`].
pub fn forward(
    team: &Team,
    shape: Shape,
    [q, k, v]: [Rows; 3],
    dropout: Dropout,
    out: &mut [f32],
    moments: &mut [f32],
) {
    let (t, c) = (shape.queries, shape.heads * shape.width);
    let (out, moments) = (Parts::new(out), Parts::new(moments));
    team.each(shape.batch * shape.heads, |task| {
        let (s, h) = (task / shape.heads, task % shape.heads);
        let [q, k, v] = [q, k, v].map(|rows| rows.head(&shape, s, h));
        // SAFETY: each task has a head of its own.
        let moments = unsafe { moments.take(task * t * 2..(task + 1) * t * 2) };
        with_scratch(&shape, |scores, _, width| {
            for block in blocks(t) {
                scores_of(team.isa, &shape, q, k, &block, scores, width);
                let first = ((shape.first + s) * shape.heads + h) * t;
                for i in block.clone() {
                    let row = &mut scores[(i - block.start) * width..][..width];
                    let moments = &mut moments[2 * i..2 * i + 2];
                    let seen = shape.start + i + 1;
                    row[seen..end_of(&shape, i)].fill(0.0);
                    let place = Place { dropout, row: first + i, columns: shape.keys() };
                    weights(team.isa, &mut row[..seen], shape.scale(), moments, place);
                }
                mix(team.isa, &shape, scores, width, &block, v, out.from(s * t * c + h * shape.width), c);
            }
        });
    });
}

fn blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t).step_by(BLOCK).map(move |i| i..(i + BLOCK).min(t))
}

/// Rows of the block, in the scratch, of `a · bᵀ` for the keys that they see, a step at a time.
fn scores_of(isa: Isa, shape: &Shape, a: View, b: View, block: &Range<usize>, out: &mut [f32], width: usize) {
    let seen = shape.start + block.end;
    let out = Parts::new(out);
    let a = a.below(block.start);
    for left in (0..seen).step_by(STEP) {
        let first = left.saturating_sub(shape.start).max(block.start);
        let (rows, columns) = (first - block.start..block.len(), left..(left + STEP).min(seen));
        let product = Product { a, b: b.t(), k: shape.width, start: Start::Zero, c: out, stride: width };
        product.part(isa, rows, columns);
    }
}

/// Where a row of weights stands for dropout.
#[derive(Clone, Copy)]
struct Place {
    dropout: Dropout,
    row: usize,
    columns: usize,
}

/// Where the last step that row `i` takes part in ends: rows go by [`STEP`]s too.
fn end_of(shape: &Shape, i: usize) -> usize {
    (shape.start + (i / STEP + 1) * STEP).min(shape.keys())
}

/// `out = weights · v` for a block.
#[allow(clippy::too_many_arguments)]
fn mix(
    isa: Isa,
    shape: &Shape,
    weights: &[f32],
    width: usize,
    block: &Range<usize>,
    v: View,
    out: Parts,
    stride: usize,
) {
    for top in block.clone().step_by(STEP) {
        let rows = top - block.start..(top + STEP).min(block.end) - block.start;
        let (a, c) = (View::new(weights, width), out.from(block.start * stride));
        let product = Product { a, b: v, k: end_of(shape, top), start: Start::Zero, c, stride };
        product.part(isa, rows, 0..shape.width);
    }
}

simd! {
    /// Scores to weights, `e^(scale (score - greatest)) / sum`, and what dropout leaves of them.
    fn weights<S>(row: &mut [f32], scale: f32, moments: &mut [f32], place: Place) {
        let mut greatest = F::<S>::splat(f32::NEG_INFINITY);
        for x in row.chunks(LANES) {
            greatest = greatest.max(F::load_some(x, f32::NEG_INFINITY));
        }
        let greatest = greatest.max_lane();
        let mut sum = F::<S>::splat(0.0);
        let scale = F::splat(scale);
        for x in row.chunks_mut(LANES) {
            let e = exp((F::<S>::load_some(x, f32::NEG_INFINITY) - F::splat(greatest)) * scale);
            e.store_some(x);
            // What is beyond the row went in as e^-87 or so; take it as 0.
            sum = sum + F::load_some(x, 0.0);
        }
        let inverse = 1.0 / sum.sum();
        for (group, x) in row.chunks_mut(2 * LANES).enumerate() {
            let factors = factors::<S>(place.dropout, place.row, group, place.columns);
            for (x, factor) in x.chunks_mut(LANES).zip(factors) {
                (F::<S>::load_some(x, 0.0) * F::splat(inverse) * factor).store_some(x);
            }
        }
        (moments[0], moments[1]) = (greatest, inverse);
    }

    /// Back through the weights of a row. `p` holds scores and becomes the weights that dropout left; `dp`
    /// holds the gradients of those and becomes that of the scores: `weight (dp · factor - total) · scale`.
    fn weights_back<S>(p: &mut [f32], dp: &mut [f32], total: f32, scale: f32, moments: &[f32], place: Place) {
        let (greatest, inverse) = (F::<S>::splat(moments[0]), F::<S>::splat(moments[1]));
        let (total, scale) = (F::<S>::splat(total), F::<S>::splat(scale));
        let groups = p.chunks_mut(2 * LANES).zip(dp.chunks_mut(2 * LANES));
        for (group, (p, dp)) in groups.enumerate() {
            let factors = factors::<S>(place.dropout, place.row, group, place.columns);
            for ((p, dp), factor) in p.chunks_mut(LANES).zip(dp.chunks_mut(LANES)).zip(factors) {
                let weight = exp((F::load_some(p, 0.0) - greatest) * scale) * inverse;
                let d = F::load_some(dp, 0.0) * factor - total;
                (weight * d * scale).store_some(dp);
                (weight * factor).store_some(p);
            }
        }
    }

    fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        let mut sum = F::<S>::splat(0.0);
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            sum = F::load_some(a, 0.0).mul_add(F::load_some(b, 0.0), sum);
        }
        sum.sum()
    }
}

/// What [`backward`] starts from.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// What [`forward`] gave, `[B*T, H*D]`.
    pub out: &'a [f32],
    pub moments: &'a [f32],
    /// Of the same shape as `out`.
    pub dout: &'a [f32],
}

/// `dqkv: [B*T, 3*H*D]` becomes the gradients of queries, keys and values side by side, as they lie in
/// `qkv`.
pub fn backward(team: &Team, shape: Shape, qkv: &[f32], back: Back, dropout: Dropout, dqkv: &mut [f32]) {
    assert_eq!(shape.start, 0, "there is no way back through a cache");
    let dqkv = Parts::new(dqkv);
    team.each(shape.batch * shape.heads, |task| {
        with_scratch(&shape, |p, ds, width| {
            one_head(team.isa, &shape, task, qkv, &back, dropout, dqkv, p, ds, width)
        });
    });
}

#[allow(clippy::too_many_arguments)]
fn one_head(
    isa: Isa,
    shape: &Shape,
    task: usize,
    qkv: &[f32],
    back: &Back,
    dropout: Dropout,
    dqkv: Parts,
    p: &mut [f32],
    ds: &mut [f32],
    width: usize,
) {
    let (t, d, c) = (shape.queries, shape.width, shape.heads * shape.width);
    let (s, h) = (task / shape.heads, task % shape.heads);
    let part = |i: usize| View::new(&qkv[s * t * 3 * c + i * c + h * d..], 3 * c);
    let [q, k, v] = [0, 1, 2].map(part);
    let own = s * t * c + h * d;
    let dout = View::new(&back.dout[own..], c);
    let to = |i: usize| dqkv.from(s * t * 3 * c + i * c + h * d);
    let first = ((shape.first + s) * shape.heads + h) * t;
    for block in blocks(t) {
        scores_of(isa, shape, q, k, &block, p, width);
        scores_of(isa, shape, dout, v, &block, ds, width);
        for i in block.clone() {
            let at = (i - block.start) * width;
            let (seen, end) = (i + 1, end_of(shape, i));
            let moments = &back.moments[2 * (task * t + i)..][..2];
            let (row, drow) = (&mut p[at..at + width], &mut ds[at..at + width]);
            let range = own + i * c..own + i * c + d;
            let total = dot(isa, &back.dout[range.clone()], &back.out[range]);
            let place = Place { dropout, row: first + i, columns: t };
            weights_back(isa, &mut row[..seen], &mut drow[..seen], total, shape.scale(), moments, place);
            row[seen..end].fill(0.0);
            drow[seen..end].fill(0.0);
        }
        mix(isa, shape, ds, width, &block, k, to(0), 3 * c);
        // Each key gets what the queries of this block, from its own step on, have for it.
        for left in (0..block.end).step_by(STEP) {
            let top = left.max(block.start);
            let (keys, n) = (left..(left + STEP).min(block.end), block.end - top);
            let start = if left < block.start { Start::Add } else { Start::Zero };
            let skip = (top - block.start) * width;
            let (p, ds) = (View::new(&p[skip..], width).t(), View::new(&ds[skip..], width).t());
            let of = |a, b, c| Product { a, b, k: n, start, c, stride: 3 * shape.heads * d };
            of(p, dout.below(top), to(2)).part(isa, keys.clone(), 0..d);
            of(ds, q.below(top), to(1)).part(isa, keys, 0..d);
        }
    }
}
