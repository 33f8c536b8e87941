//! `tinylm plan`: what `run` would do. The same code as `run`, and no side effects.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Format, PipelineArgs, out, print_json};
use crate::base::Result;
use crate::plan::{Plan, Verdict};
use crate::report::style::{Style, table};
use crate::spec::Pipeline;

#[derive(Args)]
pub struct PlanCommand {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Only these stages and what they need.
    stages: Vec<String>,
    /// Plan as if this stage had to run. May be repeated.
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Exit with 3 when there is work to do.
    #[arg(long)]
    exit_code: bool,
}

impl PlanCommand {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let loaded = self.pipeline.load()?;
        let plan = loaded.plan(&self.stages, &self.force, &loaded.sources(&self.stages)?)?;
        match format {
            Format::Text => out::out(&text(&loaded.pipeline, &plan))?,
            Format::Json => print_json(&to_json(&loaded.pipeline, &plan))?,
        }
        let code = if self.exit_code && plan.has_work() { ExitCode::from(3) } else { ExitCode::SUCCESS };
        // The process ends here: freeing ten thousand stages one by one takes a tenth of its time.
        std::mem::forget((plan, loaded));
        Ok(code)
    }
}

pub fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Cached => "cached",
        Verdict::Run => "run",
        Verdict::Pending => "pending",
    }
}

fn text(pipeline: &Pipeline, plan: &Plan) -> String {
    let s = Style::stdout();
    let rows: Vec<Vec<String>> = plan
        .stages
        .iter()
        .map(|p| {
            let d = &p.decision;
            let why = if d.verdict == Verdict::Cached { String::new() } else { d.reason.detail() };
            vec![word(d.verdict).to_string(), p.stage.clone(), why]
        })
        .collect();
    let body = table(&rows, |row, column, cell| match (column, plan.stages[row].decision.verdict) {
        (0, Verdict::Cached) => s.dim(cell),
        (0, Verdict::Run) => s.green(cell),
        (0, Verdict::Pending) => s.yellow(cell),
        _ => cell,
    });
    let count = |v| plan.stages.iter().filter(|p| p.decision.verdict == v).count();
    let overrides: String = pipeline.overrides.iter().map(|o| format!("  with {o}\n")).collect();
    format!(
        "{}: {} to run, {} pending, {} cached\n{overrides}{body}",
        s.bold(&pipeline.name),
        count(Verdict::Run),
        count(Verdict::Pending),
        count(Verdict::Cached)
    )
}

fn to_json(pipeline: &Pipeline, plan: &Plan) -> serde_json::Value {
    let stages: Vec<_> = plan
        .stages
        .iter()
        .map(|p| {
            json!({
                "stage": p.stage,
                "verdict": p.decision.verdict,
                "reason": p.decision.reason.to_json(),
                "key": p.decision.key,
            })
        })
        .collect();
    json!({ "pipeline": pipeline.name, "overrides": pipeline.overrides, "stages": stages })
}
