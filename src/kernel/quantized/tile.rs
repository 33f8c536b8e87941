//! Some rows times some panels, in registers while k runs.

use std::ops::Range;

use super::form::{self, BLOCK, Codes, FLOATS, Form, Layout, Sums};
use super::rows::{GROUP, Rows, Sharing};
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
/// When the panels are shorter than their columns, or the rows are not there or have other scales than the panels'
/// form needs.
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
    assert_eq!(panels.form.steps(), rows.sharing().len(), "numbers with one scale");
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
    unsafe {
        match task.panels.form {
            form::Q4_0::FORM => each::<S, form::Q4_0>(task),
            form::Q4_1::FORM => each::<S, form::Q4_1>(task),
            form::Q5_1::FORM => each::<S, form::Q5_1>(task),
            form::Q8_0::FORM => each::<S, form::Q8_0>(task),
            form::Q4K::FORM => each::<S, form::Q4K>(task),
            form::Q5K::FORM => each::<S, form::Q5K>(task),
            form::Q6K::FORM => each::<S, form::Q6K>(task),
            other => unreachable!("{other:?}"),
        }
    }
}

/// Tiles of 4 rows × 1 or 2 panels, and of 1 row × 4 panels where there are few rows: several chains of
/// additions, whose sums stay in registers. Of forms with eight sums a column, 2 rows × 1 panel.
#[inline(always)]
unsafe fn each<S: Dots, L: Layout>(task: &Task) {
    const { assert!(matches!(L::FORM.codes, Codes::Bytes) == matches!(L::FORM.sums, Sums::Quads)) };
    // What rows hold for it.
    const { assert!(S::BIAS == 0 || S::BIAS == 128) };
    let whole = task.panels.columns / LANES;
    let mut panel = 0;
    unsafe {
        if matches!(L::FORM.sums, Sums::Quads) {
            while panel * LANES < task.panels.columns {
                let left = tiles::<S, L, 2, 1>(task, panel, task.some.clone());
                tiles::<S, L, 1, 1>(task, panel, left);
                panel += 1;
            }
            return;
        }
        if task.some.len() < 4 {
            while panel + 4 <= whole {
                tiles::<S, L, 1, 4>(task, panel, task.some.clone());
                panel += 4;
            }
        }
        while S::PANELS == 2 && panel + 2 <= whole {
            let left = tiles::<S, L, 4, 2>(task, panel, task.some.clone());
            tiles::<S, L, 1, 2>(task, panel, left);
            panel += 2;
        }
        while panel * LANES < task.panels.columns {
            let left = tiles::<S, L, 4, 1>(task, panel, task.some.clone());
            tiles::<S, L, 1, 1>(task, panel, left);
            panel += 1;
        }
    }
}

/// `R` rows at a time; gives the rows that are left.
#[inline(always)]
unsafe fn tiles<S: Dots, L: Layout, const R: usize, const W: usize>(
    task: &Task,
    panel: usize,
    some: Range<usize>,
) -> Range<usize> {
    let mut row = some.start;
    while row + R <= some.end {
        unsafe { tile::<S, L, R, W>(task, row, panel) };
        row += R;
    }
    row..some.end
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
}

/// A vector of each of `W` panels, of which the first panel's is at byte `at`. Not a function that is given
/// another: that would not be inlined into code for AVX-512.
macro_rules! of_panels {
    ($place:expr, $at:expr, $load:expr) => {{
        let first = $place.panel.add($at);
        let mut all = [$load(first.cast()); W];
        for (i, one) in all.iter_mut().enumerate() {
            *one = $load(first.add(i * $place.panel_bytes).cast());
        }
        all
    }};
}

impl Place {
    /// A number of each row, of which the first row's is the `i`-th from byte `at` on.
    #[inline(always)]
    unsafe fn of_rows<T: Copy + Default, const R: usize>(self, at: usize, i: usize) -> [T; R] {
        let first = self.row.wrapping_add(at).cast::<T>().wrapping_add(i);
        let mut all = [T::default(); R];
        for (r, one) in all.iter_mut().enumerate() {
            *one = unsafe { first.byte_add(r * self.row_bytes).read_unaligned() };
        }
        all
    }

    /// `scale of the column · scale of the row`, of the scales at byte `at` of panels.
    #[inline(always)]
    unsafe fn scales<S: Dots, const R: usize, const W: usize>(
        self,
        at: usize,
        of_rows: [f32; R],
    ) -> [[S::F; W]; R] {
        unsafe {
            let of_panels = of_panels!(self, at, S::load);
            let mut all = [of_panels; R];
            for r in 0..R {
                for i in 0..W {
                    all[r][i] = S::times(of_panels[i], S::splat(of_rows[r]));
                }
            }
            all
        }
    }
}

/// `R` rows times `W` panels; the last panel may be incomplete.
#[inline(always)]
unsafe fn tile<S: Dots, L: Layout, const R: usize, const W: usize>(task: &Task, row: usize, panel: usize) {
    let k = task.rows.k();
    let panel_bytes = size_of::<f32>() * task.panels.form.panel_words(k);
    // SAFETY: `multiply` checked the bounds.
    unsafe {
        let place = Place {
            panel: task.panels.data.as_ptr().cast::<u8>().add(panel * panel_bytes),
            panel_bytes,
            row: task.rows.pointer(row),
            row_bytes: task.rows.stride(),
            k,
        };
        let sums = match L::FORM.sums {
            Sums::Groups => groups::<S, L, R, W>(place),
            Sums::Quads => quads::<S, L, R, W>(place),
            Sums::Blocks => blocks::<S, L, R, W>(place),
        };
        end::<S, R, W>(task, row, panel, sums);
    }
}

/// The exact sums of products of a group, of codes from byte `at` of panels on and x from step `from` of rows on,
/// each more by what `first` has for its row.
#[inline(always)]
unsafe fn dots<S: Dots, L: Layout, const R: usize, const W: usize>(
    place: Place,
    at: usize,
    from: usize,
    first: [i32; R],
) -> [[S::I; W]; R] {
    let (quads, nibbles) = (L::FORM.group / 4, matches!(L::FORM.codes, Codes::Nibbles));
    unsafe {
        let mut dots = [[S::splat_i(0); W]; R];
        for r in 0..R {
            dots[r] = [S::splat_i(first[r]); W];
        }
        for q in 0..if nibbles { quads / 2 } else { quads } {
            let w = of_panels!(place, at + 64 * q, S::load_i);
            let x = place.of_rows::<i32, R>(from, q);
            for r in 0..R {
                for i in 0..W {
                    let codes = if nibbles { S::low(w[i]) } else { w[i] };
                    dots[r][i] = S::dot_small(dots[r][i], codes, S::splat_i(x[r]));
                }
            }
            if nibbles {
                let x = place.of_rows::<i32, R>(from, q + quads / 2);
                for r in 0..R {
                    for i in 0..W {
                        dots[r][i] = S::dot_small(dots[r][i], S::high(w[i]), S::splat_i(x[r]));
                    }
                }
            }
        }
        dots
    }
}

/// Each times a factor.
#[inline(always)]
fn times<T: Copy + Into<i32>, const R: usize>(numbers: [T; R], by: i32) -> [i32; R] {
    let mut all = [0; R];
    for (one, number) in all.iter_mut().zip(&numbers) {
        *one = by * (*number).into();
    }
    all
}

/// `sums += integers · scales`
#[inline(always)]
unsafe fn add<S: Dots, const R: usize, const W: usize>(
    sums: &mut [[S::F; W]; R],
    integers: [[S::I; W]; R],
    scales: [[S::F; W]; R],
) {
    for r in 0..R {
        for i in 0..W {
            sums[r][i] = unsafe { S::fma(S::float(integers[r][i]), scales[r][i], sums[r][i]) };
        }
    }
}

/// [`Sums::Groups`]
#[inline(always)]
unsafe fn groups<S: Dots, L: Layout, const R: usize, const W: usize>(place: Place) -> [[S::F; W]; R] {
    let Form { zero, mins, .. } = L::FORM;
    let sums_at = Sharing::By32.sums_at(place.k);
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        for g in 0..place.k / GROUP {
            let at = g * L::FORM.unit_bytes();
            let totals = place.of_rows::<i32, R>(sums_at, g);
            let dots = dots::<S, L, R, W>(place, at, g * GROUP, times(totals, -zero));
            let of_rows = place.of_rows::<f32, R>(place.k, g);
            let scales = place.scales::<S, R, W>(at + L::FORM.floats_at(), of_rows);
            add::<S, R, W>(&mut sums, dots, scales);
            if mins {
                let mins = of_panels!(place, at + L::FORM.floats_at() + FLOATS, S::load);
                for r in 0..R {
                    let all = S::splat(of_rows[r] * totals[r] as f32);
                    for i in 0..W {
                        sums[r][i] = S::fma(mins[i], all, sums[r][i]);
                    }
                }
            }
        }
        sums
    }
}

/// [`Sums::Quads`]
#[inline(always)]
unsafe fn quads<S: Dots, L: Layout, const R: usize, const W: usize>(place: Place) -> [[S::F; W]; R] {
    const QUADS: usize = GROUP / 4;
    let parts_at = Sharing::By32.parts_at(place.k);
    unsafe {
        let mut sums = [[[S::splat(0.0); W]; R]; QUADS];
        for g in 0..place.k / GROUP {
            let at = g * L::FORM.unit_bytes();
            let of_rows = place.of_rows::<f32, R>(place.k, g);
            let scales = place.scales::<S, R, W>(at + L::FORM.floats_at(), of_rows);
            for (q, sums) in sums.iter_mut().enumerate() {
                let w = of_panels!(place, at + 64 * q, S::load_i);
                let x = place.of_rows::<i32, R>(0, g * QUADS + q);
                let first =
                    if S::BIAS == 0 { [0; R] } else { place.of_rows::<i32, R>(parts_at, g * QUADS + q) };
                for r in 0..R {
                    for i in 0..W {
                        let dot = S::dot_bytes(S::splat_i(first[r]), w[i], S::splat_i(x[r]));
                        sums[r][i] = S::fma(S::float(dot), scales[r][i], sums[r][i]);
                    }
                }
            }
        }
        let [a, b, c, d, e, f, g, h] = sums;
        let mut all = a;
        for r in 0..R {
            for i in 0..W {
                let even = S::plus(S::plus(a[r][i], e[r][i]), S::plus(c[r][i], g[r][i]));
                let odd = S::plus(S::plus(b[r][i], f[r][i]), S::plus(d[r][i], h[r][i]));
                all[r][i] = S::plus(even, odd);
            }
        }
        all
    }
}

/// [`Sums::Blocks`]. The integers are at most 128 · 32 · 127 · 256 < 2³¹ (Q6_K).
#[inline(always)]
unsafe fn blocks<S: Dots, L: Layout, const R: usize, const W: usize>(place: Place) -> [[S::F; W]; R] {
    let Form { zero, group, mins, .. } = L::FORM;
    let (sums_at, parts_at) = (Sharing::By256.sums_at(place.k), Sharing::By256.parts_at(place.k));
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        let mut sums_of_mins = sums;
        for b in 0..place.k / BLOCK {
            let at = b * L::FORM.unit_bytes();
            let mut scaled = [[S::splat_i(0); W]; R];
            for g in 0..BLOCK / group {
                let from = b * BLOCK + g * group;
                let first = if zero == 0 {
                    [0; R]
                } else {
                    times(place.of_rows::<i16, R>(parts_at, from / LANES), -zero)
                };
                let dots = dots::<S, L, R, W>(place, at + g * L::FORM.code_bytes(), from, first);
                let scales = at + L::FORM.scales_at() + LANES * g;
                let scales = of_panels!(place, scales, S::load_bytes);
                for r in 0..R {
                    for i in 0..W {
                        scaled[r][i] = S::add_product(scaled[r][i], dots[r][i], scales[i]);
                    }
                }
            }
            let of_rows = place.of_rows::<f32, R>(place.k, b);
            let scales = place.scales::<S, R, W>(at + L::FORM.floats_at(), of_rows);
            add::<S, R, W>(&mut sums, scaled, scales);
            if mins {
                let mut scaled = [[S::splat_i(0); W]; R];
                for pair in 0..BLOCK / group / 2 {
                    let mins = at + L::FORM.mins_at() + 2 * LANES * pair;
                    let mins = of_panels!(place, mins, S::load_pairs);
                    let totals = place.of_rows::<i32, R>(sums_at, b * (BLOCK / GROUP / 2) + pair);
                    for r in 0..R {
                        for i in 0..W {
                            scaled[r][i] = S::dot_pairs(scaled[r][i], mins[i], S::splat_i(totals[r]));
                        }
                    }
                }
                let scales = place.scales::<S, R, W>(at + L::FORM.floats_at() + FLOATS, of_rows);
                add::<S, R, W>(&mut sums_of_mins, scaled, scales);
            }
        }
        if mins {
            for r in 0..R {
                for i in 0..W {
                    sums[r][i] = S::plus(sums[r][i], sums_of_mins[r][i]);
                }
            }
        }
        sums
    }
}

/// Stores the sums, each more by what it starts from.
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
                let sum = match task.start {
                    Start::Zero => *sum,
                    Start::Add => S::plus(*sum, load_first::<S>(to, width)),
                    Start::Bias(bias) => S::plus(*sum, load_first::<S>(bias[column..].as_ptr(), width)),
                };
                if width == LANES {
                    S::store(to, sum);
                } else {
                    let mut all = [0.0; LANES];
                    S::store(all.as_mut_ptr(), sum);
                    std::ptr::copy_nonoverlapping(all.as_ptr(), to, width);
                }
            }
        }
    }
}

/// The first `width` of 16 numbers; the others are 0.
#[inline(always)]
unsafe fn load_first<S: Dots>(from: *const f32, width: usize) -> S::F {
    unsafe {
        if width == LANES {
            return S::load(from);
        }
        let mut all = [0.0; LANES];
        std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), width);
        S::load(all.as_ptr())
    }
}
