//! Products of matrices: `C = A·B`, `C = bias + A·B` or `C += A·B`.
//!
//! In f32, each element of C is one chain of fused multiply-adds over k = 0, 1, 2, … from its initial value. Its bits
//! depend on nothing else: not on the sizes of tiles and blocks below, not on which thread computes what, not
//! on the width of the vectors, which run along the columns. A row gives the same bits alone and within a
//! thousand.
//!
//! It follows Goto and van de Geijn ("Anatomy of High-Performance Matrix Multiplication", 2008) and BLIS,
//! whose terms are in parentheses:
//! - a **tile** of C (micro-tile) stays in registers while k runs;
//! - B is packed into **panels** (micro-panels) of 48 columns, so that a tile reads it sequentially, and in
//!   blocks of [`DEPTH`] rows (KC), so that a block stays in the L1 and L2 caches while it is multiplied with
//!   all rows of A;
//! - A is read in place, its elements broadcast one at a time. Where its stride maps its rows to the same sets
//!   of the cache, or it is transposed, its tiles are packed too, as many at a time as L2 holds;
//! - what several tasks read is packed once for all of them;
//! - the next rows of C and the next panel of B are prefetched a cache line at a time between
//!   multiplications: all at once they would delay the loads of A.
//!
//! **bf16.** Both matrices are rounded to bf16 (the upper 16 bits of an f32) when they are packed; sums stay
//! f32. The order of a sum is that of the x86 instruction VDPBF16PS: pair after pair of k, in each the second
//! product first, each added with one rounding. A product of two bf16 is exact in f32, so that is a chain of
//! fused multiply-adds too, and CPUs without the instruction compute the same bits with the tiles of f32.
//! Numbers below 2^-55 count as 0, see [`pack`].
//!
//! **`bf16_tile`.** The same rounding; the order is that of Intel's matrix tiles (AMX, TDPBF16PS; found by comparing
//! millions of its results). k is padded with zeros to blocks of 32; in each, two sums that begin at 0, over
//! the even and over the odd k in rising order, each a chain of fused multiply-adds; their sum, rounded, is
//! added to what C holds. Subnormal values of C count as 0, before and after. Where a NaN arises, its sign and
//! payload are not defined. [`amx`] computes it with the instruction, [`tile::Blocks`] with those of f32, and
//! [`thin`] for few rows of a matrix that is kept in bf16. For attention, [`right`] packs a matrix once for several
//! products; single rows behind a cache have kernels there.

#[cfg(target_arch = "x86_64")]
mod amx;
mod pack;
mod packed;
mod right;
mod thin;
mod tile;

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use self::pack::{BLOCK, round_row, to_bf16_tile};
use self::pack::{Numbers, RUN, STRIP, pack_left, pack_right, panel_in, panels, pieces};
pub use self::packed::PackedMatrix;
pub use self::right::{COLUMNS, InTiles, Right};
pub use self::thin::Panels;
use self::thin::{thin, thin_blocks};
use self::tile::{Begin, Block, Blocks, Chains, Kernel, Packed, Panel, Prefetch, Source};
use super::Buffer;
use super::dtype::Dtype;
use super::simd::{Isa, LANES, Number, Simd, simd};
use super::team::{Parts, Team};

/// The most columns of a panel.
const PANEL: usize = 3 * LANES;

/// The most steps of a block: 48 KiB of a panel.
const DEPTH: usize = 256;

/// A matrix to read: element (i, j) is `data[i * row + j * column]`, and one of the two is 1.
#[derive(Clone, Copy)]
pub struct View<'a, N = f32> {
    data: &'a [N],
    row: usize,
    column: usize,
}

impl<'a, N: Number> View<'a, N> {
    /// Rows begin every `stride`.
    pub fn new(data: &'a [N], stride: usize) -> Self {
        View { data, row: stride, column: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        View { data: self.data, row: self.column, column: self.row }
    }

    /// Without the first `rows`.
    pub fn below(self, rows: usize) -> Self {
        View { data: &self.data[rows * self.row..], ..self }
    }

    /// Without the first `columns`.
    pub fn from_column(self, columns: usize) -> Self {
        View { data: &self.data[columns * self.column..], ..self }
    }

    /// A row and what follows it in memory. Not of a transpose.
    pub fn row(self, row: usize) -> &'a [N] {
        debug_assert!(self.column == 1);
        &self.data[row * self.row..]
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }

    /// Where element (row, column) is.
    fn pointer(self, row: usize, column: usize) -> *const N {
        // Within the slice: callers have checked `holds`.
        self.data.as_ptr().wrapping_add(row * self.row + column * self.column)
    }
}

/// The initial value of C.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// Its content: the product is added.
    Add,
    /// The same row for all rows.
    Bias(&'a [f32]),
}

/// `c[m, n] = start + a[m, k] · b[k, n]`, by the threads of the team, in its dtype.
///
/// # Panics
/// When a slice is too short for its shape.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    team: &Team,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    start: Start,
    c: &mut [f32],
    stride: usize,
) {
    let product = Product { a, b, k, start, c: Parts::new(c), stride };
    if m == 0 || n == 0 {
        return;
    }
    product.check(m, n);
    if let Some(numbers) = rounded(team) {
        product.shared(team, numbers, m, n);
    } else if m <= THIN {
        product.columns(team, m, n, |columns| thin(team.isa, &product, 0..m, columns));
    } else if m * n * k < SERIAL {
        product.part(team.isa, 0..m, 0..n);
    } else {
        product.shared(team, Numbers::F32, m, n);
    }
}

/// What the team's products are packed as, where their numbers are to be rounded.
fn rounded(team: &Team) -> Option<Numbers> {
    Some(match team.dtype {
        Dtype::F32 => return None,
        Dtype::Bf16 if has_native(Numbers::Pairs, team.isa) => Numbers::Pairs,
        Dtype::Bf16 => Numbers::Rounded,
        Dtype::Bf16Tile => tile_numbers(team),
    })
}

/// What the team's products in `bf16_tile` are packed as.
fn tile_numbers(team: &Team) -> Numbers {
    if team.simulates_tiles() || has_native(Numbers::Tiles, team.isa) {
        Numbers::Tiles
    } else {
        Numbers::Blocks
    }
}

/// [`matmul`] of up to [`THIN`] rows with a `b` of bf16: the same bits as with `b` converted to f32, if the
/// team's dtype is f32 or `bf16_tile`. For the latter, `b` has no numbers below 2^-55.
///
/// # Panics
/// When a slice is too short for its shape, or there are more rows.
pub fn matmul_bf16(
    team: &Team,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View<u16>,
    start: Start,
    c: &mut [f32],
    stride: usize,
) {
    assert!((1..=THIN).contains(&m) && n > 0, "{m} rows of {n}");
    let product = Product { a, b, k, start, c: Parts::new(c), stride };
    product.check(m, n);
    if team.dtype == Dtype::Bf16Tile {
        return thin::with_rounded(team, a, m, k, |a| {
            let product = Product { a, ..product };
            product.columns(team, m, n, |columns| thin_blocks(team.isa, &product, 0..m, columns));
        });
    }
    product.columns(team, m, n, |columns| thin(team.isa, &product, 0..m, columns));
}

/// `c = start + a · b`, of which several threads may compute parts. Element (i, j) of c is
/// `c[i * stride + j]`.
#[derive(Clone, Copy)]
pub struct Product<'a, N = f32> {
    pub a: View<'a>,
    pub b: View<'a, N>,
    /// The length of each sum.
    pub k: usize,
    pub start: Start<'a>,
    pub c: Parts<'a>,
    pub stride: usize,
}

impl<N: Number> Product<'_, N> {
    /// Checks that the slices have the shapes that the unsafe code below relies on.
    fn check(&self, m: usize, n: usize) {
        let Product { a, b, k, start, c, stride } = *self;
        assert!(b.holds(k, n), "b is no [{k}, {n}]");
        check(m, n, k, a, start, c, stride);
    }

    /// The columns of a product of few rows, by the threads of the team: `part` gets disjoint ranges.
    fn columns(&self, team: &Team, m: usize, n: usize, part: impl Fn(Range<usize>) + Sync) {
        if m * n * self.k < SERIAL { part(0..n) } else { team.ranges(n, 8 * LANES, part) }
    }
}

/// The same without b.
fn check(m: usize, n: usize, k: usize, a: View, start: Start, c: Parts, stride: usize) {
    assert!(stride >= n, "rows of {n} do not fit a stride of {stride}");
    assert!(a.holds(m, k), "a is no [{m}, {k}]");
    assert!((m - 1) * stride + n <= c.len(), "c is no [{m}, {n}]");
    if let Start::Bias(bias) = start {
        assert!(bias.len() >= n, "the bias is no row of c");
    }
}

impl<'a> Product<'a> {
    /// Some rows and columns in f32, by this thread. No two threads may write the same part of `c`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn part(self, isa: Isa, rows: Range<usize>, columns: Range<usize>) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        self.check(rows.end, columns.end);
        if rows.len() <= THIN {
            return thin(isa, &self, rows, columns);
        }
        let Product { a, b, k, start, c, stride } = self;
        let (a, b, numbers) = (Source::Unpacked(a), Source::Unpacked(b), Numbers::F32);
        let vectors = numbers.vectors();
        Part { rows, columns, vectors, steps: 0..k, k, a, b, start, c, stride }.compute(isa, numbers);
    }

    /// The whole product, in tasks. What several tasks read is packed once for all: panels of B where tasks
    /// differ in their rows, tiles of A where they differ only in their columns. Each packs the other for
    /// itself.
    fn shared(self, team: &Team, numbers: Numbers, m: usize, n: usize) {
        let Product { a, b, k, start, c, stride } = self;
        let isa = team.isa;
        let (rows, group) = tasks(team.threads(), m, n.div_ceil(numbers.panel()), numbers.grain());
        let blocks = m.div_ceil(rows);
        let run = |a: Source, b: Source, columns: Range<usize>, steps: Range<usize>, start: Start| {
            let vectors = numbers.vectors();
            let part = Part { rows: 0..m, columns, vectors, steps, k, a, b, start, c, stride };
            part.by_tasks(team, numbers, (rows, group));
        };
        let (own_a, own_b, all) = (Source::Unpacked(a), Source::Unpacked(b), numbers.steps(k));
        // As many steps at a time as the packed memory holds.
        let steps_of = |width: usize| (PACKED / width / DEPTH * DEPTH).max(DEPTH).min(all.max(1));
        if blocks > 1 {
            let width = n.next_multiple_of(LANES).min(WIDTH);
            let most = steps_of(width);
            team.with_scratch(width * most, |scratch| {
                let data = Parts::new(scratch);
                for columns in pieces(0..n, width) {
                    for (start, steps) in blocks_of(0..all, most, start) {
                        team.each(steps.len().div_ceil(STRIP), |task| {
                            let (first, top) = (task * STRIP % DEPTH, task * STRIP / DEPTH * DEPTH);
                            let block = steps.start + top..(steps.start + top + DEPTH).min(steps.end);
                            let strip = first..(first + STRIP).min(block.len());
                            pack_right(
                                isa,
                                numbers,
                                data.from(top * width),
                                b,
                                strip,
                                block,
                                k,
                                columns.clone(),
                                numbers.vectors(),
                            );
                        });
                        let b = Packed {
                            data,
                            first: columns.start,
                            count: width,
                            steps: (steps.start, steps.end),
                        };
                        run(own_a, Source::Packed(b), columns.clone(), steps, start);
                    }
                }
            });
        } else if numbers.packs(a, n) {
            let (most, runs, count) = (steps_of(m), m.div_ceil(RUN), numbers.padded(m));
            team.with_scratch(count * most + LANES, |scratch| {
                let data = Parts::new(scratch);
                for (start, steps) in blocks_of(0..all, most, start) {
                    team.each(runs * steps.len().div_ceil(DEPTH), |task| {
                        let (first, top) = (task % runs * RUN, task / runs * DEPTH);
                        let block = steps.start + top..(steps.start + top + DEPTH).min(steps.end);
                        let out = data.from(top * count + first * block.len());
                        pack_left(isa, numbers, out, a, first..(first + RUN).min(m), block, k);
                    });
                    let a = Packed { data, first: 0, count, steps: (steps.start, steps.end) };
                    run(Source::Packed(a), own_b, 0..n, steps, start);
                }
            });
        } else {
            run(own_a, own_b, 0..n, 0..all, start);
        }
    }
}

thread_local! {
    /// The packed tiles of A of a task.
    static TILES: RefCell<Buffer> = RefCell::new(Buffer::new(0));
}

/// Rows and panels of a task.
fn tasks(threads: usize, m: usize, panels: usize, grain: usize) -> (usize, usize) {
    // Several tasks a thread, so that one that is preempted does not delay the others.
    let wanted = if threads == 1 { 1 } else { 4 * threads };
    let groups = |blocks: usize| wanted.div_ceil(blocks).min(panels);
    let blocks = if m > 4 * ROWS {
        // A task's rows of A stay in L2 while it goes through all panels, which all tasks share.
        m.div_ceil(ROWS).max(wanted)
    } else {
        // Each group of panels reads all of A, each block of rows (at least seven tiles) all of B: the fewest
        // reads of both.
        let some = (1..=wanted.min(m / 56)).filter(|blocks| blocks * groups(*blocks) >= wanted);
        some.min_by_key(|blocks| groups(*blocks) * m + blocks * panels * PANEL)
            .unwrap_or_else(|| wanted.div_ceil(panels).min(m / 56).max(1))
    };
    // Whole tiles.
    (m.div_ceil(blocks).next_multiple_of(grain), panels.div_ceil(groups(blocks)))
}

/// The most columns of B that are packed at a time.
const WIDTH: usize = 85 * PANEL;

/// Words that are packed at a time for all tasks: 4 MiB, or one block of [`DEPTH`] where that is more.
const PACKED: usize = 1 << 20;

/// Rows of a task where there are many (MC), so that its part of A fits L2.
const ROWS: usize = 192;

/// Words of A that stay in L2 while a task goes through the panels: 512 KiB.
const L2: usize = 1 << 17;

/// Products of fewer multiplications are computed by one thread.
const SERIAL: usize = 1 << 15;

/// Up to so many rows, B is not packed: each element is used too few times.
pub const THIN: usize = 4;

/// `all` in blocks of at most `most` steps; the first has the initial value `start`, the others add. If `all`
/// is empty, one empty block.
fn blocks_of(all: Range<usize>, most: usize, start: Start) -> impl Iterator<Item = (Start, Range<usize>)> {
    (all.start..all.end.max(all.start + 1))
        .step_by(most)
        .map(move |top| (if top == all.start { start } else { Start::Add }, top..(top + most).min(all.end)))
}

/// The part of a product that is one task: some rows and columns, some steps of k.
#[derive(Clone)]
struct Part<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    /// The most vectors of a panel of B.
    vectors: usize,
    steps: Range<usize>,
    k: usize,
    a: Source<'a>,
    b: Source<'a>,
    start: Start<'a>,
    c: Parts<'a>,
    stride: usize,
}

impl Part<'_> {
    /// Computes it in tasks of so many rows and panels.
    fn by_tasks(&self, team: &Team, numbers: Numbers, (rows, group): (usize, usize)) {
        let blocks = self.rows.len().div_ceil(rows);
        let groups = self.columns.len().div_ceil(self.vectors * LANES).div_ceil(group);
        team.each(blocks * groups, |task| {
            // Tasks differ in their rows or columns.
            let (group_of, top) = (task / blocks, self.rows.start + task % blocks * rows);
            let all = panels(self.columns.clone(), self.vectors);
            let mut own = all.skip(group_of * group).take(group);
            let first = own.next().expect("no more tasks than groups");
            let columns = first.start..own.last().map_or(first.end, |last| last.end);
            let rows = top..(top + rows).min(self.rows.end);
            Part { rows, columns, steps: self.steps.clone(), ..self.clone() }.compute(team.isa, numbers);
        });
    }

    /// Computes it, with A packed where that pays. The bounds were checked.
    fn compute(&self, isa: Isa, numbers: Numbers) {
        let a = match self.a {
            Source::Unpacked(a) if numbers.packs(a, self.columns.len()) => a,
            _ => return self.panels(isa, numbers),
        };
        TILES.with_borrow_mut(|tiles| {
            // As many rows as L2 holds, of as many steps as L1 holds.
            let most = self.rows.len().min(ROWS);
            let len = numbers.padded(most) * DEPTH + LANES;
            if tiles.len() < len {
                *tiles = Buffer::new(len);
            }
            let data = Parts::new(tiles);
            for rows in pieces(self.rows.clone(), most) {
                for (start, steps) in blocks_of(self.steps.clone(), DEPTH, self.start) {
                    pack_left(isa, numbers, data, a, rows.clone(), steps.clone(), self.k);
                    let (first, count) = (rows.start, rows.len());
                    let a = Packed { data, first, count, steps: (steps.start, steps.end) };
                    let (rows, a) = (rows.clone(), Source::Packed(a));
                    Part { rows, steps, a, start, ..self.clone() }.panels(isa, numbers);
                }
            }
        });
    }

    /// The same with A as it is.
    fn panels(&self, isa: Isa, numbers: Numbers) {
        match numbers {
            // SAFETY: pairs and tiles are chosen where the CPU has the instructions.
            #[cfg(target_arch = "x86_64")]
            Numbers::Pairs => unsafe { panels_of_pairs(self) },
            #[cfg(target_arch = "x86_64")]
            Numbers::Tiles => unsafe { panels_of_tiles(self) },
            Numbers::Blocks => panels_of_blocks(isa, self),
            _ => panels_of_words(isa, self, numbers),
        }
    }

    /// Packs with `S` and multiplies with `K`.
    #[inline(always)]
    unsafe fn panels_of<S: Simd, K: Kernel>(&self, numbers: Numbers) {
        let Part { rows, columns, vectors, steps, k, a, b, start, c, stride } = self;
        let all = panels(columns.clone(), *vectors);
        let blocks = steps.len().div_ceil(DEPTH).max(1);
        let count = columns.len().div_ceil(vectors * LANES);
        // If L2 holds all steps of these rows of A: all blocks of a panel, then the next panel, which reads
        // and writes C once while it is cached. Else all panels of a block, then the next block.
        let fits = rows.len() * steps.len() <= L2;
        let nth = |i: usize| {
            let (panel, block) = if fits { (i / blocks, i % blocks) } else { (i % count, i / count) };
            let top = steps.start + block * DEPTH;
            (all.clone().nth(panel).expect("as many as are counted"), top..(top + DEPTH).min(steps.end))
        };
        unsafe {
            // Not initialized: only what was packed before is read.
            let mut scratch = MaybeUninit::<Scratch>::uninit();
            for i in 0..count * blocks {
                let ((panel, steps), (next, then)) = (nth(i), nth((i + 1) % (count * blocks)));
                let (top, depth, left, width) = (steps.start, steps.len(), panel.start, panel.len());
                let start = if top == self.steps.start { *start } else { Start::Add };
                let (packed, prefetch) = match b {
                    Source::Packed(b) => {
                        let width = next.len().next_multiple_of(LANES);
                        let row = b.panel(next.start, width, then.start);
                        let across = panel.len().next_multiple_of(LANES);
                        (b.panel(left, across, top), Prefetch { row, column: 0, width, stride: width })
                    }
                    Source::Unpacked(b) => {
                        let packed = (&raw mut (*scratch.as_mut_ptr()).0).cast::<f32>();
                        panel_in::<S>(numbers, packed, *b, steps, *k, panel);
                        let then = numbers.depths(then, *k);
                        let row = b.pointer(then.start, next.start);
                        let (width, stride) =
                            if b.column == 1 { (vectors * LANES, b.row) } else { (then.len(), b.column) };
                        (packed, Prefetch { row, column: 0, width, stride })
                    }
                };
                let begin = match start {
                    Start::Zero => Begin::Zero,
                    Start::Bias(bias) => Begin::Row(&bias[left..left + width]),
                    Start::Add => Begin::C,
                };
                let block = Block { a: *a, rows: rows.clone(), top, depth };
                let (c, stride) = (c.pointer().wrapping_add(left), *stride);
                K::panel(&block, Panel { packed, begin, c, stride, width, prefetch });
            }
        }
    }
}

simd! {
    fn panels_of_words<S>(part: &Part, numbers: Numbers) {
        // SAFETY: S runs here, and the bounds were checked.
        unsafe { part.panels_of::<S, Chains<S>>(numbers) }
    }

    fn panels_of_blocks<S>(part: &Part) {
        // SAFETY: as above.
        unsafe { part.panels_of::<S, Blocks<S>>(Numbers::Blocks) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
unsafe fn panels_of_pairs(part: &Part) {
    use super::x86::{Avx512, Pairs};
    unsafe { part.panels_of::<Avx512, Chains<Pairs>>(Numbers::Pairs) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
unsafe fn panels_of_tiles(part: &Part) {
    use super::x86::{Avx512, has_tiles};
    unsafe {
        // Tests run the same code on every CPU that can pack its numbers.
        #[cfg(test)]
        if !has_tiles() {
            return part.panels_of::<Avx512, amx::Matrix<amx::tests::Simulated>>(Numbers::Tiles);
        }
        debug_assert!(has_tiles());
        amx::configure();
        part.panels_of::<Avx512, amx::Matrix<amx::Native>>(Numbers::Tiles);
        amx::release();
    }
}

/// A block of a panel: 48 KiB.
#[repr(align(64))]
struct Scratch([f32; DEPTH * PANEL]);

/// The instructions of a team's products, for reports.
pub fn instructions(team: &Team) -> String {
    match team.dtype {
        Dtype::F32 => team.isa.name().into(),
        Dtype::Bf16 if has_native(Numbers::Pairs, team.isa) => "AVX-512 BF16".into(),
        Dtype::Bf16 => format!("{}, rounded to bf16", team.isa.name()),
        Dtype::Bf16Tile if tile_numbers(team) == Numbers::Tiles => "AMX".into(),
        Dtype::Bf16Tile => format!("{}, in the order of AMX", team.isa.name()),
    }
}

/// Whether products are computed by the CPU's own instruction for pairs or tiles of bf16: if there is one and it
/// gives the bits of its definition, which is tested once, for a CPU or an emulator that rounds otherwise would
/// silently make the bytes depend on the machine; and, of pairs, if that is faster, which is measured once: Zen
/// has twice as many a second as multiplications of f32, Sapphire Rapids half as many.
fn has_native(native: Numbers, isa: Isa) -> bool {
    static PAIRS: OnceLock<bool> = OnceLock::new();
    static TILES: OnceLock<bool> = OnceLock::new();
    match native {
        Numbers::Pairs => {
            let is_best = || is_exact(native, Numbers::Rounded) && is_faster(native, Numbers::Rounded);
            isa.has_pairs() && *PAIRS.get_or_init(is_best)
        }
        _ => isa.has_tiles() && *TILES.get_or_init(|| is_exact(native, Numbers::Blocks)),
    }
}

/// Whether a product of some 40 µs takes less time: the best of several.
fn is_faster(native: Numbers, than: Numbers) -> bool {
    let team = Team::new(1);
    let (m, n, k) = (96, 96, 512);
    let (a, b, mut c) = (vec![1.0; m * k], vec![1.0; k * n], vec![0.0; m * n]);
    let mut best = [Duration::MAX; 2];
    for _ in 0..5 {
        for (numbers, best) in [native, than].into_iter().zip(&mut best) {
            let (a, b, start) = (View::new(&a, k), View::new(&b, n), Start::Zero);
            let product = Product { a, b, k, start, c: Parts::new(&mut c), stride: n };
            let begun = Instant::now();
            product.shared(&team, numbers, m, n);
            *best = begun.elapsed().min(*best);
        }
    }
    best[0] < best[1]
}

/// Whether a product has the same bits with the two.
fn is_exact(native: Numbers, defined: Numbers) -> bool {
    let team = Team::new(1);
    let (m, n, k) = (15, 65, 67);
    // Of many magnitudes and both signs, so that a different order or rounding changes the result.
    let number = |i: usize| {
        let bits = (i as u32).wrapping_mul(0x9e37_79b1);
        f32::from_bits((bits & 0x807f_ffff) | ((110 + (bits >> 24) % 34) << 23))
    };
    let a: Vec<f32> = (0..m * k).map(number).collect();
    let b: Vec<f32> = (m * k..m * k + k * n).map(number).collect();
    let [found, expected] = [native, defined].map(|numbers| {
        let mut c = vec![0.0; m * n];
        let (a, b, start) = (View::new(&a, k), View::new(&b, n), Start::Zero);
        Product { a, b, k, start, c: Parts::new(&mut c), stride: n }.shared(&team, numbers, m, n);
        c.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
    });
    if found != expected {
        tracing::warn!("{native:?} of bf16 on this CPU don't give the bits of their definition: not used");
    }
    found == expected
}

/// The speed of this machine's products in GFLOP/s: the best of several products of 2048 × 2048 matrices.
pub fn peak(team: &Team) -> f64 {
    const N: usize = 2048;
    let mut all = Buffer::new(3 * N * N);
    let (a, rest) = all.split_at_mut(N * N);
    let (b, c) = rest.split_at_mut(N * N);
    a.iter_mut().chain(b.iter_mut()).enumerate().for_each(|(i, x)| *x = (i % 17) as f32);
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let begun = Instant::now();
        matmul(team, (N, N, N), View::new(a, N), View::new(b, N), Start::Zero, c, N);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    2.0 * (N * N * N) as f64 / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::kernel::testing::{in_tiles, rounded, strange};
    use crate::kernel::{Isa, to_bf16};

    fn numbers(n: usize, label: &str) -> Vec<f32> {
        let mut rng = Rng::new(1, label);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// The definition: one chain of fused multiply-adds an element; in bf16, of pairs of k the second first; in
    /// `bf16_tile`, see [`in_tiles`].
    fn plain(dtype: Dtype, (m, n, k): (usize, usize, usize), a: View, b: View, start: Start, c: &mut [f32]) {
        let number = if dtype == Dtype::Bf16 { rounded } else { |x| x };
        for i in 0..m {
            for j in 0..n {
                let begin = match start {
                    Start::Zero => 0.0,
                    Start::Add => c[i * n + j],
                    Start::Bias(bias) => bias[j],
                };
                let factors = |k: usize| {
                    let (x, y) = (a.data[i * a.row + k * a.column], b.data[k * b.row + j * b.column]);
                    (number(x), number(y))
                };
                let add = |sum: f32, k: usize| {
                    let (x, y) = factors(k);
                    x.mul_add(y, sum)
                };
                c[i * n + j] = match dtype {
                    Dtype::F32 => (0..k).fold(begin, add),
                    Dtype::Bf16 => {
                        let order = |i: usize| if i + 1 < k || i % 2 == 1 { i ^ 1 } else { i };
                        (0..k).map(order).fold(begin, add)
                    }
                    Dtype::Bf16Tile => in_tiles(k, begin, factors),
                };
            }
        }
    }

    /// To the bit: transposed or not, every initial value, sizes around those of tiles, panels and blocks, A
    /// packed and not; in bf16 with the instruction for pairs, too, where the CPU has it.
    #[test]
    fn products_are_their_definition_on_every_cpu_and_any_threads() {
        let sizes = [
            (1, 1, 1),
            (1, 40, 33),
            (3, 100, 17),
            (4, 130, 16),
            (5, 33, 70),
            (14, 32, 8),
            (29, 31, 300),
            (60, 70, 257),
            (60, 70, 513),
            (90, 64, 31),
            (300, 64, 20),
            (40, 520, 30),
            (30, 16, 1024),
            (70, 40, 1024),
            (266, 5, 9),
            (4300, 20, 9),
            // Tiles packed by each task; panels and tiles packed for all in more than one part.
            (1010, 70, 260),
            (1010, 4100, 3),
            (1000, 66, 1030),
        ];
        let all = Isa::available().into_iter().flat_map(|isa| Dtype::ALL.map(|dtype| (isa, dtype)));
        for (isa, dtype) in all {
            let teams = [1, 3].map(|threads| Team::with(threads, isa).in_dtype(dtype));
            // Without a fused multiply-add in hardware the large ones take too long.
            let few = isa.name() == "portable";
            for (m, n, k) in sizes.into_iter().filter(|(m, n, k)| !few || m * n * k < 200_000) {
                let (mut a, b, bias) = (numbers(m * k, "a"), numbers(k * n, "b"), numbers(n, "bias"));
                // In bf16: one below 2^-55, one tie that rounds down, and one that rounds up.
                a[0] = 1e-20;
                a[m * k - 1] = f32::from_bits(0x3f80_8000);
                a[m * k / 2] = -f32::from_bits(0x3f81_8000);
                // The large ones only transposed, with a bias: the plain twin is slow.
                let ways = if m * n * k < 10_000_000 { 0..12 } else { 9..10 };
                for (at, bt, start) in ways.map(|i| (i & 1, i & 2, i / 4)) {
                    let a = if at == 0 { View::new(&a, k) } else { View::new(&a, m).t() };
                    let b = if bt == 0 { View::new(&b, n) } else { View::new(&b, k).t() };
                    let start = [Start::Zero, Start::Add, Start::Bias(&bias)][start];
                    let mut expected = numbers(m * n, "c");
                    plain(dtype, (m, n, k), a, b, start, &mut expected);
                    for team in &teams {
                        let mut c = numbers(m * n, "c");
                        matmul(team, (m, n, k), a, b, start, &mut c, n);
                        assert!(c == expected, "{m} {n} {k} {at} {bt} on {}", instructions(team));
                    }
                }
            }
        }
    }

    fn bits(c: &[f32]) -> Vec<u32> {
        // Which NaN is not defined.
        c.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
    }

    /// To the bit, with numbers of all sizes, subnormal and infinite ones and NaN among them, in A, B and what C
    /// begins with: matrix tiles (simulated where the CPU has none), what stands for them on each instruction
    /// set, and products of few rows with a matrix of bf16.
    #[test]
    fn tiles_and_what_stands_for_them_give_the_bits_of_their_definition() {
        let has_tiles = Isa::best().has_tiles();
        if !has_tiles {
            eprintln!("no AMX here: its instructions are simulated, and not compared with their definition");
        }
        let sizes = [(1, 1, 1), (3, 65, 34), (16, 16, 32), (33, 49, 31), (100, 33, 700), (7, 130, 1100)];
        for (kind, (m, n, k)) in (0..4).flat_map(|kind| sizes.map(|size| (kind, size))) {
            let all = |n, label| -> Vec<f32> { (0..n).map(|i| strange(kind, i, label)).collect() };
            let (a, b, before) = (all(m * k, 1), all(k * n, 2), all(m * n, 3));
            for (at, bt, start) in (0..12).map(|i| (i & 1, i & 2, i / 4)) {
                let a = if at == 0 { View::new(&a, k) } else { View::new(&a, m).t() };
                let b = if bt == 0 { View::new(&b, n) } else { View::new(&b, k).t() };
                let start = [Start::Zero, Start::Add, Start::Bias(&before[..n])][start];
                let mut expected = before.clone();
                plain(Dtype::Bf16Tile, (m, n, k), a, b, start, &mut expected);
                let check = |team: &Team, numbers: Numbers| {
                    let mut c = before.clone();
                    let product = Product { a, b, k, start, c: Parts::new(&mut c), stride: n };
                    product.shared(team, numbers, m, n);
                    let what = format!("{numbers:?} on {}: {kind} {m} {n} {k} {at} {bt}", team.isa.name());
                    assert!(bits(&c) == bits(&expected), "{what}");
                };
                for isa in Isa::available() {
                    let team = Team::with(2, isa).in_dtype(Dtype::Bf16Tile);
                    check(&team, Numbers::Blocks);
                    if isa.has_pairs() {
                        check(&team, Numbers::Tiles);
                    }
                    if m <= THIN {
                        let (row, column) = if bt == 0 { (n, 1) } else { (1, k) };
                        let b: Vec<u16> = b.data.iter().map(|x| to_bf16_tile(*x)).collect();
                        let mut c = before.clone();
                        matmul_bf16(&team, (m, n, k), a, View { data: &b, row, column }, start, &mut c, n);
                        assert!(bits(&c) == bits(&expected), "thin on {}: {m} {n} {k}", isa.name());
                    }
                }
            }
        }
        if has_tiles {
            assert!(has_native(Numbers::Tiles, Isa::best()), "AMX is used");
        }
    }

    #[test]
    fn a_matrix_of_bf16_gives_what_its_numbers_give() {
        for isa in Isa::available() {
            let team = Team::with(2, isa);
            for (m, n, k) in [(1, 700, 40), (4, 37, 19), (3, 16, 16), (2, 5, 3)] {
                let (a, b, bias) = (numbers(m * k, "a"), numbers(k * n, "b"), numbers(n, "bias"));
                let b: Vec<u16> = b.iter().map(|x| to_bf16(*x)).collect();
                let wide: Vec<f32> = b.iter().map(|x| x.widened()).collect();
                for (transposed, start) in
                    [(false, Start::Zero), (true, Start::Add), (false, Start::Bias(&bias))]
                {
                    let (mut c, mut expected) = (numbers(m * n, "c"), numbers(m * n, "c"));
                    let (a, stride) = (View::new(&a, k), if transposed { k } else { n });
                    let (b, wide) = (View::new(&b, stride), View::new(&wide, stride));
                    let (b, wide) = if transposed { (b.t(), wide.t()) } else { (b, wide) };
                    plain(Dtype::F32, (m, n, k), a, wide, start, &mut expected);
                    matmul_bf16(&team, (m, n, k), a, b, start, &mut c, n);
                    assert!(c == expected, "{m} {n} {k} on {}", isa.name());
                }
            }
        }
        for (x, nearest) in
            [(1.0, 0x3f80), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (-0.0, 0x8000)]
        {
            assert_eq!(to_bf16(x), nearest, "{x}");
        }
        assert!(to_bf16(f32::NAN).widened().is_nan() && to_bf16(f32::INFINITY).widened().is_infinite());
    }

    #[test]
    fn infinity_and_nan_stay_in_bf16() {
        for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0x7f80_0001), f32::MAX] {
            let (a, mut c) = ([x; 16], [0.0; 16]);
            let team = Team::new(1).in_dtype(Dtype::Bf16);
            matmul(&team, (1, 16, 1), View::new(&[1.0], 1), View::new(&a, 16), Start::Zero, &mut c, 16);
            assert!(c.iter().all(|c| !c.is_finite()), "{x} gave {c:?}");
        }
    }

    #[test]
    #[should_panic(expected = "a is no [3, 4]")]
    fn what_is_too_short_is_refused() {
        let (a, b) = ([0.0; 11], [0.0; 8]);
        matmul(&Team::new(1), (3, 2, 4), View::new(&a, 4), View::new(&b, 2), Start::Zero, &mut [0.0; 6], 2);
    }
}
