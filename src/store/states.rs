//! `states/HEX/`: what a stage leaves of its work so that a later stage of the same trajectory
//! ([`Fingerprint::trajectory`](super::Fingerprint::trajectory)) goes on from there, whether it was stopped,
//! killed or wants more steps. What lies in such a folder is the kind's alone; here is who uses it, and when
//! it goes.
//!
//! `locks/states-HEX` is locked, together with others, for as long as a stage uses the folder; the kernel
//! releases the lock when its process ends. Where the file system has no locks, a folder in which nothing
//! changed for an hour counts as unused.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::base::{Digest, Result, fs};

use super::scratch::is_silent;

/// How many trajectories are kept, the latest changed ones, beside those in use.
const KEPT: usize = 16;

/// Where the states of all trajectories are.
pub struct States {
    states: PathBuf,
    locks: PathBuf,
}

/// The folder of a trajectory's states, in use until dropped.
pub struct StateFolder {
    path: PathBuf,
    lock_file: PathBuf,
    lock: fs::Lock,
}

impl States {
    pub fn new(store: &Path) -> Self {
        States { states: store.join("states"), locks: store.join("locks") }
    }

    /// The folder of a trajectory's states, which need not exist.
    pub fn path(&self, trajectory: &Digest) -> PathBuf {
        self.states.join(trajectory.hex())
    }

    fn lock_file(&self, folder: &Path) -> PathBuf {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        self.locks.join(format!("states-{name}"))
    }

    /// The folder for a stage that goes on from what is there.
    pub fn open(&self, trajectory: &Digest) -> Result<StateFolder> {
        let path = self.path(trajectory);
        let lock_file = self.lock_file(&path);
        let lock = lock_shared(&lock_file)?;
        create(&path)?;
        Ok(StateFolder { path, lock_file, lock })
    }

    /// The folder for a stage that starts from nothing: what is there is removed. `None` while another stage
    /// uses it.
    pub fn open_empty(&self, trajectory: &Digest) -> Result<Option<StateFolder>> {
        let path = self.path(trajectory);
        let lock_file = self.lock_file(&path);
        match fs::open_exclusive(&lock_file)? {
            None => return Ok(None),
            Some(_held) => fs::remove(&path)?,
        }
        self.open(trajectory).map(Some)
    }

    /// Removes the folders not in use, but for the latest.
    pub fn sweep(&self) {
        let mut unused: Vec<(SystemTime, PathBuf)> = fs::children(&self.states)
            .unwrap_or_default()
            .into_iter()
            .map(|path| (path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH), path))
            .collect();
        unused.sort();
        let surplus = unused.len().saturating_sub(KEPT);
        unused.drain(..surplus).for_each(|(_, path)| self.remove_unused(&path));
    }

    fn remove_unused(&self, folder: &Path) {
        let lock_file = self.lock_file(folder);
        let Ok(Some(lock)) = fs::lock(&lock_file, true) else { return };
        let unused = match &lock {
            fs::Lock::Mine(_) => true,
            fs::Lock::Unknown(_) => File::open(folder).is_ok_and(|folder| is_silent(&folder)),
            fs::Lock::Taken => return,
        };
        if unused {
            let _ = fs::remove(folder);
        }
        let _ = fs::remove(&lock_file);
    }
}

/// Waits while another process removes the folder.
fn lock_shared(lock_file: &Path) -> Result<fs::Lock> {
    loop {
        match fs::lock_shared(lock_file)? {
            fs::Lock::Taken => std::thread::sleep(Duration::from_millis(5)),
            lock => return Ok(lock),
        }
    }
}

/// The folder, marked as changed now; whatever else has its name is of no use.
fn create(path: &Path) -> Result<()> {
    if !path.is_dir() {
        fs::remove(path)?;
        fs::create_dir(path)?;
    }
    // Only decides which folder is removed first.
    let _ = File::open(path).and_then(|folder| folder.set_modified(SystemTime::now()));
    Ok(())
}

impl StateFolder {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StateFolder {
    /// The last to leave removes the lock's file, and the folder if nothing is in it.
    fn drop(&mut self) {
        let is_last = match &self.lock {
            fs::Lock::Mine(lock) => lock.try_lock().is_ok(),
            // It can't be told, and a file that locks nothing is of no use.
            _ => return drop(fs::remove(&self.lock_file)),
        };
        if is_last {
            if fs::children(&self.path).is_ok_and(|left| left.is_empty()) {
                let _ = fs::remove(&self.path);
            }
            let _ = fs::remove(&self.lock_file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::children(folder)
            .unwrap_or_default()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn set_age(folder: &Path, minutes: u64) {
        let at = SystemTime::now() - Duration::from_secs(60 * minutes);
        File::open(folder).unwrap().set_modified(at).unwrap();
    }

    #[test]
    fn what_is_left_is_bounded_and_the_latest_and_the_used_stay() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::new(dir.path());
        let digest = |n: usize| Digest::of(n.to_string().as_bytes());
        // The oldest of all is in use.
        let used = states.open(&digest(100)).unwrap();
        for n in 0..KEPT + 4 {
            fs::write(&states.open(&digest(n)).unwrap().path().join("state"), b"x").unwrap();
            set_age(&states.path(&digest(n)), n as u64);
        }
        set_age(used.path(), 1_000);
        states.sweep();
        let left: Vec<usize> = (0..KEPT + 4).filter(|n| states.path(&digest(*n)).exists()).collect();
        assert_eq!(left, (0..KEPT).collect::<Vec<_>>());
        assert!(used.path().exists());
        // Used again, the oldest is the latest.
        drop(states.open(&digest(KEPT - 1)).unwrap());
        fs::write(&used.path().join("state"), b"x").unwrap();
        set_age(used.path(), 1_000);
        drop(used);
        states.sweep();
        assert!(states.path(&digest(KEPT - 1)).exists() && !states.path(&digest(100)).exists());
        assert_eq!(names(&dir.path().join("locks")), Vec::<String>::new());
    }

    #[test]
    fn several_use_a_folder_and_only_one_alone_empties_it() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::new(dir.path());
        let trajectory = Digest::of(b"t");
        let (one, two) = (states.open(&trajectory).unwrap(), states.open(&trajectory).unwrap());
        fs::write(&one.path().join("state"), b"x").unwrap();
        assert!(states.open_empty(&trajectory).unwrap().is_none());
        drop(one);
        assert!(states.open_empty(&trajectory).unwrap().is_none());
        assert_eq!(names(two.path()), ["state"]);
        drop(two);
        assert_eq!(names(&dir.path().join("locks")), Vec::<String>::new());
        let empty = states.open_empty(&trajectory).unwrap().unwrap();
        assert_eq!(names(empty.path()), Vec::<String>::new());
        // Used like any other.
        assert!(states.open_empty(&trajectory).unwrap().is_none());
        drop(empty);
        assert!(!states.path(&trajectory).exists());
    }

    #[test]
    fn a_file_in_its_place_and_a_removed_folder_are_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::new(dir.path());
        let trajectory = Digest::of(b"t");
        fs::write(&states.path(&trajectory), b"no folder").unwrap();
        let folder = states.open(&trajectory).unwrap();
        assert!(folder.path().is_dir());
        fs::remove(&dir.path().join("states")).unwrap();
        states.sweep();
        drop(folder);
        assert!(states.open(&trajectory).unwrap().path().is_dir());
        assert_eq!(names(&dir.path().join("locks")), Vec::<String>::new());
    }
}
