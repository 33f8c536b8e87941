//! What a stage saves of its work as it goes: who goes on from it, what a plan says of it, and that the
//! bytes never depend on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinylm::base::error::Fault;
use tinylm::base::{Digest, Error, Result, fs};
use tinylm::event::{Event, Status, Summary};
use tinylm::exec::{self, Cancel, Options};
use tinylm::plan::{self, Past, Verdict};
use tinylm::spec::{self, Overrides, Pipeline};
use tinylm::stage::{Context, Info, Kind, Kinds, Port, Resume, erase};
use tinylm::store::{Store, source};

use crate::project::Project;

/// Hashes its word once a step. Saves the hash at every step, and keeps those of chosen steps as outputs.
struct Count;

#[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Params {
    word: String,
    steps: u64,
    kept: Vec<u64>,
    /// Every step that is computed is a line of this file.
    log: PathBuf,
    step_ms: u64,
    /// The process kills itself behind this step; 0: never.
    die_at: u64,
    /// Ends with an error behind the last step.
    fail: bool,
}

impl Params {
    fn step(&self, before: &str, step: u64) -> Result<String> {
        std::thread::sleep(Duration::from_millis(self.step_ms));
        let mut log = fs::append(&self.log)?;
        std::io::Write::write_all(&mut log, format!("{step}\n").as_bytes())
            .map_err(|e| Error::io("write", &self.log, &e))?;
        Ok(Digest::of(format!("{before} {} {step}", self.word).as_bytes()).hex())
    }
}

/// (step, hash) of every state in the folder, up to `steps`.
fn states(folder: &Path, steps: u64) -> Vec<(u64, String)> {
    let mut all: Vec<(u64, String)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, std::fs::read_to_string(path).ok()?))
        })
        .filter(|(step, _)| *step <= steps)
        .collect();
    all.sort();
    all
}

/// Appears whole, whoever else does the same.
fn save(folder: &Path, step: u64, hash: &str) -> Result<()> {
    let beside = folder.join(format!(".{}", std::process::id()));
    fs::write(&beside, hash.as_bytes())?;
    fs::rename(&beside, &folder.join(format!("step-{step}")))
}

impl Kind for Count {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "count",
            version: 1,
            summary: "",
            inputs: Vec::new(),
            outputs: vec![Port::new("sum", "sum", "")],
            open: false,
            seeded: true,
            parallel: false,
            not_in_key: &["log", "step_ms", "die_at", "fail"],
            not_in_state: &["steps", "kept"],
            value_versions: &[],
        }
    }

    fn outputs(params: &Params) -> Vec<Port> {
        let kept = params.kept.iter().map(|step| Port::new(&format!("step-{step}"), "sum", ""));
        Self::info().outputs.into_iter().chain(kept).collect()
    }

    fn resumes(params: &Params, seed: u64, state: &Path) -> Option<Resume> {
        assert_eq!(seed, 3);
        let (step, _) = states(state, params.steps).pop()?;
        Some(Resume { step, steps: Some(params.steps) })
    }

    fn committed(params: &Params, _: u64, state: &Path) {
        for (step, _) in states(state, params.steps.saturating_sub(1)) {
            let _ = fs::remove(&state.join(format!("step-{step}")));
        }
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let state = ctx.state.as_deref();
        let mut known = state.map(|folder| states(folder, params.steps)).unwrap_or_default();
        let (mut done, mut hash) = known.last().cloned().unwrap_or_default();
        while done < params.steps {
            if let Err(e) = ctx.monitor.check() {
                // Saved only now: a stopped stage has the time to.
                return state.map_or(Ok(()), |folder| save(folder, done, &hash)).and(Err(e));
            }
            done += 1;
            hash = params.step(&hash, done)?;
            known.push((done, hash.clone()));
            if let Some(folder) = state.filter(|_| params.step_ms == 0) {
                save(folder, done, &hash)?;
            }
            if done == params.die_at {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("sent");
            }
        }
        for step in &params.kept {
            let (_, hash) = known.iter().find(|(s, _)| s == step).expect("a kept step's state");
            fs::write(&ctx.output(&format!("step-{step}"))?.join("hash"), hash.as_bytes())?;
        }
        fs::write(&ctx.output("sum")?.join("hash"), hash.as_bytes())?;
        if params.fail { Err(Error::input("failed at the end")) } else { Ok(()) }
    }
}

fn kinds() -> Kinds {
    Kinds::new(vec![erase::<Count>()])
}

/// A project with a stage `base` and the log of its steps outside of it.
struct Counting {
    project: Project,
    outside: tempfile::TempDir,
}

impl Counting {
    fn new(params: &str) -> Self {
        let counting = Counting { project: Project::new(""), outside: tempfile::tempdir().unwrap() };
        counting.set(params);
        counting
    }

    /// Writes the pipeline anew.
    fn set(&self, params: &str) {
        let log = self.outside.path().join("log");
        let text = format!(
            "seed: 3\nstages:\n  base: {{ kind: count, params: {{ log: '{}', {params} }} }}\n",
            log.display()
        );
        self.project.write("pipelines/p.yaml", text);
    }

    fn load(&self) -> Pipeline {
        spec::load(&self.project.path("pipelines/p.yaml"), &kinds(), &Overrides::default()).unwrap()
    }

    /// The steps computed since the last call.
    fn steps(&self) -> Vec<u64> {
        let log = self.outside.path().join("log");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let _ = std::fs::remove_file(&log);
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn plan(&self, forced: bool) -> plan::Decision {
        let pipeline = self.load();
        let store = Store::open(&pipeline.artifacts(), false);
        let sources = source::resolve(std::iter::empty(), &pipeline.root, &store).unwrap();
        let past = Past { store: &store, sources: &sources };
        let stages: Vec<_> = pipeline.stages.iter().collect();
        let mut plan = plan::build(&pipeline, &stages, &kinds(), &sources, &past, &|_| forced);
        plan.stages.remove(0).decision
    }

    fn resumes(&self) -> Option<u64> {
        self.plan(false).resumes.map(|resume| resume.step)
    }

    fn run(&self) -> Ran {
        run(self.load(), &Cancel::default(), false)
    }

    /// Runs, which must succeed; the bytes of the output.
    fn sum(&self) -> String {
        let ran = self.run();
        assert!(ran.summary.ok, "{:?}", ran.summary);
        self.project.read("artifacts/p/base/sum/hash")
    }

    /// The pipeline run by a process of its own.
    fn process(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "states::a_process_of_the_other_tests", "--ignored"]);
        command.env(FOLDER, self.project.path("")).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.project.path(folder)).into_iter().flatten();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

/// What a run in this process gave.
struct Ran {
    summary: Summary,
    events: Vec<Event>,
}

impl Ran {
    /// `resumes` of the event of the stage's start.
    fn resumes(&self) -> Option<Value> {
        let started = self.events.iter().find(|e| matches!(e, Event::StageStarted { .. }))?;
        Some(serde_json::to_value(started).unwrap()["resumes"].clone())
    }

    fn warnings(&self) -> Vec<&str> {
        let mut warnings = Vec::new();
        for event in &self.events {
            if let Event::StageLog { level, message, .. } = event
                && level == "warn"
            {
                warnings.push(message.as_str());
            }
        }
        warnings
    }
}

fn run(pipeline: Pipeline, cancel: &Cancel, forced: bool) -> Ran {
    let store = Store::open(&pipeline.artifacts(), false);
    let options = Options {
        forced: if forced { vec!["base".into()] } else { Vec::new() },
        jobs: 2,
        memory: u64::MAX,
        run: "r".into(),
        folder: pipeline.artifacts().join("runs/r"),
        ..Options::default()
    };
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let run =
        exec::run(Arc::new(pipeline), Arc::new(kinds()), Arc::new(store), sender, cancel.clone(), options);
    let summary = runtime.block_on(run).unwrap();
    let mut events = Vec::new();
    while let Ok(event) = receiver.try_recv() {
        events.push(event);
    }
    Ran { summary, events }
}

/// The project that [`a_process_of_the_other_tests`] runs.
const FOLDER: &str = "TINYLM_TEST_PROJECT";

#[test]
#[ignore = "a process that the other tests start"]
fn a_process_of_the_other_tests() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let file = PathBuf::from(folder).join("pipelines/p.yaml");
    let pipeline = spec::load(&file, &kinds(), &Overrides::default()).unwrap();
    assert!(run(pipeline, &Cancel::default(), false).summary.ok);
}

/// What `count` gives, from nothing, in a project of its own.
fn undisturbed(params: &str) -> String {
    Counting::new(params).sum()
}

#[test]
fn a_killed_stage_goes_on_from_its_last_state() {
    let c = Counting::new("word: a, steps: 8, die_at: 5");
    assert_eq!(c.resumes(), None);
    assert!(!c.project.path("artifacts").exists(), "a plan writes nothing");
    assert!(!c.process().status().unwrap().success());
    assert_eq!(c.steps(), [1, 2, 3, 4, 5]);
    c.set("word: a, steps: 8");
    let decision = c.plan(false);
    assert_eq!(decision.verdict, Verdict::Run);
    assert_eq!(decision.resumes, Some(Resume { step: 5, steps: Some(8) }));
    assert_eq!(decision.detail(), "never ran; goes on from step 5 of 8");
    let ran = c.run();
    assert_eq!(ran.resumes(), Some(json!({ "step": 5, "steps": 8 })));
    assert_eq!(c.steps(), [6, 7, 8]);
    assert_eq!(c.sum(), undisturbed("word: a, steps: 8"));
    // What is up to date goes on from nothing, and nobody holds anything.
    let decision = c.plan(false);
    assert_eq!((decision.verdict, decision.resumes), (Verdict::Cached, None));
    assert_eq!((c.names("artifacts/store/tmp"), c.names("artifacts/store/locks")), (vec![], vec![]));
}

#[test]
fn a_longer_run_of_the_same_trajectory_computes_only_what_is_new() {
    let c = Counting::new("word: a, steps: 3");
    let short = c.sum();
    assert_eq!(c.steps(), [1, 2, 3]);
    c.set("word: a, steps: 5, kept: [3]");
    assert_eq!(
        c.plan(false).detail(),
        "param kept: [] -> [3]; param steps: 3 -> 5; goes on from step 3 of 5"
    );
    let long = c.sum();
    assert_eq!(c.steps(), [4, 5]);
    assert_eq!(long, undisturbed("word: a, steps: 5"));
    assert_eq!(c.project.read("artifacts/p/base/step-3/hash"), short);
    let lock = c.project.read("pipelines/p.lock");
    assert!(lock.contains("      \"step-3\": \"blake3:"), "{lock}");
    // Another checkpoint replaces it in the view.
    c.set("word: a, steps: 6, kept: [6]");
    c.sum();
    assert_eq!(c.steps(), [6]);
    assert!(!c.project.path("artifacts/p/base/step-3").exists());
    assert!(c.project.path("artifacts/p/base/step-6").exists());
    // Of another trajectory there is no state, and of this one only a later one than the last step.
    for other in ["word: b, steps: 6", "word: a, steps: 5"] {
        c.set(other);
        assert_eq!(c.resumes(), None, "{other}");
    }
    assert_eq!(c.names("artifacts/store/states").len(), 1);
}

#[test]
fn a_forced_stage_starts_from_nothing() {
    let c = Counting::new("word: a, steps: 4");
    let sum = c.sum();
    c.steps();
    let decision = c.plan(true);
    assert_eq!((decision.verdict, decision.detail().as_str()), (Verdict::Run, "forced"));
    let forced = run(c.load(), &Cancel::default(), true);
    assert!(forced.summary.ok && forced.warnings().is_empty(), "{:?}", forced.warnings());
    assert_eq!(forced.resumes(), Some(Value::Null));
    assert_eq!(c.steps(), [1, 2, 3, 4]);
    assert_eq!(c.project.read("artifacts/p/base/sum/hash"), sum);
    // A state that an earlier version may have saved wrongly does not outlive it.
    let trajectory = decision.trajectory.unwrap();
    let folder = Store::open(&c.project.path("artifacts"), false).state_folder(&trajectory);
    std::fs::write(folder.join("step-2"), "wrong").unwrap();
    assert!(run(c.load(), &Cancel::default(), true).summary.ok);
    assert_eq!(c.names(folder.strip_prefix(c.project.path("")).unwrap().to_str().unwrap()), ["step-4"]);
    assert_eq!(c.sum(), sum);
}

#[test]
fn a_stopped_and_a_failed_stage_leave_their_states_and_no_outputs() {
    // It saves nothing as it goes, only when it is stopped.
    let c = Counting::new("word: a, steps: 400, step_ms: 5");
    let (log, cancel) = (c.outside.path().join("log"), Cancel::default());
    let ran = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(c.load(), &cancel, false));
        wait_until(|| std::fs::read(&log).is_ok_and(|text| text.len() > 20));
        cancel.cancel();
        running.join().unwrap()
    });
    let result = &ran.summary.stages[0];
    assert_eq!((result.status, result.fault), (Status::Failed, Some(Fault::Cancelled)));
    let stopped_at = c.steps().pop().unwrap();
    assert!(stopped_at < 400);
    assert_eq!(c.resumes(), Some(stopped_at));
    assert!(!c.project.path("artifacts/p/base").exists());
    // All steps are done when it fails, and none is done again.
    c.set("word: a, steps: 400, fail: true");
    assert!(!c.run().summary.ok);
    assert_eq!(c.steps(), (stopped_at + 1..=400).collect::<Vec<_>>());
    c.set("word: a, steps: 400");
    assert_eq!(c.plan(false).detail(), "never ran; goes on from step 400 of 400");
    assert_eq!(c.sum(), undisturbed("word: a, steps: 400"));
    assert_eq!(c.steps(), Vec::<u64>::new());
}

fn wait_until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn processes_with_one_trajectory_do_not_disturb_each_other() {
    for _ in 0..3 {
        // Two actions, since their steps differ; the same states.
        let (short, long) = (Counting::new("word: a, steps: 150"), Counting::new("word: a, steps: 300"));
        std::fs::create_dir_all(short.project.path("artifacts")).unwrap();
        std::os::unix::fs::symlink(short.project.path("artifacts"), long.project.path("artifacts")).unwrap();
        let mut running = [short.process().spawn().unwrap(), long.process().spawn().unwrap()];
        for child in &mut running {
            assert!(child.wait().unwrap().success());
        }
        for c in [&short, &long] {
            let decision = c.plan(false);
            assert_eq!(decision.verdict, Verdict::Cached);
            let store = Store::open(&c.project.path("artifacts"), false);
            let made = store.artifact("base", &decision.action.unwrap().outputs["sum"]).unwrap();
            let hash = fs::read_text(made.file("hash").unwrap()).unwrap();
            let steps = if std::ptr::eq(c, &short) { 150 } else { 300 };
            assert_eq!(hash, undisturbed(&format!("word: a, steps: {steps}")));
        }
        assert_eq!(short.names("artifacts/store/locks"), Vec::<String>::new());
    }
}

#[test]
fn without_a_place_for_states_a_stage_runs_and_says_so() {
    let c = Counting::new("word: a, steps: 2");
    c.project.write("artifacts/store/states", "no folder");
    let ran = c.run();
    assert!(ran.summary.ok, "{:?}", ran.summary);
    let warnings = ran.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("states are neither used nor saved"), "{warnings:?}");
    assert_eq!(c.project.read("artifacts/store/states"), "no folder");
    assert_eq!(c.sum(), undisturbed("word: a, steps: 2"));
}
