//! Multiple choice by likelihood: of several ways to go on, the right one should be the most probable, as a
//! whole or by byte (Brown et al., 2020, section 2.4; `acc` and `acc_norm` of EleutherAI's evaluation harness).
//!
//! A row, which is JSON lines, is `{"id", "category", "question" or "context", "choices": […], "answer"}`, where
//! the answer is the number of the right choice, from 0, or its text. The tokens of a choice are scored behind
//! those of `<bos>` and the question, with a space between unless there is white space already; where the
//! tokenizer joins the two in one token, the choice begins with that token. With `as_chat` the question is a
//! user's turn and the choice what the assistant says. There is no `<eos>`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::Reach;
use super::items::{Item, Task};
use super::rows::{self, Entry, Form, Row};
use super::short::{self, Short};
use crate::base::{Monitor, Result};
use crate::corpus::conversation::{Message, Role};
use crate::corpus::input::InputFile;
use crate::corpus::json::Step;
use crate::generate;
use crate::model::{Executor, Model};
use crate::tokenizer::chat;

/// The figures of choices.
#[derive(Debug, Clone, Serialize)]
pub struct Choices {
    #[serde(flatten)]
    pub all: Right,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_category: BTreeMap<String, Right>,
    /// Questions that with a choice were scored in several windows.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub longer_than_context: u64,
}

/// How often the right choice was the most probable one; a tie of `k` counts `1/k`.
#[derive(Debug, Clone, Serialize)]
pub struct Right {
    pub items: u64,
    pub accuracy: f64,
    /// By nats a byte.
    pub accuracy_per_byte: f64,
}

impl Right {
    fn of<'a>(items: impl Iterator<Item = &'a Item>) -> Option<Self> {
        let (mut count, mut score, mut per_byte) = (0, 0.0, 0.0);
        for item in items {
            count += 1;
            score += item.score;
            per_byte += item.score_per_byte;
        }
        let share = |sum: f64| sum / count as f64;
        (count > 0).then(|| Right {
            items: count,
            accuracy: share(score),
            accuracy_per_byte: share(per_byte),
        })
    }
}

const QUESTION: [&str; 2] = ["question", "context"];

const FORM: Form = Form {
    what: "questions with choices",
    id: &["id"],
    group: &["category"],
    by_group: false,
    fields: &["question", "context", "choices", "answer"],
    unused: &[],
    strict: false,
    tables: false,
};

/// Scores the choices in `files`. Gives an item of each question, and how many are longer than the context.
///
/// # Errors
/// A row that is no question with choices, with its place; a model without tokens for roles, `as_chat`;
/// cancellation; logits that are NaN.
pub fn judge(
    model: &Model,
    executor: &mut Executor,
    files: &[InputFile],
    as_chat: bool,
    reach: Reach,
    monitor: &dyn Monitor,
) -> Result<(Vec<Item>, u64)> {
    let (mut items, mut long) = (Vec::new(), 0);
    let parse = |row: &Row| question(row, model, as_chat);
    rows::read(files, &FORM, monitor, parse, |entries| {
        monitor.step("choices", items.len() as u64, None, "questions")?;
        let texts: Vec<Short> = entries.iter().flat_map(|entry| entry.content.choices.clone()).collect();
        let nats = short::nats(model, executor, &texts, reach, monitor)?;
        let mut nats = nats.as_slice();
        for entry in &entries {
            let (own, rest) = nats.split_at(entry.content.choices.len());
            let longest = entry.content.choices.iter().map(|choice| choice.ids.len()).max();
            long += u64::from(longest.is_some_and(|tokens| tokens > reach.context + 1));
            items.push(item(entry, own));
            nats = rest;
        }
        Ok(())
    })?;
    Ok((items, long))
}

/// The figures of `items`; `None` where there is none.
pub fn figures(items: &[Item], longer_than_context: u64) -> Option<Choices> {
    let mut groups: BTreeMap<String, Vec<&Item>> = BTreeMap::new();
    for item in items.iter().filter(|item| !item.group.is_empty()) {
        groups.entry(item.group.clone()).or_default().push(item);
    }
    let groups = groups.into_iter().filter_map(|(name, own)| Some((name, Right::of(own.into_iter())?)));
    let by_category = groups.collect();
    Some(Choices { all: Right::of(items.iter())?, by_category, longer_than_context })
}

struct Question {
    /// Each choice behind the question.
    choices: Vec<Short>,
    /// Of each choice.
    bytes: Vec<u64>,
    right: usize,
}

fn item(entry: &Entry<Question>, nats: &[f64]) -> Item {
    let Question { choices, bytes, right } = &entry.content;
    let per_byte: Vec<f64> = nats.iter().zip(bytes).map(|(nats, bytes)| nats / *bytes as f64).collect();
    let item = Item::scored(Task::Choices, &entry.group, &entry.id, share(nats, *right));
    let (tokens, bytes) = (choices[*right].scored(), bytes[*right]);
    Item { tokens, bytes, nats: nats[*right], score_per_byte: share(&per_byte, *right), ..item }
}

/// 1 where the cost at `right` is the least, `1/k` where it is one of `k` least ones, else 0.
fn share(costs: &[f64], right: usize) -> f64 {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let ties = costs.iter().filter(|cost| **cost == least).count();
    if costs[right] == least { 1.0 / ties as f64 } else { 0.0 }
}

fn question(row: &Row, model: &Model, as_chat: bool) -> Result<Question> {
    let context = row.needed_text(&QUESTION)?;
    let texts = texts(row)?;
    let right = right(row, &texts)?;
    let head = match as_chat {
        true => chat::prompt(&model.tokenizer, &[Message::new(Role::User, context)])?,
        false => generate::ids_of(model, context)?,
    };
    let choice = |text: &&str| match as_chat {
        true => Ok(behind(&head, model.tokenizer.encode(text)?)),
        false => Ok(joined(&head, generate::ids_of(model, &join(context, text))?)),
    };
    let choices: Vec<Short> = texts.iter().map(choice).collect::<Result<_>>()?;
    if let Some(i) = choices.iter().position(|choice| choice.scored() == 0) {
        let error =
            row.error(&[Step::Key("choices"), Step::Index(i)], "this choice has no token that is scored");
        return Err(error.help("write it longer, or leave the row out"));
    }
    Ok(Question { choices, bytes: texts.iter().map(|text| text.len() as u64).collect(), right })
}

/// The texts of the choices, which differ.
fn texts<'r>(row: &'r Row) -> Result<Vec<&'r str>> {
    let (name, value) = row.needed(&["choices"])?;
    let path = |i| [Step::Key("choices"), Step::Index(i)];
    let all = row.list(&[Step::Key(name)], name, value)?.iter().enumerate();
    let texts: Vec<&str> = all.map(|(i, value)| row.text(&path(i), name, value)).collect::<Result<_>>()?;
    if let [only] = texts.as_slice() {
        let error = row.error(&[Step::Key(name)], format!("there is one choice alone: {only:?}"));
        return Err(error.help("give two at least"));
    }
    let twice = (1..texts.len()).find(|i| texts[..*i].contains(&texts[*i]));
    match twice {
        Some(i) => Err(row
            .error(&path(i), format!("the choice {:?} is there twice", texts[i]))
            .help("leave one of them out, so that one answer is right")),
        None => Ok(texts),
    }
}

/// Which of the choices `answer` names.
fn right(row: &Row, texts: &[&str]) -> Result<usize> {
    let (name, value) = row.needed(&["answer"])?;
    let path = [Step::Key(name)];
    let help = format!("write the number of the right choice, 0 to {}, or its text", texts.len() - 1);
    match value {
        Value::Number(number) => {
            let right = number.as_u64().filter(|right| (*right as usize) < texts.len());
            let message = || format!("`{name}` is {number}, and the choices are 0 to {}", texts.len() - 1);
            right.map(|right| right as usize).ok_or_else(|| row.error(&path, message()).help(help))
        }
        Value::String(text) => {
            let message = || format!("`{name}` is {text:?}, which is none of the choices");
            texts
                .iter()
                .position(|choice| choice == text)
                .ok_or_else(|| row.error(&path, message()).help(help))
        }
        other => Err(row.wrong(&path, name, "a number or a text", other)),
    }
}

fn join(context: &str, choice: &str) -> String {
    let apart = context.ends_with(char::is_whitespace) || choice.starts_with(char::is_whitespace);
    format!("{context}{}{choice}", if apart { "" } else { " " })
}

/// `ids` of a question and a choice; scored from where they differ from those of the question alone.
fn joined(question: &[u32], ids: Vec<u32>) -> Short {
    let same = question.iter().zip(&ids).take_while(|(a, b)| a == b).count();
    Short { ids, first: same.max(1) }
}

fn behind(head: &[u32], choice: Vec<u32>) -> Short {
    Short { first: head.len().max(1), ids: [head, &choice].concat() }
}
