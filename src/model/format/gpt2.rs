//! `gpt2`: OpenAI's GPT-2 (Radford et al., 2019). Its matrices are `[in, out]`, as ours are, and queries,
//! keys and values lie side by side; names are ours.

use serde_json::{Value, json};

use super::{Fields, Format, Stored, activation, activation_name};
use crate::base::Result;
use crate::model::{Config, Layout, gpt2};

pub struct Gpt2;

/// The three keys of dropout; here they are one number.
const DROPOUT: [&str; 3] = ["resid_pdrop", "embd_pdrop", "attn_pdrop"];

impl Format for Gpt2 {
    fn model_type(&self) -> &'static str {
        "gpt2"
    }

    fn architecture(&self) -> &'static str {
        "GPT2LMHeadModel"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("d_model", "n_embd"),
            ("d_ff", "n_inner"),
            ("seq_len", "n_positions"),
            ("norm_eps", "layer_norm_epsilon"),
            ("dropout", "resid_pdrop"),
        ]
    }

    fn holds(&self, c: &Config) -> bool {
        let same = Config {
            d_ff: c.d_ff,
            dropout: c.dropout,
            norm_eps: c.norm_eps,
            activation: c.activation,
            tied: c.tied,
            rope_base: c.rope_base,
            init: c.init,
            ..gpt2(c.vocab_size, c.d_model, c.n_layer, c.n_head, c.seq_len)
        };
        same == *c && c.n_head * c.d_head == c.d_model
    }

    fn write(&self, c: &Config) -> Value {
        json!({
            "vocab_size": c.vocab_size,
            "n_positions": c.seq_len,
            "n_embd": c.d_model,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_inner": c.d_ff,
            "activation_function": activation_name(c.activation),
            "layer_norm_epsilon": c.norm_eps,
            "resid_pdrop": c.dropout,
            "embd_pdrop": c.dropout,
            "attn_pdrop": c.dropout,
            "tie_word_embeddings": c.tied,
        })
    }

    fn read(&self, fields: &Fields) -> Result<Config> {
        fields.only("scale_attn_weights", true)?;
        fields.only("scale_attn_by_inverse_layer_idx", false)?;
        fields.only("add_cross_attention", false)?;
        let (d_model, n_head) = (fields.size("n_embd")?, fields.size("n_head")?);
        if n_head == 0 || !d_model.is_multiple_of(n_head) {
            return Err(fields.wrong("n_head", format_args!("these heads do not divide `n_embd` {d_model}")));
        }
        let (vocab_size, seq_len) = (fields.size("vocab_size")?, fields.size("n_positions")?);
        Ok(Config {
            d_ff: fields.size_or("n_inner", d_model.saturating_mul(4))?,
            dropout: dropout(fields)?,
            norm_eps: fields.float("layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: activation(fields, "activation_function", "gelu_new")?,
            tied: fields.flag("tie_word_embeddings", true)?,
            ..gpt2(vocab_size, d_model, fields.size("n_layer")?, n_head, seq_len)
        })
    }

    fn tensors(&self, layout: &Layout) -> Vec<Stored> {
        Stored::all(layout)
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    fn constants(&self) -> &'static [&'static str] {
        &[".attn.bias", ".attn.masked_bias"]
    }
}

fn dropout(fields: &Fields) -> Result<f64> {
    let mut found = [0.1; 3];
    for (value, key) in found.iter_mut().zip(DROPOUT) {
        *value = fields.float(key)?.unwrap_or(*value);
    }
    let [resid, embd, attn] = found;
    if embd != resid || attn != resid {
        fields.note(format!(
            "`resid_pdrop` is {resid}, `embd_pdrop` {embd} and `attn_pdrop` {attn}: dropout is {resid} \
             everywhere, should the model be trained further"
        ));
    }
    Ok(resid)
}
