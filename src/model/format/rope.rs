//! Rotary positions in `config.json`: `rope_parameters` of `transformers` 5, and `rope_theta` and
//! `rope_scaling` of 4, which other programs read. Both are written.

use serde_json::{Value, json};

use super::Fields;
use crate::base::Result;
use crate::model::{Config, Yarn};

/// The keys of YaRN that are computed.
const KEYS: [&str; 11] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
];

pub(super) fn write(c: &Config, value: &mut Value) {
    let mut parameters = json!({ "rope_type": "default", "rope_theta": c.rope_base });
    if let Some(yarn) = c.rope_scaling {
        parameters["rope_type"] = json!("yarn");
        parameters["factor"] = json!(yarn.factor);
        parameters["original_max_position_embeddings"] = json!(yarn.original_seq_len);
        parameters["beta_fast"] = json!(yarn.beta_fast);
        parameters["beta_slow"] = json!(yarn.beta_slow);
        if let Some(factor) = yarn.attention_factor {
            parameters["attention_factor"] = json!(factor);
        }
        value["rope_scaling"] = parameters.clone();
    }
    value["rope_theta"] = json!(c.rope_base);
    value["rope_parameters"] = parameters;
}

/// The base of the frequencies and their scaling.
pub(super) fn read(fields: &Fields, seq_len: usize) -> Result<(f64, Option<Yarn>)> {
    fields.only("partial_rotary_factor", 1.0)?;
    let base = fields.float("rope_theta")?;
    let (scaling, parameters) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    // As `transformers` 5: the older key is the one that counts where a file has both.
    let unscaled = || base.unwrap_or(10_000.0);
    let filled = |fields: &Fields| fields.all().next().is_some();
    let Some(rope) = scaling.filter(filled).or(parameters.filter(filled)) else {
        return Ok((unscaled(), None));
    };
    rope.only("partial_rotary_factor", 1.0)?;
    let known = |key: &str| KEYS.contains(&key) || key == "partial_rotary_factor";
    if let Some((key, _)) = rope.all().find(|(key, _)| !known(key)) {
        return Err(rope.refused(key, "no such key of rotary positions is known"));
    }
    let own = rope.float("rope_theta")?;
    if let (Some(own), Some(base)) = (own, base)
        && own != base
    {
        let expected = format_args!("the file has another `rope_theta` of {base}, and they must be the same");
        return Err(rope.wrong("rope_theta", expected));
    }
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let scaling = match rope.text(key, "default")? {
        "default" => None,
        "yarn" => Some(yarn(fields, &rope, seq_len)?),
        _ => return Err(rope.refused(key, "what can be computed is \"default\" and \"yarn\"")),
    };
    Ok((own.unwrap_or_else(unscaled), scaling))
}

fn yarn(fields: &Fields, rope: &Fields, seq_len: usize) -> Result<Yarn> {
    const LENGTH: &str = "original_max_position_embeddings";
    rope.only("truncate", true)?;
    let within = rope.size_or(LENGTH, seq_len)?;
    let original_seq_len = fields.size_or(LENGTH, within)?;
    let ratio = seq_len as f64 / original_seq_len.max(1) as f64;
    let factor = rope.float("factor")?.unwrap_or(ratio);
    Ok(Yarn {
        factor,
        original_seq_len,
        beta_fast: rope.float("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.float("beta_slow")?.unwrap_or(1.0),
        attention_factor: attention_factor(rope, factor)?,
    })
}

/// As it is, or by DeepSeek's two scales.
fn attention_factor(rope: &Fields, factor: f64) -> Result<Option<f64>> {
    let (own, scale, all) = (
        rope.float("attention_factor")?,
        rope.float("mscale")?.unwrap_or(0.0),
        rope.float("mscale_all_dim")?.unwrap_or(0.0),
    );
    if own.is_some() || scale == 0.0 || all == 0.0 {
        return Ok(own);
    }
    let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * libm::log(factor) + 1.0 };
    Ok(Some(of(scale) / of(all)))
}
