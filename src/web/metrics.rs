//! Counters of the server, as Prometheus reads them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::Shared;

#[derive(Debug, Default)]
pub struct Metrics {
    requests: AtomicU64,
}

/// Counts a request and its response.
pub async fn count(State(app): State<Shared>, request: Request, next: Next) -> Response {
    app.metrics.requests.fetch_add(1, Relaxed);
    next.run(request).await
}
