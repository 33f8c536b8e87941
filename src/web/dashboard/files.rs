//! One file of an artifact, a part at a time: what `inspect` says of it, rows with token ids decoded, tokens of a
//! vocabulary, the numbers of a tensor, curves, text.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{ApiError, Shared, blocking, json};
use super::artifacts::gone;
use super::asked::{self, Asked, Named};
use super::{curves, records};
use crate::base::{Digest, Error, Result, fs, suggest, units};
use crate::inspect::{self, Content, RowColumn};
use crate::shard::Shards;
use crate::shard::logits::Logits;
use crate::stage::{Artifact, ArtifactFile};
use crate::store::{Catalog, Store};
use crate::tokenizer::Tokenizer;

/// What of a file is asked for. Without any of them: what `inspect` says.
#[derive(Deserialize)]
pub struct View {
    view: Option<Kind>,
    /// Rows, tokens or bytes to begin behind.
    offset: Option<u64>,
    /// How many rows or tokens.
    rows: Option<usize>,
    /// The most characters of a cell, and ids of a list.
    cell: Option<usize>,
    /// Part of a token, or its id.
    #[serde(default)]
    search: String,
    /// The name of a tensor.
    tensor: Option<String>,
    bins: Option<usize>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Rows,
    Vocabulary,
    Tensor,
    Metrics,
    Json,
    Text,
}

/// The most rows and tokens of a page.
const ROWS: usize = 200;
/// Characters of a cell, unless another number is asked for, and the most.
const CELL: usize = 400;
const LONGEST_CELL: usize = 1 << 20;
/// The most bytes of cells in a page: what comes behind them is left out, and said to be.
const PAGE_BYTES: usize = 4 << 20;
/// The most bytes of text on a page, and of JSON that is laid out.
const TEXT: u64 = 64 << 10;
const LARGEST_JSON: u64 = 16 << 20;
const LONGEST_JSON: usize = 256 << 10;
/// The largest text or JSON that is read as a whole to be described.
const LARGEST_DESCRIBED: u64 = 64 << 20;

pub async fn one(
    State(app): State<Shared>,
    Named((digest, path)): Named<(String, String)>,
    Asked(view): Asked<View>,
) -> Result<Response, ApiError> {
    let digest = asked::digest(&digest)?;
    let found = blocking(move || {
        let store = records(&app);
        if store.manifest(&digest).is_none() {
            return Ok(Err(gone(&digest)));
        }
        let artifact = store.artifact("", &digest)?;
        let Some(file) = artifact.files.iter().find(|file| file.name == path) else {
            return Ok(Err(no_file(&artifact, &path)));
        };
        let seen = Seen { store: &store, artifact: &artifact, file, view: &view };
        seen.show().map(Ok)
    });
    found.await?.map(|found| json(&found))
}

fn no_file(artifact: &Artifact, path: &str) -> ApiError {
    let names = artifact.files.iter().map(|file| file.name.as_str());
    let error = Error::usage(format!("the artifact has no file `{path}`"));
    ApiError::not_found(error.suggest(suggest::closest(path, names)).to_string())
}

/// A file that is asked for, and how.
struct Seen<'a> {
    store: &'a Store,
    artifact: &'a Artifact,
    file: &'a ArtifactFile,
    view: &'a View,
}

impl Seen<'_> {
    fn show(&self) -> Result<Value> {
        self.check()?;
        let shown = match self.view.view {
            None if self.view.tensor.is_some() => self.tensor(),
            None if self.view.rows.is_some() => self.rows(),
            None => self.report(),
            Some(Kind::Rows) => self.rows(),
            Some(Kind::Vocabulary) => self.vocabulary(),
            Some(Kind::Tensor) => self.tensor(),
            Some(Kind::Metrics) => {
                curves::points(self.path()).map(|points| json!(curves::Curves::new(points)))
            }
            Some(Kind::Json) => self.json(),
            Some(Kind::Text) => text(self.path(), self.offset()),
        };
        shown.map_err(|e| e.context(format!("`{}` is not shown", self.file.name)))
    }

    /// The blob is there and has the size that the manifest says.
    fn check(&self) -> Result<()> {
        let name = &self.file.name;
        match fs::stat(self.path()) {
            None => Err(Error::input(format!("`{name}` is not in the store"))
                .help("files that a pipeline reads stay where they are; what a stage made comes back when it runs again")),
            Some(stat) if stat.size != self.file.size => Err(Error::input(format!(
                "`{name}` is damaged: it has {}, its manifest says {}",
                units::bytes(stat.size),
                units::bytes(self.file.size)
            ))
            .help("run its pipeline again: the stage will make it anew")),
            Some(_) => Ok(()),
        }
    }

    fn path(&self) -> &Path {
        &self.file.path
    }

    fn offset(&self) -> u64 {
        self.view.offset.unwrap_or(0)
    }

    fn page(&self, usual: usize) -> usize {
        asked::page(self.view.rows, usual, ROWS)
    }

    /// What `inspect` says, and the views that there are.
    fn report(&self) -> Result<Value> {
        let config = self.artifact.find("config.json").map(Path::to_path_buf);
        let options = inspect::Options { rows: 0, statistics: false, config, decode: None };
        let is_large = self.file.size > LARGEST_DESCRIBED && inspect::is_read_whole(self.path())?;
        if is_large {
            return Ok(
                json!({ "name": self.file.name, "bytes": self.file.size, "type": "large", "views": ["text"] }),
            );
        }
        let mut report = inspect::inspect(self.path(), &self.file.name, &options)?;
        let summary = report.content.summary();
        let views = views(&report.content, &self.file.name);
        // The document itself is a view.
        if let Content::Json(document) = &mut report.content {
            document.value = Value::Null;
        }
        let mut found = super::runs::to_json(&report)?;
        found["summary"] = json!(summary);
        found["views"] = json!(views);
        Ok(found)
    }

    fn rows(&self) -> Result<Value> {
        let page = inspect::rows(self.path(), self.offset(), self.page(50))?;
        let has_ids = page.columns.iter().any(|column| column.is_ids);
        let decoder = if has_ids { Some(self.tokenizer()?) } else { None };
        let tokenizer = decoder.as_ref().and_then(|found| found.as_ref().ok());
        let most = self.view.cell.unwrap_or(CELL).clamp(1, LONGEST_CELL);
        let alternatives = page.columns.iter().any(|column| column.name == "log_probs");
        let shown = Cells { most, alternatives, tokenizer: tokenizer.map(|found| &found.tokenizer) };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in &page.rows {
            let cells: Vec<Value> =
                page.columns.iter().zip(row).map(|(c, value)| shown.cell(c, value)).collect();
            bytes += cells.iter().map(|cell| cell.to_string().len()).sum::<usize>();
            if bytes > PAGE_BYTES && !rows.is_empty() {
                break;
            }
            rows.push(cells);
        }
        let left_out = page.rows.len() - rows.len();
        Ok(json!({
            "total": page.total,
            "offset": page.offset,
            "columns": page.columns,
            "rows": rows,
            "left_out": left_out,
            "tokenizer": tokenizer.map(|found| found.artifact),
            "undecoded": decoder.and_then(std::result::Result::err),
        }))
    }

    /// The tokenizer of the ids in this artifact, which is among what it was made from; or why there is none.
    fn tokenizer(&self) -> Result<Result<Found, String>> {
        let files: Vec<(String, PathBuf)> =
            self.artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
        let of_logits = || Logits::open(&files).map(|logits| logits.header.tokenizer);
        let named = Shards::open(&files).map(|shards| shards.tokenizer).or_else(|_| of_logits()).ok();
        let catalog = Catalog::read(self.store)?;
        let found = behind(&catalog, &self.artifact.digest).into_iter().find_map(|artifact| {
            let file = self.store.artifact("", &artifact).ok()?.find("tokenizer.json")?.to_path_buf();
            let tokenizer = Tokenizer::load(&file).ok()?;
            let is_it = named.is_none_or(|named| tokenizer.digest() == named);
            is_it.then_some(Found { artifact, tokenizer })
        });
        Ok(found.ok_or_else(|| "the tokenizer that these ids belong to is not in the store".to_string()))
    }

    fn vocabulary(&self) -> Result<Value> {
        let inspect::Vocabulary { tokens, special } = inspect::vocabulary(self.path())?;
        let tokenizer = Tokenizer::load(self.path()).ok();
        let text = |id: u64| tokenizer.as_ref()?.decode(&[u32::try_from(id).ok()?]).ok();
        let search = &self.view.search;
        let id: Option<u64> = search.parse().ok();
        let is_found = |token: &&inspect::Token| {
            search.is_empty()
                || id == Some(token.id)
                || token.token.contains(search)
                || text(token.id).is_some_and(|text| text.contains(search))
        };
        let found: Vec<&inspect::Token> = tokens.iter().filter(is_found).collect();
        let shown = found.iter().skip(self.offset() as usize).take(self.page(100));
        let shown: Vec<Value> = shown
            .map(|token| {
                let inspect::Token { id, token } = token;
                json!({ "id": id, "token": token, "text": text(*id), "special": special.contains(id) })
            })
            .collect();
        Ok(json!({ "total": tokens.len(), "found": found.len(), "offset": self.offset(), "tokens": shown }))
    }

    fn tensor(&self) -> Result<Value> {
        let name = self.view.tensor.as_deref().ok_or_else(|| Error::usage("`tensor` names no tensor"))?;
        let bins = asked::page(self.view.bins, 60, 500);
        inspect::histogram(self.path(), name, bins).and_then(|found| super::runs::to_json(&found))
    }

    /// A JSON document, laid out.
    fn json(&self) -> Result<Value> {
        if self.file.size > LARGEST_JSON {
            return text(self.path(), 0);
        }
        let bytes = fs::read(self.path())?;
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else { return text(self.path(), 0) };
        let mut laid_out = serde_json::to_string_pretty(&value).unwrap_or_default();
        let size = laid_out.len();
        if size > LONGEST_JSON {
            laid_out.truncate(laid_out.floor_char_boundary(LONGEST_JSON));
        }
        Ok(json!({ "text": laid_out, "offset": 0, "end": laid_out.len(), "size": size, "laid_out": true }))
    }
}

/// The views of a file beside what is said of it, the one to begin with first.
fn views(content: &Content, name: &str) -> Vec<&'static str> {
    let is_metrics = name.rsplit('/').next() == Some(curves::METRICS_FILE);
    match content {
        Content::Parquet(parquet) if parquet.unshown.is_none() => vec!["rows"],
        Content::Tokenizer(_) => vec!["vocabulary", "json"],
        Content::Model(_) => vec!["tensors"],
        Content::Lines(_) if is_metrics => vec!["metrics", "rows", "text"],
        Content::Lines(_) => vec!["rows", "text"],
        Content::Json(_) => vec!["json"],
        Content::Text(_) => vec!["text"],
        Content::Parquet(_) | Content::Files(_) | Content::Empty | Content::Binary(_) => Vec::new(),
    }
}

/// A tokenizer, and the artifact that it is in.
struct Found {
    artifact: Digest,
    tokenizer: Tokenizer,
}

/// An artifact and what it was made from, the nearest first; an input called `tokenizer` before others.
fn behind(catalog: &Catalog, artifact: &Digest) -> Vec<Digest> {
    const MOST: usize = 1000;
    let (mut all, mut known) = (vec![*artifact], HashSet::from([*artifact]));
    let mut next = 0;
    while next < all.len() && all.len() < MOST {
        let inputs =
            catalog.makers(&all[next]).take(1).flat_map(|made| made.action.fingerprint.inputs.iter());
        let (tokenizers, others): (Vec<_>, Vec<_>) = inputs.partition(|(port, _)| *port == "tokenizer");
        for input in tokenizers.into_iter().chain(others).flat_map(|(_, digests)| digests) {
            if known.insert(*input) {
                all.push(*input);
            }
        }
        next += 1;
    }
    all
}

/// How the values of a row are shown.
struct Cells<'a> {
    /// The most characters of a text, and ids of a list.
    most: usize,
    /// Lists of ids are alternatives to each other, not a text.
    alternatives: bool,
    tokenizer: Option<&'a Tokenizer>,
}

impl Cells<'_> {
    /// Numbers, booleans and null as they are; `{"text"}`, `{"json"}` and `{"ids", "pieces", "special"}` (which
    /// of them are special tokens) for the rest, with `of`, the whole length, where something is cut.
    fn cell(&self, column: &RowColumn, value: &Value) -> Value {
        match value {
            Value::String(text) => self.cut("text", text),
            Value::Array(all) if column.is_ids => self.ids(all),
            Value::Array(_) | Value::Object(_) => self.cut("json", &value.to_string()),
            plain => plain.clone(),
        }
    }

    fn cut(&self, name: &str, text: &str) -> Value {
        match text.char_indices().nth(self.most) {
            None => json!({ name: text }),
            Some((at, _)) => json!({ name: text[..at], "of": text.chars().count() }),
        }
    }

    fn ids(&self, all: &[Value]) -> Value {
        let shown = &all[..all.len().min(self.most)];
        let ids: Option<Vec<u32>> = shown.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect();
        let pieces = ids.as_ref().zip(self.tokenizer).map(|(ids, tokenizer)| self.pieces(tokenizer, ids));
        let of = (shown.len() < all.len()).then_some(all.len());
        let is_special = |(i, id): (usize, &u32)| self.tokenizer?.is_special(*id).then_some(i);
        let special: Vec<usize> = ids.iter().flatten().enumerate().filter_map(is_special).collect();
        json!({ "ids": shown, "pieces": pieces, "special": special, "of": of })
    }

    /// The text that each id adds; special tokens by their names.
    fn pieces(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.decoder();
        let piece = |id: &u32| match tokenizer.is_special(*id) {
            true => tokenizer.token(*id).unwrap_or_default(),
            false if self.alternatives => tokenizer.decode(&[*id]).unwrap_or_default(),
            false => stream.push(*id).unwrap_or_default(),
        };
        ids.iter().map(piece).collect()
    }
}

/// A part of a text, from byte `offset` on, whole characters. Bytes that are not UTF-8 become `U+FFFD`.
fn text(path: &Path, offset: u64) -> Result<Value> {
    let size = fs::size(path)?;
    let mut start = offset.min(size);
    let mut file = fs::open(path)?;
    let mut part = Vec::new();
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.take(TEXT).read_to_end(&mut part))
        .map_err(|e| Error::io("read", path, &e))?;
    // A character that is cut off at the front was shown whole by the part before.
    let cut = part.iter().take(3).take_while(|byte| start > 0 && (0x80..0xC0).contains(*byte)).count();
    part.drain(..cut);
    start += cut as u64;
    let mut end = start + part.len() as u64;
    if end < size
        && let Err(e) = std::str::from_utf8(&part)
        && e.error_len().is_none()
    {
        end -= (part.len() - e.valid_up_to()) as u64;
        part.truncate(e.valid_up_to());
    }
    let text = String::from_utf8_lossy(&part);
    Ok(json!({ "text": text, "offset": start, "end": end, "size": size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_text_are_whole_characters_and_meet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let whole = format!("a{}", "é".repeat(TEXT as usize));
        fs::write(&path, whole.as_bytes()).unwrap();
        let (mut found, mut offset) = (String::new(), 0);
        loop {
            let part = text(&path, offset).unwrap();
            found += part["text"].as_str().unwrap();
            offset = part["end"].as_u64().unwrap();
            if offset == part["size"].as_u64().unwrap() {
                break;
            }
        }
        assert_eq!(found, whole);
        fs::write(&path, b"\xFFa").unwrap();
        assert_eq!(text(&path, 0).unwrap()["text"], "\u{FFFD}a");
        assert_eq!(text(&path, 99).unwrap()["text"], "");
    }

    #[test]
    fn cells_say_of_how_much_they_are_cut() {
        let cells = Cells { most: 3, alternatives: false, tokenizer: None };
        let column = |is_ids| RowColumn { name: "c".into(), data_type: None, is_ids };
        let cell = |value: Value, is_ids| cells.cell(&column(is_ids), &value);
        assert_eq!(cell(json!("äbcd"), false), json!({ "text": "äbc", "of": 4 }));
        assert_eq!(cell(json!("abc"), false), json!({ "text": "abc" }));
        assert_eq!(
            cell(json!([1, 2, 3, 4]), true),
            json!({ "ids": [1, 2, 3], "pieces": null, "special": [], "of": 4 })
        );
        assert_eq!(cell(json!({ "a": 1 }), false), json!({ "json": "{\"a", "of": 7 }));
        assert_eq!(cell(json!(1.5), false), json!(1.5));
    }
}
