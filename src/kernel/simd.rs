//! SIMD vectors of 16 lanes, and kernels that are written once and compiled for several instruction sets.
//!
//! A kernel is generic over [`Simd`], whose vector has 16 lanes everywhere: one register with AVX-512, two
//! with AVX2, four with NEON, an array elsewhere. Every operation is the IEEE one, multiplication and
//! addition are fused only where the source says so, and sums over lanes are added as one fixed tree. So
//! the bits of a result do not depend on the machine.
//!
//! [`simd!`] compiles a kernel for each instruction set and selects one at run time, by an [`Isa`], which
//! exists only for those that this machine has.

use std::ops::{Add, Div, Mul, Sub};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// An instruction set that kernels are compiled for and that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(pub(super) Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// Those of this machine, the fastest first. Portable code runs everywhere.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
            if avx2 && avx512 && is_x86_feature_detected!("avx512bw") {
                all.push(Isa(Kind::Avx512));
            }
            if avx2 {
                all.push(Isa(Kind::Avx2));
            }
        }
        // Every 64-bit ARM has NEON.
        #[cfg(target_arch = "aarch64")]
        all.push(Isa(Kind::Neon));
        all.push(Isa(Kind::Portable));
        all
    }

    /// The fastest of this machine.
    pub fn best() -> Isa {
        Self::available()[0]
    }

    /// Whether there is an instruction that multiplies pairs of bf16 (VDPBF16PS).
    pub fn has_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Kind::Avx512 {
            return is_x86_feature_detected!("avx512bf16");
        }
        false
    }

    /// Whether there are instructions for matrix tiles of bf16 (TDPBF16PS), and the system permits their use.
    pub fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Kind::Avx512 {
            return self.has_pairs() && super::x86::has_tiles();
        }
        false
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
            Kind::Portable => "portable",
        }
    }
}

/// The operations of the inner loop of a matrix product, on vectors of 16 sums.
///
/// # Safety
/// As of [`Simd`].
pub trait Tiles: Copy {
    type F: Copy;
    /// The max width of a tile, in vectors: 1 or 3.
    const VECTORS: usize;
    /// The height of the next tile when this many rows are left.
    fn height(left: usize) -> usize;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Prefetches into the L2 cache; any address will do.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// The same pointer, but unknown to the optimizer, which then can't compute one from another.
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        p
    }
}

/// Vectors of 16 f32 and of 16 u32, and their operations.
///
/// # Safety
/// The functions of an implementation may only be called where its instructions run, which [`simd!`]
/// ensures. Pointers must be valid for 16 elements; they need no alignment.
pub trait Simd: Tiles {
    type U: Copy;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// max; `b` if either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// min; `b` if either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sqrt(a: Self::F) -> Self::F;
    unsafe fn bits(a: Self::F) -> Self::U;
    unsafe fn from_bits(a: Self::U) -> Self::F;
    unsafe fn splat_u(x: u32) -> Self::U;
    unsafe fn add_u(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn mul_u(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn xor_u(a: Self::U, b: Self::U) -> Self::U;
    unsafe fn shr_u<const N: u32>(a: Self::U) -> Self::U;
    unsafe fn shl_u<const N: u32>(a: Self::U) -> Self::U;
    /// `a >= b ? x : 0`, comparing as signed integers.
    unsafe fn keep_ge(a: Self::U, b: Self::U, x: Self::F) -> Self::F;
    unsafe fn to_array(a: Self::F) -> [f32; LANES];
    /// A bit for each lane, that of lane 0 the lowest: whether `a` is not less than `b`, as where either is NaN.
    #[inline(always)]
    unsafe fn not_less(a: Self::F, b: Self::F) -> u32 {
        let (a, b) = unsafe { (Self::to_array(a), Self::to_array(b)) };
        (0..LANES).fold(0, |bits, i| bits | u32::from((a[i] >= b[i]) | a[i].is_nan() | b[i].is_nan()) << i)
    }
    unsafe fn from_array_u(a: [u32; LANES]) -> Self::U;
    /// 16 bf16, converted to f32.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Stores 16 whole numbers from -128 to 127 as bytes.
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(Self::to_array(x).map(|x| x as i8)) }
    }
    /// The sum of all lanes as a tree: lane i plus lane i + 8, then + 4, + 2, + 1.
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        fold(unsafe { Self::to_array(a) }, |a, b| a + b)
    }
    /// The max of all lanes, by the same tree.
    #[inline(always)]
    unsafe fn max_lane(a: Self::F) -> f32 {
        fold(unsafe { Self::to_array(a) }, |a, b| if a > b { a } else { b })
    }
    /// Loads the first `n < 16` lanes; the others are those of `fill`.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize, fill: Self::F) -> Self::F {
        unsafe {
            let mut all = Self::to_array(fill);
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            Self::load(all.as_ptr())
        }
    }
    /// Stores the first `n < 16` lanes.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: Self::F) {
        unsafe { std::ptr::copy_nonoverlapping(Self::to_array(x).as_ptr(), p, n) }
    }
    /// The transpose of 16 × 16 numbers.
    unsafe fn transposed(rows: [Self::F; LANES]) -> [Self::F; LANES];

    /// The columns of 16 × 16 numbers whose rows begin every `stride`.
    #[inline(always)]
    unsafe fn columns<N: Number>(src: *const N, stride: usize) -> [Self::F; LANES] {
        unsafe {
            let mut rows = [Self::splat(0.0); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = N::load::<Self>(src.add(i * stride));
            }
            Self::transposed(rows)
        }
    }

    /// The same, stored in order, one every `to`. Where that is less than 16, each overwrites the surplus
    /// lanes of the one before.
    #[inline(always)]
    unsafe fn transpose(src: *const f32, from: usize, dst: *mut f32, to: usize) {
        unsafe {
            for (c, column) in Self::columns(src, from).iter().enumerate() {
                Self::store(dst.add(c * to), *column);
            }
        }
    }
}

/// Exact dot products of bytes, for products with quantized weights: each lane holds four codes of its own
/// column and adds up what they give with four numbers of a row.
///
/// # Safety
/// As of [`Simd`].
pub trait Dots: Tiles {
    /// 16 i32, or 64 bytes, of which a lane has four.
    type I: Copy;
    /// The width of a tile of several rows, in vectors: 1 or 2.
    const PANELS: usize;
    /// What [`Dots::dot_bytes`] takes a code for, less what it stands for.
    const BIAS: i32;
    unsafe fn splat_i(x: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// The lower 4 bits of each byte.
    unsafe fn low(bytes: Self::I) -> Self::I;
    /// The upper 4 bits of each byte.
    unsafe fn high(bytes: Self::I) -> Self::I;
    /// `sums + Σ code · x` of codes from 0 to 127 and x from -127 to 127.
    unsafe fn dot_small(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    /// `sums + Σ (code - 128 + BIAS) · x` of codes from 0 to 255 and x from -127 to 127.
    unsafe fn dot_bytes(sums: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    /// 16 bytes with signs, each a lane.
    unsafe fn load_bytes(p: *const u8) -> Self::I;
    /// 32 bytes without signs, two a lane, which become 16 bits.
    unsafe fn load_pairs(p: *const u8) -> Self::I;
    /// `sums + Σ a · b` of the two numbers of 16 bits in each lane.
    unsafe fn dot_pairs(sums: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// `sums + a · b`
    unsafe fn add_product(sums: Self::I, a: Self::I, b: Self::I) -> Self::I;
    unsafe fn float(sums: Self::I) -> Self::F;
    unsafe fn plus(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn times(a: Self::F, b: Self::F) -> Self::F;
}

/// The number formats of weights, which kernels convert to f32.
pub trait Number: Copy + Default + Send + Sync {
    /// # Safety
    /// As of [`Simd`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
    fn widened(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }
}

/// bf16: the upper 16 bits of an f32.
impl Number for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::F {
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
}

/// The nearest bf16, ties to even. NaN stays NaN, infinity infinity.
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let up = if x.is_finite() { 0x7fff + (bits >> 16 & 1) } else { 0 };
    ((bits + up) >> 16) as u16
}

/// A vector of 16 f32, with operators.
#[derive(Clone, Copy)]
pub struct F<S: Simd>(pub S::F);

/// A vector of 16 u32 that wrap around.
#[derive(Clone, Copy)]
pub struct U<S: Simd>(pub S::U);

// SAFETY of all below: vectors of S exist only within `simd!`, where the instructions of S run.
impl<S: Simd> F<S> {
    #[inline(always)]
    pub fn splat(x: f32) -> Self {
        F(unsafe { S::splat(x) })
    }

    /// The first 16 of `x`.
    #[inline(always)]
    pub fn load(x: &[f32]) -> Self {
        debug_assert!(x.len() >= LANES);
        F(unsafe { S::load(x.as_ptr()) })
    }

    /// The first 16 of `x`; the lanes that it lacks are `fill`.
    #[inline(always)]
    pub fn load_some(x: &[f32], fill: f32) -> Self {
        if x.len() >= LANES {
            return Self::load(x);
        }
        F(unsafe { S::load_first(x.as_ptr(), x.len(), S::splat(fill)) })
    }

    #[inline(always)]
    pub fn store(self, out: &mut [f32]) {
        debug_assert!(out.len() >= LANES);
        unsafe { S::store(out.as_mut_ptr(), self.0) }
    }

    /// The lanes that fit `out`.
    #[inline(always)]
    pub fn store_some(self, out: &mut [f32]) {
        if out.len() >= LANES {
            return self.store(out);
        }
        unsafe { S::store_first(out.as_mut_ptr(), out.len(), self.0) }
    }

    #[inline(always)]
    pub fn mul_add(self, b: Self, c: Self) -> Self {
        F(unsafe { S::fma(self.0, b.0, c.0) })
    }

    /// max; `b` if either is NaN.
    #[inline(always)]
    pub fn max(self, b: Self) -> Self {
        F(unsafe { S::max(self.0, b.0) })
    }

    /// min; `b` if either is NaN.
    #[inline(always)]
    pub fn min(self, b: Self) -> Self {
        F(unsafe { S::min(self.0, b.0) })
    }

    #[inline(always)]
    pub fn sqrt(self) -> Self {
        F(unsafe { S::sqrt(self.0) })
    }

    /// Without the sign.
    #[inline(always)]
    pub fn abs(self) -> Self {
        self.bits().shl::<1>().shr::<1>().float()
    }

    #[inline(always)]
    pub fn bits(self) -> U<S> {
        U(unsafe { S::bits(self.0) })
    }

    /// `a >= b ? self : 0`, comparing as signed integers.
    #[inline(always)]
    pub fn keep_ge(self, a: U<S>, b: U<S>) -> Self {
        F(unsafe { S::keep_ge(a.0, b.0, self.0) })
    }

    /// A bit for each lane, see [`Simd::not_less`].
    #[inline(always)]
    pub fn not_less(self, than: Self) -> u32 {
        unsafe { S::not_less(self.0, than.0) }
    }

    #[inline(always)]
    pub fn to_array(self) -> [f32; LANES] {
        unsafe { S::to_array(self.0) }
    }

    /// The sum of all lanes, see [`Simd::sum`].
    #[inline(always)]
    pub fn sum(self) -> f32 {
        unsafe { S::sum(self.0) }
    }

    /// The max of all lanes.
    #[inline(always)]
    pub fn max_lane(self) -> f32 {
        unsafe { S::max_lane(self.0) }
    }
}

#[inline(always)]
fn fold(mut x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
        half /= 2;
    }
    x[0]
}

impl<S: Simd> U<S> {
    #[inline(always)]
    pub fn splat(x: u32) -> Self {
        U(unsafe { S::splat_u(x) })
    }

    #[inline(always)]
    pub fn from_array(x: [u32; LANES]) -> Self {
        U(unsafe { S::from_array_u(x) })
    }

    #[inline(always)]
    pub fn xor(self, b: Self) -> Self {
        U(unsafe { S::xor_u(self.0, b.0) })
    }

    #[inline(always)]
    pub fn shr<const N: u32>(self) -> Self {
        U(unsafe { S::shr_u::<N>(self.0) })
    }

    #[inline(always)]
    pub fn shl<const N: u32>(self) -> Self {
        U(unsafe { S::shl_u::<N>(self.0) })
    }

    /// The f32 with these bits.
    #[inline(always)]
    pub fn float(self) -> F<S> {
        F(unsafe { S::from_bits(self.0) })
    }
}

macro_rules! operator {
    ($vector:ident, $trait:ident, $method:ident, $simd:ident) => {
        impl<S: Simd> $trait for $vector<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, b: Self) -> Self {
                $vector(unsafe { S::$simd(self.0, b.0) })
            }
        }
    };
}
operator!(F, Add, add, add);
operator!(F, Sub, sub, sub);
operator!(F, Mul, mul, mul);
operator!(F, Div, div, div);
operator!(U, Add, add, add_u);
operator!(U, Mul, mul, mul_u);

/// Compiles a kernel for every instruction set; the resulting function takes an [`Isa`] first.
///
/// ```ignore
/// simd! {
///     /// `x · 2`
///     pub fn double<S>(x: &mut [f32]) { … F::<S>::load(x) … }
/// }
/// double(isa, &mut x);
/// ```
///
/// A second type parameter may follow: `fn double<S, N: Number>`.
macro_rules! simd {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$s:ident $(, $n:ident: $bound:path)?>($($arg:ident : $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($n: $bound)?>(isa: $crate::kernel::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            use $crate::kernel::simd::{Kind, Simd};
            #[inline(always)]
            fn body<$s: Simd $(, $n: $bound)?>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma")]
            fn avx512<$($n: $bound)?>($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::kernel::x86::Avx512 $(, $n)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($n: $bound)?>($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::kernel::x86::Avx2 $(, $n)?>($($arg),*)
            }
            match isa.0 {
                // SAFETY: an `Isa` is only made where its instructions were found.
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => unsafe { avx512::<$($n)?>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => unsafe { avx2::<$($n)?>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => body::<$crate::kernel::neon::Neon $(, $n)?>($($arg),*),
                Kind::Portable => body::<$crate::kernel::portable::Portable $(, $n)?>($($arg),*),
            }
        }
    )*};
}
pub(crate) use simd;
