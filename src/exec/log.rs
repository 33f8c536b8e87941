//! One log a stage, through tracing-subscriber: everything goes to `STAGE.log` in the run's folder,
//! warnings and notes go to the event stream too. What a stage says in passing is bounded in both;
//! what was left out is counted. Warnings and errors always pass.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Level, Subscriber};
use tracing_subscriber::filter::{FilterExt, Targets, dynamic_filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::base::text::visible;
use crate::base::{Result, fs, units};
use crate::event::Event;

/// How much a stage's log file takes of what it says in passing.
const FILE_BYTES: u64 = 16 << 20;

/// How much of it is shown while the stage runs: events wait in memory for whoever shows them.
const EVENT_BYTES: u64 = 4 << 20;

/// What an event takes beside its message.
const EVENT_FRAME: usize = 128;

/// The log of one stage, in the threads that [`Log::dispatch`] is the default of.
pub struct Log {
    pub dispatch: Dispatch,
    file: Arc<Mutex<File>>,
    quota: Arc<Quota>,
}

impl Log {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(folder: &Path, stage: &str, events: UnboundedSender<Event>) -> Result<Self> {
        let file = Arc::new(Mutex::new(fs::append(&folder.join(format!("{stage}.log")))?));
        let (quota, shown) = (Arc::new(Quota::new(FILE_BYTES)), Arc::new(Quota::new(EVENT_BYTES)));
        // What libraries below say at their own leisure is not news of a stage.
        let ours = Targets::new().with_target("tinylm", Level::DEBUG).with_default(Level::WARN);
        let to_file = tracing_subscriber::fmt::layer()
            .with_writer(ToFile { file: file.clone(), quota: quota.clone() })
            .with_ansi(false)
            .with_target(false)
            .with_filter(ours.clone().and(within(&quota)));
        let to_events = Forward { stage: stage.to_string(), events, quota: shown.clone() };
        let to_events = to_events.with_filter(ours.and(within(&shown)));
        Ok(Log { dispatch: Dispatch::new(Registry::default().with(to_file).with(to_events)), file, quota })
    }

    /// Says at the log's end how much is not in it.
    pub fn finish(&self) {
        let refused = self.quota.refused.load(Ordering::Relaxed);
        if refused > 0 {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk takes no notes; what the stage itself cannot write is an error of its own.
            let _ = writeln!(file, "{} lines were left out of this log", units::count(refused));
        }
    }
}

/// How many bytes may be said and were, and how many lines came when that was too much already.
struct Quota {
    most: u64,
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Quota {
    fn new(most: u64) -> Self {
        Quota { most, taken: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// Counts what was said; whether that used up the quota just now.
    fn spend(&self, bytes: usize) -> bool {
        let before = self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        before < self.most && before + bytes as u64 >= self.most
    }

    /// Whether more may be said: warnings and errors always, the rest within the quota.
    fn allows(&self, level: Level) -> bool {
        if level <= Level::WARN || self.taken.load(Ordering::Relaxed) < self.most {
            return true;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// Asked before anything is formatted: a program may say far more than its quota.
fn within<S: Subscriber>(quota: &Arc<Quota>) -> impl Filter<S> + use<S> {
    let quota = quota.clone();
    dynamic_filter_fn(move |meta, _| !meta.is_event() || quota.allows(*meta.level()))
}

/// Where the log's file is written to, an event at a time.
#[derive(Clone)]
struct ToFile {
    file: Arc<Mutex<File>>,
    quota: Arc<Quota>,
}

impl MakeWriter<'_> for ToFile {
    type Writer = ToFile;

    fn make_writer(&self) -> ToFile {
        self.clone()
    }
}

impl Write for ToFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(bytes)?;
        if self.quota.spend(bytes.len()) {
            let most = units::bytes(self.quota.most);
            writeln!(file, "this log is full ({most}): from here on only warnings and errors")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Forward {
    stage: String,
    events: UnboundedSender<Event>,
    quota: Arc<Quota>,
}

impl Forward {
    fn send(&self, level: Level, message: String) {
        let level = level.to_string().to_lowercase();
        let _ = self.events.send(Event::StageLog { stage: self.stage.clone(), level, message });
    }
}

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let message = visible(&text.0).into_owned();
        let full = self.quota.spend(message.len() + EVENT_FRAME);
        self.send(level, message);
        if full {
            let note = format!("this output is long: the rest of it is in {}.log alone", self.stage);
            self.send(Level::INFO, note);
        }
    }
}

/// The message, then `name=value` of the other fields.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let result = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        debug_assert!(result.is_ok(), "writing to a String cannot fail");
    }
}
