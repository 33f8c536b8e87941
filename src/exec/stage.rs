//! One stage: its folders, its inputs, its threads, its log, its run, its commit.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tracing::Dispatch;

use super::log::Log;
use super::{Cancel, Shared, inputs, result_of};
use crate::base::{Digest, Error, Monitor, Progress, Result, fs};
use crate::event::{Event, StageResult, Status};
use crate::plan::Decision;
use crate::spec::{Input, StageSpec};
use crate::stage::{Artifact, Context, Stage};
use crate::store::{Action, Fingerprint, Measurement, Reason, StateFolder, VERSION};

pub type Connections = Result<BTreeMap<String, Vec<Artifact>>>;

/// The artifacts at every input port.
pub fn connected(
    shared: &Shared,
    stage: &StageSpec,
    outputs: &HashMap<String, BTreeMap<String, Digest>>,
) -> Connections {
    let artifact = |input: &Input| match input {
        Input::Source(spec) => shared
            .sources
            .get(spec)
            .map(|s| s.artifact.clone())
            .ok_or_else(|| Error::bug(format!("the source `{}` was not resolved", spec.text))),
        Input::Stage { stage, port } => outputs
            .get(stage)
            .and_then(|o| o.get(port))
            .ok_or_else(|| Error::bug(format!("`{stage}.{port}` was not made")))
            .and_then(|digest| shared.store.artifact(stage, digest)),
    };
    let ports = stage.inputs.iter();
    ports.map(|(port, all)| Ok((port.clone(), all.iter().map(artifact).collect::<Result<_>>()?))).collect()
}

/// A hit: updates the view and checks the gates.
pub fn cached(shared: &Shared, stage: &StageSpec, decision: &Decision) -> StageResult {
    let Some(action) = &decision.action else {
        return failed(stage, decision, 0.0, &Error::bug("a cached stage has no action"), BTreeMap::new());
    };
    let locked = as_locked(shared, stage, action).map_err(|e| {
        e.help(format!("it was made earlier, in run {}; `--force {}` makes it anew", action.run, stage.name))
    });
    match locked.and_then(|()| settle(shared, stage, decision, action)) {
        Ok(()) => result_of(stage, Status::Cached, decision, action),
        Err(e) => failed(stage, decision, action.seconds, &e, action.outputs.clone()),
    }
}

/// Runs the stage to a committed action or an error; never panics.
pub fn execute(
    shared: &Arc<Shared>,
    stage: &StageSpec,
    decision: &Decision,
    connected: Connections,
    threads: usize,
) -> StageResult {
    let begun = Instant::now();
    let made = catch_unwind(AssertUnwindSafe(|| make(shared, stage, decision, connected, threads)))
        .unwrap_or_else(|panic| Err(Error::bug(format!("the stage panicked: {}", panic_text(&*panic)))));
    let seconds = begun.elapsed().as_secs_f64();
    let action = match made {
        Ok(action) => action,
        Err(e) => return failed(stage, decision, seconds, &e, BTreeMap::new()),
    };
    let settled = settle(shared, stage, decision, &action).and_then(|()| as_locked(shared, stage, &action));
    match settled {
        Ok(()) => result_of(stage, Status::Ran, decision, &action),
        Err(e) => failed(stage, decision, seconds, &e, action.outputs),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_else(|| "no message".into())
}

fn failed(
    stage: &StageSpec,
    decision: &Decision,
    seconds: f64,
    error: &Error,
    outputs: BTreeMap<String, Digest>,
) -> StageResult {
    StageResult {
        stage: stage.name.clone(),
        kind: stage.kind.clone(),
        status: Status::Failed,
        key: decision.key,
        reason: decision.reason.clone(),
        seconds,
        outputs,
        error: Some(error.to_string()),
        fault: Some(error.fault()),
        measurements: Vec::new(),
    }
}

fn kind<'a>(shared: &'a Shared, stage: &StageSpec) -> Result<&'a dyn Stage> {
    shared.kinds.get(&stage.kind).ok_or_else(|| Error::bug(format!("the kind `{}` is gone", stage.kind)))
}

/// A stage's folder, which is removed whatever permissions the stage set in it.
struct StageFolder(tempfile::TempDir);

impl Drop for StageFolder {
    fn drop(&mut self) {
        // What cannot be removed now, the next run's sweep removes.
        let _ = fs::remove(self.0.path());
    }
}

/// Runs and commits, logging to the stage's log.
fn make(
    shared: &Arc<Shared>,
    stage: &StageSpec,
    decision: &Decision,
    connected: Connections,
    threads: usize,
) -> Result<Action> {
    let log = Log::open(&shared.options.folder, &stage.name, shared.events.clone())?;
    let made = tracing::dispatcher::with_default(&log.dispatch, || {
        let made = attempt(shared, stage, decision, connected, threads, &log.dispatch);
        made.inspect_err(|e| tracing::error!("{e}"))
    });
    log.finish();
    made
}

/// Runs in a scratch folder and commits the outputs. Of a failed stage only its log is kept.
fn attempt(
    shared: &Arc<Shared>,
    stage: &StageSpec,
    decision: &Decision,
    connected: Connections,
    threads: usize,
    dispatch: &Dispatch,
) -> Result<Action> {
    let fingerprint = decision.fingerprint.clone().ok_or_else(|| Error::bug("a stage ran without a key"))?;
    let folder = StageFolder(shared.store.scratch()?);
    let scratch = folder.0.path().join("work");
    let outputs = output_folders(stage, &scratch.join("outputs"))?;
    fs::create_dir(&scratch)?;
    let states = state_folder(shared, decision);
    let monitor = StageMonitor::new(stage, shared.events.clone(), shared.cancel.clone());
    let ctx = Context {
        seed: stage.seed,
        threads,
        monitor: &monitor,
        scratch,
        state: states.as_ref().map(|folder| folder.path().to_path_buf()),
        inputs: connected?,
        outputs: outputs.iter().map(|(port, (_, path))| (port.clone(), path.clone())).collect(),
        types: stage.outputs.clone(),
    };
    let begun = Instant::now();
    let kind = kind(shared, stage)?;
    let run = || kind.run(&stage.params, &ctx);
    if kind.info().parallel { pool(threads, dispatch)?.install(run) } else { run() }?;
    monitor.check()?;
    inputs::check(shared, stage, &ctx.inputs)?;
    let action = action(shared, decision, fingerprint, begun.elapsed(), monitor.measured());
    let action = shared.store.commit(action, &outputs)?;
    if let Some(state) = &ctx.state {
        kind.committed(&stage.params, stage.seed, state);
    }
    Ok(action)
}

/// The folder of the stage's states, left as it is when the stage fails. Without one the stage still gives
/// its outputs, so whatever prevents it is a warning.
fn state_folder(shared: &Shared, decision: &Decision) -> Option<StateFolder> {
    let trajectory = decision.trajectory.as_ref()?;
    let folder = match decision.reason {
        Reason::Forced => shared.store.use_no_states(trajectory),
        _ => shared.store.use_states(trajectory).map(Some),
    };
    match folder {
        Ok(None) => {
            tracing::warn!(
                "another stage goes through the same steps at this time, and this one is forced to start \
                 from nothing: it saves no states, so if it is stopped, all its steps are lost"
            );
            None
        }
        Ok(folder) => folder,
        Err(e) => {
            tracing::warn!(
                "states are neither used nor saved, so if this stage is stopped, all its steps are lost: {e}"
            );
            None
        }
    }
}

fn action(
    shared: &Shared,
    decision: &Decision,
    fingerprint: Fingerprint,
    took: Duration,
    measurements: Vec<Measurement>,
) -> Action {
    Action {
        version: VERSION,
        fingerprint,
        outputs: BTreeMap::new(),
        reason: Some(decision.reason.clone()),
        seconds: took.as_secs_f64(),
        run: shared.options.run.clone(),
        measurements,
    }
}

fn output_folders(stage: &StageSpec, root: &std::path::Path) -> Result<BTreeMap<String, (String, PathBuf)>> {
    let folder = |(port, ty): (&String, &String)| {
        let path = root.join(port);
        fs::create_dir(&path)?;
        Ok((port.clone(), (ty.clone(), path)))
    };
    stage.outputs.iter().map(folder).collect()
}

/// A thread pool of the stage's own, so that it uses no more than its threads, and so that they log to its
/// log.
fn pool(threads: usize, dispatch: &Dispatch) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .spawn_handler(|thread| {
            let dispatch = dispatch.clone();
            let run = move || tracing::dispatcher::with_default(&dispatch, || thread.run());
            std::thread::Builder::new().name("stage".into()).spawn(run).map(drop)
        })
        .build()
        .map_err(|e| Error::input(format!("cannot start {threads} threads: {e}")))
}

/// Updates view and history, and checks the gates.
fn settle(shared: &Shared, stage: &StageSpec, decision: &Decision, action: &Action) -> Result<()> {
    let pipeline = &shared.pipeline.folder;
    for (port, artifact) in &action.outputs {
        shared.store.show(pipeline, &stage.name, port, artifact)?;
    }
    if let Some(key) = decision.key
        && shared.store.remember(pipeline, &stage.name, &key)?
    {
        shared.store.hide_others(pipeline, &stage.name, &action.outputs);
    }
    let outputs =
        action.outputs.iter().map(|(port, d)| Ok((port.clone(), shared.store.artifact(&stage.name, d)?)));
    let missed = kind(shared, stage)?.gates(&stage.params, &outputs.collect::<Result<_>>()?)?;
    if missed.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!("{} of its gates not passed: {}", missed.len(), missed.join("; ")))
        .help("the artifact is kept; improve the model or change `gates:`"))
}

/// In a locked run a stage, rerun or not, must give the digests of the lockfile.
fn as_locked(shared: &Shared, stage: &StageSpec, action: &Action) -> Result<()> {
    let Some(locked) = shared.lock.as_ref().and_then(|l| l.stages.get(&stage.name)) else { return Ok(()) };
    let shown = |digest: Option<&Digest>| digest.map_or("nothing".into(), Digest::short);
    let mut ports = action.outputs.keys().chain(locked.outputs.keys());
    let Some(port) = ports.find(|port| locked.outputs.get(*port) != action.outputs.get(*port)) else {
        return Ok(());
    };
    let (found, promised) = (shown(action.outputs.get(port)), shown(locked.outputs.get(port)));
    Err(Error::input(format!("output `{port}` is {found}, the lock promises {promised}"))
        .help("run without --locked to accept it and write the lock anew"))
}

/// Turns what a stage reports into events; drops progress that comes faster than it is shown.
struct StageMonitor {
    stage: String,
    events: UnboundedSender<Event>,
    cancel: Cancel,
    last: Mutex<Option<(Instant, String)>>,
    measured: Mutex<Vec<Measurement>>,
}

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

impl StageMonitor {
    fn new(stage: &StageSpec, events: UnboundedSender<Event>, cancel: Cancel) -> Self {
        StageMonitor {
            stage: stage.name.clone(),
            events,
            cancel,
            last: Mutex::new(None),
            measured: Mutex::new(Vec::new()),
        }
    }

    fn measured(&self) -> Vec<Measurement> {
        self.measured.lock().map(|m| m.clone()).unwrap_or_default()
    }
}

impl Monitor for StageMonitor {
    fn progress(&self, progress: Progress) {
        let Ok(mut last) = self.last.lock() else { return };
        let whole = progress.total.is_some_and(|t| progress.done >= t);
        let recent =
            |(at, phase): &(Instant, String)| *phase == progress.phase && at.elapsed() < PROGRESS_EVERY;
        if last.as_ref().is_some_and(recent) && !whole {
            return;
        }
        *last = Some((Instant::now(), progress.phase.clone()));
        let _ =
            self.events.send(Event::StageProgress { stage: self.stage.clone(), progress: progress.into() });
    }

    fn measure(&self, name: &str, value: f64, unit: &str) {
        let measurement = Measurement { name: name.into(), value, unit: unit.into() };
        if let Ok(mut all) = self.measured.lock() {
            all.retain(|m| m.name != name);
            all.push(measurement);
        }
        let (stage, name, unit) = (self.stage.clone(), name.to_string(), unit.to_string());
        let _ = self.events.send(Event::StageMeasured { stage, name, value, unit });
    }

    fn metrics(&self, step: u64, figures: &[(&str, f64)]) {
        let figures = figures.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        let _ = self.events.send(Event::StageMetrics { stage: self.stage.clone(), step, figures });
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
