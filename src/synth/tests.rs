//! The room as a whole: the reference's own example, every mistake with its place, and the template
//! files that the repository ships.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::domain::Domain;
use super::generate::{Request, Shortage, conversations, documents};
use super::load;
use crate::base::{Quiet, fs};
use crate::corpus::conversation::{Message, Role};

fn request(items: u64, unique: bool) -> Request {
    Request {
        items,
        unique,
        max_redraws: 100,
        on_shortage: Shortage::Fail,
        max_turns: 4,
        weights: Default::default(),
    }
}

/// Texts of the documents, and of the conversations with one line a message.
fn draw(domain: &[Domain], items: u64, unique: bool) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut chats) = (Vec::new(), Vec::new());
    let request = request(items, unique);
    if domain.iter().any(|d| !d.documents.is_empty()) {
        documents(domain, &request, 42, &Quiet, &mut |d| {
            texts.push(d.text);
            Ok(())
        })
        .unwrap();
    }
    if domain.iter().any(|d| !d.conversations.is_empty()) {
        conversations(domain, &request, 42, &Quiet, &mut |c| {
            let lines: Vec<String> =
                c.messages.iter().map(|m| format!("{}: {}", m.role.as_str(), m.content)).collect();
            chats.push(lines.join("\n"));
            Ok(())
        })
        .unwrap();
    }
    (texts, chats)
}

/// The first YAML in a text of documentation.
fn example(docs: &str) -> String {
    let lines = docs.lines().map(|l| l.strip_prefix("//!").map_or(l, |l| l.strip_prefix(' ').unwrap_or(l)));
    let yaml: Vec<&str> =
        lines.skip_while(|l| *l != "```yaml").skip(1).take_while(|l| !l.starts_with("```")).collect();
    yaml.join("\n")
}

#[test]
fn the_example_of_the_guide_works() {
    let domain = load("guide.yaml", &example(include_str!("../../data/templates/README.md"))).unwrap();
    assert_eq!(domain.warnings, []);
    let (texts, chats) = draw(&[domain], 50, false);
    assert!(texts.contains(&"An owl met a cow. The owl hoots.".into()), "{texts:#?}");
    assert!(chats.contains(&"user: What does the cow do?\nassistant: The cow moos.".into()), "{chats:#?}");
}

#[test]
fn the_example_of_the_reference_does_what_it_says() {
    let domain = load("reference.yaml", &example(include_str!("mod.rs"))).unwrap();
    assert_eq!(domain.warnings, []);
    let (texts, chats) = draw(&[domain], 200, false);
    assert!(texts.iter().any(|t| t.starts_with("Anna met an owl. She was ")), "{texts:#?}");
    assert!(texts.iter().any(|t| t.contains("and the cat are friends.\n\n")), "{texts:#?}");
    assert!(chats.iter().any(|c| c.starts_with("system: You know animals.\nuser: ")), "{chats:#?}");
    for chat in &chats {
        for (animal, sound) in [("cat", "meows"), ("owl", "hoots")] {
            assert_eq!(chat.contains(&format!("the {animal}")), chat.contains(sound), "{chat}");
        }
    }
}

/// The error that `text` gives, as a user sees it.
fn error(text: &str) -> String {
    load("t.yaml", text).expect_err(text).to_string()
}

#[test]
fn every_mistake_is_named_at_its_place() {
    let slots = "slots:\n  animal: [{value: cat, sound: meows}, {value: owl, sound: hoots}]\n";
    let doc = |text: &str| format!("{slots}documents:\n  - {{name: t, text: {text}}}\n");
    let chat = |turn: &str| format!("conversations:\n  - name: t\n    turns:\n      - {turn}\n");
    let mut wrong = Vec::new();
    for (text, place, says) in [
        (doc("'a {anmal} b'"), "t.yaml:4:25", "did you mean `animal`?"),
        (doc("\"a {animal.sond}\""), "t.yaml:4:25", "did you mean `sound`?"),
        (doc("'{animal|capitalise}'"), "t.yaml:4:30", "did you mean `capitalize`?"),
        (doc("'a {animal.3}'"), "t.yaml:4:25", "has 2"),
        (doc("'a [b|c'"), "t.yaml:4:24", "never closed"),
        (doc("[]"), "t.yaml:4:21", "empty list"),
        (doc("'[?perhaps]'"), "t.yaml:4:5", "can come out empty"),
        (doc("{some: [a, b], count: 3}"), "t.yaml:4:43", "from 1 to 2"),
        (doc("{one: [a, b], chance: 1.5}"), "t.yaml:4:43", "at most 1"),
        (doc("x, wieght: 2"), "t.yaml:4:24", "did you mean `weight`?"),
        (doc("x, weight: -2"), "t.yaml:4:32", "must not be negative"),
        (doc("x, weight: 0"), "t.yaml:4:3", "has a weight above 0"),
        ("domain: x\n".into(), "t.yaml:1:1", "makes nothing"),
        (
            "slots: {a: ['{b}'], b: ['{a}']}\ndocuments: [{name: t, text: '{a}'}]".into(),
            "t.yaml:1:9",
            "a -> b -> a",
        ),
        ("slots: {a: []}\n".into(), "t.yaml:1:12", "empty list"),
        ("slots: {a: ['']}\n".into(), "t.yaml:1:13", "must not be empty"),
        ("slots: {a: [{value: x, weight: -1}]}\n".into(), "t.yaml:1:32", "must not be negative"),
        ("slots: {a: [{value: x, weight: 0}]}\n".into(), "t.yaml:1:12", "no value in this list has a weight"),
        ("slots: {a: [{value: x, b: y}, z]}\n".into(), "t.yaml:1:31", "lacks the attribute `b`"),
        ("slots: {Big: [x]}\n".into(), "t.yaml:1:9", "cannot be the name of a slot"),
        ("slots: {a: [true]}\n".into(), "t.yaml:1:13", "in quotes"),
        ("slots: {a: {columns: [value, b], rows: [[x]]}}\n".into(), "t.yaml:1:41", "1 cells"),
        ("slots: {a: {columns: [b], rows: [[x]]}}\n".into(), "t.yaml:1:22", "must be called `value`"),
        ("slots: {n: {from: 5, to: 1}}\n".into(), "t.yaml:1:12", "the range from 5 to 1"),
        (chat("{user: hello, asistant: hi}"), "t.yaml:4:23", "did you mean `assistant`?"),
        (chat("{user: hello}"), "t.yaml:4:9", "the user gets no answer"),
        (chat("{assistant: hello}"), "t.yaml:4:9", "answers nobody"),
        (chat("{user: '[?a]', assistant: b}"), "t.yaml:4:16", "can come out empty"),
        (chat("{user: a, assistant: b, chance: 0.5}"), "t.yaml:4:7", "can come out empty"),
        (
            chat("{exchange: by}\nexchanges: {bye: {user: a, assistant: b}}"),
            "t.yaml:4:20",
            "did you mean `bye`?",
        ),
        (
            "categories: {story: 1}\ndocuments: [{name: t, category: storys, text: x}]".into(),
            "t.yaml:2:33",
            "did you mean `story`?",
        ),
        (
            "documents: [{name: t, text: x}, {name: t, text: y}]".into(),
            "t.yaml:1:33",
            "the name of two templates",
        ),
        ("documents: [{name: t, text: x}\n".into(), "t.yaml:", "this is not YAML"),
    ] {
        let error = error(&text);
        if !error.contains(&format!("--> {place}")) || !error.contains(says) {
            wrong.push(format!("{text}\n{error}\nwanted {place}: {says}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn several_mistakes_are_reported_at_once() {
    let error = error("documents:\n  - {name: a, text: '{x}'}\n  - {name: b, text: '{y}'}\n");
    assert!(error.contains("`x`") && error.contains("`y`"), "{error}");
}

#[test]
fn what_was_written_in_vain_is_a_warning() {
    let text = "
slots: {a: [x, x], b: ['{c}'], c: [y]}
documents: [{name: t, text: '{a}'}]
exchanges: {bye: {user: a, assistant: b}}
";
    let warnings = load("t.yaml", text).unwrap().warnings;
    let all: Vec<String> =
        warnings.iter().map(|w| format!("{}:{}:{} {}", w.file, w.line, w.column, w.message)).collect();
    assert_eq!(
        all,
        [
            "t.yaml:2:16 \"x\" stands twice in this list (first on line 2)",
            "t.yaml:4:13 the exchange `bye` is never used",
            "t.yaml:2:20 the slot `b` is never used",
            "t.yaml:2:32 the slot `c` is never used",
        ]
    );
}

#[test]
fn values_that_come_out_the_same_are_not_two() {
    let text = "
slots: {c: [red], a: [red, '{c}']}
documents: [{name: t, text: '{a} {a.2}'}]
";
    let domain = [load("t.yaml", text).unwrap()];
    let error = documents(&domain, &request(1, true), 1, &Quiet, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("no further value") && error.contains("t.yaml:2:19"), "{error}");
}

#[test]
fn numbers_among_texts_stay_as_they_are_written() {
    let text = "slots: {agent: [007]}\ndocuments: [{name: a, text: 'Agent {agent} came.'}]\n";
    assert_eq!(draw(&[load("t.yaml", text).unwrap()], 1, true).0, ["Agent 007 came."]);
}

#[test]
fn values_that_double_each_other_are_refused() {
    let tower = |levels: usize, value: &str| {
        let slots: String = (0..levels)
            .map(|i| format!("  s{i}: ['{}']\n", value.replace('#', &format!("s{}", i + 1))))
            .collect();
        format!("slots:\n{slots}  s{levels}: [x, y]\ndocuments: [{{name: t, text: '{{s0}}'}}]\n")
    };
    let error = error(&tower(20_000, "{#}"));
    assert!(error.contains("more than 32 deep"), "{error}");
    let doubling = [load("t.yaml", &tower(25, "{any:#}{any:#}")).unwrap()];
    let error = documents(&doubling, &request(1, true), 1, &Quiet, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("one item takes more than"), "{error}");
}

#[test]
fn counting_ends_where_exchanges_multiply() {
    let names: Vec<String> = (0..200).map(|i| format!("e{i}")).collect();
    let any = format!("{{exchange: [{}]}}", names.join(", "));
    let exchanges: String =
        names.iter().map(|n| format!("  {n}: {{user: a, assistant: b, then: {any}}}\n")).collect();
    let text = format!("conversations: [{{name: t, turns: [{any}]}}]\nexchanges:\n{exchanges}");
    let domain = [load("t.yaml", &text).unwrap()];
    let report = conversations(&domain, &request(0, true), 1, &Quiet, &mut |_| Ok(())).unwrap();
    assert!(report.domains[0].space.log10 > 4.0, "{report:?}");
}

proptest! {
    #[test]
    fn any_file_loads_or_fails_with_a_message(text in "(slots|documents|name|text|a|b|user|:|: |\n|  |- |\\[|\\]|\\{|\\}|,|'|\\||[0-9]){0,40}") {
        if let Err(error) = load("t.yaml", &text) {
            prop_assert!(!error.message().is_empty());
            prop_assert!(error.place().is_some(), "{error}");
        }
    }
}

/// The template files of the repository.
fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/templates");
    let mut files = fs::files_below(&folder).unwrap();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    assert!(files.len() >= 3, "{files:?}");
    files
}

#[test]
fn shipped_files_load_without_warnings_and_are_rich() {
    for file in shipped() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let domain = [load(&name, &fs::read_text(&file).unwrap()).unwrap_or_else(|e| panic!("{e}"))];
        assert_eq!(domain[0].warnings, [], "{name}");
        let (none, quiet) = (request(0, true), &Quiet);
        let spaces = [
            documents(&domain, &none, 1, quiet, &mut |_| Ok(())).unwrap().domains[0].space.clone(),
            conversations(&domain, &none, 1, quiet, &mut |_| Ok(())).unwrap().domains[0].space.clone(),
        ];
        for space in spaces {
            assert!(space.log10 > 6.0, "{name}: {space:?}");
        }
        let (texts, chats) = draw(&domain, 2000, false);
        for (what, all) in [("documents", texts), ("conversations", chats)] {
            let distinct = all.iter().collect::<HashSet<_>>().len();
            assert!(distinct >= 1940, "{name}: {distinct} different {what} of 2000");
            for text in &all {
                reads_well(text);
            }
        }
    }
}

/// What a slip in a template looks like in its output.
fn reads_well(text: &str) {
    for flaw in
        ["  ", " .", " ,", " ?", " !", "..", ",,", ".,", "{", "}", "[", "]", "|", " a a ", " the the "]
    {
        assert!(!text.contains(flaw), "{flaw:?} in: {text}");
    }
    for line in text.lines().filter(|l| !l.is_empty()) {
        let line = line
            .split_once(": ")
            .filter(|(role, _)| ["system", "user", "assistant"].contains(role))
            .map_or(line, |(_, l)| l);
        let first = line.chars().next().unwrap();
        assert!(!first.is_lowercase(), "begins small: {line}");
        assert!(line.ends_with(['.', '!', '?', '"']), "does not end: {line}");
        let mut sentences = line.split(['.', '!', '?']).skip(1).filter_map(|s| s.strip_prefix(' '));
        assert!(!sentences.any(|s| s.starts_with(char::is_lowercase)), "a sentence begins small: {line}");
    }
}

#[test]
fn shipped_chats_and_texts_are_whole() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let (mut chats, mut bytes) = (0, 0);
    for file in fs::files_below(&data.join("chats")).unwrap() {
        for line in fs::read_text(&file).unwrap().lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
            let said: Vec<Role> = messages.iter().map(|m| m.role).filter(|r| *r != Role::System).collect();
            let turns = said.chunks(2).all(|pair| pair == [Role::User, Role::Assistant]);
            assert!(turns && !said.is_empty(), "{line}");
            messages.iter().for_each(|m| reads_well(&m.content));
            chats += 1;
        }
    }
    for file in fs::files_below(&data.join("corpus")).unwrap() {
        for document in fs::read_text(&file).unwrap().split("<|endoftext|>") {
            let (title, body) = document.trim().split_once("\n\n").unwrap();
            assert!(!title.contains('\n') && body.len() > 400, "{title}");
            body.lines().filter(|l| !l.is_empty()).for_each(reads_well);
            bytes += document.len();
        }
    }
    assert!(chats >= 100 && bytes >= 30_000, "{chats} conversations, {bytes} bytes of text");
}

/// Prints what a domain gives, for whoever edits the templates:
/// `TINYLM_SAMPLE=english cargo test --release --lib -- --ignored --nocapture samples`.
#[test]
#[ignore = "prints samples to read"]
fn samples() {
    let wanted = std::env::var("TINYLM_SAMPLE").unwrap_or_default();
    for file in shipped().into_iter().filter(|f| f.to_string_lossy().contains(&wanted)) {
        let domain =
            [load(&file.to_string_lossy(), &fs::read_text(&file).unwrap()).unwrap_or_else(|e| panic!("{e}"))];
        let (texts, chats) = draw(&domain, 30, true);
        println!("{}\n\n{}", texts.join("\n--\n"), chats.join("\n--\n"));
    }
}
