//! `pretrain`: a new model, or one to go on from, trained to continue the documents of token shards.

use std::path::Path;

use super::architecture::architecture_params;
use super::streams::{self, Streams};
use super::tokenizers;
use super::training;
use super::training_params::{BF16_TILE, NOT_IN_KEY, NOT_IN_STATE};
use crate::base::Result;
use crate::model::{Model, Transformer};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port, Resume};
use crate::tokenizer::{Special, Tokenizer};
use crate::train::{self, NextToken, Windows};

pub struct Pretrain;

architecture_params! {
    /// The model's architecture and how it is trained.
    Params;
    preset "Default: `tinylm-1.5m`, or the connected model's."
    defaults { steps: 600, learning_rate: 0.002, warmup_steps: 50 }
    own {
        /// Tokens from the beginning of one training sequence to that of the next. Default: `seq_len`, end to
        /// end; below it they overlap.
        stride: Option<usize> = None,
    }
}

impl Kind for Pretrain {
    type Params = Params;

    fn info() -> Info {
        let mut inputs = streams::ports();
        inputs.push(Port::new("model", "model", "A model to begin with, instead of a fresh one.").optional());
        Info {
            name: "pretrain",
            version: 7, // 6: architectures and recipes; 7: a folder that `transformers` loads
            summary: "Trains a decoder-only transformer on token shards, a new one or one to go on from.",
            inputs,
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.safetensors` with what `transformers` loads beside it; `held_out.json`, metrics and samples.",
            )],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: NOT_IN_KEY,
            not_in_state: NOT_IN_STATE,
            value_versions: BF16_TILE,
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
        let architecture = params.architecture();
        let config = match architecture.config() {
            Ok(config) => config,
            Err(e) => return vec![Issue::param("preset", e.to_string())],
        };
        let mut issues = params.validate_training();
        if params.stride == Some(0) {
            issues.push(Issue::param("stride", "expected 1 or more, found 0"));
        }
        issues.extend(architecture.validate_warm_start(inputs));
        if !inputs.get("model").is_empty() {
            return issues;
        }
        issues.extend(architecture.validate(&config));
        let room = config.vocab_size as u64;
        issues.extend(tokenizers::fits(inputs, room, |size| {
            format!("set `params.vocab_size: {size}` here, or train a tokenizer of at most {room}")
        }));
        issues
    }

    fn facts(params: &Params, inputs: &Connected, _: &str) -> Facts {
        let architecture = params.architecture();
        let Ok(config) = architecture.config() else { return Facts::new() };
        let sizes = [config.vocab_size, config.seq_len].map(|n| Some(n as u64));
        architecture.facts(sizes, Some(config), inputs)
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let tokenizer = streams::tokenizer(ctx)?;
        let shards = streams::shards(ctx, &tokenizer)?;
        let transformer = begin(params, ctx, &tokenizer)?;
        let streams = Streams::read(ctx, &shards, &tokenizer)?;
        let pad = tokenizer.special(Special::Pad).unwrap_or(0);
        let seq_len = transformer.config.seq_len;
        let mut model = Model { transformer, tokenizer };
        let train = Windows::new(&streams.train, seq_len, pad).every(params.stride.unwrap_or(seq_len));
        let validation = Windows::new(&streams.validation, seq_len, pad);
        let places = training::places(ctx, "model")?;
        let mut objective = NextToken { label_smoothing: params.label_smoothing };
        let options = params.options(ctx.seed);
        let outcome =
            train::run(&mut model, &mut objective, &train, &validation, &options, places, ctx.monitor)?;
        let held_out = streams::held_out(ctx)?;
        held_out.save(places.output)?;
        model.save(places.output)?;
        training::save_checkpoints(ctx, &mut model, &outcome, &held_out)
    }
}

/// A fresh model, or the connected one.
fn begin(params: &Params, ctx: &Context, tokenizer: &Tokenizer) -> Result<Transformer> {
    let architecture = params.architecture();
    if let Some(artifact) = ctx.optional("model") {
        return architecture.warm_start(artifact, tokenizer, ctx.seed);
    }
    let (config, size) = (architecture.config()?, tokenizer.vocab_size());
    config.fits(tokenizer).map_err(|e| e.help(format!("set `vocab_size: {size}`")))?;
    Ok(Transformer::fresh(&config, ctx.seed))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::shard::Shard;
    use super::super::texts::fixtures;
    use super::*;
    use crate::corpus::held_out::{self, HeldOut};
    use crate::model::{self, CONFIG_FILE, Config, WEIGHTS_FILE};
    use crate::stage::{Artifact, harness};
    use crate::tokenizer::Names;

    fn params(json: Value) -> Params {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn params_replace_parts_of_a_preset() {
        let config = |json| params(json).architecture().config().unwrap();
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
    fn every_field_of_a_configuration_is_a_param() {
        let all = serde_json::to_value(Params::default()).unwrap();
        let config = serde_json::to_value(model::preset("tinylm-1.5m").unwrap()).unwrap();
        for name in config.as_object().unwrap().keys() {
            assert!(all.get(name).is_some(), "{name}");
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
