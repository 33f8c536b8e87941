//! Some rows times some panels, in registers while k runs.

use std::ops::Range;

use super::form::Form;
use super::rows::{GROUP, Rows};
use crate::kernel::matmul::Start;
use crate::kernel::portable::Portable;
use crate::kernel::simd::{Dots, Isa, Kind, LANES};
use crate::kernel::team::Parts;

/// Panels that lie one after the other.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    pub form: Form,
    pub data: &'a [f32],
    /// The last panel may have fewer than 16 of them.
    pub columns: usize,
}

/// Where the first column's result of the first row goes, and from there to the next row.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    pub y: Parts<'a>,
    pub stride: usize,
}

/// Instructions for dot products of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    Plain(Isa),
}

impl Instructions {
    /// The fastest of an instruction set.
    pub fn of(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa.0 == Kind::Avx512 && is_x86_feature_detected!("avx512vnni") {
            return Instructions::Vnni;
        }
        Instructions::Plain(isa)
    }
}

/// `y = start + rows · panels` for some of the rows.
///
/// # Panics
/// When the panels are shorter than their columns, or the rows are not there.
pub fn multiply(
    with: Instructions,
    panels: Panels,
    rows: Rows,
    some: Range<usize>,
    start: Start,
    to: Output,
) {
    let count = panels.columns.div_ceil(LANES);
    assert!(panels.data.len() >= count * panels.form.panel_words(rows.k()), "{count} panels");
    assert!(some.end <= rows.count(), "rows {some:?} of {}", rows.count());
    assert!(some.is_empty() || to.y.len() >= (some.end - 1) * to.stride + panels.columns, "y");
    if let Start::Bias(bias) = start {
        assert!(bias.len() >= panels.columns, "the bias");
    }
    let task = Task { panels, rows, some, start, to };
    // SAFETY: the bounds were checked, and the instructions were found.
    unsafe {
        match with {
            #[cfg(target_arch = "x86_64")]
            Instructions::Vnni => vnni(&task),
            Instructions::Plain(isa) => match isa.0 {
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => avx512(&task),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => avx2(&task),
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => all::<crate::kernel::neon::Neon>(&task),
                Kind::Portable => all::<Portable>(&task),
            },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni,avx2,fma")]
fn vnni(task: &Task) {
    // SAFETY: the caller has checked the bounds.
    unsafe { all::<crate::kernel::x86::Vnni>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma")]
fn avx512(task: &Task) {
    // SAFETY: as above.
    unsafe { all::<crate::kernel::x86::Avx512>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(task: &Task) {
    // SAFETY: as above.
    unsafe { all::<crate::kernel::x86::Avx2>(task) }
}

/// What [`multiply`] is to do.
struct Task<'a> {
    panels: Panels<'a>,
    rows: Rows<'a>,
    some: Range<usize>,
    start: Start<'a>,
    to: Output<'a>,
}

/// For each form a loop of its own.
#[inline(always)]
unsafe fn all<S: Dots>(task: &Task) {
    let Form { nibbles, group, mins, .. } = task.panels.form;
    unsafe {
        match (nibbles, group, mins) {
            (true, _, true) => each::<S, true, 8, true>(task),
            (true, _, false) => each::<S, true, 8, false>(task),
            (false, 16, _) => each::<S, false, 4, false>(task),
            (false, _, true) => each::<S, false, 8, true>(task),
            (false, _, false) => each::<S, false, 8, false>(task),
        }
    }
}

/// Tiles of 4 rows × 1 or 2 panels, and of 1 row × 4 panels where there are few rows: several chains of
/// additions, whose sums stay in registers.
#[inline(always)]
unsafe fn each<S: Dots, const NIBBLES: bool, const QUADS: usize, const MINS: bool>(task: &Task) {
    let whole = task.panels.columns / LANES;
    let mut panel = 0;
    unsafe {
        if task.some.len() < 4 {
            while panel + 4 <= whole {
                rows::<S, 4, NIBBLES, QUADS, MINS>(task, panel, task.some.clone());
                panel += 4;
            }
        }
        while S::PANELS == 2 && panel + 2 <= whole {
            let left = fours::<S, 2, NIBBLES, QUADS, MINS>(task, panel);
            rows::<S, 2, NIBBLES, QUADS, MINS>(task, panel, left);
            panel += 2;
        }
        while panel * LANES < task.panels.columns {
            let left = fours::<S, 1, NIBBLES, QUADS, MINS>(task, panel);
            rows::<S, 1, NIBBLES, QUADS, MINS>(task, panel, left);
            panel += 1;
        }
    }
}

/// Four rows at a time; gives the rows that are left.
#[inline(always)]
unsafe fn fours<S: Dots, const W: usize, const NIBBLES: bool, const QUADS: usize, const MINS: bool>(
    task: &Task,
    panel: usize,
) -> Range<usize> {
    let mut row = task.some.start;
    while row + 4 <= task.some.end {
        unsafe { tile::<S, 4, W, NIBBLES, QUADS, MINS>(task, row, panel) };
        row += 4;
    }
    row..task.some.end
}

/// Row after row.
#[inline(always)]
unsafe fn rows<S: Dots, const W: usize, const NIBBLES: bool, const QUADS: usize, const MINS: bool>(
    task: &Task,
    panel: usize,
    some: Range<usize>,
) {
    for row in some {
        unsafe { tile::<S, 1, W, NIBBLES, QUADS, MINS>(task, row, panel) };
    }
}

/// Where a tile's numbers lie.
#[derive(Clone, Copy)]
struct Place {
    /// The first panel, and from there to the next.
    panel: *const u8,
    panel_bytes: usize,
    /// The first row, and from there to the next.
    row: *const u8,
    row_bytes: usize,
    k: usize,
    /// What codes are too large by, for these instructions.
    zero: i32,
}

/// `R` rows times `W` panels; the last panel may be incomplete.
#[inline(always)]
unsafe fn tile<
    S: Dots,
    const R: usize,
    const W: usize,
    const NIBBLES: bool,
    const QUADS: usize,
    const MINS: bool,
>(
    task: &Task,
    row: usize,
    panel: usize,
) {
    let (k, form) = (task.rows.k(), task.panels.form);
    let panel_bytes = size_of::<f32>() * form.panel_words(k);
    // SAFETY: `multiply` checked the bounds.
    unsafe {
        let place = Place {
            panel: task.panels.data.as_ptr().cast::<u8>().add(panel * panel_bytes),
            panel_bytes,
            row: task.rows.pointer(row),
            row_bytes: task.rows.stride(),
            k,
            zero: if NIBBLES { form.zero } else { S::BIAS },
        };
        let mut sums = begin::<S, R, W>(task, row, panel);
        for g in 0..k / (4 * QUADS) {
            let totals = totals::<R, QUADS>(place, g);
            let dots = dots::<S, R, W, NIBBLES, QUADS, MINS>(place, g, totals);
            add::<S, R, W, NIBBLES, QUADS, MINS>(place, g, dots, totals, &mut sums);
        }
        end::<S, R, W>(task, row, panel, sums);
    }
}

/// Bytes of the codes of a group of a panel, and of the whole group.
const fn group_bytes(nibbles: bool, quads: usize, mins: bool) -> (usize, usize) {
    let codes = if nibbles { 32 * quads } else { 64 * quads };
    (codes, codes + if mins { 128 } else { 64 })
}

/// The exact sums of products of group `g`.
#[inline(always)]
unsafe fn dots<
    S: Dots,
    const R: usize,
    const W: usize,
    const NIBBLES: bool,
    const QUADS: usize,
    const MINS: bool,
>(
    place: Place,
    g: usize,
    totals: [i32; R],
) -> [[S::I; W]; R] {
    let Place { panel, panel_bytes, row, row_bytes, zero, .. } = place;
    unsafe {
        let codes = panel.add(g * group_bytes(NIBBLES, QUADS, MINS).1);
        let x = row.add(g * 4 * QUADS).cast::<i32>();
        let mut dots = [[S::splat_i(0); W]; R];
        for r in 0..R {
            dots[r] = [S::splat_i(-zero * totals[r]); W];
        }
        for q in 0..if NIBBLES { QUADS / 2 } else { QUADS } {
            let mut w = [S::splat_i(0); W];
            for (i, w) in w.iter_mut().enumerate() {
                *w = S::load_i(codes.add(i * panel_bytes + 64 * q));
            }
            for (r, dots) in dots.iter_mut().enumerate() {
                let x = x.byte_add(r * row_bytes).add(q);
                let four = S::splat_i(x.read_unaligned());
                if !NIBBLES {
                    for i in 0..W {
                        dots[i] = S::dot_bytes(dots[i], w[i], four);
                    }
                    continue;
                }
                for i in 0..W {
                    dots[i] = S::dot_nibbles(dots[i], S::low(w[i]), four);
                }
                let four = S::splat_i(x.add(QUADS / 2).read_unaligned());
                for i in 0..W {
                    dots[i] = S::dot_nibbles(dots[i], S::high(w[i]), four);
                }
            }
        }
        dots
    }
}

/// Adds what group `g` gives, with its scales and mins.
#[inline(always)]
unsafe fn add<
    S: Dots,
    const R: usize,
    const W: usize,
    const NIBBLES: bool,
    const QUADS: usize,
    const MINS: bool,
>(
    place: Place,
    g: usize,
    dots: [[S::I; W]; R],
    totals: [i32; R],
    sums: &mut [[S::F; W]; R],
) {
    let (code_bytes, bytes) = group_bytes(NIBBLES, QUADS, MINS);
    unsafe {
        let scales = place.panel.add(g * bytes + code_bytes).cast::<f32>();
        let of_rows = place.row.add(Rows::scales_at(place.k)).cast::<f32>().add(g * 4 * QUADS / GROUP);
        for r in 0..R {
            let scale = of_rows.byte_add(r * place.row_bytes).read_unaligned();
            for i in 0..W {
                let scales = scales.byte_add(i * place.panel_bytes);
                let both = S::scaled(S::load(scales), S::splat(scale));
                sums[r][i] = S::fma(S::float(dots[r][i]), both, sums[r][i]);
                if MINS {
                    let all = S::splat(scale * totals[r] as f32);
                    sums[r][i] = S::fma(S::load(scales.add(LANES)), all, sums[r][i]);
                }
            }
        }
    }
}

/// The sums of group `g` of the rows.
#[inline(always)]
unsafe fn totals<const R: usize, const QUADS: usize>(place: Place, g: usize) -> [i32; R] {
    let mut totals = [0; R];
    for (r, total) in totals.iter_mut().enumerate() {
        unsafe {
            let sums = place.row.add(r * place.row_bytes + Rows::sums_at(place.k)).cast::<i32>();
            *total = if 4 * QUADS == LANES {
                sums.add(g).read_unaligned()
            } else {
                sums.add(2 * g).read_unaligned() + sums.add(2 * g + 1).read_unaligned()
            };
        }
    }
    totals
}

/// The first values of the sums.
#[inline(always)]
unsafe fn begin<S: Dots, const R: usize, const W: usize>(
    task: &Task,
    row: usize,
    panel: usize,
) -> [[S::F; W]; R] {
    let mut sums = [[unsafe { S::splat(0.0) }; W]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (i, sum) in sums.iter_mut().enumerate() {
            let column = (panel + i) * LANES;
            let from = match task.start {
                Start::Zero => continue,
                Start::Add => unsafe {
                    task.to.y.pointer().add((row + r) * task.to.stride + column).cast_const()
                },
                Start::Bias(bias) => bias[column..].as_ptr(),
            };
            let width = (task.panels.columns - column).min(LANES);
            *sum = unsafe {
                if width == LANES {
                    S::load(from)
                } else {
                    let mut all = [0.0; LANES];
                    std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), width);
                    S::load(all.as_ptr())
                }
            };
        }
    }
    sums
}

/// Stores the sums.
#[inline(always)]
unsafe fn end<S: Dots, const R: usize, const W: usize>(
    task: &Task,
    row: usize,
    panel: usize,
    sums: [[S::F; W]; R],
) {
    for (r, sums) in sums.iter().enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            let column = (panel + i) * LANES;
            let width = (task.panels.columns - column).min(LANES);
            unsafe {
                let to = task.to.y.pointer().add((row + r) * task.to.stride + column);
                if width == LANES {
                    S::store(to, *sum);
                } else {
                    let mut all = [0.0; LANES];
                    S::store(all.as_mut_ptr(), *sum);
                    std::ptr::copy_nonoverlapping(all.as_ptr(), to, width);
                }
            }
        }
    }
}
