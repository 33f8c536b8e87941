//! `tinylm run`: brings a pipeline up to date.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use tokio::sync::mpsc::unbounded_channel;

use super::{Format, Loaded, PipelineArgs};
use crate::base::error::Fault;
use crate::base::{Error, Result, machine};
use crate::event::Summary;
use crate::exec::{self, Cancel, Options};
use crate::report::{self, Console, JsonLines, Reporter, RunFolder};

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Only these stages and what they need.
    stages: Vec<String>,
    /// Run this stage even if it is up to date, from nothing, whatever states earlier runs have saved. May be
    /// repeated.
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Threads over all stages that run at one time. Default: one a core.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Go on with what does not depend on a failed stage.
    #[arg(long)]
    keep_going: bool,
    /// Refuse, before running, when sources, pipeline or keys differ from the lockfile.
    #[arg(long)]
    locked: bool,
}

impl Run {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let Loaded { pipeline, kinds, store } = self.pipeline.load()?;
        // Wrong names must not leave an empty run behind.
        pipeline.closure(&self.stages)?;
        let (run, folder, record) = new_run(&pipeline.artifacts().join("runs"));
        let options = Options {
            stages: self.stages,
            forced: self.force,
            jobs: self.jobs.map_or_else(machine::threads, usize::from),
            memory: pipeline.memory.or_else(machine::memory).unwrap_or(u64::MAX),
            keep_going: self.keep_going,
            locked: self.locked,
            run,
            folder: folder.clone(),
        };
        let width = pipeline.stages.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
        let face: Box<dyn Reporter> = match format {
            Format::Text => Box::new(Console::new(width)),
            Format::Json => Box::new(JsonLines::default()),
        };
        let record = record.map(|record| Box::new(record) as Box<dyn Reporter>);
        let reporters = record.into_iter().chain([face]).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::input(format!("cannot start the scheduler: {e}")))?;
        let cancel = Cancel::default();
        let (outcome, told) = runtime.block_on(async {
            let (events, stream) = unbounded_channel();
            let reports = tokio::spawn(report::feed(stream, reporters));
            tokio::spawn(watch_signals(cancel.clone()));
            let summary = exec::run(
                Arc::new(pipeline),
                Arc::new(kinds),
                Arc::new(store),
                events,
                cancel.clone(),
                options,
            )
            .await;
            // The stream ends when its last sender is dropped; nothing is printed after the summary.
            let told = reports.await.unwrap_or(Ok(()));
            (summary, told)
        });
        runtime.shutdown_background();
        match outcome {
            Ok(summary) if summary.ok => told.map(|()| ExitCode::SUCCESS),
            Ok(Summary { error: Some(error), .. }) => Err(Error::input(error)),
            Ok(_) if cancel.is_cancelled() => {
                Err(Error::cancelled()
                    .help("what was finished or saved is kept; run again to go on from there"))
            }
            Ok(summary) if summary.stages.iter().any(|s| s.fault == Some(Fault::Bug)) => {
                Ok(ExitCode::from(101))
            }
            Ok(_) => Ok(ExitCode::from(1)),
            Err(error) => {
                // Nothing ran, so there is nothing to look up later.
                let _ = crate::base::fs::remove(&folder);
                Err(error)
            }
        }
    }
}

/// The first signal asks every stage to stop, the second, or QUIT, stops the process and what it runs.
async fn watch_signals(cancel: Cancel) {
    if !must_stop_at_once().await {
        cancel.cancel();
        let _ = writeln!(
            std::io::stderr(),
            "stopping: finished stages and saved states are kept (once more to stop at once)"
        );
        must_stop_at_once().await;
    }
    #[cfg(unix)]
    crate::kinds::command::guard::end_all();
    std::process::exit(1);
}

/// Waits for a signal; whether it is one that stops at once.
#[cfg(unix)]
async fn must_stop_at_once() -> bool {
    use tokio::signal::unix::{SignalKind, signal};
    // A signal that is ignored at start, as by `nohup`, stays ignored.
    let listen = |kind: SignalKind| (!is_ignored(kind.as_raw_value())).then(|| signal(kind).ok()).flatten();
    let mut terminate = listen(SignalKind::terminate());
    let (mut hangup, mut quit) = (listen(SignalKind::hangup()), listen(SignalKind::quit()));
    tokio::select! {
        _ = tokio::signal::ctrl_c() => false,
        () = received(&mut terminate) => false,
        () = received(&mut hangup) => false,
        () = received(&mut quit) => true,
    }
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: nothing is set; the struct is zeroed and only read when the call succeeded.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}

/// Waits for the signal; for ever where it is ignored.
#[cfg(unix)]
async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn must_stop_at_once() -> bool {
    let _ = tokio::signal::ctrl_c().await;
    false
}

/// A new run's id and folder, and its reporter. Without write permission a run in which all is up to date
/// still works; a stage that must run reports that it cannot write its log.
fn new_run(runs: &Path) -> (String, PathBuf, Option<RunFolder>) {
    loop {
        let run = run_id();
        let folder = runs.join(&run);
        match RunFolder::create(&folder) {
            Ok(Some(record)) => return (run, folder, Some(record)),
            // The id of another run that began at the same time.
            Ok(None) => {}
            Err(e) => {
                let _ = writeln!(std::io::stderr(), "warning: this run is not recorded: {e}");
                return (run, folder, None);
            }
        }
    }
}

/// `20261121-042233-1a2b`: sorts by time; the end is the part of the second that has passed, in 1/65536.
fn run_id() -> String {
    let now = SystemTime::now();
    let time: chrono::DateTime<chrono::Utc> = now.into();
    // A leap second has more than 10^9 nanoseconds.
    let tail = (u64::from(time.timestamp_subsec_nanos()) << 16) / 1_000_000_000;
    format!("{}-{:04x}", time.format("%Y%m%d-%H%M%S"), tail.min(0xffff))
}
