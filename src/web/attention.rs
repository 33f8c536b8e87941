//! Which tokens of a text attend to which, as JSON.

use axum::Router;

use super::Shared;

pub fn routes() -> Router<Shared> {
    Router::new()
}
