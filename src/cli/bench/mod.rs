//! `tinylm bench`: speed on this machine, in figures for scripts. The scripts in `bench/` compare other
//! programs.

mod generate;
mod plan;
mod tokenize;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Format, out, print_json};
use crate::base::{Error, Result, machine, units};

/// Measure how fast this machine trains, generates, tokenizes and plans.
#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Training steps: forward, loss, backward, clipping and the update, on made-up tokens.
    Train(train::Train),
    /// Generation: the time to the first token behind a prompt, and tokens a second after it.
    Generate(generate::Generate),
    /// Training of a tokenizer, and encoding with it.
    Tokenize {
        /// The text to do it on.
        #[arg(long, value_name = "FILE")]
        text: PathBuf,
        #[arg(long, default_value_t = 8192)]
        vocab_size: usize,
        /// Repetitions that the medians are of.
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
    /// The engine: reading a pipeline, planning it, and a run that finds nothing to do.
    Plan {
        /// Stages of the made-up chain.
        #[arg(long, default_value_t = 300)]
        stages: usize,
        /// Repetitions that the medians are of.
        #[arg(long, default_value_t = 5)]
        repeat: usize,
    },
}

impl Bench {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        match self.what {
            What::Train(c) => c.run(format),
            What::Generate(c) => show(format, &c.measure()?),
            What::Tokenize { text, vocab_size, repeat } => {
                let all = rayon::ThreadPoolBuilder::new().num_threads(machine::threads()).build();
                let all = all.map_err(|e| Error::input(format!("no threads: {e}")))?;
                show(format, &all.install(|| tokenize::tokenize(&text, vocab_size, repeat))?)
            }
            What::Plan { stages, repeat } => show(format, &plan::plan(stages, repeat)?),
        }
    }
}

/// One JSON object, or a line a figure.
fn show(format: Format, figures: &impl serde::Serialize) -> Result<ExitCode> {
    let value = serde_json::to_value(figures).map_err(|e| Error::bug(format!("figures: {e}")))?;
    match format {
        Format::Json => print_json(&value)?,
        Format::Text => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let shown = match value {
                    serde_json::Value::String(text) => text.clone(),
                    serde_json::Value::Number(n) if n.is_u64() => units::count(n.as_u64().unwrap_or(0)),
                    other => other.to_string(),
                };
                out::line(&format!("{name:18} {shown}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The median, in milliseconds, to the microsecond.
fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |t| rounded(t.as_secs_f64() * 1e3))
}

/// To three decimals: more is noise.
fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// The most memory that this process has held, in MiB.
fn peak_rss_mib() -> f64 {
    machine::peak_memory().map_or(0.0, |bytes| rounded(bytes as f64 / f64::from(1 << 20)))
}
