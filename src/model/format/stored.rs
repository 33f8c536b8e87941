//! A tensor of a file, and where its numbers lie among ours.

use std::ops::Range;

use crate::model::{Layout, Parameter, Role};

/// A tensor of a file: a parameter of ours, or some of its columns, as it is or transposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// The index of the parameter in [`Layout::parameters`].
    pub parameter: usize,
    /// Which columns of the parameter it is; of a vector, which of its numbers.
    pub columns: Range<usize>,
    /// Whether the file has `[out, in]` where the parameter is `[in, out]`.
    pub transposed: bool,
    /// Queries and keys whose rotary pairs lie side by side, as Meta's Llama has them: the width of a head, of
    /// which the file has the columns 0, D/2, 1, D/2 + 1 and so on, where ours pairs halves of a head.
    pub interleaved: Option<usize>,
}

impl Stored {
    /// The `index`-th parameter whole, under another name.
    pub fn whole(p: &Parameter, index: usize, name: String) -> Self {
        let columns = 0..width(p);
        Stored {
            name,
            shape: p.shape.clone(),
            parameter: index,
            columns,
            transposed: false,
            interleaved: None,
        }
    }

    /// Some columns of the `index`-th parameter: of a hidden matrix transposed.
    pub fn part(p: &Parameter, index: usize, name: String, columns: Range<usize>) -> Self {
        let transposed = p.role == Role::Matrix;
        let shape = match p.shape[..] {
            [rows, _] if transposed => vec![columns.len(), rows],
            [rows, _] => vec![rows, columns.len()],
            _ => vec![columns.len()],
        };
        Stored { name, shape, parameter: index, columns, transposed, interleaved: None }
    }

    /// Each parameter whole, under its own name.
    pub fn all(layout: &Layout) -> Vec<Self> {
        let all = layout.parameters.iter().enumerate();
        all.map(|(i, p)| Self::whole(p, i, p.name.clone())).collect()
    }

    /// Where the numbers lie in a buffer of all parameters, in the order of the file.
    pub fn places(&self, layout: &Layout) -> impl Iterator<Item = usize> + use<> {
        let p = &layout.parameters[self.parameter];
        let width = width(p);
        let (rows, columns) = (p.range.len() / width, self.columns.len());
        let start = p.range.start + self.columns.start;
        let (outer, inner) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let (far, near) = if self.transposed { (1, width) } else { (width, 1) };
        let head = self.interleaved;
        let column = move |i: usize| head.map_or(i, |d| half_split(i, d));
        let (outward, inward) = (self.transposed, !self.transposed);
        (0..outer).flat_map(move |i| {
            let i = if outward { column(i) } else { i };
            (0..inner).map(move |j| start + i * far + if inward { column(j) } else { j } * near)
        })
    }

    /// Which of the parameter's columns the `row`-th row of a transposed tensor is.
    pub fn column(&self, row: usize) -> usize {
        self.columns.start + self.interleaved.map_or(row, |d| half_split(row, d))
    }
}

/// Where the `i`-th of columns whose pairs lie side by side stands when halves of a head of `d` are paired.
fn half_split(i: usize, d: usize) -> usize {
    let (head, i) = (i / d, i % d);
    head * d + i / 2 + i % 2 * (d / 2)
}

/// The length of a row.
fn width(p: &Parameter) -> usize {
    *p.shape.last().expect("no parameter is a single number")
}
