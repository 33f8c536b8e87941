//! Responses of chat and completions, whole or as server-sent events, from the news of a model's thread.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;

use super::options::Asked;
use super::tokens::{Scored, TokenTexts};
use crate::base::{Digest, Error};
use crate::generate::{Finish, Token};
use crate::web::engine::{Answer, News, What};
use crate::web::{ApiError, Loaded};

/// How an API writes what all have in common.
pub struct Shape {
    /// Begins the ids of responses.
    pub prefix: &'static str,
    /// `object` of a response, and of an event of a stream.
    pub object: &'static str,
    pub chunk: &'static str,
    /// A choice of a response, and of an event.
    pub choice: fn(&Part) -> Written<'_>,
    pub delta: fn(&Part) -> Written<'_>,
    /// Whether blanks before a text are left out: some tokenizers begin every text with one.
    pub trims: bool,
}

/// A piece of a choice, or all of it.
#[derive(Default)]
pub struct Part {
    pub index: usize,
    pub text: String,
    /// None where they are not asked for.
    pub tokens: Option<Vec<Scored>>,
    pub finish: Option<&'static str>,
    /// Whether it is the first of its choice.
    pub first: bool,
}

/// A choice as JSON.
#[derive(Serialize)]
pub struct Written<'a> {
    pub index: usize,
    #[serde(flatten)]
    pub content: Content<'a>,
    pub logprobs: Option<Value>,
    pub finish_reason: Option<&'static str>,
}

/// Its text.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Content<'a> {
    Text(&'a str),
    Message {
        role: &'static str,
        content: &'a str,
        /// Always null.
        refusal: Option<&'static str>,
    },
    Delta {
        #[serde(skip_serializing_if = "Option::is_none")]
        role: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<&'a str>,
    },
}

/// A response, or an event of a stream, as JSON.
#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    head: &'a Head,
    object: &'static str,
    choices: Vec<Written<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

/// What all objects of a response begin with.
#[derive(Serialize)]
struct Head {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: String,
}

/// A text behind a prompt, as it grows.
struct Choice {
    texts: TokenTexts,
    /// Characters so far.
    offset: usize,
    /// What the text begins with: the prompt, where it is to be repeated.
    opening: Option<(String, Vec<Scored>)>,
    begun: bool,
    trims: bool,
    ended: bool,
}

/// A prompt as it was read, and what repeats it.
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Text and tokens that choices begin with.
    pub echo: Option<(String, Vec<Scored>)>,
}

/// A response under way.
pub struct Reply {
    shape: &'static Shape,
    head: Head,
    choices: Vec<Choice>,
    samples: usize,
    logprobs: bool,
    include_usage: bool,
    usage: Usage,
    answer: Answer,
    /// Keeps the model in memory.
    _loaded: Arc<Loaded>,
}

#[derive(Default)]
struct Usage {
    prompt: usize,
    cached: usize,
    /// Tokens of prompts that the model does not see.
    cut: usize,
    completion: usize,
}

impl Usage {
    fn to_json(&self) -> Value {
        let Usage { prompt, cached, cut, completion } = self;
        json!({
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached}, "tinylm": {"prompt_tokens_cut": cut},
        })
    }
}

impl Reply {
    /// Of choices behind `prompts`, `asked.samples` behind each.
    pub fn new(
        shape: &'static Shape,
        asked: &Asked,
        logprobs: bool,
        prompts: Vec<Prompt>,
        loaded: Arc<Loaded>,
        answer: Answer,
    ) -> Self {
        let choice = |prompt: &Prompt| Choice {
            texts: TokenTexts::after(&loaded.model.tokenizer, &prompt.ids),
            offset: prompt.echo.as_ref().map_or(0, |(text, _)| text.chars().count()),
            opening: prompt.echo.clone(),
            begun: false,
            trims: shape.trims,
            ended: false,
        };
        let samples = asked.samples;
        let choices = prompts.iter().flat_map(|prompt| (0..samples).map(move |_| choice(prompt))).collect();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let (model, system_fingerprint) = (loaded.id.to_string(), loaded.fingerprint().to_string());
        let head = Head { id: format!("{}{}", shape.prefix, unique()), created, model, system_fingerprint };
        let (include_usage, usage) = (asked.include_usage, Usage::default());
        Reply { shape, head, choices, samples, logprobs, include_usage, usage, answer, _loaded: loaded }
    }

    /// The response, once it is known that the request is not refused.
    ///
    /// # Errors
    /// That of the first of its requests that fails; of a stream only before its first event.
    pub async fn respond(mut self, stream: bool) -> Result<Response, ApiError> {
        if !stream {
            return self.whole().await;
        }
        let first = self.answer.news.recv().await.ok_or_else(ended)?;
        if let What::Failed(error) = first.what {
            return Err(error);
        }
        let events = Body::from_stream(Events::new(self, first));
        Ok(([(header::CONTENT_TYPE, "text/event-stream")], events).into_response())
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut all: Vec<Part> = self.choices.iter().map(|_| Part::default()).collect();
        while !self.is_over() {
            let news = self.answer.news.recv().await.ok_or_else(ended)?;
            for part in self.parts(news)? {
                let whole = &mut all[part.index];
                whole.index = part.index;
                whole.text += &part.text;
                whole.finish = part.finish.or(whole.finish);
                if let Some(tokens) = part.tokens {
                    whole.tokens.get_or_insert_default().extend(tokens);
                }
            }
        }
        let choices = all.iter().map(self.shape.choice).collect();
        Ok(crate::web::json(&self.object(self.shape.object, choices, Some(self.usage.to_json()))))
    }

    fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.ended)
    }

    fn object<'a>(
        &'a self,
        object: &'static str,
        choices: Vec<Written<'a>>,
        usage: Option<Value>,
    ) -> Object<'a> {
        Object { head: &self.head, object, choices, usage }
    }

    /// What is new in the choices.
    fn parts(&mut self, News { of, what }: News) -> Result<Vec<Part>, ApiError> {
        match what {
            What::Started { prompt_tokens, cached_tokens, cut } => {
                self.usage.prompt += prompt_tokens;
                self.usage.cached += cached_tokens;
                self.usage.cut += cut;
                Ok((0..self.samples).map(|sample| self.part(of * self.samples + sample)).collect())
            }
            What::Piece { sample, text, tokens } => {
                self.usage.completion += tokens.len();
                let mut part = self.part(of * self.samples + sample);
                self.choices[part.index].extend(&mut part, &text, &tokens);
                Ok(vec![part])
            }
            What::Finished { sample, finish, end } => {
                let mut part = self.part(of * self.samples + sample);
                let choice = &mut self.choices[part.index];
                // OpenAI's API lists the end token as well.
                choice.extend(&mut part, "", end.as_slice());
                choice.ended = true;
                part.finish = Some(match finish {
                    Finish::End | Finish::Stop => "stop",
                    Finish::Length => "length",
                });
                Ok(vec![part])
            }
            What::Failed(error) => Err(error),
        }
    }

    /// The next part of a choice, with what it begins with if it is the first.
    fn part(&mut self, index: usize) -> Part {
        let choice = &mut self.choices[index];
        let first = !std::mem::replace(&mut choice.begun, true);
        let (text, tokens) = choice.opening.take().unwrap_or_default();
        Part { index, text, tokens: self.logprobs.then_some(tokens), finish: None, first }
    }

    /// Appends news as events.
    fn write(&mut self, news: Option<News>, events: &mut Vec<u8>) {
        let parts = news.ok_or_else(ended).and_then(|news| self.parts(news));
        let parts = match parts {
            Ok(parts) => parts,
            Err(error) => {
                self.choices.iter_mut().for_each(|choice| choice.ended = true);
                write_event(&error.to_json(), events);
                return events.extend(DONE);
            }
        };
        let is_new = |part: &&Part| {
            let tokens = part.tokens.as_ref().is_some_and(|tokens| !tokens.is_empty());
            part.first || part.finish.is_some() || tokens || !part.text.is_empty()
        };
        let chunk = |choices, usage| self.object(self.shape.chunk, choices, usage);
        for part in parts.iter().filter(is_new) {
            let usage = self.include_usage.then_some(Value::Null);
            write_event(&chunk(vec![(self.shape.delta)(part)], usage), events);
        }
        if self.is_over() {
            if self.include_usage {
                write_event(&chunk(Vec::new(), Some(self.usage.to_json())), events);
            }
            events.extend(DONE);
        }
    }
}

impl Choice {
    /// Adds new text and tokens to a part.
    fn extend(&mut self, part: &mut Part, text: &str, tokens: &[Token]) {
        let text = if self.trims { text.trim_start() } else { text };
        self.trims &= text.is_empty();
        part.text += text;
        if let Some(scored) = &mut part.tokens {
            scored.extend(tokens.iter().map(|token| self.texts.scored(token, &mut self.offset)));
        }
    }
}

/// A body of server-sent events. The first are written at once, further ones at most every [`GATHER`]: writing takes
/// longer than a token of a small model. All streams write at the same moments, one behind the other, and leave the
/// threads of the models alone between them.
struct Events {
    reply: Reply,
    first: Option<News>,
    /// Until when further ones are gathered, once a text has begun.
    gather: Option<Pin<Box<Sleep>>>,
    over: bool,
}

/// What no reader notices.
const GATHER: Duration = Duration::from_millis(20);

impl Events {
    fn new(reply: Reply, first: News) -> Self {
        Events { reply, first: Some(first), gather: None, over: false }
    }

    /// Whether events are to be gathered still, and none but the last is to wake the task.
    fn gathers(&mut self, context: &mut Context<'_>) -> bool {
        let Some(gather) = self.gather.as_mut().filter(|gather| !gather.is_elapsed()) else { return false };
        let over = &mut self.reply.answer.over;
        gather.as_mut().poll(context).is_pending()
            && !over.is_terminated()
            && Pin::new(over).poll(context).is_pending()
    }

    /// The next news. If there are none, they wake the task where it has nothing to write.
    fn next(&mut self, has_nothing: bool, context: &mut Context<'_>) -> Poll<Option<News>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let news = &mut self.reply.answer.news;
        if has_nothing {
            return news.poll_recv(context);
        }
        match news.try_recv() {
            Ok(new) => Poll::Ready(Some(new)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        }
    }

    /// Begins to gather, if what was written has the beginning of a text.
    fn wrote(&mut self, has_text: bool) {
        match &mut self.gather {
            Some(gather) => gather.as_mut().reset(next_moment()),
            None if has_text => self.gather = Some(Box::pin(sleep_until(next_moment()))),
            None => {}
        }
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.over && self.gathers(context) {
            return Poll::Pending;
        }
        let (mut events, mut has_text) = (Vec::new(), false);
        while !self.over {
            let news = match self.next(events.is_empty(), context) {
                Poll::Ready(news) => news,
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            };
            has_text |= news.as_ref().is_some_and(|news| matches!(news.what, What::Piece { .. }));
            self.reply.write(news, &mut events);
            self.over = self.reply.is_over();
        }
        self.wrote(has_text);
        Poll::Ready((!events.is_empty()).then(|| Ok(Bytes::from(events))))
    }
}

/// When streams write next: at multiples of [`GATHER`] since the first asked.
fn next_moment() -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let (first, now) = (*FIRST.get_or_init(Instant::now), Instant::now());
    let passed = now.duration_since(first).as_nanos() % GATHER.as_nanos();
    now + GATHER - Duration::from_nanos(passed as u64)
}

const DONE: &[u8] = b"data: [DONE]\n\n";

fn write_event(value: &impl Serialize, events: &mut Vec<u8>) {
    events.extend(b"data: ");
    serde_json::to_writer(&mut *events, value).expect("memory takes what keys of text and numbers are");
    events.extend(b"\n\n");
}

fn ended() -> ApiError {
    Error::bug("the model's thread has ended").into()
}

/// A part of an id that no other response has.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    let text = format!("{} {now} {}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    Digest::of(text.as_bytes()).hex()[..24].to_string()
}
