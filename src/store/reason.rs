//! Why a stage runs: a typed value with old and new values, stored with the action that it caused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Damage;
use crate::base::Digest;
use crate::base::text::visible;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It does not run.
    UpToDate,
    NeverRan,
    /// Against the nearest earlier action.
    Changed(Vec<Difference>),
    OutputMissing {
        port: String,
        file: String,
    },
    OutputDamaged {
        port: String,
        file: String,
    },
    /// The record of its outputs is unreadable: why.
    RecordDamaged(String),
    Forced,
    /// The input whose digest is not known yet.
    Waits(String),
    /// A stage that this one needs failed or was skipped.
    UpstreamFailed(String),
    /// This stage failed, and the run stops at the first failure.
    StoppedAfter(String),
    /// The run was cancelled.
    Cancelled,
}

/// One field of a fingerprint that has changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "field", rename_all = "snake_case")]
pub enum Difference {
    Kind {
        old: String,
        new: String,
    },
    KindVersion {
        old: u32,
        new: u32,
    },
    Param {
        name: String,
        old: Value,
        new: Value,
    },
    /// What a value of a param stands for.
    ValueVersion {
        name: String,
        value: Value,
        old: u32,
        new: u32,
    },
    Input {
        port: String,
        old: Vec<Digest>,
        new: Vec<Digest>,
        files: Vec<FileChange>,
    },
    Outputs {
        old: BTreeMap<String, String>,
        new: BTreeMap<String, String>,
    },
    Seed {
        old: Option<u64>,
        new: Option<u64>,
    },
}

/// What happened to a file of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    Added(String),
    Removed(String),
    Changed(String),
}

impl Reason {
    pub fn damaged(port: String, damage: Damage) -> Self {
        match damage {
            Damage::Missing { file } => Reason::OutputMissing { port, file },
            Damage::Damaged { file } => Reason::OutputDamaged { port, file },
        }
    }

    /// One word for scripts; the first of several differences decides.
    pub fn code(&self) -> &'static str {
        match self {
            Reason::UpToDate => "up_to_date",
            Reason::NeverRan => "never_ran",
            Reason::Changed(differences) => differences.first().map_or("changed", Difference::code),
            Reason::OutputMissing { .. } => "output_missing",
            Reason::OutputDamaged { .. } => "output_damaged",
            Reason::RecordDamaged(_) => "record_damaged",
            Reason::Forced => "forced",
            Reason::Waits(_) => "waits",
            Reason::UpstreamFailed(_) => "upstream_failed",
            Reason::StoppedAfter(_) => "stopped_after_failure",
            Reason::Cancelled => "cancelled",
        }
    }

    /// One line for a terminal.
    pub fn detail(&self) -> String {
        match self {
            Reason::UpToDate => "up to date".into(),
            Reason::NeverRan => "never ran".into(),
            Reason::Changed(differences) => {
                differences.iter().map(Difference::detail).collect::<Vec<_>>().join("; ")
            }
            Reason::OutputMissing { port, file } => format!("output {port}: {file} is missing"),
            Reason::OutputDamaged { port, file } => format!("output {port}: {file} is damaged"),
            Reason::RecordDamaged(why) => format!("its record is damaged: {why}"),
            Reason::Forced => "forced".into(),
            Reason::Waits(what) => format!("waits for {what}"),
            Reason::UpstreamFailed(stage) => format!("`{stage}` did not finish"),
            Reason::StoppedAfter(stage) => format!("not started after `{stage}` failed"),
            Reason::Cancelled => "the run was stopped before it".into(),
        }
    }

    /// `{"code", "detail"}`, as in `plan --format json`.
    pub fn to_json(&self) -> Value {
        json!({ "code": self.code(), "detail": self.detail() })
    }
}

impl Difference {
    pub fn code(&self) -> &'static str {
        match self {
            Difference::Kind { .. } => "kind",
            Difference::KindVersion { .. } => "kind_version",
            Difference::Param { .. } => "param",
            Difference::ValueVersion { .. } => "value_version",
            Difference::Input { .. } => "input",
            Difference::Outputs { .. } => "outputs",
            Difference::Seed { .. } => "seed",
        }
    }

    /// `params.steps`, `inputs.docs`.
    pub fn field(&self) -> String {
        match self {
            Difference::Param { name, .. } | Difference::ValueVersion { name, .. } => {
                format!("params.{name}")
            }
            Difference::Input { port, .. } => format!("inputs.{port}"),
            other => other.code().to_string(),
        }
    }

    /// The old and the new value, for a terminal.
    pub fn values(&self) -> (String, String) {
        match self {
            Difference::Kind { old, new } => (old.clone(), new.clone()),
            Difference::KindVersion { old, new } => (old.to_string(), new.to_string()),
            Difference::Param { old, new, .. } => (shown(old), shown(new)),
            Difference::ValueVersion { value, old, new, .. } => {
                let version = |version| format!("{} (version {version})", shown(value));
                (version(old), version(new))
            }
            Difference::Input { old, new, .. } => (digests(old), digests(new)),
            Difference::Outputs { old, new } => (json!(old).to_string(), json!(new).to_string()),
            Difference::Seed { old, new } => (shown(&json!(old)), shown(&json!(new))),
        }
    }

    pub fn detail(&self) -> String {
        let (old, new) = self.values();
        match self {
            Difference::Param { name, .. } | Difference::ValueVersion { name, .. } => {
                format!("param {name}: {old} -> {new}")
            }
            Difference::Input { port, files, .. } if !files.is_empty() => {
                format!("input {port}: {}", file_changes(files))
            }
            Difference::Input { port, .. } => format!("input {port}: {old} -> {new}"),
            Difference::KindVersion { .. } => format!("kind version: {old} -> {new}"),
            other => format!("{}: {old} -> {new}", other.code()),
        }
    }
}

/// `a.txt changed, b.txt added, and 3 more`.
pub fn file_changes(files: &[FileChange]) -> String {
    const SHOWN: usize = 4;
    let mut words: Vec<String> = files
        .iter()
        .take(SHOWN)
        .map(|f| match f {
            FileChange::Added(name) => format!("{} added", visible(name)),
            FileChange::Removed(name) => format!("{} removed", visible(name)),
            FileChange::Changed(name) => format!("{} changed", visible(name)),
        })
        .collect();
    if files.len() > SHOWN {
        words.push(format!("and {} more", files.len() - SHOWN));
    }
    words.join(", ")
}

fn shown(value: &Value) -> String {
    const WIDTH: usize = 60;
    let text = if value.is_null() { "none".to_string() } else { value.to_string() };
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn digests(all: &[Digest]) -> String {
    match all {
        [] => "none".into(),
        _ => all.iter().map(Digest::short).collect::<Vec<_>>().join(" + "),
    }
}
