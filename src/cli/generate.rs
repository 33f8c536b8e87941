//! `tinylm generate`: the continuation of a prompt, streamed.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{DtypeArg, Format, flag_error, out, print_json, target};
use crate::base::error::Fault;
use crate::base::{Error, Files, Result, machine};
use crate::corpus::clean;
use crate::generate::{self, Options, Session, Strategy};
use crate::kinds::{adapters, import};
use crate::model::format::ImportOptions;
use crate::model::{CONFIG_FILE, Model, TOKENIZER_FILE};
use crate::tokenizer::{Names, Tokenizer};

#[derive(Args)]
pub struct Generate {
    /// The model: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`.
    #[arg(long, value_name = "TARGET")]
    model: String,
    /// Low-rank adapters (LoRA) that are merged into the model: a folder, `PIPELINE:STAGE` or
    /// `PIPELINE:STAGE.PORT`.
    #[arg(long, value_name = "TARGET")]
    adapter: Option<String>,
    /// What the text begins with.
    #[arg(long)]
    prompt: String,
    #[command(flatten)]
    decoding: Decoding,
}

/// How to decode; shared with `chat`.
#[derive(Args, Clone)]
pub struct Decoding {
    /// How the next token is chosen.
    #[arg(long, value_enum, default_value_t = StrategyArg::Sample)]
    strategy: StrategyArg,
    /// Divides the logits: below 1 for likelier tokens, above 1 for more varied ones.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Only the K likeliest tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Only the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f64,
    /// Continuations followed side by side, with --strategy beam.
    #[arg(long, value_name = "N", default_value_t = 4)]
    num_beams: usize,
    /// Makes tokens that are there already less likely; 1 changes nothing.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Tokens to generate at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_new_tokens: usize,
    /// What sampling derives from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Numbers that the model's matrices are made of: rounded to bf16, less is read for each token.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub dtype: DtypeArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum StrategyArg {
    Greedy,
    Sample,
    Beam,
}

impl Decoding {
    pub fn options(&self) -> Result<Options> {
        let options = Options {
            strategy: match self.strategy {
                StrategyArg::Greedy => Strategy::Greedy,
                StrategyArg::Sample => Strategy::Sample,
                StrategyArg::Beam => Strategy::Beam,
            },
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            num_beams: self.num_beams,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            seed: self.seed,
            ..Options::default()
        };
        options.validate().map_err(flag_error)?;
        Ok(options)
    }
}

/// The model that a target names, with the `adapter` of another merged into it.
pub fn load_model(text: &str, adapter: Option<&str>, dtype: DtypeArg) -> Result<Model> {
    let mut model = match whole_model(text)? {
        Some(model) => model,
        None => model_of_folder(text)?,
    };
    if let Some(adapter) = adapter {
        model.transformer =
            adapters::merged(model.transformer, &target::folder_of(adapter, adapters::ADAPTER)?)?;
    }
    Ok(Model { transformer: model.transformer.in_dtype(dtype.into()), ..model })
}

/// The model of a file of another program that holds all of it, as GGUF files do; not where it is one of a model's
/// folder.
fn whole_model(text: &str) -> Result<Option<Model>> {
    let path = Path::new(text);
    if !path.is_file() || path.with_file_name(CONFIG_FILE).is_file() {
        return Ok(None);
    }
    let files = Files::at(path)?;
    let read = import::model(&files, None, import::AUTO, &ImportOptions::default(), &Names::default());
    read.map(|read| Some(read.model)).map_err(|e| not_a_model(text, e))
}

fn model_of_folder(text: &str) -> Result<Model> {
    let artifact = target::folder_of(text, "model")?;
    let names = Names::beside(|name| artifact.find(name))?;
    let files = artifact.as_files();
    files.file(CONFIG_FILE).map_err(|e| not_a_model(text, e))?;
    let tokenizer = files.file(TOKENIZER_FILE).map_err(|e| not_a_model(text, e))?;
    Model::open(&files, Tokenizer::load_with(tokenizer, &names)?)
}

fn not_a_model(text: &str, error: Error) -> Error {
    error.context(format!("`{text}` is not a model")).blame(Fault::Input)
}

impl Generate {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let options = self.decoding.options()?;
        let model = load_model(&self.model, self.adapter.as_deref(), self.decoding.dtype)?;
        let prompt = clean::prompt(&self.prompt);
        let ids = generate::prompt_ids(&model, &prompt)?;
        if ids.is_empty() {
            return Err(Error::usage(
                "--prompt: the prompt is empty, and this tokenizer has no token to begin a text with",
            ));
        }
        let begun = Instant::now();
        let mut session = Session::new(&model, machine::threads());
        let cut = session.feed(&ids)?;
        if cut > 0 {
            out::warn(&generate::cut_to_fit(&model, ids.len(), cut));
        }
        let mut text = String::new();
        if format == Format::Text {
            out::out(&prompt)?;
        }
        let mut printed = Ok(());
        let new = generate::stream(&mut session, &ids, &options, &mut |piece| {
            text.push_str(piece);
            match format {
                Format::Text => printed = out::out(piece),
                Format::Json => {}
            }
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        printed?;
        let seconds = begun.elapsed().as_secs_f64();
        match format {
            Format::Text => out::line("")?,
            Format::Json => print_json(&json!({
                "prompt": prompt, "text": text, "tokens": new.tokens, "prompt_tokens": ids.len(),
                "prompt_tokens_cut": cut, "seconds": seconds, "tokens_per_s": new.tokens.len() as f64 / seconds,
            }))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
