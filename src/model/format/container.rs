//! The forms that whole models are stored in by this and other programs, and the one list of them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{gguf, go, hf, llama2c, pytorch};
use crate::base::{Error, Files, Result, suggest};
use crate::kernel::BlockType;
use crate::model::{Config, Model, Transformer};
use crate::tokenizer::train::Algorithm;
use crate::tokenizer::{self, EachText, Tokenizer};

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

    /// Reads a model, whose files may lack what `options` say.
    ///
    /// # Errors
    /// As [`Container::read`], and when `options` say what the files do, otherwise.
    fn read_with(&self, files: &Files, options: &ImportOptions) -> Result<Imported> {
        options.expect_none(self.name())?;
        self.read(files)
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
pub static CONTAINERS: [&dyn Container; 5] =
    [&pytorch::PyTorch, &hf::HuggingFace, &gguf::Gguf, &llama2c::Llama2C, &go::GoJson];

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

/// What completes the files of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImportOptions {
    /// Fields of [`Config`] by their names, such as `n_head`, that the files don't say.
    pub config: Map<String, Value>,
}

impl ImportOptions {
    /// # Errors
    /// When something is said, for a form whose files say all.
    pub(super) fn expect_none(&self, form: &str) -> Result<()> {
        match self.config.keys().next() {
            None => Ok(()),
            Some(field) => Err(Error::usage(format!(
                "`config.{field}`: the files of a model in the form `{form}` say it"
            ))
            .help("leave `config` away")),
        }
    }
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

impl Outgoing<'_> {
    /// Calls `write` with the model's numbers in f32: blocks decoded, adapters merged.
    ///
    /// # Errors
    /// Those of `write`, and when the files of a quantized model don't read.
    pub(super) fn with_numbers(&self, write: impl FnOnce(&Transformer) -> Result<()>) -> Result<()> {
        let transformer = &self.model.transformer;
        match transformer {
            _ if transformer.is_quantized() => write(&Transformer::open(self.files)?.dequantized()),
            _ if transformer.lora.is_some() => write(&transformer.merged_copy()),
            _ => write(transformer),
        }
    }
}

/// The tokenizer in the form `name` among the files of a model, should there be one.
///
/// # Errors
/// When it does not read.
pub(super) fn tokenizer_beside(name: &str, files: &Files) -> Result<Option<Tokenizer>> {
    let form = tokenizer::format::FORMATS.iter().find(|f| f.name() == name && f.recognizes(files));
    form.map(|form| form.read(files)).transpose()
}

/// The tokenizer in any form among the files of a model, should there be one.
///
/// # Errors
/// When it does not read.
pub(super) fn tokenizer_among(files: &Files) -> Result<Option<Tokenizer>> {
    let form = tokenizer::format::FORMATS.iter().find(|f| f.recognizes(files));
    form.map(|form| form.read(files)).transpose()
}

/// The first field in which a model differs from what a form computes, as text. Fields that only training
/// needs are passed over.
pub(super) fn difference(found: &Config, computed: &Config) -> Option<String> {
    let computed = Config { dropout: found.dropout, init: found.init, ..computed.clone() };
    let (found, computed) = (json!(found), json!(computed));
    let mut fields = found.as_object().into_iter().flatten();
    let (name, value) = fields.find(|(name, value)| computed[name.as_str()] != **value)?;
    Some(format!("`{name}` is {value}, expected {}", computed[name.as_str()]))
}
