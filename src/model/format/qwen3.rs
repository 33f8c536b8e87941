//! `qwen3`: Llama with norms of queries and keys (Yang et al., 2025).

use serde_json::{Value, json};

use super::{Fields, Format, Stored, llama};
use crate::base::Result;
use crate::model::{Config, Layout};

pub struct Qwen3;

/// What `transformers` takes where `head_dim` is missing.
const HEAD_DIM: usize = 128;

impl Format for Qwen3 {
    fn model_type(&self) -> &'static str {
        "qwen3"
    }

    fn architecture(&self) -> &'static str {
        "Qwen3ForCausalLM"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &llama::KEYS
    }

    fn holds(&self, c: &Config) -> bool {
        *c == Config { qk_norm: true, mlp_bias: false, ..llama::shared(c) }
    }

    fn write(&self, c: &Config) -> Value {
        let mut value = llama::write(c);
        value["use_sliding_window"] = json!(false);
        value
    }

    fn read(&self, fields: &Fields) -> Result<Config> {
        fields.only("mlp_bias", false)?;
        Ok(Config { qk_norm: true, ..llama::read(fields, (false, 28), HEAD_DIM)? })
    }

    fn tensors(&self, layout: &Layout) -> Vec<Stored> {
        llama::tensors(layout)
    }

    fn prefix(&self) -> &'static str {
        "model."
    }

    fn constants(&self) -> &'static [&'static str] {
        &["rotary_emb.inv_freq"]
    }
}
