//! Attention of what is new in texts whose earlier keys and values are kept: a KV cache.
//!
//! Most texts have one new token, a row of queries that reads all keys and all values once. Keys are kept
//! transposed, 64 positions side by side, so that one load has a number of 16 keys; values of all heads lie
//! side by side, so that several heads, whose sums don't wait for each other, read them in one pass. Each
//! number is the same chain of multiply-adds as in [`super::forward`], or in `bf16_tile` the same two for each block of
//! 32, so it has the same bits. In `bf16_tile`, keys and values are rounded when the cache takes them, as each product
//! would round them.

use std::ops::Range;

use super::{
    Dropout, Factor, Keys, Place, Queries, Rows, Shape, View, blocks, mix, packed_len, weights, with_numbers,
    with_scratch,
};
use crate::kernel::dtype::Dtype;
use crate::kernel::matmul::{BLOCK, InTiles, round_row, to_bf16_tile};
use crate::kernel::simd::{F, LANES, Number, Simd, simd};
use crate::kernel::team::{Parts, Team};

/// Positions whose keys lie side by side.
pub(super) const PANEL: usize = 64;

/// Keys and values of a text.
#[derive(Clone, Default)]
pub struct KeysValues {
    /// A panel for each 64 positions, `[K·D, 64]`; the last may have room left.
    keys: Vec<f32>,
    /// `[T, K·D]`
    values: Vec<f32>,
}

impl KeysValues {
    /// With room for `positions` of `width`, K·D.
    pub fn with_room(positions: usize, width: usize) -> Self {
        let mut new = KeysValues::default();
        new.reserve(positions, width);
        new
    }

    /// Makes room for `positions` in all.
    pub fn reserve(&mut self, positions: usize, width: usize) {
        let [keys, values] = sizes(positions, width);
        self.keys.reserve_exact(keys.saturating_sub(self.keys.len()));
        self.values.reserve_exact(values.saturating_sub(self.values.len()));
    }

    /// Appends keys, encoded, and values of so many `rows`, as products in `dtype` read them.
    fn push(&mut self, dtype: Dtype, rows: usize, width: usize, [k, v]: [Rows; 2]) {
        let number = |x: &f32| match dtype {
            Dtype::Bf16Tile => to_bf16_tile(*x).widened(),
            _ => *x,
        };
        let len = self.values.len() / width;
        self.keys.resize(sizes(len + rows, width)[0], 0.0);
        for i in 0..rows {
            let (panel, column) = ((len + i) / PANEL, (len + i) % PANEL);
            let columns = self.keys[panel * PANEL * width..].chunks_exact_mut(PANEL);
            let key = &k.data[i * k.row..][..width];
            columns.zip(key).for_each(|(to, x)| to[column] = number(x));
            self.values.extend(v.data[i * v.row..][..width].iter().map(number));
        }
    }

    /// Copies the first `positions` of another.
    ///
    /// # Panics
    /// When there is something already.
    pub fn copy_from(&mut self, other: &KeysValues, positions: usize, width: usize) {
        assert!(self.values.is_empty(), "a copy begins empty");
        let [keys, values] = sizes(positions, width);
        self.keys.extend_from_slice(&other.keys[..keys]);
        self.values.extend_from_slice(&other.values[..values]);
    }

    /// Forgets all but the first `positions`; keeps the memory.
    pub fn truncate(&mut self, positions: usize, width: usize) {
        let [keys, values] = sizes(positions, width);
        self.keys.truncate(keys);
        self.values.truncate(values);
    }

    /// Gives back memory that nothing lies in.
    pub fn shrink(&mut self) {
        self.keys.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> u64 {
        4 * (self.keys.capacity() + self.values.capacity()) as u64
    }
}

/// Numbers of keys and of values.
fn sizes(positions: usize, width: usize) -> [usize; 2] {
    [positions.next_multiple_of(PANEL) * width, positions * width]
}

/// What is new of a text.
pub struct Text<'a> {
    /// Of one sequence.
    pub shape: Shape,
    pub q: Rows<'a>,
    /// Keys, encoded, and values that the cache is yet to take.
    pub kv: [Rows<'a>; 2],
    pub cache: &'a mut KeysValues,
}

/// Caches take what is new, and `out: [N, H·D]` what the heads of all texts give, one text behind the other.
pub fn forward(team: &Team, texts: &mut [Text], out: &mut [f32]) {
    let Some(first) = texts.first() else { return };
    let (all, c) = (first.shape.heads, first.shape.heads * first.shape.width);
    let starts = texts.iter().scan(0, |end, text| Some(std::mem::replace(end, *end + text.shape.queries)));
    let starts: Vec<usize> = starts.collect();
    let work = |text: &Text| text.shape.heads * text.shape.queries * text.shape.keys() * text.shape.width;
    let work: usize = texts.iter().map(work).sum();
    let out = Parts::new(out);
    let tasks = tasks_of(team, texts);
    // What several tasks read is there before them.
    for (text, heads) in &tasks {
        if heads.start == 0 && heads.end < all {
            texts[*text].push(team.dtype);
        }
    }
    let texts = Parts::new(texts);
    let run = |task: usize| {
        let (text, heads) = &tasks[task];
        if heads.len() == all {
            // SAFETY: no other task has a head of this text.
            unsafe { texts.take(*text..text + 1)[0].push(team.dtype) };
        }
        // SAFETY: it is only read, and there are as many texts.
        let own = unsafe { &*texts.pointer().add(*text) };
        let out = out.from(starts[*text] * c);
        if own.shape.queries == 1 {
            own.single(team, heads.clone(), out);
        } else {
            heads.clone().for_each(|h| own.head(team, h, out));
        }
    };
    // A new token behind a short text takes less time than waiting for other threads.
    if work < super::SERIAL {
        (0..tasks.len()).for_each(run);
    } else {
        team.each(tasks.len(), run);
    }
}

/// Texts, and heads of their queries. Those with the most to do come first.
fn tasks_of(team: &Team, texts: &[Text]) -> Vec<(usize, Range<usize>)> {
    let wanted = (2 * team.threads()).div_ceil(texts.len());
    let (mut tasks, mut single) = (Vec::new(), Vec::new());
    for (i, Text { shape, .. }) in texts.iter().enumerate() {
        if shape.queries > 1 {
            tasks.extend((0..shape.heads).map(|h| (i, h..h + 1)));
            continue;
        }
        // Whole groups, which read the same keys and values.
        let groups = shape.kv_heads.div_ceil(wanted.min(shape.kv_heads));
        let step = groups * shape.group();
        single.extend((0..shape.heads).step_by(step).map(|h| (i, h..(h + step).min(shape.heads))));
    }
    tasks.extend(single);
    tasks
}

impl Text<'_> {
    fn push(&mut self, dtype: Dtype) {
        let Text { shape, kv, cache, .. } = self;
        cache.push(dtype, shape.queries, shape.kv_heads * shape.width, *kv);
    }

    /// Keys of the head of queries `h`.
    fn keys(&self, h: usize) -> Keys<'_> {
        let (shape, g) = (&self.shape, h / self.shape.group());
        Keys::Panels {
            data: &self.cache.keys[g * shape.width * PANEL..],
            stride: shape.kv_heads * shape.width * PANEL,
        }
    }

    fn values(&self, h: usize) -> View<'_> {
        let (shape, g) = (&self.shape, h / self.shape.group());
        View::new(&self.cache.values[g * shape.width..], shape.kv_heads * shape.width)
    }

    /// All queries of a head, as [`super::forward`] computes them.
    fn head(&self, team: &Team, h: usize, out: Parts) {
        let (shape, isa, tiles) = (&self.shape, team.isa, InTiles::of(team));
        let (q, k, v) = (self.q.head(shape, 0, h), self.keys(h), self.values(h));
        with_scratch(shape, packed_len(tiles, shape), |scores, stats, width, packed| {
            let mut packed = &mut *packed;
            let k = k.packed(tiles, shape, &mut packed);
            let v = Factor::new(tiles, v, shape.keys(), shape.width, &mut packed);
            for block in blocks(shape.queries) {
                let queries = Queries { shape, q, k, number: h, block: &block };
                queries.weights(isa, Dropout::NONE, scores, width, &mut stats[..2 * block.len()]);
                let (out, stride) = (out.from(h * shape.width), shape.heads * shape.width);
                mix(isa, shape, scores, width, &block, &v, out, stride);
            }
        });
    }

    /// Some heads of the only row of queries.
    fn single(&self, team: &Team, heads: Range<usize>, out: Parts) {
        let (shape, isa, in_tiles) = (&self.shape, team.isa, team.dtype == Dtype::Bf16Tile);
        let (d, seen) = (shape.width, shape.keys());
        // SAFETY: each task has heads of its own.
        let out = unsafe { out.take(heads.start * d..heads.end * d) };
        let width = seen.next_multiple_of(PANEL);
        let q = &self.q.data[heads.start * d..heads.end * d];
        with_numbers(heads.len() * (width + d), |scratch| {
            let (rows, own_q) = scratch.split_at_mut(heads.len() * width);
            own_q.copy_from_slice(q);
            if in_tiles {
                round_row(isa, own_q);
            }
            for ((h, q), row) in heads.clone().zip(own_q.chunks_exact(d)).zip(rows.chunks_exact_mut(width)) {
                let Keys::Panels { data, stride } = self.keys(h) else { unreachable!("keys of a cache") };
                scores(isa, in_tiles, q, data, stride, row);
                weights(isa, &mut row[..seen], shape.scale(), &mut [0.0; 2], Place::NONE);
                if in_tiles {
                    round_row(isa, &mut row[..seen]);
                }
            }
            let first = heads.start / shape.group();
            let values = &self.cache.values[first * d..];
            let mix = Mix { weights: rows, width, seen, values, shape, in_tiles };
            mix_heads(isa, &mix, out);
        });
    }
}

/// Weights of some heads of a row, and the values that they mix.
struct Mix<'a> {
    /// A row of `width` for each head, of which `seen` count.
    weights: &'a [f32],
    width: usize,
    seen: usize,
    /// From the first head's on.
    values: &'a [f32],
    shape: &'a Shape,
    /// In `bf16_tile`, to which weights and values are rounded.
    in_tiles: bool,
}

simd! {
    /// `row = q · kᵀ` for all positions of the panels, which begin every `stride`: more than there are keys.
    /// `in_tiles`: in `bf16_tile`, to which all are rounded.
    fn scores<S>(in_tiles: bool, q: &[f32], keys: &[f32], stride: usize, row: &mut [f32]) {
        for (panel, row) in row.chunks_exact_mut(PANEL).enumerate() {
            let keys = &keys[panel * stride..][..q.len() * PANEL];
            let mut sums = [F::<S>::splat(0.0); PANEL / LANES];
            if in_tiles {
                for (q, keys) in q.chunks(BLOCK).zip(keys.chunks(BLOCK * PANEL)) {
                    let (mut even, mut odd) = ([F::splat(0.0); PANEL / LANES], [F::splat(0.0); PANEL / LANES]);
                    for (pair, keys) in q.chunks(2).zip(keys.chunks(2 * PANEL)) {
                        add(pair[0], &keys[..PANEL], &mut even);
                        if let [_, x] = pair {
                            add(*x, &keys[PANEL..], &mut odd);
                        }
                    }
                    add_both(&mut sums, &even, &odd);
                }
            } else {
                for (x, keys) in q.iter().zip(keys.chunks_exact(PANEL)) {
                    add(*x, keys, &mut sums);
                }
            }
            sums.iter().zip(row.chunks_exact_mut(LANES)).for_each(|(sum, row)| sum.store(row));
        }
    }

    /// `out: [heads, D]`.
    fn mix_heads<S>(mix: &Mix, out: &mut [f32]) {
        match (mix.shape.width / LANES, mix.shape.width % LANES) {
            (1, 0) => mix.all::<S, 4, 1>(out),
            (2, 0) => mix.all::<S, 4, 2>(out),
            (3, 0) => mix.all::<S, 2, 3>(out),
            (4, 0) => mix.all::<S, 2, 4>(out),
            (8, 0) => mix.all::<S, 1, 8>(out),
            _ => mix.some::<S>(out),
        }
    }
}

/// `sums += x · row`
#[inline(always)]
fn add<S: Simd, const N: usize>(x: f32, row: &[f32], sums: &mut [F<S>; N]) {
    let x = F::splat(x);
    for (sum, row) in sums.iter_mut().zip(row.chunks_exact(LANES)) {
        *sum = x.mul_add(F::load(row), *sum);
    }
}

/// `sums += even + odd`: the end of a block. Sums of products of rounded numbers are never subnormal.
#[inline(always)]
fn add_both<S: Simd, const N: usize>(sums: &mut [F<S>; N], even: &[F<S>; N], odd: &[F<S>; N]) {
    for ((sum, even), odd) in sums.iter_mut().zip(even).zip(odd) {
        *sum = *sum + (*even + *odd);
    }
}

impl Mix<'_> {
    /// `H` heads at a time, of `W` vectors each.
    #[inline(always)]
    fn all<S: Simd, const H: usize, const W: usize>(&self, out: &mut [f32]) {
        let d = W * LANES;
        let heads = out.len() / d;
        let whole = heads / H * H;
        for h in (0..whole).step_by(H) {
            self.heads::<S, H, W>(h, &mut out[h * d..(h + H) * d]);
        }
        for h in whole..heads {
            self.heads::<S, 1, W>(h, &mut out[h * d..(h + 1) * d]);
        }
    }

    #[inline(always)]
    fn heads<S: Simd, const H: usize, const W: usize>(&self, first: usize, out: &mut [f32]) {
        let (shape, seen) = (self.shape, self.seen);
        let stride = shape.kv_heads * shape.width;
        let weights: [&[f32]; H] = std::array::from_fn(|h| &self.weights[(first + h) * self.width..][..seen]);
        let at: [usize; H] = std::array::from_fn(|h| (first + h) / shape.group() * shape.width);
        let mut sums = [[F::<S>::splat(0.0); W]; H];
        if self.in_tiles {
            for (top, block) in (0..seen).step_by(BLOCK).zip(self.values.chunks(BLOCK * stride)) {
                let (mut even, mut odd) = ([[F::splat(0.0); W]; H], [[F::splat(0.0); W]; H]);
                for (t, pair) in (top..seen.min(top + BLOCK)).step_by(2).zip(block.chunks(2 * stride)) {
                    for h in 0..H {
                        add(weights[h][t], &pair[at[h]..][..W * LANES], &mut even[h]);
                        if t + 1 < seen {
                            add(weights[h][t + 1], &pair[stride + at[h]..][..W * LANES], &mut odd[h]);
                        }
                    }
                }
                for h in 0..H {
                    add_both(&mut sums[h], &even[h], &odd[h]);
                }
            }
        } else {
            for (t, values) in self.values.chunks(stride).take(seen).enumerate() {
                for h in 0..H {
                    add(weights[h][t], &values[at[h]..][..W * LANES], &mut sums[h]);
                }
            }
        }
        for (sum, out) in sums.iter().flatten().zip(out.chunks_exact_mut(LANES)) {
            sum.store(out);
        }
    }

    /// Heads of any width.
    #[inline(always)]
    fn some<S: Simd>(&self, out: &mut [f32]) {
        let (shape, d) = (self.shape, self.shape.width);
        for (h, out) in out.chunks_exact_mut(d).enumerate() {
            let values = &self.values[h / shape.group() * d..];
            let weights = &self.weights[h * self.width..][..self.seen];
            for (left, out) in (0..d).step_by(LANES).zip(out.chunks_mut(LANES)) {
                let column = Column { weights, values, stride: shape.kv_heads * d, left, len: out.len() };
                let mut sum = [F::<S>::splat(0.0)];
                if self.in_tiles {
                    for top in (0..self.seen).step_by(BLOCK) {
                        let block = top..(top + BLOCK).min(self.seen);
                        let even = column.chain(block.clone().step_by(2));
                        let odd = column.chain(block.skip(1).step_by(2));
                        add_both(&mut sum, &[even], &[odd]);
                    }
                } else {
                    sum = [column.chain(0..self.seen)];
                }
                sum[0].store_some(out);
            }
        }
    }
}

/// Up to 16 numbers of each value of a head, from `left` on.
struct Column<'a> {
    weights: &'a [f32],
    /// They begin every `stride`.
    values: &'a [f32],
    stride: usize,
    left: usize,
    len: usize,
}

impl Column<'_> {
    /// A chain of multiply-adds over some positions.
    #[inline(always)]
    fn chain<S: Simd>(&self, positions: impl Iterator<Item = usize>) -> F<S> {
        let mut sum = F::splat(0.0);
        for t in positions {
            let values = &self.values[t * self.stride + self.left..][..self.len];
            sum = F::splat(self.weights[t]).mul_add(F::load_some(values, 0.0), sum);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{numbers, same_everywhere, same_in_tiles};

    /// Texts at once that are read by single tokens and by several, heads of all the widths that have kernels of
    /// their own and of others: the bits that the whole texts give.
    #[test]
    fn it_gives_the_bits_of_whole_texts() {
        for (heads, kv_heads, width) in
            [(1, 1, 5), (5, 5, 16), (4, 4, 32), (8, 2, 32), (3, 3, 48), (3, 1, 64), (4, 2, 80), (2, 2, 128)]
        {
            // Where a panel ends, and where one begins.
            check(
                Shape { batch: 1, queries: 1, start: 0, heads, kv_heads, width, first: 0 },
                &[(130, &[1, 2, 62, 63, 64, 65, 100, 129]), (1, &[]), (70, &[64]), (3, &[2])],
            );
        }
    }

    /// Lengths of texts, and the positions before which each is divided.
    fn check(shape: Shape, texts: &[(usize, &[usize])]) {
        let [q_width, kv_width] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.width);
        let all: Vec<[Vec<f32>; 3]> = texts
            .iter()
            .map(|(length, _)| {
                [("q", q_width), ("k", kv_width), ("v", kv_width)]
                    .map(|(name, width)| numbers(name, length * width, 1.5))
            })
            .collect();
        let rows = |data, row| Rows { data, sequence: 0, row };
        let read = |team: &Team| {
            let mut out: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
            let mut caches = vec![KeysValues::default(); texts.len()];
            // Something that is forgotten.
            for (cache, [_, k, v]) in caches.iter_mut().zip(&all) {
                cache.push(team.dtype, 1, kv_width, [rows(&v[..], kv_width), rows(&k[..], kv_width)]);
                cache.truncate(0, kv_width);
            }
            for part in 0.. {
                let (mut some, mut new) = (Vec::new(), Vec::new());
                let of = texts.iter().zip(&all).zip(&mut caches).enumerate();
                for (i, (((length, cuts), [q, k, v]), cache)) in of {
                    let at = |part: usize| if part == 0 { 0 } else { *cuts.get(part - 1).unwrap_or(length) };
                    let (start, queries) = (at(part), at(part + 1) - at(part));
                    if queries > 0 {
                        let kv = [k, v].map(|data| rows(&data[start * kv_width..], kv_width));
                        let q = rows(&q[start * q_width..], q_width);
                        some.push(Text { shape: Shape { start, queries, ..shape }, q, kv, cache });
                        new.push((i, queries));
                    }
                }
                if new.is_empty() {
                    break;
                }
                let count: usize = new.iter().map(|(_, queries)| queries).sum();
                let mut given = vec![f32::NAN; count * q_width];
                forward(team, &mut some, &mut given);
                let mut given = &given[..];
                for (i, queries) in new {
                    let own = given.split_off(..queries * q_width);
                    out[i].extend_from_slice(own.expect("as many rows as queries"));
                }
            }
            out
        };
        let (found, in_tiles) = (same_everywhere(read), same_in_tiles(read));
        assert!(found != in_tiles, "bf16_tile has its own bits");
        let teams = [Team::new(1), Team::new(1).in_dtype(Dtype::Bf16Tile)];
        let of_teams = [found, in_tiles].into_iter().zip(&teams);
        let of_texts = of_teams
            .flat_map(|(found, team)| found.into_iter().zip(texts).zip(&all).map(move |all| (team, all)));
        for (team, ((found, (length, _)), [q, k, v])) in of_texts {
            let shape = Shape { queries: *length, ..shape };
            let mut expected = vec![f32::NAN; q.len()];
            let [q, k, v] = [rows(&q[..], q_width), rows(&k[..], kv_width), rows(&v[..], kv_width)];
            let mut stats = vec![0.0; 2 * length * shape.heads];
            super::super::forward(team, shape, q, k, v, Dropout::NONE, &mut expected, &mut stats);
            assert!(
                found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{length} of {shape:?} in {}",
                team.dtype.name()
            );
        }
    }

    #[test]
    fn copies_and_shorter_ones_take_the_memory_that_they_say() {
        let (k, v) = (numbers("k", 70 * 6, 1.0), numbers("v", 70 * 6, 1.0));
        let mut all = KeysValues::with_room(100, 6);
        let of = |data| Rows { data, sequence: 0, row: 6 };
        all.push(Dtype::F32, 70, 6, [of(&k[..]), of(&v[..])]);
        assert_eq!(all.bytes(), 4 * (128 * 6 + 100 * 6));
        let mut copy = KeysValues::default();
        copy.copy_from(&all, 65, 6);
        assert!(copy.keys[..64 * 6] == all.keys[..64 * 6] && copy.values[..] == all.values[..65 * 6]);
        all.truncate(64, 6);
        all.shrink();
        assert_eq!(all.bytes(), 4 * 2 * 64 * 6);
        assert!(copy.keys[..64 * 6] == all.keys[..] && copy.values[..64 * 6] == all.values[..]);
    }
}
