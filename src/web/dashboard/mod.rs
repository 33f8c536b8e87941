//! Runs, pipelines and artifacts of the project, as JSON.

use axum::Router;

use super::Shared;

pub fn routes() -> Router<Shared> {
    Router::new()
}
