//! `pretrain`: a new model, or one to go on from, trained to continue the documents of token shards.

use std::path::{Path, PathBuf};

use super::texts::held_out_by;
use super::tokenizers;
use super::training;
use super::training_params::{NOT_IN_KEY, NOT_IN_STATE, training_params};
use crate::base::{Error, Result, units};
use crate::corpus::held_out::{self, HeldOut, Split};
use crate::model::{self, CONFIG_FILE, Config, Model, Transformer, WEIGHTS_FILE};
use crate::shard::{Shards, TokenStream};
use crate::stage::{Artifact, Connected, Context, Facts, Info, Issue, Kind, Port, Resume};
use crate::tokenizer::{Names, Special, Tokenizer};
use crate::train::{self, Embedding, NextToken, Windows};

pub struct Pretrain;

training_params! {
    /// The model's architecture and how it is trained.
    Params;
    defaults { steps: 600, learning_rate: 0.002, warmup_steps: 50 }
    own {
        /// A named architecture, such as `tinylm-1.5m`, `small` or `modern-1.5m`; an unknown name lists all.
        /// The params up to `init` replace parts of it. Default: `tinylm-1.5m`, or the connected model's.
        preset: Option<String> = None,
        /// Tokens that the model has room for.
        vocab_size: Option<usize> = None,
        /// Width of the residual stream.
        d_model: Option<usize> = None,
        /// Layers.
        n_layer: Option<usize> = None,
        /// Attention heads; without `d_head` it must divide `d_model`.
        n_head: Option<usize> = None,
        /// Heads of keys and values; must divide `n_head`. As many is multi-head, fewer grouped-query, one
        /// multi-query attention. Default: the preset's, or `n_head` where that is the preset's.
        n_kv_head: Option<usize> = None,
        /// Width of a head. Default: the preset's, or `d_model` over `n_head` where one of them is given.
        d_head: Option<usize> = None,
        /// Width of the feed-forward layer. Default: the preset's, or where `d_model` or `gated` is given,
        /// four times `d_model`; gated, 8/3 of it, rounded up to a multiple of 32.
        d_ff: Option<usize> = None,
        /// The longest sequence in tokens.
        seq_len: Option<usize> = None,
        /// How a token learns where it stands: `learned` vectors, `sinusoidal` ones, `rotary` queries and
        /// keys (RoPE), `none`.
        position: Option<model::Position> = None,
        /// Base of the rotary frequencies.
        rope_base: Option<f64> = None,
        /// YaRN: rotary frequencies for sequences that are longer than those of pretraining,
        /// `{ factor: 4, original_seq_len: 256 }`.
        rope_scaling: Option<model::Yarn> = None,
        /// `layer_norm` or `rms_norm`.
        norm: Option<model::Norm> = None,
        /// Whether norms have a learned weight.
        norm_weight: Option<bool> = None,
        /// Whether norms have a learned bias.
        norm_bias: Option<bool> = None,
        /// Added to the variance or mean square.
        norm_eps: Option<f64> = None,
        /// Whether norms stand before each sublayer (`pre`) or behind it (`post`).
        placement: Option<model::Placement> = None,
        /// Whether queries and keys are normalized.
        qk_norm: Option<bool> = None,
        /// Whether the embedding is normalized.
        embed_norm: Option<bool> = None,
        /// Whether the embedding is multiplied by the root of `d_model`.
        embed_scale: Option<bool> = None,
        /// Whether each block begins with a learned mix of its input and the embedding.
        residual_mix: Option<bool> = None,
        /// Of the feed-forward layer: `gelu_tanh`, `gelu` (exact), `relu2`, `silu`.
        activation: Option<model::Activation> = None,
        /// Whether the feed-forward layer is gated: with `silu` SwiGLU, with `gelu` GeGLU.
        gated: Option<bool> = None,
        /// Whether linear layers of attention have a bias.
        attn_bias: Option<bool> = None,
        /// Whether linear layers of the feed-forward part have a bias.
        mlp_bias: Option<bool> = None,
        /// Whether the output projection has a bias.
        head_bias: Option<bool> = None,
        /// Whether the output projection is the token embedding.
        tied: Option<bool> = None,
        /// Logits become `cap tanh(logit / cap)`. 0: they stay as they are.
        logit_cap: Option<f64> = None,
        /// How weights begin: `gpt2`, `normal`, `xavier`, `zero_output`.
        init: Option<model::Init> = None,
        /// With a connected model, what becomes of its embedding: it stays the `same`, for the same tokens;
        /// rows of tokens of the same text stay (`match`); it begins anew (`new`).
        embedding: Embedding = Embedding::Same,
        /// Tokens from the beginning of one training sequence to that of the next. Default: `seq_len`, end to
        /// end; below it they overlap.
        stride: Option<usize> = None,
    }
}

/// The params that say what the architecture is; not those that a trained model can be given anew.
const ARCHITECTURE: [&str; 26] = [
    "preset",
    "d_model",
    "n_layer",
    "n_head",
    "n_kv_head",
    "d_head",
    "d_ff",
    "position",
    "rope_base",
    "norm",
    "norm_weight",
    "norm_bias",
    "norm_eps",
    "placement",
    "qk_norm",
    "embed_norm",
    "embed_scale",
    "residual_mix",
    "activation",
    "gated",
    "attn_bias",
    "mlp_bias",
    "head_bias",
    "tied",
    "logit_cap",
    "init",
];

/// `base` with the params of these names in place of its own.
macro_rules! replaced {
    ($base:expr, $params:ident: $($field:ident),*) => {
        Config { $($field: $params.$field.unwrap_or($base.$field),)* ..$base.clone() }
    };
}

impl Params {
    fn config(&self) -> Result<Config> {
        let base = model::preset(self.preset.as_deref().unwrap_or("tinylm-1.5m"))?;
        let config = replaced!(
            base, self: vocab_size, d_model, n_layer, n_head, n_kv_head, d_head, d_ff, seq_len, dropout, position,
            rope_base, norm, norm_weight, norm_bias, norm_eps, placement, qk_norm, embed_norm, embed_scale,
            residual_mix, activation, gated, attn_bias, mlp_bias, head_bias, tied, init
        );
        let Config { d_model, n_head, gated, .. } = config;
        let (has_width, has_heads) = (self.d_model.is_some(), self.n_head.is_some());
        let wide = if gated { (8 * d_model).div_ceil(3).next_multiple_of(32) } else { 4 * d_model };
        let multi_head = base.n_kv_head == base.n_head;
        Ok(Config {
            n_kv_head: self.n_kv_head.unwrap_or(if multi_head { n_head } else { base.n_kv_head }),
            d_head: self.d_head.unwrap_or(if has_width || has_heads {
                d_model / n_head.max(1)
            } else {
                base.d_head
            }),
            d_ff: self.d_ff.unwrap_or(if has_width || gated != base.gated { wide } else { base.d_ff }),
            logit_cap: self.logit_cap.or(base.logit_cap).filter(|cap| *cap != 0.0),
            rope_scaling: self.rope_scaling.or(base.rope_scaling),
            ..config
        })
    }

    /// What the architecture gets wrong.
    fn validate_architecture(&self, config: &Config) -> Option<Issue> {
        let Config { d_model, n_head, .. } = *config;
        let has_remainder = n_head > 0 && !d_model.is_multiple_of(n_head);
        if self.d_head.is_none() && (self.d_model.is_some() || self.n_head.is_some()) && has_remainder {
            let what = format!("{n_head} heads do not divide `d_model: {d_model}`");
            return Some(Issue::param("n_head", what).help("set `d_head`, or another number of heads"));
        }
        config.validate().err().map(Issue::from)
    }

    /// What does not go together with a model to begin with.
    fn validate_warm_start(&self) -> Vec<Issue> {
        let given = serde_json::to_value(self).unwrap_or_default();
        let fixed = ARCHITECTURE.iter().filter(|name| !given[**name].is_null());
        let mut issues: Vec<Issue> = fixed
            .map(|name| {
                Issue::param(name, "the architecture is that of the connected model")
                    .help("leave it away, or connect no model to `model`")
            })
            .collect();
        if self.embedding == Embedding::Same && self.vocab_size.is_some() {
            let what = "with `embedding: same` the vocabulary is that of the connected model";
            issues.push(
                Issue::param("vocab_size", what).help("leave it away, or set `embedding: match` or `new`"),
            );
        }
        issues
    }

    /// The connected model for the tokens of `tokenizer`.
    fn warm_start(&self, model: Model, tokenizer: &Tokenizer, seed: u64) -> Result<Transformer> {
        let start = train::warm_start(model, tokenizer, self.embedding, self.vocab_size, seed)?;
        tracing::info!(
            "{} of {} tokens kept their row of the embedding",
            units::count(start.kept as u64),
            units::count(tokenizer.vocab_size() as u64)
        );
        if self.embedding == Embedding::Match && start.kept == 0 {
            tracing::warn!("the model's vocabulary has none of the tokens: nothing of its embedding is kept");
        }
        let mut transformer = start.transformer;
        let config = &mut transformer.config;
        config.dropout = self.dropout.unwrap_or(config.dropout);
        let seq_len = self.seq_len.unwrap_or(config.seq_len);
        let rope_scaling = self.rope_scaling.or(config.rope_scaling);
        transformer.with_positions(seq_len, rope_scaling)
    }
}

impl Kind for Pretrain {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "pretrain",
            version: 6, // 5: `held_out.json` beside the model; 6: architectures and recipes
            summary: "Trains a decoder-only transformer on token shards, a new one or one to go on from.",
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
                Port::new("model", "model", "A model to begin with, instead of a fresh one.").optional(),
            ],
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.safetensors`, `config.json`, `tokenizer.json`; `held_out.json`, metrics and samples.",
            )],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: NOT_IN_KEY,
            not_in_state: NOT_IN_STATE,
        }
    }

    fn outputs(params: &Params) -> Vec<Port> {
        let checkpoints = training::checkpoints(&params.keep_checkpoints);
        Self::info().outputs.into_iter().chain(checkpoints).collect()
    }

    fn resumes(params: &Params, seed: u64, state: &Path) -> Option<Resume> {
        training::resumes(&params.options(seed), state)
    }

    fn committed(params: &Params, seed: u64, state: &Path) {
        train::remove_used(&params.options(seed), state);
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let config = match params.config() {
            Ok(config) => config,
            Err(e) => return vec![Issue::param("preset", e.to_string())],
        };
        let mut issues = params.validate_training();
        if params.stride == Some(0) {
            issues.push(Issue::param("stride", "expected 1 or more, found 0"));
        }
        if !inputs.get("model").is_empty() {
            issues.extend(params.validate_warm_start());
            return issues;
        }
        if params.embedding != Embedding::Same {
            let what = "it says what becomes of a model's embedding, and no model is connected";
            issues.push(Issue::param("embedding", what).help("connect one to `model`"));
        }
        issues.extend(params.validate_architecture(&config));
        let room = config.vocab_size as u64;
        issues.extend(tokenizers::fits(inputs, room, |size| {
            format!("set `params.vocab_size: {size}` here, or train a tokenizer of at most {room}")
        }));
        issues
    }

    fn facts(params: &Params, inputs: &Connected, _: &str) -> Facts {
        let is_new = inputs.get("model").is_empty();
        let Some(config) = params.config().ok() else { return Facts::new() };
        let known = |port, fact| inputs.number(port, fact).map(|(_, n)| n);
        let given = |n: Option<usize>| n.map(|n| n as u64);
        let vocab_size = match params.embedding {
            _ if is_new => Some(config.vocab_size as u64),
            Embedding::Same => known("model", "vocab_size"),
            _ => given(params.vocab_size).or(known("tokenizer", "vocab_size")),
        };
        let seq_len = if is_new {
            Some(config.seq_len as u64)
        } else {
            given(params.seq_len).or(known("model", "seq_len"))
        };
        let facts = [("vocab_size", vocab_size), ("seq_len", seq_len)];
        facts.into_iter().filter_map(|(name, n)| Some((name.to_string(), n?.into()))).collect()
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        // The special tokens are those that the shards were made with.
        let names = tokenizers::names(ctx.input("shards")?)?;
        let tokenizer = Tokenizer::load_with(tokenizers::path(ctx.input("tokenizer")?)?, &names)?;
        let shards = open(ctx.input("shards")?, &tokenizer)?;
        let transformer = begin(params, ctx, &tokenizer)?;
        let (train, validation) = (shards.read(Split::Train)?, validation(ctx, &shards, &tokenizer)?);
        tracing::info!(
            "{} tokens to train on, {} to validate on",
            units::count(train.len() as u64),
            units::count(validation.len() as u64)
        );
        let pad = tokenizer.special(Special::Pad).unwrap_or(0);
        let seq_len = transformer.config.seq_len;
        let mut model = Model { transformer, tokenizer };
        let windows = |stream| Windows::new(stream, seq_len, pad);
        let train = windows(&train).every(params.stride.unwrap_or(seq_len));
        let places = training::places(ctx, "model")?;
        let mut objective = NextToken { label_smoothing: params.label_smoothing };
        let options = params.options(ctx.seed);
        let validation = windows(&validation);
        let outcome =
            train::run(&mut model, &mut objective, &train, &validation, &options, places, ctx.monitor)?;
        let held_out = held_out(ctx)?;
        held_out.save(places.output)?;
        model.save(places.output)?;
        training::save_checkpoints(ctx, &mut model, &outcome, &held_out)
    }
}

/// A fresh model, or the connected one.
fn begin(params: &Params, ctx: &Context, tokenizer: &Tokenizer) -> Result<Transformer> {
    let Some(artifact) = ctx.optional("model") else {
        let (config, size) = (params.config()?, tokenizer.vocab_size());
        config.fits(tokenizer).map_err(|e| e.help(format!("set `vocab_size: {size}`")))?;
        return Ok(Transformer::fresh(&config, ctx.seed));
    };
    let own = tokenizers::load(artifact, Names::default())?;
    let model = Model::load(artifact.file(CONFIG_FILE)?, artifact.file(WEIGHTS_FILE)?, own)?;
    params.warm_start(model, tokenizer, ctx.seed)
}

/// What this training holds out, and those of the model that it begins with.
fn held_out(ctx: &Context) -> Result<HeldOut> {
    let mut all = ctx.optional("model").map_or(Ok(HeldOut::default()), held_out_by)?;
    let own = HeldOut::load(ctx.input("shards")?.file(held_out::FILE_NAME)?)?;
    all.documents.extend(own.documents);
    all.conversations.extend(own.conversations);
    Ok(all)
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::shard::Shard;
    use super::super::texts::fixtures;
    use super::*;
    use crate::stage::harness;

    fn params(json: Value) -> Params {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn params_replace_parts_of_a_preset() {
        let config = |json| params(json).config().unwrap();
        assert_eq!(config(json!({})), *model::preset("tinylm-1.5m").unwrap());
        let narrow = config(json!({ "preset": "modern-1.5m", "d_model": 96, "n_head": 3 }));
        assert_eq!([narrow.d_head, narrow.n_kv_head, narrow.d_ff], [32, 3, 256]);
        let gated = config(json!({ "gated": true, "activation": "silu", "norm": "rms_norm" }));
        assert_eq!(
            (gated.d_ff, gated.activation, gated.norm),
            (352, model::Activation::Silu, model::Norm::RmsNorm)
        );
        let few = config(json!({ "preset": "gqa-26m", "n_layer": 2 }));
        assert_eq!(few, Config { n_layer: 2, ..model::preset("gqa-26m").unwrap().clone() });
        let wide = config(json!({ "d_head": 64, "n_kv_head": 2, "d_model": 64 }));
        assert_eq!([wide.d_head, wide.n_kv_head, wide.n_head, wide.d_ff], [64, 2, 4, 256]);
        assert_eq!(config(json!({ "preset": "record-1.5m", "logit_cap": 0 })).logit_cap, None);
    }

    #[test]
    fn params_that_are_wrong_or_mean_nothing_are_pointed_at() {
        for (json, at) in [
            (json!({ "d_model": 100, "n_head": 3 }), "n_head"),
            (json!({ "n_kv_head": 3 }), "n_kv_head"),
            (json!({ "rope_scaling": { "factor": 2, "original_seq_len": 64 } }), "rope_scaling"),
            (json!({ "logit_cap": 0.5 }), "logit_cap"),
            (json!({ "stride": 0 }), "stride"),
            (json!({ "steps": 0 }), "steps"),
            (json!({ "steps": 5, "epochs": 2 }), "epochs"),
            (json!({ "epochs": 0 }), "epochs"),
            (json!({ "embedding": "match" }), "embedding"),
            (json!({ "muon_learning_rate": 0.02 }), "muon_learning_rate"),
            (json!({ "optimizer": "sgd", "beta1": 0.8 }), "beta1"),
            (json!({ "momentum": 0.9 }), "momentum"),
            (json!({ "decay_fraction": 0.2 }), "decay_fraction"),
            (json!({ "schedule": "constant", "min_learning_rate": 0.0 }), "min_learning_rate"),
            (json!({ "optimizer": "muon", "muon_learning_rate": 1.5 }), "muon_learning_rate"),
            (json!({ "schedule": "wsd", "decay_fraction": 0.0 }), "decay_fraction"),
            (json!({ "warmup_start": 1.5 }), "warmup_start"),
            (json!({ "label_smoothing": 1.0 }), "label_smoothing"),
            (json!({ "average": 1.0 }), "average"),
            (json!({ "weight_decay": -0.1 }), "weight_decay"),
            (json!({ "keep_checkpoints": [4, 4] }), "keep_checkpoints"),
            (json!({ "keep_checkpoints": [0] }), "keep_checkpoints"),
            (json!({ "keep_checkpoints": [601] }), "keep_checkpoints"),
            (json!({ "keep_checkpoints": [5], "patience": 2 }), "keep_checkpoints"),
            (json!({ "save_minutes": -1.0 }), "save_minutes"),
        ] {
            let issues = Pretrain::validate(&params(json.clone()), &Connected::default());
            let found: Vec<&str> = issues.iter().map(|issue| issue.at.as_str()).collect();
            assert_eq!(found, [format!("params.{at}")], "{json}: {issues:?}");
        }
        let fine = json!({ "optimizer": "muon", "muon_learning_rate": 0.03, "momentum": 0.9, "beta1": 0.8,
            "schedule": "wsd", "decay_fraction": 0.2, "min_learning_rate": 0.01, "learning_rate": 0.002 });
        let issues = Pretrain::validate(&params(fine), &Connected::default());
        assert!(issues.is_empty(), "a floor above the peak is only warned of: {issues:?}");
    }

    #[test]
    fn every_part_of_the_architecture_is_fixed_by_a_connected_model() {
        let free = ["vocab_size", "seq_len", "dropout", "rope_scaling"];
        let config = serde_json::to_value(params(json!({})).config().unwrap()).unwrap();
        for name in config.as_object().unwrap().keys() {
            assert!(free.contains(&name.as_str()) != ARCHITECTURE.contains(&name.as_str()), "{name}");
        }
    }

    fn tokenizer(name: &str) -> Artifact {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/");
        harness::artifact("tokenizer", &std::path::Path::new(folder).join(name)).unwrap()
    }

    fn shards(name: &str) -> harness::Outcome {
        let inputs = [("docs", fixtures::docs(40)), ("tokenizer", tokenizer(name))];
        harness::run::<Shard>("{ validation_fraction: 0.2 }", &inputs, 1).unwrap()
    }

    fn pretrain(params: &str, name: &str, model: Option<Artifact>) -> Result<harness::Outcome> {
        let shards = shards(name);
        let mut inputs = vec![("shards", shards.artifact("shards")?), ("tokenizer", tokenizer(name))];
        inputs.extend(model.map(|model| ("model", model)));
        harness::run::<Pretrain>(params, &inputs, 1)
    }

    fn first_loss(outcome: &harness::Outcome) -> f64 {
        let metrics = String::from_utf8(outcome.read("model", "metrics.jsonl")).unwrap();
        let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        first["loss"].as_f64().unwrap()
    }

    const SHAPE: &str = "vocab_size: 600, d_model: 16, n_layer: 1, n_head: 2, seq_len: 32, eval_every: 10";

    #[test]
    fn a_model_goes_on_with_its_own_or_another_vocabulary() {
        let base = pretrain(&format!("{{ {SHAPE}, steps: 60, learning_rate: 0.01 }}"), "byte_bpe.json", None);
        let base = base.unwrap();
        let go_on = |params: &str, name: &str| {
            let params = format!("{{ steps: 10, learning_rate: 0.0001, {params} }}");
            pretrain(&params, name, Some(base.artifact("model").unwrap()))
        };
        let same = go_on("dropout: 0", "byte_bpe.json").unwrap();
        let new = go_on("embedding: new", "byte_bpe.json").unwrap();
        assert!(first_loss(&same) + 0.3 < first_loss(&new), "{} {}", first_loss(&same), first_loss(&new));
        let config: Value = serde_json::from_slice(&same.read("model", "config.json")).unwrap();
        assert_eq!(config["vocab_size"], 600);
        let held_out = HeldOut::load(&same.path("model").join(held_out::FILE_NAME)).unwrap();
        assert_eq!(held_out.documents.len(), 2, "what both trainings held out");

        let error = go_on("dropout: 0", "wordpiece.json").err().unwrap().to_string();
        assert!(error.contains("for the model and"), "{error}");
        let matched = go_on("embedding: match", "wordpiece.json").unwrap();
        let config: Value = serde_json::from_slice(&matched.read("model", "config.json")).unwrap();
        let tokens = tokenizers::load(&tokenizer("wordpiece.json"), Names::default()).unwrap().vocab_size();
        assert_eq!(config["vocab_size"], tokens);
        let error = go_on("seq_len: 64", "byte_bpe.json").err().unwrap().to_string();
        assert!(error.contains("32 positions"), "{error}");
        let error = go_on("n_layer: 2", "byte_bpe.json").err().unwrap().to_string();
        assert!(error.contains("n_layer") && error.contains("connected model"), "{error}");
        let error = go_on("vocab_size: 700", "byte_bpe.json").err().unwrap().to_string();
        assert!(error.contains("embedding: same"), "{error}");
        let error = go_on("embedding: new, vocab_size: 9", "byte_bpe.json").err().unwrap().to_string();
        assert!(error.contains("room for 9"), "{error}");
    }

    /// A checkpoint is the model of a shorter training at the same rates, here one that was stopped and went
    /// on.
    #[test]
    fn checkpoints_are_models_of_shorter_trainings() {
        let shards = shards("byte_bpe.json");
        let state = tempfile::tempdir().unwrap();
        let run = |params: &str, state: Option<&Path>| {
            let params = format!(
                "{{ {SHAPE}, schedule: constant, keep: last, average: 0.9, batch_size: 4, {params} }}"
            );
            let inputs =
                [("shards", shards.artifact("shards").unwrap()), ("tokenizer", tokenizer("byte_bpe.json"))];
            harness::run_in_state::<Pretrain>(&params, &inputs, 1, 2, &crate::base::Quiet, state).unwrap()
        };
        run("steps: 3, keep_checkpoints: [2]", Some(state.path()));
        let wanted = "steps: 6, keep_checkpoints: [2, 4]";
        let typed = params(json!({ "schedule": "constant", "steps": 6, "keep_checkpoints": [2, 4] }));
        assert_eq!(
            Pretrain::resumes(&typed, 1, state.path()),
            Some(Resume { step: 3, steps: Some(6) }),
            "what the shorter training left"
        );
        let long = run(wanted, Some(state.path()));
        for step in [2, 4] {
            let short = run(&format!("steps: {step}"), None);
            let port = format!("step-{step}");
            for file in [WEIGHTS_FILE, CONFIG_FILE, "tokenizer.json", held_out::FILE_NAME] {
                assert_eq!(long.read(&port, file), short.read("model", file), "{file} of step {step}");
            }
        }
        assert_eq!(long.read("model", WEIGHTS_FILE), run("steps: 6", None).read("model", WEIGHTS_FILE));
    }

    #[test]
    fn a_model_of_rotary_positions_goes_on_with_longer_sequences() {
        let shape = "preset: modern-1.5m, vocab_size: 600, d_model: 16, n_layer: 1, n_head: 2, seq_len: 32";
        let muon = "optimizer: muon, label_smoothing: 0.1, stride: 16";
        let base = pretrain(&format!("{{ {shape}, {muon}, steps: 4 }}"), "byte_bpe.json", None).unwrap();
        let yarn = "{ steps: 2, seq_len: 64, rope_scaling: { factor: 2, original_seq_len: 32 } }";
        let longer = pretrain(yarn, "byte_bpe.json", Some(base.artifact("model").unwrap())).unwrap();
        let model = longer.artifact("model").unwrap();
        let config = model.file(CONFIG_FILE).unwrap();
        let longer = Transformer::load(config, model.file(WEIGHTS_FILE).unwrap()).unwrap();
        assert_eq!((longer.config.seq_len, longer.config.rope_scaling.unwrap().factor), (64, 2.0));
    }

    #[test]
    fn muon_learns_and_gives_the_same_bytes_on_any_number_of_threads() {
        let shards = shards("byte_bpe.json");
        let run = |optimizer: &str, threads| {
            let params = format!("{{ {SHAPE}, steps: 40, learning_rate: 0.004, dropout: 0, {optimizer} }}");
            let inputs =
                [("shards", shards.artifact("shards").unwrap()), ("tokenizer", tokenizer("byte_bpe.json"))];
            let outcome =
                harness::run_with::<Pretrain>(&params, &inputs, 1, threads, &crate::base::Quiet).unwrap();
            let metrics = String::from_utf8(outcome.read("model", "metrics.jsonl")).unwrap();
            let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
            (outcome.read("model", WEIGHTS_FILE), last["val_loss"].as_f64().unwrap())
        };
        let muon = "optimizer: muon, schedule: wsd, average: 0.9";
        let (one, two) = (run(muon, 1), run(muon, 3));
        assert!(one == two, "{} and {}", one.1, two.1);
        assert!(one.1 < 5.5, "fresh models have ln 600 = 6.4, this one {}", one.1);
    }
}
