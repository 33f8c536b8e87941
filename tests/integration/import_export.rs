//! Models and tokenizers of other programs: read and written by stages and by commands.

use serde_json::Value;

use crate::project::{Project, stage};

/// A model that is written, read again and judged.
const ROUND_TRIP: &str = r#"
vars: { format: hf }
stages:
  docs: { kind: ingest, inputs: { files: data/a.txt } }
  words: { kind: train_tokenizer, inputs: { docs: docs }, params: { vocab_size: 300 } }
  shards: { kind: shard, inputs: { docs: docs, tokenizer: words } }
  base:
    kind: pretrain
    inputs: { shards: shards, tokenizer: words }
    params: { preset: modern-1.5m, vocab_size: 300, d_model: 64, n_head: 2, n_layer: 1, seq_len: 32, steps: 2, batch_size: 2 }
  written: { kind: export, inputs: { model: base, docs: docs }, params: { format: "${vars.format}" } }
  again: { kind: import, inputs: { files: written } }
  report: { kind: eval, inputs: { model: again, tokenizer: again, docs: docs }, params: { split: all } }
"#;

fn project(text: &str) -> Project {
    let p = Project::new(text);
    let sentence =
        |i| format!("Story {i}: the fox and the bird saw {} red apples in the garden.\n\n", i * 7 % 13);
    p.write("data/a.txt", (0..200).map(sentence).collect::<String>());
    p
}

fn bytes(p: &Project, name: &str) -> Vec<u8> {
    std::fs::read(p.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What the command printed as JSON.
fn json(p: &Project, args: &[&str]) -> Value {
    let ran = p.tinylm(&[&["--format", "json"], args].concat());
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.stdout))
}

/// The error of a command, and its exit code.
fn error(p: &Project, args: &[&str]) -> (i32, String) {
    let ran = p.tinylm(args);
    assert_ne!(ran.code, 0, "{args:?}: {}", ran.stdout);
    (ran.code, ran.stderr)
}

/// Names of what lies in the project's folder.
fn names(p: &Project) -> Vec<String> {
    let entries = std::fs::read_dir(p.path("")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const WEIGHTS: &str = "model.safetensors";

#[test]
fn what_is_written_is_read_as_the_same_model() {
    let p = project(ROUND_TRIP);
    let (base, again) = ("artifacts/p/base/model", "artifacts/p/again/model");
    let mut reports = Vec::new();
    for format in ["gguf", "hf"] {
        let summary = p.run(&["--set", &format!("vars.format={format}")]);
        let same = |file: &str| bytes(&p, &format!("{base}/{file}")) == bytes(&p, &format!("{again}/{file}"));
        // What only training needs, as how weights began, has no key in GGUF.
        assert!(same(WEIGHTS) && (format == "gguf" || same("config.json")), "{format}: {summary}");
        let report: Value = serde_json::from_str(&p.read("artifacts/p/report/report/report.json")).unwrap();
        assert!(report["bits_per_byte"].as_f64().unwrap() > 0.0, "{report}");
        reports.push(report["bits_per_byte"].clone());
    }
    assert_eq!(reports[0], reports[1], "the same tokens");
    assert!(bytes(&p, &format!("{base}/tokenizer.json")) == bytes(&p, &format!("{again}/tokenizer.json")));

    let written = json(&p, &["export", "--model", "p:base", "--format", "hf", "-o", "out/hf"]);
    assert_eq!((&written["format"], &written["what"]), (&"hf".into(), &"model".into()), "{written}");
    let read = json(&p, &["import", "out/hf", "-o", "out/back"]);
    assert_eq!((&read["format"], &read["config"]["d_model"]), (&"hf".into(), &64.into()), "{read}");
    assert!(bytes(&p, &format!("out/back/{WEIGHTS}")) == bytes(&p, &format!("{base}/{WEIGHTS}")));
    let said = |model| {
        let args = ["generate", "--model", model, "--prompt", "The fox", "--strategy", "greedy"];
        p.tinylm(&args).stdout
    };
    assert!(said("out/back").starts_with("The fox"));
    assert_eq!(said("out/back"), said("p:base"));

    let read = json(&p, &["import", "out/hf/tokenizer.json", "-o", "out/words"]);
    assert_eq!((&read["what"], &read["tokenizer"]["tokens"]), (&"tokenizer".into(), &300.into()), "{read}");
    let one = ["export", "--tokenizer", "p:base", "--format", "tokenizer_json", "-o", "out/alone.json"];
    assert_eq!(json(&p, &one)["files"][0]["name"], "tokenizer.json");
    assert!(bytes(&p, "out/alone.json") == bytes(&p, &format!("{base}/tokenizer.json")));
}

#[test]
fn a_quantized_model_comes_and_goes_with_its_blocks() {
    let p = project(ROUND_TRIP);
    p.run(&["base"]);
    let export = ["export", "--format", "gguf"];
    let own = ["--model", "p:base", "--quantize", "q8_0", "-o", "out/one.gguf", "--texts", "data/a.txt"];
    let written = json(&p, &[&export[..], &own].concat());
    assert_eq!(written["texts_compared"], 2, "the document that it was trained on, and the file: {written}");
    let read = json(&p, &["import", "out/one.gguf", "-o", "out/model"]);
    assert_eq!((&read["format"], &read["what"]), (&"gguf".into(), &"model".into()), "{read}");
    assert!(p.path("out/model/model.gguf").exists() && !p.path("out/model").join(WEIGHTS).exists());
    json(&p, &[&export[..], &["--model", "out/model", "-o", "out/two.gguf"]].concat());
    assert!(bytes(&p, "out/one.gguf") == bytes(&p, "out/two.gguf"), "blocks are not rounded again");
    let said = p.tinylm(&["generate", "--model", "out/model", "--prompt", "The fox", "--strategy", "greedy"]);
    assert!(said.stdout.starts_with("The fox"), "{}", said.stderr);
    let tokenizer = json(&p, &["import", "out/one.gguf", "--what", "tokenizer", "-o", "out/words"]);
    assert_eq!(tokenizer["tokenizer"], read["tokenizer"]);

    let half = bytes(&p, "out/one.gguf");
    p.write("half.gguf", &half[..half.len() / 2]);
    let (code, said) = error(&p, &["import", "half.gguf", "-o", "out/half"]);
    assert!(code == 1 && said.contains("half.gguf") && !p.path("out/half").exists(), "{said}");
}

#[test]
fn nothing_is_overwritten_and_nothing_half_written_is_left() {
    let p = project(ROUND_TRIP);
    p.run(&["base"]);
    p.write("mine/notes.txt", "mine");
    p.write("mine.json", "mine");
    let there = names(&p);
    let export = |o: &'static str| ["export", "--model", "p:base", "--format", "hf", "-o", o];
    let alone = ["export", "--tokenizer", "p:base", "--format", "tokenizer_json", "-o", "mine.json"];
    for args in [&export("mine")[..], &export("mine.json"), &alone, &["import", "data", "-o", "mine"]] {
        let (code, said) = error(&p, args);
        assert!(code == 2 && said.contains("already") && said.contains("nothing is overwritten"), "{said}");
    }
    let (code, said) = error(&p, &export("new.safetensors"));
    assert!(code == 2 && said.contains("several files"), "{said}");
    assert_eq!((p.read("mine/notes.txt"), p.read("mine.json")), ("mine".into(), "mine".into()));
    json(&p, &[&alone[..], &["--force"]].concat());
    assert!(p.read("mine.json").contains("\"vocab\""));

    // Damaged: the weights end early.
    json(&p, &export("hf"));
    let weights = bytes(&p, &format!("hf/{WEIGHTS}"));
    p.write(&format!("hf/{WEIGHTS}"), &weights[..weights.len() / 2]);
    let (code, said) = error(&p, &["import", "hf", "-o", "deep/er/back"]);
    assert!(code == 1 && said.contains(WEIGHTS), "{code} {said}");
    // Without its tokenizer.
    p.write(&format!("hf/{WEIGHTS}"), weights);
    std::fs::remove_file(p.path("hf/tokenizer.json")).unwrap();
    let (_, said) = error(&p, &["import", "hf", "-o", "deep/er/back"]);
    assert!(said.contains("holds no tokenizer") && said.contains("`tokenizer`"), "{said}");
    let left: Vec<_> = names(&p).into_iter().filter(|name| !there.contains(name)).collect();
    assert_eq!(left, ["hf"]);
    json(&p, &["import", "hf", "--tokenizer", "mine.json", "-o", "deep/er/back"]);
    assert!(p.path("deep/er/back/config.json").exists());
}

#[test]
fn what_a_format_cannot_hold_is_refused_before_anything_runs() {
    let refused = |from: &str, to: &str, parts: &[&str]| {
        let text = ROUND_TRIP.replace(from, to);
        assert_ne!(text, ROUND_TRIP, "{from}");
        let p = project(&text);
        let ran = p.tinylm(&["plan", "p"]);
        assert_eq!(ran.code, 2, "{to}: {}", ran.stdout);
        parts.iter().for_each(|part| assert!(ran.stderr.contains(part), "{to}: {}", ran.stderr));
    };
    let format = "{ format: \"${vars.format}\" }";
    let by_chars = |format: &str, parts: &[&str]| {
        let text = ROUND_TRIP.replace("format: hf", &format!("format: {format}"));
        let text = text.replace("{ vocab_size: 300 }", "{ vocab_size: 300, algorithm: char }");
        let ran = project(&text).tinylm(&["plan", "p"]);
        assert_eq!(ran.code, 2, "{format}: {}", ran.stdout);
        parts.iter().for_each(|part| assert!(ran.stderr.contains(part), "{format}: {}", ran.stderr));
    };
    by_chars("gguf", &["`written`: `format`: `gguf`: llama.cpp", "single characters"]);
    by_chars("llama2c", &["`written`: `format`: `llama2c`:"]);
    refused("format: hf", "format: hff", &["there is no format `hff` of models", "did you mean `hf`?"]);
    refused("format: hf", "format: tokenizer_json", &["is a form for a `tokenizer`, not for a `model`"]);
    refused(format, "{ format: hf, quantize: q8_0 }", &["`written`: `format`: `hf`", "q8_0"]);
    refused(format, "{ format: hf, quantize: q9 }", &["q9", "q8_0"]);
    refused(
        "{ model: base, docs: docs }",
        "{ docs: docs }",
        &["nothing is connected to `model`, `tokenizer`"],
    );
    refused("model: base, docs", "model: base, tokenizer: words, docs", &["`model`, `tokenizer` are all"]);
    refused("{ files: written }", "{ files: written, tokenizer: docs }", &["is of type documents"]);
    refused(
        "inputs: { files: written }",
        "inputs: { files: written }, params: { format: gggf }",
        &["there is no format `gggf` of models"],
    );
}

#[test]
fn the_formats_are_listed() {
    let p = project("stages: {}");
    let shown = p.tinylm(&["stages", "export"]).stdout;
    assert!(shown.contains("formats") && shown.contains("tokenizer_json"), "{shown}");
    let kind: Value =
        serde_json::from_str(&p.tinylm(&["stages", "import", "--format", "json"]).stdout).unwrap();
    assert!(kind["formats"].as_array().unwrap().iter().any(|f| f["name"] == "hf"), "{kind}");
}

#[test]
fn a_stage_that_reads_says_what_it_lacks() {
    let p = project("stages:\n  model: { kind: import, inputs: { files: data/a.txt } }\n");
    let (code, summary) = p.try_run(&[]);
    let said = stage(&summary, "model")["error"].as_str().unwrap().to_string();
    assert!(code == 1 && said.contains("is no model of a known form") && said.contains("hf ("), "{said}");
}

/// A folder of public data that is no part of the repository; says so where it is not there.
fn shared(name: &str) -> Option<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if !path.is_dir() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path.canonicalize().unwrap().display().to_string())
}

#[test]
fn the_shipped_pipeline_reads_stories260k_which_tells_the_story_that_llama2c_tells() {
    let Some(folder) = shared("model_stories260K") else { return };
    let p = Project::shipped();
    let (checkpoint, tokenizer) =
        (format!("vars.checkpoint={folder}/stories260K.bin"), format!("vars.tokenizer={folder}/tok512.bin"));
    let short = "vars.student_steps=3";
    let ran =
        p.tinylm(&["run", "import_stories260k", "--set", &checkpoint, "--set", &tokenizer, "--set", short]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let expected = std::fs::read_to_string(format!("{folder}/expected_greedy_200steps.txt")).unwrap();
    let greedy = ["--prompt", "", "--strategy", "greedy", "--max-new-tokens", "200"];
    let told = |model: &str| p.tinylm(&[&["generate", "--model", model], &greedy[..]].concat()).stdout;
    assert_eq!(told("import_stories260k:model"), format!("{expected}\n"));
    // By way of llama.cpp's form.
    json(&p, &["import", "artifacts/import_stories260k/gguf/files", "-o", "again"]);
    assert_eq!(told("again"), format!("{expected}\n"));
}

#[test]
fn token_ids_come_and_go_as_they_are() {
    let text = ROUND_TRIP.replace("model: base, docs: docs", "shards: shards");
    let text =
        text.replace("{ files: written }", "{ files: written, tokenizer: words }, params: { what: shards }");
    let text = text.split("  report:").next().unwrap().replace("format: hf", "format: train_bin");
    let p = project(&text);
    p.run(&[]);
    let written = "artifacts/p/written/files/train.bin";
    let export = |from, to| ["export", "--shards", from, "--format", "train_bin", "-o", to];
    let said = json(&p, &export("p:again", "out/one"));
    assert_eq!((&said["what"], &said["files"][0]["name"]), (&"shards".into(), &"train.bin".into()), "{said}");
    assert!(bytes(&p, "out/one/train.bin") == bytes(&p, written));
    let words = "artifacts/p/words/tokenizer/tokenizer.json";
    let (code, said) = error(&p, &["import", "out/one", "--format", "train_bin", "-o", "out/two"]);
    assert!(code == 2 && said.contains("--tokenizer FILE"), "{said}");
    json(&p, &["import", "out/one", "--format", "train_bin", "--tokenizer", words, "-o", "out/two"]);
    json(&p, &export("out/two", "out/three"));
    assert!(bytes(&p, "out/three/train.bin") == bytes(&p, written));

    let refused = |from: &str, to: &str, part: &str| {
        let p = project(&text.replace(from, to));
        let ran = p.tinylm(&["plan", "p"]);
        assert!(ran.code == 2 && ran.stderr.contains(part), "{to}: {}", ran.stderr);
    };
    refused(", tokenizer: words }, params: { what", " }, params: { what", "connect their tokenizer");
    refused("{ shards: shards }", "{ shards: shards, docs: docs }", "nothing to compare texts with");
    refused("what: shards", "what: shards, id_bytes: 3", "must be 2 or 4, found 3");
}
