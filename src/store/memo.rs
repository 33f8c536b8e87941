//! Caches the digests of files by (path, size, mtime, ctime, inode), so that unchanged files are not read
//! again. Losing it costs only time, and a paranoid store does without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::base::fs::{self, Stat};
use crate::base::{Digest, Error, Result};

/// A file changed this shortly before it was read may change again within the same tick of the file
/// system's clock, so its stat proves nothing (the "racily clean" entries of git's index).
const TICK_NS: u64 = 20_000_000;
/// The same where the file system seems to count in seconds, or in two of them as FAT does.
const COARSE_TICK_NS: u64 = 2 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

#[derive(Default, Serialize, Deserialize)]
pub struct Memo {
    files: BTreeMap<String, Entry>,
    #[serde(skip)]
    changed: bool,
    /// Stores nothing, see [`Memo::blind`].
    #[serde(skip)]
    blind: bool,
    /// The folder that relative paths start from.
    #[serde(skip)]
    here: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    stat: Stat,
    digest: Digest,
}

impl Memo {
    /// Empty where there is no file or it cannot be parsed.
    pub fn load(path: &Path) -> Self {
        fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// One that stores nothing, so that every byte is read each time.
    pub fn blind() -> Self {
        Memo { blind: true, ..Memo::default() }
    }

    pub fn get(&mut self, path: &Path, stat: &Stat) -> Option<Digest> {
        if self.blind {
            return None;
        }
        let name = self.name(path);
        self.files.get(&name).filter(|e| e.stat == *stat).map(|e| e.digest)
    }

    /// Keeps the digest of a file that was read, unless it changed so recently that a further change might
    /// not show in its stat.
    pub fn put(&mut self, path: &Path, stat: Stat, digest: Digest) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        if !is_fresh(&stat, now) {
            self.put_own(path, stat, digest);
        }
    }

    /// Keeps the digest of a file that only this program changes, however recent its change.
    pub fn put_own(&mut self, path: &Path, stat: Stat, digest: Digest) {
        let name = self.name(path);
        self.files.insert(name, Entry { stat, digest });
        self.changed = true;
    }

    /// Updates the ctime of a file that this program linked or renamed.
    pub fn renew(&mut self, path: &Path, before: &Stat, now: Stat) {
        let same = Stat { ctime_ns: before.ctime_ns, ..now } == *before;
        if let Some(digest) = self.get(path, before).filter(|_| same && now != *before) {
            self.put_own(path, now, digest);
        }
    }

    /// The bytes of its file, merged with what other processes added meanwhile; `None` if there is nothing
    /// new.
    pub fn merged(&mut self, path: &Path) -> Result<Option<Vec<u8>>> {
        if !std::mem::take(&mut self.changed) {
            return Ok(None);
        }
        let mut all = Memo::load(path);
        all.files.extend(std::mem::take(&mut self.files));
        let bytes = serde_json::to_vec(&all).map_err(|e| Error::bug(format!("the memo: {e}")));
        self.files = all.files;
        bytes.map(Some)
    }

    /// Absolute, so that it holds whatever folder the next run starts in.
    fn name(&mut self, path: &Path) -> String {
        let here = self.here.get_or_insert_with(|| std::env::current_dir().unwrap_or_default());
        let path = here.join(path);
        std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// Whether a file may change again without its stat showing it.
fn is_fresh(stat: &Stat, now: u64) -> bool {
    let changed = stat.mtime_ns.max(stat.ctime_ns);
    let tick = if changed.is_multiple_of(SECOND_NS) { COARSE_TICK_NS } else { TICK_NS };
    changed.saturating_add(tick) > now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_within_a_tick_is_not_trusted() {
        let at = |mtime_ns, ctime_ns| Stat { size: 1, mtime_ns, ctime_ns, inode: 1 };
        let second = 1_000 * SECOND_NS;
        assert!(is_fresh(&at(1, second + 5), second + 6));
        assert!(!is_fresh(&at(1, second + 5), second + 6 + TICK_NS));
        // A file system that counts in seconds.
        assert!(is_fresh(&at(1, second), second + SECOND_NS));
        assert!(!is_fresh(&at(1, second), second + 2 * SECOND_NS));
    }

    #[test]
    fn a_new_name_renews_an_entry_and_a_new_content_does_not() {
        let stat = Stat { size: 1, mtime_ns: 5, ctime_ns: 5, inode: 1 };
        let (mut memo, path, digest) = (Memo::default(), Path::new("a"), Digest::of(b"a"));
        memo.put_own(path, stat, digest);
        let linked = Stat { ctime_ns: 9, ..stat };
        memo.renew(path, &stat, linked);
        assert_eq!(memo.get(path, &linked), Some(digest));
        let written = Stat { mtime_ns: 11, ctime_ns: 11, ..stat };
        memo.renew(path, &linked, written);
        assert_eq!(memo.get(path, &written), None);
    }
}
