//! Token and position embeddings: `x = tokens[id] + positions[t]`.

use std::ops::Range;

use super::simd::LANES;
use super::team::{Parts, Team};

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

/// `x: [N, C]`.
///
/// # Panics
/// When an id or a position has no row.
pub fn forward(team: &Team, ids: Ids, tokens: &[f32], positions: &[f32], c: usize, x: &mut [f32]) {
    let x = Parts::new(x);
    team.ranges(ids.ids.len(), 16, |rows| {
        for i in rows {
            let (id, t) = (ids.ids[i] as usize, ids.start + i % ids.length);
            // SAFETY: each row has one task.
            let x = unsafe { x.take(i * c..(i + 1) * c) };
            let pairs = tokens[id * c..(id + 1) * c].iter().zip(&positions[t * c..(t + 1) * c]);
            x.iter_mut().zip(pairs).for_each(|(x, (a, b))| *x = a + b);
        }
    });
}

/// Adds `dx: [N, C]` to the rows that were looked up, in their order.
pub fn backward(team: &Team, ids: Ids, dx: &[f32], c: usize, dtokens: &mut [f32], dpositions: &mut [f32]) {
    let (tokens, positions) = (Parts::new(dtokens), Parts::new(dpositions));
    let add = |to: &Parts, row: usize, from: &[f32], columns: &Range<usize>| {
        // SAFETY: each task has columns of its own.
        let to = unsafe { to.take(row * c + columns.start..row * c + columns.end) };
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    };
    team.ranges(c, 2 * LANES, |columns| {
        for (i, id) in ids.ids.iter().enumerate() {
            let dx = &dx[i * c + columns.start..i * c + columns.end];
            add(&tokens, *id as usize, dx, &columns);
            add(&positions, ids.start + i % ids.length, dx, &columns);
        }
    });
}
