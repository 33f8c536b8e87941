//! The vectors of [`super::simd`] on x86-64: one AVX-512 register, or two of AVX2.

use std::arch::x86_64::*;

use super::simd::{Dots, LANES, Simd, Tiles};

#[derive(Clone, Copy)]
pub struct Avx512;

#[derive(Clone, Copy)]
pub struct Avx2;

macro_rules! both {
    ($f:path, $a:expr, $b:expr) => {
        [$f($a[0], $b[0]), $f($a[1], $b[1])]
    };
    ($f:path, $a:expr) => {
        [$f($a[0]), $f($a[1])]
    };
}

/// Reduces 16 lanes, given as two registers of 8, in the order of [`Simd::sum`].
macro_rules! folded {
    ($eight:path, $four:path, $low:expr, $high:expr) => {{
        let eight = $eight($low, $high);
        let four = $four(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = $four(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($four(two, _mm_shuffle_ps::<1>(two, two)))
    }};
}

impl Tiles for Avx512 {
    type F = __m512;
    // 8 × 3 sums, 3 of B and 1 of A: 28 of 32 registers. 14 × 2, 9 × 3 and 6 × 4 measured no faster.
    const VECTORS: usize = 3;

    #[inline(always)]
    fn height(left: usize) -> usize {
        *[8, 4, 2].iter().find(|h| **h <= left).unwrap_or(&1)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    #[allow(clippy::pointers_in_nomem_asm_block)] // nothing is dereferenced
    fn opaque(mut p: *const f32) -> *const f32 {
        // SAFETY: the assembly is a comment.
        unsafe { std::arch::asm!("/* {0} */", inout(reg) p, options(nomem, nostack, preserves_flags, pure)) }
        p
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}

impl Simd for Avx512 {
    type U = __m512i;

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn bits(a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    unsafe fn from_bits(a: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    unsafe fn splat_u(x: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    unsafe fn add_u(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_u(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn xor_u(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shr_u<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn shl_u<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: __m512i, b: __m512i, x: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(a, b), x) }
    }
    #[inline(always)]
    unsafe fn not_less(a: __m512, b: __m512) -> u32 {
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b)) }
    }
    #[inline(always)]
    unsafe fn to_array(a: __m512) -> [f32; LANES] {
        unsafe { std::mem::transmute::<__m512, [f32; LANES]>(a) }
    }
    #[inline(always)]
    unsafe fn from_array_u(a: [u32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(a.as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: __m512) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))) }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe {
            folded!(_mm256_add_ps, _mm_add_ps, _mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(a: __m512) -> f32 {
        unsafe {
            folded!(_mm256_max_ps, _mm_max_ps, _mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))
        }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize, fill: __m512) -> __m512 {
        unsafe { _mm512_mask_loadu_ps(fill, (1 << n) - 1, p) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, (1 << n) - 1, x) }
    }

    /// Interleaves pairs of rows, then pairs of pairs, then 128-bit lanes.
    #[inline(always)]
    unsafe fn transposed(r: [__m512; LANES]) -> [__m512; LANES] {
        unsafe {
            // No closures: one that is not inlined would be compiled without AVX-512.
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // q[4g + c]: column c of each 128-bit lane, rows 4g .. 4g + 4.
            let mut q = r;
            for g in 0..4 {
                let (a, b) = (_mm512_castps_pd(t[4 * g]), _mm512_castps_pd(t[4 * g + 1]));
                let (c, d) = (_mm512_castps_pd(t[4 * g + 2]), _mm512_castps_pd(t[4 * g + 3]));
                q[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                q[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                q[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                q[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            let mut columns = q;
            for c in 0..4 {
                let a = _mm512_shuffle_f32x4::<0x88>(q[c], q[4 + c]);
                let b = _mm512_shuffle_f32x4::<0xdd>(q[c], q[4 + c]);
                let d = _mm512_shuffle_f32x4::<0x88>(q[8 + c], q[12 + c]);
                let e = _mm512_shuffle_f32x4::<0xdd>(q[8 + c], q[12 + c]);
                columns[c] = _mm512_shuffle_f32x4::<0x88>(a, d);
                columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(b, e);
                columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(a, d);
                columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(b, e);
            }
            columns
        }
    }
}

/// [`Avx512`] whose factors are pairs of bf16; sums are f32.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Tiles for Pairs {
    type F = __m512;
    const VECTORS: usize = Avx512::VECTORS;

    #[inline(always)]
    fn height(left: usize) -> usize {
        Avx512::height(left)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { Avx512::splat(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { Avx512::load(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { Avx512::store(p, x) }
    }
    /// Adds the product of the upper 16 bits first, then that of the lower.
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { Avx512::prefetch(p) }
    }
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        Avx512::opaque(p)
    }
}

/// [`Avx512`] with an instruction for dot products of bytes (VPDPBUSD).
#[derive(Clone, Copy)]
pub struct Vnni;

impl Tiles for Vnni {
    type F = __m512;
    const VECTORS: usize = Avx512::VECTORS;

    #[inline(always)]
    fn height(left: usize) -> usize {
        Avx512::height(left)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { Avx512::splat(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { Avx512::load(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { Avx512::store(p, x) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { Avx512::fma(a, b, c) }
    }
}

/// What both kinds of AVX-512 do alike.
macro_rules! bytes_of_512 {
    () => {
        type I = __m512i;
        // 4 × 2 sums, as many of f32, 2 of codes and 1 of x: 19 of 32 registers.
        const PANELS: usize = 2;

        #[inline(always)]
        unsafe fn splat_i(x: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn load_i(p: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn low(bytes: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn high(bytes: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn float(sums: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(sums) }
        }
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> __m512i {
            unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_pairs(p: *const u8) -> __m512i {
            unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn add_product(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_add_epi32(sums, _mm512_mullo_epi32(a, b)) }
        }
        #[inline(always)]
        unsafe fn plus(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn times(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
    };
}

impl Dots for Vnni {
    bytes_of_512!();
    // The instruction takes one factor without a sign.
    const BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn dot_small(sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sums, a, b) }
    }
}

impl Dots for Avx512 {
    bytes_of_512!();
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn dot_small(sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe {
            let pairs = _mm512_maddubs_epi16(codes, x);
            _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
    /// The sign of a code moves to x: a pair of products is at most 2 · 128 · 127, which 16 bits hold.
    #[inline(always)]
    unsafe fn dot_bytes(sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe {
            let codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
            let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(codes), _mm512_setzero_si512(), x);
            Self::dot_small(sums, _mm512_abs_epi8(codes), x)
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)) }
    }
}

impl Dots for Avx2 {
    type I = [__m256i; 2];
    // 4 sums of two registers, two of codes and one of x; those of f32 are needed once a group.
    const PANELS: usize = 1;
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn low(bytes: Self::I) -> Self::I {
        unsafe { both!(_mm256_and_si256, bytes, [_mm256_set1_epi8(15); 2]) }
    }
    #[inline(always)]
    unsafe fn high(bytes: Self::I) -> Self::I {
        unsafe { Self::low([_mm256_srli_epi16::<4>(bytes[0]), _mm256_srli_epi16::<4>(bytes[1])]) }
    }
    #[inline(always)]
    unsafe fn dot_small(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        unsafe {
            let pairs = both!(_mm256_maddubs_epi16, codes, x);
            let fours = both!(_mm256_madd_epi16, pairs, [_mm256_set1_epi16(1); 2]);
            both!(_mm256_add_epi32, sums, fours)
        }
    }
    /// As with AVX-512.
    #[inline(always)]
    unsafe fn dot_bytes(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        unsafe {
            let codes = both!(_mm256_xor_si256, codes, [_mm256_set1_epi8(-128); 2]);
            let x = both!(_mm256_sign_epi8, x, codes);
            Self::dot_small(sums, both!(_mm256_abs_epi8, codes), x)
        }
    }
    #[inline(always)]
    unsafe fn float(sums: Self::I) -> Self::F {
        unsafe { both!(_mm256_cvtepi32_ps, sums) }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        let eight = |p: *const u8| unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) };
        unsafe { [eight(p), eight(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::I {
        let eight = |p: *const u8| unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast())) };
        unsafe { [eight(p), eight(p.add(16))] }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        unsafe { both!(_mm256_add_epi32, sums, both!(_mm256_madd_epi16, a, b)) }
    }
    #[inline(always)]
    unsafe fn add_product(sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        unsafe { both!(_mm256_add_epi32, sums, both!(_mm256_mullo_epi32, a, b)) }
    }
    #[inline(always)]
    unsafe fn plus(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn times(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_mul_ps, a, b) }
    }
}

impl Tiles for Avx2 {
    type F = [__m256; 2];
    // 6 sums of two registers, two of B and one of A: 15 of 16 registers.
    const VECTORS: usize = 1;

    #[inline(always)]
    fn height(left: usize) -> usize {
        *[6, 4, 2].iter().find(|h| **h <= left).unwrap_or(&1)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
}

impl Simd for Avx2 {
    type U = [__m256i; 2];

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_sub_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_mul_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_div_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_max_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_min_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::F) -> Self::F {
        unsafe { both!(_mm256_sqrt_ps, a) }
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F) -> Self::U {
        unsafe { both!(_mm256_castps_si256, a) }
    }
    #[inline(always)]
    unsafe fn from_bits(a: Self::U) -> Self::F {
        unsafe { both!(_mm256_castsi256_ps, a) }
    }
    #[inline(always)]
    unsafe fn splat_u(x: u32) -> Self::U {
        unsafe { [_mm256_set1_epi32(x as i32); 2] }
    }
    #[inline(always)]
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { both!(_mm256_add_epi32, a, b) }
    }
    #[inline(always)]
    unsafe fn mul_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { both!(_mm256_mullo_epi32, a, b) }
    }
    #[inline(always)]
    unsafe fn xor_u(a: Self::U, b: Self::U) -> Self::U {
        unsafe { both!(_mm256_xor_si256, a, b) }
    }
    #[inline(always)]
    unsafe fn shr_u<const N: u32>(a: Self::U) -> Self::U {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi32(a[0], n), _mm256_srl_epi32(a[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn shl_u<const N: u32>(a: Self::U) -> Self::U {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(a[0], n), _mm256_sll_epi32(a[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: Self::U, b: Self::U, x: Self::F) -> Self::F {
        unsafe {
            let one = |i: usize| {
                let below = _mm256_castsi256_ps(_mm256_cmpgt_epi32(b[i], a[i]));
                _mm256_andnot_ps(below, x[i])
            };
            [one(0), one(1)]
        }
    }
    #[inline(always)]
    unsafe fn not_less(a: Self::F, b: Self::F) -> u32 {
        unsafe {
            let bits = |i: usize| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(a[i], b[i])) as u32;
            bits(0) | bits(1) << 8
        }
    }
    #[inline(always)]
    unsafe fn to_array(a: Self::F) -> [f32; LANES] {
        unsafe { std::mem::transmute::<[__m256; 2], [f32; LANES]>(a) }
    }
    #[inline(always)]
    unsafe fn from_array_u(a: [u32; LANES]) -> Self::U {
        unsafe { std::mem::transmute::<[u32; LANES], [__m256i; 2]>(a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let (low, high) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast()));
            let (low, high) = (_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            // Packing works within halves of a register.
            let words = _mm256_permute4x64_epi64::<0xd8>(words);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high));
        }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        unsafe { folded!(_mm256_add_ps, _mm_add_ps, a[0], a[1]) }
    }
    #[inline(always)]
    unsafe fn max_lane(a: Self::F) -> f32 {
        unsafe { folded!(_mm256_max_ps, _mm_max_ps, a[0], a[1]) }
    }
    #[inline(always)]
    unsafe fn transposed(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        unsafe {
            let rows = std::mem::transmute::<[Self::F; LANES], [[f32; LANES]; LANES]>(rows);
            let mut columns = [Self::splat(0.0); LANES];
            for (j, column) in columns.iter_mut().enumerate() {
                let mut numbers = [0.0; LANES];
                for (i, number) in numbers.iter_mut().enumerate() {
                    *number = rows[i][j];
                }
                *column = Self::load(numbers.as_ptr());
            }
            columns
        }
    }
}

/// Whether the CPU has AMX tiles of bf16 and the system permits this process to use them: Linux is asked, which
/// then saves the tiles of each thread.
pub fn has_tiles() -> bool {
    static TILES: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *TILES.get_or_init(|| {
        const TILE: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        let features = __cpuid_count(7, 0).edx;
        features & (TILE | BF16) == TILE | BF16 && permitted()
    })
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers. A kernel that doesn't know it gives an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
