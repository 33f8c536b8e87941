//! `matrix:` makes one stage many, each named by its values (`train@d_model=64`), never by position.
//!
//! An axis sets the param of its name where the kind has one and the params do not mention `${matrix.axis}`
//! themselves. A stage that takes one artifact from a stage with a matrix is multiplied with it
//! (`report@d_model=64`); a port that takes many gets all of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::Errors;
use super::draft::Draft;
use super::interpolate::{self, Scope};
use crate::base::yaml::{self, Key, Node, Span, Value};
use crate::base::{Error, Result, suggest};
use crate::stage::Kinds;

/// One stage after multiplication, with its inputs read but not yet connected.
pub struct Variant {
    pub name: String,
    pub base: String,
    pub kind: String,
    pub node: Node,
    pub span: Span,
    pub inputs: Inputs,
    axes: BTreeMap<String, Node>,
}

/// The references at each input port.
pub type Inputs = Vec<(Key, Vec<Reference>)>;

/// One reference at an input port.
#[derive(Clone)]
pub struct Reference {
    pub target: Target,
    pub span: Span,
}

#[derive(Clone)]
pub enum Target {
    /// `stage`, `stage.port`, `stage@axis=value.port`; all that follows the stage's name.
    Stage {
        base: String,
        rest: String,
    },
    /// A variant of a stage, and the port if it was named.
    Variant {
        name: String,
        port: Option<String>,
    },
    Source {
        text: String,
        sha256: Option<String>,
    },
}

/// Multiplies every stage. The result is in an order in which stages can run.
pub fn expand(drafts: Vec<Draft>, kinds: &Kinds, errors: &mut Errors) -> Vec<Variant> {
    let names = Names::of(&drafts);
    let mut inputs: Vec<_> = drafts.iter().map(|d| read_inputs(d, &names, errors)).collect();
    let Some(order) = errors.keep(order(&drafts, &inputs, &names)) else { return Vec::new() };
    let mut made = Made::default();
    let mut drafts: Vec<Option<Draft>> = drafts.into_iter().map(Some).collect();
    for i in order {
        let Some(draft) = drafts[i].take() else { continue };
        let base = draft.name.clone();
        let multiplied = variants(draft, std::mem::take(&mut inputs[i]), &made, kinds);
        made.extend(base, errors.keep(multiplied).unwrap_or_default());
    }
    made.all
}

/// The stages' names in the order of the file, and the index of each.
struct Names<'a> {
    all: Vec<&'a str>,
    place: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    fn of(drafts: &'a [Draft]) -> Self {
        let all: Vec<&str> = drafts.iter().map(|d| d.name.as_str()).collect();
        let place = all.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        Names { all, place }
    }
}

/// The variants so far, found by the stage that they were made of.
#[derive(Default)]
struct Made {
    all: Vec<Variant>,
    of: HashMap<String, Range<usize>>,
}

impl Made {
    fn extend(&mut self, base: String, variants: Vec<Variant>) {
        let start = self.all.len();
        self.all.extend(variants);
        self.of.insert(base, start..self.all.len());
    }

    fn of(&self, base: &str) -> &[Variant] {
        self.of.get(base).map_or(&[], |range| &self.all[range.clone()])
    }
}

fn read_inputs(draft: &Draft, names: &Names, errors: &mut Errors) -> Inputs {
    let Some(node) = draft.node.get("inputs") else { return Vec::new() };
    if !matches!(node.value, Value::Map(_) | Value::Null) {
        errors.push(
            node.error(format!("`inputs` is a map of port to what is connected, found {}", node.describe())),
        );
    }
    let mut ports = Vec::with_capacity(node.entries().len());
    for (key, value) in node.entries() {
        let items: Vec<&Node> = match &value.value {
            Value::Seq(items) => items.iter().collect(),
            _ => vec![value],
        };
        let mut references = Vec::with_capacity(items.len());
        references.extend(items.into_iter().filter_map(|n| errors.keep(reference(n, names))));
        ports.push((key.clone(), references));
    }
    ports
}

fn reference(node: &Node, names: &Names) -> Result<Reference> {
    let span = node.span.clone();
    if let Value::Map(_) = node.value {
        let target = url(node)?;
        return Ok(Reference { target, span });
    }
    let text: String = yaml::decode(node)?;
    let base = text.split(['.', '@']).next().unwrap_or("").to_string();
    let is_path = text.contains(['/', '*', '?', '[']) || text.starts_with('.');
    let target = if text.contains("://") {
        return Err(node
            .error("a URL needs the sha256 of what it gives")
            .help(format!("write {{ url: \"{text}\", sha256: … }}")));
    } else if !is_path && names.place.contains_key(base.as_str()) {
        Target::Stage { rest: text[base.len()..].to_string(), base }
    } else if is_path || text.contains('.') {
        Target::Source { text, sha256: None }
    } else {
        return Err(node
            .error(format!("there is no stage `{text}`"))
            .suggest(suggest::closest(&text, names.all.iter().copied()))
            .help(format!("if it is a file, write `./{text}`")));
    };
    Ok(Reference { target, span })
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Url {
    url: String,
    sha256: String,
}

fn url(node: &Node) -> Result<Target> {
    let Url { url, sha256 } = yaml::decode(node)?;
    let at = |key: &str| node.get(key).unwrap_or(node);
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(at("url").error(format!("`{url}` is neither http nor https")));
    }
    let hex = sha256.strip_prefix("sha256:").unwrap_or(&sha256).to_ascii_lowercase();
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(at("sha256").error(format!("`{sha256}` is not a sha256: expected 64 hex digits")));
    }
    Ok(Target::Source { text: url, sha256: Some(hex) })
}

/// Indices in topological order; ties as in the file.
fn order(drafts: &[Draft], inputs: &[Inputs], names: &Names) -> Result<Vec<usize>> {
    let needs: Vec<Vec<usize>> = inputs
        .iter()
        .map(|ports| {
            ports.iter().flat_map(|(_, r)| r).filter_map(|r| names.place.get(r.base()?).copied()).collect()
        })
        .collect();
    let mut left = vec![0; drafts.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); drafts.len()];
    for (i, needed) in needs.iter().enumerate() {
        for &n in needed {
            // An upstream stage that is referenced twice counts once.
            if users[n].last() != Some(&i) {
                users[n].push(i);
                left[i] += 1;
            }
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..drafts.len()).filter(|&i| left[i] == 0).collect();
    let mut order = Vec::with_capacity(drafts.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &user in &users[i] {
            left[user] -= 1;
            if left[user] == 0 {
                ready.insert(user);
            }
        }
    }
    if order.len() == drafts.len() { Ok(order) } else { Err(cycle(drafts, &needs, &left)) }
}

fn cycle(drafts: &[Draft], needs: &[Vec<usize>], left: &[usize]) -> Error {
    let stuck = |i: &usize| left[*i] > 0;
    let mut at = (0..drafts.len()).find(stuck).unwrap_or(0);
    let mut path = vec![at];
    // Every remaining stage has a remaining upstream, so following upstream finds a cycle.
    while let Some(next) = needs[at].iter().copied().find(stuck) {
        at = next;
        if let Some(start) = path.iter().position(|&p| p == at) {
            path.drain(..start);
            break;
        }
        path.push(at);
    }
    path.push(path[0]);
    let names: Vec<_> = path.iter().map(|&i| format!("`{}`", drafts[i].name)).collect();
    Error::usage(format!("these stages wait for each other: {}", names.join(" needs ")))
        .at(drafts[path[0]].span.place())
        .help("take one of these inputs away; a file whose name begins like a stage is written `./name.txt`")
}

fn variants(draft: Draft, inputs: Inputs, earlier: &Made, kinds: &Kinds) -> Result<Vec<Variant>> {
    let mut axes = own_axes(&draft)?;
    let info = kinds.get(&draft.kind).map(|k| k.info());
    let many = |port: &str| info.is_some_and(|i| i.open || i.input(port).is_some_and(|p| p.many));
    for (port, references) in &inputs {
        if !many(&port.name) {
            references.iter().for_each(|r| inherit(r, earlier, &mut axes));
        }
    }
    let connected = |inputs: Inputs, values: &BTreeMap<String, Node>| -> Result<Inputs> {
        let resolve = |(port, all): (Key, Vec<Reference>)| {
            let all = resolve_all(all, values, earlier, many(&port.name))?;
            Ok((port, all))
        };
        inputs.into_iter().map(resolve).collect()
    };
    if axes.is_empty() {
        super::fits("stage", &draft.name, &draft.span)?;
        let axes = BTreeMap::new();
        let (node, inputs) = (one(draft.node, &axes)?, connected(inputs, &axes)?);
        let (base, name) = (draft.name.clone(), draft.name);
        return Ok(vec![Variant { name, base, kind: draft.kind, node, span: draft.span, inputs, axes }]);
    }
    let mut out = Vec::new();
    for values in product(&axes) {
        let name = variant_name(&draft.name, &values);
        super::fits("stage", &name, &draft.span)
            .map_err(|e| e.help("its matrix makes it long: shorten the names of the axes or their values"))?;
        let node = set_params(&draft, one(draft.node.clone(), &values)?, &values, kinds)?;
        out.push(Variant {
            name,
            base: draft.name.clone(),
            kind: draft.kind.clone(),
            node,
            span: draft.span.clone(),
            inputs: connected(inputs.clone(), &values)?,
            axes: values,
        });
    }
    Ok(out)
}

/// `${matrix.…}` replaced, escapes resolved.
fn one(node: Node, values: &BTreeMap<String, Node>) -> Result<Node> {
    let scope: Vec<(String, Node)> = values.iter().map(|(k, n)| (k.clone(), n.clone())).collect();
    let mut node = interpolate::apply(node, &Scope { namespace: "matrix", values: &scope })?;
    interpolate::unescape(&mut node);
    Ok(node)
}

fn own_axes(draft: &Draft) -> Result<BTreeMap<String, Vec<Node>>> {
    let Some(node) = draft.node.get("matrix") else { return Ok(BTreeMap::new()) };
    if node.entries().is_empty() {
        return Err(node.error("`matrix` is a map of axis to a list of values"));
    }
    let mut axes = BTreeMap::new();
    for (key, values) in node.entries() {
        let Value::Seq(items) = &values.value else {
            return Err(values.error(format!("an axis is a list of values, found {}", values.describe())));
        };
        if items.is_empty() {
            return Err(values.error(format!("the axis `{}` has no values", key.name)));
        }
        let mut seen = Vec::new();
        for item in items {
            let written = axis_value(item)?;
            if seen.contains(&written) {
                return Err(item.error(format!("`{written}` stands twice in the axis `{}`", key.name)));
            }
            seen.push(written);
        }
        axes.insert(key.name.clone(), items.clone());
    }
    Ok(axes)
}

/// A value in the variant's name, which is also the name of a folder: as it is written, so that `1.1` and
/// `1.10` differ.
fn axis_value(node: &Node) -> Result<String> {
    let Some(text) = node.written().filter(|_| node.value != Value::Null) else {
        let found = node.describe();
        return Err(node.error(format!("a value of an axis is a number or a word, found {found}")));
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if text.is_empty() || !text.chars().all(fits) {
        return Err(node
            .error(format!("`{text}` cannot be part of a stage's name"))
            .help("use letters, digits, `.`, `_`, `-`"));
    }
    Ok(text.into_owned())
}

/// Values of an axis must differ in the names of the variants.
fn is_same(a: &Node, b: &Node) -> bool {
    a.written() == b.written()
}

fn inherit(reference: &Reference, earlier: &Made, axes: &mut BTreeMap<String, Vec<Node>>) {
    let Target::Stage { base, rest } = &reference.target else { return };
    if rest.starts_with('@') {
        return;
    }
    for variant in earlier.of(base) {
        for (axis, value) in &variant.axes {
            let values = axes.entry(axis.clone()).or_default();
            if !values.iter().any(|v| is_same(v, value)) {
                values.push(value.clone());
            }
        }
    }
}

fn product(axes: &BTreeMap<String, Vec<Node>>) -> Vec<BTreeMap<String, Node>> {
    let mut all = vec![BTreeMap::new()];
    for (axis, values) in axes {
        all = all
            .into_iter()
            .flat_map(|chosen: BTreeMap<String, Node>| {
                values.iter().map(move |value| {
                    let mut chosen = chosen.clone();
                    chosen.insert(axis.clone(), value.clone());
                    chosen
                })
            })
            .collect();
    }
    all
}

fn variant_name(base: &str, values: &BTreeMap<String, Node>) -> String {
    let parts: Vec<String> =
        values.iter().map(|(axis, v)| format!("{axis}={}", axis_value(v).unwrap_or_default())).collect();
    if parts.is_empty() { base.to_string() } else { format!("{base}@{}", parts.join(",")) }
}

/// Each of the stage's own axes must change something.
fn set_params(draft: &Draft, mut node: Node, values: &BTreeMap<String, Node>, kinds: &Kinds) -> Result<Node> {
    let own = draft.node.get("matrix").map(Node::entries).unwrap_or_default();
    let schema = kinds.get(&draft.kind).map(|k| k.schema()).unwrap_or_default();
    for (key, _) in own {
        if interpolate::mentions(&draft.node, "matrix", &key.name) {
            continue;
        }
        if schema.pointer(&format!("/properties/{}", key.name)).is_none() {
            return Err(Error::usage(format!("the axis `{}` changes nothing", key.name))
                .at(key.span.place())
                .help(format!(
                    "`{}` has no param of this name; refer to it as `${{matrix.{}}}`",
                    draft.kind, key.name
                )));
        }
        put_param(&mut node, key, &values[&key.name]);
    }
    Ok(node)
}

fn put_param(node: &mut Node, key: &Key, value: &Node) {
    let Value::Map(entries) = &mut node.value else { return };
    if !entries.iter().any(|(k, _)| k.name == "params") {
        let params = Node::new(Value::Map(Vec::new()), key.span.clone());
        entries.push((Key { name: "params".into(), span: key.span.clone() }, params));
    }
    let params = entries.iter_mut().find(|(k, _)| k.name == "params").map(|(_, n)| n);
    if let Some(node) = params.filter(|n| n.value == Value::Null) {
        *node = Node::new(Value::Map(Vec::new()), key.span.clone());
    }
    let params = entries.iter_mut().find(|(k, _)| k.name == "params").map(|(_, n)| &mut n.value);
    if let Some(Value::Map(params)) = params {
        params.retain(|(k, _)| k.name != key.name);
        params.push((key.clone(), value.clone()));
    }
}

fn resolve_all(
    references: Vec<Reference>,
    values: &BTreeMap<String, Node>,
    earlier: &Made,
    many: bool,
) -> Result<Vec<Reference>> {
    let mut out = Vec::with_capacity(references.len());
    for reference in references {
        let Target::Stage { base, rest } = &reference.target else {
            out.push(reference);
            continue;
        };
        for (name, port) in chosen(base, rest, values, earlier, many, &reference)? {
            out.push(Reference { target: Target::Variant { name, port }, span: reference.span.clone() });
        }
    }
    Ok(out)
}

/// The variants of `base` that a reference means, with the port it names.
fn chosen(
    base: &str,
    rest: &str,
    values: &BTreeMap<String, Node>,
    earlier: &Made,
    many: bool,
    reference: &Reference,
) -> Result<Vec<(String, Option<String>)>> {
    let all = earlier.of(base);
    if rest.starts_with('@') {
        let text = format!("{base}{rest}");
        let exact = all.iter().find_map(|v| match text.strip_prefix(&v.name)? {
            "" => Some((v.name.clone(), None)),
            port => Some((v.name.clone(), Some(port.strip_prefix('.')?.to_string()))),
        });
        let known = || all.iter().map(|v| v.name.as_str());
        return exact.map(|e| vec![e]).ok_or_else(|| {
            Error::usage(format!("there is no stage `{text}`"))
                .at(reference.span.place())
                .suggest(suggest::closest(&text, known()))
                .help(format!("`{base}` has {}", suggest::list(known())))
        });
    }
    let port = rest.strip_prefix('.').map(str::to_string);
    let fits =
        |v: &&Variant| v.axes.iter().all(|(k, n)| many || values.get(k).is_some_and(|x| is_same(x, n)));
    let found: Vec<_> = all.iter().filter(fits).map(|v| (v.name.clone(), port.clone())).collect();
    if found.is_empty() && !all.is_empty() {
        let known = suggest::list(all.iter().map(|v| v.name.as_str()));
        return Err(Error::usage(format!("`{base}` has no variant with these values of the matrix"))
            .at(reference.span.place())
            .help(format!("it has {known}")));
    }
    Ok(found)
}

impl Reference {
    fn base(&self) -> Option<&str> {
        match &self.target {
            Target::Stage { base, .. } => Some(base),
            _ => None,
        }
    }
}
