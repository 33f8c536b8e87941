//! The router with a small untrained model, without a network.

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::*;
use crate::eval;
use crate::generate;
use crate::kernel::Dtype;
use crate::model::{Config, Model, Transformer, decoder_memory, gpt2};
use crate::tokenizer::Tokenizer;

const SEQ_LEN: usize = 64;

fn model(seed: u64) -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = Tokenizer::load(Path::new(path)).unwrap();
    let config = Config { d_ff: 32, dropout: 0.0, ..gpt2(tokenizer.vocab_size(), 16, 2, 2, SEQ_LEN) };
    Model { transformer: Transformer::fresh(&config, seed), tokenizer }
}

/// A server of models in a folder, by the names of their folders.
pub(super) struct Served {
    folder: tempfile::TempDir,
    app: Shared,
}

impl Served {
    fn new(names: &[&str], limits: Limits, access: Access) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut models = Vec::new();
        for (seed, name) in names.iter().enumerate() {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            model(seed as u64 + 1).save(&path).unwrap();
            models.push((name.to_string(), path.to_string_lossy().into_owned()));
        }
        let metrics = Arc::new(Metrics::default());
        let app = App {
            models: Registry::new(models, Dtype::F32, &limits, metrics.clone()),
            project: Project { root: folder.path().to_path_buf() },
            limits,
            access,
            metrics,
        };
        Served { folder, app: Arc::new(app) }
    }

    pub(super) fn one() -> Self {
        Self::new(&["m"], limits(), Access::default())
    }

    async fn send(&self, request: Request<Body>) -> Response {
        router(self.app.clone()).oneshot(request).await.unwrap()
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.send(post(path, body.to_string())).await;
        let status = response.status();
        let text = text(response).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {status}: {text}")))
    }

    /// What must succeed.
    async fn ask(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.post(path, &body).await;
        assert_eq!(status, StatusCode::OK, "{path} {body}: {value}");
        value
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.send(request(Method::GET, path).body(Body::empty()).unwrap()).await;
        let status = response.status();
        (status, serde_json::from_str(&text(response).await).unwrap())
    }

    /// The events of a stream, `[DONE]` left out.
    async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let response = self.send(post(path, body.to_string())).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        let text = text(response).await;
        let events: Vec<&str> = text.split("\n\n").filter(|e| !e.is_empty()).collect();
        let (last, events) = events.split_last().unwrap();
        assert_eq!(*last, "data: [DONE]");
        events.iter().map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

fn limits() -> Limits {
    Limits { max_tokens: 40, ..Limits::default() }
}

fn request(method: Method, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header(header::HOST, "localhost:8080")
}

fn post(path: &str, body: String) -> Request<Body> {
    let request = request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
    request.body(Body::from(body)).unwrap()
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn said() -> Value {
    json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "The cat"}])
}

#[test]
fn a_completion_is_what_generate_says_whole_and_in_events() {
    block_on(async {
        let (served, model) = (Served::one(), model(1));
        let options = generate::Options {
            max_new_tokens: 12,
            seed: 7,
            temperature: 1.5,
            top_k: 0,
            top_p: 1.0,
            ..generate::Options::default()
        };
        let ids = generate::prompt_ids(&model, "The cat").unwrap();
        let mut expected = Vec::new();
        generate::continue_each(&model, &[ids], 2, &options, 2, &crate::base::Quiet, &mut |_, _, one| {
            expected.push(one.text);
            Ok(())
        })
        .unwrap();
        let mut body = json!({
            "model": "m", "prompt": "The cat", "max_tokens": 12, "seed": 7, "temperature": 1.5, "top_k": 0,
            "top_p": 1, "n": 2, "user": "somebody", "stop": null,
        });
        let whole = served.ask("/v1/completions", body.clone()).await;
        let texts: Vec<&str> =
            whole["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(texts, expected);
        assert_ne!(texts[0], texts[1]);
        assert_eq!(whole["object"], "text_completion");
        let usage = &whole["usage"];
        assert_eq!(
            usage["total_tokens"].as_u64(),
            Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
        );
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut streamed = [String::new(), String::new()];
        let mut finished = 0;
        let events = served.stream("/v1/completions", body).await;
        let (last, events) = events.split_last().unwrap();
        assert_eq!(
            (&last["choices"], &last["usage"]["completion_tokens"]),
            (&json!([]), &usage["completion_tokens"])
        );
        // What was read for the first request is not computed again.
        assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "{last}");
        for event in events {
            assert!(event["usage"].is_null() && event["id"] == events[0]["id"]);
            let choice = &event["choices"][0];
            streamed[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
            finished += usize::from(choice["finish_reason"].is_string());
        }
        assert_eq!((streamed.to_vec(), finished), (expected, 2));
    });
}

#[test]
fn a_chat_answers_with_tokens_and_stops() {
    block_on(async {
        let (served, model) = (Served::one(), model(1));
        // Only these letters may be chosen.
        let letters = ["a", "b", "c"].map(|letter| model.tokenizer.encode(letter).unwrap()[0].to_string());
        let forced = |ids: &[String]| -> Value {
            Value::Object(ids.iter().map(|id| (id.clone(), json!(100))).collect())
        };
        let body = json!({
            "model": "m", "messages": said(), "temperature": 0, "max_completion_tokens": 9, "logprobs": true,
            "top_logprobs": 3, "logit_bias": forced(&letters),
        });
        let whole = served.ask("/v1/chat/completions", body.clone()).await;
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["message"]["role"], &choice["finish_reason"]),
            (&json!("assistant"), &json!("length"))
        );
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(tokens.len(), 9);
        for token in tokens {
            let top: Vec<f64> = token["top_logprobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["logprob"].as_f64().unwrap())
                .collect();
            assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b), "{token}");
            assert!(token["logprob"].as_f64().unwrap() <= top[0], "{token}");
        }
        let content = choice["message"]["content"].as_str().unwrap();
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let events = served.stream("/v1/chat/completions", streamed).await;
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(events[0]["object"], "chat.completion.chunk");
        let text: String =
            events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, content);
        // Parts of a content are one text.
        let mut parts = body.clone();
        parts["messages"][1]["content"] =
            json!([{"type": "text", "text": "The"}, {"type": "text", "text": " cat"}]);
        assert_eq!(served.ask("/v1/chat/completions", parts).await["choices"], whole["choices"]);
        let at = content.char_indices().nth(4).unwrap().0;
        let end = content.char_indices().nth(6).unwrap().0;
        let mut stopped = body.clone();
        stopped["stop"] = json!([content[at..end]]);
        let stopped = served.ask("/v1/chat/completions", stopped).await;
        let first = content.find(&content[at..end]).unwrap();
        assert_eq!(stopped["choices"][0]["message"]["content"], content[..first]);
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        let first = tokens[0]["token"].as_str().unwrap();
        let others: Vec<String> = letters
            .iter()
            .zip(["a", "b", "c"])
            .filter(|(_, l)| *l != first)
            .map(|(id, _)| id.clone())
            .collect();
        let mut banned = body;
        banned["logit_bias"] = forced(&others);
        assert_ne!(served.ask("/v1/chat/completions", banned).await["choices"], whole["choices"]);
    });
}

#[test]
fn an_echo_has_the_log_probabilities_of_the_prompt() {
    block_on(async {
        let (served, model) = (Served::one(), model(1));
        // Longer than the model's context, with characters of several tokens.
        let text = "The cat sat on the mät. 日本 ".repeat(8);
        let ids = generate::prompt_ids(&model, &text).unwrap();
        assert!(ids.len() > SEQ_LEN);
        let expected = eval::score_ids(&model, &ids, 1, 2);
        let body = json!({"model": "m", "prompt": ids, "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0});
        let answer = served.ask("/v1/completions", body.clone()).await;
        let choice = &answer["choices"][0];
        let logprobs = &choice["logprobs"];
        let list = |name: &str| logprobs[name].as_array().unwrap().clone();
        let (tokens, found, tops) = (list("tokens"), list("token_logprobs"), list("top_logprobs"));
        // The new token, even where it is one that ends texts.
        assert_eq!([tokens.len(), found.len(), tops.len(), list("text_offset").len()], [ids.len() + 1; 4]);
        assert!(found[0].is_null() && tops[0].is_null());
        for (i, score) in expected.iter().enumerate() {
            assert_eq!(found[i + 1].as_f64(), Some(score.logprob), "{i}");
            let most =
                tops[i + 1].as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            assert_eq!(most == score.logprob, score.rank == 0, "{i}");
        }
        let said = choice["text"].as_str().unwrap();
        assert!(said.starts_with(&text), "{said}");
        for (token, offset) in tokens.iter().zip(list("text_offset")).skip(1) {
            let rest: String = said.chars().skip(offset.as_u64().unwrap() as usize).collect();
            let token = token.as_str().unwrap();
            // Parts of a character are named as the vocabulary has them.
            assert!(rest.starts_with(token) || !text.contains(token), "{token} at {offset}");
        }
        let mut scored = body.clone();
        (scored["max_tokens"], scored["prompt"]) = (json!(0), json!(["The cat", text]));
        let answer = served.ask("/v1/completions", scored).await;
        assert_eq!(answer["choices"][1]["text"], text);
        assert_eq!(answer["choices"][1]["logprobs"]["token_logprobs"], json!(found[..ids.len()]));
        assert_eq!(answer["usage"]["completion_tokens"], 0);
        let mut streamed = body;
        streamed["stream"] = json!(true);
        let events = served.stream("/v1/completions", streamed).await;
        let together: Vec<Value> = events
            .iter()
            .flat_map(|e| e["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone())
            .collect();
        assert_eq!(together, found);
    });
}

#[test]
fn text_and_tokens_as_llama_server_has_them() {
    block_on(async {
        let (served, model) = (Served::one(), model(1));
        let ids = model.tokenizer.encode("The cät").unwrap();
        let answer = served.ask("/tokenize", json!({"content": "The cät"})).await;
        assert_eq!(answer, json!({"tokens": ids}));
        assert_eq!(served.ask("/detokenize", answer).await, json!({"content": "The cät"}));
        let special = served
            .ask("/tokenize", json!({"content": "The cät", "add_special": true, "with_pieces": true}))
            .await;
        assert_eq!(special["tokens"][0]["piece"], "<bos>");
        let prompt = served.ask("/apply-template", json!({"messages": said()})).await;
        assert_eq!(prompt["prompt"], "<bos><system>Be kind.<user>The cat<assistant>");
        let generated = served.ask("/generate", json!({"prompt": "The cat"})).await;
        assert!(generated["response"].as_str().unwrap().starts_with("The cat"), "{generated}");
        assert!(served.ask("/generate", json!({})).await["response"].is_string());
    });
}

#[test]
fn what_is_wrong_has_its_status_and_names_the_param() {
    let chat = |more: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/chat/completions", body)
    };
    let text = |more: Value| {
        let mut body = json!({"model": "m", "prompt": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/completions", body)
    };
    let cases = [
        (chat(json!({"model": "other"})), 404, "model"),
        (chat(json!({"model": 3})), 400, "model"),
        (chat(json!({"messages": []})), 400, "messages"),
        (chat(json!({"messages": [{"role": "tool", "content": "x"}]})), 400, "messages[0].role"),
        (chat(json!({"messages": [{"role": "user"}]})), 400, "messages[0].content"),
        (
            chat(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            400,
            "messages[0].content[0].type",
        ),
        (
            chat(json!({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]})),
            400,
            "messages[0].tool_calls",
        ),
        (chat(json!({"tools": [{}]})), 400, "tools"),
        (chat(json!({"response_format": {"type": "json_object"}})), 400, "response_format"),
        (chat(json!({"temperature": 2.1})), 400, "temperature"),
        (chat(json!({"top_p": 0})), 400, "top_p"),
        (chat(json!({"top_logprobs": 3})), 400, "top_logprobs"),
        (chat(json!({"max_tokens": 0})), 400, "max_tokens"),
        (chat(json!({"max_completion_tokens": 41})), 400, "max_completion_tokens"),
        (chat(json!({"n": 17})), 400, "n"),
        (chat(json!({"seed": 1.5})), 400, "seed"),
        (chat(json!({"stop": ["a", ""]})), 400, "stop"),
        (chat(json!({"stop": vec!["a"; 17]})), 400, "stop"),
        (chat(json!({"logit_bias": {"x": 1}})), 400, "logit_bias"),
        (chat(json!({"logit_bias": {"99999": 1}})), 400, "logit_bias"),
        (chat(json!({"logit_bias": {"1": 101}})), 400, "logit_bias.1"),
        (chat(json!({"stream_options": {}})), 400, "stream_options"),
        (chat(json!({"stream": true, "stream_options": {"x": 1}})), 400, "stream_options.x"),
        (chat(json!({"best_of": 1})), 400, "best_of"),
        (text(json!({"prompt": null})), 400, "prompt"),
        (text(json!({"prompt": []})), 400, "prompt"),
        (text(json!({"prompt": ["a", 1]})), 400, "prompt[1]"),
        (text(json!({"prompt": [1, "a"]})), 400, "prompt[1]"),
        (text(json!({"prompt": [[1], []]})), 400, "prompt[1]"),
        (text(json!({"prompt": [1, 99999]})), 400, "prompt[0]"),
        (text(json!({"logprobs": 21})), 400, "logprobs"),
        (text(json!({"suffix": "x"})), 400, "suffix"),
        (text(json!({"best_of": 2})), 400, "best_of"),
        (("/tokenize", json!({"content": 1})), 400, "content"),
        (("/detokenize", json!({"tokens": [1, -1]})), 400, "tokens[1]"),
        (("/apply-template", json!({"messages": "x"})), 400, "messages"),
        (("/generate", json!({"prompt": "x", "max": 1})), 400, "max"),
    ];
    block_on(async {
        let served = Served::one();
        for ((path, body), status, param) in cases {
            let (found, error) = served.post(path, &body).await;
            assert_eq!(
                (found.as_u16(), error["error"]["param"].as_str()),
                (status, Some(param)),
                "{body}: {error}"
            );
            let error = &error["error"];
            assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    });
}

#[test]
fn requests_that_are_none_have_their_status_in_the_same_shape() {
    block_on(async {
        let served = Served::one();
        let with = |method: Method, path: &str, ty: Option<&str>, body: &str| {
            let mut request = request(method, path);
            if let Some(ty) = ty {
                request = request.header(header::CONTENT_TYPE, ty);
            }
            request.body(Body::from(body.to_string())).unwrap()
        };
        let (json, chat) = (Some("application/json"), "/v1/chat/completions");
        let large = format!("\"{}\"", "x".repeat(1 << 20));
        let cases = [
            (with(Method::GET, "/nothing", None, ""), 404, "there is no `GET /nothing`"),
            (with(Method::GET, "/static/nothing.js", None, ""), 404, "there is no file `nothing.js`"),
            (with(Method::GET, "/v1/models/nothing", None, ""), 404, "there is no model `nothing`"),
            (with(Method::GET, chat, None, ""), 405, "is not asked by GET"),
            (with(Method::DELETE, "/", None, ""), 405, "is not asked by DELETE"),
            (with(Method::POST, chat, None, "{}"), 415, "no Content-Type"),
            (with(Method::POST, chat, Some("text/plain"), "{}"), 415, "`text/plain`"),
            (with(Method::POST, chat, json, "{\n  \"model\" 1}"), 400, "line 2 column 11"),
            (with(Method::POST, chat, json, "[]"), 400, "expected a map"),
            (with(Method::POST, chat, json, ""), 400, "is not JSON"),
            (
                with(Method::POST, chat, json, &format!("{{\"a\": {}", "[".repeat(100_000))),
                400,
                "recursion limit",
            ),
            (with(Method::POST, chat, json, "{\"model\": \"\u{0}\"}"), 400, "control character"),
            (with(Method::POST, chat, json, &large), 413, "larger than 1.0 MiB"),
            (with(Method::GET, &format!("/{}", "x".repeat(20_000)), None, ""), 431, "larger than 16.0 KiB"),
        ];
        for (request, status, message) in cases {
            let what = format!("{} {}", request.method(), request.uri());
            let response = served.send(request).await;
            assert_eq!(response.status().as_u16(), status, "{what}");
            assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
            let error: Value = serde_json::from_str(&text(response).await).unwrap();
            assert!(error["error"]["message"].as_str().unwrap().contains(message), "{what}: {error}");
        }
        let empty = Served::new(&[], limits(), Access::default());
        for path in ["/generate", "/tokenize", chat] {
            let (status, error) = empty.post(path, &json!({"content": "x"})).await;
            assert!(status == StatusCode::NOT_FOUND || path == "/generate", "{path}: {error}");
        }
        assert_eq!(empty.get("/v1/models").await.1, json!({"object": "list", "data": []}));
    });
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    block_on(async {
        let limits = Limits { body_time: std::time::Duration::from_millis(20), ..limits() };
        let served = Served::new(&["m"], limits, Access::default());
        let never = Body::from_stream(tokio_stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
        let request = request(Method::POST, "/generate").header(header::CONTENT_TYPE, "application/json");
        let response = served.send(request.body(never).unwrap()).await;
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    });
}

#[test]
fn only_who_may_ask_is_answered() {
    block_on(async {
        let access = Access { loopback: true, token: Some(Token::new("secret-12")) };
        let served = Served::new(&["m"], limits(), access);
        let status = async |path: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            served.send(request.body(Body::empty()).unwrap()).await.status().as_u16()
        };
        let (host, good) = (("host", "127.0.0.1:8080"), ("authorization", "Bearer secret-12"));
        assert_eq!(status("/v1/models", &[host, good]).await, 200);
        assert_eq!(status("/v1/models", &[host, ("authorization", "bearer secret-12")]).await, 200);
        for wrong in ["Bearer secret-1", "Bearer secret-123", "secret-12", "Basic secret-12", "Bearer "] {
            assert_eq!(status("/v1/models", &[host, ("authorization", wrong)]).await, 401, "{wrong}");
        }
        for closed in ["/v1/models", "/v1/nothing", "/metrics", "/api/runs", "/v1/models/m"] {
            assert_eq!(status(closed, &[host]).await, 401, "{closed}");
        }
        for open in ["/", "/health", "/attention", "/runs", "/runs/x", "/artifacts/x", "/compare"] {
            assert_eq!(status(open, &[host]).await, 200, "{open}");
        }
        assert_eq!(status("/health", &[("host", "evil.example")]).await, 421);
        assert_eq!(status("/health", &[]).await, 400);
        assert_eq!(status("/health", &[host, ("origin", "http://127.0.0.1:8080")]).await, 200);
        for origin in ["http://evil.example", "null", "http://127.0.0.1:8081"] {
            assert_eq!(status("/health", &[host, ("origin", origin)]).await, 403, "{origin}");
        }
        let refused = served.send(request(Method::GET, "/metrics").body(Body::empty()).unwrap()).await;
        assert_eq!(refused.headers()[header::WWW_AUTHENTICATE], "Bearer");
    });
}

#[test]
fn a_panic_is_told_as_an_error() {
    async fn boom() -> Response {
        panic!("on purpose")
    }
    block_on(async {
        let router = Router::new().route("/", get(boom)).layer(middleware::from_fn(error::catch_panics));
        let response = router.oneshot(request(Method::GET, "/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(text(response).await.contains("\"server_error\""));
        assert_eq!(
            blocking(|| -> Result<()> { panic!("on purpose") }).await.unwrap_err().status.as_u16(),
            500
        );
    });
}

#[test]
fn a_page_is_sent_once_and_lets_nothing_else_in() {
    block_on(async {
        let served = Served::one();
        let get = |tag: Option<&str>| {
            let request = request(Method::GET, "/");
            let request =
                tag.map_or(request, |tag| self::request(Method::GET, "/").header(header::IF_NONE_MATCH, tag));
            request.body(Body::empty()).unwrap()
        };
        let response = served.send(get(None)).await;
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let tag = response.headers()[header::ETAG].to_str().unwrap().to_string();
        assert!(text(response).await.starts_with("<!doctype html>"));
        assert_eq!(served.send(get(Some(&tag))).await.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(served.send(get(Some("\"other\""))).await.status(), StatusCode::OK);
    });
}

#[test]
fn models_take_turns_in_memory_and_are_loaded_anew_when_they_changed() {
    block_on(async {
        // Room for two of the three.
        let config = model(1).transformer.config;
        let each = Transformer::memory(&config, Dtype::F32) + decoder_memory(&config, Dtype::F32);
        let mut limits = Limits { memory: each * 5 / 2, ..limits() };
        limits.scheduler.prefix_bytes = 0;
        let served = Served::new(&["a", "b", "c"], limits, Access::default());
        let ask = async |model: &str| {
            // Texts of untrained models may be alike, their log-probabilities are not.
            let body = json!({"model": model, "prompt": "The cat", "temperature": 0, "max_tokens": 8, "logprobs": 0});
            served.ask("/v1/completions", body).await
        };
        let loaded = async || -> Vec<String> {
            let all = served.get("/v1/models").await.1["data"].as_array().unwrap().clone();
            let loaded = all.iter().filter(|m| m["tinylm"]["loaded"] == true);
            loaded.map(|m| m["id"].as_str().unwrap().to_string()).collect()
        };
        assert!(loaded().await.is_empty());
        let (a, b) = (ask("a").await, ask("b").await);
        assert_ne!(a["choices"], b["choices"]);
        ask("a").await;
        assert_eq!(loaded().await, ["a", "b"]);
        ask("c").await;
        // `b` was not asked for longest.
        assert_eq!(loaded().await, ["a", "c"]);
        // One that is in use stays.
        let used = [served.app.models.get("a").await.unwrap(), served.app.models.get("c").await.unwrap()];
        let (status, error) = served.post("/v1/completions", &json!({"model": "b", "prompt": "x"})).await;
        assert_eq!(
            (status.as_u16(), error["error"]["code"].as_str()),
            (503, Some("out_of_memory")),
            "{error}"
        );
        drop(used);
        ask("b").await;
        let info = served.get("/v1/models/b").await.1;
        assert_eq!(info["tinylm"]["parameters"], model(1).transformer.config.parameters());
        assert_eq!((&info["tinylm"]["seq_len"], &info["tinylm"]["chat"]), (&json!(SEQ_LEN), &json!(true)));
        assert_eq!(info["tinylm"]["bytes"], each);

        // Another model in its place is the one that answers; one that does not read leaves the earlier.
        let path = served.folder.path().join("a");
        model(9).save(&path).unwrap();
        let changed = ask("a").await;
        assert_ne!(changed["choices"], a["choices"]);
        assert_ne!(changed["system_fingerprint"], a["system_fingerprint"]);
        std::fs::write(path.join("model.safetensors"), "nonsense").unwrap();
        assert_eq!(ask("a").await["choices"], changed["choices"]);
        let info = served.get("/v1/models/a").await.1;
        assert!(info["tinylm"]["error"].as_str().unwrap().contains("model.safetensors"), "{info}");
        model(1).save(&path).unwrap();
        assert_eq!(ask("a").await["choices"], a["choices"]);
        assert!(served.get("/v1/models/a").await.1["tinylm"]["error"].is_null());
    });
}

#[test]
fn a_model_that_does_not_read_or_fit_is_an_error_that_says_so() {
    block_on(async {
        let ask = async |served: &Served| {
            served.post("/v1/completions", &json!({"model": "m", "prompt": "x"})).await
        };
        let small = Served::new(&["m"], Limits { memory: 1000, ..limits() }, Access::default());
        let (status, error) = ask(&small).await;
        assert_eq!((status.as_u16(), error["error"]["code"].as_str()), (503, Some("out_of_memory")));
        let broken = Served::one();
        std::fs::remove_file(broken.folder.path().join("m/model.safetensors")).unwrap();
        let (status, error) = ask(&broken).await;
        assert_eq!((status.as_u16(), error["error"]["param"].as_str()), (500, Some("model")), "{error}");
        assert_eq!(error["error"]["code"], "model_unreadable");
    });
}

#[test]
fn a_client_that_goes_frees_its_place_and_too_many_are_refused() {
    block_on(async {
        let mut limits = Limits { waiting: 2, max_tokens: 100_000, ..limits() };
        limits.scheduler.width = 1;
        let served = Served::new(&["m"], limits, Access::default());
        let loaded = served.app.models.get("m").await.unwrap();
        let id = loaded.model.tokenizer.encode("a").unwrap()[0];
        // It would go on for long: nothing else may be chosen.
        let body = json!({
            "model": "m", "prompt": "a", "max_tokens": 100_000, "stream": true, "logit_bias": {id.to_string(): 100},
        });
        let open = async || served.send(post("/v1/completions", body.to_string())).await;
        let first = open().await;
        assert_eq!(first.status(), StatusCode::OK);
        let waiting: Vec<_> = (0..2).map(|_| Box::pin(open())).collect();
        let mut waiting = waiting.into_iter();
        let (mut second, mut third) = (waiting.next().unwrap(), waiting.next().unwrap());
        for (i, one) in [&mut second, &mut third].into_iter().enumerate() {
            // It is submitted while it is waited for.
            while loaded.engine.waiting() <= i {
                let _ = tokio::time::timeout(std::time::Duration::from_millis(10), &mut *one).await;
            }
        }
        let refused = open().await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
        drop((first, second));
        // The third takes the place.
        let third = tokio::time::timeout(std::time::Duration::from_secs(20), third).await.unwrap();
        assert_eq!(third.status(), StatusCode::OK);
        drop(third);
        for _ in 0..200 {
            if loaded.engine.running() + loaded.engine.waiting() == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("{} run, {} wait", loaded.engine.running(), loaded.engine.waiting());
    });
}

#[test]
fn an_answer_that_takes_too_long_ends_with_an_error() {
    block_on(async {
        let limits = Limits { generation_time: std::time::Duration::ZERO, ..limits() };
        let served = Served::new(&["m"], limits, Access::default());
        let (status, error) = served.post("/v1/completions", &json!({"model": "m", "prompt": "x"})).await;
        assert_eq!((status.as_u16(), error["error"]["code"].as_str()), (503, Some("timeout")));
    });
}

#[test]
fn metrics_count_what_was_asked() {
    block_on(async {
        let served = Served::one();
        served
            .ask(
                "/v1/completions",
                json!({"model": "m", "prompt": "The cat", "max_tokens": 3, "temperature": 0}),
            )
            .await;
        served.get("/v1/models/\"x\"{}\n".trim()).await;
        let response = served.send(request(Method::GET, "/metrics").body(Body::empty()).unwrap()).await;
        let text = text(response).await;
        for line in [
            "tinylm_requests_total{path=\"/v1/completions\",status=\"200\"} 1",
            "tinylm_generated_tokens_total 3",
            "tinylm_sequences_running{model=\"m\"} 0",
            "tinylm_requests_waiting{model=\"m\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        // Each line is a comment or a name, perhaps labels, and a number.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("tinylm_") && value.parse::<f64>().is_ok(), "{line}");
        }
    });
}

/// Any JSON, of little depth.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3i64..40).prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        (-2.0..2.5f64).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["user", "system", "assistant", "text", "m", "none"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof!["[a-z_]{0,10}", "[0-9]{1,4}", Just("role".into()), Just("content".into())];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Paths with a good body each and the names of fields that may be added.
fn endpoints() -> Vec<(&'static str, Value, Vec<&'static str>)> {
    let decoding = [
        "stream",
        "stream_options",
        "stop",
        "seed",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repeat_penalty",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        "user",
        "model",
    ];
    let with = |more: &[&'static str]| [&decoding, more].concat();
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2});
    vec![
        (
            "/v1/chat/completions",
            chat.clone(),
            with(&["messages", "top_logprobs", "tools", "response_format", "max_completion_tokens"]),
        ),
        (
            "/v1/completions",
            json!({"prompt": "The cat", "max_tokens": 2}),
            with(&["prompt", "echo", "suffix", "best_of"]),
        ),
        (
            "/tokenize",
            json!({"content": "The c\u{e4}t"}),
            vec!["content", "add_special", "with_pieces", "model"],
        ),
        ("/detokenize", json!({"tokens": [1, 20]}), vec!["tokens", "model"]),
        ("/apply-template", json!({"messages": chat["messages"]}), vec!["messages", "model"]),
        ("/generate", json!({"prompt": "The"}), vec!["prompt", "model"]),
        ("/api/attention", json!({"model": "m", "text": "The"}), vec!["model", "text", "messages"]),
    ]
}

/// A path and a body with fields of right and of wrong types.
fn any_request() -> impl Strategy<Value = (&'static str, Value)> {
    let likely = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(2),
        json!(0.5),
        json!(1e-300),
        json!(100),
        json!("The cat"),
        json!(["a", "b"]),
        json!([1, 2]),
        json!([[1], [2, 3]]),
        json!({"5": -100}),
        json!({"5": 100}),
        json!([{"role": "assistant", "content": "x"}]),
        json!([{"role": "system", "content": ""}]),
        json!([]),
    ]);
    let value = prop_oneof![3 => likely, 1 => any_json()];
    prop::sample::select(endpoints()).prop_flat_map(move |(path, body, names)| {
        let more = prop::collection::vec((prop::sample::select(names), value.clone()), 0..4);
        more.prop_map(move |fields| {
            let mut body = body.clone();
            fields.into_iter().for_each(|(name, value)| body[name] = value);
            (path, body)
        })
    })
}

#[test]
fn no_body_is_a_server_error() {
    let served = Served::new(&["m"], Limits { max_tokens: 4, ..limits() }, Access::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let paths: Vec<&'static str> = endpoints().into_iter().map(|(path, ..)| path).collect();
    let path = prop::sample::select(paths);
    let requests = prop_oneof![
        4 => any_request().prop_map(|(path, body)| (path, body.to_string().into_bytes())),
        1 => (path.clone(), any_json()).prop_map(|(path, body)| (path, body.to_string().into_bytes())),
        1 => (path, prop::collection::vec(any::<u8>(), 0..40)),
    ];
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let mut answered = 0;
    let counted = std::cell::RefCell::new(&mut answered);
    proptest!(config, |((path, body) in requests)| {
        let request = request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.clone())).unwrap();
        let (status, text) = runtime.block_on(async {
            let response = served.send(request).await;
            (response.status(), text(response).await)
        });
        prop_assert!(!status.is_server_error(), "{path} {}: {text}", String::from_utf8_lossy(&body));
        prop_assert!(!text.contains("server_error"), "{path} {}: {text}", String::from_utf8_lossy(&body));
        **counted.borrow_mut() += usize::from(status.is_success());
    });
    // Some of them are good.
    assert!(answered > 40, "{answered}");
}
