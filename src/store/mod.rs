//! The store: digest -> bytes, and action key -> artifact. It lives in `artifacts/store/`:
//!
//! ```text
//! objects/ab/cdef…      a blob, named by the digest of its bytes; read-only; never written in place
//! manifests/HEX.json    an artifact: (path, digest, size) of its files; named by its own digest
//! actions/HEX.json      what an action gave: key -> fingerprint and output artifacts
//! history/P/S.json      the latest actions of stage S of the pipeline in P.yaml, for "why did this rerun"
//! urls/SHA256.json      what a URL's declared sha256 was found to be
//! partial/              downloads not yet whole
//! states/HEX/           what a stage saved of its work as it went, for the next of the same trajectory; see
//!                       [`StateFolder`]. The kind's own files, part of no key and no output, and safe to
//!                       remove at any time; of those not in use, the latest 16 are kept
//! tmp/                  where running stages write; nothing in it is ever read by others
//! locks/                who does which action just now; see [`Claim`]
//! quarantine/           blobs that were changed while a stage read them, kept to be looked at
//! memo.json             (path, size, mtime, ctime, inode) -> digest: unchanged files are not read again
//! ```
//!
//! Blobs first, then manifests, then the action record, each by rename: a record that can be read has all
//! its blobs, or the damage is detected and the stage reruns. Any number of processes may use a store; the
//! kernel releases their locks when they end, so no lock is ever stale. Every JSON shape has a `version`;
//! raise [`VERSION`] when one changes, and old ones read as absent.
//!
//! Deliberately absent: garbage collection (`rm -r artifacts` is safe at any time), and remote stores,
//! which would wrap [`Store`].

mod action;
mod catalog;
mod claim;
mod collect;
pub mod download;
mod memo;
mod reason;
mod scratch;
pub mod source;
mod states;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use action::{Action, Fingerprint, Measurement};
pub use catalog::{Catalog, Recorded, StageOf};
pub use claim::{Claim, Claimed};
use memo::Memo;
pub use reason::{Difference, FileChange, Reason, file_changes};
pub use scratch::BEAT;
use scratch::Scratch;
pub use states::StateFolder;
use states::States;

use crate::base::fs::Stat;
use crate::base::{Digest, Error, Result, canonical, fs};
use crate::stage::{Artifact, ArtifactFile};

/// Of every JSON shape in the store.
pub const VERSION: u32 = 1;

/// How many actions of a stage are remembered for `why`.
const HISTORY: usize = 32;

/// The files of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    #[serde(rename = "type")]
    pub ty: String,
    /// In byte order of the paths.
    pub files: Vec<ManifestFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Relative, with `/`.
    pub path: String,
    pub digest: Digest,
    pub size: u64,
    /// Not written when false, so that artifacts without executables keep the digests of earlier versions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

impl ManifestFile {
    pub fn of(file: &ArtifactFile) -> Self {
        let ArtifactFile { name, path: _, digest, size, executable } = file;
        ManifestFile { path: name.clone(), digest: *digest, size: *size, executable: *executable }
    }
}

impl Manifest {
    pub fn new(ty: &str, mut files: Vec<ManifestFile>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Manifest { version: VERSION, ty: ty.to_string(), files }
    }

    /// The digest that names the artifact.
    pub fn digest(&self) -> Digest {
        canonical::digest(&serde_json::json!(self))
    }
}

/// What is missing or changed in an artifact that a record names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Damage {
    Missing { file: String },
    Damaged { file: String },
}

/// An open store. Opening and reading create nothing.
pub struct Store {
    artifacts: PathBuf,
    root: PathBuf,
    scratch: Scratch,
    states: States,
    memo: Mutex<Memo>,
    /// Manifests that [`Store::damage`] found whole or [`Store::keep_manifest`] wrote; named by their
    /// content, they cannot become stale.
    manifests: Mutex<HashMap<Digest, Manifest>>,
}

impl Store {
    /// `artifacts` is the folder `artifacts/`; `paranoid` trusts no memo and rereads every byte.
    pub fn open(artifacts: &Path, paranoid: bool) -> Self {
        let root = artifacts.join("store");
        let memo = if paranoid { Memo::blind() } else { Memo::load(&root.join("memo.json")) };
        let scratch = Scratch::new(artifacts, root.join("tmp"));
        let (states, manifests) = (States::new(&root), Mutex::default());
        Store { artifacts: artifacts.to_path_buf(), root, scratch, states, memo: Mutex::new(memo), manifests }
    }

    fn object(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("objects").join(&hex[..2]).join(&hex[2..])
    }

    fn json(&self, folder: &str, name: &str) -> PathBuf {
        self.root.join(folder).join(format!("{name}.json"))
    }

    /// The manifest called `digest`, from the disk; `None` when it is missing or has another digest.
    pub fn manifest(&self, digest: &Digest) -> Option<Manifest> {
        let manifest: Manifest = read_json(&self.json("manifests", &digest.hex()))?;
        (manifest.digest() == *digest).then_some(manifest)
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Digest, Manifest>> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a manifest, so that later plans can list what changed in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_manifest(&self, manifest: &Manifest) -> Result<Digest> {
        let digest = manifest.digest();
        if self.manifest(&digest).is_none() {
            self.write_json(&self.json("manifests", &digest.hex()), manifest)?;
        }
        self.seen().insert(digest, manifest.clone());
        Ok(digest)
    }

    /// The first thing wrong with an artifact, down to the bytes of its blobs.
    pub fn damage(&self, artifact: &Digest) -> Option<Damage> {
        let Some(manifest) = self.manifest(artifact) else {
            let file = format!("its manifest {}", artifact.short());
            let there = self.json("manifests", &artifact.hex()).exists();
            return Some(if there { Damage::Damaged { file } } else { Damage::Missing { file } });
        };
        let damage = manifest.files.iter().find_map(|file| self.damaged_file(file));
        self.seen().insert(*artifact, manifest);
        damage
    }

    fn damaged_file(&self, file: &ManifestFile) -> Option<Damage> {
        let path = self.object(&file.digest);
        let Some(stat) = fs::stat(&path) else {
            return Some(Damage::Missing { file: file.path.clone() });
        };
        let whole = stat.size == file.size
            && self.digest_of_stated(&path, Some(stat)).is_ok_and(|found| found == file.digest);
        (!whole).then(|| Damage::Damaged { file: file.path.clone() })
    }

    /// The digest of a file's content, read only if (path, size, mtime, ctime, inode) are not known.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn digest_of(&self, path: &Path) -> Result<Digest> {
        self.digest_of_stated(path, fs::stat(path))
    }

    /// Whether the digest of a file that looks like `stat` is known without reading it.
    fn knows(&self, path: &Path, stat: &Stat) -> bool {
        self.memo().get(path, stat).is_some()
    }

    /// [`Store::digest_of`] of a file that looks like `before`.
    fn digest_of_stated(&self, path: &Path, before: Option<Stat>) -> Result<Digest> {
        if let Some(known) = before.and_then(|stat| self.memo().get(path, &stat)) {
            return Ok(known);
        }
        let digest = Digest::of_file(path)?;
        if let Some(stat) = before.filter(|s| Some(*s) == fs::stat(path)) {
            self.memo().put(path, stat, digest);
        }
        Ok(digest)
    }

    fn memo(&self) -> MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An artifact as a stage reads it.
    ///
    /// # Errors
    /// When its manifest is gone.
    pub fn artifact(&self, label: &str, digest: &Digest) -> Result<Artifact> {
        let seen = self.seen().get(digest).cloned();
        let manifest = seen.or_else(|| self.manifest(digest)).ok_or_else(|| {
            Error::input(format!("the manifest of `{label}` ({}) is gone from the store", digest.short()))
                .help("run again: its stage will make it anew")
        })?;
        let files = manifest.files.into_iter().map(|f| ArtifactFile {
            path: self.object(&f.digest),
            name: f.path,
            digest: f.digest,
            size: f.size,
            executable: f.executable,
        });
        Ok(Artifact { label: label.to_string(), digest: *digest, files: files.collect() })
    }

    /// The record of the action `key`; `None` when it never ran or the record is unreadable.
    pub fn action(&self, key: &Digest) -> Option<Action> {
        let action: Action = read_json(&self.json("actions", &key.hex()))?;
        (action.version == VERSION && action.fingerprint.key() == *key).then_some(action)
    }

    /// Why the record of the action `key` is unreadable, where it is.
    pub fn damaged_record(&self, key: &Digest) -> Option<String> {
        let path = self.json("actions", &key.hex());
        let why = match load_json::<Action>(&path) {
            Ok(None) => return None,
            Ok(Some(_)) if self.action(key).is_some() => return None,
            Ok(Some(_)) => format!("`{}` is the record of another action", path.display()),
            Err(e) => e.message().to_string(),
        };
        Some(why)
    }

    /// Why the list of a stage's latest actions or the record of the newest is unreadable, where one is.
    pub fn damaged_history(&self, pipeline: &str, stage: &str) -> Option<String> {
        match load_json::<Vec<Digest>>(&self.history_path(pipeline, stage)) {
            Ok(keys) => keys?.last().and_then(|key| self.damaged_record(key)),
            Err(e) => Some(e.message().to_string()),
        }
    }

    /// The latest actions of a stage, the newest last.
    pub fn history(&self, pipeline: &str, stage: &str) -> Vec<Digest> {
        read_json(&self.history_path(pipeline, stage)).unwrap_or_default()
    }

    /// Where the store below `artifacts` has the lists of the latest actions of a pipeline's stages.
    pub fn history_folder(artifacts: &Path, pipeline: &str) -> PathBuf {
        artifacts.join("store/history").join(pipeline)
    }

    fn history_path(&self, pipeline: &str, stage: &str) -> PathBuf {
        Self::history_folder(&self.artifacts, pipeline).join(format!("{stage}.json"))
    }

    /// Records that the latest action of `stage` is `key`; whether it was another one before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, pipeline: &str, stage: &str, key: &Digest) -> Result<bool> {
        let mut keys = self.history(pipeline, stage);
        if keys.last() == Some(key) {
            return Ok(false);
        }
        keys.retain(|k| k != key);
        keys.push(*key);
        keys.drain(..keys.len().saturating_sub(HISTORY));
        self.write_json(&self.history_path(pipeline, stage), &keys).map(|()| true)
    }

    /// A private folder for a running stage, on the store's file system so that moving is renaming.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        self.scratch.folder()
    }

    /// The folder of a trajectory's states, which need not exist and which others may be changing.
    pub fn state_folder(&self, trajectory: &Digest) -> PathBuf {
        self.states.path(trajectory)
    }

    /// The folder of a trajectory's states, created, for a stage that goes on from them.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn use_states(&self, trajectory: &Digest) -> Result<StateFolder> {
        self.states.open(trajectory)
    }

    /// The folder of a trajectory's states, emptied, for a stage that starts from nothing; `None` while
    /// another stage uses it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn use_no_states(&self, trajectory: &Digest) -> Result<Option<StateFolder>> {
        self.states.open_empty(trajectory)
    }

    /// Removes temporaries of killed runs, never those of live ones, on any host or in any container, and
    /// all but the latest states.
    pub fn sweep(&self) {
        self.scratch.sweep();
        self.states.sweep();
        claim::sweep(&self.root.join("locks"));
    }

    /// To be called every [`BEAT`] in a long run, so that other hosts see that it is alive.
    pub fn beat(&self) {
        self.scratch.beat();
    }

    /// Locks the action `key`, or names the process that has it locked.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn claim(&self, key: &Digest, run: &str) -> Result<Claimed> {
        Claim::ask(&self.root.join("locks").join(key.hex()), run)
    }

    /// Waits for the lock of the lockfile at `path`.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn claim_lockfile(&self, path: &Path, run: &str) -> Result<Claim> {
        let name = Digest::of(fs::absolute(path)?.to_string_lossy().as_bytes()).hex();
        Claim::wait(&self.root.join("locks").join(format!("lockfile-{name}")), run)
    }

    /// A hard link to a blob, with an update of the memo: linking changes the blob's ctime.
    fn linked(&self, blob: &ArtifactFile, to: &Path) -> Result<()> {
        let before = fs::stat(&blob.path);
        match blob.executable {
            // Other artifacts have the same blob as a file that is not executable.
            true => fs::copy_executable(&blob.path, to)?,
            false => fs::link(&blob.path, to)?,
        }
        if let (Some(before), Some(now)) = (before, fs::stat(&blob.path)) {
            self.memo().renew(&blob.path, &before, now);
        }
        if let Some(stat) = fs::stat(to).filter(|stat| Some(*stat) != fs::stat(&blob.path)) {
            self.memo().put(to, stat, blob.digest);
        }
        Ok(())
    }

    /// Moves `file` to `quarantine/` if it is a blob of this store whose bytes no longer match its name, so
    /// that no further stage reads it; gives the path there.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn quarantine_if_damaged(&self, file: &ArtifactFile) -> Result<Option<PathBuf>> {
        if file.path != self.object(&file.digest) {
            return Ok(None);
        }
        let listed = ManifestFile::of(file);
        if self.damaged_file(&listed).is_none() {
            return Ok(None);
        }
        let moved =
            self.root.join("quarantine").join(format!("{}-{}", file.digest.hex(), std::process::id()));
        if file.path.exists() {
            fs::rename(&file.path, &moved)?;
        }
        Ok(Some(moved))
    }

    /// Takes a stage's output folders into the store and records its action: blobs, manifests, then
    /// the record that makes them a hit.
    ///
    /// # Errors
    /// When an output is empty or a file cannot be moved.
    pub fn commit(
        &self,
        mut action: Action,
        outputs: &BTreeMap<String, (String, PathBuf)>,
    ) -> Result<Action> {
        for (port, (ty, folder)) in outputs {
            let manifest = self.take(port, ty, folder)?;
            action.outputs.insert(port.clone(), self.keep_manifest(&manifest)?);
        }
        self.write_json(&self.json("actions", &action.fingerprint.key().hex()), &action)?;
        Ok(action)
    }

    fn take(&self, port: &str, ty: &str, folder: &Path) -> Result<Manifest> {
        let collected = collect::collect(port, folder)?;
        let files = collected.into_iter().map(|file| {
            let taken = self.take_file(&file.path, file.name)?;
            Ok(ManifestFile { executable: file.executable, ..taken })
        });
        Ok(Manifest::new(ty, files.collect::<Result<_>>()?))
    }

    fn take_file(&self, path: &Path, name: String) -> Result<ManifestFile> {
        let before = fs::stat(path);
        let digest = Digest::of_file(path)?;
        if before.is_none() || fs::stat(path) != before {
            return Err(Error::input(format!("`{name}` changed while it was taken into the store"))
                .help("something still writes to it; wait for it at the end of the command"));
        }
        let file = ManifestFile { path: name, digest, size: fs::size(path)?, executable: false };
        let object = self.object(&digest);
        if self.damaged_file(&file).is_some() {
            fs::make_read_only(path)?;
            fs::rename(path, &object)?;
            if let Some(stat) = fs::stat(&object) {
                self.memo().put_own(&object, stat, digest);
            }
        }
        Ok(file)
    }

    /// The blob of a URL with this sha256.
    pub fn downloaded(&self, sha256: &str) -> Option<ManifestFile> {
        let file: ManifestFile = read_json(&self.json("urls", sha256))?;
        self.damaged_file(&file).is_none().then_some(file)
    }

    /// Takes a downloaded and verified file into the store.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn keep_download(&self, sha256: &str, path: &Path, name: &str) -> Result<()> {
        let file = self.take_file(path, name.to_string())?;
        self.write_json(&self.json("urls", sha256), &file)
    }

    /// The folder of partial downloads.
    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Makes `artifacts/PIPELINE/STAGE/PORT/` show the artifact.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn show(&self, pipeline: &str, stage: &str, port: &str, artifact: &Digest) -> Result<()> {
        let folder = self.artifacts.join(pipeline).join(stage).join(port);
        view::refresh(&folder, &self.artifact(stage, artifact)?, self, &self.scratch)
    }

    /// Removes the views of outputs that the stage no longer has, such as checkpoints of other steps.
    pub fn hide_others(&self, pipeline: &str, stage: &str, outputs: &BTreeMap<String, Digest>) {
        view::remove_others(&self.artifacts.join(pipeline).join(stage), outputs);
    }

    /// Writes the memo, if it has changed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<()> {
        let path = self.root.join("memo.json");
        let merged = self.memo().merged(&path)?;
        merged.map_or(Ok(()), |bytes| self.scratch.write(&path, &bytes))
    }

    fn write_json<T: Serialize>(&self, path: &Path, value: &T) -> Result<()> {
        let bytes =
            serde_json::to_vec_pretty(value).map_err(|e| Error::bug(format!("`{}`: {e}", path.display())))?;
        self.scratch.write(path, &bytes)
    }
}

/// What cannot be read counts as absent and is made again; [`Store::damaged_record`] says why.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    load_json(path).ok().flatten()
}

fn load_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = fs::read_if_there(path)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|e| Error::input(format!("`{}` does not read: {e}", path.display())))
}

#[cfg(test)]
mod tests;
