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
}

impl Stored {
    /// The `index`-th parameter whole, under another name.
    pub fn whole(p: &Parameter, index: usize, name: String) -> Self {
        let columns = 0..width(p);
        Stored { name, shape: p.shape.clone(), parameter: index, columns, transposed: false }
    }

    /// Some columns of the `index`-th parameter: of a hidden matrix transposed.
    pub fn part(p: &Parameter, index: usize, name: String, columns: Range<usize>) -> Self {
        let transposed = p.role == Role::Matrix;
        let shape = match p.shape[..] {
            [rows, _] if transposed => vec![columns.len(), rows],
            [rows, _] => vec![rows, columns.len()],
            _ => vec![columns.len()],
        };
        Stored { name, shape, parameter: index, columns, transposed }
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
        (0..outer).flat_map(move |i| (0..inner).map(move |j| start + i * far + j * near))
    }
}

/// The length of a row.
fn width(p: &Parameter) -> usize {
    *p.shape.last().expect("no parameter is a single number")
}
