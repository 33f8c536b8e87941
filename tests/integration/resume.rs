//! Trainings that are killed at any moment and run again: outputs with the same digests as of an undisturbed
//! run.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tinylm::base::Rng;

use crate::project::{Project, stage};

/// Two trainings with all that a state has to hold, and an evaluation of a checkpoint. They save at each step,
/// so that a kill often comes while one is saved.
const TEXT: &str = r#"
seed: 5
stages:
  synth:
    kind: synthesize
    inputs: { templates: data/templates/english.yaml }
    params: { documents: 60, conversations: 60 }
  tokenizer: { kind: train_tokenizer, inputs: { docs: synth }, params: { vocab_size: 700 } }
  shards: { kind: shard, inputs: { docs: synth, tokenizer: tokenizer }, params: { validation_fraction: 0.2 } }
  base:
    kind: pretrain
    inputs: { shards: shards, tokenizer: tokenizer }
    params:
      preset: modern-1.5m
      vocab_size: 700
      d_model: 64
      n_head: 2
      n_layer: 2
      seq_len: 64
      dropout: 0.1
      optimizer: muon
      schedule: wsd
      steps: STEPS
      batch_size: 4
      accumulate: 3
      average: 0.9
      eval_every: 7
      sample_every: 20
      prompts: ["Once"]
      keep_checkpoints: [11, 15]
      save_every: 1
  early: { kind: eval, inputs: { model: base.step-11, tokenizer: tokenizer, docs: synth } }
  chat:
    kind: finetune
    inputs: { model: base, tokenizer: tokenizer, chats: synth }
    params: { steps: STEPS, batch_size: 4, accumulate: 2, dropout: 0.2, eval_every: 5, save_every: 1 }
"#;

fn project(steps: u64) -> Project {
    let project = Project::shipped();
    project.write("pipelines/p.yaml", TEXT.replace("STEPS", &steps.to_string()));
    // What comes before is not what is killed.
    project.run(&["shards"]);
    project
}

/// Runs the pipeline for so long at most; whether it was killed.
fn killed(project: &Project, after: Duration) -> bool {
    let mut command = project.command(&["run", "p", "--format", "json"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while begun.elapsed() < after {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL.
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

/// From which step of which training the next run goes on.
fn goes_on(project: &Project) -> Option<(String, u64)> {
    let plan = project.plan(&[]);
    let step = |name: &str| stage(&plan, name)["resumes"]["step"].as_u64();
    ["base", "chat"].into_iter().find_map(|name| Some((name.to_string(), step(name)?)))
}

fn is_same(found: &Value, expected: &Value) {
    for name in ["base", "early", "chat"] {
        assert_eq!(stage(found, name)["outputs"], stage(expected, name)["outputs"], "{name}");
    }
}

/// Kills runs of trainings of so many `steps` until there were so many kills, each within `longest` of the
/// start; gives from where they went on.
fn kill(kills: usize, steps: u64, longest: Duration) -> Vec<(String, u64)> {
    let expected = project(steps).run(&[]);
    let (mut rng, mut went_on, mut done) = (Rng::new(1, "kills"), Vec::new(), 0);
    while done < kills {
        let project = project(steps);
        while done < kills && killed(&project, longest.mul_f64(rng.uniform())) {
            done += 1;
            went_on.extend(goes_on(&project));
            eprintln!("kill {done}: goes on from {:?}", goes_on(&project));
        }
        is_same(&project.run(&[]), &expected);
        let left = std::fs::read_dir(project.path("artifacts/store/tmp")).unwrap().count();
        assert_eq!(left, 0, "temporaries of killed runs are removed");
    }
    went_on
}

#[test]
fn a_killed_training_goes_on_and_gives_the_same_digests() {
    let expected = project(16).run(&[]);
    let project = project(16);
    let begun = Instant::now();
    // Until there was a kill within a training, however fast this machine is.
    let mut wait = Duration::from_millis(100);
    while goes_on(&project).is_none() && begun.elapsed() < Duration::from_secs(60) {
        assert!(killed(&project, wait), "it was killed before it ended");
        wait += Duration::from_millis(50);
    }
    let (name, step) = goes_on(&project).expect("a state of the killed training");
    let ran = project.tinylm(&["run", "p"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("goes on from step {step} of 16")), "{name}: {}", ran.stderr);
    is_same(&project.run(&[]), &expected);
}

/// `cargo test --release --test integration resume -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn killed_at_30_random_moments_it_gives_the_same_digests() {
    let went_on = kill(30, 120, Duration::from_millis(3_000));
    let steps: std::collections::BTreeSet<_> = went_on.iter().collect();
    assert!(steps.len() >= 10, "kills within trainings: {steps:?}");
}
