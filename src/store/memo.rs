//! Remembers the digests of files by (path, size, mtime, inode), so that an unchanged gigabyte is not
//! read again. A cache and nothing more: losing it costs time, `--paranoid` does without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::base::fs::{self, Stat};
use crate::base::{Digest, Result};

/// A file changed this shortly before it was read may change again within the same tick of the file
/// system's clock, so its stat proves nothing (the "racily clean" entries of git's index).
const TICK_NS: u64 = 20_000_000;

#[derive(Default, Serialize, Deserialize)]
pub struct Memo {
    files: BTreeMap<String, Entry>,
    #[serde(skip)]
    changed: bool,
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
    /// An empty one where there is none or it does not read.
    pub fn load(path: &Path) -> Self {
        fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub fn get(&mut self, path: &Path, stat: &Stat) -> Option<Digest> {
        let name = self.name(path);
        self.files.get(&name).filter(|e| e.stat == *stat).map(|e| e.digest)
    }

    /// Keeps the digest, unless the file is too fresh to be told from its next version.
    pub fn put(&mut self, path: &Path, stat: Stat, digest: Digest) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        if stat.mtime_ns.saturating_add(TICK_NS) > now {
            return;
        }
        let name = self.name(path);
        self.files.insert(name, Entry { stat, digest });
        self.changed = true;
    }

    pub fn save(&mut self, path: &Path) -> Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let bytes =
            serde_json::to_vec(self).map_err(|e| crate::base::Error::bug(format!("the memo: {e}")))?;
        fs::write_atomic(path, &bytes)
    }

    /// Absolute, so that it holds whatever folder the next run starts in.
    fn name(&mut self, path: &Path) -> String {
        let here = self.here.get_or_insert_with(|| std::env::current_dir().unwrap_or_default());
        let path = here.join(path);
        std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
    }
}
