//! Cross-entropy with the output projection, for some rows and a block of the vocabulary at a time: a block's
//! logits are used while the second cache holds them. Of a batch, no more than [`CHUNK`] rows of logits exist
//! at once; without a backward pass, no more than a block of those.
//!
//! Forward, a block's logits become `e^(logit - m)`, where m is the maximum of their row so far; the sum of a
//! row so far is scaled whenever m grows (Milakov and Gimelshein, "Online normalizer calculation for softmax",
//! 2018). Backward, a block becomes its gradient, `softmax - target distribution`, for which a factor a row is
//! enough, and is multiplied with both sides at once. Capped logits are kept themselves, since the gradient of
//! the cap needs them, and their exponentials are recomputed. So are those of rows with [`soft`] targets, whose
//! exponentials are needed at two temperatures.
//!
//! ```text
//!  soft   targets that are a teacher's distributions
//!  top_k  the likeliest ids of a row; a teacher's distributions, to be soft targets
//! ```

mod soft;
mod top_k;

use std::ops::Range;

pub use soft::Soft;
pub use top_k::{add as add_distributions, largest, soften, top_k};

use super::Buffer;
use super::linear::add_rows;
use super::math::{exp, tanh};
pub use super::matmul::THIN;
use super::matmul::{Start, View, matmul};
use super::simd::{F, Isa, LANES, Simd, simd};
use super::team::{Parts, Team};
use super::weight::Weight;

/// A target that is not part of the loss, as PyTorch's `ignore_index`: padding, or what others say in a chat.
pub const IGNORE: u32 = u32::MAX;

/// Rows of logits that exist at a time.
pub const CHUNK: usize = 256;

/// Ids of a block: whole panels, tiles and steps of all three products.
pub const BLOCK: usize = 384;

/// The blocks of a vocabulary of `v` ids.
pub fn blocks(v: usize) -> impl Iterator<Item = Range<usize>> {
    (0..v).step_by(BLOCK).map(move |first| first..(first + BLOCK).min(v))
}

/// What some rows are to give.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    /// `[N]`, each an id.
    pub ids: &'a [u32],
    /// Which rows of `weights` and `soft` these are, `[N]`; not read where there are neither.
    pub rows: &'a [usize],
    /// Factors of the rows' losses, of any sign.
    pub weights: Option<&'a [f32]>,
    /// What a teacher gives.
    pub soft: Option<Soft<'a>>,
}

impl<'a> Targets<'a> {
    /// Ids only.
    pub fn new(ids: &'a [u32]) -> Self {
        Targets { ids, rows: &[], weights: None, soft: None }
    }

    /// Some of the rows.
    pub fn part(self, some: Range<usize>) -> Self {
        let rows = if self.rows.is_empty() { &[] } else { &self.rows[some.clone()] };
        Targets { ids: &self.ids[some], rows, ..self }
    }

    /// Of the loss.
    fn weight(&self, i: usize) -> f32 {
        self.weights.map_or(1.0, |weights| weights[self.rows[i]])
    }

    /// Of the cross-entropy with the target: without weights and soft targets 1, which changes no bit of what
    /// is multiplied by it.
    fn hard_weight(&self, i: usize) -> f32 {
        self.weight(i) * (1.0 - self.soft.map_or(0.0, |soft| soft.share))
    }
}

/// What the loss of up to [`CHUNK`] rows keeps for its backward pass.
pub struct Logits {
    /// `e^(logit - m)`, or logits that are capped or have soft targets, block after block, each `[N, ids]`. One
    /// block without a backward pass.
    values: Buffer,
    /// m after each block, `[blocks, N]`.
    max: Buffer,
    rows: Vec<Row>,
    soft: soft::Kept,
    /// Rows of the last loss, `N`.
    n: usize,
}

/// A row after some blocks.
#[derive(Clone, Copy)]
struct Row {
    max: f32,
    /// `Σ e^(logit - max)`
    sum: f64,
    /// The target's logit.
    own: f32,
    /// `Σ logit`, where targets are smoothed.
    total: f64,
}

impl Row {
    const NEW: Row = Row { max: f32::NEG_INFINITY, sum: 0.0, own: 0.0, total: 0.0 };

    /// `ln Σ e^x - (1 - e) x[target] - e mean(x)` of `v` ids, e being the smoothing.
    fn nats(&self, smoothing: f32, v: usize) -> f64 {
        let smoothing = f64::from(smoothing);
        let target = (1.0 - smoothing) * f64::from(self.own) + smoothing / v as f64 * self.total;
        libm::log(self.sum) + f64::from(self.max) - target
    }
}

impl Logits {
    /// Of `rows` rows of a vocabulary of `v` ids.
    pub fn new(rows: usize, v: usize, backward_follows: bool) -> Self {
        let rows = rows.min(CHUNK);
        let kept = if backward_follows { v } else { v.min(BLOCK) };
        let (values, max) = (Buffer::new(rows * kept), Buffer::new(rows * v.div_ceil(BLOCK)));
        Logits { values, max, rows: vec![Row::NEW; rows], soft: soft::Kept::default(), n: 0 }
    }
}

/// The output projection: `logits = x · weightᵀ + bias`, capped.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    /// `[V, C]`
    pub weight: Weight<'a>,
    /// `[V]`
    pub bias: Option<&'a [f32]>,
    /// Width, `C`.
    pub c: usize,
    /// Logits become `cap · tanh(logit / cap)`.
    pub cap: Option<f32>,
}

impl<'a> Output<'a> {
    fn ids(&self) -> usize {
        self.weight.len() / self.c
    }

    /// Of some ids only.
    fn block(&self, ids: &Range<usize>) -> Self {
        let weight = self.weight.rows(self.c, ids.clone());
        Output { weight, bias: self.bias.map(|bias| &bias[ids.clone()]), ..*self }
    }

    fn is_product(&self) -> bool {
        self.bias.is_none() && self.cap.is_none()
    }

    /// `x · weightᵀ` of `x: [N, C]`.
    fn product(&self, team: &Team, x: &[f32], products: &mut [f32]) {
        let (n, v) = (x.len() / self.c, self.ids());
        let x = View::new(x, self.c);
        if let Weight::Quantized(columns) = self.weight {
            return columns.product(team, n, x, Start::Zero, products, v);
        }
        let weight = View::new(self.weight.widened(), self.c).t();
        matmul(team, (n, v, self.c), x, weight, Start::Zero, products, v);
    }

    /// Products `x · weightᵀ` become logits: the bias is added, and they are capped. For
    /// products that are computed otherwise than by [`logits`], as from packed weights.
    pub fn finish(&self, team: &Team, products: &mut [f32]) {
        let v = self.ids();
        if self.is_product() {
            return;
        }
        let (n, blocks) = (products.len() / v, v.div_ceil(BLOCK));
        let products = Parts::new(products);
        // Parts of rows: where a single token is generated, there is but one.
        team.each(n * blocks, |task| {
            let (i, first) = (task / blocks, task % blocks * BLOCK);
            let ids = first..(first + BLOCK).min(v);
            // SAFETY: each task has ids of its own.
            let part = unsafe { products.take(i * v + ids.start..i * v + ids.end) };
            finish_part(team.isa, part, self.block(&ids).bias, self.cap);
        });
    }
}

/// `logits: [N, V]` of `x: [N, C]`.
pub fn logits(team: &Team, output: Output, x: &[f32], logits: &mut [f32]) {
    output.product(team, x, logits);
    output.finish(team, logits);
}

/// The output projection and the loss of up to [`CHUNK`] rows at a time.
pub struct Head<'a> {
    /// `[V, C]`
    pub weight: Weight<'a>,
    /// `[V]`
    pub bias: Option<&'a [f32]>,
    /// Width, `C`.
    pub c: usize,
    /// As [`Output::cap`].
    pub cap: Option<f32>,
    /// The target distribution is `(1 - smoothing) onehot(target) + smoothing / V`, as PyTorch's
    /// `label_smoothing`.
    pub smoothing: f32,
    pub logits: &'a mut Logits,
}

impl<'a> Head<'a> {
    fn output(&self) -> Output<'a> {
        Output { weight: self.weight, bias: self.bias, c: self.c, cap: self.cap }
    }

    /// The sum over `targets` of losses in nats, of `x: [N, C]`. Keeps what [`Head::gradient`] needs if
    /// `backward_follows`.
    ///
    /// # Panics
    /// When a target is no id, such as [`IGNORE`], or soft targets name what is no id, or one twice.
    pub fn loss(&mut self, team: &Team, x: &[f32], targets: Targets, backward_follows: bool) -> f64 {
        let v = self.output().ids();
        assert!(targets.ids.iter().all(|id| (*id as usize) < v), "a target that is none of {v} ids");
        let Logits { rows, soft, n, .. } = &mut *self.logits;
        *n = targets.ids.len();
        rows[..*n].fill(Row::NEW);
        if let Some(of) = targets.soft {
            soft.begin(team, of, targets.rows, v);
        }
        for ids in blocks(v) {
            let place = if backward_follows { ids.start } else { 0 };
            self.add_block(team, x, targets, ids, place);
        }
        if targets.soft.is_some() {
            self.finish_soft(team, targets, backward_follows);
        }
        self.sum(targets)
    }

    /// Adds the logits of a block of ids to their rows. What is kept of them comes after `place` ids.
    fn add_block(&mut self, team: &Team, x: &[f32], targets: Targets, ids: Range<usize>, place: usize) {
        let (output, smoothing, len) = (self.output().block(&ids), self.smoothing, ids.len());
        let Logits { values, max, rows, soft, n } = &mut *self.logits;
        let n = *n;
        let values = &mut values[n * place..][..n * len];
        output.product(team, x, values);
        let (values, rows) = (Parts::new(values), Parts::new(&mut rows[..n]));
        let max = Parts::new(&mut max[ids.start / BLOCK * n..][..n]);
        let soft = targets.soft.map(|_| soft.rows());
        team.ranges(n, 4, |some| {
            for i in some {
                // SAFETY: each row has one task.
                let (values, row) =
                    unsafe { (values.take(i * len..(i + 1) * len), &mut rows.take(i..i + 1)[0]) };
                let own = (targets.ids[i] as usize).wrapping_sub(ids.start);
                add_part(team.isa, &output, smoothing, values, own, row, soft.is_some());
                // SAFETY: as above.
                unsafe { max.take(i..i + 1)[0] = row.max };
                if let Some(soft) = soft {
                    unsafe { soft.take(i) }.add(team.isa, &ids, values);
                }
            }
        });
    }

    /// With all blocks added.
    fn finish_soft(&mut self, team: &Team, targets: Targets, backward_follows: bool) {
        let (uniform, cap) = (self.uniform(), self.cap);
        let Logits { rows, soft, n, .. } = &mut *self.logits;
        let soft = soft.rows();
        team.ranges(*n, 4, |some| {
            for i in some {
                let hard = Hard { row: rows[i], weight: targets.hard_weight(i), uniform, cap };
                // SAFETY: each row has one task.
                unsafe { soft.take(i) }.finish(team.isa, &hard, targets.weight(i), backward_follows);
            }
        });
    }

    /// The part of the target distribution that each id has.
    fn uniform(&self) -> f32 {
        self.smoothing / self.output().ids() as f32
    }

    /// The sum of the rows' losses.
    fn sum(&self, targets: Targets) -> f64 {
        let (smoothing, v) = (self.smoothing, self.output().ids());
        let Logits { rows, soft, n, .. } = &*self.logits;
        let of = |(i, row): (usize, &Row)| {
            let hard = f64::from(targets.hard_weight(i)) * row.nats(smoothing, v);
            // A sum of which one part is 0 has the bits of the other.
            hard + targets.soft.map_or(0.0, |of| f64::from(targets.weight(i)) * soft.nats(i, of))
        };
        rows[..*n].iter().enumerate().map(of).sum()
    }

    /// The cross-entropy of each row of the last loss with its target, in nats, without weights.
    pub fn row_nats(&self) -> impl Iterator<Item = f64> {
        let (smoothing, v) = (self.smoothing, self.output().ids());
        self.logits.rows[..self.logits.n].iter().map(move |row| row.nats(smoothing, v))
    }

    /// What the loss kept of some ids, a block of them, becomes the gradient of `x · weightᵀ + bias`.
    pub fn gradient(&mut self, team: &Team, targets: Targets, ids: Range<usize>) {
        let (n, len, cap) = (targets.ids.len(), ids.len(), self.cap);
        let (uniform, onehot) = (self.uniform(), 1.0 - self.smoothing);
        let Logits { values, max, rows, soft, .. } = &mut *self.logits;
        let values = Parts::new(&mut values[n * ids.start..n * ids.end]);
        let max = &max[ids.start / BLOCK * n..][..n];
        let soft = targets.soft.map(|_| soft.rows());
        team.ranges(n, 4, |some| {
            for i in some {
                // SAFETY: each row has one task.
                let gradient = unsafe { values.take(i * len..(i + 1) * len) };
                let own = (targets.ids[i] as usize).wrapping_sub(ids.start);
                let hard = Hard { row: rows[i], weight: targets.hard_weight(i), uniform, cap };
                let mut target = hard.weight * onehot;
                if let Some(cap) = cap {
                    target *= gradient.get(own).map_or(1.0, |logit| 1.0 - (logit / cap) * (logit / cap));
                }
                match (soft, cap) {
                    // SAFETY: as above.
                    (Some(soft), _) => unsafe { soft.take(i) }.gradient(team.isa, &hard, &ids, gradient),
                    (None, Some(cap)) => softmax_capped(team.isa, gradient, &hard, cap),
                    (None, None) => softmax(team.isa, gradient, max[i], &hard),
                }
                if let Some(own) = gradient.get_mut(own) {
                    *own -= target;
                }
            }
        });
    }

    /// `dx = gradient · weight` of a block, added to that of the blocks before.
    pub fn input(&self, team: &Team, ids: Range<usize>, dx: &mut [f32]) {
        let (c, n) = (self.c, dx.len() / self.c);
        let weight = View::new(self.output().block(&ids).weight.widened(), c);
        let start = if ids.start == 0 { Start::Zero } else { Start::Add };
        matmul(team, (n, c, ids.len()), self.gradients(&ids), weight, start, dx, c);
    }

    /// `dweight += gradientᵀ · x` of a block's ids, `[ids, C]`.
    pub fn weights(&self, team: &Team, ids: Range<usize>, x: &[f32], dweight: &mut [f32]) {
        let (c, n) = (self.c, x.len() / self.c);
        let gradients = self.gradients(&ids).t();
        matmul(team, (ids.len(), c, n), gradients, View::new(x, c), Start::Add, dweight, c);
    }

    /// `dbias += Σ gradient` over rows in their order, of a block's ids, `[ids]`.
    pub fn bias(&self, team: &Team, ids: Range<usize>, dbias: &mut [f32]) {
        let (gradients, n) = (self.gradients(&ids), self.logits.n);
        let dbias = Parts::new(dbias);
        team.ranges(ids.len(), 4 * LANES, |columns| {
            // SAFETY: the ranges of columns are disjoint.
            add_rows(team.isa, gradients, n, columns.start, unsafe { dbias.take(columns) });
        });
    }

    fn gradients(&self, ids: &Range<usize>) -> View<'_> {
        let n = self.logits.n;
        View::new(&self.logits.values[n * ids.start..n * ids.end], ids.len())
    }
}

/// How well a token was predicted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prediction {
    /// `-ln p(token)`
    pub nats: f64,
    /// Ids that were likelier; of equals the lower id counts as such, as in greedy decoding.
    pub rank: usize,
}

/// How well `logits: [N, V]` predicted the targets.
///
/// # Panics
/// When a target is no id.
pub fn predictions(team: &Team, logits: &[f32], v: usize, targets: &[u32]) -> Vec<Prediction> {
    let mut all = vec![Prediction::default(); targets.len()];
    let predictions = Parts::new(&mut all);
    team.ranges(targets.len(), 1, |some| {
        for i in some {
            let logits = &logits[i * v..(i + 1) * v];
            let prediction = Prediction {
                nats: -logprob(team.isa, logits, targets[i]),
                rank: rank(team.isa, logits, targets[i]),
            };
            // SAFETY: each row has one task.
            let own = unsafe { predictions.take(i..i + 1) };
            own[0] = prediction;
        }
    });
    all
}

/// The log-probability, in nats, of an id by the softmax of a row of logits, `[V]`.
///
/// # Panics
/// When there is no such id.
pub fn logprob(isa: Isa, logits: &[f32], id: u32) -> f64 {
    let mut row = Row { own: logits[id as usize], ..Row::NEW };
    add_kept(isa, logits, &mut row);
    -row.nats(0.0, logits.len())
}

/// What the gradient of the cross-entropy of a row is made of.
struct Hard {
    row: Row,
    weight: f32,
    /// As [`Head::uniform`].
    uniform: f32,
    cap: Option<f32>,
}

/// Products of a block and a row become what the loss keeps, which is the logits if it is to `keep` them or caps
/// them, and the row gets them added. `own` is the target's place, which may be beyond the block.
fn add_part(
    isa: Isa,
    output: &Output,
    smoothing: f32,
    values: &mut [f32],
    own: usize,
    row: &mut Row,
    keep: bool,
) {
    if !output.is_product() {
        finish_part(isa, values, output.bias, output.cap);
    }
    row.own = values.get(own).copied().unwrap_or(row.own);
    if smoothing > 0.0 {
        row.total += f64::from(total(isa, values));
    }
    if keep || output.cap.is_some() { add_kept(isa, values, row) } else { add(isa, values, row) }
}

simd! {
    /// The id of the largest logit, of equals the lower.
    pub fn likeliest<S>(logits: &[f32]) -> usize {
        let max = max_with::<S>(logits, f32::NEG_INFINITY);
        let equal = |some: &[f32]| some.iter().filter(|x| **x == max).count();
        let some = logits.chunks(4 * LANES).position(|some| equal(some) > 0).unwrap_or(0) * 4 * LANES;
        some + logits[some..].iter().position(|x| *x == max).unwrap_or(0)
    }

    fn rank<S>(logits: &[f32], target: u32) -> usize {
        let (lower, own) = (&logits[..target as usize], logits[target as usize]);
        let likelier = logits.iter().filter(|x| **x > own).count();
        likelier + lower.iter().filter(|x| **x == own).count()
    }

    /// Products become logits.
    fn finish_part<S>(products: &mut [f32], bias: Option<&[f32]>, cap: Option<f32>) {
        for (i, x) in products.chunks_mut(LANES).enumerate() {
            let mut logit = F::<S>::load_some(x, 0.0);
            if let Some(bias) = bias {
                logit = logit + F::load_some(&bias[i * LANES..i * LANES + x.len()], 0.0);
            }
            if let Some(cap) = cap {
                logit = tanh(logit * F::splat(1.0 / cap)) * F::splat(cap);
            }
            logit.store_some(x);
        }
    }

    fn total<S>(logits: &[f32]) -> f32 {
        let mut sum = F::<S>::splat(0.0);
        for x in logits.chunks(LANES) {
            sum = sum + F::load_some(x, 0.0);
        }
        sum.sum()
    }

    /// A block's logits become `e^(logit - max)`, and are added to their row.
    fn add<S>(logits: &mut [f32], row: &mut Row) {
        let max = max_with::<S>(logits, row.max);
        let mut sum = F::<S>::splat(0.0);
        for x in logits.chunks_mut(LANES) {
            exp(F::<S>::load_some(x, 0.0) - F::splat(max)).store_some(x);
            sum = sum + F::load_some(x, 0.0);
        }
        row.add::<S>(max, sum);
    }

    /// A block's logits are added to their row, and stay what they are.
    fn add_kept<S>(logits: &[f32], row: &mut Row) {
        let max = max_with::<S>(logits, row.max);
        let mut sum = F::<S>::splat(0.0);
        let mut rest = [0.0; LANES];
        for x in logits.chunks(LANES) {
            let mut e = exp(F::<S>::load_some(x, 0.0) - F::splat(max));
            if x.len() < LANES {
                e.store_some(&mut rest[..x.len()]);
                e = F::load(&rest);
            }
            sum = sum + e;
        }
        row.add::<S>(max, sum);
    }

    /// `e^(logit - max)` becomes the softmax of a whole row, less `uniform`, times `weight`.
    fn softmax<S>(exps: &mut [f32], max: f32, hard: &Hard) {
        let Hard { row, weight, uniform, .. } = hard;
        let less = exp(F::<S>::splat(max - row.max)).max_lane();
        let factor = F::<S>::splat((f64::from(*weight) * f64::from(less) / row.sum) as f32);
        for x in exps.chunks_mut(LANES) {
            F::load_some(x, 0.0).mul_add(factor, F::splat(-(weight * uniform))).store_some(x);
        }
    }

    /// Capped logits become the softmax of a whole row, less `uniform`, times `weight` and the derivative of
    /// the cap, `1 - (logit / cap)²`.
    fn softmax_capped<S>(logits: &mut [f32], hard: &Hard, cap: f32) {
        let Hard { row, weight, uniform, .. } = hard;
        let factor = F::<S>::splat((f64::from(*weight) / row.sum) as f32);
        let inverse = F::splat(1.0 / cap);
        for x in logits.chunks_mut(LANES) {
            let logit = F::load_some(x, 0.0);
            let gradient = exp(logit - F::splat(row.max)).mul_add(factor, F::splat(-(weight * uniform)));
            let part = logit * inverse;
            (gradient * (F::splat(1.0) - part * part)).store_some(x);
        }
    }
}

#[inline(always)]
fn max_with<S: Simd>(logits: &[f32], max: f32) -> f32 {
    let mut max = F::<S>::splat(max);
    for x in logits.chunks(LANES) {
        max = max.max(F::load_some(x, f32::NEG_INFINITY));
    }
    max.max_lane()
}

impl Row {
    /// Adds a block whose exponentials, of `logit - max`, have this sum; `max` is at least the row's.
    #[inline(always)]
    fn add<S: Simd>(&mut self, max: f32, sum: F<S>) {
        let less = exp(F::<S>::splat(self.max - max)).max_lane();
        self.sum = self.sum * f64::from(less) + f64::from(sum.sum());
        self.max = max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    const C: usize = 20;
    /// Three blocks, the last one odd.
    const V: usize = 2 * BLOCK + 37;
    const N: usize = 9;

    /// The logits of `x: [N, C]`, from the definition.
    fn plain_logits(x: &[f64], weight: &[f64], bias: &[f64], cap: Option<f32>) -> Vec<f64> {
        let row = |x: &'_ [f64]| -> Vec<f64> {
            let product = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            weight.chunks_exact(C).zip(bias).map(|(w, bias)| product(w) + bias).collect()
        };
        let capped = |x: f64| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
        x.chunks_exact(C).flat_map(row).map(capped).collect()
    }

    /// `-ln softmax(logits)`
    fn nats(logits: &[f64]) -> Vec<f64> {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let normalizer = logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max;
        logits.iter().map(|x| normalizer - x).collect()
    }

    /// The loss of some rows from the definition.
    fn plain(logits: &[f64], targets: Targets, smoothing: f64) -> f64 {
        let row = |(i, x): (usize, &[f64])| {
            let all = nats(x);
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let hard = (1.0 - smoothing) * all[targets.ids[i] as usize] + smoothing * mean;
            let Some(soft) = targets.soft else { return f64::from(targets.weight(i)) * hard };
            let (share, t) = (f64::from(soft.share), f64::from(soft.temperature));
            let all = nats(&x.iter().map(|x| x / t).collect::<Vec<f64>>());
            let place = targets.rows[i] * soft.k..(targets.rows[i] + 1) * soft.k;
            let (ids, p) = (&soft.ids[place.clone()], wide(&soft.probabilities[place]));
            let part = |p: f64, nats: f64| if p > 0.0 { p * (p.ln() + nats) } else { 0.0 };
            let named: f64 = ids.iter().zip(&p).map(|(id, p)| part(*p, all[*id as usize])).sum();
            let mut other = vec![true; V];
            ids.iter().for_each(|id| other[*id as usize] = false);
            let others = (0..V).filter(|id| other[*id]).map(|id| (-all[id]).exp());
            let (others, rest) = (others.sum::<f64>(), 1.0 - p.iter().sum::<f64>());
            let divergence = named + if others > 0.0 { part(rest, -others.ln()) } else { 0.0 };
            f64::from(targets.weight(i)) * ((1.0 - share) * hard + share * t * t * divergence)
        };
        logits.chunks_exact(V).enumerate().map(row).sum()
    }

    /// The parameters of a head, with or without the parts that it may have.
    struct Parameters {
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        cap: Option<f32>,
        smoothing: f32,
    }

    impl Parameters {
        fn new(bias: bool, cap: Option<f32>, smoothing: f32) -> Self {
            let bias = bias.then(|| numbers("b", V, 3.0));
            Parameters { weight: numbers("w", V * C, 1.0), bias, cap, smoothing }
        }

        fn head<'a>(&'a self, logits: &'a mut Logits) -> Head<'a> {
            let Parameters { weight, bias, cap, smoothing } = self;
            let weight = Weight::F32(weight);
            Head { weight, bias: bias.as_deref(), c: C, cap: *cap, smoothing: *smoothing, logits }
        }

        /// Nats, and the gradients of `x`, the weight and the bias.
        fn computed(&self, team: &Team, x: &[f32], targets: Targets) -> Vec<Vec<f32>> {
            let forward_only = self.head(&mut Logits::new(N, V, false)).loss(team, x, targets, false);
            let mut kept = Logits::new(N, V, true);
            let mut head = self.head(&mut kept);
            let nats = head.loss(team, x, targets, true);
            assert_eq!(nats, forward_only);
            let (mut dx, mut dw, mut db) = (vec![f32::NAN; N * C], vec![0.5; V * C], vec![0.5; V]);
            for ids in blocks(V) {
                head.gradient(team, targets, ids.clone());
                head.input(team, ids.clone(), &mut dx);
                head.weights(team, ids.clone(), x, &mut dw[ids.start * C..ids.end * C]);
                head.bias(team, ids.clone(), &mut db[ids]);
            }
            dw.iter_mut().chain(&mut db).for_each(|x| *x -= 0.5);
            vec![vec![nats as f32], dx, dw, db]
        }

        /// Compares with the definition in f64.
        fn check(&self, what: &str, x: &[f32], targets: Targets) {
            let found = same_everywhere(|team| self.computed(team, x, targets));
            let bias = self.bias.clone().unwrap_or_else(|| vec![0.0; V]);
            let (x64, w64, b64) = (wide(x), wide(&self.weight), wide(&bias));
            let loss = |x: &[f64], weight: &[f64], bias: &[f64]| {
                plain(&plain_logits(x, weight, bias, self.cap), targets, f64::from(self.smoothing))
            };
            near(&format!("{what}: nats"), &found[0], &[loss(&x64, &w64, &b64)], 1e-6);
            near_differences(&format!("{what}: dx"), &found[1], x, |x| loss(x, &w64, &b64), 2e-5);
            let of = |w: &[f64]| loss(&x64, w, &b64);
            near_differences(&format!("{what}: dweight"), &found[2], &self.weight, of, 2e-5);
            near_differences(&format!("{what}: dbias"), &found[3], &bias, |b| loss(&x64, &w64, b), 2e-5);
        }
    }

    /// Targets in all of the blocks.
    fn target_ids() -> Vec<u32> {
        (0..N).map(|i| (i * (V - 1) / (N - 1)) as u32).collect()
    }

    /// The maximum of a row in any of the blocks, and rows that are nearly sure.
    #[test]
    fn nats_and_gradients_are_those_of_the_definition() {
        let (x, ids) = (numbers("x", N * C, 4.0), target_ids());
        for (bias, cap, smoothing) in [
            (false, None, 0.0),
            (true, None, 0.0),
            (false, Some(15.0), 0.0),
            (false, None, 0.1),
            (true, Some(30.0), 0.2),
        ] {
            let parameters = Parameters::new(bias, cap, smoothing);
            parameters.check("plain", &x, Targets::new(&ids));
            let all = same_everywhere(|team| {
                let mut all = vec![f32::NAN; N * V];
                logits(team, parameters.head(&mut Logits::new(N, V, false)).output(), &x, &mut all);
                vec![all]
            });
            let bias = parameters.bias.unwrap_or_else(|| vec![0.0; V]);
            let expected = plain_logits(&wide(&x), &wide(&parameters.weight), &wide(&bias), cap);
            near("logits", &all[0], &expected, 1e-5);
        }
    }

    /// Factors of both signs; distributions of a few ids and of all, likely and unlikely ones, with a large
    /// rest, a tiny one and none; rows that are not in order.
    #[test]
    fn weights_and_soft_targets_are_those_of_the_definition() {
        let ids = target_ids();
        let rows: Vec<usize> = (0..N).rev().map(|i| 2 * i).collect();
        let weights: Vec<f32> = (0..2 * N).map(|i| [1.0, 0.0, -0.5, 2.0][i / 2 % 4]).collect();
        for (what, k, bias, cap, smoothing, temperature, share, spread) in [
            ("a few", 7, false, None, 0.0, 1.0, 1.0, 2.0),
            ("softened", 7, true, None, 0.0, 2.0, 0.6, 2.0),
            ("sharpened", 5, false, None, 0.1, 0.7, 0.5, 2.0),
            ("capped", 9, true, Some(15.0), 0.2, 3.0, 0.3, 4.0),
            ("nearly sure", 6, false, None, 0.0, 1.0, 0.9, 20.0),
            ("all", V, true, None, 0.0, 2.0, 0.5, 1.0),
        ] {
            let parameters = Parameters::new(bias, cap, smoothing);
            let x = numbers("x", N * C, if spread > 10.0 { 8.0 } else { 1.0 });
            let (named, probabilities) = teacher(k, spread);
            let soft = Soft { k, ids: &named, probabilities: &probabilities, temperature, share };
            let targets = Targets { ids: &ids, rows: &rows, weights: Some(&weights), soft: Some(soft) };
            parameters.check(what, &x, targets);
        }
        let x = numbers("x", N * C, 4.0);
        let targets = Targets { rows: &rows, weights: Some(&weights), ..Targets::new(&ids) };
        Parameters::new(false, None, 0.1).check("weights", &x, targets);
        Parameters::new(true, Some(15.0), 0.0).check("weights, capped", &x, targets);
    }

    /// `k` ids and their probabilities for each of `2 N` rows, one of them without a rest.
    fn teacher(k: usize, spread: f64) -> (Vec<u32>, Vec<f32>) {
        let (mut named, mut probabilities) = (Vec::new(), Vec::new());
        let sizes = numbers("teacher", 2 * N * (k + 1), spread);
        for (i, sizes) in sizes.chunks(k + 1).enumerate() {
            // 11 does not divide V.
            named.extend((0..k).map(|j| ((100 * i + 11 * j) % V) as u32));
            let mut exps: Vec<f64> = sizes.iter().map(|x| f64::from(*x).exp()).collect();
            if i == 2 || k == V {
                exps[k] = 0.0;
            }
            let sum: f64 = exps.iter().sum();
            probabilities.extend(exps[..k].iter().map(|x| (x / sum) as f32));
        }
        (named, probabilities)
    }

    #[test]
    fn the_likeliest_of_equals_is_the_lower() {
        for isa in crate::kernel::Isa::available() {
            for (n, best, equal) in [(1, 0, 0), (5, 3, 4), (150, 149, 149), (1000, 64, 700), (1000, 130, 131)]
            {
                let mut logits = numbers("logits", n, 1.0);
                (logits[best], logits[equal]) = (9.0, 9.0);
                assert_eq!(likeliest(isa, &logits), best, "{n} by {}", isa.name());
            }
        }
    }

    #[test]
    fn equal_logits_rank_by_id() {
        for isa in crate::kernel::Isa::available() {
            let team = Team::with(2, isa);
            let logits: Vec<f32> = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [-2.0, 5.0, 3.0]].concat();
            let found = predictions(&team, &logits, 3, &[0, 1, 0]);
            assert_eq!(found.iter().map(|v| v.rank).collect::<Vec<_>>(), [0, 1, 2]);
            let nats = |x: f64, all: [f64; 3]| all.iter().map(|x| x.exp()).sum::<f64>().ln() - x;
            for (found, expected) in found.iter().zip([
                nats(1.0, [1.0, 1.0, 0.0]),
                nats(1.0, [1.0, 1.0, 0.0]),
                nats(-2.0, [-2.0, 5.0, 3.0]),
            ]) {
                assert!((found.nats - expected).abs() < 1e-6, "{found:?}, not {expected}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "a target that is none of 3 ids")]
    fn an_ignored_target_is_refused() {
        let logits = &mut Logits::new(1, 3, false);
        let weight = Weight::F32(&[1.0; 6]);
        let mut head = Head { weight, bias: None, c: 2, cap: None, smoothing: 0.0, logits };
        head.loss(&Team::new(1), &[1.0; 2], Targets::new(&[IGNORE]), false);
    }
}
