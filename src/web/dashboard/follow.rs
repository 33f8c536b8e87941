//! The events of a run, sent as they are written by whatever process runs it (server-sent events,
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;

use super::super::{ApiError, Shared, blocking};
use super::asked::{Asked, Named};
use super::runs;
use crate::base::Result;
use crate::report::runs::{Folder, State as RunState, Tail};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_millis(250);
/// After so long without an event a comment is sent, by which a client that is gone is noticed.
const SILENCE: Duration = Duration::from_secs(15);
/// Bytes of events that are read at a time.
const PART: u64 = 256 << 10;

#[derive(Deserialize)]
pub struct From {
    /// As the header `Last-Event-ID`, for the first request.
    after: Option<u64>,
}

/// All events of the run, or those behind the one with the id of `Last-Event-ID`, and then further ones until
/// the run ends; last the event `end` with the state of the run.
pub async fn events(
    State(app): State<Shared>,
    Named(id): Named<String>,
    Asked(from): Asked<From>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let folder = runs::find(&app, id).await?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let (after, path) = (last.or(from.after).unwrap_or(0), folder.events());
    let tail = blocking(move || Tail::open(&path, after)).await?;
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(follow(folder, tail, sender));
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

type Message = Result<Bytes, Infallible>;

/// Ends when the run does, or the client is gone.
async fn follow(folder: Folder, mut tail: Tail, sender: Sender<Message>) {
    let mut spoke = Instant::now();
    loop {
        let run = folder.clone();
        let looked = blocking(move || {
            // Asked first: what is written before the process ends is read after it is seen to live.
            let is_alive = run.is_alive();
            tail.next(PART).map(|lines| (lines, is_alive, tail))
        });
        let (lines, is_alive, same) = match looked.await {
            Ok(looked) => looked,
            Err(e) => return drop(sender.send(named("error", &e.to_json())).await),
        };
        tail = same;
        let is_over = lines.iter().any(|(line, _)| is_summary(line)) || lines.is_empty() && !is_alive;
        if !lines.is_empty() {
            spoke = Instant::now();
            if sender.send(Ok(numbered(&lines))).await.is_err() {
                return;
            }
        }
        if is_over {
            let _ = sender.send(named("end", &json!({ "state": state(folder).await }))).await;
            return;
        }
        if lines.is_empty() {
            if spoke.elapsed() > SILENCE {
                spoke = Instant::now();
                if sender.send(Ok(Bytes::from_static(b":\n\n"))).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = sender.closed() => return,
            }
        }
    }
}

fn is_summary(line: &str) -> bool {
    line.starts_with("{\"event\":\"summary\"")
}

/// The state of a run that has written its last event; the file of the summary may come a moment later.
async fn state(folder: Folder) -> RunState {
    for _ in 0..20 {
        let run = folder.clone();
        match blocking(move || Ok(run.brief().state)).await {
            Ok(RunState::Running) => tokio::time::sleep(EVERY).await,
            Ok(state) => return state,
            Err(_) => break,
        }
    }
    RunState::Running
}

/// Events with their ids. What is not one line of JSON is passed over: it would not be one event.
fn numbered(lines: &[(String, u64)]) -> Bytes {
    let mut text = String::new();
    for (line, end) in lines {
        if serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok() {
            text += &format!("id: {end}\ndata: {line}\n\n");
        }
    }
    Bytes::from(text)
}

fn named(event: &str, data: &Value) -> Message {
    Ok(Bytes::from(format!("event: {event}\ndata: {data}\n\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_json_becomes_an_event() {
        let lines = [("{\"a\":1}".to_string(), 8), ("{\"a\":".into(), 14), ("{\"b\":\"\\n\"}".into(), 25)];
        let sent = String::from_utf8(numbered(&lines).to_vec()).unwrap();
        assert_eq!(sent, "id: 8\ndata: {\"a\":1}\n\nid: 25\ndata: {\"b\":\"\\n\"}\n\n");
    }
}
