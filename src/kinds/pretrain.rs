//! `pretrain`: a new model, trained to continue the documents of token shards.

use std::path::PathBuf;

use super::tokenizers;
use super::training::training_params;
use crate::base::{Error, Result, units};
use crate::corpus::held_out::{self, HeldOut, Split};
use crate::model::{self, Config, Model, Transformer};
use crate::shard::{Shards, TokenStream};
use crate::stage::{Artifact, Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::{Special, Tokenizer};
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
        let n_head = self.n_head.unwrap_or(base.n_head);
        Ok(Config {
            vocab_size: self.vocab_size.unwrap_or(base.vocab_size),
            d_model,
            n_layer: self.n_layer.unwrap_or(base.n_layer),
            n_head,
            n_kv_head: n_head,
            d_head: d_model / n_head.max(1),
            d_ff: self.d_ff.unwrap_or(if self.d_model.is_some() { 4 * d_model } else { base.d_ff }),
            seq_len: self.seq_len.unwrap_or(base.seq_len),
            dropout: self.dropout.unwrap_or(base.dropout),
            ..base.clone()
        })
    }
}

impl Kind for Pretrain {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "pretrain",
            version: 5, // 4: sums of e^x by blocks; 5: `held_out.json` beside the model
            summary: "Trains a new decoder-only transformer on token shards.",
            inputs: vec![
                Port::new("shards", "shards", "What it learns to continue."),
                Port::new("tokenizer", "tokenizer", "What the shards were encoded with.")
                    .or_source(&["tokenizer.json", ".json"]),
                Port::new(
                    "validation",
                    "shards",
                    "What it is validated on, all of it, instead of what `shards` holds out.",
                )
                .optional(),
            ],
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.safetensors`, `config.json`, `tokenizer.json`; `held_out.json`, metrics and samples.",
            )],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: &[],
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let config = match params.config() {
            Ok(config) => config,
            Err(e) => return vec![Issue::param("preset", e.to_string())],
        };
        let mut issues = params.ranges();
        issues.extend(config.validate().err().map(Issue::from));
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
        let shards = open(ctx.input("shards")?, &tokenizer)?;
        let size = tokenizer.vocab_size();
        config.fits(&tokenizer).map_err(|e| e.help(format!("set `vocab_size: {size}`")))?;
        let (train, validation) = (shards.read(Split::Train)?, validation(ctx, &shards, &tokenizer)?);
        tracing::info!(
            "{} tokens to train on, {} to validate on",
            units::count(train.len() as u64),
            units::count(validation.len() as u64)
        );
        let pad = tokenizer.special(Special::Pad).unwrap_or(0);
        let mut model = Model { transformer: Transformer::fresh(&config, ctx.seed), tokenizer };
        let windows = |stream| Windows::new(stream, config.seq_len, pad);
        let (train, validation) = (windows(&train), windows(&validation));
        let folder = ctx.output("model")?;
        train::run(&mut model, &train, &validation, &params.options(ctx.seed), folder, ctx.monitor)?;
        HeldOut::load(ctx.input("shards")?.file(held_out::FILE_NAME)?)?.save(folder)?;
        model.save(folder)
    }
}

/// The shards of an artifact, which must be of `tokenizer`.
fn open(artifact: &Artifact, tokenizer: &Tokenizer) -> Result<Shards> {
    let files: Vec<(String, PathBuf)> =
        artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
    let shards = Shards::open(&files)?;
    if shards.tokenizer == tokenizer.digest() {
        return Ok(shards);
    }
    Err(Error::input(format!(
        "the shards of `{}` were encoded with the tokenizer {}, connected is {}",
        artifact.label,
        shards.tokenizer.short(),
        tokenizer.digest().short()
    ))
    .help("connect the same tokenizer to `shard` and `pretrain`"))
}

/// What was given to validate on, else what the shards hold out.
fn validation(ctx: &Context, shards: &Shards, tokenizer: &Tokenizer) -> Result<TokenStream> {
    let Some(artifact) = ctx.optional("validation") else { return shards.read(Split::Validation) };
    let given = open(artifact, tokenizer)?;
    let trained = shards.ids(&[Split::Train])?;
    let both = [Split::Train, Split::Validation];
    let known = given.ids(&both)?.iter().filter(|id| trained.contains(*id)).count();
    if known > 0 {
        tracing::warn!(
            "{known} texts of `{}` are trained on, too: the validation loss is too low",
            artifact.label
        );
    }
    if shards.validation_documents > 0 {
        tracing::warn!(
            "{} texts that `{}` holds out are neither trained nor validated on: give it `validation_fraction: 0`",
            units::count(shards.validation_documents),
            ctx.input("shards")?.label
        );
    }
    let mut all = given.read(Split::Train)?;
    all.append(&given.read(Split::Validation)?);
    Ok(all)
}
