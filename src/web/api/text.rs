//! Text and tokens as llama-server gives them, and `POST /generate` of predecessor 000's server.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::tokens::TokenTexts;
use super::{chat, loaded, model};
use crate::base::{Error, Result};
use crate::corpus::clean;
use crate::generate::{self, Options, Request};
use crate::tokenizer::Tokenizer;
use crate::web::engine::What;
use crate::web::fields::{Fields, wrong};
use crate::web::{ApiError, Body, Shared, blocking};

type Object = Body<Map<String, Value>>;

/// `POST /tokenize`: `{"content"}` to `{"tokens"}`; with `add_special` after the token that begins a text, with
/// `with_pieces` each with its text.
pub async fn tokenize(State(app): State<Shared>, Body(body): Object) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let model = model(&mut fields, &app).await?;
    let content = fields.text("content")?.ok_or_else(|| fields.missing("content", "a text"))?;
    let (special, pieces) = (fields.flag("add_special")?, fields.flag("with_pieces")?);
    fields.only("parse_special", |value| value == false, "special tokens are not read from text")?;
    fields.finish()?;
    let loaded = loaded(&app, &model).await?;
    let read = move || {
        let model = &loaded.model;
        let ids = if special { generate::ids_of(model, &content) } else { model.tokenizer.encode(&content) }?;
        let mut texts = TokenTexts::after(&model.tokenizer, &[]);
        let piece = |id: &u32| json!({"id": id, "piece": texts.push(*id).text});
        Ok(if pieces { ids.iter().map(piece).collect() } else { json!(ids) })
    };
    let tokens = blocking(read).await.map_err(|e| ApiError { param: Some("content".to_string()), ..e })?;
    Ok(crate::web::json(&json!({"tokens": tokens})))
}

/// `POST /detokenize`: `{"tokens"}` to `{"content"}`.
pub async fn detokenize(State(app): State<Shared>, Body(body): Object) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let model = model(&mut fields, &app).await?;
    let list = fields.list("tokens")?.ok_or_else(|| fields.missing("tokens", "a list of token ids"))?;
    fields.finish()?;
    let loaded = loaded(&app, &model).await?;
    let tokenizer = loaded.model.tokenizer.clone();
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().filter(|id| *id < tokenizer.vocab_size() as u64).map(|id| id as u32);
        let expected = format!("the id of a token, below {}", tokenizer.vocab_size());
        id.ok_or_else(|| wrong(&format!("tokens[{i}]"), value, &expected))
    };
    let ids = list.iter().enumerate().map(id).collect::<Result<Vec<_>, _>>()?;
    let content = blocking(move || loaded.model.tokenizer.decode(&ids)).await?;
    Ok(crate::web::json(&json!({"content": content})))
}

/// `POST /apply-template`: `{"messages"}` to `{"prompt"}`, the text that the model reads, with the names of
/// special tokens.
pub async fn apply_template(State(app): State<Shared>, Body(body): Object) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let model = model(&mut fields, &app).await?;
    let messages = chat::messages(&mut fields)?;
    fields.finish()?;
    let loaded = loaded(&app, &model).await?;
    let ids = chat::prompt(&loaded, messages).await?;
    let prompt = blocking(move || with_special(&loaded.model.tokenizer, &ids)).await?;
    Ok(crate::web::json(&json!({"prompt": prompt})))
}

/// The text of ids with the names of special tokens.
fn with_special(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let parts = ids.chunk_by(|a, b| !tokenizer.is_special(*a) && !tokenizer.is_special(*b));
    let text = |part: &[u32]| match part {
        [id] if tokenizer.is_special(*id) => Ok(tokenizer.token(*id).unwrap_or_default()),
        text => tokenizer.decode(text),
    };
    parts.map(text).collect()
}

/// New tokens of an answer of `POST /generate`, as predecessor 000 has them.
const GENERATE_TOKENS: usize = 30;

/// `POST /generate`: `{"prompt"}` to `{"response"}`: the prompt and what follows it, or a message where that
/// fails, by the first model.
pub async fn generate(State(app): State<Shared>, Body(body): Object) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let named = fields.text("model")?;
    let prompt = fields.text("prompt")?.unwrap_or_default();
    fields.finish()?;
    app.models.refresh().await;
    let named = named.or_else(|| app.models.ids().into_iter().next()).ok_or_else(|| app.models.none())?;
    let loaded = loaded(&app, &named).await?;
    let (model, text) = (loaded.model.clone(), clean::prompt(&prompt));
    let ids = blocking(move || generate::ids_of(&model, &text)).await?;
    if ids.is_empty() {
        let what = "`prompt` is empty, and this tokenizer has no token to begin a text with";
        return Err(ApiError::param("prompt", what));
    }
    let options = Options { top_k: 50, max_new_tokens: GENERATE_TOKENS, ..Options::default() };
    let mut answer = loaded.submit(vec![Request { prompt: ids, options, samples: 1 }])?;
    let mut response = prompt;
    while let Some(news) = answer.news.recv().await {
        match news.what {
            What::Started { .. } => {}
            What::Piece { text, .. } => response += &text,
            What::Finished { .. } => return Ok(crate::web::json(&json!({"response": response}))),
            What::Failed(error) => return Err(error),
        }
    }
    Err(Error::bug("the model's thread has ended").into())
}
