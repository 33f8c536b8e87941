//! Vectors of 16 numbers, and how one source becomes code for several kinds of CPU.
//!
//! A kernel is written once over [`Simd`], whose vector has 16 lanes everywhere: one register with
//! AVX-512, two with AVX2, four with NEON, an array elsewhere. Every operation is the IEEE one,
//! multiplication and addition are fused where the source says so and nowhere else, and sums over lanes
//! go through one fixed tree. So the bits of a result do not depend on the machine.
//!
//! [`simd!`] compiles a kernel for each kind and picks at run time, by an [`Isa`] that can only be had
//! where it runs.

use std::ops::{Add, Div, Mul, Sub};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// A kind of CPU that there is code for.
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
    /// Those that run on this machine, the fastest first. Portable code runs everywhere.
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
        // Every 64-bit ARM has it.
        #[cfg(target_arch = "aarch64")]
        all.push(Isa(Kind::Neon));
        all.push(Isa(Kind::Portable));
        all
    }

    /// The fastest that runs on this machine.
    pub fn best() -> Isa {
        Self::available()[0]
    }

    /// Whether it has an instruction for products of pairs of bf16.
    pub fn has_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Kind::Avx512 {
            return is_x86_feature_detected!("avx512bf16");
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

/// What the inner loop of a matrix product is made of: 16 sums, and what they are sums of.
///
/// # Safety
/// As of [`Simd`].
pub trait Tiles: Copy {
    type F: Copy;
    /// Vectors that a tile is wide, at most: 1 or 3.
    const VECTORS: usize;
    /// Rows of the next tile when this many are left.
    fn height(left: usize) -> usize;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Asks for what lies there, which need not be anything, into the second cache.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// The same pointer, but the compiler can't know: keeps it from deriving one from another.
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        p
    }
}

/// 16 lanes of f32 and of u32, and what can be done with them.
///
/// # Safety
/// The functions of an implementation may only be called where its instructions run; [`simd!`] sees to
/// that. Pointers must be good for 16 elements; they need no alignment.
pub trait Simd: Tiles {
    type U: Copy;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The greater; `b` where either is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The lesser; `b` where either is not a number.
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
    /// `x` where the signed `a` is not below the signed `b`, else 0.
    unsafe fn keep_ge(a: Self::U, b: Self::U, x: Self::F) -> Self::F;
    unsafe fn to_array(a: Self::F) -> [f32; LANES];
    unsafe fn from_array_u(a: [u32; LANES]) -> Self::U;
    /// 16 bf16, widened.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// The sum of all lanes: halves onto halves, 16 → 8 → 4 → 2 → 1.
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        fold(unsafe { Self::to_array(a) }, |a, b| a + b)
    }
    /// The greatest lane, by the same tree.
    #[inline(always)]
    unsafe fn max_lane(a: Self::F) -> f32 {
        fold(unsafe { Self::to_array(a) }, |a, b| if a > b { a } else { b })
    }
    /// The first `n`, below 16, of what lies there; the other lanes are those of `fill`.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize, fill: Self::F) -> Self::F {
        unsafe {
            let mut all = Self::to_array(fill);
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            Self::load(all.as_ptr())
        }
    }
    /// Writes the first `n` lanes, fewer than 16.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: Self::F) {
        unsafe { std::ptr::copy_nonoverlapping(Self::to_array(x).as_ptr(), p, n) }
    }
    /// The columns of 16 rows.
    unsafe fn turned(rows: [Self::F; LANES]) -> [Self::F; LANES];

    /// The columns of 16 × 16 numbers whose rows lie `from` apart.
    #[inline(always)]
    unsafe fn columns<N: Number>(src: *const N, from: usize) -> [Self::F; LANES] {
        unsafe {
            let mut rows = [Self::splat(0.0); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = N::load::<Self>(src.add(i * from));
            }
            Self::turned(rows)
        }
    }

    /// The same, written one after the other `to` apart: where that is below 16, a later one overwrites
    /// what an earlier one wrote beyond it.
    #[inline(always)]
    unsafe fn transpose(src: *const f32, from: usize, dst: *mut f32, to: usize) {
        unsafe {
            for (c, column) in Self::columns(src, from).iter().enumerate() {
                Self::store(dst.add(c * to), *column);
            }
        }
    }
}

/// What weights may be made of.
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

/// bf16: the upper half of an f32.
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

/// To the nearest bf16, ties to even. What is not finite stays so.
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let up = if x.is_finite() { 0x7fff + (bits >> 16 & 1) } else { 0 };
    ((bits + up) >> 16) as u16
}

/// 16 numbers, with operators.
#[derive(Clone, Copy)]
pub struct F<S: Simd>(pub S::F);

/// 16 whole numbers modulo 2^32.
#[derive(Clone, Copy)]
pub struct U<S: Simd>(pub S::U);

// SAFETY of all below: only code under `simd!` holds vectors of S, and there S runs.
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

    /// Up to 16 of `x`, the rest `fill`.
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

    /// As many lanes as `out` has room for.
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

    #[inline(always)]
    pub fn max(self, b: Self) -> Self {
        F(unsafe { S::max(self.0, b.0) })
    }

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

    /// Self where `a ≥ b` as signed numbers, else 0.
    #[inline(always)]
    pub fn keep_ge(self, a: U<S>, b: U<S>) -> Self {
        F(unsafe { S::keep_ge(a.0, b.0, self.0) })
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

    /// The numbers with these bits.
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

/// Compiles a kernel for every kind of CPU; the function that comes out takes an [`Isa`] first.
///
/// ```ignore
/// simd! {
///     /// `x · 2`
///     pub fn double<S>(x: &mut [f32]) { … F::<S>::load(x) … }
/// }
/// double(isa, &mut x);
/// ```
///
/// A second type, of numbers, may follow: `fn double<S, N: Number>`.
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
