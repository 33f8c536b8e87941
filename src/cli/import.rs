//! `tinylm import`: a model, a tokenizer or token ids of another program, as a folder that every command takes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::place::{self, Written};
use super::{Format, out, print_json};
use crate::base::{Error, Files, Quiet, Result, units};
use crate::kinds::import::{self, AUTO, TOKEN_FILES, What};
use crate::model::format::{self as model_format, ImportOptions};
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
    /// The tokenizer, of any form, of a model whose files hold none, or of token ids.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// What the files of a model don't say of its architecture: `n_head=4`. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    config: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhatArg {
    Model,
    Tokenizer,
    Shards,
}

/// What was read: lines with their names, and the same as JSON.
struct Account {
    rows: Vec<(&'static str, String)>,
    json: Value,
    written: Written,
}

impl Import {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        place::must_be_free(&self.output, false)?;
        let files = files_at(&self.source)?;
        let what = self.what(&files)?;
        let account = out::logged(|| match what {
            What::Model => self.model(&files),
            What::Tokenizer => self.tokenizer(&files),
            What::Shards => self.shards(&files),
        });
        let Account { rows, mut json, written } = account?;
        match format {
            Format::Text => print_rows(rows, &written)?,
            Format::Json => {
                json["what"] = json!(what.name());
                add_written(&mut json, &written);
                print_json(&json)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the files are, as said, or by the name of the format, or by the files.
    fn what(&self, files: &Files) -> Result<What> {
        let is_known = |what| import::check_format(what, &self.format);
        let of_format =
            || [What::Model, What::Tokenizer, What::Shards].into_iter().find(|w| is_known(*w).is_ok());
        let found = match (self.what, self.format.as_str()) {
            (Some(WhatArg::Model), _) => What::Model,
            (Some(WhatArg::Tokenizer), _) => What::Tokenizer,
            (Some(WhatArg::Shards), _) => What::Shards,
            (None, AUTO) => match (model_format::detect(files), tokenizer_format::detect(files)) {
                (Err(_), Ok(_)) if self.tokenizer.is_none() => What::Tokenizer,
                _ => What::Model,
            },
            (None, _) => of_format().unwrap_or(What::Model),
        };
        if found == What::Tokenizer && self.tokenizer.is_some() {
            return Err(Error::usage("--tokenizer says which one a model has, and a tokenizer is imported"));
        }
        is_known(found).map(|()| found)
    }

    fn model(&self, files: &Files) -> Result<Account> {
        let tokenizer = self.tokenizer.as_deref().map(files_at).transpose()?;
        let options = ImportOptions { config: fields(&self.config)? };
        let read = import::model(files, tokenizer.as_ref(), &self.format, &options, &Names::default())?;
        let (config, tokenizer) = (&read.model.transformer.config, &read.model.tokenizer);
        Ok(Account {
            rows: vec![
                ("format", read.format.to_string()),
                ("model", import::about_model(config)),
                ("tokenizer", import::about_tokenizer(tokenizer)),
            ],
            json: json!({
                "format": read.format, "parameters": config.parameters(), "config": config,
                "tokenizer": tokenizer_json(tokenizer),
            }),
            written: place::folder(&self.output, |folder| read.save(folder))?,
        })
    }

    fn tokenizer(&self, files: &Files) -> Result<Account> {
        let (form, tokenizer) = import::tokenizer(files, &self.format, &Names::default())?;
        Ok(Account {
            rows: vec![("format", form.to_string()), ("tokenizer", import::about_tokenizer(&tokenizer))],
            json: json!({ "format": form, "tokenizer": tokenizer_json(&tokenizer) }),
            written: place::folder(&self.output, |folder| import::save_tokenizer(&tokenizer, folder))?,
        })
    }

    fn shards(&self, files: &Files) -> Result<Account> {
        let tokenizer = self.tokenizer.as_deref().ok_or_else(|| {
            Error::usage("files of token ids do not say which tokens they are")
                .help("name their tokenizer with --tokenizer FILE")
        })?;
        let (_, tokenizer) = import::tokenizer(&files_at(tokenizer)?, AUTO, &Names::default())?;
        let mut report = None;
        let written = place::folder(&self.output, |folder| {
            report = Some(import::shards(files, &tokenizer, None, folder, &Quiet)?);
            Ok(())
        })?;
        let about = report.as_ref().map(import::about_shards).unwrap_or_default();
        Ok(Account {
            rows: vec![
                ("format", TOKEN_FILES.0.to_string()),
                ("shards", about),
                ("tokenizer", import::about_tokenizer(&tokenizer)),
            ],
            json: json!({ "format": TOKEN_FILES.0, "report": report, "tokenizer": tokenizer_json(&tokenizer) }),
            written,
        })
    }
}

/// `NAME=VALUE`, where a value that is no JSON is a text.
fn fields(given: &[String]) -> Result<Map<String, Value>> {
    let field = |text: &String| {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Error::usage(format!("--config: expected NAME=VALUE, found `{text}`")))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        Ok((name.trim().to_string(), value))
    };
    given.iter().map(field).collect()
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
