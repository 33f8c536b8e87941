//! Token and position embeddings: `x = tokens[id] · scale + positions[t]`.

use std::ops::Range;

use super::Buffer;
use super::simd::LANES;
use super::team::{Parts, Team};
use super::weight::Weight;

/// Rows that are looked up.
#[derive(Clone, Copy)]
pub struct Ids<'a> {
    /// All sequences, end to end.
    pub ids: &'a [u32],
    /// Tokens of each.
    pub length: usize,
    /// Position of each sequence's first token.
    pub start: usize,
}

/// `x: [N, C]` of `tokens: [V, C]`, which may be quantized, and, where they are added, `positions: [T, C]`.
///
/// # Panics
/// When an id or a position has no row.
pub fn forward(
    team: &Team,
    ids: Ids,
    tokens: Weight,
    scale: f32,
    positions: Option<&[f32]>,
    c: usize,
    x: &mut [f32],
) {
    let x = Parts::new(x);
    team.ranges(ids.ids.len(), 16, |rows| {
        for i in rows {
            let (id, t) = (ids.ids[i] as usize, ids.start + i % ids.length);
            // SAFETY: each row has one task.
            let x = unsafe { x.take(i * c..(i + 1) * c) };
            let positions = positions.map(|all| &all[t * c..(t + 1) * c]);
            if let Weight::Quantized(columns) = tokens {
                columns.column(id, x);
                x.iter_mut().for_each(|x| *x *= scale);
                if let Some(positions) = positions {
                    x.iter_mut().zip(positions).for_each(|(x, position)| *x += position);
                }
                continue;
            }
            let token = x.iter_mut().zip(&tokens.widened()[id * c..(id + 1) * c]);
            match positions {
                Some(positions) => {
                    let pairs = token.zip(positions);
                    pairs.for_each(|((x, token), position)| *x = token * scale + position);
                }
                None => token.for_each(|(x, token)| *x = token * scale),
            }
        }
    });
}

/// Adds `dx: [N, C]`, for tokens times scale, to the gradients of the rows that were looked up, in their
/// order.
pub fn backward(
    team: &Team,
    ids: Ids,
    dx: &[f32],
    scale: f32,
    c: usize,
    dtokens: &mut [f32],
    dpositions: Option<&mut [f32]>,
) {
    let (tokens, positions) = (Parts::new(dtokens), dpositions.map(Parts::new));
    let add = |to: &Parts, row: usize, from: &[f32], scale: f32, columns: &Range<usize>| {
        // SAFETY: each task has columns of its own.
        let to = unsafe { to.take(row * c + columns.start..row * c + columns.end) };
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from * scale);
    };
    team.ranges(c, 2 * LANES, |columns| {
        for (i, id) in ids.ids.iter().enumerate() {
            let dx = &dx[i * c + columns.start..i * c + columns.end];
            add(&tokens, *id as usize, dx, scale, &columns);
            if let Some(positions) = &positions {
                add(positions, ids.start + i % ids.length, dx, 1.0, &columns);
            }
        }
    });
}

/// The positions `[T, C]` of Vaswani et al. (2017): `sin(t · 10000^(-2i/C))` in column 2i, the cosine in
/// column 2i + 1.
pub fn sinusoid(t: usize, c: usize) -> Buffer {
    let frequency = |column: usize| {
        let i = (column / 2) as f64;
        libm::exp(-2.0 * i * libm::log(10_000.0) / c as f64)
    };
    let of = |t: usize, column: usize| {
        let angle = t as f64 * frequency(column);
        let value = if column.is_multiple_of(2) { libm::sin(angle) } else { libm::cos(angle) };
        value as f32
    };
    (0..t).flat_map(|t| (0..c).map(move |column| of(t, column))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    const C: usize = 37;
    const IDS: Ids = Ids { ids: &[3, 0, 3, 1, 3, 2, 0, 3, 3], length: 3, start: 2 };

    fn plain(tokens: &[f64], scale: f64, positions: &[f64]) -> Vec<f64> {
        let row = |(i, id): (usize, &u32)| {
            let (token, position) = (*id as usize * C, (IDS.start + i % IDS.length) * C);
            (0..C).map(move |j| tokens[token + j] * scale + positions[position + j])
        };
        IDS.ids.iter().enumerate().flat_map(row).collect()
    }

    #[test]
    fn rows_are_scaled_and_positions_added() {
        let (tokens, positions) = (numbers("tokens", 4 * C, 1.0), numbers("positions", 5 * C, 1.0));
        let dx = numbers("dx", IDS.ids.len() * C, 1.0);
        let none = vec![0.0; positions.len()];
        for (scale, some) in [(1.0, true), (6.1, true), (6.1, false)] {
            let found = same_everywhere(|team| {
                let (mut x, mut dtokens, mut dpositions) =
                    (vec![f32::NAN; dx.len()], vec![0.5; 4 * C], vec![0.5; 5 * C]);
                forward(team, IDS, Weight::F32(&tokens), scale, some.then_some(&positions[..]), C, &mut x);
                backward(team, IDS, &dx, scale, C, &mut dtokens, some.then_some(&mut dpositions[..]));
                vec![x, dtokens, dpositions]
            });
            let (scale, at) = (f64::from(scale), wide(if some { &positions } else { &none }));
            near("x", &found[0], &plain(&wide(&tokens), scale, &at), 1e-6);
            let dot = |x: Vec<f64>| x.iter().zip(&dx).map(|(x, dx)| x * f64::from(*dx)).sum::<f64>();
            let less = |x: &[f32]| x.iter().map(|x| x - 0.5).collect::<Vec<_>>();
            let loss = |x: &[f64]| dot(plain(x, scale, &at));
            near_differences("dtokens", &less(&found[1]), &tokens, loss, 1e-5);
            if some {
                let loss = |x: &[f64]| dot(plain(&wide(&tokens), scale, x));
                near_differences("dpositions", &less(&found[2]), &positions, loss, 1e-5);
            } else {
                assert!(found[2].iter().all(|x| *x == 0.5));
            }
        }
    }

    #[test]
    fn sinusoids_are_those_of_the_paper() {
        let found = sinusoid(3, 5);
        let slow = |i: f64| 2.0 / 10_000f64.powf(2.0 * i / 5.0);
        let expected = [2f64.sin(), 2f64.cos(), slow(1.0).sin(), slow(1.0).cos(), slow(2.0).sin()];
        near("position 2", &found[10..], &expected, 1e-7);
        assert_eq!(found[..5], [0.0, 1.0, 0.0, 1.0, 0.0]);
    }
}
