//! Causal attention (Vaswani et al., 2017): `softmax(Q Kᵀ / sqrt(D)) V` for each head of each sequence. A head
//! of keys and values may serve several heads of queries: grouped-query (Ainslie et al., 2023) and, where there
//! is but one, multi-query attention (Shazeer, 2019).
//!
//! Never are the scores of all queries with all keys in memory at once: a block of [`BLOCK`] queries attends
//! to its keys in a scratch of its thread. Of a row only its maximum and the inverse of its sum are kept, from
//! which the backward pass recomputes the weights (Dao et al., "FlashAttention", 2022).
//!
//! Products leave out keys that are ahead of a query, in steps of 32; weights up to such a step are 0.

pub mod cached;

use std::cell::RefCell;
use std::ops::Range;

use self::cached::PANEL;
use super::dropout::{Dropout, factors};
use super::math::exp;
use super::matmul::{Product, Start, View};
use super::simd::{F, Isa, LANES, simd};
use super::team::{Parts, Team};

/// Queries of a block.
const BLOCK: usize = 128;

/// Keys by which products leave out what is ahead.
const STEP: usize = 32;

/// Scores of fewer multiplications are computed by one thread.
const SERIAL: usize = 1 << 14;

/// Sequences that attend, each to itself.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Sequences, `B`.
    pub batch: usize,
    /// Queries of each, `T`.
    pub queries: usize,
    /// Keys before the first query: those of a cache.
    pub start: usize,
    /// Heads of queries, `H`.
    pub heads: usize,
    /// Heads of keys and values, `K`, which divides `H`: query head h reads head `h / (H / K)`.
    pub kv_heads: usize,
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

    /// Heads of queries that share a head of keys and values.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of a row of [`backward`]'s gradient: queries, keys and values.
    fn columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
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
    /// Scores of a block, and room for as many more, which the backward pass needs.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch(shape: &Shape, f: impl FnOnce(&mut [f32], &mut [f32], usize)) {
    let width = shape.keys().next_multiple_of(STEP);
    let size = BLOCK * width;
    with_numbers(2 * size, |scratch| {
        let (a, b) = scratch.split_at_mut(size);
        f(a, b, width);
    });
}

/// Calls `f` with so many arbitrary numbers of this thread's scratch.
fn with_numbers(len: usize, f: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len]);
    });
}

/// `out: [B*T, H*D]`; `stats: [B*H*T, 2]` takes each row's maximum and 1 / sum, for [`backward`].
#[allow(clippy::too_many_arguments)]
pub fn forward(
    team: &Team,
    shape: Shape,
    q: Rows,
    k: Rows,
    v: Rows,
    dropout: Dropout,
    out: &mut [f32],
    stats: &mut [f32],
) {
    let (t, c) = (shape.queries, shape.heads * shape.width);
    let (out, stats) = (Parts::new(out), Parts::new(stats));
    let head = |task: usize| {
        let (s, h) = (task / shape.heads, task % shape.heads);
        let g = h / shape.group();
        let [q, k, v] = [q.head(&shape, s, h), k.head(&shape, s, g), v.head(&shape, s, g)];
        let k = Keys::Rows(k);
        // SAFETY: each task has a head of its own.
        let stats = unsafe { stats.take(task * t * 2..(task + 1) * t * 2) };
        with_scratch(&shape, |scores, _, width| {
            for block in blocks(t) {
                let stats = &mut stats[2 * block.start..2 * block.end];
                let queries = Queries { shape: &shape, q, k, number: task, block: &block };
                queries.weights(team.isa, dropout, scores, width, stats);
                mix(team.isa, &shape, scores, width, &block, v, out.from(s * t * c + h * shape.width), c);
            }
        });
    };
    let tasks = shape.batch * shape.heads;
    // A new token behind a short text takes less time than waiting for other threads.
    if tasks * t * shape.keys() * shape.width < SERIAL {
        (0..tasks).for_each(head)
    } else {
        team.each(tasks, head)
    }
}

/// The weights that [`forward`] mixes values by, `[B*H, T, keys]`, without dropout: a row for each query, 0 for
/// keys that are ahead of it.
pub fn probabilities(team: &Team, shape: Shape, q: Rows, k: Rows, out: &mut [f32]) {
    let (t, keys) = (shape.queries, shape.keys());
    let out = Parts::new(out);
    team.each(shape.batch * shape.heads, |task| {
        let (s, h) = (task / shape.heads, task % shape.heads);
        let (q, k) = (q.head(&shape, s, h), Keys::Rows(k.head(&shape, s, h / shape.group())));
        // SAFETY: each task has a head of its own.
        let out = unsafe { out.take(task * t * keys..(task + 1) * t * keys) };
        let mut stats = [0.0; 2 * BLOCK];
        with_scratch(&shape, |scores, _, width| {
            for block in blocks(t) {
                let queries = Queries { shape: &shape, q, k, number: task, block: &block };
                queries.weights(team.isa, Dropout::NONE, scores, width, &mut stats[..2 * block.len()]);
                for (i, row) in block.clone().zip(scores.chunks(width)) {
                    let (seen, to) = (shape.start + i + 1, &mut out[i * keys..(i + 1) * keys]);
                    to[..seen].copy_from_slice(&row[..seen]);
                    to[seen..].fill(0.0);
                }
            }
        });
    });
}

/// The keys of a head.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// `[T, D]`
    Rows(View<'a>),
    /// Those of a cache: panels `[D, 64]` that begin every `stride`.
    Panels { data: &'a [f32], stride: usize },
}

/// A block of queries of a head, and the keys that they see.
struct Queries<'a> {
    shape: &'a Shape,
    q: View<'a>,
    k: Keys<'a>,
    /// The head among those of all sequences.
    number: usize,
    block: &'a Range<usize>,
}

impl Queries<'_> {
    /// Into each row of the scratch the weights of the keys that its query sees, and 0 up to the end of its step;
    /// `stats: [rows, 2]`, of the block, as of [`forward`].
    fn weights(&self, isa: Isa, dropout: Dropout, scores: &mut [f32], width: usize, stats: &mut [f32]) {
        let Queries { shape, q, k, number, block } = *self;
        scores_of(isa, shape, q, k, block, scores, width);
        let first = (shape.first * shape.heads + number) * shape.queries;
        for i in block.clone() {
            let row = &mut scores[(i - block.start) * width..][..width];
            let stats = &mut stats[2 * (i - block.start)..][..2];
            let seen = shape.start + i + 1;
            row[seen..end_of(shape, i)].fill(0.0);
            let place = Place { dropout, row: first + i, columns: shape.keys() };
            weights(isa, &mut row[..seen], shape.scale(), stats, place);
        }
    }
}

fn blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t).step_by(BLOCK).map(move |i| i..(i + BLOCK).min(t))
}

/// `a · bᵀ` of a block's rows and the keys that they see, a step at a time, into the scratch.
fn scores_of(isa: Isa, shape: &Shape, a: View, b: Keys, block: &Range<usize>, out: &mut [f32], width: usize) {
    let seen = shape.start + block.end;
    let out = Parts::new(out);
    let a = a.below(block.start);
    let step = match b {
        // A single query sees all of the keys.
        Keys::Rows(_) if block.len() == 1 => seen,
        _ => STEP,
    };
    for left in (0..seen).step_by(step) {
        let first = left.saturating_sub(shape.start).max(block.start);
        let (rows, columns) = (first - block.start..block.len(), left..(left + step).min(seen));
        // The product's columns begin at this key.
        let (b, first) = match b {
            Keys::Rows(keys) => (keys.t(), 0),
            Keys::Panels { data, stride } => {
                (View::new(&data[left / PANEL * stride..], PANEL), left / PANEL * PANEL)
            }
        };
        let (c, columns) = (out.from(first), columns.start - first..columns.end - first);
        Product { a, b, k: shape.width, start: Start::Zero, c, stride: width }.part(isa, rows, columns);
    }
}

/// The row of weights that dropout is asked about.
#[derive(Clone, Copy)]
struct Place {
    dropout: Dropout,
    row: usize,
    columns: usize,
}

impl Place {
    /// Without dropout.
    const NONE: Place = Place { dropout: Dropout::NONE, row: 0, columns: 0 };
}

/// Keys that row `i`'s products read: all up to the end of the step of its last.
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
    /// Scores become weights, `e^(scale (score - max)) / sum`, times dropout's factors.
    fn weights<S>(row: &mut [f32], scale: f32, stats: &mut [f32], place: Place) {
        let mut max = F::<S>::splat(f32::NEG_INFINITY);
        for x in row.chunks(LANES) {
            max = max.max(F::load_some(x, f32::NEG_INFINITY));
        }
        let max = max.max_lane();
        let mut sum = F::<S>::splat(0.0);
        let scale = F::splat(scale);
        for x in row.chunks_mut(LANES) {
            let e = exp((F::<S>::load_some(x, f32::NEG_INFINITY) - F::splat(max)) * scale);
            e.store_some(x);
            // Lanes beyond the row hold e^-87 in `e`; here they count as 0.
            sum = sum + F::load_some(x, 0.0);
        }
        let inverse = 1.0 / sum.sum();
        for (group, x) in row.chunks_mut(2 * LANES).enumerate() {
            let factors = factors::<S>(place.dropout, place.row, group, place.columns);
            for (x, factor) in x.chunks_mut(LANES).zip(factors) {
                (F::<S>::load_some(x, 0.0) * F::splat(inverse) * factor).store_some(x);
            }
        }
        (stats[0], stats[1]) = (max, inverse);
    }

    /// Backward of [`weights`]. `p` holds scores and becomes weights times dropout's factors; `dp` holds the
    /// gradient of those and becomes that of the scores: `weight (dp · factor - total) · scale`.
    fn weights_back<S>(p: &mut [f32], dp: &mut [f32], total: f32, scale: f32, stats: &[f32], place: Place) {
        let (max, inverse) = (F::<S>::splat(stats[0]), F::<S>::splat(stats[1]));
        let (total, scale) = (F::<S>::splat(total), F::<S>::splat(scale));
        let groups = p.chunks_mut(2 * LANES).zip(dp.chunks_mut(2 * LANES));
        for (group, (p, dp)) in groups.enumerate() {
            let factors = factors::<S>(place.dropout, place.row, group, place.columns);
            for ((p, dp), factor) in p.chunks_mut(LANES).zip(dp.chunks_mut(LANES)).zip(factors) {
                let weight = exp((F::load_some(p, 0.0) - max) * scale) * inverse;
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
    /// Output of [`forward`], `[B*T, H*D]`.
    pub out: &'a [f32],
    /// Of [`forward`], `[B*H*T, 2]`.
    pub stats: &'a [f32],
    /// Gradient of the output, `[B*T, H*D]`.
    pub dout: &'a [f32],
}

/// `dqkv: [B*T, (H + 2K)*D]` becomes the gradients of queries, keys and values, side by side. A head of keys
/// and values sums those of its heads of queries in their order.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    team: &Team,
    shape: Shape,
    q: Rows,
    k: Rows,
    v: Rows,
    back: Back,
    dropout: Dropout,
    dqkv: &mut [f32],
) {
    assert_eq!(shape.start, 0, "no backward pass through a cache");
    let dqkv = Parts::new(dqkv);
    team.each(shape.batch * shape.kv_heads, |task| {
        let (s, g) = (task / shape.kv_heads, task % shape.kv_heads);
        with_scratch(&shape, |p, ds, width| {
            for h in g * shape.group()..(g + 1) * shape.group() {
                let head = Head {
                    shape: &shape,
                    number: s * shape.heads + h,
                    q: q.head(&shape, s, h),
                    k: k.head(&shape, s, g),
                    v: v.head(&shape, s, g),
                    dropout,
                };
                head.backward(team.isa, &back, dqkv, p, ds, width);
            }
        });
    });
}

/// A head of queries, with its keys and values.
struct Head<'a> {
    shape: &'a Shape,
    /// Among the heads of all sequences.
    number: usize,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    dropout: Dropout,
}

impl Head<'_> {
    fn backward(&self, isa: Isa, back: &Back, dqkv: Parts, p: &mut [f32], ds: &mut [f32], width: usize) {
        let shape = self.shape;
        let (d, c, stride) = (shape.width, shape.heads * shape.width, shape.columns());
        let (s, h) = (self.number / shape.heads, self.number % shape.heads);
        let dout = View::new(&back.dout[s * shape.queries * c + h * d..], c);
        let dq = dqkv.from(s * shape.queries * stride + h * d);
        for block in blocks(shape.queries) {
            scores_of(isa, shape, self.q, Keys::Rows(self.k), &block, p, width);
            scores_of(isa, shape, dout, Keys::Rows(self.v), &block, ds, width);
            for i in block.clone() {
                let at = (i - block.start) * width;
                self.row(isa, back, i, &mut p[at..at + width], &mut ds[at..at + width]);
            }
            mix(isa, shape, ds, width, &block, self.k, dq, stride);
            self.keys(isa, &block, (p, ds, width), dout, dqkv);
        }
    }

    /// Scores of query `i` become weights, and gradients of weights those of scores.
    fn row(&self, isa: Isa, back: &Back, i: usize, p: &mut [f32], ds: &mut [f32]) {
        let shape = self.shape;
        let (d, t) = (shape.width, shape.queries);
        let (s, h) = (self.number / shape.heads, self.number % shape.heads);
        let from = (s * t + i) * shape.heads * d + h * d;
        let total = dot(isa, &back.dout[from..from + d], &back.out[from..from + d]);
        let stats = &back.stats[2 * (self.number * t + i)..][..2];
        let row = (shape.first * shape.heads + self.number) * t + i;
        let place = Place { dropout: self.dropout, row, columns: t };
        let (seen, end) = (i + 1, end_of(shape, i));
        weights_back(isa, &mut p[..seen], &mut ds[..seen], total, shape.scale(), stats, place);
        p[seen..end].fill(0.0);
        ds[seen..end].fill(0.0);
    }

    /// Each key and value gets its gradients from the queries of a block, beginning with those of its own
    /// step.
    fn keys(
        &self,
        isa: Isa,
        block: &Range<usize>,
        (p, ds, width): (&[f32], &[f32], usize),
        dout: View,
        dqkv: Parts,
    ) {
        let shape = self.shape;
        let (d, stride) = (shape.width, shape.columns());
        let (s, h) = (self.number / shape.heads, self.number % shape.heads);
        let g = h / shape.group();
        let to = |head: usize| dqkv.from(s * shape.queries * stride + head * d);
        let (dk, dv) = (to(shape.heads + g), to(shape.heads + shape.kv_heads + g));
        for left in (0..block.end).step_by(STEP) {
            let top = left.max(block.start);
            let (keys, n) = (left..(left + STEP).min(block.end), block.end - top);
            let first = left >= block.start && h.is_multiple_of(shape.group());
            let start = if first { Start::Zero } else { Start::Add };
            let skip = (top - block.start) * width;
            let (p, ds) = (View::new(&p[skip..], width).t(), View::new(&ds[skip..], width).t());
            let of = |a, b, c| Product { a, b, k: n, start, c, stride };
            of(p, dout.below(top), dv).part(isa, keys.clone(), 0..d);
            of(ds, self.q.below(top), dk).part(isa, keys, 0..d);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    const SHAPE: Shape =
        Shape { batch: 2, queries: 133, start: 0, heads: 6, kv_heads: 2, width: 5, first: 3 };

    fn rows(data: &[f32], heads: usize, t: usize) -> Rows<'_> {
        Rows { data, sequence: t * heads * SHAPE.width, row: heads * SHAPE.width }
    }

    /// The definition, a number at a time.
    fn plain(shape: Shape, q: &[f64], k: &[f64], v: &[f64], dropout: Dropout) -> Vec<f64> {
        let (t, d, keys) = (shape.queries, shape.width, shape.keys());
        let mut out = vec![0.0; shape.batch * t * shape.heads * d];
        for (i, out) in out.chunks_exact_mut(d).enumerate() {
            let (s, i, h) = (i / shape.heads / t, i / shape.heads % t, i % shape.heads);
            let at = |j: usize| ((s * keys + j) * shape.kv_heads + h / (shape.heads / shape.kv_heads)) * d;
            let q = &q[((s * t + i) * shape.heads + h) * d..][..d];
            let dot = |j: usize| q.iter().zip(&k[at(j)..]).map(|(q, k)| q * k).sum::<f64>();
            let weights: Vec<f64> =
                (0..=shape.start + i).map(|j| (dot(j) / (d as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let row = ((shape.first + s) * shape.heads + h) * t + i;
            for (j, weight) in weights.iter().enumerate() {
                let kept = dropout.is_none() || dropout.keeps(row, j, keys);
                let factor = if kept { f64::from(dropout.scale()) } else { 0.0 };
                let v = &v[at(j)..];
                out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / sum * factor * v);
            }
        }
        out
    }

    #[test]
    fn grouped_heads_are_the_definition_forward_and_backward() {
        let (n, d) = (SHAPE.batch * SHAPE.queries, SHAPE.width);
        let (q, k) = (numbers("q", n * SHAPE.heads * d, 1.5), numbers("k", n * SHAPE.kv_heads * d, 1.5));
        let (v, dout) = (numbers("v", k.len(), 1.0), numbers("dout", q.len(), 1.0));
        let dropout = Dropout::new(0.2, 77);
        let found = same_everywhere(|team| {
            let mut out = vec![f32::NAN; q.len()];
            let (mut stats, mut dqkv) =
                (vec![f32::NAN; 2 * n * SHAPE.heads], vec![f32::NAN; n * SHAPE.columns()]);
            let [q, k, v] = [(&q, SHAPE.heads), (&k, SHAPE.kv_heads), (&v, SHAPE.kv_heads)]
                .map(|(data, heads)| rows(data, heads, SHAPE.queries));
            forward(team, SHAPE, q, k, v, dropout, &mut out, &mut stats);
            let back = Back { out: &out, stats: &stats, dout: &dout };
            backward(team, SHAPE, q, k, v, back, dropout, &mut dqkv);
            vec![out, dqkv]
        });
        let all = [wide(&q), wide(&k), wide(&v)];
        near("out", &found[0], &plain(SHAPE, &all[0], &all[1], &all[2], dropout), 1e-5);
        let (mut from, dout) = (0, wide(&dout));
        for (which, x) in [&q, &k, &v].into_iter().enumerate() {
            let columns = x.len() / n;
            let own: Vec<f32> = found[1]
                .chunks_exact(SHAPE.columns())
                .flat_map(|row| &row[from..from + columns])
                .copied()
                .collect();
            let loss = |x: &[f64]| {
                let mut all = all.clone();
                all[which] = x.to_vec();
                let out = plain(SHAPE, &all[0], &all[1], &all[2], dropout);
                out.iter().zip(&dout).map(|(a, b)| a * b).sum()
            };
            near_differences(["dq", "dk", "dv"][which], &own, x, loss, 1e-4);
            from += columns;
        }
    }

    /// With values of which one key has a 1 and all others 0, that key's weights come out.
    #[test]
    fn probabilities_are_what_values_are_mixed_by() {
        let (n, d, t) = (SHAPE.batch * SHAPE.queries, SHAPE.width, SHAPE.queries);
        let (q, k) = (numbers("q", n * SHAPE.heads * d, 1.5), numbers("k", n * SHAPE.kv_heads * d, 1.5));
        let found = same_everywhere(|team| {
            let mut out = vec![f32::NAN; SHAPE.batch * SHAPE.heads * t * t];
            probabilities(team, SHAPE, rows(&q, SHAPE.heads, t), rows(&k, SHAPE.kv_heads, t), &mut out);
            vec![out]
        });
        for key in [0, 31, 32, 100, 132] {
            let v: Vec<f64> = (0..k.len()).map(|i| f64::from(i / (SHAPE.kv_heads * d) % t == key)).collect();
            let expected = plain(SHAPE, &wide(&q), &wide(&k), &v, Dropout::NONE);
            for (i, row) in found[0].chunks_exact(t).enumerate() {
                let (s, h, i) = (i / t / SHAPE.heads, i / t % SHAPE.heads, i % t);
                let off = f64::from(row[key]) - expected[((s * t + i) * SHAPE.heads + h) * d];
                assert!(off.abs() < 1e-6, "head {h} of {s}, query {i}, key {key}: {off}");
                assert!(key <= i || row[key] == 0.0, "query {i} sees key {key}");
            }
        }
    }

    /// A few queries behind a cache, with one head of keys and values.
    #[test]
    fn multi_query_attention_reads_a_cache() {
        let shape = Shape { batch: 1, queries: 3, start: 40, kv_heads: 1, ..SHAPE };
        let q = numbers("q", shape.queries * shape.heads * shape.width, 1.5);
        let [k, v] = ["k", "v"].map(|name| numbers(name, shape.keys() * shape.width, 1.5));
        let found = same_everywhere(|team| {
            let (mut out, mut stats) = (vec![f32::NAN; q.len()], vec![0.0; 2 * q.len() / shape.width]);
            let [q, k, v] = [(&q, shape.heads, shape.queries), (&k, 1, shape.keys()), (&v, 1, shape.keys())]
                .map(|(data, heads, t)| rows(data, heads, t));
            forward(team, shape, q, k, v, Dropout::NONE, &mut out, &mut stats);
            vec![out]
        });
        near("out", &found[0], &plain(shape, &wide(&q), &wide(&k), &wide(&v), Dropout::NONE), 1e-5);
    }
}
