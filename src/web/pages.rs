//! The pages: HTML, style sheets, modules and pictures, all in the program.

use std::sync::OnceLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{ApiError, Shared};
use crate::base::Digest;

/// A file of `pages/`: name, media type, content.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const FILES: &[File] = &[
    ("app.css", CSS, include_str!("pages/app.css")),
    ("theme.js", SCRIPT, include_str!("pages/theme.js")),
    ("common.js", SCRIPT, include_str!("pages/common.js")),
    ("icon.svg", SVG, include_str!("pages/icon.svg")),
    ("chat.html", HTML, include_str!("pages/chat.html")),
    ("chat.css", CSS, include_str!("pages/chat.css")),
    ("chat.js", SCRIPT, include_str!("pages/chat.js")),
    ("conversations.js", SCRIPT, include_str!("pages/conversations.js")),
    ("sampling.js", SCRIPT, include_str!("pages/sampling.js")),
    ("attention.html", HTML, include_str!("pages/attention.html")),
    ("attention.css", CSS, include_str!("pages/attention.css")),
    ("attention.js", SCRIPT, include_str!("pages/attention.js")),
    ("dashboard.html", HTML, include_str!("pages/dashboard.html")),
    ("dashboard.css", CSS, include_str!("pages/dashboard.css")),
    ("dashboard.js", SCRIPT, include_str!("pages/dashboard.js")),
    ("artifacts.js", SCRIPT, include_str!("pages/artifacts.js")),
    ("chart.js", SCRIPT, include_str!("pages/chart.js")),
    ("compare.js", SCRIPT, include_str!("pages/compare.js")),
    ("curves.js", SCRIPT, include_str!("pages/curves.js")),
    ("files.js", SCRIPT, include_str!("pages/files.js")),
    ("graph.js", SCRIPT, include_str!("pages/graph.js")),
    ("parts.js", SCRIPT, include_str!("pages/parts.js")),
    ("pipeline.js", SCRIPT, include_str!("pages/pipeline.js")),
    ("runs.js", SCRIPT, include_str!("pages/runs.js")),
];

/// Paths and their files; the rest of the files are below `/static/`. The dashboard's paths are one page, which
/// shows what its path says.
const PAGES: &[(&str, &str)] = &[
    ("/", "chat.html"),
    ("/attention", "attention.html"),
    ("/runs", "dashboard.html"),
    ("/runs/{id}", "dashboard.html"),
    ("/pipelines/{name}", "dashboard.html"),
    ("/artifacts", "dashboard.html"),
    ("/artifacts/{digest}", "dashboard.html"),
    ("/compare", "dashboard.html"),
];

pub fn routes() -> Router<Shared> {
    let page = |router: Router<Shared>, (path, name): &(&'static str, &'static str)| {
        let name = *name;
        router.route(path, get(move |headers: HeaderMap| async move { file(name, &headers) }))
    };
    let named = |Path(name): Path<String>, headers: HeaderMap| async move { file(&name, &headers) };
    PAGES.iter().fold(Router::new(), page).route("/static/{name}", get(named))
}

/// Whether a path is a page or a file of one.
pub fn is_page(path: &str) -> bool {
    let parts = |path: &str| path.split('/').map(str::to_string).collect::<Vec<_>>();
    let given = parts(path);
    let is = |page: &str| {
        let page = parts(page);
        page.len() == given.len() && page.iter().zip(&given).all(|(p, g)| p == g || p.starts_with('{'))
    };
    PAGES.iter().any(|(page, _)| is(page)) || is("/static/{name}")
}

/// A file, or that the browser's copy is still good.
fn file(name: &str, headers: &HeaderMap) -> Response {
    let Some(at) = FILES.iter().position(|(own, ..)| *own == name) else {
        return ApiError::not_found(format!("there is no file `{name}`")).into_response();
    };
    let (_, media_type, text) = FILES[at];
    let tag = &tags()[at];
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|given| given == tag);
    let kept = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    match known {
        true => (StatusCode::NOT_MODIFIED, kept).into_response(),
        false => (kept, [(header::CONTENT_TYPE, media_type)], text).into_response(),
    }
}

/// Of each file a digest of what it holds.
fn tags() -> &'static [HeaderValue] {
    static TAGS: OnceLock<Vec<HeaderValue>> = OnceLock::new();
    let tag = |(.., text): &File| {
        let digest = Digest::of(text.as_bytes()).to_string();
        HeaderValue::from_str(&format!("\"{digest}\"")).unwrap_or(HeaderValue::from_static("\"\""))
    };
    TAGS.get_or_init(|| FILES.iter().map(tag).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What models, data and file names say must not become a page's code: text is only ever set as text.
    #[test]
    fn no_file_makes_html_of_text_or_asks_others() {
        let never = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "eval(",
            "new Function",
            "srcdoc",
            "style=\"",
            "<style",
            "onclick=",
            "onload=",
            "\"http",
            "'http",
            "(http",
        ];
        for (name, _, text) in FILES {
            // The names of the languages that nodes are made in.
            let text = text.replace("http://www.w3.org/", "");
            let found = never.iter().find(|never| text.contains(**never));
            assert_eq!(found, None, "pages/{name}");
            let own = ["<script src=\"/static/", "<script type=\"module\" src=\"/static/"];
            let is_own = |at: usize| own.iter().any(|own| text[at..].starts_with(own));
            let inline = text.match_indices("<script").filter(|(at, _)| !is_own(*at));
            assert_eq!(inline.count(), 0, "pages/{name} has a script of its own");
        }
    }

    #[test]
    fn files_have_one_name_and_pages_are_files() {
        assert!(PAGES.iter().all(|(_, page)| FILES.iter().any(|(name, ..)| name == page)));
        let names: std::collections::BTreeSet<_> = FILES.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), FILES.len());
        assert!(
            is_page("/runs/x") && is_page("/static/x") && !is_page("/runs/x/y") && !is_page("/v1/models")
        );
    }
}
