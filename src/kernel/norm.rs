//! Layer norm (Ba, Kiros and Hinton, 2016): `y = (x - mean) / sqrt(variance + 1e-5) · weight + bias`, each
//! row by itself.

use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// Added to the variance.
const EPSILON: f32 = 1e-5;

/// Rows that are worth a task.
const GRAIN: usize = 16;

/// The norm's numbers.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
}

/// `x, y: [N, C]`; `moments: [N, 2]` takes each row's mean and 1 / deviation, for [`backward`].
pub fn forward(team: &Team, norm: Norm, x: &[f32], y: &mut [f32], moments: &mut [f32]) {
    let c = norm.weight.len();
    let (y, moments) = (Parts::new(y), Parts::new(moments));
    team.ranges(x.len() / c, GRAIN, |rows| {
        // SAFETY: the ranges of rows are disjoint.
        let (y, moments) =
            unsafe { (y.take(rows.start * c..rows.end * c), moments.take(rows.start * 2..rows.end * 2)) };
        forward_rows(team.isa, norm, &x[rows.start * c..rows.end * c], y, moments);
    });
}

/// What [`forward`] gave, from its moments.
pub fn again(team: &Team, norm: Norm, x: &[f32], moments: &[f32], y: &mut [f32]) {
    let c = norm.weight.len();
    let y = Parts::new(y);
    team.ranges(x.len() / c, GRAIN, |rows| {
        // SAFETY: the ranges of rows are disjoint.
        let y = unsafe { y.take(rows.start * c..rows.end * c) };
        let moments = &moments[rows.start * 2..rows.end * 2];
        again_rows(team.isa, norm, &x[rows.start * c..rows.end * c], moments, y);
    });
}

simd! {
    /// [`forward`] by one thread.
    pub fn forward_rows<S>(norm: Norm, x: &[f32], y: &mut [f32], moments: &mut [f32]) {
        let c = norm.weight.len();
        let n = F::<S>::splat(c as f32);
        for ((x, y), moments) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(moments.chunks_exact_mut(2)) {
            let mut sum = F::<S>::splat(0.0);
            for x in x.chunks(LANES) {
                sum = sum + F::load_some(x, 0.0);
            }
            let mean = sum.sum() / c as f32;
            let mut squares = F::<S>::splat(0.0);
            for x in x.chunks(LANES) {
                // What is missing of the last vector is the mean, which adds nothing.
                let d = F::load_some(x, mean) - F::splat(mean);
                squares = d.mul_add(d, squares);
            }
            let variance = F::<S>::splat(squares.sum()) / n + F::splat(EPSILON);
            let inverse = (F::splat(1.0) / variance.sqrt()).to_array()[0];
            (moments[0], moments[1]) = (mean, inverse);
            row::<S>(norm, x, mean, inverse, y);
        }
    }

    fn again_rows<S>(norm: Norm, x: &[f32], moments: &[f32], y: &mut [f32]) {
        let c = norm.weight.len();
        for ((x, y), moments) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(moments.chunks_exact(2)) {
            row::<S>(norm, x, moments[0], moments[1], y);
        }
    }

    /// With `n = (x - mean) · inverse` and `h = dy · weight`: `dx += inverse (h - mean(h) - n mean(h n))`.
    fn input_rows<S>(weight: &[f32], x: &[f32], moments: &[f32], dy: &[f32], dx: &mut [f32]) {
        let c = weight.len();
        let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
        for (((x, dy), dx), moments) in rows.zip(moments.chunks_exact(2)) {
            let (mean, inverse) = (F::<S>::splat(moments[0]), F::<S>::splat(moments[1]));
            let (mut sum, mut products) = (F::<S>::splat(0.0), F::<S>::splat(0.0));
            for ((x, dy), w) in x.chunks(LANES).zip(dy.chunks(LANES)).zip(weight.chunks(LANES)) {
                let h = F::load_some(dy, 0.0) * F::load_some(w, 0.0);
                let n = (F::load_some(x, 0.0) - mean) * inverse;
                sum = sum + h;
                products = h.mul_add(n, products);
            }
            let mean_h = F::splat(sum.sum() / c as f32);
            let mean_hn = F::splat(products.sum() / c as f32);
            let vectors = x.chunks(LANES).zip(dy.chunks(LANES)).zip(weight.chunks(LANES));
            for (((x, dy), w), dx) in vectors.zip(dx.chunks_mut(LANES)) {
                let h = F::<S>::load_some(dy, 0.0) * F::load_some(w, 0.0);
                let n = (F::load_some(x, 0.0) - mean) * inverse;
                let d = h - mean_h - n * mean_hn;
                d.mul_add(inverse, F::load_some(dx, 0.0)).store_some(dx);
            }
        }
    }

    /// `dweight += Σ dy n` and `dbias += Σ dy` over the rows in their order, of one vector of columns.
    fn column<S>(x: &[f32], moments: &[f32], dy: &[f32], c: usize, from: usize, dw: &mut [f32], db: &mut [f32]) {
        let (mut w, mut b) = (F::<S>::load_some(dw, 0.0), F::<S>::load_some(db, 0.0));
        let to = from + dw.len();
        for ((x, dy), moments) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(moments.chunks_exact(2)) {
            let n = (F::load_some(&x[from..to], 0.0) - F::splat(moments[0])) * F::splat(moments[1]);
            let dy = F::load_some(&dy[from..to], 0.0);
            w = dy.mul_add(n, w);
            b = b + dy;
        }
        w.store_some(dw);
        b.store_some(db);
    }
}

#[inline(always)]
fn row<S: super::simd::Simd>(norm: Norm, x: &[f32], mean: f32, inverse: f32, y: &mut [f32]) {
    let (mean, inverse) = (F::<S>::splat(mean), F::<S>::splat(inverse));
    let vectors = x.chunks(LANES).zip(norm.weight.chunks(LANES)).zip(norm.bias.chunks(LANES));
    for (((x, w), b), y) in vectors.zip(y.chunks_mut(LANES)) {
        let n = (F::<S>::load_some(x, 0.0) - mean) * inverse;
        n.mul_add(F::load_some(w, 0.0), F::load_some(b, 0.0)).store_some(y);
    }
}

/// Adds to `dx: [N, C]` what `dy: [N, C]` says of x, and to `dweight`, `dbias: [C]`.
pub fn backward(
    team: &Team,
    weight: &[f32],
    x: &[f32],
    moments: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    (dweight, dbias): (&mut [f32], &mut [f32]),
) {
    let c = weight.len();
    let dx = Parts::new(dx);
    let (dw, db) = (Parts::new(dweight), Parts::new(dbias));
    let n = x.len() / c;
    let by_row = n.div_ceil(64);
    // The sums down the columns go along with the rows, in one loop.
    team.each(by_row + c.div_ceil(LANES), |task| {
        if task < by_row {
            let rows = task * 64..(task * 64 + 64).min(n);
            let all = rows.start * c..rows.end * c;
            // SAFETY: the ranges of rows are disjoint.
            let dx = unsafe { dx.take(all.clone()) };
            let moments = &moments[rows.start * 2..rows.end * 2];
            input_rows(team.isa, weight, &x[all.clone()], moments, &dy[all], dx);
        } else {
            let from = (task - by_row) * LANES;
            let columns = from..(from + LANES).min(c);
            // SAFETY: the ranges of columns are disjoint.
            let (dw, db) = unsafe { (dw.take(columns.clone()), db.take(columns)) };
            column(team.isa, x, moments, dy, c, from, dw, db);
        }
    });
}
