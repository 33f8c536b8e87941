//! `tinylm`: whatever no other type holds. Keys are the fields of [`Config`], names of tensors are ours.

use serde_json::{Value, json};

use super::{Fields, Format, Stored};
use crate::base::Result;
use crate::model::{Config, Layout, gpt2};

pub struct Tinylm;

impl Format for Tinylm {
    fn model_type(&self) -> &'static str {
        "tinylm"
    }

    /// Of no class of `transformers`.
    fn architecture(&self) -> &'static str {
        "TinylmForCausalLM"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn holds(&self, _: &Config) -> bool {
        true
    }

    fn write(&self, config: &Config) -> Value {
        json!(config)
    }

    fn read(&self, fields: &Fields) -> Result<Config> {
        let mut config = gpt2(1, 1, 1, 1, 1);
        let names = json!(config);
        for name in names.as_object().into_iter().flat_map(|map| map.keys()) {
            let found = fields.all().find(|(key, _)| key == name);
            let Some((key, value)) = found else { return Err(fields.wrong(name, "expected a value")) };
            fields.get(key);
            config = with_field(&config, fields, key, value)?;
        }
        Ok(config)
    }

    fn tensors(&self, layout: &Layout) -> Vec<Stored> {
        Stored::all(layout)
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    fn constants(&self) -> &'static [&'static str] {
        &[]
    }
}

/// `config` with the field `name` as the file has it.
///
/// # Errors
/// When the field can't be that.
pub(super) fn with_field(config: &Config, fields: &Fields, name: &str, value: &Value) -> Result<Config> {
    let mut all = json!(config);
    all[name] = value.clone();
    serde_json::from_value(all).map_err(|e| fields.wrong(name, e))
}
