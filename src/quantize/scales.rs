//! Scales and mins of blocks by search: of many candidates, each fitted by least squares, the one with the least
//! weighted squared error; as ggml's `make_qx_quants` and `make_qkx3_quants` do it (`ggml-quants.c`).

use crate::kernel::BlockType;
use crate::kernel::blocks::Block;

/// How numbers become codes: the nearest `scale · code + min`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub scale: f64,
    pub min: f64,
    /// The least and the greatest code.
    codes: [f64; 2],
}

/// Which mins a type can store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mins {
    /// 0 only.
    None,
    Any,
    /// None above 0.
    Below,
}

impl Mins {
    fn of(ty: BlockType) -> Self {
        match ty {
            BlockType::Q4_1 | BlockType::Q5_1 => Mins::Any,
            BlockType::Q4K | BlockType::Q5K => Mins::Below,
            _ => Mins::None,
        }
    }

    fn allow(self, min: f64) -> bool {
        match self {
            Mins::None => min == 0.0,
            Mins::Any => true,
            Mins::Below => min <= 0.0,
        }
    }
}

impl Grid {
    /// The grid of a block's group.
    pub fn of(ty: BlockType, block: &Block, group: usize) -> Self {
        let (scale, min) = block.group(group);
        Grid { scale: f64::from(scale), min: f64::from(min), codes: ty.codes().map(f64::from) }
    }

    pub fn code(&self, x: f64) -> f64 {
        let code = if self.scale == 0.0 { 0.0 } else { (x - self.min) / self.scale };
        code.round_ties_even().clamp(self.codes[0], self.codes[1])
    }

    pub fn value(&self, code: f64) -> f64 {
        self.scale * code + self.min
    }

    fn error(&self, x: &[f64], weights: &[f64]) -> f64 {
        x.iter().zip(weights).map(|(x, w)| w * (x - self.value(self.code(*x))).powi(2)).sum()
    }

    /// The scale and min that fit the codes of these numbers best: weighted least squares. Where such a min can't
    /// be stored, the best scale without one.
    fn refit(&self, x: &[f64], weights: &[f64], mins: Mins) -> Self {
        let (mut w, mut wl, mut wll, mut wx, mut wlx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (x, weight) in x.iter().zip(weights) {
            let code = self.code(*x);
            w += weight;
            wl += weight * code;
            wll += weight * code * code;
            wx += weight * x;
            wlx += weight * code * x;
        }
        let determinant = w * wll - wl * wl;
        if mins != Mins::None && determinant > 0.0 {
            let min = (wll * wx - wl * wlx) / determinant;
            if mins.allow(min) {
                return Grid { scale: (w * wlx - wl * wx) / determinant, min, ..*self };
            }
        }
        let scale = if wll > 0.0 { wlx / wll } else { self.scale };
        Grid { scale, min: 0.0, ..*self }
    }
}

/// How far candidates of scales are from what the largest numbers need, in both directions.
const STEPS: i32 = 10;

/// Grids that a search begins with.
fn candidates(x: &[f64], codes: [f64; 2], mins: Mins) -> Vec<Grid> {
    let step = |i: i32| f64::from(i) / f64::from(STEPS);
    let steps = -STEPS..=STEPS;
    if mins == Mins::None {
        let largest = x.iter().fold(0f64, |max, x| if x.abs() > max.abs() { *x } else { max });
        // The largest number may become the least or the greatest code.
        let of = |i| codes.map(|end| Grid { scale: largest / end * (1.0 + 0.25 * step(i)), min: 0.0, codes });
        return steps.flat_map(of).filter(|grid| grid.scale != 0.0).collect();
    }
    let low = x.iter().fold(f64::INFINITY, |a, b| a.min(*b));
    let high = x.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let low = if mins.allow(low) { low } else { 0.0 };
    if low == high {
        return vec![Grid { scale: 0.0, min: low, codes }];
    }
    let of = |i| {
        let room = 0.2 * step(i) * (high - low);
        let scale = (high - low + room) / codes[1];
        // What the range has more or less is at one end or at both.
        [0.0, 0.5, 1.0].map(|share| Grid { scale, min: low - share * room, codes })
    };
    steps.flat_map(of).filter(|grid| grid.scale > 0.0 && mins.allow(grid.min)).collect()
}

/// The grid with the least error; `stored` gives what becomes of one when it is stored.
fn search(x: &[f64], weights: &[f64], codes: [f64; 2], mins: Mins, stored: impl Fn(Grid) -> Grid) -> Grid {
    let mut best = Grid { scale: 0.0, min: 0.0, codes };
    let mut least = best.error(x, weights);
    for candidate in candidates(x, codes, mins) {
        let fitted = candidate.refit(x, weights, mins);
        for grid in [candidate, fitted, fitted.refit(x, weights, mins)].map(&stored) {
            let error = grid.error(x, weights);
            if error < least {
                (best, least) = (grid, error);
            }
        }
    }
    best
}

fn half(x: f64) -> f64 {
    half::f16::from_f64(x).to_f64()
}

/// A block for these numbers with the best scales and mins, without codes.
pub fn block(ty: BlockType, x: &[f64], weights: &[f64]) -> Block {
    let (codes, mins, mut block) = (ty.codes().map(f64::from), Mins::of(ty), Block::default());
    if ty.scales() == 1 {
        let stored = |grid: Grid| Grid { scale: half(grid.scale), min: half(grid.min), ..grid };
        let grid = search(x, weights, codes, mins, stored);
        (block.scale, block.min) = (grid.scale as f32, grid.min as f32);
        return block;
    }
    let groups = x.chunks(ty.group_len()).zip(weights.chunks(ty.group_len()));
    let grids: Vec<Grid> = groups.map(|(x, w)| search(x, w, codes, mins, |grid| grid)).collect();
    let largest = grids.iter().fold(0f64, |max, g| if g.scale.abs() > max.abs() { g.scale } else { max });
    let least = grids.iter().fold(0f64, |min, g| min.min(g.min));
    block.scale = half(largest / f64::from(ty.scales())) as f32;
    block.min = half(least / f64::from(GREATEST_MIN)) as f32;
    for (i, (x, w)) in x.chunks(ty.group_len()).zip(weights.chunks(ty.group_len())).enumerate() {
        fit_integers(ty, &mut block, i, x, w, grids[i]);
    }
    block
}

/// The greatest of the integers that mins of groups are stored as.
const GREATEST_MIN: u8 = 63;

/// Sets the integers of a group's scale and min, those of the block being known: of the integers around `near`, the
/// ones with the least error.
fn fit_integers(ty: BlockType, block: &mut Block, group: usize, x: &[f64], weights: &[f64], near: Grid) {
    let (scale, min) = (f64::from(block.scale), f64::from(block.min));
    let nearest = |x: f64, unit: f64| if unit == 0.0 { 0.0 } else { (x / unit).round_ties_even() };
    let greatest = f64::from(ty.scales());
    let least = if Mins::of(ty) == Mins::None { -greatest } else { 0.0 };
    let around = |x: f64| [0.0, -1.0, 1.0, -2.0, 2.0].map(|step| x + step);
    let scales = around(nearest(near.scale, scale)).map(|s| s.clamp(least, greatest));
    let mins = around(nearest(near.min, min)).map(|m| m.clamp(0.0, f64::from(GREATEST_MIN)));
    let mut lowest = f64::INFINITY;
    for s in scales {
        for m in mins.iter().take(if min == 0.0 { 1 } else { mins.len() }) {
            let error = Grid { scale: scale * s, min: min * m, ..near }.error(x, weights);
            if error < lowest {
                lowest = error;
                (block.scales[group], block.mins[group]) = (s as i8, *m as u8);
            }
        }
    }
}

/// Sets the scale and min of a group whose block is known for numbers that have changed.
pub fn refit_group(ty: BlockType, block: &mut Block, group: usize, x: &[f64], weights: &[f64]) {
    if ty.scales() > 1 {
        let near = search(x, weights, ty.codes().map(f64::from), Mins::of(ty), |grid| grid);
        fit_integers(ty, block, group, x, weights, near);
    }
}
