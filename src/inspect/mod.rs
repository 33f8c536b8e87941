//! What is in a file: Parquet, tokenizer, model, metrics, JSON, text; and in a folder of them.
//!
//! The type of a file is found from its content, not its extension: blobs in a store have none. Nothing
//! here computes with a model or a tokenizer: the caller may pass [`Options::decode`].

mod gguf;
mod histogram;
mod json;
mod lines;
mod model;
mod parquet;
mod rows;
mod text;
mod tokenizer;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

pub use self::histogram::{Histogram, histogram};
pub use self::json::Document;
pub use self::lines::{Curve, Lines};
pub use self::model::{Adapter, ModelSummary, Tensor, Tied};
pub use self::parquet::{Column, Parquet};
pub use self::rows::{RowColumn, Rows, rows};
pub use self::text::{InvalidUtf8, TextSummary};
pub use self::tokenizer::{Token, TokenizerSummary, Vocabulary, vocabulary};

use crate::base::table::{Table, shorten};
use crate::base::{Error, Result, fs, units};
use crate::corpus::binary;
use crate::eval::items::ITEMS_FILE;
use crate::model::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};

/// Token ids to text; `None` when they are not of this tokenizer.
pub type Decode<'a> = dyn Fn(&[u32]) -> Option<String> + 'a;

/// How closely to look.
pub struct Options<'a> {
    /// Rows or lines to show from the head (and, of JSON lines, from the end).
    pub rows: usize,
    /// Read all of a Parquet file for the statistics of its columns, rather than its footer alone.
    pub statistics: bool,
    /// The `config.json` of a model; without it, the file of that name beside the model.
    pub config: Option<PathBuf>,
    /// Shows lists of unsigned integers as the text they encode.
    pub decode: Option<&'a Decode<'a>>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { rows: 3, statistics: true, config: None, decode: None }
    }
}

/// What a file or a folder holds. Serializes for programs, [`Report::render`]s for people.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub name: String,
    pub bytes: u64,
    #[serde(flatten)]
    pub content: Content,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    Parquet(Parquet),
    Tokenizer(TokenizerSummary),
    Model(ModelSummary),
    /// One JSON object a line: metrics, samples, chats.
    Lines(Lines),
    Json(Document),
    Text(TextSummary),
    Files(Files),
    Empty,
    Binary(Binary),
}

/// Bytes that none of the others describes.
#[derive(Debug, Clone, Serialize)]
pub struct Binary {
    /// The file type that the first bytes usually mean (magic number).
    pub known_as: Option<&'static str>,
    /// The first bytes, in hexadecimal.
    pub head: String,
}

/// Several files: the most informative in full, the others in one line each.
#[derive(Debug, Clone, Serialize)]
pub struct Files {
    pub files: Vec<Entry>,
    /// How many more there are than are listed.
    pub unlisted: usize,
    pub main: Option<Box<Report>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub name: String,
    pub bytes: u64,
    pub summary: String,
}

/// What is in the file or folder at `path`. `name` is what to call it in the report and, where the
/// content alone leaves it open, a hint: `tokenizer.json`, `train-00000.parquet`.
///
/// # Errors
/// When it cannot be read, or is a damaged file of a known format: says where.
pub fn inspect(path: &Path, name: &str, options: &Options) -> Result<Report> {
    examine(path, name, options).map_err(|e| e.context(format!("cannot inspect `{name}`")))
}

/// [`inspect`], without the name in its errors.
fn examine(path: &Path, name: &str, options: &Options) -> Result<Report> {
    if path.is_dir() {
        let below = fs::files_below(path)?;
        let named = |file: PathBuf| {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().replace('\\', "/");
            (name, file)
        };
        let files: Vec<_> = below.into_iter().map(named).collect();
        return inspect_files(name, &files, options);
    }
    let bytes = fs::size(path)?;
    let content = content(path, name, options)?;
    Ok(Report { name: name.to_string(), bytes, content })
}

/// Files listed of a folder at most.
const LISTED: usize = 100;

/// What is in each of `files`, (name, path), which together are called `name`: an artifact. A single
/// file is reported as itself.
///
/// # Errors
/// When the most informative file cannot be read; for the others, their entry has the error.
pub fn inspect_files(name: &str, files: &[(String, PathBuf)], options: &Options) -> Result<Report> {
    if let [(only, path)] = files {
        return inspect(path, only, options);
    }
    let brief = Options { rows: 0, statistics: false, config: None, decode: None };
    let mut main: Option<(u8, usize)> = None;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for (i, (name, path)) in files.iter().enumerate() {
        let size = fs::size(path)?;
        bytes += size;
        if i >= LISTED {
            continue;
        }
        let report = examine(path, name, &brief);
        let rank = report.as_ref().ok().and_then(|r| r.content.rank(name));
        if rank.is_some_and(|rank| main.is_none_or(|(best, _)| rank < best)) {
            main = rank.map(|rank| (rank, i));
        }
        let summary = report.map_or_else(|e| format!("damaged: {}", e.message()), |r| r.content.summary());
        entries.push(Entry { name: name.clone(), bytes: size, summary });
    }
    let main = match main {
        Some((_, i)) => {
            let is_adapter = files[i].0 == ADAPTER_WEIGHTS_FILE;
            let beside = if is_adapter { ADAPTER_CONFIG_FILE } else { model::CONFIG };
            let config = files.iter().find(|(name, _)| name == beside).map(|(_, path)| path.clone());
            let config = options.config.clone().or(config);
            Some(Box::new(inspect(&files[i].1, &files[i].0, &Options { config, ..*options })?))
        }
        None => None,
    };
    let unlisted = files.len() - entries.len();
    let content = Content::Files(Files { files: entries, unlisted, main });
    Ok(Report { name: name.to_string(), bytes, content })
}

fn content(path: &Path, name: &str, options: &Options) -> Result<Content> {
    let head = sign(path)?;
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head).trim_ascii_start();
    match text.first() {
        None if fs::size(path)? == 0 => Ok(Content::Empty),
        _ if head.starts_with(b"PAR1") => parquet::read(path, options).map(Content::Parquet),
        _ if model::is_safetensors(&head) => model::read(path, options).map(Content::Model),
        _ if gguf::is_gguf(&head) => gguf::read(path, options).map(Content::Model),
        _ if head.contains(&0) || binary::known_as(&head).is_some() => Ok(Content::Binary(Binary::of(&head))),
        Some(b'{' | b'[') => json_or_text(path, name, options),
        _ => text::read(path, options).map(Content::Text),
    }
}

/// Whether [`inspect`] reads the file at `path` from beginning to end: a text or JSON, unlike Parquet and models.
///
/// # Errors
/// When it cannot be read.
pub fn is_read_whole(path: &Path) -> Result<bool> {
    let head = sign(path)?;
    let is_binary = head.contains(&0) || binary::known_as(&head).is_some();
    Ok(!(is_binary || head.starts_with(b"PAR1") || model::is_safetensors(&head) || gguf::is_gguf(&head)))
}

/// The first bytes of a file, by which its type is found.
fn sign(path: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    fs::open(path)?.take(4096).read_to_end(&mut head).map_err(|e| Error::io("read", path, &e))?;
    Ok(head)
}

/// A file that begins as JSON does: JSON lines, one JSON document, or a text with a bracket.
fn json_or_text(path: &Path, name: &str, options: &Options) -> Result<Content> {
    let lines = name.ends_with(".jsonl") || name.ends_with(".ndjson");
    if lines || lines::is_json_lines(path)? {
        return lines::read(path, options).map(Content::Lines);
    }
    let found = json::read(path);
    if found.is_ok() {
        json::expect_unique_keys(path)?;
    }
    match found {
        Ok(value) if tokenizer::is_tokenizer(&value) => Ok(Content::Tokenizer(tokenizer::read(&value)?)),
        Ok(value) => Ok(Content::Json(Document { value })),
        Err(e) if name.ends_with(".json") => Err(e),
        Err(_) => text::read(path, options).map(Content::Text),
    }
}

impl Content {
    /// A line about it.
    pub fn summary(&self) -> String {
        match self {
            Content::Parquet(p) => p.summary(),
            Content::Tokenizer(t) => t.summary(),
            Content::Model(m) => m.summary(),
            Content::Lines(l) => l.summary(),
            Content::Json(d) => d.summary(),
            Content::Text(t) => t.summary(),
            Content::Files(f) => format!("{} files", f.files.len() + f.unlisted),
            Content::Empty => "empty".to_string(),
            Content::Binary(b) => b.known_as.unwrap_or("binary").to_string(),
        }
    }

    /// How informative it is among other files, higher for more; `None`: one line about it is enough.
    fn rank(&self, name: &str) -> Option<u8> {
        match self {
            Content::Model(_) => Some(0),
            // What an evaluation found says more than the items that it was computed from.
            Content::Parquet(_) if name == ITEMS_FILE => Some(4),
            Content::Parquet(_) => Some(1),
            Content::Tokenizer(_) => Some(2),
            Content::Json(_) if name == "report.json" => Some(3),
            _ => None,
        }
    }
}

impl Binary {
    fn of(head: &[u8]) -> Self {
        let known_as = binary::known_as(head);
        let head: Vec<String> = head.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Binary { known_as, head: head.join(" ") }
    }
}

impl Report {
    /// For a terminal of `width` characters.
    pub fn render(&self, width: usize) -> String {
        let width = width.max(40);
        let mut page = Page { width, out: String::new() };
        page.line(format!("{}: {}, {}", self.name, self.content.summary(), units::bytes(self.bytes)));
        match &self.content {
            Content::Parquet(p) => p.render(&mut page),
            Content::Tokenizer(t) => t.render(&mut page),
            Content::Model(m) => m.render(&mut page),
            Content::Lines(l) => l.render(&mut page),
            Content::Json(d) => d.render(&mut page),
            Content::Text(t) => t.render(&mut page),
            Content::Files(f) => f.render(&mut page),
            Content::Binary(b) => page.line(format!("begins with {}", b.head)),
            Content::Empty => {}
        }
        page.out
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(100))
    }
}

impl Files {
    fn render(&self, page: &mut Page) {
        let mut table = Table::new(["file", ">size", "content"]);
        for file in &self.files {
            table.push([file.name.clone(), units::bytes(file.bytes), file.summary.clone()]);
        }
        page.table(&table);
        if self.unlisted > 0 {
            page.line(format!("and {} more", units::count(self.unlisted as u64)));
        }
        if let Some(main) = &self.main {
            page.heading(&main.render(page.width));
        }
    }
}

/// A text under construction, of lines that fit a terminal.
struct Page {
    width: usize,
    out: String,
}

impl Page {
    fn line(&mut self, text: impl AsRef<str>) {
        self.out.push_str(&shorten(text.as_ref(), self.width));
        self.out.push('\n');
    }

    /// An empty line and `text`, which may be of several lines.
    fn heading(&mut self, text: &str) {
        self.out.push('\n');
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    /// `name` and `value`, the values one below the other; nothing when there is no value.
    fn field(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.line(format!("{name:<15} {value}"));
        }
    }

    /// Metadata of the file, as key and value.
    fn pairs(&mut self, pairs: &BTreeMap<String, String>) {
        let widest = pairs.keys().map(|key| key.chars().count()).max().unwrap_or(0);
        for (i, (key, value)) in pairs.iter().enumerate() {
            let title = if i == 0 { "metadata" } else { "" };
            self.line(format!("{title:<15} {key:<widest$}  {value}"));
        }
    }

    fn table(&mut self, table: &Table) {
        if !table.is_empty() {
            let text = table.render(self.width);
            self.heading(&text);
        }
    }

    /// Rows one below the other, a line a column: for values that are long.
    fn rows(&mut self, title: &str, first: u64, rows: &[Row]) {
        for (i, row) in rows.iter().enumerate() {
            self.heading(&format!("{title} {}", first + i as u64));
            let widest = row.keys().map(|key| key.chars().count()).max().unwrap_or(0);
            for (key, value) in row {
                self.line(format!("  {key:<widest$}  {}", plain(value)));
            }
        }
    }
}

/// The values of a row by the names of their columns.
type Row = serde_json::Map<String, Value>;

/// A string without quotes, anything else as JSON; lists of numbers with how many there are.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.len() > 8 && items[0].is_number() => {
            let head: Vec<String> = items.iter().take(8).map(Value::to_string).collect();
            format!("[{}, …] {} items", head.join(", "), units::count(items.len() as u64))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
