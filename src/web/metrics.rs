//! Counters of the server, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::{Loaded, Registry, Shared, pages};
use crate::base::machine;

/// Upper ends of the classes that durations are counted in, in seconds.
const CLASSES: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0];

#[derive(Debug, Default)]
pub struct Metrics {
    /// By group of paths and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Until the headers of a response.
    durations: [AtomicU64; CLASSES.len() + 1],
    microseconds: AtomicU64,
    pub connections: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    cancelled: AtomicU64,
    steps: AtomicU64,
    step_microseconds: AtomicU64,
}

impl Metrics {
    /// A prompt that begins to be read.
    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Relaxed);
    }

    pub fn generated(&self, tokens: usize) {
        self.generated_tokens.fetch_add(tokens as u64, Relaxed);
    }

    /// A request whose client went away.
    pub fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    /// A step of a model's batch.
    pub fn step(&self, time: Duration) {
        self.steps.fetch_add(1, Relaxed);
        self.step_microseconds.fetch_add(time.as_micros() as u64, Relaxed);
    }

    fn answered(&self, path: &'static str, status: u16, time: Duration) {
        let class = CLASSES.iter().position(|end| time.as_secs_f64() <= *end).unwrap_or(CLASSES.len());
        self.durations[class].fetch_add(1, Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Relaxed);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((path, status)).or_default() += 1;
    }

    /// The text format of Prometheus.
    pub fn render(&self, models: &Registry) -> String {
        let mut text = Text::default();
        text.head("requests_total", "counter", "Requests that were answered");
        for ((path, status), n) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            text.sample("requests_total", &format!("{{path=\"{path}\",status=\"{status}\"}}"), *n as f64);
        }
        self.render_durations(&mut text);
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts", &self.prompt_tokens),
            (
                "prompt_tokens_cached_total",
                "Tokens of prompts that were not computed again",
                &self.cached_tokens,
            ),
            ("generated_tokens_total", "Tokens that were generated", &self.generated_tokens),
            ("requests_cancelled_total", "Requests whose client went away", &self.cancelled),
            ("steps_total", "Steps of models' batches", &self.steps),
        ];
        for (name, help, counter) in counters {
            text.single(name, "counter", help, counter.load(Relaxed) as f64);
        }
        let seconds = self.step_microseconds.load(Relaxed) as f64 / 1e6;
        text.single("step_seconds_total", "counter", "Time of the steps", seconds);
        let connections = self.connections.load(Relaxed) as f64;
        text.single("connections", "gauge", "Connections that are open", connections);
        render_models(&mut text, models);
        if let Some(peak) = machine::peak_memory() {
            text.single("process_peak_memory_bytes", "gauge", "Peak resident memory", peak as f64);
        }
        text.0
    }

    fn render_durations(&self, text: &mut Text) {
        let name = "request_duration_seconds";
        text.head(name, "histogram", "Time until the headers of a response");
        let mut sum = 0;
        for (end, n) in CLASSES.iter().map(f64::to_string).chain(["+Inf".to_string()]).zip(&self.durations) {
            sum += n.load(Relaxed);
            text.sample(&format!("{name}_bucket"), &format!("{{le=\"{end}\"}}"), sum as f64);
        }
        text.sample(&format!("{name}_sum"), "", self.microseconds.load(Relaxed) as f64 / 1e6);
        text.sample(&format!("{name}_count"), "", sum as f64);
    }
}

fn render_models(text: &mut Text, models: &Registry) {
    let [used, limit] = models.memory();
    text.single("model_memory_bytes", "gauge", "Memory of the loaded models", used as f64);
    text.single("model_memory_limit_bytes", "gauge", "Memory that models may take", limit as f64);
    let loaded = models.loaded();
    type Value = fn(&Loaded) -> usize;
    let running: Value = |loaded| loaded.engine.running();
    let waiting: Value = |loaded| loaded.engine.waiting();
    let gauges = [
        ("sequences_running", "Sequences in a model's batch", running),
        ("requests_waiting", "Requests that wait for a model", waiting),
    ];
    for (name, help, value) in gauges {
        text.head(name, "gauge", help);
        for one in &loaded {
            let id = one.id.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            text.sample(name, &format!("{{model=\"{id}\"}}"), value(one) as f64);
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, ty: &str, help: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(self.0, "# HELP tinylm_{name} {help}.\n# TYPE tinylm_{name} {ty}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "tinylm_{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, ty: &str, help: &str, value: f64) {
        self.head(name, ty, help);
        self.sample(name, "", value);
    }
}

/// Paths that requests are counted by, each with what lies below it.
const GROUPS: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/generate",
    "/health",
    "/metrics",
    "/api/attention",
    "/api",
    "/static",
];

/// What a path is counted as: paths that a client thinks of must not become counters.
fn group(path: &str) -> &'static str {
    let is_below = |group: &&&str| {
        path.strip_prefix(**group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    GROUPS.iter().find(is_below).copied().unwrap_or(if pages::is_page(path) { "pages" } else { "other" })
}

/// Counts a request by its path and status.
pub async fn count(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let group = group(request.uri().path());
    let begun = Instant::now();
    let response = next.run(request).await;
    app.metrics.answered(group, response.status().as_u16(), begun.elapsed());
    response
}
