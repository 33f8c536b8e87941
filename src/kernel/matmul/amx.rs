//! bf16 products by Intel's matrix tiles (AMX, "Intel 64 and IA-32 Architectures Software Developer's Manual",
//! volume 1, chapter 18): a tile of C is 16 × 16 sums, one of A 16 rows of 16 pairs of k, one of B 16 pairs of
//! k of 16 columns.
//!
//! Packed, 16 rows of A are such tiles one after the other, each 1 KiB; a panel of B is `[pairs, width]`, of
//! which a tile is a part. The compiler doesn't know tile registers: each instruction is assembly of its own, and
//! nothing else uses them.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::View;
use super::pack::{BLOCK, LEAST};
use super::tile::{Begin, Block, Kernel, Panel};
use crate::kernel::simd::{LANES, Simd, Tiles};
use crate::kernel::x86::Avx512;

/// Words of a tile: 1 KiB.
const TILE: usize = LANES * LANES;

/// Bytes of a row of a tile.
const ROW: usize = 4 * LANES;

/// Eight tile registers: 0 to 3 are for C, 4 and 5 for A, 6 and 7 for B.
pub(super) trait Unit {
    unsafe fn zero<const T: usize>();
    /// Rows begin every `stride` bytes.
    unsafe fn load<const T: usize>(from: *const f32, stride: usize);
    unsafe fn store<const T: usize>(to: *mut f32, stride: usize);
    /// `c += a · b`
    unsafe fn multiply<const C: usize, const A: usize, const B: usize>();
}

/// Those of the CPU.
pub(super) struct Native;

impl Unit for Native {
    #[inline(always)]
    unsafe fn zero<const T: usize>() {
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn load<const T: usize>(from: *const f32, stride: usize) {
        unsafe {
            asm!("tileloadd tmm{t}, [{p} + {s}*1]", t = const T, p = in(reg) from, s = in(reg) stride,
                options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn store<const T: usize>(to: *mut f32, stride: usize) {
        unsafe {
            asm!("tilestored [{p} + {s}*1], tmm{t}", t = const T, p = in(reg) to, s = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn multiply<const C: usize, const A: usize, const B: usize>() {
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }
}

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

/// Gives all tile registers of this thread 16 rows of 64 bytes.
///
/// # Safety
/// The CPU has tiles, and their use is permitted.
pub(super) unsafe fn configure() {
    let eight = |i: usize, of: usize| if i < 8 { of } else { 0 };
    let shapes = Shapes {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_of_row: std::array::from_fn(|i| eight(i, ROW) as u16),
        rows: std::array::from_fn(|i| eight(i, LANES) as u8),
    };
    unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const shapes, options(readonly, nostack, preserves_flags)) }
}

/// Frees the registers, which the system would otherwise save whenever this thread is preempted.
///
/// # Safety
/// As of [`configure`].
pub(super) unsafe fn release() {
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
}

/// Tiles of C, two below two.
pub(super) struct Matrix<T>(PhantomData<T>);

impl<T: Unit> Kernel for Matrix<T> {
    #[inline(always)]
    unsafe fn panel(block: &Block, mut panel: Panel) {
        let mut i = block.rows.start;
        while i < block.rows.end {
            let left = block.rows.end - i;
            // SAFETY: the caller's.
            unsafe {
                match (left > LANES, panel.width > LANES) {
                    (true, true) => tiles::<T, 2, 2>(block, &mut panel, i),
                    (true, false) => tiles::<T, 2, 1>(block, &mut panel, i),
                    (false, true) => tiles::<T, 1, 2>(block, &mut panel, i),
                    (false, false) => tiles::<T, 1, 1>(block, &mut panel, i),
                }
            }
            i += 2 * LANES;
        }
    }
}

/// `R` · 16 rows from `i` on and `W` · 16 columns.
#[inline(always)]
unsafe fn tiles<T: Unit, const R: usize, const W: usize>(block: &Block, panel: &mut Panel, i: usize) {
    let (a, _, _) = block.tile(i, LANES);
    let below = LANES * block.depth;
    let across = panel.width.next_multiple_of(LANES);
    // What is prefetched in a step: of the next rows of C, and of the next panel.
    let mut next = panel.c.wrapping_add((i + R * LANES) * panel.stride).cast_const();
    let of_c = (R * TILE).div_ceil(block.depth.max(1));
    let of_panel = (4 * TILE).div_ceil(block.rows.len());
    let mut prefetch = panel.prefetch;
    let part = |r: usize, j: usize| Part::of(block, panel, i + r * LANES, j * LANES);
    unsafe {
        part(0, 0).begin::<T, 0>();
        if W > 1 {
            part(0, 1).begin::<T, 1>();
        }
        if R > 1 {
            part(1, 0).begin::<T, 2>();
        }
        if R > 1 && W > 1 {
            part(1, 1).begin::<T, 3>();
        }
        for step in (0..block.depth).step_by(LANES) {
            let (a, b) = (a.add(step * LANES), panel.packed.add(step * across));
            for _ in 0..of_c {
                (0..W).for_each(|j| Avx512::prefetch(next.wrapping_add(j * LANES)));
                next = next.wrapping_add(panel.stride);
            }
            for _ in 0..of_panel {
                prefetch.fetch::<Avx512, W>();
            }
            T::load::<6>(b, 4 * across);
            T::load::<4>(a, ROW);
            T::multiply::<0, 4, 6>();
            if W > 1 {
                T::load::<7>(b.add(LANES), 4 * across);
                T::multiply::<1, 4, 7>();
            }
            if R > 1 {
                T::load::<5>(a.add(below), ROW);
                T::multiply::<2, 5, 6>();
            }
            if R > 1 && W > 1 {
                T::multiply::<3, 5, 7>();
            }
        }
        part(0, 0).end::<T, 0>();
        if W > 1 {
            part(0, 1).end::<T, 1>();
        }
        if R > 1 {
            part(1, 0).end::<T, 2>();
        }
        if R > 1 && W > 1 {
            part(1, 1).end::<T, 3>();
        }
        panel.prefetch = prefetch;
    }
}

/// A tile of C: all 16 × 16 of it, or what C has of it.
struct Part<'a> {
    c: *mut f32,
    stride: usize,
    begin: Begin<'a>,
    column: usize,
    height: usize,
    width: usize,
}

/// A tile in memory.
#[repr(align(64))]
struct Copy([f32; TILE]);

impl<'a> Part<'a> {
    #[inline(always)]
    fn of(block: &Block, panel: &Panel<'a>, row: usize, column: usize) -> Self {
        Part {
            c: panel.c.wrapping_add(row * panel.stride + column),
            stride: panel.stride,
            begin: panel.begin,
            column,
            height: (block.rows.end - row).min(LANES),
            width: (panel.width - column).min(LANES),
        }
    }

    fn is_whole(&self) -> bool {
        self.height == LANES && self.width == LANES
    }

    #[inline(always)]
    unsafe fn begin<T: Unit, const C: usize>(&self) {
        unsafe {
            match self.begin {
                Begin::Zero => T::zero::<C>(),
                Begin::C if self.is_whole() => T::load::<C>(self.c, 4 * self.stride),
                Begin::C => {
                    let mut copy = Copy([0.0; TILE]);
                    for i in 0..self.height {
                        let (row, to) = (self.c.add(i * self.stride), copy.0.as_mut_ptr().add(i * LANES));
                        std::ptr::copy_nonoverlapping(row, to, self.width);
                    }
                    T::load::<C>(copy.0.as_ptr(), ROW);
                }
                Begin::Row(bias) => {
                    let mut copy = Copy([0.0; TILE]);
                    copy.0[..self.width].copy_from_slice(&bias[self.column..][..self.width]);
                    // The same row for all.
                    T::load::<C>(copy.0.as_ptr(), 0);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end<T: Unit, const C: usize>(&self) {
        unsafe {
            if self.is_whole() {
                return T::store::<C>(self.c, 4 * self.stride);
            }
            let mut copy = Copy([0.0; TILE]);
            T::store::<C>(copy.0.as_mut_ptr(), ROW);
            for i in 0..self.height {
                let (row, to) = (copy.0.as_ptr().add(i * LANES), self.c.add(i * self.stride));
                std::ptr::copy_nonoverlapping(row, to, self.width);
            }
        }
    }
}

/// Packs tiles of some rows and some k of A; what a tile has beyond them is 0.
///
/// # Safety
/// The CPU has AVX512-BF16, and `out` is long enough for whole tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn pack_left(out: *mut f32, a: View, rows: Range<usize>, depths: Range<usize>) {
    let blocks = depths.len().div_ceil(BLOCK);
    for block in 0..blocks {
        for top in (0..rows.len()).step_by(LANES) {
            let lines = Lines::of(a, rows.start + top..rows.end, depths.start + block * BLOCK..depths.end);
            let tile = out.wrapping_add((top / LANES * blocks + block) * TILE);
            // SAFETY: the caller's.
            unsafe { lines.pack(tile, LANES, a.column != 1) };
        }
    }
}

/// Packs some k of the panel of some columns of B; what a tile has beyond them is 0.
///
/// # Safety
/// As of [`pack_left`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn pack_right(out: *mut f32, b: View, depths: Range<usize>, columns: Range<usize>) {
    let across = columns.len().next_multiple_of(LANES);
    for (block, k) in depths.clone().step_by(BLOCK).enumerate() {
        for left in (0..columns.len()).step_by(LANES) {
            let lines = Lines::of(b.t(), columns.start + left..columns.end, k..depths.end);
            let tile = out.wrapping_add(block * LANES * across + left);
            // SAFETY: the caller's.
            unsafe { lines.pack(tile, across, b.row == 1) };
        }
    }
}

/// Up to 16 lines of up to [`BLOCK`] of k of a matrix `[lines, k]`: rows of A, or columns of B.
struct Lines<'a> {
    x: View<'a>,
    line: usize,
    count: usize,
    k: usize,
    depth: usize,
}

impl<'a> Lines<'a> {
    /// The first of `lines` and `depths`.
    #[inline(always)]
    fn of(x: View<'a>, lines: Range<usize>, depths: Range<usize>) -> Self {
        let (count, depth) = (lines.len().min(LANES), depths.len().min(BLOCK));
        Lines { x, line: lines.start, count, k: depths.start, depth }
    }

    /// Stores pairs of bf16: a vector of each line where k is contiguous, else a vector of each pair;
    /// `transposed`: the other way round. Vectors begin every `stride`.
    #[inline(always)]
    unsafe fn pack(&self, to: *mut f32, stride: usize, transposed: bool) {
        // SAFETY: the caller's.
        unsafe {
            // Known to the compiler, so that it leaves masks and counts away.
            if self.count == LANES && self.depth == BLOCK {
                let whole = Lines { count: LANES, depth: BLOCK, ..*self };
                whole.store(to, stride, transposed)
            } else {
                self.store(to, stride, transposed)
            }
        }
    }

    #[inline(always)]
    unsafe fn store(&self, to: *mut f32, stride: usize, transposed: bool) {
        unsafe {
            if !transposed {
                for i in 0..LANES {
                    _mm512_storeu_ps(to.add(i * stride), self.vector(i));
                }
                return;
            }
            let mut vectors = [_mm512_setzero_ps(); LANES];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = self.vector(i);
            }
            for (i, vector) in Avx512::transposed(vectors).into_iter().enumerate() {
                _mm512_storeu_ps(to.add(i * stride), vector);
            }
        }
    }

    /// Line `i`, or pair `i` of all lines; 0 where there is none.
    #[inline(always)]
    unsafe fn vector(&self, i: usize) -> __m512 {
        let Lines { x, line, count, k, depth } = *self;
        let first = |n: usize| ((1u32 << n.min(LANES)) - 1) as __mmask16;
        unsafe {
            if x.column == 1 {
                let depth = if i < count { depth } else { 0 };
                let from = x.pointer(line + i, k);
                let low = _mm512_maskz_loadu_ps(first(depth), from);
                let high =
                    _mm512_maskz_loadu_ps(first(depth.saturating_sub(LANES)), from.wrapping_add(LANES));
                return _mm512_castsi512_ps(rounded(low, high));
            }
            let some = |k: usize| if k < depth { first(count) } else { 0 };
            let even = _mm512_maskz_loadu_ps(some(2 * i), x.pointer(line, k + 2 * i));
            let odd = _mm512_maskz_loadu_ps(some(2 * i + 1), x.pointer(line, k + 2 * i + 1));
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleaved(), rounded(even, odd)))
        }
    }
}

/// Takes one of the lower 16 and one of the upper 16, in turn.
#[inline(always)]
unsafe fn interleaved() -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// Two vectors as 32 bf16, the first in the lower half; numbers below 2^-55 are 0, see [`LEAST`].
#[inline(always)]
unsafe fn rounded(first: __m512, second: __m512) -> __m512i {
    unsafe {
        let least = _mm512_set1_ps(f32::from_bits(LEAST));
        // True of NaN, too.
        let low = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(first), least);
        let high = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(second), least);
        let kept = _mm512_kunpackw(u32::from(high), u32::from(low));
        std::mem::transmute::<__m512bh, __m512i>(_mm512_maskz_cvtne2ps_pbh(kept, second, first))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Tile registers in memory, with the arithmetic that Intel gives for TDPBF16PS.
    pub struct Simulated;

    thread_local! {
        static TILES: RefCell<[[f32; TILE]; 8]> = const { RefCell::new([[0.0; TILE]; 8]) };
    }

    fn normal(x: f32) -> f32 {
        if x.is_subnormal() { 0f32.copysign(x) } else { x }
    }

    /// The two bf16 of a word.
    fn pair(word: f32) -> [f32; 2] {
        let bits = word.to_bits();
        [bits << 16, bits & 0xffff_0000].map(|bits| normal(f32::from_bits(bits)))
    }

    impl Unit for Simulated {
        unsafe fn zero<const T: usize>() {
            TILES.with_borrow_mut(|tiles| tiles[T] = [0.0; TILE]);
        }
        unsafe fn load<const T: usize>(from: *const f32, stride: usize) {
            let row = |i: usize| unsafe { from.byte_add(i * stride).cast::<[f32; LANES]>().read() };
            let all: [[f32; LANES]; LANES] = std::array::from_fn(row);
            TILES.with_borrow_mut(|tiles| tiles[T].copy_from_slice(all.as_flattened()));
        }
        unsafe fn store<const T: usize>(to: *mut f32, stride: usize) {
            TILES.with_borrow(|tiles| {
                for (i, row) in tiles[T].as_chunks::<LANES>().0.iter().enumerate() {
                    unsafe { to.byte_add(i * stride).cast::<[f32; LANES]>().write(*row) };
                }
            });
        }
        unsafe fn multiply<const C: usize, const A: usize, const B: usize>() {
            TILES.with_borrow_mut(|tiles| {
                for (i, j) in (0..TILE).map(|i| (i / LANES, i % LANES)) {
                    let mut sums = [0.0; 2];
                    for k in 0..LANES {
                        let (x, y) = (pair(tiles[A][i * LANES + k]), pair(tiles[B][k * LANES + j]));
                        sums = std::array::from_fn(|e| normal(x[e].mul_add(y[e], sums[e])));
                    }
                    let c = &mut tiles[C][i * LANES + j];
                    *c = normal(normal(*c) + normal(sums[0] + sums[1]));
                }
            });
        }
    }
}
