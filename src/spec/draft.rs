//! A stage as written in the file, with its `use:` merged and `${vars.…}` replaced; its kind is resolved,
//! its inputs are still text.

use std::collections::HashMap;
use std::path::Path;

use super::interpolate::{self, Scope};
use super::{Errors, is_name, unknown_keys};
use crate::base::yaml::{self, Key, Limits, Node, Span, Value};
use crate::base::{Error, Result, suggest};
use crate::stage::Kinds;

pub struct Draft {
    pub name: String,
    pub kind: String,
    /// Every key of the stage, merged and interpolated.
    pub node: Node,
    /// The stage's name in the pipeline file.
    pub span: Span,
}

pub const STAGE_KEYS: [&str; 9] =
    ["kind", "use", "description", "inputs", "outputs", "params", "matrix", "resources", "seed"];

/// Keys of a file under `stages/`: all of a stage's but `use` and `matrix`.
pub const STAGE_FILE_KEYS: [&str; 7] =
    ["kind", "description", "inputs", "outputs", "params", "resources", "seed"];

pub fn read(tree: Node, root: &Path, kinds: &Kinds, errors: &mut Errors) -> Vec<Draft> {
    let vars = errors.keep(variables(&tree)).unwrap_or_default();
    match tree.get("stages") {
        Some(node) if !matches!(node.value, Value::Map(_)) => {
            errors.push(node.error(format!("`stages` is a map of name to stage, found {}", node.describe())));
        }
        Some(_) => {}
        None => errors.push(tree.error("a pipeline needs `stages:`")),
    }
    let mut reader =
        Reader { root, kinds, scope: Scope { namespace: "vars", values: &vars }, files: HashMap::new() };
    let stages = tree.into_entries().into_iter().find(|(key, _)| key.name == "stages");
    let entries = stages.map(|(_, node)| node.into_entries()).unwrap_or_default();
    entries.into_iter().filter_map(|(key, node)| reader.stage(key, node, errors)).collect()
}

/// `vars:`, each of which may refer to those above it.
fn variables(tree: &Node) -> Result<Vec<(String, Node)>> {
    let mut vars: Vec<(String, Node)> = Vec::new();
    let Some(node) = tree.get("vars") else { return Ok(vars) };
    if !matches!(node.value, Value::Map(_) | Value::Null) {
        return Err(node.error(format!("`vars` is a map, found {}", node.describe())));
    }
    for (key, value) in node.entries() {
        let value = interpolate::apply(value.clone(), &Scope { namespace: "vars", values: &vars })?;
        vars.push((key.name.clone(), value));
    }
    Ok(vars)
}

/// The state of reading one stage after the other.
struct Reader<'a> {
    root: &'a Path,
    kinds: &'a Kinds,
    scope: Scope<'a>,
    /// The stage files that `use:` named so far, by name.
    files: HashMap<String, Node>,
}

impl Reader<'_> {
    fn stage(&mut self, key: Key, node: Node, errors: &mut Errors) -> Option<Draft> {
        if !is_name(&key.name) {
            errors.push(
                Error::usage(format!("`{}` cannot be the name of a stage", key.name))
                    .at(key.span.place())
                    .help("use letters, digits, `_` and `-`"),
            );
            return None;
        }
        let before = errors.0.len();
        unknown_keys(&node, "a stage", &STAGE_KEYS, errors);
        let node = errors.keep(interpolate::apply(node, &self.scope))?;
        let node = match node.get("use") {
            None => node,
            Some(file) => {
                if let Some(kind) = node.get("kind") {
                    errors.push(
                        kind.error("`kind` and `use` exclude each other")
                            .help("the file under `use` names the kind"),
                    );
                }
                let base = errors.keep(self.stage_file(file))?;
                unknown_keys(&base, "a stage file", &STAGE_FILE_KEYS, errors);
                merge(&errors.keep(interpolate::apply(base, &self.scope))?, &node)
            }
        };
        let kind = errors.keep(kind_of(&node, &key, self.kinds))?;
        (errors.0.len() == before).then_some(Draft { name: key.name, kind, node, span: key.span })
    }

    fn stage_file(&mut self, node: &Node) -> Result<Node> {
        let name: String = yaml::decode(node)?;
        if let Some(known) = self.files.get(&name) {
            return Ok(known.clone());
        }
        let text = crate::base::fs::read_text(&self.root.join(&name)).map_err(|e| {
            node.error(format!("cannot read the stage file `{name}`"))
                .cause(e.message())
                .help("`use:` is a path from the folder that holds `pipelines/`")
        })?;
        let file = yaml::parse(&name, &text, Limits::default())?;
        self.files.insert(name, file.clone());
        Ok(file)
    }
}

/// `over` on top of `base`: maps key by key, anything else whole.
fn merge(base: &Node, over: &Node) -> Node {
    let (Value::Map(below), Value::Map(above)) = (&base.value, &over.value) else { return over.clone() };
    let mut entries = below.clone();
    for (key, node) in above {
        match entries.iter_mut().find(|(k, _)| k.name == key.name) {
            Some((_, old)) if key.name != "inputs" => *old = merge(old, node),
            Some((_, old)) => *old = merge_inputs(old, node),
            None => entries.push((key.clone(), node.clone())),
        }
    }
    Node::new(Value::Map(entries), over.span.clone())
}

/// A port is replaced whole: `{url, sha256}` of the lower one must not be merged into the upper one.
fn merge_inputs(base: &Node, over: &Node) -> Node {
    let mut entries = base.entries().to_vec();
    for (key, node) in over.entries() {
        entries.retain(|(k, _)| k.name != key.name);
        entries.push((key.clone(), node.clone()));
    }
    Node::new(Value::Map(entries), over.span.clone())
}

fn kind_of(node: &Node, key: &Key, kinds: &Kinds) -> Result<String> {
    let Some(kind) = node.get("kind") else {
        return Err(Error::usage(format!("the stage `{}` names no kind", key.name))
            .at(key.span.place())
            .help("add `kind: …` or `use: stages/….yaml`; `tinylm stages` lists the kinds"));
    };
    let name: String = yaml::decode(kind)?;
    if kinds.get(&name).is_some() {
        return Ok(name);
    }
    Err(kind
        .error(format!("there is no stage kind `{name}`"))
        .suggest(suggest::closest(&name, kinds.names()))
        .help(format!("the kinds are {}", suggest::list(kinds.names()))))
}
