//! `tinylm export`: a model, a tokenizer or token ids in a form that another program reads.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::import::{add_written, print_rows};
use super::{Format, out, place, print_json};
use crate::base::{Error, Quiet, Result, suggest};
use crate::kernel::BlockType;
use crate::kinds::export::{Form, PORTS, Texts};
use crate::target;
use crate::tokenizer::TOKENIZER_FILE;

/// `tinylm --format json export …` prints what was written as JSON.
#[derive(Args)]
pub struct Export {
    /// The model to write: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`.
    #[arg(long, value_name = "TARGET", required_unless_present_any = ["tokenizer", "shards"])]
    model: Option<String>,
    /// The tokenizer to write, in a form of tokenizers: a path or a target, of a model too.
    #[arg(long, value_name = "TARGET", conflicts_with = "model")]
    tokenizer: Option<String>,
    /// The token shards to write, in a form of token ids: `PIPELINE:STAGE` or a folder.
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["model", "tokenizer", "texts"])]
    shards: Option<String>,
    /// The form to write: `tinylm stages export` lists the names.
    #[arg(long, value_name = "F")]
    format: String,
    /// The type of the model's matrices: `q8_0`, `q4_k` and others. Default: what they are.
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["tokenizer", "shards"])]
    quantize: Option<String>,
    /// The folder to write, which must not be there, or be empty; of a form that is one file, that file, when it
    /// ends as the form's file does.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Replace the file that is there. Folders are never replaced.
    #[arg(long)]
    force: bool,
    /// Further texts whose ids are compared with those that the other program will give: targets of documents or
    /// conversations, or files of plain text. May be repeated. Those that the stages of the model's pipeline read
    /// are compared anyway.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    texts: Vec<String>,
}

impl Export {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let targets = [&self.model, &self.tokenizer, &self.shards];
        let given = PORTS.into_iter().zip(targets).find_map(|(port, text)| Some((port, text.as_deref()?)));
        let (port, text) =
            given.ok_or_else(|| Error::usage("--model, --tokenizer or --shards is missing"))?;
        let form = Form::named(port, &self.format)?;
        let quantize = self.quantize.as_deref().map(block_type).transpose()?;
        let is_alone = port == "tokenizer" && !text.ends_with(TOKENIZER_FILE);
        let artifact = if is_alone { target::resolve_as(text, port) } else { target::folder_of(text, port) }?;
        let texts = if port == "shards" { Texts::default() } else { self.texts(text)? };
        let written = out::logged(|| {
            place::folder_or_file(&self.output, self.force, |into| {
                form.write(&artifact, quantize, &texts, into, &Quiet)
            })
        })?;
        match format {
            Format::Text => {
                let rows = texts.report().into_iter().map(|line| ("texts", line));
                print_rows([("format", self.format)].into_iter().chain(rows).collect(), &written)?;
            }
            Format::Json => {
                let mut json = json!({
                    "what": port, "format": self.format, "quantize": quantize, "texts_compared": texts.compared(),
                });
                add_written(&mut json, &written);
                print_json(&json)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The texts that the model's stages were made from, and those given.
    fn texts(&self, target: &str) -> Result<Texts> {
        let (mut stored, lost) = target::texts_behind(target)?;
        if !lost.is_empty() {
            let names = suggest::list(lost.iter().map(String::as_str));
            out::warn(&format!("not compared are the texts of {names}: their artifacts are gone"));
        }
        let mut plain = Vec::new();
        for text in &self.texts {
            let given = target::texts(text)?;
            stored.documents.extend(given.0.documents);
            stored.conversations.extend(given.0.conversations);
            plain.extend(given.1);
        }
        Ok(Texts::new(stored, plain))
    }
}

fn block_type(name: &str) -> Result<BlockType> {
    BlockType::of_name(name).ok_or_else(|| {
        let names = || BlockType::all().map(BlockType::name);
        Error::usage(format!("--quantize: there is no type `{name}`"))
            .suggest(suggest::closest(name, names()))
            .help(format!("the types are {}", suggest::list(names())))
    })
}
