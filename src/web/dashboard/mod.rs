//! Runs, pipelines and artifacts of the project, as JSON under `/api`. Everything is read, nothing is changed.
//!
//! ```text
//!  asked      what a request names: numbers in their ranges, runs and digests that there are
//!  runs       past and present runs, their logs
//!  follow     the events of a run, as another process writes them
//!  curves     the curves of trainings
//!  graph      pipelines and what would run
//!  artifacts  what is in the store, who made it and who uses it
//!  files      one file of an artifact, a part at a time
//!  compare    two runs, and how they differ
//! ```
//!
//! No path comes from a request: runs, stages, digests and files are looked up among those that there are. What
//! is read for one answer is bounded; where something is cut, the answer says of how much.

mod artifacts;
mod asked;
mod compare;
mod curves;
mod files;
mod follow;
mod graph;
mod runs;

use std::path::PathBuf;

use axum::Router;
use axum::routing::get;

use super::{App, Shared};
use crate::store::Store;

pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/runs", get(runs::list))
        .route("/api/runs/{id}", get(runs::one))
        .route("/api/runs/{id}/events", get(follow::events))
        .route("/api/runs/{id}/logs/{stage}", get(runs::log))
        .route("/api/runs/{id}/metrics", get(curves::of_run))
        .route("/api/compare", get(compare::runs))
        .route("/api/pipelines", get(graph::list))
        .route("/api/pipelines/{name}", get(graph::one))
        .route("/api/artifacts", get(artifacts::list))
        .route("/api/artifacts/{digest}", get(artifacts::one))
        .route("/api/artifacts/{digest}/files/{*path}", get(files::one))
}

/// The folder of the runs.
fn runs_folder(app: &App) -> PathBuf {
    app.project.artifacts().join("runs")
}

/// The store, for its records: without the digests of files that are known, which may be many.
fn records(app: &App) -> Store {
    Store::open(&app.project.artifacts(), true)
}

#[cfg(test)]
mod tests;
