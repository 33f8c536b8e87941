//! The activation of a feed-forward part, plain or gated: `activation(hidden)`, or `activation(gate) · input`
//! (GLU; Shazeer, 2020), where a row of the hidden layer is gate and input side by side.

use std::ops::Range;

use super::math::{exp_as_ggml, normal, sigmoid};
use super::simd::{F, LANES, Simd, U, simd};
use super::team::{Parts, Team};

/// Numbers of a task, at least.
const GRAIN: usize = 4096;

/// The nonlinearity of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU approximated by a tanh: transformers' `gelu_new` (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// `x Φ(x)`, by the error function.
    Gelu,
    /// `max(x, 0)²` (So et al., "Primer", 2021).
    Relu2,
    /// `x sigmoid(x)`
    Silu,
}

/// The nonlinear part of a feed-forward part.
#[derive(Debug, Clone, Copy)]
pub struct Mlp {
    pub activation: Activation,
    /// Whether the hidden layer has 2F columns, gate and input, instead of F.
    pub gated: bool,
    /// F, columns of the output.
    pub width: usize,
    /// Whether to round as ggml does: [`Activation::GeluTanh`] reads and writes numbers rounded to f16
    /// (`ggml_vec_gelu_f32`), [`Activation::Silu`] divides by the sum (`ggml_v_silu`); only [`forward`].
    pub as_ggml: bool,
}

impl Mlp {
    /// Columns of the hidden layer.
    pub fn hidden_width(self) -> usize {
        if self.gated { 2 * self.width } else { self.width }
    }
}

/// Calls `$f` with the type of an [`Activation`].
macro_rules! of_type {
    ($activation:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $activation {
            Activation::GeluTanh => $f::<GeluTanh>($($arg),*),
            Activation::Gelu => $f::<Gelu>($($arg),*),
            Activation::Relu2 => $f::<Relu2>($($arg),*),
            Activation::Silu => $f::<Silu>($($arg),*),
        }
    };
}

/// `out: [N, F]` of `hidden: [N, F]`, or `[N, 2F]` where it is gated; rows begin every `hidden_stride` and
/// `out_stride`.
pub fn forward(
    team: &Team,
    mlp: Mlp,
    hidden: &[f32],
    hidden_stride: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let n = out.len() / out_stride;
    let out = Parts::new(out);
    team.ranges(n, GRAIN.div_ceil(mlp.width), |rows| match mlp.activation {
        Activation::GeluTanh if mlp.as_ggml => {
            forward_rows::<HalfGelu>(team.isa, mlp, rows, hidden, hidden_stride, out, out_stride)
        }
        Activation::Silu if mlp.as_ggml => {
            forward_rows::<GgmlSilu>(team.isa, mlp, rows, hidden, hidden_stride, out, out_stride)
        }
        other => of_type!(other, forward_rows(team.isa, mlp, rows, hidden, hidden_stride, out, out_stride)),
    });
}

/// Recomputes the output beside the gradient: both are needed, and they share the exponential.
///
/// `hidden` holds what [`forward`] read, and its first F columns become the output. The first F columns of
/// `dout` hold the gradient of the output, and `dout` becomes that of the hidden layer. Rows of both begin
/// every `stride`.
pub fn backward(team: &Team, mlp: Mlp, hidden: &mut [f32], dout: &mut [f32], stride: usize) {
    assert!(!mlp.as_ggml, "only forward");
    let n = hidden.len() / stride;
    let (hidden, dout) = (Parts::new(hidden), Parts::new(dout));
    team.ranges(n, GRAIN.div_ceil(mlp.width), |rows| {
        of_type!(mlp.activation, backward_rows(team.isa, mlp, rows, hidden, dout, stride));
    });
}

/// A function of one variable.
trait Function {
    fn value<S: Simd>(x: F<S>) -> F<S>;
}

trait Differentiable: Function {
    /// f(x) and f'(x).
    fn with_gradient<S: Simd>(x: F<S>) -> (F<S>, F<S>);
}

struct GeluTanh;

/// `2 sqrt(2/π)`
const TWICE_ROOT: f32 = 1.595_769_2;
const CUBE: f32 = 0.044_715;

impl GeluTanh {
    /// `sigmoid(2u)`
    #[inline(always)]
    fn gate<S: Simd>(x: F<S>) -> F<S> {
        let inner = (x * x).mul_add(F::splat(TWICE_ROOT * CUBE), F::splat(TWICE_ROOT));
        sigmoid(x * inner)
    }
}

/// `x (1 + tanh u) / 2 = x sigmoid(2u)` with `u = sqrt(2/π) (x + 0.044715 x³)`.
impl Function for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(x: F<S>) -> F<S> {
        x * Self::gate(x)
    }
}

impl Differentiable for GeluTanh {
    /// `s + x s (1 - s) · 2u'` with `s = sigmoid(2u)`.
    #[inline(always)]
    fn with_gradient<S: Simd>(x: F<S>) -> (F<S>, F<S>) {
        let s = Self::gate(x);
        let twice_du = (x * x).mul_add(F::splat(3.0 * TWICE_ROOT * CUBE), F::splat(TWICE_ROOT));
        let y = x * s;
        (y, (y * (F::splat(1.0) - s)).mul_add(twice_du, s))
    }
}

/// [`GeluTanh`] as llama.cpp's CPU kernels compute it, which read it from a table of f16: `f16(gelu(f16(x)))`
/// between -10 and 10, 0 below, x above.
struct HalfGelu;

impl Function for HalfGelu {
    #[inline(always)]
    fn value<S: Simd>(x: F<S>) -> F<S> {
        const LIMIT: u32 = 10.0f32.to_bits();
        let magnitude = x.abs().bits();
        let inside = to_f16(GeluTanh::value(to_f16(x)));
        // NaN counts as outside, and passes through `max` in this order.
        let outside = F::splat(0.0).max(x);
        outside.keep_ge(magnitude, U::splat(LIMIT)) + inside.keep_ge(U::splat(LIMIT - 1), magnitude)
    }
}

/// x rounded to the nearest f16, ties to even; for numbers below 65504 in magnitude.
#[inline(always)]
fn to_f16<S: Simd>(x: F<S>) -> F<S> {
    // The smallest f16 with all 11 bits of precision; those below are multiples of 2^-24, as are f32 between
    // 1/2 and 1.
    const NORMAL: u32 = 0x3880_0000;
    let magnitude = x.abs().bits();
    let odd = magnitude.shr::<13>().shl::<31>().shr::<31>();
    let normal = (magnitude + U::splat(0xfff) + odd).shr::<13>().shl::<13>().float();
    let subnormal = x.abs() + F::splat(0.5) - F::splat(0.5);
    let rounded =
        normal.keep_ge(magnitude, U::splat(NORMAL)) + subnormal.keep_ge(U::splat(NORMAL - 1), magnitude);
    let sign = x.bits().shr::<31>().shl::<31>();
    rounded.bits().xor(sign).float()
}

struct Gelu;

/// `1 / sqrt(2π)`
const DENSITY: f32 = 0.398_942_3;

impl Function for Gelu {
    #[inline(always)]
    fn value<S: Simd>(x: F<S>) -> F<S> {
        x * normal(x).0
    }
}

impl Differentiable for Gelu {
    /// `Φ(x) + x φ(x)`, φ being the normal density.
    #[inline(always)]
    fn with_gradient<S: Simd>(x: F<S>) -> (F<S>, F<S>) {
        let (phi, density) = normal(x);
        (x * phi, (x * F::splat(DENSITY)).mul_add(density, phi))
    }
}

struct Relu2;

impl Function for Relu2 {
    #[inline(always)]
    fn value<S: Simd>(x: F<S>) -> F<S> {
        // In this order NaN passes through.
        let positive = F::splat(0.0).max(x);
        positive * positive
    }
}

impl Differentiable for Relu2 {
    #[inline(always)]
    fn with_gradient<S: Simd>(x: F<S>) -> (F<S>, F<S>) {
        let positive = F::splat(0.0).max(x);
        (positive * positive, positive + positive)
    }
}

struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn value<S: Simd>(x: F<S>) -> F<S> {
        x * sigmoid(x)
    }
}

/// [`Silu`] with the bits of llama.cpp's CPU kernels: `x / (1 + e^-x)`.
struct GgmlSilu;

impl Function for GgmlSilu {
    #[inline(always)]
    fn value<S: Simd>(x: F<S>) -> F<S> {
        x / (F::splat(1.0) + exp_as_ggml(F::splat(0.0) - x))
    }
}

impl Differentiable for Silu {
    /// `s + x s (1 - s)` with `s = sigmoid(x)`.
    #[inline(always)]
    fn with_gradient<S: Simd>(x: F<S>) -> (F<S>, F<S>) {
        let s = sigmoid(x);
        let y = x * s;
        (y, y.mul_add(F::splat(1.0) - s, s))
    }
}

simd! {
    fn forward_rows<S, A: Function>(
        mlp: Mlp,
        rows: Range<usize>,
        hidden: &[f32],
        hidden_stride: usize,
        out: Parts,
        out_stride: usize,
    ) {
        for i in rows {
            let (gate, input) = hidden[i * hidden_stride..][..mlp.hidden_width()].split_at(mlp.width);
            // SAFETY: each row has one task.
            let out = unsafe { out.take(i * out_stride..i * out_stride + mlp.width) };
            if mlp.gated {
                gated::<S, A>(gate, input, out);
            } else {
                plain::<S, A>(gate, out);
            }
        }
    }

    fn backward_rows<S, A: Differentiable>(mlp: Mlp, rows: Range<usize>, hidden: Parts, dout: Parts, stride: usize) {
        for i in rows {
            let own = i * stride..i * stride + mlp.hidden_width();
            // SAFETY: each row has one task.
            let (hidden, dout) = unsafe { (hidden.take(own.clone()), dout.take(own)) };
            if mlp.gated {
                gated_backward::<S, A>(mlp.width, hidden, dout);
            } else {
                plain_backward::<S, A>(hidden, dout);
            }
        }
    }
}

#[inline(always)]
fn plain<S: Simd, A: Function>(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
        A::value(F::<S>::load_some(x, 0.0)).store_some(out);
    }
}

#[inline(always)]
fn gated<S: Simd, A: Function>(gate: &[f32], input: &[f32], out: &mut [f32]) {
    for ((x, input), out) in gate.chunks(LANES).zip(input.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        (A::value(F::<S>::load_some(x, 0.0)) * F::load_some(input, 0.0)).store_some(out);
    }
}

#[inline(always)]
fn plain_backward<S: Simd, A: Differentiable>(x: &mut [f32], d: &mut [f32]) {
    for (x, d) in x.chunks_mut(LANES).zip(d.chunks_mut(LANES)) {
        let (y, gradient) = A::with_gradient(F::<S>::load_some(x, 0.0));
        (F::load_some(d, 0.0) * gradient).store_some(d);
        y.store_some(x);
    }
}

/// With `out = a(gate) · input`: `dgate = dout · input · a'(gate)`, `dinput = dout · a(gate)`.
#[inline(always)]
fn gated_backward<S: Simd, A: Differentiable>(width: usize, hidden: &mut [f32], dout: &mut [f32]) {
    let (gate, input) = hidden.split_at_mut(width);
    let (dgate, dinput) = dout.split_at_mut(width);
    let vectors = gate.chunks_mut(LANES).zip(dgate.chunks_mut(LANES));
    for (((x, d), input), dinput) in vectors.zip(input.chunks(LANES)).zip(dinput.chunks_mut(LANES)) {
        let (y, gradient) = A::with_gradient(F::<S>::load_some(x, 0.0));
        let (input, dout) = (F::load_some(input, 0.0), F::load_some(d, 0.0));
        (dout * input * gradient).store_some(d);
        (dout * y).store_some(dinput);
        (y * input).store_some(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{near, near_differences, numbers, same_everywhere, wide};

    const ALL: [Activation; 4] =
        [Activation::GeluTanh, Activation::Gelu, Activation::Relu2, Activation::Silu];

    /// The definition in f64.
    fn definition(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Activation::Relu2 => x.max(0.0).powi(2),
            Activation::Silu => x / (1.0 + (-x).exp()),
        }
    }

    fn rows_of(mlp: Mlp, hidden: &[f64], stride: usize) -> Vec<f64> {
        let f = mlp.width;
        let row = |row: &[f64]| -> Vec<f64> {
            let gate = |j: usize| definition(mlp.activation, row[j]);
            (0..f).map(|j| if mlp.gated { gate(j) * row[f + j] } else { gate(j) }).collect()
        };
        hidden.chunks_exact(stride).flat_map(row).collect()
    }

    /// Each plain and gated, rows that fill no vector, gaps between rows, several tasks.
    #[test]
    fn it_is_its_definition_forward_and_backward() {
        for (n, width) in [(1, 5), (3, 16), (7, 37), (300, 50)] {
            for activation in ALL {
                check(n, Mlp { activation, gated: false, width, as_ggml: false });
                check(n, Mlp { activation, gated: true, width, as_ggml: false });
            }
        }
    }

    fn check(n: usize, mlp: Mlp) {
        let what = |part: &str| format!("{part} of {mlp:?}");
        let (f, columns) = (mlp.width, mlp.hidden_width());
        let (stride, out_stride) = (columns + 3, f + 2);
        let hidden = numbers("hidden", n * stride, 2.0);
        let dout = numbers("dout", n * stride, 1.0);
        let found = same_everywhere(|team| {
            let mut out = vec![7.0; n * out_stride];
            forward(team, mlp, &hidden, stride, &mut out, out_stride);
            let (mut again, mut dhidden) = (hidden.clone(), dout.clone());
            backward(team, mlp, &mut again, &mut dhidden, stride);
            for (again, out) in again.chunks_exact(stride).zip(out.chunks_exact(out_stride)) {
                assert!(again[..f] == out[..f] && out[f..] == [7.0; 2], "{}", what("out"));
            }
            let gaps = dhidden.chunks_exact(stride).zip(dout.chunks_exact(stride));
            gaps.for_each(|(after, before)| assert!(after[columns..] == before[columns..]));
            vec![out.chunks_exact(out_stride).flat_map(|row| &row[..f]).copied().collect(), dhidden]
        });
        near(&what("out"), &found[0], &rows_of(mlp, &wide(&hidden), stride), 2e-6);
        // Gaps stay as they were, and their gradient is 0.
        let mut dhidden = found[1].clone();
        dhidden.chunks_exact_mut(stride).for_each(|row| row[columns..].fill(0.0));
        let loss = |hidden: &[f64]| {
            let out = rows_of(mlp, hidden, stride);
            let rows = out.chunks_exact(f).zip(dout.chunks_exact(stride));
            rows.flat_map(|(out, dout)| out.iter().zip(dout)).map(|(out, d)| out * f64::from(*d)).sum()
        };
        near_differences(&what("dhidden"), &dhidden, &hidden, loss, 1e-5);
    }

    /// Each f16, its neighbours in f32 and the middle between it and the next, beside the crate `half`.
    #[test]
    fn half_gelu_is_the_table_of_f16() {
        let mut x = vec![10.0, -10.0, 9.999, -9.999, 1e4, -1e9, f32::INFINITY, f32::NEG_INFINITY];
        for bits in 0..half::f16::from_f32(10.0).to_bits() {
            let (this, next) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
            let middle = (this + next) / 2.0;
            x.extend([this, middle.next_down(), middle, middle.next_up()]);
        }
        x.extend(x.clone().iter().map(|x| -x));
        let found = same_everywhere(|team| {
            let forward = |as_ggml| {
                let mlp = Mlp { activation: Activation::GeluTanh, gated: false, width: x.len(), as_ggml };
                let mut out = vec![0.0; x.len()];
                let x: Vec<f32> = if as_ggml { x.clone() } else { x.iter().map(|x| to_half(*x)).collect() };
                forward(team, mlp, &x, x.len(), &mut out, x.len());
                out
            };
            vec![forward(true), forward(false)]
        });
        for ((x, found), exact) in x.iter().zip(&found[0]).zip(&found[1]) {
            let expected = if x.abs() >= 10.0 { x.max(0.0) } else { to_half(*exact) };
            assert!(*found == expected, "{x}: {found}, not {expected}");
        }
    }

    /// Beside what `ggml_vec_silu_f32` of llama.cpp (xllamacpp 2026.10.11549, AVX2) gives.
    #[test]
    fn silu_as_ggml_has_its_bits() {
        let x = [
            -20.5, -9.75, -3.3, -1.7, -0.9, -0.31, -0.0123, 0.007, 0.4, 1.1, 2.6, 4.4, 7.3, 15.2, 31.0, 60.0,
        ];
        let expected = [
            0xb2dc_24dc,
            0xba14_fca4,
            0xbdf0_6783,
            0xbe86_7252,
            0xbe85_31c9,
            0xbe06_5044,
            0xbbc8_48ab,
            0x3b66_2dc7,
            0x3e75_38f4,
            0x3f53_45f4,
            0x401a_e536,
            0x408b_17a2,
            0x40e9_713b,
            0x4173_332f,
            0x41f8_0000,
            0x4270_0000,
        ];
        let found = same_everywhere(|team| {
            let mlp = Mlp { activation: Activation::Silu, gated: false, width: x.len(), as_ggml: true };
            let mut out = vec![0.0; x.len()];
            forward(team, mlp, &x, x.len(), &mut out, x.len());
            vec![out]
        });
        assert_eq!(found[0].iter().map(|y| y.to_bits()).collect::<Vec<_>>(), expected);
    }

    fn to_half(x: f32) -> f32 {
        half::f16::from_f32(x).to_f32()
    }

    #[test]
    fn large_numbers_and_nan_stay_what_they_are() {
        let x = [-1e4, -30.0, -0.0, 0.0, 30.0, 1e4, f32::NAN];
        for activation in ALL {
            let found = same_everywhere(|team| {
                let mut out = vec![0.0; x.len()];
                let mlp = Mlp { activation, gated: false, width: x.len(), as_ggml: false };
                forward(team, mlp, &x, x.len(), &mut out, x.len());
                let (mut again, mut gradient) = (x.to_vec(), vec![1.0; x.len()]);
                backward(team, mlp, &mut again, &mut gradient, x.len());
                vec![out, gradient]
            });
            let [out, gradient] = &found[..] else { unreachable!() };
            let expected: Vec<f64> = x[..6].iter().map(|x| definition(activation, f64::from(*x))).collect();
            near(&format!("{activation:?}"), &out[..6], &expected, 1e-6);
            assert!(gradient[..6].iter().all(|d| d.is_finite()), "{activation:?}: {gradient:?}");
            assert!(out[6].is_nan() && gradient[6].is_nan(), "{activation:?}");
        }
    }
}
