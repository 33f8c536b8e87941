//! `${vars.name}` and `${matrix.axis}` in any string. A string that is nothing but one reference takes the
//! referenced value with its type; inside a longer one it is the value's text as it is written (`007` stays
//! `007`); `$${` is a literal `${`; `${inputs.…}` and `${outputs.…}` are left for `kind: command`, which
//! replaces them.

use std::borrow::Cow;

use crate::base::yaml::{Node, Value};
use crate::base::{Error, Result, suggest};

/// The scope of references: one namespace and its values.
pub struct Scope<'a> {
    pub namespace: &'a str,
    pub values: &'a [(String, Node)],
}

/// Namespaces that an earlier or later pass, or a stage kind, replaces.
const LATER: [&str; 3] = ["inputs", "outputs", "matrix"];

/// Replaces every reference of `scope` below `node`.
///
/// # Errors
/// An unknown namespace or name, or a list inside a longer string.
pub fn apply(mut node: Node, scope: &Scope) -> Result<Node> {
    replace(&mut node, scope)?;
    Ok(node)
}

fn replace(node: &mut Node, scope: &Scope) -> Result<()> {
    match &mut node.value {
        Value::Str(text) if text.contains("${") => {
            let text = std::mem::take(text);
            *node = string(&text, node, scope)?;
        }
        Value::Seq(items) => items.iter_mut().try_for_each(|n| replace(n, scope))?,
        Value::Map(entries) => entries.iter_mut().try_for_each(|(_, n)| replace(n, scope))?,
        _ => {}
    }
    Ok(())
}

/// `node` is the place of `text`, for errors.
fn string(text: &str, node: &Node, scope: &Scope) -> Result<Node> {
    if let Some(name) = only_reference(text, scope.namespace) {
        return Ok(look_up(name, node, scope)?.moved_to(node.span.clone()));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            // The escape is resolved by the last pass only, which is the kind's or `unescape`.
            out.push_str(&rest[..at + 2]);
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let end = rest[at..].find('}').ok_or_else(|| node.error("`${` without its `}`"))?;
        let reference = &rest[at + 2..at + end];
        let (namespace, name) = reference.split_once('.').unwrap_or((reference, ""));
        if namespace == scope.namespace {
            out.push_str(&as_text(look_up(name, node, scope)?, node)?);
        } else if LATER.contains(&namespace) {
            out.push_str(&rest[at..=at + end]);
        } else {
            return Err(unknown(reference, node));
        }
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    Ok(Node::new(Value::Str(out), node.span.clone()))
}

/// `$${` becomes `${`: the last step, once every reference is gone.
pub fn unescape(node: &mut Node) {
    match &mut node.value {
        Value::Str(text) if text.contains("$${") => *text = text.replace("$${", "${"),
        Value::Seq(items) => items.iter_mut().for_each(unescape),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, n)| unescape(n)),
        _ => {}
    }
}

/// Whether `${namespace.name}` stands anywhere below `node`.
pub fn mentions(node: &Node, namespace: &str, name: &str) -> bool {
    match &node.value {
        Value::Str(text) => text.contains(&format!("${{{namespace}.{name}}}")),
        Value::Seq(items) => items.iter().any(|n| mentions(n, namespace, name)),
        Value::Map(entries) => entries.iter().any(|(_, n)| mentions(n, namespace, name)),
        _ => false,
    }
}

fn only_reference<'t>(text: &'t str, namespace: &str) -> Option<&'t str> {
    let inner = text.strip_prefix("${")?.strip_suffix('}')?;
    let name = inner.strip_prefix(namespace)?.strip_prefix('.')?;
    (!name.contains(['$', '{', '}'])).then_some(name)
}

fn look_up<'s>(name: &str, node: &Node, scope: &'s Scope) -> Result<&'s Node> {
    scope.values.iter().find(|(n, _)| n == name).map(|(_, v)| v).ok_or_else(|| {
        let known = || scope.values.iter().map(|(n, _)| n.as_str());
        let error = node
            .error(format!("there is no `{}.{name}`", scope.namespace))
            .suggest(suggest::closest(name, known()));
        match scope.values.is_empty() {
            true => error.help(format!("nothing is declared under `{}:`", scope.namespace)),
            false => error.help(format!("declared: {}", suggest::list(known()))),
        }
    })
}

fn as_text<'v>(value: &'v Node, at: &Node) -> Result<Cow<'v, str>> {
    value.written().ok_or_else(|| {
        at.error("a list or a map cannot stand inside a text").help("let the reference be the whole value")
    })
}

fn unknown(reference: &str, node: &Node) -> Error {
    let known = ["vars", "matrix", "inputs", "outputs"];
    let namespace = reference.split('.').next().unwrap_or("");
    node.error(format!("`${{{reference}}}` refers to nothing"))
        .suggest(suggest::closest(namespace, known).map(|n| format!("${{{n}.…}}")))
        .help(format!("write `$${{{reference}}}` for the text itself"))
}
