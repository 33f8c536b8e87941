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
