//! Locks between processes, for an action or an update of the lockfile: a file that is locked and names its
//! owner. The kernel releases the lock when the process ends, so no lock is ever stale.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::{Result, fs, machine};

/// A held lock, released when dropped.
pub struct Claim {
    path: PathBuf,
    /// Closed, and thereby unlocked, after the file is removed: the next process creates a new file.
    _lock: File,
}

/// The result of [`Claim::ask`].
pub enum Claimed {
    Mine(Claim),
    /// The owner, for messages.
    ByOther(String),
}

impl Claim {
    /// # Errors
    /// When the file cannot be made.
    pub fn ask(path: &Path, run: &str) -> Result<Claimed> {
        let Some(mut lock) = fs::open_exclusive(path)? else {
            return Ok(Claimed::ByOther(owner(path)));
        };
        let who = format!("run {run} (process {} on {})\n", std::process::id(), machine::host());
        // For messages only: a full disk is reported where it prevents a result.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(who.as_bytes()));
        Ok(Claimed::Mine(Claim { path: path.to_path_buf(), _lock: lock }))
    }

    /// Waits for the lock; for work that takes no longer than writing a file.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn wait(path: &Path, run: &str) -> Result<Claim> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Claimed::Mine(claim) = Claim::ask(path, run)? {
                return Ok(claim);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = fs::remove(&self.path);
    }
}

fn owner(path: &Path) -> String {
    let text = fs::read_if_there(path).ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_string();
    // The owner has locked the file and not yet written its name.
    if text.is_empty() { "another run".into() } else { text }
}

/// Removes the lock files of killed runs in `folder`.
pub fn sweep(folder: &Path) {
    for path in fs::children(folder).unwrap_or_default() {
        if let Ok(Some(fs::Lock::Mine(_held))) = fs::lock(&path, false) {
            let _ = fs::remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_others_hear_by_whom_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/a");
        let Claimed::Mine(first) = Claim::ask(&path, "r1").unwrap() else { panic!("it is free") };
        let Claimed::ByOther(who) = Claim::ask(&path, "r2").unwrap() else { panic!("it is taken") };
        assert!(who.starts_with("run r1 (process "), "{who}");
        sweep(path.parent().unwrap());
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());
        // What a killed owner left is free.
        fs::write(&path, b"run r0 (process 1 on x)\n").unwrap();
        drop(Claim::wait(&path, "r3").unwrap());
        assert!(!path.exists());
    }
}
