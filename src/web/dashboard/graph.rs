//! Pipelines: their stages, what is connected, and what would run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::super::{ApiError, Shared, blocking, json};
use super::asked::Named;
use crate::base::{Digest, Error, Result, suggest};
use crate::kinds;
use crate::plan::{self, Past, Plan};
use crate::spec::{self, Input, Overrides, Pipeline, StageSpec};
use crate::store::{Store, source};

/// The pipelines of the project; one that does not read has its error.
pub async fn list(State(app): State<Shared>) -> Result<Response, ApiError> {
    let found = blocking(move || {
        let kinds = kinds::kinds();
        let one = |file: PathBuf| match spec::load(&file, &kinds, &Overrides::default()) {
            Ok(p) => json!({
                "file": name(&file),
                "name": p.name,
                "description": p.description,
                "stages": p.stages.len(),
            }),
            Err(e) => json!({ "file": name(&file), "name": name(&file), "error": e.to_string() }),
        };
        Ok(app.project.pipelines().into_iter().map(one).collect::<Vec<Value>>())
    });
    found.await.map(|pipelines| json(&json!({ "pipelines": pipelines })))
}

fn name(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A pipeline as a graph, with what would run now and why.
pub async fn one(State(app): State<Shared>, Named(asked): Named<String>) -> Result<Response, ApiError> {
    let files = app.project.pipelines();
    let Some(file) = files.iter().find(|file| name(file) == asked).cloned() else {
        let names: Vec<String> = files.iter().map(|file| name(file)).collect();
        let error = Error::usage(format!("there is no pipeline `{asked}`"));
        let error = error.suggest(suggest::closest(&asked, names.iter().map(String::as_str)));
        return Err(ApiError::not_found(error.to_string()));
    };
    let artifacts = app.project.artifacts();
    let found = blocking(move || {
        let kinds = kinds::kinds();
        let pipeline = spec::load(&file, &kinds, &Overrides::default())?;
        let store = Store::open(&artifacts, false);
        let plan = planned(&pipeline, &kinds, &store);
        Ok(to_json(&pipeline, &plan, &store))
    });
    found.await.map(|found| json(&found))
}

fn planned(pipeline: &Pipeline, kinds: &crate::stage::Kinds, store: &Store) -> Result<Plan> {
    let stages: Vec<&StageSpec> = pipeline.stages.iter().collect();
    let specs = stages.iter().flat_map(|stage| stage.sources());
    let sources = source::resolve(specs, &pipeline.root, store)?;
    let past = Past { store, sources: &sources };
    Ok(plan::build(pipeline, &stages, kinds, &sources, &past, &|_| false))
}

/// Where nothing can be planned, as where a source is missing, the graph says why and has no verdicts.
fn to_json(pipeline: &Pipeline, plan: &Result<Plan>, store: &Store) -> Value {
    let decisions: BTreeMap<&str, &plan::Decision> = match plan {
        Ok(plan) => plan.stages.iter().map(|p| (p.stage.as_str(), &p.decision)).collect(),
        Err(_) => BTreeMap::new(),
    };
    let stages: Vec<Value> = pipeline
        .stages
        .iter()
        .map(|stage| {
            let decision = decisions.get(stage.name.as_str());
            json!({
                "stage": stage.name,
                "kind": stage.kind,
                "description": stage.description,
                "verdict": decision.map(|d| d.verdict),
                "reason": decision.map(|d| d.reason.to_json()),
                "outputs": outputs(stage, latest(pipeline, stage, store)),
            })
        })
        .collect();
    json!({
        "file": name(&pipeline.file),
        "name": pipeline.name,
        "description": pipeline.description,
        "seed": pipeline.seed,
        "stages": stages,
        "edges": edges(pipeline),
        "problem": plan.as_ref().err().map(ToString::to_string),
    })
}

/// The artifacts that the latest run of a stage gave.
fn latest(pipeline: &Pipeline, stage: &StageSpec, store: &Store) -> BTreeMap<String, Digest> {
    let history = store.history(&pipeline.folder, &stage.name);
    let action = history.last().and_then(|key| store.action(key));
    action.map(|action| action.outputs).unwrap_or_default()
}

fn outputs(stage: &StageSpec, latest: BTreeMap<String, Digest>) -> Vec<Value> {
    let output = |(port, ty): (&String, &String)| json!({ "port": port, "type": ty, "digest": latest.get(port), "main": stage.main_outputs.contains(port) });
    stage.outputs.iter().map(output).collect()
}

/// Every connection, from a stage's output or a source to a port of a stage.
fn edges(pipeline: &Pipeline) -> Vec<Value> {
    let of_input = |to: &str, port: &str, input: &Input| match input {
        Input::Stage { stage, port: output } => {
            json!({ "from": stage, "output": output, "to": to, "port": port })
        }
        Input::Source(source) => json!({ "source": source.text, "to": to, "port": port }),
    };
    let of_stage = |stage: &StageSpec| -> Vec<Value> {
        let inputs = stage.inputs.iter().flat_map(|(port, all)| all.iter().map(move |input| (port, input)));
        inputs.map(|(port, input)| of_input(&stage.name, port, input)).collect()
    };
    pipeline.stages.iter().flat_map(of_stage).collect()
}
