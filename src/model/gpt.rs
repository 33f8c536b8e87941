//! The learned numbers: all of them end to end in one memory, and what lies where.

use std::ops::Range;

use super::Config;
use crate::base::{Result, Rng};
use crate::kernel::linear::Linear;
use crate::kernel::norm::Norm;
use crate::kernel::{Buffer, Dtype, Number, half};

/// One learned tensor: its name on disk, its shape, its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// A weight and the bias behind it.
#[derive(Debug, Clone)]
pub struct Pair {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

impl Pair {
    /// (weight, bias)
    pub fn of<'a>(&self, all: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        (&all[self.weight.clone()], &all[self.bias.clone()])
    }

    /// As a layer norm.
    pub fn norm<'a>(&self, all: &'a [f32]) -> Norm<'a> {
        let (weight, bias) = self.of(all);
        Norm { weight, bias }
    }

    /// As a linear layer.
    pub fn linear<'a>(&self, all: &'a [f32]) -> Linear<'a> {
        let (weight, bias) = self.of(all);
        Linear { weight, bias, halves: None }
    }

    /// As a linear layer to read with: from bf16 where the model has that.
    pub fn reading<'a>(&self, gpt: &'a Gpt) -> Linear<'a> {
        let halves = gpt.halves.as_deref().map(|all| &all[self.weight.clone()]);
        Linear { halves, ..self.linear(&gpt.weights) }
    }
}

#[derive(Debug, Clone)]
pub struct Block {
    pub ln_1: Pair,
    pub c_attn: Pair,
    pub attn_proj: Pair,
    pub ln_2: Pair,
    pub c_fc: Pair,
    pub mlp_proj: Pair,
}

/// What lies where. The order is that of everything that is kept per parameter.
#[derive(Debug, Clone)]
pub struct Layout {
    pub parameters: Vec<Parameter>,
    pub wte: Range<usize>,
    pub wpe: Range<usize>,
    pub blocks: Vec<Block>,
    pub ln_f: Pair,
    /// GPT-2's initialization, one a parameter.
    init: Vec<Init>,
}

/// How a tensor begins.
#[derive(Debug, Clone, Copy)]
enum Init {
    Zeros,
    Ones,
    Normal(f64),
}

#[derive(Default)]
struct Builder {
    parameters: Vec<Parameter>,
    init: Vec<Init>,
    len: usize,
}

impl Builder {
    fn tensor(&mut self, name: String, shape: &[usize], init: Init) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        self.parameters.push(Parameter { name, shape: shape.to_vec(), range: range.clone() });
        self.init.push(init);
        range
    }

    fn norm(&mut self, name: &str, c: usize) -> Pair {
        let weight = self.tensor(format!("{name}.weight"), &[c], Init::Ones);
        Pair { weight, bias: self.tensor(format!("{name}.bias"), &[c], Init::Zeros) }
    }

    fn linear(&mut self, name: &str, from: usize, to: usize, std: f64) -> Pair {
        let weight = self.tensor(format!("{name}.weight"), &[from, to], Init::Normal(std));
        Pair { weight, bias: self.tensor(format!("{name}.bias"), &[to], Init::Zeros) }
    }
}

impl Layout {
    pub fn new(config: &Config) -> Self {
        let (c, f) = (config.d_model, config.d_ff);
        let mut b = Builder::default();
        let std = 0.02;
        // Each block adds to the residual stream twice; GPT-2 scales those projections down for depth.
        let residual = std / (2.0 * config.n_layer as f64).sqrt();
        let root = "transformer";
        let wte = b.tensor(format!("{root}.wte.weight"), &[config.vocab_size, c], Init::Normal(std));
        let wpe = b.tensor(format!("{root}.wpe.weight"), &[config.seq_len, c], Init::Normal(std));
        let block = |b: &mut Builder, i: usize| {
            let h = format!("{root}.h.{i}");
            Block {
                ln_1: b.norm(&format!("{h}.ln_1"), c),
                c_attn: b.linear(&format!("{h}.attn.c_attn"), c, 3 * c, std),
                attn_proj: b.linear(&format!("{h}.attn.c_proj"), c, c, residual),
                ln_2: b.norm(&format!("{h}.ln_2"), c),
                c_fc: b.linear(&format!("{h}.mlp.c_fc"), c, f, std),
                mlp_proj: b.linear(&format!("{h}.mlp.c_proj"), f, c, residual),
            }
        };
        let blocks = (0..config.n_layer).map(|i| block(&mut b, i)).collect();
        let ln_f = b.norm(&format!("{root}.ln_f"), c);
        Layout { parameters: b.parameters, wte, wpe, blocks, ln_f, init: b.init }
    }
}

/// A model: its shape and its numbers.
pub struct Gpt {
    pub config: Config,
    pub layout: Layout,
    /// Laid out as [`Layout`] says.
    pub weights: Buffer,
    /// The weights as bf16, laid out alike, when all matrices were rounded to that.
    pub(super) halves: Option<Vec<u16>>,
}

impl Gpt {
    /// The same model with matrices of `dtype`: rounded to bf16, few rows are computed with half of the
    /// traffic.
    pub fn in_dtype(mut self, dtype: Dtype) -> Self {
        if dtype == Dtype::F32 {
            return self;
        }
        for p in self.layout.parameters.iter().filter(|p| p.shape.len() == 2) {
            self.weights[p.range.clone()].iter_mut().for_each(|x| *x = half(*x).widened());
        }
        self.halves = Some(self.weights.iter().map(|x| half(*x)).collect());
        self
    }

    /// A new model, each tensor drawn from a stream of `seed` and its own name.
    pub fn fresh(config: &Config, seed: u64) -> Self {
        let mut gpt = Self::zeros(config);
        for (p, init) in gpt.layout.parameters.iter().zip(&gpt.layout.init) {
            let values = &mut gpt.weights[p.range.clone()];
            match init {
                Init::Zeros => {}
                Init::Ones => values.fill(1.0),
                Init::Normal(std) => {
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
        let len = layout.ln_f.bias.end;
        Gpt { config: config.clone(), layout, weights: Buffer::new(len), halves: None }
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
        let table = &self.weights[self.layout.wte.clone()];
        wider.weights[..old * c].copy_from_slice(table);
        let rest = self.layout.wte.end..self.weights.len();
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
