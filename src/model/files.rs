//! A model's folder: `config.json`, `model.safetensors` or `model.gguf`, `tokenizer.json`, and a
//! `tokenizer_config.json` where the tokenizer alone does not say which tokens are special.

use std::path::Path;

use super::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Config, Transformer};
use crate::base::{Error, Files, Result, fs};
pub use crate::tokenizer::TOKENIZER_FILE;
use crate::tokenizer::{Special, TOKENIZER_CONFIG_FILE, Tokenizer};

pub const CONFIG_FILE: &str = "config.json";
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// A model with the tokenizer that it speaks.
pub struct Model {
    pub transformer: Transformer,
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Reads a model's folder with the tokenizer that it is to speak.
    ///
    /// # Errors
    /// When a file is missing or does not read, a tensor is missing or of another shape or type, or the
    /// tokenizer has more tokens than the model.
    pub fn open(files: &Files, tokenizer: Tokenizer) -> Result<Self> {
        let transformer = Transformer::open(files)?;
        transformer
            .config
            .fits(&tokenizer)
            .map_err(|e| e.help("use the tokenizer that the model was trained with"))?;
        Ok(Model { transformer, tokenizer })
    }

    /// Writes the files into `folder`, adapters merged; the same model gives the same bytes.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.save_beside_weights(folder)?;
        fs::write(&folder.join(WEIGHTS_FILE), &self.transformer.to_safetensors()?)
    }

    /// Writes all files but the weights.
    pub(super) fn save_beside_weights(&self, folder: &Path) -> Result<()> {
        let (bos, eos) = (self.tokenizer.special(Special::Bos), self.tokenizer.special(Special::Eos));
        let json = serde_json::to_vec_pretty(&self.transformer.config.to_json(bos, eos)?)
            .map_err(|e| Error::bug(format!("{CONFIG_FILE}: {e}")))?;
        fs::write(&folder.join(CONFIG_FILE), &json)?;
        fs::write(&folder.join(TOKENIZER_FILE), self.tokenizer.json())?;
        if let Some(json) = self.tokenizer.config()? {
            fs::write(&folder.join(TOKENIZER_CONFIG_FILE), &json)?;
        }
        Ok(())
    }
}

impl Transformer {
    /// Writes the two files of its adapters into `folder`, as PEFT has them.
    ///
    /// # Errors
    /// When a file cannot be written, or there are no adapters.
    pub fn save_adapter(&self, folder: &Path) -> Result<()> {
        let (config, weights) = self.adapter_files()?;
        fs::write(&folder.join(ADAPTER_CONFIG_FILE), &config)?;
        fs::write(&folder.join(ADAPTER_WEIGHTS_FILE), &weights)
    }
}

impl Config {
    /// Whether the model has a row for each of a tokenizer's tokens.
    ///
    /// # Errors
    /// When the tokenizer has more.
    pub fn fits(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (tokens, room) = (tokenizer.vocab_size(), self.vocab_size);
        if tokens > room {
            return Err(Error::input(format!(
                "the tokenizer has {tokens} tokens, the model room for {room}"
            )));
        }
        Ok(())
    }
}
