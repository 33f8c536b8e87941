//! Runs, pipelines and artifacts.

use std::process::{Child, Stdio};
use std::sync::Arc;

use serde_json::json;

use super::driver::key;
use super::{Browser, DESKTOP, INJECTION, PHONE, Served};
use crate::project::Project;

/// The first stage waits for a file `go`, the last one for `on`, so that a test sees what is between them come. The
/// last one writes a file with a name that looks like markup.
const GATED: &str = r#"
name: p
description: <b>Waits</b> to be looked at.
seed: 1
stages:
  gate:
    kind: command
    inputs: { text: data/text.jsonl }
    outputs: { text: files }
    params: { command: [sh, -c, "while [ ! -e 'FOLDER/go' ]; do sleep 0.05; done; mkdir -p ${outputs.text}; cp ${inputs.text} ${outputs.text}/text.jsonl"] }
  docs: { kind: ingest, inputs: { files: gate } }
  tokenizer: { kind: train_tokenizer, inputs: { docs: docs }, params: { algorithm: byte_bpe, vocab_size: 300 } }
  shards: { kind: shard, inputs: { docs: docs, tokenizer: tokenizer } }
  base:
    kind: pretrain
    inputs: { shards: shards, tokenizer: tokenizer }
    params: { preset: modern-1.5m, vocab_size: 300, d_model: 32, n_layer: 1, n_head: 2, seq_len: 32, steps: 60, batch_size: 4, eval_every: 20 }
  last:
    kind: command
    inputs: { model: base }
    outputs: { text: files }
    params: { command: [sh, -c, "while [ ! -e 'FOLDER/on' ]; do sleep 0.05; done; mkdir -p ${outputs.text}; echo '<b>noted</b>' > \"${outputs.text}/<img src=x onerror='window.owned=1'>.txt\"; echo '<script>window.owned=1</script>' >&2"] }
"#;

fn gated() -> Project {
    let project = Project::new("stages: {}");
    let folder = project.path("").display().to_string();
    project.write("pipelines/p.yaml", GATED.replace("FOLDER", folder.trim_end_matches('/')));
    let line = |i: usize| {
        let markup = if i.is_multiple_of(10) { INJECTION } else { "" };
        format!("{}\n", json!({ "text": format!("{markup}The {i} cats sit on {} mats.", i * 7 % 13) }))
    };
    project.write("data/text.jsonl", (0..300).map(line).collect::<String>());
    project
}

/// A project in which everything has run, and the id of its run.
fn finished() -> (Arc<Project>, String) {
    let project = gated();
    project.write("go", "");
    project.write("on", "");
    let run = project.run(&[])["run"].as_str().expect("an id").to_string();
    (Arc::new(project), run)
}

/// A run in another process; it ends with this value.
struct Running(Child);

impl Running {
    fn start(project: &Project, args: &[&str]) -> Self {
        let mut command = project.command(&[&["run", "p"], args].concat());
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The artifact of the only output of a stage.
fn artifact(project: &Project, stage: &str) -> String {
    let summary = project.run(&[]);
    let outputs = crate::project::stage(&summary, stage)["outputs"].as_object().expect("outputs").clone();
    outputs.values().next().and_then(|digest| digest.as_str()).expect("a digest").replace("blake3:", "")
}

#[test]
fn a_run_in_another_process_is_watched_from_its_first_stage_to_its_end() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let project = Arc::new(gated());
    let served = Served::on(project.clone(), &[]);
    browser.goto(&format!("{}/runs", served.url));
    browser.wait_for(".empty", "Nothing has run in this project yet.");
    let running = Running::start(&project, &[]);
    browser.wait_for(".run-row .badge", "running");
    browser.click(".run-row a");
    browser.wait_for(".stage .badge", "running");
    browser.wait_for(".graph-picture .state-running", "gate");
    assert_eq!(browser.count(".chart path.line"), 0, "{}", browser.text("#main"));
    // What comes from here on comes by events.
    browser.script("window.same = true", &[]);
    project.write("go", "");
    browser.wait_for(".legend", "base train");
    browser.wait_for(".legend", "base validation");
    browser.wait_for(".graph-picture .state-ran", "base");
    browser.wait_for(".graph-picture .state-running", "last");
    assert_eq!(browser.count(".chart path.line"), 2);
    browser.assert_fits();
    project.write("on", "");
    browser.wait_for(".heading .badge", "done");
    browser
        .wait("six stages", |b| b.texts(".stage .badge").iter().filter(|text| *text == "ran").count() == 6);
    assert_eq!(browser.script("return window.same ?? null", &[]), json!(true), "the page was loaded anew");
    drop(running);
    // A run that is killed leaves no summary.
    std::fs::remove_file(project.path("on")).expect("removed");
    let running = Running::start(&project, &["--force", "last"]);
    browser.goto(&format!("{}/runs", served.url));
    browser.wait_for(".run-row .badge", "running");
    browser.click(".run-row a");
    browser.wait_for(".stage .badge", "running");
    drop(running);
    browser.wait_for(".notice", "left no summary");
    browser.wait_for(".stage .badge", "interrupted");
    browser.screenshots("run-interrupted");
    browser.assert_clean();
}

#[test]
fn a_finished_run_shows_its_curves_stages_and_logs_and_is_compared() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let (project, run) = finished();
    let second = project.run(&["--set", "stages.base.params.steps=70"])["run"].as_str().unwrap().to_string();
    let served = Served::on(project, &[]);
    browser.goto(&format!("{}/runs/{run}", served.url));
    browser.wait_for(".legend", "base validation");
    // Values under the arrow keys, for those without a pointer.
    browser.script("document.querySelector('.chart .plot').focus()", &[]);
    browser.press(key::END);
    browser.wait_for(".tip", "step 60");
    assert!(browser.text(".tip").contains("base train"), "{}", browser.text(".tip"));
    browser.press(key::ESCAPE);
    browser.click(".chart .check input");
    browser.click(".legend-item");
    browser.wait("one line", |b| b.count(".chart path.line") == 1);
    browser.click(".legend-item");
    browser.click("#stage-base summary");
    browser.wait_for("#stage-base .log", "step 60: loss");
    browser.wait_for("#stage-base .stage-body", "tokens_per_s");
    // What a program prints is text.
    browser.click("#stage-last summary");
    browser.wait_for("#stage-last .log", "<script>window.owned=1</script>");
    browser.assert_fits();
    browser.assert_accessible();
    browser.screenshots("run");
    browser.goto(&format!("{}/pipelines/p", served.url));
    browser.wait_for(".graph-picture", "tokenizer");
    browser.wait_for("#main", "<b>Waits</b> to be looked at.");
    browser.screenshots("pipeline");
    browser.goto(&format!("{}/runs", served.url));
    browser.click(".run-row:nth-child(1) input");
    browser.click(".run-row:nth-child(2) input");
    browser.wait_for("a.button", "Compare");
    browser.click("a.button");
    browser.wait_for(".differences", "param steps: 60 -> 70");
    browser.wait_for(".legend", "B train");
    let address = browser.script("return window.location.search", &[]);
    assert_eq!(address, json!(format!("?a={run}&b={second}")));
    browser.assert_fits();
    browser.assert_accessible();
    browser.screenshots("compare");
    browser.assert_clean();
}

#[test]
fn artifacts_are_browsed_with_whatever_is_in_their_rows_and_names() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let (project, _) = finished();
    let served = Served::on(project.clone(), &[]);
    browser.goto(&format!("{}/artifacts", served.url));
    browser.wait_for(".table", "shards");
    browser.keys("input[type=search]", "tokenizer");
    browser.wait("one artifact", |b| b.count("tbody tr") == 1);
    browser.click("tbody a");
    // The vocabulary.
    browser.wait_for(".used-by", "shards");
    browser.wait_for(".pager", "1 to 100 of 300 tokens");
    browser.click(".pager .button:last-of-type");
    browser.wait_for(".pager", "101 to 200");
    browser.keys(".file-view input[type=search]", "at");
    browser.wait("few tokens", |b| (1..30).contains(&b.count(".file-view tbody tr")));
    assert!(browser.texts(".file-view tbody .token").iter().all(|token| token.contains("at")));
    browser.screenshots("vocabulary");
    // Rows of tokens, decoded.
    browser.goto(&format!("{}/artifacts/{}", served.url, artifact(&project, "shards")));
    browser.wait_for(".tokens", "cats");
    browser.wait_for(".tokens", INJECTION);
    browser.assert_fits();
    browser.assert_accessible();
    browser.screenshots("shards");
    // Rows of text.
    browser.goto(&format!("{}/artifacts/{}", served.url, artifact(&project, "docs")));
    browser.wait_for(".rows", INJECTION);
    browser.click(".pager .only:not(:disabled)");
    browser.wait_for(".pager", "26 to 50 of 300 rows");
    // Tensors.
    let model = artifact(&project, "base");
    browser.goto(&format!("{}/artifacts/{model}?file=model.safetensors", served.url));
    browser.wait_for(".tensor", "std");
    assert_eq!(browser.count(".tensor .bar"), 60);
    browser.assert_accessible();
    browser.screenshots("tensors");
    browser.goto(&format!("{}/artifacts/{model}?file=metrics.jsonl", served.url));
    browser.wait_for(".legend", "validation");
    // A file whose name is markup.
    browser.goto(&format!("{}/artifacts/{}", served.url, artifact(&project, "last")));
    browser.wait_for(".file-entry", "<img src=x onerror='window.owned=1'>.txt");
    browser.wait_for(".text-part", "<b>noted</b>");
    browser.wait_for(".made-by", "last");
    browser.assert_clean();
}

#[test]
fn damage_and_names_that_are_markup_are_told_in_their_place() {
    let Some(browser) = Browser::open(PHONE) else { return };
    let (project, _) = finished();
    let reason = json!({ "code": "x", "detail": INJECTION });
    let stage = json!({
        "stage": INJECTION, "kind": INJECTION, "status": "failed", "key": null, "reason": reason, "seconds": 1.0,
        "outputs": {}, "error": INJECTION,
        "measurements": [{ "name": INJECTION, "value": 1.0, "unit": INJECTION }],
    });
    let summary = json!({
        "pipeline": INJECTION, "run": "r", "ok": false, "seconds": 1.0, "stages": [stage], "error": INJECTION,
    });
    let metrics =
        json!({ "event": "stage_metrics", "stage": INJECTION, "step": 1, "figures": { INJECTION: 1.0 } });
    project.write("artifacts/runs/30000101-000000-aaaa/summary.json", summary.to_string());
    project.write("artifacts/runs/30000101-000000-aaaa/events.jsonl", format!("{metrics}\nno json\n"));
    project.write("artifacts/runs/30000101-000000-bbbb/summary.json", "{");
    project.write(
        "pipelines/broken.yaml",
        format!("stages: {{ x: {{ kind: \"{}\" }} }}", INJECTION.replace('"', "'")),
    );
    let model = artifact(&project, "base");
    let weights =
        std::fs::canonicalize(project.path("artifacts/p/base/model/model.safetensors")).expect("there");
    let served = Served::on(project.clone(), &[]);
    browser.goto(&format!("{}/runs", served.url));
    browser.wait_for(".run-row", INJECTION);
    browser.wait_for(".run-damage", "`summary.json` does not read");
    browser.wait_for(".problem", "does not read");
    browser.assert_fits();
    browser.assert_accessible();
    browser.screenshots("runs-damaged");
    browser.goto(&format!("{}/runs/30000101-000000-aaaa", served.url));
    browser.wait_for("h1", INJECTION);
    browser.wait_for(".legend", INJECTION);
    browser.click(".stage summary");
    browser.wait_for(".stage-body", INJECTION);
    browser.assert_fits();
    // A phone shows a page that is too wide in a wider window, so its window's width proves nothing.
    let widest = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.script(widest, &[]), json!(true), "wider than the phone");
    browser.screenshots("run-markup");
    // The blob of a model is cut off behind the store's back.
    let blob = std::fs::metadata(&weights).expect("there");
    let objects = project.path("artifacts/store/objects");
    let same =
        walk(&objects).into_iter().find(|path| std::fs::metadata(path).is_ok_and(|m| m.len() == blob.len()));
    let same = same.expect("the blob");
    std::fs::remove_file(&same).expect("removed");
    std::fs::write(&same, "cut").expect("written");
    browser.goto(&format!("{}/artifacts/{model}?file=model.safetensors", served.url));
    browser.wait_for(".file-view .notice", "its manifest says");
    browser.wait_for(".file-entry", "damaged");
    browser.assert_fits();
    browser.assert_clean_but(&["422"]);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
