//! Temporaries of a process: `store/tmp/NAME/`, and `artifacts/.view-NAME/` for views, which may lie on
//! another file system than the store.
//!
//! `NAME` has host, boot and process. `store/tmp/NAME.lock` is locked for as long as the process lives, and
//! the kernel releases it however the process ends. So temporaries of killed and of live runs are told
//! apart in any container of this host. On another host, or where the file system has no locks, a free lock
//! proves nothing: there a run counts as dead after an hour without a [`Scratch::beat`].

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::base::fs::Lock;
use crate::base::{Result, fs, machine};

/// After so long without a beat a run whose lock proves nothing counts as dead.
const SILENCE: Duration = Duration::from_secs(3600);
/// How often a run should call [`Scratch::beat`].
pub const BEAT: Duration = Duration::from_secs(60);

const VIEW: &str = ".view-";

pub struct Scratch {
    artifacts: PathBuf,
    tmp: PathBuf,
    /// Created with the first file that is written.
    owner: Mutex<Option<Owner>>,
    /// Numbers the files in the folder.
    files: AtomicU64,
}

struct Owner {
    name: String,
    lock: File,
}

impl Scratch {
    pub fn new(artifacts: &Path, tmp: PathBuf) -> Self {
        Scratch {
            artifacts: artifacts.to_path_buf(),
            tmp,
            owner: Mutex::default(),
            files: AtomicU64::default(),
        }
    }

    /// A new folder on the store's file system, so that moving from it is renaming.
    pub fn folder(&self) -> Result<tempfile::TempDir> {
        fs::temp_dir(&self.tmp.join(self.name()?), "")
    }

    /// A new folder on the file system of the views.
    pub fn view_folder(&self) -> Result<tempfile::TempDir> {
        fs::temp_dir(&self.views(&self.name()?), "")
    }

    /// Writes a file that appears at `path` atomically.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let beside = self.tmp.join(self.name()?).join(number.to_string());
        fs::write(&beside, bytes)?;
        fs::rename(&beside, path)
    }

    /// A heartbeat, for processes on other kernels.
    pub fn beat(&self) {
        if let Some(owner) = &*self.owner.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = owner.lock.set_modified(SystemTime::now());
        }
    }

    fn name(&self) -> Result<String> {
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if owner.is_none() {
            *owner = Some(self.own()?);
        }
        Ok(owner.as_ref().map(|o| o.name.clone()).unwrap_or_default())
    }

    fn own(&self) -> Result<Owner> {
        loop {
            let name = new_name();
            // Only fails while another process' sweep holds it.
            if let Some(lock) = fs::open_exclusive(&self.lock_file(&name))? {
                return Ok(Owner { name, lock });
            }
        }
    }

    fn lock_file(&self, name: &str) -> PathBuf {
        self.tmp.join(format!("{name}.lock"))
    }

    fn views(&self, name: &str) -> PathBuf {
        self.artifacts.join(format!("{VIEW}{name}"))
    }

    /// Removes temporaries of killed runs.
    pub fn sweep(&self) {
        let own = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.as_ref().map(|o| o.name.as_str());
        for path in fs::children(&self.tmp).unwrap_or_default() {
            let file = name_of(&path);
            match file.strip_suffix(".lock") {
                Some(name) if Some(name) != own => self.sweep_owner(name, &path),
                // An owner's lock file is removed last, so a folder without one has no owner.
                None if !self.lock_file(&file).exists() => drop(fs::remove(&path)),
                _ => {}
            }
        }
        for path in fs::children(&self.artifacts).unwrap_or_default() {
            let file = name_of(&path);
            if file.strip_prefix(VIEW).is_some_and(|name| !self.lock_file(name).exists()) {
                let _ = fs::remove(&path);
            }
        }
    }

    fn sweep_owner(&self, name: &str, lock: &Path) {
        let Ok(Some(held)) = fs::lock(lock, false) else { return };
        let dead = match &held {
            Lock::Taken => false,
            Lock::Mine(_) if is_of_this_boot(name) => true,
            Lock::Mine(file) | Lock::Unknown(file) => is_silent(file),
        };
        if dead {
            self.remove(name);
        }
    }

    /// The lock file last, while it is locked.
    fn remove(&self, name: &str) {
        let folders = [self.tmp.join(name), self.views(name)];
        if folders.iter().all(|folder| fs::remove(folder).is_ok()) {
            let _ = fs::remove(&self.lock_file(name));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let owner = self.owner.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(owner) = owner {
            self.remove(&owner.name);
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `HOST-BOOT-PID-RANDOM`; the same process number may run in two containers. Short, since programs make
/// sockets below it, whose paths have at most 108 bytes.
fn new_name() -> String {
    let host = this_host();
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{host}-{}-{}-{random:08x}", boot(), std::process::id())
}

/// See [`is_of_this_boot`].
fn boot() -> &'static str {
    machine::boot().and_then(|id| id.get(..8)).unwrap_or("unknown")
}

/// Whether its owner ran on this kernel, so that its lock is conclusive. Where the system has no boot id,
/// the host name is compared.
fn is_of_this_boot(name: &str) -> bool {
    let mut parts = name.rsplit('-').skip(2);
    let same_boot = parts.next() == Some(boot());
    same_boot && (boot() != "unknown" || parts.next().is_some_and(|host| host == this_host()))
}

fn this_host() -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "._".contains(*c);
    machine::host().chars().filter(plain).take(20).collect()
}

/// Whether a file or folder has not been changed for so long that its process counts as dead.
pub fn is_silent(file: &File) -> bool {
    let since = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
    since.is_some_and(|since| since > SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::children(folder).unwrap().iter().map(|p| name_of(p)).collect()
    }

    #[test]
    fn a_sweep_takes_what_is_of_nobody_and_of_the_dead_and_leaves_the_living() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("store/tmp");
        let live = Scratch::new(dir.path(), tmp.clone());
        let (folder, view) = (live.folder().unwrap(), live.view_folder().unwrap());
        // A killed run of this boot: its lock can be had.
        let dead = new_name();
        fs::write(&tmp.join(format!("{dead}.lock")), b"").unwrap();
        fs::write(&tmp.join(&dead).join("x/y"), b"").unwrap();
        fs::write(&dir.path().join(format!(".view-{dead}/x")), b"").unwrap();
        // One of another host, and what earlier versions left.
        let foreign = "elsewhere-0123-1-00000000";
        fs::write(&tmp.join(format!("{foreign}.lock")), b"").unwrap();
        fs::write(&tmp.join(foreign).join("x"), b"").unwrap();
        fs::write(&tmp.join("view-aBcDeF/view/x"), b"").unwrap();
        let other = Scratch::new(dir.path(), tmp.clone());
        other.sweep();
        assert!(folder.path().exists() && view.path().exists());
        let name = live.name().unwrap();
        let mut left = vec![format!("{foreign}.lock"), foreign.into(), format!("{name}.lock"), name.clone()];
        left.sort();
        let mut found = names(&tmp);
        found.sort();
        assert_eq!(found, left);
        assert_eq!(names(dir.path()), [format!(".view-{name}"), "store".into()]);
        // Silent for long enough.
        let lock = std::fs::File::options().append(true).open(tmp.join(format!("{foreign}.lock"))).unwrap();
        lock.set_modified(SystemTime::now() - 2 * SILENCE).unwrap();
        other.sweep();
        drop((folder, view, live));
        assert_eq!(names(&tmp), Vec::<String>::new());
        assert_eq!(names(dir.path()), ["store"]);
    }
}
