//! A folder as Hugging Face's libraries read and write it: `config.json`, `model.safetensors`,
//! `tokenizer.json`.

use std::path::Path;

use super::gguf::GGUF_FILE;
use super::{Container, ExportOptions, Imported, Outgoing};
use crate::base::{Error, Files, Result};
use crate::kernel::BlockType;
use crate::model::{CONFIG_FILE, Config, TOKENIZER_FILE, Transformer};
use crate::tokenizer::{Names, Tokenizer};

pub struct HuggingFace;

impl Container for HuggingFace {
    fn name(&self) -> &'static str {
        "hf"
    }

    fn summary(&self) -> &'static str {
        "Hugging Face: a folder with `config.json`, safetensors and `tokenizer.json`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        files.find(CONFIG_FILE).is_some()
    }

    fn read(&self, files: &Files) -> Result<Imported> {
        let transformer = Transformer::open(files)?;
        let tokenizer = files
            .find(TOKENIZER_FILE)
            .map(|path| Tokenizer::load_with(path, &Names::beside(|name| files.find(name))?));
        let blocks = files.find(GGUF_FILE).map(Path::to_path_buf);
        Ok(Imported { transformer, tokenizer: tokenizer.transpose()?, blocks })
    }

    fn refuses(&self, _: &Config, options: &ExportOptions) -> Option<String> {
        let ty = options.dtype.filter(|ty| ty.is_quantized())?;
        Some(format!("safetensors hold no blocks of {}: use `gguf`", ty.name()))
    }

    fn write(&self, out: &Outgoing, into: &Path) -> Result<()> {
        match out.options.dtype {
            None => out.model.save(into),
            Some(ty @ (BlockType::F32 | BlockType::F16 | BlockType::Bf16)) => out.model.save_as(into, ty),
            Some(ty) => Err(Error::usage(format!("weights of {} are not written", ty.name()))),
        }
    }
}
