//! `tinylm bench generate`: greedy decoding after a prompt of random tokens, one sequence or a batch, with
//! a KV cache.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{median_ms, peak_rss_mib, rounded};
use crate::base::{Error, Result, Rng, machine};
use crate::cli::DtypeArg;
use crate::kernel::{Dtype, Isa, Team};
use crate::model::{self, Cache, Decoder, Reading, Transformer};

#[derive(Args)]
pub struct Generate {
    /// The model's shape.
    #[arg(long, default_value = "tinylm-1.5m")]
    preset: String,
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

/// Medians over the repetitions.
#[derive(Debug, Serialize)]
pub struct GenerateFigures {
    preset: String,
    dtype: &'static str,
    params: usize,
    batch: usize,
    prompt: usize,
    new: usize,
    /// From a prompt to the choice of the first token; a program's start is not in it.
    first_token_ms: f64,
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
        let config = model::preset(&self.preset)?;
        let new = self.new.unwrap_or(config.seq_len.saturating_sub(self.prompt));
        if self.prompt == 0 || new < 2 || self.prompt + new > config.seq_len || self.batch == 0 {
            let what = format!("--prompt {} --new {new} --batch {}", self.prompt, self.batch);
            return Err(Error::usage(format!(
                "{what}: a prompt, 2 or more new tokens and a sequence are needed"
            ))
            .help(format!("`{}` holds {} tokens", self.preset, config.seq_len)));
        }
        let threads = self.threads.unwrap_or_else(machine::threads).max(1);
        let dtype = Dtype::from(self.dtype);
        let transformer = Transformer::fresh(config, 1).in_dtype(dtype);
        let mut decoder = Decoder::new(&transformer, Team::new(threads));
        let (mut first, mut each) = (Vec::new(), Vec::new());
        for _ in 0..=self.repeat.max(1) {
            let (a, b) = self.once(&transformer, &mut decoder, new)?;
            first.push(a);
            each.push(b);
        }
        let (first, each) = (first.split_off(1), each.split_off(1));
        let token_ms = median_ms(each) / (new - 1) as f64;
        Ok(GenerateFigures {
            preset: self.preset.clone(),
            dtype: dtype.name(),
            params: config.parameters(),
            batch: self.batch,
            prompt: self.prompt,
            new,
            first_token_ms: median_ms(first),
            token_ms: rounded(token_ms),
            tokens_per_s: rounded(self.batch as f64 * 1e3 / token_ms),
            peak_rss_mib: peak_rss_mib(),
            threads,
            instructions: Isa::best().name(),
        })
    }

    /// The times to the first token, and from there to the last.
    fn once(
        &self,
        transformer: &Transformer,
        decoder: &mut Decoder,
        new: usize,
    ) -> Result<(std::time::Duration, std::time::Duration)> {
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
            let best = |row: &[f32]| (0..size).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0) as u32;
            next = logits.chunks_exact(size).map(|row| vec![best(row)]).collect();
            if i == 0 {
                first = begun.elapsed();
            }
        }
        Ok((first, begun.elapsed() - first))
    }
}
