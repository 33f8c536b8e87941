//! YAML to a typed pipeline: every key known, every value typed, every connection checked, before
//! anything runs; every mistake with its place, all of them at once.
//!
//! Reads pipeline and stage files and nothing else: whether a source exists is for [`crate::source`]
//! to find out. The way through: [`overrides`] puts `--set` into the tree, [`draft`] reads stages and
//! their `use:`, [`matrix`] multiplies them, [`connect`] checks params, ports, types and facts.

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
    /// For messages; two pipelines may have one.
    pub name: String,
    /// Of its results below `artifacts/`: its file's name without the ending, which no other pipeline has.
    pub folder: String,
    pub description: String,
    /// As the user named it.
    pub file: PathBuf,
    /// What relative paths start from: the folder that holds `pipelines/`.
    pub root: PathBuf,
    pub seed: u64,
    /// The memory that stages may claim together.
    pub memory: Option<u64>,
    pub stages: Vec<StageSpec>,
    /// Where in `stages` each is, by its name.
    places: HashMap<String, usize>,
    /// What `--set` and `--seed` changed, as given; a run with such is not written to the lockfile.
    pub overrides: Vec<String>,
}

/// A declared node, with everything resolved that can be before anything runs.
#[derive(Debug)]
pub struct StageSpec {
    /// `train`, or `train@d_model=64` for one of a matrix.
    pub name: String,
    /// The name it has in the file.
    pub base: String,
    pub kind: String,
    pub description: String,
    /// Canonical, with every default.
    pub params: Value,
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// Port -> artifact type.
    pub outputs: BTreeMap<String, String>,
    pub seed: u64,
    pub resources: Resources,
    /// Its name in the file.
    pub span: Span,
}

/// What a stage asks for; never part of a key.
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
    /// One of these the names of its files must end in.
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

    /// Where in [`Pipeline::stages`] the stage called `name` is.
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
        // Upstream stands before downstream, so one pass backwards reaches everything.
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
    /// The stages that it waits for; one may come twice.
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

/// What the command line changes.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// `PATH=VALUE` each.
    pub sets: Vec<String>,
    pub seed: Option<u64>,
}

/// Collects mistakes, so that one pass finds them all.
#[derive(Default)]
struct Mistakes(Vec<Error>);

impl Mistakes {
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
/// Every mistake in it, joined.
pub fn load(file: &Path, kinds: &Kinds, overrides: &Overrides) -> Result<Pipeline> {
    let mut tree =
        yaml::load(file, Limits::default()).map_err(|e| e.blame(crate::base::error::Fault::Usage))?;
    overrides::apply(&mut tree, &overrides.sets)?;
    let root = project_root(file);
    let mut mistakes = Mistakes::default();
    let head = head(&tree, file, &mut mistakes);
    let folder = mistakes.keep(folder(&tree, file, &root)).unwrap_or_default();
    let drafts = draft::read(tree, &root, kinds, &mut mistakes);
    // Positions of later mistakes would be guesses where the stages themselves do not read.
    let (head, drafts) = std::mem::take(&mut mistakes).done((head, drafts))?;
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
    let variants = matrix::expand(drafts, kinds, &mut mistakes);
    let variants = std::mem::take(&mut mistakes).done(variants)?;
    pipeline.stages = connect::all(variants, kinds, &pipeline, &mut mistakes);
    pipeline.places = pipeline.stages.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
    mistakes.done(pipeline)
}

/// The folder that holds `pipelines/`, or the pipeline's own where it lies elsewhere.
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

/// Folders below `artifacts/` that are not a pipeline's.
const RESERVED: [&str; 2] = ["store", "runs"];

fn head(tree: &Node, file: &Path, mistakes: &mut Mistakes) -> Head {
    unknown_keys(tree, "a pipeline", &PIPELINE_KEYS, mistakes);
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = text(tree, "name", mistakes).unwrap_or(stem);
    if !is_name(&name) {
        let node = tree.get("name").unwrap_or(tree);
        mistakes.push(
            node.error(format!("`{name}` cannot be the name of a pipeline"))
                .help("use letters, digits, `_` and `-`"),
        );
    }
    let seed = tree.get("seed").and_then(|n| mistakes.keep(yaml::decode::<u64>(n))).unwrap_or(0);
    let memory = resources(tree, mistakes).memory;
    Head { name, description: text(tree, "description", mistakes).unwrap_or_default(), seed, memory }
}

/// What the folder of the pipeline's results is called, which is told by its file and not by its `name`:
/// a copy of a file, in which the name stays, must not show its results over those of the original.
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

fn resources(node: &Node, mistakes: &mut Mistakes) -> Resources {
    let Some(node) = node.get("resources") else { return Resources::default() };
    unknown_keys(node, "`resources`", &["threads", "memory"], mistakes);
    let threads = node.get("threads").and_then(|n| {
        let count = mistakes.keep(yaml::decode::<usize>(n))?;
        if count == 0 {
            mistakes.push(n.error("a stage needs at least 1 thread"));
        }
        Some(count)
    });
    let memory = node.get("memory").and_then(|n| {
        let written = n.as_str().map_or_else(|| n.to_json().to_string(), str::to_string);
        let bytes = units::parse_bytes(&written);
        if bytes.is_none() {
            mistakes.push(
                n.error(format!("`{written}` is not an amount of memory")).help("write `2GiB` or `500MB`"),
            );
        }
        bytes
    });
    Resources { threads, memory }
}

fn unknown_keys(node: &Node, what: &str, known: &[&str], mistakes: &mut Mistakes) {
    if !matches!(node.value, yaml::Value::Map(_) | yaml::Value::Null) {
        mistakes.push(node.error(format!("{what} is a map, found {}", node.describe())));
    }
    for (key, _) in node.entries().iter().filter(|(k, _)| !known.contains(&k.name.as_str())) {
        mistakes.push(
            Error::usage(format!("{what} has no key `{}`", key.name))
                .at(key.span.place())
                .suggest(suggest::closest(&key.name, known.iter().copied()))
                .help(format!("known: {}", suggest::list(known.iter().copied()))),
        );
    }
}

fn text(node: &Node, key: &str, mistakes: &mut Mistakes) -> Option<String> {
    node.get(key).and_then(|n| mistakes.keep(yaml::decode::<String>(n)))
}

/// Of a stage or port, in bytes: it is the name of folders and, with an ending, of files.
const LONGEST_NAME: usize = 200;

/// Refuses a name that file systems would refuse in the midst of a run.
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
