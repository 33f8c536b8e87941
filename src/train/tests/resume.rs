//! Trainings that are stopped or killed at any time, and longer ones: the same bytes as undisturbed ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::base::{Error, Monitor, Progress, Result, fs};

/// Everything that a state has to hold: dropout, accumulation, Muon, an average, the best weights, samples,
/// checkpoints.
fn all_at_once(steps: u64) -> Options {
    let muon =
        optimizer::Options { muon_learning_rate: 0.01, ..optimizer::Options::new(Algorithm::Muon, 0.01) };
    Options {
        accumulate: 2,
        optimizer: muon,
        average: Some(0.8),
        eval_every: 3,
        eval_rows: 24,
        patience: 5,
        sample_every: 4,
        prompts: vec!["The".into()],
        keep: Keep::Best,
        keep_steps: vec![2, 6].into_iter().filter(|step| *step <= steps).collect(),
        save_every: 1,
        ..options(steps)
    }
}

fn with(kind: ScheduleKind, options: Options) -> Options {
    Options { schedule: Schedule { kind, ..options.schedule }, ..options }
}

/// Counts steps and questions whether to stop, and answers the `stop_at`-th with yes.
#[derive(Default)]
struct Watch<'a> {
    steps: AtomicU64,
    checks: AtomicU64,
    stop_at: Option<u64>,
    /// Called after each step.
    then: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl Monitor for Watch<'_> {
    fn progress(&self, progress: Progress) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if let Some(then) = self.then {
            then(progress.done);
        }
    }

    fn measure(&self, _: &str, _: f64, _: &str) {}

    fn cancelled(&self) -> bool {
        Some(self.checks.fetch_add(1, Ordering::Relaxed) + 1) == self.stop_at
    }
}

/// The bytes of all that a training gives: its files, weights and checkpoints.
type Given = (BTreeMap<String, Vec<u8>>, bool);

fn train(options: &Options, state: Option<&Path>, watch: &Watch) -> Result<Given> {
    let (output, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let places = Places { output: output.path(), scratch: scratch.path(), state };
    let mut model = small_model();
    let stream = stream(700);
    let (data, validation) = (Windows::new(&stream, 8, 0), Windows::new(&stream, 8, 0).every(5));
    let outcome = run(&mut model, &mut NextToken::default(), &data, &validation, options, places, watch)?;
    let mut files = read_all(output.path());
    files.insert("weights".into(), model.transformer.weights.iter().flat_map(|w| w.to_le_bytes()).collect());
    for (step, path) in outcome.kept {
        files.insert(format!("step-{step}"), fs::read(&path).unwrap());
    }
    Ok((files, outcome.stopped_early))
}

fn read_all(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::files_below(folder).unwrap().into_iter();
    files.map(|path| (fs::name_below(folder, &path).unwrap(), fs::read(&path).unwrap())).collect()
}

fn undisturbed(options: &Options) -> Given {
    train(options, None, &Watch::default()).unwrap()
}

fn is_same(found: &Given, expected: &Given, when: &str) {
    for (name, bytes) in &expected.0 {
        assert!(found.0.get(name) == Some(bytes), "`{name}` is another one, {when}");
    }
    assert_eq!(found.0.len(), expected.0.len());
    assert_eq!(found.1, expected.1, "{when}");
}

/// Trains with the states in `folder`, saving those for longer trainings only; gives how many steps that took.
fn steps_from(options: &Options, folder: &Path, expected: &Given, when: &str) -> u64 {
    let (options, watch) = (Options { save_every: 1000, ..options.clone() }, Watch::default());
    is_same(&train(&options, Some(folder), &watch).unwrap(), expected, when);
    watch.steps.into_inner()
}

fn stop(options: &Options, folder: &Path, stop_at: u64) -> Option<Error> {
    train(options, Some(folder), &Watch { stop_at: Some(stop_at), ..Watch::default() }).err()
}

fn states(folder: &Path) -> Vec<PathBuf> {
    fs::children(folder).unwrap()
}

#[test]
fn stopped_at_any_time_it_ends_with_the_same_bytes() {
    // Only cancellation makes it save.
    let options = Options { save_every: 0, ..all_at_once(12) };
    let watch = Watch::default();
    let expected = train(&options, None, &watch).unwrap();
    let checks = watch.checks.into_inner();
    assert!(checks > 1 + 12, "validations can be stopped, too: {checks}");
    for at in 1..=checks {
        let folder = tempfile::tempdir().unwrap();
        let error = stop(&options, folder.path(), at).unwrap();
        assert!(error.is_cancelled(), "{error}");
        let saved = resumes(&options, folder.path());
        assert_eq!(saved.is_some(), at > 1, "the first question comes before the first step");
        let (step, steps) = saved.unwrap_or((0, 12));
        let trained = steps_from(&options, folder.path(), &expected, &format!("stopped at question {at}"));
        assert_eq!((trained, steps), (12 - step, 12), "stopped at question {at}");
    }
    // Again and again.
    let folder = tempfile::tempdir().unwrap();
    let mut times = 0;
    while stop(&options, folder.path(), 3).is_some() {
        times += 1;
        assert_eq!(states(folder.path()).len(), 1, "the state before is removed");
    }
    assert!(times >= 6, "{times}");
    steps_from(&options, folder.path(), &expected, "stopped again and again");
}

/// A kill leaves the folder as it is at that time.
#[test]
fn killed_behind_any_step_it_ends_with_the_same_bytes() {
    for (optimizer, kind) in [
        (None, ScheduleKind::Wsd),
        (Some(adamw()), ScheduleKind::Cosine),
        (
            Some(optimizer::Options { momentum: 0.9, ..optimizer::Options::new(Algorithm::Sgd, 0.05) }),
            ScheduleKind::Linear,
        ),
    ] {
        let options = with(kind, all_at_once(12));
        let options = Options { optimizer: optimizer.unwrap_or(options.optimizer.clone()), ..options };
        let expected = undisturbed(&options);
        let (folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let copy = |step: u64| {
            for (name, bytes) in read_all(folder.path()) {
                fs::write(&copies.path().join(step.to_string()).join(name), &bytes).unwrap();
            }
        };
        let watch = Watch { then: Some(&copy), ..Watch::default() };
        is_same(&train(&options, Some(folder.path()), &watch).unwrap(), &expected, "saved at each step");
        for step in 1..=12 {
            let folder = copies.path().join(step.to_string());
            assert_eq!(resumes(&options, &folder), Some((step, 12)));
            let trained = steps_from(&options, &folder, &expected, &format!("{kind:?} killed after {step}"));
            assert_eq!(trained, 12 - step);
        }
    }
}

#[test]
fn a_training_that_stopped_early_stops_there_again() {
    let options = Options {
        patience: 2,
        schedule: Schedule { peak: 0.5, ..options(1).schedule },
        optimizer: optimizer::Options::new(Algorithm::AdamW, 0.5),
        keep_steps: Vec::new(),
        ..all_at_once(60)
    };
    let expected = undisturbed(&options);
    assert!(expected.1, "it stops early");
    let folder = tempfile::tempdir().unwrap();
    for at in [20, 5, 40] {
        if stop(&options, folder.path(), at).is_none() {
            break;
        }
    }
    let whole = train(&options, Some(folder.path()), &Watch::default()).unwrap();
    is_same(&whole, &expected, "stopped and stopped early");
    assert_eq!(
        steps_from(&options, folder.path(), &expected, "once more"),
        0,
        "its last state is there still"
    );
}

#[test]
fn a_longer_training_goes_on_where_the_rates_were_the_same() {
    for (kind, shared) in [(ScheduleKind::Constant, 12), (ScheduleKind::Wsd, 7)] {
        let (short, long) = (with(kind, all_at_once(12)), with(kind, all_at_once(20)));
        let (expected, longer) = (undisturbed(&short), undisturbed(&long));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(steps_from(&short, folder.path(), &expected, "from nothing"), 12);
        remove_used(&short, folder.path());
        assert_eq!(states(folder.path()).len(), 1, "{kind:?}");
        assert_eq!(resumes(&long, folder.path()), Some((shared, 20)));
        assert_eq!(resumes(&short, folder.path()), Some((shared, 12)));
        assert_eq!(steps_from(&long, folder.path(), &longer, "longer"), 20 - shared);
        let none = tempfile::tempdir().unwrap();
        let never = Options { save_every: 0, ..short.clone() };
        train(&never, Some(none.path()), &Watch::default()).unwrap();
        assert!(states(none.path()).is_empty(), "saving is switched off");
        // Neither a shorter one nor one of other rates is on the way.
        assert_eq!(resumes(&with(kind, all_at_once(3)), folder.path()), None);
        let cosine = with(ScheduleKind::Cosine, all_at_once(20));
        assert_eq!(resumes(&cosine, folder.path()), None);
        assert_eq!(steps_from(&cosine, folder.path(), &undisturbed(&cosine), "other rates"), 20);
    }
}

#[test]
fn a_cosine_of_another_length_begins_anew() {
    let (short, long) = (all_at_once(12), all_at_once(20));
    let folder = tempfile::tempdir().unwrap();
    stop(&short, folder.path(), 8).unwrap();
    assert!(resumes(&short, folder.path()).is_some());
    assert_eq!(resumes(&long, folder.path()), None);
    assert_eq!(steps_from(&long, folder.path(), &undisturbed(&long), "of another length"), 20);
    assert!(resumes(&short, folder.path()).is_some(), "what the other left is not touched");
    remove_used(&long, folder.path());
    remove_used(&short, folder.path());
    assert!(states(folder.path()).is_empty(), "nothing is left that no one needs");
}

/// Data of so many rows gives so many steps, which the plan knows from the state.
#[test]
fn steps_of_epochs_are_known_from_the_state() {
    let options = Options { length: Length::Epochs(1), keep_steps: Vec::new(), ..all_at_once(1) };
    let folder = tempfile::tempdir().unwrap();
    stop(&options, folder.path(), 5).unwrap();
    let (step, steps) = resumes(&options, folder.path()).unwrap();
    assert!(step < 5 && steps == options.steps(87), "{step} of {steps}");
    let late = Options { keep_steps: vec![steps + 1], ..options };
    let error = train(&late, None, &Watch::default()).unwrap_err().to_string();
    assert!(error.contains("`keep_checkpoints`: 12 is after the last step, 11"), "{error}");
}

#[test]
fn a_state_without_a_checkpoint_that_is_to_be_kept_is_not_used() {
    let keep = |steps: &[u64]| Options { keep_steps: steps.to_vec(), ..all_at_once(12) };
    let folder = tempfile::tempdir().unwrap();
    stop(&keep(&[]), folder.path(), 8).unwrap();
    let (step, _) = resumes(&keep(&[]), folder.path()).unwrap();
    assert_eq!(resumes(&keep(&[step + 1]), folder.path()), Some((step, 12)));
    assert_eq!(resumes(&keep(&[step]), folder.path()), None);
    let early = keep(&[step]);
    assert_eq!(steps_from(&early, folder.path(), &undisturbed(&early), "a checkpoint before the state"), 12);
    // One of more checkpoints has all that is needed.
    train(&early, Some(folder.path()), &Watch::default()).unwrap();
    assert_eq!(resumes(&keep(&[]), folder.path()), Some((12, 12)));
}

/// What is logged while `work` runs.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_damaged_state_is_warned_of_and_the_one_before_is_used() {
    let options = with(ScheduleKind::Wsd, all_at_once(12));
    let expected = undisturbed(&options);
    let saved = tempfile::tempdir().unwrap();
    let watch = Watch { stop_at: Some(15), ..Watch::default() };
    train(&options, Some(saved.path()), &watch).unwrap_err();
    let (last, _) = resumes(&options, saved.path()).unwrap();
    assert!(last > 7 && states(saved.path()).len() == 2, "that of step 7 stays for longer trainings");
    let files = read_all(saved.path());
    let of_last = format!("step-{last}-");
    for (damaged, bytes) in files.iter().filter(|(name, _)| name.contains(&of_last)) {
        for cut in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            for (name, bytes) in &files {
                fs::write(&folder.path().join(name), bytes).unwrap();
            }
            let mut bytes = bytes.clone();
            let middle = bytes.len() / 2;
            if cut {
                bytes.truncate(middle);
            } else {
                bytes[middle] ^= 1;
            }
            fs::write(&folder.path().join(damaged), &bytes).unwrap();
            let text = logged(|| {
                assert_eq!(steps_from(&options, folder.path(), &expected, damaged), 5, "{damaged}");
            });
            assert!(text.contains("WARN") && text.contains(&of_last), "{damaged}: {text}");
            assert!(text.contains("goes on from step 7 of 12, saved by an earlier training"), "{text}");
        }
    }
}

#[test]
fn a_state_that_can_not_be_saved_is_warned_of_once_and_nothing_else_happens() {
    let options = all_at_once(6);
    let expected = undisturbed(&options);
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::write(&taken, b"a file").unwrap();
    let text = logged(|| {
        let given = train(&options, Some(&taken), &Watch::default()).unwrap();
        is_same(&given, &expected, "without a folder of states");
    });
    assert_eq!(text.matches("can't be saved").count(), 1, "{text}");
    assert!(text.contains(&format!("`{}`", taken.display())), "{text}");
}

/// States of killed trainings that never run again are bounded.
#[test]
fn few_states_of_other_trainings_stay() {
    let folder = tempfile::tempdir().unwrap();
    for steps in 20..35 {
        stop(&all_at_once(steps), folder.path(), 7).unwrap();
    }
    assert_eq!(states(folder.path()).len(), 9);
    assert!(resumes(&all_at_once(34), folder.path()).is_some());
}

/// Each may find the other's states, and lose them again.
#[test]
fn trainings_in_one_folder_at_one_time_do_not_disturb_each_other() {
    let all: Vec<(Options, Given)> = [20, 12, 20]
        .map(|steps| with(ScheduleKind::Constant, all_at_once(steps)))
        .map(|options| (options.clone(), undisturbed(&options)))
        .into();
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for (options, expected) in &all {
                let folder = folder.path();
                scope.spawn(move || {
                    let given = train(options, Some(folder), &Watch::default()).unwrap();
                    is_same(&given, expected, "beside others");
                    remove_used(options, folder);
                });
            }
        });
    }
}
