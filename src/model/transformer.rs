//! A model: its architecture and its weights.

use std::collections::BTreeMap;
use std::ops::Range;

use super::config::Position;
use super::layout::{Begin, BlockLayout};
use super::{Config, Layout, Lora, Parameter};
use crate::base::{Error, Result, Rng};
use crate::kernel::loss::Output;
use crate::kernel::matmul::to_bf16_tile;
use crate::kernel::quantized::{Columns, Matrix};
use crate::kernel::rotary::{self, Rope};
use crate::kernel::weight::Weight;
use crate::kernel::{Buffer, Dtype, Number, embedding, to_bf16};

/// A model: its architecture and its parameters.
pub struct Transformer {
    pub config: Config,
    pub layout: Layout,
    /// All parameters, laid out as [`Layout`] says. Those of quantized matrices are 0 here, see
    /// [`Transformer::is_quantized`].
    pub weights: Buffer,
    /// Its adapters, which are then all that is trained.
    pub lora: Option<Lora>,
    /// What products with its matrices multiply.
    dtype: Dtype,
    /// The weights as bf16, laid out alike, when all matrices were rounded to that.
    bf16: Option<Vec<u16>>,
    /// Matrices that are quantized, wholly or in some columns, by the first place of their range.
    pub(super) quantized: BTreeMap<usize, Matrix>,
    /// Rotary angles of all positions.
    pub(super) rope: Option<Rope>,
    /// Sines and cosines of all positions, `[T, C]`.
    sinusoid: Option<Buffer>,
}

impl Transformer {
    /// The same model with matrices of `dtype`: rounded to bf16, few rows are computed with half of the
    /// traffic; in `bf16_tile`, what a [`super::Decoder`] multiplies with them is rounded, too, and so is what
    /// attention multiplies, as in training in that dtype. A quantized model stays as it is.
    pub fn in_dtype(mut self, dtype: Dtype) -> Self {
        if dtype == Dtype::F32 || self.is_quantized() {
            return self;
        }
        let nearest = if dtype == Dtype::Bf16Tile { to_bf16_tile } else { to_bf16 };
        for p in self.layout.parameters.iter().filter(|p| p.shape.len() == 2) {
            self.weights[p.range.clone()].iter_mut().for_each(|x| *x = nearest(*x).widened());
        }
        self.dtype = dtype;
        self.bf16 = Some(self.weights.iter().map(|x| to_bf16(*x)).collect());
        self
    }

    /// Bytes of memory that the weights of a model of this shape take in `dtype`, where it is not quantized: each
    /// stands there as f32, and beside that as bf16 for products that read it so.
    pub fn memory(config: &Config, dtype: Dtype) -> u64 {
        config.parameters() as u64 * if dtype == Dtype::F32 { 4 } else { 6 }
    }

    /// Of a number that is not quantized, as products read it.
    pub(super) fn bytes_of_number(&self, p: &Parameter) -> usize {
        if self.bf16.is_some() && p.shape.len() == 2 { 2 } else { 4 }
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What a team multiplies that computes with this model: matrices in bf16 are multiplied with f32,
    /// those in `bf16_tile` with numbers rounded alike.
    pub fn products(&self) -> Dtype {
        if self.dtype == Dtype::Bf16Tile { Dtype::Bf16Tile } else { Dtype::F32 }
    }

    /// A new model, each tensor drawn from a stream of `seed` and its own name.
    pub fn fresh(config: &Config, seed: u64) -> Self {
        let mut model = Self::zeros(config);
        for (p, begin) in model.layout.parameters.iter().zip(&model.layout.begin) {
            let values = &mut model.weights[p.range.clone()];
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
        model
    }

    /// All numbers 0, to be read from a file.
    pub(super) fn zeros(config: &Config) -> Self {
        let layout = Layout::new(config);
        let weights = Buffer::untouched(layout.len);
        let (rope, sinusoid) = position_tables(config);
        let (lora, dtype, bf16, quantized) = (None, Dtype::F32, None, BTreeMap::new());
        Transformer { config: config.clone(), layout, weights, lora, dtype, bf16, quantized, rope, sinusoid }
    }

    /// The same weights for sequences of another length, with rotary frequencies scaled for it.
    ///
    /// # Errors
    /// When the length is another than that of learned positions, or the scaling doesn't fit.
    pub fn with_positions(mut self, seq_len: usize, rope_scaling: Option<super::Yarn>) -> Result<Self> {
        if self.config.position == Position::Learned && seq_len != self.config.seq_len {
            let what =
                format!("`seq_len: {seq_len}`: the model has learned {} positions", self.config.seq_len);
            return Err(Error::input(what).help("leave `seq_len` away"));
        }
        let config = Config { seq_len, rope_scaling, ..self.config };
        config.validate().map_err(Error::invalid)?;
        (self.rope, self.sinusoid) = position_tables(&config);
        self.config = config;
        Ok(self)
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.layout.parameters
    }

    /// The parameters that training changes, by their ranges in [`Transformer::trained`].
    pub fn trained_parameters(&self) -> Vec<Parameter> {
        let trained = &self.layout.trained;
        let inside = self.parameters().iter().filter(|p| self.layout.is_trained(&p.range));
        let shifted = |p: &Parameter| Parameter {
            range: p.range.start - trained.start..p.range.end - trained.start,
            ..p.clone()
        };
        inside.map(shifted).collect()
    }

    /// The weights that training changes. Gradients and all that an optimizer keeps are laid out like these.
    pub fn trained(&self) -> &[f32] {
        &self.weights[self.layout.trained.clone()]
    }

    pub fn trained_mut(&mut self) -> &mut [f32] {
        &mut self.weights[self.layout.trained.clone()]
    }

    /// A matrix as products read it.
    pub(super) fn weight(&self, range: &Range<usize>) -> Weight<'_> {
        let weight = &self.weights[range.clone()];
        if !self.quantized.is_empty()
            && let Some(matrix) = self.quantized.get(&range.start)
        {
            return Weight::Quantized(Columns::all(matrix, weight));
        }
        match &self.bf16 {
            Some(bf16) => Weight::Bf16 { bits: &bf16[range.clone()], widened: weight },
            None => Weight::F32(weight),
        }
    }

    /// What token embeddings are multiplied by.
    pub(super) fn embed_scale(&self) -> f32 {
        if self.config.embed_scale { (self.config.d_model as f32).sqrt() } else { 1.0 }
    }

    /// What is added to token embeddings, `[T, C]`.
    pub(super) fn positions(&self) -> Option<&[f32]> {
        let learned = self.layout.positions.clone().map(|range| &self.weights[range]);
        learned.or(self.sinusoid.as_deref())
    }

    /// The weights of the residual stream and of the embedding at the beginning of a block.
    pub(super) fn mix(&self, block: &BlockLayout) -> Option<[f32; 2]> {
        let range = block.mix.clone()?;
        Some([self.weights[range.start], self.weights[range.start + 1]])
    }

    /// The output projection.
    pub(super) fn output(&self) -> Output<'_> {
        Output {
            weight: self.weight(&self.layout.head),
            bias: self.layout.head_bias.clone().map(|range| &self.weights[range]),
            cap: self.config.logit_cap.map(|cap| cap as f32),
            c: self.config.d_model,
        }
    }
}

/// What positions that are not learned are computed from.
fn position_tables(config: &Config) -> (Option<Rope>, Option<Buffer>) {
    let (t, c, d) = (config.seq_len, config.d_model, config.d_head);
    match config.position {
        Position::Rotary => (Some(Rope::new(t, d, config.rope_base, config.rope_scaling.map(yarn))), None),
        Position::Sinusoidal => (None, Some(embedding::sinusoid(t, c))),
        Position::Learned | Position::None => (None, None),
    }
}

fn yarn(yarn: super::Yarn) -> rotary::Yarn {
    rotary::Yarn {
        factor: yarn.factor,
        original_length: yarn.original_seq_len,
        beta_fast: yarn.beta_fast,
        beta_slow: yarn.beta_slow,
        attention_factor: yarn.attention_factor(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gpt2;

    #[test]
    fn the_memory_that_is_told_is_that_which_is_taken() {
        let config = gpt2(50, 16, 2, 2, 8);
        for dtype in Dtype::ALL {
            let model = Transformer::fresh(&config, 1).in_dtype(dtype);
            let taken = 4 * model.weights.len() + 2 * model.bf16.as_ref().map_or(0, Vec::len);
            assert_eq!(Transformer::memory(&config, dtype), taken as u64, "{dtype:?}");
        }
    }
}
