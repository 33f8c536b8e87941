//! The events of a run: `exec` emits them; console, JSON lines and the run's folder all read the same
//! stream.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::base::{Digest, Progress};
use crate::stage::Resume;
use crate::store::Reason;

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted {
        pipeline: String,
        run: String,
        stages: usize,
        jobs: usize,
    },
    /// A download or the hashing of sources, before any stage.
    Preparing(ProgressEvent),
    StageStarted {
        stage: String,
        kind: String,
        key: Digest,
        #[serde(serialize_with = "code_and_detail")]
        reason: Reason,
        /// From where it goes on; `null` where it starts from nothing.
        resumes: Option<Resume>,
    },
    StageProgress {
        stage: String,
        #[serde(flatten)]
        progress: ProgressEvent,
    },
    StageMeasured {
        stage: String,
        name: String,
        value: f64,
        unit: String,
    },
    /// A point of the curves of a training: figures after a step. What is not finite is `null`.
    StageMetrics {
        stage: String,
        step: u64,
        figures: BTreeMap<String, f64>,
    },
    StageLog {
        stage: String,
        level: String,
        message: String,
    },
    StageFinished(StageResult),
    Summary(Summary),
}

#[derive(Debug, Clone, Serialize)]
pub struct ProgressEvent {
    pub phase: String,
    pub done: u64,
    pub total: Option<u64>,
    pub unit: &'static str,
    pub note: String,
}

impl From<Progress> for ProgressEvent {
    fn from(p: Progress) -> Self {
        ProgressEvent { phase: p.phase, done: p.done, total: p.total, unit: p.unit, note: p.note }
    }
}

/// As `plan --format json` has it.
fn code_and_detail<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    reason.to_json().serialize(serializer)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ran,
    Cached,
    Failed,
    /// An upstream stage failed, or the run was stopped before it.
    Skipped,
}

#[derive(Debug, Clone, Serialize)]
pub struct StageResult {
    pub stage: String,
    pub kind: String,
    pub status: Status,
    /// `null` when an input never got a digest.
    pub key: Option<Digest>,
    #[serde(serialize_with = "code_and_detail")]
    pub reason: Reason,
    pub seconds: f64,
    pub outputs: BTreeMap<String, Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The fault of the error.
    #[serde(skip)]
    pub fault: Option<crate::base::error::Fault>,
    /// Figures of this run, or of the one that made what is cached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measurements: Vec<crate::store::Measurement>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub pipeline: String,
    pub run: String,
    pub ok: bool,
    pub seconds: f64,
    pub stages: Vec<StageResult>,
    /// An error after the stages, such as a lockfile that cannot be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
