//! `compare`: reports of a matrix, models evaluated on the spot, and what cannot be compared.

use serde_json::Value;

use crate::project::Project;

/// Two widths with two seeds each, on the repository's fables.
fn project() -> Project {
    let p = Project::shipped();
    p.write(
        "pipelines/p.yaml",
        "\
stages:
  docs: { kind: ingest, inputs: { files: data/corpus/fables.txt }, params: { min_chars: 20 } }
  tokenizer: { kind: train_tokenizer, inputs: { docs: docs }, params: { vocab_size: 300 } }
  shards: { kind: shard, inputs: { docs: docs, tokenizer: tokenizer }, params: { validation_fraction: 0.3 } }
  model:
    kind: pretrain
    inputs: { shards: shards, tokenizer: tokenizer }
    matrix: { width: [8, 16], seed: [1, 2] }
    seed: '${matrix.seed}'
    params: { d_model: '${matrix.width}', n_layer: 1, n_head: 1, vocab_size: 300, seq_len: 32, steps: 3, batch_size: 2 }
  eval: { kind: eval, inputs: { model: model, tokenizer: tokenizer, docs: docs } }
",
    );
    p.run(&[]);
    p
}

fn compared(p: &Project, args: &[&str]) -> Value {
    let ran = p.tinylm(&[&["compare"], args, &["--format", "json"]].concat());
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).expect("JSON")
}

fn refused(p: &Project, args: &[&str], code: i32, parts: &[&str]) {
    let ran = p.tinylm(&[&["compare"], args].concat());
    assert_eq!(ran.code, code, "{args:?}: {}{}", ran.stdout, ran.stderr);
    assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{args:?}: {}", ran.stderr);
}

#[test]
fn variants_groups_and_models_on_the_spot_stand_in_one_table() {
    let p = project();
    let groups = compared(&p, &["p:eval", "--group-by", "width", "-o", "table.parquet"]);
    let bits = &groups["figures"][0];
    assert_eq!((&bits["figure"], &bits["rows"][1]["name"]), (&"bits_per_byte".into(), &"width=16".into()));
    assert_eq!(bits["rows"][1]["members"].as_array().unwrap().len(), 2);
    let difference = &bits["differences"][0];
    let third = Value::from(1.0 / 3.0);
    assert!(
        difference["p"].is_number() && difference["p_members"].as_f64() >= third.as_f64(),
        "{difference}"
    );
    let counted = p.tinylm(&["query", "table.parquet", "SELECT COUNT(*) AS n FROM self", "--format", "json"]);
    let rows = 2 * groups["figures"].as_array().unwrap().len();
    assert_eq!(counted.stdout.trim(), format!("{{\"n\":{rows}}}"), "{}", counted.stderr);
    let again = ["p:eval", "-o", "table.parquet"];
    refused(&p, &again, 2, &["table.parquet", "--force"]);
    assert_eq!(
        compared(&p, &[&again[..], &["--force"]].concat())["figures"][0]["rows"].as_array().unwrap().len(),
        4
    );

    // Of the documents that are evaluated here, the report has those held out: the same items, the same figures.
    let (report, model) = ("report=p:eval@seed=1,width=8", "here=p:model@seed=1,width=8");
    let both = compared(&p, &[report, model, "--docs", "p:docs"]);
    let difference = &both["figures"][0]["differences"][0];
    assert_eq!((&difference["value"], &difference["p"]), (&0.0.into(), &1.0.into()), "{both}");
    assert!(both["tasks"][0]["left_out"]["p:model@seed=1,width=8"].as_u64() > Some(0), "{both}");
    let text = p.tinylm(&["compare", report, "p:eval@seed=2,width=16"]);
    assert!(
        text.stdout.contains("differences from `report`") && text.stdout.contains("randomization"),
        "{}",
        text.stdout
    );
    let files =
        compared(&p, &[model, "--docs", "data/corpus/fables.txt", "--context", "16", "--stride", "4"]);
    assert!(files["figures"][0]["items"].as_u64() > Some(3), "{files}");

    refused(&p, &["p:model"], 2, &["none is named", "--docs"]);
    refused(&p, &["p:eval", "--context", "8"], 2, &["all targets are reports"]);
    refused(&p, &["p:docs"], 1, &["`p:docs` is neither a report of `eval` nor a model"]);
    refused(&p, &["p:eval", "nowhere"], 2, &["there is no `nowhere`"]);
    refused(&p, &["a=p:eval", "a=p:eval"], 2, &["two rows of the table are called `a`"]);
    refused(&p, &[model, "--docs", "p:docs", "--context", "64"], 2, &["p:model@seed=1,width=8", "context"]);
    refused(&p, &["p:eval", "-o", "table.csv"], 2, &["ends in neither .parquet nor .json"]);
    p.write("old/report.json", "{}");
    p.write("old/samples.jsonl", "");
    refused(&p, &["old", "p:eval"], 1, &["has no `items.parquet`", "anew"]);
}
