//! A model's folder: `config.json`, `model.safetensors`, `tokenizer.json`, and a `tokenizer_config.json`
//! where the tokenizer alone does not say which tokens are special.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::{Config, Transformer};
use crate::base::{Error, Result, fs};
use crate::tokenizer::{Special, TOKENIZER_CONFIG_FILE, Tokenizer};

pub const CONFIG_FILE: &str = "config.json";
pub const WEIGHTS_FILE: &str = "model.safetensors";
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A model with the tokenizer that it speaks.
pub struct Model {
    pub transformer: Transformer,
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Reads configuration and weights, wherever each lies.
    ///
    /// # Errors
    /// When one does not read, a tensor is missing or of another shape or type, or the tokenizer has
    /// more tokens than the model.
    pub fn load(config: &Path, weights: &Path, tokenizer: Tokenizer) -> Result<Self> {
        let gpt = Transformer::load(config, weights)?;
        gpt.config
            .fits(&tokenizer)
            .map_err(|e| e.help("use the tokenizer that the model was trained with"))?;
        Ok(Model { transformer: gpt, tokenizer })
    }

    /// Writes the files into `folder`; the same model gives the same bytes.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let (bos, eos) = (self.tokenizer.special(Special::Bos), self.tokenizer.special(Special::Eos));
        let json = serde_json::to_vec_pretty(&self.transformer.config.to_json(bos, eos))
            .map_err(|e| Error::bug(format!("{CONFIG_FILE}: {e}")))?;
        fs::write(&folder.join(CONFIG_FILE), &json)?;
        fs::write(&folder.join(TOKENIZER_FILE), self.tokenizer.json())?;
        if let Some(json) = self.tokenizer.config()? {
            fs::write(&folder.join(TOKENIZER_CONFIG_FILE), &json)?;
        }
        fs::write(&folder.join(WEIGHTS_FILE), &self.transformer.to_safetensors()?)
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

impl Transformer {
    /// Reads configuration and weights.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(config: &Path, weights: &Path) -> Result<Self> {
        let name = config.display().to_string();
        let value = serde_json::from_slice(&fs::read(config)?)
            .map_err(|e| Error::input(format!("`{name}` is not JSON: {e}")))?;
        let config = Config::from_json(&name, &value)?;
        let bytes = fs::read(weights)?;
        let file = weights.display().to_string();
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::input(format!("`{file}` is not a whole safetensors file: {e}")))?;
        // Shapes first: a model of the wrong configuration is refused before its memory is taken.
        let layout = super::Layout::new(&config);
        for p in &layout.parameters {
            stored(&file, &tensors, &p.name, &p.shape)?;
        }
        let mut gpt = Transformer::zeros(&config);
        for p in &layout.parameters {
            let data = stored(&file, &tensors, &p.name, &p.shape)?;
            for (to, from) in gpt.weights[p.range.clone()].iter_mut().zip(data.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        Ok(gpt)
    }

    /// The weights in the order of the parameters' names, f32, little endian.
    ///
    /// # Errors
    /// When they can't be laid out.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let bytes: Vec<u8> = self.weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut views: Vec<(&str, TensorView)> = Vec::new();
        for p in self.parameters() {
            let data = &bytes[4 * p.range.start..4 * p.range.end];
            let view = TensorView::new(safetensors::Dtype::F32, p.shape.clone(), data);
            views.push((&p.name, view.map_err(|e| Error::bug(format!("{}: {e}", p.name)))?));
        }
        // What `transformers` asks for before it reads a file.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| Error::bug(format!("{WEIGHTS_FILE}: {e}")))
    }
}

/// The bytes of a tensor out of a file.
fn stored<'a>(file: &str, tensors: &SafeTensors<'a>, name: &str, shape: &[usize]) -> Result<&'a [u8]> {
    // GPT-2's own files leave the prefix away.
    let short = name.strip_prefix("transformer.").unwrap_or(name);
    let view = tensors.tensor(name).or_else(|_| tensors.tensor(short)).map_err(|_| {
        let some: Vec<&str> = tensors.names().into_iter().take(4).map(|n| n as &str).collect();
        Error::input(format!("`{file}` has no tensor `{name}`"))
            .help(format!("it has {} and others", some.join(", ")))
    })?;
    let odd = |what: String| Error::input(format!("`{file}`: tensor `{name}` {what}"));
    if view.shape() != shape {
        return Err(odd(format!("has shape {:?}, expected {shape:?}", view.shape())));
    }
    if view.dtype() != safetensors::Dtype::F32 {
        return Err(odd(format!("is {:?}, expected F32", view.dtype())));
    }
    Ok(view.data())
}
