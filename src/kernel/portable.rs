//! The vectors of [`super::simd`] as arrays, which the compiler vectorizes for the target's baseline.
//! Without a fused multiply-add, as on x86-64 before 2013, `mul_add` is a slow function call: correct there,
//! not fast.

use super::simd::{Dots, LANES, Number, Simd, Tiles};

#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn each<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Tiles for Portable {
    type F = [f32; LANES];
    const VECTORS: usize = 1;

    #[inline(always)]
    fn height(left: usize) -> usize {
        *[6, 4, 2].iter().find(|h| **h <= left).unwrap_or(&1)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
}

impl Simd for Portable {
    type U = [u32; LANES];

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::F) -> Self::F {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F) -> Self::U {
        a.map(f32::to_bits)
    }
    #[inline(always)]
    unsafe fn from_bits(a: Self::U) -> Self::F {
        a.map(f32::from_bits)
    }
    #[inline(always)]
    unsafe fn splat_u(x: u32) -> Self::U {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        each(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn mul_u(a: Self::U, b: Self::U) -> Self::U {
        each(a, b, u32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn xor_u(a: Self::U, b: Self::U) -> Self::U {
        each(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    unsafe fn shr_u<const N: u32>(a: Self::U) -> Self::U {
        a.map(|a| a >> N)
    }
    #[inline(always)]
    unsafe fn shl_u<const N: u32>(a: Self::U) -> Self::U {
        a.map(|a| a << N)
    }
    #[inline(always)]
    unsafe fn keep_ge(a: Self::U, b: Self::U, x: Self::F) -> Self::F {
        std::array::from_fn(|i| if (a[i] as i32) < b[i] as i32 { 0.0 } else { x[i] })
    }
    #[inline(always)]
    unsafe fn to_array(a: Self::F) -> [f32; LANES] {
        a
    }
    #[inline(always)]
    unsafe fn from_array_u(a: [u32; LANES]) -> Self::U {
        a
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(Number::widened)
    }
    #[inline(always)]
    unsafe fn transposed(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))
    }
}

impl Dots for Portable {
    type I = [u32; LANES];
    const PANELS: usize = 1;
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x as u32; LANES]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        let bytes = unsafe { p.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        bytes.map(u32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn low(bytes: Self::I) -> Self::I {
        bytes.map(|four| four & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn high(bytes: Self::I) -> Self::I {
        bytes.map(|four| four >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn dot_small(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|i| sums[i].wrapping_add_signed(dot(codes[i], x[i])))
    }
    #[inline(always)]
    unsafe fn dot_bytes(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|i| sums[i].wrapping_add_signed(dot(codes[i] ^ 0x8080_8080, x[i])))
    }
    #[inline(always)]
    unsafe fn float(sums: Self::I) -> Self::F {
        sums.map(|sum| sum as i32 as f32)
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(|byte| i32::from(byte) as u32)
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::I {
        let pairs = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        pairs.map(|[low, high]| u32::from(low) | u32::from(high) << 16)
    }
    #[inline(always)]
    unsafe fn dot_pairs(sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let half = |x: u32, i: u32| i32::from((x >> (16 * i)) as i16);
        let dot = |a: u32, b: u32| half(a, 0) * half(b, 0) + half(a, 1) * half(b, 1);
        std::array::from_fn(|i| sums[i].wrapping_add_signed(dot(a[i], b[i])))
    }
    #[inline(always)]
    unsafe fn add_product(sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| sums[i].wrapping_add(a[i].wrapping_mul(b[i])))
    }
    #[inline(always)]
    unsafe fn plus(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn times(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }
}

/// Of four bytes each, with signs.
#[inline(always)]
fn dot(a: u32, b: u32) -> i32 {
    let byte = |x: u32, i: u32| i32::from((x >> (8 * i)) as i8);
    (0..4).map(|i| byte(a, i) * byte(b, i)).sum()
}
