//! Muon (Jordan et al., 2024): momentum, made orthogonal by Newton and Schulz's iteration.
//!
//! Of `X = U S Vᵀ`, scaled so that no singular value is above 1, five steps `X ← (a + b X Xᵀ + c (X Xᵀ)²) X`
//! bring all singular values that are not tiny near 1, and leave `U` and `Vᵀ` as they are. The products are
//! f32 whatever those of the layers are: they are a small part of a step, and bits of bf16 would be amplified.

use std::cell::RefCell;

use super::Buffer;
use super::adamw::squares_part;
use super::matmul::{Product, Start, View};
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// The polynomial of a step, chosen for a steep rise at 0 (Jordan, 2024).
const POLYNOMIAL: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Steps of the iteration.
const STEPS: usize = 5;

/// A matrix `[rows, columns]` within flat memory, its rows `stride` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Where its first number lies among weights and gradients.
    pub start: usize,
    /// Where it lies among momenta.
    pub momentum: usize,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl Matrix {
    /// Numbers of the iteration's memory: two matrices like this, two squares of its smaller side.
    fn scratch(&self) -> usize {
        let small = self.rows.min(self.columns);
        2 * (self.rows * self.columns + small * small)
    }
}

/// What one update does to every matrix.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Multiplies the gradient: what makes a mean of a sum, and clipping.
    pub scale: f32,
    pub momentum: f32,
    /// The learning rate, of a matrix that is not higher than wide.
    pub rate: f64,
    /// Multiplies the weight first: decoupled decay.
    pub keep: f32,
}

/// The flat memory in which matrices lie.
pub struct State<'a> {
    pub weights: &'a mut [f32],
    /// Read, and set to 0 for the next step.
    pub gradient: &'a mut [f32],
    pub momentum: &'a mut [f32],
}

thread_local! {
    /// The iteration's memory.
    static SCRATCH: RefCell<Buffer> = RefCell::new(Buffer::new(0));
}

/// Updates the matrices, which must not overlap. Each is one thread's work where there are enough of them,
/// else all of the team's, one after the other.
pub fn update(team: &Team, how: Update, matrices: &[Matrix], state: State) {
    let state = [state.weights, state.gradient, state.momentum].map(Parts::new);
    let one = |i: usize| {
        SCRATCH.with_borrow_mut(|scratch| {
            let len = matrices[i].scratch();
            if scratch.len() < len {
                *scratch = Buffer::new(len);
            }
            update_one(team, how, matrices[i], state, &mut scratch[..len]);
        });
    };
    if matrices.len() >= 2 * team.threads() {
        // Loops within a task are its thread's own.
        team.each(matrices.len(), one);
    } else {
        (0..matrices.len()).for_each(one);
    }
}

fn update_one(team: &Team, how: Update, at: Matrix, state: [Parts; 3], scratch: &mut [f32]) {
    let [weights, gradient, momentum] = state;
    let (mut x, rest) = scratch.split_at_mut(at.rows * at.columns);
    let row = |start: usize, i: usize| start + i * at.stride..start + i * at.stride + at.columns;
    for (i, x) in x.chunks_mut(at.columns).enumerate() {
        // SAFETY: matrices do not overlap, and each is worked on by one task.
        let [g, m] = [(gradient, at.start), (momentum, at.momentum)]
            .map(|(part, start)| unsafe { part.take(row(start, i)) });
        nesterov(team.isa, how, g, m, x);
    }
    let (y, rest) = rest.split_at_mut(at.rows * at.columns);
    x = orthogonalize(team, (at.rows, at.columns), x, y, rest);
    // As wide matrices change by their rows, high ones change by their columns: what a step does to the
    // output is alike (Jordan's scale, where our matrices are transposed).
    let step = how.rate * (at.columns as f64 / at.rows as f64).max(1.0).sqrt();
    for (i, x) in x.chunks(at.columns).enumerate() {
        // SAFETY: as above.
        apply(team.isa, how.keep, step as f32, unsafe { weights.take(row(at.start, i)) }, x);
    }
}

/// `x` with its singular values near 1, in its own memory or that of `y`, which is as long. `squares` holds
/// two squares of the smaller side.
fn orthogonalize<'a>(
    team: &Team,
    (rows, columns): (usize, usize),
    mut x: &'a mut [f32],
    mut y: &'a mut [f32],
    squares: &mut [f32],
) -> &'a mut [f32] {
    // Frobenius' norm is no less than the greatest singular value.
    let norm = x.chunks(columns).map(|row| f64::from(squares_part(team.isa, row))).sum::<f64>().sqrt();
    multiply(team.isa, (1.0 / (norm + 1e-7)) as f32, x);
    let small = rows.min(columns);
    let (gram, square) = squares.split_at_mut(small * small);
    for _ in 0..STEPS {
        let view = View::new(x, columns);
        let (left, right) = if rows > columns { (view.t(), view) } else { (view, view.t()) };
        symmetric(team, small, rows.max(columns), left, right, gram);
        symmetric(team, small, small, View::new(gram, small), View::new(gram, small), square);
        polynomial(team.isa, gram, square);
        square.iter_mut().step_by(small + 1).for_each(|diagonal| *diagonal += POLYNOMIAL[0]);
        let factor = View::new(square, small);
        let (left, right) = if rows > columns { (view, factor) } else { (factor, view) };
        product(team, (rows, columns, small), left, right, y);
        std::mem::swap(&mut x, &mut y);
    }
    x
}

/// `c[m, n] = a[m, k] · b[k, n]` in f32.
fn product(team: &Team, (m, n, k): (usize, usize, usize), a: View, b: View, c: &mut [f32]) {
    let product = Product { a, b, k, start: Start::Zero, c: Parts::new(c), stride: n };
    team.ranges(n, 3 * LANES, |columns| product.part(team.isa, 0..m, columns));
}

/// Rows that a symmetric product is made of at a time.
const BLOCK: usize = 6 * LANES;

/// `c[n, n] = a[n, k] · b[k, n]`, which is known to be symmetric: what lies below the diagonal's blocks is
/// copied from above them.
fn symmetric(team: &Team, n: usize, k: usize, a: View, b: View, c: &mut [f32]) {
    let product = Product { a, b, k, start: Start::Zero, c: Parts::new(c), stride: n };
    team.each(n.div_ceil(BLOCK), |block| {
        let first = block * BLOCK;
        product.part(team.isa, first..(first + BLOCK).min(n), first..n);
    });
    for i in BLOCK..n {
        let (above, own) = c.split_at_mut(i * n);
        for j in 0..i / BLOCK * BLOCK {
            own[j] = above[j * n + i];
        }
    }
}

simd! {
    /// `m ← lerp(g, m, momentum)`, `x = lerp(g, m, momentum)` where `g` is the scaled gradient; clears it.
    fn nesterov<S>(how: Update, g: &mut [f32], m: &mut [f32], x: &mut [f32]) {
        let c = F::<S>::splat;
        for ((g, m), x) in g.chunks_mut(LANES).zip(m.chunks_mut(LANES)).zip(x.chunks_mut(LANES)) {
            let gradient = F::<S>::load_some(g, 0.0) * c(how.scale);
            let momentum = (F::load_some(m, 0.0) - gradient).mul_add(c(how.momentum), gradient);
            (momentum - gradient).mul_add(c(how.momentum), gradient).store_some(x);
            momentum.store_some(m);
            c(0.0).store_some(g);
        }
    }

    fn multiply<S>(by: f32, x: &mut [f32]) {
        for x in x.chunks_mut(LANES) {
            (F::<S>::load_some(x, 0.0) * F::splat(by)).store_some(x);
        }
    }

    /// `square ← b · gram + c · square`
    fn polynomial<S>(gram: &[f32], square: &mut [f32]) {
        let [_, b, c] = POLYNOMIAL.map(F::<S>::splat);
        for (gram, square) in gram.chunks(LANES).zip(square.chunks_mut(LANES)) {
            let value = F::load_some(square, 0.0) * c;
            F::load_some(gram, 0.0).mul_add(b, value).store_some(square);
        }
    }

    fn apply<S>(keep: f32, step: f32, w: &mut [f32], x: &[f32]) {
        for (w, x) in w.chunks_mut(LANES).zip(x.chunks(LANES)) {
            let weight = F::<S>::load_some(w, 0.0) * F::splat(keep);
            (weight - F::splat(step) * F::load_some(x, 0.0)).store_some(w);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::kernel::Isa;

    fn normal(n: usize, label: &str) -> Vec<f32> {
        let mut rng = Rng::new(3, label);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// `a[m, k] · b[k, n]`
    fn times(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        let at = |i: usize| (0..k).map(|s| a[i / n * k + s] * b[s * n + i % n]).sum();
        (0..m * n).map(at).collect()
    }

    fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        (0..rows * columns).map(|i| a[i % rows * columns + i / rows]).collect()
    }

    /// The iteration by its definition.
    fn newton_schulz(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut x: Vec<f64> = x.iter().map(|x| x / (norm + 1e-7)).collect();
        for _ in 0..5 {
            let gram = times(&x, &transposed(&x, rows, columns), rows, columns, rows);
            let square = times(&gram, &gram, rows, rows, rows);
            let factor: Vec<f64> = gram.iter().zip(&square).map(|(g, s)| -4.7750 * g + 2.0315 * s).collect();
            let added = times(&factor, &x, rows, rows, columns);
            x = x.iter().zip(added).map(|(x, y)| 3.4445 * x + y).collect();
        }
        x
    }

    /// The squares of the singular values, by Jacobi's rotations of the rows.
    fn squared_singular_values(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        let mut rows: Vec<Vec<f64>> = if rows <= columns { x.to_vec() } else { transposed(x, rows, columns) }
            .chunks(rows.max(columns))
            .map(<[f64]>::to_vec)
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for _ in 0..12 {
            for j in 1..rows.len() {
                let (above, below) = rows.split_at_mut(j);
                let q = &mut below[0];
                for p in above {
                    let (pp, qq, pq) = (dot(p, p), dot(q, q), dot(p, q));
                    if pq.abs() < 1e-14 {
                        continue;
                    }
                    let zeta = (qq - pp) / (2.0 * pq);
                    let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                    let cosine = 1.0 / (1.0 + t * t).sqrt();
                    for (p, q) in p.iter_mut().zip(q.iter_mut()) {
                        (*p, *q) = (cosine * (*p - t * *q), cosine * (*q + t * *p));
                    }
                }
            }
        }
        rows.iter().map(|row| dot(row, row)).collect()
    }

    #[test]
    fn singular_values_come_near_one_as_they_do_in_f64() {
        for (rows, columns) in [(40, 40), (20, 130), (130, 20), (110, 100), (1, 7)] {
            let start = normal(rows * columns, "x");
            let small = rows.min(columns);
            let (mut x, mut y) = (start.clone(), vec![0.0; start.len()]);
            let mut squares = vec![0.0; 2 * small * small];
            let found = orthogonalize(&Team::new(2), (rows, columns), &mut x, &mut y, &mut squares);
            let plain: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
            let expected = newton_schulz(&plain, rows, columns);
            let far = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-4, "{rows} x {columns}: {far} from the definition");
            let found: Vec<f64> = found.iter().map(|x| f64::from(*x)).collect();
            let within = |s: &f64| (0.6..1.3).contains(&s.sqrt());
            let values = squared_singular_values(&found, rows, columns);
            // A random square matrix has one or two values so small that five steps do not lift them.
            let tiny = if rows == columns { 2 } else { 0 };
            let out = values.iter().filter(|s| !within(s)).count();
            assert!(values.iter().all(|s| s.sqrt() < 1.3) && out <= tiny, "{rows} x {columns}: {values:?}");
        }
    }

    /// Two matrices side by side: momentum, scale and decay, on any threads and instructions.
    #[test]
    fn a_step_is_jordans_and_the_same_bits_everywhere() {
        let (rows, columns) = (6, [9, 4]);
        let matrices: Vec<Matrix> = [0, 9]
            .into_iter()
            .zip(columns)
            .map(|(start, columns)| Matrix { start: 2 + start, momentum: start, rows, columns, stride: 13 })
            .collect();
        let how = Update { scale: 0.5, momentum: 0.95, rate: 0.1, keep: 0.99 };
        let run = |threads: usize, isa: Isa| {
            let (mut w, mut m) = (normal(2 + 13 * rows, "w"), normal(13 * rows, "m"));
            let mut g = normal(w.len(), "g");
            let state = State { weights: &mut w, gradient: &mut g, momentum: &mut m };
            update(&Team::with(threads, isa), how, &matrices, state);
            (w, g, m)
        };
        let (w, g, m) = run(1, Isa::best());
        let (before, gradient, momentum) = (normal(w.len(), "w"), normal(w.len(), "g"), normal(m.len(), "m"));
        assert!(g[..2] == gradient[..2] && g[2..].iter().all(|g| *g == 0.0) && w[..2] == before[..2]);
        for at in &matrices {
            let index = |i: usize, start: usize| start + i / at.columns * at.stride + i % at.columns;
            let number = |all: &[f32], i: usize| f64::from(all[i]);
            let numbers = 0..at.rows * at.columns;
            let u: Vec<f64> = numbers
                .clone()
                .map(|i| {
                    let g = 0.5 * number(&gradient, index(i, at.start));
                    let new = 0.05 * g + 0.95 * number(&momentum, index(i, at.momentum));
                    assert!((new - number(&m, index(i, at.momentum))).abs() < 1e-6);
                    0.05 * g + 0.95 * new
                })
                .collect();
            let u = newton_schulz(&u, at.rows, at.columns);
            let rate = 0.1 * (at.columns as f64 / at.rows as f64).max(1.0).sqrt();
            for i in numbers {
                let expected = 0.99 * number(&before, index(i, at.start)) - rate * u[i];
                assert!((expected - number(&w, index(i, at.start))).abs() < 1e-5);
            }
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert!(run(threads, isa) == (w.clone(), g.clone(), m.clone()), "{}", isa.name());
            }
        }
    }
}
