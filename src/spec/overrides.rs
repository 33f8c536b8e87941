//! `--set PATH=VALUE`: sets a value in the tree before anything is read from it, so that an override is
//! checked exactly like the file.

use crate::base::yaml::{self, Key, Limits, Node, Span, Value};
use crate::base::{Error, Result, suggest};

/// Applies each `PATH=VALUE` in order.
///
/// # Errors
/// A path to nothing, a variable or stage that the pipeline does not have, a value that is not YAML.
pub fn apply(tree: &mut Node, sets: &[String]) -> Result<()> {
    sets.iter().try_for_each(|set| one(tree, set))
}

fn one(tree: &mut Node, set: &str) -> Result<()> {
    let bad = |why: &str| {
        Error::usage(format!("--set {set}: {why}"))
            .help("write --set stages.NAME.params.PARAM=VALUE or --set vars.NAME=VALUE")
    };
    let (path, text) = set.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
    let parts: Vec<&str> = path.split('.').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return Err(bad("the path has an empty part"));
    }
    if !["stages", "vars", "seed", "resources"].contains(&parts[0]) {
        return Err(bad("the path begins with none of `stages`, `vars`, `seed`, `resources`"));
    }
    if ["stages", "vars"].contains(&parts[0]) {
        must_exist(tree, &parts, set)?;
    }
    let name = format!("--set {path}");
    put(tree, &parts, value(&name, text)?, &Span::named(&name)).map_err(bad)
}

/// A number, a boolean, a list or a map as in YAML. Anything else is the text itself, even where YAML reads
/// it otherwise (`a #c`) or not at all (`*.txt`).
fn value(name: &str, text: &str) -> Result<Node> {
    let is_quoted = text.trim_start().starts_with(['{', '[', '"', '\'', '|', '>']);
    let as_text = || Node::new(Value::Str(text.to_string()), Span::named(name));
    match yaml::parse(name, text, Limits::default()) {
        Ok(node) if is_quoted => Ok(node),
        Ok(node) if node.written().is_some_and(|written| written != text.trim()) => Ok(as_text()),
        Ok(node) => Ok(node),
        Err(_) if !is_quoted && !yaml::is_bad_number(text) => Ok(as_text()),
        Err(e) => Err(e),
    }
}

/// A variable or stage can only be set where the file declares it.
fn must_exist(tree: &Node, parts: &[&str], set: &str) -> Result<()> {
    let what = if parts[0] == "vars" { "variable" } else { "stage" };
    let Some(name) = parts.get(1) else {
        return Err(Error::usage(format!("--set {set}: which {what}?")));
    };
    let known =
        || tree.get(parts[0]).map(Node::entries).unwrap_or_default().iter().map(|(k, _)| k.name.as_str());
    if known().any(|k| k == *name) {
        return Ok(());
    }
    Err(Error::usage(format!("--set {set}: the pipeline has no {what} `{name}`"))
        .suggest(suggest::closest(name, known()))
        .help(format!("it has {}", suggest::list(known()))))
}

fn put(node: &mut Node, parts: &[&str], value: Node, span: &Span) -> Result<(), &'static str> {
    let Some((first, rest)) = parts.split_first() else {
        *node = value;
        return Ok(());
    };
    if node.value == Value::Null {
        *node = Node::new(Value::Map(Vec::new()), node.span.clone());
    }
    match &mut node.value {
        Value::Map(entries) => {
            if let Some((_, child)) = entries.iter_mut().find(|(k, _)| k.name == *first) {
                return put(child, rest, value, span);
            }
            let mut child = Node::new(Value::Null, span.clone());
            put(&mut child, rest, value, span)?;
            entries.push((Key { name: first.to_string(), span: span.clone() }, child));
            Ok(())
        }
        Value::Seq(items) => match first.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
            Some(child) => put(child, rest, value, span),
            None => Err("the list has no such item"),
        },
        _ => Err("the path goes on below a plain value"),
    }
}
