//! Products of matrices: `C = A·B`, `C = bias + A·B` or `C += A·B`.
//!
//! Each element of C is one chain of fused multiply-adds over k = 0, 1, 2, … from what it starts with.
//! Nothing else decides its bits: not the sizes of tiles and blocks below, not which thread does what,
//! not the width of the vectors, which lie along the columns. A single row gives the bits that it would
//! give within a thousand.
//!
//! What makes it fast (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
//! 2008):
//! - a **tile** of C, as many rows as there are registers for, stays in registers while k runs;
//! - B is copied into **panels** of 32 columns, so that a tile reads it from end to end, and in blocks of
//!   [`DEPTH`] rows, so that a block stays in the innermost cache while all rows of A pass by;
//! - A is read where it lies, its numbers broadcast one at a time; where its rows lie badly for the cache,
//!   or it is transposed, its tiles are copied too.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::simd::{LANES, Simd, simd};
use super::team::{Parts, Team};

/// Columns of a panel.
pub const PANEL: usize = 2 * LANES;

/// Rows of B that are packed at a time: 32 KiB of a panel.
pub const DEPTH: usize = 256;

/// A matrix to read: element (i, j) is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> View<'a> {
    /// Rows that lie `stride` apart.
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        View { data, row: stride, column: 1 }
    }

    /// Rows for columns.
    pub fn t(self) -> Self {
        View { data: self.data, row: self.column, column: self.row }
    }

    /// Without the first rows.
    pub fn below(self, rows: usize) -> Self {
        View { data: &self.data[rows * self.row..], ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }

    /// Whether tiles are copied before they meet so many panels: when a step would go to another row,
    /// when rows lie so that their beginnings fall on few sets of the cache, and when the panels are
    /// enough to pay for it.
    fn is_packed_for(&self, panels: usize) -> bool {
        self.column != 1 || self.row.is_multiple_of(1024) || panels >= 16
    }

    /// Begin this row and column on.
    fn from(self, row: usize, column: usize) -> *const f32 {
        // Within the slice: whoever calls it has asked `holds`.
        self.data.as_ptr().wrapping_add(row * self.row + column * self.column)
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// What C holds.
    Add,
    /// A row for all rows.
    Bias(&'a [f32]),
}

/// `c[m, n] = start + a[m, k] · b[k, n]`, by all of the team.
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
    assert!(stride >= n, "rows of {n} do not fit a stride of {stride}");
    let c = Parts::new(c);
    if m * n * k < ALONE {
        return product(team.isa, 0..m, 0..n, k, a, b, start, c, stride);
    }
    let panels = n.div_ceil(PANEL);
    let (rows, group) = tasks(team.threads(), m, panels, a.is_packed_for(panels));
    let blocks = m.div_ceil(rows);
    let groups = n.div_ceil(group * PANEL);
    team.each(blocks * groups, |task| {
        let (left, top) = (task / blocks * group * PANEL, task % blocks * rows);
        // Tasks differ in their rows or columns.
        let (rows, columns) = (top..(top + rows).min(m), left..(left + group * PANEL).min(n));
        product(team.isa, rows, columns, k, a, b, start, c, stride);
    });
}

/// How many rows and how many panels a task has.
///
/// Every task packs its panels, and its rows where they have to be: many rows share the cost of a panel,
/// many panels that of the rows. And there should be a few tasks for each thread, since one that is held
/// up must not hold up the others.
fn tasks(threads: usize, m: usize, panels: usize, packs_rows: bool) -> (usize, usize) {
    let (most, least) = if packs_rows { (ROWS, 4) } else { (m.max(1), 1) };
    let wanted = 4 * threads;
    let blocks = m.div_ceil(most).max(1);
    let groups = wanted.div_ceil(blocks).min(panels.div_ceil(least)).max(1);
    let blocks = blocks.max(wanted.div_ceil(groups).min(m / 56));
    let rows = m.div_ceil(blocks).next_multiple_of(14).min(most);
    (rows, panels.div_ceil(groups).max(1))
}

/// Products of fewer multiplications are not worth sharing.
const ALONE: usize = 1 << 15;

/// Up to so many rows, B is read where it lies: it is needed but once.
const THIN: usize = 4;

simd! {
    /// Some rows and columns of [`matmul`], by one thread. No two threads may hold the same of `c`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn product<S>(
        rows: Range<usize>,
        columns: Range<usize>,
        k: usize,
        a: View,
        b: View,
        start: Start,
        c: Parts,
        stride: usize,
    ) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        assert!(a.holds(rows.end, k), "a is no [{}, {k}]", rows.end);
        assert!(b.holds(k, columns.end), "b is no [{k}, {}]", columns.end);
        assert!((rows.end - 1) * stride + columns.end <= c.len(), "c is no [{}, {}]", rows.end, columns.end);
        if let Start::Bias(bias) = start {
            assert!(bias.len() >= columns.end, "the bias is no row of c");
        }
        // SAFETY: S runs here, and the bounds were checked.
        unsafe {
            if rows.len() <= THIN && (b.row == 1 || b.column == 1) {
                thin::<S>(rows, columns, k, a, b, start, c.pointer(), stride);
            } else {
                let packs = a.is_packed_for(columns.len().div_ceil(PANEL));
                let most = if packs { ROWS } else { rows.len() };
                for top in rows.clone().step_by(most) {
                    let rows = top..(top + most).min(rows.end);
                    thick::<S>(rows, columns.clone(), k, a, b, start, c.pointer(), stride);
                }
            }
        }
    }
}

/// Row by row, some vectors of columns at a time.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn thin<S: Simd>(
    rows: Range<usize>,
    columns: Range<usize>,
    k: usize,
    a: View,
    b: View,
    start: Start,
    c: *mut f32,
    stride: usize,
) {
    unsafe {
        for i in rows {
            let (x, to) = (a.from(i, 0), c.add(i * stride));
            if let Start::Zero = start {
                to.add(columns.start).write_bytes(0, columns.len());
            } else if let Start::Bias(bias) = start {
                std::ptr::copy_nonoverlapping(
                    bias[columns.clone()].as_ptr(),
                    to.add(columns.start),
                    columns.len(),
                );
            }
            let mut j = columns.start;
            if b.column == 1 {
                // Long pieces of a row: B comes from beyond the cache, and is read ahead by the line.
                if S::WIDE {
                    while j + 16 * LANES <= columns.end {
                        thin_rows::<S, 16>(x, a.column, k, b.from(0, j), b.row, to.add(j));
                        j += 16 * LANES;
                    }
                }
                while j + 4 * LANES <= columns.end {
                    thin_rows::<S, 4>(x, a.column, k, b.from(0, j), b.row, to.add(j));
                    j += 4 * LANES;
                }
                while j + LANES <= columns.end {
                    thin_rows::<S, 1>(x, a.column, k, b.from(0, j), b.row, to.add(j));
                    j += LANES;
                }
            } else {
                while j + LANES <= columns.end {
                    thin_columns::<S>(x, a.column, k, b.from(0, j), b.column, to.add(j));
                    j += LANES;
                }
            }
            for j in j..columns.end {
                let mut sum = *to.add(j);
                for k in 0..k {
                    sum = (*x.add(k * a.column)).mul_add(*b.from(k, j), sum);
                }
                *to.add(j) = sum;
            }
        }
    }
}

/// `c += x · b` with `W` vectors of columns; rows of b lie `stride` apart.
#[inline(always)]
unsafe fn thin_rows<S: Simd, const W: usize>(
    x: *const f32,
    step: usize,
    k: usize,
    mut b: *const f32,
    stride: usize,
    c: *mut f32,
) {
    unsafe {
        let mut sums: [S::F; W] = std::array::from_fn(|j| S::load(c.add(j * LANES)));
        for k in 0..k {
            let x = S::splat(*x.add(k * step));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(x, S::load(b.add(j * LANES)), *sum);
            }
            b = b.wrapping_add(stride);
        }
        for (j, sum) in sums.iter().enumerate() {
            S::store(c.add(j * LANES), *sum);
        }
    }
}

/// `c += x · b` with one vector of columns, each of which lies in one piece, `stride` behind the other.
#[inline(always)]
unsafe fn thin_columns<S: Simd>(
    x: *const f32,
    step: usize,
    k: usize,
    b: *const f32,
    stride: usize,
    c: *mut f32,
) {
    unsafe {
        let mut sum = S::load(c);
        let whole = k / LANES * LANES;
        for top in (0..whole).step_by(LANES) {
            for (y, row) in S::columns(b.add(top), stride).iter().enumerate() {
                sum = S::fma(S::splat(*x.add((top + y) * step)), *row, sum);
            }
        }
        for k in whole..k {
            let column: [f32; LANES] = std::array::from_fn(|j| *b.add(j * stride + k));
            sum = S::fma(S::splat(*x.add(k * step)), S::load(column.as_ptr()), sum);
        }
        S::store(c, sum);
    }
}

/// Packed block after packed block.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn thick<S: Simd>(
    rows: Range<usize>,
    columns: Range<usize>,
    k: usize,
    a: View,
    b: View,
    start: Start,
    c: *mut f32,
    stride: usize,
) {
    unsafe {
        // Left as it is: what is read was written before.
        let mut scratch = MaybeUninit::<Scratch>::uninit();
        let scratch = &raw mut *scratch.as_mut_ptr();
        let (packed_a, packed_b) =
            ((&raw mut (*scratch).a).cast::<f32>(), (&raw mut (*scratch).b).cast::<f32>());
        let mut top = 0;
        loop {
            let depth = DEPTH.min(k - top);
            let copied = a.is_packed_for(columns.len().div_ceil(PANEL));
            if copied {
                pack_rows::<S>(packed_a, a, rows.clone(), top, depth);
            }
            let block =
                Rows { a, packed: copied.then_some(packed_a.cast_const()), rows: rows.clone(), top, depth };
            let mut left = columns.start;
            while left < columns.end {
                let width = PANEL.min(columns.end - left);
                pack::<S>(packed_b, b, top, depth, left, width);
                let begin = match start {
                    Start::Zero if top == 0 => Begin::Zero,
                    Start::Bias(bias) if top == 0 => Begin::Row(&bias[left..left + width]),
                    _ => Begin::C,
                };
                panel::<S>(&block, packed_b, begin, c.add(left), stride, width);
                left += PANEL;
            }
            top += depth;
            if top >= k {
                break;
            }
        }
    }
}

/// Rows of C that a task has at most, so that a packed block of A fits the second cache.
pub const ROWS: usize = 266;

/// 266 KiB of A, with room for a vector behind it, and 32 KiB of B.
#[repr(align(64))]
struct Scratch {
    a: [f32; ROWS * DEPTH + LANES],
    b: [f32; DEPTH * PANEL],
}

/// `packed[i][j] = b[top + i, left + j]`, zeros behind `width`.
#[inline(always)]
unsafe fn pack<S: Simd>(out: *mut f32, b: View, top: usize, depth: usize, left: usize, width: usize) {
    unsafe {
        if width < PANEL {
            out.write_bytes(0, depth * PANEL);
        }
        if b.column == 1 && width == PANEL {
            for i in 0..depth {
                let row = b.from(top + i, left);
                S::store(out.add(i * PANEL), S::load(row));
                S::store(out.add(i * PANEL + LANES), S::load(row.add(LANES)));
            }
            return;
        }
        let whole = if b.row == 1 { (depth / LANES * LANES, width / LANES * LANES) } else { (0, 0) };
        for i in (0..whole.0).step_by(LANES) {
            for j in (0..whole.1).step_by(LANES) {
                S::transpose(b.from(top + i, left + j), b.column, out.add(i * PANEL + j), PANEL);
            }
        }
        for i in 0..depth {
            for j in if i < whole.0 { whole.1..width } else { 0..width } {
                *out.add(i * PANEL + j) = *b.from(top + i, left + j);
            }
        }
    }
}

/// Tile after tile, each `[depth, height]`: what a tile reads lies in the order in which it reads it.
#[inline(always)]
unsafe fn pack_rows<S: Simd>(out: *mut f32, a: View, rows: Range<usize>, top: usize, depth: usize) {
    unsafe {
        if a.row == 1 {
            // Row after row of what is transposed, each read from end to end.
            for k in 0..depth {
                let mut i = rows.start;
                while i < rows.end {
                    let height = S::height(rows.end - i);
                    let (from, to) = (a.from(i, top + k), out.add((i - rows.start) * depth + k * height));
                    if i + LANES <= rows.end && k * height + LANES <= depth * height {
                        // The lanes beyond the tile's rows are overwritten by the next columns'.
                        S::store(to, S::load(from));
                    } else {
                        std::ptr::copy_nonoverlapping(from, to, height);
                    }
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

/// What a tile's registers begin with.
#[derive(Clone, Copy)]
enum Begin<'a> {
    Zero,
    C,
    Row(&'a [f32]),
}

/// Some rows of A, some columns of them, and where they were packed, if they were.
struct Rows<'a> {
    a: View<'a>,
    packed: Option<*const f32>,
    rows: Range<usize>,
    top: usize,
    depth: usize,
}

impl Rows<'_> {
    /// The tile that begins at row `i`: where, and what lies between its rows and columns.
    #[inline(always)]
    fn tile(&self, i: usize, height: usize) -> (*const f32, usize, usize) {
        match self.packed {
            Some(packed) => (packed.wrapping_add((i - self.rows.start) * self.depth), 1, height),
            None => (self.a.from(i, self.top), self.a.row, self.a.column),
        }
    }
}

/// All tiles of a packed block, from top to bottom.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn panel<S: Simd>(
    block: &Rows,
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
        let mut i = rows.start;
        while i < rows.end {
            let height = S::height(rows.end - i);
            let (from, row, column) = block.tile(i, height);
            let to = c.add(i * stride);
            if width == PANEL {
                tiles::<S>(height, from, row, column, depth, packed, begin, to, stride);
            } else {
                // The registers hold whole panels; what is beyond C goes by way of a copy.
                let mut copy = [0.0; 14 * PANEL];
                for (y, copy) in copy.chunks_exact_mut(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(to.add(y * stride), copy.as_mut_ptr(), width);
                }
                let edge = copy.as_mut_ptr();
                tiles::<S>(height, from, row, column, depth, packed, begin, edge, PANEL);
                for (y, copy) in copy.chunks_exact(PANEL).take(height).enumerate() {
                    std::ptr::copy_nonoverlapping(copy.as_ptr(), to.add(y * stride), width);
                }
            }
            i += height;
        }
    }
}

/// The tile of `height` rows and one panel.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tiles<S: Simd>(
    height: usize,
    a: *const f32,
    row: usize,
    column: usize,
    depth: usize,
    b: *const f32,
    begin: Begin,
    c: *mut f32,
    stride: usize,
) {
    // SAFETY: as the caller's.
    macro_rules! tile {
        ($height:literal, 2) => {
            unsafe { tile::<S, $height, 2>(a, row, column, depth, b, begin, 0, c, stride) }
        };
        ($height:literal, 1) => {
            unsafe {
                tile::<S, $height, 1>(a, row, column, depth, b, begin, 0, c, stride);
                let (b, c) = (b.add(LANES), c.add(LANES));
                tile::<S, $height, 1>(a, row, column, depth, b, begin, LANES, c, stride);
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

/// `H` rows and `W` vectors of C in registers.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<S: Simd, const H: usize, const W: usize>(
    a: *const f32,
    row: usize,
    column: usize,
    depth: usize,
    b: *const f32,
    begin: Begin,
    offset: usize,
    c: *mut f32,
    stride: usize,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); W]; H];
        match begin {
            Begin::Zero => {}
            Begin::C => unrolled!(i < H, {
                unrolled!(j < W, { sums[i][j] = S::load(c.add(i * stride + j * LANES)) });
            }),
            Begin::Row(bias) => {
                let first = bias.as_ptr().add(offset);
                unrolled!(j < W, {
                    let bias = S::load(first.add(j * LANES));
                    unrolled!(i < H, { sums[i][j] = bias });
                });
            }
        }
        if row == 1 && column == H {
            packed_steps::<S, H, W>(&mut sums, a, depth, b);
        } else {
            // Rows in place: whatever is transposed was packed.
            steps::<S, H, W>(&mut sums, a, row, depth, b);
        }
        unrolled!(i < H, {
            unrolled!(j < W, { S::store(c.add(i * stride + j * LANES), sums[i][j]) });
        });
    }
}

/// `sums += a · b` where a tile of A lies `[depth, H]`.
#[inline(always)]
unsafe fn packed_steps<S: Simd, const H: usize, const W: usize>(
    sums: &mut [[S::F; W]; H],
    mut a: *const f32,
    depth: usize,
    mut b: *const f32,
) {
    unsafe {
        for _ in 0..depth {
            let first = S::load(b);
            let second = if W > 1 { S::load(b.add(LANES)) } else { first };
            unrolled!(i < H, {
                let x = S::splat(*a.add(i));
                sums[i][0] = S::fma(x, first, sums[i][0]);
                if W > 1 {
                    sums[i][1] = S::fma(x, second, sums[i][1]);
                }
            });
            a = a.add(H);
            b = b.add(PANEL);
        }
    }
}

/// The same where its rows lie `row` apart. An address can hold a base and one or two times `row`: every
/// third row gets a base of its own.
#[inline(always)]
unsafe fn steps<S: Simd, const H: usize, const W: usize>(
    sums: &mut [[S::F; W]; H],
    a: *const f32,
    row: usize,
    depth: usize,
    mut b: *const f32,
) {
    unsafe {
        let base = |g: usize| a.wrapping_add(3 * g * row);
        let (mut a0, mut a1, mut a2, mut a3, mut a4) = (base(0), base(1), base(2), base(3), base(4));
        for _ in 0..depth {
            let first = S::load(b);
            let second = if W > 1 { S::load(b.add(LANES)) } else { first };
            unrolled!(i < H, {
                let base = match i / 3 {
                    0 => a0,
                    1 => a1,
                    2 => a2,
                    3 => a3,
                    _ => a4,
                };
                let x = S::splat(*base.add(i % 3 * row));
                sums[i][0] = S::fma(x, first, sums[i][0]);
                if W > 1 {
                    sums[i][1] = S::fma(x, second, sums[i][1]);
                }
            });
            (a0, a1, a2) = (a0.wrapping_add(1), a1.wrapping_add(1), a2.wrapping_add(1));
            (a3, a4) = (a3.wrapping_add(1), a4.wrapping_add(1));
            b = b.add(PANEL);
        }
    }
}

/// What this machine's products reach at most, in 10^9 multiplications and additions a second: the best
/// of several products of 1024 × 1024 matrices.
pub fn peak(team: &Team) -> f64 {
    const N: usize = 1024;
    let mut all = super::Buffer::new(3 * N * N);
    let (a, rest) = all.split_at_mut(N * N);
    let (b, c) = rest.split_at_mut(N * N);
    a.iter_mut().chain(b.iter_mut()).enumerate().for_each(|(i, x)| *x = (i % 17) as f32);
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        let begun = std::time::Instant::now();
        matmul(team, (N, N, N), View::new(a, N), View::new(b, N), Start::Zero, c, N);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    2.0 * (N * N * N) as f64 / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::kernel::Isa;

    fn numbers(n: usize, label: &str) -> Vec<f32> {
        let mut rng = Rng::new(1, label);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// The definition: one chain of fused multiply-adds an element.
    fn plain(m: usize, n: usize, k: usize, a: View, b: View, start: Start, c: &mut [f32]) {
        for i in 0..m {
            for j in 0..n {
                let mut sum = match start {
                    Start::Zero => 0.0,
                    Start::Add => c[i * n + j],
                    Start::Bias(bias) => bias[j],
                };
                for k in 0..k {
                    let (x, y) = (a.data[i * a.row + k * a.column], b.data[k * b.row + j * b.column]);
                    sum = x.mul_add(y, sum);
                }
                c[i * n + j] = sum;
            }
        }
    }

    /// To the bit: every way of lying, every beginning, sizes around tiles, panels and blocks, rows that
    /// are packed and rows that are not.
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
            (300, 64, 20),
            (40, 520, 30),
            (30, 16, 1024),
            (70, 40, 1024),
            (266, 5, 9),
        ];
        for isa in Isa::available() {
            let teams = [1, 3].map(|threads| Team::with(threads, isa));
            // Without a fused multiply-add in hardware the large ones take too long.
            let few = isa.name() == "portable";
            for (m, n, k) in sizes.into_iter().filter(|(m, n, k)| !few || m * n * k < 200_000) {
                let (a, b, bias) = (numbers(m * k, "a"), numbers(k * n, "b"), numbers(n, "bias"));
                for (at, bt, start) in (0..12).map(|i| (i & 1, i & 2, i / 4)) {
                    let a = if at == 0 { View::new(&a, k) } else { View::new(&a, m).t() };
                    let b = if bt == 0 { View::new(&b, n) } else { View::new(&b, k).t() };
                    let start = [Start::Zero, Start::Add, Start::Bias(&bias)][start];
                    let mut expected = numbers(m * n, "c");
                    plain(m, n, k, a, b, start, &mut expected);
                    for team in &teams {
                        let mut c = numbers(m * n, "c");
                        matmul(team, (m, n, k), a, b, start, &mut c, n);
                        assert!(c == expected, "{m} {n} {k} {at} {bt} on {}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a is no [3, 4]")]
    fn what_is_too_short_is_refused() {
        let (a, b) = ([0.0; 11], [0.0; 8]);
        matmul(&Team::new(1), (3, 2, 4), View::new(&a, 4), View::new(&b, 2), Start::Zero, &mut [0.0; 6], 2);
    }
}
