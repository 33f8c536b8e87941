//! What is in the store: artifacts, the actions that made them and those that use them.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{ApiError, App, Shared, blocking, json};
use super::asked::{self, Asked, Named};
use super::records;
use crate::base::{Digest, Error, Result, fs};
use crate::report::runs;
use crate::stage::ArtifactFile;
use crate::store::{Catalog, Manifest, Recorded, Store};

/// Artifacts on a page, unless another number is asked for, and the most.
const PAGE: usize = 100;
const LONGEST_PAGE: usize = 500;

#[derive(Deserialize)]
pub struct PageOfArtifacts {
    /// Part of the name of a stage, port, kind, pipeline or type, or the beginning of a digest.
    #[serde(default)]
    search: String,
    /// Also those of earlier actions: not only the latest of each stage.
    #[serde(default)]
    earlier: bool,
    offset: Option<usize>,
    limit: Option<usize>,
}

/// Outputs of actions, the latest first.
pub async fn list(
    State(app): State<Shared>,
    Asked(asked): Asked<PageOfArtifacts>,
) -> Result<Response, ApiError> {
    let found = blocking(move || {
        let store = records(&app);
        let catalog = Catalog::read(&store)?;
        let all = catalog.actions().iter().filter(|made| asked.earlier || is_latest(made));
        let outputs: Vec<Output> = all
            .flat_map(|made| made.action.outputs.iter().map(move |(port, digest)| (made, port, digest)))
            .collect();
        let (offset, limit) = (asked.offset.unwrap_or(0), asked::page(asked.limit, PAGE, LONGEST_PAGE));
        let (total, shown) = page(&store, &outputs, &asked.search, offset, limit);
        let unreadable = &catalog.unreadable;
        Ok(json!({ "total": total, "offset": offset, "artifacts": shown, "unreadable": unreadable }))
    });
    found.await.map(|found| json(&found))
}

/// An action, one of its ports and the artifact there.
type Output<'a> = (&'a Recorded, &'a String, &'a Digest);

/// How many outputs `search` finds, and the page of them. Without it, manifests are read of the page alone.
fn page(store: &Store, outputs: &[Output], search: &str, offset: usize, limit: usize) -> (usize, Vec<Value>) {
    let row = |(made, port, digest): &Output| row(store, made, port, digest);
    if search.trim().is_empty() {
        return (outputs.len(), outputs.iter().skip(offset).take(limit).map(row).collect());
    }
    let found: Vec<Value> = outputs.iter().map(row).filter(|row| matches(row, search)).collect();
    (found.len(), found.into_iter().skip(offset).take(limit).collect())
}

/// Of an action that no stage remembers, it is not known whether it is the latest of one.
fn is_latest(made: &Recorded) -> bool {
    made.stages.iter().any(|stage| stage.is_latest)
}

fn row(store: &Store, made: &Recorded, port: &str, artifact: &Digest) -> Value {
    let manifest = store.manifest(artifact);
    let mut row = of_action(made);
    row["digest"] = json!(artifact);
    row["port"] = json!(port);
    row["type"] = json!(manifest.as_ref().map(|manifest| &manifest.ty));
    row["bytes"] = json!(manifest.as_ref().map(bytes));
    row["files"] = json!(manifest.as_ref().map(|manifest| manifest.files.len()));
    row
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.files.iter().map(|file| file.size).sum()
}

/// Whether a row has all words of `search`.
fn matches(row: &Value, search: &str) -> bool {
    let texts =
        [&row["port"], &row["kind"], &row["type"], &row["run"]].map(|text| text.as_str().unwrap_or_default());
    let stages = row["stages"].as_array().into_iter().flatten();
    let stages = stages.flat_map(|stage| [&stage["pipeline"], &stage["stage"]]).filter_map(Value::as_str);
    let all: Vec<String> = texts.into_iter().chain(stages).map(str::to_lowercase).collect();
    let digest = row["digest"].as_str().unwrap_or_default();
    let hex = digest.trim_start_matches("blake3:");
    search.to_lowercase().split_whitespace().all(|word| {
        all.iter().any(|text| text.contains(word)) || digest.starts_with(word) || hex.starts_with(word)
    })
}

/// An action in short.
pub fn of_action(made: &Recorded) -> Value {
    let Recorded { key, action, stages } = made;
    let stages: Vec<Value> = stages
        .iter()
        .map(|of| json!({ "pipeline": of.pipeline, "stage": of.stage, "latest": of.is_latest }))
        .collect();
    json!({
        "key": key,
        "kind": action.fingerprint.kind,
        "stages": stages,
        "run": action.run,
        "when": runs::started(&action.run),
        "seconds": action.seconds,
    })
}

/// An artifact with its files, who made it and who uses it.
pub async fn one(State(app): State<Shared>, Named(text): Named<String>) -> Result<Response, ApiError> {
    let digest = asked::digest(&text)?;
    let found = blocking(move || {
        let store = records(&app);
        let catalog = Catalog::read(&store)?;
        Ok(store.manifest(&digest).map(|manifest| detail(&app, &store, &catalog, &digest, &manifest)))
    });
    found.await?.map(|found| json(&found)).ok_or_else(|| gone(&digest))
}

pub fn gone(digest: &Digest) -> ApiError {
    let error = Error::usage(format!("the store has no artifact {digest}"));
    ApiError::not_found(error.help("it may have been removed: run its pipeline again to make it").to_string())
}

fn detail(app: &App, store: &Store, catalog: &Catalog, digest: &Digest, manifest: &Manifest) -> Value {
    let label = |input: &Digest| labels(catalog, input);
    let made_by: Vec<Value> = catalog.makers(digest).map(|made| in_full(made, digest, &label)).collect();
    let used_by: Vec<Value> = catalog.users(digest).map(|user| as_user(user, digest)).collect();
    let files: Vec<Value> =
        store.artifact("", digest).map_or(Vec::new(), |artifact| artifact.files.iter().map(listed).collect());
    json!({
        "digest": digest,
        "type": manifest.ty,
        "bytes": bytes(manifest),
        "files": files,
        "made_by": made_by,
        "used_by": used_by,
        "root": app.project.root.display().to_string(),
    })
}

/// A file, and what is wrong with it as far as its metadata tell.
fn listed(file: &ArtifactFile) -> Value {
    let problem = match fs::stat(&file.path) {
        None => Some("not in the store"),
        Some(stat) if stat.size != file.size => Some("damaged: its size has changed"),
        Some(_) => None,
    };
    json!({
        "path": file.name,
        "size": file.size,
        "digest": file.digest,
        "executable": file.executable,
        "problem": problem,
    })
}

/// Names for an artifact: `stage.port` of the stages that made it.
fn labels(catalog: &Catalog, artifact: &Digest) -> Vec<String> {
    let named = |made: &Recorded| -> Vec<String> {
        let ports =
            made.action.outputs.iter().filter(|(_, digest)| *digest == artifact).map(|(port, _)| port);
        ports.flat_map(|port| made.stages.iter().map(move |of| format!("{}.{port}", of.stage))).collect()
    };
    let all: BTreeSet<String> = catalog.makers(artifact).flat_map(named).collect();
    all.into_iter().take(4).collect()
}

/// The action that made an artifact, with all that determined it.
fn in_full(made: &Recorded, artifact: &Digest, label: &dyn Fn(&Digest) -> Vec<String>) -> Value {
    let fingerprint = &made.action.fingerprint;
    let input = |digest: &Digest| json!({ "digest": digest, "labels": label(digest) });
    let inputs: BTreeMap<&String, Vec<Value>> =
        fingerprint.inputs.iter().map(|(port, all)| (port, all.iter().map(input).collect())).collect();
    let outputs = made.action.outputs.iter();
    let ports: Vec<&String> =
        outputs.filter(|(_, digest)| *digest == artifact).map(|(port, _)| port).collect();
    let mut found = of_action(made);
    found["ports"] = json!(ports);
    found["inputs"] = json!(inputs);
    found["outputs"] = json!(made.action.outputs);
    found["params"] = fingerprint.params.clone();
    found["seed"] = json!(fingerprint.seed);
    found["version"] = json!(fingerprint.kind_version);
    found["reason"] = json!(made.action.reason.as_ref().map(|reason| reason.to_json()));
    found["measurements"] = json!(made.action.measurements);
    found
}

fn as_user(user: &Recorded, artifact: &Digest) -> Value {
    let inputs = user.action.fingerprint.inputs.iter();
    let ports: Vec<&String> =
        inputs.filter(|(_, all)| all.contains(artifact)).map(|(port, _)| port).collect();
    let mut found = of_action(user);
    found["ports"] = json!(ports);
    found["outputs"] = json!(user.action.outputs);
    found
}
