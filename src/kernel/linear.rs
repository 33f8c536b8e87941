//! A linear layer: `y = x · weight + bias`, `weight: [in, out]` (GPT-2's "Conv1D").

use super::matmul::{Start, THIN, View, matmul, matmul_halves};
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// The layer's numbers.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[in, out]`
    pub weight: &'a [f32],
    /// `[out]`
    pub bias: &'a [f32],
    /// The same weights as bf16, where they are all numbers of that: what few rows read.
    pub halves: Option<&'a [u16]>,
}

impl Linear<'_> {
    /// (in, out)
    fn shape(&self) -> (usize, usize) {
        (self.weight.len() / self.bias.len(), self.bias.len())
    }
}

/// `y: [N, out]` of `x: [N, in]`.
pub fn forward(team: &Team, layer: Linear, x: &[f32], y: &mut [f32]) {
    let (from, to) = layer.shape();
    let (shape, x, bias) = ((y.len() / to, to, from), View::new(x, from), Start::Bias(layer.bias));
    match layer.halves {
        Some(halves) if shape.0 <= THIN => matmul_halves(team, shape, x, View::new(halves, to), bias, y, to),
        _ => matmul(team, shape, x, View::new(layer.weight, to), bias, y, to),
    }
}

/// `dx = dy · weightᵀ`.
pub fn input(team: &Team, layer: Linear, dy: &[f32], dx: &mut [f32]) {
    let (from, to) = layer.shape();
    let (dy, w) = (View::new(dy, to), View::new(layer.weight, to));
    matmul(team, (dx.len() / from, from, to), dy, w.t(), Start::Zero, dx, from);
}

/// `dweight += xᵀ · dy` and `dbias += Σ dy`, the rows in their order.
pub fn weights(team: &Team, x: &[f32], dy: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
    let to = dbias.len();
    let from = dweight.len() / to;
    let rows = dy.len() / to;
    matmul(team, (from, to, rows), View::new(x, from).t(), View::new(dy, to), Start::Add, dweight, to);
    let dbias = Parts::new(dbias);
    team.ranges(to, 4 * LANES, |columns| {
        // SAFETY: the ranges of columns are disjoint.
        add_rows(team.isa, dy, to, columns.start, unsafe { dbias.take(columns) });
    });
}

simd! {
    /// `sum += Σ x` over rows of `width`, of the columns from `from` on.
    fn add_rows<S>(x: &[f32], width: usize, from: usize, sum: &mut [f32]) {
        for (i, sum) in sum.chunks_mut(4 * LANES).enumerate() {
            let from = from + i * 4 * LANES;
            if let Some(sum) = sum.as_mut_array::<{ 4 * LANES }>() {
                let mut sums: [F<S>; 4] = std::array::from_fn(|j| F::load(&sum[j * LANES..]));
                for row in x.chunks_exact(width) {
                    let row = &row[from..from + 4 * LANES];
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = *sum + F::load(&row[j * LANES..]);
                    }
                }
                for (j, value) in sums.iter().enumerate() {
                    value.store(&mut sum[j * LANES..]);
                }
            } else {
                for (j, sum) in sum.iter_mut().enumerate() {
                    for row in x.chunks_exact(width) {
                        *sum += row[from + j];
                    }
                }
            }
        }
    }
}
