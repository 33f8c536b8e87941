//! Packing: copies of A and B in the order in which tiles read them.
//!
//! A is packed tile after tile, each `[steps, height]`; B panel after panel, each `[steps, width]`, padded to
//! whole vectors. A step is one k, or one pair of k, depending on the content of a 32-bit word: see
//! [`Numbers`].

use std::ops::Range;

use super::{PANEL, View};
use crate::kernel::simd::{F, LANES, Simd, U, simd, to_bf16};
use crate::kernel::team::Parts;

/// The content of a word of a packed tile or panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// An f32.
    F32,
    /// An f32 rounded to bf16; of each pair of k the second is first.
    Rounded,
    /// The two bf16 of a pair of k, the first in the lower 16 bits.
    Pairs,
    /// An f32 rounded to bf16; of each [`BLOCK`] of k the even ones are first.
    Blocks,
    /// As `Pairs`, in the tiles of [`super::amx`].
    Tiles,
}

/// Values of k that a matrix tile multiplies: in `bf16_tile`, k is padded with zeros to a multiple of it.
pub const BLOCK: usize = 32;

impl Numbers {
    /// The steps of `k`, padded with 0 to whole pairs or blocks.
    pub fn steps(self, k: usize) -> usize {
        match self {
            Numbers::F32 => k,
            Numbers::Rounded => k.next_multiple_of(2),
            Numbers::Pairs => k.div_ceil(2),
            Numbers::Blocks => k.next_multiple_of(BLOCK),
            Numbers::Tiles => k.next_multiple_of(BLOCK) / 2,
        }
    }

    /// Whether tiles of `a` are packed for a task of so many columns: if they are to be rounded; if the stride
    /// maps rows, or steps, to the same sets of the cache; or if each step is in another row and tiles of more
    /// than four vectors read it.
    pub fn packs(self, a: View, columns: usize) -> bool {
        let transposed = a.column != 1;
        let stride = if transposed { a.column } else { a.row };
        self != Numbers::F32 || stride.is_multiple_of(1024) || transposed && columns > 4 * LANES
    }

    /// The most vectors of a panel of B.
    pub fn vectors(self) -> usize {
        if self == Numbers::Tiles { 2 } else { 3 }
    }

    /// The most columns of a panel of B.
    pub fn panel(self) -> usize {
        self.vectors() * LANES
    }

    /// What the rows of a task are a multiple of.
    pub fn grain(self) -> usize {
        if self == Numbers::Tiles { 32 } else { 8 }
    }

    /// The rows that packed tiles of `rows` rows take room for.
    pub fn padded(self, rows: usize) -> usize {
        if self == Numbers::Tiles { rows.next_multiple_of(LANES) } else { rows }
    }

    /// The range of k of some steps.
    pub fn depths(self, steps: Range<usize>, k: usize) -> Range<usize> {
        let each = if matches!(self, Numbers::Pairs | Numbers::Tiles) { 2 } else { 1 };
        (each * steps.start).min(k)..(each * steps.end).min(k)
    }
}

/// Rows of A that are packed by one task, and rounded at a time: a multiple of every tile height.
pub(super) const RUN: usize = 96;

/// Steps of B that are packed by one task: a multiple of [`BLOCK`].
pub(super) const STRIP: usize = 32;

/// Steps of A that are rounded at a time: a multiple of [`BLOCK`].
const STAGE: usize = 32;

simd! {
    /// The tiles of some rows, `steps` of them, of `a: [.., k]`.
    pub(super) fn pack_left<S>(numbers: Numbers, out: Parts, a: View, rows: Range<usize>, steps: Range<usize>, k: usize) {
        assert!(out.len() >= numbers.padded(rows.len()) * steps.len());
        #[cfg(target_arch = "x86_64")]
        if numbers == Numbers::Tiles {
            // SAFETY: the numbers are chosen where the CPU has the instructions; the bounds were checked.
            return unsafe { super::amx::pack_left(out.pointer(), a, rows, numbers.depths(steps, k)) };
        }
        let out = out.pointer();
        if numbers == Numbers::F32 {
            // SAFETY: S runs here, and the bounds were checked.
            return unsafe { tiles_of::<S>(out, a, rows, steps.start, steps.len()) };
        }
        // Tiles are packed to a buffer on the stack first, from which they are rounded.
        let mut stage = [0.0; RUN * 2 * STAGE + LANES];
        for run in pieces(rows.clone(), RUN) {
            for some in pieces(steps.clone(), STAGE) {
                let depths = numbers.depths(some.clone(), k);
                // SAFETY: as above; `stage` holds 2 · STAGE of k.
                unsafe {
                    tiles_of::<S>(stage.as_mut_ptr(), a, run.clone(), depths.start, depths.len());
                    let mut i = 0;
                    while i < run.len() {
                        let height = S::height(run.len() - i);
                        let to = (run.start - rows.start + i) * steps.len() + (some.start - steps.start) * height;
                        let from = &stage[i * depths.len()..];
                        assert!(from.len() >= depths.len() * height + LANES - 1);
                        let (from, depth) = (from.as_ptr(), depths.len());
                        round_rows::<S>(numbers, from, height, depth, some.len(), height, out.add(to));
                        i += height;
                    }
                }
            }
        }
    }

    /// Some steps, a `strip` of `steps`, of the panels, at most `vectors` wide, of some columns of `b: [k, ..]`.
    pub(super) fn pack_right<S>(
        numbers: Numbers,
        out: Parts,
        b: View,
        strip: Range<usize>,
        steps: Range<usize>,
        k: usize,
        columns: Range<usize>,
        vectors: usize,
    ) {
        for panel in panels(columns.clone(), vectors) {
            let across = panel.len().next_multiple_of(LANES);
            let out = out.from((panel.start - columns.start) * steps.len() + strip.start * across);
            assert!(out.len() >= strip.len() * across);
            let strip = steps.start + strip.start..steps.start + strip.end;
            // SAFETY: as above.
            unsafe { panel_in::<S>(numbers, out.pointer(), b, strip, k, panel) };
        }
    }
}

/// Packs some steps of the panel of some columns.
#[inline(always)]
pub(super) unsafe fn panel_in<S: Simd>(
    numbers: Numbers,
    out: *mut f32,
    b: View,
    steps: Range<usize>,
    k: usize,
    columns: Range<usize>,
) {
    unsafe {
        if numbers == Numbers::F32 {
            return panel_of::<S>(out, b, steps, columns);
        }
        #[cfg(target_arch = "x86_64")]
        if numbers == Numbers::Tiles {
            return super::amx::pack_right(out, b, numbers.depths(steps, k), columns);
        }
        let across = columns.len().next_multiple_of(LANES);
        let mut stage = [0.0; 2 * STRIP * PANEL];
        for strip in pieces(steps.clone(), STRIP) {
            let depths = numbers.depths(strip.clone(), k);
            let depth = depths.len();
            let (from, stride) = if b.column == 1 && across == columns.len() {
                (b.pointer(depths.start, columns.start), b.row)
            } else {
                panel_of::<S>(stage.as_mut_ptr(), b, depths, columns.clone());
                (stage.as_ptr(), across)
            };
            let out = out.add((strip.start - steps.start) * across);
            round_rows::<S>(numbers, from, stride, depth, strip.len(), across, out);
        }
    }
}

/// The columns of each panel: `most` vectors, 3 or 2, or one vector less in the last panels if that doesn't
/// divide the columns. The panels of the columns of some consecutive panels are these panels.
pub(super) fn panels(columns: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let vectors = columns.len().div_ceil(LANES);
    let narrow = if vectors == 1 { 0 } else { (most - vectors % most) % most };
    let wide = vectors.div_ceil(most) - narrow;
    let panel = most * LANES;
    (0..wide + narrow).map(move |i| {
        let (left, len) =
            if i < wide { (i * panel, panel) } else { (i * panel - (i - wide) * LANES, panel - LANES) };
        let left = columns.start + left;
        left..(left + len).min(columns.end)
    })
}

/// Pieces of a range, each but the last `len` long.
pub(super) fn pieces(all: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    all.clone().step_by(len).map(move |i| i..(i + len).min(all.end))
}

/// Numbers below this, 2^-55, count as 0 in bf16: then no product and no sum of products is denormal, which
/// VDPBF16PS flushes to 0 and other instructions don't.
pub(super) const LEAST: u32 = (127 - 55) << 23;

const INFINITE: u32 = 0x7f80_0000;

/// The nearest bf16 as products in bf16 and `bf16_tile` take it: 0 where `x` is below 2^-55.
pub fn to_bf16_tile(x: f32) -> u16 {
    if x.to_bits() << 1 >> 1 < LEAST { 0 } else { to_bf16(x) }
}

simd! {
    /// Rounds numbers to bf16, as products in bf16 and `bf16_tile` do.
    pub fn round_row<S>(row: &mut [f32]) {
        for x in row.chunks_mut(LANES) {
            round(F::<S>::load_some(x, 0.0)).float().store_some(x);
        }
    }
}

/// The nearest bf16, ties to even, in the upper 16 bits of each lane; the lower are 0. NaN stays NaN,
/// infinity infinity.
#[inline(always)]
fn round<S: Simd>(x: F<S>) -> U<S> {
    let bits = x.bits();
    let size = bits.shl::<1>().shr::<1>();
    let odd = bits.shl::<15>().shr::<31>();
    let nearest = (bits + U::splat(0x7fff) + odd).shr::<16>().shl::<16>();
    let nearest = nearest.float().keep_ge(size, U::splat(LEAST)).keep_ge(U::splat(INFINITE - 1), size);
    let special = bits.shr::<16>().shl::<16>().float().keep_ge(size, U::splat(INFINITE));
    // One of the two is 0.
    nearest.bits().xor(special.bits())
}

/// Rounds `rows: [depth, width]`, which begin every `stride`, into `steps` of packed words. Reads, but does not
/// write, up to 15 words behind a row.
#[inline(always)]
unsafe fn round_rows<S: Simd>(
    numbers: Numbers,
    rows: *const f32,
    stride: usize,
    depth: usize,
    steps: usize,
    width: usize,
    out: *mut f32,
) {
    let pairs = if numbers == Numbers::Blocks { steps / 2 } else { depth.div_ceil(2) };
    for pair in 0..pairs {
        let [first, second] = places(numbers, pair).map(|step| out.wrapping_add(step * width));
        let some = depth.saturating_sub(2 * pair).min(2);
        let from = rows.wrapping_add(2 * pair * stride);
        // SAFETY: the caller's; what is not there is not read.
        unsafe {
            let load = |j: usize, i: usize| {
                if i < some { F(S::load(from.add(i * stride + j))) } else { F::splat(0.0) }
            };
            if some == 2 && width == LANES / 2 && stride == width && numbers != Numbers::Pairs {
                // Both in one vector.
                let all = round(load(0, 0)).float().to_array();
                std::ptr::copy_nonoverlapping(all.as_ptr(), first, LANES / 2);
                std::ptr::copy_nonoverlapping(all.as_ptr().add(LANES / 2), second, LANES / 2);
                continue;
            }
            for j in (0..width).step_by(LANES) {
                let (low, high) = (round::<S>(load(j, 0)), round::<S>(load(j, 1)));
                if numbers == Numbers::Pairs {
                    put::<S>(low.shr::<16>().xor(high).float(), first.add(j), width - j);
                } else {
                    put::<S>(high.float(), second.add(j), width - j);
                    put::<S>(low.float(), first.add(j), width - j);
                }
            }
        }
    }
}

/// The steps that the first and the second of a pair of k are packed to.
#[inline(always)]
fn places(numbers: Numbers, pair: usize) -> [usize; 2] {
    match numbers {
        Numbers::Blocks => {
            const HALF: usize = BLOCK / 2;
            let even = pair / HALF * BLOCK + pair % HALF;
            [even, even + HALF]
        }
        Numbers::Pairs => [pair, pair],
        _ => [2 * pair + 1, 2 * pair],
    }
}

/// Stores the first `n` lanes, or all 16. Tiles are 8 or 6 rows high: of a known length, a copy is no call.
#[inline(always)]
unsafe fn put<S: Simd>(x: F<S>, to: *mut f32, n: usize) {
    unsafe {
        if n >= LANES {
            return S::store(to, x.0);
        }
        let all = x.to_array();
        match n {
            8 => std::ptr::copy_nonoverlapping(all.as_ptr(), to, 8),
            6 => std::ptr::copy_nonoverlapping(all.as_ptr(), to, 6),
            _ => std::ptr::copy_nonoverlapping(all.as_ptr(), to, n),
        }
    }
}

/// `packed[i][j] = b[steps.start + i, columns.start + j]`, padded with zeros to whole vectors.
#[inline(always)]
unsafe fn panel_of<S: Simd>(out: *mut f32, b: View, steps: Range<usize>, columns: Range<usize>) {
    let (top, left, depth, width) = (steps.start, columns.start, steps.len(), columns.len());
    let across = width.next_multiple_of(LANES);
    unsafe {
        if width < across {
            out.write_bytes(0, depth * across);
        }
        if b.column == 1 && width == across {
            for i in 0..depth {
                let row = b.pointer(top + i, left);
                for j in (0..across).step_by(LANES) {
                    S::store(out.add(i * across + j), S::load(row.add(j)));
                }
            }
            return;
        }
        let whole = if b.row == 1 { (depth / LANES * LANES, width / LANES * LANES) } else { (0, 0) };
        for i in (0..whole.0).step_by(LANES) {
            for j in (0..whole.1).step_by(LANES) {
                S::transpose(b.pointer(top + i, left + j), b.column, out.add(i * across + j), across);
            }
        }
        for i in 0..depth {
            for j in if i < whole.0 { whole.1..width } else { 0..width } {
                *out.add(i * across + j) = *b.pointer(top + i, left + j);
            }
        }
    }
}

/// Packs `rows` of A tile after tile, each `[depth, height]`.
#[inline(always)]
unsafe fn tiles_of<S: Simd>(out: *mut f32, a: View, rows: Range<usize>, top: usize, depth: usize) {
    unsafe {
        if a.row == 1 {
            // A is transposed: each row of the transpose is read sequentially. Whole vectors are stored, and
            // the surplus lanes are overwritten by the next step of the tile, except in its last steps.
            let tile = S::height(usize::MAX);
            let whole = rows.len().saturating_sub(LANES - tile) / tile * tile;
            for k in 0..depth {
                let (from, to) = (a.pointer(rows.start, top + k), out.add(k * tile));
                let whole = if (depth - k) * tile >= LANES { whole } else { 0 };
                for i in (0..whole).step_by(tile) {
                    S::store(to.add(i * depth), S::load(from.add(i)));
                }
                let mut i = whole;
                while i < rows.len() {
                    let height = S::height(rows.len() - i);
                    let some = S::load_first(from.add(i), height, S::splat(0.0));
                    S::store_first(out.add(i * depth + k * height), height, some);
                    i += height;
                }
            }
            return;
        }
        let mut i = rows.start;
        while i < rows.end {
            let height = S::height(rows.end - i);
            let out = out.add((i - rows.start) * depth);
            let mut k = 0;
            if height > 4 && i + LANES <= rows.end && a.column == 1 {
                while k + LANES <= depth {
                    S::transpose(a.pointer(i, top + k), a.row, out.add(k * height), height);
                    k += LANES;
                }
            }
            for k in k..depth {
                for y in 0..height {
                    *out.add(k * height + y) = *a.pointer(i + y, top + k);
                }
            }
            i += height;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What packing for several tasks relies on.
    #[test]
    fn panels_cover_their_columns_and_consecutive_ones_are_panels_of_theirs() {
        for (n, most) in (0..400).flat_map(|n| [(n, 3), (n, 2)]) {
            let all: Vec<_> = panels(7..7 + n, most).collect();
            assert_eq!(all.len(), n.div_ceil(most * LANES), "{n} columns");
            assert!(all.windows(2).all(|two| two[0].end == two[1].start && two[0].len() % LANES == 0));
            assert_eq!(all.first().map_or(7, |p| p.start)..all.last().map_or(7, |p| p.end), 7..7 + n);
            // None is only one vector wide, unless all of B is.
            assert!(most == 2 || n <= LANES || all.iter().all(|p| p.len() > LANES), "{all:?}");
            for group in [1, 2, 3, 5] {
                for some in all.chunks(group) {
                    let own = some[0].start..some[some.len() - 1].end;
                    assert!(panels(own, most).eq(some.iter().cloned()), "{some:?} of {n}");
                }
            }
        }
    }
}
