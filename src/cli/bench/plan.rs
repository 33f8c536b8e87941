//! `tinylm bench plan`: the engine's overhead, on a generated chain of stages in a temporary folder:
//! reading and checking the file, planning it, and a run in which all is up to date.
//!
//! The stages copy one line each, so that nothing but the engine is measured. Comparisons with other
//! build tools, process start included, are `bench/engine.py`'s.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::mpsc::unbounded_channel;

use crate::base::{Error, Result, fs, machine};
use crate::exec::{self, Cancel, Options};
use crate::kinds::kinds;
use crate::plan::{self, Past};
use crate::report;
use crate::spec::{self, Overrides, Pipeline};
use crate::store::{Store, source};

/// Medians over the repeats, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct PlanFigures {
    pub stages: usize,
    /// From the file to a pipeline in which every connection holds.
    pub parse_ms: f64,
    /// From there to a plan in which nothing ever ran.
    pub plan_ms: f64,
    /// The first run, in which every stage runs, once.
    pub first_run_ms: f64,
    /// A run in which every stage is up to date, from reading the file on.
    pub noop_run_ms: f64,
}

/// Measures a chain of `stages` stages, each step `repeat` times but the first run.
///
/// # Errors
/// When a number is 0, the temporary folder cannot be written, or a stage fails.
pub fn plan(stages: usize, repeat: usize) -> Result<PlanFigures> {
    if stages == 0 || repeat == 0 {
        return Err(Error::usage("there is nothing to measure in 0 stages or 0 repeats"));
    }
    let folder = fs::temp_dir(&std::env::temp_dir(), "tinylm-bench-")?;
    fs::write(&folder.path().join("in.txt"), b"one line\n")?;
    let file = folder.path().join("pipelines/chain.yaml");
    fs::write(&file, chain(stages).as_bytes())?;
    let parse_ms = median(repeat, || load(&file).map(drop))?;
    let pipeline = load(&file)?;
    let plan_ms = median(repeat, || plan_once(&pipeline))?;
    let first_run_ms = median(1, || run(&file))?;
    let noop_run_ms = median(repeat, || run(&file))?;
    Ok(PlanFigures { stages, parse_ms, plan_ms, first_run_ms, noop_run_ms })
}

/// Stages that differ in a variable, so that none is a hit of another.
fn chain(stages: usize) -> String {
    let mut text = String::from("name: chain\nstages:\n");
    for i in 0..stages {
        let input = if i == 0 { "in.txt".to_string() } else { format!("s{}", i - 1) };
        let written = write!(
            text,
            "  s{i}:\n    kind: command\n    inputs: {{ a: {input} }}\n    outputs: {{ b: file }}\n    params: \
             {{ command: [cp, '${{inputs.a}}', '${{outputs.b}}'], env: {{ N: '{i}' }} }}\n"
        );
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
    text
}

/// The median time of `repeat` calls, in milliseconds.
fn median(repeat: usize, work: impl Fn() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[repeat / 2])
}

fn load(file: &Path) -> Result<Pipeline> {
    spec::load(file, &kinds(), &Overrides::default())
}

fn plan_once(pipeline: &Pipeline) -> Result<()> {
    let store = Store::open(&pipeline.artifacts(), false);
    let stages: Vec<_> = pipeline.stages.iter().collect();
    let sources = source::resolve(stages.iter().flat_map(|s| s.sources()), &pipeline.root, &store)?;
    let past = Past { store: &store, sources: &sources };
    let plan = plan::build(pipeline, &stages, &kinds(), &sources, &past, &|_| false);
    match plan.has_work() {
        true => Ok(()),
        false => Err(Error::bug("a plan of stages that never ran found nothing to do")),
    }
}

/// What `tinylm run` does, without reporters.
fn run(file: &Path) -> Result<()> {
    let pipeline = load(file)?;
    let store = Store::open(&pipeline.artifacts(), false);
    let folder = pipeline.artifacts().join("runs/bench");
    let jobs = machine::threads();
    let options = Options { jobs, memory: u64::MAX, run: "bench".into(), folder, ..Options::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::input(format!("cannot start the scheduler: {e}")))?;
    let (pipeline, kinds, store) = (Arc::new(pipeline), Arc::new(kinds()), Arc::new(store));
    let summary = runtime.block_on(async {
        let (events, stream) = unbounded_channel();
        let reports = tokio::spawn(report::feed(stream, Vec::new()));
        let summary = exec::run(pipeline, kinds, store, events, Cancel::default(), options).await;
        let _ = reports.await;
        summary
    })?;
    match summary.stages.iter().find_map(|s| s.error.as_ref()) {
        None => Ok(()),
        Some(error) => Err(Error::input(format!("a stage of the benchmark failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_chain_is_measured() {
        let figures = plan(3, 2).unwrap();
        assert_eq!(figures.stages, 3);
        for ms in [figures.parse_ms, figures.plan_ms, figures.first_run_ms, figures.noop_run_ms] {
            assert!(ms > 0.0 && ms.is_finite(), "{figures:?}");
        }
        assert!(plan(0, 1).is_err() && plan(1, 0).is_err());
    }
}
