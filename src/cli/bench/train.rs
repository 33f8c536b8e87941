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
use crate::model::{self, Config, Executor, Sequences, Transformer};
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
    /// Sequences of a step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
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
    batch: usize,
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
        let threads = self.threads.unwrap_or_else(machine::threads).max(1);
        let (times, loss) = match self.backend {
            Backend::Kernels => self.kernels(&config, threads),
            Backend::Candle => self.candle(&config)?,
        };
        let peak_rss_mib = peak_rss_mib();
        let tokens = self.batch * config.seq_len;
        let step_ms = median_ms(times);
        let gflops = flops(&config) * tokens as f64 / step_ms / 1e6;
        let peak_gflops = self.peak.then(|| peak(&self.team(threads)));
        Ok(TrainFigures {
            preset: self.preset.clone(),
            dtype: self.dtype().name(),
            optimizer: self.optimizer.into(),
            params: config.parameters(),
            batch: self.batch,
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
        for (flag, value) in [("batch", self.batch), ("steps", self.steps)] {
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
    fn kernels(&self, config: &Config, threads: usize) -> (Vec<Duration>, f64) {
        let [ids, targets] = self.tokens(config);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let mut transformer = Transformer::fresh(config, 1);
        let mut executor = Executor::training(config, self.team(threads));
        let mut optimizer = Optimizer::new(&transformer, &Options::new(self.optimizer.into(), RATE));
        let mut loss = 0.0;
        let step = |i: usize| {
            let begun = Instant::now();
            loss = executor.gradient(&transformer, all, i as u64, 0.0, &mut optimizer.gradient);
            let norm = optimizer.norm(executor.team(), ids.len() as u64);
            optimizer.update(executor.team(), transformer.trained_mut(), RATE, ids.len() as u64, norm);
            begun.elapsed()
        };
        let times = (0..self.steps + 2).map(step).skip(2).collect();
        (times, loss)
    }

    /// The same steps with the gradient of the plain twin and the same dropout masks: a reference for the
    /// last loss.
    fn candle(&self, config: &Config) -> Result<(Vec<Duration>, f64)> {
        let [ids, targets] = self.tokens(config);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let mut transformer = Transformer::fresh(config, 1);
        let team = self.team(1);
        let mut optimizer = Optimizer::new(&transformer, &Options::new(self.optimizer.into(), RATE));
        let math = |e: candle_core::Error| Error::bug(format!("candle: {e}"));
        let (mut times, mut last) = (Vec::new(), 0.0);
        for i in 0..self.steps + 2 {
            let begun = Instant::now();
            let plain = Reference::new(&transformer, &Device::Cpu).map_err(math)?;
            let (loss, gradient) = plain.gradient(&transformer, all, Some(i as u64)).map_err(math)?;
            optimizer.gradient.copy_from_slice(&gradient);
            let norm = optimizer.norm(&team, ids.len() as u64);
            optimizer.update(&team, transformer.trained_mut(), RATE, ids.len() as u64, norm);
            times.push(begun.elapsed());
            last = loss;
        }
        Ok((times.split_off(2), last))
    }
}

/// Floating-point operations of the products of one token: 2 for each weight of a matrix forward, twice
/// that backward, and the causal half of attention's two products.
fn flops(config: &Config) -> f64 {
    let c = config.d_model;
    let attention = c * config.qkv_width() + config.q_width() * c + config.q_width() * config.seq_len;
    let feed_forward = c * config.hidden_width() + config.d_ff * c;
    (6 * (config.n_layer * (attention + feed_forward) + config.vocab_size * c)) as f64
}
