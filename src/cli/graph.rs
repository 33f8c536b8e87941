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
fn edges(stage: &StageSpec) -> impl Iterator<Item = (Option<&str>, String, &str)> {
    stage.inputs.iter().flat_map(|(port, inputs)| {
        inputs.iter().map(move |input| match input {
            Input::Stage { stage, port: output } => (Some(stage.as_str()), output.clone(), port.as_str()),
            Input::Source(source) => (None, source.text.clone(), port.as_str()),
        })
    })
}

fn text(pipeline: &Pipeline, verdicts: &Verdicts) -> String {
    let width = pipeline.stages.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    let mut out = format!("{}\n", pipeline.name);
    for stage in &pipeline.stages {
        let verdict = verdicts.get(&stage.name).map_or("", |v| super::plan::word(*v));
        let inputs: Vec<String> = edges(stage)
            .map(|(from, what, port)| match from {
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
            let from = match from {
                Some(from) => ids[from].clone(),
                None => source_id(&mut sources, &what, &mut out, |i, w| {
                    format!("  f{i}([\"{}\"])\n", w.replace('"', "'"))
                }),
            };
            out += &format!("  {from} -->|{port}| {id}\n");
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
            let from = match from {
                Some(from) => ids[from].clone(),
                None => source_id(&mut sources, &what, &mut out, |i, w| {
                    format!("  f{i} [label={}, shape=note, fillcolor=white];\n", quoted(w))
                }),
            };
            out += &format!("  {from} -> {id} [label={}];\n", quoted(port));
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
