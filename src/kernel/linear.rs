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

/// `y: [N, out]` of `x: [N, in]`; rows of y lie `stride` apart.
pub fn forward(team: &Team, layer: Linear, x: View, y: &mut [f32], stride: usize) {
    let (from, to) = layer.shape();
    let (shape, bias) = ((y.len() / stride, to, from), Start::Bias(layer.bias));
    match layer.halves {
        Some(halves) if shape.0 <= THIN => {
            matmul_halves(team, shape, x, View::new(halves, to), bias, y, stride)
        }
        _ => matmul(team, shape, x, View::new(layer.weight, to), bias, y, stride),
    }
}

/// `dx = dy · weightᵀ`; rows of dx lie `stride` apart.
pub fn input(team: &Team, layer: Linear, dy: View, dx: &mut [f32], stride: usize) {
    let (from, to) = layer.shape();
    let weight = View::new(layer.weight, to);
    matmul(team, (dx.len() / stride, from, to), dy, weight.t(), Start::Zero, dx, stride);
}

/// `dweight += xᵀ · dy` and `dbias += Σ dy` of `rows` rows, in their order.
pub fn weights(team: &Team, rows: usize, x: View, dy: View, dweight: &mut [f32], dbias: &mut [f32]) {
    let to = dbias.len();
    matmul(team, (dweight.len() / to, to, rows), x.t(), dy, Start::Add, dweight, to);
    let dbias = Parts::new(dbias);
    team.ranges(to, 4 * LANES, |columns| {
        // SAFETY: the ranges of columns are disjoint.
        add_rows(team.isa, dy, rows, columns.start, unsafe { dbias.take(columns) });
    });
}

simd! {
    /// `sum += Σ x` over rows, of the columns from `from` on.
    pub(super) fn add_rows<S>(x: View, rows: usize, from: usize, sum: &mut [f32]) {
        for (i, sum) in sum.chunks_mut(4 * LANES).enumerate() {
            let from = from + i * 4 * LANES;
            if let Some(sum) = sum.as_mut_array::<{ 4 * LANES }>() {
                let mut sums: [F<S>; 4] = std::array::from_fn(|j| F::load(&sum[j * LANES..]));
                for row in 0..rows {
                    let row = &x.row(row)[from..from + 4 * LANES];
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = *sum + F::load(&row[j * LANES..]);
                    }
                }
                for (j, value) in sums.iter().enumerate() {
                    value.store(&mut sum[j * LANES..]);
                }
            } else {
                for (j, sum) in sum.iter_mut().enumerate() {
                    for row in 0..rows {
                        *sum += x.row(row)[from + j];
                    }
                }
            }
        }
    }
}
