use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::json::ReaderBuilder;

use super::*;
use crate::base::{Quiet, fs};
use crate::corpus::conversation::{ConversationReader, FILE_NAME, Message};
use crate::corpus::preference::{self, PreferenceReader};

fn run(files: &[(&str, &[u8])], options: Options) -> Result<(Report, Vec<Conversation>)> {
    let dir = tempfile::tempdir().unwrap();
    let inputs: Vec<InputFile> = files
        .iter()
        .map(|(name, bytes)| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            InputFile::new(&path).unwrap()
        })
        .collect();
    let out = dir.path().join("out");
    let report = ingest_chat(&inputs, &options, &out, dir.path(), &Quiet)?;
    all_accounted_for(&report);
    let all = ConversationReader::open(&out.join(FILE_NAME))?.collect::<Result<_>>()?;
    Ok((report, all))
}

/// Every row, conversation and pair that came in went out or is counted, in each file and in total.
fn all_accounted_for(report: &Report) {
    let removed = report.removed.exact_duplicates + report.removed.bad_rows.values().sum::<u64>();
    assert_eq!(report.conversations_in, report.conversations_out + removed);
    assert_eq!(report.preferences_in, report.preferences_out + report.removed.duplicate_preferences);
    assert_eq!(report.rows_in, report.rows_kept + report.rows_dropped.values().sum::<u64>());
    for file in &report.files {
        assert_eq!(file.rows_in, file.rows_kept + file.rows_dropped.values().sum::<u64>(), "{file:?}");
    }
    let sum = |of: fn(&FileReport) -> u64| report.files.iter().map(of).sum::<u64>();
    assert_eq!(sum(|f| f.rows_kept), report.rows_kept);
    assert_eq!(sum(|f| f.conversations_in), report.conversations_in);
    assert_eq!(sum(|f| f.conversations_out), report.conversations_out);
}

fn skip() -> Options {
    Options { on_bad_row: OnBadRow::Skip, ..Options::default() }
}

/// The messages as `u=…;a=…`, an answer of weight 0 as `a0=…`.
fn told(conversation: &Conversation) -> String {
    let one = |m: &Message| {
        let weight = if m.weight == 0 { "0" } else { "" };
        format!("{}{weight}={};", &m.role.as_str()[..1], m.content)
    };
    conversation.messages.iter().map(one).collect()
}

/// The conversations of one file, told.
fn read(name: &str, text: &str, options: Options) -> (Report, Vec<String>) {
    let (report, all) = run(&[(name, text.as_bytes())], options).unwrap();
    (report, all.iter().map(told).collect())
}

fn error(name: &str, bytes: &[u8]) -> String {
    run(&[(name, bytes)], Options::default()).unwrap_err().to_string()
}

#[test]
fn each_file_has_its_format() {
    let files: [(&str, &[u8]); 5] = [
        ("a.jsonl", b"{\"messages\":[{\"role\":\"user\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"2\"}]}\n"),
        ("b.json", b"[\n{\"conversations\":[{\"from\":\"human\",\"value\":\"3\"},{\"from\":\"gpt\",\"value\":\"4\"}]}\n]"),
        ("c.txt", b"<user>: 5 <eos>\n<assistant>: 6 <eos>\n\n<user>: 7\n<assistant>: 8 <eos>\n"),
        ("d.csv", b"prompt,completion\n\"9, or so\",10\n"),
        ("e.jsonl", b"{\"instruction\":\"11\",\"input\":\"\",\"output\":\"12\"}\n"),
    ];
    let (report, all) = run(&files, Options::default()).unwrap();
    let questions: Vec<&str> = all.iter().map(|c| c.messages[0].content.as_str()).collect();
    assert_eq!(questions, ["1", "3", "5", "7", "9, or so", "11"]);
    let rows: Vec<u64> = all.iter().map(|c| c.row).collect();
    assert_eq!(rows, [1, 1, 1, 4, 2, 1]);
    let formats: Vec<_> = report.files.iter().map(|f| f.format.unwrap().as_str()).collect();
    assert_eq!(formats, ["messages", "sharegpt", "text", "prompt", "instruction"]);
    assert_eq!(report.messages["assistant"], 6);
}

#[test]
fn mistakes_name_the_row_and_the_place() {
    let good =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\n";
    let with = |row: &str| error("a.jsonl", format!("{good}{row}\n").as_bytes());
    let found = with(r#"{"messages":[{"role":"user","content":"q"},{"role":"asistant","content":"a"}]}"#);
    assert!(found.contains("row 2: message 2 has the unknown role \"asistant\""), "{found}");
    assert!(found.contains("a.jsonl:2:52") && found.contains("did you mean `assistant`"), "{found}");
    let found = with(r#"{"messages":[{"role":"user","content":"q"},{"role":"user","content":"a"}]}"#);
    assert!(found.contains("must alternate") && found.contains("same_role: merge"), "{found}");
    let found = with(r#"{"messages":[{"role":"user","content":"q"}"#);
    assert!(found.contains("row 2: this is not JSON") && found.contains("a.jsonl:2:"), "{found}");
    let found = with(r#"{"messages":[{"role":"user","content":null}]}"#);
    assert!(found.contains("message 1: the field `content` holds null"), "{found}");
    let found = with(r#"{"message":[]}"#);
    assert!(found.contains("missing is `messages`"), "{found}");
    let found = error("a.jsonl", b"{\"questions\": 1}\n");
    assert!(found.contains("no known format") && found.contains("found `questions`"), "{found}");
    assert!(error("a.jsonl", b"").contains("no conversation in 1 file"));
    assert!(error("a.bin", b"x").contains("does not tell its format"));
    let found = error("a.txt", b"<user>: Hi <eos>\n<asistant>: Yo <eos>\n");
    assert!(found.contains("a.txt:2:1") && found.contains("did you mean `assistant`"), "{found}");
    let found = error("a.jsonl", b"{\"prompt\":\"\xFF\"}\n");
    assert!(found.contains("0xFF") && found.contains("a.jsonl:1:12"), "{found}");
}

#[test]
fn bad_rows_are_skipped_and_counted_and_duplicates_removed() {
    let text = "{\"prompt\":\"q\",\"completion\":\"a\"}\nnonsense\n{\"prompt\":\"q\",\"completion\":\" a\\r\\n\"}\n\
                {\"prompt\":\"q\"}\n{\"prompt\":\"\",\"completion\":\"a\"}\n";
    let (report, all) = run(&[("a.jsonl", text.as_bytes())], skip()).unwrap();
    assert_eq!((all.len(), report.rows_in, report.removed.exact_duplicates), (1, 5, 1));
    let causes: Vec<(&str, u64)> = report.removed.bad_rows.into_iter().collect();
    assert_eq!(causes, [("broken_json", 1), ("empty_message", 1), ("missing_field", 1)]);
}

#[test]
fn users_may_name_roles() {
    let text =
        b"{\"messages\":[{\"role\":\"Klien\",\"content\":\"q\"},{\"role\":\"terapis\",\"content\":\"a\"}]}";
    let roles = [("klien".to_string(), Role::User), ("Terapis".to_string(), Role::Assistant)].into();
    let (_, all) = run(&[("a.jsonl", text)], Options { roles, ..Options::default() }).unwrap();
    assert_eq!(all[0].messages[1].role, Role::Assistant);
}

#[test]
fn an_answer_of_weight_0_is_context() {
    let text = r#"{"messages":[{"role":"user","content":"Name a fruit."},{"role":"assistant","content":"A hat.","weight":0},{"role":"user","content":"A fruit!"},{"role":"assistant","content":"A pear.","weight":1}]}
{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0}]}
{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0.5}]}
"#;
    let (report, all) = read("a.jsonl", text, skip());
    assert_eq!(all, ["u=Name a fruit.;a0=A hat.;u=A fruit!;a=A pear.;"]);
    assert_eq!(report.messages_of_weight_0, 1);
    let causes: Vec<_> = report.rows_dropped.into_iter().collect();
    assert_eq!(causes, [("nothing_to_learn", 1), ("weight", 1)]);
}

#[test]
fn rows_of_one_file_may_have_formats_of_their_own() {
    let text = r#"{"system":"Speak like a sailor.","messages":[{"role":"user","content":"Where?"},{"role":"assistant","content":"Ahoy."}]}
{"system":"Speak like a sailor.","conversations":[{"from":"human","value":"When?"},{"from":"gpt","value":"Aye."}]}
{"system_prompt":"Speak like a sailor.","prompt":"Why?","response":"Arr."}
{"instruction":"And then?","input":"","output":"Two.","history":[["First?","One."]]}
{"instruction":"Who?","context":"Ana ran.","response":"Ana.","category":"qa"}
"#;
    let (report, all) = read("a.jsonl", text, Options::default());
    let system = "s=Speak like a sailor.;";
    let expected = [
        format!("{system}u=Where?;a=Ahoy.;"),
        format!("{system}u=When?;a=Aye.;"),
        format!("{system}u=Why?;a=Arr.;"),
        "u=First?;a=One.;u=And then?;a=Two.;".into(),
        "u=Who?\n\nAna ran.;a=Ana.;".into(),
    ];
    assert_eq!(all, expected);
    assert_eq!(report.files[0].ignored_keys.rows(), &[("category".to_string(), 1)].into());
}

#[test]
fn instances_are_counted_one_by_one() {
    let text = r#"{"instruction":"Halve it","instances":[]}
{"instruction":"Halve it","instances":["4 2"]}
{"instruction":"Halve it","instances":[{"input":"6","output":"3"},{"input":"8"}]}
{"instruction":"Halve it","instances":[{"input":"6","output":"3"}]}
"#;
    let (report, all) = read("a.jsonl", text, skip());
    assert_eq!(all, ["u=Halve it\n\n6;a=3;"]);
    assert_eq!((report.rows_in, report.rows_kept, report.conversations_in), (4, 1, 5));
    let dropped: Vec<_> = report.rows_dropped.into_iter().collect();
    assert_eq!(dropped, [("exact_duplicates", 1), ("no_instances", 1), ("not_an_object", 1)]);
    let found = error("a.jsonl", text.as_bytes());
    assert!(found.contains("row 1: `instances` is empty") && found.contains("a.jsonl:1:39"), "{found}");
}

#[test]
fn keys_that_are_not_read_are_counted() {
    let text = r#"{"id":1,"topic":"sums","messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4","reasoning_content":"two and two"}]}
{"topic":"","messages":[{"role":"user","content":"2+3?"},{"role":"assistant","content":"5"}],"score":NaN}
"#;
    let (report, all) = read("a.jsonl", text, Options::default());
    assert_eq!(all.len(), 2);
    let expected = [("messages[].reasoning_content".to_string(), 1), ("topic".to_string(), 1)];
    assert_eq!(report.files[0].ignored_keys.rows(), &expected.into());
    assert_eq!(report.files[0].bad_metadata.rows(), &[("score".to_string(), 1)].into());
    let found = error("a.jsonl", b"{\"prompt\":\"q\",\"completion\":\"\\ud83d!\"}\n");
    assert!(found.contains("half of a pair") && found.contains("a.jsonl:1:29"), "{found}");
    let found = error("a.jsonl", b"{\"prompt\":\"q\",\"completion\":\"a\",\"prompt\":\"r\"}\n");
    assert!(found.contains("the key `prompt` stands twice") && found.contains("a.jsonl:1:32"), "{found}");
}

#[test]
fn calls_of_tools_are_refused() {
    let text = r#"{"messages":[{"role":"user","content":"Rain in Quito?"},{"role":"assistant","content":"Wait.","tool_calls":[{"id":"c9","type":"function"}]}]}"#;
    let found = error("a.jsonl", text.as_bytes());
    assert!(
        found.contains("row 1: message 2: `tool_calls`") && found.contains("on_bad_row: skip"),
        "{found}"
    );
}

#[test]
fn markers_and_pretty_printed_objects() {
    let one = |n: u32| {
        format!(
            "{{\n  \"id\": {n},\n  \"conversation\": [\n    {{\"role\": \"system\", \"text\": \"<bos> {{\\\"a\\\": {n}}} <eos>\"}},\n    \
             {{\"role\": \"user\", \"text\": \"<bos> Open? <eos>\"}},\n    {{\"role\": \"assistant\", \"text\": \"<bos> Yes. <eos>\"}}\n  ]\n}}"
        )
    };
    let (report, all) = read("a.json", &format!("{},\n", one(9)), Options::default());
    assert_eq!(all, ["s={\"a\": 9};u=Open?;a=Yes.;"]);
    assert_eq!((report.changed.markers_dropped, report.changed.special_tokens_in_content), (6, 0));
    let (report, _) = read("a.jsonl", &format!("{},\n{}", one(1), one(2)), Options::default());
    assert_eq!((report.rows_in, report.conversations_out), (2, 2));
    let broken = one(3).replace("\"role\": \"user\"", "\"role\": \"usr\"");
    let found = error("a.json", broken.as_bytes());
    assert!(
        found.contains("row 1: message 2 has the unknown role") && found.contains("a.json:5:14"),
        "{found}"
    );
}

#[test]
fn text_is_cut_at_any_name_of_a_role() {
    let text = "# hello\n<User>: Hi <eos>\n<BOT>: Yo <eos>\n\n<human>: There? <eos>\n<bot>: Here <eos>\n\n# end\n\
                <human>: Bye <eos>\n<bot>: See you <eos>\n";
    let expected = ["u=Hi;a=Yo;", "u=There?;a=Here;", "u=Bye;a=See you;"];
    for end in ["\n", "\r\n", "\r"] {
        let (report, all) = read("a.txt", &text.replace('\n', end), Options::default());
        assert_eq!(all, expected, "{end:?}");
        assert_eq!((report.comment_lines, report.blank_lines), (2, 2));
    }
    let roles = [("klien".to_string(), Role::User), ("terapis".to_string(), Role::Assistant)].into();
    let text = "<Klien>: a\n<Terapis>: b\n\n<klien>: c\n<terapis>: d\n";
    let (_, all) = read("a.txt", text, Options { roles, ..Options::default() });
    assert_eq!(all, ["u=a;a=b;", "u=c;a=d;"]);
}

#[test]
fn prompts_may_be_messages_and_pairs_are_kept_beside() {
    let text = r#"{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Capital of Chad?"}],"completion":[{"role":"assistant","content":"N'Djamena."}]}
{"prompt":"Capital of Peru?","chosen":"Lima.","rejected":"Cusco."}
{"chosen":[{"role":"user","content":"Capital of Peru?"},{"role":"assistant","content":"Lima."}],"rejected":[{"role":"user","content":"Capital of Peru?"},{"role":"assistant","content":"Cusco."}]}
{"prompt":"Capital of Peru?","chosen":"Lima.","rejected":"Quito."}
{"prompt":"Same?","chosen":"Yes.","rejected":" Yes."}
{"chosen":"Lima.","rejected":"Cusco."}
"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, text.as_bytes()).unwrap();
    let out = dir.path().join("out");
    let files = [InputFile::new(&path).unwrap()];
    let report = ingest_chat(&files, &skip(), &out, dir.path(), &Quiet).unwrap();
    all_accounted_for(&report);
    assert_eq!((report.preferences_in, report.preferences_out, report.rows_kept), (3, 2, 3));
    assert_eq!((report.conversations_out, report.removed.exact_duplicates), (2, 2));
    let dropped: Vec<_> = report.rows_dropped.into_iter().collect();
    assert_eq!(dropped, [("equal_pair", 1), ("exact_duplicates", 1), ("no_prompt", 1)]);
    let all: Vec<_> =
        PreferenceReader::open(&out.join(preference::FILE_NAME)).unwrap().map(Result::unwrap).collect();
    assert_eq!((all.len(), all[1].rejected[0].content.as_str(), all[1].row), (2, "Quito.", 4));
    assert_eq!(all[0].prompt, [Message::new(Role::User, "Capital of Peru?")]);
    let (_, told) = read("a.jsonl", r#"{"prompt":"q","answer":"a"}"#, Options::default());
    assert_eq!(told, ["u=q;a=a;"]);
}

#[test]
fn fields_of_other_names_are_given() {
    let fields = |user: &str, context: Option<&str>| FieldNames {
        user: user.into(),
        assistant: "reply".into(),
        system: None,
        context: context.map(str::to_string),
        history: None,
    };
    let options = |fields| Options {
        fields: Some(fields),
        join: "{context}\n{question}".into(),
        delimiter: Some(';'),
        encoding: Encoding::Latin1,
        ..Options::default()
    };
    let csv = b"ask;reply;about\nWo?;Im Caf\xE9.;Ulm\n";
    let (_, all) = run(&[("a.csv", csv)], options(fields("ask", Some("about")))).unwrap();
    assert_eq!(told(&all[0]), "u=Ulm\nWo?;a=Im Café.;");
    let found = run(&[("a.csv", csv)], options(fields("ask", Some("abut")))).unwrap_err().to_string();
    assert!(
        found.contains("no row of `a.csv` has the field `abut`, which `fields.context` names"),
        "{found}"
    );
    assert!(found.contains("did you mean `about`?"), "{found}");
    let found = run(&[("a.csv", csv)], options(fields("aks", None))).unwrap_err().to_string();
    assert!(found.contains("missing is `aks`") && found.contains("is `ask` misspelt?"), "{found}");
    for (mistaken, param) in [
        (Options { join: "{question}".into(), ..Options::default() }, "join"),
        (options(fields("reply", None)), "fields.assistant"),
        (Options { format: FormatChoice::Messages, ..options(fields("ask", None)) }, "fields"),
        (Options { delimiter: Some('é'), ..Options::default() }, "delimiter"),
    ] {
        assert_eq!(mistaken.validate()[0].param, param);
    }
}

#[test]
fn bytes_that_are_not_in_the_encoding_are_refused_replaced_or_skipped() {
    let rows = b"{\"prompt\":\"q\xFF\",\"answer\":\"a\"}\n{\"prompt\":\"r\",\"answer\":\"a\"}\n";
    let with = |on_invalid| Options { on_invalid, ..Options::default() };
    let found = run(&[("a.jsonl", rows)], skip()).unwrap_err().to_string();
    assert!(found.contains("row 1: the byte 0xFF") && found.contains("a.jsonl:1:13"), "{found}");
    let (report, all) = run(&[("a.jsonl", rows)], with(OnInvalid::Replace)).unwrap();
    assert_eq!((told(&all[0]).as_str(), report.changed.text.invalid_bytes_replaced), ("u=q\u{FFFD};a=a;", 1));
    let (report, all) = run(&[("a.jsonl", rows)], with(OnInvalid::SkipDocument)).unwrap();
    assert_eq!((all.len(), report.rows_dropped["invalid_encoding"]), (1, 1));
    let csv = b"prompt,answer\nq,a\xFF\n";
    let (report, all) = run(&[("a.csv", csv)], with(OnInvalid::Replace)).unwrap();
    assert_eq!((told(&all[0]).as_str(), report.changed.text.invalid_bytes_replaced), ("u=q;a=a\u{FFFD};", 1));
    assert!(error("a.csv", csv).contains("a.csv:2:4"));
}

/// A Parquet file with the columns of these rows of JSON, and `more`.
fn parquet(rows: &str, more: Option<(&str, ArrayRef)>) -> Vec<u8> {
    let mut lines = rows.as_bytes();
    let (schema, _) = arrow::json::reader::infer_json_schema_from_seekable(
        &mut std::io::BufReader::new(std::io::Cursor::new(rows.as_bytes())),
        None,
    )
    .unwrap();
    let mut batch = ReaderBuilder::new(Arc::new(schema)).build(&mut lines).unwrap().next().unwrap().unwrap();
    if let Some((name, column)) = more {
        let mut columns: Vec<(String, ArrayRef)> =
            batch.schema().fields().iter().map(|f| f.name().clone()).zip(batch.columns().to_vec()).collect();
        columns.push((name.to_string(), column));
        batch = RecordBatch::try_from_iter(columns).unwrap();
    }
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn nested_parquet_is_read_as_json_is() {
    let rows = r#"{"system":"Be.","messages":[{"role":"user","content":"1?"},{"role":"assistant","content":"a\nb","weight":0},{"role":"user","content":"2?"},{"role":"assistant","content":"c"}],"n":3}
{"messages":[{"role":"user","content":"3?"},{"role":"assistant","content":"d","weight":1}]}
"#;
    let (report, all) = run(&[("a.parquet", &parquet(rows, None))], Options::default()).unwrap();
    let told: Vec<String> = all.iter().map(told).collect();
    assert_eq!(told, ["s=Be.;u=1?;a0=a\nb;u=2?;a=c;", "u=3?;a=d;"]);
    assert_eq!((all[1].row, report.files[0].ignored_keys.rows()["n"]), (2, 1));
    let bad = parquet(&rows.replace("\"3?\"", "\"\""), None);
    let found = error("a.parquet", &bad);
    assert!(found.contains("`a.parquet`: row 2: message 1 (user) is empty"), "{found}");
    let picture: ArrayRef = Arc::new(BinaryArray::from(vec![b"\xFF\xD8".as_slice(), b""]));
    let bytes = parquet(rows, Some(("picture", picture)));
    let found = error("a.parquet", &bytes);
    assert!(found.contains("the column `picture`") && found.contains("`ignore`"), "{found}");
    let ignore = vec!["picture".to_string()];
    assert_eq!(run(&[("a.parquet", &bytes)], Options { ignore, ..Options::default() }).unwrap().1.len(), 2);
    let twice: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
    assert!(error("a.parquet", &parquet(rows, Some(("n", twice)))).contains("two columns called `n`"));
    assert!(error("a.parquet", b"PAR1nothing of the kindPAR1").contains("cannot read `a.parquet`"));
}

#[test]
fn what_is_no_conversation_is_said() {
    assert!(error("a.yml", b"x: 1").contains("is YAML"));
    assert!(error("a.md", b"# x").contains("a document, not a conversation"));
    assert!(error("a.jsonl.gz", b"x").contains("unpack it first"));
    let found = error("a.jsonl", b"{\"text\":\"Once.\"}\n");
    assert!(
        found.contains("a document, not a conversation") && found.contains("sharegpt: `conversations`"),
        "{found}"
    );
    let found = error("a.jsonl", b"{\"message_tree_id\":\"1\",\"prompt\":{\"text\":\"a\",\"replies\":[]}}\n");
    assert!(found.contains("OpenAssistant"), "{found}");
}

/// The folders of real chats, where they are there; the message of what is refused, or rows in and
/// conversations out.
#[test]
fn real_conversations_are_ingested_or_refused_with_a_reason() {
    let merge = || Options { same_role: SameRole::Merge, ..skip() };
    type Outcome = Result<(u64, u64), &'static str>;
    let real: [(&str, Options, Outcome); 9] = [
        ("conv_synthetic_persona_chat/messages.jsonl", merge(), Ok((1_962, 1_900))),
        ("conv_synthetic_persona_chat/Synthetic-Persona-Chat_test.csv", skip(), Err("no known format")),
        ("conv_synthetic_persona_chat/Synthetic-Persona-Chat_valid.csv", skip(), Err("no known format")),
        ("conv_sharegpt_format/dummy_conversation.json", merge(), Ok((500, 1))),
        ("conv_self_dialogue/dialogues_10k.jsonl", skip(), Ok((10_000, 9_900))),
        ("conv_oasst_en100/en_100_tree.jsonl", skip(), Err("a tree of messages with alternative replies")),
        ("conv_chatterbot/english/ai.yml", skip(), Err("is YAML")),
        ("instr_fairytaleqa/qa.jsonl", skip(), Ok((10_580, 10_000))),
        ("instr_self_instruct_seeds/seed_tasks.jsonl", skip(), Ok((175, 175))),
    ];
    for (name, options, expected) in real {
        let path = format!("{}/../shared/data/{name}", env!("CARGO_MANIFEST_DIR"));
        let Ok(file) = InputFile::new(Path::new(&path)) else {
            println!("skipped: {path} is not there");
            continue;
        };
        let dir = tempfile::tempdir().unwrap();
        let result = ingest_chat(&[file], &options, dir.path(), dir.path(), &Quiet);
        match expected {
            Ok((rows, least)) => {
                let report = result.unwrap();
                all_accounted_for(&report);
                let json = serde_json::to_string(&report.files[0]).unwrap();
                println!("{name}: {json} {:?} {:?}", report.removed, report.changed);
                assert_eq!(report.rows_in, rows, "{name}");
                assert!(report.conversations_out >= least, "{report:?}");
            }
            Err(reason) => {
                let found = result.unwrap_err().to_string();
                println!("{name}: {found}");
                assert!(found.contains(reason), "{found}");
            }
        }
    }
}

#[test]
fn a_byte_order_mark_tells_the_encoding() {
    let text = "<user>: Où? <eos>\n<bot>: À gauche 🙂 <eos>\n";
    let utf16: Vec<u8> = [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let (report, all) = run(&[("a.txt", &utf16)], Options::default()).unwrap();
    assert_eq!(told(&all[0]), "u=Où?;a=À gauche 🙂;");
    assert_eq!((report.files[0].encoding, report.bytes_in), (Encoding::Utf16Le, utf16.len() as u64));
    let found = error("a.txt", &utf16[2..]);
    assert!(found.contains("UTF-16LE"), "{found}");
    let found = error("a.csv", b"prompt,answer,prompt\nq,a,r\n");
    assert!(found.contains("two columns called `prompt`"), "{found}");
}
