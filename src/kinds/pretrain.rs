//! `pretrain`: a new model, trained to continue the documents of token shards.

use std::path::PathBuf;

use super::tokenizers;
use super::training::training_params;
use crate::base::{Error, Result, units};
use crate::model::{self, Config, Gpt, Model};
use crate::shard::{Shards, Split};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::Tokenizer;
use crate::train::{self, Windows};

pub struct Pretrain;

training_params! {
    /// The model's shape and how it is trained.
    Params;
    defaults { steps: 600, learning_rate: 0.002, warmup_steps: 50 }
    own {
        /// The named shape: `tiny`, `mini`, `tinylm-1.5m`, `small`, `medium`, `slm`. What follows replaces
        /// parts of it.
        preset: String = "tinylm-1.5m".into(),
        /// Tokens that the model has room for.
        vocab_size: Option<usize> = None,
        /// Width.
        d_model: Option<usize> = None,
        /// Layers.
        n_layer: Option<usize> = None,
        /// Attention heads; must divide `d_model`.
        n_head: Option<usize> = None,
        /// Width of the feed-forward layer. Default: four times `d_model`.
        d_ff: Option<usize> = None,
        /// The longest sequence in tokens.
        seq_len: Option<usize> = None,
    }
}

impl Params {
    fn config(&self) -> Result<Config> {
        let base = model::preset(&self.preset)?;
        let d_model = self.d_model.unwrap_or(base.d_model);
        Ok(Config {
            vocab_size: self.vocab_size.unwrap_or(base.vocab_size),
            d_model,
            n_layer: self.n_layer.unwrap_or(base.n_layer),
            n_head: self.n_head.unwrap_or(base.n_head),
            d_ff: self.d_ff.unwrap_or(if self.d_model.is_some() { 4 * d_model } else { base.d_ff }),
            seq_len: self.seq_len.unwrap_or(base.seq_len),
            dropout: self.dropout.unwrap_or(base.dropout),
        })
    }
}

impl Kind for Pretrain {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "pretrain",
            version: 4, // 2: kernels of our own; 3: pieces of 256 tokens side by side; 4: sums of e^x by blocks
            summary: "Trains a new decoder-only transformer on token shards.",
            inputs: vec![
                Port::new("shards", "shards", "What it learns to continue."),
                Port::new("tokenizer", "tokenizer", "What the shards were encoded with.")
                    .or_source(&["tokenizer.json", ".json"]),
            ],
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.safetensors`, `config.json`, `tokenizer.json`; metrics and samples.",
            )],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: &[],
        }
    }

    fn check(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let config = match params.config() {
            Ok(config) => config,
            Err(e) => return vec![Issue::param("preset", e.to_string())],
        };
        let mut issues = params.ranges();
        if let Some((name, why)) = config.mistake() {
            issues.push(Issue::param(name, why));
        }
        let room = config.vocab_size as u64;
        issues.extend(tokenizers::fits(inputs, room, |size| {
            format!("set `params.vocab_size: {size}` here, or train a tokenizer of at most {room}")
        }));
        issues
    }

    fn facts(params: &Params, _: &Connected, _: &str) -> Facts {
        let Ok(config) = params.config() else { return Facts::new() };
        Facts::from([
            ("vocab_size".to_string(), config.vocab_size.into()),
            ("seq_len".to_string(), config.seq_len.into()),
        ])
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let config = params.config()?;
        // The special tokens are those that the shards were made with.
        let names = tokenizers::names(ctx.input("shards")?)?;
        let tokenizer = Tokenizer::load_with(tokenizers::path(ctx.input("tokenizer")?)?, &names)?;
        let files: Vec<(String, PathBuf)> =
            ctx.input("shards")?.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
        let shards = Shards::open(&files)?;
        if shards.tokenizer != tokenizer.digest() {
            return Err(Error::input(format!(
                "the shards were encoded with the tokenizer {}, connected is {}",
                shards.tokenizer.short(),
                tokenizer.digest().short()
            ))
            .help("connect the same tokenizer to `shard` and `pretrain`"));
        }
        let size = tokenizer.vocab_size();
        config.fits(&tokenizer).map_err(|e| e.help(format!("set `vocab_size: {size}`")))?;
        let (train, validation) = (shards.read(Split::Train)?, shards.read(Split::Validation)?);
        tracing::info!(
            "{} tokens to train on, {} held out",
            units::count(train.len() as u64),
            units::count(validation.len() as u64)
        );
        let mut model = Model { gpt: Gpt::fresh(&config, ctx.seed), tokenizer };
        let (train, validation) =
            (Windows::new(&train, config.seq_len), Windows::new(&validation, config.seq_len));
        let folder = ctx.output("model")?;
        train::run(&mut model, &train, &validation, &params.options(ctx.seed), folder, ctx.monitor)?;
        model.save(folder)
    }
}
