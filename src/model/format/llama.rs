//! `llama`: Touvron et al.'s Llama (2023). Its matrices are `[out, in]`, and queries, keys and values, gate
//! and input are tensors of their own. Qwen3's are the same, and two norms more.

use serde_json::{Value, json};

use super::{Fields, Format, Stored, activation, activation_name, rope};
use crate::base::Result;
use crate::model::{Config, Layout, Role, llama};

pub struct Llama;

/// Modules of a block by our names, and Llama's for each of our columns.
const BLOCK: [(&str, &[&str]); 8] = [
    ("ln_1", &["input_layernorm"]),
    ("attn.c_attn", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("attn.q_norm", &["self_attn.q_norm"]),
    ("attn.k_norm", &["self_attn.k_norm"]),
    ("attn.c_proj", &["self_attn.o_proj"]),
    ("ln_2", &["post_attention_layernorm"]),
    ("mlp.c_fc", &["mlp.gate_proj", "mlp.up_proj"]),
    ("mlp.c_proj", &["mlp.down_proj"]),
];

/// Modules around the blocks.
const OUTSIDE: [(&str, &str); 3] =
    [("transformer.wte", "model.embed_tokens"), ("transformer.ln_f", "model.norm"), ("lm_head", "lm_head")];

/// Our fields by the keys that Llama and Qwen3 share.
pub(super) const KEYS: [(&str, &str); 11] = [
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_kv_head", "num_key_value_heads"),
    ("d_head", "head_dim"),
    ("d_ff", "intermediate_size"),
    ("seq_len", "max_position_embeddings"),
    ("norm_eps", "rms_norm_eps"),
    ("dropout", "attention_dropout"),
    ("rope_base", "rope_theta"),
    ("rope_scaling", "rope_parameters"),
];

impl Format for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn architecture(&self) -> &'static str {
        "LlamaForCausalLM"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &KEYS
    }

    fn holds(&self, c: &Config) -> bool {
        // `transformers` refuses heads that don't divide the width, though they have a width of their own.
        shared(c) == *c && c.d_model.is_multiple_of(c.n_head)
    }

    fn write(&self, c: &Config) -> Value {
        let mut value = write(c);
        value["mlp_bias"] = json!(c.mlp_bias);
        value
    }

    fn read(&self, fields: &Fields) -> Result<Config> {
        let n_head = fields.size("num_attention_heads")?;
        let by_width = fields.size("hidden_size")? / n_head.max(1);
        let config = read(fields, (true, 0), by_width)?;
        Ok(Config { mlp_bias: fields.flag("mlp_bias", false)?, ..config })
    }

    fn tensors(&self, layout: &Layout) -> Vec<Stored> {
        tensors(layout)
    }

    fn prefix(&self) -> &'static str {
        "model."
    }

    fn constants(&self) -> &'static [&'static str] {
        &["rotary_emb.inv_freq"]
    }
}

/// Llama's parts with all of `c` that both types have a key for.
pub(super) fn shared(c: &Config) -> Config {
    Config {
        n_kv_head: c.n_kv_head,
        d_head: c.d_head,
        d_ff: c.d_ff,
        dropout: c.dropout,
        rope_base: c.rope_base,
        rope_scaling: c.rope_scaling,
        norm_eps: c.norm_eps,
        activation: c.activation,
        attn_bias: c.attn_bias,
        mlp_bias: c.mlp_bias,
        tied: c.tied,
        init: c.init,
        ..llama(c.vocab_size, c.d_model, c.n_layer, c.n_head, c.seq_len)
    }
}

/// The keys of both types. `attention_dropout` is the dropout of all places, as there is no other key.
pub(super) fn write(c: &Config) -> Value {
    let mut value = json!({
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.d_head,
        "max_position_embeddings": c.seq_len,
        "hidden_act": activation_name(c.activation),
        "rms_norm_eps": c.norm_eps,
        "attention_bias": c.attn_bias,
        "attention_dropout": c.dropout,
        "tie_word_embeddings": c.tied,
    });
    rope::write(c, &mut value);
    value
}

/// `window`: whether `use_sliding_window` is on where it is missing, and how many layers are without.
pub(super) fn read(fields: &Fields, window: (bool, usize), head_dim: usize) -> Result<Config> {
    let (d_model, n_head) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
    let (n_layer, seq_len) = (fields.size("num_hidden_layers")?, fields.size("max_position_embeddings")?);
    refuse_windows(fields, window, n_layer, seq_len)?;
    if n_head == 0 {
        return Err(fields.wrong("num_attention_heads", "expected at least 1"));
    }
    let (rope_base, rope_scaling) = rope::read(fields, seq_len)?;
    Ok(Config {
        n_kv_head: fields.size_or("num_key_value_heads", n_head)?,
        d_head: fields.size_or("head_dim", head_dim)?,
        d_ff: fields.size("intermediate_size")?,
        dropout: fields.float("attention_dropout")?.unwrap_or(0.0),
        rope_base,
        rope_scaling,
        norm_eps: fields.float("rms_norm_eps")?.unwrap_or(1e-6),
        activation: activation(fields, "hidden_act", "silu")?,
        attn_bias: fields.flag("attention_bias", false)?,
        tied: fields.flag("tie_word_embeddings", false)?,
        ..llama(fields.size("vocab_size")?, d_model, n_layer, n_head, seq_len)
    })
}

/// Attention to the nearest tokens alone is not computed.
fn refuse_windows(fields: &Fields, window: (bool, usize), n_layer: usize, seq_len: usize) -> Result<()> {
    let (used, without) =
        (fields.flag("use_sliding_window", window.0)?, fields.size_or("max_window_layers", window.1)?);
    let width = fields.size_or("sliding_window", usize::MAX)?;
    if let Some(types) = fields.get("layer_types") {
        let full = |types: &Vec<Value>| types.iter().all(|t| t == "full_attention");
        return match types.as_array().is_some_and(full) {
            true => Ok(()),
            false => Err(fields.refused("layer_types", "what can be computed is \"full_attention\"")),
        };
    }
    if used && without < n_layer && width < seq_len {
        return Err(fields.refused("sliding_window", "attention goes to all tokens before"));
    }
    Ok(())
}

pub(super) fn tensors(layout: &Layout) -> Vec<Stored> {
    let mut stored = Vec::new();
    // A bias is divided as the matrix before it.
    let mut columns = Vec::new();
    for (i, p) in layout.parameters.iter().enumerate() {
        let (module, kind) = p.name.rsplit_once('.').expect("a module and what it is of it");
        let names = names_of(module);
        let divided = p.role == Role::Matrix || names.len() > 1;
        if p.role == Role::Matrix {
            columns.clone_from(&p.columns);
        }
        if !divided {
            stored.push(Stored::whole(p, i, format!("{}.{kind}", names[0])));
            continue;
        }
        for (name, columns) in names.iter().zip(&columns) {
            stored.push(Stored::part(p, i, format!("{name}.{kind}"), columns.clone()));
        }
    }
    stored
}

/// Llama's names of a module of ours.
fn names_of(module: &str) -> Vec<String> {
    if let Some((block, part)) = module.strip_prefix("transformer.h.").and_then(|rest| rest.split_once('.'))
        && let Some((_, names)) = BLOCK.iter().find(|(ours, _)| *ours == part)
    {
        return names.iter().map(|name| format!("model.layers.{block}.{name}")).collect();
    }
    let found = OUTSIDE.iter().find(|(ours, _)| *ours == module);
    vec![found.expect("a module that Llama has").1.to_string()]
}
