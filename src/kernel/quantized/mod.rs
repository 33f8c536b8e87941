//! Weight matrices of integers with scales, and products with them.
//!
//! A matrix `[k, n]` whose columns were stored as blocks (see [`super::blocks`]) is kept as panels of 16
//! columns, in the order in which a product reads them: the codes of 16 columns, four consecutive k of one column
//! side by side, then their scales and, where the type has them, mins (see [`form`]). Codes of 4 bits are two a
//! byte, others bytes.
//!
//! Each row of x is rounded to integers from -127 to 127 as ggml does for its products with blocks: 32 numbers
//! with one scale, `max / 127` in f16, or 256 numbers with one in f32 where the blocks are of a K type.
//!
//! Products are summed in the order in which ggml's kernels for x86-64 with AVX2 do it
//! (`ggml-cpu/arch/x86/quants.c`, `repack.cpp`, <https://github.com/ggml-org/ggml>, August 2026), so that a quantized
//! model says the same here and in llama.cpp. With `d` the f32 scales of x and of a column, `m` a column's min:
//!
//! ```text
//!  Q4_0, Q4_1, Q5_1   y += d·d · Σ code·x  +  m · (d · Σ x)                        after each 32
//!  Q5_0, Q8_0         y_i += d·d · Σ code·x of steps 4i to 4i + 3, eight sums      after each 32
//!  Q4_K, Q5_K, Q6_K   y += d·d · Σ scale·code·x,  y' += m·d · Σ min·x              after each 256
//! ```
//!
//! Each `Σ` is an exact integer and each `+=` one fused multiply-add, in the order of k. At the end eight sums are
//! added as a tree, `y'` is added, and a bias or what y was before is added. So the bits of a result depend
//! neither on the instructions and threads that compute it nor on what is computed along with it. Q4_0, Q8_0 and
//! Q4_K follow its kernels operation by operation; of the others, llama.cpp has kernels with other orders.
//!
//! ```text
//!  form   how the codes of a type are laid out
//!  rows   x, rounded
//!  tile   some rows times some panels
//! ```

mod form;
mod rows;
mod tile;

use std::ops::Range;

use self::form::Form;
use self::rows::{Rows, Sharing};
use self::tile::{Instructions, Panels, multiply};
use super::blocks::Block;
use super::matmul::{Start, View, matmul};
use super::simd::LANES;
use super::team::{Parts, Team};
use super::{BlockType, Buffer};

/// A matrix `[k, n]`, some or all of whose columns are quantized. Others lie elsewhere, as f32.
pub struct Matrix {
    k: usize,
    n: usize,
    /// In the order of their columns.
    parts: Vec<Part>,
}

/// Columns of one type.
struct Part {
    columns: Range<usize>,
    form: Form,
    /// Of the rows that the columns are multiplied with.
    sharing: Sharing,
    data: Buffer,
}

/// Products of fewer multiplications are computed by one thread.
const SERIAL: usize = 1 << 18;

/// From so many rows on, tasks differ in their rows, not in their columns.
const MANY: usize = 64;

/// Rows of a task are a multiple of it.
const GRAIN: usize = 8;

impl Matrix {
    /// Without quantized columns yet. `k` must be a multiple of 32.
    pub fn new(k: usize, n: usize) -> Self {
        Matrix { k, n, parts: Vec::new() }
    }

    /// Sets some columns to blocks of a quantized type, one column after the other; the `i`-th of them is the
    /// one that `column_of(i)` gives.
    ///
    /// # Panics
    /// When the bytes are not those of so many columns, or a column is none of them.
    pub fn set(
        &mut self,
        columns: Range<usize>,
        ty: BlockType,
        bytes: &[u8],
        column_of: impl Fn(usize) -> usize,
    ) {
        let (k, form) = (self.k, Form::of(ty));
        assert!(columns.end <= self.n && bytes.len() == ty.bytes(k) * columns.len(), "columns {columns:?}");
        self.clear(columns.clone());
        let mut data = Buffer::new(form.panel_words(k) * columns.len().div_ceil(LANES));
        let mut block = Block::default();
        assert_eq!(form.steps(), ty.block_len(), "a unit is a block");
        for (i, column) in bytes.chunks_exact(ty.bytes(k)).enumerate() {
            let to = column_of(i);
            assert!(columns.contains(&to), "column {to} of {columns:?}");
            for (unit, bytes) in column.chunks_exact(ty.bytes(ty.block_len())).enumerate() {
                ty.unpack(bytes, &mut block);
                form.pack(&mut data, k, to - columns.start, unit, &block);
            }
        }
        let at = self.parts.partition_point(|part| part.columns.start < columns.start);
        self.parts.insert(at, Part { columns, form, sharing: Sharing::beside(ty), data });
    }

    /// Columns that were set to blocks lie elsewhere, as f32, from now on.
    ///
    /// # Panics
    /// When some of them were set along with others that are not named.
    pub fn clear(&mut self, columns: Range<usize>) {
        self.parts.retain(|part| {
            let within = columns.start <= part.columns.start && part.columns.end <= columns.end;
            let apart = part.columns.end <= columns.start || columns.end <= part.columns.start;
            assert!(within || apart, "columns {columns:?} are a part of {:?}", part.columns);
            apart
        });
    }

    /// Whether there are no quantized columns.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether all columns are quantized.
    pub fn is_whole(&self) -> bool {
        self.parts.iter().map(|part| part.columns.len()).sum::<usize>() == self.n
    }

    /// The quantized columns.
    pub fn columns(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().flat_map(|part| part.columns.clone())
    }

    /// Bytes in memory of the quantized columns.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| size_of_val(&part.data[..])).sum()
    }

    /// The numbers that a quantized column stands for, `[k]`: those of [`BlockType::decode`].
    ///
    /// # Panics
    /// When the column is not quantized.
    pub fn column(&self, column: usize, numbers: &mut [f32]) {
        let part = self.parts.iter().find(|part| part.columns.contains(&column));
        let part = part.expect("a quantized column");
        for (unit, numbers) in numbers[..self.k].chunks_exact_mut(part.form.steps()).enumerate() {
            part.form
                .unpack(&part.data, self.k, column - part.columns.start, unit)
                .decode(numbers, part.form.group);
        }
    }

    /// Where f32 columns lie, between the quantized ones.
    fn plain(&self) -> impl Iterator<Item = Range<usize>> {
        let ends = self.parts.iter().map(|part| part.columns.clone()).chain([self.n..self.n]);
        let mut from = 0;
        ends.filter_map(move |columns| {
            let plain = from..columns.start;
            from = columns.end;
            (!plain.is_empty()).then_some(plain)
        })
    }
}

/// Some columns of a matrix, as products read them.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    matrix: &'a Matrix,
    /// `[k, n]`, of which only the columns that are not quantized are read; empty where there are none.
    plain: &'a [f32],
    first: usize,
    len: usize,
}

impl<'a> Columns<'a> {
    /// All of them. `plain: [k, n]` has those that are not quantized.
    ///
    /// # Panics
    /// When there are such, and `plain` is too short.
    pub fn all(matrix: &'a Matrix, plain: &'a [f32]) -> Self {
        assert!(matrix.is_whole() || plain.len() == matrix.k * matrix.n, "f32 columns");
        Columns { matrix, plain, first: 0, len: matrix.n }
    }

    /// Some of them, of a matrix that was set as a whole: panels, the last of which may be the matrix's last.
    pub fn part(self, columns: Range<usize>) -> Self {
        assert!(self.matrix.parts.len() == 1 && columns.start.is_multiple_of(LANES), "{columns:?}");
        Columns { first: self.first + columns.start, len: columns.len(), ..self }
    }

    /// The length of a column.
    pub fn k(&self) -> usize {
        self.matrix.k
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers that one stands for.
    ///
    /// # Panics
    /// When it is not quantized.
    pub fn column(&self, column: usize, numbers: &mut [f32]) {
        self.matrix.column(self.first + column, numbers);
    }

    /// `y: [m, len] = start + x · columns` of `x: [m, k]`; rows of y begin every `stride`. The start is added to
    /// the sum.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn product(&self, team: &Team, m: usize, x: View, start: Start, y: &mut [f32], stride: usize) {
        if m == 0 || self.len == 0 {
            return;
        }
        assert!(stride >= self.len && y.len() >= (m - 1) * stride + self.len, "y is no [{m}, {}]", self.len);
        if let Start::Bias(bias) = start {
            assert!(bias.len() >= self.len, "the bias is no row of y");
        }
        let (k, to) = (self.matrix.k, Parts::new(y));
        for sharing in Sharing::ALL {
            let product = Product { columns: *self, sharing, start, y: to, stride };
            if product.parts().next().is_some() {
                Rows::with(team, m, k, sharing, |rows| product.compute(team, rows, x));
            }
        }
        for columns in self.matrix.plain() {
            let shape = (m, columns.len(), self.matrix.k);
            let plain = View::new(self.plain, self.matrix.n).from_column(columns.start);
            let start = match start {
                Start::Bias(bias) => Start::Bias(&bias[columns.clone()]),
                other => other,
            };
            matmul(team, shape, x, plain, start, &mut y[columns.start..], stride);
        }
    }
}

/// A product's quantized columns, those whose rows share scales alike.
struct Product<'a> {
    columns: Columns<'a>,
    sharing: Sharing,
    start: Start<'a>,
    y: Parts<'a>,
    stride: usize,
}

impl Product<'_> {
    fn compute(&self, team: &Team, rows: Rows, x: View) {
        let (m, k) = (rows.count(), rows.k());
        let n: usize = self.parts().map(|(_, columns)| columns.len()).sum();
        let panels = self.panels();
        let with = Instructions::of(team.isa);
        if m >= MANY {
            return team.ranges(m, GRAIN, |some| {
                rows.round(team.isa, x, some.clone());
                self.part(with, rows, some, 0..panels);
            });
        }
        rows.round(team.isa, x, 0..m);
        if m * n * k < SERIAL {
            return self.part(with, rows, 0..m, 0..panels);
        }
        team.ranges(panels, 4, |some| self.part(with, rows, 0..m, some));
    }

    /// Each part with its quantized columns that are asked for.
    fn parts(&self) -> impl Iterator<Item = (&Part, Range<usize>)> {
        let all = self.columns.first..self.columns.first + self.columns.len;
        let parts = self.columns.matrix.parts.iter().filter(|part| part.sharing == self.sharing);
        parts.filter_map(move |part| {
            let columns = part.columns.start.max(all.start)..part.columns.end.min(all.end);
            (!columns.is_empty()).then_some((part, columns))
        })
    }

    /// Panels of all parts.
    fn panels(&self) -> usize {
        self.parts().map(|(_, columns)| columns.len().div_ceil(LANES)).sum()
    }

    /// Some rows and some of the panels of all parts. Tasks differ in one of them.
    fn part(&self, with: Instructions, rows: Rows, some: Range<usize>, panels: Range<usize>) {
        let (k, first, mut before) = (rows.k(), self.columns.first, 0);
        for (part, columns) in self.parts() {
            let count = columns.len().div_ceil(LANES);
            let own = panels.start.clamp(before, before + count)..panels.end.clamp(before, before + count);
            let own = own.start - before..own.end - before;
            before += count;
            if own.is_empty() {
                continue;
            }
            let top = columns.start + own.start * LANES;
            let len = columns.end.min(columns.start + own.end * LANES) - top;
            let panel = (top - part.columns.start) / LANES;
            let data = &part.data[panel * part.form.panel_words(k)..];
            let panels = Panels { form: part.form, data, columns: len };
            multiply(with, panels, rows, some.clone(), self.start.from(top - first), self.to(top - first));
        }
    }

    fn to(&self, column: usize) -> tile::Output<'_> {
        tile::Output { y: self.y.from(column), stride: self.stride }
    }
}

impl<'a> Start<'a> {
    /// Without the first columns of a bias.
    fn from(self, column: usize) -> Start<'a> {
        match self {
            Start::Bias(bias) => Start::Bias(&bias[column..]),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
