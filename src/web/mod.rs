//! A server of models over HTTP: OpenAI's API and the endpoints of llama-server ([`api`]), the pages ([`pages`]),
//! attention ([`attention`]), runs and artifacts ([`dashboard`]).
//!
//! ```text
//!  error      errors as OpenAI's API has them
//!  body       JSON bodies of requests
//!  access     who may ask: Host, Origin, token; what every response says
//!  limits     sizes, times and numbers that requests are held to
//!  metrics    counters, for Prometheus
//!  fields     the fields of a request, each taken by name and type
//!  engine     the thread of a loaded model, which continues its requests in one batch
//!  registry   the models: loaded when they are asked for, within a limit of memory
//!  server     connections, and their end
//!  pages      HTML, style sheets and modules, which are in the program
//! ```
//!
//! What models, data or file names say is never HTML here: pages ask for JSON and make nodes of it.

pub mod access;
pub mod api;
pub mod attention;
pub mod body;
pub mod dashboard;
mod engine;
pub mod error;
pub mod fields;
pub mod limits;
pub mod metrics;
pub mod pages;
pub mod registry;
pub mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use crate::base::{Error, Result, fs};
use crate::target;

pub use access::{Access, Token};
pub use body::Body;
pub use error::ApiError;
pub use limits::Limits;
pub use metrics::Metrics;
pub use registry::{Loaded, Registry};
pub use server::serve;

/// What requests are answered from.
pub struct App {
    pub models: Registry,
    pub project: Project,
    pub limits: Limits,
    pub access: Access,
    pub metrics: Arc<Metrics>,
}

pub type Shared = Arc<App>;

/// The folder whose runs and artifacts are shown.
#[derive(Debug, Clone)]
pub struct Project {
    /// The folder that holds `pipelines/` and `artifacts/`.
    pub root: PathBuf,
}

impl Project {
    /// The store's folder.
    pub fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    /// The files of its pipelines, in order of their names.
    pub fn pipelines(&self) -> Vec<PathBuf> {
        let is_yaml = |path: &PathBuf| path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let mut all = fs::children(&self.root.join("pipelines")).unwrap_or_default();
        all.retain(is_yaml);
        all.sort();
        all
    }

    /// Names and targets of the models that the latest runs of its stages left. Logs a warning for a pipeline that
    /// does not read.
    pub fn models(&self) -> Vec<(String, String)> {
        let models = |file: PathBuf| {
            target::models(&file).unwrap_or_else(|error| {
                tracing::warn!("the models of `{}` are left out: {error}", file.display());
                Vec::new()
            })
        };
        self.pipelines().into_iter().flat_map(models).collect()
    }

    /// Looks alike as long as [`Project::models`] gives the same.
    pub fn stamp(&self) -> target::Stamp {
        let stamp = |file: PathBuf| target::stamp(&format!("{}:", file.display())).unwrap_or_default();
        self.pipelines().into_iter().flat_map(stamp).collect()
    }

    /// The project of the current folder, be it the project's or its `pipelines/`.
    pub fn here() -> Self {
        Project { root: crate::spec::project_root(Path::new("x.yaml")) }
    }
}

/// All paths, with the checks of access around them.
pub fn router(app: Shared) -> Router {
    let routes = api::routes()
        .merge(pages::routes())
        .merge(dashboard::routes())
        .merge(attention::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method);
    routes
        .layer(middleware::from_fn_with_state(app.clone(), access::check))
        .layer(middleware::from_fn(error::catch_panics))
        .layer(middleware::from_fn_with_state(app.clone(), metrics::count))
        .layer(middleware::from_fn(security_headers))
        .with_state(app)
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no `{method} {}`", uri.path())).code("unknown_url")
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(format!("`{}` is not asked by {method}", uri.path()))
}

/// Sets what every response says to browsers.
async fn security_headers(request: Request, next: Next) -> Response {
    let has_body = !request.body().is_end_stream();
    let mut response = next.run(request).await;
    access::set_headers(response.headers_mut());
    let was_read = [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY, StatusCode::TOO_MANY_REQUESTS];
    if has_body && response.status().is_client_error() && !was_read.contains(&response.status()) {
        // The body may be on its way still: the next request on this connection would be taken for it.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Runs what reads files or computes for long on a thread that may block.
///
/// # Errors
/// As `work`; a panic of it is an internal error.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(_) => Err(Error::bug("a request panicked").into()),
    }
}

/// [`blocking`] for what keeps all cores busy: few at a time, the others wait.
///
/// # Errors
/// As [`blocking`].
pub async fn computing<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    static TURNS: Semaphore = Semaphore::const_new(2);
    let turn = TURNS.acquire().await.map_err(|_| Error::bug("no turns"))?;
    blocking(move || {
        // Until this is done, though nobody may wait for it any more.
        let _turn = turn;
        work()
    })
    .await
}

/// A response of JSON.
pub fn json(value: &impl serde::Serialize) -> Response {
    axum::Json(value).into_response()
}

#[cfg(test)]
mod tests;
