//! Runs a pipeline: a tokio scheduler over a budget of threads and memory, stages on blocking threads.
//! Each stage commits by itself, so whatever fails later takes nothing away.
//!
//! Emits [`Event`]s and prints nothing. Does not know what stages compute. [`run`] decides what can start;
//! [`stage`] carries one stage through.

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
/// error here but a result in the summary, and so is what goes wrong afterwards.
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
        // One that does not read is refused now, before its stages could be lost.
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

/// Downloads what is missing, finds and hashes all sources.
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

/// What is written once all is done: the memo and, unless something was overridden, the lockfile.
fn finish(shared: &Shared, results: &[StageResult], actions: &HashMap<usize, LockedStage>) -> Result<()> {
    // Once more: a child of a killed run holds its parent's locks until it has become its own program.
    shared.store.sweep();
    // Without the memo the next run reads more, and that is all; a store may be read-only.
    let _ = shared.store.save();
    if !writes_lock(&shared.pipeline, &shared.options) {
        return Ok(());
    }
    let path = shared.pipeline.lockfile();
    if updated_lock(shared, results, actions, &path)?.is_saved(&path)? {
        return Ok(());
    }
    // Read and written by one process at a time, so that no run loses the stages of another.
    let _claim = shared.store.claim_lockfile(&path, &shared.options.run)?;
    updated_lock(shared, results, actions, &path)?.save(&path)
}

/// Digests that come of an override are not the pipeline's.
fn writes_lock(pipeline: &Pipeline, options: &Options) -> bool {
    pipeline.overrides.is_empty() && !options.locked
}

/// The lock at `path` with what this run found.
fn updated_lock(
    shared: &Shared,
    results: &[StageResult],
    actions: &HashMap<usize, LockedStage>,
    path: &Path,
) -> Result<Lock> {
    let pipeline = &shared.pipeline;
    let made = || results.iter().filter(|r| !r.outputs.is_empty());
    // What this run says nothing of is taken over from the lock that is there.
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

/// Stages are known here by their place in [`Pipeline::stages`], where upstream stands before downstream.
struct Scheduler {
    shared: Arc<Shared>,
    /// What was asked for, in order.
    selected: Vec<usize>,
    /// Of the stages not started: those whose upstream is done, and those that a failure reached.
    ready: BTreeSet<usize>,
    /// Of the ready, those that need what failed or was skipped.
    doomed: BTreeSet<usize>,
    /// How many stages each waits for.
    missing: HashMap<usize, usize>,
    /// The selected stages that wait for each.
    users: HashMap<usize, Vec<usize>>,
    running: JoinSet<(usize, StageResult)>,
    /// Threads and memory taken by what runs.
    taken: HashMap<usize, Need>,
    /// Keys of what runs: two stages with one key are one action, the second waits for the first.
    keys: HashMap<usize, Digest>,
    /// The right to do the actions of what runs: of all processes one does an action.
    claims: HashMap<usize, Claim>,
    /// Of the ready, those whose action another process does.
    waiting: HashMap<usize, Waiting>,
    /// How long to wait until it is asked again.
    patience: Duration,
    done: HashMap<usize, StageResult>,
    /// Output digests of finished stages.
    outputs: HashMap<String, BTreeMap<String, Digest>>,
    /// What the lockfile says of each action, but for its outputs.
    locked: HashMap<usize, LockedStage>,
    failed: bool,
    /// Events not yet sent, see [`Scheduler::tell`].
    untold: Vec<Event>,
}

struct Waiting {
    key: Digest,
    reason: Reason,
    /// Who does it.
    by: String,
}

/// How soon a stage that waits for another process looks again; then ever later.
const PATIENCE: Duration = Duration::from_millis(2);
const MOST_PATIENCE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
struct Need {
    threads: usize,
    memory: u64,
}

impl Scheduler {
    fn new(shared: Arc<Shared>, selected: Vec<usize>) -> Self {
        let mut users: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut missing = HashMap::new();
        for &i in &selected {
            let upstream: BTreeSet<usize> =
                shared.pipeline.stages[i].upstream().filter_map(|up| shared.pipeline.place(up)).collect();
            missing.insert(i, upstream.len());
            upstream.into_iter().for_each(|up| users.entry(up).or_default().push(i));
        }
        Scheduler {
            ready: selected.iter().copied().filter(|i| missing[i] == 0).collect(),
            shared,
            selected,
            doomed: BTreeSet::new(),
            missing,
            users,
            running: JoinSet::new(),
            taken: HashMap::new(),
            keys: HashMap::new(),
            claims: HashMap::new(),
            waiting: HashMap::new(),
            patience: PATIENCE,
            done: HashMap::new(),
            outputs: HashMap::new(),
            locked: HashMap::new(),
            failed: false,
            untold: Vec::new(),
        }
    }

    async fn run(mut self) -> (Vec<StageResult>, HashMap<usize, LockedStage>) {
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + BEAT, BEAT);
        loop {
            self.start_what_can();
            self.tell_all();
            let waits = !self.waiting.is_empty() && !self.stopping();
            tokio::select! {
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => match ended {
                    Ok((i, result)) => self.finished(i, result),
                    Err(e) => self.lost(&e.to_string()),
                },
                () = tokio::time::sleep(self.patience), if waits => {
                    self.patience = (self.patience * 2).min(MOST_PATIENCE);
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
        self.tell_all();
        let results = self.selected.iter().filter_map(|i| self.done.remove(i)).collect();
        (results, self.locked)
    }

    /// Sends an event, with some others where many stages are settled in a row: waking up whoever
    /// reports takes as long as settling a stage that is up to date.
    fn tell(&mut self, event: Event) {
        self.untold.push(event);
        if self.untold.len() >= 64 {
            self.tell_all();
        }
    }

    fn tell_all(&mut self) {
        for event in self.untold.drain(..) {
            let _ = self.shared.events.send(event);
        }
    }

    fn stopping(&self) -> bool {
        self.shared.cancel.is_cancelled() || (self.failed && !self.shared.options.keep_going)
    }

    /// Goes over what is ready, in order, until nothing more can start. What becomes ready on the way
    /// stands further down, so one pass meets it.
    fn start_what_can(&mut self) {
        let shared = self.shared.clone();
        let mut from = 0;
        while !self.stopping() {
            // Without a thread to spare nothing starts, and only what will never start is of interest.
            let candidates = if self.is_full() { &self.doomed } else { &self.ready };
            let Some(i) = candidates.range(from..).next().copied() else { break };
            from = i + 1;
            let stage = &shared.pipeline.stages[i];
            if self.doomed.contains(&i) {
                let bad = stage.upstream().find(|up| self.is_bad(up)).unwrap_or_default();
                self.skip(i, Reason::UpstreamFailed(bad.to_string()));
            } else {
                self.consider(&shared, i);
            }
        }
    }

    fn is_bad(&self, stage: &str) -> bool {
        let result = self.shared.pipeline.place(stage).and_then(|i| self.done.get(&i));
        result.is_some_and(|r| !is_good(r))
    }

    fn is_full(&self) -> bool {
        !self.taken.is_empty()
            && self.taken.values().map(|n| n.threads).sum::<usize>() >= self.shared.options.jobs
    }

    /// Settles or starts a stage whose inputs are all there, unless it has to wait for room.
    fn consider(&mut self, shared: &Arc<Shared>, i: usize) {
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
            return self.consider(shared, i);
        }
        self.spawn(i, decision, key, need);
    }

    /// Whether no other process does the stage's action, as far as is known.
    fn is_free(&mut self, i: usize) -> bool {
        match self.waiting.remove(&i) {
            Some(before) => self.claim(i, before.key, &before.reason, before.by),
            None => true,
        }
    }

    /// Gets the right to do an action, or notes and tells who has it; `told` is who had it before.
    fn claim(&mut self, i: usize, key: Digest, reason: &Reason, told: String) -> bool {
        if self.claims.contains_key(&i) {
            return true;
        }
        match self.shared.store.claim(&key, &self.shared.options.run) {
            Ok(Claimed::Mine(claim)) => {
                self.claims.insert(i, claim);
                return true;
            }
            Ok(Claimed::ByOther(by)) => {
                if by != told {
                    let stage = self.shared.pipeline.stages[i].name.clone();
                    let message = format!("waits for {by}, which is making the same");
                    self.tell(Event::StageLog { stage, level: "info".into(), message });
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
        self.taken.insert(i, need);
        self.keys.insert(i, key);
        self.tell(Event::StageStarted {
            stage: stage.name.clone(),
            kind: stage.kind.clone(),
            key,
            reason: decision.reason.clone(),
        });
        // Before anything that the stage itself reports.
        self.tell_all();
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

    /// A stage that asks for more memory than there is runs alone rather than never.
    fn fits(&self, need: Need) -> bool {
        let threads: usize = self.taken.values().map(|n| n.threads).sum();
        let memory: u64 = self.taken.values().map(|n| n.memory).sum();
        let options = &self.shared.options;
        self.taken.is_empty()
            || (threads + need.threads <= options.jobs
                && memory.saturating_add(need.memory) <= options.memory)
    }

    fn finished(&mut self, i: usize, result: StageResult) {
        self.ready.remove(&i);
        self.doomed.remove(&i);
        self.taken.remove(&i);
        self.keys.remove(&i);
        self.claims.remove(&i);
        self.waiting.remove(&i);
        self.patience = PATIENCE;
        let good = is_good(&result);
        self.failed |= !good;
        for user in self.users.remove(&i).unwrap_or_default() {
            if !good {
                self.doomed.insert(user);
            }
            let missing = self.missing.entry(user).or_default();
            *missing = missing.saturating_sub(1);
            if *missing == 0 || !good {
                self.ready.insert(user);
            }
        }
        if !result.outputs.is_empty() {
            self.outputs.insert(result.stage.clone(), result.outputs.clone());
        }
        self.tell(Event::StageFinished(result.clone()));
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
        if let Some(bad) = self.shared.pipeline.stages[i].upstream().find(|up| self.is_bad(up)) {
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

    /// A blocking task that died without a result; [`stage::execute`] catches panics, so this is a
    /// runtime that is shutting down.
    fn lost(&mut self, why: &str) {
        self.failed = true;
        if let Some(i) = self.taken.keys().min().copied() {
            let error = Error::bug(format!("the stage's thread died: {why}"));
            self.fail(i, None, Reason::NeverRan, &error);
        }
    }
}

/// Whether another process did the action between the decision to do it and the right to.
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
