//! YAML to a typed pipeline: every key, value and connection checked before anything runs; all errors at
//! once, each with its place.
//!
//! Reads pipeline and stage files and nothing else: whether a source exists is not checked here. The
//! passes: [`overrides`] applies `--set` to the tree, [`draft`] reads stages and their `use:`, [`matrix`]
//! multiplies them, [`connect`] checks params, ports, types and facts.

mod connect;
mod draft;
mod interpolate;
mod matrix;
mod overrides;
pub mod schema;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::yaml::{self, Limits, Node, Span};
use crate::base::{Error, Result, fs, suggest, units};
use crate::stage::Kinds;

/// A pipeline in which every connection holds. Stages are in an order in which they can run.
#[derive(Debug)]
pub struct Pipeline {
    /// For messages; two pipelines may have the same.
    pub name: String,
    /// The folder of its results below `artifacts/`: its file's name without the extension, which is unique.
    pub folder: String,
    pub description: String,
    /// As the user named it.
    pub file: PathBuf,
    /// The base of relative paths: the folder that holds `pipelines/`.
    pub root: PathBuf,
    pub seed: u64,
    /// The memory budget of stages that run at one time.
    pub memory: Option<u64>,
    pub stages: Vec<StageSpec>,
    /// Name -> index in `stages`.
    places: HashMap<String, usize>,
    /// Overrides as given on the command line; a run with any does not update the lockfile.
    pub overrides: Vec<String>,
}

/// A stage, with everything resolved that can be before anything runs.
#[derive(Debug)]
pub struct StageSpec {
    /// `train`, or `train@d_model=64` for one of a matrix.
    pub name: String,
    /// Its name in the file.
    pub base: String,
    pub kind: String,
    pub description: String,
    /// Canonical, with every default.
    pub params: Value,
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// Port -> artifact type.
    pub outputs: BTreeMap<String, String>,
    /// The outputs that may be meant where no port is named, the main one first: not the checkpoints.
    pub main_outputs: Vec<String>,
    pub seed: u64,
    pub resources: Resources,
    /// Its name in the file.
    pub span: Span,
}

/// Resources that a stage requests; never part of a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resources {
    pub threads: Option<usize>,
    pub memory: Option<u64>,
}

/// One thing connected to an input port.
#[derive(Debug, Clone)]
pub enum Input {
    /// The output `port` of an earlier stage.
    Stage {
        stage: String,
        port: String,
    },
    Source(SourceSpec),
}

/// A source as it was written.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// A path, a glob or a URL.
    pub text: String,
    /// For a URL.
    pub sha256: Option<String>,
    /// The extensions that its files may have.
    pub endings: &'static [&'static str],
    pub span: Span,
}

impl SourceSpec {
    pub fn is_url(&self) -> bool {
        self.text.contains("://")
    }
}

impl Pipeline {
    pub fn stage(&self, name: &str) -> Option<&StageSpec> {
        self.place(name).map(|place| &self.stages[place])
    }

    /// The index in [`Pipeline::stages`] of the stage called `name`.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// The stages called `name`: one, or all of a matrix.
    ///
    /// # Errors
    /// When there is none.
    pub fn select(&self, name: &str) -> Result<Vec<&StageSpec>> {
        let found: Vec<_> = self.stages.iter().filter(|s| s.name == name || s.base == name).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let known = || self.stages.iter().map(|s| s.name.as_str());
        Err(Error::usage(format!("pipeline `{}` has no stage `{name}`", self.name))
            .suggest(suggest::closest(name, known()))
            .help(format!("its stages are {}", suggest::list(known()))))
    }

    /// The named stages and everything they need, in order; all when none is named.
    ///
    /// # Errors
    /// As [`Pipeline::select`].
    pub fn closure(&self, names: &[String]) -> Result<Vec<&StageSpec>> {
        if names.is_empty() {
            return Ok(self.stages.iter().collect());
        }
        let mut wanted = std::collections::HashSet::new();
        for name in names {
            wanted.extend(self.select(name)?.into_iter().map(|s| s.name.clone()));
        }
        // Stages are in topological order, so one pass backwards reaches all upstream stages.
        for stage in self.stages.iter().rev() {
            if wanted.contains(&stage.name) {
                wanted.extend(stage.upstream().map(str::to_string));
            }
        }
        Ok(self.stages.iter().filter(|s| wanted.contains(&s.name)).collect())
    }

    pub fn lockfile(&self) -> PathBuf {
        self.file.with_extension("lock")
    }

    pub fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }
}

impl StageSpec {
    /// The names of its outputs, for messages.
    pub fn output_names(&self) -> Vec<&str> {
        output_names(&self.outputs, &self.main_outputs)
    }

    /// Its upstream stages, possibly with repetitions.
    pub fn upstream(&self) -> impl Iterator<Item = &str> {
        self.inputs.values().flatten().filter_map(|input| match input {
            Input::Stage { stage, .. } => Some(stage.as_str()),
            Input::Source(_) => None,
        })
    }

    pub fn sources(&self) -> impl Iterator<Item = &SourceSpec> {
        self.inputs.values().flatten().filter_map(|input| match input {
            Input::Source(source) => Some(source),
            Input::Stage { .. } => None,
        })
    }
}

/// The main outputs and then the checkpoints, by their steps.
fn output_names<'a>(outputs: &'a BTreeMap<String, String>, main: &'a [String]) -> Vec<&'a str> {
    let mut checkpoints: Vec<&str> =
        outputs.keys().filter(|name| !main.contains(name)).map(String::as_str).collect();
    checkpoints.sort_by_key(|name| (name.len(), *name));
    main.iter().map(String::as_str).chain(checkpoints).collect()
}

/// Changes from the command line.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// `PATH=VALUE` each.
    pub sets: Vec<String>,
    pub seed: Option<u64>,
}

/// Collects errors, so that one pass finds all.
#[derive(Default)]
struct Errors(Vec<Error>);

impl Errors {
    fn push(&mut self, error: Error) {
        self.0.push(error);
    }

    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.push(e)).ok()
    }

    fn done<T>(self, value: T) -> Result<T> {
        match Error::join(self.0) {
            Some(errors) => Err(errors),
            None => Ok(value),
        }
    }
}

/// Reads the pipeline in `file` with `overrides` and checks all of it.
///
/// # Errors
/// All its errors, joined.
pub fn load(file: &Path, kinds: &Kinds, overrides: &Overrides) -> Result<Pipeline> {
    let mut tree =
        yaml::load(file, Limits::default()).map_err(|e| e.blame(crate::base::error::Fault::Usage))?;
    overrides::apply(&mut tree, &overrides.sets)?;
    let root = project_root(file);
    let mut errors = Errors::default();
    let head = head(&tree, file, &mut errors);
    let folder = errors.keep(folder(&tree, file, &root)).unwrap_or_default();
    let drafts = draft::read(tree, &root, kinds, &mut errors);
    // Where stages cannot be parsed, later errors would only be consequences.
    let (head, drafts) = std::mem::take(&mut errors).done((head, drafts))?;
    let mut pipeline = Pipeline {
        name: head.name,
        folder,
        description: head.description,
        file: file.to_path_buf(),
        root,
        seed: overrides.seed.unwrap_or(head.seed),
        memory: head.memory,
        stages: Vec::new(),
        places: HashMap::new(),
        overrides: overrides
            .sets
            .iter()
            .cloned()
            .chain(overrides.seed.map(|s| format!("seed={s}")))
            .collect(),
    };
    let variants = matrix::expand(drafts, kinds, &mut errors);
    let variants = std::mem::take(&mut errors).done(variants)?;
    pipeline.stages = connect::all(variants, kinds, &pipeline, &mut errors);
    pipeline.places = pipeline.stages.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
    errors.done(pipeline)
}

/// The folder that holds `pipelines/`, or else the folder of the file.
pub fn project_root(file: &Path) -> PathBuf {
    let parent = file.parent().unwrap_or(Path::new(""));
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // `cd pipelines && tinylm run x.yaml` has the same root as from above.
    let inside = match parent == Path::new(".") {
        true => std::env::current_dir().is_ok_and(|d| d.file_name().is_some_and(|n| n == "pipelines")),
        false => parent.file_name().is_some_and(|n| n == "pipelines"),
    };
    match (inside, parent == Path::new(".")) {
        (true, true) => PathBuf::from(".."),
        (true, false) => match parent.parent() {
            Some(above) if !above.as_os_str().is_empty() => above.to_path_buf(),
            _ => PathBuf::from("."),
        },
        (false, _) => parent.to_path_buf(),
    }
}

struct Head {
    name: String,
    description: String,
    seed: u64,
    memory: Option<u64>,
}

const PIPELINE_KEYS: [&str; 6] = ["name", "description", "seed", "vars", "resources", "stages"];

/// Names of folders below `artifacts/` that no pipeline may have.
const RESERVED: [&str; 2] = ["store", "runs"];

fn head(tree: &Node, file: &Path, errors: &mut Errors) -> Head {
    unknown_keys(tree, "a pipeline", &PIPELINE_KEYS, errors);
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = text(tree, "name", errors).unwrap_or(stem);
    if !is_name(&name) {
        let node = tree.get("name").unwrap_or(tree);
        errors.push(
            node.error(format!("`{name}` cannot be the name of a pipeline"))
                .help("use letters, digits, `_` and `-`"),
        );
    }
    let seed = tree.get("seed").and_then(|n| errors.keep(yaml::decode::<u64>(n))).unwrap_or(0);
    let memory = resources(tree, errors).memory;
    Head { name, description: text(tree, "description", errors).unwrap_or_default(), seed, memory }
}

/// The folder of the pipeline's results: named by the file, not by `name`, since a copy of a file, which
/// keeps the `name`, must not overwrite the views of the original.
fn folder(tree: &Node, file: &Path, root: &Path) -> Result<String> {
    let stem = file.file_stem().unwrap_or_default();
    let rename = |e: Error| e.at(tree.span.place()).help("rename the file");
    let Some(name) = stem.to_str().filter(|s| !RESERVED.contains(s) && !s.starts_with('.')) else {
        let why = "a pipeline's file cannot have this name, which is the name of the folder of its results";
        return Err(rename(Error::usage(format!("{why}: `{}`", stem.display()))));
    };
    match namesake(name, file, root) {
        Some(other) => Err(rename(Error::usage(format!(
            "`{}` and `{}` would show their results in one folder, `artifacts/{name}`",
            file.display(),
            other.display()
        )))),
        None => Ok(name.to_string()),
    }
}

/// Another pipeline of this project whose file is called `stem`.
fn namesake(stem: &str, file: &Path, root: &Path) -> Option<PathBuf> {
    let own = fs::stat(file);
    let folders = [root.join("pipelines"), root.to_path_buf()];
    let files = folders.iter().flat_map(|f| ["yaml", "yml"].map(|ending| f.join(format!("{stem}.{ending}"))));
    let is_pipeline =
        |path: &Path| yaml::load(path, Limits::default()).is_ok_and(|tree| tree.get("stages").is_some());
    files.into_iter().find(|path| {
        let there = fs::stat(path);
        there.is_some() && there != own && is_pipeline(path)
    })
}

fn resources(node: &Node, errors: &mut Errors) -> Resources {
    let Some(node) = node.get("resources") else { return Resources::default() };
    unknown_keys(node, "`resources`", &["threads", "memory"], errors);
    let threads = node.get("threads").and_then(|n| {
        let count = errors.keep(yaml::decode::<usize>(n))?;
        if count == 0 {
            errors.push(n.error("a stage needs at least 1 thread"));
        }
        Some(count)
    });
    let memory = node.get("memory").and_then(|n| {
        let written = n.as_str().map_or_else(|| n.to_json().to_string(), str::to_string);
        let bytes = units::parse_bytes(&written);
        if bytes.is_none() {
            errors.push(
                n.error(format!("`{written}` is not an amount of memory")).help("write `2GiB` or `500MB`"),
            );
        }
        bytes
    });
    Resources { threads, memory }
}

fn unknown_keys(node: &Node, what: &str, known: &[&str], errors: &mut Errors) {
    if !matches!(node.value, yaml::Value::Map(_) | yaml::Value::Null) {
        errors.push(node.error(format!("{what} is a map, found {}", node.describe())));
    }
    for (key, _) in node.entries().iter().filter(|(k, _)| !known.contains(&k.name.as_str())) {
        errors.push(
            Error::usage(format!("{what} has no key `{}`", key.name))
                .at(key.span.place())
                .suggest(suggest::closest(&key.name, known.iter().copied()))
                .help(format!("known: {}", suggest::list(known.iter().copied()))),
        );
    }
}

fn text(node: &Node, key: &str, errors: &mut Errors) -> Option<String> {
    node.get(key).and_then(|n| errors.keep(yaml::decode::<String>(n)))
}

/// The most bytes of a stage's or port's name, which becomes the name of folders and files.
const LONGEST_NAME: usize = 200;

/// Refuses a name that file systems would refuse during a run.
fn fits(what: &str, name: &str, span: &Span) -> Result<()> {
    if name.len() <= LONGEST_NAME {
        return Ok(());
    }
    let start: String = name.chars().take(60).collect();
    Err(Error::usage(format!(
        "the name of this {what} has {} bytes, at most {LONGEST_NAME} are taken: `{start}…`",
        name.len()
    ))
    .at(span.place()))
}

/// Letters, digits, `_`, `-`; begins with a letter or digit.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests;
