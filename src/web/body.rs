//! JSON bodies of requests, held to limits of size and time.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::{ApiError, Shared};
use crate::base::units;

/// A body of JSON, with our errors: 408, 413, 415, 400 with line and column.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, ApiError> {
        must_be_json(request.headers())?;
        let limit = app.limits.body_bytes;
        let body = Limited::new(request.into_body(), limit).collect();
        let read = tokio::time::timeout(app.limits.body_time, body).await;
        let read = read.map_err(|_| {
            let seconds = app.limits.body_time.as_secs_f64();
            let what = format!("the body did not come within {seconds} s");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, what)
        })?;
        let bytes = read.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
            Some(_) => too_large(limit),
            None => ApiError::bad_request(format!("the body cannot be read: {e}")),
        })?;
        Ok(Body(parse(&bytes.to_bytes())?))
    }
}

fn too_large(limit: usize) -> ApiError {
    let what = format!("the body is larger than {}", units::bytes(limit as u64));
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, what)
}

fn must_be_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).map(|v| String::from_utf8_lossy(v.as_bytes()));
    let mime = given.as_deref().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json")) {
        return Ok(());
    }
    let what = match given {
        Some(given) => format!("the body is said to be `{given}`"),
        None => "the request has no Content-Type".to_string(),
    };
    let what = format!("{what}: expected JSON, with the header `Content-Type: application/json`");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what))
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| {
        let what =
            if e.is_data() { "the body has not the shape that is expected" } else { "the body is not JSON" };
        ApiError::bad_request(format!("{what}: {e}"))
    })
}
