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

/// A Parquet file with one column of each of `columns`, which are called by their types.
fn parquet_of(files: &Files, name: &str, columns: Vec<(&str, arrow::array::ArrayRef)>) -> PathBuf {
    let field =
        |(name, column): &(&str, arrow::array::ArrayRef)| Field::new(*name, column.data_type().clone(), true);
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let path = files.folder.path().join(name);
    let mut writer = parquet_io::writer(&path, schema.clone(), Vec::new()).unwrap();
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    writer.write(&RecordBatch::try_new(schema, arrays).unwrap()).unwrap();
    writer.close().unwrap();
    path
}

fn error(sources: &[Source], sql: &str) -> String {
    query(sources, sql, None).map(drop).unwrap_err().to_string()
}

#[test]
fn every_type_of_parquet_is_shown() {
    use arrow::array::*;
    use arrow::datatypes::Int32Type;
    let files = Files::new();
    let mut map = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    map.keys().append_value("k");
    map.values().append_value(7);
    map.append(true).unwrap();
    let decimal = Decimal128Array::from(vec![-12345]).with_precision_and_scale(38, 2).unwrap();
    let dictionary = DictionaryArray::<Int32Type>::from_iter(["x"]);
    let fixed = FixedSizeBinaryArray::try_from_iter([b"abc"].into_iter()).unwrap();
    let zone = TimestampNanosecondArray::from(vec![1]).with_timezone("Europe/Oslo");
    let nulls = ListArray::new_null(Arc::new(Field::new("item", DataType::Null, true)), 1);
    let columns: Vec<(&str, ArrayRef, &str)> = vec![
        ("decimal", Arc::new(decimal), "\"-123.45\""),
        ("map", Arc::new(map.finish()), "[{\"key\":\"k\",\"value\":7}]"),
        ("u64", Arc::new(UInt64Array::from(vec![u64::MAX])), "18446744073709551615"),
        ("binary", Arc::new(BinaryArray::from(vec![&b"\0\xFF"[..]])), "\"0x00ff\""),
        ("fixed", Arc::new(fixed), "\"0x616263\""),
        ("duration", Arc::new(DurationMillisecondArray::from(vec![1500])), "\"1s 500ms\""),
        ("null", Arc::new(NullArray::new(1)), "null"),
        ("nulls", Arc::new(nulls), "null"),
        ("date", Arc::new(Date32Array::from(vec![1])), "\"1970-01-02\""),
        ("time", Arc::new(Time32SecondArray::from(vec![1])), "\"00:00:01\""),
        ("zone", Arc::new(zone), "\"1970-01-01 01:00:00.000000001 CET\""),
        ("nan", Arc::new(Float64Array::from(vec![f64::NAN])), "\"NaN\""),
        ("dictionary", Arc::new(dictionary), "\"x\""),
        // What the calendar lacks is shown as the number in the file.
        ("far", Arc::new(Date32Array::from(vec![i32::MAX])), "\"2147483647 days since 1970-01-01\""),
        (
            "later",
            Arc::new(TimestampMillisecondArray::from(vec![i64::MAX])),
            "\"9223372036854775807 ms since 1970-01-01\"",
        ),
    ];
    for (name, column, expected) in columns {
        let path = parquet_of(&files, name, vec![(name, column)]);
        let frame = run(&[source("t", std::slice::from_ref(&path))], "SELECT * FROM t");
        assert_eq!(lines(&frame), format!("{{\"{name}\":{expected}}}\n"));
        assert!(frame.table(80).contains("1 row"));
        crate::inspect::inspect(&path, name, &crate::inspect::Options::default()).unwrap();
    }
}

#[test]
fn types_that_cannot_be_read_are_named_and_the_rest_of_the_file_inspected() {
    use arrow::array::*;
    use arrow::datatypes::{IntervalUnit, i256};
    let files = Files::new();
    let of = |ty: &DataType, width: usize| {
        let data = ArrayData::builder(ty.clone()).len(1);
        make_array(data.add_buffer(arrow::buffer::Buffer::from_vec(vec![0x3Cu8; width])).build().unwrap())
    };
    let half = of(&DataType::Float16, 2);
    let item = Arc::new(Field::new("item", DataType::Float16, true));
    let long = Decimal256Array::from(vec![i256::from(5)]).with_precision_and_scale(60, 2).unwrap();
    let columns: [(&str, ArrayRef); 4] = [
        ("Float16", half.clone()),
        ("Float16", Arc::new(FixedSizeListArray::new(item, 1, half, None))),
        ("Interval(DayTime)", of(&DataType::Interval(IntervalUnit::DayTime), 8)),
        ("Decimal256(60, 2)", Arc::new(long)),
    ];
    for (ty, column) in columns {
        let id: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let path = parquet_of(&files, "odd", vec![("id", id), ("weight", column)]);
        let error = error(&[source("t", std::slice::from_ref(&path))], "SELECT id FROM t");
        assert!(error.contains(&format!("`weight` of `{}` holds {ty}", path.display())), "{error}");
        let report = crate::inspect::inspect(&path, "odd", &crate::inspect::Options::default()).unwrap();
        let page = report.to_string();
        assert!(
            page.contains("1 rows, 2 columns") && page.contains(&format!("`weight` holds {ty}")),
            "{page}"
        );
    }
}

#[test]
fn names_that_stand_twice_are_refused() {
    use arrow::array::{ArrayRef, StringArray};
    let files = Files::new();
    let column = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let parquet = parquet_of(&files, "twice", vec![("text", column("first")), ("text", column("second"))]);
    let lines = files.write("lines", "{\"a\":1}\n\n{\"text\":\"first\",\"text\":\"second\"}\n");
    let nested = files.write("nested", "{\"a\":{\"text\":1,\"text\":2}}\n{\"a\":{}}\n");
    for (path, place) in [(&parquet, "twice"), (&lines, "lines:3:17"), (&nested, "nested:1:16")] {
        let errors = [
            error(&[source("t", std::slice::from_ref(path))], "SELECT 1 FROM t"),
            crate::inspect::inspect(path, "x.jsonl", &crate::inspect::Options::default())
                .unwrap_err()
                .to_string(),
        ];
        for error in errors {
            assert!(error.contains("`text`") && error.contains(place), "{error}");
        }
    }
    let document = files.write("d.json", "\u{FEFF}{\n \"text\": 1,\n \"text\": 2\n}\n");
    let error = crate::inspect::inspect(&document, "d", &crate::inspect::Options::default()).unwrap_err();
    assert!(error.to_string().contains("d.json:3:2"), "{error}");
}

#[test]
fn what_json_lines_cannot_be_as_a_table_is_located() {
    let files = Files::new();
    let cases = [
        ("{\"a\":\"fine\"}\n{\"a\":\"\\ud83d\"}\n", "x:2:7", "half of a pair"),
        ("{\"a\":NaN}\n", "x:1:6", "NaN"),
        ("{\"a\":{}}\n{\"a\":5}\n", "x:2:2", "`a` is a number here, and an object in line 1"),
        ("{\"a\":true}\n{\"b\":2}\n{\"a\":1}\n", "x:3:2", "`a` is a number here, and a boolean in line 1"),
        ("{\"a\":1}\n[1]\n", "x:2:1", "not a JSON object"),
        ("{\"a\":1}\n{\"a\":\"\\", "x:2:", "not a JSON object"),
    ];
    for (text, place, expected) in cases {
        let error = error(&[source("x", &[files.write("x", text)])], "SELECT * FROM x");
        assert!(error.contains(place) && error.contains(expected), "{text}: {error}");
    }
    let latin = files.folder.path().join("latin");
    fs::write(&latin, b"{\"a\":\"caf\xE9\"}\n").unwrap();
    let found = error(&[source("x", &[latin])], "SELECT * FROM x");
    assert!(found.contains("0xE9") && found.contains("latin:1:10"), "{found}");
}

#[test]
fn json_lines_keep_their_values() {
    let files = Files::new();
    let cases = [
        ("\u{FEFF}{\"a\":1}\n{\"a\":2}\n", "{\"a\":1}\n{\"a\":2}\n"),
        ("{\"a\":99999999999999999999999}\n", "{\"a\":\"99999999999999999999999\"}\n"),
        ("{\"a\":{}}\n{\"a\":null}\n", "{\"a\":{}}\n{\"a\":null}\n"),
        ("{\"a\":1}\n{\"a\":\"x\"}\n", "{\"a\":\"1\"}\n{\"a\":\"x\"}\n"),
    ];
    for (text, expected) in cases {
        let frame = run(&[source("x", &[files.write("x", text)])], "SELECT * FROM x");
        assert_eq!(lines(&frame), expected);
        assert!(!frame.table(80).contains("\n}"), "an empty struct has both its braces");
    }
    let marked = files.write("m", "\u{FEFF}{\"a\":1}\n{\"a\":2}\n");
    let report = crate::inspect::inspect(&marked, "m", &crate::inspect::Options::default()).unwrap();
    assert!(report.to_string().contains("2 rows of JSON lines"), "{report}");
    let wide: Vec<u8> = "\u{FEFF}{\"a\":1}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let path = files.folder.path().join("wide");
    fs::write(&path, &wide).unwrap();
    assert!(error(&[source("x", &[path])], "SELECT * FROM x").contains("begins as a UTF-16 text does"));
}
