//! The embedding once more, mixed into the residual stream: `x = a x + b x0`, with a and b learned.

use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// Numbers of a task. The gradients of a and b are summed a task at a time, so it is part of the bytes.
const GRAIN: usize = 4096;

/// `x = a x + b x0`.
pub fn mix(team: &Team, [a, b]: [f32; 2], x: &mut [f32], x0: &[f32]) {
    let n = x.len();
    let x = Parts::new(x);
    team.ranges(n, GRAIN, |range| {
        // SAFETY: the ranges are disjoint.
        mix_part(team.isa, a, b, unsafe { x.take(range.clone()) }, &x0[range]);
    });
}

/// Backward of [`mix`], of whose input `x` is a copy: `dx` becomes `a dx`, and `dx0` gets `b dx` added. Gives the
/// gradients of a and b.
pub fn mix_backward(
    team: &Team,
    [a, b]: [f32; 2],
    x: &[f32],
    x0: &[f32],
    dx: &mut [f32],
    dx0: &mut [f32],
) -> [f32; 2] {
    let n = dx.len();
    let tasks = n.div_ceil(GRAIN);
    team.with_scratch(2 * tasks, |sums| {
        let (parts, dx, dx0) = (Parts::new(sums), Parts::new(dx), Parts::new(dx0));
        team.each(tasks, |task| {
            let range = task * GRAIN..(task * GRAIN + GRAIN).min(n);
            // SAFETY: each task has a range and sums of its own.
            let (dx, dx0, sums) = unsafe {
                (dx.take(range.clone()), dx0.take(range.clone()), parts.take(2 * task..2 * task + 2))
            };
            back_part(team.isa, a, b, &x[range.clone()], &x0[range], dx, dx0, sums);
        });
        let sum = |which: usize| sums[which..].iter().step_by(2).map(|sum| f64::from(*sum)).sum::<f64>();
        [sum(0) as f32, sum(1) as f32]
    })
}

simd! {
    fn mix_part<S>(a: f32, b: f32, x: &mut [f32], x0: &[f32]) {
        let (a, b) = (F::<S>::splat(a), F::splat(b));
        for (x, x0) in x.chunks_mut(LANES).zip(x0.chunks(LANES)) {
            F::load_some(x, 0.0).mul_add(a, F::load_some(x0, 0.0) * b).store_some(x);
        }
    }

    fn back_part<S>(a: f32, b: f32, x: &[f32], x0: &[f32], dx: &mut [f32], dx0: &mut [f32], sums: &mut [f32]) {
        let (a, b) = (F::<S>::splat(a), F::splat(b));
        let (mut da, mut db) = (F::splat(0.0), F::splat(0.0));
        let vectors = x.chunks(LANES).zip(x0.chunks(LANES));
        for ((x, x0), (dx, dx0)) in vectors.zip(dx.chunks_mut(LANES).zip(dx0.chunks_mut(LANES))) {
            let d = F::load_some(dx, 0.0);
            da = d.mul_add(F::load_some(x, 0.0), da);
            db = d.mul_add(F::load_some(x0, 0.0), db);
            d.mul_add(b, F::load_some(dx0, 0.0)).store_some(dx0);
            (d * a).store_some(dx);
        }
        (sums[0], sums[1]) = (da.sum(), db.sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    #[test]
    fn the_mix_is_its_definition_forward_and_backward() {
        let n = 2 * GRAIN + 37;
        let [x, x0, dy, before] = ["x", "x0", "dy", "dx0"].map(|name| numbers(name, n, 1.0));
        let by = [0.7, -0.3];
        let found = same_everywhere(|team| {
            let (mut y, mut dx, mut dx0) = (x.clone(), dy.clone(), before.clone());
            mix(team, by, &mut y, &x0);
            let scalars = mix_backward(team, by, &x, &x0, &mut dx, &mut dx0);
            vec![y, dx, dx0, scalars.to_vec()]
        });
        let plain = |by: &[f64], x: &[f64], x0: &[f64]| -> Vec<f64> {
            x.iter().zip(x0).map(|(x, x0)| by[0] * x + by[1] * x0).collect()
        };
        let (wide_x, wide_x0, wide_by) = (wide(&x), wide(&x0), wide(&by));
        let dot = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum::<f64>();
        near("y", &found[0], &plain(&wide_by, &wide_x, &wide_x0), 1e-6);
        near_differences("dx", &found[1], &x, |x| dot(plain(&wide_by, x, &wide_x0)), 1e-6);
        let added: Vec<f32> = found[2].iter().zip(&before).map(|(after, before)| after - before).collect();
        near_differences("dx0", &added, &x0, |x0| dot(plain(&wide_by, &wide_x, x0)), 1e-6);
        near_differences("da, db", &found[3], &by, |by| dot(plain(by, &wide_x, &wide_x0)), 1e-5);
    }
}
