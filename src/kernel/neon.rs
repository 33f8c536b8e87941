//! The vectors of [`super::simd`] on 64-bit ARM: four NEON registers each.

use std::arch::aarch64::*;

use super::simd::{Dots, LANES, Simd, Tiles};

#[derive(Clone, Copy)]
pub struct Neon;

macro_rules! each {
    ($f:ident, $a:expr, $b:expr) => {
        [$f($a[0], $b[0]), $f($a[1], $b[1]), $f($a[2], $b[2]), $f($a[3], $b[3])]
    };
    ($f:ident, $a:expr) => {
        [$f($a[0]), $f($a[1]), $f($a[2]), $f($a[3])]
    };
}

/// max; `b` if either is NaN. `vmaxq_f32` would give NaN.
#[inline(always)]
fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// min; `b` if either is NaN.
#[inline(always)]
fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

impl Tiles for Neon {
    type F = [float32x4_t; 4];
    // 6 sums of four registers, four of B and one of A: 29 of 32 registers.
    const VECTORS: usize = 1;

    #[inline(always)]
    fn height(left: usize) -> usize {
        *[6, 4, 2].iter().find(|h| **h <= left).unwrap_or(&1)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            vst1q_f32(p, x[0]);
            vst1q_f32(p.add(4), x[1]);
            vst1q_f32(p.add(8), x[2]);
            vst1q_f32(p.add(12), x[3]);
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }
}

impl Simd for Neon {
    type U = [uint32x4_t; 4];

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vaddq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vsubq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vmulq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vdivq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each!(max, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each!(min, a, b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::F) -> Self::F {
        unsafe { each!(vsqrtq_f32, a) }
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F) -> Self::U {
        unsafe { each!(vreinterpretq_u32_f32, a) }
    }
    #[inline(always)]
    unsafe fn from_bits(a: Self::U) -> Self::F {
        unsafe { each!(vreinterpretq_f32_u32, a) }
    }
    #[inline(always)]
    unsafe fn splat_u(x: u32) -> Self::U {
        unsafe { [vdupq_n_u32(x); 4] }
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { each!(vaddq_u32, a, b) }
    }
    #[inline(always)]
    unsafe fn mul_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { each!(vmulq_u32, a, b) }
    }
    #[inline(always)]
    unsafe fn xor_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { each!(veorq_u32, a, b) }
    }
    #[inline(always)]
    unsafe fn shr_u<const N: u32>(a: Self::U) -> Self::U {
        // A shift to the left by a negative count.
        unsafe { each!(vshlq_u32, a, [vdupq_n_s32(-(N as i32)); 4]) }
    }
    #[inline(always)]
    unsafe fn shl_u<const N: u32>(a: Self::U) -> Self::U {
        unsafe { each!(vshlq_u32, a, [vdupq_n_s32(N as i32); 4]) }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: Self::U, b: Self::U, x: Self::F) -> Self::F {
        unsafe {
            let kept = |i: usize| {
                let mask = vcgeq_s32(vreinterpretq_s32_u32(a[i]), vreinterpretq_s32_u32(b[i]));
                vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x[i])))
            };
            [kept(0), kept(1), kept(2), kept(3)]
        }
    }
    #[inline(always)]
    unsafe fn to_array(a: Self::F) -> [f32; LANES] {
        unsafe { std::mem::transmute::<[float32x4_t; 4], [f32; LANES]>(a) }
    }
    #[inline(always)]
    unsafe fn from_array_u(a: [u32; LANES]) -> Self::U {
        unsafe { std::mem::transmute::<[u32; LANES], [uint32x4_t; 4]>(a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let four =
                |p: *const u16| vreinterpretq_f32_u32(vshlq_u32(vmovl_u16(vld1_u16(p)), vdupq_n_s32(16)));
            [four(p), four(p.add(4)), four(p.add(8)), four(p.add(12))]
        }
    }
    /// Block after block of 4 × 4.
    #[inline(always)]
    unsafe fn transposed(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        unsafe {
            let mut columns = [Self::splat(0.0); LANES];
            for i in 0..4 {
                for j in 0..4 {
                    let row = |k: usize| rows[4 * i + k][j];
                    let pairs = |a, b| {
                        (vreinterpretq_f64_f32(vtrn1q_f32(a, b)), vreinterpretq_f64_f32(vtrn2q_f32(a, b)))
                    };
                    let ((even, odd), (even_below, odd_below)) =
                        (pairs(row(0), row(1)), pairs(row(2), row(3)));
                    columns[4 * j][i] = vreinterpretq_f32_f64(vzip1q_f64(even, even_below));
                    columns[4 * j + 1][i] = vreinterpretq_f32_f64(vzip1q_f64(odd, odd_below));
                    columns[4 * j + 2][i] = vreinterpretq_f32_f64(vzip2q_f64(even, even_below));
                    columns[4 * j + 3][i] = vreinterpretq_f32_f64(vzip2q_f64(odd, odd_below));
                }
            }
            columns
        }
    }
}

impl Dots for Neon {
    /// 16 bytes, or 4 i32, in each register.
    type I = [int32x4_t; 4];
    const PANELS: usize = 1;
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        unsafe {
            let four = |p: *const u8| vreinterpretq_s32_u8(vld1q_u8(p));
            [four(p), four(p.add(16)), four(p.add(32)), four(p.add(48))]
        }
    }
    #[inline(always)]
    unsafe fn low(bytes: Self::I) -> Self::I {
        unsafe { each!(vandq_s32, bytes, [vdupq_n_s32(0x0f0f_0f0f); 4]) }
    }
    #[inline(always)]
    unsafe fn high(bytes: Self::I) -> Self::I {
        let high = |x: int32x4_t| unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(x))) };
        each!(high, bytes)
    }
    #[inline(always)]
    unsafe fn dot_small(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        unsafe { each!(vaddq_s32, sums, each!(dot, codes, x)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        unsafe {
            // 0x80 in each byte.
            let codes = each!(veorq_s32, codes, [vdupq_n_s32(-0x7f7f_7f80); 4]);
            Self::dot_small(sums, codes, x)
        }
    }
    #[inline(always)]
    unsafe fn float(sums: Self::I) -> Self::F {
        unsafe { each!(vcvtq_f32_s32, sums) }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        unsafe {
            let all = vld1q_s8(p.cast());
            let (low, high) = (vmovl_s8(vget_low_s8(all)), vmovl_high_s8(all));
            let lower = |x: int16x8_t| vmovl_s16(vget_low_s16(x));
            [lower(low), vmovl_high_s16(low), lower(high), vmovl_high_s16(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::I {
        let four = |p: *const u8| unsafe { vreinterpretq_s32_u16(vmovl_u8(vld1_u8(p))) };
        unsafe { [four(p), four(p.add(8)), four(p.add(16)), four(p.add(24))] }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let dot = |a: int32x4_t, b: int32x4_t| unsafe {
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b))
        };
        unsafe { each!(vaddq_s32, sums, each!(dot, a, b)) }
    }
    #[inline(always)]
    unsafe fn add_product(sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        unsafe { each!(vaddq_s32, sums, each!(vmulq_s32, a, b)) }
    }
    #[inline(always)]
    unsafe fn plus(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vaddq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn times(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vmulq_f32, a, b) }
    }
}

/// Of four times four bytes with signs.
#[inline(always)]
fn dot(a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        let high = vmull_high_s8(a, b);
        vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))
    }
}
