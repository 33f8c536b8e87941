//! One log a stage, through tracing-subscriber: everything goes to `STAGE.log` in the run's folder,
//! warnings and notes go to the event stream too. What a stage says in passing is bounded in both;
//! what was left out is counted. Warnings and errors always pass.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::base::text::visible;
use crate::base::{Result, fs, units};
use crate::event::Event;

/// How much a stage's log file takes of what it says in passing.
const FILE_BYTES: u64 = 16 << 20;

/// How much of it is shown while the stage runs: events wait in memory for whoever shows them.
const EVENT_BYTES: u64 = 2 << 20;

/// The log of one stage, in the threads that [`Log::dispatch`] is the default of.
pub struct Log {
    pub dispatch: Dispatch,
    file: Capped,
}

impl Log {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(folder: &Path, stage: &str, events: UnboundedSender<Event>) -> Result<Self> {
        let file = fs::append(&folder.join(format!("{stage}.log")))?;
        let file = Capped(Arc::new(Mutex::new(Cap { file, left: Budget::new(FILE_BYTES) })));
        let to_file =
            tracing_subscriber::fmt::layer().with_writer(file.clone()).with_ansi(false).with_target(false);
        let left = Mutex::new(Budget::new(EVENT_BYTES));
        let to_events = Forward { stage: stage.to_string(), events, left };
        // What libraries below say at their own leisure is not news of a stage.
        let ours = Targets::new().with_target("tinylm", Level::DEBUG).with_default(Level::WARN);
        let layers =
            Registry::default().with(to_file.with_filter(ours.clone())).with(to_events.with_filter(ours));
        Ok(Log { dispatch: Dispatch::new(layers), file })
    }

    /// Says at the log's end how much is not in it.
    pub fn finish(&self) {
        let mut cap = self.file.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cap.left.refused > 0 {
            let refused = units::count(cap.left.refused);
            // A full disk takes no notes; what the stage itself cannot write is an error of its own.
            let _ = writeln!(cap.file, "{refused} bytes of output were left out of this log");
        }
    }
}

/// How many bytes may still pass, and how many did not.
struct Budget {
    most: u64,
    passed: u64,
    refused: u64,
}

enum Verdict {
    Pass,
    /// The first that does not.
    Full,
    Refuse,
}

impl Budget {
    fn new(most: u64) -> Self {
        Budget { most, passed: 0, refused: 0 }
    }

    fn spend(&mut self, bytes: usize) -> Verdict {
        let bytes = bytes as u64;
        if self.refused == 0 && self.passed + bytes <= self.most {
            self.passed += bytes;
            return Verdict::Pass;
        }
        let first = self.refused == 0;
        self.refused += bytes;
        if first { Verdict::Full } else { Verdict::Refuse }
    }
}

/// A file that takes so much and no more.
#[derive(Clone)]
struct Capped(Arc<Mutex<Cap>>);

struct Cap {
    file: File,
    left: Budget,
}

/// Writes one event to a [`Capped`] file.
struct Entry {
    file: Capped,
    /// Passes though the file is full.
    matters: bool,
}

impl<'a> MakeWriter<'a> for Capped {
    type Writer = Entry;

    fn make_writer(&'a self) -> Entry {
        Entry { file: self.clone(), matters: true }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Entry {
        Entry { file: self.clone(), matters: *meta.level() <= Level::WARN }
    }
}

impl Write for Entry {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut cap = self.file.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.matters {
            cap.file.write_all(bytes)?;
            return Ok(bytes.len());
        }
        match cap.left.spend(bytes.len()) {
            Verdict::Pass => cap.file.write_all(bytes)?,
            Verdict::Full => {
                let most = units::bytes(FILE_BYTES);
                writeln!(cap.file, "this log is full ({most}): further output is left out")?;
            }
            Verdict::Refuse => {}
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
    left: Mutex<Budget>,
}

impl Forward {
    fn send(&self, level: Level, message: String) {
        let level = level.to_string().to_lowercase();
        let _ = self.events.send(Event::StageLog { stage: self.stage.clone(), level, message });
    }
}

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::INFO {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let (level, message) = (*event.metadata().level(), visible(&text.0).into_owned());
        let verdict = match level <= Level::WARN {
            true => Verdict::Pass,
            false => self.left.lock().unwrap_or_else(PoisonError::into_inner).spend(message.len()),
        };
        match verdict {
            Verdict::Pass => self.send(level, message),
            Verdict::Full => {
                let (most, stage) = (units::bytes(EVENT_BYTES), &self.stage);
                self.send(
                    Level::INFO,
                    format!("more than {most} of output: the rest is in {stage}.log alone"),
                );
            }
            Verdict::Refuse => {}
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
