//! Muon (Jordan et al., 2024): momentum, made orthogonal by Newton and Schulz's iteration.
//!
//! Of `X = U S Vᵀ`, scaled so that no singular value is above 1, five steps `X ← P X` with
//! `P = a + b X Xᵀ + c (X Xᵀ)²` bring all singular values that are not tiny near 1, and leave `U` and `Vᵀ` as
//! they are. All P are polynomials of the first `A = X Xᵀ`, so they commute: the iteration runs on symmetric
//! squares of the smaller side alone, `A ← P A P` and `Q ← P Q`, and X is multiplied once, by Q. The products
//! are f32 whatever those of the layers are: A has the squares of the singular values, and needs the digits.

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
    /// Numbers of the iteration's memory: a matrix like this, four squares of its smaller side.
    fn scratch(&self) -> usize {
        let small = self.rows.min(self.columns);
        self.rows * self.columns + 4 * small * small
    }
}

/// Whether matrices at these places share no number.
fn are_apart((a, at): (&Matrix, usize), (b, bt): (&Matrix, usize)) -> bool {
    let end = |m: &Matrix, start: usize| start + (m.rows - 1) * m.stride + m.columns;
    // One behind the other, or columns of one tensor.
    let behind = end(a, at) <= bt;
    behind || a.stride == b.stride && at + a.columns <= bt && bt + b.columns <= at + a.stride
}

/// Matrices of which no two share a number, the largest first: so threads are done at about one time.
#[derive(Debug, Clone)]
pub struct Matrices(Vec<Matrix>);

impl Matrices {
    /// # Panics
    /// When one is empty, or two overlap.
    pub fn new(mut all: Vec<Matrix>) -> Self {
        assert!(
            all.iter().all(|m| m.rows > 0 && m.columns > 0 && m.columns <= m.stride),
            "matrices of numbers"
        );
        let starts: [fn(&Matrix) -> usize; 2] = [|m| m.start, |m| m.momentum];
        for start in starts {
            all.sort_by_key(start);
            for (i, a) in all.iter().enumerate() {
                let mut later = all[i + 1..].iter();
                assert!(later.all(|b| are_apart((a, start(a)), (b, start(b)))), "{a:?} shares numbers");
            }
        }
        all.sort_by_key(|m| std::cmp::Reverse(m.rows * m.columns * m.rows.min(m.columns)));
        Matrices(all)
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

/// Updates the matrices. Each is one thread's work where there are enough of them, else all of the team's,
/// one after the other.
pub fn update(team: &Team, how: Update, Matrices(matrices): &Matrices, state: State) {
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
    let Matrix { rows, columns, stride, .. } = at;
    let (x, squares) = scratch.split_at_mut(rows * columns);
    let row = |start: usize, i: usize| start + i * stride..start + i * stride + columns;
    for (i, x) in x.chunks_mut(columns).enumerate() {
        // SAFETY: matrices do not overlap, and each is worked on by one task.
        let [g, m] = [(gradient, at.start), (momentum, at.momentum)]
            .map(|(part, start)| unsafe { part.take(row(start, i)) });
        nesterov(team.isa, how, g, m, x);
    }
    let factor = orthogonalizer(team, (rows, columns), x, squares);
    // As wide matrices change by their rows, high ones change by their columns: what a step does to the
    // output is alike (Jordan's scale, where our matrices are transposed).
    let step = how.rate * (columns as f64 / rows as f64).max(1.0).sqrt();
    multiply(team.isa, -step as f32, factor);
    for i in 0..rows {
        // SAFETY: as above.
        multiply(team.isa, how.keep, unsafe { weights.take(row(at.start, i)) });
    }
    let small = rows.min(columns);
    let (x, factor) = (View::new(x, columns), View::new(factor, small));
    let (a, b) = if rows > columns { (x, factor) } else { (factor, x) };
    let product = Product { a, b, k: small, start: Start::Add, c: weights.from(at.start), stride };
    team.ranges(columns, 3 * LANES, |columns| product.part(team.isa, 0..rows, columns));
}

/// The symmetric matrix that brings the singular values of `x` near 1: from the left of a wide matrix, from
/// the right of a high one. It lies in `squares`, which hold four of that size. `x` is scaled.
fn orthogonalizer<'a>(
    team: &Team,
    (rows, columns): (usize, usize),
    x: &mut [f32],
    squares: &'a mut [f32],
) -> &'a mut [f32] {
    // Frobenius' norm is at least the max singular value.
    let norm = x.chunks(columns).map(|row| f64::from(squares_part(team.isa, row))).sum::<f64>().sqrt();
    multiply(team.isa, (1.0 / (norm + 1e-7)) as f32, x);
    let (small, x) = (rows.min(columns), View::new(x, columns));
    let mut squares = squares.chunks_mut(small * small);
    let [gram, p, mut q, mut t] = std::array::from_fn(|_| squares.next().expect("four squares"));
    let (left, right) = if rows > columns { (x.t(), x) } else { (x, x.t()) };
    symmetric(team, small, rows.max(columns), left, right, gram);
    let times = |a: &[f32], b: &[f32], c: &mut [f32]| {
        symmetric(team, small, small, View::new(a, small), View::new(b, small), c);
    };
    for step in 0..STEPS {
        times(gram, gram, p);
        polynomial(team.isa, gram, p);
        p.iter_mut().step_by(small + 1).for_each(|diagonal| *diagonal += POLYNOMIAL[0]);
        if step == 0 {
            q.copy_from_slice(p);
        } else {
            times(p, q, t);
            std::mem::swap(&mut q, &mut t);
        }
        if step + 1 < STEPS {
            times(p, gram, t);
            times(t, p, gram);
        }
    }
    q
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
            let (mut x, mut squares) = (start.clone(), vec![0.0; 4 * small * small]);
            let factor = orthogonalizer(&Team::new(2), (rows, columns), &mut x, &mut squares);
            let [x, factor] = [&x, &*factor].map(|all| all.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            let found = if rows > columns {
                times(&x, &factor, rows, small, columns)
            } else {
                times(&factor, &x, rows, small, columns)
            };
            let plain: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
            let expected = newton_schulz(&plain, rows, columns);
            let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-4, "{rows} x {columns}: {far} from the definition");
            let within = |s: &f64| (0.6..1.3).contains(&s.sqrt());
            let values = squared_singular_values(&found, rows, columns);
            // A random square matrix has one or two values so small that five steps do not lift them.
            let tiny = if rows == columns { 2 } else { 0 };
            let out = values.iter().filter(|s| !within(s)).count();
            assert!(values.iter().all(|s| s.sqrt() < 1.3) && out <= tiny, "{rows} x {columns}: {values:?}");
        }
    }

    #[test]
    #[should_panic(expected = "shares numbers")]
    fn matrices_that_overlap_are_refused() {
        let one = Matrix { start: 0, momentum: 0, rows: 3, columns: 4, stride: 8 };
        Matrices::new(vec![one, Matrix { start: 3, momentum: 4, ..one }]);
    }

    /// Two matrices side by side: momentum, scale and decay, on any threads and instructions.
    #[test]
    fn a_step_is_jordans_and_the_same_bits_everywhere() {
        let (rows, columns) = (6, [9, 4]);
        let matrix =
            |(start, columns)| Matrix { start: 2 + start, momentum: start, rows, columns, stride: 13 };
        let matrices = Matrices::new([0, 9].into_iter().zip(columns).map(matrix).collect());
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
        for at in &matrices.0 {
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
