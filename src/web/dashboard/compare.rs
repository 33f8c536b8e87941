//! Two runs side by side: their stages, what differs in what determined them, and the figures of both.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::{ApiError, Shared, blocking, json};
use super::asked::Asked;
use super::runs::{self, to_json};
use super::{curves, records};
use crate::base::{Result, fs};
use crate::plan::{self, Past};
use crate::report::runs::{Run, StageRecord};
use crate::store::Store;
use crate::store::source::Sources;

#[derive(Deserialize)]
pub struct Two {
    a: String,
    b: String,
}

/// Both runs, and every stage of either.
pub async fn runs(State(app): State<Shared>, Asked(Two { a, b }): Asked<Two>) -> Result<Response, ApiError> {
    let (a, b) = (runs::find(&app, a).await?, runs::find(&app, b).await?);
    let found = blocking(move || {
        let store = records(&app);
        let (run_a, run_b) = (a.read(), b.read());
        let stages = stages(&run_a, &run_b, &store);
        let curves = [curves::read(&a, &run_a, &store)?, curves::read(&b, &run_b, &store)?];
        let [a, b] = [to_json(&run_a)?, to_json(&run_b)?];
        Ok(json!({ "a": a, "b": b, "stages": stages, "curves": curves }))
    });
    found.await.map(|found| json(&found))
}

/// A figure that at least one of the runs has.
#[derive(Debug, PartialEq, Serialize)]
struct Compared {
    name: String,
    unit: String,
    a: Option<f64>,
    b: Option<f64>,
}

fn stages(a: &Run, b: &Run, store: &Store) -> Vec<Value> {
    let find = |run: &Run, name: &str| run.stages.iter().find(|stage| stage.stage == name).cloned();
    let mut names: Vec<&str> = a.stages.iter().map(|stage| stage.stage.as_str()).collect();
    names.extend(b.stages.iter().map(|s| s.stage.as_str()).filter(|name| find(a, name).is_none()));
    let pair = |name: &str| {
        let (a, b) = (find(a, name), find(b, name));
        let differences = a.as_ref().zip(b.as_ref()).map(|(a, b)| differences(a, b, store));
        let figures = figures([a.as_ref(), b.as_ref()], store);
        let part = |stage: Option<StageRecord>| {
            stage.map(|s| json!({ "kind": s.kind, "status": s.status, "seconds": s.seconds, "key": s.key, "outputs": s.outputs }))
        };
        json!({ "stage": name, "a": part(a), "b": part(b), "differences": differences, "figures": figures })
    };
    names.into_iter().map(pair).collect()
}

/// What differs between the actions of a stage in two runs; nothing where they are the same action, and `null`
/// where the record of one is gone.
fn differences(a: &StageRecord, b: &StageRecord, store: &Store) -> Option<Vec<String>> {
    if a.key == b.key && a.key.is_some() {
        return Some(Vec::new());
    }
    let (old, new) = (store.action(&a.key?)?, store.action(&b.key?)?);
    let past = Past { store, sources: &Sources::default() };
    let found = plan::differences(&old.fingerprint, &new.fingerprint, &past);
    Some(found.iter().map(|difference| difference.detail()).collect())
}

/// What was measured, and the numbers of reports, in the order of their names.
fn figures([a, b]: [Option<&StageRecord>; 2], store: &Store) -> Vec<Compared> {
    let (mut a, mut b) = (all_figures(a, store), all_figures(b, store));
    let mut names: Vec<(bool, String, String)> = a.keys().chain(b.keys()).cloned().collect();
    names.sort();
    names.dedup();
    let compared = |key: (bool, String, String)| {
        let (a, b) = (a.remove(&key).flatten(), b.remove(&key).flatten());
        Compared { name: key.1, unit: key.2, a, b }
    };
    names.into_iter().map(compared).collect()
}

/// By whether it was measured, rather than found in a report, name and unit.
type Figures = BTreeMap<(bool, String, String), Option<f64>>;

fn all_figures(stage: Option<&StageRecord>, store: &Store) -> Figures {
    let Some(stage) = stage else { return Figures::new() };
    let mut all = reported(stage, store);
    let measured = stage.measurements.iter();
    all.extend(measured.map(|figure| ((true, figure.name.clone(), figure.unit.clone()), figure.value)));
    all
}

/// The largest report that is read, and the most of its numbers that are shown.
const LARGEST: u64 = 4 << 20;
const NUMBERS: usize = 100;

/// The numbers of the reports among the outputs of a stage, by the keys that lead to them; not those in lists.
fn reported(stage: &StageRecord, store: &Store) -> Figures {
    let mut found = Figures::new();
    for digest in stage.outputs.values() {
        let Ok(artifact) = store.artifact(&stage.stage, digest) else { continue };
        let Some(file) = artifact.files.iter().find(|f| f.name == "report.json" && f.size <= LARGEST) else {
            continue;
        };
        let report = fs::read(&file.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        numbers("", &report.unwrap_or(Value::Null), &mut found);
    }
    found
}

fn numbers(path: &str, value: &Value, found: &mut Figures) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                numbers(&path, value, found);
            }
        }
        Value::Number(number) if found.len() < NUMBERS => {
            found.insert((false, path.to_string(), String::new()), number.as_f64());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_report_are_named_by_their_keys() {
        let report = json!({ "loss": 1.5, "chats": { "top1": 0.5, "list": [1, 2] }, "name": "x" });
        let mut found = Figures::new();
        numbers("", &report, &mut found);
        let names: Vec<_> = found.iter().map(|((_, name, _), x)| (name.as_str(), x.unwrap())).collect();
        assert_eq!(names, [("chats.top1", 0.5), ("loss", 1.5)]);
    }
}
