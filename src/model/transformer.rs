//! A model: its architecture and its weights.

use super::layout::Begin;
use super::{Config, Layout, Parameter};
use crate::base::{Result, Rng};
use crate::kernel::{Buffer, Dtype, Number, Weight, to_bf16};

/// A model: its shape and its numbers.
pub struct Transformer {
    pub config: Config,
    pub layout: Layout,
    /// Laid out as [`Layout`] says.
    pub weights: Buffer,
    /// The weights as bf16, laid out alike, when all matrices were rounded to that.
    pub(super) halves: Option<Vec<u16>>,
}

impl Transformer {
    /// The same model with matrices of `dtype`: rounded to bf16, few rows are computed with half of the
    /// traffic.
    pub fn in_dtype(mut self, dtype: Dtype) -> Self {
        if dtype == Dtype::F32 {
            return self;
        }
        for p in self.layout.parameters.iter().filter(|p| p.shape.len() == 2) {
            self.weights[p.range.clone()].iter_mut().for_each(|x| *x = to_bf16(*x).widened());
        }
        self.halves = Some(self.weights.iter().map(|x| to_bf16(*x)).collect());
        self
    }

    /// A new model, each tensor drawn from a stream of `seed` and its own name.
    pub fn fresh(config: &Config, seed: u64) -> Self {
        let mut gpt = Self::zeros(config);
        for (p, begin) in gpt.layout.parameters.iter().zip(&gpt.layout.begin) {
            let values = &mut gpt.weights[p.range.clone()];
            match *begin {
                Begin::Fill(value) => values.fill(value),
                Begin::Mix => values.copy_from_slice(&[1.0, 0.0]),
                Begin::Uniform(bound) => {
                    let mut rng = Rng::new(seed, &format!("init/{}", p.name));
                    values.fill_with(|| ((2.0 * rng.uniform() - 1.0) * bound) as f32);
                }
                Begin::Normal(std) => {
                    let mut rng = Rng::new(seed, &format!("init/{}", p.name));
                    values.fill_with(|| (rng.normal() * std) as f32);
                }
            }
        }
        gpt
    }

    /// All numbers 0, to be read from a file.
    pub(super) fn zeros(config: &Config) -> Self {
        let layout = Layout::new(config);
        let len = layout.len;
        Transformer { config: config.clone(), layout, weights: Buffer::new(len), halves: None }
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.layout.parameters
    }

    /// The same model with room for `vocab_size` tokens: each new row is the mean of the old ones, and
    /// a little noise from `seed` so that they can be told apart (Hewitt, 2021).
    ///
    /// # Errors
    /// When `vocab_size` is smaller than what there is.
    pub fn extended(&self, vocab_size: usize, seed: u64) -> Result<Self> {
        let (old, c) = (self.config.vocab_size, self.config.d_model);
        if vocab_size < old {
            let what = format!("a vocabulary of {old} cannot be extended to {vocab_size}");
            return Err(crate::base::Error::bug(what));
        }
        let mut wider = Self::zeros(&Config { vocab_size, ..self.config.clone() });
        let table = &self.weights[self.layout.tokens.clone()];
        wider.weights[..old * c].copy_from_slice(table);
        let rest = self.layout.tokens.end..self.weights.len();
        wider.weights[vocab_size * c..].copy_from_slice(&self.weights[rest]);
        let mut rng = Rng::new(seed, "init/extended/transformer.wte.weight");
        for j in old..vocab_size {
            for i in 0..c {
                let mean = table.iter().skip(i).step_by(c).sum::<f32>() / old as f32;
                wider.weights[j * c + i] = mean + (0.002 * rng.normal()) as f32;
            }
        }
        Ok(wider)
    }
}

impl super::layout::LinearLayout {
    pub fn linear<'a>(&self, all: &'a [f32]) -> crate::kernel::linear::Linear<'a> {
        let bias = self.bias.clone().expect("a bias");
        let weight = Weight::F32(&all[self.weight.clone()]);
        crate::kernel::linear::Linear { weight, bias: Some(&all[bias]), out: self.out }
    }
    pub fn reading<'a>(&self, gpt: &'a Transformer) -> crate::kernel::linear::Linear<'a> {
        let linear = self.linear(&gpt.weights);
        let Some(bits) = gpt.halves.as_deref().map(|all| &all[self.weight.clone()]) else { return linear };
        let weight = Weight::Bf16 { bits, widened: linear.weight.widened() };
        crate::kernel::linear::Linear { weight, ..linear }
    }
}

impl super::layout::NormLayout {
    pub fn norm<'a>(&self, all: &'a [f32]) -> crate::kernel::norm::Norm<'a> {
        let (weight, bias) = (self.weight.clone().expect("a weight"), self.bias.clone().expect("a bias"));
        crate::kernel::norm::Norm {
            kind: crate::kernel::norm::Kind::Layer,
            eps: 1e-5,
            weight: Some(&all[weight]),
            bias: Some(&all[bias]),
        }
    }
}

pub(super) fn mlp(config: &Config) -> crate::kernel::activation::Mlp {
    let activation = crate::kernel::activation::Activation::GeluTanh;
    crate::kernel::activation::Mlp { activation, gated: false, width: config.d_ff }
}
