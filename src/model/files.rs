//! A model's folder: `config.json`, `model.safetensors`, `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::gpt::{Fresh, Init, Source};
use super::{Config, Gpt, math};
use crate::base::{Error, Result, fs};
use crate::tokenizer::{Special, Tokenizer};

pub const CONFIG_FILE: &str = "config.json";
pub const WEIGHTS_FILE: &str = "model.safetensors";
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A model with the tokenizer that it speaks.
#[derive(Clone)]
pub struct Model {
    pub gpt: Gpt,
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Reads the three files, wherever each lies.
    ///
    /// # Errors
    /// When one does not read, a tensor is missing or of another shape or type, or the tokenizer has
    /// more tokens than the model.
    pub fn load(config: &Path, weights: &Path, tokenizer: &Path) -> Result<Self> {
        let gpt = Gpt::load(config, weights)?;
        let tokenizer = Tokenizer::load(tokenizer)?;
        if tokenizer.vocab_size() > gpt.config.vocab_size {
            return Err(Error::input(format!(
                "the tokenizer has {} tokens, the model room for {}",
                tokenizer.vocab_size(),
                gpt.config.vocab_size
            ))
            .help("use the tokenizer that the model was trained with"));
        }
        Ok(Model { gpt, tokenizer })
    }

    /// Writes the three files into `folder`; the same model gives the same bytes.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let (bos, eos) = (self.tokenizer.special(Special::Bos), self.tokenizer.special(Special::Eos));
        let json = serde_json::to_vec_pretty(&self.gpt.config.to_json(bos, eos))
            .map_err(|e| Error::bug(format!("{CONFIG_FILE}: {e}")))?;
        fs::write(&folder.join(CONFIG_FILE), &json)?;
        fs::write(&folder.join(TOKENIZER_FILE), self.tokenizer.json())?;
        fs::write(&folder.join(WEIGHTS_FILE), &self.gpt.to_safetensors()?)
    }
}

impl Gpt {
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
        Gpt::build(&config, &mut Stored { file, tensors })
    }

    /// The weights in the order of the parameters' names, f32, little endian.
    ///
    /// # Errors
    /// When candle fails.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let mut values: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for p in self.parameters() {
            let flat = p.var.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(math)?;
            let bytes = flat.iter().flat_map(|x| x.to_le_bytes()).collect();
            values.push((p.name.clone(), p.var.dims().to_vec(), bytes));
        }
        let views: Vec<(&str, TensorView)> = values
            .iter()
            .map(|(name, shape, bytes)| {
                let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
                view.map(|v| (name.as_str(), v)).map_err(|e| Error::bug(format!("{name}: {e}")))
            })
            .collect::<Result<_>>()?;
        // What `transformers` asks for before it reads a file.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| Error::bug(format!("{WEIGHTS_FILE}: {e}")))
    }

    /// The same model with room for `vocab_size` tokens: each new row is the mean of the old ones, and
    /// a little noise from `seed` so that they can be told apart (Hewitt, 2021).
    ///
    /// # Errors
    /// When `vocab_size` is smaller than what there is.
    pub fn extended(&self, vocab_size: usize, seed: u64) -> Result<Self> {
        let old = self.config.vocab_size;
        if vocab_size < old {
            return Err(Error::bug(format!("a vocabulary of {old} cannot be extended to {vocab_size}")));
        }
        let config = Config { vocab_size, ..self.config.clone() };
        Gpt::build(&config, &mut Extended { old: self, fresh: Fresh { seed } })
    }
}

/// Tensors out of a file.
struct Stored<'a> {
    file: String,
    tensors: SafeTensors<'a>,
}

impl Source for Stored<'_> {
    fn get(&mut self, name: &str, shape: &[usize], _: Init) -> Result<Tensor> {
        // GPT-2's own files leave the prefix away.
        let short = name.strip_prefix("transformer.").unwrap_or(name);
        let view = self.tensors.tensor(name).or_else(|_| self.tensors.tensor(short)).map_err(|_| {
            let some: Vec<&str> = self.tensors.names().into_iter().take(4).map(|n| n as &str).collect();
            Error::input(format!("`{}` has no tensor `{name}`", self.file))
                .help(format!("it has {} and others", some.join(", ")))
        })?;
        let odd = |what: String| Error::input(format!("`{}`: tensor `{name}` {what}", self.file));
        if view.shape() != shape {
            return Err(odd(format!("has shape {:?}, expected {shape:?}", view.shape())));
        }
        if view.dtype() != safetensors::Dtype::F32 {
            return Err(odd(format!("is {:?}, expected F32", view.dtype())));
        }
        Tensor::from_raw_buffer(view.data(), DType::F32, shape, &Device::Cpu).map_err(math)
    }
}

/// The tensors of another model, the embedding grown.
struct Extended<'a> {
    old: &'a Gpt,
    fresh: Fresh,
}

impl Source for Extended<'_> {
    fn get(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let found = self.old.parameters().iter().find(|p| p.name == name);
        let old = found.ok_or_else(|| Error::bug(format!("no tensor `{name}` to extend")))?.var.as_tensor();
        if old.dims() == shape {
            return old.copy().map_err(math);
        }
        let rows = shape[0] - old.dims()[0];
        let noise = self.fresh.get(&format!("extended/{name}"), &[rows, shape[1]], init)?;
        let grown = || {
            let new = (noise * 0.1)?.broadcast_add(&old.mean_keepdim(0)?)?;
            Tensor::cat(&[old, &new], 0)
        };
        grown().map_err(math)
    }
}
