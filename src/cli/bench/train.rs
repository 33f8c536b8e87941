//! `tinylm bench train`: steps of a model with a preset's shape on tokens drawn at random, each step a
//! forward pass, the loss, the backward pass, clipping and the update, as a `pretrain` stage does them.

use std::time::{Duration, Instant};

use candle_core::Device;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{median_ms, peak_rss_mib, rounded};
use crate::base::{Error, Invalid, Result, Rng, machine};
use crate::cli::{DtypeArg, flag_error};
use crate::kernel::{Dtype, Team, instructions, peak};
use crate::model::reference::Reference;
use crate::model::{self, Config, Executor, Lora, Parameter, Role, Sequences, Target, Transformer};
use crate::train::optimizer::{Algorithm, Optimizer, Options};

/// The learning rate.
const RATE: f64 = 1e-3;

#[derive(Args)]
pub struct Train {
    /// The model's architecture.
    #[arg(long, default_value = "tinylm-1.5m")]
    preset: String,
    /// Numbers that products are made of.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
    /// Sequences of a forward and backward pass.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Batches whose gradients are added up before a step's update.
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Tokens of a sequence. Default: the preset's.
    #[arg(long)]
    seq: Option<usize>,
    /// Steps that the medians are of, after two that are not counted.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Default: as many as the machine has.
    #[arg(long)]
    threads: Option<usize>,
    /// Default: the preset's.
    #[arg(long)]
    dropout: Option<f64>,
    /// What makes an update of the gradient.
    #[arg(long, value_enum, default_value_t = OptimizerArg::Adamw)]
    optimizer: OptimizerArg,
    /// Train low-rank adapters (LoRA) of this rank, of all matrices, instead of the weights. 0: the weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    lora_rank: usize,
    /// What computes: our kernels, or their plain twin on candle.
    #[arg(long, value_enum, default_value_t = Backend::Kernels)]
    backend: Backend,
    /// Also measure what this machine's products reach at most, and the share of it that a step does.
    #[arg(long)]
    peak: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Kernels,
    Candle,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerArg {
    Adamw,
    Muon,
}

impl From<OptimizerArg> for Algorithm {
    fn from(arg: OptimizerArg) -> Self {
        match arg {
            OptimizerArg::Adamw => Algorithm::AdamW,
            OptimizerArg::Muon => Algorithm::Muon,
        }
    }
}

/// Medians over the steps.
#[derive(Debug, Serialize)]
pub struct TrainFigures {
    preset: String,
    dtype: &'static str,
    optimizer: Algorithm,
    params: usize,
    /// The rank of adapters; 0 where the weights are trained.
    lora_rank: usize,
    /// Parameters that are trained.
    trained: usize,
    /// Of the gradient and of what the optimizer keeps.
    gradient_and_moments_mib: f64,
    batch: usize,
    accumulate: usize,
    seq: usize,
    tokens_per_s: f64,
    step_ms: f64,
    peak_rss_mib: f64,
    threads: usize,
    instructions: String,
    /// Multiplications and additions of the matrix products of a step, a second.
    gflops: f64,
    /// The throughput of a large matrix product here.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_gflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_peak: Option<f64>,
    /// Of the last step, nats a token; it falls, since the random tokens are memorized.
    loss: f64,
}

impl Train {
    pub fn measure(&self) -> Result<TrainFigures> {
        let config = self.config()?;
        let transformer = self.transformer(&config)?;
        let (trained, memory) = (transformer.trained().len(), self.gradient_and_moments(&transformer));
        let threads = self.threads.unwrap_or_else(machine::threads).max(1);
        let (times, loss) = match self.backend {
            Backend::Kernels => self.kernels(transformer, threads),
            Backend::Candle => self.candle(transformer)?,
        };
        let peak_rss_mib = peak_rss_mib();
        let tokens = self.accumulate * self.batch * config.seq_len;
        let step_ms = median_ms(times);
        let gflops = flops(&config, self.lora_rank > 0) * tokens as f64 / step_ms / 1e6;
        let peak_gflops = self.peak.then(|| peak(&self.team(threads)));
        Ok(TrainFigures {
            preset: self.preset.clone(),
            dtype: self.dtype().name(),
            optimizer: self.optimizer.into(),
            params: config.parameters(),
            lora_rank: self.lora_rank,
            trained,
            gradient_and_moments_mib: rounded(memory as f64 / f64::from(1 << 20)),
            batch: self.batch,
            accumulate: self.accumulate,
            seq: config.seq_len,
            tokens_per_s: rounded(tokens as f64 / step_ms * 1e3),
            step_ms,
            peak_rss_mib,
            threads,
            instructions: instructions(&self.team(1)),
            gflops: rounded(gflops),
            peak_gflops: peak_gflops.map(rounded),
            share_of_peak: peak_gflops.map(|p| rounded(gflops / p)),
            loss: rounded(loss / tokens as f64),
        })
    }

    fn transformer(&self, config: &Config) -> Result<Transformer> {
        let transformer = Transformer::fresh(config, 1);
        if self.lora_rank == 0 {
            return Ok(transformer);
        }
        let (rank, targets) = (self.lora_rank, Target::of(config));
        let lora = Lora { rank, alpha: 2.0 * rank as f64, dropout: 0.05, targets };
        lora.validate().map_err(|i| flag_error(Invalid { param: format!("lora-{}", i.param), ..i }))?;
        transformer.with_adapters(&lora, 1)
    }

    /// Bytes of the gradient and of the optimizer's moments: AdamW keeps two numbers a parameter, Muon one of a
    /// hidden matrix.
    fn gradient_and_moments(&self, transformer: &Transformer) -> usize {
        let is_muon = self.optimizer == OptimizerArg::Muon;
        let moments = |p: &Parameter| if is_muon && p.role == Role::Matrix { 1 } else { 2 };
        let numbers = |p: &Parameter| p.range.len() * (1 + moments(p));
        transformer.trained_parameters().iter().map(numbers).sum::<usize>() * size_of::<f32>()
    }

    fn team(&self, threads: usize) -> Team {
        Team::new(threads).in_dtype(self.dtype())
    }

    fn dtype(&self) -> Dtype {
        self.dtype.into()
    }

    fn config(&self) -> Result<Config> {
        let preset = model::preset(&self.preset)?;
        let seq_len = self.seq.unwrap_or(preset.seq_len);
        let dropout = self.dropout.unwrap_or(preset.dropout);
        let config = Config { seq_len, dropout, ..preset.clone() };
        config.validate().map_err(|invalid| match invalid.param.as_str() {
            "seq_len" => flag_error(Invalid { param: "seq".into(), ..invalid }),
            _ => flag_error(invalid),
        })?;
        if self.backend == Backend::Candle && self.dtype() != Dtype::F32 {
            let dtype = self.dtype().name();
            return Err(Error::usage(format!("--dtype {dtype}: the plain twin has f32 only")));
        }
        if self.backend == Backend::Candle && self.accumulate != 1 {
            let accumulate = self.accumulate;
            return Err(Error::usage(format!(
                "--accumulate {accumulate}: the plain twin updates after every batch"
            )));
        }
        for (flag, value) in [("batch", self.batch), ("accumulate", self.accumulate), ("steps", self.steps)] {
            if value == 0 {
                return Err(Error::usage(format!("--{flag} 0: expected 1 or more")));
            }
        }
        Ok(config)
    }

    fn tokens(&self, config: &Config) -> [Vec<u32>; 2] {
        let mut rng = Rng::new(1, "bench");
        [(); 2]
            .map(|()| (0..self.batch * config.seq_len).map(|_| rng.index(config.vocab_size) as u32).collect())
    }

    /// The times of the steps, and the last one's loss.
    fn kernels(&self, mut transformer: Transformer, threads: usize) -> (Vec<Duration>, f64) {
        let config = &transformer.config.clone();
        let [ids, targets] = self.tokens(config);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let mut executor = Executor::training(config, self.team(threads));
        let mut optimizer = Optimizer::new(&transformer, &Options::new(self.optimizer.into(), RATE));
        let mut loss = 0.0;
        let step = |i: usize| {
            let begun = Instant::now();
            let keys = (i * self.accumulate..).take(self.accumulate);
            let gradient = &mut optimizer.gradient;
            loss = keys.map(|key| executor.gradient(&transformer, all, key as u64, 0.0, gradient)).sum();
            let targets = (self.accumulate * ids.len()) as u64;
            let norm = optimizer.norm(executor.team(), targets);
            optimizer.update(executor.team(), transformer.trained_mut(), RATE, targets, norm);
            begun.elapsed()
        };
        let times = (0..self.steps + 2).map(step).skip(2).collect();
        (times, loss)
    }

    /// The same steps with the gradient of the plain twin and the same dropout masks: a reference for the
    /// last loss.
    fn candle(&self, mut transformer: Transformer) -> Result<(Vec<Duration>, f64)> {
        let config = &transformer.config.clone();
        let [ids, targets] = self.tokens(config);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let team = self.team(1);
        let mut optimizer = Optimizer::new(&transformer, &Options::new(self.optimizer.into(), RATE));
        let math = |e: candle_core::Error| Error::bug(format!("candle: {e}"));
        let (mut times, mut last) = (Vec::new(), 0.0);
        for i in 0..self.steps + 2 {
            let begun = Instant::now();
            let plain = Reference::new(&transformer, &Device::Cpu).map_err(math)?;
            let (loss, gradient) = plain.gradient(&transformer, all, Some(i as u64)).map_err(math)?;
            optimizer.gradient.copy_from_slice(&gradient[transformer.layout.trained.clone()]);
            let norm = optimizer.norm(&team, ids.len() as u64);
            optimizer.update(&team, transformer.trained_mut(), RATE, ids.len() as u64, norm);
            times.push(begun.elapsed());
            last = loss;
        }
        Ok((times.split_off(2), last))
    }
}

/// Floating-point operations of the products of one token: 2 for each weight of a matrix forward, twice
/// that backward, or as many as forward where the weights are `frozen`; and the causal half of attention's two
/// products. Those of adapters are not counted.
fn flops(config: &Config, frozen: bool) -> f64 {
    let c = config.d_model;
    let attention = config.q_width() * config.seq_len;
    let weights = c * config.qkv_width() + config.q_width() * c + c * config.hidden_width() + config.d_ff * c;
    let weights = config.n_layer * weights + config.vocab_size * c;
    (if frozen { 4 } else { 6 } * weights + 6 * config.n_layer * attention) as f64
}
