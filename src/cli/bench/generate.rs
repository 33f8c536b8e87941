//! `tinylm bench generate`: greedy decoding after a prompt of random tokens, one sequence or a batch, with
//! a KV cache. Of a model that is there, or of one with random weights and a preset's shape.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{median_ms, peak_rss_mib, rounded};
use crate::base::{Error, Result, Rng, machine, suggest};
use crate::cli::{DtypeArg, flag_error};
use crate::kernel::{BlockType, Dtype, Isa, Team, loss};
use crate::model::{self, Cache, Config, Decoder, Reading, Transformer};
use crate::target::load_model;

#[derive(Args)]
pub struct Generate {
    /// The model: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`. Default: random weights.
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["preset", "seq"])]
    model: Option<String>,
    /// The shape of random weights.
    #[arg(long, default_value = "tinylm-1.5m")]
    preset: String,
    /// Tokens that a model of random weights holds. Default: the preset's.
    #[arg(long, value_name = "N")]
    seq: Option<usize>,
    /// Rounds the matrices to blocks of this type first.
    #[arg(long, value_name = "TYPE", value_parser = quantized_type)]
    quantize: Option<BlockType>,
    /// Numbers that the matrices are made of.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Tokens generated. Default: as many as the model holds behind the prompt.
    #[arg(long)]
    new: Option<usize>,
    /// Sequences side by side.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Repetitions that the medians are of, after one that is not counted.
    #[arg(long, default_value_t = 10)]
    repeat: usize,
    /// Default: as many as the machine has.
    #[arg(long)]
    threads: Option<usize>,
}

/// A type of blocks, by its name.
fn quantized_type(name: &str) -> Result<BlockType, String> {
    let names = || BlockType::all().filter(|ty| ty.is_quantized()).map(BlockType::name);
    let found = BlockType::of_name(name).filter(|ty| ty.is_quantized());
    found.ok_or_else(|| format!("expected one of {}", suggest::list(names())))
}

/// Medians over the repetitions.
#[derive(Debug, Serialize)]
pub struct GenerateFigures {
    /// The target or the preset.
    model: String,
    /// Of the numbers of matrices, unless they are quantized.
    dtype: &'static str,
    quantized: bool,
    params: usize,
    /// In memory, as products read them.
    weight_bytes: usize,
    batch: usize,
    prompt: usize,
    new: usize,
    /// From a prompt to the choice of the first token; a program's start is not in it.
    first_token_ms: f64,
    /// Of the prompts of all sequences together, the choice of the first token included.
    prompt_tokens_per_s: f64,
    /// Of one token of every sequence, after the first.
    token_ms: f64,
    /// Of all sequences together.
    tokens_per_s: f64,
    peak_rss_mib: f64,
    threads: usize,
    instructions: &'static str,
}

impl Generate {
    pub fn measure(&self) -> Result<GenerateFigures> {
        let dtype = Dtype::from(self.dtype);
        let (name, transformer) = self.transformer()?;
        let transformer = match self.quantize {
            Some(ty) => transformer.rounded_to(ty)?,
            None => transformer.in_dtype(dtype),
        };
        let new = self.new_tokens(&name, &transformer.config)?;
        let threads = self.threads.unwrap_or_else(machine::threads).max(1);
        let mut decoder = Decoder::new(&transformer, Team::new(threads));
        let (mut first, mut each) = (Vec::new(), Vec::new());
        for _ in 0..=self.repeat.max(1) {
            let (a, b) = self.once(&transformer, &mut decoder, new)?;
            first.push(a);
            each.push(b);
        }
        let first_token_ms = median_ms(first.split_off(1));
        let token_ms = median_ms(each.split_off(1)) / (new - 1) as f64;
        Ok(GenerateFigures {
            model: name,
            dtype: dtype.name(),
            quantized: transformer.is_quantized(),
            params: transformer.config.parameters(),
            weight_bytes: transformer.weight_bytes(),
            batch: self.batch,
            prompt: self.prompt,
            new,
            first_token_ms,
            prompt_tokens_per_s: rounded((self.batch * self.prompt) as f64 * 1e3 / first_token_ms),
            token_ms: rounded(token_ms),
            tokens_per_s: rounded(self.batch as f64 * 1e3 / token_ms),
            peak_rss_mib: peak_rss_mib(),
            threads,
            instructions: Isa::best().name(),
        })
    }

    /// What is measured, and what it is called.
    fn transformer(&self) -> Result<(String, Transformer)> {
        if let Some(target) = &self.model {
            return Ok((target.clone(), load_model(target, None, Dtype::F32)?.transformer));
        }
        let mut config = model::preset(&self.preset)?.clone();
        config.seq_len = self.seq.unwrap_or(config.seq_len);
        config.validate().map_err(flag_error)?;
        Ok((self.preset.clone(), Transformer::fresh(&config, 1)))
    }

    /// How many tokens are generated.
    fn new_tokens(&self, name: &str, config: &Config) -> Result<usize> {
        let new = self.new.unwrap_or(config.seq_len.saturating_sub(self.prompt));
        if self.prompt > 0 && new >= 2 && self.prompt + new <= config.seq_len && self.batch > 0 {
            return Ok(new);
        }
        let what = format!("--prompt {} --new {new} --batch {}", self.prompt, self.batch);
        Err(Error::usage(format!("{what}: a prompt, 2 or more new tokens and a sequence are needed"))
            .help(format!("`{name}` holds {} tokens", config.seq_len)))
    }

    /// The times to the first token, and from there to the last.
    fn once(
        &self,
        transformer: &Transformer,
        decoder: &mut Decoder<&Transformer>,
        new: usize,
    ) -> Result<(Duration, Duration)> {
        let mut rng = Rng::new(2, "bench");
        let size = transformer.config.vocab_size;
        let mut next: Vec<Vec<u32>> =
            (0..self.batch).map(|_| (0..self.prompt).map(|_| rng.index(size) as u32).collect()).collect();
        let mut caches = vec![Cache::default(); self.batch];
        let begun = Instant::now();
        let mut first = begun.elapsed();
        for i in 0..new {
            let readings = caches.iter_mut().zip(&next);
            let mut readings: Vec<Reading> = readings.map(|(cache, ids)| Reading { cache, ids }).collect();
            let logits = decoder.read(&mut readings)?;
            let isa = Isa::best();
            next = logits.chunks_exact(size).map(|row| vec![loss::likeliest(isa, row) as u32]).collect();
            if i == 0 {
                first = begun.elapsed();
            }
        }
        Ok((first, begun.elapsed() - first))
    }
}
