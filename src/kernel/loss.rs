//! Cross-entropy with the output projection, for some rows and a block of the vocabulary at a time: what is
//! made of a block is used while the second cache holds it. Of a batch, no more than [`CHUNK`] rows of
//! logits exist at once; where nothing goes back, no more than a block of those.
//!
//! On the way forward a block's logits become `e^(logit - m)`, where m is the greatest of their row so far;
//! the sum of a row so far is scaled whenever m grows (Milakov and Gimelshein, "Online normalizer calculation
//! for softmax", 2018). On the way back a block becomes its gradient, `softmax - onehot(target)`, which is
//! but a factor a row, and is multiplied with both sides at once.

use std::ops::Range;

use super::Buffer;
use super::math::exp;
pub use super::matmul::THIN;
use super::matmul::{Start, View, matmul};
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// A target that does not count: padding, or a token nobody is to learn to say.
pub const IGNORE: u32 = u32::MAX;

/// Rows of logits that are there at a time.
pub const CHUNK: usize = 256;

/// Ids of a block: whole panels, tiles and steps of all three products.
pub const BLOCK: usize = 384;

/// The blocks of a vocabulary of `v` ids.
pub fn blocks(v: usize) -> impl Iterator<Item = Range<usize>> {
    (0..v).step_by(BLOCK).map(move |first| first..(first + BLOCK).min(v))
}

/// What is made of up to [`CHUNK`] rows on their way forward.
pub struct Logits {
    /// `e^(logit - m)`, block after block, each `[N, ids]`. One block where nothing goes back.
    exps: Buffer,
    /// m after each block, `[blocks, N]`.
    greatest: Buffer,
    rows: Vec<Row>,
}

/// A row after some blocks.
#[derive(Clone, Copy)]
struct Row {
    greatest: f32,
    /// `Σ e^(logit - greatest)`
    sum: f64,
    /// The target's logit.
    own: f32,
}

impl Row {
    const NEW: Row = Row { greatest: f32::NEG_INFINITY, sum: 0.0, own: 0.0 };

    /// `ln Σ e^x - x[target]`
    fn nats(&self) -> f64 {
        libm::log(self.sum) + f64::from(self.greatest) - f64::from(self.own)
    }
}

impl Logits {
    /// Of `rows` rows of a vocabulary of `v` ids.
    pub fn new(rows: usize, v: usize, goes_back: bool) -> Self {
        let rows = rows.min(CHUNK);
        let kept = if goes_back { v } else { v.min(BLOCK) };
        let (exps, greatest) = (Buffer::new(rows * kept), Buffer::new(rows * v.div_ceil(BLOCK)));
        Logits { exps, greatest, rows: vec![Row::NEW; rows] }
    }
}

/// The output projection: logits = `x · tokensᵀ`, of up to [`CHUNK`] rows at a time.
pub struct Head<'a> {
    /// `[V, C]`
    pub tokens: &'a [f32],
    /// Width, `C`.
    pub c: usize,
    pub logits: &'a mut Logits,
}

impl Head<'_> {
    /// The sum over `targets` of `-ln p(target)` in nats, of `x: [N, C]`. Keeps what [`Head::slope`] needs
    /// where the logits are to go back.
    ///
    /// # Panics
    /// When a target is no id, such as [`IGNORE`].
    pub fn loss(&mut self, team: &Team, x: &[f32], targets: &[u32], goes_back: bool) -> f64 {
        let (c, n, v) = (self.c, targets.len(), self.tokens.len() / self.c);
        assert!(targets.iter().all(|id| (*id as usize) < v), "a target that is none of {v} ids");
        let Logits { exps, greatest, rows } = &mut *self.logits;
        let rows = &mut rows[..n];
        rows.fill(Row::NEW);
        for (block, ids) in blocks(v).enumerate() {
            let len = ids.len();
            let exps = &mut exps[if goes_back { n * ids.start } else { 0 }..][..n * len];
            logits(team, &self.tokens[ids.start * c..ids.end * c], c, x, exps);
            let (exps, greatest) = (Parts::new(exps), Parts::new(&mut greatest[block * n..][..n]));
            let rows = Parts::new(rows);
            team.ranges(n, 4, |some| {
                for i in some {
                    // SAFETY: each row has one task.
                    let (exps, row) = unsafe { (exps.take(i * len..(i + 1) * len), rows.take(i..i + 1)) };
                    let own = (targets[i] as usize).wrapping_sub(ids.start);
                    row[0].own = exps.get(own).copied().unwrap_or(row[0].own);
                    add(team.isa, exps, &mut row[0]);
                    // SAFETY: as above.
                    unsafe { greatest.take(i..i + 1)[0] = row[0].greatest };
                }
            });
        }
        rows.iter().map(Row::nats).sum()
    }

    /// What was kept of the logits of some ids, a block of them, becomes their gradient.
    pub fn slope(&mut self, team: &Team, targets: &[u32], ids: Range<usize>) {
        let (n, len) = (targets.len(), ids.len());
        let Logits { exps, greatest, rows } = &mut *self.logits;
        let exps = Parts::new(&mut exps[n * ids.start..n * ids.end]);
        let greatest = &greatest[ids.start / BLOCK * n..][..n];
        team.ranges(n, 4, |some| {
            for i in some {
                // SAFETY: each row has one task.
                let slopes = unsafe { exps.take(i * len..(i + 1) * len) };
                scale(team.isa, slopes, greatest[i], rows[i]);
                if let Some(own) = slopes.get_mut((targets[i] as usize).wrapping_sub(ids.start)) {
                    *own -= 1.0;
                }
            }
        });
    }

    /// `dx = dlogits · tokens` of a block, added to what the blocks before gave.
    pub fn input(&self, team: &Team, ids: Range<usize>, dx: &mut [f32]) {
        let (c, n) = (self.c, dx.len() / self.c);
        let tokens = View::new(&self.tokens[ids.start * c..ids.end * c], c);
        let start = if ids.start == 0 { Start::Zero } else { Start::Add };
        matmul(team, (n, c, ids.len()), self.slopes(n, &ids), tokens, start, dx, c);
    }

    /// `dtokens += dlogitsᵀ · x` of a block's ids.
    pub fn weights(&self, team: &Team, ids: Range<usize>, x: &[f32], dtokens: &mut [f32]) {
        let (c, n) = (self.c, x.len() / self.c);
        matmul(team, (ids.len(), c, n), self.slopes(n, &ids).t(), View::new(x, c), Start::Add, dtokens, c);
    }

    fn slopes(&self, n: usize, ids: &Range<usize>) -> View<'_> {
        View::new(&self.logits.exps[n * ids.start..n * ids.end], ids.len())
    }
}

/// `logits: [N, V]` of `x: [N, C]`.
pub fn logits(team: &Team, tokens: &[f32], c: usize, x: &[f32], logits: &mut [f32]) {
    let (n, v) = (x.len() / c, tokens.len() / c);
    matmul(team, (n, v, c), View::new(x, c), View::new(tokens, c).t(), Start::Zero, logits, v);
}

/// How well a token was predicted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prediction {
    /// `-ln p(token)`
    pub nats: f64,
    /// Ids that were likelier; of equals the lower id counts as such, as in greedy decoding.
    pub rank: usize,
}

/// How well `logits: [N, V]`, which are used up, predicted the targets.
///
/// # Panics
/// When a target is no id.
pub fn predictions(team: &Team, logits: &mut [f32], v: usize, targets: &[u32]) -> Vec<Prediction> {
    let mut all = vec![Prediction::default(); targets.len()];
    let (logits, predictions) = (Parts::new(logits), Parts::new(&mut all));
    team.ranges(targets.len(), 1, |some| {
        for i in some {
            // SAFETY: each row has one task.
            let (logits, own) = unsafe { (logits.take(i * v..(i + 1) * v), predictions.take(i..i + 1)) };
            let rank = rank(team.isa, logits, targets[i]);
            let mut row = Row { own: logits[targets[i] as usize], ..Row::NEW };
            add(team.isa, logits, &mut row);
            own[0] = Prediction { nats: row.nats(), rank };
        }
    });
    all
}

simd! {
    fn rank<S>(logits: &[f32], target: u32) -> usize {
        let (lower, own) = (&logits[..target as usize], logits[target as usize]);
        let likelier = logits.iter().filter(|x| **x > own).count();
        likelier + lower.iter().filter(|x| **x == own).count()
    }

    /// A block's logits become `e^(logit - greatest)`, and the row takes them in.
    fn add<S>(logits: &mut [f32], row: &mut Row) {
        let mut greatest = F::<S>::splat(row.greatest);
        for x in logits.chunks(LANES) {
            greatest = greatest.max(F::load_some(x, f32::NEG_INFINITY));
        }
        let greatest = greatest.max_lane();
        let mut sum = F::<S>::splat(0.0);
        for x in logits.chunks_mut(LANES) {
            exp(F::<S>::load_some(x, 0.0) - F::splat(greatest)).store_some(x);
            sum = sum + F::load_some(x, 0.0);
        }
        let less = exp(F::<S>::splat(row.greatest - greatest)).max_lane();
        row.sum = row.sum * f64::from(less) + f64::from(sum.sum());
        row.greatest = greatest;
    }

    /// `e^(logit - greatest)` becomes the softmax of a whole row.
    fn scale<S>(exps: &mut [f32], greatest: f32, row: Row) {
        let less = exp(F::<S>::splat(greatest - row.greatest)).max_lane();
        let factor = F::<S>::splat((f64::from(less) / row.sum) as f32);
        for x in exps.chunks_mut(LANES) {
            (F::load_some(x, 0.0) * factor).store_some(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::kernel::Isa;

    /// Three blocks, the greatest logit of a row in any of them, and rows that are nearly sure.
    #[test]
    fn nats_and_gradients_are_those_of_the_definition() {
        let (n, c, v) = (9, 20, 2 * BLOCK + 37);
        let mut rng = Rng::new(1, "head");
        let mut numbers =
            |n: usize, size: f64| (0..n).map(|_| (rng.normal() * size) as f32).collect::<Vec<_>>();
        let (tokens, x, before) = (numbers(v * c, 1.0), numbers(n * c, 4.0), numbers(v * c, 1.0));
        let targets: Vec<u32> = (0..n).map(|i| (i * (v - 1) / (n - 1)) as u32).collect();
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (mut expected, mut dx, mut dtokens) =
            (0.0, vec![0.0; n * c], before.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        for (i, target) in targets.iter().enumerate() {
            let logits: Vec<f64> = tokens.chunks(c).map(|token| dot(token, &x[i * c..][..c])).collect();
            let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
            expected += sum.ln() + greatest - logits[*target as usize];
            for (id, logit) in logits.iter().enumerate() {
                let slope = (logit - greatest).exp() / sum - f64::from(u8::from(id == *target as usize));
                for j in 0..c {
                    dx[i * c + j] += slope * f64::from(tokens[id * c + j]);
                    dtokens[id * c + j] += slope * f64::from(x[i * c + j]);
                }
            }
        }
        let near = |found: &[f32], expected: &[f64]| {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 2e-5, "{found}, not {expected}");
            }
        };
        let mut first = None;
        for isa in Isa::available() {
            let team = Team::with(2, isa);
            let mut made = Logits::new(n, v, true);
            let mut head = Head { tokens: &tokens, c, logits: &mut made };
            let without = Head { tokens: &tokens, c, logits: &mut Logits::new(n, v, false) }
                .loss(&team, &x, &targets, false);
            let nats = head.loss(&team, &x, &targets, true);
            assert_eq!(nats, without);
            assert!((nats - expected).abs() < 1e-5 * expected, "{nats}, not {expected}");
            let (mut found_x, mut found_tokens) = (vec![f32::NAN; n * c], before.clone());
            for ids in blocks(v) {
                head.slope(&team, &targets, ids.clone());
                head.input(&team, ids.clone(), &mut found_x);
                head.weights(&team, ids.clone(), &x, &mut found_tokens[ids.start * c..ids.end * c]);
            }
            near(&found_x, &dx);
            near(&found_tokens, &dtokens);
            let first = first.get_or_insert_with(|| (nats, found_x.clone(), found_tokens.clone()));
            assert!(*first == (nats, found_x, found_tokens), "{}", isa.name());
        }
    }

    #[test]
    fn equal_logits_rank_by_id() {
        for isa in Isa::available() {
            let team = Team::with(2, isa);
            let mut logits: Vec<f32> = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [-2.0, 5.0, 3.0]].concat();
            let found = predictions(&team, &mut logits, 3, &[0, 1, 0]);
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
    fn a_target_that_does_not_count_is_not_its_to_judge() {
        let mut logits = Logits::new(1, 3, false);
        Head { tokens: &[1.0; 6], c: 2, logits: &mut logits }.loss(
            &Team::new(1),
            &[1.0; 2],
            &[IGNORE],
            false,
        );
    }
}
