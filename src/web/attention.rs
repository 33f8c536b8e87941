//! Which tokens of a text attend to which, as JSON: `POST /api/attention`, which the attention view asks.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{ApiError, Body, Shared, blocking};
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

/// What is computed at the same time: memory for no more than this.
static RUNNING: Semaphore = Semaphore::const_new(1);

pub fn routes() -> Router<Shared> {
    Router::new().route("/api/attention", post(answer))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    model: String,
    /// Read as it is, or
    text: Option<String>,
    /// turns of a chat: where the last is not the assistant's, with the opening of its answer.
    messages: Option<Vec<Message>>,
    /// Only this layer, and
    layer: Option<usize>,
    /// this head of each layer, counted from 0.
    head: Option<usize>,
}

/// The tokens, the weights of each layer and head, and the most probable next tokens: a
/// [`View`](crate::model::attention::View).
async fn answer(State(app): State<Shared>, Body(asked): Body<Asked>) -> Result<Response, ApiError> {
    let what = match (asked.text, asked.messages) {
        (Some(text), None) => What::Text(text),
        (None, Some(messages)) => What::Messages(messages),
        _ => return Err(ApiError::param("text", "expected either `text` or `messages`")),
    };
    let loaded = app.models.get(&asked.model).await?;
    let which = Which { layer: asked.layer, head: asked.head };
    which.validate(&loaded.model.transformer.config)?;
    let (model, param) = (loaded.model.clone(), what.param());
    let ids = blocking(move || what.ids(&model)).await.map_err(|e| about(param, e))?;
    let config = &loaded.model.transformer.config;
    validate(config, &ids).map_err(|e| about(param, e.into()))?;
    must_fit(config, which, ids.len(), param)?;
    let running = RUNNING.acquire().await.map_err(|_| Error::bug("a semaphore was closed"))?;
    let json = blocking(move || {
        // Until this is done, though nobody may wait for it any more.
        let _running = running;
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
    use std::path::Path;
    use std::sync::Arc;

    use axum::body::Body as Bytes;
    use axum::http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::super::{App, Limits, Metrics, Project, Registry, router};
    use super::*;
    use crate::model::{Transformer, gpt2};
    use crate::tokenizer::Tokenizer;

    /// Asks a server of two models, one of them large.
    fn ask(body: Value) -> (StatusCode, Value) {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/byte_bpe.json");
        let tokenizer = Tokenizer::load(&fixture).unwrap();
        let v = tokenizer.vocab_size();
        let configs = [("small", gpt2(v, 8, 2, 2, 32)), ("large", gpt2(v, 64, 64, 32, 64))];
        let models = configs.map(|(name, config)| {
            let (path, tokenizer) = (folder.path().join(name), tokenizer.clone());
            std::fs::create_dir(&path).unwrap();
            Model { transformer: Transformer::fresh(&config, 1), tokenizer }.save(&path).unwrap();
            (name.to_string(), path.display().to_string())
        });
        let app = App {
            models: Registry::new(models),
            project: Project { root: folder.path().to_path_buf() },
            limits: Limits::default(),
            access: Default::default(),
            metrics: Metrics::default(),
        };
        let request = Request::post("/api/attention").header("Host", "localhost");
        let request = request.header("Content-Type", "application/json");
        let request = request.body(Bytes::from(body.to_string())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = router(Arc::new(app)).oneshot(request).await.unwrap();
            let status = response.status();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice(&bytes).unwrap())
        })
    }

    #[test]
    fn it_gives_tokens_weights_and_what_comes_next() {
        let (status, found) = ask(json!({"model": "small", "text": "the cat <b>"}));
        assert_eq!(status, StatusCode::OK, "{found}");
        let t = found["tokens"].as_array().unwrap().len();
        let texts: String =
            (1..t).map(|i| found["tokens"][i]["token"].as_str().unwrap().to_string()).collect();
        assert_eq!(texts, "the cat <b>", "behind <bos>");
        let (layers, next) = (found["layers"].as_array().unwrap(), found["next"].as_array().unwrap());
        assert_eq!([layers.len(), layers[0].as_array().unwrap().len(), next.len()], [2, 2, 10]);
        let last: Vec<f64> = serde_json::from_value(layers[1][1][t - 1].clone()).unwrap();
        assert!(last.len() == t && (last.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{last:?}");
        let (_, one) = ask(json!({"model": "small", "text": "the cat <b>", "layer": 1, "head": 0}));
        assert_eq!(one["layers"], json!([[found["layers"][1][0]]]));
    }

    #[test]
    fn turns_of_a_chat_are_read_with_the_opening_of_the_answer() {
        let user = json!({"role": "user", "content": "hi"});
        let tokens = |messages: Value| {
            let (status, found) = ask(json!({"model": "small", "messages": messages}));
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
            (json!({"text": "a"}), 400, "model", Value::Null),
            (json!({"model": "none", "text": "a"}), 404, "no model `none`", Value::Null),
            (json!({"model": "small"}), 400, "either `text` or `messages`", json!("text")),
            (json!({"model": "small", "text": "a", "messages": []}), 400, "either", json!("text")),
            (json!({"model": "small", "messages": []}), 400, "without messages", json!("messages")),
            (json!({"model": "small", "text": "a", "layer": 2}), 400, "0 to 1", json!("layer")),
            (json!({"model": "small", "text": "x ".repeat(99)}), 400, "the model holds 32", json!("text")),
            (json!({"model": "large", "text": "ab ".repeat(20)}), 400, "too large for one", json!("text")),
            (json!({"model": "small", "text": "a", "temperature": 1}), 400, "temperature", Value::Null),
        ];
        for (body, status, message, param) in cases {
            let (found, error) = ask(body.clone());
            assert_eq!(found.as_u16(), status, "{body}: {error}");
            assert!(error["error"]["message"].as_str().unwrap().contains(message), "{body}: {error}");
            assert_eq!(error["error"]["param"], param, "{body}: {error}");
        }
    }
}
