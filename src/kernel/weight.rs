//! Weight matrices in the formats that they are stored in, and products with them.

use super::matmul::{PackedMatrix, Start, THIN, View, matmul, matmul_bf16};
use super::quantized::Columns;
use super::team::Team;

/// The numbers of a weight matrix.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    F32(&'a [f32]),
    /// Every number is a bf16.
    Bf16 {
        bits: &'a [u16],
        /// The same numbers as f32.
        widened: &'a [f32],
    },
    Packed {
        all: &'a [f32],
        /// The same numbers, for products of more than [`THIN`] rows.
        packed: &'a PackedMatrix,
    },
    /// Integers with scales, which are not kept as f32: for products forward only.
    Quantized(Columns<'a>),
}

impl<'a> Weight<'a> {
    pub fn len(&self) -> usize {
        match self {
            Weight::F32(all) | Weight::Bf16 { widened: all, .. } | Weight::Packed { all, .. } => all.len(),
            Weight::Quantized(columns) => columns.k() * columns.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers as f32.
    ///
    /// # Panics
    /// When they are quantized: gradients need a model that is `dequantized`.
    pub fn widened(&self) -> &'a [f32] {
        match *self {
            Weight::F32(all) | Weight::Bf16 { widened: all, .. } | Weight::Packed { all, .. } => all,
            Weight::Quantized(_) => panic!("gradients of quantized weights: the model must be `dequantized`"),
        }
    }

    /// Some rows of a matrix whose rows are `width` long: of an embedding, whose rows are the columns that
    /// quantized weights have.
    pub(super) fn rows(self, width: usize, rows: std::ops::Range<usize>) -> Self {
        let numbers = rows.start * width..rows.end * width;
        match self {
            Weight::F32(all) | Weight::Packed { all, .. } => Weight::F32(&all[numbers]),
            Weight::Bf16 { bits, widened } => {
                Weight::Bf16 { bits: &bits[numbers.clone()], widened: &widened[numbers] }
            }
            Weight::Quantized(columns) => Weight::Quantized(columns.part(rows)),
        }
    }
}

/// `y = start + x · weight`, of `x: [m, k]`, `weight: [k, n]` and `y: [m, n]`, whose rows begin every
/// `stride`.
///
/// A few rows, as in decoding, take as long as reading the weight takes, so they read the smallest form of
/// it; the product of many rows is bound by arithmetic and reads f32. Both give the same bits.
///
/// # Panics
/// When a slice is too short for its shape.
pub fn product(
    team: &Team,
    (m, n, k): (usize, usize, usize),
    x: View,
    weight: Weight,
    start: Start,
    y: &mut [f32],
    stride: usize,
) {
    match weight {
        Weight::Quantized(columns) => {
            assert_eq!((columns.len(), columns.k()), (n, k), "the shape of quantized weights");
            columns.product(team, m, x, start, y, stride)
        }
        Weight::Bf16 { bits, .. } if (1..=THIN).contains(&m) && n > 0 => {
            matmul_bf16(team, (m, n, k), x, View::new(bits, n), start, y, stride)
        }
        Weight::Packed { packed, .. } if m > THIN => packed.product(team, m, x, start, y, stride),
        _ => matmul(team, (m, n, k), x, View::new(weight.widened(), n), start, y, stride),
    }
}
