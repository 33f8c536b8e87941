//! The terminal: a progress bar for every running stage with rate and time left, a line when one ends, a
//! table at the end. Where stderr is no terminal: a line at the start of a stage, at intervals, and at its
//! end.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::style::{Style, table};
use super::{Reporter, stdout};
use crate::base::text::visible;
use crate::base::{Error, units};
use crate::event::{Event, ProgressEvent, StageResult, Status, Summary};
use crate::stage::Resume;
use crate::store::Reason;

/// The interval of progress lines about one stage where there are no bars.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub struct Console {
    bars: MultiProgress,
    running: HashMap<String, Running>,
    /// stderr is a terminal.
    live: bool,
    style: Style,
    width: usize,
    error: Option<Error>,
}

struct Running {
    bar: ProgressBar,
    last_line: Instant,
    /// When the present phase began, and at what count, for its rate.
    phase: String,
    phase_begun: Instant,
    phase_start: u64,
}

impl Console {
    /// `width`: of the longest stage name.
    pub fn new(width: usize) -> Self {
        let live = std::io::stderr().is_terminal();
        let (bars, style) = (MultiProgress::new(), Style::stderr());
        Console { bars, running: HashMap::new(), live, style, width, error: None }
    }

    fn line(&self, text: &str) {
        if self.live {
            let _ = self.bars.println(text);
        } else {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    fn begin(&mut self, stage: &str) {
        let bar = self.bars.add(ProgressBar::new_spinner());
        let template = "{prefix} {spinner} {wide_msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_prefix(format!("{stage:>width$}", width = self.width));
        if self.live {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let now = Instant::now();
        let running = Running { bar, last_line: now, phase: String::new(), phase_begun: now, phase_start: 0 };
        self.running.insert(stage.to_string(), running);
    }

    fn progress(&mut self, stage: &str, progress: &ProgressEvent) {
        let live = self.live;
        let width = self.width;
        let Some(running) = self.running.get_mut(stage) else { return };
        if running.phase != progress.phase {
            running.phase = progress.phase.clone();
            running.phase_begun = Instant::now();
            running.phase_start = progress.done;
        }
        let text = describe(progress, running.phase_begun.elapsed(), running.phase_start);
        if live {
            running.bar.set_message(text);
        } else if running.last_line.elapsed() >= LINE_EVERY {
            running.last_line = Instant::now();
            let _ = writeln!(std::io::stderr(), "{stage:>width$}   {text}");
        }
    }

    fn end(&mut self, result: &StageResult) {
        if let Some(running) = self.running.remove(&result.stage) {
            running.bar.finish_and_clear();
            self.bars.remove(&running.bar);
        }
        let s = self.style;
        let status = status(s, result.status);
        let took = units::duration(Duration::from_secs_f64(result.seconds));
        let detail = result.reason.detail();
        let name = format!("{:>width$}", result.stage, width = self.width);
        match result.status {
            Status::Ran => self.line(&format!("{} {status}  {took}", s.bold(name))),
            // Cached stages are only in the table at the end.
            Status::Cached => {}
            Status::Skipped => self.line(&format!("{} {status}  {detail}", s.bold(name))),
            Status::Failed => {
                let error = visible(result.error.as_deref().unwrap_or("no reason given"));
                self.line(&format!("{} {status}  {took}\n{}: {error}", s.bold(name), s.red("error")));
            }
        }
    }

    fn summary(&mut self, summary: &Summary) {
        let _ = self.bars.clear();
        self.error = stdout::print(&summary_text(summary, Style::stdout())).err();
    }
}

fn status(s: Style, status: Status) -> String {
    match status {
        Status::Ran => s.green("ran"),
        Status::Cached => s.dim("cached"),
        Status::Failed => s.red("failed"),
        Status::Skipped => s.yellow("skipped"),
    }
}

/// `training  ████░░░░  120/600 steps  4.1 steps/s  1 min 57 s left  loss 3.2`.
fn describe(p: &ProgressEvent, elapsed: Duration, start: u64) -> String {
    let count = |n: u64| if p.unit == "B" { units::bytes(n) } else { units::count(n) };
    let unit = if p.unit == "B" { String::new() } else { format!(" {}", p.unit) };
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.3 { (p.done.saturating_sub(start)) as f64 / seconds } else { 0.0 };
    let mut parts = vec![p.phase.clone()];
    match p.total {
        Some(total) => {
            parts.push(bar(p.done, total));
            parts.push(format!("{}/{}{unit}", count(p.done), count(total)));
        }
        None => parts.push(format!("{}{unit}", count(p.done))),
    }
    if rate > 0.0 {
        parts.push(if p.unit == "B" {
            format!("{}/s", units::bytes(rate as u64))
        } else if rate < 100.0 {
            format!("{rate:.1} {}/s", p.unit)
        } else {
            format!("{} {}/s", units::count(rate as u64), p.unit)
        });
        if let Some(left) = p.total.map(|t| t.saturating_sub(p.done)).filter(|l| *l > 0) {
            parts.push(format!("{} left", units::duration(Duration::from_secs_f64(left as f64 / rate))));
        }
    }
    if !p.note.is_empty() {
        parts.push(p.note.clone());
    }
    parts.join("  ")
}

fn bar(done: u64, total: u64) -> String {
    const CELLS: u64 = 20;
    let full = (done.min(total) * CELLS).checked_div(total).unwrap_or(CELLS);
    format!("{}{}", "█".repeat(full as usize), "░".repeat((CELLS - full) as usize))
}

fn summary_text(summary: &Summary, s: Style) -> String {
    let mut rows = vec![vec!["stage".to_string(), "status".into(), "time".into(), "why".into()]];
    for r in &summary.stages {
        let time = match r.status {
            Status::Ran | Status::Failed => units::duration(Duration::from_secs_f64(r.seconds)),
            Status::Cached | Status::Skipped => String::new(),
        };
        let why = if r.status == Status::Cached { String::new() } else { r.reason.detail() };
        rows.push(vec![r.stage.clone(), format!("{:?}", r.status).to_lowercase(), time, why]);
    }
    let body = table(&rows, |row, column, cell| match (row, column) {
        (0, _) => s.dim(cell),
        (row, 1) => status(s, summary.stages[row - 1].status),
        _ => cell,
    });
    let count = |status| summary.stages.iter().filter(|r| r.status == status).count();
    let parts: Vec<String> = [
        (count(Status::Ran), "ran"),
        (count(Status::Cached), "cached"),
        (count(Status::Failed), "failed"),
        (count(Status::Skipped), "skipped"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, word)| format!("{n} {word}"))
    .collect();
    let verdict = if summary.ok { s.green("done") } else { s.red("failed") };
    let took = units::duration(Duration::from_secs_f64(summary.seconds));
    format!("\n{body}\n{}: {verdict} in {took} ({})\n", summary.pipeline, parts.join(", "))
}

impl Reporter for Console {
    fn report(&mut self, event: &Event) {
        match event {
            Event::RunStarted { .. } => {}
            Event::Preparing(p) => {
                if !self.running.contains_key("sources") {
                    self.begin("sources");
                }
                self.progress("sources", p);
            }
            Event::StageStarted { stage, reason, resumes, .. } => {
                if let Some(running) = self.running.remove("sources") {
                    running.bar.finish_and_clear();
                }
                self.started(stage, reason, *resumes);
                self.begin(stage);
            }
            Event::StageProgress { stage, progress } => self.progress(stage, progress),
            Event::StageMeasured { .. } | Event::StageMetrics { .. } => {}
            Event::StageLog { stage, level, message } => self.log(stage, level, message),
            Event::StageFinished(result) => self.end(result),
            Event::Summary(summary) => self.summary(summary),
        }
    }

    fn error(&self) -> Option<Error> {
        self.error.clone()
    }
}

impl Console {
    /// With bars, only what they do not show.
    fn started(&self, stage: &str, reason: &Reason, resumes: Option<Resume>) {
        let name = format!("{stage:>width$}", width = self.width);
        match resumes {
            Some(resume) if self.live => self.line(&format!("{} {resume}", self.style.dim(name))),
            Some(resume) => self.line(&format!("{name} starts ({}; {resume})", reason.detail())),
            None if self.live => {}
            None => self.line(&format!("{name} starts ({})", reason.detail())),
        }
    }

    fn log(&self, stage: &str, level: &str, message: &str) {
        let s = self.style;
        let name = s.dim(format!("{stage:>width$}", width = self.width));
        match level {
            // The error itself is printed with the stage's end.
            "error" => {}
            "warn" => self.line(&format!("{name} {}: {message}", s.yellow("warning"))),
            _ => self.line(&format!("{name} {message}")),
        }
    }
}
