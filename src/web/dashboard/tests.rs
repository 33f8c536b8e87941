//! What is answered over HTTP, on a project of a few files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::{Access, App, Limits, Metrics, Project, Registry, Shared, router};
use crate::base::{Digest, fs};
use crate::event::{Event, StageResult, Status, Summary};
use crate::kernel::Dtype;
use crate::report::{Reporter, RunFolder};
use crate::store::{Action, Fingerprint, Reason, Store, VERSION};

const RUN: &str = "20261121-042233-1a2b";

fn app(root: &Path) -> Shared {
    let (limits, metrics) = (Limits::default(), Arc::new(Metrics::default()));
    Arc::new(App {
        models: Registry::new(std::iter::empty(), Dtype::F32, &limits, metrics.clone()),
        project: Project { root: root.to_path_buf() },
        limits,
        access: Access::default(),
        metrics,
    })
}

async fn bytes(root: &Path, path: &str) -> (StatusCode, Vec<u8>) {
    let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
    let response = router(app(root)).oneshot(request).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

async fn get(root: &Path, path: &str) -> Value {
    let (status, body) = bytes(root, path).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// The message of an error.
async fn refused(root: &Path, path: &str, status: u16) -> String {
    let (found, body) = bytes(root, path).await;
    let text = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(found.as_u16(), status, "{path}: {text}");
    let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
    error["error"]["message"].as_str().unwrap().to_string()
}

const METRICS: &str = r#"{"step":10,"tokens":5,"loss":2.5,"val_loss":null,"learning_rate":0.1,"grad_norm":1.0}
{"step":20,"tokens":9,"loss":1.5,"val_loss":1.75,"learning_rate":0.1,"grad_norm":1.0}
"#;
const TOKENIZER: &str = r#"{"model":{"type":"WordLevel","vocab":{"<b>":0,"hello":1},"unk_token":"<b>"},
    "added_tokens":[{"id":0,"content":"<b>","special":true}]}"#;

/// Commits an action that reads `input`, with the files that a training leaves, and gives its key and output.
fn commit(root: &Path, run: &str, params: Value, input: &[Digest]) -> (Digest, Digest) {
    let store = Store::open(&root.join("artifacts"), false);
    let scratch = store.scratch().unwrap();
    let files = [
        ("metrics.jsonl", METRICS),
        ("report.json", r#"{"loss":1.5,"name":"<img>"}"#),
        ("tokenizer.json", TOKENIZER),
        ("sub/<img src=x>.txt", "<script>é"),
    ];
    for (name, text) in files {
        fs::write(&scratch.path().join(name), text.as_bytes()).unwrap();
    }
    fs::write(&scratch.path().join("params.json"), params.to_string().as_bytes()).unwrap();
    let inputs = BTreeMap::from([("docs".to_string(), input.to_vec())]);
    let fingerprint = Fingerprint {
        kind: "pretrain".into(),
        kind_version: 1,
        value_versions: BTreeMap::new(),
        params,
        inputs: inputs.into_iter().filter(|(_, all)| !all.is_empty()).collect(),
        outputs: BTreeMap::new(),
        seed: Some(1),
    };
    let action = Action {
        version: VERSION,
        fingerprint,
        outputs: BTreeMap::new(),
        reason: Some(Reason::NeverRan),
        seconds: 1.5,
        run: run.into(),
        measurements: Vec::new(),
    };
    let outputs =
        BTreeMap::from([("model".to_string(), ("model".to_string(), scratch.path().to_path_buf()))]);
    let action = store.commit(action, &outputs).unwrap();
    let key = action.fingerprint.key();
    store.remember("p", "base", &key).unwrap();
    (key, action.outputs["model"])
}

fn begin(root: &Path, id: &str) -> RunFolder {
    let mut record = RunFolder::create(&root.join("artifacts/runs").join(id)).unwrap().unwrap();
    record.report(&Event::RunStarted { pipeline: "p".into(), run: id.into(), stages: 1, jobs: 1 });
    let (stage, kind, key) = ("base".to_string(), "pretrain".to_string(), Digest::of(b"key"));
    record.report(&Event::StageStarted { stage, kind, key, reason: Reason::NeverRan, resumes: None });
    let figures = BTreeMap::from([("loss".to_string(), 2.5), ("tokens_per_s".to_string(), 1000.0)]);
    record.report(&Event::StageMetrics { stage: "base".into(), step: 10, figures });
    record.flush();
    fs::write(&root.join("artifacts/runs").join(id).join("base.log"), b"<b>a line</b>\n").unwrap();
    record
}

fn end(mut record: RunFolder, id: &str, (key, model): (Digest, Digest), seconds: f64) {
    let stage = StageResult {
        stage: "base".into(),
        kind: "pretrain".into(),
        status: Status::Ran,
        key: Some(key),
        reason: Reason::NeverRan,
        seconds,
        outputs: BTreeMap::from([("model".to_string(), model)]),
        error: None,
        fault: None,
        measurements: Vec::new(),
    };
    let (pipeline, run, stages) = ("p".to_string(), id.to_string(), vec![stage]);
    record.report(&Event::Summary(Summary { pipeline, run, ok: true, seconds, stages, error: None }));
    record.flush();
}

#[tokio::test]
async fn a_run_is_shown_as_it_goes_and_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    assert_eq!(get(root, "/api/runs").await["total"], 0);
    let record = begin(root, RUN);
    let list = get(root, "/api/runs").await;
    assert_eq!((&list["total"], &list["runs"][0]["state"]), (&json!(1), &json!("running")));
    let run = get(root, &format!("/api/runs/{RUN}")).await;
    assert_eq!((&run["stages"][0]["status"], &run["logs"]), (&json!("running"), &json!(["base"])));
    let curves = get(root, &format!("/api/runs/{RUN}/metrics")).await;
    assert_eq!(curves["stages"][0]["columns"], json!(["step", "loss", "tokens_per_s"]));
    assert_eq!(curves["stages"][0]["rows"], json!([[10.0, 2.5, 1000.0]]));
    let log = get(root, &format!("/api/runs/{RUN}/logs/base")).await;
    assert_eq!(log["text"], "<b>a line</b>\n");
    end(record, RUN, commit(root, RUN, json!({ "steps": 20 }), &[]), 3.5);
    let run = get(root, &format!("/api/runs/{RUN}")).await;
    assert_eq!((&run["state"], &run["seconds"]), (&json!("ok"), &json!(3.5)));
    // The artifact's metrics, with the speed that the run measured.
    let curves = get(root, &format!("/api/runs/{RUN}/metrics")).await;
    assert_eq!(curves["stages"][0]["columns"][2], "val_loss");
    assert_eq!(curves["stages"][0]["rows"][0][5], 1000.0);
    assert_eq!(curves["stages"][0]["rows"][1][2], 1.75);
}

#[tokio::test]
async fn events_come_as_they_are_written_until_the_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let record = begin(&root, RUN);
    let artifact = commit(&root, RUN, json!({}), &[]);
    let writing = tokio::task::spawn_blocking(move || {
        std::thread::sleep(std::time::Duration::from_millis(400));
        end(record, RUN, artifact, 1.0);
    });
    let (status, body) = bytes(&root, &format!("/api/runs/{RUN}/events")).await;
    writing.await.unwrap();
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, StatusCode::OK);
    let ids: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert_eq!(ids.len(), 4, "{text}");
    assert!(text.ends_with("event: end\ndata: {\"state\":\"ok\"}\n\n"), "{text}");
    // Asked again, only what comes behind the last one that was seen.
    let (_, rest) = bytes(&root, &format!("/api/runs/{RUN}/events?after={}", ids[2])).await;
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.starts_with(&format!("id: {}\n", ids[3])), "{rest}");
}

#[tokio::test]
async fn the_events_of_a_killed_run_end() {
    let dir = tempfile::tempdir().unwrap();
    drop(begin(dir.path(), RUN));
    let (_, body) = bytes(dir.path(), &format!("/api/runs/{RUN}/events")).await;
    let text = String::from_utf8(body).unwrap();
    assert!(text.ends_with("event: end\ndata: {\"state\":\"interrupted\"}\n\n"), "{text}");
}

#[tokio::test]
async fn an_artifact_says_who_made_it_and_who_uses_it_and_shows_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (_, first) = commit(root, RUN, json!({ "steps": 10 }), &[]);
    let (user, second) = commit(root, "20261122-042233-1a2b", json!({ "steps": 20 }), &[first]);
    let list = get(root, "/api/artifacts").await;
    assert_eq!((&list["total"], &list["artifacts"][0]["digest"]), (&json!(1), &json!(second)));
    assert_eq!(get(root, "/api/artifacts?earlier=true").await["total"], 2);
    assert_eq!(get(root, "/api/artifacts?search=BASE%20model").await["total"], 1);
    assert_eq!(get(root, "/api/artifacts?search=nothing").await["total"], 0);
    let of = format!("/api/artifacts/{first}");
    let detail = get(root, &of).await;
    assert_eq!(
        detail["made_by"][0]["stages"][0],
        json!({ "pipeline": "p", "stage": "base", "latest": false })
    );
    assert_eq!(detail["used_by"][0]["key"], json!(user));
    assert_eq!(detail["files"].as_array().unwrap().len(), 5);
    let tokens = get(root, &format!("{of}/files/tokenizer.json?view=vocabulary&search=ell")).await;
    assert_eq!((&tokens["total"], &tokens["tokens"][0]["token"]), (&json!(2), &json!("hello")));
    let rows = get(root, &format!("{of}/files/metrics.jsonl?rows=1&offset=1")).await;
    assert_eq!((&rows["total"], &rows["rows"][0][0]), (&json!(2), &json!(20)));
    let curves = get(root, &format!("{of}/files/metrics.jsonl?view=metrics")).await;
    assert_eq!(curves["rows"][1][2], 1.75);
    let report = get(root, &format!("{of}/files/metrics.jsonl")).await;
    assert_eq!(report["views"], json!(["metrics", "rows", "text"]));
    let text = get(root, &format!("{of}/files/sub/%3Cimg%20src=x%3E.txt?view=text")).await;
    assert_eq!(text["text"], "<script>é");
    let laid_out = get(root, &format!("{of}/files/report.json?view=json")).await;
    assert!(laid_out["text"].as_str().unwrap().contains("\"name\": \"<img>\""));
    assert!(refused(root, &format!("{of}/files/report.json?tensor=w"), 422).await.contains("no model"));
}

#[tokio::test]
async fn nothing_but_what_is_listed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (_, model) = commit(root, RUN, json!({}), &[]);
    drop(begin(root, RUN));
    fs::write(&root.join("secret.log"), b"secret").unwrap();
    fs::write(&root.join("artifacts/secret.log"), b"secret").unwrap();
    for id in ["..", "%2e%2e", "..%2f..", "%2e%2e%2f%2e%2e%2fartifacts", "x", "%00"] {
        let message = refused(root, &format!("/api/runs/{id}"), 404).await;
        assert!(message.contains("no run") || message.contains("no `GET"), "{message}");
    }
    for stage in ["..%2f..%2f..%2fsecret", "%2e%2e%2f%2e%2e%2fsecret", "events"] {
        let path = format!("/api/runs/{RUN}/logs/{stage}");
        assert!(refused(root, &path, 404).await.contains("no log"), "{path}");
    }
    for file in ["..%2f..%2fsecret.log", "../../../secret.log", "%2fetc%2fpasswd", "metrics"] {
        let path = format!("/api/artifacts/{model}/files/{file}");
        assert!(refused(root, &path, 404).await.contains("no file"), "{path}");
    }
    assert!(refused(root, "/api/artifacts/abc", 400).await.contains("not a digest"));
    let absent = Digest::of(b"absent");
    assert!(refused(root, &format!("/api/artifacts/{absent}"), 404).await.contains("no artifact"));
    assert!(refused(root, "/api/pipelines/..%2fx", 404).await.contains("no pipeline"));
    assert!(!refused(root, "/api/runs?limit=many", 400).await.is_empty());
    assert!(refused(root, "/api/runs/%ff", 400).await.contains("UTF-8"));
}

#[tokio::test]
async fn damage_is_an_error_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (key, model) = commit(root, RUN, json!({}), &[]);
    let store = Store::open(&root.join("artifacts"), false);
    let artifact = store.artifact("", &model).unwrap();
    let rewrite = |name: &str, bytes: &[u8]| {
        let path = artifact.find(name).unwrap();
        fs::remove(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let broken: String = METRICS.chars().map(|c| if c == '}' { '{' } else { c }).collect();
    rewrite("metrics.jsonl", broken.as_bytes());
    rewrite("report.json", b"{");
    fs::remove(artifact.find("tokenizer.json").unwrap()).unwrap();
    let detail = get(root, &format!("/api/artifacts/{model}")).await;
    let problems: Vec<&Value> = detail["files"].as_array().unwrap().iter().map(|f| &f["problem"]).collect();
    assert_eq!(problems.iter().filter(|p| !p.is_null()).count(), 2, "{problems:?}");
    let of = |file: &str| format!("/api/artifacts/{model}/files/{file}");
    assert!(refused(root, &of("tokenizer.json"), 422).await.contains("not in the store"));
    assert!(refused(root, &of("report.json"), 422).await.contains("its manifest says"));
    assert!(refused(root, &of("metrics.jsonl?view=metrics"), 422).await.contains("line 1"));
    end(begin(root, RUN), RUN, (key, model), 1.0);
    let curves = get(root, &format!("/api/runs/{RUN}/metrics")).await;
    assert!(curves["stages"][0]["damage"].as_str().unwrap().contains("line 1"), "{curves}");
    fs::write(&root.join("artifacts/store/actions").join(format!("{}.json", key.hex())), b"{").unwrap();
    let list = get(root, "/api/artifacts").await;
    assert_eq!((&list["total"], list["unreadable"].as_array().unwrap().len()), (&json!(0), 1));
    fs::write(&root.join("pipelines/p.yaml"), b"stages: [").unwrap();
    let pipelines = get(root, "/api/pipelines").await;
    assert!(pipelines["pipelines"][0]["error"].is_string(), "{pipelines}");
}

#[tokio::test]
async fn two_runs_say_what_differs_between_their_stages() {
    let dir = tempfile::tempdir().unwrap();
    let (root, other) = (dir.path(), "20261122-042233-1a2b");
    end(begin(root, RUN), RUN, commit(root, RUN, json!({ "steps": 10 }), &[]), 1.0);
    end(begin(root, other), other, commit(root, other, json!({ "steps": 20 }), &[]), 2.0);
    let compared = get(root, &format!("/api/compare?a={RUN}&b={other}")).await;
    assert_eq!(compared["stages"][0]["differences"], json!(["param steps: 10 -> 20"]));
    assert_eq!(
        compared["stages"][0]["figures"][0],
        json!({ "name": "loss", "unit": "", "a": 1.5, "b": 1.5 })
    );
    assert_eq!(compared["curves"][1][0]["stage"], "base");
    let same = get(root, &format!("/api/compare?a={RUN}&b={RUN}")).await;
    assert_eq!(same["stages"][0]["differences"], json!([]));
    assert!(refused(root, &format!("/api/compare?a={RUN}&b=x"), 404).await.contains("no run"));
}

#[tokio::test]
async fn a_pipeline_is_a_graph_with_verdicts_or_says_why_it_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let stages = "a: { kind: command, inputs: { t: data/t.txt }, outputs: { o: file }, params: { command: [x] } }\n  \
        b: { kind: command, inputs: { t: a }, outputs: { o: file }, params: { command: [x] } }";
    fs::write(&root.join("pipelines/p.yaml"), format!("stages:\n  {stages}\n").as_bytes()).unwrap();
    let graph = get(root, "/api/pipelines/p").await;
    assert!(graph["problem"].as_str().unwrap().contains("data/t.txt"), "{graph}");
    assert_eq!(graph["stages"][0]["verdict"], Value::Null);
    fs::write(&root.join("data/t.txt"), b"text").unwrap();
    let graph = get(root, "/api/pipelines/p").await;
    assert_eq!(
        (&graph["stages"][0]["verdict"], &graph["stages"][1]["verdict"]),
        (&json!("run"), &json!("pending"))
    );
    let edges = json!([
        { "source": "data/t.txt", "to": "a", "port": "t" },
        { "from": "a", "output": "o", "to": "b", "port": "t" },
    ]);
    assert_eq!((&graph["edges"], &graph["problem"]), (&edges, &Value::Null));
}
