//! Runs a pipeline: a tokio scheduler over a budget of threads and memory, stages on blocking threads. Each
//! stage commits by itself, so a later failure loses nothing.
//!
//! Emits [`Event`]s and prints nothing. The scheduler is here; [`stage`] executes one stage.

mod inputs;
mod log;
mod stage;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use crate::base::{Digest, Error, Monitor, Progress, Result};
use crate::event::{Event, StageResult, Status, Summary};
use crate::plan::lock::{Lock, LockedStage};
use crate::plan::{self, Decision, Past, Verdict};
use crate::spec::{Pipeline, StageSpec};
use crate::stage::Kinds;
use crate::store::source::{self, Sources};
use crate::store::{Action, BEAT, Claim, Claimed, Reason, Store};

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
    /// Continue with stages that do not depend on a failed one.
    pub keep_going: bool,
    /// Refuse whatever differs from the lockfile.
    pub locked: bool,
    pub run: String,
    /// Where the stages' logs go.
    pub folder: PathBuf,
}

/// A cancellation flag, shared by the signal handler and every stage.
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

/// The state that the stages of a run share.
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
/// Errors found before anything runs: in sources, the lockfile, the selection. A stage that fails is a
/// result in the summary instead, and so is what fails afterwards.
pub async fn run(
    pipeline: Arc<Pipeline>,
    kinds: Arc<Kinds>,
    store: Arc<Store>,
    events: UnboundedSender<Event>,
    cancel: Cancel,
    options: Options,
) -> Result<Summary> {
    let begun = Instant::now();
    let selected: Vec<usize> =
        pipeline.closure(&options.stages)?.iter().filter_map(|s| pipeline.place(&s.name)).collect();
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
    if writes_lock(&pipeline, &options) {
        // One that cannot be parsed is refused now, since the run would overwrite it.
        Lock::check(&pipeline.lockfile())?;
    }
    let lock =
        if options.locked { Some(checked_lock(&pipeline, &selected, &kinds, &sources)?) } else { None };
    let shared = Arc::new(Shared { pipeline, kinds, store, sources, events, cancel, options, lock });
    let (results, locked) = Scheduler::new(shared.clone(), selected).run().await;
    let finished = finish(&shared, &results, &locked);
    let summary = Summary {
        pipeline: shared.pipeline.name.clone(),
        run: shared.options.run.clone(),
        ok: finished.is_ok() && results.iter().all(is_good),
        seconds: begun.elapsed().as_secs_f64(),
        stages: results,
        error: finished.err().map(|e| e.to_string()),
    };
    let _ = shared.events.send(Event::Summary(summary.clone()));
    Ok(summary)
}

/// Downloads missing URLs, finds and hashes all sources.
fn prepare(
    pipeline: &Pipeline,
    selected: &[usize],
    store: &Store,
    events: UnboundedSender<Event>,
    cancel: Cancel,
) -> Result<Sources> {
    store.sweep();
    let specs = || selected.iter().flat_map(|i| pipeline.stages[*i].sources());
    source::fetch(specs(), store, &Preparing { events, cancel })?;
    let sources = source::resolve(specs(), &pipeline.root, store)?;
    // Kept so that a later comparison can name the files that changed.
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

fn checked_lock(pipeline: &Pipeline, selected: &[usize], kinds: &Kinds, sources: &Sources) -> Result<Lock> {
    let path = pipeline.lockfile();
    let lock = Lock::load(&path)?.ok_or_else(|| {
        Error::input(format!("there is no lockfile `{}`", path.display()))
            .help("run once without --locked to write it")
    })?;
    let stages: Vec<_> = selected.iter().map(|i| &pipeline.stages[*i]).collect();
    plan::lock::verify(&lock, pipeline, &stages, kinds, sources)?;
    Ok(lock)
}

/// Writes the memo and, unless something was overridden, the lockfile.
fn finish(shared: &Shared, results: &[StageResult], actions: &HashMap<usize, LockedStage>) -> Result<()> {
    // Again: a child of a killed run inherits its parent's locks until it calls `exec`.
    shared.store.sweep();
    // Without the memo the next run only reads more; a store may be read-only.
    let _ = shared.store.save();
    if !writes_lock(&shared.pipeline, &shared.options) {
        return Ok(());
    }
    let path = shared.pipeline.lockfile();
    if updated_lock(shared, results, actions, &path)?.is_saved(&path)? {
        return Ok(());
    }
    // Read and written under a lock, so that no run loses the stages of another.
    let _claim = shared.store.claim_lockfile(&path, &shared.options.run)?;
    updated_lock(shared, results, actions, &path)?.save(&path)
}

/// A run with overrides does not describe the pipeline.
fn writes_lock(pipeline: &Pipeline, options: &Options) -> bool {
    pipeline.overrides.is_empty() && !options.locked
}

/// The lock at `path`, updated with the results of this run.
fn updated_lock(
    shared: &Shared,
    results: &[StageResult],
    actions: &HashMap<usize, LockedStage>,
    path: &Path,
) -> Result<Lock> {
    let pipeline = &shared.pipeline;
    let made = || results.iter().filter(|r| !r.outputs.is_empty());
    // Stages that did not run keep their entries in the present lock.
    let mut lock = match made().count() == pipeline.stages.len() {
        true => Lock::new(&pipeline.name),
        false => earlier_lock(pipeline, path)?,
    };
    for (text, source) in shared.sources.iter() {
        lock.sources.insert(text.to_string(), source.artifact.digest);
    }
    for result in made() {
        if let Some(action) = pipeline.place(&result.stage).and_then(|i| actions.get(&i)) {
            let outputs = result.outputs.clone();
            lock.stages.insert(result.stage.clone(), LockedStage { outputs, ..action.clone() });
        }
    }
    Ok(lock)
}

/// The lock at `path`, without what the pipeline no longer declares; an empty one where there is none.
fn earlier_lock(pipeline: &Pipeline, path: &Path) -> Result<Lock> {
    let mut lock = Lock::load(path)?.unwrap_or_else(|| Lock::new(&pipeline.name));
    lock.pipeline = pipeline.name.clone();
    let declared: HashSet<&str> =
        pipeline.stages.iter().flat_map(StageSpec::sources).map(|s| s.text.as_str()).collect();
    lock.sources.retain(|text, _| declared.contains(text.as_str()));
    lock.stages.retain(|name, _| pipeline.stage(name).is_some());
    Ok(lock)
}

/// Stages are indices into [`Pipeline::stages`], which is in topological order.
struct Scheduler {
    shared: Arc<Shared>,
    /// The stages to bring up to date, in order.
    selected: Vec<usize>,
    /// Stages that have not started and whose upstream is done, or failed.
    ready: BTreeSet<usize>,
    /// Those of `ready` whose upstream failed or was skipped.
    failed_upstream: BTreeSet<usize>,
    /// Stage -> how many unfinished upstream stages it has.
    unfinished_upstream: HashMap<usize, usize>,
    /// Stage -> its selected downstream stages.
    downstream: HashMap<usize, Vec<usize>>,
    running: JoinSet<(usize, StageResult)>,
    /// Threads and memory of the running stages.
    in_use: HashMap<usize, Need>,
    /// Keys of the running stages: two stages with one key are one action, the second waits for the first.
    keys: HashMap<usize, Digest>,
    /// Locks of the running actions, since only one process at a time runs an action.
    claims: HashMap<usize, Claim>,
    /// Those of `ready` whose action another process runs.
    waiting: HashMap<usize, Waiting>,
    /// The delay until their locks are tried again.
    retry_delay: Duration,
    done: HashMap<usize, StageResult>,
    /// Output digests of finished stages.
    outputs: HashMap<String, BTreeMap<String, Digest>>,
    /// The lockfile's entry of each action, without its outputs.
    locked: HashMap<usize, LockedStage>,
    failed: bool,
    /// Events not yet sent, see [`Scheduler::send`].
    unsent: Vec<Event>,
}

struct Waiting {
    key: Digest,
    reason: Reason,
    /// The process that runs it.
    by: String,
}

/// The first delay before a stage that waits for another process tries again; doubled each time.
const RETRY_DELAY: Duration = Duration::from_millis(2);
const MAX_RETRY_DELAY: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
struct Need {
    threads: usize,
    memory: u64,
}

impl Scheduler {
    fn new(shared: Arc<Shared>, selected: Vec<usize>) -> Self {
        let mut downstream: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut unfinished_upstream = HashMap::new();
        for &i in &selected {
            let upstream: BTreeSet<usize> =
                shared.pipeline.stages[i].upstream().filter_map(|up| shared.pipeline.place(up)).collect();
            unfinished_upstream.insert(i, upstream.len());
            upstream.into_iter().for_each(|up| downstream.entry(up).or_default().push(i));
        }
        Scheduler {
            ready: selected.iter().copied().filter(|i| unfinished_upstream[i] == 0).collect(),
            shared,
            selected,
            failed_upstream: BTreeSet::new(),
            unfinished_upstream,
            downstream,
            running: JoinSet::new(),
            in_use: HashMap::new(),
            keys: HashMap::new(),
            claims: HashMap::new(),
            waiting: HashMap::new(),
            retry_delay: RETRY_DELAY,
            done: HashMap::new(),
            outputs: HashMap::new(),
            locked: HashMap::new(),
            failed: false,
            unsent: Vec::new(),
        }
    }

    async fn run(mut self) -> (Vec<StageResult>, HashMap<usize, LockedStage>) {
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + BEAT, BEAT);
        loop {
            self.start_ready();
            self.flush();
            let waits = !self.waiting.is_empty() && !self.stopping();
            tokio::select! {
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => match ended {
                    Ok((i, result)) => self.finished(i, result),
                    Err(e) => self.lost(&e.to_string()),
                },
                () = tokio::time::sleep(self.retry_delay), if waits => {
                    self.retry_delay = (self.retry_delay * 2).min(MAX_RETRY_DELAY);
                }
                _ = beat.tick(), if waits || !self.running.is_empty() => self.shared.store.beat(),
                else => break,
            }
        }
        for i in self.selected.clone() {
            if !self.done.contains_key(&i) {
                self.skip(i, self.why_not_started(i));
            }
        }
        self.flush();
        let results = self.selected.iter().filter_map(|i| self.done.remove(i)).collect();
        (results, self.locked)
    }

    /// Sends an event, batched where many stages are found up to date in a row: waking the reporters takes as
    /// long as finding a stage up to date.
    fn send(&mut self, event: Event) {
        self.unsent.push(event);
        if self.unsent.len() >= 64 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for event in self.unsent.drain(..) {
            let _ = self.shared.events.send(event);
        }
    }

    fn stopping(&self) -> bool {
        self.shared.cancel.is_cancelled() || (self.failed && !self.shared.options.keep_going)
    }

    /// Visits the ready stages in order until no more can start. Stages that become ready meanwhile come
    /// later in the order, so one pass suffices.
    fn start_ready(&mut self) {
        let shared = self.shared.clone();
        let mut from = 0;
        while !self.stopping() {
            // With all threads taken, only stages that can never start are visited.
            let candidates = if self.is_full() { &self.failed_upstream } else { &self.ready };
            let Some(i) = candidates.range(from..).next().copied() else { break };
            from = i + 1;
            let stage = &shared.pipeline.stages[i];
            if self.failed_upstream.contains(&i) {
                let bad = stage.upstream().find(|up| self.has_failed(up)).unwrap_or_default();
                self.skip(i, Reason::UpstreamFailed(bad.to_string()));
            } else {
                self.try_start(&shared, i);
            }
        }
    }

    fn has_failed(&self, stage: &str) -> bool {
        let result = self.shared.pipeline.place(stage).and_then(|i| self.done.get(&i));
        result.is_some_and(|r| !is_good(r))
    }

    fn is_full(&self) -> bool {
        !self.in_use.is_empty()
            && self.in_use.values().map(|n| n.threads).sum::<usize>() >= self.shared.options.jobs
    }

    /// Finishes a cached stage or starts one, unless threads, memory or another process make it wait.
    fn try_start(&mut self, shared: &Arc<Shared>, i: usize) {
        let stage = &shared.pipeline.stages[i];
        let need = self.need(stage);
        if !self.fits(need) || !self.is_free(i) {
            return;
        }
        let decision = self.decide(shared, stage);
        let (Some(key), Some(fingerprint)) = (decision.key, &decision.fingerprint) else {
            let error = Error::bug("a stage was started without its inputs");
            return self.fail(i, None, decision.reason, &error);
        };
        let runs = decision.verdict != Verdict::Cached;
        if runs && self.keys.values().any(|k| *k == key) {
            return;
        }
        self.locked.insert(i, LockedStage::new(fingerprint, key));
        if !runs {
            return self.finished(i, stage::cached(shared, stage, &decision));
        }
        let claimed_before = self.claims.contains_key(&i);
        if !self.claim(i, key, &decision.reason, String::new()) {
            return;
        }
        if !claimed_before && is_done_meanwhile(&shared.store, &key, &decision.reason) {
            return self.try_start(shared, i);
        }
        self.spawn(i, decision, key, need);
    }

    /// Whether no other process is known to run the stage's action.
    fn is_free(&mut self, i: usize) -> bool {
        match self.waiting.remove(&i) {
            Some(before) => self.claim(i, before.key, &before.reason, before.by),
            None => true,
        }
    }

    /// Locks an action, or records and reports the process that has it locked; `reported` is the one reported
    /// last.
    fn claim(&mut self, i: usize, key: Digest, reason: &Reason, reported: String) -> bool {
        if self.claims.contains_key(&i) {
            return true;
        }
        match self.shared.store.claim(&key, &self.shared.options.run) {
            Ok(Claimed::Mine(claim)) => {
                self.claims.insert(i, claim);
                return true;
            }
            Ok(Claimed::ByOther(by)) => {
                if by != reported {
                    let stage = self.shared.pipeline.stages[i].name.clone();
                    let message = format!("waits for {by}, which is making the same");
                    self.send(Event::StageLog { stage, level: "info".into(), message });
                }
                self.waiting.insert(i, Waiting { key, reason: reason.clone(), by });
            }
            Err(e) => self.fail(i, Some(key), reason.clone(), &e),
        }
        false
    }

    fn decide(&self, shared: &Shared, stage: &StageSpec) -> Decision {
        let inputs = plan::input_digests(stage, &shared.sources, |name| self.outputs.get(name));
        let forced = shared.options.forced.iter().any(|f| *f == stage.name || *f == stage.base);
        let past = Past { store: &shared.store, sources: &shared.sources };
        plan::decide(&shared.pipeline, stage, &shared.kinds, inputs, &past, forced)
    }

    fn spawn(&mut self, i: usize, decision: Decision, key: Digest, need: Need) {
        let shared = self.shared.clone();
        let stage = &shared.pipeline.stages[i];
        self.ready.remove(&i);
        self.in_use.insert(i, need);
        self.keys.insert(i, key);
        self.send(Event::StageStarted {
            stage: stage.name.clone(),
            kind: stage.kind.clone(),
            key,
            reason: decision.reason.clone(),
            resumes: decision.resumes,
        });
        // Before any event of the stage itself.
        self.flush();
        let connected = stage::connected(&shared, stage, &self.outputs);
        let shared = shared.clone();
        self.running.spawn_blocking(move || {
            let stage = &shared.pipeline.stages[i];
            (i, stage::execute(&shared, stage, &decision, connected, need.threads))
        });
    }

    fn need(&self, stage: &StageSpec) -> Need {
        let parallel = self.shared.kinds.get(&stage.kind).is_some_and(|k| k.info().parallel);
        let jobs = self.shared.options.jobs.max(1);
        let threads = stage.resources.threads.unwrap_or(if parallel { jobs } else { 1 });
        Need { threads: threads.min(jobs), memory: stage.resources.memory.unwrap_or(0) }
    }

    /// A stage that requests more than the whole budget runs alone rather than never.
    fn fits(&self, need: Need) -> bool {
        let threads: usize = self.in_use.values().map(|n| n.threads).sum();
        let memory: u64 = self.in_use.values().map(|n| n.memory).sum();
        let options = &self.shared.options;
        self.in_use.is_empty()
            || (threads + need.threads <= options.jobs
                && memory.saturating_add(need.memory) <= options.memory)
    }

    fn finished(&mut self, i: usize, result: StageResult) {
        self.ready.remove(&i);
        self.failed_upstream.remove(&i);
        self.in_use.remove(&i);
        self.keys.remove(&i);
        self.claims.remove(&i);
        self.waiting.remove(&i);
        self.retry_delay = RETRY_DELAY;
        let good = is_good(&result);
        self.failed |= !good;
        for user in self.downstream.remove(&i).unwrap_or_default() {
            if !good {
                self.failed_upstream.insert(user);
            }
            let left = self.unfinished_upstream.entry(user).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 || !good {
                self.ready.insert(user);
            }
        }
        if !result.outputs.is_empty() {
            self.outputs.insert(result.stage.clone(), result.outputs.clone());
        }
        self.send(Event::StageFinished(result.clone()));
        self.done.insert(i, result);
    }

    fn fail(&mut self, i: usize, key: Option<Digest>, reason: Reason, error: &Error) {
        let result = StageResult {
            status: Status::Failed,
            key,
            error: Some(error.to_string()),
            fault: Some(error.fault()),
            ..self.nothing_of(i, reason)
        };
        self.finished(i, result);
    }

    fn skip(&mut self, i: usize, reason: Reason) {
        self.finished(i, self.nothing_of(i, reason));
    }

    /// Why a stage is left over at the end of a run.
    fn why_not_started(&self, i: usize) -> Reason {
        if self.shared.cancel.is_cancelled() {
            return Reason::Cancelled;
        }
        if let Some(bad) = self.shared.pipeline.stages[i].upstream().find(|up| self.has_failed(up)) {
            return Reason::UpstreamFailed(bad.to_string());
        }
        let failed = self.done.values().filter(|r| r.status == Status::Failed);
        let first = failed.filter_map(|r| self.shared.pipeline.place(&r.stage)).min();
        let first = first.map_or("a stage", |i| self.shared.pipeline.stages[i].name.as_str());
        Reason::StoppedAfter(first.to_string())
    }

    /// The result of a stage that was not run.
    fn nothing_of(&self, i: usize, reason: Reason) -> StageResult {
        let stage = &self.shared.pipeline.stages[i];
        StageResult {
            stage: stage.name.clone(),
            kind: stage.kind.clone(),
            status: Status::Skipped,
            key: None,
            reason,
            seconds: 0.0,
            outputs: BTreeMap::new(),
            error: None,
            fault: None,
            measurements: Vec::new(),
        }
    }

    /// A blocking task that ended without a result; [`stage::execute`] catches panics, so the runtime is
    /// shutting down.
    fn lost(&mut self, why: &str) {
        self.failed = true;
        if let Some(i) = self.in_use.keys().min().copied() {
            let error = Error::bug(format!("the stage's thread died: {why}"));
            self.fail(i, None, Reason::NeverRan, &error);
        }
    }
}

/// Whether another process finished the action between the decision to run it and locking it.
fn is_done_meanwhile(store: &Store, key: &Digest, reason: &Reason) -> bool {
    let whole = |action: Action| action.outputs.values().all(|artifact| store.damage(artifact).is_none());
    *reason != Reason::Forced && store.action(key).is_some_and(whole)
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
        key: decision.key,
        reason: decision.reason.clone(),
        seconds: action.seconds,
        outputs: action.outputs.clone(),
        error: None,
        fault: None,
        measurements: action.measurements.clone(),
    }
}
