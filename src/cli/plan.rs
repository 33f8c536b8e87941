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
            Format::Text => out::out(&text(&loaded.pipeline, &plan, Style::stdout()))?,
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

fn text(pipeline: &Pipeline, plan: &Plan, s: Style) -> String {
    let rows: Vec<Vec<String>> = plan
        .stages
        .iter()
        .map(|p| {
            let d = &p.decision;
            let why = if d.verdict == Verdict::Cached { String::new() } else { d.detail() };
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
                "resumes": p.decision.resumes,
            })
        })
        .collect();
    json!({ "pipeline": pipeline.name, "overrides": pipeline.overrides, "stages": stages })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Digest;
    use crate::plan::{Decision, Planned};
    use crate::spec::{self, Overrides};
    use crate::stage::Resume;
    use crate::store::{Difference, Reason};

    fn pipeline() -> Pipeline {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        let text = "stages: { a: { kind: command, outputs: { t: file }, params: { command: [x] } } }";
        crate::base::fs::write(&file, text.as_bytes()).unwrap();
        spec::load(&file, &crate::kinds::kinds(), &Overrides::default()).unwrap()
    }

    fn planned(stage: &str, verdict: Verdict, reason: Reason, resumes: Option<Resume>) -> Planned {
        let key = (verdict != Verdict::Pending).then(|| Digest::of(stage.as_bytes()));
        let decision =
            Decision { verdict, reason, fingerprint: None, key, action: None, trajectory: None, resumes };
        Planned { stage: stage.into(), decision }
    }

    #[test]
    fn a_plan_says_from_where_a_stage_goes_on() {
        let steps = Difference::Param { name: "steps".into(), old: 1000.into(), new: 2000.into() };
        let resume = |step, steps| Some(Resume { step, steps });
        let plan = Plan {
            stages: vec![
                planned("shards", Verdict::Cached, Reason::UpToDate, None),
                planned("base", Verdict::Run, Reason::Changed(vec![steps]), resume(1000, Some(2000))),
                planned("other", Verdict::Run, Reason::NeverRan, resume(1234, None)),
                planned("anew", Verdict::Run, Reason::Forced, None),
                planned("report", Verdict::Pending, Reason::Waits("`base`".into()), None),
            ],
        };
        let p = pipeline();
        let expected = "\
p: 3 to run, 1 pending, 1 cached
cached   shards
run      base    param steps: 1000 -> 2000; goes on from step 1,000 of 2,000
run      other   never ran; goes on from step 1,234
run      anew    forced
pending  report  waits for `base`
";
        assert_eq!(text(&p, &plan, Style::plain()), expected);
        let json = to_json(&p, &plan);
        let resumes: Vec<_> =
            json["stages"].as_array().unwrap().iter().map(|s| s["resumes"].clone()).collect();
        let from = |step: u64, steps: Option<u64>| json!({ "step": step, "steps": steps });
        assert_eq!(
            resumes,
            [json!(null), from(1000, Some(2000)), from(1234, None), json!(null), json!(null)]
        );
    }
}
