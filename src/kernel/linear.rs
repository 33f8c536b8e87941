//! A linear layer: `y = x · weight + bias`, `weight: [in, out]` (as GPT-2's `Conv1D`, the transpose of
//! PyTorch's `nn.Linear`).

use super::matmul::{Start, View, matmul};
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};
use super::weight::{Weight, product};

/// The layer's parameters.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[in, out]`
    pub weight: Weight<'a>,
    /// `[out]`
    pub bias: Option<&'a [f32]>,
    /// Columns of `y`.
    pub out: usize,
}

impl Linear<'_> {
    /// Columns of `x`.
    fn width(&self) -> usize {
        self.weight.len() / self.out
    }
}

/// `y: [N, out]` of `x: [N, in]`; rows of y begin every `stride`.
pub fn forward(team: &Team, layer: Linear, x: View, y: &mut [f32], stride: usize) {
    let shape = (y.len() / stride, layer.out, layer.width());
    let start = layer.bias.map_or(Start::Zero, Start::Bias);
    product(team, shape, x, layer.weight, start, y, stride);
}

/// `dx = dy · weightᵀ`; rows of dx begin every `stride`.
pub fn input(team: &Team, layer: Linear, dy: View, dx: &mut [f32], stride: usize) {
    let weight = View::new(layer.weight.widened(), layer.out);
    let shape = (dx.len() / stride, layer.width(), layer.out);
    matmul(team, shape, dy, weight.t(), Start::Zero, dx, stride);
}

/// `dweight += xᵀ · dy` and `dbias += Σ dy` over `rows` rows, in their order.
pub fn weights(
    team: &Team,
    rows: usize,
    x: View,
    dy: View,
    out: usize,
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
) {
    matmul(team, (dweight.len() / out, out, rows), x.t(), dy, Start::Add, dweight, out);
    let Some(dbias) = dbias else { return };
    let dbias = Parts::new(&mut dbias[..out]);
    team.ranges(out, 4 * LANES, |columns| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};
    use crate::kernel::{Number, to_bf16};

    /// `x · weight + bias` in f64.
    fn plain(
        x: &[f64],
        weight: &[f64],
        bias: Option<&[f64]>,
        (n, k, out): (usize, usize, usize),
    ) -> Vec<f64> {
        let element = |i: usize, j: usize| {
            let product: f64 = (0..k).map(|k_| x[i * k + k_] * weight[k_ * out + j]).sum();
            product + bias.map_or(0.0, |bias| bias[j])
        };
        (0..n * out).map(|i| element(i / out, i % out)).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Rows that are read as bf16 and more rows than that, with and without a bias, rows of y with a gap.
    #[test]
    fn it_is_its_definition_forward_and_backward() {
        for (n, k, out) in [(1, 5, 3), (3, 16, 48), (9, 37, 19), (70, 33, 130)] {
            let x = numbers("x", n * k, 1.0);
            let bits: Vec<u16> = numbers("weight", k * out, 1.0).into_iter().map(to_bf16).collect();
            let weight: Vec<f32> = bits.iter().map(|bits| bits.widened()).collect();
            let (bias, dy) = (numbers("bias", out, 1.0), numbers("dy", n * out, 1.0));
            let before = numbers("before", k * out + out, 1.0);
            let stride = out + 3;
            for bias in [Some(&bias[..]), None] {
                let of = |team: &Team, weight: Weight| {
                    let layer = Linear { weight, bias, out };
                    let (mut y, mut dx) = (vec![7.0; n * stride], vec![f32::NAN; n * k]);
                    forward(team, layer, View::new(&x, k), &mut y, stride);
                    input(team, layer, View::new(&dy, out), &mut dx, k);
                    let mut sums = before.clone();
                    let (dweight, dbias) = sums.split_at_mut(k * out);
                    let dbias = bias.is_some().then_some(dbias);
                    weights(team, n, View::new(&x, k), View::new(&dy, out), out, dweight, dbias);
                    vec![y, dx, sums]
                };
                let found = same_everywhere(|team| of(team, Weight::F32(&weight)));
                let as_bf16 = Weight::Bf16 { bits: &bits, widened: &weight };
                assert!(found == same_everywhere(|team| of(team, as_bf16)), "{n} {k} {out} of bf16");
                let [y, dx, sums] = &found[..] else { unreachable!() };
                let gap = |row: &&[f32]| row[out..].iter().all(|x| *x == 7.0);
                assert!(y.chunks(stride).all(|row| gap(&row)), "what is between rows stays");
                let y: Vec<f32> = y.chunks(stride).flat_map(|row| &row[..out]).copied().collect();
                let (w, x_, dy_) = (wide(&weight), wide(&x), wide(&dy));
                let bias_ = bias.map(wide);
                let value = |x: &[f64], w: &[f64], b: Option<&[f64]>| plain(x, w, b, (n, k, out));
                near("y", &y, &value(&x_, &w, bias_.as_deref()), 2e-5);
                let loss = |x: &[f64]| dot(&value(x, &w, None), &dy_);
                near_differences("dx", dx, &x, loss, 2e-5);
                let added: Vec<f32> =
                    sums.iter().zip(&before).map(|(after, before)| after - before).collect();
                let loss = |w: &[f64]| dot(&value(&x_, w, None), &dy_);
                near_differences("dweight", &added[..k * out], &weight, loss, 2e-5);
                let column = |j: usize| dy_.iter().skip(j).step_by(out).sum::<f64>();
                let expected: Vec<f64> =
                    (0..out).map(|j| if bias.is_some() { column(j) } else { 0.0 }).collect();
                near("dbias", &added[k * out..], &expected, 2e-5);
            }
        }
    }
}
