//! `tinylm why`: the fields of the fingerprint that differ from the nearest earlier action.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Format, Loaded, PipelineArgs, out, print_json};
use crate::base::Result;
use crate::plan::{self, Past, Planned};
use crate::report::style::{Style, table};
use crate::spec::StageSpec;
use crate::store::source::Sources;
use crate::store::{self, Action, Difference, Reason};

#[derive(Args)]
pub struct Why {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The stage.
    stage: String,
}

impl Why {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let loaded = self.pipeline.load()?;
        let wanted = loaded.pipeline.select(&self.stage)?;
        let selected = std::slice::from_ref(&self.stage);
        let sources = loaded.sources(selected)?;
        let plan = loaded.plan(selected, &[], &sources)?;
        let mut reports = Vec::new();
        for stage in wanted {
            if let Some(planned) = plan.stages.iter().find(|p| p.stage == stage.name) {
                reports.push(Report::new(&loaded, &sources, stage, planned));
            }
        }
        for report in &reports {
            match format {
                Format::Text => out::out(&report.text())?,
                Format::Json => print_json(&report.to_json())?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

struct Report<'a> {
    planned: &'a Planned,
    /// What the cached action was made for.
    ran_because: Option<(Reason, String)>,
    nearest: Option<(Action, Vec<Difference>)>,
}

impl<'a> Report<'a> {
    fn new(loaded: &Loaded, sources: &Sources, stage: &StageSpec, planned: &'a Planned) -> Self {
        let past = Past { store: &loaded.store, sources };
        let decision = &planned.decision;
        let action = decision.fingerprint.as_ref().zip(decision.key.as_ref());
        let nearest = action.and_then(|(f, key)| plan::nearest(f, key, &loaded.pipeline, stage, &past));
        let ran_because =
            planned.decision.action.as_ref().and_then(|a| Some((a.reason.clone()?, a.run.clone())));
        Report { planned, ran_because, nearest }
    }

    fn text(&self) -> String {
        let s = Style::stdout();
        let d = &self.planned.decision;
        let mut out =
            format!("{}: {} ({})\n", s.bold(&self.planned.stage), super::plan::word(d.verdict), d.detail());
        if let Some((reason, run)) = &self.ran_because {
            out += &format!("ran in {run}: {}\n", reason.detail());
        }
        match &self.nearest {
            None if d.fingerprint.is_none() => {
                out += "its own key is known once what it waits for is there\n";
            }
            None => out += "there is no earlier action to compare with\n",
            Some((action, differences)) => {
                let key = action.fingerprint.key().short();
                out += &format!("against the nearest earlier action, {key} of run {}:\n", action.run);
                let rows: Vec<Vec<String>> = differences.iter().map(row).collect();
                out += &table(&rows, |_, column, cell| match column {
                    0 => s.cyan(cell),
                    1 => s.red(cell),
                    3 => s.green(cell),
                    _ => cell,
                });
            }
        }
        out
    }

    fn to_json(&self) -> serde_json::Value {
        let d = &self.planned.decision;
        let differences: Vec<_> = self
            .nearest
            .iter()
            .flat_map(|(_, all)| all)
            .map(|difference| {
                let mut value = json!(difference);
                value["field"] = difference.field().into();
                value["code"] = difference.code().into();
                value
            })
            .collect();
        json!({
            "stage": self.planned.stage,
            "verdict": d.verdict,
            "reason": d.reason.to_json(),
            "key": d.key,
            "resumes": d.resumes,
            "ran_because": self.ran_because.as_ref().map(|(r, run)| json!({"run": run, "reason": r.to_json()})),
            "nearest": self.nearest.as_ref().map(|(a, _)| json!({"key": a.fingerprint.key(), "run": a.run})),
            "differences": differences,
        })
    }
}

fn row(difference: &Difference) -> Vec<String> {
    let (old, new) = difference.values();
    let mut cells = vec![format!("  {}", difference.field()), old, "->".into(), new];
    if let Difference::Input { files, .. } = difference
        && !files.is_empty()
    {
        cells.push(store::file_changes(files));
    }
    cells
}
