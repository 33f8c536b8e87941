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

/// Tiles of 4 rows × 2 panels, of 4 panels where a single row is left: as many as the sums of which fit
/// registers, and keep several chains of additions going.
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
        while panel + 2 <= whole {
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
    let (group, zero) = (4 * QUADS, if NIBBLES { form.zero } else { S::BIAS });
    let code_bytes = if NIBBLES { 32 * QUADS } else { 64 * QUADS };
    let group_bytes = code_bytes + if MINS { 128 } else { 64 };
    let panel_bytes = 4 * form.panel_words(k);
    // SAFETY: `multiply` checked the bounds.
    unsafe {
        let codes = task.panels.data.as_ptr().cast::<u8>().add(panel * panel_bytes);
        let x = task.rows.pointer(row);
        let mut sums = begin::<S, R, W>(task, row, panel);
        for g in 0..k / group {
            let codes = codes.add(g * group_bytes);
            let mut totals = [0; R];
            let mut dots = [[S::splat_i(0); W]; R];
            for r in 0..R {
                totals[r] = total(x.add(r * task.rows.stride()), k, g, group);
                dots[r] = [S::splat_i(-zero * totals[r]); W];
            }
            for q in 0..if NIBBLES { QUADS / 2 } else { QUADS } {
                let mut w = [S::splat_i(0); W];
                for i in 0..W {
                    w[i] = S::load_i(codes.add(i * panel_bytes + 64 * q));
                }
                for r in 0..R {
                    let x = x.add(r * task.rows.stride() + g * group + 4 * q).cast::<i32>();
                    let four = S::splat_i(x.read_unaligned());
                    for i in 0..W {
                        dots[r][i] = if NIBBLES {
                            S::dot_nibbles(dots[r][i], S::low(w[i]), four)
                        } else {
                            S::dot_bytes(dots[r][i], w[i], four)
                        };
                    }
                    if NIBBLES {
                        let four = S::splat_i(x.add(QUADS / 2).read_unaligned());
                        for i in 0..W {
                            dots[r][i] = S::dot_nibbles(dots[r][i], S::high(w[i]), four);
                        }
                    }
                }
            }
            for r in 0..R {
                let x = x.add(r * task.rows.stride() + Rows::scales_at(k)).cast::<f32>();
                let scale = x.add(g * group / GROUP).read_unaligned();
                for i in 0..W {
                    let of_panel = codes.add(i * panel_bytes + code_bytes).cast::<f32>();
                    let both = S::scaled(S::load(of_panel), S::splat(scale));
                    sums[r][i] = S::fma(S::float(dots[r][i]), both, sums[r][i]);
                    if MINS {
                        let min = S::load(of_panel.add(LANES));
                        sums[r][i] = S::fma(min, S::splat(scale * totals[r] as f32), sums[r][i]);
                    }
                }
            }
        }
        end::<S, R, W>(task, row, panel, sums);
    }
}

/// The sum of a group of a row.
#[inline(always)]
unsafe fn total(row: *const u8, k: usize, g: usize, group: usize) -> i32 {
    unsafe {
        let sums = row.add(Rows::sums_at(k)).cast::<i32>();
        if group == LANES {
            return sums.add(g).read_unaligned();
        }
        sums.add(2 * g).read_unaligned() + sums.add(2 * g + 1).read_unaligned()
    }
}

/// The first values of the sums.
#[inline(always)]
unsafe fn begin<S: Dots, const R: usize, const W: usize>(
    task: &Task,
    row: usize,
    panel: usize,
) -> [[S::F; W]; R] {
    let mut sums = [[unsafe { S::splat(0.0) }; W]; R];
    for r in 0..R {
        for i in 0..W {
            let column = (panel + i) * LANES;
            let from = match task.start {
                Start::Zero => continue,
                Start::Add => unsafe {
                    task.to.y.pointer().add((row + r) * task.to.stride + column).cast_const()
                },
                Start::Bias(bias) => bias[column..].as_ptr(),
            };
            let width = (task.panels.columns - column).min(LANES);
            sums[r][i] = unsafe {
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
