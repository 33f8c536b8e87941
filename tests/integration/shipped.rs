//! What the repository ships holds what it promises: pipelines validate, the schema accepts them, the
//! reference is complete.

use serde_json::Value;
use tinylm::base::yaml::{self, Limits};

use crate::project::Project;

fn yaml_files(folder: &str) -> Vec<(String, Value)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    paths
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .map(|p| {
            let text = std::fs::read_to_string(&p).unwrap();
            let name = p.file_name().unwrap().to_string_lossy().into_owned();
            (name.clone(), yaml::parse(&name, &text, Limits::default()).unwrap().to_json())
        })
        .collect()
}

#[test]
fn every_shipped_file_fits_the_schema_and_validates() {
    let project = Project::shipped();
    let schema: Value = serde_json::from_str(&project.tinylm(&["schema"]).stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let (pipelines, stages) = (yaml_files("pipelines"), yaml_files("stages"));
    assert!(!pipelines.is_empty() && !stages.is_empty());
    for (name, value) in pipelines.iter().chain(&stages) {
        let errors: Vec<String> = validator.iter_errors(value).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
    for (name, _) in &pipelines {
        let file = format!("pipelines/{name}");
        let mut args = vec!["validate".to_string(), file.clone()];
        for (_, variable, brought) in BROUGHT.iter().filter(|(pipeline, _, _)| pipeline == name) {
            let ran = project.tinylm(&["validate", &file]);
            let help = format!("`--set vars.{variable}=PATH`");
            assert!(ran.code == 2 && ran.stderr.contains(&help), "{name}: {}", ran.stderr);
            project.write(&format!("mine/{brought}"), "mine");
            args.extend(["--set".into(), format!("vars.{variable}=./mine/{brought}")]);
        }
        let ran = project.tinylm(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
    }
}

/// Pipelines of files that are not in the repository, the variables that name them, and a name that such a file has.
const BROUGHT: [(&str, &str, &str); 4] = [
    ("grammar.yaml", "corpus", "corpus.txt"),
    ("grammar.yaml", "pairs", "pairs.tsv"),
    ("import_stories260k.yaml", "checkpoint", "stories.bin"),
    ("import_stories260k.yaml", "tokenizer", "tok512.bin"),
];

#[test]
fn every_param_and_port_of_every_kind_is_documented() {
    let project = Project::shipped();
    let kinds: Value = serde_json::from_str(&project.tinylm(&["stages", "--format", "json"]).stdout).unwrap();
    let kinds = kinds.as_array().unwrap();
    assert!(kinds.len() >= 9);
    for kind in kinds {
        let name = kind["kind"].as_str().unwrap();
        for (param, schema) in kind["params"]["properties"].as_object().unwrap() {
            assert!(schema["description"].is_string(), "{name}: param {param} has no description");
        }
        for port in kind["inputs"].as_array().unwrap().iter().chain(kind["outputs"].as_array().unwrap()) {
            assert_ne!(port["description"], "", "{name}: port {} has no description", port["name"]);
        }
        assert!(project.tinylm(&["stages", name]).stdout.contains("params"));
    }
}

#[test]
fn shells_get_completions() {
    let project = Project::shipped();
    for shell in ["bash", "zsh", "fish"] {
        let ran = project.tinylm(&["completions", shell]);
        assert!(ran.code == 0 && ran.stdout.contains("validate"), "{shell}: {}", ran.stderr);
    }
}
