//! TARGET: a path, or `PIPELINE:STAGE` (its only output), or `PIPELINE:STAGE.PORT`, where PIPELINE is a
//! file's stem or path. The artifact is the one that the stage's latest run gave.

use std::path::{Path, PathBuf};

use super::pipeline_file;
use crate::base::yaml::{self, Limits};
use crate::base::{Digest, Error, Result, fs, suggest};
use crate::stage::{Artifact, ArtifactFile};
use crate::store::{Action, Store};

/// Resolves `text` to an artifact; a file or folder becomes one without digests being computed.
///
/// # Errors
/// When there is no such file, pipeline, stage or port, or the stage never ran.
pub fn resolve(text: &str) -> Result<Artifact> {
    let path = PathBuf::from(text);
    if path.exists() {
        return at_path(text, &path);
    }
    match text.split_once(':') {
        Some((pipeline, stage)) if !pipeline.is_empty() && !stage.is_empty() => {
            of_stage(text, pipeline, stage)
        }
        _ => Err(Error::usage(format!("there is no `{text}`"))
            .help("a target is a path, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`")),
    }
}

fn at_path(label: &str, path: &Path) -> Result<Artifact> {
    let (base, paths) = match path.is_dir() {
        true => (path, fs::files_below(path)?),
        false => (path.parent().unwrap_or(Path::new("")), vec![path.to_path_buf()]),
    };
    let file = |path: PathBuf| {
        let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        Ok(ArtifactFile { name, size: fs::size(&path)?, digest: Digest::of(b""), executable: false, path })
    };
    let files = paths.into_iter().map(file).collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        return Err(Error::input(format!("the folder `{label}` is empty")));
    }
    Ok(Artifact { label: label.to_string(), digest: Digest::of(b""), files })
}

fn of_stage(text: &str, pipeline: &str, stage: &str) -> Result<Artifact> {
    let file = pipeline_file(pipeline)?;
    let root = crate::spec::project_root(&file);
    let tree = yaml::load(&file, Limits::default())?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = tree.get("name").and_then(|n| n.as_str()).unwrap_or(&stem);
    let store = Store::open(&root.join("artifacts"), false);
    let (stage, port) = split(&store, name, stage);
    let never = || {
        let known: Vec<&str> = tree
            .get("stages")
            .map(|n| n.entries())
            .unwrap_or_default()
            .iter()
            .map(|(k, _)| k.name.as_str())
            .collect();
        let base = stage.split('@').next().unwrap_or(&stage).to_string();
        if known.contains(&base.as_str()) {
            Error::input(format!("the stage `{stage}` of `{pipeline}` never ran"))
                .help(format!("tinylm run {} {stage}", file.display()))
        } else {
            Error::usage(format!("pipeline `{pipeline}` has no stage `{stage}`"))
                .suggest(suggest::closest(&base, known.iter().copied()))
                .help(format!("its stages are {}", suggest::list(known.iter().copied())))
        }
    };
    let damaged = |why: Option<String>| {
        why.map_or_else(never, |why| {
            Error::input(format!("the record of stage `{stage}` of `{pipeline}` is damaged: {why}"))
                .help(format!("tinylm run {} {stage}", file.display()))
        })
    };
    let history = store.history(name, &stage);
    let action = history.last().and_then(|key| store.action(key));
    let action = action.ok_or_else(|| damaged(store.damaged_history(name, &stage)))?;
    let port = chosen(&action, &stage, port.as_deref())?;
    let digest = action.outputs[&port];
    if store.damage(&digest).is_some() {
        return Err(Error::input(format!("the artifact of `{text}` is missing or damaged"))
            .help(format!("tinylm run {} {stage}", file.display())));
    }
    store.artifact(text, &digest)
}

/// Values of a matrix may hold dots, so the longest name that ever ran is the stage.
fn split(store: &Store, pipeline: &str, text: &str) -> (String, Option<String>) {
    if !store.history(pipeline, text).is_empty() {
        return (text.to_string(), None);
    }
    match text.rsplit_once('.') {
        Some((stage, port)) => (stage.to_string(), Some(port.to_string())),
        None => (text.to_string(), None),
    }
}

fn chosen(action: &Action, stage: &str, port: Option<&str>) -> Result<String> {
    let names = || action.outputs.keys().map(String::as_str);
    match port {
        Some(port) if action.outputs.contains_key(port) => Ok(port.to_string()),
        Some(port) => Err(Error::usage(format!("the stage `{stage}` has no output `{port}`"))
            .suggest(suggest::closest(port, names()))
            .help(format!("its outputs are {}", suggest::list(names())))),
        None => match action.outputs.keys().next() {
            Some(only) if action.outputs.len() == 1 => Ok(only.clone()),
            _ => Err(Error::usage(format!("`{stage}` has several outputs: {}", suggest::list(names())))
                .help(format!("write `{stage}.PORT`"))),
        },
    }
}

/// The `tokenizer.json` files that the stages of a pipeline made; none when it does not read.
pub fn tokenizers(pipeline: &str) -> Vec<PathBuf> {
    let find = || -> Result<Vec<PathBuf>> {
        let file = pipeline_file(pipeline)?;
        let kinds = crate::kinds::kinds();
        let pipeline = crate::spec::load(&file, &kinds, &crate::spec::Overrides::default())?;
        let store = Store::open(&pipeline.artifacts(), false);
        let actions = pipeline
            .stages
            .iter()
            .filter_map(|stage| store.action(store.history(&pipeline.name, &stage.name).last()?));
        Ok(actions
            .flat_map(|a| a.outputs.into_values())
            .filter_map(|digest| {
                store.artifact("", &digest).ok()?.find("tokenizer.json").map(Path::to_path_buf)
            })
            .collect())
    };
    find().unwrap_or_default()
}
