//! The forward pass.
//!
//! ```text
//! x = wte[ids] + wpe[positions]
//! each block:  x = x + attention(layer_norm(x));  x = x + feed_forward(layer_norm(x))
//! logits = layer_norm(x) · wteᵀ
//! ```

use candle_core::{Device, Result, Tensor, Var};

use super::{Config, ops};
use crate::base::Rng;

/// One learned tensor with the name that it has on disk.
#[derive(Clone)]
pub struct Parameter {
    pub name: String,
    pub var: Var,
}

/// The model. Cloning shares the parameters.
#[derive(Clone)]
pub struct Gpt {
    pub config: Config,
    /// In the order of the constructor, which is the order of everything that is kept per parameter.
    parameters: Vec<Parameter>,
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    ln_f: Norm,
    device: Device,
}

#[derive(Clone)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

/// `x · weight + bias` with `weight: [in, out]`, GPT-2's "Conv1D".
#[derive(Clone)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Clone)]
struct Block {
    ln_1: Norm,
    c_attn: Linear,
    attn_proj: Linear,
    ln_2: Norm,
    c_fc: Linear,
    mlp_proj: Linear,
}

/// Keys and values of the positions already seen, per layer `[B, H, T, D]`.
#[derive(Clone, Default)]
pub struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
}

impl Cache {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Masks drawn from a stream of our own, so that they do not depend on threads or the machine.
pub struct Dropout {
    p: f64,
    rng: Rng,
}

impl Dropout {
    /// `label` must be distinct for each step and part of a batch.
    pub fn new(p: f64, seed: u64, label: &str) -> Self {
        Dropout { p, rng: Rng::new(seed, label) }
    }

    /// Zeroes with probability p, scales the rest by 1/(1-p).
    ///
    /// # Errors
    /// When candle fails.
    pub fn apply(&mut self, x: &Tensor) -> Result<Tensor> {
        if self.p == 0.0 {
            return Ok(x.clone());
        }
        // 16 random bits decide one element: p is met to 1 in 65,536.
        let threshold = (self.p * 65_536.0).round() as u64;
        let keep = (1.0 / (1.0 - self.p)) as f32;
        let n = x.elem_count();
        let mut mask = Vec::with_capacity(n + 3);
        while mask.len() < n {
            let bits = self.rng.next_u64();
            mask.extend((0..4).map(|i| if (bits >> (16 * i)) & 0xffff < threshold { 0.0 } else { keep }));
        }
        mask.truncate(n);
        x.mul(&Tensor::from_vec(mask, x.shape(), x.device())?)
    }
}

fn drop_some(dropout: &mut Option<&mut Dropout>, x: Tensor) -> Result<Tensor> {
    match dropout {
        Some(dropout) => dropout.apply(&x),
        None => Ok(x),
    }
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias)
    }
}

impl Linear {
    /// `[N, in] -> [N, out]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// Makes tensors in a fixed order: freshly drawn, or taken from a file.
pub(super) trait Source {
    fn get(&mut self, name: &str, shape: &[usize], init: Init) -> crate::base::Result<Tensor>;
}

/// GPT-2's initialization.
#[derive(Clone, Copy)]
pub(super) enum Init {
    Zeros,
    Ones,
    Normal(f64),
}

/// Fresh parameters from a seed, each tensor from a stream of its own name.
pub(super) struct Fresh {
    pub seed: u64,
}

impl Source for Fresh {
    fn get(&mut self, name: &str, shape: &[usize], init: Init) -> crate::base::Result<Tensor> {
        let n = shape.iter().product();
        let values: Vec<f32> = match init {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::Normal(std) => {
                let mut rng = Rng::new(self.seed, &format!("init/{name}"));
                (0..n).map(|_| (rng.normal() * std) as f32).collect()
            }
        };
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(super::math)
    }
}

struct Builder<'a> {
    source: &'a mut dyn Source,
    parameters: Vec<Parameter>,
}

impl Builder<'_> {
    fn tensor(&mut self, name: String, shape: &[usize], init: Init) -> crate::base::Result<Tensor> {
        let var = Var::from_tensor(&self.source.get(&name, shape, init)?).map_err(super::math)?;
        let tensor = var.as_tensor().clone();
        self.parameters.push(Parameter { name, var });
        Ok(tensor)
    }

    fn norm(&mut self, name: &str, c: usize) -> crate::base::Result<Norm> {
        let weight = self.tensor(format!("{name}.weight"), &[c], Init::Ones)?;
        Ok(Norm { weight, bias: self.tensor(format!("{name}.bias"), &[c], Init::Zeros)? })
    }

    fn linear(&mut self, name: &str, from: usize, to: usize, std: f64) -> crate::base::Result<Linear> {
        let weight = self.tensor(format!("{name}.weight"), &[from, to], Init::Normal(std))?;
        Ok(Linear { weight, bias: self.tensor(format!("{name}.bias"), &[to], Init::Zeros)? })
    }
}

impl Gpt {
    /// A new model, its parameters drawn from `seed`.
    ///
    /// # Errors
    /// When memory or candle fails.
    pub fn fresh(config: &Config, seed: u64) -> crate::base::Result<Self> {
        Self::build(config, &mut Fresh { seed })
    }

    pub(super) fn build(config: &Config, source: &mut dyn Source) -> crate::base::Result<Self> {
        let (c, f) = (config.d_model, config.d_ff);
        let mut b = Builder { source, parameters: Vec::new() };
        let std = 0.02;
        // Each block adds to the residual stream twice; GPT-2 scales those projections down for depth.
        let residual = std / (2.0 * config.n_layer as f64).sqrt();
        let root = "transformer";
        let wte = b.tensor(format!("{root}.wte.weight"), &[config.vocab_size, c], Init::Normal(std))?;
        let wpe = b.tensor(format!("{root}.wpe.weight"), &[config.seq_len, c], Init::Normal(std))?;
        let mut blocks = Vec::with_capacity(config.n_layer);
        for i in 0..config.n_layer {
            let h = format!("{root}.h.{i}");
            blocks.push(Block {
                ln_1: b.norm(&format!("{h}.ln_1"), c)?,
                c_attn: b.linear(&format!("{h}.attn.c_attn"), c, 3 * c, std)?,
                attn_proj: b.linear(&format!("{h}.attn.c_proj"), c, c, residual)?,
                ln_2: b.norm(&format!("{h}.ln_2"), c)?,
                c_fc: b.linear(&format!("{h}.mlp.c_fc"), c, f, std)?,
                mlp_proj: b.linear(&format!("{h}.mlp.c_proj"), f, c, residual)?,
            });
        }
        let ln_f = b.norm(&format!("{root}.ln_f"), c)?;
        let parameters = b.parameters;
        Ok(Gpt { config: config.clone(), parameters, wte, wpe, blocks, ln_f, device: Device::Cpu })
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// `ids`: `B` rows of equal length `T` ≤ seq_len. Gives logits `[B*T, V]`.
    ///
    /// # Errors
    /// Ids or lengths beyond the configuration.
    pub fn forward(&self, ids: &[&[u32]], mut dropout: Option<&mut Dropout>) -> Result<Tensor> {
        let x = self.hidden(ids, &mut None, &mut dropout)?;
        x.matmul(&self.wte.t()?)
    }

    /// The logits `[V]` of what follows the last of `ids`, whose positions go on from the cache's.
    ///
    /// # Errors
    /// As [`Gpt::forward`], or when the cache has no room for `ids`.
    pub fn next(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let x = self.hidden(&[ids], &mut Some(cache), &mut None)?;
        let last = x.narrow(0, ids.len() - 1, 1)?;
        last.matmul(&self.wte.t()?)?.flatten_all()?.to_vec1::<f32>()
    }

    /// The residual stream after the last norm, `[B*T, C]`.
    fn hidden(
        &self,
        ids: &[&[u32]],
        cache: &mut Option<&mut Cache>,
        dropout: &mut Option<&mut Dropout>,
    ) -> Result<Tensor> {
        let (b, t, c) = (ids.len(), ids[0].len(), self.config.d_model);
        let start = cache.as_ref().map_or(0, |c| c.len);
        if start + t > self.config.seq_len {
            candle_core::bail!("{} positions in a model of {}", start + t, self.config.seq_len);
        }
        let flat: Vec<u32> = ids.iter().flat_map(|row| row.iter().copied()).collect();
        let tokens = self.wte.index_select(&Tensor::from_vec(flat, b * t, &self.device)?, 0)?;
        let positions = self.wpe.narrow(0, start, t)?;
        let x = tokens.reshape((b, t, c))?.broadcast_add(&positions)?.reshape((b * t, c))?;
        let mut x = drop_some(dropout, x)?;
        if let Some(cache) = cache {
            cache.layers.resize(self.blocks.len(), None);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let slot = cache.as_mut().map(|c| &mut c.layers[i]);
            let attended = self.attention(block, &block.ln_1.forward(&x)?, (b, t, start), slot, dropout)?;
            x = (x + drop_some(dropout, attended)?)?;
            let hidden = ops::gelu(&block.c_fc.forward(&block.ln_2.forward(&x)?)?)?;
            x = (x + drop_some(dropout, block.mlp_proj.forward(&hidden)?)?)?;
        }
        if let Some(cache) = cache {
            cache.len += t;
        }
        self.ln_f.forward(&x)
    }

    /// `softmax(Q Kᵀ / sqrt(D)) V` over H heads, no row looking ahead; `x: [B*T, C]` to the same.
    fn attention(
        &self,
        block: &Block,
        x: &Tensor,
        (b, t, start): (usize, usize, usize),
        cache: Option<&mut Option<(Tensor, Tensor)>>,
        dropout: &mut Option<&mut Dropout>,
    ) -> Result<Tensor> {
        let (c, h) = (self.config.d_model, self.config.n_head);
        let qkv = block.c_attn.forward(x)?.reshape((b, t, 3, h, c / h))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (q, mut k, mut v) = (part(0)?, part(1)?, part(2)?);
        if let Some(slot) = cache {
            if let Some((old_k, old_v)) = slot.take() {
                k = Tensor::cat(&[&old_k, &k], 2)?;
                v = Tensor::cat(&[&old_v, &v], 2)?;
            }
            *slot = Some((k.clone(), v.clone()));
        }
        let scale = 1.0 / ((c / h) as f32).sqrt();
        let weights = ops::causal_softmax(&q.matmul(&k.t()?)?, scale, start)?;
        let weights = drop_some(dropout, weights)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((b * t, c))?;
        block.attn_proj.forward(&mixed)
    }
}
