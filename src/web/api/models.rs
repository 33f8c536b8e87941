//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use crate::web::registry::Listed;
use crate::web::{ApiError, Shared};

pub async fn all(State(app): State<Shared>) -> Response {
    let all: Vec<Value> = app.models.list().await.iter().map(to_json).collect();
    crate::web::json(&json!({"object": "list", "data": all}))
}

pub async fn one(State(app): State<Shared>, Path(id): Path<String>) -> Result<Response, ApiError> {
    Ok(crate::web::json(&to_json(&app.models.find(&id).await?)))
}

/// A model as OpenAI's API has it, and what we know beyond that.
fn to_json(listed: &Listed) -> Value {
    json!({
        "id": listed.id, "object": "model", "created": listed.description.created, "owned_by": "tinylm",
        "tinylm": listed,
    })
}
