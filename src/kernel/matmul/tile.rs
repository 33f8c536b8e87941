//! Tiles of C in registers: where all multiplications are.

use std::ops::Range;

use super::{PANEL, View};
use crate::kernel::simd::{LANES, Tiles};
use crate::kernel::team::Parts;

/// Where tiles of A are read.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    Lies(View<'a>),
    /// Packed: where, from which row on, and how many rows.
    Packed(Parts<'a>, usize, usize),
}

/// Where panels of B are read.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Lies(View<'a>),
    /// Packed: where, from which column on, and how many columns.
    Packed(Parts<'a>, usize, usize),
}

/// Some rows of A, and some steps of them.
pub(super) struct Block<'a> {
    pub a: Left<'a>,
    pub rows: Range<usize>,
    /// The first step of what was packed, the first of these, and how many.
    pub first: usize,
    pub top: usize,
    pub depth: usize,
    /// Whether panels of B lie one behind the other.
    pub shares_b: bool,
}

impl Block<'_> {
    /// The tile that begins at row `i`: where, and what lies between its rows and columns.
    #[inline(always)]
    fn tile(&self, i: usize, height: usize) -> (*const f32, usize, usize) {
        match self.a {
            Left::Packed(packed, first, rows) => {
                let at = (self.top - self.first) * rows + (i - first) * self.depth;
                (packed.pointer().wrapping_add(at), 1, height)
            }
            Left::Lies(a) => (a.from(i, self.top), a.row, a.column),
        }
    }
}

/// What a tile's registers begin with.
#[derive(Clone, Copy)]
pub(super) enum Begin<'a> {
    Zero,
    C,
    Row(&'a [f32]),
}

/// All tiles of a packed panel, from top to bottom.
#[inline(always)]
pub(super) unsafe fn panel<S: Tiles>(
    block: &Block,
    packed: *const f32,
    begin: Begin,
    c: *mut f32,
    stride: usize,
    width: usize,
) {
    unsafe {
        let mut padded = [0.0; PANEL];
        let begin = match begin {
            Begin::Row(row) if width < PANEL => {
                padded[..width].copy_from_slice(row);
                Begin::Row(&padded)
            }
            other => other,
        };
        let (rows, depth) = (&block.rows, block.depth);
        // The next panel lies behind this one.
        let mut ahead = packed.wrapping_add(if block.shares_b { depth * PANEL } else { 0 });
        let mut i = rows.start;
        while i < rows.end {
            let height = S::height(rows.end - i);
            let (a, row, column) = block.tile(i, height);
            let c = c.add(i * stride);
            let tile = Tile { a, row, column, depth, b: packed, begin, c, stride, ahead };
            if width == PANEL {
                tiles::<S>(height, &tile);
            } else {
                // The registers hold whole panels; what is beyond C goes by way of a copy.
                let mut copy = [0.0; 14 * PANEL];
                for (y, copy) in copy.chunks_exact_mut(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(c.add(y * stride), copy.as_mut_ptr(), width);
                }
                tiles::<S>(height, &Tile { c: copy.as_mut_ptr(), stride: PANEL, ..tile });
                for (y, copy) in copy.chunks_exact(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(copy.as_ptr(), c.add(y * stride), width);
                }
            }
            i += height;
            ahead = ahead.wrapping_add(if block.shares_b { height * PANEL } else { 0 });
        }
    }
}

/// The tile of `height` rows and one panel.
#[inline(always)]
unsafe fn tiles<S: Tiles>(height: usize, tile: &Tile) {
    // SAFETY: as the caller's.
    macro_rules! tile {
        ($height:literal, 2) => {
            unsafe { tile.compute::<S, $height, 2>(0) }
        };
        ($height:literal, 1) => {
            unsafe {
                tile.compute::<S, $height, 1>(0);
                tile.compute::<S, $height, 1>(LANES);
            }
        };
    }
    // Only the heights that S has, or compiling takes minutes.
    if S::WIDE {
        match height {
            14 => tile!(14, 2),
            8 => tile!(8, 2),
            4 => tile!(4, 2),
            2 => tile!(2, 2),
            _ => tile!(1, 2),
        }
    } else {
        match height {
            6 => tile!(6, 1),
            4 => tile!(4, 1),
            2 => tile!(2, 1),
            _ => tile!(1, 1),
        }
    }
}

/// Runs the body for each `$i` below `$n`, at most 14, written out: the sums must be known to be
/// registers before the compiler thinks about loops.
macro_rules! unrolled {
    ($i:ident < $n:expr, $body:block) => {{
            unrolled!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
    }};
    (@ $i:ident, $n:expr, $body:block, $($value:literal)*) => {$(
        if $value < $n {
            let $i: usize = $value;
            $body
        }
    )*};
}

/// Some rows and one panel of C.
struct Tile<'a> {
    /// Element (i, k) is `a[i * row + k * column]`.
    a: *const f32,
    row: usize,
    column: usize,
    depth: usize,
    /// `[depth, PANEL]`
    b: *const f32,
    begin: Begin<'a>,
    c: *mut f32,
    stride: usize,
    /// Where the tile's part of the next panel lies.
    ahead: *const f32,
}

impl Tile<'_> {
    /// `H` rows and `W` vectors of it, from column `left` on, in registers.
    #[inline(always)]
    unsafe fn compute<S: Tiles, const H: usize, const W: usize>(&self, left: usize) {
        unsafe {
            let (c, stride) = (self.c.add(left), self.stride);
            let mut sums = [[S::splat(0.0); W]; H];
            match self.begin {
                Begin::Zero => {}
                Begin::C => unrolled!(i < H, {
                    unrolled!(j < W, { sums[i][j] = S::load(c.add(i * stride + j * LANES)) });
                }),
                Begin::Row(bias) => {
                    let first = bias.as_ptr().add(left);
                    unrolled!(j < W, {
                        let bias = S::load(first.add(j * LANES));
                        unrolled!(i < H, { sums[i][j] = bias });
                    });
                }
            }
            self.steps::<S, H, W>(&mut sums, self.b.add(left));
            unrolled!(i < H, {
                unrolled!(j < W, { S::store(c.add(i * stride + j * LANES), sums[i][j]) });
            });
        }
    }

    /// `sums += a · b`. An address can hold a base and one or two times `row`: every third row gets a base
    /// of its own.
    #[inline(always)]
    unsafe fn steps<S: Tiles, const H: usize, const W: usize>(
        &self,
        sums: &mut [[S::F; W]; H],
        mut b: *const f32,
    ) {
        let (row, column) = (self.row, self.column);
        macro_rules! step {
            ($a0:ident $a1:ident $a2:ident $a3:ident $a4:ident) => {
                let first = S::load(b);
                let second = if W > 1 { S::load(b.add(LANES)) } else { first };
                unrolled!(i < H, {
                    let base = match i / 3 {
                        0 => $a0,
                        1 => $a1,
                        2 => $a2,
                        3 => $a3,
                        _ => $a4,
                    };
                    let x = S::splat(*base.add(i % 3 * row));
                    sums[i][0] = S::fma(x, first, sums[i][0]);
                    if W > 1 {
                        sums[i][1] = S::fma(x, second, sums[i][1]);
                    }
                });
                // Else the compiler makes one counter of them and bases that don't fit the registers.
                ($a0, $a1) = (S::opaque($a0.wrapping_add(column)), S::opaque($a1.wrapping_add(column)));
                ($a2, $a3) = (S::opaque($a2.wrapping_add(column)), S::opaque($a3.wrapping_add(column)));
                $a4 = S::opaque($a4.wrapping_add(column));
                b = b.add(PANEL);
            };
        }
        unsafe {
            let mut ahead =
                Ahead { c: self.c.wrapping_add(H * self.stride), stride: self.stride, b: self.ahead };
            let base = |g: usize| self.a.wrapping_add(3 * g * row);
            let (mut a0, mut a1, mut a2, mut a3, mut a4) = (base(0), base(1), base(2), base(3), base(4));
            let fetched = H.min(self.depth);
            for _ in 0..fetched {
                ahead.fetch::<S>();
                step!(a0 a1 a2 a3 a4);
            }
            for _ in fetched..self.depth {
                step!(a0 a1 a2 a3 a4);
            }
        }
    }
}

/// What comes nearer while sums run: the next tile of C, and a part of the next panel of B.
struct Ahead {
    c: *const f32,
    stride: usize,
    b: *const f32,
}

impl Ahead {
    /// A row of each.
    #[inline(always)]
    unsafe fn fetch<S: Tiles>(&mut self) {
        unsafe {
            S::prefetch(self.c);
            S::prefetch(self.c.wrapping_add(LANES));
            S::prefetch_far(self.b);
            S::prefetch_far(self.b.wrapping_add(LANES));
        }
        self.c = self.c.wrapping_add(self.stride);
        self.b = self.b.wrapping_add(PANEL);
    }
}
