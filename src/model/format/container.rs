//! The forms that whole models are stored in by this and other programs, and the one list of them.

use std::path::{Path, PathBuf};

use super::{gguf, hf};
use crate::base::{Error, Files, Result, suggest};
use crate::kernel::BlockType;
use crate::model::{Config, Model, Transformer};
use crate::tokenizer::train::Algorithm;
use crate::tokenizer::{EachText, Tokenizer};

/// A form that whole models are stored in.
pub trait Container: Sync {
    /// `gguf`, as params and the command line call it.
    fn name(&self) -> &'static str;

    /// One line for help: whose form it is, and which files it is made of.
    fn summary(&self) -> &'static str;

    /// Whether these files are of the form, by their names and first bytes.
    fn recognizes(&self, files: &Files) -> bool;

    /// Reads a model.
    ///
    /// # Errors
    /// When a file is damaged, or asks for what can't be computed.
    fn read(&self, files: &Files) -> Result<Imported>;

    /// Reads the tokenizer alone, of a file that may hold nothing else; `None` where the form holds none.
    ///
    /// # Errors
    /// As [`Container::read`].
    fn read_tokenizer(&self, files: &Files) -> Result<Option<Tokenizer>> {
        Ok(self.read(files)?.tokenizer)
    }

    /// Why a model of this architecture can't be written in the form with these options; `None` when it can.
    fn refuses(&self, config: &Config, options: &ExportOptions) -> Option<String>;

    /// Why a model whose tokenizer is trained by this algorithm can't be written in the form; `None` when it
    /// can, or when only the tokenizer itself tells.
    fn refuses_tokenizer(&self, _: Algorithm) -> Option<String> {
        None
    }

    /// Writes a model into the empty folder `into`.
    ///
    /// # Errors
    /// When the form cannot hold the model or its tokenizer, or a file cannot be written.
    fn write(&self, model: &Outgoing, into: &Path) -> Result<()>;
}

/// All of them. What recognizes files first reads them.
pub static CONTAINERS: [&dyn Container; 2] = [&hf::HuggingFace, &gguf::Gguf];

/// The form called `name`.
///
/// # Errors
/// When there is none; says which there are.
pub fn container(name: &str) -> Result<&'static dyn Container> {
    let names = || CONTAINERS.iter().map(|c| c.name());
    CONTAINERS.iter().find(|c| c.name() == name).copied().ok_or_else(|| {
        Error::usage(format!("there is no format `{name}` of models"))
            .suggest(suggest::closest(name, names()))
            .help(format!("there are {}", suggest::list(names())))
    })
}

/// The form that these files are of.
///
/// # Errors
/// When they are of none that is known.
pub fn detect(files: &Files) -> Result<&'static dyn Container> {
    CONTAINERS.iter().find(|c| c.recognizes(files)).copied().ok_or_else(|| {
        let forms = CONTAINERS.iter().map(|c| format!("{} ({})", c.name(), c.summary()));
        Error::input(format!("`{}` is no model of a known form", files.label))
            .help(format!("known are {}", forms.collect::<Vec<_>>().join("; ")))
    })
}

/// A model that was read.
pub struct Imported {
    pub transformer: Transformer,
    /// Where the form holds one, or one lies beside.
    pub tokenizer: Option<Tokenizer>,
    /// The GGUF file with the blocks of a quantized model, which are to be kept as they are.
    pub blocks: Option<PathBuf>,
}

/// How a model is to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExportOptions {
    /// The type of matrices; the model's own where it is not given.
    pub dtype: Option<BlockType>,
}

/// A model to be written.
pub struct Outgoing<'a> {
    pub model: &'a Model,
    /// The files that it was read from: blocks of a quantized model are taken as they are.
    pub files: &'a Files,
    pub options: &'a ExportOptions,
    /// Texts that it was trained on, as far as they are known, to compare the ids of another program with.
    pub texts: &'a EachText<'a>,
}
