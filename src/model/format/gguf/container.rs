//! A whole model in one file, as llama.cpp loads it: tensors, vocabulary and chat template.

use std::path::Path;

use super::model::{is_matrix, write_tensors};
use super::vocabulary::{keys_of, pad};
use super::{File, GGUF_FILE, MAGIC, config_of, metadata, tokenizer_of, why_not_llama_cpp};
use crate::base::files::head;
use crate::base::{Error, Files, Result};
use crate::kernel::BlockType;
use crate::model::format::{Container, ExportOptions, Imported, Outgoing, Stored};
use crate::model::{CONFIG_FILE, Config, Transformer};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::llama_cpp::GgufVocabulary;
use crate::tokenizer::train::Algorithm;

pub struct Gguf;

impl Container for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn summary(&self) -> &'static str {
        "llama.cpp: one `.gguf` file with the tokenizer and the chat template"
    }

    fn recognizes(&self, files: &Files) -> bool {
        find(files).is_some()
    }

    fn read(&self, files: &Files) -> Result<Imported> {
        let path = file(files)?;
        let file = File::open(path)?;
        let config = config_of(&file)?;
        let tokenizer = tokenizer_of(&file)?;
        let transformer = Transformer::of_gguf(&config, &file)?;
        let has_blocks = file.tensors.iter().any(|tensor| tensor.ty.is_quantized());
        Ok(Imported { transformer, tokenizer, blocks: has_blocks.then(|| path.to_path_buf()) })
    }

    fn read_tokenizer(&self, files: &Files) -> Result<Option<Tokenizer>> {
        tokenizer_of(&File::open(file(files)?)?)
    }

    fn refuses(&self, config: &Config, _: &ExportOptions) -> Option<String> {
        Some(format!("llama.cpp does not compute {}", why_not_llama_cpp(config)?))
    }

    fn refuses_tokenizer(&self, algorithm: Algorithm) -> Option<String> {
        let what = match algorithm {
            Algorithm::Word => "whole words",
            Algorithm::Char => "single characters",
            _ => return None,
        };
        Some(format!("llama.cpp has no rules for a vocabulary of {what}"))
    }

    fn write(&self, out: &Outgoing, into: &Path) -> Result<()> {
        let (gpt, tokenizer) = (&out.model.transformer, &out.model.tokenizer);
        if let Some(why) = self.refuses(&gpt.config, out.options) {
            return Err(Error::usage(why));
        }
        let mut vocabulary = GgufVocabulary::of(tokenizer)?;
        // None where the tokenizer has no tokens for conversations.
        vocabulary.chat_template = tokenizer.chat_template().ok();
        pad(&mut vocabulary, gpt.config.vocab_size);
        vocabulary.compare(tokenizer, out.texts)?;
        let mut metadata = metadata(&gpt.config);
        metadata.extend(keys_of(vocabulary));
        let merged = gpt.lora.is_some().then(|| gpt.merged_copy());
        let source = Source {
            gpt: merged.as_ref().unwrap_or(gpt),
            blocks: match &merged {
                None => blocks(out.files)?,
                Some(_) => None,
            },
            dtype: out.options.dtype,
        };
        if source.blocks.is_none() && source.gpt.is_quantized() {
            return Err(Error::bug(format!("the blocks of `{}` are not among its files", out.files.label)));
        }
        write_tensors(&gpt.config, &into.join(GGUF_FILE), &metadata, &mut |stored| source.bytes(stored))
    }
}

/// The GGUF file among files: the only one, or the one that ends so.
fn find(files: &Files) -> Option<&Path> {
    let path = files.only().or_else(|| files.ending(".gguf"))?;
    (head(path, MAGIC.len()) == MAGIC).then_some(path)
}

fn file(files: &Files) -> Result<&Path> {
    let none = || Error::input(format!("`{}` is no GGUF file, nor a folder with one", files.label));
    files.only().or_else(|| files.ending(".gguf")).ok_or_else(none)
}

/// The file with the tensors of a model as they are stored, should it be GGUF.
fn blocks(files: &Files) -> Result<Option<File>> {
    let path = match files.find(CONFIG_FILE) {
        Some(_) => files.find(GGUF_FILE),
        None => find(files),
    };
    path.map(File::open).transpose()
}

/// Where tensors are taken from.
struct Source<'a> {
    gpt: &'a Transformer,
    blocks: Option<File>,
    dtype: Option<BlockType>,
}

impl Source<'_> {
    /// A tensor's type and bytes: as they are stored, where they are of the type that is asked for.
    fn bytes(&self, stored: &Stored) -> Result<(BlockType, Vec<u8>)> {
        let own = self.blocks.as_ref().and_then(|file| Some((file, file.find(&stored.name)?)));
        let row = *stored.shape.last().expect("no tensor is a single number");
        let ty = match (self.dtype, own) {
            (Some(ty), _) if is_matrix(stored, &self.gpt.layout) => ty.for_rows_of(row),
            (None, Some((_, own))) => own.ty,
            _ => BlockType::F32,
        };
        match own {
            Some((file, own)) if own.ty == ty => Ok((ty, file.bytes(own)?)),
            Some((file, own)) => Ok((ty, rounded(ty, &file.numbers(own)?)?)),
            None => Ok((ty, rounded(ty, &self.gpt.numbers(stored))?)),
        }
    }
}

/// # Errors
/// When a number is beyond what the type can hold, or is none.
fn rounded(ty: BlockType, numbers: &[f32]) -> Result<Vec<u8>> {
    let bytes = ty.encode(numbers)?;
    match super::read::not_finite(ty, &bytes) {
        Some((i, _)) => {
            Err(Error::input(format!("number {i} is {}, too large for {}", numbers[i], ty.name()))
                .help("use another type, as `f32` or `bf16`"))
        }
        None => Ok(bytes),
    }
}
