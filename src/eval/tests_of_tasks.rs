//! Cloze, pairs and choices, by models about which everything is known.

use super::items::{Tally, Task};
use super::*;
use crate::base::{Quiet, fs};
use crate::model::{Config, Transformer, gpt2};
use crate::tokenizer::Tokenizer;

const V: usize = 1024;

/// A model for which every token has the same logit anywhere, but those of `liked`, whose logit is 9.
fn model(liked: &str) -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = Tokenizer::load(std::path::Path::new(path)).unwrap();
    let config = Config { dropout: 0.0, head_bias: true, tied: false, ..gpt2(V, 16, 1, 2, 16) };
    let mut transformer = Transformer::fresh(&config, 3);
    transformer.weights.fill(0.0);
    let bias = transformer.layout.head_bias.clone().unwrap();
    for id in tokenizer.encode(liked).unwrap() {
        transformer.weights[bias.start + id as usize] = 9.0;
    }
    Model { transformer, tokenizer }
}

/// Files with a name and a text each.
fn files(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<InputFile>) {
    let dir = tempfile::tempdir().unwrap();
    let file = |(name, text): &(&str, &str)| {
        fs::write(&dir.path().join(name), text.as_bytes()).unwrap();
        InputFile::new(&dir.path().join(name)).unwrap()
    };
    let all = files.iter().map(file).collect();
    (dir, all)
}

fn judged(model: &Model, tasks: &Tasks, options: &Options) -> Result<Evaluation> {
    evaluate(model, &Texts::default(), tasks, options, &Quiet)
}

fn pairs(model: &Model, all: &[(&str, &str)]) -> Result<Evaluation> {
    let (_dir, pairs) = files(all);
    judged(model, &Tasks { pairs, ..Tasks::default() }, &Options::default())
}

fn choices(model: &Model, rows: &str, as_chat: bool) -> Result<Evaluation> {
    let (_dir, choices) = files(&[("c.jsonl", rows)]);
    judged(model, &Tasks { choices, ..Tasks::default() }, &Options { as_chat, ..Options::default() })
}

fn cloze(model: &Model, rows: &str) -> Result<Evaluation> {
    let (_dir, cloze) = files(&[("t.jsonl", rows)]);
    judged(model, &Tasks { cloze, ..Tasks::default() }, &Options::default())
}

fn scores(found: &Evaluation) -> Vec<f64> {
    found.items.iter().map(|item| item.score).collect()
}

const BLIMP: &str = r#"{"sentence_good": "The cat sat", "sentence_bad": "The dog sat", "UID": "animals", "pairID": "0", "field": "syntax"}
{"sentence_good": "The dog sat", "sentence_bad": "The cat sat", "UID": "animals", "pairID": "1", "field": "syntax"}
{"sentence_good": "x y z", "sentence_bad": "z y x", "UID": "order", "pairID": "0", "field": "syntax"}
"#;

#[test]
fn the_more_probable_sentence_of_a_pair_wins_and_a_tie_counts_one_half() {
    let model = model(" cat");
    let found = pairs(&model, &[("blimp.jsonl", BLIMP)]).unwrap();
    assert_eq!(scores(&found), [1.0, 0.0, 0.5]);
    let by = found.report.pairs.unwrap();
    assert_eq!(by.all, Tally { items: 3, accuracy: 0.5 });
    assert_eq!(by.by_paradigm["animals"], Tally { items: 2, accuracy: 0.5 });
    assert_eq!(by.by_paradigm["order"], Tally { items: 1, accuracy: 0.5 });
    assert_eq!(found.items[0].id, "animals/0");
    // Liked tokens cost ln(V' / e^9), where V' is the sum of all e^logit; others ln V'.
    let ids = |text: &str| model.tokenizer.encode(text).unwrap();
    let (liked, sum) = (ids(" cat"), ids("The cat sat").len() + ids("The dog sat").len());
    let all = libm::log((V - liked.len()) as f64 + liked.len() as f64 * libm::exp(9.0));
    let cost =
        |text: &str| ids(text).iter().map(|id| all - if liked.contains(id) { 9.0 } else { 0.0 }).sum::<f64>();
    let expected = cost("The dog sat") - cost("The cat sat");
    assert!((found.items[0].nats - expected).abs() < 1e-4, "{} is not {expected}", found.items[0].nats);
    assert_eq!((found.items[0].tokens, found.items[0].bytes), (sum as u64, 22));

    let rows = "animals\tt\t0\tThe cat sat\tThe dog sat\nanimals\tt\t1\tThe dog sat\tThe cat sat\norder\tt\t0\tx y z\tz y x\n";
    let table = format!("uid\tterm\tpair_id\tgood\tbad\n{rows}");
    let comma = table.replace('\t', ",");
    for (name, text) in [("blimp.tsv", table.as_str()), ("blimp.csv", comma.as_str())] {
        assert_eq!(pairs(&model, &[(name, text)]).unwrap().items, found.items, "{name}");
    }
}

#[test]
fn sentences_longer_than_the_context_are_scored_in_windows_and_counted() {
    let long = "The cat sat on the mat and slept. ".repeat(3);
    let row = format!(
        "{{\"good\": \"{long}cat\", \"bad\": \"{long}dog\"}}\n{{\"good\": \"a\", \"bad\": \"bc d\"}}"
    );
    let found = pairs(&model(" cat"), &[("p.jsonl", &row)]).unwrap();
    assert_eq!((scores(&found), found.report.pairs.unwrap().longer_than_context), (vec![1.0, 1.0], 1));
}

#[test]
fn the_right_choice_is_the_most_probable_one_as_a_whole_or_by_byte() {
    let model = model("");
    // All tokens cost the same: the fewest tokens win, or the most bytes a token.
    let tokens = |text: &str| model.tokenizer.encode(text).unwrap().len() as f64;
    let (short, long) = ("x", "the cat sat on the mat");
    assert!(
        tokens(" x") < tokens(&format!(" {long}")) && tokens(&format!(" {long}")) / long.len() as f64 <= 0.9
    );
    let rows = format!(
        "{{\"question\": \"Who?\", \"choices\": [\"{short}\", \"{long}\"], \"answer\": 1, \"category\": \"who\"}}\n\
         {{\"context\": \"It is\", \"choices\": [\"{short}\", \"{long}\"], \"answer\": \"{short}\"}}\n\
         {{\"context\": \"It is \", \"choices\": [\"a\", \"b\", \"c\"], \"answer\": 2}}\n"
    );
    let found = choices(&model, &rows, false).unwrap();
    assert_eq!(scores(&found), [0.0, 1.0, 1.0 / 3.0]);
    let per_byte: Vec<f64> = found.items.iter().map(|item| item.score_per_byte).collect();
    assert_eq!(per_byte, [1.0, 0.0, 1.0 / 3.0]);
    let all = found.report.choices.unwrap();
    assert!((all.all.accuracy - 4.0 / 9.0).abs() < 1e-12 && all.by_category.len() == 1);
    assert_eq!((all.by_category["who"].items, all.by_category["who"].accuracy_per_byte), (1, 1.0));
    let item = &found.items[1];
    assert_eq!((item.tokens as f64, item.bytes), (tokens(" x"), 1), "the space belongs to the choice");
    assert!((item.nats - tokens(" x") * libm::log(V as f64)).abs() < 1e-4);

    let found = choices(&model, &rows, true).unwrap();
    assert_eq!(scores(&found), [0.0, 1.0, 1.0 / 3.0]);
    assert_eq!(found.items[1].tokens as f64, tokens("x"), "what the assistant says begins without a space");
}

#[test]
fn a_text_is_completed_with_an_accepted_word() {
    let the = model(" the");
    assert_eq!(the.tokenizer.encode(" the").unwrap().len(), 1, "it says ` the the the`");
    let row = |text: &str, accept: &str| format!("{{\"text\": \"{text}\", \"accept\": {accept}}}\n");
    let rows = [
        row("I see", r#"["a", "the"]"#),
        row("I see ", r#"["The,"]"#),
        row("I look at", r#"["the the"]"#),
        row("I see", r#"["theme"]"#),
        row("I see", r#"["he"]"#),
    ];
    let found = cloze(&the, &rows.concat()).unwrap();
    assert_eq!(scores(&found), [1.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(found.report.cloze.unwrap().all, Tally { items: 5, accuracy: 0.6 });
    // Without a space it goes on with the word before, if there is one.
    let s = model("s");
    let rows = [row("a dog", r#"["s"]"#), row("a dog,", r#"["sssss"]"#), row("a (", r#"["s"]"#)];
    assert_eq!(scores(&cloze(&s, &rows.concat()).unwrap()), [0.0, 0.0, 0.0]);
}

#[test]
fn figures_and_intervals_are_those_of_the_items() {
    let model = model(" cat");
    let rows: String = (0..40)
        .map(|i| {
            let (good, bad) = if i % 4 == 0 { ("a dog", "a cat") } else { ("a cat", "a dog") };
            format!("{{\"good\": \"{good} {i}\", \"bad\": \"{bad} {i}\"}}\n")
        })
        .collect();
    let (_dir, pairs) = files(&[("p.jsonl", &rows)]);
    let tasks = Tasks { pairs, ..Tasks::default() };
    let with = |intervals| judged(&model, &tasks, &Options { intervals, ..Options::default() }).unwrap();
    let found = with(Some(42));
    assert_eq!(found.report.pairs.as_ref().unwrap().all.accuracy, 0.75);
    let measured: Vec<&str> =
        FIGURES.iter().filter(|figure| figure.of(&found.items).is_some()).map(|figure| figure.name).collect();
    assert_eq!(measured, found.report.intervals.keys().copied().collect::<Vec<_>>());
    // As numpy gives it of the same draws, see `bootstrap`.
    assert_eq!(found.report.intervals["pairs.accuracy"], [0.625, 0.875]);
    assert!(with(None).report.intervals.is_empty());
    assert!(found.items.iter().all(|item| item.task == Task::Pairs && item.id.len() == 32));
}

#[test]
fn context_and_stride_are_stated_and_checked() {
    let model = model("");
    let of = |context, stride| {
        judged(&model, &Tasks::default(), &Options { context, stride, ..Options::default() })
    };
    let stated = |context, stride| of(context, stride).map(|e| (e.report.context, e.report.stride)).unwrap();
    assert_eq!(stated(None, None), (16, 8));
    assert_eq!((stated(Some(5), None), stated(Some(8), Some(8))), ((5, 3), (8, 8)));
    let fails = |context, stride| of(context, stride).unwrap_err().to_string();
    assert!(fails(Some(17), None).contains("`context` is 17: the model reads 16 tokens at most"));
    assert!(fails(Some(0), None).contains("`context` is 0"));
    assert!(fails(Some(8), Some(9)).contains("`stride` is 9: expected 1 to the context, 8"));
    assert!(fails(None, Some(0)).contains("`stride` is 0"));
}

#[test]
fn a_row_that_is_no_pair_is_an_error_with_its_place_and_a_way_out() {
    let table = [
        (
            "p.jsonl",
            r#"{"good": "a"}"#,
            "p.jsonl:1:1",
            "`sentence_bad` or `bad` is missing",
            "there are `good`",
        ),
        (
            "p.jsonl",
            r#"{"good": "a b", "bad": "a b"}"#,
            "p.jsonl:1:24",
            "are the same: \"a b\"",
            "leave the row out",
        ),
        (
            "p.jsonl",
            r#"{"good": "a", "bad": 3}"#,
            "p.jsonl:1:22",
            "the number 3, expected a text",
            "write a text",
        ),
        ("p.tsv", "good\tbad\na\tb\n  \tc\n", "p.tsv:3:1", "`good` is empty", "leave the row out"),
        ("p.tsv", "good\tbad\na\tb\nc\n", "p.tsv:3:1", "has 1 fields, the header has 2", "quote"),
        (
            "p.csv",
            "good,bad,uid,pair_id\na,b,w,1\nc,d,w,1\n",
            "p.csv:3:7",
            "`w/1` is there already, in line 2",
            "own",
        ),
        ("p.csv", "good,bad\na,\"\"\n", "p.csv:2:3", "`bad` is empty", "leave the row out"),
        ("p.tsv", "good\tbad\n", "", "`p.tsv` has no rows", "make it anew"),
        ("BLiMP.zip", "PK", "", "`BLiMP.zip` is an archive", "unpack it"),
        ("p.md", "a", "", "the name `p.md` does not tell how pairs are read", "`.csv` or `.tsv`"),
    ];
    for (name, text, place, message, help) in table {
        let error = pairs(&model(""), &[(name, text)]).expect_err(text).to_string();
        assert!(error.contains(place) && error.contains(message) && error.contains(help), "{text}\n{error}");
    }
    let twice = pairs(&model(""), &[("a.jsonl", BLIMP), ("b.jsonl", BLIMP)]).unwrap_err().to_string();
    assert!(twice.contains("b.jsonl:1:") && twice.contains("in line 1 of `a.jsonl`"), "{twice}");
    let (_dir, latin) = files(&[("p.jsonl", "")]);
    fs::write(&latin[0].path, b"{\"good\": \"caf\xE9\", \"bad\": \"b\"}").unwrap();
    let error = judged(&model(""), &Tasks { pairs: latin, ..Tasks::default() }, &Options::default());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("p.jsonl:1:14") && error.contains("0xE9") && error.contains("save the file as UTF-8"),
        "{error}"
    );
}

#[test]
fn a_row_that_has_no_right_choice_is_an_error_with_its_place_and_a_way_out() {
    let row = |choices: &str, answer: &str| {
        format!(r#"{{"question": "?", "choices": {choices}, "answer": {answer}}}"#)
    };
    let table = [
        (
            row(r#"["a", "b"]"#, "2"),
            "1:52",
            "`answer` is 2, and the choices are 0 to 1",
            "0 to 1, or its text",
        ),
        (row(r#"["a", "b"]"#, "-1"), "1:52", "`answer` is -1", "0 to 1"),
        (
            row(r#"["a", "b"]"#, "\"B\""),
            "1:52",
            "\"B\", which is none of the choices",
            "number of the right choice",
        ),
        (row(r#"["a", "b"]"#, "[1]"), "1:52", "a list, expected a number or a text", "write"),
        (row(r#"["a", ""]"#, "0"), "1:36", "`choices` is empty", "leave the row out"),
        (row(r#"["a", 7]"#, "0"), "1:36", "the number 7, expected a text", "write a text"),
        (row(r#"["a", "a"]"#, "0"), "1:36", "the choice \"a\" is there twice", "one answer is right"),
        (row(r#"["a"]"#, "0"), "1:30", "one choice alone", "two at least"),
        (row("[]", "0"), "1:30", "an empty list", "fill it"),
        (
            r#"{"question": "?", "answer": 0}"#.into(),
            "1:1",
            "`choices` is missing",
            "there are `question`, `answer`",
        ),
        (
            r#"{"choices": ["a", "b"], "answer": 0}"#.into(),
            "1:1",
            "`question` or `context` is missing",
            "there are",
        ),
        (r#"{"question": "?", "choices": ["a", "b"]}"#.into(), "1:1", "`answer` is missing", "there are"),
    ];
    for (row, place, message, help) in table {
        let error = choices(&model(""), &row, false).expect_err(&row).to_string();
        let place = format!("c.jsonl:{place}\n");
        assert!(error.contains(&place) && error.contains(message) && error.contains(help), "{row}\n{error}");
    }
}

#[test]
fn a_row_that_is_no_cloze_text_is_an_error_with_its_place_and_a_way_out() {
    let table = [
        (r#"{"text": "I see"}"#, "1:1", "`accept` is missing", "there are `text`"),
        (r#"{"text": " ", "accept": ["a"]}"#, "1:10", "`text` is empty", "leave the row out"),
        (r#"{"text": "I see", "accept": "a"}"#, "1:29", "expected a list", "[\"a\"]"),
        (
            r#"{"text": "I see", "accept": ["a", "!"]}"#,
            "1:35",
            "`!` has neither letters nor digits",
            "write a word",
        ),
    ];
    for (row, place, message, help) in table {
        let error = cloze(&model(""), row).expect_err(row).to_string();
        let place = format!("t.jsonl:{place}\n");
        assert!(error.contains(&place) && error.contains(message) && error.contains(help), "{row}\n{error}");
    }
}
