//! The model once more, in candle's own operations and with its autograd: the plain twin that the kernels
//! are tested against, and the way onto a GPU, where those kernels don't run (a build of candle with
//! CUDA or Metal, and its device here).
//!
//! It is written to be read, not to be fast. Every architecture of [`Config`] is here.

use std::f64::consts::TAU;
use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};

use super::config::{Activation, Norm, Placement, Position};
use super::executor::Sequences;
use super::layout::{BlockLayout, LinearLayout, NormLayout};
use super::transformer::Transformer;
use super::{Config, dropout_at};
use crate::kernel::IGNORE;
use crate::kernel::loss::Soft;

/// A copy of a model's numbers as candle's variables.
pub struct Reference {
    config: Config,
    /// In the order of [`super::Layout`]'s parameters.
    vars: Vec<Var>,
    /// Where each parameter begins, to find it again.
    starts: Vec<usize>,
    device: Device,
    smoothing: f64,
}

/// What is the same for all layers of one pass.
struct Pass {
    sequences: usize,
    length: usize,
    dropout: Option<u64>,
    /// Cosines and sines of the rotation, `[T, D/2]` each.
    rotation: Option<(Tensor, Tensor)>,
    /// `[T, T]`: minus infinity for what comes later.
    mask: Tensor,
}

impl Reference {
    /// # Errors
    /// When candle fails.
    pub fn new(gpt: &Transformer, device: &Device) -> Result<Self> {
        let var = |p: &super::Parameter| {
            let values = &gpt.weights[p.range.clone()];
            Var::from_tensor(&Tensor::from_slice(values, p.shape.as_slice(), device)?)
        };
        Ok(Reference {
            config: gpt.config.clone(),
            vars: gpt.parameters().iter().map(var).collect::<Result<_>>()?,
            starts: gpt.parameters().iter().map(|p| p.range.start).collect(),
            device: device.clone(),
            smoothing: 0.0,
        })
    }

    /// The same with label smoothing (Szegedy et al., 2016): of each target, this share is spread over the
    /// whole vocabulary.
    pub fn with_smoothing(self, smoothing: f64) -> Self {
        Reference { smoothing, ..self }
    }

    /// Logits `[B*T, V]`. With `dropout`, drops what the kernels drop under that key.
    ///
    /// # Errors
    /// When candle fails.
    pub fn logits(&self, gpt: &Transformer, all: Sequences, dropout: Option<u64>) -> Result<Tensor> {
        let layout = &gpt.layout;
        let pass = self.pass(all, dropout)?;
        let mut x = self.embed(gpt, all.ids, &pass)?;
        let x0 = x.clone();
        for (i, block) in layout.blocks.iter().enumerate() {
            if let Some(mix) = &block.mix {
                let mix = self.at(mix);
                x = (x.broadcast_mul(&mix.narrow(0, 0, 1)?)? + x0.broadcast_mul(&mix.narrow(0, 1, 1)?)?)?;
            }
            x = self.sublayer(&pass, 3 * i + 2, &block.attn_norm, x, |x| {
                self.attention(block, x, &pass, 3 * i + 1)
            })?;
            x = self.sublayer(&pass, 3 * i + 3, &block.mlp_norm, x, |x| self.feed_forward(block, x))?;
        }
        let mut logits = self.norm(&layout.norm, &x)?.matmul(&self.at(&layout.head).t()?)?;
        if let Some(bias) = &layout.head_bias {
            logits = logits.broadcast_add(self.at(bias))?;
        }
        match self.config.logit_cap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    /// The sum of losses in nats, a scalar.
    ///
    /// # Errors
    /// When candle fails.
    pub fn loss(&self, gpt: &Transformer, all: Sequences, dropout: Option<u64>) -> Result<Tensor> {
        let logits = self.logits(gpt, all, dropout)?;
        let n = all.targets.len();
        let mut each = self.cross_entropy(&logits, all.targets)?;
        if let Some(soft) = all.soft {
            let (share, t) = (f64::from(soft.share), f64::from(soft.temperature));
            let divergence = self.divergence(&(logits / t)?, soft)?;
            each = ((each * (1.0 - share))? + (divergence * (share * t * t))?)?;
        }
        let weight = |i: usize| all.weights.map_or(1.0, |weights| weights[i]);
        let weight = |i: usize| if all.targets[i] == IGNORE { 0.0 } else { weight(i) };
        let weights: Vec<f32> = (0..n).map(weight).collect();
        (each * Tensor::from_vec(weights, n, &self.device)?)?.sum_all()
    }

    /// Of each row of logits with its target, `[N]`; of rows whose target doesn't count, anything.
    fn cross_entropy(&self, logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let logits = log_softmax(logits, D::Minus1)?;
        let targets: Vec<u32> = targets.iter().map(|t| if *t == IGNORE { 0 } else { *t }).collect();
        let n = targets.len();
        let own = logits.gather(&Tensor::from_vec(targets, (n, 1), &self.device)?, 1)?.squeeze(1)?;
        let any = logits.mean(D::Minus1)?;
        ((own * (1.0 - self.smoothing))? + (any * self.smoothing)?)?.neg()
    }

    /// KL of each row of soft targets with logits that are divided by the temperature, `[N]`.
    fn divergence(&self, logits: &Tensor, soft: Soft) -> Result<Tensor> {
        let (n, v) = logits.dims2()?;
        let k = soft.k;
        let named = Tensor::from_slice(soft.ids, (n, k), &self.device)?;
        let logits = log_softmax(logits, D::Minus1)?;
        // `p ln p - p ln q`, of which the first is 0 where p is.
        let entropy = |p: &[f32]| p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f32>();
        let p = Tensor::from_slice(soft.probabilities, (n, k), &self.device)?;
        let own = (p * logits.gather(&named, 1)?)?.sum(D::Minus1)?;
        let entropies: Vec<f32> = soft.probabilities.chunks(k).map(entropy).collect();
        let divergence = (Tensor::from_vec(entropies, n, &self.device)? - own)?;
        if k == v {
            return Ok(divergence);
        }
        let mut hidden = vec![0f32; n * v];
        for (row, ids) in hidden.chunks_mut(v).zip(soft.ids.chunks(k)) {
            ids.iter().for_each(|id| row[*id as usize] = f32::NEG_INFINITY);
        }
        let others = (logits + Tensor::from_vec(hidden, (n, v), &self.device)?)?.log_sum_exp(D::Minus1)?;
        let rest: Vec<f32> =
            soft.probabilities.chunks(k).map(|p| (1.0 - p.iter().sum::<f32>()).max(0.0)).collect();
        let entropies: Vec<f32> = rest.iter().map(|p| entropy(&[*p])).collect();
        let rest = (Tensor::from_vec(rest, n, &self.device)? * others)?;
        divergence + (Tensor::from_vec(entropies, n, &self.device)? - rest)?
    }

    /// The loss and its gradient, laid out like the weights.
    ///
    /// # Errors
    /// When candle fails.
    pub fn gradient(
        &self,
        gpt: &Transformer,
        all: Sequences,
        dropout: Option<u64>,
    ) -> Result<(f64, Vec<f32>)> {
        let loss = self.loss(gpt, all, dropout)?;
        let gradients = loss.backward()?;
        let mut flat = Vec::with_capacity(gpt.weights.len());
        for var in &self.vars {
            match gradients.get(var) {
                Some(g) => flat.extend(g.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?),
                None => candle_core::bail!("a parameter without a gradient"),
            }
        }
        Ok((f64::from(loss.to_scalar::<f32>()?), flat))
    }

    fn at(&self, range: &Range<usize>) -> &Tensor {
        let i = self.starts.binary_search(&range.start).expect("the start of a parameter");
        self.vars[i].as_tensor()
    }

    fn pass(&self, all: Sequences, dropout: Option<u64>) -> Result<Pass> {
        let t = all.length;
        let ahead = |i: usize| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..t * t).map(ahead).collect::<Vec<f32>>(), (t, t), &self.device)?;
        let rotary = self.config.position == Position::Rotary;
        let rotation = if rotary { Some(self.rotation(t)?) } else { None };
        Ok(Pass { sequences: all.ids.len() / t, length: t, dropout, rotation, mask })
    }

    /// What enters the first block, `[B*T, C]`.
    fn embed(&self, gpt: &Transformer, ids: &[u32], pass: &Pass) -> Result<Tensor> {
        let (b, t, c) = (pass.sequences, pass.length, self.config.d_model);
        let ids = Tensor::from_slice(ids, b * t, &self.device)?;
        let mut x = self.at(&gpt.layout.tokens).index_select(&ids, 0)?;
        if self.config.embed_scale {
            x = (x * (c as f64).sqrt())?;
        }
        let positions = match &gpt.layout.positions {
            Some(learned) => Some(self.at(learned).narrow(0, 0, t)?),
            None if self.config.position == Position::Sinusoidal => Some(self.sinusoid(t)?),
            None => None,
        };
        if let Some(positions) = positions {
            x = x.reshape((b, t, c))?.broadcast_add(&positions)?.reshape((b * t, c))?;
        }
        if self.config.embed_norm {
            x = self.norm(&gpt.layout.embed_norm, &x)?;
        }
        self.drop(pass.dropout, 0, x)
    }

    /// Adds to `x` what `f` makes of it, and normalizes before or after that.
    fn sublayer(
        &self,
        pass: &Pass,
        site: usize,
        norm: &NormLayout,
        x: Tensor,
        f: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.config.placement {
            Placement::Pre => &x + self.drop(pass.dropout, site, f(&self.norm(norm, &x)?)?)?,
            Placement::Post => self.norm(norm, &(&x + self.drop(pass.dropout, site, f(&x)?)?)?),
        }
    }

    fn attention(&self, block: &BlockLayout, x: &Tensor, pass: &Pass, site: usize) -> Result<Tensor> {
        let Config { n_head, n_kv_head, d_head, .. } = self.config;
        let (b, t) = (pass.sequences, pass.length);
        let qkv = self.linear(&block.qkv, x)?.reshape((b, t, n_head + 2 * n_kv_head, d_head))?;
        // `[B, heads, T, D]`
        let heads = |from: usize, n: usize| qkv.narrow(2, from, n)?.transpose(1, 2)?.contiguous();
        let q = self.query_or_key(&block.q_norm, heads(0, n_head)?, pass)?;
        let k = self.query_or_key(&block.k_norm, heads(n_head, n_kv_head)?, pass)?;
        let v = heads(n_head + n_kv_head, n_kv_head)?;
        let (k, v) = (self.shared(k)?, self.shared(v)?);
        let scores = (q.matmul(&k.t()?)? / (d_head as f64).sqrt())?.broadcast_add(&pass.mask)?;
        let weights = self.drop(pass.dropout, site, softmax(&scores, D::Minus1)?)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((b * t, n_head * d_head))?;
        self.linear(&block.attn_proj, &mixed)
    }

    /// Normalized and rotated, as far as the architecture does that.
    fn query_or_key(&self, norm: &NormLayout, mut x: Tensor, pass: &Pass) -> Result<Tensor> {
        if self.config.qk_norm {
            x = self.normalized(Norm::RmsNorm, norm, &x)?;
        }
        let Some((cos, sin)) = &pass.rotation else { return Ok(x) };
        let half = self.config.d_head / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned = |a: &Tensor, b: &Tensor| a.broadcast_mul(cos)? + b.broadcast_mul(sin)?;
        Tensor::cat(&[turned(&a, &b.neg()?)?, turned(&b, &a)?], D::Minus1)
    }

    /// Each head of keys or values once for each query head that reads it.
    fn shared(&self, x: Tensor) -> Result<Tensor> {
        let Config { n_head, n_kv_head, d_head, .. } = self.config;
        let (b, _, t, _) = x.dims4()?;
        let each = x.unsqueeze(2)?.broadcast_as((b, n_kv_head, n_head / n_kv_head, t, d_head))?;
        each.contiguous()?.reshape((b, n_head, t, d_head))
    }

    fn feed_forward(&self, block: &BlockLayout, x: &Tensor) -> Result<Tensor> {
        let hidden = self.linear(&block.up, x)?;
        let f = self.config.d_ff;
        let hidden = if self.config.gated {
            (self.activation(&hidden.narrow(1, 0, f)?)? * hidden.narrow(1, f, f)?)?
        } else {
            self.activation(&hidden)?
        };
        self.linear(&block.down, &hidden)
    }

    fn activation(&self, x: &Tensor) -> Result<Tensor> {
        match self.config.activation {
            Activation::GeluTanh => x.gelu(),
            Activation::Gelu => x.gelu_erf(),
            Activation::Relu2 => x.relu()?.sqr(),
            Activation::Silu => x.silu(),
        }
    }

    fn norm(&self, layout: &NormLayout, x: &Tensor) -> Result<Tensor> {
        self.normalized(self.config.norm, layout, x)
    }

    fn normalized(&self, kind: Norm, layout: &NormLayout, x: &Tensor) -> Result<Tensor> {
        let centred = match kind {
            Norm::LayerNorm => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            Norm::RmsNorm => x.clone(),
        };
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let mut y = centred.broadcast_div(&(variance + self.config.norm_eps)?.sqrt()?)?;
        if let Some(weight) = &layout.weight {
            y = y.broadcast_mul(self.at(weight))?;
        }
        match &layout.bias {
            Some(bias) => y.broadcast_add(self.at(bias)),
            None => Ok(y),
        }
    }

    fn linear(&self, layout: &LinearLayout, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(self.at(&layout.weight))?;
        match &layout.bias {
            Some(bias) => y.broadcast_add(self.at(bias)),
            None => Ok(y),
        }
    }

    fn drop(&self, key: Option<u64>, site: usize, x: Tensor) -> Result<Tensor> {
        let dropout = key.map(|key| dropout_at(self.config.dropout, key, site));
        let Some(dropout) = dropout.filter(|d| !d.is_none()) else { return Ok(x) };
        let columns = x.dim(D::Minus1)?;
        let factor = |i: usize| {
            if dropout.keeps(i / columns, i % columns, columns) { dropout.scale() } else { 0.0 }
        };
        let mask: Vec<f32> = (0..x.elem_count()).map(factor).collect();
        x.mul(&Tensor::from_vec(mask, x.shape(), &self.device)?)
    }

    /// Vaswani et al.'s positions, `[T, C]`.
    fn sinusoid(&self, t: usize) -> Result<Tensor> {
        let c = self.config.d_model;
        let at = |i: usize| {
            let (position, column) = (i / c, i % c);
            let frequency = libm::exp(-((column - column % 2) as f64) * libm::log(10_000.0) / c as f64);
            let angle = position as f64 * frequency;
            (if column.is_multiple_of(2) { libm::sin(angle) } else { libm::cos(angle) }) as f32
        };
        Tensor::from_vec((0..t * c).map(at).collect::<Vec<f32>>(), (t, c), &self.device)
    }

    /// Cosines and sines of each position's rotation, `[T, D/2]`, times YaRN's attention factor.
    fn rotation(&self, t: usize) -> Result<(Tensor, Tensor)> {
        let frequencies = frequencies(&self.config);
        let factor = self.config.rope_scaling.map_or(1.0, |yarn| yarn.attention_factor());
        let table = |f: fn(f64) -> f64| {
            let row = |p: usize| frequencies.iter().map(move |w| (factor * f(p as f64 * w)) as f32);
            let values: Vec<f32> = (0..t).flat_map(row).collect();
            Tensor::from_vec(values, (t, frequencies.len()), &self.device)
        };
        Ok((table(libm::cos)?, table(libm::sin)?))
    }
}

/// How far each pair of a head's numbers turns from one position to the next, in radians.
fn frequencies(config: &Config) -> Vec<f64> {
    let (d, base) = (config.d_head as f64, config.rope_base);
    let plain = (0..config.d_head / 2).map(|i| libm::pow(base, -2.0 * i as f64 / d));
    let Some(yarn) = config.rope_scaling else { return plain.collect() };
    // The pair that turns `n` times over the sequences of pretraining.
    let pair = |n: f64| d * libm::log(yarn.original_seq_len as f64 / (n * TAU)) / (2.0 * libm::log(base));
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(d - 1.0);
    let width = if low == high { 0.001 } else { high - low };
    // Pairs below `low` stay, those above `high` turn slower, and those between are in between.
    let scaled = |(i, w): (usize, f64)| {
        let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
        w * (1.0 - ramp) + w / yarn.factor * ramp
    };
    plain.enumerate().map(scaled).collect()
}
