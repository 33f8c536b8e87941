//! GPTQ (Frantar et al., 2022, <https://arxiv.org/abs/2210.17323>): numbers of a row become codes one after the
//! other, and the error of each is made up for by those behind it, so that the layer's outputs on calibration
//! text change least. Scales are those of the blocks, chosen for what a block's numbers have become when it is
//! their turn. What is left is lowered by coordinate descent over the codes (QuantEase; Behdin et al., 2023,
//! <https://arxiv.org/abs/2309.01885>).

use rayon::prelude::*;

use super::inputs::Gram;
use super::scales::{self, Grid};
use crate::base::{Error, Result};
use crate::kernel::BlockType;
use crate::kernel::blocks::Block;

/// How often coordinate descent goes over a row at most.
const SWEEPS: usize = 8;

/// The error of a row w that becomes q is `(w - q)ᵀ·H·(w - q)`.
pub struct Hessian {
    pub k: usize,
    /// `[k, k]`
    h: Vec<f64>,
    /// The upper triangle U with `H⁻¹ = Uᵀ·U`, `[k, k]`.
    u: Vec<f64>,
}

impl Hessian {
    /// `damping` is the share of the mean of the diagonal that is added to it.
    ///
    /// # Errors
    /// When the inputs are not finite.
    pub fn new(gram: &Gram, damping: f64) -> Result<Self> {
        let k = gram.k;
        let trace: f64 = (0..k).map(|i| gram.mean[i * k + i]).sum();
        if !trace.is_finite() {
            return Err(Error::input("what the layer reads of the calibration text is not finite")
                .help("the model's weights are damaged, or its training diverged: train it anew"));
        }
        let unit = if trace > 0.0 { trace / k as f64 } else { 1.0 };
        let mut h: Vec<f64> = gram.mean.iter().map(|x| x / unit).collect();
        (0..k).for_each(|i| h[i * k + i] += damping);
        let u = inverse_factor(&h, k)?;
        Ok(Hessian { k, h, u })
    }

    /// Where all errors count alike: of numbers that nothing multiplies with.
    pub fn identity(k: usize) -> Self {
        let mut h = vec![0.0; k * k];
        (0..k).for_each(|i| h[i * k + i] = 1.0);
        Hessian { k, u: h.clone(), h }
    }

    /// What an error of a number costs when those behind it make up for it.
    fn weights(&self) -> Vec<f64> {
        (0..self.k).map(|i| self.u[i * self.k + i].powi(-2)).collect()
    }

    /// `H·x`
    fn times(&self, x: &[f64]) -> Vec<f64> {
        let row = |row: &[f64]| row.iter().zip(x).map(|(h, x)| h * x).sum();
        self.h.chunks_exact(self.k).map(row).collect()
    }

    /// `xᵀ·H·x` summed over rows.
    pub fn norm(&self, rows: &[f32]) -> f64 {
        let each = rows.par_chunks(self.k).map(|row| {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            self.times(&row).iter().zip(&row).map(|(h, x)| h * x).sum::<f64>()
        });
        // In the order of the rows, whatever the threads.
        each.collect::<Vec<f64>>().into_iter().sum()
    }
}

/// U of `H⁻¹ = Uᵀ·U`. With rows and columns in reverse order H is `L·Lᵀ`, so `H = R·Rᵀ` with an upper triangle R, and
/// U is its inverse.
fn inverse_factor(h: &[f64], k: usize) -> Result<Vec<f64>> {
    let reversed = |x: &[f64]| x.iter().rev().copied().collect::<Vec<f64>>();
    let l = cholesky(&reversed(h), k).ok_or_else(|| Error::bug("a damped Hessian is not positive"))?;
    Ok(reversed(&inverse_of_lower(&l, k)))
}

/// L with `A = L·Lᵀ`; `None` when A is not positive definite.
fn cholesky(a: &[f64], k: usize) -> Option<Vec<f64>> {
    let mut l = vec![0.0; k * k];
    for j in 0..k {
        let (above, below) = l.split_at_mut((j + 1) * k);
        let row = &mut above[j * k..];
        let pivot = a[j * k + j] - row[..j].iter().map(|x| x * x).sum::<f64>();
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        row[j] = pivot.sqrt();
        let (row, pivot) = (&row[..j], row[j]);
        below.par_chunks_mut(k).with_min_len(64).enumerate().for_each(|(i, other)| {
            let product: f64 = other.iter().zip(row).map(|(a, b)| a * b).sum();
            other[j] = (a[(j + 1 + i) * k + j] - product) / pivot;
        });
    }
    Some(l)
}

/// Columns of an inverse that are computed together.
const COLUMNS: usize = 64;

/// The inverse of a lower triangle.
fn inverse_of_lower(l: &[f64], k: usize) -> Vec<f64> {
    let part = |from: usize| {
        let n = COLUMNS.min(k - from);
        let mut part = vec![0.0; k * n];
        for i in from..k {
            let (above, row) = part.split_at_mut(i * n);
            let row = &mut row[..n];
            for p in from..i {
                let factor = l[i * k + p];
                row.iter_mut().zip(&above[p * n..]).for_each(|(x, y)| *x -= factor * y);
            }
            if i < from + n {
                row[i - from] = 1.0;
            }
            row.iter_mut().for_each(|x| *x /= l[i * k + i]);
        }
        part
    };
    let starts: Vec<usize> = (0..k).step_by(COLUMNS).collect();
    let parts: Vec<Vec<f64>> = starts.par_iter().map(|from| part(*from)).collect();
    let mut inverse = vec![0.0; k * k];
    for (from, part) in starts.into_iter().zip(parts) {
        let n = part.len() / k;
        let rows = inverse.chunks_exact_mut(k).zip(part.chunks_exact(n));
        rows.for_each(|(to, row)| to[from..from + n].copy_from_slice(row));
    }
    inverse
}

/// Rounds rows of `H.k` numbers, which are whole blocks, to a quantized type.
pub fn round(ty: BlockType, rows: &[f32], hessian: &Hessian) -> Vec<u8> {
    let (k, weights) = (hessian.k, hessian.weights());
    let mut bytes = vec![0; ty.bytes(rows.len())];
    bytes.par_chunks_mut(ty.bytes(k)).zip(rows.par_chunks(k)).for_each(|(bytes, row)| {
        let row = Row::round(ty, row, hessian, &weights);
        let mut packed = Vec::with_capacity(bytes.len());
        row.blocks.iter().for_each(|block| ty.pack(block, &mut packed));
        bytes.copy_from_slice(&packed);
    });
    bytes
}

/// A row on its way to blocks.
struct Row {
    ty: BlockType,
    blocks: Vec<Block>,
    /// What the codes stand for.
    values: Vec<f64>,
}

impl Row {
    fn round(ty: BlockType, row: &[f32], hessian: &Hessian, weights: &[f64]) -> Self {
        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let mut rounded = Row { ty, blocks: Vec::new(), values: Vec::with_capacity(row.len()) };
        rounded.propagate(row.clone(), hessian, weights);
        rounded.descend(&row, hessian);
        rounded
    }

    /// Chooses codes in the order of the numbers, each after the errors of those before it.
    fn propagate(&mut self, mut left: Vec<f64>, hessian: &Hessian, weights: &[f64]) {
        let (k, ty) = (hessian.k, self.ty);
        let (len, group) = (ty.block_len(), ty.group_len());
        for j in 0..k {
            let (start, at) = (j / len * len, j % len);
            if at == 0 {
                self.blocks.push(scales::block(ty, &left[j..j + len], &weights[j..j + len]));
            }
            let block = &mut self.blocks[start / len];
            if at > 0 && at % group == 0 {
                let numbers = j..j + group;
                scales::refit_group(ty, block, at / group, &left[numbers.clone()], &weights[numbers]);
            }
            let grid = Grid::of(ty, block, at / group);
            let code = grid.code(left[j]);
            block.codes[at] = code as i8;
            self.values.push(grid.value(code));
            let u = &hessian.u[j * k..(j + 1) * k];
            let error = (left[j] - self.values[j]) / u[j];
            left.iter_mut().zip(u).skip(j + 1).for_each(|(x, u)| *x -= error * u);
        }
    }

    /// Sets each code to the best one, all others being what they are, until none changes.
    fn descend(&mut self, row: &[f64], hessian: &Hessian) {
        let (k, len, group) = (hessian.k, self.ty.block_len(), self.ty.group_len());
        let errors: Vec<f64> = row.iter().zip(&self.values).map(|(w, q)| w - q).collect();
        let mut pull = hessian.times(&errors);
        for _ in 0..SWEEPS {
            let mut changed = false;
            for j in 0..k {
                let h = &hessian.h[j * k..(j + 1) * k];
                let block = &mut self.blocks[j / len];
                let grid = Grid::of(self.ty, block, j % len / group);
                let code = grid.code(self.values[j] + pull[j] / h[j]);
                let step = grid.value(code) - self.values[j];
                if code as i8 != block.codes[j % len] {
                    pull.iter_mut().zip(h).for_each(|(pull, h)| *pull -= step * h);
                    self.values[j] += step;
                    block.codes[j % len] = code as i8;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    /// Correlated inputs, and rows.
    fn problem(k: usize, rows: usize) -> (Gram, Vec<f32>) {
        let mut rng = Rng::new(1, "gptq");
        let mut mean = vec![0.0; k * k];
        let shared: Vec<f64> = (0..k).map(|_| rng.normal()).collect();
        for _ in 0..200 {
            let common = rng.normal();
            let x: Vec<f64> = shared.iter().map(|s| 0.8 * common * s + 0.6 * rng.normal()).collect();
            (0..k * k).for_each(|i| mean[i] += x[i / k] * x[i % k] / 200.0);
        }
        let numbers = (0..rows * k).map(|_| (0.05 * rng.normal()) as f32).collect();
        (Gram { k, mean }, numbers)
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        for k in [1, 3, 70] {
            let Hessian { h, u, .. } = Hessian::new(&problem(k, 0).0, DAMPING).unwrap();
            for (i, j) in (0..k * k).map(|at| (at / k, at % k)) {
                assert!(j >= i || u[i * k + j] == 0.0);
                // Uᵀ·U·H
                let inverse = |p: usize| (0..k).map(|q| u[q * k + i] * u[q * k + p]).sum::<f64>();
                let found: f64 = (0..k).map(|p| inverse(p) * h[p * k + j]).sum();
                assert!((found - f64::from(u8::from(i == j))).abs() < 1e-9, "{k}: {i} {j} {found}");
            }
        }
    }

    const DAMPING: f64 = 0.01;

    /// x of A·x = b, by elimination.
    fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
        let n = b.len();
        for i in 0..n {
            for j in i + 1..n {
                let factor = a[j][i] / a[i][i];
                (0..n).for_each(|c| a[j][c] -= factor * a[i][c]);
                b[j] -= factor * b[i];
            }
        }
        for i in (0..n).rev() {
            b[i] = (b[i] - (i + 1..n).map(|j| a[i][j] * b[j]).sum::<f64>()) / a[i][i];
        }
        b
    }

    /// The definition: behind each code, all numbers that are left become what makes the error least.
    #[test]
    fn errors_are_made_up_for_as_least_squares_would() {
        let (k, ty) = (64, BlockType::Q4_0);
        let (gram, row) = problem(k, 1);
        let hessian = Hessian::new(&gram, DAMPING).unwrap();
        let mut left: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let mut found = Row { ty, blocks: Vec::new(), values: Vec::new() };
        found.propagate(left.clone(), &hessian, &hessian.weights());
        for j in 0..k {
            let (block, h) = (&found.blocks[j / 32], |a: usize, b: usize| hessian.h[a * k + b]);
            let grid = Grid::of(ty, block, 0);
            assert_eq!(f64::from(block.codes[j % 32]), grid.code(left[j]), "{j}");
            let error = left[j] - found.values[j];
            let rest: Vec<Vec<f64>> = (j + 1..k).map(|a| (j + 1..k).map(|b| h(a, b)).collect()).collect();
            let step = solve(rest, (j + 1..k).map(|a| h(a, j) * error).collect());
            left[j + 1..].iter_mut().zip(step).for_each(|(x, step)| *x += step);
        }
    }

    #[test]
    fn layers_compute_closer_to_before_than_with_the_nearest_codes() {
        let (gram, rows) = problem(256, 8);
        let hessian = Hessian::new(&gram, DAMPING).unwrap();
        for ty in BlockType::all().filter(|ty| ty.is_quantized()) {
            let error = |bytes: &[u8]| {
                let mut numbers = vec![0.0; rows.len()];
                ty.decode(bytes, &mut numbers);
                numbers.iter_mut().zip(&rows).for_each(|(q, w)| *q -= w);
                hessian.norm(&numbers)
            };
            let nearest = error(&ty.encode(&rows).unwrap());
            let bytes = round(ty, &rows, &hessian);
            let share = error(&bytes) / nearest;
            assert!(share < 0.8, "{}: {share}", ty.name());
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| round(ty, &rows, &hessian)) == bytes);
            }
        }
    }

    /// All errors count alike: nothing is made up for, and the search for scales must not lose to ggml's.
    #[test]
    fn where_nothing_is_known_of_inputs_the_squared_error_is_least() {
        let (_, rows) = problem(256, 64);
        for ty in BlockType::all().filter(|ty| ty.is_quantized()) {
            let error = |bytes: &[u8]| {
                let mut numbers = vec![0.0; rows.len()];
                ty.decode(bytes, &mut numbers);
                numbers.iter().zip(&rows).map(|(q, w)| f64::from(q - w).powi(2)).sum::<f64>()
            };
            let (own, ggml) =
                (error(&round(ty, &rows, &Hessian::identity(256))), error(&ty.encode(&rows).unwrap()));
            assert!(own < 1.001 * ggml, "{}: {own} {ggml}", ty.name());
        }
    }

    #[test]
    fn odd_numbers_have_blocks() {
        for ty in BlockType::all().filter(|ty| ty.is_quantized()) {
            for row in
                [vec![0.0; 256], vec![0.3; 256], vec![-2.0; 256], (0..256).map(|i| i as f32 * 1e30).collect()]
            {
                let bytes = round(ty, &row, &Hessian::identity(256));
                let mut numbers = vec![0.0; 256];
                ty.decode(&bytes, &mut numbers);
                if row[255].abs() < 100.0 {
                    let max = numbers.iter().zip(&row).map(|(q, w)| (q - w).abs()).fold(0.0, f32::max);
                    assert!(max <= 0.01 * row[0].abs(), "{}: {max} of {}", ty.name(), row[0]);
                }
            }
        }
    }
}
