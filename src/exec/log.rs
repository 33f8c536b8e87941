//! One log a stage, through tracing-subscriber: everything goes to `STAGE.log` in the run's folder,
//! warnings and notes go to the event stream too.

use std::fmt::{self, Write};
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use tokio::sync::mpsc::UnboundedSender;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::base::{Result, fs};
use crate::event::Event;

/// A dispatcher for the threads of one stage.
///
/// # Errors
/// When the log cannot be opened.
pub fn for_stage(folder: &Path, stage: &str, events: UnboundedSender<Event>) -> Result<Dispatch> {
    let file: File = fs::append(&folder.join(format!("{stage}.log")))?;
    let to_file =
        tracing_subscriber::fmt::layer().with_writer(Mutex::new(file)).with_ansi(false).with_target(false);
    let to_events = Forward { stage: stage.to_string(), events };
    // What libraries below say at their own leisure is not news of a stage.
    let ours = Targets::new().with_target("tinylm", Level::DEBUG).with_default(Level::WARN);
    Ok(Dispatch::new(
        Registry::default().with(to_file.with_filter(ours.clone())).with(to_events.with_filter(ours)),
    ))
}

struct Forward {
    stage: String,
    events: UnboundedSender<Event>,
}

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::INFO {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let level = event.metadata().level().to_string().to_lowercase();
        let _ = self.events.send(Event::StageLog { stage: self.stage.clone(), level, message: text.0 });
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
