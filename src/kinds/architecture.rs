//! The params that say what a new model's architecture is, and what becomes of a connected one: those of every
//! kind that trains on token shards, written once.

use serde_json::{Map, Value};

use super::{facts, tokenizers};
use crate::base::{Result, units};
use crate::model::{self, Config, Model, Transformer};
use crate::stage::{Artifact, Connected, Facts, Issue};
use crate::tokenizer::{Names, Tokenizer};
use crate::train::{self, Embedding};

/// Defines a params struct with those of the architecture, of [`training_params`], and the given own fields.
/// `preset` is the documented default of the param of this name.
///
/// [`training_params`]: super::training_params
macro_rules! architecture_params {
    (
        $(#[$doc:meta])* $name:ident;
        preset $preset:literal
        defaults { $($defaults:tt)* }
        own { $($own:tt)* }
    ) => {
        crate::kinds::training_params::training_params! {
            $(#[$doc])* $name;
            defaults { $($defaults)* }
            own {
                /// A named architecture, such as `tinylm-1.5m`, `small` or `modern-1.5m`; an unknown name lists
                /// all. The params up to `init` replace parts of it.
                #[doc = $preset]
                preset: Option<String> = None,
                /// Tokens that the model has room for.
                vocab_size: Option<usize> = None,
                /// Width of the residual stream.
                d_model: Option<usize> = None,
                /// Layers.
                n_layer: Option<usize> = None,
                /// Attention heads; without `d_head` it must divide `d_model`.
                n_head: Option<usize> = None,
                /// Heads of keys and values; must divide `n_head`. As many is multi-head, fewer grouped-query,
                /// one multi-query attention. Default: the preset's, or `n_head` where that is the preset's.
                n_kv_head: Option<usize> = None,
                /// Width of a head. Default: the preset's, or `d_model` over `n_head` where one of them is
                /// given.
                d_head: Option<usize> = None,
                /// Width of the feed-forward layer. Default: the preset's, or where `d_model` or `gated` is
                /// given, four times `d_model`; gated, 8/3 of it, rounded up to a multiple of 32.
                d_ff: Option<usize> = None,
                /// The longest sequence in tokens.
                seq_len: Option<usize> = None,
                /// How a token learns where it stands: `learned` vectors, `sinusoidal` ones, `rotary` queries
                /// and keys (RoPE), `none`.
                position: Option<crate::model::Position> = None,
                /// Base of the rotary frequencies.
                rope_base: Option<f64> = None,
                /// YaRN: rotary frequencies for sequences that are longer than those of pretraining,
                /// `{ factor: 4, original_seq_len: 256 }`.
                rope_scaling: Option<crate::model::Yarn> = None,
                /// `layer_norm` or `rms_norm`.
                norm: Option<crate::model::Norm> = None,
                /// Whether norms have a learned weight.
                norm_weight: Option<bool> = None,
                /// Whether norms have a learned bias.
                norm_bias: Option<bool> = None,
                /// Added to the variance or mean square.
                norm_eps: Option<f64> = None,
                /// Whether norms stand before each sublayer (`pre`) or behind it (`post`).
                placement: Option<crate::model::Placement> = None,
                /// Whether queries and keys are normalized.
                qk_norm: Option<bool> = None,
                /// Whether the embedding is normalized.
                embed_norm: Option<bool> = None,
                /// Whether the embedding is multiplied by the root of `d_model`.
                embed_scale: Option<bool> = None,
                /// Whether each block begins with a learned mix of its input and the embedding.
                residual_mix: Option<bool> = None,
                /// Of the feed-forward layer: `gelu_tanh`, `gelu` (exact), `relu2`, `silu`.
                activation: Option<crate::model::Activation> = None,
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
                init: Option<crate::model::Init> = None,
                /// With a connected model, what becomes of its embedding: it stays the `same`, for the same
                /// tokens; rows of tokens of the same text stay (`match`); it begins anew (`new`).
                embedding: crate::train::Embedding = crate::train::Embedding::Same,
                $($own)*
            }
        }

        impl $name {
            /// What of the architecture's params is given.
            fn architecture(&self) -> crate::kinds::architecture::Architecture {
                crate::kinds::architecture::Architecture::of(self)
            }
        }
    };
}

pub(super) use architecture_params;

/// The architecture of a new model without a `preset`.
const DEFAULT_PRESET: &str = "tinylm-1.5m";

/// Fields of [`Config`] that a trained model can be given anew; all others are fixed by its weights.
const FREE: [&str; 4] = ["vocab_size", "seq_len", "dropout", "rope_scaling"];

/// The architecture's params as they were given.
pub(super) struct Architecture {
    pub preset: Option<String>,
    pub embedding: Embedding,
    /// Of the fields of [`Config`] those that are given.
    given: Map<String, Value>,
}

impl Architecture {
    /// Those of a kind's params that say what the architecture is.
    ///
    /// # Panics
    /// When `params` are not made by [`architecture_params`].
    pub fn of(params: &impl serde::Serialize) -> Self {
        let Ok(Value::Object(mut all)) = serde_json::to_value(params) else { panic!("params are a map") };
        let read = "params of this type";
        let preset = serde_json::from_value(all["preset"].take()).expect(read);
        let embedding = serde_json::from_value(all["embedding"].take()).expect(read);
        let fields = fields_of(model::gpt2(1, 1, 1, 1, 1));
        all.retain(|name, value| fields.contains_key(name) && !value.is_null());
        Architecture { preset, embedding, given: all }
    }

    fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.given.get(name)?.as_u64()
    }

    /// Of a new model: the preset's, of which params replace parts.
    ///
    /// # Errors
    /// When there is no such preset.
    pub fn config(&self) -> Result<Config> {
        Ok(self.replacing(model::preset(self.preset.as_deref().unwrap_or(DEFAULT_PRESET))?))
    }

    /// `base` with the params that are given in place of its own fields.
    pub fn replacing(&self, base: &Config) -> Config {
        let mut fields = fields_of(base.clone());
        fields.extend(self.given.clone());
        let config: Config =
            serde_json::from_value(fields.into()).expect("params have the types of the fields");
        let Config { d_model, n_head, gated, .. } = config;
        let has_shape = self.has("d_model") || self.has("n_head");
        let wide = if gated { (8 * d_model).div_ceil(3).next_multiple_of(32) } else { 4 * d_model };
        let is_multi_head = base.n_kv_head == base.n_head;
        let else_if = |name, condition: bool, derived, own| match condition && !self.has(name) {
            true => derived,
            false => own,
        };
        Config {
            n_kv_head: else_if("n_kv_head", is_multi_head, n_head, config.n_kv_head),
            d_head: else_if("d_head", has_shape, d_model / n_head.max(1), config.d_head),
            d_ff: else_if("d_ff", self.has("d_model") || gated != base.gated, wide, config.d_ff),
            logit_cap: config.logit_cap.filter(|cap| *cap != 0.0),
            ..config
        }
    }

    /// What the architecture of a new model gets wrong.
    pub fn validate(&self, config: &Config) -> Option<Issue> {
        let Config { d_model, n_head, .. } = *config;
        let has_remainder = n_head > 0 && !d_model.is_multiple_of(n_head);
        if !self.has("d_head") && (self.has("d_model") || self.has("n_head")) && has_remainder {
            let what = format!("{n_head} heads do not divide `d_model: {d_model}`");
            return Some(Issue::param("n_head", what).help("set `d_head`, or another number of heads"));
        }
        config.validate().err().map(Issue::from)
    }

    /// What does not go together with a model to begin with, or without one.
    pub fn validate_warm_start(&self, inputs: &Connected) -> Vec<Issue> {
        if inputs.get("model").is_empty() {
            let what = "it says what becomes of a model's embedding, and no model is connected";
            let issue = Issue::param("embedding", what).help("connect one to `model`");
            return if self.embedding == Embedding::Same { Vec::new() } else { vec![issue] };
        }
        let preset = self.preset.as_ref().map(|_| "preset");
        let fixed = self.given.keys().map(String::as_str).filter(|name| !FREE.contains(name));
        let mut issues: Vec<Issue> = preset
            .into_iter()
            .chain(fixed)
            .map(|name| {
                Issue::param(name, "the architecture is that of the connected model")
                    .help("leave it away, or connect no model to `model`")
            })
            .collect();
        if self.embedding == Embedding::Same && self.has("vocab_size") {
            let what = "with `embedding: same` the vocabulary is that of the connected model";
            issues.push(
                Issue::param("vocab_size", what).help("leave it away, or set `embedding: match` or `new`"),
            );
        }
        issues
    }

    /// What is known before it runs of a model that begins with the connected one. `new` are the `vocab_size`
    /// and `seq_len` of a model that begins anew, `config` its other parts.
    pub fn facts(&self, new: [Option<u64>; 2], config: Option<Config>, inputs: &Connected) -> Facts {
        let known = |port, fact| inputs.number(port, fact).map(|(_, n)| n);
        let ([mut vocab_size, mut seq_len], mut config) = (new, config);
        if let Some(model) = inputs.get("model").first() {
            vocab_size = match self.embedding {
                Embedding::Same => known("model", "vocab_size"),
                _ => self.number("vocab_size").or(known("tokenizer", "vocab_size")),
            };
            seq_len = self.number("seq_len").or(known("model", "seq_len"));
            config = facts::config(model).map(|base| self.replacing(&base));
        }
        let mut facts = facts::of_model(vocab_size, seq_len, config);
        facts.extend(facts::of_same_tokenizer(inputs, "tokenizer"));
        facts
    }

    /// The model in `artifact` for the tokens of `tokenizer`.
    ///
    /// # Errors
    /// When it cannot be read, or its tokens or positions are others.
    pub fn warm_start(&self, artifact: &Artifact, tokenizer: &Tokenizer, seed: u64) -> Result<Transformer> {
        let own = tokenizers::load(artifact, Names::default())?;
        let mut model = Model::open(&artifact.as_files(), own)?;
        model.transformer = model.transformer.dequantized();
        let vocab_size = self.number("vocab_size").map(|n| n as usize);
        let start = train::warm_start(model, tokenizer, self.embedding, vocab_size, seed)?;
        tracing::info!(
            "{} of {} tokens kept their row of the embedding",
            units::count(start.kept as u64),
            units::count(tokenizer.vocab_size() as u64)
        );
        if self.embedding == Embedding::Match && start.kept == 0 {
            tracing::warn!("the model's vocabulary has none of the tokens: nothing of its embedding is kept");
        }
        let mut transformer = start.transformer;
        let given = self.replacing(&transformer.config);
        transformer.config.dropout = given.dropout;
        transformer.with_positions(given.seq_len, given.rope_scaling)
    }
}

fn fields_of(config: Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => panic!("a configuration is a map of its fields"),
    }
}
