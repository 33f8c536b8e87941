//! The shipped pipeline with a small model and few steps: from text to a model that answers.

use crate::project::{Project, stage, statuses};

/// Small enough for a test, every stage of it real.
const SMALL: [&str; 16] = [
    "--set",
    "vars.pass_rate=0",
    "--set",
    "vars.synthetic=60",
    "--set",
    "vars.pretrain_steps=6",
    "--set",
    "vars.finetune_steps=6",
    "--set",
    "stages.base.params.d_model=32",
    "--set",
    "stages.base.params.n_head=2",
    "--set",
    "stages.base.params.n_layer=1",
    "--set",
    "stages.base.params.seq_len=64",
];

fn run(project: &Project, args: &[&str]) -> serde_json::Value {
    let ran = project.tinylm(&[&["run", "two_stage", "--format", "json"], &SMALL[..], args].concat());
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout.lines().last().unwrap_or(""), ran.stderr);
    serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn two_folders_and_any_number_of_jobs_give_the_same_bytes_and_edits_rerun_what_they_must() {
    let (a, b) = (Project::shipped(), Project::shipped());
    let (one, two) = (run(&a, &["--jobs", "1"]), run(&b, &["--jobs", "2"]));
    for result in one["stages"].as_array().unwrap() {
        let name = result["stage"].as_str().unwrap();
        assert_eq!(result["outputs"], stage(&two, name)["outputs"], "{name}");
    }
    assert!(statuses(&run(&a, &[])).iter().all(|s| s.ends_with("=cached")));

    let tuned = run(&a, &["--set", "stages.chat.params.learning_rate=0.001"]);
    let ran: Vec<_> = statuses(&tuned).into_iter().filter(|s| s.ends_with("=ran")).collect();
    assert_eq!(ran, ["chat=ran", "report=ran", "exam=ran"]);

    a.write(
        "data/corpus/zz.txt",
        "A document that was appended. It has a few sentences of its own. It is new.\n".repeat(3),
    );
    let appended = run(&a, &[]);
    assert_eq!(stage(&appended, "docs")["reason"]["detail"], "input files: zz.txt added");
    assert_eq!(stage(&appended, "chats")["status"], "cached");
    assert_eq!(stage(&appended, "base")["status"], "ran");
}

#[test]
fn the_result_generates_chats_and_can_be_looked_into() {
    let p = Project::shipped();
    run(&p, &[]);
    let text =
        p.tinylm(&["generate", "--model", "two_stage:base", "--prompt", "Once", "--max-new-tokens", "5"]);
    assert!(text.code == 0 && text.stdout.starts_with("Once"), "{}", text.stderr);
    for strategy in ["greedy", "beam"] {
        let args =
            ["generate", "--model", "two_stage:chat.model", "--prompt", "Hello", "--strategy", strategy];
        let twice = [p.tinylm(&args), p.tinylm(&args)];
        assert_eq!((twice[0].code, &twice[0].stdout), (0, &twice[1].stdout), "{}", twice[0].stderr);
    }
    let shown = p.tinylm(&["inspect", "two_stage:chat"]).stdout;
    assert!(shown.contains("model.embed_tokens.weight"), "{shown}");
    assert!(p.tinylm(&["inspect", "two_stage:shards"]).stdout.contains("decoded"));
    // Shards have JSON documents beside their tables.
    for (stage, table) in [("docs", "docs"), ("shards", "train"), ("base", "metrics")] {
        let sql = format!("SELECT COUNT(*) AS n FROM {table}");
        let counted = p.tinylm(&["query", &format!("two_stage:{stage}"), &sql, "--format", "json"]);
        assert!(counted.stdout.starts_with("{\"n\":"), "{}{}", counted.stdout, counted.stderr);
    }
    let mut chat = p.command(&["chat", "--model", "two_stage:chat", "--max-new-tokens", "5"]);
    let mut chat = chat
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    use std::io::Write;
    // A line that is not UTF-8 between two, and one that does not fit.
    let said = [&b"Hello!\ncaf\xE9\nHow are you?\n"[..], "Once upon a time ".repeat(30).as_bytes()].concat();
    chat.stdin.take().expect("piped").write_all(&said).expect("written");
    let output = chat.wait_with_output().expect("it ends");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && said.matches("assistant:").count() == 3, "{said}");
    let warned = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(warned.contains("line 2, column 4: the byte 0xE9 is not UTF-8"), "{warned}");
    assert_eq!(warned.matches("the model holds 64: the first").count(), 1, "{warned}");

    let long = "Once upon a time ".repeat(30);
    let args = ["generate", "--model", "two_stage:base", "--prompt", &long, "--max-new-tokens", "5"];
    let cut = p.tinylm(&args);
    assert!(cut.code == 0 && cut.stderr.contains("the model holds 64: the first"), "{}", cut.stderr);
    let typed = |prompt: &str| {
        let args = ["generate", "--model", "two_stage:base", "--prompt", prompt, "--strategy", "greedy"];
        p.tinylm(&args).stdout
    };
    assert_eq!(typed("Ou\u{300} est le the\u{301}"), typed("O\u{f9} est le th\u{e9}"));
    assert_that_the_base_model_scores_texts(&p);
    assert_that_prompts_of_a_file_are_continued(&p);
}

/// As a batch: what each gives alone; with samples, stop strings and results in a file.
fn assert_that_prompts_of_a_file_are_continued(p: &Project) {
    let generate = |args: &[&str]| {
        p.tinylm(&[&["generate", "--model", "two_stage:chat", "--max-new-tokens", "9"], args].concat())
    };
    let json = |text: &str| -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let long = "Once upon a time ".repeat(30);
    let rows = format!(
        "\u{FEFF}{{\"id\": \"a\", \"prompt\": \"Once\"}}\r\n{{\"prompt\": \"{long}\"}}\r\n\r\n\
         {{\"id\": 3, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}"
    );
    p.write("prompts.jsonl", &rows);
    let batch = generate(&["--prompts", "prompts.jsonl", "-o", "out/said.jsonl"]);
    assert_eq!(batch.code, 0, "{}", batch.stderr);
    assert!(batch.stderr.contains("1 of 3 prompts have more tokens than the 64"), "{}", batch.stderr);
    let said = json(&p.read("out/said.jsonl"));
    assert_eq!((said.len(), &said[0]["id"], &said[2]["id"]), (3, &"a".into(), &3.into()));
    assert!(said[1]["prompt_tokens_cut"].as_u64().is_some_and(|cut| cut > 0) && said[1].get("id").is_none());
    assert_eq!(said[2]["messages"][0]["content"], "Hello");
    let tokens = |of: &serde_json::Value| of["tokens"].as_array().map_or(0, Vec::len);
    assert!(said.iter().all(|one| tokens(one) == one["logprobs"].as_array().map_or(0, Vec::len)));
    let alone = json(&generate(&["--prompt", "Once", "--format", "json"]).stdout);
    for key in ["text", "tokens", "logprobs", "finish_reason", "sample"] {
        assert_eq!(alone[0][key], said[0][key], "{key}");
    }
    let printed = generate(&["--prompts", "prompts.jsonl"]);
    assert_eq!(printed.stdout, p.read("out/said.jsonl"));

    let there = generate(&["--prompts", "prompts.jsonl", "-o", "out/said.jsonl"]);
    assert!(there.code == 2 && there.stderr.contains("--force replaces a file"), "{}", there.stderr);
    let replaced = generate(&["--prompt", "Once", "-o", "out/said.jsonl", "--force"]);
    assert_eq!((replaced.code, json(&p.read("out/said.jsonl")).len()), (0, 1), "{}", replaced.stderr);

    let samples = json(&generate(&["--prompt", "Once", "--n", "3", "--format", "json"]).stdout);
    assert_eq!((samples.len(), &samples[0]["text"]), (3, &alone[0]["text"]));
    assert!(samples[1]["tokens"] != samples[2]["tokens"] && samples[2]["sample"] == 2);
    let shown = generate(&["--prompt", "Once", "--n", "2"]).stdout;
    assert!(
        shown.starts_with("[sample 1 of 2]\nOnce") && shown.contains("\n\n[sample 2 of 2]\nOnce"),
        "{shown}"
    );

    let text = alone[0]["text"].as_str().expect("a text");
    let stop: String = text.chars().skip(2).take(3).collect();
    let stopped = generate(&["--prompt", "Once", "--stop", &stop, "--stop", "never said"]);
    let expected = format!("Once{}\n", &text[..text.find(&stop).expect("it is there")]);
    assert_eq!((stopped.code, stopped.stdout), (0, expected), "{}", stopped.stderr);

    p.write("bad.jsonl", "{\"prompt\": \"Once\"}\n{\"promt\": \"Once\"}\n");
    let bad = generate(&["--prompts", "bad.jsonl"]);
    assert!(bad.code == 1 && bad.stderr.contains("bad.jsonl:2:1") && bad.stdout.is_empty(), "{}", bad.stderr);
    for (args, why) in [
        (["--prompt", "x", "--n", "0"], "--n is 0"),
        (["--prompt", "x", "--stop", ""], "--stop is empty"),
        (["--prompt", "x", "--min-p", "2"], "--min-p is 2"),
        (["--prompt", "x", "--prompts", "bad.jsonl"], "cannot be used with"),
    ] {
        let refused = generate(&args);
        assert!(refused.code == 2 && refused.stderr.contains(why), "{args:?}: {}", refused.stderr);
    }
}

/// Given on the command line or as a file, as a table or as JSON.
fn assert_that_the_base_model_scores_texts(p: &Project) {
    let score =
        |args: &[&str]| p.tinylm(&[&["score", "--model", "two_stage:base", "--top", "2"], args].concat());
    p.write("said.txt", "Once upon a time");
    let text = score(&["--text", "Once upon a time", "--format", "json"]);
    let file = score(&["--file", "said.txt", "--format", "json"]);
    assert_eq!((text.code, &text.stdout), (0, &file.stdout), "{}{}", text.stderr, file.stderr);
    let found: serde_json::Value = serde_json::from_str(&text.stdout).expect("JSON");
    let tokens = found["tokens"].as_array().expect("tokens");
    assert!(found["bytes"] == 16 && tokens.iter().all(|t| t["top"].as_array().is_some_and(|t| t.len() == 2)));
    let table = score(&["--text", "Once upon a time"]).stdout;
    assert!(
        table.contains("most probable") && table.contains("bits per byte (context 64, stride 32)"),
        "{table}"
    );
    assert_eq!((score(&[]).code, score(&["--text", ""]).code), (2, 1), "no text, and an empty one");
}

#[test]
fn a_gate_fails_the_run_and_keeps_the_artifact() {
    let p = Project::shipped();
    let file = p.read("pipelines/two_stage.yaml");
    run(&p, &["base_report"]);
    let gated =
        file.replace("max_tokens: 500000,", "max_tokens: 500000, gates: { bits_per_byte: '<= 0.1' },");
    assert_ne!(file, gated);
    p.write("pipelines/two_stage.yaml", gated);
    for _ in 0..2 {
        let ran = p.tinylm(&[&["run", "two_stage", "base_report", "--format", "json"], &SMALL[..]].concat());
        let summary: serde_json::Value = serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap();
        let report = stage(&summary, "base_report");
        assert_eq!((ran.code, &report["status"]), (1, &"failed".into()));
        assert!(report["error"].as_str().unwrap().contains("the gate is <= 0.1"), "{report}");
        assert!(report["outputs"]["report"].is_string());
    }
    assert!(p.path("artifacts/two_stage/base_report/report/report.json").exists());
}
