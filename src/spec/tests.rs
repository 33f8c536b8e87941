//! What a pipeline file may say, and what is said about one that is wrong.

use serde::{Deserialize, Serialize};

use super::*;
use crate::stage::{Connected, Context, FILES, Facts, Info, Issue, Kind, Port, erase};

/// A kind with one input of each sort, to test connections with.
struct Make;
struct Take;
/// A kind with an output for each of the `kept` steps.
struct Grow;

#[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Params {
    /// How many.
    size: u32,
    word: Option<String>,
}

fn info(name: &'static str, inputs: Vec<Port>, outputs: Vec<Port>) -> Info {
    Info {
        name,
        version: 1,
        summary: "",
        inputs,
        outputs,
        open: false,
        seeded: false,
        parallel: false,
        not_in_key: &[],
        not_in_state: &[],
        value_versions: &[],
    }
}

impl Kind for Make {
    type Params = Params;
    fn info() -> Info {
        let inputs = vec![Port::new("files", FILES, "").many().or_source(&[""])];
        info("make", inputs, vec![Port::new("apples", "apples", ""), Port::new("pears", "pears", "")])
    }
    fn facts(params: &Params, _: &Connected, _: &str) -> Facts {
        Facts::from([("size".to_string(), params.size.into())])
    }
    fn run(_: &Params, _: &Context) -> Result<()> {
        Ok(())
    }
}

impl Kind for Take {
    type Params = Params;
    fn info() -> Info {
        let inputs = vec![
            Port::new("fruit", "apples", ""),
            Port::new("more", "apples", "").many().optional(),
            Port::new("listed", "apples", "").optional().or_source(&[".json"]),
        ];
        info("take", inputs, vec![Port::new("out", "apples", "")])
    }
    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        match inputs.number("fruit", "size") {
            Some((up, size)) if size > u64::from(params.size) => {
                vec![Issue::input("fruit", format!("`{}` gives {size}, room for {}", up.label, params.size))]
            }
            _ => Vec::new(),
        }
    }
    fn run(_: &Params, _: &Context) -> Result<()> {
        Ok(())
    }
}

#[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct GrowParams {
    kept: Vec<u64>,
    without_roots: bool,
}

impl Kind for Grow {
    type Params = GrowParams;
    fn info() -> Info {
        info("grow", Vec::new(), vec![Port::new("tree", "apples", ""), Port::new("roots", "pears", "")])
    }
    fn outputs(params: &GrowParams) -> Vec<Port> {
        let mut ports = Self::info().outputs;
        ports.truncate(if params.without_roots { 1 } else { 2 });
        ports.extend(params.kept.iter().map(|step| Port::new(&format!("step-{step}"), "apples", "")));
        ports
    }
    fn facts(_: &GrowParams, _: &Connected, port: &str) -> Facts {
        Facts::from([("size".to_string(), port.len().into())])
    }
    fn run(_: &GrowParams, _: &Context) -> Result<()> {
        Ok(())
    }
}

fn kinds() -> Kinds {
    Kinds::new(vec![
        erase::<Make>(),
        erase::<Take>(),
        erase::<Grow>(),
        erase::<crate::kinds::command::Command>(),
    ])
}

fn load_with(text: &str, sets: &[&str]) -> Result<Pipeline> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pipelines/p.yaml");
    crate::base::fs::write(&file, text.as_bytes()).unwrap();
    let base = "kind: make\nparams: { size: 3, word: base }\n";
    crate::base::fs::write(&dir.path().join("stages/base.yaml"), base.as_bytes()).unwrap();
    let overrides = Overrides { sets: sets.iter().map(|s| s.to_string()).collect(), seed: None };
    super::load(&file, &kinds(), &overrides)
}

fn load(text: &str) -> Result<Pipeline> {
    load_with(text, &[])
}

/// Line, column and text of the first mistake.
fn mistake(text: &str) -> (usize, usize, String) {
    let error = load(text).unwrap_err();
    assert_eq!(error.fault(), crate::base::error::Fault::Usage, "{error}");
    let place = error.place().unwrap_or_else(|| panic!("no place: {error}")).clone();
    (place.line, place.column, error.to_string())
}

const GOOD: &str = "
name: p
seed: 7
vars: { file: data/a.txt, n: 4, both: '${vars.file}/${vars.n}' }
stages:
  take: { kind: take, inputs: { fruit: make }, params: { size: 9 } }
  make: { kind: make, inputs: { files: '${vars.file}' }, params: { size: '${vars.n}', word: 'x${vars.n}' } }
";

#[test]
fn stages_come_in_an_order_in_which_they_can_run() {
    let p = load(GOOD).unwrap();
    assert_eq!((p.name.as_str(), p.seed), ("p", 7));
    let names: Vec<_> = p.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["make", "take"]);
    assert_eq!(p.stages[0].params, serde_json::json!({"size": 4, "word": "x4"}));
    // Of two outputs the one whose type fits was taken.
    assert!(matches!(&p.stages[1].inputs["fruit"][0], Input::Stage { port, .. } if port == "apples"));
}

#[test]
fn overrides_reach_params_and_variables_and_are_remembered() {
    let p = load_with(GOOD, &["vars.n=5", "stages.take.params.size=10"]).unwrap();
    assert_eq!(p.stages[0].params["size"], 5);
    assert_eq!(p.stages[1].params["size"], 10);
    assert_eq!(p.overrides.len(), 2);
    let glob = load_with(GOOD, &["stages.make.params.word=*.txt"]).unwrap();
    assert_eq!(glob.stages[0].params["word"], "*.txt");
    for word in ["a #c", "# c", "&a b", "1.10 or so", "x: 1"] {
        let set = format!("stages.make.params.word={word}");
        match load_with(GOOD, &[&set]) {
            Ok(p) => assert_eq!(p.stages[0].params["word"], word),
            // A map is YAML's, and no text.
            Err(e) => {
                assert!(word == "x: 1" && e.to_string().contains("expected a text, found a map"), "{e}")
            }
        }
    }
    let quoted = load_with(GOOD, &["stages.make.params.word='7' # seven", "vars.n=0x8"]).unwrap();
    assert_eq!(quoted.stages[0].params, serde_json::json!({"size": 8, "word": "7"}));
    let text = |set: &str| load_with(GOOD, &[set]).unwrap_err().to_string();
    assert!(text("stages.tke.params.size=1").contains("did you mean `take`"));
    assert!(text("vars.m=1").contains("the pipeline has no variable `m`"));
    assert!(text("stages.take.params.sise=1").contains("did you mean `size`"));
    assert!(text("size=1").contains("begins with none of"));
    assert!(text("vars.n").contains("there is no `=`"));
}

#[test]
fn a_used_stage_file_is_overridden_key_by_key() {
    let p = load("stages:\n  m: { use: stages/base.yaml, inputs: { files: data/x }, params: { size: 8 } }")
        .unwrap();
    assert_eq!(p.stages[0].params, serde_json::json!({"size": 8, "word": "base"}));
    let (line, column, text) = mistake("stages:\n  m: { use: stages/nope.yaml }");
    assert_eq!((line, column), (2, 13));
    assert!(text.contains("cannot read the stage file `stages/nope.yaml`"), "{text}");
}

#[test]
fn a_matrix_is_named_by_value_and_carries_on() {
    let p = load(
        "
stages:
  make: { kind: make, inputs: { files: data/x }, matrix: { size: [1, 2] } }
  take: { kind: take, inputs: { fruit: make }, matrix: { word: [a] }, params: { size: 9 } }
  all: { kind: take, inputs: { fruit: make@size=2, more: [make] }, params: { size: 9 } }
",
    )
    .unwrap();
    let names: Vec<_> = p.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["make@size=1", "make@size=2", "take@size=1,word=a", "take@size=2,word=a", "all"]);
    assert_eq!(p.stage("make@size=2").unwrap().params["size"], 2);
    assert_eq!(p.stage("take@size=1,word=a").unwrap().params["word"], "a");
    assert_eq!(p.stage("all").unwrap().inputs["more"].len(), 2);
    assert_eq!(p.select("take").unwrap().len(), 2);
    assert_eq!(p.closure(&["take@size=1,word=a".into()]).unwrap().len(), 2);
}

#[test]
fn values_in_texts_and_names_are_as_written() {
    let p = load(
        "
vars: { n: 007, all: '${vars.n}', id: 'run-${vars.n}/${vars.all}-${vars.hex}' }
stages:
  make: { kind: make, inputs: { files: data/x }, matrix: { v: [1.1, 1.10, 1e3] }, params: { size: '${vars.n}', word: 'v${matrix.v}-${vars.id}' } }
  take: { kind: take, inputs: { fruit: make }, params: { size: 9 } }
"
        .replace("all:", "hex: 0x1F, all:")
        .as_str(),
    )
    .unwrap();
    let names: Vec<_> = p.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["make@v=1.1", "make@v=1.10", "make@v=1e3", "take@v=1.1", "take@v=1.10", "take@v=1e3"]);
    assert_eq!(p.stages[1].params, serde_json::json!({"size": 7, "word": "v1.10-run-007/007-0x1F"}));
    assert!(matches!(&p.stages[4].inputs["fruit"][0], Input::Stage { stage, .. } if stage == "make@v=1.10"));
    let (_, _, text) =
        mistake("stages:\n  m: { kind: make, inputs: { files: ./x }, matrix: { size: [1.0, '1.0'] } }");
    assert!(text.contains("`1.0` stands twice"), "{text}");
}

#[test]
fn outputs_depend_on_params_and_checkpoints_are_meant_only_by_name() {
    let text = "
stages:
  base: { kind: grow, matrix: { without_roots: [false, true] }, params: { kept: [1000, 500] } }
  last: { kind: take, inputs: { fruit: base, more: base.step-500 }, params: { size: 9 } }
  first: { kind: take, inputs: { fruit: base@without_roots=true.step-1000 }, params: { size: 9 } }
";
    let p = load(text).unwrap();
    let base = p.stage("base@without_roots=false").unwrap();
    assert_eq!(base.output_names(), ["tree", "roots", "step-500", "step-1000"]);
    assert_eq!(p.stage("base@without_roots=true").unwrap().output_names(), ["tree", "step-500", "step-1000"]);
    let port = |stage: &str, port: &str| match &p.stage(stage).unwrap().inputs[port][0] {
        Input::Stage { port, .. } => port.clone(),
        Input::Source(source) => source.text.clone(),
    };
    // Three outputs of its type, of which one is the stage's main one.
    assert_eq!(port("last@without_roots=false", "fruit"), "tree");
    assert_eq!(port("last@without_roots=true", "more"), "step-500");
    assert_eq!(port("first", "fruit"), "step-1000");
    let (line, column, message) = mistake(&text.replace("more: base.step-500", "more: base.step-50"));
    assert_eq!((line, column), (4, 52), "{message}");
    assert!(message.contains("did you mean `step-500`"), "{message}");
    assert!(message.contains("its outputs are `tree`, `roots`, `step-500`, `step-1000`"), "{message}");
    let (.., message) = mistake(&text.replace("true.step-1000", "true.roots"));
    assert!(message.contains("has no output port `roots`"), "{message}");
    // Facts are known of each checkpoint.
    let (.., message) = mistake(&text.replace(
        "base@without_roots=true.step-1000 }, params: { size: 9",
        "base@without_roots=true.step-500 }, params: { size: 7",
    ));
    assert!(message.contains("gives 8, room for 7"), "{message}");
}

#[test]
fn a_stage_whose_params_are_wrong_has_the_outputs_that_others_need() {
    let text = "
stages:
  base: { kind: grow, params: { kept: [a] } }
  user: { kind: take, inputs: { fruit: base.step-5, more: base }, params: { size: 9 } }
";
    let error = load(text).unwrap_err().to_string();
    assert!(error.contains("found `a`") || error.contains("found the text"), "{error}");
    assert!(!error.contains("step-5"), "{error}");
}

#[test]
fn an_axis_that_changes_nothing_is_a_mistake() {
    let (line, _, text) =
        mistake("stages:\n  m: { kind: make, inputs: { files: ./x }, matrix: { sise: [1] } }");
    assert!(line == 2 && text.contains("the axis `sise` changes nothing"), "{text}");
}

#[test]
fn every_mistake_is_found_at_its_place() {
    let cases: &[(&str, usize, usize, &str)] = &[
        ("stage: {}", 1, 1, "did you mean `stages`"),
        ("stages:\n  a: { kind: mke }", 2, 14, "did you mean `make`"),
        ("stages:\n  a: { knd: make }", 2, 8, "did you mean `kind`"),
        ("stages:\n  a: { kind: make, inputs: { file: ./x } }", 2, 30, "did you mean `files`"),
        ("stages:\n  a: { kind: make }", 2, 3, "lacks its input `files`"),
        (
            "stages:\n  a: { kind: make, inputs: { files: ./x }, params: { size: big } }",
            2,
            60,
            "expected a whole number from 0 to",
        ),
        (
            "stages:\n  a: { kind: make, inputs: { files: ./x }, params: { sizes: 1 } }",
            2,
            54,
            "did you mean `size`",
        ),
        (
            "stages:\n  a: { kind: take, inputs: { fruit: b } }\n  b: { kind: take, inputs: { fruit: a } }",
            2,
            3,
            "wait for each other: `a` needs `b` needs `a`",
        ),
        (
            "stages:\n  a: { kind: make, inputs: { files: ./x } }\n  b: { kind: take, inputs: { fruit: a.pears } }",
            3,
            37,
            "is of type pears",
        ),
        (
            "stages:\n  a: { kind: make, inputs: { files: ./x } }\n  b: { kind: take, inputs: { fruit: a.aples } }",
            3,
            37,
            "did you mean `apples`",
        ),
        (
            "stages:\n  a: { kind: make, inputs: { files: ./x } }\n  b: { kind: take, inputs: { fruit: aa } }",
            3,
            37,
            "there is no stage `aa`",
        ),
        ("stages:\n  a: { kind: take, inputs: { fruit: ./x.json } }", 2, 37, "takes what a stage made"),
        (
            "stages:\n  a: { kind: make, inputs: { files: ./x }, params: { size: 4 } }\n  b: { kind: take, inputs: { fruit: a } }",
            3,
            37,
            "gives 4, room for 0",
        ),
        (
            "vars: { a: 1 }\nstages:\n  a: { kind: make, inputs: { files: '${vars.b}' } }",
            3,
            37,
            "there is no `vars.b`",
        ),
        ("stages:\n  a: { kind: make, inputs: { files: '${home}' } }", 2, 37, "refers to nothing"),
        ("stages:\n  a: { kind: make, inputs: { files: 'http://x/y' } }", 2, 37, "a URL needs the sha256"),
        (
            "stages:\n  a: { kind: make, inputs: { files: { url: 'http://x/y', sha256: 12 } } }",
            2,
            66,
            "expected a text",
        ),
        (
            "stages:\n  a: { kind: make, inputs: { files: { url: 'http://x/y', sha256: '12' } } }",
            2,
            66,
            "is not a sha256",
        ),
        ("name: a b\nstages: {}", 1, 7, "cannot be the name of a pipeline"),
        ("seed: -1\nstages: {}", 1, 7, "expected a whole number, 0 or more"),
        ("resources: { memory: lots }\nstages: {}", 1, 22, "is not an amount of memory"),
        ("stages:\n  a/b: { kind: make }", 2, 3, "cannot be the name of a stage"),
        ("stages:\n  a: { kind: make, inputs: { files: ./x }, outputs: { x: file } }", 2, 53, "are fixed"),
        (
            "stages:\n  a: { kind: command, outputs: { x: fil }, params: { command: [x] } }",
            2,
            37,
            "did you mean `file`",
        ),
        ("stages:\n  a: { kind: command, params: { command: [x] } }", 2, 6, "declares no outputs"),
        (
            "stages:\n  a: { kind: command, outputs: { x: file }, params: { command: ['${inputs.y}'] } }",
            2,
            65,
            "there is no input `y`",
        ),
        ("stages: [a]", 1, 9, "`stages` is a map"),
    ];
    for (text, line, column, part) in cases {
        let (l, c, message) = mistake(text);
        assert!(message.contains(part), "{text}\ngave: {message}");
        assert_eq!((l, c), (*line, *column), "{text}\ngave: {message}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let error = load("stages:\n  a: { kind: mke }\n  b: { kind: tke }").unwrap_err().to_string();
    assert!(error.contains("`mke`") && error.contains("`tke`"), "{error}");
}

#[test]
fn the_schema_accepts_what_the_loader_accepts_and_refuses_typos() {
    let schema = super::schema::schema(&kinds());
    let validator = jsonschema::validator_for(&schema).unwrap();
    let json = |text: &str| yaml::parse("t", text, Limits::default()).unwrap().to_json();
    let good = "stages:\n  a: { kind: make, inputs: { files: [./x] }, params: { size: 3 } }\n  b: { use: stages/x.yaml }";
    assert!(validator.is_valid(&json(good)), "{:?}", validator.iter_errors(&json(good)).collect::<Vec<_>>());
    assert!(validator.is_valid(&json("kind: make\nparams: { size: 1 }")));
    for bad in [
        "stages:\n  a: { kind: mke }",
        "stages:\n  a: { kind: make, inputs: { files: ./x }, params: { sizes: 3 } }",
        "stages:\n  a: { kind: make, inputs: { file: ./x } }",
        "stages:\n  a: { kind: make }",
        "stage: {}",
        "kind: make\nparam: {}",
    ] {
        assert!(!validator.is_valid(&json(bad)), "{bad}");
    }
}
