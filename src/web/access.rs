//! Who may ask: no page of another origin, and with a token only who has it.

use std::net::IpAddr;
use std::path::Path;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, Shared};
use crate::base::{Digest, Error, Result, fs, units};

/// What a request must have.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Whether the server is bound to a loopback address: then its names are refused that are not one. A page of
    /// another site could otherwise ask for this server by a name of its own (DNS rebinding).
    pub loopback: bool,
    pub token: Option<Token>,
}

/// A secret that requests name.
#[derive(Debug, Clone)]
pub struct Token(Digest);

impl Token {
    /// The first line of a file.
    ///
    /// # Errors
    /// When it cannot be read, or has no line of 8 characters or more.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_text(path)?;
        let line = text.lines().next().unwrap_or("").trim();
        let is_good = line.len() >= 8 && line.bytes().all(|b| b.is_ascii_graphic());
        if !is_good {
            let what = format!("`{}` holds no token in its first line", path.display());
            return Err(Error::usage(what)
                .help("write 8 or more letters and digits into it, such as of `openssl rand -hex 32`"));
        }
        Ok(Self::new(line))
    }

    pub fn new(text: &str) -> Self {
        Token(Digest::of(text.as_bytes()))
    }

    /// Compares digests, so that the time says nothing of how much of a text is right.
    fn is(&self, text: &str) -> bool {
        self.0 == Digest::of(text.as_bytes())
    }
}

const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Sets what every response says to browsers. What is not said to be kept is not kept.
pub fn set_headers(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Lets a request through that may ask.
pub async fn check(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let refusal = too_large(&request, app.limits.header_bytes);
    match refusal.or_else(|| app.access.refusal(request.uri(), request.headers())) {
        None => next.run(request).await,
        Some(error) => error.into_response(),
    }
}

/// Why a request's first line and headers are too large.
fn too_large(request: &Request, limit: usize) -> Option<ApiError> {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let size = request.uri().to_string().len() + headers.sum::<usize>();
    let what = || format!("the first line and the headers are larger than {}", units::bytes(limit as u64));
    (size > limit).then(|| ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, what()))
}

impl Access {
    /// Why a request may not ask.
    fn refusal(&self, uri: &Uri, headers: &HeaderMap) -> Option<ApiError> {
        let text = |name: HeaderName| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()));
        let Some(host) = text(header::HOST).or(uri.authority().map(|a| a.as_str().into())) else {
            return Some(ApiError::bad_request("the request has no header `Host`"));
        };
        if self.loopback && !is_loopback(&host) {
            let what =
                format!("this server is asked as `{host}`, and listens for requests of this machine only");
            return Some(ApiError::new(StatusCode::MISDIRECTED_REQUEST, what).code("unknown_host"));
        }
        if let Some(origin) = text(header::ORIGIN).filter(|origin| !is_own(origin, &host)) {
            let what = format!("a page of `{origin}` may not ask this server");
            return Some(ApiError::new(StatusCode::FORBIDDEN, what).code("foreign_origin"));
        }
        let token = self.token.as_ref().filter(|_| !is_open(uri.path()))?;
        let given = text(header::AUTHORIZATION);
        let bearer = given.as_deref().and_then(|given| given.split_once(' '));
        let bearer =
            bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, t)| t.trim());
        match bearer {
            Some(bearer) if token.is(bearer) => None,
            Some(_) => Some(unauthorized("the token is not this server's").code("invalid_api_key")),
            None => {
                Some(unauthorized("there is no `Authorization: Bearer TOKEN`, which this server asks for"))
            }
        }
    }
}

fn unauthorized(what: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, what)
}

/// Pages, which hold nothing of the project: they ask for the token and then for data.
fn is_open(path: &str) -> bool {
    path == "/health" || super::pages::is_page(path)
}

/// Whether a `Host`, perhaps with a port, names this machine alone.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    let is_ip = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_ip || name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
}

/// Whether an `Origin` is the one that `host` serves.
fn is_own(origin: &str, host: &str) -> bool {
    let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    own.is_some_and(|own| own.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in
            ["localhost", "localhost:8080", "127.0.0.1", "127.3.2.1:80", "[::1]", "[::1]:8080", "LocalHost"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "example.org", "10.0.0.1", "127.0.0.1.example.org", "[::2]:80", "localhost.example.org"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_that_of_the_host_with_its_port() {
        assert!(
            is_own("http://localhost:8080", "localhost:8080") && is_own("https://a.example", "a.example")
        );
        for origin in ["null", "http://localhost:8081", "http://localhost", "http://evil.example", "file://"]
        {
            assert!(!is_own(origin, "localhost:8080"), "{origin}");
        }
    }
}
