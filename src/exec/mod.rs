//! Runs a pipeline: a tokio scheduler over a budget of threads and memory, stages on blocking threads.
//! Each stage commits by itself, so whatever fails later takes nothing away.
//!
//! Emits [`Event`]s and prints nothing. Does not know what stages compute. [`run`] decides what can start;
//! [`stage`] carries one stage through.

mod log;
mod stage;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use crate::base::{Digest, Error, Monitor, Progress, Result};
use crate::event::{Event, StageResult, Status, Summary};
use crate::plan::lock::{Lock, LockedStage};
use crate::plan::{self, Decision, Past, Reason, Verdict};
use crate::spec::{Pipeline, StageSpec};
use crate::stage::Kinds;
use crate::store::source::{self, Sources};
use crate::store::{Action, Store};

/// How to run.
#[derive(Default)]
pub struct Options {
    /// Stages (or matrix stages) to bring up to date; all when empty.
    pub stages: Vec<String>,
    pub forced: Vec<String>,
    /// Threads over all stages that run at one time.
    pub jobs: usize,
    /// Memory over all stages that run at one time, in bytes.
    pub memory: u64,
    /// Go on with what does not depend on a failed stage.
    pub keep_going: bool,
    /// Refuse whatever is not as the lockfile says.
    pub locked: bool,
    pub run: String,
    /// Where the stages' logs go.
    pub folder: PathBuf,
}

/// A wish to stop, shared between the signal handler and every stage.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a run works with, shared by its stages.
struct Shared {
    pipeline: Arc<Pipeline>,
    kinds: Arc<Kinds>,
    store: Arc<Store>,
    sources: Sources,
    events: UnboundedSender<Event>,
    cancel: Cancel,
    options: Options,
    lock: Option<Lock>,
}

/// Brings the selected stages up to date.
///
/// # Errors
/// What is wrong before anything runs: sources, the lock, the selection. A stage that fails is no
/// error here but a result in the summary.
pub async fn run(
    pipeline: Arc<Pipeline>,
    kinds: Arc<Kinds>,
    store: Arc<Store>,
    events: UnboundedSender<Event>,
    cancel: Cancel,
    options: Options,
) -> Result<Summary> {
    let begun = Instant::now();
    let selected: Vec<String> = pipeline.closure(&options.stages)?.iter().map(|s| s.name.clone()).collect();
    for name in &options.forced {
        pipeline.select(name)?;
    }
    let _ = events.send(Event::RunStarted {
        pipeline: pipeline.name.clone(),
        run: options.run.clone(),
        stages: selected.len(),
        jobs: options.jobs,
    });
    let prepared = {
        let (pipeline, store, events, cancel) =
            (pipeline.clone(), store.clone(), events.clone(), cancel.clone());
        let selected = selected.clone();
        tokio::task::spawn_blocking(move || prepare(&pipeline, &selected, &store, events, cancel)).await
    };
    let sources = prepared.map_err(|e| Error::bug(format!("finding sources: {e}")))??;
    let lock =
        if options.locked { Some(checked_lock(&pipeline, &selected, &kinds, &sources)?) } else { None };
    let shared = Arc::new(Shared { pipeline, kinds, store, sources, events, cancel, options, lock });
    let results = Scheduler::new(shared.clone(), &selected).run().await;
    finish(&shared, &results)?;
    let ok = results.iter().all(|r| matches!(r.status, Status::Ran | Status::Cached));
    let summary = Summary {
        pipeline: shared.pipeline.name.clone(),
        run: shared.options.run.clone(),
        ok,
        seconds: begun.elapsed().as_secs_f64(),
        stages: results,
    };
    let _ = shared.events.send(Event::Summary(summary.clone()));
    Ok(summary)
}

/// Downloads what is missing, finds and hashes all sources.
fn prepare(
    pipeline: &Pipeline,
    selected: &[String],
    store: &Store,
    events: UnboundedSender<Event>,
    cancel: Cancel,
) -> Result<Sources> {
    store.sweep();
    let specs = || pipeline.stages.iter().filter(|s| selected.contains(&s.name)).flat_map(StageSpec::sources);
    source::fetch(specs(), store, &Preparing { events, cancel })?;
    let sources = source::resolve(specs(), &pipeline.root, store)?;
    // Kept so that a later `why` can name the files that changed.
    for (_, source) in sources.iter() {
        store.keep_manifest(&source.manifest)?;
    }
    Ok(sources)
}

struct Preparing {
    events: UnboundedSender<Event>,
    cancel: Cancel,
}

impl Monitor for Preparing {
    fn progress(&self, progress: Progress) {
        let _ = self.events.send(Event::Preparing(progress.into()));
    }
    fn measure(&self, _: &str, _: f64, _: &str) {}
    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

fn checked_lock(pipeline: &Pipeline, selected: &[String], kinds: &Kinds, sources: &Sources) -> Result<Lock> {
    let path = pipeline.lockfile();
    let lock = Lock::load(&path)?.ok_or_else(|| {
        Error::input(format!("there is no lockfile `{}`", path.display()))
            .help("run once without --locked to write it")
    })?;
    let stages: Vec<_> = pipeline.stages.iter().filter(|s| selected.contains(&s.name)).collect();
    plan::lock::verify(&lock, pipeline, &stages, kinds, sources)?;
    Ok(lock)
}

/// What is written once all is done: the memo and, unless something was overridden, the lockfile.
fn finish(shared: &Shared, results: &[StageResult]) -> Result<()> {
    shared.store.save()?;
    if !shared.pipeline.overrides.is_empty() || shared.options.locked {
        return Ok(());
    }
    let path = shared.pipeline.lockfile();
    let old = Lock::load(&path).ok().flatten().filter(|l| l.pipeline == shared.pipeline.name);
    let mut lock = old.unwrap_or_else(|| Lock::new(&shared.pipeline.name));
    let declared: HashSet<&str> =
        shared.pipeline.stages.iter().flat_map(StageSpec::sources).map(|s| s.text.as_str()).collect();
    lock.sources.retain(|text, _| declared.contains(text.as_str()));
    lock.stages.retain(|name, _| shared.pipeline.stage(name).is_some());
    for (text, source) in shared.sources.iter() {
        lock.sources.insert(text.to_string(), source.artifact.digest);
    }
    for result in results.iter().filter(|r| !r.outputs.is_empty()) {
        if let Some(action) = result.key.and_then(|key| shared.store.action(&key)) {
            lock.stages.insert(result.stage.clone(), LockedStage::of(&action));
        }
    }
    lock.save(&path)
}

struct Scheduler {
    shared: Arc<Shared>,
    /// Not started, in order.
    waiting: VecDeque<String>,
    running: JoinSet<(String, StageResult)>,
    /// Threads and memory taken by what runs.
    taken: HashMap<String, Need>,
    /// Keys of what runs: two stages with one key are one action, the second waits for the first.
    keys: HashMap<String, Digest>,
    done: BTreeMap<String, StageResult>,
    /// Output digests of finished stages.
    outputs: HashMap<String, BTreeMap<String, Digest>>,
    order: Vec<String>,
    failed: bool,
}

#[derive(Clone, Copy)]
struct Need {
    threads: usize,
    memory: u64,
}

impl Scheduler {
    fn new(shared: Arc<Shared>, selected: &[String]) -> Self {
        Scheduler {
            shared,
            waiting: selected.iter().cloned().collect(),
            running: JoinSet::new(),
            taken: HashMap::new(),
            keys: HashMap::new(),
            done: BTreeMap::new(),
            outputs: HashMap::new(),
            order: selected.to_vec(),
            failed: false,
        }
    }

    async fn run(mut self) -> Vec<StageResult> {
        loop {
            self.start_what_can();
            match self.running.join_next().await {
                Some(Ok((name, result))) => self.finished(&name, result),
                Some(Err(e)) => self.lost(&e.to_string()),
                None => break,
            }
        }
        for name in std::mem::take(&mut self.waiting) {
            let reason = Reason::UpstreamFailed("the run".into());
            self.skip(&name, reason);
        }
        self.order.iter().filter_map(|name| self.done.remove(name)).collect()
    }

    fn stopping(&self) -> bool {
        self.shared.cancel.is_cancelled() || (self.failed && !self.shared.options.keep_going)
    }

    /// Goes over what waits until nothing more can start.
    fn start_what_can(&mut self) {
        let mut left = VecDeque::new();
        while let Some(name) = self.waiting.pop_front() {
            if self.stopping() {
                left.push_back(name);
                continue;
            }
            let shared = self.shared.clone();
            let Some(stage) = shared.pipeline.stage(&name) else { continue };
            if let Some(bad) = stage.upstream().find(|up| self.done.get(*up).is_some_and(|r| !is_good(r))) {
                let reason = Reason::UpstreamFailed(bad.to_string());
                self.skip(&name, reason);
            } else if stage.upstream().any(|up| !self.done.contains_key(up)) || !self.consider(&shared, stage)
            {
                left.push_back(name);
            }
        }
        self.waiting = left;
    }

    /// Settles or starts a stage whose inputs are all there; `false` when it has to wait for room.
    fn consider(&mut self, shared: &Arc<Shared>, stage: &StageSpec) -> bool {
        let need = self.need(stage);
        if !self.fits(need) {
            return false;
        }
        let inputs = plan::input_digests(stage, &shared.sources, |name| self.outputs.get(name));
        let forced = shared.options.forced.iter().any(|f| *f == stage.name || *f == stage.base);
        let past = Past { store: &shared.store, sources: &shared.sources };
        let decision = plan::decide(&shared.pipeline, stage, &shared.kinds, inputs, &past, forced);
        let Some(key) = decision.key() else {
            self.fail(stage, None, decision.reason, &Error::bug("a stage was started without its inputs"));
            return true;
        };
        if decision.verdict == Verdict::Cached {
            let result = stage::cached(shared, stage, &decision);
            self.finished(&stage.name, result);
            return true;
        }
        if self.keys.values().any(|k| *k == key) {
            return false;
        }
        self.spawn(stage, decision, key, need);
        true
    }

    fn spawn(&mut self, stage: &StageSpec, decision: Decision, key: Digest, need: Need) {
        let shared = self.shared.clone();
        let name = stage.name.clone();
        self.taken.insert(name.clone(), need);
        self.keys.insert(name.clone(), key);
        let _ = shared.events.send(Event::StageStarted {
            stage: name.clone(),
            kind: stage.kind.clone(),
            key,
            reason: decision.reason.to_json(),
        });
        let connected = stage::connected(&shared, stage, &self.outputs);
        self.running.spawn_blocking(move || {
            let result = stage::execute(&shared, &name, &decision, connected, need.threads);
            (name, result)
        });
    }

    fn need(&self, stage: &StageSpec) -> Need {
        let parallel = self.shared.kinds.get(&stage.kind).is_some_and(|k| k.info().parallel);
        let jobs = self.shared.options.jobs.max(1);
        let threads = stage.resources.threads.unwrap_or(if parallel { jobs } else { 1 });
        Need { threads: threads.min(jobs), memory: stage.resources.memory.unwrap_or(0) }
    }

    /// A stage that asks for more memory than there is runs alone rather than never.
    fn fits(&self, need: Need) -> bool {
        let threads: usize = self.taken.values().map(|n| n.threads).sum();
        let memory: u64 = self.taken.values().map(|n| n.memory).sum();
        let options = &self.shared.options;
        self.taken.is_empty()
            || (threads + need.threads <= options.jobs
                && memory.saturating_add(need.memory) <= options.memory)
    }

    fn finished(&mut self, name: &str, result: StageResult) {
        self.taken.remove(name);
        self.keys.remove(name);
        self.failed |= !is_good(&result);
        if !result.outputs.is_empty() {
            self.outputs.insert(name.to_string(), result.outputs.clone());
        }
        let _ = self.shared.events.send(Event::StageFinished(result.clone()));
        self.done.insert(name.to_string(), result);
    }

    fn fail(&mut self, stage: &StageSpec, key: Option<Digest>, reason: Reason, error: &Error) {
        let result = StageResult {
            stage: stage.name.clone(),
            kind: stage.kind.clone(),
            status: Status::Failed,
            key,
            reason: reason.to_json(),
            seconds: 0.0,
            outputs: BTreeMap::new(),
            error: Some(error.to_string()),
            fault: Some(error.fault()),
            measurements: Vec::new(),
        };
        self.finished(&stage.name, result);
    }

    fn skip(&mut self, name: &str, reason: Reason) {
        let shared = self.shared.clone();
        let Some(stage) = shared.pipeline.stage(name) else { return };
        let reason =
            if shared.cancel.is_cancelled() { Reason::UpstreamFailed("the run".into()) } else { reason };
        let result = StageResult {
            stage: name.to_string(),
            kind: stage.kind.clone(),
            status: Status::Skipped,
            key: None,
            reason: reason.to_json(),
            seconds: 0.0,
            outputs: BTreeMap::new(),
            error: None,
            fault: None,
            measurements: Vec::new(),
        };
        self.finished(name, result);
    }

    /// A blocking task that died without a result; [`stage::execute`] catches panics, so this is a
    /// runtime that is shutting down.
    fn lost(&mut self, why: &str) {
        self.failed = true;
        let shared = self.shared.clone();
        let lost: Vec<String> = self.taken.keys().cloned().collect();
        for name in lost.iter().take(1) {
            if let Some(stage) = shared.pipeline.stage(name) {
                self.fail(
                    stage,
                    None,
                    Reason::NeverRan,
                    &Error::bug(format!("the stage's thread died: {why}")),
                );
            }
        }
    }
}

fn is_good(result: &StageResult) -> bool {
    matches!(result.status, Status::Ran | Status::Cached)
}

/// The action's record as a result.
fn result_of(stage: &StageSpec, status: Status, decision: &Decision, action: &Action) -> StageResult {
    StageResult {
        stage: stage.name.clone(),
        kind: stage.kind.clone(),
        status,
        key: decision.key(),
        reason: decision.reason.to_json(),
        seconds: action.seconds,
        outputs: action.outputs.clone(),
        error: None,
        fault: None,
        measurements: action.measurements.clone(),
    }
}
