//! Architectures as `config.json`.

use serde_json::{Value, json};

use super::{Activation, Config, preset};
use crate::base::{Error, Result};

impl Config {
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
        let n_head = number("n_head")?;
        if n_head == 0 || !d_model.is_multiple_of(n_head) {
            return Err(odd(format!("n_head: {n_head} heads do not divide d_model {d_model}")));
        }
        let config = Config {
            vocab_size: number("vocab_size")?,
            d_model,
            n_layer: number("n_layer")?,
            n_head,
            n_kv_head: n_head,
            d_head: d_model / n_head.max(1),
            d_ff: if value["n_inner"].is_null() { 4 * d_model } else { number("n_inner")? },
            seq_len: number("n_positions")?,
            dropout: value["resid_pdrop"].as_f64().unwrap_or(0.1),
            activation: Activation::GeluTanh,
            ..preset("tinylm-1.5m")?.clone()
        };
        config.validate().map_err(|invalid| odd(invalid.to_string()))?;
        Ok(config)
    }
}
