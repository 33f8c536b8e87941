//! What a pipeline file says and what the program makes of it: spellings, names, mistakes.

use crate::project::{Project, stage, statuses, verdicts};

#[test]
fn numbers_in_texts_and_names_stay_as_they_are_written() {
    let text = r#"
vars: { id: 007, version: 1.10, mask: 0x1F, rate: 1e3, note: none }
stages:
  say:
    kind: command
    matrix: { lr: [1e-3, 0.0010] }
    outputs: { t: file }
    params: { command: [sh, -c, "echo '${vars.id} ${vars.version} ${vars.mask} ${vars.rate} ${vars.note} ${matrix.lr}' > ${outputs.t}"] }
"#;
    let p = Project::new(text);
    assert_eq!(statuses(&p.run(&[])), ["say@lr=1e-3=ran", "say@lr=0.0010=ran"]);
    assert_eq!(p.read("artifacts/p/say@lr=1e-3/t/t"), "007 1.10 0x1F 1e3 none 1e-3\n");
    p.run(&["--set", "vars.note=a #c", "--set", "vars.id=+08"]);
    assert_eq!(p.read("artifacts/p/say@lr=0.0010/t/t"), "+08 1.10 0x1F 1e3 a #c 0.0010\n");
}

#[test]
fn the_spelling_of_a_number_is_not_part_of_a_typed_param() {
    let p = Project::new(
        "vars: { n: 12 }\nstages:\n  s:\n    kind: synthesize\n    inputs: { templates: data/t.yaml }\n    params: { documents: '${vars.n}', conversations: 0 }\n",
    );
    p.write("data/t.yaml", "documents:\n  - { name: a, text: 'Hello.' }\n");
    let key = |args: &[&str]| stage(&p.plan(args), "s")["key"].clone();
    assert!(key(&[]).is_string());
    assert_eq!(key(&[]), key(&["--set", "vars.n=0xC"]));
    assert_eq!(key(&[]), key(&["--set", "stages.s.params.documents=012"]));
}

#[test]
fn a_file_with_brackets_in_its_name_is_found_or_how_to_write_it_is_said() {
    let text = "
stages:
  a: { kind: command, inputs: { t: 'data/a[1].txt' }, outputs: { t: file }, params: { command: [cp, '${inputs.t}', '${outputs.t}'] } }
";
    let p = Project::new(text);
    p.write("data/b1.txt", "matched by nothing\n");
    let refused = p.tinylm(&["plan", "p"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("no file matches `data/a[1].txt`"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`[[]`"), "{}", refused.stderr);
    p.write("data/a1.txt", "by the set\n");
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/a/t/t"), "by the set\n");
    p.write("data/a[1].txt", "by its name\n");
    assert_eq!(verdicts(&p.plan(&[])), ["a=run"]);
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/a/t/t"), "by its name\n");
    p.write("pipelines/p.yaml", text.replace("a[1].txt", "a[[]?].*"));
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/a/t/t"), "by its name\n");
    p.write("pipelines/p.yaml", text.replace("a[1]", "c[1"));
    let refused = p.tinylm(&["plan", "p"]);
    assert!(refused.code == 2 && refused.stderr.contains("`[[]`"), "{}", refused.stderr);
}

/// A pipeline `s` that says `word`; its name is the same for all.
fn says(word: &str) -> String {
    format!(
        "name: one\nstages:\n  s: {{ kind: command, outputs: {{ t: file }}, params: {{ command: [sh, -c, 'echo {word} > ${{outputs.t}}'] }} }}\n"
    )
}

#[test]
fn two_pipelines_of_one_name_keep_their_results_apart() {
    let p = Project::new(&says("first"));
    p.write("pipelines/q.yaml", says("second"));
    p.run(&[]);
    let other = p.tinylm(&["inspect", "q:s"]);
    assert!(other.code == 1 && other.stderr.contains("the stage `s` of `q` never ran"), "{}", other.stderr);
    assert_eq!(p.tinylm(&["run", "q"]).code, 0);
    assert_eq!(p.read("artifacts/p/s/t/t"), "first\n");
    assert_eq!(p.read("artifacts/q/s/t/t"), "second\n");
    for (target, word) in [("p:s", "first"), ("q:s", "second"), ("pipelines/p.yaml:s.t", "first")] {
        let shown = p.tinylm(&["inspect", target]);
        assert!(shown.code == 0 && shown.stdout.contains(word), "{}{}", shown.stdout, shown.stderr);
    }
    // One of the other is not taken for a change of one's own.
    assert!(p.tinylm(&["why", "q", "s"]).stdout.contains("there is no earlier action"));
}

#[test]
fn two_files_that_would_share_a_folder_of_results_are_refused() {
    let p = Project::new(&says("first"));
    p.run(&[]);
    p.write("p.yml", "just: some file\n");
    p.run(&[]);
    p.write("p.yml", says("second"));
    for file in ["p", "p.yml"] {
        let refused = p.tinylm(&["plan", file]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains("in one folder, `artifacts/p`"), "{}", refused.stderr);
    }
    p.write("pipelines/store.yaml", says("third"));
    let refused = p.tinylm(&["plan", "store"]);
    assert!(refused.code == 2 && refused.stderr.contains("rename the file"), "{}", refused.stderr);
}

#[test]
fn a_target_is_a_stage_that_the_pipeline_has_now() {
    let p = Project::new(&says("first"));
    p.run(&[]);
    p.write("pipelines/p.yaml", says("first").replace("  s:", "  r:"));
    let gone = p.tinylm(&["inspect", "p:s"]);
    assert!(gone.code == 2 && gone.stderr.contains("has no stage `s`"), "{}", gone.stderr);
    assert!(gone.stderr.contains("its stages are `r`"), "{}", gone.stderr);
    let gone = p.tinylm(&["inspect", "p:s.t"]);
    assert!(gone.code == 2 && gone.stderr.contains("has no stage `s`"), "{}", gone.stderr);
    // An output that was renamed has no artifact until the stage runs.
    p.write(
        "pipelines/p.yaml",
        says("first").replace("{ t: file", "{ u: file").replace("outputs.t", "outputs.u"),
    );
    let gone = p.tinylm(&["inspect", "p:s.t"]);
    assert!(gone.code == 2 && gone.stderr.contains("has no output `t`"), "{}", gone.stderr);
    let gone = p.tinylm(&["inspect", "p:s"]);
    assert!(
        gone.code == 1 && gone.stderr.contains("has not run since it has the output `u`"),
        "{}",
        gone.stderr
    );
}

#[test]
fn a_target_among_the_stages_of_a_matrix_is_named_whole() {
    let text = "
stages:
  m: { kind: command, matrix: { v: [0.5, 1.50] }, outputs: { t: file, u: file }, params: { command: [sh, -c, 'echo v${matrix.v} > ${outputs.t}; echo > ${outputs.u}'] } }
";
    let p = Project::new(text);
    p.run(&[]);
    let shown = p.tinylm(&["inspect", "p:m@v=1.50.t"]);
    assert!(shown.code == 0 && shown.stdout.contains("v1.50"), "{}{}", shown.stdout, shown.stderr);
    let refused = |target: &str| p.tinylm(&["inspect", target]).stderr;
    assert!(refused("p:m@v=1.50").contains("`m@v=1.50` has several outputs"));
    assert!(refused("p:m").contains("write one of `m@v=0.5`, `m@v=1.50`"));
    assert!(refused("p:m@v=0.6.t").contains("has no stage `m@v=0.6.t`"));
    // As long as it was in the file, it had a name.
    p.write("pipelines/p.yaml", text.replace("1.50", "1.5"));
    assert!(refused("p:m@v=1.50.t").contains("has no stage `m@v=1.50.t`"));
}

#[test]
fn what_no_file_system_or_program_takes_is_found_in_the_plan() {
    let stage = |name: &str, more: &str, word: &str| {
        format!(
            "stages:\n  {name}: {{ kind: command, {more} outputs: {{ t: file }}, params: {{ command: [sh, -c, '{word}'] }} }}\n"
        )
    };
    let refused = |text: &str| {
        let p = Project::new(text);
        let plan = p.tinylm(&["plan", "p"]);
        assert!(plan.code == 2 && !p.path("artifacts").exists(), "{}{}", plan.stdout, plan.stderr);
        plan.stderr
    };
    let value = "v".repeat(150);
    let long =
        refused(&stage("a", &format!("matrix: {{ x: [{value}], y: [{value}] }},"), "${matrix.x}${matrix.y}"));
    assert!(long.contains("has 307 bytes, at most 200") && long.contains("pipelines/p.yaml:2:3"), "{long}");
    assert!(long.contains("shorten the names of the axes"), "{long}");
    let long = refused(&stage(&"a".repeat(201), "", "true"));
    assert!(long.contains("has 201 bytes, at most 200"), "{long}");
    if cfg!(target_os = "linux") {
        let long = refused(&stage("a", "", &": ".repeat(70_000)));
        assert!(long.contains("`command.2`: this has 140000 bytes"), "{}", &long[..long.len().min(2000)]);
        assert!(long.contains("make it an input"));
    }
    // What is just not too long is made and shown.
    let p = Project::new(&stage(&"a".repeat(200), "", "echo > ${outputs.t}"));
    p.run(&[]);
    assert!(p.path(&format!("artifacts/p/{}/t/t", "a".repeat(200))).exists());
}
