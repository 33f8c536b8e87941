//! `tinylm bench train`: steps of a model with a preset's shape on tokens drawn at random, each step a
//! forward pass, the loss, the backward pass, clipping and the update, as a `pretrain` stage does them.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use candle_core::Device;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{median_ms, peak_rss_mib, rounded, show};
use crate::base::table::Table;
use crate::base::{Error, Invalid, Result, Rng, machine, units};
use crate::cli::{Format, flag_error, out, terminal_width};
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
    /// Numbers that products are made of. `all`: each of them in turn, and which is the fastest here.
    #[arg(long, value_enum, default_value_t = Numbers::F32)]
    dtype: Numbers,
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
enum Numbers {
    F32,
    Bf16,
    #[value(name = "bf16_tile")]
    Bf16Tile,
    All,
}

impl Numbers {
    fn dtypes(self) -> Vec<Dtype> {
        match self {
            Numbers::F32 => vec![Dtype::F32],
            Numbers::Bf16 => vec![Dtype::Bf16],
            Numbers::Bf16Tile => vec![Dtype::Bf16Tile],
            Numbers::All => Dtype::ALL.to_vec(),
        }
    }
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

/// The figures of all dtypes, whose steps took turns.
#[derive(Debug, Serialize)]
struct Comparison {
    dtypes: Vec<TrainFigures>,
    fastest: &'static str,
    /// How many times as fast as f32 that is.
    times_f32: f64,
}

impl Comparison {
    fn new(dtypes: Vec<TrainFigures>) -> Self {
        let fastest = dtypes.iter().min_by(|a, b| a.step_ms.total_cmp(&b.step_ms)).expect("f32 is one");
        let (fastest, times_f32) = (fastest.dtype, rounded(dtypes[0].step_ms / fastest.step_ms));
        Comparison { dtypes, fastest, times_f32 }
    }

    fn text(&self) -> String {
        let of_f32 = self.dtypes[0].step_ms;
        let mut table = Table::new(["dtype", "instructions", ">tokens/s", ">step ms", ">of f32", ">loss"]);
        for of in &self.dtypes {
            table.push([
                of.dtype.into(),
                of.instructions.clone(),
                units::count(of.tokens_per_s as u64),
                of.step_ms.to_string(),
                format!("{:.2} x", of_f32 / of.step_ms),
                of.loss.to_string(),
            ]);
        }
        let fastest = match self.fastest {
            "f32" => "f32 is the fastest here".to_string(),
            name => format!("{name} is the fastest here: {:.2} x f32", self.times_f32),
        };
        format!("{}{fastest}\n", table.render(terminal_width()))
    }
}

impl Train {
    pub fn run(&self, format: Format) -> Result<ExitCode> {
        let mut all = self.measure()?;
        if self.dtype != Numbers::All {
            return show(format, &all.remove(0));
        }
        let comparison = Comparison::new(all);
        match format {
            Format::Json => show(format, &comparison),
            Format::Text => out::out(&comparison.text()).map(|()| ExitCode::SUCCESS),
        }
    }

    /// The figures of each dtype that is asked for.
    fn measure(&self) -> Result<Vec<TrainFigures>> {
        let config = self.config()?;
        let threads = self.threads.unwrap_or_else(machine::threads).max(1);
        let transformer = self.transformer(&config)?;
        let (trained, memory) = (transformer.trained().len(), self.gradient_and_moments(&transformer));
        let measured = match self.backend {
            Backend::Kernels => self.kernels(transformer, threads)?,
            Backend::Candle => vec![self.candle(transformer)?],
        };
        let figures =
            |(dtype, (times, loss))| self.figures(&config, threads, [trained, memory], dtype, times, loss);
        Ok(self.dtype.dtypes().into_iter().zip(measured).map(figures).collect())
    }

    fn figures(
        &self,
        config: &Config,
        threads: usize,
        [trained, memory]: [usize; 2],
        dtype: Dtype,
        times: Vec<Duration>,
        loss: f64,
    ) -> TrainFigures {
        let peak_rss_mib = peak_rss_mib();
        let tokens = self.accumulate * self.batch * config.seq_len;
        let step_ms = median_ms(times);
        let gflops = flops(config, self.lora_rank > 0) * tokens as f64 / step_ms / 1e6;
        let peak_gflops = self.peak.then(|| peak(&Team::new(threads).in_dtype(dtype)));
        TrainFigures {
            preset: self.preset.clone(),
            dtype: dtype.name(),
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
            instructions: instructions(&Team::new(1).in_dtype(dtype)),
            gflops: rounded(gflops),
            peak_gflops: peak_gflops.map(rounded),
            share_of_peak: peak_gflops.map(|p| rounded(gflops / p)),
            loss: rounded(loss / tokens as f64),
        }
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

    fn config(&self) -> Result<Config> {
        let preset = model::preset(&self.preset)?;
        let seq_len = self.seq.unwrap_or(preset.seq_len);
        let dropout = self.dropout.unwrap_or(preset.dropout);
        let config = Config { seq_len, dropout, ..preset.clone() };
        config.validate().map_err(|invalid| match invalid.param.as_str() {
            "seq_len" => flag_error(Invalid { param: "seq".into(), ..invalid }),
            _ => flag_error(invalid),
        })?;
        if self.backend == Backend::Candle && self.dtype != Numbers::F32 {
            return Err(Error::usage("--backend candle: the plain twin has `--dtype f32` only"));
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

    /// The times of the steps and the last one's loss, of each dtype. They take turns, so that whatever else the
    /// machine does hits all alike.
    fn kernels(&self, first: Transformer, threads: usize) -> Result<Vec<(Vec<Duration>, f64)>> {
        let config = first.config.clone();
        let [ids, targets] = self.tokens(&config);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let mut first = Some(first);
        let mut trainings = Vec::new();
        for dtype in self.dtype.dtypes() {
            let transformer = first.take().map_or_else(|| self.transformer(&config), Ok)?;
            let optimizer = Optimizer::new(&transformer, &Options::new(self.optimizer.into(), RATE));
            let executor = Executor::training(&config, Team::new(threads).in_dtype(dtype));
            trainings.push((Training { transformer, executor, optimizer }, (Vec::new(), 0.0)));
        }
        for i in 0..self.steps + 2 {
            for (training, (times, loss)) in &mut trainings {
                let begun = Instant::now();
                *loss = training.step(all, i, self.accumulate);
                times.push(begun.elapsed());
            }
        }
        Ok(trainings.into_iter().map(|(_, (times, loss))| (times[2..].to_vec(), loss)).collect())
    }

    /// The same steps with the gradient of the plain twin and the same dropout masks: a reference for the
    /// last loss.
    fn candle(&self, mut transformer: Transformer) -> Result<(Vec<Duration>, f64)> {
        let config = &transformer.config.clone();
        let [ids, targets] = self.tokens(config);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let team = Team::new(1);
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

/// A model that is trained.
struct Training {
    transformer: Transformer,
    executor: Executor,
    optimizer: Optimizer,
}

impl Training {
    /// Step `i`, of so many batches; gives its loss.
    fn step(&mut self, all: Sequences, i: usize, batches: usize) -> f64 {
        let Training { transformer, executor, optimizer } = self;
        let keys = (i * batches..).take(batches);
        let gradient = &mut optimizer.gradient;
        let loss = keys.map(|key| executor.gradient(transformer, all, key as u64, 0.0, gradient)).sum();
        let targets = (batches * all.ids.len()) as u64;
        let norm = optimizer.norm(executor.team(), targets);
        optimizer.update(executor.team(), transformer.trained_mut(), RATE, targets, norm);
        loss
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_dtypes_learn_alike_and_the_fastest_is_named() {
        let train = Train {
            preset: "tinylm-1.5m".into(),
            dtype: Numbers::All,
            batch: 1,
            accumulate: 1,
            seq: Some(16),
            steps: 1,
            threads: Some(1),
            dropout: None,
            optimizer: OptimizerArg::Adamw,
            lora_rank: 0,
            backend: Backend::Kernels,
            peak: false,
        };
        let found = Comparison::new(train.measure().unwrap());
        let names: Vec<&str> = found.dtypes.iter().map(|of| of.dtype).collect();
        assert_eq!(names, ["f32", "bf16", "bf16_tile"]);
        assert!(found.dtypes.iter().all(|of| (of.loss - found.dtypes[0].loss).abs() < 0.05), "{found:?}");
        let fastest = found.dtypes.iter().find(|of| of.dtype == found.fastest).unwrap();
        assert!(found.dtypes.iter().all(|of| of.step_ms >= fastest.step_ms), "{found:?}");
        assert!(found.text().contains(&format!("{} is the fastest here", found.fastest)), "{}", found.text());
        assert!(Train { backend: Backend::Candle, ..train }.measure().is_err());
    }
}
