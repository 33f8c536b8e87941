//! Params, ports and types: turns variants into [`StageSpec`]s, in topological order, so that the facts of
//! upstream outputs are known.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::matrix::{Reference, Target, Variant};
use super::{Errors, Input, Pipeline, Resources, SourceSpec, StageSpec, resources, text};
use crate::base::yaml::{self, Key, Node, Span, Value};
use crate::base::{Error, Result, suggest};
use crate::stage::{ANY, Connected, Facts, Issue, Kinds, Port, Stage, Upstream};

/// The stages connected so far.
#[derive(Default)]
struct EarlierStages {
    stages: Vec<StageSpec>,
    /// Stage -> its index in `stages`.
    places: HashMap<String, usize>,
    /// Port -> artifact type of stages with errors, so that one error does not cause further ones.
    broken: HashMap<String, BTreeMap<String, String>>,
    /// Stage -> port -> facts of its artifact, where there are any.
    facts: HashMap<String, BTreeMap<String, Facts>>,
    /// Every artifact type there is.
    types: BTreeMap<&'static str, ()>,
}

impl EarlierStages {
    /// Port -> artifact type of an earlier stage.
    fn outputs(&self, stage: &str) -> Option<&BTreeMap<String, String>> {
        let place = self.places.get(stage);
        place.map(|i| &self.stages[*i].outputs).or_else(|| self.broken.get(stage))
    }

    /// Has the kind validate params and connections, and keeps the facts of its outputs.
    fn examine(
        &mut self,
        stage: &StageSpec,
        node: &Node,
        kind: &dyn Stage,
        root: &Path,
        errors: &mut Errors,
    ) {
        let connected = facts_of(&stage.inputs, self, root);
        let ports: Vec<&str> = stage.outputs.keys().map(String::as_str).collect();
        let examined = kind.examine(&stage.params, &connected, &ports);
        examined.issues.into_iter().for_each(|issue| errors.push(located(issue, node, stage)));
        if !examined.facts.is_empty() {
            self.facts.insert(stage.name.clone(), examined.facts);
        }
    }
}

pub fn all(
    variants: Vec<Variant>,
    kinds: &Kinds,
    pipeline: &Pipeline,
    errors: &mut Errors,
) -> Vec<StageSpec> {
    let mut earlier = EarlierStages { types: kinds.types(), ..EarlierStages::default() };
    for variant in variants {
        let Some(kind) = kinds.get(&variant.kind) else { continue };
        let outputs = errors.keep(outputs(&variant.node, kind, &earlier.types));
        let params = errors.keep(params(&variant, kind));
        let inputs = inputs(&variant, kind, &earlier, errors);
        let (params, outputs) = match (params, outputs) {
            (Some(params), Some(outputs)) => (params, outputs),
            (_, outputs) => {
                earlier.broken.insert(variant.name, outputs.unwrap_or_default());
                continue;
            }
        };
        let node = variant.node;
        let mut stage = StageSpec {
            name: variant.name,
            base: variant.base,
            kind: variant.kind,
            description: String::new(),
            params,
            inputs,
            outputs,
            seed: pipeline.seed,
            resources: Resources::default(),
            span: variant.span,
        };
        earlier.examine(&stage, &node, kind, &pipeline.root, errors);
        if let Some(seed) = node.get("seed") {
            stage.seed = errors.keep(yaml::decode(seed)).unwrap_or_default();
        }
        stage.description = text(&node, "description", errors).unwrap_or_default();
        stage.resources = resources(&node, errors);
        earlier.places.insert(stage.name.clone(), earlier.stages.len());
        earlier.stages.push(stage);
    }
    earlier.stages
}

fn params(variant: &Variant, kind: &dyn Stage) -> Result<serde_json::Value> {
    let empty = Node::new(Value::Null, variant.span.clone());
    kind.resolve(variant.node.get("params").unwrap_or(&empty)).map_err(|e| of_kind(e, variant))
}

fn of_kind(error: Error, variant: &Variant) -> Error {
    error.help(format!("`tinylm stages {}` lists its params", variant.kind))
}

fn outputs(
    node: &Node,
    kind: &dyn Stage,
    types: &BTreeMap<&'static str, ()>,
) -> Result<BTreeMap<String, String>> {
    let info = kind.info();
    let mut all: BTreeMap<String, String> =
        info.outputs.iter().map(|p| (p.name.clone(), p.ty.to_string())).collect();
    let Some(declared) = node.get("outputs") else {
        return if info.open && all.is_empty() {
            Err(node.error("this stage declares no outputs").help("add `outputs: { NAME: file }`"))
        } else {
            Ok(all)
        };
    };
    if !info.open {
        let names = suggest::list(info.outputs.iter().map(|p| p.name.as_str()));
        return Err(declared
            .error(format!("the outputs of `{}` are fixed: {names}", info.name))
            .help("remove `outputs:`"));
    }
    for (key, ty) in declared.entries() {
        let name: String = yaml::decode(ty)?;
        if !types.contains_key(name.as_str()) {
            return Err(ty
                .error(format!("there is no artifact type `{name}`"))
                .suggest(suggest::closest(&name, types.keys().copied()))
                .help(format!("the types are {}", suggest::list(types.keys().copied()))));
        }
        super::fits("port", &key.name, &key.span)?;
        if !super::is_name(&key.name) {
            return Err(
                Error::usage(format!("`{}` cannot be the name of a port", key.name)).at(key.span.place())
            );
        }
        all.insert(key.name.clone(), name);
    }
    Ok(all)
}

fn inputs(
    variant: &Variant,
    kind: &dyn Stage,
    earlier: &EarlierStages,
    errors: &mut Errors,
) -> BTreeMap<String, Vec<Input>> {
    let info = kind.info();
    let mut all: BTreeMap<String, Vec<Input>> = BTreeMap::new();
    for (key, references) in &variant.inputs {
        let open;
        let port = match info.input(&key.name) {
            Some(port) => port,
            None if info.open => {
                open = Port::new(&key.name, ANY, "").many().or_source(&[""]);
                &open
            }
            None => {
                errors.push(unknown_port(key, kind));
                continue;
            }
        };
        if !port.many && references.len() > 1 {
            errors.push(
                Error::usage(format!(
                    "the port `{}` of `{}` takes one artifact, found {}",
                    port.name,
                    info.name,
                    references.len()
                ))
                .at(references[1].span.place()),
            );
        }
        let mut connected = Vec::with_capacity(references.len());
        connected.extend(references.iter().filter_map(|r| errors.keep(connect(r, port, info.name, earlier))));
        all.insert(key.name.clone(), connected);
    }
    for port in
        info.inputs.iter().filter(|p| p.required && !variant.inputs.iter().any(|(k, _)| k.name == p.name))
    {
        errors.push(
            Error::usage(format!(
                "the stage `{}` lacks its input `{}` ({})",
                variant.name, port.name, port.ty
            ))
            .at(variant.span.place())
            .help(format!("add `inputs: {{ {}: … }}`: {}", port.name, port.doc)),
        );
    }
    all
}

fn unknown_port(key: &Key, kind: &dyn Stage) -> Error {
    let info = kind.info();
    let names = || info.inputs.iter().map(|p| p.name.as_str());
    let error = Error::usage(format!("`{}` has no input port `{}`", info.name, key.name))
        .at(key.span.place())
        .suggest(suggest::closest(&key.name, names()));
    match info.inputs.is_empty() {
        true => error.help("it takes no inputs"),
        false => error.help(format!("its inputs are {}", suggest::list(names()))),
    }
}

fn connect(reference: &Reference, port: &Port, kind: &str, earlier: &EarlierStages) -> Result<Input> {
    let at = |e: Error| e.at(reference.span.place());
    match &reference.target {
        Target::Source { text, .. } if port.sources.is_empty() => Err(at(Error::usage(format!(
            "the port `{}` of `{kind}` takes what a stage made ({}), not the source `{text}`",
            port.name, port.ty
        )))),
        Target::Source { text, sha256 } => Ok(Input::Source(SourceSpec {
            text: text.clone(),
            sha256: sha256.clone(),
            endings: port.sources,
            span: reference.span.clone(),
        })),
        Target::Variant { name, port: wanted } => {
            let empty = BTreeMap::new();
            let outputs = earlier.outputs(name).unwrap_or(&empty);
            let output = match wanted {
                Some(wanted) => named_output(name, wanted, outputs, &reference.span)?,
                None => only_output(name, port, outputs, &reference.span)?,
            };
            let ty = &outputs[&output];
            if !port.takes(ty) {
                return Err(at(Error::usage(format!(
                    "`{name}.{output}` is of type {ty}, but the port `{}` of `{kind}` takes {}",
                    port.name, port.ty
                ))));
            }
            Ok(Input::Stage { stage: name.clone(), port: output })
        }
        Target::Stage { base, .. } => Err(at(Error::bug(format!("`{base}` was not resolved")))),
    }
}

fn named_output(
    stage: &str,
    wanted: &str,
    outputs: &BTreeMap<String, String>,
    span: &Span,
) -> Result<String> {
    if outputs.contains_key(wanted) {
        return Ok(wanted.to_string());
    }
    let names = || outputs.keys().map(String::as_str);
    Err(Error::usage(format!("the stage `{stage}` has no output port `{wanted}`"))
        .at(span.place())
        .suggest(suggest::closest(wanted, names()))
        .help(format!(
            "its outputs are {}; a file of this name is `./{stage}.{wanted}`",
            suggest::list(names())
        )))
}

/// `stage` alone means its only output, or the only one whose type fits.
fn only_output(stage: &str, port: &Port, outputs: &BTreeMap<String, String>, span: &Span) -> Result<String> {
    let fitting: Vec<&String> =
        outputs.iter().filter(|(_, ty)| port.takes(ty)).map(|(name, _)| name).collect();
    match (outputs.len(), fitting.as_slice()) {
        // With one output the caller checks the type, with a better message.
        (1, _) => Ok(outputs.keys().next().cloned().unwrap_or_default()),
        (_, [only]) => Ok(only.to_string()),
        _ => {
            let names = suggest::list(outputs.keys().map(String::as_str));
            Err(Error::usage(format!(
                "`{stage}` has several outputs: {names}; which one goes into `{}` ({})?",
                port.name, port.ty
            ))
            .at(span.place())
            .help(format!("write `{stage}.PORT`")))
        }
    }
}

fn facts_of(connections: &BTreeMap<String, Vec<Input>>, earlier: &EarlierStages, root: &Path) -> Connected {
    let upstream = |input: &Input| match input {
        Input::Stage { stage, port } => Upstream {
            label: stage.clone(),
            facts: earlier.facts.get(stage).and_then(|f| f.get(port)).cloned().unwrap_or_default(),
            files: Vec::new(),
        },
        Input::Source(source) => Upstream {
            label: source.text.clone(),
            facts: Facts::new(),
            files: if source.is_url() { Vec::new() } else { vec![root.join(&source.text)] },
        },
    };
    Connected(
        connections.iter().map(|(port, all)| (port.clone(), all.iter().map(upstream).collect())).collect(),
    )
}

/// At the param or input in the file, else at the stage's name.
fn located(issue: Issue, node: &Node, stage: &StageSpec) -> Error {
    let found = node.locate(&issue.at);
    let span = if std::ptr::eq(found, node) { &stage.span } else { &found.span };
    let error = Error::usage(format!("stage `{}`: {}", stage.name, issue.message)).at(span.place());
    match issue.help {
        Some(help) => error.help(help),
        None => error,
    }
}
