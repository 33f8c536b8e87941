//! What the README tells people to do with their own text, on very little of it.

use std::path::Path;

use crate::project::{Project, Ran};

/// A model and steps small enough for a test; what is set last wins.
const SMALL: [&str; 10] = [
    "--set",
    "vars.pretrain_steps=4",
    "--set",
    "vars.finetune_steps=4",
    "--set",
    "stages.base.params.d_model=16",
    "--set",
    "stages.base.params.n_head=2",
    "--set",
    "stages.base.params.n_layer=1",
];

/// The words behind `tinylm` of the command that the README shows below `heading`.
fn command_of_readme(heading: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(path).expect("the README");
    let below = readme.split_once(heading).expect("the heading").1;
    let block = below.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let words = block.replace("\\\n", " ").replace('\'', "");
    let words: Vec<String> = words.split_whitespace().map(str::to_string).collect();
    assert_eq!(words[0], "tinylm");
    words[1..].to_vec()
}

/// The README's command for one's own text on `documents` texts and as many chats.
fn bring_your_own(documents: usize) -> (Project, Ran) {
    let project = Project::shipped();
    let mut chats = String::new();
    for i in 0..documents {
        let text = format!("Tale {i}. A boat came to bay {i}. ").repeat(12);
        project.write(&format!("my/books/{i}.txt"), text);
        chats += &format!("{{\"prompt\": \"Where is boat {i}?\", \"completion\": \"In bay {i}.\"}}\n");
    }
    project.write("my/chats.jsonl", chats);
    let words = command_of_readme("**Bring your own text.**");
    let args: Vec<&str> = words.iter().map(String::as_str).chain(SMALL).collect();
    let ran = project.tinylm(&args);
    (project, ran)
}

#[test]
fn a_few_texts_of_ones_own_give_a_model_that_chats() {
    for documents in [2, 3, 6] {
        let (project, ran) = bring_your_own(documents);
        assert_eq!(ran.code, 0, "{documents} documents: {}", ran.stderr);
        let report = |stage: &str| -> serde_json::Value {
            let file = format!("artifacts/two_stage/{stage}/report/report.json");
            serde_json::from_str(&project.read(&file)).expect("JSON")
        };
        assert_eq!(report("base_report")["texts"], 1, "what `shard` held out is what `eval` scores");
        assert_eq!(report("report")["chats"]["texts"], 1);
        let answer = project.tinylm(&["generate", "--model", "two_stage:chat", "--prompt", "Where"]);
        assert!(answer.code == 0 && answer.stdout.starts_with("Where"), "{}", answer.stderr);
    }
}

#[test]
fn one_text_is_trained_on_and_it_is_said_that_nothing_is_held_out() {
    let (_project, ran) = bring_your_own(1);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for said in ["there are no two different texts", "`keep: best` keeps the weights of the last step"] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    let (before, after) = ran.stderr.split_once("nothing is held out: no validation loss").expect("said");
    assert!(!before.contains("parameters;"), "before the training: {before}");
    assert!(after.contains("documents are not scored"), "{after}");
}
