//! Params, ports and types: turns variants into [`StageSpec`]s, in the order they can run, so that
//! what a stage gives is known when the next one asks for it.

use std::collections::{BTreeMap, HashMap};

use super::matrix::{Reference, Target, Variant};
use super::{Input, Mistakes, Pipeline, SourceSpec, StageSpec, resources, text};
use crate::base::yaml::{self, Key, Node, Span, Value};
use crate::base::{Error, Result, suggest};
use crate::stage::{ANY, Connected, Facts, Issue, Kinds, Port, Stage, Upstream};

/// What is known of the stages already connected.
struct Known {
    /// Stage -> port -> artifact type.
    outputs: HashMap<String, BTreeMap<String, String>>,
    /// Stage -> port -> what is known of its artifact.
    facts: HashMap<String, BTreeMap<String, Facts>>,
    /// Every artifact type there is.
    types: BTreeMap<&'static str, ()>,
}

pub fn all(
    variants: Vec<Variant>,
    kinds: &Kinds,
    pipeline: &Pipeline,
    mistakes: &mut Mistakes,
) -> Vec<StageSpec> {
    let mut known = Known { outputs: HashMap::new(), facts: HashMap::new(), types: kinds.types() };
    let mut stages = Vec::new();
    for variant in variants {
        let Some(kind) = kinds.get(&variant.kind) else { continue };
        let before = mistakes.0.len();
        let stage = one(&variant, kind, pipeline, &mut known, mistakes);
        if mistakes.0.len() == before {
            stages.extend(stage);
        }
    }
    stages
}

fn one(
    variant: &Variant,
    kind: &dyn Stage,
    pipeline: &Pipeline,
    known: &mut Known,
    mistakes: &mut Mistakes,
) -> Option<StageSpec> {
    let node = &variant.node;
    let outputs = mistakes.keep(outputs(node, kind, &known.types));
    // Registered even when the params are wrong, so that one mistake does not make two.
    known.outputs.insert(variant.name.clone(), outputs.clone().unwrap_or_default());
    let empty = Node { value: Value::Null, span: variant.span.clone() };
    let params_node = node.get("params").unwrap_or(&empty);
    let params = mistakes.keep(kind.resolve(params_node).map_err(|e| of_kind(e, variant)));
    let connections = inputs(variant, kind, known, mistakes);
    let connected = facts_of(&connections, known, &pipeline.root);
    let (params, outputs) = (params?, outputs?);
    for issue in kind.check(&params, &connected) {
        mistakes.push(located(issue, node, variant));
    }
    let facts = outputs.keys().map(|port| (port.clone(), kind.facts(&params, &connected, port)));
    known.facts.insert(variant.name.clone(), facts.collect());
    let seed = node.get("seed").and_then(|n| mistakes.keep(yaml::decode::<u64>(n)));
    Some(StageSpec {
        name: variant.name.clone(),
        base: variant.base.clone(),
        kind: variant.kind.clone(),
        description: text(node, "description", mistakes).unwrap_or_default(),
        params,
        inputs: connections,
        outputs,
        seed: seed.unwrap_or(pipeline.seed),
        resources: resources(node, mistakes),
        span: variant.span.clone(),
    })
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
    known: &Known,
    mistakes: &mut Mistakes,
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
                mistakes.push(unknown_port(key, kind));
                continue;
            }
        };
        if !port.many && references.len() > 1 {
            mistakes.push(
                Error::usage(format!(
                    "the port `{}` of `{}` takes one artifact, found {}",
                    port.name,
                    info.name,
                    references.len()
                ))
                .at(references[1].span.place()),
            );
        }
        let connected = references.iter().filter_map(|r| mistakes.keep(connect(r, port, info.name, known)));
        all.entry(key.name.clone()).or_default().extend(connected);
    }
    for port in
        info.inputs.iter().filter(|p| p.required && !variant.inputs.iter().any(|(k, _)| k.name == p.name))
    {
        mistakes.push(
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

fn connect(reference: &Reference, port: &Port, kind: &str, known: &Known) -> Result<Input> {
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
            let outputs = known.outputs.get(name).unwrap_or(&empty);
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
        // Of one output the type is judged by the caller, who can say more.
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

fn facts_of(connections: &BTreeMap<String, Vec<Input>>, known: &Known, root: &std::path::Path) -> Connected {
    let upstream = |input: &Input| match input {
        Input::Stage { stage, port } => Upstream {
            label: stage.clone(),
            facts: known.facts.get(stage).and_then(|f| f.get(port)).cloned().unwrap_or_default(),
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

/// At the very param or input where it stands in the file, else at the stage's name.
fn located(issue: Issue, node: &Node, variant: &Variant) -> Error {
    let found = node.locate(&issue.at);
    let span = if std::ptr::eq(found, node) { &variant.span } else { &found.span };
    let name = issue.at.strip_prefix("params.").map(|p| format!("`{p}`: ")).unwrap_or_default();
    let error = Error::usage(format!("stage `{}`: {name}{}", variant.name, issue.message)).at(span.place());
    match issue.help {
        Some(help) => error.help(help),
        None => error,
    }
}
