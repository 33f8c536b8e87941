//! `pipelines/NAME.lock`: the digests of sources, actions and outputs, meant to be committed. Stable
//! order, one block a stage, so that a merge conflict is about what really conflicts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Records, decide, input_digests};
use crate::base::yaml::{self, Limits};
use crate::base::{Digest, Error, Result, canonical, fs};
use crate::spec::{Pipeline, StageSpec};
use crate::stage::Kinds;
use crate::store::source::Sources;
use crate::store::{Action, Damage, Fingerprint, Manifest};

/// The version of the file's layout.
const VERSION: u32 = 1;

/// The keys at the beginning of the file's lines, without the version's.
const LINES: [&str; 11] = [
    "# ",
    "pipeline: \"",
    "sources:",
    "stages:",
    "  \"",
    "    \"blake3:",
    "    kind: \"",
    "    params: \"blake3:",
    "    key: \"blake3:",
    "    outputs:",
    "      \"",
];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub version: u32,
    pub pipeline: String,
    /// Keyed by the text that declares them.
    #[serde(default)]
    pub sources: BTreeMap<String, Digest>,
    #[serde(default)]
    pub stages: BTreeMap<String, LockedStage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedStage {
    /// [`Fingerprint::versions`]
    pub kind: String,
    /// The digest of the params, so that a difference can be told from one of inputs.
    pub params: Digest,
    pub key: Digest,
    #[serde(default)]
    pub outputs: BTreeMap<String, Digest>,
}

impl LockedStage {
    /// For an action whose outputs are not known yet.
    pub fn new(fingerprint: &Fingerprint, key: Digest) -> Self {
        LockedStage {
            kind: fingerprint.versions(),
            params: canonical::digest(&fingerprint.params),
            key,
            outputs: BTreeMap::new(),
        }
    }
}

impl Lock {
    pub fn new(pipeline: &str) -> Self {
        Lock {
            version: VERSION,
            pipeline: pipeline.into(),
            sources: BTreeMap::new(),
            stages: BTreeMap::new(),
        }
    }

    /// Refuses a file that a run could not update. A file with the lines of [`Lock::to_text`] is not parsed
    /// for that, which would double the time of a run with nothing to do.
    ///
    /// # Errors
    /// As [`Lock::load`].
    pub fn check(path: &Path) -> Result<()> {
        let text = fs::read_if_there(path)?.unwrap_or_default();
        if text.strip_suffix(b"\n").unwrap_or(&text).split(|b| *b == b'\n').all(is_known) {
            return Ok(());
        }
        Lock::load(path).map(drop)
    }

    /// `None` when there is no such file.
    ///
    /// # Errors
    /// When it cannot be parsed, at its place.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let anew = "delete it and run again to write it anew";
        let text = fs::read_text(path)?;
        refuse_conflict(path, &text)?;
        let node =
            yaml::parse(&path.display().to_string(), &text, Limits::default()).map_err(|e| e.help(anew))?;
        // Before anything else, since another version may have other keys.
        let version = node.get("version").map(|v| v.to_json());
        if version.as_ref().is_some_and(|v| *v != VERSION) {
            let version = version.unwrap_or_default();
            return Err(node
                .locate("version")
                .error(format!("this lockfile has version {version}, this program writes {VERSION}"))
                .help(anew));
        }
        yaml::decode(&node).map(Some).map_err(|e| e.help(anew))
    }

    /// Written by hand for a layout that merges well: one line a digest, and between the digests of two
    /// sources or stages a line that does not change with them, so that git sees two changes and not one.
    pub fn to_text(&self) -> String {
        let mut out = String::from(
            "# Written by `tinylm run`, checked by `tinylm run --locked`. Commit it; don't edit it.\n",
        );
        let quoted = |text: &str| Value::String(text.into()).to_string();
        out += &format!("version: {}\npipeline: {}\nsources:\n", self.version, quoted(&self.pipeline));
        for (source, digest) in &self.sources {
            out += &format!("  {}:\n    {}\n", quoted(source), quoted(&digest.to_string()));
        }
        out += "\nstages:\n";
        for (i, (name, stage)) in self.stages.iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            out += &format!("  {}:\n    kind: {}\n", quoted(name), quoted(&stage.kind));
            out += &format!("    params: {}\n", quoted(&stage.params.to_string()));
            out += &format!("    key: {}\n    outputs:\n", quoted(&stage.key.to_string()));
            for (port, digest) in &stage.outputs {
                out += &format!("      {}: {}\n", quoted(port), quoted(&digest.to_string()));
            }
        }
        out
    }

    /// Whether the file has this content already, and no killed run left a partial one beside it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_saved(&self, path: &Path) -> Result<bool> {
        let there = fs::read_if_there(path)?;
        Ok(there.is_some_and(|bytes| bytes == self.to_text().as_bytes()) && !beside(path).exists())
    }

    /// Writes the file unless it has this content already. For one process at a time, see
    /// [`crate::store::Store::claim_lockfile`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let beside = beside(path);
        fs::remove(&beside)?;
        if self.is_saved(path)? {
            return Ok(());
        }
        let written = fs::write(&beside, self.to_text().as_bytes()).and_then(|()| fs::rename(&beside, path));
        written.inspect_err(|_| drop(fs::remove(&beside)))
    }
}

fn is_known(line: &[u8]) -> bool {
    // Of [`VERSION`].
    line.is_empty() || line == b"version: 1" || LINES.iter().any(|start| line.starts_with(start.as_bytes()))
}

/// The temporary that is renamed over the file: one name, so that the next run replaces what a killed run
/// left.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// The marks that git leaves where two branches changed the same lines.
fn refuse_conflict(path: &Path, text: &str) -> Result<()> {
    let is_mark = |line: &str| ["<<<<<<< ", "||||||| ", ">>>>>>> "].iter().any(|mark| line.starts_with(mark));
    let Some(line) = text.lines().position(|line| is_mark(line) || line == "=======") else { return Ok(()) };
    let at: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    Err(Error::usage("this lockfile has an unresolved merge conflict")
        .at(fs::place_of_byte(&path.display().to_string(), text.as_bytes(), at))
        .help("take either side (`git checkout --ours` or `--theirs`) or delete it, and run again"))
}

/// Whether the pipeline and its sources match the lock, without running anything: where the outputs of an
/// upstream stage are not known yet, those in the lock are assumed.
///
/// # Errors
/// Everything that differs.
pub fn verify(
    lock: &Lock,
    pipeline: &Pipeline,
    stages: &[&StageSpec],
    kinds: &Kinds,
    sources: &Sources,
) -> Result<()> {
    let mut found = Vec::new();
    if lock.pipeline != pipeline.name {
        found.push(format!("the lock is of pipeline `{}`", lock.pipeline));
    }
    for (text, source) in sources.iter() {
        match lock.sources.get(text) {
            Some(locked) if *locked == source.artifact.digest => {}
            Some(locked) => {
                let now = source.artifact.digest.short();
                found.push(format!("source `{text}` changed: locked {}, found {now}", locked.short()));
            }
            None => found.push(format!("source `{text}` is not in the lock")),
        }
    }
    for stage in stages {
        found.extend(stage_difference(lock, pipeline, stage, kinds, sources));
    }
    let selected_all = stages.len() == pipeline.stages.len();
    for name in lock.stages.keys().filter(|n| selected_all && pipeline.stage(n).is_none()) {
        found.push(format!("stage `{name}` is in the lock and no longer in the pipeline"));
    }
    if found.is_empty() {
        return Ok(());
    }
    let path = pipeline.lockfile();
    Err(Error::input(format!("`{}` does not match:\n  - {}", path.display(), found.join("\n  - ")))
        .help("run without --locked to accept what is there and write the lock anew"))
}

fn stage_difference(
    lock: &Lock,
    pipeline: &Pipeline,
    stage: &StageSpec,
    kinds: &Kinds,
    sources: &Sources,
) -> Option<String> {
    let name = &stage.name;
    let Some(locked) = lock.stages.get(name) else {
        return Some(format!("stage `{name}` is not in the lock"));
    };
    let inputs = input_digests(stage, sources, |upstream| lock.stages.get(upstream).map(|s| &s.outputs));
    let decision = decide(pipeline, stage, kinds, inputs, &Nothing, false);
    let (Some(fingerprint), Some(key)) = (decision.fingerprint, decision.key) else {
        return Some(format!("stage `{name}`: {}", decision.reason.detail()));
    };
    if key == locked.key {
        return None;
    }
    let kind = fingerprint.versions();
    let what = if kind != locked.kind {
        format!("its kind and version are `{kind}`, locked is `{}`", locked.kind)
    } else if canonical::digest(&fingerprint.params) != locked.params {
        "its params changed".to_string()
    } else {
        "its inputs or seed changed".to_string()
    };
    Some(format!("stage `{name}`: {what} (locked {}, found {})", locked.key.short(), key.short()))
}

/// No records: [`verify`] computes fingerprints and does not look into the store.
struct Nothing;

impl Records for Nothing {
    fn action(&self, _: &Digest) -> Option<Action> {
        None
    }
    fn damage(&self, _: &Digest) -> Option<Damage> {
        None
    }
    fn manifest(&self, _: &Digest) -> Option<Manifest> {
        None
    }
    fn history(&self, _: &str, _: &str) -> Vec<Digest> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_reads_back_and_is_stable() {
        let mut lock = Lock::new("p");
        lock.sources.insert("data/*.txt".into(), Digest::of(b"s"));
        for name in ["b@d=1", "a"] {
            let outputs = BTreeMap::from([("out".to_string(), Digest::of(name.as_bytes()))]);
            let stage =
                LockedStage { kind: "k 1".into(), params: Digest::of(b"p"), key: Digest::of(b"k"), outputs };
            lock.stages.insert(name.into(), stage);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.lock");
        lock.save(&path).unwrap();
        assert_eq!(Lock::load(&path).unwrap(), Some(lock.clone()));
        assert_eq!(lock.to_text().lines().find(|line| !is_known(line.as_bytes())), None);
        assert_eq!(Lock::load(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn a_lock_that_does_not_read_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.lock");
        let error = |text: &str| {
            fs::write(&path, text.as_bytes()).unwrap();
            let error = Lock::load(&path).unwrap_err();
            if !text.contains("blake3:12") {
                assert_eq!(Lock::check(&path).unwrap_err().to_string(), error.to_string());
            }
            (error.place().unwrap().line, error.to_string())
        };
        let (line, text) = error("version: 1\npipeline: p\nsources:\n  a: blake3:12\n");
        assert_eq!(line, 4, "{text}");
        // Another version may have other keys: the version is what is said.
        let (line, text) = error("version: 2\npipeline: p\nblocks: []\n");
        assert!(line == 1 && text.contains("has version 2"), "{text}");
        let (line, text) = error("version: 1\npipeline: p\nstagse: {}\n");
        assert!(line == 3 && text.contains("stagse"), "{text}");
        let (line, text) = error("version: 1\n<<<<<<< HEAD\npipeline: p\n=======\npipeline: q\n>>>>>>> b\n");
        assert!(line == 2 && text.contains("unresolved merge conflict"), "{text}");
        let (line, text) = error(&format!("version: 1{}\n", 0));
        assert!(line == 1 && text.contains("has version 10"), "{text}");
        assert!(error("pipeline: p\n").1.contains("version"));
    }
}
