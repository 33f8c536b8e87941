//! Queries over small files that our own writers made.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ListBuilder, RecordBatch, UInt16Builder, UInt32Builder};
use arrow::datatypes::{DataType, Field, Schema};

use super::*;
use crate::corpus::conversation::{Conversation, ConversationWriter, Message, Role};
use crate::corpus::document::{Document, DocumentWriter};
use crate::corpus::{conversation, document, parquet_io};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Files { folder: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text.as_bytes()).unwrap();
        path
    }

    fn documents(&self) -> PathBuf {
        let mut writer = DocumentWriter::create(self.folder.path()).unwrap();
        for (i, text) in ["one fish", "two fish, ålas", "red\nfish", "a dog"].into_iter().enumerate() {
            let source = if i < 2 { "a.txt" } else { "b.txt" };
            writer.push(&Document::new(text.into(), source, i as u64 * 10, i as u64 * 10 + 9)).unwrap();
        }
        writer.finish().unwrap();
        // As in the store: no ending, and characters that a glob would take for a pattern.
        let blob = self.folder.path().join("blob[0]*");
        fs::rename(&self.folder.path().join(document::FILE_NAME), &blob).unwrap();
        blob
    }

    fn conversations(&self) -> PathBuf {
        let mut writer = ConversationWriter::create(self.folder.path()).unwrap();
        for row in 1..=3u64 {
            let say = |role, text: &str| Message::new(role, format!("{text} {row}"));
            let all = vec![say(Role::User, "Hi"), say(Role::Assistant, "Hello")];
            let all = all.into_iter().cycle().take(2 * row as usize).collect();
            writer.push(&Conversation::new(all, "c.jsonl", row)).unwrap();
        }
        writer.finish().unwrap();
        self.folder.path().join(conversation::FILE_NAME)
    }

    fn tokens(&self, name: &str, wide: bool) -> PathBuf {
        let path = self.folder.path().join(name);
        let item =
            Arc::new(Field::new("item", if wide { DataType::UInt32 } else { DataType::UInt16 }, false));
        let schema = Arc::new(Schema::new(vec![Field::new("tokens", DataType::List(item.clone()), false)]));
        let list: Arc<dyn arrow::array::Array> = if wide {
            let mut builder = ListBuilder::new(UInt32Builder::new()).with_field(item);
            builder.append_value([Some(70_000), Some(2)]);
            Arc::new(builder.finish())
        } else {
            let mut builder = ListBuilder::new(UInt16Builder::new()).with_field(item);
            builder.append_value([Some(1), Some(2), Some(3)]);
            builder.append_value([Some(65_535)]);
            Arc::new(builder.finish())
        };
        let mut writer = parquet_io::writer(&path, schema.clone(), Vec::new()).unwrap();
        writer.write(&RecordBatch::try_new(schema, vec![list]).unwrap()).unwrap();
        writer.close().unwrap();
        path
    }
}

fn source(name: &str, files: &[PathBuf]) -> Source {
    Source { name: name.into(), files: files.to_vec() }
}

fn run(sources: &[Source], sql: &str) -> Frame {
    query(sources, sql, None).unwrap_or_else(|e| panic!("{sql}: {e}"))
}

fn lines(frame: &Frame) -> String {
    let mut out = Vec::new();
    frame.write_json_lines(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_usual_clauses_work() {
    let files = Files::new();
    let docs = [source("docs", &[files.documents()])];
    let cases = [
        ("SELECT COUNT(*) AS n FROM docs", "{\"n\":4}\n"),
        (
            "SELECT source, COUNT(*) AS n, AVG(LENGTH(text)) AS mean, MAX(\"end\") AS last FROM self GROUP BY source ORDER BY source",
            "{\"source\":\"a.txt\",\"n\":2,\"mean\":11.0,\"last\":19}\n{\"source\":\"b.txt\",\"n\":2,\"mean\":6.5,\"last\":39}\n",
        ),
        (
            "SELECT text FROM t WHERE text LIKE '%fish%' ORDER BY start DESC LIMIT 1",
            "{\"text\":\"red\\nfish\"}\n",
        ),
        (
            "SELECT UPPER(text) AS u, CASE WHEN start > 10 THEN 'late' ELSE 'early' END AS w FROM docs WHERE text LIKE 'a %'",
            "{\"u\":\"A DOG\",\"w\":\"late\"}\n",
        ),
        (
            "SELECT COUNT(DISTINCT source) AS n, SUM(\"end\" - start) AS bytes FROM docs",
            "{\"n\":2,\"bytes\":36}\n",
        ),
        (
            "WITH long AS (SELECT * FROM docs WHERE LENGTH(text) > 8) SELECT text FROM long ORDER BY text",
            "{\"text\":\"two fish, ålas\"}\n",
        ),
        ("SELECT source FROM docs GROUP BY source HAVING COUNT(*) > 5", ""),
    ];
    for (sql, expected) in cases {
        assert_eq!(lines(&run(&docs, sql)), expected, "{sql}");
    }
}

#[test]
fn tables_join_by_their_names() {
    let files = Files::new();
    let scores =
        files.write("scores", "{\"source\":\"a.txt\",\"score\":0.5}\n{\"source\":\"b.txt\",\"score\":2}\n");
    let both = [source("docs", &[files.documents()]), source("scores", &[scores])];
    let frame = run(
        &both,
        "SELECT d.text, s.score FROM docs d JOIN scores s ON d.source = s.source ORDER BY d.start LIMIT 3",
    );
    assert_eq!(frame.height(), 3);
    assert_eq!(frame.value(2, "score"), Some(serde_json::json!(2.0)));
    let error = query(&both, "SELECT * FROM self", None).map(drop).unwrap_err().to_string();
    assert!(error.contains("no table `self`") && error.contains("`docs`, `scores`"), "{error}");
}

#[test]
fn lists_and_structs_load_and_show() {
    let files = Files::new();
    let chats = [source("chats", &[files.conversations()])];
    let frame = run(&chats, "SELECT row, messages, ARRAY_LENGTH(messages) AS turns FROM chats ORDER BY row");
    assert_eq!(frame.value(2, "turns"), Some(serde_json::json!(6)));
    assert_eq!(
        frame.value(0, "messages"),
        Some(serde_json::json!([
            {"role":"user","content":"Hi 1","weight":1},
            {"role":"assistant","content":"Hello 1","weight":1}
        ]))
    );
    let table = frame.table(60);
    assert!(
        table.contains("[{role: \"user\", content: \"Hi 1\", weight: 1}") && table.ends_with("\n3 rows\n"),
        "{table}"
    );
    assert!(table.lines().all(|l| l.chars().count() <= 60), "{table}");
}

#[test]
fn token_columns_of_every_width_load_together() {
    let files = Files::new();
    let narrow = [source("s", &[files.tokens("narrow", false)])];
    let frame =
        run(&narrow, "SELECT tokens, ARRAY_LENGTH(tokens) AS n FROM s WHERE ARRAY_LENGTH(tokens) > 1");
    assert_eq!(lines(&frame), "{\"tokens\":[1,2,3],\"n\":3}\n");
    let both = [source("s", &[files.tokens("narrow", false), files.tokens("wide", true)])];
    let frame = run(&both, "SELECT tokens FROM s");
    assert_eq!(lines(&frame), "{\"tokens\":[1,2,3]}\n{\"tokens\":[65535]}\n{\"tokens\":[70000,2]}\n");
}

#[test]
fn json_lines_know_columns_that_come_late() {
    let files = Files::new();
    let mut text: String = (0..150).map(|i| format!("{{\"step\":{i},\"loss\":{}}}\n", 150 - i)).collect();
    text.push_str("\n{\"step\":150,\"loss\":0.25,\"val_loss\":0.5,\"note\":\"end\"}\n");
    let metrics = [source("metrics", &[files.write("metrics.jsonl", &text)])];
    let frame = run(&metrics, "SELECT step, loss, val_loss, note FROM metrics WHERE val_loss IS NOT NULL");
    assert_eq!(lines(&frame), "{\"step\":150,\"loss\":0.25,\"val_loss\":0.5,\"note\":\"end\"}\n");
    let least = run(&metrics, "SELECT MIN(loss) AS least, COUNT(note) AS notes FROM metrics");
    assert_eq!(lines(&least), "{\"least\":0.25,\"notes\":1}\n");
}

#[test]
fn a_limit_says_that_there_is_more() {
    let files = Files::new();
    let docs = [source("docs", &[files.documents()])];
    let frame = query(&docs, "SELECT start FROM docs", Some(2)).unwrap();
    assert_eq!((frame.height(), frame.is_cut()), (2, true));
    assert!(frame.table(80).ends_with("2 rows, and more\n"));
    assert!(!query(&docs, "SELECT start FROM docs", Some(4)).unwrap().is_cut());
    let mut csv = Vec::new();
    frame.write_csv(&mut csv).unwrap();
    assert_eq!(String::from_utf8(csv).unwrap(), "start\n0\n10\n");
}

#[test]
fn wrong_sql_is_told_with_what_there_is() {
    let files = Files::new();
    let docs = [source("docs", &[files.documents()])];
    let cases = [
        ("SELECT txt FROM docs", vec!["no column `txt`", "did you mean `text`?", "`id`, `text`, `source`"]),
        ("SELECT text FROM docs WHERE sorce = 'a'", vec!["no column `sorce`", "did you mean `source`?"]),
        ("SELECT text FROM dosc", vec!["no table `dosc`", "did you mean `docs`?", "the tables are `docs`"]),
        ("SELEKT text", vec!["does not work: SELEKT text"]),
        ("SELECT text FROM docs WHERE", vec!["does not work"]),
        ("SELECT FROBNICATE(text) FROM docs", vec!["does not work", "frobnicate"]),
        ("", vec!["does not work"]),
        (
            "SELECT LENGTH(text), UPPER(text) FROM docs",
            vec!["two columns of the result are called `text`", "AS"],
        ),
        ("DROP TABLE docs", vec!["`drop` would change"]),
        ("SELECT text + 1 AS x FROM docs", vec!["does not work"]),
    ];
    for (sql, parts) in cases {
        let error = query(&docs, sql, None).map(drop).expect_err(sql).to_string();
        for part in parts {
            assert!(error.to_lowercase().contains(&part.to_lowercase()), "{sql}: no `{part}` in: {error}");
        }
        assert!(!error.contains("Resolved plan"), "{error}");
    }
}

#[test]
fn a_deep_query_is_answered_or_refused() {
    let files = Files::new();
    let docs = [source("docs", &[files.documents()])];
    let sql = |terms: usize| format!("SELECT 1{} AS n FROM docs LIMIT 1", "+1".repeat(terms));
    // Of 8,000 terms it takes a minute; a thread's usual stack ends before 1,000.
    assert_eq!(lines(&run(&docs, &sql(1000))), "{\"n\":1001}\n");
    assert!(query(&docs, &sql(9000), None).map(drop).unwrap_err().to_string().contains("at most 16384"));
    let brackets = format!("SELECT {}1{} FROM docs", "(".repeat(8000), ")".repeat(8000));
    assert!(query(&docs, &brackets, None).map(drop).unwrap_err().to_string().contains("recursion limit"));
}

#[test]
fn files_that_are_no_tables_are_told() {
    let files = Files::new();
    let whole = fs::read(&files.documents()).unwrap();
    let cut = files.folder.path().join("cut");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let bad = files.write("bad", "{\"a\":1}\n{\"a\":2,}\n");
    let cases = [
        (files.write("empty", ""), "is empty"),
        (files.write("text", "Once upon a time"), "neither Parquet nor JSON lines"),
        (cut, "cannot read"),
        (bad, "bad:2:8"),
        (files.folder.path().join("absent"), "cannot open"),
        (files.folder.path().to_path_buf(), "is a directory"),
    ];
    for (path, expected) in cases {
        let error =
            query(&[source("x", &[path])], "SELECT * FROM x", None).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "no `{expected}` in: {error}");
    }
    let mixed = [source("x", &[files.documents(), files.write("a", "{\"a\":1}\n")])];
    assert!(query(&mixed, "SELECT * FROM x", None).map(drop).unwrap_err().to_string().contains("mixes"));
    let twice = [source("x", &[files.documents()]), source("x", &[files.documents()])];
    assert!(query(&twice, "SELECT 1", None).map(drop).unwrap_err().to_string().contains("two tables"));
}

#[test]
fn names_of_files_become_names_of_tables() {
    for (file, name) in [
        ("train-00000.parquet", "train_00000"),
        ("data/My Chats.jsonl", "my_chats"),
        ("01.parquet", "t_01"),
        (".hidden", "hidden"),
        ("", "t_"),
    ] {
        assert_eq!(table_name(file), name);
    }
}
