//! The model once more, in candle's own operations and with its autograd: the plain twin that the kernels
//! are tested against, and the way onto a GPU, where those kernels don't run (a build of candle with
//! CUDA or Metal, and its device here).
//!
//! It is written to be read, not to be fast.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};

use super::executor::Sequences;
use super::layout::{LinearLayout, NormLayout};
use super::transformer::Transformer;
use super::{Config, dropout_at};
use crate::kernel::IGNORE;

/// A copy of a model's numbers as candle's variables.
pub struct Reference {
    config: Config,
    /// In the order of [`super::Layout`]'s parameters.
    vars: Vec<Var>,
    /// Where each parameter begins, to find it again.
    starts: Vec<usize>,
    device: Device,
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
        })
    }

    fn at(&self, start: usize) -> &Tensor {
        let i = self.starts.binary_search(&start).expect("the start of a parameter");
        self.vars[i].as_tensor()
    }

    /// Logits `[B*T, V]`. With `dropout`, drops what the kernels drop under that key.
    ///
    /// # Errors
    /// When candle fails.
    pub fn logits(&self, gpt: &Transformer, all: Sequences, dropout: Option<u64>) -> Result<Tensor> {
        let (t, c) = (all.length, self.config.d_model);
        let b = all.ids.len() / t;
        let ids = Tensor::from_slice(all.ids, b * t, &self.device)?;
        let wte = self.at(gpt.layout.tokens.start);
        let positions = self.at(gpt.layout.positions.clone().unwrap().start).narrow(0, 0, t)?;
        let x = wte.index_select(&ids, 0)?.reshape((b, t, c))?.broadcast_add(&positions)?;
        let mut x = self.drop(dropout, 0, x.reshape((b * t, c))?)?;
        for (i, block) in gpt.layout.blocks.iter().enumerate() {
            let attended =
                self.attention(block, &self.norm(&block.attn_norm, &x)?, (b, t), dropout, 3 * i + 1)?;
            x = (x + self.drop(dropout, 3 * i + 2, attended)?)?;
            let hidden = self.linear(&block.up, &self.norm(&block.mlp_norm, &x)?)?.gelu()?;
            x = (x + self.drop(dropout, 3 * i + 3, self.linear(&block.down, &hidden)?)?)?;
        }
        self.norm(&gpt.layout.norm, &x)?.matmul(&wte.t()?)
    }

    /// The sum of cross-entropies in nats, a scalar.
    ///
    /// # Errors
    /// When candle fails.
    pub fn loss(&self, gpt: &Transformer, all: Sequences, dropout: Option<u64>) -> Result<Tensor> {
        let logits = log_softmax(&self.logits(gpt, all, dropout)?, D::Minus1)?;
        let counts: Vec<f32> = all.targets.iter().map(|t| f32::from(*t != IGNORE)).collect();
        let targets: Vec<u32> = all.targets.iter().map(|t| if *t == IGNORE { 0 } else { *t }).collect();
        let n = targets.len();
        let own = logits.gather(&Tensor::from_vec(targets, (n, 1), &self.device)?, 1)?.squeeze(1)?;
        (own * Tensor::from_vec(counts, n, &self.device)?)?.sum_all()?.neg()
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

    fn norm(&self, pair: &NormLayout, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
        normed
            .broadcast_mul(self.at(pair.weight.as_ref().unwrap().start))?
            .broadcast_add(self.at(pair.bias.as_ref().unwrap().start))
    }

    fn linear(&self, pair: &LinearLayout, x: &Tensor) -> Result<Tensor> {
        x.matmul(self.at(pair.weight.start))?.broadcast_add(self.at(pair.bias.as_ref().unwrap().start))
    }

    fn attention(
        &self,
        block: &super::layout::BlockLayout,
        x: &Tensor,
        (b, t): (usize, usize),
        dropout: Option<u64>,
        site: usize,
    ) -> Result<Tensor> {
        let (c, h) = (self.config.d_model, self.config.n_head);
        let qkv = self.linear(&block.qkv, x)?.reshape((b, t, 3, h, c / h))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let ahead = |i: usize| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..t * t).map(ahead).collect::<Vec<f32>>(), (t, t), &self.device)?;
        let scores = (q.matmul(&k.t()?)? / ((c / h) as f64).sqrt())?.broadcast_add(&mask)?;
        let weights = self.drop(dropout, site, softmax(&scores, D::Minus1)?)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((b * t, c))?;
        self.linear(&block.attn_proj, &mixed)
    }
}
