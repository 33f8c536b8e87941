//! The shape of a model, the named shapes, and `config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::base::{Error, Result, suggest};

/// The shape of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Rows of the token embedding; ids are below it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    pub n_layer: usize,
    /// Attention heads; divides `d_model`.
    pub n_head: usize,
    /// Width of the hidden layer of the feed-forward part.
    pub d_ff: usize,
    /// The longest sequence, in tokens: how many positions are learned.
    pub seq_len: usize,
    /// The share of activations dropped while training.
    pub dropout: f64,
}

/// A named shape.
pub struct Preset {
    pub name: &'static str,
    pub config: Config,
}

const fn shape(
    name: &'static str,
    vocab_size: usize,
    d_model: usize,
    n_layer: usize,
    n_head: usize,
    seq_len: usize,
) -> Preset {
    let d_ff = 4 * d_model;
    Preset { name, config: Config { vocab_size, d_model, n_layer, n_head, d_ff, seq_len, dropout: 0.1 } }
}

/// The named shapes, smallest first.
pub const PRESETS: [Preset; 6] = [
    // For tests and for looking at: trains in seconds.
    shape("tiny", 512, 32, 2, 2, 64),
    shape("mini", 2_048, 64, 2, 2, 128),
    shape("tinylm-1.5m", 5_000, 128, 3, 4, 128),
    shape("small", 5_000, 256, 4, 4, 256),
    shape("medium", 10_200, 512, 6, 8, 256),
    // GPT-2's vocabulary on a small body.
    shape("slm", 50_257, 384, 6, 6, 128),
];

/// The shape called `name`.
///
/// # Errors
/// When there is none; says which there are.
pub fn preset(name: &str) -> Result<&'static Config> {
    PRESETS.iter().find(|p| p.name == name).map(|p| &p.config).ok_or_else(|| {
        let names = || PRESETS.iter().map(|p| p.name);
        Error::usage(format!("there is no preset `{name}`"))
            .suggest(suggest::closest(name, names()))
            .help(format!("the presets are {}", suggest::list(names())))
    })
}

impl Config {
    /// How many numbers are learned. The output is the embedding, counted once.
    pub fn parameters(&self) -> usize {
        let (c, f) = (self.d_model, self.d_ff);
        let block = 2 * c + (c * 3 * c + 3 * c) + (c * c + c) + 2 * c + (c * f + f) + (f * c + c);
        (self.vocab_size + self.seq_len) * c + self.n_layer * block + 2 * c
    }

    /// What is wrong with the shape: the param at fault and why.
    pub fn mistake(&self) -> Option<(&'static str, String)> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("d_ff", self.d_ff),
            ("seq_len", self.seq_len),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Some((name, "must be at least 1".into()));
        }
        if !self.d_model.is_multiple_of(self.n_head) {
            let why = format!("{} heads do not divide d_model {}", self.n_head, self.d_model);
            return Some(("n_head", why));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Some(("dropout", format!("must be at least 0 and below 1, found {}", self.dropout)));
        }
        (self.parameters() > 2_000_000_000)
            .then(|| ("d_model", format!("{} parameters are beyond what this trains", self.parameters())))
    }

    /// # Errors
    /// An id that there is no embedding for.
    pub fn knows(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => {
                Err(Error::input(format!("token {id} is beyond the model's {} tokens", self.vocab_size)))
            }
            None => Ok(()),
        }
    }

    /// GPT-2's `config.json` as `transformers` 5 reads it.
    pub fn to_json(&self, bos: Option<u32>, eos: Option<u32>) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.seq_len,
            "n_embd": self.d_model,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "tie_word_embeddings": true,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "torch_dtype": "float32",
        })
    }

    /// Reads what [`Config::to_json`] writes, or any GPT-2's.
    ///
    /// # Errors
    /// A missing or odd field, or another architecture.
    pub fn from_json(file: &str, value: &Value) -> Result<Self> {
        let odd = |what: String| Error::input(format!("`{file}`: {what}"));
        match value["model_type"].as_str() {
            Some("gpt2") => {}
            other => return Err(odd(format!("model_type is {}, expected \"gpt2\"", json!(other)))),
        }
        let number = |name: &str| {
            let n = value[name].as_u64().map(|n| n as usize);
            n.ok_or_else(|| odd(format!("`{name}` is {}, expected a whole number", value[name])))
        };
        let activation = value["activation_function"].as_str().unwrap_or("gelu_new");
        if activation != "gelu_new" {
            return Err(odd(format!("the activation `{activation}` is not `gelu_new`")));
        }
        let d_model = number("n_embd")?;
        let config = Config {
            vocab_size: number("vocab_size")?,
            d_model,
            n_layer: number("n_layer")?,
            n_head: number("n_head")?,
            d_ff: if value["n_inner"].is_null() { 4 * d_model } else { number("n_inner")? },
            seq_len: number("n_positions")?,
            dropout: value["resid_pdrop"].as_f64().unwrap_or(0.1),
        };
        match config.mistake() {
            Some((name, why)) => Err(odd(format!("{name}: {why}"))),
            None => Ok(config),
        }
    }
}
