//! Bad input of every kind: what the user sees, whole. A snapshot holds the exit code, stdout and
//! stderr; read it as the person who made the mistake.

use crate::project::Project;

/// Runs `args` in `project` and compares with the snapshot `name`.
fn check(name: &str, project: &Project, args: &[&str]) {
    let ran = project.tinylm(args);
    assert!([1, 2].contains(&ran.code), "{name}: exit code {}\n{}", ran.code, ran.stderr);
    let shown = format!(
        "$ tinylm {}\nexit code {}\n--- stdout\n{}--- stderr\n{}",
        args.join(" "),
        ran.code,
        ran.stdout,
        ran.stderr
    );
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("snapshots");
    let folder = project.path("").canonicalize().expect("it is there");
    settings.add_filter(&regex_escape(folder.to_str().expect("UTF-8")), "PROJECT");
    settings.add_filter(r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN");
    settings.add_filter(r"blake3:[0-9a-f]{12,64}", "blake3:DIGEST");
    settings.add_filter(r"\b\d+(\.\d)? (ms|s)\b", "TIME");
    settings.add_filter(r"tmp/[0-9]+-[A-Za-z0-9]+", "tmp/STAGE");
    settings.add_filter(r"(PROJECT/)?artifacts/store/objects/[0-9a-f]{2}/[0-9a-f]{62}", "BLOB");
    // The table's columns move with the durations.
    settings.add_filter(r"(\w) {2,}(\w)", "$1  $2");
    settings.bind(|| insta::assert_snapshot!(name, shown));
}

fn regex_escape(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_alphanumeric() || c == '/' { vec![c] } else { vec!['\\', c] }).collect()
}

/// `validate` of a pipeline with this text.
fn pipeline(name: &str, text: &str) {
    let project = Project::new(text);
    project.write("data/a.txt", "Some text.\n");
    check(name, &project, &["validate", "p"]);
}

#[test]
fn mistakes_in_pipelines() {
    pipeline("unknown_key", "stages:\n  docs: { kind: ingest, input: { files: data/a.txt } }\n");
    pipeline("unknown_kind", "stages:\n  docs: { kind: injest, inputs: { files: data/a.txt } }\n");
    pipeline("unknown_port", "stages:\n  docs: { kind: ingest, inputs: { file: data/a.txt } }\n");
    pipeline(
        "unknown_param",
        "stages:\n  docs:\n    kind: ingest\n    inputs: { files: data/a.txt }\n    params: { min_char: 3 }\n",
    );
    pipeline(
        "wrong_type",
        "stages:\n  docs:\n    kind: ingest\n    inputs: { files: data/a.txt }\n    params:\n      min_chars: many\n",
    );
    pipeline(
        "not_finite",
        "stages:\n  docs:\n    kind: ingest\n    inputs: { files: data/a.txt }\n    params:\n      near_duplicates: { threshold: .nan }\n",
    );
    pipeline("missing_input", "stages:\n  docs: { kind: ingest }\n");
    pipeline(
        "unknown_stage",
        "stages:\n  docs: { kind: ingest, inputs: { files: data/a.txt } }\n  tok: { kind: train_tokenizer, inputs: { docs: dosc } }\n",
    );
    pipeline(
        "cycle",
        "stages:
  a: { kind: command, inputs: { x: c }, outputs: { y: file }, params: { command: [cp] } }
  b: { kind: command, inputs: { x: a }, outputs: { y: file }, params: { command: [cp] } }
  c: { kind: command, inputs: { x: b }, outputs: { y: file }, params: { command: [cp] } }
",
    );
    pipeline(
        "type_mismatch",
        "stages:\n  docs: { kind: ingest, inputs: { files: data/a.txt } }\n  tok: { kind: train_tokenizer, inputs: { chats: docs } }\n",
    );
    pipeline(
        "tokenizer_too_large",
        "stages:
  docs: { kind: ingest, inputs: { files: data/a.txt } }
  tok: { kind: train_tokenizer, inputs: { docs: docs }, params: { vocab_size: 8192 } }
  shards: { kind: shard, inputs: { docs: docs, tokenizer: tok } }
  base: { kind: pretrain, inputs: { shards: shards, tokenizer: tok }, params: { preset: tinylm-1.5m } }
",
    );
    pipeline(
        "heads_do_not_divide",
        "stages:\n  base:\n    kind: pretrain\n    inputs: { shards: s, tokenizer: t }\n    params: { d_model: 100, n_head: 3 }\n  t: { kind: train_tokenizer, inputs: { docs: d } }\n  s: { kind: shard, inputs: { docs: d, tokenizer: t } }\n  d: { kind: ingest, inputs: { files: data/a.txt } }\n",
    );
    pipeline(
        "unknown_preset",
        "stages:\n  base:\n    kind: pretrain\n    inputs: { shards: s, tokenizer: t }\n    params: { preset: tinylm-15m }\n  t: { kind: train_tokenizer, inputs: { docs: d } }\n  s: { kind: shard, inputs: { docs: d, tokenizer: t } }\n  d: { kind: ingest, inputs: { files: data/a.txt } }\n",
    );
    pipeline(
        "bad_gate",
        "stages:\n  d: { kind: ingest, inputs: { files: data/a.txt } }\n  t: { kind: train_tokenizer, inputs: { docs: d } }\n  s: { kind: shard, inputs: { docs: d, tokenizer: t } }\n  b: { kind: pretrain, inputs: { shards: s, tokenizer: t } }\n  e:\n    kind: eval\n    inputs: { model: b, tokenizer: t, docs: d }\n    params:\n      gates: { bits_per_byte: 2.2 and less }\n",
    );
    let bomb: String =
        (1..9).map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 12].join(", "))).collect();
    pipeline("yaml_bomb", &format!("a0: &a0 [x, x, x, x, x, x, x, x]\n{bomb}"));
    pipeline("absurd_nesting", &format!("stages: {}", "{ a: ".repeat(300)));
    pipeline(
        "duplicate_key",
        "stages:\n  a: { kind: ingest, inputs: { files: data/a.txt } }\n  a: { kind: ingest, inputs: { files: data/a.txt } }\n",
    );
    pipeline("not_yaml", "stages:\n  a: { kind: ingest\n  b: 3\n");
    pipeline("missing_source", "stages:\n  docs: { kind: ingest, inputs: { files: data/b.txt } }\n");
    pipeline("empty_glob", "stages:\n  docs: { kind: ingest, inputs: { files: 'data/*.md' } }\n");
    pipeline(
        "url_without_sha256",
        "stages:\n  docs: { kind: ingest, inputs: { files: 'https://example.org/a.txt' } }\n",
    );
    pipeline(
        "unknown_variable",
        "vars: { corpus: data/a.txt }\nstages:\n  docs: { kind: ingest, inputs: { files: '${vars.corpse}' } }\n",
    );
    pipeline(
        "useless_axis",
        "stages:\n  docs:\n    kind: ingest\n    inputs: { files: data/a.txt }\n    matrix: { size: [1, 2] }\n",
    );
    pipeline(
        "missing_stage_file",
        "stages:\n  tok: { use: stages/bpe.yaml, inputs: { docs: docs } }\n  docs: { kind: ingest, inputs: { files: data/a.txt } }\n",
    );
}

#[test]
fn mistakes_on_the_command_line() {
    let project = Project::new(
        "vars: { corpus: data/a.txt }\nstages:\n  docs: { kind: ingest, inputs: { files: '${vars.corpus}' } }\n",
    );
    project.write("data/a.txt", "Some text that is long enough to be kept by every filter there is.\n");
    check("set_unknown_variable", &project, &["plan", "p", "--set", "vars.corpora=x"]);
    check("set_unknown_param", &project, &["plan", "p", "--set", "stages.docs.params.min_cars=3"]);
    check("set_without_value", &project, &["plan", "p", "--set", "vars.corpus"]);
    check("no_such_stage", &project, &["run", "p", "dcos"]);
    check("no_such_pipeline", &project, &["run", "q"]);
    check("no_lockfile", &project, &["run", "p", "--locked"]);
    check("stage_never_ran", &project, &["inspect", "p:docs"]);
    check(
        "bad_temperature",
        &project,
        &["generate", "--model", "data", "--prompt", "x", "--temperature", "0"],
    );
    check("no_model", &project, &["generate", "--model", "data", "--prompt", "x"]);
    project.write("pipelines/p.lock", "version: 1\npipeline: p\nstages:\n  docs: { kind: 3 }\n");
    check("bad_lockfile", &project, &["run", "p", "--locked"]);
    project.run(&["--set", "vars.corpus=data/a.txt"]);
    check("unknown_column", &project, &["query", "p:docs", "SELECT txt FROM docs"]);
    project.write("x.parquet", b"PAR1 this is not whole PAR1");
    check("damaged_file", &project, &["inspect", "x.parquet"]);
}

/// Runs one stage `a` of `kind` over `data/NAME` with this content.
fn stage(snapshot: &str, kind: &str, file: &str, content: &[u8], params: &str) {
    let port = if kind == "synthesize" { "templates" } else { "files" };
    let text = format!(
        "stages:\n  a: {{ kind: {kind}, inputs: {{ {port}: data/{file} }}, params: {{ {params} }} }}\n"
    );
    let project = Project::new(&text);
    project.write(&format!("data/{file}"), content);
    check(snapshot, &project, &["run", "p"]);
}

#[test]
fn mistakes_in_corpora() {
    stage("invalid_utf8", "ingest", "a.txt", b"good line\nbad \xff byte\n", "");
    stage("broken_jsonl", "ingest", "a.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"two\"\n", "");
    stage("missing_field", "ingest", "a.jsonl", b"{\"text\": \"one\"}\n{\"txt\": \"two\"}\n", "");
    stage("unequal_csv", "ingest", "a.csv", b"text,lang\none,en\ntwo\n", "");
    stage("damaged_parquet", "ingest", "a.parquet", b"PAR1nothing of the kindPAR1", "");
    stage("nothing_left", "ingest", "a.txt", b"short\n", "min_chars: 1000");
}

#[test]
fn mistakes_in_chats() {
    let line = |text: &str| format!("{text}\n").into_bytes();
    stage(
        "unknown_role",
        "ingest_chat",
        "a.jsonl",
        &line(
            r#"{"messages": [{"role": "usr", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#,
        ),
        "",
    );
    stage(
        "not_alternating",
        "ingest_chat",
        "a.jsonl",
        &line(
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "You?"}, {"role": "assistant", "content": "Hello"}]}"#,
        ),
        "",
    );
    stage("broken_chat", "ingest_chat", "a.jsonl", &line(r#"{"messages": [{"role": "user""#), "");
    stage("unknown_chat_format", "ingest_chat", "a.jsonl", &line(r#"{"dialogue": "Hi"}"#), "");
}

#[test]
fn mistakes_in_templates() {
    let template = |text: &str| {
        format!("domain: test\nslots:\n  animal: [cat, dog, fox]\ndocuments:\n  - name: only\n    text: \"{text}\"\n")
            .into_bytes()
    };
    stage(
        "unknown_slot",
        "synthesize",
        "a.yaml",
        &template("The {animl} sleeps."),
        "documents: 1, conversations: 0",
    );
    stage(
        "unbalanced_brace",
        "synthesize",
        "a.yaml",
        &template("The {animal sleeps."),
        "documents: 1, conversations: 0",
    );
    stage(
        "unknown_modifier",
        "synthesize",
        "a.yaml",
        &template("The {animal|plurl} sleep."),
        "documents: 1, conversations: 0",
    );
    stage(
        "too_few_outputs",
        "synthesize",
        "a.yaml",
        &template("The {animal} sleeps."),
        "documents: 50, conversations: 0",
    );
}
