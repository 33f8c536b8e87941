//! Products of a few rows: B is needed but once, so it is read where it lies.

use std::ops::Range;

use super::{Start, View};
use crate::kernel::simd::{LANES, Number, Simd, simd};
use crate::kernel::team::Parts;

simd! {
    /// Row by row, some vectors of columns at a time.
    pub(super) fn thin<S>(
        rows: Range<usize>,
        columns: Range<usize>,
        k: usize,
        a: View,
        b: View,
        start: Start,
        c: Parts,
        stride: usize,
    ) {
        // SAFETY: S runs here, and the bounds were checked.
        unsafe { thin_part::<S, f32>(rows, columns, k, a, b, start, c.pointer(), stride) }
    }

    /// The same with a matrix of bf16.
    pub(super) fn thin_halves<S>(
        rows: Range<usize>,
        columns: Range<usize>,
        k: usize,
        a: View,
        b: View<u16>,
        start: Start,
        c: Parts,
        stride: usize,
    ) {
        // SAFETY: as above.
        unsafe { thin_part::<S, u16>(rows, columns, k, a, b, start, c.pointer(), stride) }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn thin_part<S: Simd, N: Number>(
    rows: Range<usize>,
    columns: Range<usize>,
    k: usize,
    a: View,
    b: View<N>,
    start: Start,
    c: *mut f32,
    stride: usize,
) {
    unsafe {
        for i in rows {
            let (x, to) = (a.from(i, 0), c.add(i * stride));
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
                // Long pieces of a row: B comes from beyond the cache, and is read ahead by the line.
                if S::WIDE {
                    while j + 16 * LANES <= columns.end {
                        thin_rows::<S, N, 16>(x, a.column, k, b.from(0, j), b.row, to.add(j));
                        j += 16 * LANES;
                    }
                }
                while j + 4 * LANES <= columns.end {
                    thin_rows::<S, N, 4>(x, a.column, k, b.from(0, j), b.row, to.add(j));
                    j += 4 * LANES;
                }
                while j + LANES <= columns.end {
                    thin_rows::<S, N, 1>(x, a.column, k, b.from(0, j), b.row, to.add(j));
                    j += LANES;
                }
            } else {
                while j + LANES <= columns.end {
                    thin_columns::<S, N>(x, a.column, k, b.from(0, j), b.column, to.add(j));
                    j += LANES;
                }
            }
            for j in j..columns.end {
                let mut sum = *to.add(j);
                for k in 0..k {
                    sum = (*x.add(k * a.column)).mul_add((*b.from(k, j)).widened(), sum);
                }
                *to.add(j) = sum;
            }
        }
    }
}

/// `c += x · b` with `W` vectors of columns; rows of b lie `stride` apart.
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

/// `c += x · b` with one vector of columns, each of which lies in one piece, `stride` behind the other.
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
