//! What a user names: a TARGET is a path, or `PIPELINE:STAGE` (its only output, or the only one of the type
//! asked for; checkpoints are named), or `PIPELINE:STAGE.PORT`, where PIPELINE is a file's stem or path. The
//! artifact is that of the latest run of the stage; a stage that the pipeline no longer has gives an error,
//! even if it ran earlier.

use std::path::{Path, PathBuf};

use crate::base::error::Fault;
use crate::base::{Digest, Error, Files, Result, fs, suggest};
use crate::corpus::{conversation, document};
use crate::kernel::Dtype;
use crate::kinds::{self, adapters, import};
use crate::model::format::ImportOptions;
use crate::model::{CONFIG_FILE, Model, TOKENIZER_FILE};
use crate::spec::{self, Overrides, Pipeline, StageSpec};
use crate::stage::{ANY, Artifact, ArtifactFile};
use crate::store::{Action, Store};
use crate::tokenizer::{Inputs, Names, Tokenizer};

/// Resolves `text` to an artifact; a file or folder becomes one without digests being computed.
///
/// # Errors
/// When there is no such file, pipeline, stage or port, or the stage never ran.
pub fn resolve(text: &str) -> Result<Artifact> {
    resolve_as(text, ANY)
}

/// [`resolve`], where of a stage's outputs the one of artifact type `ty` is meant.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_as(text: &str, ty: &str) -> Result<Artifact> {
    resolve_first(text, &[ty])
}

/// [`resolve_as`] for the first of the types that the stage has an output of.
fn resolve_first(text: &str, types: &[&str]) -> Result<Artifact> {
    let path = PathBuf::from(text);
    if path.exists() {
        return at_path(text, &path);
    }
    match text.split_once(':') {
        Some((pipeline, stage)) if !pipeline.is_empty() && !stage.is_empty() => {
            of_stage(text, pipeline, stage, types)
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

fn of_stage(text: &str, pipeline: &str, stage: &str, types: &[&str]) -> Result<Artifact> {
    let (pipeline, store) = opened(pipeline)?;
    let (stage, port) = named(&pipeline, stage)?;
    let has = |ty: &&&str| stage.outputs.values().any(|output| output == **ty);
    let ty = types.iter().find(has).or(types.first()).copied().unwrap_or(ANY);
    let port = chosen(stage, port, ty)?;
    let run = format!("tinylm run {} {}", pipeline.file.display(), stage.name);
    of_port(text, &pipeline, &store, stage, port).map_err(|e| e.help(&run))
}

/// A pipeline with its store.
fn opened(pipeline: &str) -> Result<(Pipeline, Store)> {
    let pipeline = spec::load(&pipeline_file(pipeline)?, &kinds::kinds(), &Overrides::default())?;
    let store = Store::open(&pipeline.artifacts(), false);
    Ok((pipeline, store))
}

/// What the latest run of a stage left at an output; `label` is what messages call it.
fn of_port(
    label: &str,
    pipeline: &Pipeline,
    store: &Store,
    stage: &StageSpec,
    port: &str,
) -> Result<Artifact> {
    let action = latest(store, pipeline, stage)?;
    let digest = action.outputs.get(port).ok_or_else(|| {
        Error::input(format!("`{}` has not run since it has the output `{port}`", stage.name))
    })?;
    if store.damage(digest).is_some() {
        return Err(Error::input(format!("the artifact of `{label}` is missing or damaged")));
    }
    store.artifact(label, digest)
}

/// [`resolve_as`] for an artifact of several files: where `text` is one of them, those beside it are meant, too.
///
/// # Errors
/// As [`resolve_as`].
pub fn folder_of(text: &str, ty: &str) -> Result<Artifact> {
    folder_of_first(text, &[ty])
}

/// [`folder_of`] for the first of the types that the stage has an output of.
///
/// # Errors
/// As [`resolve_as`].
pub fn folder_of_first(text: &str, types: &[&str]) -> Result<Artifact> {
    let path = Path::new(text);
    match path.is_file() {
        true => resolve_first(&parent(path).to_string_lossy(), types),
        false => resolve_first(text, types),
    }
}

/// The documents and conversations that the stage of a target was made from, directly or not, and the outputs of
/// which nothing is left. None where the target is a path.
///
/// # Errors
/// When the pipeline does not read.
pub fn texts_behind(text: &str) -> Result<(Inputs, Vec<String>)> {
    let (mut found, mut lost) = (Inputs::default(), Vec::new());
    let Some((pipeline, stage)) = text.split_once(':').filter(|_| !Path::new(text).exists()) else {
        return Ok((found, lost));
    };
    let (pipeline, store) = opened(pipeline)?;
    let (stage, _) = named(&pipeline, stage)?;
    for stage in pipeline.closure(std::slice::from_ref(&stage.name))? {
        for port in stage.outputs.iter().filter(|(_, ty)| is_text(ty)).map(|(port, _)| port) {
            let label = format!("{}.{port}", stage.name);
            match of_port(&label, &pipeline, &store, stage, port) {
                Ok(artifact) => drop(add_texts(&mut found, &artifact)),
                Err(_) => lost.push(label),
            }
        }
    }
    Ok((found, lost))
}

fn is_text(ty: &str) -> bool {
    ty == "documents" || ty == "conversations"
}

/// Adds the files of documents and conversations; the others.
fn add_texts(texts: &mut Inputs, artifact: &Artifact) -> Vec<PathBuf> {
    let mut others = Vec::new();
    for ArtifactFile { name, path, .. } in &artifact.files {
        match name.rsplit('/').next() {
            Some(document::FILE_NAME) => texts.documents.push(path.clone()),
            Some(conversation::FILE_NAME) => texts.conversations.push(path.clone()),
            _ => others.push(path.clone()),
        }
    }
    others
}

/// The documents and conversations of a target, or the files of plain text that it is.
///
/// # Errors
/// When there is no such target.
pub fn texts(text: &str) -> Result<(Inputs, Vec<PathBuf>)> {
    let artifact = resolve(text)?;
    let mut found = Inputs::default();
    let others = add_texts(&mut found, &artifact);
    // Beside the texts of a stage lies its report.
    let has_texts = !found.documents.is_empty() || !found.conversations.is_empty();
    Ok((found, if has_texts { Vec::new() } else { others }))
}

/// The stage and, if it is named, the port.
fn named<'t, 'p>(pipeline: &'p Pipeline, text: &'t str) -> Result<(&'p StageSpec, Option<&'t str>)> {
    let (stages, port) = all_named(pipeline, text)?;
    match stages.as_slice() {
        [stage] => Ok((stage, port)),
        several => {
            let names = suggest::list(several.iter().map(|s| s.name.as_str()));
            let name = port.map_or(text, |port| &text[..text.len() - port.len() - 1]);
            Err(Error::usage(format!("`{name}` is several stages")).help(format!("write one of {names}")))
        }
    }
}

/// The stages of a name, several where it has a matrix, and the port if it is named. Values of a matrix may have
/// dots, so a stage of the whole name is tried first.
fn all_named<'t, 'p>(pipeline: &'p Pipeline, text: &'t str) -> Result<(Vec<&'p StageSpec>, Option<&'t str>)> {
    let with_port = text.rsplit_once('.').filter(|(name, _)| {
        // If both fail, the error is about the more likely meaning.
        pipeline.select(text).is_err() && (pipeline.select(name).is_ok() || !name.contains('@'))
    });
    let (name, port) = with_port.map_or((text, None), |(name, port)| (name, Some(port)));
    let exact = pipeline.stage(name).map(|stage| vec![stage]);
    Ok((exact.map_or_else(|| pipeline.select(name), Ok)?, port))
}

/// The targets that `text` stands for: each variant of a stage that has a matrix, else itself.
///
/// # Errors
/// When there is no such pipeline or stage.
pub fn variants(text: &str) -> Result<Vec<String>> {
    let Some((file, stage)) = text.split_once(':').filter(|_| !Path::new(text).exists()) else {
        return Ok(vec![text.to_string()]);
    };
    let pipeline = spec::load(&pipeline_file(file)?, &kinds::kinds(), &Overrides::default())?;
    let (stages, port) = all_named(&pipeline, stage)?;
    let port = port.map(|port| format!(".{port}")).unwrap_or_default();
    Ok(stages.iter().map(|stage| format!("{file}:{}{port}", stage.name)).collect())
}

/// The newest action of a stage.
fn latest(store: &Store, pipeline: &Pipeline, stage: &StageSpec) -> Result<Action> {
    let history = store.history(&pipeline.folder, &stage.name);
    let action = history.last().and_then(|key| store.action(key));
    let whose = format!("stage `{}` of `{}`", stage.name, pipeline.folder);
    action.ok_or_else(|| match store.damaged_history(&pipeline.folder, &stage.name) {
        Some(why) => Error::input(format!("the record of {whose} is damaged: {why}")),
        None => Error::input(format!("the {whose} never ran")),
    })
}

fn chosen<'s>(stage: &'s StageSpec, port: Option<&str>, ty: &str) -> Result<&'s str> {
    let names = stage.output_names();
    let is_of_type = |name: &&String| ty == ANY || stage.outputs.get(*name).is_some_and(|t| t == ty);
    let of_type: Vec<&String> = stage.main_outputs.iter().filter(is_of_type).collect();
    match (port, stage.main_outputs.as_slice()) {
        (Some(port), _) => names.iter().find(|name| **name == port).copied().ok_or_else(|| {
            Error::usage(format!("the stage `{}` has no output `{port}`", stage.name))
                .suggest(suggest::closest(port, names.iter().copied()))
                .help(format!("its outputs are {}", suggest::list(names)))
        }),
        // Of another type or not: reading it says what is wrong.
        (None, [only]) => Ok(only),
        (None, _) if of_type.len() == 1 => Ok(of_type[0]),
        (None, _) => {
            Err(Error::usage(format!("`{}` has several outputs: {}", stage.name, suggest::list(names)))
                .help(format!("write `{}.PORT`", stage.name)))
        }
    }
}

/// The `tokenizer.json` files that the stages of a pipeline made; none when it does not read.
pub fn tokenizers(pipeline: &str) -> Vec<PathBuf> {
    let find = || -> Result<Vec<PathBuf>> {
        let (pipeline, store) = opened(pipeline)?;
        let actions = pipeline
            .stages
            .iter()
            .filter_map(|stage| store.action(store.history(&pipeline.folder, &stage.name).last()?));
        Ok(actions
            .flat_map(|a| a.outputs.into_values())
            .filter_map(|digest| {
                store.artifact("", &digest).ok()?.find("tokenizer.json").map(Path::to_path_buf)
            })
            .collect())
    };
    find().unwrap_or_default()
}

/// The file of a pipeline that is given as `two_stage`, `two_stage.yaml` or a path to it.
///
/// # Errors
/// When there is none; names those that there are.
pub fn pipeline_file(text: &str) -> Result<PathBuf> {
    let given = PathBuf::from(text);
    if given.is_file() {
        return Ok(given);
    }
    let named = Path::new("pipelines").join(format!("{text}.yaml"));
    if named.is_file() {
        return Ok(named);
    }
    let known: Vec<String> = fs::children(Path::new("pipelines"))
        .unwrap_or_default()
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .map(|p| p.display().to_string())
        .collect();
    let stems: Vec<String> =
        known.iter().filter_map(|p| Some(Path::new(p).file_stem()?.to_string_lossy().into_owned())).collect();
    let stem = given.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let error = Error::usage(format!("there is no pipeline `{text}`"))
        .suggest(suggest::closest(&stem, stems.iter().map(String::as_str)));
    Err(match known.is_empty() {
        true => error.help("name a YAML file, or run this in the folder that holds `pipelines/`"),
        false => error.help(format!("there are {}", suggest::list(known.iter().map(String::as_str)))),
    })
}

/// The files of a model: a folder's, or the one that holds all of it.
///
/// # Errors
/// As [`resolve_as`].
pub fn of_model(text: &str) -> Result<Artifact> {
    let path = Path::new(text);
    if path.is_file() && !is_in_model_folder(path) { resolve(text) } else { folder_of(text, "model") }
}

/// How the files look that decide what a target is: while they look alike, it is the same.
pub type Stamp = Vec<(PathBuf, Option<fs::Stat>)>;

/// The files of a path; of a stage its pipeline and what the store says of the stages' latest runs.
///
/// # Errors
/// When there is no such path or pipeline, or it cannot be read.
pub fn stamp(text: &str) -> Result<Stamp> {
    let path = Path::new(text);
    let mut files = match text.split_once(':').filter(|_| !path.exists()) {
        Some((pipeline, _)) => files_of_pipeline(pipeline)?,
        None if is_in_model_folder(path) => fs::files_below(parent(path))?,
        None if path.is_dir() => fs::files_below(path)?,
        None => vec![path.to_path_buf()],
    };
    files.sort();
    Ok(files.into_iter().map(|path| (path.clone(), fs::stat(&path))).collect())
}

/// Names the model that a target is, given its stamp: by the artifact's digest; that of a path by how its files
/// look.
///
/// # Errors
/// As [`of_model`].
pub fn identity(text: &str, stamp: &Stamp) -> Result<Digest> {
    match Path::new(text).exists() {
        true => Ok(Digest::of(format!("{stamp:?}").as_bytes())),
        false => Ok(of_model(text)?.digest),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn files_of_pipeline(pipeline: &str) -> Result<Vec<PathBuf>> {
    let file = pipeline_file(pipeline)?;
    let artifacts = spec::project_root(&file).join("artifacts");
    let history = Store::history_folder(&artifacts, &file.file_stem().unwrap_or_default().to_string_lossy());
    let mut files = if history.is_dir() { fs::files_below(&history)? } else { Vec::new() };
    files.push(file);
    Ok(files)
}

/// Names and targets of the models that the latest runs of a pipeline's stages left, checkpoints aside.
///
/// # Errors
/// When the pipeline does not read.
pub fn models(file: &Path) -> Result<Vec<(String, String)>> {
    let (pipeline, store) = opened(&file.to_string_lossy())?;
    let mut found = Vec::new();
    for stage in &pipeline.stages {
        let Ok(action) = latest(&store, &pipeline, stage) else { continue };
        let is_model = |port: &&String| stage.outputs.get(*port).is_some_and(|ty| ty == "model");
        for port in stage.main_outputs.iter().filter(is_model).filter(|p| action.outputs.contains_key(*p)) {
            let is_default = chosen(stage, None, "model").is_ok_and(|default| default == port);
            let name = if is_default { stage.name.clone() } else { format!("{}.{port}", stage.name) };
            found.push((format!("{}:{name}", pipeline.folder), format!("{}:{name}", file.display())));
        }
    }
    Ok(found)
}

/// The model that a target names, with the `adapter` of another merged into it.
///
/// # Errors
/// When there is no such target, or one of them doesn't read as what it is to be.
pub fn load_model(text: &str, adapter: Option<&str>, dtype: Dtype) -> Result<Model> {
    let mut model = match whole_model(text)? {
        Some(model) => model,
        None => model_of_folder(text)?,
    };
    if let Some(adapter) = adapter {
        model.transformer = adapters::merged(model.transformer, &folder_of(adapter, adapters::ADAPTER)?)?;
    }
    Ok(Model { transformer: model.transformer.in_dtype(dtype), ..model })
}

/// The model of a file of another program that holds all of it, as GGUF files do; not where it is one of a model's
/// folder.
fn whole_model(text: &str) -> Result<Option<Model>> {
    let path = Path::new(text);
    if !path.is_file() || is_in_model_folder(path) {
        return Ok(None);
    }
    let files = Files::at(path)?;
    let read = import::model(&files, None, import::AUTO, &ImportOptions::default(), &Names::default());
    read.map(|read| Some(read.model)).map_err(|e| not_a_model(text, e))
}

/// Whether a path is a file of a model's folder.
fn is_in_model_folder(path: &Path) -> bool {
    path.is_file() && path.with_file_name(CONFIG_FILE).is_file()
}

fn model_of_folder(text: &str) -> Result<Model> {
    let artifact = of_model(text)?;
    let names = Names::beside(|name| artifact.find(name))?;
    let files = artifact.as_files();
    files.file(CONFIG_FILE).map_err(|e| not_a_model(text, e))?;
    let tokenizer = files.file(TOKENIZER_FILE).map_err(|e| not_a_model(text, e))?;
    Model::open(&files, Tokenizer::load_with(tokenizer, &names)?)
}

fn not_a_model(text: &str, error: Error) -> Error {
    error.context(format!("`{text}` is not a model")).blame(Fault::Input)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stage with a model, a report and a checkpoint.
    fn tuned() -> StageSpec {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        let outputs = "{ model: model, report: report, step-5: model }";
        let text =
            format!("stages: {{ a: {{ kind: command, outputs: {outputs}, params: {{ command: [x] }} }} }}");
        fs::write(&file, text.as_bytes()).unwrap();
        let mut pipeline = spec::load(&file, &kinds::kinds(), &Overrides::default()).unwrap();
        let mut stage = pipeline.stages.remove(0);
        stage.main_outputs.retain(|name| name != "step-5");
        stage
    }

    #[test]
    fn without_a_port_the_main_output_of_the_type_is_meant() {
        let mut stage = tuned();
        assert_eq!(chosen(&stage, None, "model").unwrap(), "model");
        assert_eq!(chosen(&stage, Some("step-5"), "model").unwrap(), "step-5");
        let error = |stage, port, ty| chosen(stage, port, ty).unwrap_err().to_string();
        let several = error(&stage, None, ANY);
        assert!(several.contains("`a` has several outputs: `model`, `report`, `step-5`"), "{several}");
        assert!(error(&stage, None, "tokenizer").contains("has several outputs"));
        let unknown = error(&stage, Some("step-6"), "model");
        assert!(unknown.contains("did you mean `step-5`"), "{unknown}");
        // A model and checkpoints of it.
        stage.main_outputs.retain(|name| name == "model");
        assert_eq!(chosen(&stage, None, ANY).unwrap(), "model");
    }
}
