//! Products of a few rows, which don't pack B: they are bound by reading it once.

use std::ops::Range;

use super::pack::{BLOCK, round_row};
use super::tile::without_subnormals;
use super::{Product, Start, View};
use crate::kernel::dtype::Dtype;
use crate::kernel::simd::{F, LANES, Number, Simd, simd};
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

    /// Bytes of memory that it takes.
    #[cfg(test)]
    pub fn memory(&self) -> u64 {
        std::mem::size_of_val(&self.data[..]) as u64
    }

    /// Calls `f` with the product of the `m` rows of `x` with each panel, and with its rows and columns.
    fn each(
        &self,
        team: &Team,
        x: View,
        m: usize,
        y: &mut [f32],
        f: impl Fn(&Product<N>, Range<usize>, Range<usize>) + Sync,
    ) {
        let Panels { data, k, n } = self;
        assert!(m == 0 || x.holds(m, *k), "x is no [{m}, {k}]");
        assert!(y.len() >= m * n, "y is no [{m}, {n}]");
        let y = Parts::new(y);
        team.each(n.div_ceil(BREADTH), |panel| {
            let all = panel * BREADTH..((panel + 1) * BREADTH).min(*n);
            let b = View::new(&data[all.start * k..all.end * k], all.len());
            let (a, c) = (x, y.from(all.start));
            let product = Product { a, b, k: *k, start: Start::Zero, c, stride: *n };
            f(&product, 0..m, 0..all.len());
        });
    }
}

impl Panels<f32> {
    /// `y: [m, n]` of `x: [m, k]`, the same bits as of [`super::matmul`] in f32. For few rows: each reads the
    /// whole matrix.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn product(&self, team: &Team, x: &[f32], y: &mut [f32]) {
        self.each(team, View::new(x, self.k), x.len() / self.k, y, |product, rows, columns| {
            thin(team.isa, product, rows, columns)
        });
    }
}

impl Panels<u16> {
    /// The same, as [`super::matmul_bf16`] computes it.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn product(&self, team: &Team, x: &[f32], y: &mut [f32]) {
        let (m, x) = (x.len() / self.k, View::new(x, self.k));
        if team.dtype == Dtype::Bf16Tile {
            return with_rounded(team, x, m, self.k, |x| {
                self.each(team, x, m, y, |product, rows, columns| {
                    thin_blocks(team.isa, product, rows, columns)
                });
            });
        }
        self.each(team, x, m, y, |product, rows, columns| thin(team.isa, product, rows, columns));
    }
}

/// Calls `f` with some rows rounded to bf16.
pub(super) fn with_rounded(team: &Team, a: View, m: usize, k: usize, f: impl FnOnce(View)) {
    team.with_scratch(m * k, |scratch| {
        for (i, row) in scratch.chunks_exact_mut(k.max(1)).enumerate() {
            for (k, x) in row.iter_mut().enumerate() {
                // SAFETY: the caller checked the bounds.
                *x = unsafe { *a.pointer(i, k) };
            }
            round_row(team.isa, row);
        }
        f(View::new(scratch, k));
    });
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
                begin(start, to, &columns);
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

simd! {
    /// The same in the arithmetic of `bf16_tile`, of rows that are rounded to bf16. Zeros behind k would change
    /// nothing.
    pub(super) fn thin_blocks<S>(product: &Product<u16>, rows: Range<usize>, columns: Range<usize>) {
        let Product { a, b, k, start, c, stride } = *product;
        // SAFETY: S runs here.
        unsafe {
            for i in rows {
                let (x, to) = (a.pointer(i, 0), c.pointer().add(i * stride));
                begin(start, to, &columns);
                let mut j = columns.start;
                if b.column == 1 {
                    while S::VECTORS > 1 && j + 8 * LANES <= columns.end {
                        rows_of_blocks::<S, 8>(x, k, b.pointer(0, j), b.row, to.add(j));
                        j += 8 * LANES;
                    }
                    while j + 2 * LANES <= columns.end {
                        rows_of_blocks::<S, 2>(x, k, b.pointer(0, j), b.row, to.add(j));
                        j += 2 * LANES;
                    }
                }
                for j in j..columns.end {
                    for top in (0..k).step_by(BLOCK) {
                        let mut sums = [0.0f32; 2];
                        for k in top..(top + BLOCK).min(k) {
                            sums[k % 2] = (*x.add(k)).mul_add((*b.pointer(k, j)).widened(), sums[k % 2]);
                        }
                        let subnormal = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
                        *to.add(j) = subnormal(subnormal(*to.add(j)) + (sums[0] + sums[1]));
                    }
                }
            }
        }
    }
}

/// Writes the initial values of some columns of a row.
#[inline(always)]
unsafe fn begin(start: Start, to: *mut f32, columns: &Range<usize>) {
    unsafe {
        let to = to.add(columns.start);
        match start {
            Start::Zero => to.write_bytes(0, columns.len()),
            Start::Bias(bias) => {
                std::ptr::copy_nonoverlapping(bias[columns.clone()].as_ptr(), to, columns.len());
            }
            Start::Add => {}
        }
    }
}

/// `sums += x · b`
#[inline(always)]
unsafe fn add_row<S: Simd, const W: usize>(x: f32, b: *const u16, sums: &mut [S::F; W]) {
    unsafe {
        let x = S::splat(x);
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = S::fma(x, S::load_bf16(b.add(j * LANES)), *sum);
        }
    }
}

/// `c += x · b` with `W` vectors of columns, in blocks of k.
#[inline(always)]
unsafe fn rows_of_blocks<S: Simd, const W: usize>(
    x: *const f32,
    length: usize,
    mut b: *const u16,
    stride: usize,
    c: *mut f32,
) {
    unsafe {
        for top in (0..length).step_by(BLOCK) {
            let mut even = [S::splat(0.0); W];
            let mut odd = even;
            for k in (top..(top + BLOCK).min(length)).step_by(2) {
                add_row::<S, W>(*x.add(k), b, &mut even);
                b = b.wrapping_add(stride);
                if k + 1 < length {
                    add_row::<S, W>(*x.add(k + 1), b, &mut odd);
                    b = b.wrapping_add(stride);
                }
            }
            for (j, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                let before = without_subnormals(F::<S>(S::load(c.add(j * LANES))));
                let after = without_subnormals(before + (F(even) + F(odd)));
                S::store(c.add(j * LANES), after.0);
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
