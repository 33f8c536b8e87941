//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::options::{Asked, max_tokens};
use super::reply::{Content, Part, Prompt, Reply, Shape, Written};
use super::{loaded, tokens};
use crate::corpus::conversation::{Message, Role};
use crate::generate::{MOST_TOP_LOGPROBS, Request};
use crate::tokenizer::chat;
use crate::web::fields::Fields;
use crate::web::{ApiError, Body, Limits, Loaded, Shared, blocking};

const SHAPE: Shape = Shape {
    prefix: "chatcmpl-",
    object: "chat.completion",
    chunk: "chat.completion.chunk",
    choice,
    delta,
    trims: true,
};

fn choice(part: &Part) -> Written<'_> {
    let content = Content::Message { role: "assistant", content: &part.text, refusal: None };
    let logprobs = part.tokens.as_ref().map(|all| tokens::of_chat(all));
    Written { index: part.index, content, logprobs, finish_reason: part.finish }
}

fn delta(part: &Part) -> Written<'_> {
    let content = (part.first || !part.text.is_empty()).then_some(&*part.text);
    let content = Content::Delta { role: part.first.then_some("assistant"), content };
    let scored = part.tokens.as_ref().filter(|all| !all.is_empty());
    let logprobs = scored.map(|all| tokens::of_chat(all));
    Written { index: part.index, content, logprobs, finish_reason: part.finish }
}

/// What a request asks for.
struct Chat {
    messages: Vec<Message>,
    asked: Asked,
    /// New tokens at most, where it is said.
    most: Option<usize>,
    logprobs: bool,
}

impl Chat {
    fn read(mut fields: Fields, limits: &Limits) -> Result<Self, ApiError> {
        let messages = messages(&mut fields)?;
        let mut asked = Asked::take(&mut fields, limits)?;
        let most = max_tokens(&mut fields, &["max_completion_tokens", "max_tokens"], 1, limits)?;
        let logprobs = fields.flag("logprobs")?;
        let top = fields.integer("top_logprobs", 0..=MOST_TOP_LOGPROBS as i64)?.unwrap_or(0);
        if top > 0 && !logprobs {
            return Err(ApiError::param("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
        }
        asked.options.top_logprobs = top as usize;
        refuse_what_is_missing(&mut fields)?;
        fields.finish()?;
        Ok(Chat { messages, asked, most, logprobs })
    }
}

pub async fn answer(
    State(app): State<Shared>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let model = super::model(&mut fields, &app).await?;
    let Chat { messages, mut asked, most, logprobs } = Chat::read(fields, &app.limits)?;
    let loaded = loaded(&app, &model).await?;
    let ids = prompt(&loaded, messages).await?;
    // By default as much as there is room for.
    let room = loaded.model.transformer.config.seq_len.saturating_sub(ids.len()).max(1);
    asked.options.max_new_tokens = most.unwrap_or(room.min(app.limits.max_tokens));
    let request = Request { prompt: ids.clone(), options: asked.options.clone(), samples: asked.samples };
    let answer = loaded.submit(vec![request])?;
    let prompts = vec![Prompt { ids, echo: None }];
    Reply::new(&SHAPE, &asked, logprobs, prompts, loaded, answer).respond(asked.stream).await
}

/// Parts of the API that a tiny model has nothing for.
fn refuse_what_is_missing(fields: &mut Fields) -> Result<(), ApiError> {
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    let is_text = |value: &Value| value["type"] == "text" && value.as_object().is_some_and(|o| o.len() == 1);
    fields.only("tools", is_empty, "models of tinylm call no tools")?;
    fields.only("functions", is_empty, "models of tinylm call no functions")?;
    fields.only("tool_choice", |value| value == "none", "models of tinylm call no tools")?;
    fields.only("function_call", |value| value == "none", "models of tinylm call no functions")?;
    fields.only("response_format", is_text, "answers are text: expected `{\"type\": \"text\"}`")?;
    fields.only("modalities", |value| *value == json!(["text"]), "answers are text: expected `[\"text\"]`")
}

/// The messages of a request.
///
/// # Errors
/// When there are none, or one is not a role and a text.
pub fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let expected = "a list of messages, each with `role` and `content`";
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages", expected))?;
    if list.is_empty() {
        return Err(fields.wrong("messages", &json!([]), "at least one message"));
    }
    let name = fields.name("messages");
    list.into_iter().enumerate().map(|(i, value)| message(format!("{name}[{i}]"), value)).collect()
}

fn message(name: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::of(name, value)?;
    let expected = "`system`, `user` or `assistant`";
    let role = fields.text("role")?.ok_or_else(|| fields.missing("role", expected))?;
    // OpenAI's newer name of a system message.
    let known = if role == "developer" { Some(Role::System) } else { Role::parse(&role) };
    let known = known.ok_or_else(|| fields.wrong("role", &json!(role), expected))?;
    let content = content(&mut fields)?;
    let nothing = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    for field in ["tool_calls", "function_call", "refusal", "audio", "annotations", "name"] {
        fields.only(field, nothing, "messages are a role and a text here")?;
    }
    fields.finish()?;
    Ok(Message::new(known, content))
}

/// A text, or the texts that it consists of.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let expected = "a text, or a list of `{\"type\": \"text\", \"text\": …}`";
    match fields.take("content") {
        None => Err(fields.missing("content", expected)),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let name = fields.name("content");
            let text = |(i, value): (usize, Value)| {
                let mut part = Fields::of(format!("{name}[{i}]"), value)?;
                let ty = part.take("type").unwrap_or_default();
                if ty != "text" {
                    return Err(part.wrong("type", &ty, "`text`"));
                }
                let text = part.text("text")?.ok_or_else(|| part.missing("text", "a text"))?;
                part.finish()?;
                Ok(text)
            };
            parts.into_iter().enumerate().map(text).collect()
        }
        Some(other) => Err(fields.wrong("content", &other, expected)),
    }
}

/// The tokens that an answer follows.
///
/// # Errors
/// When the model's tokenizer cannot tell roles, or its chat template refuses the messages.
pub async fn prompt(loaded: &Arc<Loaded>, messages: Vec<Message>) -> Result<Vec<u32>, ApiError> {
    let model = loaded.model.clone();
    let ids = blocking(move || chat::prompt(&model.tokenizer, &messages)).await;
    ids.map_err(|e| ApiError { param: Some("messages".to_string()), ..e })
}
