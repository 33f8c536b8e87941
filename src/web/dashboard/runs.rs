//! Past and present runs, their stages and their logs.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::{ApiError, Shared, blocking, json};
use super::asked::{self, Asked, Named};
use super::runs_folder;
use crate::base::{Error, Result, fs, suggest};
use crate::report::runs::{self, Folder, Run};

/// Runs on a page, unless another number is asked for, and the most.
const PAGE: usize = 50;
const LONGEST_PAGE: usize = 200;

#[derive(Deserialize)]
pub struct PageOfRuns {
    offset: Option<usize>,
    limit: Option<usize>,
}

/// The newest first, without their stages.
pub async fn list(State(app): State<Shared>, Asked(page): Asked<PageOfRuns>) -> Result<Response, ApiError> {
    let runs = runs_folder(&app);
    let found = blocking(move || {
        let all = runs::list(&runs)?;
        let (offset, limit) = (page.offset.unwrap_or(0), asked::page(page.limit, PAGE, LONGEST_PAGE));
        let shown: Vec<Run> = all.iter().skip(offset).take(limit).map(Folder::brief).collect();
        Ok(json!({ "total": all.len(), "offset": offset, "runs": shown }))
    });
    found.await.map(|found| json(&found))
}

/// A run with its stages, and which of them have a log.
pub async fn one(State(app): State<Shared>, Named(id): Named<String>) -> Result<Response, ApiError> {
    let folder = find(&app, id).await?;
    let found = blocking(move || {
        let run = folder.read();
        let logs: Vec<String> = folder.logs()?.into_keys().collect();
        let mut found = to_json(&run)?;
        found["logs"] = json!(logs);
        Ok(found)
    });
    found.await.map(|found| json(&found))
}

pub fn to_json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::bug(format!("this does not fit in JSON: {e}")))
}

/// The run of this id.
pub async fn find(app: &Shared, id: String) -> Result<Folder, ApiError> {
    let runs = runs_folder(app);
    let found = blocking(move || Ok(runs::find(&runs, &id))).await?;
    found.map_err(|e| ApiError::not_found(e.to_string()))
}

/// Bytes of a log, unless another number is asked for, and the most.
const LOG: u64 = 64 << 10;
const LONGEST_LOG: u64 = 1 << 20;

#[derive(Deserialize)]
pub struct PartOfLog {
    /// The byte before which the part ends; the end of the log, where it is absent.
    before: Option<u64>,
    bytes: Option<u64>,
}

/// The end of a stage's log, or a part before it.
pub async fn log(
    State(app): State<Shared>,
    Named((id, stage)): Named<(String, String)>,
    Asked(part): Asked<PartOfLog>,
) -> Result<Response, ApiError> {
    let folder = find(&app, id).await?;
    let found = blocking(move || {
        let logs = folder.logs()?;
        let Some(path) = logs.get(&stage) else { return Ok(Err(no_log(&stage, &logs))) };
        let bytes = part.bytes.unwrap_or(LOG).clamp(1, LONGEST_LOG);
        LogPart::read(path, part.before, bytes).map(Ok)
    });
    found.await?.map(|part| json(&part))
}

fn no_log<T>(stage: &str, logs: &std::collections::BTreeMap<String, T>) -> ApiError {
    let stages = || logs.keys().map(String::as_str);
    let error = Error::usage(format!("this run has no log of a stage `{stage}`"));
    ApiError::not_found(error.suggest(suggest::closest(stage, stages())).to_string())
}

/// Whole lines of a log.
#[derive(Debug, PartialEq, Serialize)]
pub struct LogPart {
    text: String,
    start: u64,
    end: u64,
    /// Of the whole log.
    size: u64,
}

impl LogPart {
    fn read(path: &Path, before: Option<u64>, bytes: u64) -> Result<Self> {
        let size = fs::size(path)?;
        let end = before.unwrap_or(size).min(size);
        let mut start = end.saturating_sub(bytes);
        let mut file = fs::open(path)?;
        let mut part = Vec::new();
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.take(end - start).read_to_end(&mut part))
            .map_err(|e| Error::io("read", path, &e))?;
        // A line that is cut off at the front belongs to the part before, unless it fills this one.
        let line_break = part.iter().position(|byte| *byte == b'\n').filter(|at| at + 1 < part.len());
        if let Some(at) = line_break.filter(|_| start > 0) {
            part.drain(..=at);
            start += at as u64 + 1;
        }
        Ok(LogPart { text: String::from_utf8_lossy(&part).into_owned(), start, end, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_log_are_whole_lines_and_meet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, b"first\nsecond\nthird\n").unwrap();
        let last = LogPart::read(&path, None, 8).unwrap();
        assert_eq!((last.text.as_str(), last.start, last.end, last.size), ("third\n", 13, 19, 19));
        let before = LogPart::read(&path, Some(last.start), 9).unwrap();
        assert_eq!((before.text.as_str(), before.start), ("second\n", 6));
        assert_eq!(LogPart::read(&path, Some(before.start), 100).unwrap().text, "first\n");
        assert_eq!(LogPart::read(&path, Some(999), 100).unwrap().start, 0);
        // One long line.
        assert_eq!(LogPart::read(&path, Some(12), 3).unwrap().text, "ond");
    }
}
