//! Names and shapes of tensors as llama.cpp has them (`llama-arch.cpp`): matrices are `[out, in]`; queries, keys
//! and values are tensors of their own, but in `gpt2`.

use super::Architecture;
use crate::model::format::Stored;
use crate::model::{Config, Layout, Parameter, Role};

/// Modules outside of blocks, by our names.
const OUTSIDE: [(&str, &str); 5] = [
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_e", "token_embd_norm"),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
];

/// Modules of a block, by our names; several where our columns are tensors of their own.
const BLOCK: [(&str, &[&str]); 8] = [
    ("ln_1", &["attn_norm"]),
    ("attn.c_attn", &["attn_q", "attn_k", "attn_v"]),
    ("attn.q_norm", &["attn_q_norm"]),
    ("attn.k_norm", &["attn_k_norm"]),
    ("attn.c_proj", &["attn_output"]),
    ("ln_2", &["ffn_norm"]),
    ("mlp.c_fc", &["ffn_gate", "ffn_up"]),
    ("mlp.c_proj", &["ffn_down"]),
];

/// Where each tensor of a file belongs. Of an architecture that llama.cpp does not compute, too: under the
/// names that it has for such parts, or would have.
pub fn stored(config: &Config, layout: &Layout) -> Vec<Stored> {
    let architecture = Architecture::of(config);
    let mut all = Vec::new();
    // A bias is divided as the matrix before it.
    let mut columns = Vec::new();
    for (i, p) in layout.parameters.iter().enumerate() {
        if matches!(p.role, Role::Embedding | Role::Position | Role::Head | Role::Scalar) {
            all.push(Stored::whole(p, i, names(p, 1).remove(0)));
            continue;
        }
        if p.role == Role::Matrix {
            columns = match (architecture, p.name.contains(".c_attn.")) {
                (Architecture::Gpt2, true) => vec![0..p.shape[1]],
                _ => p.columns.clone(),
            };
        }
        let names = names(p, columns.len());
        // Norms are whole, and their names one.
        let whole = vec![0..p.shape[0]];
        let columns = if names.len() == columns.len() && is_linear(p) { &columns } else { &whole };
        for (name, columns) in names.into_iter().zip(columns) {
            let rotary = name.contains(".attn_q.") || name.contains(".attn_k.");
            let interleaved = (rotary && architecture == Architecture::Llama).then_some(config.d_head);
            all.push(Stored { interleaved, ..Stored::part(p, i, name, columns.clone()) });
        }
    }
    all
}

/// Whether it is of a linear layer of a block, and no norm.
fn is_linear(p: &Parameter) -> bool {
    p.role == Role::Matrix || p.name.contains(".c_")
}

/// The names of a parameter whose matrix is divided into so many parts.
fn names(p: &Parameter, parts: usize) -> Vec<String> {
    let Some((block, rest)) = p.name.strip_prefix("transformer.h.").and_then(|r| r.split_once('.')) else {
        let (module, kind) = p.name.rsplit_once('.').expect("a module and what it is of it");
        let (_, name) = OUTSIDE.iter().find(|(ours, _)| *ours == module).expect("a module with a name");
        return vec![format!("{name}.{kind}")];
    };
    let Some((module, kind)) = rest.rsplit_once('.') else { return vec![format!("blk.{block}.{rest}")] };
    let (_, all) = BLOCK.iter().find(|(ours, _)| *ours == module).expect("a module with a name");
    let names: &[&str] = match (module, parts) {
        ("attn.c_attn", 1) => &["attn_qkv"],
        ("mlp.c_fc", 1) => &["ffn_up"],
        _ => all,
    };
    names.iter().map(|name| format!("blk.{block}.{name}.{kind}")).collect()
}
