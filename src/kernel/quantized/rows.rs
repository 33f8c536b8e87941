//! Rows of x, rounded to integers of 8 bits, 32 or 256 with one scale.
//!
//! As ggml rounds them (`quantize_row_q8_0` and `quantize_row_q8_K` of its ggml-cpu), so that a model says the
//! same here and in llama.cpp.
//!
//! ```text
//!  By32    k codes, k/32 scales (f32), sums of 32 (i32), -128 times sums of 4 (i32)
//!  By256   k codes, k/256 scales (f32), sums of 32 (i16), sums of 16 (i16)
//! ```
//!
//! A sum of 32 codes is at most 32 · 127, which 16 bits hold.

use std::ops::Range;

use half::f16;

use super::form::{BLOCK, bytes_of};
use crate::kernel::BlockType;
use crate::kernel::matmul::View;
use crate::kernel::simd::{F, Isa, LANES, simd};
use crate::kernel::team::{Parts, Team};

/// Numbers of the smaller groups that share a scale.
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
        if ty.block_len() == BLOCK { Sharing::By256 } else { Sharing::By32 }
    }

    /// Numbers with one scale.
    pub const fn len(self) -> usize {
        match self {
            Sharing::By32 => GROUP,
            Sharing::By256 => BLOCK,
        }
    }

    /// Where the sums of 32 of a row of `k` numbers begin.
    pub const fn sums_at(self, k: usize) -> usize {
        k + k / self.len() * size_of::<f32>()
    }

    /// Where the sums of fewer begin.
    pub const fn parts_at(self, k: usize) -> usize {
        self.sums_at(k) + k / GROUP * if matches!(self, Sharing::By32) { 4 } else { 2 }
    }

    /// Bytes of a row.
    const fn row_bytes(self, k: usize) -> usize {
        self.parts_at(k) + if matches!(self, Sharing::By32) { k } else { k / 8 }
    }
}

/// Rounded rows.
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
        assert!(k.is_multiple_of(sharing.len()), "rows of {k}");
        team.with_scratch(count * sharing.row_bytes(k) / size_of::<f32>(), |words| {
            f(Rows { data: Parts::new(bytes_of(words)), count, k, sharing })
        })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn k(&self) -> usize {
        self.k
    }

    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// From a row to the next.
    pub fn stride(&self) -> usize {
        self.sharing.row_bytes(self.k)
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

/// The sum of four bytes with signs, the parts of a word: of pairs of bytes without signs first, then of these.
#[inline(always)]
fn sum_of_four(word: u32) -> i32 {
    let unsigned = word ^ 0x8080_8080;
    let pairs = (unsigned & 0x00ff_00ff) + (unsigned >> 8 & 0x00ff_00ff);
    (pairs.wrapping_mul(0x0001_0001) >> 16) as i32 - 4 * 128
}

simd! {
    /// `x · 127 / max |x|` to the nearest integer, ties to even; the scale is `max |x| / 127`, or for 256
    /// numbers the inverse of that factor. A scale is NaN where a number is infinite or NaN; numbers below 1e-30
    /// count as 0.
    fn round<S>(x: &[f32], sharing: Sharing, row: &mut [u8]) {
        let (codes, rest) = row.split_at_mut(x.len());
        let (scales, rest) = rest.split_at_mut(sharing.sums_at(x.len()) - x.len());
        let (sums, parts) = rest.split_at_mut(sharing.parts_at(x.len()) - sharing.sums_at(x.len()));
        // Adding and subtracting it leaves no bits behind the point.
        let whole = F::<S>::splat(12_582_912.0);
        let shared = x.chunks_exact(sharing.len()).zip(codes.chunks_exact_mut(sharing.len()));
        for ((x, codes), scale) in shared.zip(scales.as_chunks_mut::<4>().0) {
            let (mut max, mut nan) = (F::<S>::splat(0.0), F::<S>::splat(0.0));
            for x in x.chunks_exact(LANES) {
                let x = F::load(x);
                max = max.max(x.abs());
                nan = x.mul_add(F::splat(0.0), nan);
            }
            let max = max.max_lane();
            let inverse = if max > 1e-30 { 127.0 / max } else { 0.0 };
            // As ggml rounds each, to the last bit.
            let of_max = match sharing {
                Sharing::By32 => f16::from_f32(max / 127.0).to_f32(),
                Sharing::By256 if inverse > 0.0 => 1.0 / inverse,
                Sharing::By256 => 0.0,
            };
            *scale = (of_max + nan.sum()).to_ne_bytes();
            let inverse = F::splat(inverse);
            for (x, codes) in x.chunks_exact(LANES).zip(codes.chunks_exact_mut(LANES)) {
                let rounded = (F::load(x) * inverse + whole) - whole;
                // SAFETY: S runs here, and there are 16 bytes.
                unsafe { S::store_i8(codes.as_mut_ptr().cast(), rounded.0) };
            }
        }
        match sharing {
            Sharing::By32 => {
                let parts = parts.as_chunks_mut::<4>().0;
                for (part, four) in parts.iter_mut().zip(codes.as_chunks::<4>().0) {
                    *part = (-128 * sum_of_four(u32::from_ne_bytes(*four))).to_ne_bytes();
                }
                for (sum, parts) in sums.as_chunks_mut::<4>().0.iter_mut().zip(parts.as_chunks::<8>().0) {
                    let all: i32 = parts.iter().map(|part| i32::from_ne_bytes(*part)).sum();
                    *sum = (all / -128).to_ne_bytes();
                }
            }
            Sharing::By256 => {
                let parts = parts.as_chunks_mut::<2>().0;
                for (part, codes) in parts.iter_mut().zip(codes.as_chunks::<LANES>().0) {
                    let fours = codes.as_chunks::<4>().0.iter();
                    let sum: i32 = fours.map(|four| sum_of_four(u32::from_ne_bytes(*four))).sum();
                    *part = (sum as i16).to_ne_bytes();
                }
                for (sum, parts) in sums.as_chunks_mut::<2>().0.iter_mut().zip(parts.as_chunks::<2>().0) {
                    let [a, b] = parts.map(i16::from_ne_bytes);
                    *sum = (a + b).to_ne_bytes();
                }
            }
        }
    }
}
