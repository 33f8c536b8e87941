//! A model's folder, which `AutoModelForCausalLM` and `AutoTokenizer` of `transformers` load: `config.json`,
//! `generation_config.json`, `model.safetensors` (or `model.gguf`), `tokenizer.json`, `tokenizer_config.json`.

use std::path::Path;

use super::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Config, Transformer};
use serde_json::{Value, json};

use crate::base::{Error, Files, Result, fs};
use crate::kernel::BlockType;
pub use crate::tokenizer::TOKENIZER_FILE;
use crate::tokenizer::{GENERATION_FILE, Special, TOKENIZER_CONFIG_FILE, Tokenizer};

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
        self.save_as(folder, BlockType::F32)
    }

    /// [`Model::save`] with the weights in f32, f16 or bf16. They are one file, whatever its size.
    ///
    /// # Errors
    /// When a weight is too large for f16, or a file cannot be written.
    ///
    /// # Panics
    /// When `ty` is another type.
    pub fn save_as(&self, folder: &Path, ty: BlockType) -> Result<()> {
        let dtype = match ty {
            BlockType::F16 => "float16",
            BlockType::Bf16 => "bfloat16",
            _ => "float32",
        };
        self.save_described(folder, dtype)?;
        fs::write(&folder.join(WEIGHTS_FILE), &self.transformer.to_safetensors_as(ty)?)
    }

    /// Writes all files but the weights.
    pub(super) fn save_beside_weights(&self, folder: &Path) -> Result<()> {
        self.save_described(folder, "float32")
    }

    /// [`Model::save_beside_weights`] for weights of PyTorch's type `dtype`.
    fn save_described(&self, folder: &Path, dtype: &str) -> Result<()> {
        let (transformer, tokenizer) = (&self.transformer, &self.tokenizer);
        let (bos, eos) = (tokenizer.special(Special::Bos), tokenizer.special(Special::Eos));
        let mut config = transformer.config.to_json(bos, eos)?;
        config["torch_dtype"] = json!(dtype);
        let write = |name: &str, value: &Value| {
            let json = serde_json::to_vec_pretty(value).map_err(|e| Error::bug(format!("{name}: {e}")))?;
            fs::write(&folder.join(name), &json)
        };
        write(CONFIG_FILE, &config)?;
        write(GENERATION_FILE, &generation_config(tokenizer))?;
        fs::write(&folder.join(TOKENIZER_FILE), tokenizer.json())?;
        let config = tokenizer.full_config(Some(transformer.config.seq_len))?;
        fs::write(&folder.join(TOKENIZER_CONFIG_FILE), &config)
    }
}

/// The ids that `generate` of `transformers` needs.
fn generation_config(tokenizer: &Tokenizer) -> Value {
    let mut ends: Vec<u32> = tokenizer.special(Special::Eos).into_iter().collect();
    ends.extend(tokenizer.turn_ends().iter().filter(|id| Some(**id) != tokenizer.special(Special::Eos)));
    let mut value = json!({});
    let ids = [("bos_token_id", Special::Bos), ("pad_token_id", Special::Pad)];
    for (key, id) in ids.into_iter().filter_map(|(key, special)| Some((key, tokenizer.special(special)?))) {
        value[key] = json!(id);
    }
    match ends.as_slice() {
        [] => {}
        [eos] => value["eos_token_id"] = json!(eos),
        several => value["eos_token_id"] = json!(several),
    }
    value
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
