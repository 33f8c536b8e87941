//! OpenAI's API, and what clients of llama-server ask for.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};

use super::{Shared, registry::Listed};

pub fn routes() -> Router<Shared> {
    Router::new().route("/health", get(health)).route("/v1/models", get(models))
}

async fn health() -> Response {
    super::json(&json!({"status": "ok"}))
}

async fn models(State(app): State<Shared>) -> Response {
    let one = |listed: &Listed| json!({"id": listed.id, "object": "model", "owned_by": "tinylm", "tinylm": {"loaded": listed.loaded}});
    let all: Vec<Value> = app.models.list().iter().map(one).collect();
    super::json(&json!({"object": "list", "data": all}))
}
