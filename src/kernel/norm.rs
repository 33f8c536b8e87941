//! LayerNorm (Ba, Kiros and Hinton, 2016) and RMSNorm (Zhang and Sennrich, 2019), each row by itself:
//! `y = (x - mean) · rstd · weight + bias` with `rstd = 1 / sqrt(mean((x - mean)²) + eps)`. RMSNorm takes 0
//! for the mean.

use super::simd::{F, LANES, Simd, simd};
use super::team::{Parts, Team};

/// Rows of a task.
const GRAIN: usize = 16;

/// Rows of a task of [`backward`].
const BACK_GRAIN: usize = 64;

/// What rows are normalized by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Mean and standard deviation.
    Layer,
    /// The root of the mean square.
    Rms,
}

/// A norm and its parameters.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub kind: Kind,
    /// Added to the variance, or the mean square.
    pub eps: f32,
    /// `[C]`; none is 1.
    pub weight: Option<&'a [f32]>,
    /// `[C]`; none is 0.
    pub bias: Option<&'a [f32]>,
    /// Whether to round as ggml does on x86-64 with AVX2 (`ggml_compute_forward_norm_f32` and
    /// `ggml_compute_forward_rms_norm_f32` of its `ggml-cpu/ops.cpp`): statistics are sums in f64, and the bias is
    /// added to a rounded product.
    pub as_ggml: bool,
}

/// The gradients of a norm's parameters, `[C]` each; those that are `None` are not computed.
#[derive(Default)]
pub struct Gradients<'a> {
    pub weight: Option<&'a mut [f32]>,
    pub bias: Option<&'a mut [f32]>,
}

/// `x, y: [N, C]`; `stats: [N, 2]` takes each row's mean (RMSNorm: 0) and rstd, for [`backward`].
pub fn forward(team: &Team, norm: Norm, c: usize, x: &[f32], y: &mut [f32], stats: &mut [f32]) {
    let (y, stats) = (Parts::new(y), Parts::new(stats));
    team.ranges(x.len() / c, GRAIN, |rows| {
        let all = rows.start * c..rows.end * c;
        // SAFETY: the ranges of rows are disjoint.
        let (y, stats) = unsafe { (y.take(all.clone()), stats.take(rows.start * 2..rows.end * 2)) };
        forward_rows(team.isa, norm, c, &x[all], y, stats);
    });
}

/// The `y` of [`forward`], from its stats.
pub fn recompute(team: &Team, norm: Norm, c: usize, x: &[f32], stats: &[f32], y: &mut [f32]) {
    let y = Parts::new(y);
    team.ranges(x.len() / c, GRAIN, |rows| {
        let all = rows.start * c..rows.end * c;
        // SAFETY: the ranges of rows are disjoint.
        let y = unsafe { y.take(all.clone()) };
        recompute_rows(team.isa, norm, c, &x[all], &stats[rows.start * 2..rows.end * 2], y);
    });
}

/// Adds to `dx: [N, C]` the gradient of x for the gradient of y, `dy: [N, C]`, and to the gradients of the
/// parameters theirs, row after row.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    team: &Team,
    norm: Norm,
    c: usize,
    x: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    gradients: Gradients,
) {
    let n = x.len() / c;
    let dx = Parts::new(dx);
    let (dweight, dbias) = (gradients.weight.map(Parts::new), gradients.bias.map(Parts::new));
    let by_row = n.div_ceil(BACK_GRAIN);
    let by_column = if dweight.is_some() || dbias.is_some() { c.div_ceil(LANES) } else { 0 };
    // The sums over the rows are tasks of the same loop.
    team.each(by_row + by_column, |task| {
        if task < by_row {
            let rows = task * BACK_GRAIN..((task + 1) * BACK_GRAIN).min(n);
            let all = rows.start * c..rows.end * c;
            // SAFETY: the ranges of rows are disjoint.
            let dx = unsafe { dx.take(all.clone()) };
            let stats = &stats[rows.start * 2..rows.end * 2];
            input_rows(team.isa, norm, c, &x[all.clone()], stats, &dy[all], dx);
        } else {
            let from = (task - by_row) * LANES;
            let columns = from..(from + LANES).min(c);
            // SAFETY: the ranges of columns are disjoint.
            let dweight = dweight.map(|sum| unsafe { sum.take(columns.clone()) });
            let dbias = dbias.map(|sum| unsafe { sum.take(columns.clone()) });
            columns_of(team.isa, c, columns, x, stats, dy, dweight, dbias);
        }
    });
}

/// Calls `$f`, whose last two const parameters say whether there is a weight and a bias, so that no branch
/// is left in its loops.
macro_rules! with_or_without {
    ($weight:expr, $bias:expr, $f:ident::<$s:ident>($($arg:expr),*)) => {
        match ($weight.is_some(), $bias.is_some()) {
            (true, true) => $f::<$s, true, true>($($arg),*),
            (true, false) => $f::<$s, true, false>($($arg),*),
            (false, true) => $f::<$s, false, true>($($arg),*),
            (false, false) => $f::<$s, false, false>($($arg),*),
        }
    };
}

simd! {
    fn forward_rows<S>(norm: Norm, c: usize, x: &[f32], y: &mut [f32], stats: &mut [f32]) {
        with_or_without!(norm.weight, norm.bias, forward_of::<S>(norm, c, x, y, stats));
    }

    fn recompute_rows<S>(norm: Norm, c: usize, x: &[f32], stats: &[f32], y: &mut [f32]) {
        with_or_without!(norm.weight, norm.bias, recompute_of::<S>(norm, c, x, stats, y));
    }

    fn input_rows<S>(norm: Norm, c: usize, x: &[f32], stats: &[f32], dy: &[f32], dx: &mut [f32]) {
        match norm.weight {
            Some(_) => input_of::<S, true>(norm, c, x, stats, dy, dx),
            None => input_of::<S, false>(norm, c, x, stats, dy, dx),
        }
    }

    /// `dweight += Σ dy · n` and `dbias += Σ dy` over the rows in their order, of one vector of columns.
    fn columns_of<S>(
        c: usize,
        columns: std::ops::Range<usize>,
        x: &[f32],
        stats: &[f32],
        dy: &[f32],
        dweight: Option<&mut [f32]>,
        dbias: Option<&mut [f32]>,
    ) {
        with_or_without!(dweight, dbias, sum_rows::<S>(c, columns, x, stats, dy, dweight, dbias));
    }
}

/// Mean and rstd of a row.
#[inline(always)]
fn stats_of<S: Simd>(norm: Norm, x: &[f32]) -> (f32, f32) {
    if norm.as_ggml {
        return stats_as_ggml(norm, x);
    }
    let c = x.len() as f32;
    let mean = match norm.kind {
        Kind::Layer => {
            let mut sum = F::<S>::splat(0.0);
            for x in x.chunks(LANES) {
                sum = sum + F::load_some(x, 0.0);
            }
            sum.sum() / c
        }
        Kind::Rms => 0.0,
    };
    let mut squares = F::<S>::splat(0.0);
    for x in x.chunks(LANES) {
        // Lanes behind the last column are the mean, which adds nothing.
        let d = F::load_some(x, mean) - F::splat(mean);
        squares = d.mul_add(d, squares);
    }
    let variance = F::<S>::splat(squares.sum()) / F::splat(c) + F::splat(norm.eps);
    (mean, (F::splat(1.0) / variance.sqrt()).to_array()[0])
}

/// The same as ggml has it. Squares of differences are added as a tree of eight in f32 (`ggml_vec_cvar_f32`), all
/// else in f64.
#[inline(always)]
fn stats_as_ggml(norm: Norm, x: &[f32]) -> (f32, f32) {
    let (mean, sum) = match norm.kind {
        Kind::Layer => {
            let mean = sum_in_f64(x, |x| x) as f32 / x.len() as f32;
            let square = |x: f32| (x - mean) * (x - mean);
            let (eights, rest) = x.as_chunks::<8>();
            let of_eights = eights.iter().map(|x| {
                let [a, b, c, d, e, f, g, h] = x.map(square);
                f64::from(((a + e) + (c + g)) + ((b + f) + (d + h)))
            });
            (mean, of_eights.chain(rest.iter().map(|x| f64::from(square(*x)))).sum::<f64>())
        }
        Kind::Rms => (0.0, sum_in_f64(x, |x| x * x)),
    };
    let variance = (sum / x.len() as f64) as f32;
    (mean, 1.0 / (variance + norm.eps).sqrt())
}

/// `Σ f(x)`, in eight sums, so that it takes vectors. ggml has one, but the bits that are lost are far behind
/// those of an f32.
#[inline(always)]
fn sum_in_f64(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let (eights, rest) = x.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for x in eights {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(f(*x)));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(f(*x))).sum::<f64>()
}

#[inline(always)]
fn forward_of<S: Simd, const WEIGHT: bool, const BIAS: bool>(
    norm: Norm,
    c: usize,
    x: &[f32],
    y: &mut [f32],
    stats: &mut [f32],
) {
    for ((x, y), stats) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(stats.chunks_exact_mut(2)) {
        (stats[0], stats[1]) = stats_of::<S>(norm, x);
        normalize::<S, WEIGHT, BIAS>(norm, x, stats, y);
    }
}

#[inline(always)]
fn recompute_of<S: Simd, const WEIGHT: bool, const BIAS: bool>(
    norm: Norm,
    c: usize,
    x: &[f32],
    stats: &[f32],
    y: &mut [f32],
) {
    for ((x, y), stats) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(stats.chunks_exact(2)) {
        normalize::<S, WEIGHT, BIAS>(norm, x, stats, y);
    }
}

/// One row.
#[inline(always)]
fn normalize<S: Simd, const WEIGHT: bool, const BIAS: bool>(
    norm: Norm,
    x: &[f32],
    stats: &[f32],
    y: &mut [f32],
) {
    let (mean, rstd) = (F::<S>::splat(stats[0]), F::<S>::splat(stats[1]));
    let (weight, bias) = (of_row(norm.weight, x), of_row(norm.bias, x));
    let vectors = x.chunks(LANES).zip(weight.chunks(LANES)).zip(bias.chunks(LANES));
    for (((x, w), b), y) in vectors.zip(y.chunks_mut(LANES)) {
        let n = (F::<S>::load_some(x, 0.0) - mean) * rstd;
        let all = match (WEIGHT, BIAS) {
            (true, true) if norm.as_ggml => n * F::load_some(w, 0.0) + F::load_some(b, 0.0),
            (true, true) => n.mul_add(F::load_some(w, 0.0), F::load_some(b, 0.0)),
            (true, false) => n * F::load_some(w, 0.0),
            (false, true) => n + F::load_some(b, 0.0),
            (false, false) => n,
        };
        all.store_some(y);
    }
}

/// A parameter cut to the length of a row, which spares its loops checks of two lengths. Where there is none,
/// the row itself, as a placeholder that is not read.
#[inline(always)]
fn of_row<'a>(parameter: Option<&'a [f32]>, x: &'a [f32]) -> &'a [f32] {
    &parameter.unwrap_or(x)[..x.len()]
}

/// With `n = (x - mean) · rstd` and `h = dy · weight`: `dx += rstd (h - mean(h) - n mean(h n))`, without
/// `mean(h)` where the mean is not subtracted.
#[inline(always)]
fn input_of<S: Simd, const WEIGHT: bool>(
    norm: Norm,
    c: usize,
    x: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
    for (((x, dy), dx), stats) in rows.zip(stats.chunks_exact(2)) {
        let (mean, rstd) = (F::<S>::splat(stats[0]), F::<S>::splat(stats[1]));
        let weight = of_row(norm.weight, x);
        let (mut sum, mut products) = (F::<S>::splat(0.0), F::<S>::splat(0.0));
        for ((x, dy), w) in x.chunks(LANES).zip(dy.chunks(LANES)).zip(weight.chunks(LANES)) {
            let h = weighted::<S, WEIGHT>(dy, w);
            let n = (F::load_some(x, 0.0) - mean) * rstd;
            sum = sum + h;
            products = h.mul_add(n, products);
        }
        let mean_h = match norm.kind {
            Kind::Layer => F::splat(sum.sum() / c as f32),
            Kind::Rms => F::splat(0.0),
        };
        let mean_hn = F::splat(products.sum() / c as f32);
        let vectors = x.chunks(LANES).zip(dy.chunks(LANES)).zip(weight.chunks(LANES));
        for (((x, dy), w), dx) in vectors.zip(dx.chunks_mut(LANES)) {
            let h = weighted::<S, WEIGHT>(dy, w);
            let n = (F::load_some(x, 0.0) - mean) * rstd;
            let d = h - mean_h - n * mean_hn;
            d.mul_add(rstd, F::load_some(dx, 0.0)).store_some(dx);
        }
    }
}

/// `dy · weight`, one vector.
#[inline(always)]
fn weighted<S: Simd, const WEIGHT: bool>(dy: &[f32], w: &[f32]) -> F<S> {
    let dy = F::load_some(dy, 0.0);
    if WEIGHT { dy * F::load_some(w, 0.0) } else { dy }
}

#[inline(always)]
fn sum_rows<S: Simd, const WEIGHT: bool, const BIAS: bool>(
    c: usize,
    columns: std::ops::Range<usize>,
    x: &[f32],
    stats: &[f32],
    dy: &[f32],
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) {
    let start = |sum: &Option<&mut [f32]>| sum.as_deref().map_or(F::splat(0.0), |sum| F::load_some(sum, 0.0));
    let (mut w, mut b): (F<S>, F<S>) = (start(&dweight), start(&dbias));
    for ((x, dy), stats) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(stats.chunks_exact(2)) {
        let dy = F::load_some(&dy[columns.clone()], 0.0);
        if WEIGHT {
            let n = (F::load_some(&x[columns.clone()], 0.0) - F::splat(stats[0])) * F::splat(stats[1]);
            w = dy.mul_add(n, w);
        }
        if BIAS {
            b = b + dy;
        }
    }
    if let Some(dweight) = dweight {
        w.store_some(dweight);
    }
    if let Some(dbias) = dbias {
        b.store_some(dbias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    /// The definition in f64.
    fn plain(kind: Kind, eps: f32, c: usize, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let row = |x: &[f64]| {
            let mean = match kind {
                Kind::Layer => x.iter().sum::<f64>() / c as f64,
                Kind::Rms => 0.0,
            };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
            let deviation = (variance + f64::from(eps)).sqrt();
            let both = weight.iter().zip(bias);
            x.iter().zip(both).map(|(x, (w, b))| (x - mean) / deviation * w + b).collect::<Vec<_>>()
        };
        x.chunks_exact(c).flat_map(row).collect()
    }

    /// Both kinds, with and without weight and bias, rows that fill no vector, several tasks.
    #[test]
    fn it_is_its_definition_forward_and_backward() {
        for (n, c) in [(1, 3), (3, 16), (17, 37), (131, 70)] {
            for (kind, eps) in [(Kind::Layer, 1e-5), (Kind::Rms, 1e-6)] {
                for (weight, bias) in [(true, true), (true, false), (false, true), (false, false)] {
                    for as_ggml in [false, true] {
                        check(n, c, kind, eps, weight, bias, as_ggml);
                    }
                }
            }
        }
    }

    /// What ggml computes, in scalars and in its order.
    #[test]
    fn its_bits_are_those_of_ggml() {
        for (kind, c) in [(Kind::Layer, 256), (Kind::Layer, 83), (Kind::Rms, 256), (Kind::Rms, 83)] {
            let x: Vec<f32> = numbers("x", c, 2.0).iter().map(|x| x + 0.5).collect();
            let (weight, bias) = (numbers("weight", c, 1.0), numbers("bias", c, 1.0));
            let norm = Norm { kind, eps: 1e-5, weight: Some(&weight), bias: Some(&bias), as_ggml: true };
            let found = same_everywhere(|team| {
                let (mut y, mut stats) = (vec![0.0; c], vec![0.0; 2]);
                forward(team, norm, c, &x, &mut y, &mut stats);
                vec![y]
            });
            let mean = match kind {
                Kind::Layer => x.iter().map(|x| f64::from(*x)).sum::<f64>() as f32 / c as f32,
                Kind::Rms => 0.0,
            };
            let squares: Vec<f32> = x.iter().map(|x| (x - mean) * (x - mean)).collect();
            let mut sum = 0.0;
            let trees = if kind == Kind::Layer { c / 8 } else { 0 };
            for s in squares.chunks_exact(8).take(trees) {
                let halves: Vec<f32> = (0..4).map(|i| s[i] + s[i + 4]).collect();
                sum += f64::from((halves[0] + halves[2]) + (halves[1] + halves[3]));
            }
            squares[8 * trees..].iter().for_each(|s| sum += f64::from(*s));
            let rstd = 1.0 / ((sum / c as f64) as f32 + norm.eps).sqrt();
            let expected: Vec<f32> = (0..c).map(|i| (x[i] - mean) * rstd * weight[i] + bias[i]).collect();
            assert_eq!(found[0], expected, "{kind:?} {c}");
        }
    }

    fn check(n: usize, c: usize, kind: Kind, eps: f32, has_weight: bool, has_bias: bool, as_ggml: bool) {
        let what = |part: &str| format!("{part} of {kind:?} {n} {c} {has_weight} {has_bias} {as_ggml}");
        // A mean apart from 0.
        let x: Vec<f32> = numbers("x", n * c, 2.0).iter().map(|x| x + 0.5).collect();
        let (weight, bias) = (numbers("weight", c, 1.0), numbers("bias", c, 1.0));
        let (dy, before) = (numbers("dy", n * c, 1.0), numbers("before", n * c + 2 * c, 1.0));
        let (weight, bias) = (has_weight.then_some(&weight[..]), has_bias.then_some(&bias[..]));
        let norm = Norm { kind, eps, weight, bias, as_ggml };
        let found = same_everywhere(|team| {
            let (mut y, mut again, mut stats) = (vec![0.0; n * c], vec![0.0; n * c], vec![0.0; 2 * n]);
            forward(team, norm, c, &x, &mut y, &mut stats);
            recompute(team, norm, c, &x, &stats, &mut again);
            assert!(y == again, "{}", what("y"));
            let mut sums = before.clone();
            let (dx, parameters) = sums.split_at_mut(n * c);
            let (dweight, dbias) = parameters.split_at_mut(c);
            let gradients =
                Gradients { weight: has_weight.then_some(dweight), bias: has_bias.then_some(dbias) };
            backward(team, norm, c, &x, &stats, &dy, dx, gradients);
            vec![y, sums]
        });
        let (ones, zeros) = (vec![1.0; c], vec![0.0; c]);
        let (weight, bias) = (weight.map_or(ones, wide), bias.map_or(zeros, wide));
        let (x_, dy) = (wide(&x), wide(&dy));
        let loss = |x: &[f64], weight: &[f64], bias: &[f64]| {
            let y = plain(kind, eps, c, x, weight, bias);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        near(&what("y"), &found[0], &plain(kind, eps, c, &x_, &weight, &bias), 1e-5);
        let added: Vec<f32> = found[1].iter().zip(&before).map(|(after, before)| after - before).collect();
        let (dx, parameters) = added.split_at(n * c);
        let (dweight, dbias) = parameters.split_at(c);
        let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
        near_differences(&what("dx"), dx, &x, |x| loss(x, &weight, &bias), 2e-5);
        if has_weight {
            near_differences(&what("dweight"), dweight, &narrow(&weight), |w| loss(&x_, w, &bias), 2e-5);
        }
        if has_bias {
            near_differences(&what("dbias"), dbias, &narrow(&bias), |b| loss(&x_, &weight, b), 2e-5);
        }
        assert!(has_weight || dweight.iter().all(|d| *d == 0.0), "{}", what("dweight"));
        assert!(has_bias || dbias.iter().all(|d| *d == 0.0), "{}", what("dbias"));
    }
}
