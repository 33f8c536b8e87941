//! `tinylm query`: SQL over the Parquet and JSON lines of artifacts and files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Format, out, terminal_width};
use crate::base::{Error, Result};
use crate::query::{self, Source, table_name};
use crate::stage::Artifact;
use crate::target;

#[derive(Args)]
pub struct Query {
    /// One or more targets, then the SQL. A target is a table named after its stage or file; a single
    /// one is `self` too. What else is in an artifact (`validation-*`, `duplicates`) is a table of its own.
    #[arg(required = true, num_args = 2.., value_name = "TARGET… SQL")]
    words: Vec<String>,
    /// Rows to print at most; 0 for all.
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

impl Query {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let (sql, targets) = self.words.split_last().ok_or_else(|| Error::usage("there is no query"))?;
        if !sql.contains(char::is_whitespace) {
            return Err(Error::usage(format!("`{sql}` is not a query")).help(
                "the last word is the SQL: tinylm query two_stage:docs \"SELECT COUNT(*) FROM docs\"",
            ));
        }
        let mut sources = Vec::new();
        for text in targets {
            sources.extend(tables(text, &target::resolve(text)?)?);
        }
        // With one target its main table is `self`, as with a single file.
        if let ([_], [main, _, ..]) = (targets, sources.as_slice()) {
            let main = Source { name: "self".into(), files: main.files.clone() };
            sources.push(main);
        }
        let limit = if self.limit == 0 { None } else { Some(self.limit) };
        let frame = query::query(&sources, sql, limit)?;
        match format {
            Format::Text => out::out(&frame.table(terminal_width()))?,
            Format::Json => frame.write_json_lines(&mut out::Out)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The tables of an artifact: files whose names differ only in their number are one table.
fn tables(text: &str, artifact: &Artifact) -> Result<Vec<Source>> {
    let mut groups: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    // Beside tables, JSON says something about them: `held_out.json`, `report.json`.
    let is_table = |name: &str| name.ends_with(".parquet") || name.ends_with(".jsonl");
    let has_tables = artifact.files.iter().any(|file| is_table(&file.name));
    for file in &artifact.files {
        // Metrics are there in two formats; Parquet has the types.
        let twin = file.name.strip_suffix(".jsonl").map(|stem| format!("{stem}.parquet"));
        let has_twin = twin.is_some_and(|twin| artifact.find(&twin).is_some());
        if has_twin || has_tables && file.name.ends_with(".json") {
            continue;
        }
        if query::Format::of(&file.path).is_ok() {
            let stem = file.name.split('.').next().unwrap_or(&file.name);
            let base = stem.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
            groups.entry(table_name(base)).or_default().push(file.path.clone());
        }
    }
    groups.remove("config");
    groups.remove("tokenizer");
    if groups.is_empty() {
        return Err(Error::input(format!("`{text}` holds neither Parquet nor JSON lines")));
    }
    let stage = text.split_once(':').filter(|_| !PathBuf::from(text).exists()).map(|(_, stage)| stage);
    let main = MAIN.iter().find(|name| groups.contains_key(**name)).map(|name| name.to_string());
    let main = main.or_else(|| groups.keys().next().cloned()).unwrap_or_default();
    let mut sources: Vec<Source> = Vec::new();
    if let Some(stage) = stage {
        let name = table_name(&stage.replace(['@', '=', ',', '.'], "_"));
        sources.push(Source { name, files: groups[&main].clone() });
    }
    let others = groups.into_iter().filter(|(group, _)| sources.iter().all(|s| s.name != *group));
    let others: Vec<Source> = others.map(|(name, files)| Source { name, files }).collect();
    sources.extend(others);
    Ok(sources)
}

/// Of several tables the one that is also named after the stage.
const MAIN: [&str; 6] = ["documents", "conversations", "train", "logits", "metrics", "report"];
