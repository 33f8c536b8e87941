//! Rows of x, rounded to integers of 8 bits, 32 or 256 with one scale.
//!
//! As ggml rounds them (`quantize_row_q8_0` and `quantize_row_q8_K` of its ggml-cpu), so that a model says the
//! same here and in llama.cpp.

use std::ops::Range;

use half::f16;

use super::form::bytes_of;
use crate::kernel::BlockType;
use crate::kernel::matmul::View;
use crate::kernel::simd::{F, Isa, LANES, simd};
use crate::kernel::team::{Parts, Team};

/// Numbers from one stored scale to the next.
pub const GROUP: usize = 32;

/// How many numbers share a scale, which depends on the blocks they are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// 32, a scale that f16 holds: beside blocks of 32.
    By32,
    /// 256, a scale in f32: beside blocks of 256, the K types.
    By256,
}

impl Sharing {
    pub const ALL: [Sharing; 2] = [Sharing::By32, Sharing::By256];

    /// That of rows beside blocks of `ty`.
    pub fn beside(ty: BlockType) -> Self {
        if ty.block_len() == 256 { Sharing::By256 } else { Sharing::By32 }
    }
}

/// Rounded rows, each `k` integers, then a scale for each 32 of them, then the sum of each 16 as an i32.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: Parts<'a, u8>,
    count: usize,
    k: usize,
    sharing: Sharing,
}

impl<'a> Rows<'a> {
    /// Calls `f` with memory for `count` rows of `k` numbers, a multiple of those that share a scale.
    pub fn with<R>(team: &Team, count: usize, k: usize, sharing: Sharing, f: impl FnOnce(Rows) -> R) -> R {
        assert!(k.is_multiple_of(if sharing == Sharing::By256 { 256 } else { GROUP }), "rows of {k}");
        team.with_scratch(count * Self::bytes_for(k) / size_of::<f32>(), |words| {
            f(Rows { data: Parts::new(bytes_of(words)), count, k, sharing })
        })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn k(&self) -> usize {
        self.k
    }

    /// From a row to the next.
    pub fn stride(&self) -> usize {
        Self::bytes_for(self.k)
    }

    fn bytes_for(k: usize) -> usize {
        Self::sums_at(k) + k / LANES * size_of::<i32>()
    }

    /// Where a row's scales begin.
    pub fn scales_at(k: usize) -> usize {
        k
    }

    /// Where a row's sums begin.
    pub fn sums_at(k: usize) -> usize {
        k + k / GROUP * size_of::<f32>()
    }

    /// The first byte of a row.
    pub fn pointer(&self, row: usize) -> *const u8 {
        assert!(row < self.count, "row {row} of {}", self.count);
        self.data.pointer().wrapping_add(row * self.stride())
    }

    /// Rounds some rows of `x: [count, k]`. No other thread may do it meanwhile.
    pub fn round(&self, isa: Isa, x: View, some: Range<usize>) {
        for i in some {
            // SAFETY: each row has one task.
            let row = unsafe { self.data.take(i * self.stride()..(i + 1) * self.stride()) };
            round(isa, &x.row(i)[..self.k], self.sharing, row);
        }
    }
}

simd! {
    /// `x · 127 / max |x|` to the nearest integer, ties to even; the scale is `max |x| / 127`, or for 256
    /// numbers the inverse of that factor. A scale is NaN where
    /// a number is infinite or NaN; numbers below 1e-30 count as 0.
    fn round<S>(x: &[f32], sharing: Sharing, row: &mut [u8]) {
        let (codes, rest) = row.split_at_mut(x.len());
        let (scales, sums) = rest.split_at_mut(x.len() / GROUP * 4);
        // Adding and subtracting it leaves no bits behind the point.
        let whole = F::<S>::splat(12_582_912.0);
        let groups = match sharing {
            Sharing::By32 => 1,
            Sharing::By256 => 256 / GROUP,
        };
        for (b, x) in x.chunks_exact(GROUP * groups).enumerate() {
            let (mut max, mut nan) = (F::<S>::splat(0.0), F::<S>::splat(0.0));
            for x in x.chunks_exact(LANES) {
                let x = F::load(x);
                max = max.max(x.abs());
                nan = x.mul_add(F::splat(0.0), nan);
            }
            let max = max.max_lane();
            let inverse = if max > 1e-30 { 127.0 / max } else { 0.0 };
            // As ggml rounds each, to the last bit.
            let scale = match sharing {
                Sharing::By32 => f16::from_f32(max / 127.0).to_f32(),
                Sharing::By256 if inverse > 0.0 => 1.0 / inverse,
                Sharing::By256 => 0.0,
            };
            let (scale, inverse) = (scale + nan.sum(), F::splat(inverse));
            for (g, x) in x.chunks_exact(GROUP).enumerate() {
                let g = b * groups + g;
                scales[4 * g..][..4].copy_from_slice(&scale.to_ne_bytes());
                for (half, x) in x.chunks_exact(LANES).enumerate() {
                    let rounded = (F::load(x) * inverse + whole) - whole;
                    // SAFETY: S runs here, and there are 16 bytes.
                    unsafe { S::store_i8(codes[GROUP * g + LANES * half..][..LANES].as_mut_ptr().cast(), rounded.0) };
                    // Exact: whole numbers of few bits.
                    let sum = rounded.sum() as i32;
                    sums[4 * (2 * g + half)..][..4].copy_from_slice(&sum.to_ne_bytes());
                }
            }
        }
    }
}
