//! `tinylm compare`: several models or reports in one table, with intervals and paired tests.

mod judge;
mod show;
mod targets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{Format, out, place, print_json, terminal_width};
use crate::base::{Error, Result, fs};
use crate::eval::compare::{self, Comparison, Entry, Member, Options};
use crate::report::style::Style;
use judge::Judge;
use targets::Named;

#[derive(Args)]
pub struct Compare {
    /// Reports of `eval`, or models: folders, `PIPELINE:STAGE` (all its variants, where it has a matrix) or
    /// `PIPELINE:STAGE.PORT`. `NAME=TARGET` names a row of the table; of `NAME=TARGET,TARGET,…` the row is the
    /// mean over several, as of one recipe with several seeds.
    #[arg(required = true, value_name = "[NAME=]TARGET[,TARGET…]")]
    targets: Vec<String>,
    /// Make one row of the variants of a matrix that have the same value of this variable (`--group-by recipe`
    /// of a matrix of recipe and seed).
    #[arg(long, value_name = "VARIABLE")]
    group_by: Option<String>,
    /// The row that the others are compared with [default: the first].
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Only these figures, as reports name them: `bits_per_byte`, `pairs.accuracy` [default: all].
    #[arg(long, value_name = "FIGURE", num_args = 1..)]
    figures: Vec<String>,
    /// What resamples and permutations derive from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    judge: Judge,
    /// Also write the table to this file, which ends in `.parquet` or `.json`.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file that is there.
    #[arg(long)]
    force: bool,
}

impl Compare {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        if let Some(path) = &self.output {
            writer_of(path)?;
            place::must_be_free_for_a_file(path, self.force)?;
        }
        let named = targets::read(&self.targets, self.group_by.as_deref())?;
        let (baseline, figures) = (self.baseline.clone(), self.figures.clone());
        let options = Options { seed: self.seed, baseline, figures };
        let names: Vec<&str> = named.iter().map(|row| row.name.as_str()).collect();
        compare::check(&names, &options)?;
        let entries = out::logged(|| self.entries(&named))?;
        let comparison = compare::compare(&entries, &options)?;
        if let Some(path) = &self.output {
            write(path, self.force, &comparison)?;
        }
        match format {
            Format::Text => out::out(&show::table(&comparison, Style::stdout(), terminal_width()))?,
            Format::Json => print_json(
                &serde_json::to_value(&comparison).map_err(|e| Error::bug(format!("the comparison: {e}")))?,
            )?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What each row is computed from. All reports are read before any model is evaluated.
    fn entries(&self, named: &[Named]) -> Result<Vec<Entry>> {
        let found = named.iter().map(|row| row.members.iter().map(|text| judge::find(text)).collect());
        let found: Vec<Vec<judge::Found>> = found.collect::<Result<_>>()?;
        let models = found.iter().flatten().filter(|found| matches!(found, judge::Found::Model)).count();
        let prepared = self.judge.prepare(models)?;
        let entry = |(row, found): (&Named, Vec<judge::Found>)| -> Result<Entry> {
            let members = row.members.iter().zip(found).map(|(text, found)| -> Result<Member> {
                match found {
                    judge::Found::Report(member) => Ok(member),
                    judge::Found::Model => prepared.evaluate(text),
                }
            });
            Ok(Entry { name: row.name.clone(), members: members.collect::<Result<_>>()? })
        };
        named.iter().zip(found).map(entry).collect()
    }
}

/// How the table is written: by the ending of the file.
type Writer = fn(&Path, &Comparison) -> Result<()>;

fn writer_of(path: &Path) -> Result<Writer> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => Ok(compare::write_table),
        Some("json") => Ok(fs::write_json),
        _ => Err(Error::usage(format!("--output: `{}` ends in neither .parquet nor .json", path.display()))
            .help("the ending says how the table is written: `-o table.parquet`")),
    }
}

fn write(path: &Path, force: bool, comparison: &Comparison) -> Result<()> {
    let (write, name) = (writer_of(path)?, path.file_name().unwrap_or_default());
    place::folder_or_file(path, force, |into| write(&into.join(name), comparison)).map(drop)
}
