//! `tinylm inspect`: what any artifact or file holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{Format, out, print_json, terminal_width};
use crate::base::{Error, Result};
use crate::inspect::{self, Options};
use crate::shard::Shards;
use crate::shard::logits::Logits;
use crate::stage::Artifact;
use crate::target;
use crate::tokenizer::Tokenizer;

#[derive(Args)]
pub struct Inspect {
    /// A path, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`.
    target: String,
    /// Rows or lines to show.
    #[arg(long, default_value_t = 3)]
    rows: usize,
    /// Decode token columns with this tokenizer: a path or a target. Default: the one that shards or logits name,
    /// where the same pipeline made it.
    #[arg(long, value_name = "TARGET")]
    tokenizer: Option<String>,
}

impl Inspect {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let artifact = target::resolve(&self.target)?;
        let tokenizer = self.tokenizer(&artifact)?;
        let decode = |ids: &[u32]| tokenizer.as_ref()?.decode(ids).ok();
        let options = Options {
            rows: self.rows,
            decode: tokenizer.is_some().then_some(&decode as &inspect::Decode),
            config: artifact.find("config.json").map(Path::to_path_buf),
            ..Options::default()
        };
        let report = match artifact.files.as_slice() {
            [only] => inspect::inspect(&only.path, &only.name, &options)?,
            _ => {
                let files: Vec<(String, PathBuf)> =
                    artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
                inspect::inspect_files(&self.target, &files, &options)?
            }
        };
        match format {
            Format::Text => out::out(&report.render(terminal_width()))?,
            Format::Json => print_json(
                &serde_json::to_value(&report).map_err(|e| Error::bug(format!("the report: {e}")))?,
            )?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The tokenizer asked for, or the artifact's own, or the one whose digest shards or logits carry, looked
    /// for among what the same pipeline made.
    fn tokenizer(&self, artifact: &Artifact) -> Result<Option<Tokenizer>> {
        if let Some(text) = &self.tokenizer {
            let found = target::resolve_as(text, "tokenizer")?;
            return Tokenizer::load(found.file_or_only("tokenizer.json")?).map(Some);
        }
        let files: Vec<(String, PathBuf)> =
            artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
        let of_logits = || Logits::open(&files).map(|logits| logits.header.tokenizer);
        let named = Shards::open(&files).map(|shards| shards.tokenizer).or_else(|_| of_logits());
        let Ok(named) = named else { return Ok(None) };
        let Some((pipeline, _)) = self.target.split_once(':') else { return Ok(None) };
        let candidates: BTreeMap<_, _> = target::tokenizers(pipeline).into_iter().map(|p| (p, ())).collect();
        Ok(candidates
            .into_keys()
            .filter_map(|path| Tokenizer::load(&path).ok())
            .find(|t| t.digest() == named))
    }
}
