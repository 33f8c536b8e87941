//! Past and present runs, read from `artifacts/runs/`: what [`super::folder`] writes there, while it is being
//! written too, and what a killed process left of it.
//!
//! A run whose process is gone without a summary was interrupted: the process holds a lock on `events.jsonl`
//! for as long as it lives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::folder::{EVENTS, SUMMARY};
use crate::base::{Digest, Error, Result, fs, units};
use crate::stage::Resume;

/// Where files have no locks, a run without a summary counts as interrupted after so long without an event.
const SILENCE: Duration = Duration::from_secs(3600);
/// The most bytes of a summary that are read, and of a line of events: longer ones count as damaged.
const LONGEST_SUMMARY: u64 = 64 << 20;
const LONGEST_LINE: u64 = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    Ok,
    Failed,
    /// Its process is gone without a summary.
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ran,
    Cached,
    Failed,
    Skipped,
    Running,
    /// It was running when the run's process ended.
    Interrupted,
}

/// Why a stage ran, or did not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    pub code: String,
    pub detail: String,
}

/// How far a stage has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub phase: String,
    pub done: u64,
    pub total: Option<u64>,
    pub unit: String,
    pub note: String,
}

/// A figure of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    /// `None` where it was not finite, which JSON cannot hold.
    pub value: Option<f64>,
    pub unit: String,
}

/// One stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    pub stage: String,
    pub kind: String,
    pub status: Status,
    pub key: Option<Digest>,
    pub reason: Reason,
    /// What it took, or takes so far.
    pub seconds: Option<f64>,
    #[serde(default)]
    pub outputs: BTreeMap<String, Digest>,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub measurements: Vec<Figure>,
    #[serde(default)]
    pub progress: Option<Progress>,
    #[serde(default)]
    pub resumes: Option<Resume>,
}

/// A run as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    pub id: String,
    /// `None` where the record does not say.
    pub pipeline: Option<String>,
    /// In UTC, as ISO 8601; from the id.
    pub started: Option<String>,
    pub state: State,
    /// From its start to its end, to now, or to its last event where it was interrupted.
    pub seconds: Option<f64>,
    /// How many stages it was to bring up to date.
    pub planned: Option<usize>,
    /// Those of which something is known; empty in [`Folder::brief`].
    pub stages: Vec<StageRecord>,
    /// Of the run as a whole.
    pub error: Option<String>,
    /// What is done before any stage: downloads, hashing.
    pub preparing: Option<Progress>,
    /// What of the record does not read.
    pub damage: Option<String>,
    /// The byte of `events.jsonl` behind the last event that is taken into account here.
    pub events_end: u64,
}

/// A point of the curves of a training: figures after a step, `None` where one is not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub step: u64,
    pub figures: BTreeMap<String, Option<f64>>,
}

/// The summary as it is written; see [`crate::event::Summary`].
#[derive(Deserialize)]
struct SummaryRecord {
    pipeline: String,
    ok: bool,
    seconds: f64,
    stages: Vec<StageRecord>,
    error: Option<String>,
}

/// A line of events; see [`crate::event::Event`]. Events that other versions write are passed over.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    RunStarted {
        pipeline: String,
        stages: usize,
    },
    Preparing(Progress),
    StageStarted {
        stage: String,
        kind: String,
        key: Digest,
        reason: Reason,
        resumes: Option<Resume>,
    },
    StageProgress {
        stage: String,
        #[serde(flatten)]
        progress: Progress,
    },
    StageMeasured {
        stage: String,
        #[serde(flatten)]
        figure: Figure,
    },
    StageMetrics {
        stage: String,
        #[serde(flatten)]
        point: Point,
    },
    StageFinished(StageRecord),
    Summary {
        error: Option<String>,
    },
    #[serde(other)]
    Other,
}

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct Folder {
    pub id: String,
    path: PathBuf,
}

/// All runs in `runs`, the newest first; none where there is no such folder.
///
/// # Errors
/// When it cannot be listed.
pub fn list(runs: &Path) -> Result<Vec<Folder>> {
    if !runs.is_dir() {
        return Ok(Vec::new());
    }
    let folder = |path: PathBuf| Some(Folder { id: path.file_name()?.to_str()?.to_string(), path });
    Ok(fs::children(runs)?.into_iter().rev().filter(|path| path.is_dir()).filter_map(folder).collect())
}

/// The run called `id`, which is looked up in the list of runs and never becomes a path by itself.
///
/// # Errors
/// When there is none.
pub fn find(runs: &Path, id: &str) -> Result<Folder> {
    let found = list(runs)?.into_iter().find(|run| run.id == id);
    found.ok_or_else(|| Error::usage(format!("there is no run `{id}`")))
}

/// When a run began, as ISO 8601: runs are called by the time, `20261121-042233-1a2b`.
pub fn started(id: &str) -> Option<String> {
    began(id).map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn began(id: &str) -> Option<DateTime<Utc>> {
    NaiveDateTime::parse_from_str(id.get(..15)?, "%Y%m%d-%H%M%S").ok().map(|time| time.and_utc())
}

fn since(begin: DateTime<Utc>, end: DateTime<Utc>) -> f64 {
    (end - begin).as_seconds_f64().max(0.0)
}

impl Folder {
    pub fn events(&self) -> PathBuf {
        self.path.join(EVENTS)
    }

    /// The stages that have a log, and where it is.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn logs(&self) -> Result<BTreeMap<String, PathBuf>> {
        let log = |path: PathBuf| {
            let stage = path.file_name()?.to_str()?.strip_suffix(".log")?.to_string();
            Some((stage, path))
        };
        Ok(fs::children(&self.path)?.into_iter().filter_map(log).collect())
    }

    /// The run without its stages: of a run without a summary, only the first event is read.
    pub fn brief(&self) -> Run {
        let mut run = match self.summary() {
            Ok(Some(summary)) => return self.finished(SummaryRecord { stages: Vec::new(), ..summary }),
            Ok(None) => self.unfinished(None),
            Err(e) => self.unfinished(Some(e)),
        };
        let mut first = Fold::new(&mut run);
        if let Err(e) = each_line(&self.events(), &mut |line| {
            first.take(line);
            false
        }) {
            run.damage.get_or_insert(e.message().to_string());
        }
        run
    }

    /// The run with its stages.
    pub fn read(&self) -> Run {
        match self.summary() {
            Ok(Some(summary)) => self.finished(summary),
            Ok(None) => self.fold(self.unfinished(None)),
            Err(e) => self.fold(self.unfinished(Some(e))),
        }
    }

    /// The curves of the trainings of this run, as far as its events tell them, by stage.
    ///
    /// # Errors
    /// When the events cannot be read.
    pub fn curves(&self) -> Result<BTreeMap<String, Vec<Point>>> {
        let mut curves: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        each_line(&self.events(), &mut |line| {
            // Of the many lines, few are looked at closely.
            let bytes = &line.bytes[..line.bytes.len().min(64)];
            if bytes.windows(15).any(|part| part == b"\"stage_metrics\"")
                && let Ok(Line::StageMetrics { stage, point }) = serde_json::from_slice(line.bytes)
            {
                curves.entry(stage).or_default().push(point);
            }
            true
        })?;
        Ok(curves)
    }

    /// `None` where there is none yet.
    fn summary(&self) -> Result<Option<SummaryRecord>> {
        let path = self.path.join(SUMMARY);
        if fs::stat(&path).is_some_and(|stat| stat.size > LONGEST_SUMMARY) {
            let most = units::bytes(LONGEST_SUMMARY);
            return Err(Error::input(format!("`{SUMMARY}` is larger than {most}")));
        }
        let Some(bytes) = fs::read_if_there(&path)? else { return Ok(None) };
        read(&bytes).map(Some).map_err(|e| e.context(format!("`{SUMMARY}` does not read")))
    }

    fn finished(&self, summary: SummaryRecord) -> Run {
        Run {
            id: self.id.clone(),
            pipeline: Some(summary.pipeline),
            started: started(&self.id),
            state: if summary.ok { State::Ok } else { State::Failed },
            seconds: Some(summary.seconds),
            planned: None,
            stages: summary.stages,
            error: summary.error,
            preparing: None,
            damage: None,
            events_end: fs::size(&self.events()).unwrap_or(0),
        }
    }

    /// What is known of a run without a summary before its events are read.
    fn unfinished(&self, damage: Option<Error>) -> Run {
        let is_alive = self.is_alive();
        let last = if is_alive { Some(Utc::now()) } else { changed(&self.events()) };
        let seconds = began(&self.id).zip(last).map(|(begin, end)| since(begin, end));
        Run {
            id: self.id.clone(),
            pipeline: None,
            started: started(&self.id),
            state: if is_alive { State::Running } else { State::Interrupted },
            seconds,
            planned: None,
            stages: Vec::new(),
            error: None,
            preparing: None,
            // A summary that is being written is not damaged.
            damage: damage.filter(|_| !is_alive).map(|e| e.message().to_string()),
            events_end: 0,
        }
    }

    /// Whether the process of the run lives.
    pub fn is_alive(&self) -> bool {
        match fs::is_locked(&self.events()) {
            Ok(Some(locked)) => locked,
            Ok(None) => changed(&self.events())
                .is_some_and(|at| SystemTime::from(at).elapsed().is_ok_and(|since| since < SILENCE)),
            Err(_) => false,
        }
    }

    fn fold(&self, mut run: Run) -> Run {
        let mut fold = Fold::new(&mut run);
        let read = each_line(&self.events(), &mut |line| {
            fold.take(line);
            true
        });
        let unreadable = fold.unreadable;
        if let Err(e) = read {
            run.damage.get_or_insert(e.message().to_string());
        } else if unreadable > 0 {
            let lines = units::count(unreadable);
            run.damage.get_or_insert(format!("{lines} of the lines of `{EVENTS}` do not read"));
        }
        let is_alive = run.state == State::Running;
        for stage in run.stages.iter_mut().filter(|stage| stage.status == Status::Running) {
            stage.seconds = self.seconds_of(&stage.stage, is_alive);
            stage.status = if is_alive { Status::Running } else { Status::Interrupted };
        }
        run
    }

    /// For how long a stage that has no result ran: a stage begins with its log.
    fn seconds_of(&self, stage: &str, is_alive: bool) -> Option<f64> {
        let begin = fs::created(self.logs().ok()?.get(stage)?).map(DateTime::<Utc>::from)?;
        let end = if is_alive { Utc::now() } else { changed(&self.events())? };
        Some(since(begin, end))
    }
}

fn changed(path: &Path) -> Option<DateTime<Utc>> {
    fs::stat(path).map(|stat| DateTime::from_timestamp_nanos(stat.mtime_ns as i64))
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::input(e.to_string()))
}

/// Events added up to the run that they tell of.
struct Fold<'a> {
    run: &'a mut Run,
    places: BTreeMap<String, usize>,
    unreadable: u64,
}

impl<'a> Fold<'a> {
    fn new(run: &'a mut Run) -> Self {
        Fold { run, places: BTreeMap::new(), unreadable: 0 }
    }

    fn take(&mut self, line: RawLine) {
        self.run.events_end = line.end;
        match read(line.bytes) {
            Ok(line) => self.add(line),
            Err(_) => self.unreadable += 1,
        }
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::RunStarted { pipeline, stages } => {
                (self.run.pipeline, self.run.planned) = (Some(pipeline), Some(stages));
            }
            Line::Preparing(progress) => self.run.preparing = Some(progress),
            Line::StageStarted { stage, kind, key, reason, resumes } => self.put(StageRecord {
                stage,
                kind,
                status: Status::Running,
                key: Some(key),
                reason,
                seconds: None,
                outputs: BTreeMap::new(),
                error: None,
                measurements: Vec::new(),
                progress: None,
                resumes,
            }),
            Line::StageProgress { stage, progress } => {
                self.change(&stage, |record| record.progress = Some(progress));
            }
            Line::StageMeasured { stage, figure } => self.change(&stage, |record| {
                record.measurements.retain(|known| known.name != figure.name);
                record.measurements.push(figure);
            }),
            Line::StageFinished(record) => self.put(record),
            Line::Summary { error } => self.run.error = error,
            Line::StageMetrics { .. } | Line::Other => {}
        }
    }

    fn put(&mut self, record: StageRecord) {
        self.run.preparing = None;
        let stages = &mut self.run.stages;
        match self.places.get(&record.stage) {
            Some(place) => stages[*place] = record,
            None => {
                self.places.insert(record.stage.clone(), stages.len());
                stages.push(record);
            }
        }
    }

    fn change(&mut self, stage: &str, change: impl FnOnce(&mut StageRecord)) {
        if let Some(place) = self.places.get(stage) {
            change(&mut self.run.stages[*place]);
        }
    }
}

/// A whole line of events without its line break.
struct RawLine<'a> {
    bytes: &'a [u8],
    /// The byte behind its line break.
    end: u64,
}

/// Reads whole lines until `take` gives false. What follows the last line break is still being written. A line
/// that is too long is passed on as an empty one, which does not read.
fn each_line(path: &Path, take: &mut dyn FnMut(RawLine) -> bool) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, fs::open(path)?);
    let (mut line, mut end) = (Vec::new(), 0);
    loop {
        line.clear();
        let limited = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        let mut length = limited.map_err(|e| Error::io("read", path, &e))? as u64;
        if line.last() != Some(&b'\n') {
            if length < LONGEST_LINE {
                return Ok(());
            }
            line.clear();
            length += reader.skip_until(b'\n').map_err(|e| Error::io("read", path, &e))? as u64;
        }
        end += length;
        if !take(RawLine { bytes: line.trim_ascii_end(), end }) {
            return Ok(());
        }
    }
}

/// Reads what is appended to a file, whole lines at a time.
pub struct Tail {
    file: File,
    path: PathBuf,
    /// What was read behind the last line break.
    rest: Vec<u8>,
    /// The byte behind the last line that was given.
    end: u64,
}

impl Tail {
    /// Begins at byte `from`, or at the end of the file where it is shorter.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, from: u64) -> Result<Self> {
        let mut file = fs::open(path)?;
        let end = from.min(fs::size(path)?);
        file.seek(SeekFrom::Start(end)).map_err(|e| Error::io("read", path, &e))?;
        Ok(Tail { file, path: path.to_path_buf(), rest: Vec::new(), end })
    }

    /// Further whole lines, of about `bytes` in all, each with the byte behind it; none where there is nothing
    /// new.
    ///
    /// # Errors
    /// When the file cannot be read, or has a line that is too long.
    pub fn next(&mut self, bytes: u64) -> Result<Vec<(String, u64)>> {
        let read = (&mut self.file).take(bytes).read_to_end(&mut self.rest);
        read.map_err(|e| Error::io("read", &self.path, &e))?;
        if self.rest.len() as u64 > LONGEST_LINE + bytes {
            let most = units::bytes(LONGEST_LINE);
            return Err(Error::input(format!("`{}` has a line of more than {most}", self.path.display())));
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut end = self.end;
        let line = |line: &[u8]| {
            end += line.len() as u64;
            (String::from_utf8_lossy(line.trim_ascii_end()).into_owned(), end)
        };
        let lines: Vec<_> = self.rest[..whole].split_inclusive(|byte| *byte == b'\n').map(line).collect();
        self.end = end;
        self.rest.drain(..whole);
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::event::{Event, ProgressEvent, StageResult, Summary};
    use crate::report::{Reporter, RunFolder};
    use crate::store::Reason as StoreReason;

    fn key() -> Digest {
        Digest::of(b"key")
    }

    fn started(stage: &str) -> Event {
        let (stage, kind, reason) = (stage.to_string(), "pretrain".to_string(), StoreReason::NeverRan);
        Event::StageStarted { stage, kind, key: key(), reason, resumes: None }
    }

    fn progress(stage: &str, done: u64) -> Event {
        let (phase, note) = ("training".to_string(), "loss 1.5".to_string());
        let progress = ProgressEvent { phase, done, total: Some(9), unit: "steps", note };
        Event::StageProgress { stage: stage.into(), progress }
    }

    fn metrics(stage: &str, step: u64, loss: f64) -> Event {
        Event::StageMetrics {
            stage: stage.into(),
            step,
            figures: BTreeMap::from([("loss".to_string(), loss)]),
        }
    }

    fn finished(stage: &str) -> StageResult {
        StageResult {
            stage: stage.into(),
            kind: "pretrain".into(),
            status: crate::event::Status::Ran,
            key: Some(key()),
            reason: StoreReason::NeverRan,
            seconds: 2.5,
            outputs: BTreeMap::from([("model".to_string(), key())]),
            error: None,
            fault: None,
            measurements: vec![crate::store::Measurement {
                name: "x".into(),
                value: f64::NAN,
                unit: "s".into(),
            }],
        }
    }

    fn run_of(dir: &Path) -> (RunFolder, Folder) {
        let id = "20261121-042233-1a2b";
        let record = RunFolder::create(&dir.join(id)).unwrap().unwrap();
        (record, find(dir, id).unwrap())
    }

    fn tell(record: &mut RunFolder, events: &[Event]) {
        events.iter().for_each(|event| record.report(event));
        record.flush();
    }

    fn begun() -> Event {
        Event::RunStarted { pipeline: "p".into(), run: "r".into(), stages: 2, jobs: 1 }
    }

    #[test]
    fn a_run_is_running_then_interrupted_where_its_process_ends_without_a_summary() {
        let dir = tempfile::tempdir().unwrap();
        let (mut record, folder) = run_of(dir.path());
        tell(&mut record, &[begun(), started("a"), progress("a", 3), progress("a", 4)]);
        let run = folder.read();
        assert_eq!((run.state, run.pipeline.as_deref(), run.planned), (State::Running, Some("p"), Some(2)));
        assert_eq!(run.started.unwrap(), "2026-11-21T04:22:33Z");
        assert_eq!(run.stages[0].status, Status::Running);
        assert_eq!(run.stages[0].progress.as_ref().unwrap().done, 4);
        assert_eq!(run.events_end, fs::size(&folder.events()).unwrap());
        assert_eq!((folder.brief().state, folder.brief().pipeline.as_deref()), (State::Running, Some("p")));
        drop(record);
        let run = folder.read();
        assert_eq!((run.state, run.stages[0].status), (State::Interrupted, Status::Interrupted));
        assert_eq!(folder.brief().state, State::Interrupted);
    }

    #[test]
    fn a_summary_tells_of_the_run_and_its_figures_may_be_no_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let (mut record, folder) = run_of(dir.path());
        let stages = vec![finished("a")];
        let summary =
            Summary { pipeline: "p".into(), run: "r".into(), ok: true, seconds: 3.5, stages, error: None };
        tell(&mut record, &[begun(), started("a"), Event::Summary(summary)]);
        let run = folder.read();
        assert_eq!((run.state, run.seconds), (State::Ok, Some(3.5)));
        let stage = &run.stages[0];
        assert_eq!(
            (stage.status, stage.seconds, stage.reason.code.as_str()),
            (Status::Ran, Some(2.5), "never_ran")
        );
        assert_eq!(stage.measurements[0].value, None);
        assert_eq!(stage.outputs["model"], key());
        assert_eq!(folder.brief(), Run { stages: Vec::new(), ..run });
    }

    #[test]
    fn what_does_not_read_is_said_and_the_rest_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (mut record, folder) = run_of(dir.path());
        tell(&mut record, &[begun(), started("a")]);
        drop(record);
        let mut events = fs::read(&folder.events()).unwrap();
        events.extend(b"{\"event\":\"from_the_future\",\"x\":1}\nno json\n{\"event\":\"stage_fin");
        fs::write(&folder.events(), &events).unwrap();
        fs::write(&folder.path.join(SUMMARY), b"{\"pipeline\":").unwrap();
        let run = folder.read();
        assert_eq!((run.state, run.stages.len()), (State::Interrupted, 1));
        assert!(run.damage.as_ref().unwrap().contains("`summary.json` does not read"), "{run:?}");
        fs::remove(&folder.path.join(SUMMARY)).unwrap();
        assert_eq!(folder.read().damage.unwrap(), "1 of the lines of `events.jsonl` do not read");
        fs::remove(&folder.events()).unwrap();
        assert!(folder.read().damage.unwrap().contains("cannot open"));
        assert!(find(dir.path(), "..").is_err() && find(dir.path(), "../x").is_err());
    }

    #[test]
    fn a_tail_gives_whole_lines_and_begins_again_behind_any_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let (mut record, folder) = run_of(dir.path());
        tell(&mut record, &[begun()]);
        let mut tail = Tail::open(&folder.events(), 0).unwrap();
        let first = tail.next(1 << 20).unwrap();
        assert!(first.len() == 1 && first[0].0.starts_with("{\"event\":\"run_started\""), "{first:?}");
        assert_eq!(tail.next(1 << 20).unwrap(), []);
        let mut events = fs::append(&folder.events()).unwrap();
        events.write_all(b"{\"half\":").unwrap();
        assert_eq!(tail.next(1 << 20).unwrap(), []);
        events.write_all(b"1}\n").unwrap();
        let second = tail.next(1 << 20).unwrap();
        assert_eq!(second, [("{\"half\":1}".to_string(), fs::size(&folder.events()).unwrap())]);
        let mut again = Tail::open(&folder.events(), first[0].1).unwrap();
        assert_eq!(again.next(4).unwrap(), []);
        assert_eq!(again.next(1 << 20).unwrap(), second);
    }

    #[test]
    fn curves_are_read_from_the_events() {
        let dir = tempfile::tempdir().unwrap();
        let (mut record, folder) = run_of(dir.path());
        tell(&mut record, &[begun(), started("a"), metrics("a", 10, 2.5), metrics("a", 20, f64::NAN)]);
        let curves = folder.curves().unwrap();
        let losses: Vec<_> = curves["a"].iter().map(|point| (point.step, point.figures["loss"])).collect();
        assert_eq!(losses, [(10, Some(2.5)), (20, None)]);
    }
}
