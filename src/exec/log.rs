//! One log a stage, through tracing-subscriber: everything goes to `STAGE.log` in the run's folder,
//! warnings and notes go to the event stream too. Info and debug lines of a stage are bounded in both;
//! dropped lines are counted. Warnings and errors always pass.

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

/// The most bytes of info and debug lines in a stage's log file.
const FILE_BYTES: u64 = 16 << 20;

/// The most of them that are sent as events, which wait in memory for the reporters.
const EVENT_BYTES: u64 = 4 << 20;

/// The size of an event beside its message.
const EVENT_FRAME: usize = 128;

/// The log of one stage, for threads whose default subscriber is [`Log::dispatch`].
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
        // Of libraries only warnings and errors.
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

    /// Writes at the log's end how many lines were dropped.
    pub fn finish(&self) {
        let refused = self.quota.refused.load(Ordering::Relaxed);
        if refused > 0 {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk is ignored here; it is an error where the stage writes its outputs.
            let _ = writeln!(file, "{} lines were left out of this log", units::count(refused));
        }
    }
}

/// How many bytes may be logged, how many were, and how many lines were dropped.
struct Quota {
    most: u64,
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Quota {
    fn new(most: u64) -> Self {
        Quota { most, taken: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// Counts logged bytes; whether these exceed the quota for the first time.
    fn spend(&self, bytes: usize) -> bool {
        let before = self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        before < self.most && before + bytes as u64 >= self.most
    }

    /// Whether a line may be logged: warnings and errors always, others within the quota.
    fn allows(&self, level: Level) -> bool {
        if level <= Level::WARN || self.taken.load(Ordering::Relaxed) < self.most {
            return true;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// A filter before anything is formatted: a program may print far more than its quota.
fn within<S: Subscriber>(quota: &Arc<Quota>) -> impl Filter<S> + use<S> {
    let quota = quota.clone();
    dynamic_filter_fn(move |meta, _| !meta.is_event() || quota.allows(*meta.level()))
}

/// Writes to the log's file, one event at a time.
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
        let mut text = MessageVisitor(String::new());
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
struct MessageVisitor(String);

impl Visit for MessageVisitor {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let result = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        debug_assert!(result.is_ok(), "writing to a String cannot fail");
    }
}
