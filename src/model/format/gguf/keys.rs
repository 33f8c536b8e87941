//! What is computed, as keys of the metadata: those that llama.cpp reads for `gpt2`, `llama` and `qwen3`
//! (`llama-model.cpp`, `src/models/*.cpp`), and one of our own for whatever else there is.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;

use serde_json::json;

use super::value::Value;
use super::{ARCHITECTURE_KEY, FILE_TYPE_KEY, File, TOKENS_KEY};
use crate::base::{Error, Result, suggest};
use crate::model::format::gpt2::Gpt2;
use crate::model::format::{Format, llama, tinylm};
use crate::model::{Activation, Config, Norm, Placement, Position, Yarn, gpt2};

/// `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Gpt2,
    Llama,
    Qwen3,
    /// What llama.cpp does not compute, for ourselves.
    Tinylm,
}

/// All of them, the one to be preferred first.
const ALL: [Architecture; 4] =
    [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3, Architecture::Tinylm];

/// The key of the architecture `tinylm`: all fields of [`Config`], as JSON.
const CONFIG_KEY: &str = "tinylm.config";

impl Architecture {
    /// What llama.cpp calls a model that computes the same.
    pub fn of(config: &Config) -> Self {
        *ALL.iter().find(|a| a.holds(config)).expect("the last one holds everything")
    }

    pub fn name(self) -> &'static str {
        match self {
            Architecture::Gpt2 => "gpt2",
            Architecture::Llama => "llama",
            Architecture::Qwen3 => "qwen3",
            Architecture::Tinylm => "tinylm",
        }
    }

    /// Whether llama.cpp computes `c` so. Dropout and initialization are no part of a file.
    fn holds(self, c: &Config) -> bool {
        match self {
            Architecture::Gpt2 => Gpt2.holds(c) && c.activation == Activation::GeluTanh,
            Architecture::Llama => llama::shared(c) == *c && c.activation == Activation::Silu,
            Architecture::Qwen3 => {
                let same = Config { qk_norm: true, attn_bias: false, mlp_bias: false, ..llama::shared(c) };
                same == *c && c.activation == Activation::Silu
            }
            Architecture::Tinylm => true,
        }
    }

    fn of_file(file: &File) -> Result<Self> {
        let names = || ALL.iter().map(|a| a.name());
        let expected = || format!("expected {}", suggest::list(names()));
        let Some(value) = file.value(ARCHITECTURE_KEY) else {
            return Err(file.wrong(format_args!("has no key `{ARCHITECTURE_KEY}`: {}", expected())));
        };
        let found = value.as_str().and_then(|name| ALL.iter().find(|a| a.name() == name));
        found.copied().ok_or_else(|| {
            file.wrong(format_args!("`{ARCHITECTURE_KEY}` is {value}: {}", expected()))
                .help("no other architecture is computed")
        })
    }
}

/// Why llama.cpp does not compute `c`; `None` when it does.
pub fn why_not_llama_cpp(c: &Config) -> Option<&'static str> {
    if Architecture::of(c) != Architecture::Tinylm {
        return None;
    }
    let gpt2 = c.norm == Norm::LayerNorm;
    let reasons = [
        (c.placement == Placement::Post, "norms after each sublayer (`placement: post`)"),
        (c.position == Position::Sinusoidal, "sinusoidal positions"),
        (c.position == Position::None, "a model without positions"),
        (!c.norm_weight, "norms without weights"),
        (c.residual_mix, "embeddings mixed into each block (`residual_mix`)"),
        (c.embed_norm, "a norm of the embedding"),
        (c.embed_scale, "scaled embeddings"),
        (c.logit_cap.is_some(), "capped logits (`logit_cap`)"),
        (c.head_bias, "a bias of the output"),
        (c.activation == Activation::Relu2, "squared ReLU"),
        (c.activation == Activation::Gelu, "exact GELU (llama.cpp has the form with tanh, `gelu_tanh`)"),
        (gpt2 && c.position == Position::Rotary, "LayerNorm with rotary positions"),
        (!gpt2 && c.position == Position::Learned, "RMSNorm with learned positions"),
        (gpt2 && c.gated, "a gated feed-forward part with LayerNorm"),
        (!gpt2 && !c.gated, "a feed-forward part without gate with RMSNorm"),
        (!gpt2 && c.norm_bias, "RMSNorm with biases"),
        (gpt2 && !c.norm_bias, "LayerNorm without biases"),
        (gpt2 && c.qk_norm, "LayerNorm with norms of queries and keys"),
        (gpt2 && !(c.attn_bias && c.mlp_bias), "linear layers without biases in a model of GPT-2's kind"),
        (gpt2 && c.n_kv_head != c.n_head, "grouped-query attention in a model of GPT-2's kind"),
        (gpt2 && c.n_head * c.d_head != c.d_model, "heads that do not divide the width in GPT-2's kind"),
        (c.qk_norm && (c.attn_bias || c.mlp_bias), "biases with norms of queries and keys"),
        (!gpt2 && c.activation != Activation::Silu, "a gate other than SwiGLU's"),
        (gpt2 && c.activation != Activation::GeluTanh, "an activation other than GELU in GPT-2's kind"),
    ];
    let found = reasons.iter().find(|(is, _)| *is);
    Some(found.map_or("this architecture", |(_, what)| what))
}

/// The keys that say what is computed, in the order of llama.cpp's converter, with a place for the type of
/// the file.
pub fn metadata(config: &Config) -> Vec<(String, Value)> {
    let architecture = Architecture::of(config);
    let mut keys = Written { architecture: architecture.name(), all: Vec::new() };
    keys.general(ARCHITECTURE_KEY, architecture.name());
    keys.general("general.type", "model");
    keys.general("general.name", "tinylm");
    match architecture {
        Architecture::Tinylm => keys.general(CONFIG_KEY, json!(config).to_string()),
        _ => keys.sizes(config, architecture),
    }
    keys.general(FILE_TYPE_KEY, 0u32);
    keys.general("general.quantization_version", 2u32);
    keys.all
}

/// Keys that are to be written.
struct Written {
    architecture: &'static str,
    all: Vec<(String, Value)>,
}

impl Written {
    fn general(&mut self, key: &str, value: impl Into<Value>) {
        self.all.push((key.to_string(), value.into()));
    }

    fn own(&mut self, key: &str, value: impl Into<Value>) {
        self.general(&format!("{}.{key}", self.architecture), value);
    }

    fn sizes(&mut self, c: &Config, architecture: Architecture) {
        self.own("block_count", c.n_layer as u32);
        self.own("context_length", c.seq_len as u32);
        self.own("embedding_length", c.d_model as u32);
        self.own("feed_forward_length", c.d_ff as u32);
        self.own("attention.head_count", c.n_head as u32);
        if architecture == Architecture::Gpt2 {
            self.own("attention.layer_norm_epsilon", c.norm_eps as f32);
        } else {
            self.own("attention.head_count_kv", c.n_kv_head as u32);
            self.own("rope.freq_base", c.rope_base as f32);
            self.own("attention.layer_norm_rms_epsilon", c.norm_eps as f32);
            self.own("attention.key_length", c.d_head as u32);
            self.own("attention.value_length", c.d_head as u32);
            self.own("rope.dimension_count", c.d_head as u32);
        }
        if let Some(yarn) = &c.rope_scaling {
            self.scaling(yarn);
        }
        self.own("vocab_size", c.vocab_size as u32);
    }

    /// llama.cpp multiplies `attn_factor` by `0.1 ln(factor) + 1`.
    fn scaling(&mut self, yarn: &Yarn) {
        self.own("rope.scaling.type", "yarn");
        self.own("rope.scaling.factor", yarn.factor as f32);
        self.own("rope.scaling.original_context_length", yarn.original_seq_len as u32);
        self.own("rope.scaling.yarn_beta_fast", yarn.beta_fast as f32);
        self.own("rope.scaling.yarn_beta_slow", yarn.beta_slow as f32);
        if let Some(factor) = yarn.attention_factor {
            self.own("rope.scaling.attn_factor", (factor / default_attention_factor(yarn.factor)) as f32);
        }
    }
}

fn default_attention_factor(factor: f64) -> f64 {
    0.1 * libm::log(factor) + 1.0
}

/// The architecture of a file. Its dropout is 0, as files say nothing of training.
///
/// # Errors
/// When the file holds no model, or a key is missing, odd, or asks for what can't be computed.
pub fn config_of(file: &File) -> Result<Config> {
    if file.tensors.is_empty() && file.value(TOKENS_KEY).is_some() {
        return Err(file.wrong("the file holds a vocabulary, but no tensors: it is no model"))
            .map_err(|e| e.help("its tokenizer can be imported alone"));
    }
    if let Some(parts) = file.value("split.count").filter(|parts| parts.as_size() != Some(1)) {
        return Err(file.wrong(format_args!("the file is one of {parts} parts of a model")))
            .map_err(|e| e.help("join them with llama.cpp's `llama-gguf-split --merge`"));
    }
    let architecture = Architecture::of_file(file)?;
    let keys = Keys { file, architecture, asked: RefCell::default() };
    let config = match architecture {
        Architecture::Tinylm => keys.own_config()?,
        _ => keys.config()?,
    };
    config.validate().map_err(|invalid| {
        let key =
            KEYS.iter().find(|(ours, _)| *ours == invalid.param).map_or(invalid.param.as_str(), |k| k.1);
        file.wrong(format_args!("`{}.{key}` {}", architecture.name(), invalid.why))
    })?;
    keys.refuse_others()?;
    Ok(config)
}

/// Our fields by the ends of keys, for messages.
const KEYS: [(&str, &str); 11] = [
    ("d_model", "embedding_length"),
    ("n_layer", "block_count"),
    ("n_head", "attention.head_count"),
    ("n_kv_head", "attention.head_count_kv"),
    ("d_head", "attention.key_length"),
    ("d_ff", "feed_forward_length"),
    ("seq_len", "context_length"),
    ("rope_base", "rope.freq_base"),
    ("rope_scaling", "rope.scaling.factor"),
    ("vocab_size", "vocab_size"),
    ("norm_eps", "attention.layer_norm_epsilon"),
];

/// Keys of a file, with those that were asked for.
struct Keys<'a> {
    file: &'a File,
    architecture: Architecture,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn get(&self, end: &str) -> Option<&'a Value> {
        let key = format!("{}.{end}", self.architecture.name());
        let value = self.file.value(&key);
        self.asked.borrow_mut().insert(key);
        value
    }

    fn wrong(&self, end: &str, expected: impl Display) -> Error {
        let found = self.get(end).map_or("missing".to_string(), Value::to_string);
        self.file.wrong(format_args!("`{}.{end}` is {found}: {expected}", self.architecture.name()))
    }

    fn size(&self, end: &str) -> Result<usize> {
        let found = self.get(end).and_then(Value::as_size);
        found.ok_or_else(|| self.wrong(end, "expected a whole number"))
    }

    fn size_or(&self, end: &str, default: usize) -> Result<usize> {
        if self.get(end).is_some() { self.size(end) } else { Ok(default) }
    }

    fn float(&self, end: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(end) else { return Ok(None) };
        value.as_float().map(Some).ok_or_else(|| self.wrong(end, "expected a number"))
    }

    /// # Errors
    /// When it is there with another value than the one that is computed.
    fn only(&self, end: &str, value: usize) -> Result<()> {
        match self.size_or(end, value)? == value {
            true => Ok(()),
            false => Err(self.wrong(end, format_args!("what can be computed is {value}"))),
        }
    }

    fn own_config(&self) -> Result<Config> {
        let wrong = |why: String| self.file.wrong(format_args!("`{CONFIG_KEY}` {why}"));
        let text = self.get("config").and_then(Value::as_str).ok_or_else(|| wrong("is missing".into()))?;
        let json = serde_json::from_str(text).map_err(|e| wrong(format!("is no JSON: {e}")))?;
        let fields = super::super::Fields::of(CONFIG_KEY, &json)?;
        let config = tinylm::Tinylm.read(&fields);
        let config = config.map_err(|e| e.context(format!("`{}` is damaged", self.file.name)))?;
        match config.n_layer > self.file.tensors.len() {
            true => Err(wrong(format!("says `n_layer` is {}, more than there are tensors", config.n_layer))),
            false => Ok(config),
        }
    }

    fn config(&self) -> Result<Config> {
        let (d_model, n_head) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        if n_head == 0 {
            return Err(self.wrong("attention.head_count", "expected at least 1"));
        }
        let base = Config {
            d_ff: self.size("feed_forward_length")?,
            dropout: 0.0,
            tied: self.file.find("output.weight").is_none(),
            ..gpt2(
                self.vocab_size()?,
                d_model,
                self.size("block_count")?,
                n_head,
                self.size("context_length")?,
            )
        };
        self.only("expert_count", 0)?;
        // Before anything is made for each block.
        if base.n_layer > self.file.tensors.len() {
            let tensors = self.file.tensors.len();
            return Err(self.wrong("block_count", format_args!("the file has {tensors} tensors in all")));
        }
        match self.architecture {
            Architecture::Gpt2 => self.gpt2(base),
            _ => self.llama(base),
        }
    }

    /// As many rows as the embedding has.
    fn vocab_size(&self) -> Result<usize> {
        const EMBEDDING: &str = "token_embd.weight";
        let tensor = self.file.find(EMBEDDING);
        let tensor = tensor.ok_or_else(|| self.file.wrong(format_args!("no tensor `{EMBEDDING}`")))?;
        let rows = tensor.shape[0];
        let expected = self.size_or("vocab_size", rows)?;
        match expected == rows {
            true => Ok(rows),
            false => Err(self.wrong("vocab_size", format_args!("`{EMBEDDING}` has {rows} rows"))),
        }
    }

    fn gpt2(&self, base: Config) -> Result<Config> {
        const EPS: &str = "attention.layer_norm_epsilon";
        if !base.d_model.is_multiple_of(base.n_head) {
            return Err(
                self.wrong("attention.head_count", format_args!("it does not divide {}", base.d_model))
            );
        }
        self.only("attention.head_count_kv", base.n_head)?;
        self.only("attention.key_length", base.d_head)?;
        self.only("attention.value_length", base.d_head)?;
        let norm_eps = self.float(EPS)?.ok_or_else(|| self.wrong(EPS, "expected a number"))?;
        Ok(Config { norm_eps, ..base })
    }

    fn llama(&self, base: Config) -> Result<Config> {
        const EPS: &str = "attention.layer_norm_rms_epsilon";
        let norm_eps = self.float(EPS)?.ok_or_else(|| self.wrong(EPS, "expected a number"))?;
        let d_head = self.size_or("attention.key_length", base.d_model / base.n_head)?;
        self.only("attention.value_length", d_head)?;
        self.only("rope.dimension_count", d_head)?;
        let bias = |part: &str| {
            let is = |name: &str| name.starts_with("blk.") && name.contains(part) && name.ends_with(".bias");
            self.file.tensors.iter().any(|tensor| is(&tensor.name))
        };
        let c = Config {
            n_kv_head: self.size_or("attention.head_count_kv", base.n_head)?,
            d_head,
            rope_base: self.float("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: self.scaling(base.seq_len)?,
            norm_eps,
            attn_bias: bias(".attn_"),
            mlp_bias: bias(".ffn_"),
            activation: Activation::Silu,
            ..base
        };
        Ok(Config { qk_norm: self.architecture == Architecture::Qwen3, ..llama::shared(&c) })
    }

    fn scaling(&self, seq_len: usize) -> Result<Option<Yarn>> {
        const TYPE: &str = "rope.scaling.type";
        if self.file.find("rope_freqs.weight").is_some() {
            let what = "tensor `rope_freqs.weight`: scaled frequencies as those of Llama 3 are not computed";
            return Err(self.file.wrong(what).help("use a model without them"));
        }
        let factor = self.float("rope.scaling.factor")?;
        let factor = if factor.is_some() { factor } else { self.float("rope.scale_linear")? };
        match self.get(TYPE).map_or(Some("none"), Value::as_str) {
            Some("none" | "linear") if factor.is_none_or(|factor| factor == 1.0) => Ok(None),
            Some("yarn") => self.yarn(factor.unwrap_or(1.0), seq_len).map(Some),
            _ if self.get(TYPE).is_none() => {
                Err(self.wrong("rope.scaling.factor", "linear scaling is not computed, YaRN is"))
            }
            _ => Err(self.wrong(TYPE, "what can be computed is \"yarn\"")),
        }
    }

    fn yarn(&self, factor: f64, seq_len: usize) -> Result<Yarn> {
        const OTHER: [&str; 3] = [
            "rope.scaling.yarn_ext_factor",
            "rope.scaling.yarn_attn_factor",
            "rope.scaling.yarn_log_multiplier",
        ];
        if let Some(key) = OTHER.iter().find(|key| self.get(key).is_some()) {
            return Err(self.wrong(key, "YaRN is computed without it"));
        }
        let own = self.float("rope.scaling.attn_factor")?;
        Ok(Yarn {
            factor,
            original_seq_len: self.size_or("rope.scaling.original_context_length", seq_len)?,
            beta_fast: self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: own.map(|own| own * default_attention_factor(factor)),
        })
    }

    /// Keys of the architecture that nobody asked for could change what is computed.
    fn refuse_others(&self) -> Result<()> {
        /// Those that change nothing.
        const HARMLESS: [&str; 6] = [
            "attention.causal",
            "expert_used_count",
            "rope.scaling.finetuned",
            "tensor_data_layout",
            "tokens_per_second",
            "use_parallel_residual",
        ];
        let asked = self.asked.borrow();
        let start = format!("{}.", self.architecture.name());
        let own = self.file.metadata.iter().map(|(key, _)| key.as_str());
        let known = |key: &str| asked.contains(key) || HARMLESS.contains(&&key[start.len()..]);
        match own.filter(|key| key.starts_with(&start)).find(|key| !known(key)) {
            Some(key) => {
                let value = self.file.value(key).map_or(String::new(), Value::to_string);
                Err(self
                    .file
                    .wrong(format_args!("`{key}` is {value}: no such key is known"))
                    .help("it may change what is computed: use a model without it"))
            }
            None => Ok(()),
        }
    }
}

/// Whether a file is of the architecture that its folder's `config.json` tells.
///
/// # Errors
/// Names the first key that has another value.
pub fn expect_same(file: &File, config: &Config) -> Result<()> {
    let ignored = |key: &str| key.starts_with("general.") && key != ARCHITECTURE_KEY;
    for (key, expected) in metadata(config).iter().filter(|(key, _)| !ignored(key)) {
        let found = file.value(key);
        if found != Some(expected) {
            let found = found.map_or("missing".to_string(), Value::to_string);
            let what = format!("`{key}` is {found}, and by the `config.json` beside {expected}");
            return Err(file.wrong(what).help("`config.json` and the weights must be of the same model"));
        }
    }
    Ok(())
}
