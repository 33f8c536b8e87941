//! Products of a few rows, which don't pack B: they are bound by reading it once.

use std::ops::Range;

use super::{Product, Start, View};
use crate::kernel::simd::{LANES, Number, Simd, simd};
use crate::kernel::team::{Parts, Team};

/// A matrix `[k, n]` that is multiplied with a few rows again and again, stored as panels of [`BREADTH`]
/// columns (the last has fewer), each `[k, BREADTH]`, so that it is read sequentially.
pub struct Panels<N> {
    data: Vec<N>,
    k: usize,
    n: usize,
}

/// 16 vectors.
const BREADTH: usize = 16 * LANES;

impl<N: Number> Panels<N> {
    /// Of the transpose of `columns: [n, k]`.
    pub fn of_columns(team: &Team, columns: &[N], k: usize) -> Self {
        let n = columns.len() / k;
        let mut data = vec![N::default(); n * k];
        let parts = Parts::new(&mut data);
        team.each(n.div_ceil(BREADTH), |panel| {
            let all = panel * BREADTH..((panel + 1) * BREADTH).min(n);
            // SAFETY: each task has a panel of its own.
            let panel = unsafe { parts.take(all.start * k..all.end * k) };
            for (j, column) in columns[all.start * k..all.end * k].chunks_exact(k).enumerate() {
                for (row, number) in panel.chunks_exact_mut(all.len()).zip(column) {
                    row[j] = *number;
                }
            }
        });
        Panels { data, k, n }
    }

    /// `y: [m, n]` of `x: [m, k]`, the same bits as of [`super::matmul`]. For few rows: each reads the whole
    /// matrix.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn product(&self, team: &Team, x: &[f32], y: &mut [f32]) {
        let Panels { data, k, n } = self;
        let m = x.len() / k;
        assert!(y.len() >= m * n, "y is no [{m}, {n}]");
        let y = Parts::new(y);
        team.each(n.div_ceil(BREADTH), |panel| {
            let all = panel * BREADTH..((panel + 1) * BREADTH).min(*n);
            let b = View::new(&data[all.start * k..all.end * k], all.len());
            let (a, c) = (View::new(x, *k), y.from(all.start));
            let product = Product { a, b, k: *k, start: Start::Zero, c, stride: *n };
            thin(team.isa, &product, 0..m, 0..all.len());
        });
    }
}

simd! {
    /// Some rows and columns of a product whose bounds were checked, row by row, up to 16 vectors of columns
    /// at a time.
    pub(super) fn thin<S, N: Number>(product: &Product<N>, rows: Range<usize>, columns: Range<usize>) {
        let Product { a, b, k, start, c, stride } = *product;
        // SAFETY: S runs here.
        unsafe {
            for i in rows {
                let (x, to) = (a.pointer(i, 0), c.pointer().add(i * stride));
                if let Start::Zero = start {
                    to.add(columns.start).write_bytes(0, columns.len());
                } else if let Start::Bias(bias) = start {
                    std::ptr::copy_nonoverlapping(
                        bias[columns.clone()].as_ptr(),
                        to.add(columns.start),
                        columns.len(),
                    );
                }
                let mut j = columns.start;
                if b.column == 1 {
                    // Long parts of a row, which the hardware prefetches: B is rarely cached.
                    if S::VECTORS > 1 {
                        while j + 16 * LANES <= columns.end {
                            thin_rows::<S, N, 16>(x, a.column, k, b.pointer(0, j), b.row, to.add(j));
                            j += 16 * LANES;
                        }
                    }
                    while j + 4 * LANES <= columns.end {
                        thin_rows::<S, N, 4>(x, a.column, k, b.pointer(0, j), b.row, to.add(j));
                        j += 4 * LANES;
                    }
                    // As many as a head of attention often has.
                    if j + 2 * LANES <= columns.end {
                        thin_rows::<S, N, 2>(x, a.column, k, b.pointer(0, j), b.row, to.add(j));
                        j += 2 * LANES;
                    }
                    while j + LANES <= columns.end {
                        thin_rows::<S, N, 1>(x, a.column, k, b.pointer(0, j), b.row, to.add(j));
                        j += LANES;
                    }
                } else {
                    while j + LANES <= columns.end {
                        thin_columns::<S, N>(x, a.column, k, b.pointer(0, j), b.column, to.add(j));
                        j += LANES;
                    }
                }
                for j in j..columns.end {
                    let mut sum = *to.add(j);
                    for k in 0..k {
                        sum = (*x.add(k * a.column)).mul_add((*b.pointer(k, j)).widened(), sum);
                    }
                    *to.add(j) = sum;
                }
            }
        }
    }
}

/// `c += x · b` with `W` vectors of columns; rows of b begin every `stride`.
#[inline(always)]
unsafe fn thin_rows<S: Simd, N: Number, const W: usize>(
    x: *const f32,
    step: usize,
    k: usize,
    mut b: *const N,
    stride: usize,
    c: *mut f32,
) {
    unsafe {
        let mut sums: [S::F; W] = std::array::from_fn(|j| S::load(c.add(j * LANES)));
        for k in 0..k {
            let x = S::splat(*x.add(k * step));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(x, N::load::<S>(b.add(j * LANES)), *sum);
            }
            b = b.wrapping_add(stride);
        }
        for (j, sum) in sums.iter().enumerate() {
            S::store(c.add(j * LANES), *sum);
        }
    }
}

/// `c += x · b` with one vector of columns of a transposed b, which begin every `stride`.
#[inline(always)]
unsafe fn thin_columns<S: Simd, N: Number>(
    x: *const f32,
    step: usize,
    k: usize,
    b: *const N,
    stride: usize,
    c: *mut f32,
) {
    unsafe {
        let mut sum = S::load(c);
        let whole = k / LANES * LANES;
        for top in (0..whole).step_by(LANES) {
            for (y, row) in S::columns(b.add(top), stride).iter().enumerate() {
                sum = S::fma(S::splat(*x.add((top + y) * step)), *row, sum);
            }
        }
        for k in whole..k {
            let column: [f32; LANES] = std::array::from_fn(|j| (*b.add(j * stride + k)).widened());
            sum = S::fma(S::splat(*x.add(k * step)), S::load(column.as_ptr()), sum);
        }
        S::store(c, sum);
    }
}
