//! `tinylm import`: a model or a tokenizer of another program, as a folder that every command takes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::place::{self, Written};
use super::{Format, out, print_json};
use crate::base::{Error, Files, Result, units};
use crate::kinds::import::{self, AUTO, What};
use crate::model::format as model_format;
use crate::report::style::{Style, table};
use crate::tokenizer::format as tokenizer_format;
use crate::tokenizer::{Names, Special, Tokenizer};

/// `tinylm --format json import …` prints what was read as JSON.
#[derive(Args)]
pub struct Import {
    /// The files of the other program: one of them, or their folder.
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    source: PathBuf,
    /// The folder to write, which must not be there, or be empty.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// How the files are stored: `tinylm stages import` lists the names. Default: told by their names and first
    /// bytes.
    #[arg(long, value_name = "F", default_value = AUTO, hide_default_value = true)]
    format: String,
    /// What they are. Default: told by the format.
    #[arg(long, value_enum)]
    what: Option<WhatArg>,
    /// The model's tokenizer, of any form, where its files hold none.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhatArg {
    Model,
    Tokenizer,
}

impl Import {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        place::must_be_free(&self.output, false)?;
        let files = files_at(&self.source)?;
        let names = Names::default();
        let (rows, mut json, written) = match self.what(&files)? {
            What::Model => {
                let tokenizer = self.tokenizer.as_deref().map(files_at).transpose()?;
                let read = out::logged(|| import::model(&files, tokenizer.as_ref(), &self.format, &names))?;
                let written = place::folder(&self.output, |folder| read.save(folder))?;
                let (config, tokenizer) = (&read.model.transformer.config, &read.model.tokenizer);
                let rows = vec![
                    ("format", read.format.to_string()),
                    ("model", import::about_model(config)),
                    ("tokenizer", import::about_tokenizer(tokenizer)),
                ];
                let json = json!({
                    "what": "model", "format": read.format, "parameters": config.parameters(), "config": config,
                    "tokenizer": tokenizer_json(tokenizer),
                });
                (rows, json, written)
            }
            What::Tokenizer => {
                let (form, tokenizer) = out::logged(|| import::tokenizer(&files, &self.format, &names))?;
                let written =
                    place::folder(&self.output, |folder| import::save_tokenizer(&tokenizer, folder))?;
                let rows =
                    vec![("format", form.to_string()), ("tokenizer", import::about_tokenizer(&tokenizer))];
                let json =
                    json!({ "what": "tokenizer", "format": form, "tokenizer": tokenizer_json(&tokenizer) });
                (rows, json, written)
            }
        };
        match format {
            Format::Text => print_rows(rows, &written)?,
            Format::Json => {
                add_written(&mut json, &written);
                print_json(&json)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the files are, as said, or by the name of the format, or by the files.
    fn what(&self, files: &Files) -> Result<What> {
        let is_known = |what| import::check_format(what, &self.format);
        let found = match (self.what, self.format.as_str()) {
            (Some(WhatArg::Model), _) => What::Model,
            (Some(WhatArg::Tokenizer), _) => What::Tokenizer,
            (None, _) if self.tokenizer.is_some() => What::Model,
            (None, AUTO) => match (model_format::detect(files), tokenizer_format::detect(files)) {
                (Err(_), Ok(_)) => What::Tokenizer,
                _ => What::Model,
            },
            (None, _) if is_known(What::Model).is_err() && is_known(What::Tokenizer).is_ok() => {
                What::Tokenizer
            }
            (None, _) => What::Model,
        };
        if found == What::Tokenizer && self.tokenizer.is_some() {
            return Err(Error::usage(
                "--tokenizer says what tokenizer a model has, and a tokenizer is imported",
            ));
        }
        is_known(found).map(|()| found)
    }
}

fn files_at(path: &Path) -> Result<Files> {
    match path.exists() {
        true => Files::at(path),
        false => Err(Error::usage(format!("there is no file or folder `{}`", path.display()))),
    }
}

fn tokenizer_json(tokenizer: &Tokenizer) -> Value {
    let name = |special| tokenizer.special(special).and_then(|id| tokenizer.token(id));
    json!({ "tokens": tokenizer.vocab_size(), "bos": name(Special::Bos), "eos": name(Special::Eos) })
}

/// Prints names and texts, and what was written.
pub fn print_rows(rows: Vec<(&str, String)>, written: &Written) -> Result<()> {
    let files: Vec<&str> = written.files.iter().map(|(name, _)| name.as_str()).collect();
    let holds = match files.as_slice() {
        [_] if written.path.is_file() => String::new(),
        files => format!(": {}", files.join(", ")),
    };
    let place = format!("{} ({}){holds}", written.path.display(), units::bytes(written.bytes()));
    let rows = rows.into_iter().chain([("written", place)]);
    let rows: Vec<Vec<String>> = rows.map(|(name, text)| vec![name.to_string(), text]).collect();
    let s = Style::stdout();
    out::out(&table(&rows, |_, column, cell| if column == 0 { s.bold(cell) } else { cell }))
}

/// Adds what was written to a report.
pub fn add_written(json: &mut Value, written: &Written) {
    json["path"] = json!(written.path);
    json["bytes"] = json!(written.bytes());
    json["files"] = written.files.iter().map(|(name, size)| json!({ "name": name, "bytes": size })).collect();
}
