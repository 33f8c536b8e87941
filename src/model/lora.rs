//! Low-rank adapters (LoRA; Hu et al., 2021): `y = x·W + b + alpha/rank · dropout(x)·A·B`, of which only A and B
//! are trained. They lie after all other parameters; a merged model has none, and computes the same.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::layout::{AdapterLayout, BlockLayout, LinearLayout};
use super::{Config, Layout, Parameter, Role, Transformer};
use crate::base::{Error, Invalid, Result, Rng, suggest};
use crate::kernel::matmul::{Start, View, matmul};
use crate::kernel::{Buffer, Team};

/// A matrix of each block that can have an adapter.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Queries, of attention.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The output projection of attention.
    O,
    /// What the activation is applied to, of a gated feed-forward part.
    Gate,
    /// The first linear layer of the feed-forward part, or what its gate multiplies.
    Up,
    /// The second linear layer of the feed-forward part.
    Down,
}

impl Target {
    pub const ALL: [Target; 7] =
        [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    pub fn name(self) -> &'static str {
        ["q", "k", "v", "o", "gate", "up", "down"][self as usize]
    }

    /// All that an architecture has.
    pub fn of(config: &Config) -> Vec<Target> {
        Self::ALL.into_iter().filter(|target| config.gated || *target != Target::Gate).collect()
    }
}

/// What adapters a model has.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Columns of A and rows of B.
    pub rank: usize,
    /// What an adapter computes is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// The share of an adapter's inputs that is dropped while training.
    pub dropout: f64,
    /// In the order of [`Target::ALL`], each once.
    pub targets: Vec<Target>,
}

impl Lora {
    /// `alpha / rank`
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// The field that is out of range, and why.
    ///
    /// # Errors
    /// When one is.
    pub fn validate(&self) -> Result<(), Invalid> {
        let Lora { rank, alpha, dropout, targets } = self;
        if *rank == 0 || *rank > 1 << 16 {
            return Err(Invalid::new("rank", format!("must be 1 to 65,536, found {rank}")));
        }
        if !(*alpha > 0.0 && alpha.is_finite()) {
            return Err(Invalid::new("alpha", format!("must be above 0, found {alpha}")));
        }
        if !(0.0..1.0).contains(dropout) {
            return Err(Invalid::new("dropout", format!("must be at least 0 and below 1, found {dropout}")));
        }
        match targets.iter().enumerate().find(|(i, target)| targets[..*i].contains(target)) {
            Some((_, twice)) => Err(Invalid::new("targets", format!("`{}` stands twice", twice.name()))),
            None if targets.is_empty() => Err(Invalid::new("targets", "is empty: nothing would be trained")),
            None => Ok(()),
        }
    }

    /// Whether a model of this architecture has what the adapters are for.
    ///
    /// # Errors
    /// When it lacks a target.
    pub fn fits(&self, config: &Config) -> Result<(), Invalid> {
        self.validate()?;
        let has = Target::of(config);
        let Some(lacking) = self.targets.iter().find(|target| !has.contains(target)) else { return Ok(()) };
        let why = format!(
            "the model has no `{}`, only {}",
            lacking.name(),
            suggest::list(has.iter().map(|target| target.name()))
        );
        Err(Invalid::new("targets", why))
    }
}

/// The linear layers of a block, with what each of their matrices is.
pub(super) fn linears(config: &Config, block: &BlockLayout) -> [(LinearLayout, &'static [Target]); 4] {
    let up: &[Target] = if config.gated { &[Target::Gate, Target::Up] } else { &[Target::Up] };
    [
        (block.qkv.clone(), &[Target::Q, Target::K, Target::V]),
        (block.attn_proj.clone(), &[Target::O]),
        (block.up.clone(), up),
        (block.down.clone(), &[Target::Down]),
    ]
}

impl Layout {
    /// The same with adapters after all other parameters; only the adapters are trained.
    pub(super) fn with_adapters(mut self, config: &Config, lora: &Lora) -> Self {
        let base = self.len;
        for i in 0..self.blocks.len() {
            let linears = linears(config, &self.blocks[i]);
            // After the sites of the blocks, see `DropoutSites`.
            let site = 3 * config.n_layer + 1 + 4 * i;
            let adapters = linears.map(|(linear, targets)| self.adapters_of(&linear, targets, lora));
            let block = &mut self.blocks[i];
            let linears = [&mut block.qkv, &mut block.attn_proj, &mut block.up, &mut block.down];
            for (j, (linear, adapters)) in linears.into_iter().zip(adapters).enumerate() {
                linear.adapters = adapters.map(|adapters| AdapterLayout { site: site + j, ..adapters });
            }
        }
        self.trained = base..self.len;
        self
    }

    /// Appends the adapters of a linear layer whose matrices are `all`, for those that are a target.
    fn adapters_of(&mut self, linear: &LinearLayout, all: &[Target], lora: &Lora) -> Option<AdapterLayout> {
        let weight = self.parameters.iter().find(|p| p.range == linear.weight);
        let weight = weight.expect("a linear layer has a weight").clone();
        let chosen = all.iter().zip(&weight.columns).filter(|(target, _)| lora.targets.contains(target));
        let (targets, parts): (Vec<Target>, Vec<Range<usize>>) =
            chosen.map(|(target, columns)| (*target, columns.clone())).unzip();
        if targets.is_empty() {
            return None;
        }
        let module = weight.name.strip_suffix(".weight").expect("the name of a weight").to_string();
        let ranks = vec![lora.rank; parts.len()];
        let widths: Vec<usize> = parts.iter().map(Range::len).collect();
        let a = self.append(format!("{module}.lora_A.weight"), weight.shape[0], &ranks);
        let b = self.append(format!("{module}.lora_B.weight"), lora.rank, &widths);
        Some(AdapterLayout { a, b, parts, targets, site: 0 })
    }

    /// Appends matrices of `rows` rows side by side.
    fn append(&mut self, name: String, rows: usize, widths: &[usize]) -> Range<usize> {
        let ends = widths.iter().scan(0, |end, width| {
            *end += width;
            Some(*end - width..*end)
        });
        let (columns, width) = (ends.collect(), widths.iter().sum());
        let range = self.len..self.len + rows * width;
        self.len = range.end;
        let shape = vec![rows, width];
        self.parameters.push(Parameter { name, shape, range: range.clone(), role: Role::Matrix, columns });
        range
    }
}

impl Transformer {
    /// The same model with new adapters, of which it trains nothing else: each A uniform within
    /// `± 1/sqrt(in)` (PyTorch's `kaiming_uniform_` with a = √5), from a stream of `seed` and its own name; each
    /// B is 0, so that they change nothing yet.
    ///
    /// # Errors
    /// When the model lacks a target, or a field is out of range.
    ///
    /// # Panics
    /// When it has adapters.
    pub fn with_adapters(self, lora: &Lora, seed: u64) -> Result<Self> {
        let mut model = self.with_zero_adapters(lora)?;
        for block in 0..model.config.n_layer {
            for (linear, _) in linears(&model.config, &model.layout.blocks[block]) {
                if let Some(adapters) = &linear.adapters {
                    model.begin(adapters, lora.rank, seed);
                }
            }
        }
        Ok(model.in_dtype_again())
    }

    /// Adapters whose numbers are all 0, to be read from a file. A quantized model is dequantized: adapters are
    /// added to, and merged into, f32.
    ///
    /// # Errors
    /// As [`Transformer::with_adapters`].
    pub(super) fn with_zero_adapters(self, lora: &Lora) -> Result<Self> {
        assert!(self.lora.is_none(), "a model with adapters");
        let mut model = self.dequantized();
        lora.fits(&model.config).map_err(|invalid| Error::invalid(invalid).context("adapters (LoRA)"))?;
        model.layout = model.layout.with_adapters(&model.config, lora);
        let mut weights = Buffer::new(model.layout.len);
        weights[..model.weights.len()].copy_from_slice(&model.weights);
        (model.weights, model.lora) = (weights, Some(lora.clone()));
        Ok(model)
    }

    fn begin(&mut self, adapters: &AdapterLayout, rank: usize, seed: u64) {
        let name = self.parameters().iter().find(|p| p.range == adapters.a).map(|p| p.name.clone());
        let (name, width) = (name.expect("adapters are parameters"), rank * adapters.parts.len());
        let bound = 1.0 / ((adapters.a.len() / width) as f64).sqrt();
        for (i, target) in adapters.targets.iter().enumerate() {
            let mut rng = Rng::new(seed, &format!("init/{name}/{}", target.name()));
            for row in self.weights[adapters.a.clone()].chunks_exact_mut(width) {
                row[i * rank..(i + 1) * rank].fill_with(|| ((2.0 * rng.uniform() - 1.0) * bound) as f32);
            }
        }
    }

    /// The model that computes the same without adapters, all of which is trained: `W += alpha/rank · A·B`.
    pub fn merged(self) -> Self {
        if self.lora.is_some() { self.merged_copy() } else { self }
    }

    /// As [`Transformer::merged`].
    ///
    /// # Panics
    /// When it has no adapters.
    pub fn merged_copy(&self) -> Self {
        let lora = self.lora.as_ref().expect("a model with adapters");
        let mut merged = self.base();
        let team = Team::new(1);
        for block in &self.layout.blocks {
            for (linear, _) in linears(&self.config, block) {
                let Some(adapters) = &linear.adapters else { continue };
                let a: Vec<f32> = self.weights[adapters.a.clone()].iter().map(|x| x * lora.scale()).collect();
                let weight = &mut merged.weights[linear.weight.clone()];
                adapters.merge(&team, &a, &self.weights[adapters.b.clone()], lora.rank, weight, linear.out);
            }
        }
        merged.in_dtype(self.dtype())
    }

    /// The model without its adapters, all of which is trained.
    fn base(&self) -> Self {
        let mut base = Self::zeros(&self.config);
        let len = base.layout.len;
        base.weights.copy_from_slice(&self.weights[..len]);
        base
    }

    /// The weights as bf16 once more, where they are kept as such, after they changed.
    pub(super) fn in_dtype_again(self) -> Self {
        let dtype = self.dtype();
        self.in_dtype(dtype)
    }
}

impl AdapterLayout {
    /// `weight[:, part] += a · b` for each part.
    fn merge(&self, team: &Team, a: &[f32], b: &[f32], rank: usize, weight: &mut [f32], out: usize) {
        let (width, columns) = (rank * self.parts.len(), b.len() / rank);
        let (rows, mut column) = (a.len() / width, 0);
        for (i, part) in self.parts.iter().enumerate() {
            let (a, b) = (View::new(&a[i * rank..], width), View::new(&b[column..], columns));
            matmul(team, (rows, part.len(), rank), a, b, Start::Add, &mut weight[part.start..], out);
            column += part.len();
        }
    }
}
