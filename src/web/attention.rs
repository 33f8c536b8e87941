//! Which tokens of a text attend to which, as JSON: `POST /api/attention`, which the attention view asks.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::{ApiError, Body, Shared, api, blocking, computing};
use crate::base::{Error, Result, machine, units};
use crate::corpus::conversation::{Message, Role};
use crate::generate;
use crate::model::attention::{Which, attention, validate};
use crate::model::{Config, Model};
use crate::tokenizer::chat;

/// Weights of a response, each some 10 bytes of JSON.
const MOST_WEIGHTS: usize = 4 << 20;

/// Tokens that may come next.
const NEXT: usize = 10;

pub fn routes() -> Router<Shared> {
    Router::new().route("/api/attention", post(answer))
}

/// The tokens, the weights of each layer and head, and the most probable next tokens, a
/// [`View`](crate::model::attention::View), of `text`, which is read as it is, or of `messages`: where the last is
/// not the assistant's, with the opening of its answer. `layer` and `head`, counted from 0, for only one.
async fn answer(
    State(app): State<Shared>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body);
    let model = api::model(&mut fields, &app).await?;
    let what = What::take(&mut fields)?;
    let number = |n: Option<i64>| n.map(|n| n as usize);
    let which = Which {
        layer: number(fields.integer("layer", 0..=i64::from(u16::MAX))?),
        head: number(fields.integer("head", 0..=i64::from(u16::MAX))?),
    };
    fields.finish()?;
    let loaded = api::loaded(&app, &model).await?;
    which.validate(&loaded.model.transformer.config)?;
    let (model, param) = (loaded.model.clone(), what.param());
    let ids = blocking(move || what.ids(&model)).await.map_err(|e| about(param, e))?;
    let config = &loaded.model.transformer.config;
    validate(config, &ids).map_err(|e| about(param, e.into()))?;
    must_fit(config, which, ids.len(), param)?;
    let json = computing(move || {
        let view = attention(&loaded.model, &ids, which, NEXT, machine::threads())?;
        serde_json::to_vec(&view).map_err(|e| Error::bug(format!("the attention: {e}")))
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], json.await?).into_response())
}

/// The same, about a param of the body.
fn about(param: &str, error: ApiError) -> ApiError {
    match error.status.is_server_error() {
        true => error,
        false => ApiError::param(param, error.message),
    }
}

enum What {
    Text(String),
    Messages(Vec<Message>),
}

impl What {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        match fields.text("text")? {
            None => api::messages(fields).map(What::Messages),
            Some(text) => match fields.take("messages") {
                None => Ok(What::Text(text)),
                Some(_) => {
                    Err(ApiError::param("messages", "expected either `text` or `messages`, found both"))
                }
            },
        }
    }

    fn param(&self) -> &'static str {
        match self {
            What::Text(_) => "text",
            What::Messages(_) => "messages",
        }
    }

    fn ids(&self, model: &Model) -> Result<Vec<u32>> {
        match self {
            What::Text(text) => generate::ids_of(model, text),
            What::Messages(messages) => turns(model, messages),
        }
    }
}

fn turns(model: &Model, messages: &[Message]) -> Result<Vec<u32>> {
    match messages.last().map(|message| message.role) {
        Some(Role::Assistant) => Ok(chat::render(&model.tokenizer, messages)?.ids),
        _ => chat::prompt(&model.tokenizer, messages),
    }
}

/// Refuses more weights than a response has room for.
fn must_fit(config: &Config, which: Which, tokens: usize, param: &str) -> Result<(), ApiError> {
    let maps = which.maps(config);
    if maps * tokens * tokens <= MOST_WEIGHTS {
        return Ok(());
    }
    let [heads, tokens, most] = [maps, tokens, (MOST_WEIGHTS / maps).isqrt()].map(|n| units::count(n as u64));
    let message = format!(
        "the attention of {heads} heads to {tokens} tokens is too large for one response: write a text of at most \
         {most} tokens, or name a `layer` or a `head`"
    );
    Err(ApiError::param(param, message).code("too_many_weights"))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::super::tests::{Served, block_on};
    use super::*;
    use crate::model::gpt2;

    fn ask(body: Value) -> (StatusCode, Value) {
        block_on(Served::one().post("/api/attention", &body))
    }

    #[test]
    fn it_gives_tokens_weights_and_what_comes_next() {
        let (status, found) = ask(json!({"model": "m", "text": "the cat <b>"}));
        assert_eq!(status, StatusCode::OK, "{found}");
        let t = found["tokens"].as_array().unwrap().len();
        let texts: String =
            (1..t).map(|i| found["tokens"][i]["token"].as_str().unwrap().to_string()).collect();
        assert_eq!(texts, "the cat <b>", "behind <bos>");
        let (layers, next) = (found["layers"].as_array().unwrap(), found["next"].as_array().unwrap());
        assert_eq!([layers.len(), layers[0].as_array().unwrap().len(), next.len()], [2, 2, 10]);
        let last: Vec<f64> = serde_json::from_value(layers[1][1][t - 1].clone()).unwrap();
        assert!(last.len() == t && (last.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{last:?}");
        // The only model need not be named.
        let (_, one) = ask(json!({"text": "the cat <b>", "layer": 1, "head": 0}));
        assert_eq!(one["layers"], json!([[found["layers"][1][0]]]));
    }

    #[test]
    fn turns_of_a_chat_are_read_with_the_opening_of_the_answer() {
        let user = json!({"role": "user", "content": "hi"});
        let tokens = |messages: Value| {
            let (status, found) = ask(json!({"model": "m", "messages": messages}));
            assert_eq!(status, StatusCode::OK, "{found}");
            let tokens = found["tokens"].as_array().unwrap().iter();
            tokens.map(|t| t["token"].as_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        let asked = tokens(json!([user]));
        assert_eq!((asked[0].as_str(), asked.last().unwrap().as_str()), ("<bos>", "<assistant>"));
        let answered = tokens(json!([user, {"role": "assistant", "content": "yes"}]));
        assert_eq!(answered.last().unwrap(), "<eos>");
    }

    #[test]
    fn what_it_refuses_it_names() {
        let cases = [
            (json!({"model": "none", "text": "a"}), 404, "no model `none`", "model"),
            (json!({"model": "m"}), 400, "there is no `messages`", "messages"),
            (json!({"model": "m", "text": "a", "messages": []}), 400, "found both", "messages"),
            (json!({"model": "m", "messages": []}), 400, "at least one message", "messages"),
            (json!({"model": "m", "text": "a", "layer": 2}), 400, "0 to 1", "layer"),
            (json!({"model": "m", "text": "a", "head": -1}), 400, "a whole number", "head"),
            (json!({"model": "m", "text": "x ".repeat(99)}), 400, "tokens, the model holds", "text"),
            (json!({"model": "m", "text": "a", "temperature": 1}), 400, "unknown", "temperature"),
        ];
        for (body, status, message, param) in cases {
            let (found, error) = ask(body.clone());
            assert_eq!(found.as_u16(), status, "{body}: {error}");
            assert!(error["error"]["message"].as_str().unwrap().contains(message), "{body}: {error}");
            assert_eq!(error["error"]["param"], param, "{body}: {error}");
        }
    }

    #[test]
    fn too_many_weights_for_a_response_are_refused() {
        let config = gpt2(300, 512, 16, 16, 64);
        let all = Which::default();
        assert!(must_fit(&config, all, 128, "text").is_ok());
        let error = must_fit(&config, all, 129, "text").unwrap_err();
        assert!(error.message.contains("256 heads to 129 tokens") && error.message.contains("at most 128"));
        assert!(must_fit(&config, Which { layer: Some(1), head: Some(2) }, 512, "text").is_ok());
    }
}
