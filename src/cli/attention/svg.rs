//! Heat maps as an SVG file that needs nothing else: one head with its tokens' texts, or a grid of all layers and
//! heads.

use std::fmt::Write;

use crate::base::table::shorten;
use crate::base::text::label;
use crate::model::attention::{Map, View};

/// Side of a cell of the large map.
const CELL: usize = 18;

/// Space for a token's text beside and above the large map: so many characters.
const LABEL: usize = 16;
const LABELS: usize = 130;

/// Side of a map in a grid, and the space around it.
const SMALL: usize = 160;
const GAP: usize = 28;

/// Shades that a grid's cells are sorted into.
const SHADES: usize = 64;

/// Weights below this are no different from the background.
const VISIBLE: f32 = 0.5 / SHADES as f32;

const STYLE: &str = "svg{background:#fff;font:12px system-ui,sans-serif;color:#1f4fbf}text{fill:#1b1d21}\
                     rect,path{fill:currentColor}.frame{fill:none;stroke:#c9c9c4}\
                     @media(prefers-color-scheme:dark){svg{background:#111214;color:#86abff}text{fill:#e8e9eb}\
                     .frame{stroke:#3d4148}}";

/// The heads of `view` as an image.
pub fn document(view: &View) -> String {
    match view.layers.as_slice() {
        [heads] if heads.len() == 1 => large(view),
        _ => grid(view),
    }
}

/// `text` as content or as the value of an attribute. Characters that XML has no place for, and those that would
/// change what others look like, must have been made visible before.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn image(width: usize, height: usize, what: &str, content: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n{content}</svg>\n",
        escaped(what)
    )
}

/// Writing to a String cannot fail.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {
        let _ = writeln!($out, $($text)*);
    };
}

fn large(view: &View) -> String {
    let labels: Vec<String> = view.tokens.iter().map(|t| shorten(&label(&t.token), LABEL)).collect();
    let labels: Vec<String> = labels.iter().map(|label| escaped(label)).collect();
    let (map, side) = (view.layers[0][0].map(), labels.len() * CELL);
    let mut out = String::new();
    for (i, text) in labels.iter().enumerate() {
        let middle = LABELS + i * CELL + CELL / 2 + 4;
        put!(out, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{text}</text>", LABELS - 6);
        put!(out, "<text transform=\"translate({middle} {}) rotate(-90)\">{text}</text>", LABELS - 6);
    }
    for (i, row) in map.rows().enumerate() {
        for (j, weight) in row.iter().enumerate().take(i + 1) {
            let (x, y) = (LABELS + j * CELL, LABELS + i * CELL);
            put!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill-opacity=\"{weight:.3}\">\
                 <title>{} → {}: {weight:.3}</title></rect>",
                labels[i],
                labels[j]
            );
        }
    }
    put!(out, "<rect class=\"frame\" x=\"{LABELS}\" y=\"{LABELS}\" width=\"{side}\" height=\"{side}\"/>");
    let what = format!(
        "Attention of layer {}, head {}: each row is a token, shaded by how much it attends to the token of each column",
        view.layer.unwrap_or(0),
        view.head.unwrap_or(0)
    );
    image(LABELS + side + 8, LABELS + side + 8, &what, &out)
}

fn grid(view: &View) -> String {
    let heads = view.layers.first().map_or(0, Vec::len);
    let step = SMALL + GAP;
    let mut out = String::new();
    for (i, layer) in view.layers.iter().enumerate() {
        for (j, rows) in layer.iter().enumerate() {
            let (x, y) = (GAP / 2 + j * step, GAP + i * step);
            let (layer, head) = (view.layer.unwrap_or(i), view.head.unwrap_or(j));
            put!(out, "<text x=\"{x}\" y=\"{}\">layer {layer}, head {head}</text>", y - 6);
            put!(out, "<rect class=\"frame\" x=\"{x}\" y=\"{y}\" width=\"{SMALL}\" height=\"{SMALL}\"/>");
            small(&mut out, rows.map(), x, y);
        }
    }
    let texts: String = view.tokens.iter().map(|token| label(&token.token)).collect();
    let what = format!("Attention by layer and head, each row a token of: {}", shorten(&texts, 400));
    image(heads * step, view.layers.len() * step + GAP / 2, &what, &out)
}

/// A map as one path a shade, of a unit a cell.
fn small(out: &mut String, map: Map, x: usize, y: usize) {
    let mut shades = vec![String::new(); SHADES + 1];
    for (i, row) in map.rows().enumerate() {
        for (j, weight) in row.iter().enumerate().filter(|(_, weight)| **weight >= VISIBLE) {
            let shade = (weight * SHADES as f32).round() as usize;
            let _ = write!(shades[shade.min(SHADES)], "M{j} {i}h1v1h-1z");
        }
    }
    let scale = SMALL as f64 / map.tokens as f64;
    put!(out, "<g transform=\"translate({x} {y}) scale({scale:.5})\" shape-rendering=\"crispEdges\">");
    for (shade, path) in shades.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        put!(out, "<path fill-opacity=\"{:.3}\" d=\"{path}\"/>", shade as f64 / SHADES as f64);
    }
    put!(out, "</g>");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::attention::{Rows, Token};

    /// Names of the elements of a well-formed XML document without entities of its own; refuses everything that
    /// XML 1.0 does, of what is used here.
    fn elements(xml: &str) -> Vec<String> {
        let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..);
        assert!(xml.chars().all(allowed), "a character that XML has no place for");
        let (mut open, mut names, mut rest) = (Vec::new(), Vec::new(), xml);
        while let Some(at) = rest.find('<') {
            references_are_known(&rest[..at]);
            let end = at + rest[at..].find('>').expect("a tag ends");
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "tags nest");
                continue;
            }
            let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            let name = tag.split(' ').next().unwrap();
            assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase()), "{tag}");
            attributes_are_quoted(&tag[name.len()..]);
            names.push(name.to_string());
            if !alone {
                open.push(name.to_string());
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        names
    }

    fn references_are_known(text: &str) {
        assert!(!text.contains('>'));
        for part in text.split('&').skip(1) {
            let name = &part[..part.find(';').expect("a reference ends")];
            assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "{name}");
        }
    }

    fn attributes_are_quoted(mut text: &str) {
        while !text.is_empty() {
            let (name, after) = text.split_once("=\"").expect("an attribute has a value");
            let name = name.strip_prefix(' ').expect("a space before an attribute");
            assert!(name.chars().all(|c| c.is_ascii_alphabetic() || c == '-'), "{name}");
            let (value, after) = after.split_once('"').expect("a value ends");
            assert!(!value.contains('<'));
            references_are_known(value);
            text = after;
        }
    }

    fn view(texts: Vec<String>, layers: usize, heads: usize) -> View {
        let t = texts.len();
        let weights = |h: usize| -> Vec<f32> {
            (0..t * t).map(|i| if i % t > i / t { 0.0 } else { 1.0 / (i / t + 1 + h) as f32 }).collect()
        };
        let token = |token: String| Token { id: 0, token };
        View {
            tokens: texts.into_iter().map(token).collect(),
            layer: None,
            head: None,
            layers: (0..layers).map(|_| (0..heads).map(|h| Rows::new(t, weights(h))).collect()).collect(),
            next: Vec::new(),
        }
    }

    proptest! {
        #[test]
        fn any_token_gives_a_well_formed_file(texts in prop::collection::vec(any::<String>(), 1..6)) {
            for (layers, heads) in [(1, 1), (2, 3)] {
                let found = elements(&document(&view(texts.clone(), layers, heads)));
                let expected = ["svg", "title", "style", "text", "rect", "path", "g"];
                prop_assert!(found.iter().all(|name| expected.contains(&name.as_str())), "{found:?}");
            }
        }
    }

    #[test]
    fn markup_in_a_token_is_text() {
        let texts = [
            "</text><script>alert(1)</script>",
            "\" onload=\"x",
            "]]>",
            "&amp;",
            "\u{0}\u{b}\u{202e}\u{fffe}",
        ];
        let view = view(texts.map(str::to_string).to_vec(), 1, 1);
        let xml = document(&view);
        assert!(!elements(&xml).iter().any(|name| name == "script"));
        assert!(xml.contains("&lt;/text&gt;&lt;script") && xml.contains("&amp;amp;"), "{xml}");
        assert!(!xml.contains('\u{202e}'), "the order of characters stays");
    }

    /// A cell in the large map says who attends to whom; a small map's cell stands where it belongs.
    #[test]
    fn cells_are_weights() {
        let mut view = view(vec!["a".into(), "b".into()], 1, 1);
        view.layers = vec![vec![Rows::new(2, vec![1.0, 0.0, 0.25, 0.75])]];
        let xml = document(&view);
        assert!(xml.contains("fill-opacity=\"0.250\"><title>b → a: 0.250</title>"), "{xml}");
        assert_eq!(xml.matches("<title>a → ").count(), 1, "nobody attends to what comes later");
        view.layers[0].push(Rows::new(2, vec![1.0, 0.0, 0.5, 0.5]));
        let xml = document(&view);
        assert!(xml.contains("<path fill-opacity=\"0.250\" d=\"M0 1h1v1h-1z\"/>"), "{xml}");
        assert!(xml.contains("<path fill-opacity=\"0.500\" d=\"M0 1h1v1h-1zM1 1h1v1h-1z\"/>"), "{xml}");
        assert_eq!(json!(view)["layers"][0][0], json!([[1.0, 0.0], [0.25, 0.75]]));
    }
}
