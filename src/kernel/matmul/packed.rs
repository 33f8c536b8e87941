//! A matrix that is packed once, for products with several rows again and again: batches of single tokens, for
//! which packing takes as long as a part of the product.

use super::pack::{Numbers, STRIP, pack_right};
use super::tile::{Packed, Source};
use super::{DEPTH, PANEL, Part, Parts, ROWS, Start, Team, View, check, tasks};
use crate::kernel::Buffer;
use crate::kernel::simd::LANES;

/// A matrix `[k, n]` of f32 in panels of 48 columns, block after block of k.
pub struct PackedMatrix {
    data: Buffer,
    k: usize,
    n: usize,
}

impl PackedMatrix {
    /// Of `b: [k, n]`.
    ///
    /// # Panics
    /// When the slice is too short.
    pub fn new(team: &Team, b: View, k: usize, n: usize) -> Self {
        assert!(b.holds(k, n), "b is no [{k}, {n}]");
        let width = n.next_multiple_of(LANES);
        let mut data = Buffer::new(width * k);
        let (parts, vectors) = (Parts::new(&mut data), Numbers::F32.vectors());
        team.each(k.div_ceil(STRIP), |task| {
            let (first, top) = (task * STRIP % DEPTH, task * STRIP / DEPTH * DEPTH);
            let block = top..(top + DEPTH).min(k);
            let strip = first..(first + STRIP).min(block.len());
            pack_right(team.isa, Numbers::F32, parts.from(top * width), b, strip, block, k, 0..n, vectors);
        });
        PackedMatrix { data, k, n }
    }

    /// Bytes of memory of a matrix `[k, n]`.
    pub fn bytes(k: usize, n: usize) -> u64 {
        4 * (n.next_multiple_of(LANES) * k) as u64
    }

    /// Bytes of memory that it takes.
    #[cfg(test)]
    pub fn memory(&self) -> u64 {
        4 * self.data.len() as u64
    }

    /// `c: [m, n] = start + a · b`, of `a: [m, k]`: the bits of [`super::matmul`] in f32.
    ///
    /// # Panics
    /// When a slice is too short for its shape.
    pub fn product(&self, team: &Team, m: usize, a: View, start: Start, c: &mut [f32], stride: usize) {
        let PackedMatrix { data, k, n } = self;
        if m == 0 || *n == 0 {
            return;
        }
        let c = Parts::new(c);
        check(m, *n, *k, a, start, c, stride);
        // SAFETY: products only read it.
        let data = unsafe { Parts::reading(data) };
        let b = Packed { data, first: 0, count: n.next_multiple_of(LANES), steps: (0, *k) };
        let (a, b, vectors) = (Source::Unpacked(a), Source::Packed(b), Numbers::F32.vectors());
        let part = Part { rows: 0..m, columns: 0..*n, vectors, steps: 0..*k, k: *k, a, b, start, c, stride };
        part.by_tasks(team, Numbers::F32, division(team, m, *n));
    }
}

/// Rows and panels of a task. Few rows: one panel, and where there are few of them not all rows, so that there are
/// more tasks than threads.
fn division(team: &Team, m: usize, n: usize) -> (usize, usize) {
    let (panels, grain) = (n.div_ceil(PANEL), Numbers::F32.grain());
    if m > ROWS {
        return tasks(team.threads(), m, panels, grain);
    }
    let blocks = (3 * team.threads()).div_ceil(panels).min(m / 16).max(1);
    (m.div_ceil(blocks).next_multiple_of(grain), 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::matmul::matmul;
    use crate::kernel::testing::{numbers, same_everywhere};

    /// Also of a transpose; k of several blocks, columns that fill no vector, rows of many tasks, gaps between rows
    /// of c.
    #[test]
    fn products_have_the_bits_of_those_that_pack_b() {
        for (m, n, k) in
            [(1, 1, 1), (5, 48, 16), (50, 128, 300), (33, 130, 7), (17, 49, 257), (800, 100, 40), (9, 31, 0)]
        {
            let (a, b, bias) = (numbers("a", m * k, 1.0), numbers("b", k * n, 1.0), numbers("bias", n, 1.0));
            let (a, stride) = (View::new(&a, k), n + 3);
            let before = numbers("c", m * stride, 1.0);
            for b in [View::new(&b, n), View::new(&b, k).t()] {
                for start in [Start::Zero, Start::Add, Start::Bias(&bias)] {
                    let found = same_everywhere(|team| {
                        let mut c = before.clone();
                        PackedMatrix::new(team, b, k, n).product(team, m, a, start, &mut c, stride);
                        vec![c]
                    });
                    let mut expected = before.clone();
                    matmul(&Team::new(1), (m, n, k), a, b, start, &mut expected, stride);
                    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                    assert!(found[0].iter().zip(&expected).all(same), "{m} {n} {k}");
                }
            }
        }
    }
}
