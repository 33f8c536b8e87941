//! Counts of the files, rows, conversations and pairs that were read, kept and removed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::check::Repairs;
use super::shape::Shape;
use crate::base::Error;
use crate::corpus::decode::Encoding;
use crate::corpus::json::UnknownKeys;

/// What was read, changed and removed. `rows_in` = `rows_kept` + all of `rows_dropped`, and
/// `conversations_in` = `conversations_out` + all of `removed` that are no pairs; a bad row counts as one
/// conversation. `preferences_in` = `preferences_out` + `removed.duplicate_preferences`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub bytes_in: u64,
    /// Of all contents.
    pub bytes_out: u64,
    pub rows_in: u64,
    /// Rows of which something was written: a conversation or a pair.
    pub rows_kept: u64,
    /// By cause: that of the first defect, or `exact_duplicates`.
    pub rows_dropped: BTreeMap<&'static str, u64>,
    pub conversations_in: u64,
    pub conversations_out: u64,
    /// Pairs of a preferred and a rejected answer.
    pub preferences_in: u64,
    pub preferences_out: u64,
    /// Messages written, by role.
    pub messages: BTreeMap<&'static str, u64>,
    /// Answers written that are context and not part of the loss.
    pub messages_of_weight_0: u64,
    /// In the longest conversation written.
    pub most_messages: u64,
    /// Conversations written, by the format that they came in.
    pub formats: BTreeMap<&'static str, u64>,
    pub removed: Removed,
    pub changed: Repairs,
    /// Lines of plain text between conversations.
    pub comment_lines: u64,
    pub blank_lines: u64,
    pub files: Vec<FileReport>,
}

/// Conversations that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub exact_duplicates: u64,
    /// By cause.
    pub bad_rows: BTreeMap<&'static str, u64>,
    /// Duplicate pairs.
    pub duplicate_preferences: u64,
}

/// Of one file, in sums as [`Report`] has them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FileReport {
    pub name: String,
    /// That of its first row; `None` when it holds none.
    pub format: Option<Shape>,
    /// As its byte order mark says, else as `encoding` does.
    pub encoding: Encoding,
    pub bytes: u64,
    pub rows_in: u64,
    pub rows_kept: u64,
    pub rows_dropped: BTreeMap<&'static str, u64>,
    pub conversations_in: u64,
    pub conversations_out: u64,
    pub preferences_out: u64,
    pub comment_lines: u64,
    pub blank_lines: u64,
    /// Kept rows with a value under a key that is not read, by key.
    pub ignored_keys: UnknownKeys,
    /// Kept rows of which a field that is not read cannot be parsed, by key.
    pub bad_metadata: UnknownKeys,
}

impl Report {
    /// Adds what was counted in a file.
    pub(super) fn add(&mut self, file: FileReport) {
        self.bytes_in += file.bytes;
        self.rows_in += file.rows_in;
        self.rows_kept += file.rows_kept;
        for (cause, rows) in &file.rows_dropped {
            *self.rows_dropped.entry(cause).or_default() += rows;
        }
        self.conversations_in += file.conversations_in;
        self.conversations_out += file.conversations_out;
        self.preferences_out += file.preferences_out;
        self.comment_lines += file.comment_lines;
        self.blank_lines += file.blank_lines;
        self.files.push(file);
    }
}

impl Repairs {
    pub(super) fn add(&mut self, other: &Repairs) {
        self.merged_messages += other.merged_messages;
        self.trailing_user_dropped += other.trailing_user_dropped;
        self.empty_system_dropped += other.empty_system_dropped;
        self.markers_dropped += other.markers_dropped;
        self.special_tokens_in_content += other.special_tokens_in_content;
        self.text += other.text;
    }
}

/// The error of a run that leaves no conversation.
pub(super) fn nothing_left(report: &Report) -> Error {
    let files = report.files.len();
    if report.conversations_in == 0 {
        let message = format!("no conversation in {files} file(s) of {} B", report.bytes_in);
        return Error::input(message).help("are they the right files, and is any of them not empty?");
    }
    let mut reasons: Vec<String> =
        report.removed.bad_rows.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    if report.removed.exact_duplicates > 0 {
        reasons.push(format!("{} exact duplicates", report.removed.exact_duplicates));
    }
    Error::input(format!("no conversation is left of {} read", report.conversations_in))
        .cause(format!("removed were {}", reasons.join(", ")))
        .help("set `on_bad_row: error` to see the first bad row in full")
}
