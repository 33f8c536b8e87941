//! What a request names.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::super::ApiError;
use crate::base::{Digest, Error, Result};

/// The parts of a path that it leaves open, with our errors.
pub struct Named<T>(pub T);

/// The params behind the `?`, with our errors.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        found.map(|Path(value)| Named(value)).map_err(|e| ApiError::bad_request(e.body_text()))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        found.map(|Query(value)| Asked(value)).map_err(|e| ApiError::bad_request(e.body_text()))
    }
}

/// A digest as it stands in an address: with or without `blake3:`.
///
/// # Errors
/// When it is none.
pub fn digest(text: &str) -> Result<Digest> {
    let hex = text.strip_prefix("blake3:").unwrap_or(text);
    format!("blake3:{hex}").parse().map_err(|_| {
        Error::usage(format!("`{text}` is not a digest")).help("it is `blake3:` and 64 hexadecimal digits")
    })
}

/// How many of something a page has: what is asked for, or else `usual`, at most `most`.
pub fn page(asked: Option<usize>, usual: usize, most: usize) -> usize {
    asked.unwrap_or(usual).clamp(1, most)
}
