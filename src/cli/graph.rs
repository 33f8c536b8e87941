//! `tinylm graph`: the graph of a pipeline with verdicts, as text, Mermaid or Graphviz.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Format, PipelineArgs, out, print_json};
use crate::base::Result;
use crate::plan::Verdict;
use crate::spec::{Input, Pipeline, StageSpec};

#[derive(Args)]
pub struct Graph {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The form of the drawing.
    #[arg(long = "as", value_enum, default_value_t = Shape::Text)]
    shape: Shape,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Shape {
    Text,
    Mermaid,
    Dot,
}

type Verdicts = BTreeMap<String, Verdict>;

impl Graph {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let loaded = self.pipeline.load()?;
        let plan = loaded.plan(&[], &[], &loaded.sources(&[])?)?;
        let verdicts: Verdicts = plan.stages.iter().map(|p| (p.stage.clone(), p.decision.verdict)).collect();
        let pipeline = &loaded.pipeline;
        match (format, self.shape) {
            (Format::Json, _) => print_json(&to_json(pipeline, &verdicts))?,
            (_, Shape::Text) => out::out(&text(pipeline, &verdicts))?,
            (_, Shape::Mermaid) => out::out(&mermaid(pipeline, &verdicts))?,
            (_, Shape::Dot) => out::out(&dot(pipeline, &verdicts))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// (from, to, port) of every connection; sources come as `None` with their text.
fn edges(stage: &StageSpec) -> impl Iterator<Item = (Option<&str>, &str, &str)> {
    stage.inputs.iter().flat_map(|(port, inputs)| {
        inputs.iter().map(move |input| match input {
            Input::Stage { stage, port: output } => (Some(stage.as_str()), output.as_str(), port.as_str()),
            Input::Source(source) => (None, source.text.as_str(), port.as_str()),
        })
    })
}

/// Whether an output is a checkpoint, which drawings name beside its stage.
fn is_checkpoint(pipeline: &Pipeline, stage: &str, output: &str) -> bool {
    pipeline.stage(stage).is_some_and(|s| !s.main_outputs.iter().any(|main| main == output))
}

/// `model`, or `model=step-500` where a checkpoint is connected.
fn label(pipeline: &Pipeline, from: Option<&str>, output: &str, port: &str) -> String {
    match from {
        Some(from) if is_checkpoint(pipeline, from, output) => format!("{port}={output}"),
        _ => port.to_string(),
    }
}

fn text(pipeline: &Pipeline, verdicts: &Verdicts) -> String {
    let width = pipeline.stages.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    let mut out = format!("{}\n", pipeline.name);
    for stage in &pipeline.stages {
        let verdict = verdicts.get(&stage.name).map_or("", |v| super::plan::word(*v));
        let inputs: Vec<String> = edges(stage)
            .map(|(from, what, port)| match from {
                Some(from) if is_checkpoint(pipeline, from, what) => format!("{port}={from}.{what}"),
                Some(from) if port == from => from.to_string(),
                Some(from) => format!("{port}={from}"),
                None => format!("{port}={what}"),
            })
            .collect();
        let arrow = if inputs.is_empty() { String::new() } else { format!("  <- {}", inputs.join(", ")) };
        out += &format!("  {verdict:7}  {:width$}  {}{arrow}\n", stage.name, stage.kind);
    }
    out
}

/// Names of stages have characters that Mermaid's identifiers may not have.
fn ids(pipeline: &Pipeline) -> BTreeMap<&str, String> {
    pipeline.stages.iter().enumerate().map(|(i, s)| (s.name.as_str(), format!("s{i}"))).collect()
}

fn mermaid(pipeline: &Pipeline, verdicts: &Verdicts) -> String {
    let ids = ids(pipeline);
    let mut out = String::from("flowchart LR\n");
    let mut sources: Vec<String> = Vec::new();
    for stage in &pipeline.stages {
        let id = &ids[stage.name.as_str()];
        let verdict = verdicts.get(&stage.name).map_or("", |v| super::plan::word(*v));
        out += &format!("  {id}[\"{}<br/><small>{}</small>\"]:::{verdict}\n", stage.name, stage.kind);
        for (from, what, port) in edges(stage) {
            let label = label(pipeline, from, what, port);
            let from = match from {
                Some(from) => ids[from].clone(),
                None => source_id(&mut sources, what, &mut out, |i, w| {
                    format!("  f{i}([\"{}\"])\n", w.replace('"', "'"))
                }),
            };
            out += &format!("  {from} -->|{label}| {id}\n");
        }
    }
    out += "  classDef cached fill:#e8e8e8,stroke:#999\n  classDef run fill:#d4f0d4,stroke:#393\n  classDef pending fill:#fdf3cf,stroke:#a80\n";
    out
}

/// A node for each distinct source, declared when first met.
fn source_id(
    known: &mut Vec<String>,
    what: &str,
    out: &mut String,
    declare: impl Fn(usize, &str) -> String,
) -> String {
    let i = known.iter().position(|k| k == what).unwrap_or_else(|| {
        known.push(what.to_string());
        *out += &declare(known.len() - 1, what);
        known.len() - 1
    });
    format!("f{i}")
}

fn dot(pipeline: &Pipeline, verdicts: &Verdicts) -> String {
    let ids = ids(pipeline);
    let quoted = |text: &str| serde_json::Value::String(text.to_string()).to_string();
    let mut out = String::from("digraph pipeline {\n  rankdir=LR;\n  node [shape=box, style=filled];\n");
    let mut sources = Vec::new();
    for stage in &pipeline.stages {
        let id = &ids[stage.name.as_str()];
        let colour = match verdicts.get(&stage.name) {
            Some(Verdict::Run) => "palegreen",
            Some(Verdict::Pending) => "lightyellow",
            _ => "lightgrey",
        };
        out += &format!(
            "  {id} [label={}, fillcolor={colour}];\n",
            quoted(&format!("{}\n{}", stage.name, stage.kind))
        );
        for (from, what, port) in edges(stage) {
            let label = label(pipeline, from, what, port);
            let from = match from {
                Some(from) => ids[from].clone(),
                None => source_id(&mut sources, what, &mut out, |i, w| {
                    format!("  f{i} [label={}, shape=note, fillcolor=white];\n", quoted(w))
                }),
            };
            out += &format!("  {from} -> {id} [label={}];\n", quoted(&label));
        }
    }
    out + "}\n"
}

fn to_json(pipeline: &Pipeline, verdicts: &Verdicts) -> serde_json::Value {
    let stages: Vec<_> = pipeline
        .stages
        .iter()
        .map(|s| {
            let inputs: Vec<_> = edges(s)
                .map(|(from, what, port)| match from {
                    Some(from) => json!({"port": port, "stage": from, "output": what}),
                    None => json!({"port": port, "source": what}),
                })
                .collect();
            json!({"stage": s.name, "kind": s.kind, "verdict": verdicts.get(&s.name), "inputs": inputs, "outputs": s.outputs})
        })
        .collect();
    json!({"pipeline": pipeline.name, "stages": stages})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{self, Overrides};

    #[test]
    fn a_checkpoint_is_named_beside_its_stage() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        let stage = |rest: &str| format!("{{ kind: command, params: {{ command: [x] }}, {rest} }}");
        let base = stage("outputs: { model: model, step-5: model }");
        let user = stage("inputs: { model: base.model, early: base.step-5 }, outputs: { t: file }");
        let text_of_file = format!("stages:\n  base: {base}\n  user: {user}\n");
        crate::base::fs::write(&file, text_of_file.as_bytes()).unwrap();
        let mut p = spec::load(&file, &crate::kinds::kinds(), &Overrides::default()).unwrap();
        p.stages[0].main_outputs.retain(|name| name == "model");
        let none = Verdicts::new();
        let drawn = text(&p, &none);
        assert!(drawn.contains("user  command  <- early=base.step-5, model=base\n"), "{drawn}");
        let drawn = mermaid(&p, &none);
        assert!(drawn.contains("s0 -->|early=step-5| s1\n  s0 -->|model| s1\n"), "{drawn}");
        assert!(dot(&p, &none).contains("s0 -> s1 [label=\"early=step-5\"];"));
        assert_eq!(to_json(&p, &none)["stages"][1]["inputs"][0]["output"], "step-5");
    }
}
