//! Operations whose composition from candle's own would touch memory many times: layer norm, GELU, and
//! attention weights, each forward and backward. Their twins are candle's compositions, in the tests.
//!
//! Loops are plain and branch-free, so that the compiler can use vectors; `exp` is a polynomial.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor};

/// `e^x` to about 2 units in the last place: `2^n · p(r)` with `x = n ln 2 + r`, |r| ≤ ln 2 / 2, and p the
/// Taylor polynomial of degree 6 (Cody and Waite's reduction).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to a whole number
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // The low bits of `shifted` are n; put it into the exponent.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

fn input<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("this operation takes contiguous tensors"),
    }
}

/// Runs `f` on the values of a contiguous copy of `t`.
fn values<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(input(cpu, layout)?)),
        _ => candle_core::bail!("this operation runs on the CPU"),
    }
}

/// GELU in its tanh form, which is `x · sigmoid(2u)` with `u = sqrt(2/π) (x + 0.044715 x³)`.
///
/// # Errors
/// When candle fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

struct Gelu;

const ROOT_2_OVER_PI: f32 = 0.797_884_6;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let one = |x: &f32| {
            let u = ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x);
            x / (1.0 + exp(-2.0 * u))
        };
        let out = input(storage, layout)?.iter().map(one).collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let one = |(x, g): (&f32, &f32)| {
            let u = ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x);
            let du = ROOT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
            let s = 1.0 / (1.0 + exp(-2.0 * u));
            g * (s + 2.0 * x * s * (1.0 - s) * du)
        };
        let out: Vec<f32> = values(x, |x| values(grad, |g| x.iter().zip(g).map(one).collect()))??;
        Tensor::from_vec(out, x.shape(), x.device()).map(Some)
    }
}

/// Attention weights: `softmax(scale · scores)` over the positions that a row may look at.
///
/// `scores: [B, H, T, W]`; row `i` looks at columns `0..=start + i`, where `W = start + T`; the weights
/// ahead of it are 0.
///
/// # Errors
/// When candle fails.
pub fn causal_softmax(scores: &Tensor, scale: f32, start: usize) -> Result<Tensor> {
    scores.contiguous()?.apply_op1(CausalSoftmax { scale, start })
}

struct CausalSoftmax {
    scale: f32,
    start: usize,
}

impl CausalSoftmax {
    /// How many columns the row with this index, counted over all of `[B, H, T]`, may look at.
    fn seen(&self, row: usize, t: usize) -> usize {
        self.start + row % t + 1
    }
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, t, w) = layout.shape().dims4()?;
        let scores = input(storage, layout)?;
        let mut out = vec![0f32; scores.len()];
        for (i, (row, out)) in scores.chunks_exact(w).zip(out.chunks_exact_mut(w)).enumerate() {
            let seen = self.seen(i, t);
            let (row, out) = (&row[..seen], &mut out[..seen]);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (o, x) in out.iter_mut().zip(row) {
                *o = exp(self.scale * (x - max));
            }
            let inverse = 1.0 / out.iter().sum::<f32>();
            out.iter_mut().for_each(|o| *o *= inverse);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// `scale · p · (g - Σ g p)`.
    fn bwd(&self, scores: &Tensor, weights: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, t, w) = scores.dims4()?;
        let rows = |p: &[f32], g: &[f32]| {
            let mut out = vec![0f32; p.len()];
            let pairs = p.chunks_exact(w).zip(g.chunks_exact(w)).zip(out.chunks_exact_mut(w));
            for (i, ((p, g), out)) in pairs.enumerate() {
                let seen = self.seen(i, t);
                let dot: f32 = p[..seen].iter().zip(&g[..seen]).map(|(p, g)| p * g).sum();
                for ((o, p), g) in out[..seen].iter_mut().zip(p).zip(g) {
                    *o = self.scale * p * (g - dot);
                }
            }
            out
        };
        let out = values(weights, |p| values(grad, |g| rows(p, g)))??;
        Tensor::from_vec(out, scores.shape(), scores.device()).map(Some)
    }
}

/// `(x - mean) / sqrt(variance + 1e-5) · weight + bias` over the last dimension of `x: [N, C]`.
///
/// # Errors
/// When candle fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, LayerNorm)
}

struct LayerNorm;

/// Mean, and one over the standard deviation.
fn moments(row: &[f32]) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = row.iter().sum::<f32>() / n;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
    (mean, 1.0 / (variance + 1e-5).sqrt())
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        weight: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (input(x, lx)?, input(weight, lw)?, input(bias, lb)?);
        let c = weight.len();
        let mut out = vec![0f32; x.len()];
        for (row, out) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
            let (mean, inverse) = moments(row);
            for (((o, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                *o = (x - mean) * inverse * w + b;
            }
        }
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    /// With `n = (x - mean) · inverse` and `h = g · weight`:
    /// `dx = inverse (h - mean(h) - n mean(h n))`, `dweight = Σ g n`, `dbias = Σ g`.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let c = weight.elem_count();
        let rows = |x: &[f32], w: &[f32], g: &[f32]| {
            let (mut dx, mut dw, mut db) = (vec![0f32; x.len()], vec![0f32; c], vec![0f32; c]);
            let mut normed = vec![0f32; c];
            for ((row, g), dx) in x.chunks_exact(c).zip(g.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
                let (mean, inverse) = moments(row);
                for (n, x) in normed.iter_mut().zip(row) {
                    *n = (x - mean) * inverse;
                }
                let mean_h = g.iter().zip(w).map(|(g, w)| g * w).sum::<f32>() / c as f32;
                let products = g.iter().zip(w).zip(&normed).map(|((g, w), n)| g * w * n);
                let mean_hn = products.sum::<f32>() / c as f32;
                for i in 0..c {
                    dx[i] = inverse * (g[i] * w[i] - mean_h - normed[i] * mean_hn);
                    dw[i] += g[i] * normed[i];
                    db[i] += g[i];
                }
            }
            (dx, dw, db)
        };
        let (dx, dw, db) = values(x, |x| values(weight, |w| values(grad, |g| rows(x, w, g))))???;
        let tensor = |v: Vec<f32>, shape: &Shape| Tensor::from_vec(v, shape, x.device()).map(Some);
        Ok((tensor(dx, x.shape())?, tensor(dw, weight.shape())?, tensor(db, weight.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use candle_core::{D, Device, Var};

    fn random(shape: &[usize], label: &str) -> Var {
        let mut rng = Rng::new(7, label);
        let n = shape.iter().product::<usize>();
        let data: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
        Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor, what: &str) {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let difference = difference.to_scalar::<f32>().unwrap();
        assert!(difference < 2e-5, "{what} differs by {difference}");
    }

    /// Values and gradients of `fast` against its `plain` twin, under a weighting that no symmetry hides.
    fn twins(vars: &[Var], fast: impl Fn() -> Result<Tensor>, plain: impl Fn() -> Result<Tensor>) {
        let (a, b) = (fast().unwrap(), plain().unwrap());
        close(&a, &b, "value");
        let weights = random(a.dims(), "weights");
        let gradients =
            |t: &Tensor| (t * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (ga, gb) = (gradients(&a), gradients(&b));
        for (i, var) in vars.iter().enumerate() {
            close(ga.get(var).unwrap(), gb.get(var).unwrap(), &format!("gradient {i}"));
        }
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -86_000..88_000 {
            let x = i as f32 / 1000.0;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 4e-7 * expected, "exp({x}) = {found}, not {expected}");
        }
    }

    #[test]
    fn gelu_is_its_twin() {
        let x = random(&[5, 33], "x");
        twins(std::slice::from_ref(&x), || gelu(&x), || x.gelu());
    }

    #[test]
    fn layer_norm_is_its_twin() {
        let (x, w, b) = (random(&[6, 20], "x"), random(&[20], "w"), random(&[20], "b"));
        let plain = || {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
            let normed = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
            normed.broadcast_mul(&w)?.broadcast_add(&b)
        };
        twins(&[x.clone(), w.clone(), b.clone()], || layer_norm(&x, &w, &b), plain);
    }

    #[test]
    fn causal_softmax_is_its_twin() {
        let (t, start) = (5, 3);
        let x = random(&[2, 3, t, start + t], "x");
        let ahead = |i: usize, j: usize| if j > start + i { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..t).flat_map(|i| (0..start + t).map(move |j| ahead(i, j))).collect();
        let mask = Tensor::from_vec(mask, (t, start + t), &Device::Cpu).unwrap();
        let plain = || candle_nn::ops::softmax(&(x.as_tensor() * 0.5)?.broadcast_add(&mask)?, D::Minus1);
        twins(std::slice::from_ref(&x), || causal_softmax(&x, 0.5, start), plain);
    }
}
