//! Causal attention (Vaswani et al., 2017): `softmax(Q Kᵀ / sqrt(D)) V` for each head of each sequence. A head
//! of keys and values may serve several heads of queries: grouped-query (Ainslie et al., 2023) and, where there
//! is but one, multi-query attention (Shazeer, 2019).
//!
//! Never are the scores of all queries with all keys in memory at once: a block of [`BLOCK`] queries attends
//! to its keys in a scratch of its thread. Of a row only its maximum and the inverse of its sum are kept, from
//! which the backward pass recomputes the weights (Dao et al., "FlashAttention", 2022).
//!
//! Products leave out keys that are ahead of a query, in steps of 32; weights up to such a step are 0.
//!
//! In `bf16_tile`, these products are in it, too. The blocks of 32 that it sums are counted from a head's first number,
//! from a text's first key and from its first query, so the bits depend neither on the blocks of queries nor on how
//! much of a text is cached. A matrix that several products read from the right is packed once for them, see
//! [`Right`]. Softmax is f32, and in bf16 all is.

pub mod cached;

use std::cell::RefCell;
use std::ops::Range;

use self::cached::PANEL;
use super::buffer::Buffer;
use super::dropout::{Dropout, factors};
use super::math::exp;
use super::matmul::{COLUMNS, InTiles, Product, Right, Start, View};
use super::simd::{F, Isa, LANES, simd};
use super::team::{Parts, Team};

/// Queries of a block.
const BLOCK: usize = 128;

/// Keys by which products leave out what is ahead.
const STEP: usize = COLUMNS;

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
    /// Scores of a block, room for as many more, which the backward pass needs, and packed matrices.
    static SCRATCH: RefCell<Buffer> = RefCell::new(Buffer::new(0));
}

/// Calls `f` with two times room for the scores of a block, the length of their rows, and `packed` numbers.
fn with_scratch(shape: &Shape, packed: usize, f: impl FnOnce(&mut [f32], &mut [f32], usize, &mut [f32])) {
    let width = shape.keys().next_multiple_of(STEP);
    let size = BLOCK * width;
    with_numbers(2 * size + packed, |scratch| {
        let (a, rest) = scratch.split_at_mut(size);
        let (b, packed) = rest.split_at_mut(size);
        f(a, b, width, packed);
    });
}

/// Calls `f` with so many arbitrary numbers of this thread's scratch.
fn with_numbers(len: usize, f: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            *scratch = Buffer::new(len);
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
    let (out, stats, tiles) = (Parts::new(out), Parts::new(stats), InTiles::of(team));
    let head = |task: usize| {
        let (s, h) = (task / shape.heads, task % shape.heads);
        let g = h / shape.group();
        let [q, k, v] = [q.head(&shape, s, h), k.head(&shape, s, g), v.head(&shape, s, g)];
        // SAFETY: each task has a head of its own.
        let stats = unsafe { stats.take(task * t * 2..(task + 1) * t * 2) };
        with_scratch(&shape, packed_len(tiles, &shape), |scores, _, width, packed| {
            let mut packed = &mut *packed;
            let k = Keys::Rows(k).packed(tiles, &shape, &mut packed);
            let v = Factor::new(tiles, v, shape.keys(), shape.width, &mut packed);
            for block in blocks(t) {
                let stats = &mut stats[2 * block.start..2 * block.end];
                let queries = Queries { shape: &shape, q, k, number: task, block: &block };
                queries.weights(team.isa, dropout, scores, width, stats);
                mix(team.isa, &shape, scores, width, &block, &v, out.from(s * t * c + h * shape.width), c);
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
    let (out, tiles) = (Parts::new(out), InTiles::of(team));
    team.each(shape.batch * shape.heads, |task| {
        let (s, h) = (task / shape.heads, task % shape.heads);
        let (q, k) = (q.head(&shape, s, h), k.head(&shape, s, h / shape.group()));
        // SAFETY: each task has a head of its own.
        let out = unsafe { out.take(task * t * keys..(task + 1) * t * keys) };
        let mut stats = [0.0; 2 * BLOCK];
        with_scratch(&shape, packed_len(tiles, &shape), |scores, _, width, packed| {
            let mut packed = &mut *packed;
            let k = Keys::Rows(k).packed(tiles, &shape, &mut packed);
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
    /// `[D, T]`
    Packed(Right<'a>),
}

impl<'a> Keys<'a> {
    /// As products in `bf16_tile` read them, in the first numbers of `memory`; otherwise as they are.
    fn packed<'m>(self, tiles: Option<InTiles>, shape: &Shape, memory: &mut &'m mut [f32]) -> Keys<'m>
    where
        'a: 'm,
    {
        let Some(tiles) = tiles else { return self };
        let mut right = tiles.right(shape.width, shape.keys(), memory);
        match self {
            Keys::Rows(keys) => right.pack(keys.t()),
            Keys::Panels { data, stride } => {
                for (left, panel) in (0..shape.keys()).step_by(PANEL).zip(data.chunks(stride)) {
                    right.pack_columns(left..(left + PANEL).min(shape.keys()), View::new(panel, PANEL));
                }
            }
            Keys::Packed(_) => unreachable!("packed once"),
        }
        Keys::Packed(right)
    }
}

/// The right matrix of products, `[k, n]`.
#[derive(Clone, Copy)]
enum Factor<'a> {
    Rows { view: View<'a>, n: usize },
    Packed { right: Right<'a>, n: usize },
}

impl<'m> Factor<'m> {
    /// As products in `bf16_tile` read it, in the first numbers of `memory`; otherwise as it is.
    fn new(tiles: Option<InTiles>, view: View<'m>, k: usize, n: usize, memory: &mut &'m mut [f32]) -> Self {
        let Some(tiles) = tiles else { return Factor::Rows { view, n } };
        let mut right = tiles.right(k, n, memory);
        right.pack(view);
        Factor::Packed { right, n }
    }

    /// `c[rows] = start + a · self`, summed over the k in `depths`.
    #[allow(clippy::too_many_arguments)]
    fn product(
        &self,
        isa: Isa,
        a: View,
        rows: Range<usize>,
        depths: Range<usize>,
        start: Start,
        c: Parts,
        stride: usize,
    ) {
        match self {
            Factor::Rows { view, n } => {
                let (a, b, k) = (a.from_column(depths.start), view.below(depths.start), depths.len());
                Product { a, b, k, start, c, stride }.part(isa, rows, 0..*n);
            }
            Factor::Packed { right, n } => right.product(a, rows, *n, depths, start, c, stride),
        }
    }
}

/// Numbers of memory that a head's keys and values take, packed.
fn packed_len(tiles: Option<InTiles>, shape: &Shape) -> usize {
    tiles.map_or(0, |tiles| tiles.len(shape.width, shape.keys()) + tiles.len(shape.keys(), shape.width))
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

/// `a · bᵀ` of a block's rows and the keys that they see, and some that are ahead, into the scratch: a step of keys
/// at a time, or a step of rows where keys are packed.
fn scores_of(isa: Isa, shape: &Shape, a: View, b: Keys, block: &Range<usize>, out: &mut [f32], width: usize) {
    let seen = shape.start + block.end;
    let out = Parts::new(out);
    let a = a.below(block.start);
    if let Keys::Packed(keys) = b {
        for top in (0..block.len()).step_by(STEP) {
            let rows = top..(top + STEP).min(block.len());
            let seen = shape.start + block.start + rows.end;
            let columns = seen.next_multiple_of(STEP).min(shape.keys());
            keys.product(a, rows, columns, 0..shape.width, Start::Zero, out, width);
        }
        return;
    }
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
            Keys::Packed(_) => unreachable!("returned above"),
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
    v: &Factor,
    out: Parts,
    stride: usize,
) {
    for top in block.clone().step_by(STEP) {
        let rows = top - block.start..(top + STEP).min(block.end) - block.start;
        let (a, c) = (View::new(weights, width), out.from(block.start * stride));
        v.product(isa, a, rows, 0..end_of(shape, top), Start::Zero, c, stride);
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
    let (dqkv, tiles) = (Parts::new(dqkv), InTiles::of(team));
    // Keys as such and transposed, values, and of a block queries and gradients of the output.
    let len = tiles.map_or(0, |tiles| {
        let keys = tiles.len(shape.queries, shape.width);
        keys + 2 * tiles.len(shape.width, shape.queries)
            + 2 * tiles.len(BLOCK.min(shape.queries), shape.width)
    });
    team.each(shape.batch * shape.kv_heads, |task| {
        let (s, g) = (task / shape.kv_heads, task % shape.kv_heads);
        let (k, v) = (k.head(&shape, s, g), v.head(&shape, s, g));
        with_scratch(&shape, len, |p, ds, width, packed| {
            let mut packed = &mut *packed;
            let factor = Factor::new(tiles, k, shape.queries, shape.width, &mut packed);
            let [k, v] = [k, v].map(|rows| Keys::Rows(rows).packed(tiles, &shape, &mut packed));
            for h in g * shape.group()..(g + 1) * shape.group() {
                let (number, q) = (s * shape.heads + h, q.head(&shape, s, h));
                let head = Head { shape: &shape, number, tiles, q, k, v, factor, dropout };
                head.backward(team.isa, &back, dqkv, (&mut *p, &mut *ds, width), &mut *packed);
            }
        });
    });
}

/// A head of queries, with its keys and values.
struct Head<'a> {
    shape: &'a Shape,
    /// Among the heads of all sequences.
    number: usize,
    tiles: Option<InTiles>,
    q: View<'a>,
    k: Keys<'a>,
    v: Keys<'a>,
    /// The keys, `[T, D]`.
    factor: Factor<'a>,
    dropout: Dropout,
}

impl Head<'_> {
    fn backward(
        &self,
        isa: Isa,
        back: &Back,
        dqkv: Parts,
        (p, ds, width): (&mut [f32], &mut [f32], usize),
        packed: &mut [f32],
    ) {
        let shape = self.shape;
        let (d, c, stride) = (shape.width, shape.heads * shape.width, shape.columns());
        let (s, h) = (self.number / shape.heads, self.number % shape.heads);
        let dout = View::new(&back.dout[s * shape.queries * c + h * d..], c);
        let dq = dqkv.from(s * shape.queries * stride + h * d);
        for block in blocks(shape.queries) {
            scores_of(isa, shape, self.q, self.k, &block, p, width);
            scores_of(isa, shape, dout, self.v, &block, ds, width);
            for i in block.clone() {
                let at = (i - block.start) * width;
                self.row(isa, back, i, &mut p[at..at + width], &mut ds[at..at + width]);
            }
            mix(isa, shape, ds, width, &block, &self.factor, dq, stride);
            let mut packed = &mut *packed;
            let [dout, q] = [dout, self.q]
                .map(|rows| Factor::new(self.tiles, rows.below(block.start), block.len(), d, &mut packed));
            self.keys(isa, &block, (p, ds, width), [&dout, &q], dqkv);
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
    /// step. `dout` and `q` are those of the block.
    fn keys(
        &self,
        isa: Isa,
        block: &Range<usize>,
        (p, ds, width): (&[f32], &[f32], usize),
        [dout, q]: [&Factor; 2],
        dqkv: Parts,
    ) {
        let shape = self.shape;
        let (d, stride) = (shape.width, shape.columns());
        let (s, h) = (self.number / shape.heads, self.number % shape.heads);
        let g = h / shape.group();
        let to = |head: usize| dqkv.from(s * shape.queries * stride + head * d);
        let (dk, dv) = (to(shape.heads + g), to(shape.heads + shape.kv_heads + g));
        let [p, ds] = [p, ds].map(|rows| View::new(rows, width).t());
        for left in (0..block.end).step_by(STEP) {
            let keys = left..(left + STEP).min(block.end);
            let queries = left.max(block.start) - block.start..block.len();
            let first = left >= block.start && h.is_multiple_of(shape.group());
            let start = if first { Start::Zero } else { Start::Add };
            dout.product(isa, p, keys.clone(), queries.clone(), start, dv, stride);
            q.product(isa, ds, keys, queries, start, dk, stride);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{
        in_tiles, near, near_differences, numbers, same_everywhere, same_in_tiles, wide,
    };

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

    /// Attention whose products are in `bf16_tile`, from their definition, a number at a time; softmax by its kernel.
    struct Plain {
        /// `[B*H, T, T]`, without dropout, and 0 ahead.
        weights: Vec<f32>,
        out: Vec<f32>,
        dqkv: Vec<f32>,
    }

    fn plain_in_tiles(
        shape: Shape,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        dout: &[f32],
        dropout: Dropout,
    ) -> Plain {
        let (isa, t, d, group) = (Isa::best(), shape.queries, shape.width, shape.group());
        let (row, columns) = (shape.heads * d, shape.columns());
        let mut all = Plain {
            weights: vec![0.0; shape.batch * shape.heads * t * t],
            out: vec![f32::NAN; dout.len()],
            dqkv: vec![0.0; shape.batch * t * columns],
        };
        for number in 0..shape.batch * shape.heads {
            let (s, h) = (number / shape.heads, number % shape.heads);
            let at = |i: usize| (s * t + i) * row + h * d;
            let at_key = |j: usize| (s * t + j) * shape.kv_heads * d + h / group * d;
            let dot = |a: &[f32], b: &[f32]| in_tiles(d, 0.0, |c| (a[c], b[c]));
            let (mut p, mut ds) = (vec![0.0; t * t], vec![0.0; t * t]);
            let mut stats = vec![0.0; 2 * t];
            for i in 0..t {
                let (q, seen) = (&q[at(i)..], i * t..i * t + i + 1);
                let scores: Vec<f32> = (0..=i).map(|j| dot(q, &k[at_key(j)..])).collect();
                let own = &mut all.weights[number * t * t..][seen.clone()];
                own.copy_from_slice(&scores);
                super::weights(isa, own, shape.scale(), &mut [0.0; 2], Place::NONE);
                p[seen.clone()].copy_from_slice(&scores);
                let place =
                    Place { dropout, row: shape.first * shape.heads * t + number * t + i, columns: t };
                super::weights(isa, &mut p[seen.clone()], shape.scale(), &mut stats[2 * i..2 * i + 2], place);
                for c in 0..d {
                    all.out[at(i) + c] = in_tiles(t, 0.0, |j| (p[i * t + j], v[at_key(j) + c]));
                }
                let dout = &dout[at(i)..at(i) + d];
                for j in 0..=i {
                    ds[i * t + j] = dot(dout, &v[at_key(j)..]);
                }
                p[seen.clone()].copy_from_slice(&scores);
                let total = super::dot(isa, dout, &all.out[at(i)..at(i) + d]);
                let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
                weights_back(isa, p, ds, total, shape.scale(), &stats[2 * i..2 * i + 2], place);
            }
            for (i, c) in (0..t).flat_map(|i| (0..d).map(move |c| (i, c))) {
                let own = &mut all.dqkv[(s * t + i) * columns..][..columns];
                own[h * d + c] = in_tiles(t, 0.0, |j| (ds[i * t + j], k[at_key(j) + c]));
                let (dk, dv) = (row + h / group * d + c, row + (shape.kv_heads + h / group) * d + c);
                own[dk] = in_tiles(t, own[dk], |query| (ds[query * t + i], q[at(query) + c]));
                own[dv] = in_tiles(t, own[dv], |query| (p[query * t + i], dout[at(query) + c]));
            }
        }
        all
    }

    fn same_bits(what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(found.to_bits() == expected.to_bits(), "{what}, {i}: {found}, not {expected}");
        }
    }

    /// To the bit: grouped heads of widths that fill no block and no vector, lengths around those of steps and blocks,
    /// and numbers so small that bf16 and what tiles compute have them as 0.
    #[test]
    fn products_in_tiles_are_their_definition_forward_and_backward() {
        let shapes = [
            (5, 133, 6, 2, 1.0),
            (24, 129, 2, 1, 1.0),
            (48, 70, 3, 3, 3.0),
            (80, 33, 2, 2, 1.0),
            (32, 32, 1, 1, 1e-17),
            (16, 7, 2, 1, 1.0),
            (8, 1, 2, 1, 1.0),
            // A width and a length of more steps than a block of packed numbers has.
            (270, 34, 1, 1, 1.0),
            (8, 290, 1, 1, 1.0),
        ];
        for (width, queries, heads, kv_heads, std) in shapes {
            let shape = Shape { batch: 2, queries, start: 0, heads, kv_heads, width, first: 3 };
            let n = shape.batch * queries;
            let (q, k) = (numbers("q", n * heads * width, 1.5), numbers("k", n * kv_heads * width, 1.5));
            let (v, dout) = (numbers("v", k.len(), std), numbers("dout", q.len(), std));
            let dropout = Dropout::new(0.2, 77);
            let of = |data, heads| Rows { data, sequence: queries * heads * width, row: heads * width };
            let found = same_in_tiles(|team| {
                let mut out = vec![f32::NAN; q.len()];
                let (mut stats, mut dqkv) =
                    (vec![f32::NAN; 2 * n * heads], vec![f32::NAN; n * shape.columns()]);
                let mut weights = vec![f32::NAN; shape.batch * heads * queries * queries];
                let [q, k, v] = [of(&q[..], heads), of(&k[..], kv_heads), of(&v[..], kv_heads)];
                forward(team, shape, q, k, v, dropout, &mut out, &mut stats);
                let back = Back { out: &out, stats: &stats, dout: &dout };
                backward(team, shape, q, k, v, back, dropout, &mut dqkv);
                probabilities(team, shape, q, k, &mut weights);
                vec![out, dqkv, weights]
            });
            let expected = plain_in_tiles(shape, &q, &k, &v, &dout, dropout);
            same_bits("out", &found[0], &expected.out);
            same_bits("dqkv", &found[1], &expected.dqkv);
            same_bits("weights", &found[2], &expected.weights);
        }
    }
}
