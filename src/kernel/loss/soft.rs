//! What a teacher gives of each row: the likeliest ids with their probabilities, and one bucket for all others.
//!
//! Let z be a row's logits, T the temperature, `q = softmax(z / T)` the student's probabilities and p the
//! teacher's of the k ids that it names; the rest has `p' = 1 - Σ p` and `q' = Σ q` of the ids not named. Then
//!
//! ```text
//! KL = Σ p ln(p / q) + p' ln(p' / q')
//! T · ∂KL / ∂z = q - p            of an id that is named,
//!                q - p' · q / q'  of another.
//! ```
//!
//! Merging ids into a bucket never raises KL, so this is a lower bound of that over all ids, and equal to it
//! where all are named. How the rest is spread among its ids the student is free to choose: their gradient only
//! scales all of them alike.
//!
//! `1 - Σ q` would lose all digits where the rest is unlikely, so the exponentials of the ids not named are
//! summed apart: a block's logits of named ids are put aside while the block is added up. Each row then has two
//! maxima and sums, that of `softmax(z)` and that of the rest at temperature T; the gradient of a block is made of
//! both, and then the named ids' gradients, computed when all sums were known, take their places.
//!
//! Memory: 12 bytes for each of k ids of each row of a [`CHUNK`](super::CHUNK).

use std::ops::Range;

use super::super::math::exp;
use super::super::simd::{F, Isa, LANES, simd};
use super::super::team::{Parts, Team};
use super::{BLOCK, Hard, max_with};

/// A teacher's distributions, of which some ids are known, mostly the likeliest, and of all others the
/// probability together.
///
/// With the share s and the temperature T, the loss of a row is
/// `(1 - s) · cross-entropy(target) + s · T² · KL(teacher ‖ student)`, where the teacher's probabilities are
/// those of its logits divided by T, and so are the student's (Hinton, Vinyals and Dean, "Distilling the
/// Knowledge in a Neural Network", 2015: T² keeps the gradient's size as T changes).
#[derive(Debug, Clone, Copy)]
pub struct Soft<'a> {
    /// Ids a row.
    pub k: usize,
    /// `[N, k]`, below the vocabulary's size and none of them twice in a row.
    pub ids: &'a [u32],
    /// `[N, k]`, of these ids at that temperature; the others share `1 - Σ`.
    pub probabilities: &'a [f32],
    /// T
    pub temperature: f32,
    /// s
    pub share: f32,
}

impl<'a> Soft<'a> {
    /// Of some rows.
    pub fn part(self, rows: Range<usize>) -> Self {
        let of = rows.start * self.k..rows.end * self.k;
        Soft { ids: &self.ids[of.clone()], probabilities: &self.probabilities[of], ..self }
    }
}

/// What the loss of up to [`CHUNK`](super::CHUNK) rows keeps of their soft targets.
#[derive(Default)]
pub(super) struct Kept {
    k: usize,
    /// `[N, k]`, in ascending order.
    ids: Vec<u32>,
    /// `[N, k]`
    probabilities: Vec<f32>,
    /// The logits of these ids, and at last their gradients, `[N, k]`.
    values: Vec<f32>,
    rows: Vec<Row>,
    inverse: f32,
    /// `s · T`: KL's gradient with respect to `logit / T` has this factor.
    scale: f64,
}

/// A row after some blocks.
#[derive(Clone, Copy)]
struct Row {
    /// The max of the logits of the ids that are not named; minus infinity before there is one.
    max: f32,
    /// `Σ e^((logit - max) / T)` over these.
    sum: f64,
    /// KL in nats.
    kl: f64,
    /// The gradient of an id that is not named is `factor · e^((logit - max) / T)`.
    factor: f32,
}

impl Kept {
    /// Begins the loss of some rows of `soft`, over a vocabulary of `v` ids.
    pub fn begin(&mut self, team: &Team, soft: Soft, rows: &[usize], v: usize) {
        let (n, k) = (rows.len(), soft.k);
        (self.k, self.inverse) = (k, 1.0 / soft.temperature);
        self.scale = f64::from(soft.share) * f64::from(soft.temperature);
        self.ids.resize(n * k, 0);
        self.probabilities.resize(n * k, 0.0);
        self.values.resize(n * k, 0.0);
        self.rows.clear();
        self.rows.resize(n, Row { max: f32::NEG_INFINITY, sum: 0.0, kl: 0.0, factor: 0.0 });
        let all = self.rows();
        team.ranges(n, 4, |some| {
            let mut keys = Vec::with_capacity(k);
            for i in some {
                let from = rows[i] * k..(rows[i] + 1) * k;
                // SAFETY: each row has one task.
                let row = unsafe { all.take(i) };
                row.sort(&soft.ids[from.clone()], &soft.probabilities[from], v, &mut keys);
            }
        });
    }

    /// The part of the loss of a row, before its weight.
    pub fn nats(&self, i: usize, soft: Soft) -> f64 {
        self.scale * f64::from(soft.temperature) * self.rows[i].kl
    }

    pub fn rows(&mut self) -> Rows<'_> {
        Rows {
            k: self.k,
            ids: Parts::new(&mut self.ids),
            probabilities: Parts::new(&mut self.probabilities),
            values: Parts::new(&mut self.values),
            rows: Parts::new(&mut self.rows),
            inverse: self.inverse,
            scale: self.scale,
        }
    }
}

/// All rows, shared by the tasks of a loop.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    k: usize,
    ids: Parts<'a, u32>,
    probabilities: Parts<'a>,
    values: Parts<'a>,
    rows: Parts<'a, Row>,
    inverse: f32,
    scale: f64,
}

impl<'a> Rows<'a> {
    /// # Safety
    /// No two tasks may hold the same row at one time.
    pub unsafe fn take(&self, i: usize) -> OfRow<'a> {
        let of = i * self.k..(i + 1) * self.k;
        unsafe {
            OfRow {
                ids: self.ids.take(of.clone()),
                probabilities: self.probabilities.take(of.clone()),
                values: self.values.take(of),
                row: &mut self.rows.take(i..i + 1)[0],
                inverse: self.inverse,
                scale: self.scale,
            }
        }
    }
}

/// The soft targets of one row.
pub(super) struct OfRow<'a> {
    ids: &'a mut [u32],
    probabilities: &'a mut [f32],
    values: &'a mut [f32],
    row: &'a mut Row,
    inverse: f32,
    scale: f64,
}

impl OfRow<'_> {
    /// `keys` is scratch.
    fn sort(self, ids: &[u32], probabilities: &[f32], v: usize, keys: &mut Vec<u64>) {
        keys.clear();
        let key = |(id, p): (&u32, &f32)| u64::from(*id) << 32 | u64::from(p.to_bits());
        keys.extend(ids.iter().zip(probabilities).map(key));
        keys.sort_unstable();
        for (i, key) in keys.iter().enumerate() {
            (self.ids[i], self.probabilities[i]) = ((key >> 32) as u32, f32::from_bits(*key as u32));
        }
        assert!(self.ids.windows(2).all(|pair| pair[0] < pair[1]), "an id that a row names twice");
        assert!(self.ids.last().is_none_or(|id| (*id as usize) < v), "soft targets beyond {v} ids");
    }

    /// Which of the named ids are in a block.
    fn inside(&self, block: &Range<usize>) -> Range<usize> {
        let before = |end: usize| self.ids.partition_point(|id| (*id as usize) < end);
        before(block.start)..before(block.end)
    }

    /// Adds a block's logits.
    pub fn add(&mut self, isa: Isa, block: &Range<usize>, logits: &mut [f32]) {
        let inside = self.inside(block);
        let named = self.ids[inside.clone()].iter().zip(&mut self.values[inside.clone()]);
        for (id, value) in named {
            *value = std::mem::replace(&mut logits[*id as usize - block.start], f32::NEG_INFINITY);
        }
        add_others(isa, logits, self.inverse, self.row);
        for (id, value) in self.ids[inside.clone()].iter().zip(&self.values[inside]) {
            logits[*id as usize - block.start] = *value;
        }
    }

    /// With all blocks added: KL, and if `backward_follows` what the gradient is made of. `weight` is the
    /// row's.
    pub fn finish(&mut self, isa: Isa, hard: &Hard, weight: f32, backward_follows: bool) {
        let inverse = f64::from(self.inverse);
        let max = max_of(isa, self.values).max(self.row.max);
        // `Σ e^((logit - max) / T)`, of the others and of all.
        let others = self.row.sum * libm::exp(f64::from(self.row.max - max) * inverse);
        let sum = others + sum_of_exps(isa, self.values, max, self.inverse);
        let normalizer = libm::log(sum);
        let mut named = 0.0;
        self.row.kl = 0.0;
        for (p, logit) in self.probabilities.iter().zip(&*self.values).filter(|(p, _)| **p > 0.0) {
            let (p, ln_q) = (f64::from(*p), f64::from(logit - max) * inverse - normalizer);
            named += p;
            self.row.kl += p * (libm::log(p) - ln_q);
        }
        // Where all ids are named, a difference to 1 is rounding.
        let rest = if others > 0.0 { (1.0 - named).max(0.0) } else { 0.0 };
        if rest > 0.0 {
            let ln_q = libm::log(self.row.sum) + f64::from(self.row.max - max) * inverse - normalizer;
            self.row.kl += rest * (libm::log(rest) - ln_q);
        }
        if backward_follows {
            let (scale, all) = (f64::from(weight) * self.scale, (named + rest) / sum);
            if self.row.sum > 0.0 {
                let others_exp = libm::exp(f64::from(self.row.max - max) * inverse);
                self.row.factor = (scale * (all * others_exp - rest / self.row.sum)) as f32;
            }
            let soft = (max, self.inverse, (scale * all) as f32);
            gradients(isa, self.values, hard, soft, Some((self.probabilities, scale as f32)));
        }
    }

    /// A block's logits become its gradient, but for what only the target's id has.
    pub fn gradient(&self, isa: Isa, hard: &Hard, block: &Range<usize>, logits: &mut [f32]) {
        let Row { max, factor, .. } = *self.row;
        // What this gives of named ids is replaced, whatever it is.
        gradients(isa, logits, hard, (max, self.inverse, factor), None);
        let inside = self.inside(block);
        for (id, gradient) in self.ids[inside.clone()].iter().zip(&self.values[inside]) {
            logits[*id as usize - block.start] = *gradient;
        }
    }
}

simd! {
    fn max_of<S>(logits: &[f32]) -> f32 {
        max_with::<S>(logits, f32::NEG_INFINITY)
    }

    /// Adds a block's logits, of which those of named ids are minus infinity: such add e^-87, which no sum of at
    /// least 1 notices.
    fn add_others<S>(logits: &[f32], inverse: f32, row: &mut Row) {
        let max = max_with::<S>(logits, row.max);
        if max == f32::NEG_INFINITY {
            return;
        }
        let (top, factor) = (F::<S>::splat(max), F::splat(inverse));
        let mut sum = F::<S>::splat(0.0);
        for x in logits.chunks(LANES) {
            sum = sum + exp((F::load_some(x, f32::NEG_INFINITY) - top) * factor);
        }
        let less = exp((F::<S>::splat(row.max) - top) * factor).max_lane();
        row.sum = row.sum * f64::from(less) + f64::from(sum.sum());
        row.max = max;
    }

    /// `Σ e^((logit - max) / T)`
    fn sum_of_exps<S>(logits: &[f32], max: f32, inverse: f32) -> f64 {
        let (max, inverse) = (F::<S>::splat(max), F::splat(inverse));
        let block = |block: &[f32]| {
            let mut sum = F::<S>::splat(0.0);
            for x in block.chunks(LANES) {
                sum = sum + exp((F::load_some(x, f32::NEG_INFINITY) - max) * inverse);
            }
            f64::from(sum.sum())
        };
        logits.chunks(BLOCK).map(block).sum()
    }

    /// Logits become `weight (softmax - uniform) + factor e^((logit - max) / T) - scale p`, times the derivative
    /// of the cap. `soft` are max, 1 / T and factor, `teacher` are p and scale.
    fn gradients<S>(
        logits: &mut [f32],
        hard: &Hard,
        soft: (f32, f32, f32),
        teacher: Option<(&[f32], f32)>,
    ) {
        let c = F::<S>::splat;
        let (top, uniform) = (c(hard.row.max), c(-(hard.weight * hard.uniform)));
        let hard_factor = c((f64::from(hard.weight) / hard.row.sum) as f32);
        let (max, inverse, factor) = (c(soft.0), c(soft.1), c(soft.2));
        for (i, x) in logits.chunks_mut(LANES).enumerate() {
            let logit = F::load_some(x, 0.0);
            let mut gradient = exp(logit - top).mul_add(hard_factor, uniform);
            gradient = exp((logit - max) * inverse).mul_add(factor, gradient);
            if let Some((p, scale)) = teacher {
                let p = F::load_some(&p[i * LANES..i * LANES + x.len()], 0.0);
                gradient = p.mul_add(c(-scale), gradient);
            }
            if let Some(cap) = hard.cap {
                let part = logit * c(1.0 / cap);
                gradient = gradient * (c(1.0) - part * part);
            }
            gradient.store_some(x);
        }
    }
}
