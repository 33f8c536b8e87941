//! The right matrix of several products of one thread, packed once for all of them, in `bf16_tile`: heads of
//! attention, whose products are too small to pack it again for each.

use std::ops::Range;

use super::pack::{Numbers, pack_right};
use super::tile::{Packed, Source};
use super::{DEPTH, Part, Parts, Start, Team, View, blocks_of, check, tile_numbers};
use crate::kernel::dtype::Dtype;
use crate::kernel::simd::{Isa, LANES};

/// How a thread of a team computes products in `bf16_tile`.
#[derive(Clone, Copy)]
pub struct InTiles {
    isa: Isa,
    numbers: Numbers,
}

impl InTiles {
    /// If the team's products are in `bf16_tile`.
    pub fn of(team: &Team) -> Option<Self> {
        (team.dtype == Dtype::Bf16Tile).then(|| InTiles { isa: team.isa, numbers: tile_numbers(team) })
    }

    /// Numbers of memory that a matrix `[k, n]` takes.
    pub fn len(self, k: usize, n: usize) -> usize {
        self.numbers.steps(k) * n.next_multiple_of(LANES)
    }

    /// A matrix `[k, n]`, of which nothing is packed yet, in the first numbers of `memory`; the others are left.
    ///
    /// # Panics
    /// When the memory is too short.
    pub fn right<'a>(self, k: usize, n: usize, memory: &mut &'a mut [f32]) -> Right<'a> {
        let (own, rest) = std::mem::take(memory).split_at_mut(self.len(k, n));
        *memory = rest;
        Right { tiles: self, data: Parts::new(own), k, n }
    }
}

/// Vectors of a panel: columns can be left out in steps of two.
const VECTORS: usize = 2;

/// Columns of a panel of a [`Right`].
pub const COLUMNS: usize = VECTORS * LANES;

/// A packed matrix `[k, n]`, in panels of [`COLUMNS`].
#[derive(Clone, Copy)]
pub struct Right<'a> {
    tiles: InTiles,
    data: Parts<'a>,
    k: usize,
    n: usize,
}

impl Right<'_> {
    /// Packs all of `b: [k, n]`.
    ///
    /// # Panics
    /// When the slice is too short.
    pub fn pack(&mut self, b: View) {
        self.pack_columns(0..self.n, b);
    }

    /// Packs some columns, of which `b: [k, ..]` has nothing else.
    ///
    /// # Panics
    /// When the slice is too short, there are no such columns, or they are no whole panels.
    pub fn pack_columns(&mut self, columns: Range<usize>, b: View) {
        let Right { tiles: InTiles { isa, numbers }, data, k, n } = *self;
        assert!(columns.start <= columns.end && b.holds(k, columns.len()), "b is no [{k}, {columns:?}]");
        assert!(columns.start.is_multiple_of(COLUMNS) && self.ends_at(columns.end), "{columns:?} of {n}");
        for (_, steps) in blocks_of(0..numbers.steps(k), DEPTH, Start::Zero) {
            let out = data.from(steps.start * n.next_multiple_of(LANES) + columns.start * steps.len());
            pack_right(isa, numbers, out, b, 0..steps.len(), steps, k, 0..columns.len(), VECTORS);
        }
    }

    /// Whether a panel ends there.
    fn ends_at(&self, column: usize) -> bool {
        column == self.n || column < self.n && column.is_multiple_of(COLUMNS)
    }

    /// `c[rows, ..columns] = start + a · b`, summed over the k in `depths`, which begin where a block of 32 does. No
    /// two threads may write the same part of `c`.
    ///
    /// # Panics
    /// When a slice is too short, columns end within a panel, or `depths` begins otherwise.
    #[allow(clippy::too_many_arguments)]
    pub fn product(
        &self,
        a: View,
        rows: Range<usize>,
        columns: usize,
        depths: Range<usize>,
        start: Start,
        c: Parts,
        stride: usize,
    ) {
        if rows.is_empty() || columns == 0 {
            return;
        }
        let Right { tiles: InTiles { isa, numbers }, data, n, k } = *self;
        check(rows.end, columns, depths.end, a, start, c, stride);
        assert!(self.ends_at(columns) && depths.end <= k, "[{depths:?}, {columns}] of [{k}, {n}]");
        let steps = numbers.steps(depths.start)..numbers.steps(depths.end);
        // From a later k on, the blocks of steps are other ones than those that are packed, unless there is but one.
        let is_one_block = numbers.steps(k) <= DEPTH;
        assert!(
            depths.start == 0 || depths.start.is_multiple_of(super::pack::BLOCK) && is_one_block,
            "{depths:?}"
        );
        let packed =
            Packed { data, first: 0, count: n.next_multiple_of(LANES), steps: (0, numbers.steps(k)) };
        let (a, b) = (Source::Unpacked(a), Source::Packed(packed));
        let (columns, k, vectors) = (0..columns, depths.end, VECTORS);
        Part { rows, columns, vectors, steps, k, a, b, start, c, stride }.compute(isa, numbers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{in_tiles, same_in_tiles, strange};

    /// To the bit, with numbers of all sizes: some rows, columns and k of matrices that are packed in parts, of more than
    /// one block of steps, too.
    #[test]
    fn products_are_their_definition() {
        // What the matrix is, and which rows, columns and k are multiplied.
        let cases = [
            ((1, 1), 0..1, 1, 0..1),
            ((5, 133), 0..32, 64, 0..5),
            ((24, 70), 32..61, 70, 0..24),
            ((80, 100), 7..12, 96, 0..80),
            ((128, 80), 32..64, 80, 32..128),
            ((100, 48), 3..4, 48, 96..100),
            ((600, 33), 0..40, 33, 0..544),
            ((1100, 70), 0..33, 64, 0..1100),
        ];
        for (kind, ((k, n), rows, columns, depths)) in
            (0..4).flat_map(|i| cases.clone().map(|case| (i, case)))
        {
            let (m, stride) = (rows.end, n + 3);
            let all = |n, label| -> Vec<f32> { (0..n).map(|i| strange(kind, i, label)).collect() };
            let (a, b, before) = (all(m * k, 1), all(k * n, 2), all(m * stride, 3));
            let b_in_parts: Vec<Vec<f32>> = (0..n)
                .step_by(64)
                .map(|left| b.chunks(n).flat_map(|row| &row[left..(left + 64).min(n)]).copied().collect())
                .collect();
            for (transposed, start) in [(false, Start::Zero), (true, Start::Add)] {
                let a = if transposed { View::new(&a, m).t() } else { View::new(&a, k) };
                let found = same_in_tiles(|team| {
                    let tiles = InTiles::of(team).expect("in bf16_tile");
                    let mut memory = vec![f32::NAN; tiles.len(k, n)];
                    let mut right = tiles.right(k, n, &mut &mut memory[..]);
                    if transposed {
                        right.pack(View::new(&b, n));
                    } else {
                        for (left, part) in (0..n).step_by(64).zip(&b_in_parts) {
                            let columns = left..(left + 64).min(n);
                            right.pack_columns(columns.clone(), View::new(part, columns.len()));
                        }
                    }
                    let mut c = before.clone();
                    right.product(
                        a,
                        rows.clone(),
                        columns,
                        depths.clone(),
                        start,
                        Parts::new(&mut c),
                        stride,
                    );
                    vec![c]
                });
                for (at, found) in found[0].iter().enumerate() {
                    let (i, j) = (at / stride, at % stride);
                    let expected = if rows.contains(&i) && j < columns {
                        let begin = if transposed { before[at] } else { 0.0 };
                        in_tiles(depths.len(), begin, |t| {
                            let t = depths.start + t;
                            // SAFETY: a is [m, k].
                            (unsafe { *a.pointer(i, t) }, b[t * n + j])
                        })
                    } else {
                        before[at]
                    };
                    let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                    assert!(same, "{kind}, {k} {n}, {i} {j}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "40] of [32, 70]")]
    fn columns_that_end_within_a_panel_are_refused() {
        let tiles = InTiles::of(&Team::new(1).in_dtype(Dtype::Bf16Tile)).expect("in bf16_tile");
        let (mut memory, a, mut c) = (vec![0.0; tiles.len(32, 70)], [0.0; 32], [0.0; 70]);
        let right = tiles.right(32, 70, &mut &mut memory[..]);
        right.product(View::new(&a, 32), 0..1, 40, 0..32, Start::Zero, Parts::new(&mut c), 70);
    }
}
