//! What a stage kind is: a name, typed ports, documented params, and a function from input files to output
//! files. The engine uses kinds only through [`Stage`]. To write one, implement [`Kind`], whose params are
//! an ordinary Rust struct, and wrap it in [`erase`].
//!
//! This module depends neither on what stages compute nor on the store: a stage reads the input files and
//! writes into the output folders of its [`Context`].

pub mod harness;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::yaml::{self, Node};
use crate::base::{Digest, Error, Files, Invalid, Monitor, Result, units};

/// The name of an artifact type. A connection is refused when the names differ.
pub type TypeName = &'static str;

/// One file of any content.
pub const FILE: TypeName = "file";
/// Any number of files, as sources are; a port of this type takes a [`FILE`] too.
pub const FILES: TypeName = "files";
/// A port that takes every type.
pub const ANY: TypeName = "any";

/// A named, typed input or output of a kind.
#[derive(Debug, Clone)]
pub struct Port {
    pub name: String,
    pub ty: TypeName,
    pub required: bool,
    /// Takes a list of artifacts rather than one.
    pub many: bool,
    /// Further artifact types that it takes: a model where a tokenizer is asked for.
    pub also: &'static [TypeName],
    /// Extensions of the source files that it takes directly (`[""]`: all), so that files made elsewhere can
    /// be connected. Empty: only outputs of stages.
    pub sources: &'static [&'static str],
    pub doc: &'static str,
}

impl Port {
    pub fn new(name: &str, ty: TypeName, doc: &'static str) -> Self {
        Port { name: name.into(), ty, required: true, many: false, also: &[], sources: &[], doc }
    }

    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    pub fn many(mut self) -> Self {
        self.many = true;
        self
    }

    /// Artifacts of these types may be connected, too.
    pub fn or(mut self, types: &'static [TypeName]) -> Self {
        self.also = types;
        self
    }

    /// Source files with one of these endings may be connected; `&[""]` takes any.
    pub fn or_source(mut self, endings: &'static [&'static str]) -> Self {
        self.sources = endings;
        self
    }

    /// Whether an output of type `ty` may be connected here.
    pub fn takes(&self, ty: &str) -> bool {
        self.ty == ANY || self.ty == ty || self.also.contains(&ty) || (self.ty == FILES && ty == FILE)
    }
}

/// The description of a kind.
#[derive(Debug, Clone)]
pub struct Info {
    pub name: &'static str,
    /// Part of every key. Raise it when the same params and inputs give other bytes than before.
    pub version: u32,
    pub summary: &'static str,
    pub inputs: Vec<Port>,
    /// Those that every stage of the kind may have; which it has, and checkpoints beside them, is said by
    /// [`Kind::outputs`].
    pub outputs: Vec<Port>,
    /// The pipeline declares further ports itself (`kind: command`).
    pub open: bool,
    /// Its output bytes depend on the seed, which then is part of the key.
    pub seeded: bool,
    /// Uses every thread it is given, through rayon; others run on one.
    pub parallel: bool,
    /// Params that gate the result and do not change its bytes: left out of the key.
    pub not_in_key: &'static [&'static str],
    /// Params that decide how long and at which rates it trains, when it validates last, what it saves, but
    /// nothing of what happens up to a step: states saved under other values of them may be used. Empty:
    /// the kind saves no state.
    pub not_in_state: &'static [&'static str],
    /// Values of params that give other bytes than before.
    pub value_versions: &'static [ValueVersion],
}

/// The version of what a value of a param stands for, where it is not the first. Part of the keys of stages with that
/// value: the others keep theirs, which a new [`Info::version`] would change.
#[derive(Debug, Clone, Copy)]
pub struct ValueVersion {
    pub param: &'static str,
    pub value: &'static str,
    pub version: u32,
}

impl Info {
    pub fn input(&self, port: &str) -> Option<&Port> {
        self.inputs.iter().find(|p| p.name == port)
    }

    pub fn output(&self, port: &str) -> Option<&Port> {
        self.outputs.iter().find(|p| p.name == port)
    }
}

/// What is known of an artifact before it exists: `vocab_size`, `seq_len`.
pub type Facts = BTreeMap<String, Value>;

/// One thing connected to an input port, as far as it is known before anything runs.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    /// `tokenizer` or `data/tokenizer.json`, for messages.
    pub label: String,
    pub facts: Facts,
    /// The files, when it is a source.
    pub files: Vec<PathBuf>,
}

/// What is connected to each input port.
#[derive(Debug, Clone, Default)]
pub struct Connected(pub BTreeMap<String, Vec<Upstream>>);

impl Connected {
    pub fn get(&self, port: &str) -> &[Upstream] {
        self.0.get(port).map_or(&[], Vec::as_slice)
    }

    /// The first artifact on `port` for which `fact` is known as a whole number, and that number.
    pub fn number(&self, port: &str, fact: &str) -> Option<(&Upstream, u64)> {
        self.get(port).iter().find_map(|up| Some((up, up.facts.get(fact)?.as_u64()?)))
    }
}

/// An error that a kind finds in its params or in what is connected, before anything runs.
#[derive(Debug, Clone)]
pub struct Issue {
    /// Where: `params.steps`, `inputs.tokenizer`.
    pub at: String,
    pub message: String,
    pub help: Option<String>,
}

impl Issue {
    /// `message` follows the param's name and a colon.
    pub fn param(name: &str, message: impl Into<String>) -> Self {
        let message = format!("`{name}`: {}", message.into());
        Issue { at: format!("params.{name}"), message, help: None }
    }

    pub fn input(port: &str, message: impl Into<String>) -> Self {
        Issue { at: format!("inputs.{port}"), message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl From<Invalid> for Issue {
    fn from(invalid: Invalid) -> Self {
        Issue { message: invalid.to_string(), help: invalid.help, at: format!("params.{}", invalid.param) }
    }
}

/// Where a stage goes on from, because an earlier run of the same trajectory left its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The last step that need not be repeated.
    pub step: u64,
    /// The steps in all, where they are known before it runs.
    pub steps: Option<u64>,
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "goes on from step {}", units::count(self.step))?;
        self.steps.map_or(Ok(()), |steps| write!(f, " of {}", units::count(steps)))
    }
}

/// A stage kind as its author writes it. See `kinds/` for examples.
pub trait Kind: Send + Sync + 'static {
    /// Derive `Serialize, Deserialize, JsonSchema` with `#[serde(default, deny_unknown_fields)]`;
    /// the doc comment of each field is what `tinylm stages` and the editors show.
    type Params: Serialize + DeserializeOwned + JsonSchema;

    fn info() -> Info;

    /// Finds params out of range, ports that exclude each other, facts that do not match. Reads no data.
    fn validate(_: &Self::Params, _: &Connected) -> Vec<Issue> {
        Vec::new()
    }

    /// The output ports under these params, the main one first: checkpoints may come to those of
    /// [`Info::outputs`], and one that the params rule out is missing.
    fn outputs(_: &Self::Params) -> Vec<Port> {
        Self::info().outputs
    }

    /// From which step [`Kind::run`] would go on with the states in the folder `state`, which may be absent
    /// and is written by other processes meanwhile. Reads no data.
    fn resumes(_: &Self::Params, _seed: u64, _state: &Path) -> Option<Resume> {
        None
    }

    /// Removes from the folder `state` what no later stage would go on from. Called once the outputs of
    /// [`Kind::run`] are kept: until then they may still be lost, so `run` leaves its last state there.
    fn committed(_: &Self::Params, _seed: u64, _state: &Path) {}

    /// What is known of the artifact at output `port` before it exists.
    fn facts(_: &Self::Params, _: &Connected, _port: &str) -> Facts {
        Facts::new()
    }

    /// Computes. Everything it writes lies below [`Context::output`].
    ///
    /// # Errors
    /// Whatever prevents a result; the outputs are then discarded.
    fn run(params: &Self::Params, ctx: &Context) -> Result<()>;

    /// Checks finished outputs, made now or found in the store: one line per gate not passed.
    ///
    /// # Errors
    /// When an output cannot be read.
    fn gates(_: &Self::Params, _: &BTreeMap<String, Artifact>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// A stage kind as the engine sees it. Params are canonical JSON that [`Stage::resolve`] made.
pub trait Stage: Send + Sync {
    fn info(&self) -> &Info;
    fn schema(&self) -> Value;
    /// Every param with its default filled in.
    ///
    /// # Errors
    /// Unknown keys, wrong types, missing params, at their place.
    fn resolve(&self, params: &Node) -> Result<Value>;
    /// # Errors
    /// A bug: params that [`Stage::resolve`] did not make.
    fn outputs(&self, params: &Value) -> Result<Vec<Port>>;
    /// [`Kind::resumes`].
    fn resumes(&self, params: &Value, seed: u64, state: &Path) -> Option<Resume>;
    /// [`Kind::committed`].
    fn committed(&self, params: &Value, seed: u64, state: &Path);
    /// [`Kind::validate`], and [`Kind::facts`] of each of the output `ports`.
    fn examine(&self, params: &Value, inputs: &Connected, ports: &[&str]) -> Examined;
    /// # Errors
    /// As [`Kind::run`].
    fn run(&self, params: &Value, ctx: &Context) -> Result<()>;
    /// # Errors
    /// As [`Kind::gates`].
    fn gates(&self, params: &Value, outputs: &BTreeMap<String, Artifact>) -> Result<Vec<String>>;
}

/// What a kind finds out about a stage before anything runs.
#[derive(Debug, Clone, Default)]
pub struct Examined {
    pub issues: Vec<Issue>,
    /// Output port -> facts of its artifact; without ports that have none.
    pub facts: BTreeMap<String, Facts>,
}

/// The engine's view of `K`.
pub fn erase<K: Kind>() -> Box<dyn Stage> {
    Box::new(Erased::<K> { info: K::info(), kind: PhantomData })
}

struct Erased<K> {
    info: Info,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Erased<K> {
    fn params(&self, value: &Value) -> Result<K::Params> {
        K::Params::deserialize(value)
            .map_err(|e| Error::bug(format!("resolved params of `{}` do not read back: {e}", self.info.name)))
    }
}

impl<K: Kind> Stage for Erased<K> {
    fn info(&self) -> &Info {
        &self.info
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(K::Params).to_value()
    }

    fn resolve(&self, params: &Node) -> Result<Value> {
        let typed: K::Params = yaml::decode(params)?;
        serde_json::to_value(typed)
            .map_err(|e| params.error(format!("these params cannot be written down: {e}")))
    }

    fn outputs(&self, params: &Value) -> Result<Vec<Port>> {
        Ok(K::outputs(&self.params(params)?))
    }

    fn resumes(&self, params: &Value, seed: u64, state: &Path) -> Option<Resume> {
        K::resumes(&self.params(params).ok()?, seed, state)
    }

    fn committed(&self, params: &Value, seed: u64, state: &Path) {
        if let Ok(params) = self.params(params) {
            K::committed(&params, seed, state);
        }
    }

    fn examine(&self, params: &Value, inputs: &Connected, ports: &[&str]) -> Examined {
        let params = match self.params(params) {
            Ok(params) => params,
            Err(e) => {
                let issue = Issue { at: "params".into(), message: e.to_string(), help: None };
                return Examined { issues: vec![issue], facts: BTreeMap::new() };
            }
        };
        let facts = ports.iter().map(|port| (port.to_string(), K::facts(&params, inputs, port)));
        Examined {
            issues: K::validate(&params, inputs),
            facts: facts.filter(|(_, facts)| !facts.is_empty()).collect(),
        }
    }

    fn run(&self, params: &Value, ctx: &Context) -> Result<()> {
        K::run(&self.params(params)?, ctx)
    }

    fn gates(&self, params: &Value, outputs: &BTreeMap<String, Artifact>) -> Result<Vec<String>> {
        K::gates(&self.params(params)?, outputs)
    }
}

/// One file of an artifact: its name within the artifact, and the present path of its bytes.
#[derive(Debug, Clone)]
pub struct ArtifactFile {
    /// Relative, with `/`: `model.safetensors`. Use this, not `path`, in anything that is written:
    /// `path` differs between machines and may have no ending.
    pub name: String,
    pub path: PathBuf,
    pub digest: Digest,
    pub size: u64,
    /// Whether its executable bit is set, which is part of the artifact.
    pub executable: bool,
}

/// An artifact that a stage may read.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The stage or source it comes from, for messages.
    pub label: String,
    /// Of its manifest: (name, digest, size, executable) of every file.
    pub digest: Digest,
    /// In byte order of the names.
    pub files: Vec<ArtifactFile>,
}

impl Artifact {
    /// The file called `name`.
    ///
    /// # Errors
    /// When the artifact has no such file; says which it has.
    pub fn file(&self, name: &str) -> Result<&Path> {
        self.find(name).ok_or_else(|| {
            let names: Vec<_> = self.files.iter().take(8).map(|f| f.name.as_str()).collect();
            Error::input(format!("`{}` has no file `{name}`", self.label))
                .help(format!("it has: {}", names.join(", ")))
        })
    }

    pub fn find(&self, name: &str) -> Option<&Path> {
        self.files.iter().find(|f| f.name == name).map(|f| f.path.as_path())
    }

    /// The file called `name`, or the only file there is (a source that is named otherwise).
    ///
    /// # Errors
    /// As [`Artifact::file`].
    pub fn file_or_only(&self, name: &str) -> Result<&Path> {
        match self.files.as_slice() {
            [only] => Ok(&only.path),
            _ => self.file(name),
        }
    }

    pub fn size(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// The files by their names alone.
    pub fn as_files(&self) -> Files {
        let all = self.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
        Files { label: self.label.clone(), all }
    }
}

/// What a stage runs with: inputs, output folders, seed, threads, monitor.
pub struct Context<'a> {
    /// Use it through `Rng::new(ctx.seed, "what for")`. The same for every stage of a pipeline.
    pub seed: u64,
    /// How many threads it may use. The bytes must not depend on it. For a kind that is
    /// [`Info::parallel`] a rayon pool of this size is installed around [`Kind::run`].
    pub threads: usize,
    pub monitor: &'a dyn Monitor,
    /// A private folder for temporaries; removed afterwards.
    pub scratch: PathBuf,
    /// The folder of the states of this trajectory: what a stage leaves there, whether it ends or is killed,
    /// is there when a stage runs that differs at most in [`Info::not_in_state`]. Outside the key and the
    /// outputs: the bytes must not depend on it. It exists, may be damaged, and may be used by another
    /// process at the same time, so files are written under a temporary name and renamed, and one that
    /// vanishes is as one that was never there. `None` where no states are kept.
    pub state: Option<PathBuf>,
    pub inputs: BTreeMap<String, Vec<Artifact>>,
    pub outputs: BTreeMap<String, PathBuf>,
    /// The artifact types of the outputs.
    pub types: BTreeMap<String, String>,
}

impl Context<'_> {
    /// Everything connected to `port`; empty when nothing is.
    pub fn all(&self, port: &str) -> &[Artifact] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    pub fn optional(&self, port: &str) -> Option<&Artifact> {
        self.all(port).first()
    }

    /// The artifact at a required port.
    ///
    /// # Errors
    /// When nothing is connected, which loading the pipeline should have refused.
    pub fn input(&self, port: &str) -> Result<&Artifact> {
        self.optional(port).ok_or_else(|| Error::bug(format!("nothing is connected to the input `{port}`")))
    }

    /// The folder, empty at first, whose files become the artifact at output `port`.
    ///
    /// # Errors
    /// When the kind has no such output.
    pub fn output(&self, port: &str) -> Result<&Path> {
        self.outputs
            .get(port)
            .map(PathBuf::as_path)
            .ok_or_else(|| Error::bug(format!("there is no output `{port}`")))
    }
}

/// All stage kinds, by name. The engine gets them as an argument and has no list of its own.
pub struct Kinds(Vec<Box<dyn Stage>>);

impl Kinds {
    pub fn new(kinds: Vec<Box<dyn Stage>>) -> Self {
        Kinds(kinds)
    }

    pub fn get(&self, name: &str) -> Option<&dyn Stage> {
        self.iter().find(|k| k.info().name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &dyn Stage> {
        self.0.iter().map(AsRef::as_ref)
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.iter().map(|k| k.info().name)
    }

    /// Every artifact type that some port has.
    pub fn types(&self) -> BTreeMap<&'static str, ()> {
        self.iter()
            .flat_map(|k| k.info().inputs.iter().chain(&k.info().outputs))
            .map(|p| (p.ty, ()))
            .chain([(FILE, ()), (FILES, ())])
            .filter(|(ty, ())| *ty != ANY)
            .collect()
    }
}
