//! Queries and keys before attention, a head at a time: RMSNorm (QK-norm; Henry et al., 2020), then rotation by
//! their position (RoPE; Su et al., 2021). Both are optional.
//!
//! ```text
//! n  = x / sqrt(mean(x²) + eps) · weight
//! y1 = n1 cos - n2 sin        n1, n2: the first and the second half of a head, as transformers' rotate_half
//! y2 = n2 cos + n1 sin
//! ```
//!
//! Nothing is kept for the backward pass but the input: the norm is cheap to recompute.

use std::ops::Range;

use super::Buffer;
use super::simd::{F, LANES, Simd, simd};
use super::team::{Parts, Team};

/// Rows of a task. Gradients of the weights are summed a task at a time, so it is part of the bytes.
const GRAIN: usize = 64;

/// YaRN: frequencies for sequences that are longer than those of pretraining (Peng et al., 2023).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// How many times longer sequences become.
    pub factor: f64,
    /// The longest sequence of pretraining.
    pub original_length: usize,
    /// Frequencies of more turns than this within `original_length` stay as they are.
    pub beta_fast: f64,
    /// Frequencies of fewer turns than this are divided by `factor`.
    pub beta_slow: f64,
    /// Multiplies cosines and sines.
    pub attention_factor: f64,
}

impl Yarn {
    /// How much of the i-th of `half` frequencies is divided by the factor, from 0 to 1: linear between the
    /// indices that turn `beta_fast` and `beta_slow` times, rounded outwards.
    fn ramp(&self, i: usize, half: usize, base: f64) -> f64 {
        let d = 2.0 * half as f64;
        let turns = |n: f64| {
            let length = self.original_length as f64 / (n * 2.0 * std::f64::consts::PI);
            d * libm::log(length) / (2.0 * libm::log(base))
        };
        let low = turns(self.beta_fast).floor().max(0.0);
        let high = turns(self.beta_slow).ceil().min(d - 1.0);
        let width = if low == high { 0.001 } else { high - low };
        ((i as f64 - low) / width).clamp(0.0, 1.0)
    }
}

/// Cosines and sines of each position.
pub struct Rope {
    /// `[T, D/2]`
    cos: Buffer,
    sin: Buffer,
    /// `D/2`
    half: usize,
}

impl Rope {
    /// For `t` positions and heads of width `d`: the i-th frequency is `base^(-2i/d)`, scaled by `yarn` as
    /// transformers' `_compute_yarn_parameters` does.
    ///
    /// # Panics
    /// When `d` is odd.
    pub fn new(t: usize, d: usize, base: f64, yarn: Option<Yarn>) -> Self {
        assert!(d.is_multiple_of(2), "halves of a head of {d}");
        let half = d / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| frequency(i, half, base, yarn)).collect();
        let scale = yarn.map_or(1.0, |yarn| yarn.attention_factor);
        let table = |f: fn(f64) -> f64| -> Buffer {
            let angles = (0..t).flat_map(|t| frequencies.iter().map(move |frequency| t as f64 * frequency));
            angles.map(|angle| (scale * f(angle)) as f32).collect()
        };
        Rope { cos: table(libm::cos), sin: table(libm::sin), half }
    }

    /// Cosines and sines of a position.
    fn at(&self, position: usize) -> Rotation<'_> {
        let range = position * self.half..(position + 1) * self.half;
        Rotation { cos: &self.cos[range.clone()], sin: &self.sin[range] }
    }
}

fn frequency(i: usize, half: usize, base: f64, yarn: Option<Yarn>) -> f64 {
    let own = libm::pow(base, -(i as f64 / half as f64));
    let Some(yarn) = yarn else { return own };
    let ramp = yarn.ramp(i, half, base);
    own / yarn.factor * ramp + own * (1.0 - ramp)
}

/// Of one position, `[D/2]` each.
#[derive(Clone, Copy)]
struct Rotation<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
}

/// RMSNorm of each head of queries and keys, with weights `[D]` that all heads of a kind share.
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    /// Added to the mean square.
    pub eps: f32,
    pub q: Option<&'a [f32]>,
    pub k: Option<&'a [f32]>,
}

/// The heads at the beginning of a row: queries, then keys.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// Heads of queries, `H`.
    pub q: usize,
    /// Heads of keys, `K`.
    pub k: usize,
    /// Width of a head, `D`.
    pub width: usize,
    pub norm: Option<QkNorm<'a>>,
    pub rope: Option<&'a Rope>,
}

/// What a head is normalized by.
#[derive(Clone, Copy)]
struct HeadNorm<'a> {
    eps: f32,
    weight: Option<&'a [f32]>,
}

impl<'a> Heads<'a> {
    fn columns(&self) -> usize {
        (self.q + self.k) * self.width
    }

    fn rotation(&self, position: usize) -> Option<Rotation<'a>> {
        self.rope.map(|rope| rope.at(position))
    }

    /// Of queries and of keys.
    fn norms(&self) -> [Option<HeadNorm<'a>>; 2] {
        let of = |weight: fn(&QkNorm<'a>) -> Option<&'a [f32]>| {
            self.norm.map(|norm| HeadNorm { eps: norm.eps, weight: weight(&norm) })
        };
        [of(|norm| norm.q), of(|norm| norm.k)]
    }

    /// # Panics
    /// When rows are too short, or the rotation is of another width.
    fn validate(&self, strides: [usize; 2]) {
        assert!(strides.iter().all(|stride| *stride >= self.columns()), "{strides:?} for {}", self.columns());
        assert!(self.rope.is_none_or(|rope| 2 * rope.half == self.width), "a rotation of another width");
    }
}

/// Reads queries and keys, the first `(H + K)·D` columns of each row of x, and writes them normalized and
/// rotated to the same columns of y. Row i stands at `position(i)`.
///
/// # Panics
/// When a slice is too short, or a position has no rotation.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    team: &Team,
    heads: Heads,
    position: impl Fn(usize) -> usize + Sync,
    x: &[f32],
    x_stride: usize,
    y: &mut [f32],
    y_stride: usize,
) {
    heads.validate([x_stride, y_stride]);
    let n = y.len().div_ceil(y_stride);
    let y = Parts::new(y);
    team.ranges(n, 16, |rows| {
        for i in rows {
            let x = &x[i * x_stride..][..heads.columns()];
            // SAFETY: each row has one task.
            let y = unsafe { y.take(i * y_stride..i * y_stride + heads.columns()) };
            forward_row(team.isa, heads, position(i), x, y);
        }
    });
}

/// Where the gradients of the norms' weights, `[D]`, are added.
pub struct QkGradients<'a> {
    pub q: Option<&'a mut [f32]>,
    pub k: Option<&'a mut [f32]>,
}

/// `dy`, the gradient of what [`forward`] gave for `x` from position 0 on, becomes that of `x` in place. Adds to
/// the gradients of the weights, rows in order, and a row's heads in order.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    team: &Team,
    heads: Heads,
    length: usize,
    x: &[f32],
    x_stride: usize,
    dy: &mut [f32],
    dy_stride: usize,
    gradients: QkGradients,
) {
    heads.validate([x_stride, dy_stride]);
    let (n, d) = (dy.len().div_ceil(dy_stride), heads.width);
    let tasks = n.div_ceil(GRAIN);
    team.with_scratch(tasks * 2 * d, |sums| {
        sums.fill(0.0);
        let (dy, parts) = (Parts::new(dy), Parts::new(sums));
        team.each(tasks, |task| {
            // SAFETY: each task has sums and rows of its own.
            let sums = unsafe { parts.take(task * 2 * d..(task + 1) * 2 * d) };
            for i in task * GRAIN..(task * GRAIN + GRAIN).min(n) {
                let x = &x[i * x_stride..][..heads.columns()];
                // SAFETY: as above.
                let dy = unsafe { dy.take(i * dy_stride..i * dy_stride + heads.columns()) };
                backward_row(team.isa, heads, i % length, x, dy, sums);
            }
        });
        let (q, k) = (gradients.q, gradients.k);
        for (to, columns) in [(q, 0..d), (k, d..2 * d)] {
            add_sums(to, sums, 2 * d, columns);
        }
    });
}

/// Adds the same columns of all rows of `sums`.
fn add_sums(to: Option<&mut [f32]>, sums: &[f32], stride: usize, columns: Range<usize>) {
    let Some(to) = to else { return };
    for row in sums.chunks_exact(stride) {
        to.iter_mut().zip(&row[columns.clone()]).for_each(|(to, sum)| *to += sum);
    }
}

simd! {
    fn forward_row<S>(heads: Heads, position: usize, x: &[f32], y: &mut [f32]) {
        let (rotation, norms) = (heads.rotation(position), heads.norms());
        let pairs = x.chunks_exact(heads.width).zip(y.chunks_exact_mut(heads.width));
        for (h, (x, y)) in pairs.enumerate() {
            let norm = norms[usize::from(h >= heads.q)];
            let rstd = norm.map_or(1.0, |norm| rstd::<S>(x, norm.eps));
            let weight = norm.and_then(|norm| norm.weight);
            match rotation {
                Some(rotation) => rotated::<S>(x, rstd, weight, rotation, y),
                None => normalized::<S>(x, rstd, weight, y),
            }
        }
    }

    /// `sums` takes the gradients of the weights, of queries and of keys.
    fn backward_row<S>(heads: Heads, position: usize, x: &[f32], dy: &mut [f32], sums: &mut [f32]) {
        let (rotation, norms) = (heads.rotation(position), heads.norms());
        let pairs = x.chunks_exact(heads.width).zip(dy.chunks_exact_mut(heads.width));
        for (h, (x, dy)) in pairs.enumerate() {
            if let Some(rotation) = rotation {
                rotated_back::<S>(rotation, dy);
            }
            let kind = usize::from(h >= heads.q);
            if let Some(norm) = norms[kind] {
                let sums = &mut sums[kind * heads.width..(kind + 1) * heads.width];
                normalized_back::<S>(x, norm, dy, sums);
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn rstd<S: Simd>(x: &[f32], eps: f32) -> f32 {
    let mut squares = F::<S>::splat(0.0);
    for x in x.chunks(LANES) {
        let x = F::load_some(x, 0.0);
        squares = x.mul_add(x, squares);
    }
    1.0 / (squares.sum() / x.len() as f32 + eps).sqrt()
}

/// Up to 16 numbers from `i` on, below `end`, times rstd and weight.
#[inline(always)]
fn scaled<S: Simd>(x: &[f32], range: Range<usize>, rstd: F<S>, weight: Option<&[f32]>) -> F<S> {
    let n = F::load_some(&x[range.clone()], 0.0) * rstd;
    match weight {
        Some(weight) => n * F::load_some(&weight[range], 0.0),
        None => n,
    }
}

#[inline(always)]
fn normalized<S: Simd>(x: &[f32], rstd: f32, weight: Option<&[f32]>, y: &mut [f32]) {
    for (i, y) in y.chunks_mut(LANES).enumerate() {
        let range = i * LANES..i * LANES + y.len();
        scaled::<S>(x, range, F::splat(rstd), weight).store_some(y);
    }
}

#[inline(always)]
fn rotated<S: Simd>(x: &[f32], rstd: f32, weight: Option<&[f32]>, by: Rotation, y: &mut [f32]) {
    let half = by.cos.len();
    let (y1, y2) = y.split_at_mut(half);
    for (i, (y1, y2)) in y1.chunks_mut(LANES).zip(y2.chunks_mut(LANES)).enumerate() {
        let range = i * LANES..i * LANES + y1.len();
        let n1 = scaled::<S>(x, range.clone(), F::splat(rstd), weight);
        let n2 = scaled::<S>(x, range.start + half..range.end + half, F::splat(rstd), weight);
        let cos = F::load_some(&by.cos[range.clone()], 0.0);
        let sin = F::load_some(&by.sin[range], 0.0);
        n1.mul_add(cos, F::splat(0.0) - n2 * sin).store_some(y1);
        n2.mul_add(cos, n1 * sin).store_some(y2);
    }
}

/// Backward of a rotation: by the opposite angle.
#[inline(always)]
fn rotated_back<S: Simd>(by: Rotation, dy: &mut [f32]) {
    let (dy1, dy2) = dy.split_at_mut(by.cos.len());
    let angles = by.cos.chunks(LANES).zip(by.sin.chunks(LANES));
    for ((dy1, dy2), (cos, sin)) in dy1.chunks_mut(LANES).zip(dy2.chunks_mut(LANES)).zip(angles) {
        let (d1, d2) = (F::<S>::load_some(dy1, 0.0), F::load_some(dy2, 0.0));
        let (cos, sin) = (F::load_some(cos, 0.0), F::load_some(sin, 0.0));
        d1.mul_add(cos, d2 * sin).store_some(dy1);
        d2.mul_add(cos, F::splat(0.0) - d1 * sin).store_some(dy2);
    }
}

/// With `n = x · rstd` and `h = dy · weight`: `dx = rstd (h - n mean(h n))`, in place; `sums += dy n`.
#[inline(always)]
fn normalized_back<S: Simd>(x: &[f32], norm: HeadNorm, dy: &mut [f32], sums: &mut [f32]) {
    let rstd = F::<S>::splat(rstd::<S>(x, norm.eps));
    let mut products = F::splat(0.0);
    for (i, (x, dy)) in x.chunks(LANES).zip(dy.chunks_mut(LANES)).enumerate() {
        let range = i * LANES..i * LANES + x.len();
        let (n, d) = (F::load_some(x, 0.0) * rstd, F::load_some(dy, 0.0));
        let mut h = d;
        if let Some(weight) = norm.weight {
            h = d * F::load_some(&weight[range.clone()], 0.0);
            let sums = &mut sums[range];
            d.mul_add(n, F::load_some(sums, 0.0)).store_some(sums);
        }
        products = h.mul_add(n, products);
        h.store_some(dy);
    }
    let mean = F::splat(products.sum() / x.len() as f32);
    for (x, dy) in x.chunks(LANES).zip(dy.chunks_mut(LANES)) {
        let n = F::load_some(x, 0.0) * rstd;
        ((F::load_some(dy, 0.0) - n * mean) * rstd).store_some(dy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    /// The definition, a number at a time; `weights` of queries' and of keys' norm.
    fn plain(heads: Heads, weights: [Option<&[f64]>; 2], length: usize, x: &[f64]) -> Vec<f64> {
        let d = heads.width;
        let mut y = x.to_vec();
        for (i, y) in y.chunks_exact_mut(d).enumerate() {
            let (row, h) = (i / (heads.q + heads.k), i % (heads.q + heads.k));
            if let Some(norm) = heads.norm {
                let mean = y.iter().map(|x| x * x).sum::<f64>() / d as f64;
                let weight = weights[usize::from(h >= heads.q)];
                for (j, y) in y.iter_mut().enumerate() {
                    *y *= weight.map_or(1.0, |w| w[j]) / (mean + f64::from(norm.eps)).sqrt();
                }
            }
            let Some(rope) = heads.rope else { continue };
            let n = y.to_vec();
            for j in 0..d / 2 {
                let at = row % length * (d / 2) + j;
                let (cos, sin) = (f64::from(rope.cos[at]), f64::from(rope.sin[at]));
                y[j] = n[j] * cos - n[j + d / 2] * sin;
                y[j + d / 2] = n[j + d / 2] * cos + n[j] * sin;
            }
        }
        y
    }

    /// Forward and backward, by all instructions and threads, against the definition and its differences.
    fn is_the_definition(heads: Heads, length: usize) {
        let (n, columns, d) = (3 * length, heads.columns(), heads.width);
        let (x, dy) = (numbers("x", n * columns, 1.0), numbers("dy", n * columns, 1.0));
        let strided = |x: &[f32], stride: usize| -> Vec<f32> {
            x.chunks_exact(columns)
                .flat_map(|row| row.iter().copied().chain(vec![7.0; stride - columns]))
                .collect()
        };
        let dense = |x: &[f32], stride: usize| -> Vec<f32> {
            assert!(x.chunks_exact(stride).all(|row| row[columns..].iter().all(|x| *x == 7.0)));
            x.chunks_exact(stride).flat_map(|row| &row[..columns]).copied().collect()
        };
        let found = same_everywhere(|team| {
            let (x, mut y) = (strided(&x, columns + 3), vec![7.0; n * (columns + 5)]);
            forward(team, heads, |i| i % length, &x, columns + 3, &mut y, columns + 5);
            let mut dx = strided(&dy, columns + 5);
            let (mut dq, mut dk) = (vec![1.0; d], vec![1.0; d]);
            let has = |weight: fn(&QkNorm) -> bool| heads.norm.as_ref().is_some_and(weight);
            let gradients = QkGradients {
                q: has(|norm| norm.q.is_some()).then_some(&mut dq[..]),
                k: has(|norm| norm.k.is_some()).then_some(&mut dk[..]),
            };
            backward(team, heads, length, &x, columns + 3, &mut dx, columns + 5, gradients);
            vec![dense(&y, columns + 5), dense(&dx, columns + 5), dq, dk]
        });
        let weights = [heads.norm.and_then(|norm| norm.q), heads.norm.and_then(|norm| norm.k)];
        let of = |weights: [Option<&[f64]>; 2], x: &[f64]| -> f64 {
            plain(heads, weights, length, x).iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum()
        };
        let own: Vec<_> = weights.iter().map(|w| w.map(wide)).collect();
        let own = [own[0].as_deref(), own[1].as_deref()];
        near("y", &found[0], &plain(heads, own, length, &wide(&x)), 2e-6);
        near_differences("dx", &found[1], &x, |x| of(own, x), 1e-5);
        for (kind, weight) in weights.iter().enumerate() {
            let found: Vec<f32> = found[2 + kind].iter().map(|sum| sum - 1.0).collect();
            let Some(weight) = weight else {
                assert!(found.iter().all(|sum| *sum == 0.0));
                continue;
            };
            let loss = |w: &[f64]| {
                let mut all = own;
                all[kind] = Some(w);
                of(all, &wide(&x))
            };
            near_differences("dweight", &found, weight, loss, 5e-5);
        }
    }

    #[test]
    fn heads_are_normalized_and_rotated() {
        // Halves below, of, and beyond a vector, and beyond with a rest.
        for d in [6, 32, 64, 88] {
            let rope = Rope::new(37, d, 10_000.0, None);
            let (q, k) = (numbers("wq", d, 1.0), numbers("wk", d, 1.0));
            let norm = QkNorm { eps: 1e-3, q: Some(&q), k: Some(&k) };
            let heads = Heads { q: 3, k: 1, width: d, norm: Some(norm), rope: Some(&rope) };
            is_the_definition(heads, 37);
            let bare = QkNorm { q: None, k: None, ..norm };
            is_the_definition(Heads { norm: Some(bare), ..heads }, 11);
            is_the_definition(Heads { norm: None, ..heads }, 11);
            is_the_definition(Heads { rope: None, ..heads }, 11);
        }
    }

    #[test]
    fn rotation_is_that_of_its_position() {
        let rope = Rope::new(9, 4, 100.0, None);
        // Frequencies 1 and 1/10, at positions 7 and 8.
        let mut y = vec![0.0; 8];
        let heads = Heads { q: 1, k: 0, width: 4, norm: None, rope: Some(&rope) };
        forward(&Team::new(1), heads, |i| 7 + i % 2, &[1.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0, 2.0], 4, &mut y, 4);
        let expected: Vec<f64> = [7.0, 8.0]
            .iter()
            .flat_map(|t: &f64| [t.cos(), -2.0 * (t / 10.0).sin(), t.sin(), 2.0 * (t / 10.0).cos()])
            .collect();
        near("y", &y, &expected, 1e-6);
    }

    /// What `_compute_yarn_parameters` of transformers 5.24 gives for `rope_theta` 10,000, a head of 16, a factor
    /// of 4 and 1,024 original positions: the ramp runs from index 1 to 5.
    #[test]
    fn yarn_divides_slow_frequencies() {
        let yarn = Yarn {
            factor: 4.0,
            original_length: 1024,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 0.1 * 4f64.ln() + 1.0,
        };
        let found: Vec<f64> = (0..8).map(|i| frequency(i, 8, 10_000.0, Some(yarn))).collect();
        let expected: [f64; 8] = [
            1.0,
            0.316_227_763_9,
            0.081_250_004_47,
            0.019_764_237_11,
            0.004_375_000_019,
            0.000_790_569_465_6,
            0.000_250_000_011_9,
            0.000_079_056_946_56,
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7 * expected, "{found}, not {expected}");
        }
        let rope = Rope::new(2, 16, 10_000.0, Some(yarn));
        assert!((f64::from(rope.cos[0]) - 1.138_629_436).abs() < 1e-7);
        assert!((f64::from(rope.sin[8 + 2]) - 1.138_629_436 * expected[2].sin()).abs() < 1e-7);
    }
}
