//! A GGUF file: weights with their architecture, or a vocabulary alone. Only the header is read.

use std::path::Path;

use serde_json::Value;

use super::model::{CONFIG, ModelSummary, Tensor};
use super::{Options, json};
use crate::base::Result;
use crate::corpus::binary;
use crate::model::Config;
use crate::model::format::gguf::{File, MAGIC, config_of, vocabulary_of};

/// Behind the letters stands a version, whose upper bytes are 0: no text.
pub(super) fn is_gguf(head: &[u8]) -> bool {
    head.starts_with(&MAGIC) && (head.len() <= MAGIC.len() || binary::known_as(head).is_some())
}

/// # Errors
/// When the header is damaged, or the file is not as long as the header says.
pub(super) fn read(path: &Path, options: &Options) -> Result<ModelSummary> {
    let file = File::open(path)?;
    let config = options.config.as_deref().map(json::read).transpose()?;
    let tensors: Vec<Tensor> = file.tensors.iter().map(tensor).collect();
    Ok(ModelSummary {
        parameters: tensors.iter().map(Tensor::elements).sum(),
        tensor_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        tensors,
        tied: None,
        tokens: vocabulary_of(&file).ok().flatten().map(|vocabulary| vocabulary.tokens.len() as u64),
        metadata: file.metadata.iter().map(|(key, value)| (key.clone(), value.to_string())).collect(),
        adapter: None,
        architecture: architecture(&file, config.as_ref()).map(|config| config.describe()),
        config,
    })
}

pub(super) fn tensor(of: &crate::model::format::gguf::Tensor) -> Tensor {
    let shape = of.shape.iter().map(|n| *n as u64).collect();
    let dtype = of.ty.name().to_uppercase();
    Tensor { name: of.name.clone(), dtype, shape, bytes: of.bytes() as u64, start: 0 }
}

/// By the `config.json` of its folder or by its own keys, where they are known.
fn architecture(file: &File, config: Option<&Value>) -> Option<Config> {
    match config {
        Some(config) => Config::from_json(CONFIG, config).ok(),
        None => config_of(file).ok(),
    }
}
