//! Exams: questions that a chat model answers, and what is accepted as an answer.
//!
//! A row of the file, which is JSON lines, is a question, or several turns of one conversation:
//!
//! ```json
//! {"id": "sums/1", "category": "sums", "question": "What is 7 plus 5?", "accept": ["12", "twelve"], "reject": ["/\\b(11|13)\\b/"]}
//! {"id": "names/1", "category": "names", "system": "You are Tiny.", "turns": [
//!   {"user": "My name is Ana."},
//!   {"user": "What is my name?", "accept": ["ana"]}]}
//! ```
//!
//! What `accept` and `reject` list is a text, whose words ([`words`]) stand in the answer one after the other;
//! or `/…/`, a regular expression (<https://docs.rs/regex>) that finds something in the answer as it is, where
//! case does not count; or a list of these, all of which must hold. A turn passes where one of `accept` holds
//! and none of `reject`; one that has neither is only said. A question passes where all its turns do. Answers
//! are greedy; the model's own answers are the history of the turns that follow.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::{Map, Value};

use super::items::{Item, Task};
use super::rows::{self, Entry, Form, Row};
use super::words::{holds, words};
use crate::base::table::shorten;
use crate::base::{Monitor, Result};
use crate::corpus::conversation::{Message, Role};
use crate::corpus::input::InputFile;
use crate::corpus::json::Step;
use crate::generate::{self, Strategy};
use crate::model::Model;
use crate::tokenizer::chat;

/// The figures of an exam.
#[derive(Debug, Clone, Serialize)]
pub struct Exam {
    pub questions: u64,
    pub passed: u64,
    pub pass_rate: f64,
    /// Of those that have a category.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_category: BTreeMap<String, Category>,
    /// Turns before which the conversation did not fit the model's context: it saw its end alone.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub longer_than_context: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Category {
    pub questions: u64,
    pub passed: u64,
    pub pass_rate: f64,
}

/// A question as it was answered: a row of `exam.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answered {
    pub id: String,
    pub category: String,
    pub passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    pub turns: Vec<AnsweredTurn>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnsweredTurn {
    pub user: String,
    pub answer: String,
    /// `null` of a turn that is only said.
    pub passed: Option<bool>,
    /// As the exam has them.
    pub accept: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reject: Vec<Value>,
    /// The first of `accept` that holds.
    pub accepted_by: Option<Value>,
    /// The first of `reject` that holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_by: Option<Value>,
}

impl Answered {
    /// What was asked, answered and expected where it first failed, in a line; `None` where it passed.
    pub fn failure(&self) -> Option<String> {
        let turn = self.turns.iter().find(|turn| turn.passed == Some(false))?;
        let quoted = |text: &str| format!("{:?}", shorten(text, 70));
        let why = match &turn.rejected_by {
            Some(rejected) => format!("which `reject` has as {rejected}"),
            None => {
                let accepted: Vec<String> = turn.accept.iter().map(Value::to_string).collect();
                format!("accepted is {}", shorten(&accepted.join(" or "), 70))
            }
        };
        Some(format!("{}: {} was answered {}; {why}", self.id, quoted(&turn.user), quoted(&turn.answer)))
    }
}

/// What an exam found.
#[derive(Debug, Default)]
pub struct Results {
    pub items: Vec<Item>,
    pub answered: Vec<Answered>,
    pub longer_than_context: u64,
}

impl Results {
    /// The figures; `None` of no questions.
    pub fn figures(&self) -> Option<Exam> {
        let mut by_category: BTreeMap<String, Category> = BTreeMap::new();
        for question in &self.answered {
            let category = by_category.entry(question.category.clone()).or_default();
            category.questions += 1;
            category.passed += u64::from(question.passed);
        }
        let (mut questions, mut passed) = (0, 0);
        for category in by_category.values_mut() {
            category.pass_rate = category.passed as f64 / category.questions as f64;
            questions += category.questions;
            passed += category.passed;
        }
        by_category.remove("");
        let (pass_rate, longer_than_context) = (passed as f64 / questions as f64, self.longer_than_context);
        (questions > 0).then_some(Exam { questions, passed, pass_rate, by_category, longer_than_context })
    }
}

const FORM: Form = Form {
    what: "questions of an exam",
    id: &["id"],
    group: &["category"],
    by_group: false,
    fields: &["question", "accept", "reject", "system", "turns"],
    unused: &[],
    strict: true,
    tables: false,
};
const TURN: [&str; 3] = ["user", "accept", "reject"];

/// Questions that are answered side by side.
const AT_ONCE: usize = 64;

/// Has `model` answer the exam in `files`, with at most `max_new_tokens` tokens an answer.
///
/// # Errors
/// A row that is no question, with its place; a model that has no tokens for the roles; cancellation.
pub fn sit(
    model: &Model,
    files: &[InputFile],
    max_new_tokens: usize,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Results> {
    let options = generate::Options { strategy: Strategy::Greedy, max_new_tokens, ..Default::default() };
    let mut results = Results::default();
    rows::read(files, &FORM, monitor, question, |entries| {
        for some in entries.chunks(AT_ONCE) {
            monitor.step("exam", results.answered.len() as u64, None, "questions")?;
            let mut long = 0;
            let judged = answer_all(some, |chats| {
                long += count_long(model, chats)?;
                generate::answers(model, chats, &options, threads, monitor)
            });
            judged.map_err(|e| e.context("the model cannot sit the exam"))?.into_iter().for_each(
                |answered| {
                    let score = f64::from(u8::from(answered.passed));
                    results.items.push(Item::scored(Task::Exam, &answered.category, &answered.id, score));
                    results.answered.push(answered);
                },
            );
            results.longer_than_context += long;
        }
        Ok(())
    })?;
    Ok(results)
}

/// How many conversations the model cannot see as a whole.
fn count_long(model: &Model, chats: &[Vec<Message>]) -> Result<u64> {
    let mut long = 0;
    for chat in chats {
        let tokens = chat::prompt(&model.tokenizer, chat)?.len();
        long += u64::from(tokens > model.transformer.config.seq_len);
    }
    Ok(long)
}

#[derive(Debug)]
struct Question {
    system: Option<String>,
    turns: Vec<Turn>,
}

#[derive(Debug)]
struct Turn {
    user: String,
    accept: Vec<Pattern>,
    reject: Vec<Pattern>,
}

/// An element of `accept` or `reject`.
#[derive(Debug)]
struct Pattern {
    /// As the exam has it.
    written: Value,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Words(Vec<String>),
    Regex(Regex),
    All(Vec<Test>),
}

impl Test {
    fn holds(&self, answer: &str, words_of_it: &[String]) -> bool {
        match self {
            Test::Words(wanted) => holds(words_of_it, wanted),
            Test::Regex(regex) => regex.is_match(answer),
            Test::All(all) => all.iter().all(|test| test.holds(answer, words_of_it)),
        }
    }
}

/// Turn after turn, all questions side by side; `answer` gives the answers to conversations.
fn answer_all(
    questions: &[Entry<Question>],
    mut answer: impl FnMut(&[Vec<Message>]) -> Result<Vec<String>>,
) -> Result<Vec<Answered>> {
    let mut chats: Vec<Vec<Message>> = questions.iter().map(|entry| entry.content.opening()).collect();
    let mut answers: Vec<Vec<String>> = vec![Vec::new(); questions.len()];
    let most = questions.iter().map(|entry| entry.content.turns.len()).max().unwrap_or(0);
    for turn in 0..most {
        let now: Vec<usize> =
            (0..questions.len()).filter(|i| questions[*i].content.turns.len() > turn).collect();
        for i in &now {
            let user = questions[*i].content.turns[turn].user.as_str();
            chats[*i].push(Message::new(Role::User, user));
        }
        let asked: Vec<Vec<Message>> = now.iter().map(|i| chats[*i].clone()).collect();
        for (i, said) in now.into_iter().zip(answer(&asked)?) {
            chats[i].push(Message::new(Role::Assistant, said.as_str()));
            answers[i].push(said);
        }
    }
    let all = questions.iter().zip(answers);
    Ok(all.map(|(entry, answers)| entry.content.judge(entry, answers)).collect())
}

impl Question {
    fn opening(&self) -> Vec<Message> {
        self.system.iter().map(|system| Message::new(Role::System, system.as_str())).collect()
    }

    fn judge(&self, entry: &Entry<Question>, answers: Vec<String>) -> Answered {
        let turns: Vec<_> = self.turns.iter().zip(answers).map(|(turn, answer)| turn.judge(answer)).collect();
        Answered {
            id: entry.id.clone(),
            category: entry.group.clone(),
            passed: turns.iter().all(|turn| turn.passed != Some(false)),
            system: self.system.clone(),
            turns,
        }
    }
}

impl Turn {
    fn judge(&self, answer: String) -> AnsweredTurn {
        let words = words(&answer);
        let first = |patterns: &[Pattern]| {
            patterns.iter().find(|pattern| pattern.test.holds(&answer, &words)).map(|p| p.written.clone())
        };
        let written = |patterns: &[Pattern]| patterns.iter().map(|p| p.written.clone()).collect();
        let (accepted_by, rejected_by) = (first(&self.accept), first(&self.reject));
        let passed = rejected_by.is_none() && (accepted_by.is_some() || self.accept.is_empty());
        AnsweredTurn {
            user: self.user.clone(),
            passed: (!self.is_only_said()).then_some(passed),
            accept: written(&self.accept),
            reject: written(&self.reject),
            accepted_by,
            rejected_by,
            answer,
        }
    }

    fn is_only_said(&self) -> bool {
        self.accept.is_empty() && self.reject.is_empty()
    }
}

/// A row as a question.
fn question(row: &Row) -> Result<Question> {
    let system = match row.first(&["system"]) {
        Some((name, value)) => Some(row.text(&[Step::Key(name)], name, value)?.to_string()),
        None => None,
    };
    let turns = match (row.first(&["question"]), row.first(&["turns"])) {
        (Some(_), Some(_)) => {
            let error = row.error(&[Step::Key("turns")], "a row has `question` or `turns`, not both");
            return Err(error.help("make the question the `user` of the first turn"));
        }
        (_, Some((name, value))) => {
            no_pattern_beside_turns(row)?;
            let all = row.list(&[Step::Key(name)], name, value)?.iter().enumerate();
            all.map(|(i, value)| turn(row, i, value)).collect::<Result<Vec<_>>>()?
        }
        _ => {
            let user = row.needed_text(&["question"])?.to_string();
            vec![turn_of(row, &[], user, &row.fields)?]
        }
    };
    if turns.iter().all(Turn::is_only_said) {
        let help = "write the answers that pass: `\"accept\": [\"twelve\", \"/\\\\b12\\\\b/\"]`";
        return Err(row.error(&[], "nothing is accepted as an answer").help(help));
    }
    Ok(Question { system, turns })
}

fn no_pattern_beside_turns(row: &Row) -> Result<()> {
    let Some((name, _)) = row.first(&["accept", "reject"]) else { return Ok(()) };
    let error = row.error(&[Step::Key(name)], format!("`{name}` stands beside `turns`"));
    Err(error.help("write it into the turn whose answer it judges"))
}

fn turn(row: &Row, number: usize, value: &Value) -> Result<Turn> {
    let path = [Step::Key("turns"), Step::Index(number)];
    let Value::Object(fields) = value else { return Err(row.wrong(&path, "turns", "an object", value)) };
    if let Some(name) = fields.keys().find(|name| !TURN.contains(&name.as_str())) {
        return Err(row.unknown_field(&path, name, TURN.into_iter()));
    }
    let user = fields.get("user").ok_or_else(|| row.missing(&path, "user", fields))?;
    let user = row.text(&join(&path, Step::Key("user")), "user", user)?.to_string();
    turn_of(row, &path, user, fields)
}

fn turn_of(row: &Row, path: &[Step], user: String, fields: &Map<String, Value>) -> Result<Turn> {
    let all = |name| match fields.get(name).filter(|value| !value.is_null()) {
        Some(value) => patterns(row, &join(path, Step::Key(name)), name, value),
        None => Ok(Vec::new()),
    };
    Ok(Turn { user, accept: all("accept")?, reject: all("reject")? })
}

fn patterns(row: &Row, path: &[Step], name: &str, value: &Value) -> Result<Vec<Pattern>> {
    let one = |(i, value): (usize, &Value)| {
        let path = join(path, Step::Index(i));
        let test = match value {
            Value::Array(_) => {
                let parts = row.list(&path, name, value)?.iter().enumerate();
                let part = |(j, value)| simple(row, &join(&path, Step::Index(j)), name, value);
                Test::All(parts.map(part).collect::<Result<_>>()?)
            }
            value => simple(row, &path, name, value)?,
        };
        Ok(Pattern { written: value.clone(), test })
    };
    row.list(path, name, value)?.iter().enumerate().map(one).collect()
}

fn simple(row: &Row, path: &[Step], name: &str, value: &Value) -> Result<Test> {
    let text = row.text(path, name, value)?.trim();
    if let Some(rest) = text.strip_prefix('/') {
        let pattern = rest.strip_suffix('/').filter(|pattern| !pattern.is_empty()).ok_or_else(|| {
            let error =
                row.error(path, format!("`{text}` begins as a regular expression and does not end as one"));
            error.help("write `/…/`, without flags: case never counts")
        })?;
        return regex(pattern).map(Test::Regex).map_err(|why| {
            row.error(path, format!("`{text}` is no regular expression: {why}")).help(REGEX_HELP)
        });
    }
    let words = words(text);
    if words.is_empty() {
        let error =
            row.error(path, format!("`{text}` has neither letters nor digits, so no answer can hold it"));
        return Err(error.help("write it as a regular expression, `/…/`, which sees an answer as it is"));
    }
    Ok(Test::Words(words))
}

const REGEX_HELP: &str =
    "the syntax is that of https://docs.rs/regex (no look-around); in JSON a backslash is written twice";

fn regex(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).case_insensitive(true).build().map_err(|e| {
        let message = e.to_string();
        let last = message.lines().last().unwrap_or_default();
        last.strip_prefix("error: ").unwrap_or(last).to_string()
    })
}

fn join<'a>(path: &[Step<'a>], step: Step<'a>) -> Vec<Step<'a>> {
    path.iter().copied().chain([step]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Quiet, fs};

    fn read(text: &str) -> Result<Vec<Entry<Question>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exam.jsonl");
        fs::write(&path, text.as_bytes()).unwrap();
        let mut all = Vec::new();
        rows::read(&[InputFile::new(&path)?], &FORM, &Quiet, question, |mut some| {
            all.append(&mut some);
            Ok(())
        })?;
        Ok(all)
    }

    /// Whether `answer` passes what a question accepts and rejects, in JSON.
    fn passes(patterns: &str, answer: &str) -> bool {
        let row = format!("{{\"id\": \"q\", \"question\": \"?\", {patterns}}}");
        let all = read(&row).unwrap();
        all[0].content.judge(&all[0], vec![answer.to_string()]).passed
    }

    #[test]
    fn answers_are_matched_by_words_regular_expressions_and_all_of_a_list() {
        let accept = |list: &str, answer: &str| passes(&format!("\"accept\": {list}"), answer);
        assert!(
            accept(r#"["12", "twelve"]"#, "It is TWELVE!") && accept(r#"["it is 12"]"#, "Well, it  is\n12.")
        );
        assert!(
            !accept(r#"["12"]"#, "It is 120.")
                && !accept(r#"["12"]"#, "")
                && !accept(r#"["is it"]"#, "It is.")
        );
        assert!(
            accept(r#"["/^it is \\d+\\.$/"]"#, "It is 12.")
                && !accept(r#"["/^it is \\d+\\.$/"]"#, "it is 12")
        );
        let fox = r#"[["fox", "/\\b(den|forest)\\b/"], "no story"]"#;
        assert!(accept(fox, "A fox slept in its den.") && !accept(fox, "A fox slept."));
        assert!(accept(fox, "I have no story."));
    }

    #[test]
    fn what_is_rejected_fails_whatever_is_accepted() {
        let patterns = r#""accept": ["12"], "reject": ["13", "/sorry/"]"#;
        assert!(passes(patterns, "12") && !passes(patterns, "12 or 13") && !passes(patterns, "12, Sorry."));
        assert!(passes(r#""reject": ["no"]"#, "Yes") && !passes(r#""reject": ["no"]"#, "No!"));
    }

    /// The model's own answers are the history, a turn that is only said is not judged, and conversations of
    /// different lengths go side by side.
    #[test]
    fn turns_see_the_answers_before_them() {
        let questions = read(concat!(
            r#"{"id": "a", "category": "names", "system": "Be kind.", "turns": [{"user": "I am Ana."}, "#,
            r#"{"user": "Who am I?", "accept": ["system user assistant user"]}]}"#,
            "\n",
            r#"{"id": "b", "question": "Hi", "accept": ["user"], "reject": ["assistant"]}"#,
            "\n",
            r#"{"id": "c", "turns": [{"user": "1", "accept": ["nothing"]}, {"user": "2", "accept": ["user"]}]}"#,
        ))
        .unwrap();
        let mut asked = Vec::new();
        let roles = |chat: &Vec<Message>| chat.iter().map(|m| m.role.as_str()).collect::<Vec<_>>().join(" ");
        let answered = answer_all(&questions, |chats| {
            asked.push(chats.len());
            Ok(chats.iter().map(roles).collect())
        })
        .unwrap();
        assert_eq!(asked, [3, 2]);
        let passed: Vec<Vec<Option<bool>>> =
            answered.iter().map(|q| q.turns.iter().map(|turn| turn.passed).collect()).collect();
        assert_eq!(passed, [vec![None, Some(true)], vec![Some(true)], vec![Some(false), Some(true)]]);
        assert_eq!(answered.iter().map(|q| q.passed).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(answered[0].turns[1].accepted_by, Some("system user assistant user".into()));
        assert_eq!(answered[0].failure(), None);
        let failure = answered[2].failure().unwrap();
        assert_eq!(failure, r#"c: "1" was answered "user"; accepted is "nothing""#);

        let results = Results { answered, ..Results::default() };
        let exam = results.figures().unwrap();
        assert_eq!((exam.questions, exam.passed, exam.by_category["names"].pass_rate), (3, 2, 1.0));
        assert!(Results::default().figures().is_none());
    }

    #[test]
    fn a_row_that_is_no_question_is_an_error_with_its_place_and_a_way_out() {
        let table = [
            (r#"{"id": 1, "question": "Hi"}"#, "1:1", "nothing is accepted", "\"accept\": ["),
            (r#"{"accept": ["a"]}"#, "1:1", "`question` is missing", "there are `accept`"),
            (r#"{"question": "", "accept": ["a"]}"#, "1:14", "`question` is empty", "leave the row out"),
            (r#"{"question": 7, "accept": ["a"]}"#, "1:14", "the number 7, expected a text", "write a text"),
            (r#"{"question": "Hi", "accept": "a"}"#, "1:30", "the text \"a\", expected a list", "[\"a\"]"),
            (r#"{"question": "Hi", "accept": []}"#, "1:30", "an empty list", "fill it"),
            (r#"{"question": "Hi", "accept": ["a", 3]}"#, "1:36", "the number 3, expected a text", "write"),
            (r#"{"question": "Hi", "accept": [["a", ["b"]]]}"#, "1:37", "a list, expected a text", "write"),
            (
                r#"{"question": "Hi", "accept": ["/a(/"]}"#,
                "1:31",
                "`/a(/` is no regular expression: unclosed",
                "docs.rs/regex",
            ),
            (
                r#"{"question": "Hi", "accept": ["/a/i"]}"#,
                "1:31",
                "`/a/i` begins as a regular",
                "without flags",
            ),
            (r#"{"question": "Hi", "accept": ["!?"]}"#, "1:31", "neither letters nor digits", "`/…/`"),
            (r#"{"question": "Hi", "acept": ["a"]}"#, "1:29", "no field `acept`", "did you mean `accept`?"),
            (r#"{"question": "Hi", "turns": [], "accept": ["a"]}"#, "1:29", "not both", "first turn"),
            (
                r#"{"turns": [{"user": "Hi"}], "reject": ["a"]}"#,
                "1:39",
                "stands beside `turns`",
                "into the turn",
            ),
            (r#"{"turns": [{"user": "Hi"}, {"accept": ["a"]}]}"#, "1:28", "`user` is missing", "there are"),
            (r#"{"turns": [{"user": "Hi", "acept": ["a"]}]}"#, "1:36", "no field `acept`", "did you mean"),
            (r#"{"turns": ["Hi"]}"#, "1:12", "expected an object", "write an object"),
            (
                "{\"id\": \"a\", \"question\": \"Hi\", \"accept\": [\"a\"]}\n\n{\"id\": \"a\", \"question\": \"Ho\", \"accept\": [\"a\"]}",
                "3:8",
                "`a` is there already, in line 1 of `exam.jsonl`",
                "an id of its own",
            ),
            ("{\"question\": ", "1:12", "not JSON", "one whole JSON value"),
            ("[1]", "1:2", "expected an object, found the number 1", ""),
            ("\n", "", "`exam.jsonl` has no rows", "out of the inputs"),
        ];
        for (row, place, message, help) in table {
            let error = read(row).err().expect(row).to_string();
            let place = if place.is_empty() { String::new() } else { format!("exam.jsonl:{place}\n") };
            assert!(
                error.contains(&place) && error.contains(message) && error.contains(help),
                "{row}\n{error}"
            );
        }
    }
}
