//! The micro-kernels: tiles of C in registers.

use std::hint::black_box;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::pack::BLOCK;
use super::{DEPTH, PANEL, View};
use crate::kernel::simd::{F, LANES, Simd, Tiles, U};
use crate::kernel::team::Parts;

/// Packed tiles of A or panels of B: those of `count` rows or columns from `first` on, and of some steps in
/// blocks of [`DEPTH`].
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub data: Parts<'a>,
    pub first: usize,
    pub count: usize,
    /// The first, and the first that is not packed.
    pub steps: (usize, usize),
}

impl Packed<'_> {
    /// Where a whole block of `depth` steps from `top` on is, of the tile that begins at row `i`.
    #[inline(always)]
    pub fn tile(&self, i: usize, top: usize, depth: usize) -> *mut f32 {
        self.data.from((top - self.steps.0) * self.count + (i - self.first) * depth).pointer()
    }

    /// Where the steps from `top` on are, of the panel, `across` wide, that begins at column `left`.
    #[inline(always)]
    pub fn panel(&self, left: usize, across: usize, top: usize) -> *mut f32 {
        let (first, end) = self.steps;
        let block = first + (top - first) / DEPTH * DEPTH;
        let depth = (end - block).min(DEPTH);
        let at = (block - first) * self.count + (left - self.first) * depth + (top - block) * across;
        self.data.from(at).pointer()
    }
}

/// Where tiles read A, or panels come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Unpacked(View<'a>),
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
    /// The tile that begins at row `i`: its address and the strides of its rows and columns.
    #[inline(always)]
    pub fn tile(&self, i: usize, height: usize) -> (*const f32, usize, usize) {
        match self.a {
            Source::Packed(packed) => (packed.tile(i, self.top, self.depth), 1, height),
            Source::Unpacked(a) => (a.pointer(i, self.top), a.row, a.column),
        }
    }
}

/// The initial values of a tile's registers.
#[derive(Clone, Copy)]
pub(super) enum Begin<'a> {
    Zero,
    C,
    Row(&'a [f32]),
}

/// A packed panel of B, and the columns of C that it gives.
pub(super) struct Panel<'a> {
    pub packed: *const f32,
    pub begin: Begin<'a>,
    pub c: *mut f32,
    pub stride: usize,
    /// Columns of C.
    pub width: usize,
    pub prefetch: Prefetch,
}

/// What multiplies packed words.
pub(super) trait Kernel {
    /// All tiles of a panel, from top to bottom.
    ///
    /// # Safety
    /// The instructions of the kernel run here, and the pointers are valid for the block and the panel.
    unsafe fn panel(block: &Block, panel: Panel);
}

/// A kernel whose tiles are SIMD registers.
trait Registers {
    type S: Tiles;
    /// `H` rows and `W` vectors of a tile from column `left` on.
    unsafe fn tile<const H: usize, const W: usize>(tile: &Tile, left: usize, prefetch: &mut Prefetch);
}

/// Each sum is one chain of fused multiply-adds.
pub(super) struct Chains<S>(PhantomData<S>);

impl<S: Tiles> Registers for Chains<S> {
    type S = S;
    #[inline(always)]
    unsafe fn tile<const H: usize, const W: usize>(tile: &Tile, left: usize, prefetch: &mut Prefetch) {
        unsafe {
            if tile.column == 1 {
                tile.compute::<S, H, W, false>(left, prefetch)
            } else {
                tile.compute::<S, H, W, true>(left, prefetch)
            }
        }
    }
}

/// Each sum as matrix tiles compute it, from packed words of [`super::pack::Numbers::Blocks`].
pub(super) struct Blocks<S>(PhantomData<S>);

impl<S: Simd> Registers for Blocks<S> {
    type S = S;
    #[inline(always)]
    unsafe fn tile<const H: usize, const W: usize>(tile: &Tile, left: usize, prefetch: &mut Prefetch) {
        unsafe { tile.blocks::<S, H, W>(left, prefetch) }
    }
}

impl<K: Registers> Kernel for K {
    #[inline(always)]
    unsafe fn panel(block: &Block, panel: Panel) {
        unsafe { tiles::<K>(block, panel) }
    }
}

#[inline(always)]
unsafe fn tiles<K: Registers>(block: &Block, panel: Panel) {
    let Panel { packed, begin, c, stride, width, mut prefetch } = panel;
    unsafe {
        let vectors = width.div_ceil(LANES);
        let whole = width == vectors * LANES;
        let mut padded = [0.0; PANEL];
        let begin = match begin {
            Begin::Row(row) if !whole => {
                padded[..width].copy_from_slice(row);
                Begin::Row(&padded)
            }
            other => other,
        };
        let (rows, depth) = (&block.rows, block.depth);
        let mut i = rows.start;
        while i < rows.end {
            let height = K::S::height(rows.end - i);
            let (a, row, column) = block.tile(i, height);
            let c = c.add(i * stride);
            let tile = Tile { a, row, column, depth, b: packed, vectors, begin, c, stride };
            if whole {
                tile.all::<K>(height, &mut prefetch);
            } else {
                // Registers are loaded and stored as whole vectors, which would exceed C: use a copy.
                let mut copy = [0.0; MAX_HEIGHT * PANEL];
                for (y, copy) in copy.chunks_exact_mut(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(c.add(y * stride), copy.as_mut_ptr(), width);
                }
                let copied = Tile { c: copy.as_mut_ptr(), stride: PANEL, ..tile };
                copied.all::<K>(height, &mut prefetch);
                for (y, copy) in copy.chunks_exact(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(copy.as_ptr(), c.add(y * stride), width);
                }
            }
            i += height;
        }
    }
}

/// The most rows of a tile.
const MAX_HEIGHT: usize = 8;

/// Repeats the body for each `$i` below `$n`, which is at most 8. Loops would be unrolled too late for the
/// compiler to keep the sums in registers.
macro_rules! unrolled {
    ($i:ident < $n:expr, $body:block) => {{
        unrolled!(@ $i, $n, $body, 0 1 2 3 4 5 6 7);
    }};
    (@ $i:ident, $n:expr, $body:block, $($value:literal)*) => {$(
        if $value < $n {
            let $i: usize = $value;
            $body
        }
    )*};
}

/// A tile of C and what it is computed from.
struct Tile<'a> {
    /// Element (i, k) is `a[i * row + k * column]`, and one of the two is 1.
    a: *const f32,
    row: usize,
    column: usize,
    depth: usize,
    /// `[depth, vectors * LANES]`
    b: *const f32,
    vectors: usize,
    begin: Begin<'a>,
    c: *mut f32,
    stride: usize,
}

impl Tile<'_> {
    /// Computes all of its `height` rows, and its vectors at once or one after the other as the registers
    /// allow.
    #[inline(always)]
    unsafe fn all<K: Registers>(&self, height: usize, prefetch: &mut Prefetch) {
        macro_rules! tile {
            ($height:literal, $vectors:literal, $left:expr) => {
                // SAFETY: as the caller's.
                unsafe { K::tile::<$height, $vectors>(self, $left, prefetch) }
            };
        }
        // Only the sizes of tiles of S: all sizes would take minutes to compile.
        if K::S::VECTORS == 3 {
            macro_rules! tiles {
                ($height:literal) => {
                    match self.vectors {
                        3 => tile!($height, 3, 0),
                        2 => tile!($height, 2, 0),
                        _ => tile!($height, 1, 0),
                    }
                };
            }
            match height {
                8 => tiles!(8),
                4 => tiles!(4),
                2 => tiles!(2),
                _ => tiles!(1),
            }
        } else {
            for left in (0..self.vectors * LANES).step_by(LANES) {
                match height {
                    6 => tile!(6, 1, left),
                    4 => tile!(4, 1, left),
                    2 => tile!(2, 1, left),
                    _ => tile!(1, 1, left),
                }
            }
        }
    }

    /// Computes `H` rows and `W` vectors from column `left` on, in registers. `TRANSPOSED`: the elements of a
    /// step of A are contiguous, else those of a row.
    #[inline(always)]
    unsafe fn compute<S: Tiles, const H: usize, const W: usize, const TRANSPOSED: bool>(
        &self,
        left: usize,
        prefetch: &mut Prefetch,
    ) {
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
            self.steps::<S, H, W, TRANSPOSED>(&mut sums, self.b.add(left), prefetch);
            unrolled!(i < H, {
                unrolled!(j < W, { S::store(c.add(i * stride + j * LANES), sums[i][j]) });
            });
        }
    }

    /// Computes `H` rows and `W` vectors from column `left` on as matrix tiles do, whose arithmetic (Intel's
    /// TDPBF16PS) is: a sum over the even k of a block and one over the odd, both from 0, whose sum is added to
    /// C; every operation is rounded to the nearest f32, and subnormal results and values of C are 0.
    #[inline(always)]
    unsafe fn blocks<S: Simd, const H: usize, const W: usize>(&self, left: usize, prefetch: &mut Prefetch) {
        unsafe {
            // In memory, for which the optimizer must not choose registers: those are for the sums.
            let mut memory = MaybeUninit::<Held>::uninit();
            let held = black_box((&raw mut (*memory.as_mut_ptr()).0).cast::<f32>());
            let at = |i: usize, j: usize| held.add((i * W + j) * LANES);
            let even = held.add(MAX_HEIGHT * PANEL);
            let (c, stride) = (self.c.add(left), self.stride);
            // Sums of a block are 0 or at least 2^-124, see `LEAST` of packing: only what C begins with
            // can make it subnormal, if that is smaller than 2^-101 (or else a multiple of 2^-124, too).
            let mut tiny = F::<S>::splat(0.0);
            for i in 0..H {
                for j in 0..W {
                    let begin = match self.begin {
                        Begin::Zero => F::<S>::splat(0.0),
                        Begin::C => F(S::load(c.add(i * stride + j * LANES))),
                        Begin::Row(bias) => F(S::load(bias.as_ptr().add(left + j * LANES))),
                    };
                    tiny = tiny.max(is_tiny(begin));
                    S::store(at(i, j), begin.0);
                }
            }
            let tiny = tiny.max_lane() > 0.0;
            let across = self.vectors * LANES;
            let (mut a, mut b) = (self.a, self.b.add(left));
            let mut next = self.c.wrapping_add(H * stride);
            for block in 0..self.depth / BLOCK {
                if block < H {
                    unrolled!(j < W, { S::prefetch(next.wrapping_add(left + j * LANES)) });
                    next = next.wrapping_add(stride);
                    prefetch.fetch::<S, W>();
                }
                let sums = half::<S, H, W>(a, b, across);
                unrolled!(i < H, {
                    unrolled!(j < W, { S::store(even.add((i * W + j) * LANES), sums[i][j]) });
                });
                let half_block = BLOCK / 2;
                let sums = half::<S, H, W>(a.add(half_block * H), b.add(half_block * across), across);
                unrolled!(i < H, {
                    unrolled!(j < W, {
                        let even = F::<S>(S::load(even.add((i * W + j) * LANES)));
                        let mut c = F::<S>(S::load(at(i, j)));
                        if tiny {
                            c = without_subnormals(c);
                        }
                        c = c + (even + F(sums[i][j]));
                        if tiny {
                            c = without_subnormals(c);
                        }
                        S::store(at(i, j), c.0);
                    });
                });
                (a, b) = (a.add(BLOCK * H), b.add(BLOCK * across));
            }
            unrolled!(i < H, {
                unrolled!(j < W, { S::store(c.add(i * stride + j * LANES), S::load(at(i, j))) });
            });
        }
    }

    /// `sums += a · b`, unrolled by four steps: counters and pointers cost instructions that compete with
    /// multiplications, above all where two hardware threads share a core.
    #[inline(always)]
    unsafe fn steps<S: Tiles, const H: usize, const W: usize, const TRANSPOSED: bool>(
        &self,
        sums: &mut [[S::F; W]; H],
        mut b: *const f32,
        prefetch: &mut Prefetch,
    ) {
        let (row, column, across) = (self.row, self.column, self.vectors * LANES);
        // x86 addresses are base + {0, 1, 2} · row: every third row has a base pointer.
        let base = |g: usize| self.a.wrapping_add(if TRANSPOSED { 0 } else { 3 * g * row });
        let (mut a0, mut a1, mut a2) = (base(0), base(1), base(2));
        macro_rules! step {
            ($offset:literal) => {
                let mut vectors = [S::splat(0.0); W];
                unrolled!(j < W, { vectors[j] = S::load(b.add($offset * across + j * LANES)) });
                unrolled!(i < H, {
                    let x = if TRANSPOSED {
                        *a0.add(i)
                    } else {
                        let base = [a0, a1, a2][i / 3];
                        *base.add(i % 3 * row + $offset)
                    };
                    let x = S::splat(x);
                    unrolled!(j < W, { sums[i][j] = S::fma(x, vectors[j], sums[i][j]) });
                });
                if TRANSPOSED {
                    a0 = a0.wrapping_add(column);
                }
            };
        }
        macro_rules! advance {
            ($steps:literal) => {
                b = b.add($steps * across);
                if !TRANSPOSED {
                    // Otherwise the compiler computes more addresses than there are registers.
                    a0 = S::opaque(a0.wrapping_add($steps));
                    a1 = S::opaque(a1.wrapping_add($steps));
                    a2 = S::opaque(a2.wrapping_add($steps));
                }
            };
        }
        unsafe {
            let mut next = self.c.wrapping_add(H * self.stride);
            // Prefetched a row at a time: a core has about a dozen outstanding cache misses, and loads of A
            // need some.
            let each = self.depth / (4 * H);
            for _ in 0..H {
                unrolled!(j < W, { S::prefetch(next.wrapping_add(j * LANES)) });
                next = next.wrapping_add(self.stride);
                prefetch.fetch::<S, W>();
                for _ in 0..each {
                    step!(0);
                    step!(1);
                    step!(2);
                    step!(3);
                    advance!(4);
                }
            }
            for _ in 4 * H * each..self.depth {
                step!(0);
                advance!(1);
            }
        }
    }
}

/// C and the even sums of a tile.
#[repr(align(64))]
struct Held([f32; 2 * MAX_HEIGHT * PANEL]);

/// `a · b` over half a block, from packed words.
#[inline(always)]
unsafe fn half<S: Tiles, const H: usize, const W: usize>(
    mut a: *const f32,
    mut b: *const f32,
    across: usize,
) -> [[S::F; W]; H] {
    // SAFETY: the caller's, of all below.
    let mut sums = [[unsafe { S::splat(0.0) }; W]; H];
    macro_rules! step {
        ($offset:literal) => {
            let mut vectors = [S::splat(0.0); W];
            unrolled!(j < W, { vectors[j] = S::load(b.add($offset * across + j * LANES)) });
            unrolled!(i < H, {
                let x = S::splat(*a.add($offset * H + i));
                unrolled!(j < W, { sums[i][j] = S::fma(x, vectors[j], sums[i][j]) });
            });
        };
    }
    unsafe {
        for _ in 0..BLOCK / 8 {
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            (a, b) = (a.add(4 * H), b.add(4 * across));
        }
        sums
    }
}

/// The least normal f32 and 2^-101.
const NORMAL: u32 = 1 << 23;
const SAFE: u32 = (127 - 101) << 23;

#[inline(always)]
fn size<S: Simd>(x: F<S>) -> U<S> {
    x.bits().shl::<1>().shr::<1>()
}

/// 1 where `x` is not 0, but smaller than 2^-101.
#[inline(always)]
fn is_tiny<S: Simd>(x: F<S>) -> F<S> {
    let (size, one) = (size(x), F::splat(1.0));
    one.keep_ge(size, U::splat(1)).keep_ge(U::splat(SAFE - 1), size)
}

/// `x`, but 0 with its sign where it is subnormal.
#[inline(always)]
pub(super) fn without_subnormals<S: Simd>(x: F<S>) -> F<S> {
    let size = size(x);
    let sign = x.bits().shr::<31>().shl::<31>();
    let zero = sign.float().keep_ge(U::splat(NORMAL - 1), size);
    // One of the two is 0.
    x.keep_ge(size, U::splat(NORMAL)).bits().xor(zero.bits()).float()
}

/// What is prefetched while sums are computed: the next packed panel of B, or the elements that it will be
/// packed from.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    /// The current row, and the column within it.
    pub row: *const f32,
    pub column: usize,
    /// Columns of a row, and the distance between rows.
    pub width: usize,
    pub stride: usize,
}

impl Prefetch {
    /// Prefetches as many columns as a step of a tile reads.
    #[inline(always)]
    pub unsafe fn fetch<S: Tiles, const W: usize>(&mut self) {
        let at = self.row.wrapping_add(self.column);
        unsafe {
            unrolled!(j < W, { S::prefetch(at.wrapping_add(j * LANES)) });
        }
        self.column += W * LANES;
        if self.column >= self.width {
            (self.row, self.column) = (self.row.wrapping_add(self.stride), 0);
        }
    }
}
