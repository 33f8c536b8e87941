//! Copies of A and B in the order in which tiles read them.
//!
//! A is packed **tile after tile**, each `[steps, height]`; B **panel after panel**, each `[steps, width]`,
//! whole vectors wide. A step is what a tile does with one word of each: see [`Numbers`].

use std::ops::Range;

use super::{PANEL, View};
use crate::kernel::simd::{F, LANES, Simd, U, simd};
use crate::kernel::team::Parts;

/// What the words of tiles and panels hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// An f32.
    F32,
    /// An f32 rounded to bf16; of each pair of k the second comes first.
    Rounded,
    /// The two bf16 of a pair of k, the first in the lower half.
    Pairs,
}

impl Numbers {
    /// Steps that `k` takes. What a last pair lacks is 0.
    pub fn steps(self, k: usize) -> usize {
        match self {
            Numbers::F32 => k,
            Numbers::Rounded => k.next_multiple_of(2),
            Numbers::Pairs => k.div_ceil(2),
        }
    }

    /// Whether tiles of `a` are copied for so many columns of a task: to be rounded; where rows, or steps,
    /// lie so that all fall on the same few places of the cache; and where a step goes to another row, if
    /// more than four vectors read them.
    pub fn packs(self, a: View, columns: usize) -> bool {
        let transposed = a.column != 1;
        let stride = if transposed { a.column } else { a.row };
        self != Numbers::F32 || stride.is_multiple_of(1024) || transposed && columns > 4 * LANES
    }

    /// What steps take of `k`.
    fn depths(self, steps: Range<usize>, k: usize) -> Range<usize> {
        let each = if self == Numbers::Pairs { 2 } else { 1 };
        (each * steps.start).min(k)..(each * steps.end).min(k)
    }
}

/// Rows of A that are packed by one task, and that are rounded at a time: whole tiles of all heights.
pub(super) const RUN: usize = 96;

/// Steps of B that are packed by one task.
pub(super) const STRIP: usize = 16;

/// Steps that pass through the stage at a time.
const STAGE: usize = 32;

simd! {
    /// The tiles of some rows, `steps` of them, of `a: [.., k]`.
    pub(super) fn pack_left<S>(numbers: Numbers, out: Parts, a: View, rows: Range<usize>, steps: Range<usize>, k: usize) {
        assert!(out.len() >= rows.len() * steps.len());
        let out = out.pointer();
        if numbers == Numbers::F32 {
            // SAFETY: S runs here, and the bounds were checked.
            return unsafe { tiles_of::<S>(out, a, rows, steps.start, steps.len()) };
        }
        // Tiles are packed as they are, then rounded on the way to their place.
        let mut stage = [0.0; RUN * 2 * STAGE + LANES];
        for run in pieces(rows.clone(), RUN) {
            for some in pieces(steps.clone(), STAGE) {
                let depths = numbers.depths(some.clone(), k);
                // SAFETY: as above; the stage holds 2 · STAGE of k.
                unsafe {
                    tiles_of::<S>(stage.as_mut_ptr(), a, run.clone(), depths.start, depths.len());
                    let mut i = 0;
                    while i < run.len() {
                        let height = S::height(run.len() - i);
                        let to = (run.start - rows.start + i) * steps.len() + (some.start - steps.start) * height;
                        let from = &stage[i * depths.len()..];
                        round_rows::<S>(numbers, from, depths.len(), height, out.add(to));
                        i += height;
                    }
                }
            }
        }
    }

    /// Some steps, a `strip` of `steps`, of the panels of some columns of `b: [k, ..]`.
    pub(super) fn pack_right<S>(
        numbers: Numbers,
        out: Parts,
        b: View,
        strip: Range<usize>,
        steps: Range<usize>,
        k: usize,
        columns: Range<usize>,
    ) {
        for panel in panels(columns.clone()) {
            let across = panel.len().next_multiple_of(LANES);
            let out = out.from((panel.start - columns.start) * steps.len() + strip.start * across);
            assert!(out.len() >= strip.len() * across);
            let strip = steps.start + strip.start..steps.start + strip.end;
            // SAFETY: as above.
            unsafe { panel_in::<S>(numbers, out.pointer(), b, strip, k, panel) };
        }
    }
}

/// The panel of some columns, some steps of it, in words.
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
        let across = columns.len().next_multiple_of(LANES);
        let mut stage = [0.0; 2 * STRIP * PANEL + LANES];
        for strip in pieces(steps.clone(), STRIP) {
            let depths = numbers.depths(strip.clone(), k);
            let depth = depths.len();
            panel_of::<S>(stage.as_mut_ptr(), b, depths, columns.clone());
            let out = out.add((strip.start - steps.start) * across);
            round_rows::<S>(numbers, &stage, depth, across, out);
        }
    }
}

/// The columns of each panel: three vectors, the last one or two of them two where three don't come out
/// even. Some panels in a row are the panels of their columns, too.
pub(super) fn panels(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone {
    let vectors = columns.len().div_ceil(LANES);
    let narrow = if vectors == 1 { 0 } else { (3 - vectors % 3) % 3 };
    let wide = vectors.div_ceil(3) - narrow;
    (0..wide + narrow).map(move |i| {
        let (left, len) =
            if i < wide { (i * PANEL, PANEL) } else { (i * PANEL - (i - wide) * LANES, PANEL - LANES) };
        let left = columns.start + left;
        left..(left + len).min(columns.end)
    })
}

/// Pieces of a range, each but the last `len` long.
pub(super) fn pieces(all: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    all.clone().step_by(len).map(move |i| i..(i + len).min(all.end))
}

/// Numbers below this, 2^-55, count as 0 in bf16: then no product and no sum of products is a denormal
/// number, which the instruction for pairs takes for 0 and others don't.
const LEAST: u32 = (127 - 55) << 23;

const INFINITE: u32 = 0x7f80_0000;

/// To the nearest bf16, ties to even, in the upper half of each lane; the lower half is 0. What is not
/// finite stays so.
#[inline(always)]
fn round<S: Simd>(x: F<S>) -> U<S> {
    let bits = x.bits();
    let size = bits.shl::<1>().shr::<1>();
    let odd = bits.shl::<15>().shr::<31>();
    let nearest = (bits + U::splat(0x7fff) + odd).shr::<16>().shl::<16>();
    let nearest = nearest.float().keep_ge(size, U::splat(LEAST)).keep_ge(U::splat(INFINITE - 1), size);
    let cut = bits.shr::<16>().shl::<16>().float().keep_ge(size, U::splat(INFINITE));
    // One of the two is 0.
    nearest.bits().xor(cut.bits())
}

/// Rounds `rows: [depth, width]` into words. Reads, but does not write, up to 15 words behind a row.
#[inline(always)]
unsafe fn round_rows<S: Simd>(numbers: Numbers, rows: &[f32], depth: usize, width: usize, out: *mut f32) {
    assert!(rows.len() >= depth * width + LANES - 1);
    for pair in 0..depth.div_ceil(2) {
        let second = 2 * pair + 1 < depth;
        for j in (0..width).step_by(LANES) {
            let from = &rows[2 * pair * width + j..];
            let low = round(F::<S>::load(from));
            let high = if second { round(F::<S>::load(&from[width..])) } else { U::splat(0) };
            // SAFETY: the caller's.
            unsafe {
                let to = |row: usize| out.add(row * width + j);
                if numbers == Numbers::Pairs {
                    put::<S>(low.shr::<16>().xor(high).float(), to(pair), width - j);
                } else {
                    put::<S>(high.float(), to(2 * pair), width - j);
                    put::<S>(low.float(), to(2 * pair + 1), width - j);
                }
            }
        }
    }
}

/// Writes the first `n` lanes.
#[inline(always)]
unsafe fn put<S: Simd>(x: F<S>, to: *mut f32, n: usize) {
    unsafe {
        if n >= LANES {
            S::store(to, x.0);
        } else {
            std::ptr::copy_nonoverlapping(x.to_array().as_ptr(), to, n);
        }
    }
}

/// `packed[i][j] = b[steps.start + i, columns.start + j]`, zeros behind the columns, up to a whole vector.
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
                let row = b.from(top + i, left);
                for j in (0..across).step_by(LANES) {
                    S::store(out.add(i * across + j), S::load(row.add(j)));
                }
            }
            return;
        }
        let whole = if b.row == 1 { (depth / LANES * LANES, width / LANES * LANES) } else { (0, 0) };
        for i in (0..whole.0).step_by(LANES) {
            for j in (0..whole.1).step_by(LANES) {
                S::transpose(b.from(top + i, left + j), b.column, out.add(i * across + j), across);
            }
        }
        for i in 0..depth {
            for j in if i < whole.0 { whole.1..width } else { 0..width } {
                *out.add(i * across + j) = *b.from(top + i, left + j);
            }
        }
    }
}

/// Tile after tile, each `[depth, height]`: what a tile reads lies in the order in which it reads it.
#[inline(always)]
unsafe fn tiles_of<S: Simd>(out: *mut f32, a: View, rows: Range<usize>, top: usize, depth: usize) {
    unsafe {
        if a.row == 1 {
            // Row after row of what is transposed, each read from end to end. A tile's last lanes are
            // overwritten by what comes behind it: not so at its end.
            let tile = S::height(usize::MAX);
            let whole = rows.len().saturating_sub(LANES - tile) / tile * tile;
            for k in 0..depth {
                let (from, to) = (a.from(rows.start, top + k), out.add(k * tile));
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
                    S::transpose(a.from(i, top + k), a.row, out.add(k * height), height);
                    k += LANES;
                }
            }
            for k in k..depth {
                for y in 0..height {
                    *out.add(k * height + y) = *a.from(i + y, top + k);
                }
            }
            i += height;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`panels`] promises, on which packing for several tasks relies.
    #[test]
    fn panels_cover_their_columns_and_some_in_a_row_are_panels_of_theirs() {
        for n in 0..400 {
            let all: Vec<_> = panels(7..7 + n).collect();
            assert_eq!(all.len(), n.div_ceil(PANEL), "{n} columns");
            assert!(all.windows(2).all(|two| two[0].end == two[1].start && two[0].len() % LANES == 0));
            assert_eq!(all.first().map_or(7, |p| p.start)..all.last().map_or(7, |p| p.end), 7..7 + n);
            // No vector stands alone beside others.
            assert!(n <= LANES || all.iter().all(|p| p.len() > LANES), "{all:?}");
            for group in [1, 2, 3, 5] {
                for some in all.chunks(group) {
                    let own = some[0].start..some[some.len() - 1].end;
                    assert!(panels(own).eq(some.iter().cloned()), "{some:?} of {n}");
                }
            }
        }
    }
}
