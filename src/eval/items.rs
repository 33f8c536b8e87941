//! Every evaluated item of a report, one a row of `items.parquet`: what its figures, their intervals and
//! comparisons with other models are computed from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Float64Builder, RecordBatch, StringArray, StringBuilder, UInt64Array,
    UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use crate::base::{Error, Result, suggest};
use crate::corpus::parquet_io::column;
use crate::corpus::table::{Columns, RowReader, RowWriter};

/// The file of a report with its items.
pub const ITEMS_FILE: &str = "items.parquet";

/// What a model is asked to do with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// To predict each token of a document.
    Documents,
    /// To predict each token of a conversation's answers.
    Chats,
    /// To say the next word of a document.
    Completion,
    /// To say one of the accepted next words of a text.
    Cloze,
    /// To find the grammatical sentence of two the more probable one.
    Pairs,
    /// To find the right one of several answers the most probable one.
    Choices,
    /// To answer a question.
    Exam,
}

impl Task {
    pub const ALL: [Task; 7] =
        [Task::Documents, Task::Chats, Task::Completion, Task::Cloze, Task::Pairs, Task::Choices, Task::Exam];

    /// As files and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Documents => "documents",
            Task::Chats => "chats",
            Task::Completion => "completion",
            Task::Cloze => "cloze",
            Task::Pairs => "pairs",
            Task::Choices => "choices",
            Task::Exam => "exam",
        }
    }
}

/// One evaluated item.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub task: Task,
    /// The source file, paradigm or category; `""` where there is none.
    pub group: String,
    /// The same for every model that is judged on the same item: the digest of a text, paradigm and number of
    /// a pair, the id of a question.
    pub id: String,
    /// How many tokens were scored; 0 where text was generated.
    pub tokens: u64,
    /// Of the text that the scored tokens stand for.
    pub bytes: u64,
    /// The sum of `-ln p` of the scored tokens; of a pair, that of the bad sentence less that of the good one;
    /// of choices, that of the right one; 0 where text was generated.
    pub nats: f64,
    /// Of documents and chats, how many scored tokens were the most probable at their place.
    pub top1: u64,
    /// The same for the five most probable ones.
    pub top5: u64,
    /// 1 right, 0 wrong, one half of a tie; 0 of documents and chats.
    pub score: f64,
    /// Of choices, whether the right one has the fewest nats a byte; else equal to `score`.
    pub score_per_byte: f64,
}

impl Item {
    /// An item that was answered right or wrong, of which nothing else is known.
    pub fn scored(task: Task, group: impl Into<String>, id: impl Into<String>, score: f64) -> Self {
        let (group, id) = (group.into(), id.into());
        let (tokens, bytes, nats, top1, top5) = (0, 0, 0.0, 0, 0);
        Item { task, group, id, tokens, bytes, nats, top1, top5, score, score_per_byte: score }
    }
}

/// A figure of a report: the sum of `numerator` over that of `denominator`, over all items of the task.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// As in `report.json` and in gates.
    pub name: &'static str,
    pub task: Task,
    pub numerator: fn(&Item) -> f64,
    pub denominator: fn(&Item) -> f64,
    pub less_is_better: bool,
}

impl Figure {
    /// The figure called `name`.
    pub fn named(name: &str) -> Option<&'static Figure> {
        FIGURES.iter().find(|figure| figure.name == name)
    }

    /// Numerator and denominator of each item of the figure's task, in their order.
    pub fn pairs(&self, items: &[Item]) -> Vec<(f64, f64)> {
        let own = items.iter().filter(|item| item.task == self.task);
        own.map(|item| ((self.numerator)(item), (self.denominator)(item))).collect()
    }

    /// The figure over `items`; `None` where none of them is of its task, or nothing of them was scored.
    pub fn of(&self, items: &[Item]) -> Option<f64> {
        let sum = |(n, d), (numerator, denominator)| (n + numerator, d + denominator);
        let (numerator, denominator) = self.pairs(items).into_iter().fold((0.0, 0.0), sum);
        (denominator > 0.0).then(|| numerator / denominator)
    }
}

/// How many items of a task there are, and the mean of their scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tally {
    pub items: u64,
    pub accuracy: f64,
}

impl Tally {
    /// `None` of no items.
    pub fn of(items: &[Item]) -> Option<Self> {
        let sum: f64 = items.iter().map(|item| item.score).sum();
        let count = items.len();
        (count > 0).then(|| Tally { items: count as u64, accuracy: sum / count as f64 })
    }
}

/// The tally of each group that has a name.
pub fn by_group(items: &[Item]) -> BTreeMap<String, Tally> {
    let mut groups: BTreeMap<String, (u64, f64)> = BTreeMap::new();
    for item in items.iter().filter(|item| !item.group.is_empty()) {
        let (count, sum) = groups.entry(item.group.clone()).or_default();
        (*count, *sum) = (*count + 1, *sum + item.score);
    }
    let tally = |(count, sum): (u64, f64)| Tally { items: count, accuracy: sum / count as f64 };
    groups.into_iter().map(|(name, group)| (name, tally(group))).collect()
}

const fn less(
    name: &'static str,
    task: Task,
    numerator: fn(&Item) -> f64,
    denominator: fn(&Item) -> f64,
) -> Figure {
    Figure { name, task, numerator, denominator, less_is_better: true }
}

/// A share: more is better.
const fn share(
    name: &'static str,
    task: Task,
    numerator: fn(&Item) -> f64,
    denominator: fn(&Item) -> f64,
) -> Figure {
    Figure { name, task, numerator, denominator, less_is_better: false }
}

fn bits(item: &Item) -> f64 {
    item.nats / std::f64::consts::LN_2
}

fn nats(item: &Item) -> f64 {
    item.nats
}

fn bytes(item: &Item) -> f64 {
    item.bytes as f64
}

fn tokens(item: &Item) -> f64 {
    item.tokens as f64
}

fn top1(item: &Item) -> f64 {
    item.top1 as f64
}

fn top5(item: &Item) -> f64 {
    item.top5 as f64
}

fn score(item: &Item) -> f64 {
    item.score
}

fn score_per_byte(item: &Item) -> f64 {
    item.score_per_byte
}

fn one(_: &Item) -> f64 {
    1.0
}

/// The figures that items have. Perplexity is e to the loss, and no such quotient.
pub const FIGURES: &[Figure] = &[
    less("bits_per_byte", Task::Documents, bits, bytes),
    less("loss", Task::Documents, nats, tokens),
    share("top1_accuracy", Task::Documents, top1, tokens),
    share("top5_accuracy", Task::Documents, top5, tokens),
    less("chats.bits_per_byte", Task::Chats, bits, bytes),
    less("chats.loss", Task::Chats, nats, tokens),
    share("chats.top1_accuracy", Task::Chats, top1, tokens),
    share("chats.top5_accuracy", Task::Chats, top5, tokens),
    share("completion_accuracy", Task::Completion, score, one),
    share("cloze.accuracy", Task::Cloze, score, one),
    share("pairs.accuracy", Task::Pairs, score, one),
    share("choices.accuracy", Task::Choices, score, one),
    share("choices.accuracy_per_byte", Task::Choices, score_per_byte, one),
    share("exam.pass_rate", Task::Exam, score, one),
];

/// Writes `items.parquet`.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, items: &[Item]) -> Result<()> {
    let mut writer = RowWriter::<ItemColumns>::create_file(path)?;
    items.iter().try_for_each(|item| writer.push(item))?;
    writer.finish().map(drop)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When it cannot be read, or is no file of items.
pub fn read(path: &Path) -> Result<Vec<Item>> {
    RowReader::<ItemColumns>::open(path)?.collect()
}

#[derive(Default)]
struct ItemColumns {
    texts: [StringBuilder; 3],
    counts: [UInt64Builder; 4],
    numbers: [Float64Builder; 3],
}

const TEXTS: [&str; 3] = ["task", "group", "id"];
const COUNTS: [&str; 4] = ["tokens", "bytes", "top1", "top5"];
const NUMBERS: [&str; 3] = ["nats", "score", "score_per_byte"];

impl Columns for ItemColumns {
    type Row = Item;
    const FILE_NAME: &'static str = ITEMS_FILE;
    const WHAT: &'static str = "evaluated items";
    const TEXT: &'static str = "id";

    fn schema() -> Arc<Schema> {
        let fields = |names: &'static [&str], ty: DataType| {
            names.iter().map(move |name| Field::new(*name, ty.clone(), false))
        };
        let texts = fields(&TEXTS, DataType::Utf8);
        let numbers = fields(&COUNTS, DataType::UInt64).chain(fields(&NUMBERS, DataType::Float64));
        Arc::new(Schema::new(texts.chain(numbers).collect::<Vec<_>>()))
    }

    fn push(&mut self, item: &Item) -> usize {
        let texts = [item.task.name(), &item.group, &item.id];
        self.texts.iter_mut().zip(texts).for_each(|(column, value)| column.append_value(value));
        let counts = [item.tokens, item.bytes, item.top1, item.top5];
        self.counts.iter_mut().zip(counts).for_each(|(column, value)| column.append_value(value));
        let numbers = [item.nats, item.score, item.score_per_byte];
        self.numbers.iter_mut().zip(numbers).for_each(|(column, value)| column.append_value(value));
        texts.iter().map(|text| text.len()).sum::<usize>() + 8 * (COUNTS.len() + NUMBERS.len())
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        let texts = self.texts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let counts = self.counts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let numbers = self.numbers.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        texts.chain(counts).chain(numbers).collect()
    }

    fn rows(batch: &RecordBatch, path: &Path) -> Result<Vec<Item>> {
        let text = |name| column::<StringArray>(batch, name, path);
        let count = |name| column::<UInt64Array>(batch, name, path);
        let number = |name| column::<Float64Array>(batch, name, path);
        let (task, group, id) = (text("task")?, text("group")?, text("id")?);
        let (tokens, bytes, top1, top5) = (count("tokens")?, count("bytes")?, count("top1")?, count("top5")?);
        let (nats, score, per_byte) = (number("nats")?, number("score")?, number("score_per_byte")?);
        let item = |row: usize| {
            Ok(Item {
                task: task_of(task.value(row), path)?,
                group: group.value(row).to_string(),
                id: id.value(row).to_string(),
                tokens: tokens.value(row),
                bytes: bytes.value(row),
                nats: nats.value(row),
                top1: top1.value(row),
                top5: top5.value(row),
                score: score.value(row),
                score_per_byte: per_byte.value(row),
            })
        };
        (0..batch.num_rows()).map(item).collect()
    }
}

fn task_of(name: &str, path: &Path) -> Result<Task> {
    Task::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| {
        let known = suggest::list(Task::ALL.map(Task::name));
        let message = format!("`{}` has an item of the task `{name}`, expected {known}", path.display());
        Error::input(message).help("evaluate the model anew with this version of tinylm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;

    fn items() -> Vec<Item> {
        let document = |id: &str, tokens, bytes, nats| {
            let item = Item::scored(Task::Documents, "a.txt", id, 0.0);
            Item { tokens, bytes, nats, top1: tokens / 2, top5: tokens, ..item }
        };
        let choice = |id: &str, score, score_per_byte| Item {
            score_per_byte,
            ..Item::scored(Task::Choices, "", id, score)
        };
        let pair = |number: usize, score| Item::scored(Task::Pairs, "wh", format!("wh/{number}"), score);
        vec![
            document("f00d", 10, 40, 20.0),
            document("beef", 30, 120, 100.0),
            pair(1, 0.5),
            pair(2, 1.0),
            choice("q1", 1.0, 0.0),
            choice("q2", 1.0, 1.0),
        ]
    }

    #[test]
    fn items_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ITEMS_FILE);
        let mut all = items();
        all.extend(Task::ALL.map(|task| Item::scored(task, "naïve — group", "id", 1.0)));
        write(&path, &all).unwrap();
        assert_eq!(read(&path).unwrap(), all);
        write(&path, &[]).unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }

    #[test]
    fn figures_are_quotients_of_sums() {
        let of = |name: &str| Figure::named(name).unwrap().of(&items());
        assert_eq!(of("loss"), Some(3.0));
        assert_eq!(
            of("bits_per_byte"),
            Some((20.0 / std::f64::consts::LN_2 + 100.0 / std::f64::consts::LN_2) / 160.0)
        );
        assert_eq!((of("top1_accuracy"), of("top5_accuracy")), (Some(0.5), Some(1.0)));
        assert_eq!(of("pairs.accuracy"), Some(0.75));
        assert_eq!((of("choices.accuracy"), of("choices.accuracy_per_byte")), (Some(1.0), Some(0.5)));
        assert_eq!((of("exam.pass_rate"), of("chats.loss")), (None, None), "there are no such items");
    }

    #[test]
    fn what_is_no_file_of_items_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ITEMS_FILE);
        fs::write(&path, b"hello").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains(ITEMS_FILE));
        let error = task_of("essay", &path).unwrap_err().to_string();
        assert!(error.contains("`essay`") && error.contains("exam") && error.contains("anew"), "{error}");
    }
}
