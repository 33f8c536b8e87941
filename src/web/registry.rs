//! The models: loaded when they are asked for, unloaded when others need the memory, loaded anew when they
//! changed on the disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::engine::{Answer, Engine, Settings};
use super::{ApiError, Limits, Metrics, Project, blocking};
use crate::base::{Digest, Error, Result, fs, suggest, units};
use crate::generate::Request;
use crate::kernel::Dtype;
use crate::model::{CONFIG_FILE, Config, Model, TOKENIZER_FILE, Transformer, WEIGHTS_FILE, decoder_memory};
use crate::target::{self, Stamp};
use crate::tokenizer::{Names, Tokenizer};

/// `code` of the error of a model that does not read.
const UNREADABLE: &str = "model_unreadable";

/// Models by their ids.
pub struct Registry {
    entries: Mutex<Vec<Arc<Entry>>>,
    /// Whose models are listed, as far as its stages have run, and how it looked when this was found out.
    project: Option<(Project, tokio::sync::Mutex<Option<Stamp>>)>,
    settings: Settings,
    dtype: Dtype,
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    /// Counts the requests, so that the model that was not asked for longest is known.
    clock: AtomicU64,
}

struct Entry {
    id: String,
    target: String,
    /// Held while the model is loaded, so that this happens once.
    loading: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    loaded: Option<Arc<Loaded>>,
    /// The latest stamp that was looked at while the model was there.
    seen: Option<Stamp>,
    /// Why the model on the disk does not read.
    error: Option<String>,
    used: u64,
    described: Option<(Stamp, Description)>,
}

/// A model in memory, with its thread.
pub struct Loaded {
    pub id: String,
    pub model: Arc<Model>,
    pub engine: Engine,
    /// [`target::identity`]
    identity: Digest,
    /// What it takes of the memory, until it ends.
    reserved: Reservation,
}

impl Loaded {
    /// Another one where the model changed: `system_fingerprint` of OpenAI's API.
    pub fn fingerprint(&self) -> String {
        format!("fp_{}", &self.identity.hex()[..12])
    }

    /// Submits requests that are answered together.
    ///
    /// # Errors
    /// An option that the model cannot follow, with its name; 429 when too many requests wait already.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Answer, ApiError> {
        for request in &requests {
            request.options.validate_for(&self.model)?;
        }
        self.engine.submit(requests)
    }
}

/// What is known of a model without loading it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Description {
    /// Unix time of its files.
    pub created: u64,
    pub parameters: Option<u64>,
    pub seq_len: Option<usize>,
    /// Whether it can be talked with.
    pub chat: Option<bool>,
    /// In memory.
    pub bytes: Option<u64>,
}

/// Bytes that a model takes.
#[derive(Clone, Copy)]
struct Cost {
    /// Of the weights.
    dtype: Dtype,
    /// Of the sequences that are kept.
    prefixes: u64,
}

/// A model that may be asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub id: String,
    #[serde(flatten)]
    pub description: Description,
    pub loaded: bool,
    /// Requests that go on, and that wait.
    pub running: usize,
    pub waiting: usize,
    /// Why what is on the disk now does not read.
    pub error: Option<String>,
}

/// Bytes of the models that are in memory.
struct Memory {
    limit: u64,
    used: AtomicU64,
}

/// Some of them, given back in the end.
struct Reservation {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    fn take(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(Reservation { memory: self.clone(), bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Relaxed);
    }
}

impl Registry {
    /// Of pairs of id and target.
    pub fn new(
        models: impl IntoIterator<Item = (String, String)>,
        dtype: Dtype,
        limits: &Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let entries = models.into_iter().map(|(id, target)| Entry::new(id, target)).collect();
        Registry {
            entries: Mutex::new(entries),
            project: None,
            settings: Settings {
                scheduler: limits.scheduler,
                waiting: limits.waiting,
                time: limits.generation_time,
            },
            dtype,
            memory: Arc::new(Memory { limit: limits.memory, used: AtomicU64::new(0) }),
            metrics,
            stop: Arc::default(),
            clock: AtomicU64::new(0),
        }
    }

    /// Of the models that the stages of a project have made, now and later.
    pub fn of_project(project: Project, dtype: Dtype, limits: &Limits, metrics: Arc<Metrics>) -> Self {
        let project = Some((project, tokio::sync::Mutex::default()));
        Registry { project, ..Self::new([], dtype, limits, metrics) }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for models of stages that have run since.
    pub async fn refresh(&self) {
        let Some((project, seen)) = &self.project else { return };
        let mut seen = seen.lock().await;
        let looked = project.clone();
        let stamp = blocking(move || Ok(looked.stamp())).await.ok();
        if *seen == stamp {
            return;
        }
        let looked = project.clone();
        let Ok(models) = blocking(move || Ok(looked.models())).await else { return };
        *seen = stamp;
        let mut entries = self.entries();
        let earlier = std::mem::take(&mut *entries);
        let is_old = |id: &str| earlier.iter().find(|entry| entry.id == id).cloned();
        *entries = models
            .into_iter()
            .map(|(id, target)| is_old(&id).unwrap_or_else(|| Entry::new(id, target)))
            .collect();
    }

    /// The ids of all models, in the order in which they were given.
    pub fn ids(&self) -> Vec<String> {
        self.entries().iter().map(|entry| entry.id.clone()).collect()
    }

    /// Makes all requests fail that go on.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Bytes of the models in memory, and how many there may be.
    pub fn memory(&self) -> [u64; 2] {
        [self.memory.used.load(Relaxed), self.memory.limit]
    }

    async fn entry(&self, id: &str) -> Result<Arc<Entry>, ApiError> {
        let find = || self.entries().iter().find(|entry| entry.id == id).cloned();
        if let Some(known) = find() {
            return Ok(known);
        }
        self.refresh().await;
        find().ok_or_else(|| self.unknown(id))
    }

    fn unknown(&self, id: &str) -> ApiError {
        let all = self.ids();
        let ids = || all.iter().map(String::as_str);
        let hint = match suggest::closest(id, ids()) {
            _ if all.is_empty() => return self.none(),
            Some(id) => format!("did you mean `{id}`?"),
            None => format!("there are {}", suggest::list(ids())),
        };
        let what = format!("there is no model `{}`: {hint}", id.chars().take(200).collect::<String>());
        ApiError { param: Some("model".to_string()), ..ApiError::not_found(what).code("model_not_found") }
    }

    /// The error of a server without models.
    pub fn none(&self) -> ApiError {
        let what = "this server has no models: run a pipeline that makes one, or name one when it is started";
        ApiError::not_found(what).code("model_not_found")
    }

    /// The model `id`, which is loaded where it is not, and anew where it changed on the disk.
    ///
    /// # Errors
    /// When there is no such model, it doesn't read, or there is no memory for it.
    pub async fn get(&self, id: &str) -> Result<Arc<Loaded>, ApiError> {
        let entry = &*self.entry(id).await?;
        entry.state().used = self.clock.fetch_add(1, Relaxed);
        let stamp = entry.stamp().await;
        if let Some(loaded) = entry.current(&stamp) {
            return Ok(loaded);
        }
        let _only = entry.loading.lock().await;
        let stamp = entry.stamp().await;
        if let Some(loaded) = entry.current(&stamp) {
            return Ok(loaded);
        }
        let result = match entry.identity(&stamp).await {
            Ok(identity) => match entry.same(identity) {
                Some(loaded) => Ok(loaded),
                None => self.load(entry, identity).await,
            },
            Err(error) => Err(unreadable(error)),
        };
        entry.settle(stamp.ok(), result)
    }

    async fn load(&self, entry: &Entry, identity: Digest) -> Result<Arc<Loaded>, ApiError> {
        let bytes = entry.describe(self.cost()).await.bytes.unwrap_or(0);
        let mut reserved = self.reserve(entry, bytes)?;
        let (target, dtype) = (entry.target.clone(), self.dtype);
        let model = blocking(move || target::load_model(&target, None, dtype)).await.map_err(unreadable)?;
        // A file of another program says what it needs only once it is read.
        let needed = self.bytes_of(&model);
        if needed > bytes {
            drop(reserved);
            reserved = self.reserve(entry, needed)?;
        }
        let model = Arc::new(model);
        let engine =
            Engine::start(model.clone(), self.settings.clone(), self.metrics.clone(), self.stop.clone())?;
        Ok(Arc::new(Loaded { id: entry.id.clone(), model, engine, identity, reserved }))
    }

    /// What a model takes at most: its weights, what products read in their place, and the sequences that are kept to be continued.
    fn bytes_of(&self, model: &Model) -> u64 {
        let transformer = &model.transformer;
        let weights = match transformer.is_quantized() {
            true => transformer.weight_bytes() as u64,
            false => memory_of(&transformer.config, self.dtype),
        };
        weights + self.cost().prefixes
    }

    fn cost(&self) -> Cost {
        Cost { dtype: self.dtype, prefixes: self.settings.scheduler.prefix_bytes }
    }

    /// Takes memory for a model, for which others are unloaded that nobody uses, the one that was not asked for
    /// longest first; in the end the earlier state of the model itself.
    fn reserve(&self, own: &Entry, bytes: u64) -> Result<Reservation, ApiError> {
        if bytes > self.memory.limit {
            return Err(self.out_of_memory(own, bytes));
        }
        loop {
            if let Some(reserved) = self.memory.take(bytes) {
                return Ok(reserved);
            }
            let all = self.entries().clone();
            let others = all.iter().map(|entry| &**entry).filter(|entry| !std::ptr::eq(*entry, own));
            let idle = others.filter(|entry| entry.is_idle()).min_by_key(|entry| entry.state().used);
            let idle = idle.or_else(|| Some(own).filter(|own| own.is_idle()));
            let Some(idle) = idle else { return Err(self.out_of_memory(own, bytes)) };
            idle.unload();
        }
    }

    fn out_of_memory(&self, own: &Entry, bytes: u64) -> ApiError {
        let [used, limit] = self.memory();
        let [needed, used, most] = [bytes, used, limit].map(units::bytes);
        let what =
            format!("there is no memory for `{}`: it needs {needed}, {used} of {most} are in use", own.id);
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what).code("out_of_memory");
        // Others end some time; a model that is too large stays so.
        ApiError { retry_after: Some(5).filter(|_| bytes <= limit), ..error }
    }

    /// All models in the order in which they were given.
    pub async fn list(&self) -> Vec<Listed> {
        self.refresh().await;
        let entries = self.entries().clone();
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            all.push(entry.listed(self.cost()).await);
        }
        all
    }

    /// The model `id`, not loaded.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn find(&self, id: &str) -> Result<Listed, ApiError> {
        Ok(self.entry(id).await?.listed(self.cost()).await)
    }

    /// Models that are in memory.
    pub fn loaded(&self) -> Vec<Arc<Loaded>> {
        self.entries().iter().filter_map(|entry| entry.state().loaded.clone()).collect()
    }
}

impl Entry {
    fn new(id: String, target: String) -> Arc<Self> {
        Arc::new(Entry { id, target, loading: Default::default(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stamp(&self) -> Result<Stamp, ApiError> {
        let target = self.target.clone();
        blocking(move || target::stamp(&target)).await
    }

    /// The model in memory, if it is that of the disk, or what is there was found not to read.
    fn current(&self, stamp: &Result<Stamp, ApiError>) -> Option<Arc<Loaded>> {
        let state = self.state();
        let is_known = stamp.as_ref().is_ok_and(|stamp| state.seen.as_ref() == Some(stamp));
        state.loaded.clone().filter(|loaded| is_known && !loaded.engine.is_dead())
    }

    async fn identity(&self, stamp: &Result<Stamp, ApiError>) -> Result<Digest, ApiError> {
        let (target, stamp) = (self.target.clone(), stamp.clone()?);
        blocking(move || target::identity(&target, &stamp)).await
    }

    /// The model in memory, if it is the one called `identity`: another stage of its pipeline ran.
    fn same(&self, identity: Digest) -> Option<Arc<Loaded>> {
        let loaded = self.state().loaded.clone();
        loaded.filter(|loaded| loaded.identity == identity && !loaded.engine.is_dead())
    }

    /// Keeps what loading gave. What does not read leaves the earlier model in its place.
    fn settle(
        &self,
        stamp: Option<Stamp>,
        result: Result<Arc<Loaded>, ApiError>,
    ) -> Result<Arc<Loaded>, ApiError> {
        let mut state = self.state();
        state.error = result.as_ref().err().map(|error| error.message.clone());
        match result {
            Ok(loaded) => {
                state.seen = stamp;
                state.loaded = Some(loaded.clone());
                Ok(loaded)
            }
            Err(error) => match state.loaded.clone().filter(|loaded| !loaded.engine.is_dead()) {
                Some(earlier) => {
                    // Memory may be free at the next request; files stay as they are until their stamp is another.
                    if error.code == Some(UNREADABLE) {
                        if state.seen != stamp {
                            let what = "cannot be loaded anew, the earlier one goes on";
                            tracing::warn!("`{}` {what}: {}", self.id, error.message);
                        }
                        state.seen = stamp;
                    }
                    Ok(earlier)
                }
                None => Err(error),
            },
        }
    }

    /// Whether the model is in memory and nobody has it.
    fn is_idle(&self) -> bool {
        self.state().loaded.as_ref().is_some_and(|loaded| Arc::strong_count(loaded) == 1)
    }

    fn unload(&self) {
        let loaded = self.state().loaded.take();
        if loaded.is_some() {
            tracing::info!("unloads `{}`", self.id);
        }
    }

    /// What its files say, which are read once while they stay as they are.
    async fn describe(&self, cost: Cost) -> Description {
        let Ok(stamp) = self.stamp().await else { return Description::default() };
        let known = self.state().described.clone().filter(|(of, _)| *of == stamp);
        if let Some((_, description)) = known {
            return description;
        }
        let target = self.target.clone();
        let description = blocking(move || Ok(describe(&target, cost))).await.unwrap_or_default();
        self.state().described = Some((stamp, description.clone()));
        description
    }

    async fn listed(&self, cost: Cost) -> Listed {
        let mut description = self.describe(cost).await;
        let state = self.state();
        if let Some(loaded) = &state.loaded {
            description.read(&loaded.model.transformer.config, &loaded.model.tokenizer);
            description.bytes = Some(loaded.reserved.bytes);
        }
        let engine = state.loaded.as_ref().map(|loaded| &loaded.engine);
        Listed {
            id: self.id.clone(),
            loaded: engine.is_some(),
            running: engine.map_or(0, Engine::running),
            waiting: engine.map_or(0, Engine::waiting),
            error: state.error.clone(),
            description,
        }
    }
}

impl Description {
    fn read(&mut self, config: &Config, tokenizer: &Tokenizer) {
        self.parameters = Some(config.parameters() as u64);
        self.seq_len = Some(config.seq_len);
        self.chat = Some(tokenizer.chat_template().is_ok());
    }
}

/// What the files of a target say; nothing of what does not read.
fn describe(target: &str, cost: Cost) -> Description {
    let mut found = Description::default();
    let stamp = target::stamp(target).unwrap_or_default();
    let newest = stamp.iter().filter_map(|(_, stat)| Some(stat.as_ref()?.mtime_ns)).max();
    found.created = newest.unwrap_or(0) / 1_000_000_000;
    let Ok(artifact) = target::of_model(target) else { return found };
    let read = || -> Result<(Config, Tokenizer)> {
        let files = artifact.as_files();
        let (config, tokenizer) = (files.file(CONFIG_FILE)?, files.file(TOKENIZER_FILE)?);
        let value = serde_json::from_slice::<Value>(&fs::read(config)?)
            .map_err(|e| Error::input(format!("`{}` is no JSON: {e}", config.display())))?;
        let names = Names::beside(|name| artifact.find(name))?;
        let config = Config::from_json(&config.display().to_string(), &value)?;
        Ok((config, Tokenizer::load_with(tokenizer, &names)?))
    };
    if let Ok((config, tokenizer)) = read() {
        found.read(&config, &tokenizer);
        found.bytes = Some(memory_of(&config, cost.dtype) + cost.prefixes);
    }
    if artifact.find(WEIGHTS_FILE).is_none() {
        // Quantized, or of another program: as many bytes as in the file.
        found.bytes = artifact.files.iter().map(|file| file.size).max().map(|size| size + cost.prefixes);
    }
    found
}

/// The error of a model that is not as it should be, which is not the client's fault.
fn unreadable(error: ApiError) -> ApiError {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    ApiError { status, kind: "server_error", ..error }.code(UNREADABLE)
}

/// Bytes of the weights of a model that is not quantized, and of what its decoder keeps beside them.
fn memory_of(config: &Config, dtype: Dtype) -> u64 {
    Transformer::memory(config, dtype) + decoder_memory(config, dtype)
}
