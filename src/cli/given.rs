//! What several commands are given: a model, and a text.

use std::path::PathBuf;

use clap::Args;

use super::DtypeArg;
use crate::base::{Error, Result, fs};
use crate::model::Model;
use crate::target;

#[derive(Args, Clone)]
pub struct ModelArgs {
    /// The model: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`.
    #[arg(long, value_name = "TARGET")]
    model: String,
    /// Low-rank adapters (LoRA) that are merged into the model: a target as of --model.
    #[arg(long, value_name = "TARGET")]
    adapter: Option<String>,
}

impl ModelArgs {
    pub fn load(&self, dtype: DtypeArg) -> Result<Model> {
        target::load_model(&self.model, self.adapter.as_deref(), dtype.into())
    }
}

#[derive(Args, Clone)]
pub struct TextArgs {
    /// The text.
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    text: Option<String>,
    /// A UTF-8 file that holds the text.
    #[arg(long)]
    file: Option<PathBuf>,
}

impl TextArgs {
    pub fn read(&self) -> Result<String> {
        match (&self.text, &self.file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) => fs::read_text(path),
            (None, None) => Err(Error::bug("neither a text nor a file")),
        }
    }
}
