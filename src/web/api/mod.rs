//! OpenAI's API, and what clients of llama-server and of predecessor 000's server ask for.

mod chat;
mod completions;
mod models;
mod options;
mod reply;
mod text;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;

use super::fields::Fields;
use super::{ApiError, Loaded, Shared};

pub use chat::{messages, prompt};

pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/models", get(models::all))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::complete))
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/apply-template", post(text::apply_template))
        .route("/generate", post(text::generate))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
}

async fn health() -> Response {
    super::json(&json!({"status": "ok"}))
}

async fn metrics(State(app): State<Shared>) -> Response {
    let text = app.metrics.render(&app.models);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// The id of the model that a request names, or of the only one.
///
/// # Errors
/// When it names none and there are several.
pub async fn model(fields: &mut Fields, app: &Shared) -> Result<String, ApiError> {
    if let Some(named) = fields.text("model")? {
        return Ok(named);
    }
    app.models.refresh().await;
    match app.models.ids().as_slice() {
        [] => Err(app.models.none()),
        [only] => Ok(only.clone()),
        _ => Err(fields.missing("model", "the id of a model; `GET /v1/models` lists them")),
    }
}

/// The model `id`, in memory.
///
/// # Errors
/// As [`super::Registry::get`]; the param `model` is named.
pub async fn loaded(app: &Shared, id: &str) -> Result<Arc<Loaded>, ApiError> {
    let named = |e: ApiError| ApiError { param: Some("model".to_string()), ..e };
    app.models.get(id).await.map_err(named)
}
