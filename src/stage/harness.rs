//! Runs one kind without a pipeline, over plain files: for tests of kinds, and for library users who want
//! what a stage does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Artifact, ArtifactFile, Connected, Context, Kind, erase};
use crate::base::yaml::{self, Limits};
use crate::base::{Digest, Error, Monitor, Quiet, Result, canonical, fs};

/// The folder that a harness run wrote, removed when dropped.
pub struct Outcome {
    folder: tempfile::TempDir,
}

impl Outcome {
    /// The folder of output `port`.
    pub fn path(&self, port: &str) -> PathBuf {
        self.folder.path().join("out").join(port)
    }

    /// The bytes of a file of output `port`.
    ///
    /// # Panics
    /// When it is not there.
    pub fn read(&self, port: &str, name: &str) -> Vec<u8> {
        fs::read(&self.path(port).join(name)).expect("the stage wrote this file")
    }

    /// Output `port` as an artifact, to be the input of the next stage.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn artifact(&self, port: &str) -> Result<Artifact> {
        artifact(port, &self.path(port))
    }
}

/// A file, or all files below a folder, as an artifact.
///
/// # Errors
/// When something cannot be read.
pub fn artifact(label: &str, path: &Path) -> Result<Artifact> {
    let (base, paths) = match path.is_dir() {
        true => (path.to_path_buf(), fs::files_below(path)?),
        false => (path.parent().unwrap_or(Path::new("")).to_path_buf(), vec![path.to_path_buf()]),
    };
    let mut files = Vec::new();
    for path in paths {
        let name = path.strip_prefix(&base).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let (digest, size) = (Digest::of_file(&path)?, fs::size(&path)?);
        files.push(ArtifactFile { name, digest, size, executable: fs::is_executable(&path), path });
    }
    let manifest: serde_json::Value =
        files.iter().map(|f| serde_json::json!([f.name, f.digest.to_string(), f.size])).collect();
    Ok(Artifact { label: label.into(), digest: canonical::digest(&manifest), files })
}

/// Runs kind `K` on `inputs` with params written as YAML, on 2 threads.
///
/// # Errors
/// Params that do not parse, issues that the kind finds, or an error of its run.
pub fn run<K: Kind>(params: &str, inputs: &[(&str, Artifact)], seed: u64) -> Result<Outcome> {
    run_with::<K>(params, inputs, seed, 2, &Quiet)
}

/// [`run`] with a number of threads and a monitor.
///
/// # Errors
/// As [`run`].
pub fn run_with<K: Kind>(
    params: &str,
    inputs: &[(&str, Artifact)],
    seed: u64,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    run_in_state::<K>(params, inputs, seed, threads, monitor, None)
}

/// [`run_with`] the folder that holds the states of earlier runs of the same trajectory, and is left with
/// those of this one.
///
/// # Errors
/// As [`run`].
pub fn run_in_state<K: Kind>(
    params: &str,
    inputs: &[(&str, Artifact)],
    seed: u64,
    threads: usize,
    monitor: &dyn Monitor,
    state: Option<&Path>,
) -> Result<Outcome> {
    let stage = erase::<K>();
    let node = yaml::parse("params", params, Limits::default())?;
    let params = stage.resolve(&node)?;
    let mut connected: BTreeMap<String, Vec<Artifact>> = BTreeMap::new();
    for (port, artifact) in inputs {
        connected.entry(port.to_string()).or_default().push(artifact.clone());
    }
    let shapes = Connected(
        connected
            .iter()
            .map(|(port, all)| {
                let ups =
                    all.iter().map(|a| super::Upstream { label: a.label.clone(), ..Default::default() });
                (port.clone(), ups.collect())
            })
            .collect(),
    );
    if let Some(issue) = stage.examine(&params, &shapes, &[]).issues.into_iter().next() {
        let at = issue.at.strip_prefix("params.").unwrap_or("");
        return Err(node.locate(at).error(issue.message));
    }
    let folder = tempfile::tempdir().map_err(|e| Error::input(format!("no temporary folder: {e}")))?;
    let ports = stage.outputs(&params)?;
    let mut outputs = BTreeMap::new();
    for port in &ports {
        let path = folder.path().join("out").join(&port.name);
        fs::create_dir(&path)?;
        outputs.insert(port.name.clone(), path);
    }
    let types = ports.iter().map(|p| (p.name.clone(), p.ty.to_string())).collect();
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch)?;
    if let Some(state) = state {
        fs::create_dir(state)?;
    }
    let state = state.map(Path::to_path_buf);
    let ctx = Context { seed, threads, monitor, scratch, state, inputs: connected, outputs, types };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::input(format!("no threads: {e}")))?;
    pool.install(|| stage.run(&params, &ctx))?;
    if let Some(state) = &ctx.state {
        stage.committed(&params, seed, state);
    }
    Ok(Outcome { folder })
}
