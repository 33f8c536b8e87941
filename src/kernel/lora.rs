//! Low-rank adapters of a linear layer (LoRA; Hu et al., 2021): `y += alpha/rank · dropout(x) · A · B`, for some
//! of the matrices that lie side by side in the layer's weight.
//!
//! All adapters of a layer read the same rows, so their A's lie side by side and are one product; each B has
//! columns of y of its own. `hidden` is `alpha/rank · dropout(x) · A`. What is dropped is decided anew by a hash
//! in the backward pass, see [`super::dropout`].

use std::ops::Range;

use super::dropout::{self, Dropout};
use super::matmul::{Start, View, matmul};
use super::team::Team;

/// The adapters of a linear layer.
#[derive(Clone, Copy)]
pub struct Adapters<'a> {
    /// Side by side, `[in, parts · rank]`.
    pub a: &'a [f32],
    /// Side by side, `[rank, Σ columns]`.
    pub b: &'a [f32],
    pub rank: usize,
    /// `alpha / rank`
    pub scale: f32,
    /// The columns of y that each is added to, in ascending order.
    pub parts: &'a [Range<usize>],
}

/// Which numbers of the layer's input the adapters don't see.
#[derive(Clone, Copy)]
pub struct Dropped {
    pub dropout: Dropout,
    /// Rows of the batch before these.
    pub first_row: usize,
}

impl Adapters<'_> {
    /// Columns of `hidden`.
    pub fn width(&self) -> usize {
        self.parts.len() * self.rank
    }

    /// Columns of the layer's input, `in`.
    pub fn input(&self) -> usize {
        self.a.len() / self.width()
    }

    /// Each part: its first column of `hidden`, its first column of B, its columns of y.
    fn each(&self) -> impl Iterator<Item = (usize, usize, &Range<usize>)> {
        let mut column = 0;
        self.parts.iter().enumerate().map(move |(i, part)| {
            column += part.len();
            (i * self.rank, column - part.len(), part)
        })
    }

    fn columns(&self) -> usize {
        self.b.len() / self.rank
    }
}

/// Adds what the adapters make of `x: [N, in]` to `y`, whose rows begin every `stride`; keeps
/// `hidden: [N, parts · rank]`. `scratch: [N, in]` is read only where something is dropped.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    team: &Team,
    adapters: Adapters,
    dropped: Dropped,
    x: View,
    hidden: &mut [f32],
    scratch: &mut [f32],
    y: &mut [f32],
    stride: usize,
) {
    let (width, columns) = (adapters.width(), adapters.columns());
    let n = hidden.len() / width;
    let x = seen(team, adapters, dropped, n, x, scratch);
    matmul(team, (n, width, adapters.input()), x, View::new(adapters.a, width), Start::Zero, hidden, width);
    scale(adapters.scale, hidden);
    for (at, column, part) in adapters.each() {
        let (h, b) = (View::new(&hidden[at..], width), View::new(&adapters.b[column..], columns));
        matmul(team, (n, part.len(), adapters.rank), h, b, Start::Add, &mut y[part.start..], stride);
    }
}

/// The gradient of `dropout(x) · A`, `dhidden: [N, parts · rank]`, given that of y.
pub fn hidden(team: &Team, adapters: Adapters, dy: View, dhidden: &mut [f32]) {
    let (width, columns) = (adapters.width(), adapters.columns());
    let n = dhidden.len() / width;
    for (at, column, part) in adapters.each() {
        let b = View::new(&adapters.b[column..], columns).t();
        let dhidden = &mut dhidden[at..];
        let shape = (n, adapters.rank, part.len());
        matmul(team, shape, dy.from_column(part.start), b, Start::Zero, dhidden, width);
    }
    scale(adapters.scale, dhidden);
}

/// What a backward pass knows of an adapter's rows.
#[derive(Clone, Copy)]
pub struct Back<'a> {
    /// The layer's input, `[N, in]`.
    pub x: View<'a>,
    /// As [`forward`] left it, `[N, parts · rank]`.
    pub hidden: &'a [f32],
    /// As [`hidden`] left it, `[N, parts · rank]`.
    pub dhidden: &'a [f32],
    /// The gradient of y.
    pub dy: View<'a>,
}

/// Adds the gradients of A and B to `da` and `db`. `scratch` as for [`forward`].
pub fn weights(
    team: &Team,
    adapters: Adapters,
    dropped: Dropped,
    back: Back,
    scratch: &mut [f32],
    da: &mut [f32],
    db: &mut [f32],
) {
    let (width, columns) = (adapters.width(), adapters.columns());
    let n = back.hidden.len() / width;
    let x = seen(team, adapters, dropped, n, back.x, scratch);
    let dhidden = View::new(back.dhidden, width);
    matmul(team, (adapters.input(), width, n), x.t(), dhidden, Start::Add, da, width);
    for (at, column, part) in adapters.each() {
        let h = View::new(&back.hidden[at..], width).t();
        let dy = back.dy.from_column(part.start);
        matmul(team, (adapters.rank, part.len(), n), h, dy, Start::Add, &mut db[column..], columns);
    }
}

/// Adds the adapters' share of the gradient of x to `dx`, whose rows begin every `stride`. `scratch` as for
/// [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn input(
    team: &Team,
    adapters: Adapters,
    dropped: Dropped,
    dhidden: &[f32],
    scratch: &mut [f32],
    dx: &mut [f32],
    stride: usize,
) {
    let (width, columns) = (adapters.width(), adapters.input());
    let n = dhidden.len() / width;
    let (dhidden, a) = (View::new(dhidden, width), View::new(adapters.a, width).t());
    let shape = (n, columns, width);
    if dropped.dropout.is_none() {
        return matmul(team, shape, dhidden, a, Start::Add, dx, stride);
    }
    let scratch = &mut scratch[..n * columns];
    matmul(team, shape, dhidden, a, Start::Zero, scratch, columns);
    let from = View::new(scratch, columns);
    dropout::rows(
        team,
        dropped.dropout,
        columns,
        dropped.first_row..dropped.first_row + n,
        from,
        dx,
        stride,
        true,
    );
}

/// What the adapters see of `x`: in `scratch` where something is dropped.
fn seen<'a>(
    team: &Team,
    adapters: Adapters,
    dropped: Dropped,
    n: usize,
    x: View<'a>,
    scratch: &'a mut [f32],
) -> View<'a> {
    if dropped.dropout.is_none() {
        return x;
    }
    let columns = adapters.input();
    let rows = dropped.first_row..dropped.first_row + n;
    dropout::rows(team, dropped.dropout, columns, rows, x, &mut scratch[..n * columns], columns, false);
    View::new(&scratch[..n * columns], columns)
}

fn scale(by: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x *= by);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    const FIRST: usize = 7;

    /// `scale · dropout(x) · A · B` in f64, `[N, out]`.
    fn plain(adapters: Adapters, dropout: Dropout, out: usize, x: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
        let (k, width, columns) = (adapters.input(), adapters.width(), adapters.columns());
        let n = x.len() / k;
        let mut y = vec![0.0; n * out];
        for i in 0..n {
            let seen = |j: usize| {
                let kept = dropout.is_none() || dropout.keeps(FIRST + i, j, k);
                if kept { x[i * k + j] * f64::from(dropout.scale()) } else { 0.0 }
            };
            for (at, column, part) in adapters.each() {
                for r in 0..adapters.rank {
                    let h: f64 = (0..k).map(|j| seen(j) * a[j * width + at + r]).sum();
                    for (j, to) in part.clone().enumerate() {
                        y[i * out + to] += f64::from(adapters.scale) * h * b[r * columns + column + j];
                    }
                }
            }
        }
        y
    }

    /// Ranks of few and of many rows, parts that are all or some of the columns, rows with gaps, with and
    /// without dropout.
    #[test]
    fn it_is_its_definition_forward_and_backward() {
        let parts = [vec![0..19], vec![0..8, 11..19], vec![3..5, 5..8, 8..19]];
        for (n, k, rank) in [(1, 5, 1), (9, 37, 3), (70, 33, 8), (3, 16, 20)] {
            for parts in &parts {
                for p in [0.0, 0.3] {
                    check(n, k, rank, parts, Dropout::new(p, 99));
                }
            }
        }
    }

    fn check(n: usize, k: usize, rank: usize, parts: &[Range<usize>], dropout: Dropout) {
        let (out, stride) = (19, 22);
        let (width, columns) = (parts.len() * rank, parts.iter().map(|part| part.len()).sum::<usize>());
        let (x, a, b) =
            (numbers("x", n * k, 1.0), numbers("a", k * width, 0.3), numbers("b", rank * columns, 0.3));
        let (dy, before) = (numbers("dy", n * stride, 1.0), numbers("before", n * stride, 1.0));
        let adapters = Adapters { a: &a, b: &b, rank, scale: 1.7, parts };
        let dropped = Dropped { dropout, first_row: FIRST };
        let found = same_everywhere(|team| {
            let (mut h, mut dh) = (vec![f32::NAN; n * width], vec![f32::NAN; n * width]);
            let (mut scratch, mut y) = (vec![f32::NAN; n * k], before.clone());
            forward(team, adapters, dropped, View::new(&x, k), &mut h, &mut scratch, &mut y, stride);
            let (x, dy) = (View::new(&x, k), View::new(&dy, stride));
            hidden(team, adapters, dy, &mut dh);
            let back = Back { x, hidden: &h, dhidden: &dh, dy };
            let (mut da, mut db, mut dx) = (vec![0.5; a.len()], vec![0.5; b.len()], vec![0.5; n * (k + 2)]);
            weights(team, adapters, dropped, back, &mut scratch, &mut da, &mut db);
            input(team, adapters, dropped, &dh, &mut scratch, &mut dx, k + 2);
            vec![y, da, db, dx]
        });
        let what = |part: &str| format!("{part} of {n} {k} {rank} {parts:?} {dropout:?}");
        let (x64, a64, b64) = (wide(&x), wide(&a), wide(&b));
        let cut = |all: &[f32], width: usize, stride: usize| {
            all.chunks(stride).flat_map(|row| row[..width].to_vec()).collect::<Vec<f32>>()
        };
        let (y, dy) = (cut(&found[0], out, stride), wide(&cut(&dy, out, stride)));
        let before = cut(&before, out, stride);
        let of = |x: &[f64], a: &[f64], b: &[f64]| plain(adapters, dropout, out, x, a, b);
        let expected: Vec<f64> =
            of(&x64, &a64, &b64).iter().zip(&before).map(|(y, before)| y + f64::from(*before)).collect();
        near(&what("y"), &y, &expected, 1e-5);
        let loss = |x: &[f64], a: &[f64], b: &[f64]| of(x, a, b).iter().zip(&dy).map(|(y, dy)| y * dy).sum();
        let less = |x: &[f32]| x.iter().map(|x| x - 0.5).collect::<Vec<_>>();
        near_differences(&what("da"), &less(&found[1]), &a, |a| loss(&x64, a, &b64), 5e-5);
        near_differences(&what("db"), &less(&found[2]), &b, |b| loss(&x64, &a64, b), 5e-5);
        assert!(found[3].chunks(k + 2).all(|row| row[k..] == [0.5; 2]), "{}", what("gap"));
        near_differences(&what("dx"), &less(&cut(&found[3], k, k + 2)), &x, |x| loss(x, &a64, &b64), 5e-5);
    }
}
