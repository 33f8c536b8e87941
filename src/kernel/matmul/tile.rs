//! Tiles of C in registers: where all multiplications are.

use std::ops::Range;

use super::{PANEL, View};
use crate::kernel::simd::{LANES, Tiles};
use crate::kernel::team::Parts;

/// Tiles of A or panels of B, copied: those of `count` rows or columns, from `first` on, and of the steps
/// from `step` on.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub data: Parts<'a>,
    pub first: usize,
    pub count: usize,
    pub step: usize,
}

impl Packed<'_> {
    /// Where the block of `depth` steps from `top` on begins, of the tile or panel that begins at `i`.
    #[inline(always)]
    pub fn at(&self, i: usize, top: usize, depth: usize) -> *mut f32 {
        self.data.from((top - self.step) * self.count + (i - self.first) * depth).pointer()
    }
}

/// Where a matrix is read.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Lies(View<'a>),
    Packed(Packed<'a>),
}

/// Some rows of A, and some steps of them.
pub(super) struct Block<'a> {
    pub a: Source<'a>,
    pub rows: Range<usize>,
    pub top: usize,
    pub depth: usize,
}

impl Block<'_> {
    /// The tile that begins at row `i`: where, and what lies between its rows and columns.
    #[inline(always)]
    fn tile(&self, i: usize, height: usize) -> (*const f32, usize, usize) {
        match self.a {
            Source::Packed(packed) => (packed.at(i, self.top, self.depth), 1, height),
            Source::Lies(a) => (a.from(i, self.top), a.row, a.column),
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
    mut ahead: Ahead,
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
        let mut i = rows.start;
        while i < rows.end {
            let height = S::height(rows.end - i);
            let (a, row, column) = block.tile(i, height);
            let c = c.add(i * stride);
            let tile = Tile { a, row, column, depth, b: packed, begin, c, stride };
            if width == PANEL {
                tiles::<S>(height, &tile, &mut ahead);
            } else {
                // The registers hold whole panels; what is beyond C goes by way of a copy.
                let mut copy = [0.0; 14 * PANEL];
                for (y, copy) in copy.chunks_exact_mut(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(c.add(y * stride), copy.as_mut_ptr(), width);
                }
                let copied = Tile { c: copy.as_mut_ptr(), stride: PANEL, ..tile };
                tiles::<S>(height, &copied, &mut ahead);
                for (y, copy) in copy.chunks_exact(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(copy.as_ptr(), c.add(y * stride), width);
                }
            }
            i += height;
        }
    }
}

/// The tile of `height` rows and one panel.
#[inline(always)]
unsafe fn tiles<S: Tiles>(height: usize, tile: &Tile, ahead: &mut Ahead) {
    // SAFETY: as the caller's.
    macro_rules! tile {
        ($height:literal, 2) => {
            unsafe { tile.compute::<S, $height, 2>(0, ahead) }
        };
        ($height:literal, 1) => {
            unsafe {
                tile.compute::<S, $height, 1>(0, ahead);
                tile.compute::<S, $height, 1>(LANES, ahead);
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
}

impl Tile<'_> {
    /// `H` rows and `W` vectors of it, from column `left` on, in registers.
    #[inline(always)]
    unsafe fn compute<S: Tiles, const H: usize, const W: usize>(&self, left: usize, ahead: &mut Ahead) {
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
            self.steps::<S, H, W>(&mut sums, self.b.add(left), ahead);
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
        ahead: &mut Ahead,
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
            let mut next = self.c.wrapping_add(H * self.stride);
            let base = |g: usize| self.a.wrapping_add(3 * g * row);
            let (mut a0, mut a1, mut a2, mut a3, mut a4) = (base(0), base(1), base(2), base(3), base(4));
            // A row at a time: a core waits for a dozen lines at most, and A needs some of them.
            let each = self.depth / H;
            for _ in 0..H {
                S::prefetch(next);
                S::prefetch(next.wrapping_add(LANES));
                next = next.wrapping_add(self.stride);
                ahead.fetch::<S>();
                for _ in 0..each {
                    step!(a0 a1 a2 a3 a4);
                }
            }
            for _ in H * each..self.depth {
                step!(a0 a1 a2 a3 a4);
            }
        }
    }
}

/// The next panel of B, or what it will be made of, which comes nearer while sums run.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// A row, and where in it.
    pub row: *const f32,
    pub column: usize,
    /// Numbers of a row, and what lies between rows.
    pub width: usize,
    pub stride: usize,
}

impl Ahead {
    /// As much as a step takes.
    #[inline(always)]
    unsafe fn fetch<S: Tiles>(&mut self) {
        let at = self.row.wrapping_add(self.column);
        unsafe {
            S::prefetch(at);
            S::prefetch(at.wrapping_add(LANES));
        }
        self.column += PANEL;
        if self.column >= self.width {
            (self.row, self.column) = (self.row.wrapping_add(self.stride), 0);
        }
    }
}
