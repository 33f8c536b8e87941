//! `POST /v1/completions`: texts behind prompts, with the prompts' own log-probabilities where they are asked
//! for, by which other programs evaluate models.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value};

use super::loaded;
use super::options::{Asked, max_tokens};
use super::reply::{Content, Part, Prompt, Reply, Shape, Written};
use super::tokens::{self, Scored, TokenTexts};
use crate::base::{Error, machine};
use crate::eval::{self, TokenScore};
use crate::generate::{self, Finish, MOST_TOP_LOGPROBS, Request, Token};
use crate::model::Model;
use crate::web::engine::{self, Answer, What};
use crate::web::fields::{Fields, whole, wrong};
use crate::web::{ApiError, Body, Limits, Shared, blocking, computing};

/// `max_tokens` where a request does not say it, as OpenAI's API has it.
const DEFAULT_TOKENS: usize = 16;

/// Tokens of a request's prompts whose log-probabilities are computed.
const MOST_SCORED: usize = 65_536;

const SHAPE: Shape = Shape {
    prefix: "cmpl-",
    object: "text_completion",
    chunk: "text_completion",
    choice,
    delta: choice,
    trims: false,
};

fn choice(part: &Part) -> Written<'_> {
    let logprobs = part.tokens.as_ref().map(|all| tokens::of_completion(all));
    Written { index: part.index, content: Content::Text(&part.text), logprobs, finish_reason: part.finish }
}

/// What a text is to follow.
enum Given {
    Text(String),
    Ids(Vec<u32>),
}

/// What a request asks for.
struct Texts {
    given: Vec<Given>,
    asked: Asked,
    /// Of how many of the most probable ids, where they are asked for.
    logprobs: Option<usize>,
    echo: bool,
}

impl Texts {
    fn read(mut fields: Fields, limits: &Limits) -> Result<Self, ApiError> {
        let given = prompts(&mut fields, limits.waiting)?;
        let mut asked = Asked::take(&mut fields, limits)?;
        let most = max_tokens(&mut fields, &["max_tokens"], 0, limits)?;
        asked.options.max_new_tokens = most.unwrap_or(DEFAULT_TOKENS.min(limits.max_tokens));
        let logprobs = fields.integer("logprobs", 0..=MOST_TOP_LOGPROBS as i64)?.map(|top| top as usize);
        asked.options.top_logprobs = logprobs.unwrap_or(0);
        let echo = fields.flag("echo")?;
        fields.only("suffix", |value| value == "", "a text between two others is not made here")?;
        let best_of = asked.samples as i64;
        fields.only("best_of", |value| whole(value) == Some(best_of), "expected as many as `n`")?;
        fields.finish()?;
        Ok(Texts { given, asked, logprobs, echo })
    }
}

pub async fn complete(
    State(app): State<Shared>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let model = super::model(&mut fields, &app).await?;
    let Texts { given, asked, logprobs, echo } = Texts::read(fields, &app.limits)?;
    let loaded = loaded(&app, &model).await?;
    let model = loaded.model.clone();
    let echo = echo.then_some(logprobs);
    let prompts = match echo.flatten() {
        None => blocking(move || Ok(read(&model, given, echo))).await,
        Some(_) => computing(move || Ok(read(&model, given, echo))).await,
    }??;
    let answer = match asked.options.max_new_tokens {
        0 => nothing(&prompts, asked.samples),
        _ => loaded.submit(requests(&prompts, &asked))?,
    };
    Reply::new(&SHAPE, &asked, logprobs.is_some(), prompts, loaded, answer).respond(asked.stream).await
}

fn requests(prompts: &[Prompt], asked: &Asked) -> Vec<Request> {
    let request = |prompt: &Prompt| Request {
        prompt: prompt.ids.clone(),
        options: asked.options.clone(),
        samples: asked.samples,
    };
    prompts.iter().map(request).collect()
}

/// The news of texts that are to have no tokens.
fn nothing(prompts: &[Prompt], samples: usize) -> Answer {
    let (teller, answer) = engine::answer();
    for (of, prompt) in prompts.iter().enumerate() {
        teller.tell(of, What::Started { prompt_tokens: prompt.ids.len(), cached_tokens: 0, cut: 0 });
        for sample in 0..samples {
            teller.tell(of, What::Finished { sample, finish: Finish::Length, end: None });
        }
    }
    answer
}

/// The prompts of a request: a text, texts, ids, or lists of ids.
fn prompts(fields: &mut Fields, most: usize) -> Result<Vec<Given>, ApiError> {
    let expected = "a text, a list of texts, a list of token ids, or a list of such lists";
    let value = fields.take("prompt").ok_or_else(|| fields.missing("prompt", expected))?;
    let given = match &value {
        Value::String(text) => Ok(vec![Given::Text(text.clone())]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => Ok(vec![ids("prompt", list)?]),
        Value::Array(list) => list.iter().enumerate().map(|(i, value)| one(i, value, expected)).collect(),
        other => Err(fields.wrong("prompt", other, expected)),
    }?;
    if given.is_empty() || given.len() > most {
        return Err(ApiError::param(
            "prompt",
            format!("`prompt` has {} prompts: expected 1 to {most}", given.len()),
        ));
    }
    Ok(given)
}

fn one(i: usize, value: &Value, expected: &str) -> Result<Given, ApiError> {
    let name = format!("prompt[{i}]");
    match value {
        Value::String(text) => Ok(Given::Text(text.clone())),
        Value::Array(list) => ids(&name, list),
        other => Err(wrong(&name, other, expected)),
    }
}

fn ids(name: &str, list: &[Value]) -> Result<Given, ApiError> {
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{name}[{i}]"), value, "the id of a token"))
    };
    Ok(Given::Ids(list.iter().enumerate().map(id).collect::<Result<_, _>>()?))
}

/// Prompts as a model reads them. `echo`: they are repeated, with the `top` most probable ids at each token
/// where that is given.
fn read(model: &Model, given: Vec<Given>, echo: Option<Option<usize>>) -> Result<Vec<Prompt>, ApiError> {
    let read = given.into_iter().enumerate().map(|(i, given)| {
        let about = |e: ApiError| ApiError { param: Some(format!("prompt[{i}]")), ..e };
        ids_of(model, given).map_err(about)
    });
    let read = read.collect::<Result<Vec<_>, _>>()?;
    let tokens: usize = read.iter().map(|(ids, _)| ids.len()).sum();
    if echo.flatten().is_some() && tokens > MOST_SCORED {
        let what =
            format!("`prompt` has {tokens} tokens: log-probabilities are given for up to {MOST_SCORED}");
        return Err(ApiError::param("prompt", what));
    }
    let repeated = |ids: &[u32], text: Option<String>, top: Option<usize>| {
        let text = text.map_or_else(|| model.tokenizer.decode(ids), Ok)?;
        Ok::<_, Error>((text, top.map(|top| scored(model, ids, top)).unwrap_or_default()))
    };
    let prompt = |(ids, text): (Vec<u32>, Option<String>)| {
        let echo = echo.map(|top| repeated(&ids, text, top)).transpose()?;
        Ok(Prompt { ids, echo })
    };
    read.into_iter().map(prompt).collect()
}

/// The tokens of a prompt, and the text that it was given as.
fn ids_of(model: &Model, given: Given) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let (ids, text) = match given {
        Given::Text(text) => (generate::prompt_ids(model, &text)?, Some(text)),
        Given::Ids(ids) => (ids, None),
    };
    let known = model.transformer.config.validate_ids(&ids);
    known.map_err(|e| ApiError::bad_request(e.to_string()))?;
    if ids.is_empty() {
        let what = "the prompt is empty, and this tokenizer has no token to begin a text with";
        return Err(ApiError::bad_request(what));
    }
    Ok((ids, text))
}

/// The tokens of a prompt with their log-probabilities.
fn scored(model: &Model, ids: &[u32], top: usize) -> Vec<Scored> {
    let mut texts = TokenTexts::after(&model.tokenizer, &[]);
    let mut offset = 0;
    let mut all = vec![texts.first(ids[0], &mut offset)];
    for score in eval::score_ids(model, ids, top, machine::threads()) {
        let TokenScore { id, logprob, top, .. } = score;
        all.push(texts.scored(&Token { id, logprob, top }, &mut offset));
    }
    all
}
