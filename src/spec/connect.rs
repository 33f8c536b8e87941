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
    /// Outputs of stages with errors, as far as known, so that one error does not cause further ones.
    broken: HashMap<String, Outputs>,
    /// Stage -> port -> facts of its artifact, where there are any.
    facts: HashMap<String, BTreeMap<String, Facts>>,
    /// Every artifact type there is.
    types: BTreeMap<&'static str, ()>,
}

/// The output ports of a stage: [`StageSpec::outputs`] and [`StageSpec::main_outputs`].
#[derive(Default)]
struct Outputs {
    types: BTreeMap<String, String>,
    main: Vec<String>,
}

impl EarlierStages {
    /// An earlier stage without errors.
    fn stage(&self, name: &str) -> Option<&StageSpec> {
        self.places.get(name).map(|i| &self.stages[*i])
    }

    fn output_type(&self, stage: &str, output: &str) -> Option<&str> {
        let known = self.stage(stage).map(|s| &s.outputs);
        known.or_else(|| self.broken.get(stage).map(|o| &o.types))?.get(output).map(String::as_str)
    }

    /// The output that a reference to a stage with errors means, where that is known; no error, since it
    /// would be a consequence of those.
    fn output_of_broken(&self, stage: &str, wanted: Option<&str>, port: &Port) -> String {
        let main = self.broken.get(stage).map_or(&[][..], |outputs| &outputs.main);
        let fits = |name: &&String| self.output_type(stage, name).is_some_and(|ty| port.takes(ty));
        let meant = || main.iter().find(fits).or(main.first()).cloned().unwrap_or_default();
        wanted.map_or_else(meant, str::to_string)
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
        let params = errors.keep(params(&variant, kind));
        let outputs = errors.keep(outputs(&variant.node, kind, params.as_ref(), &earlier.types));
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
            outputs: outputs.types,
            main_outputs: outputs.main,
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

/// The outputs under these params, which may be missing because of an error, and those declared.
fn outputs(
    node: &Node,
    kind: &dyn Stage,
    params: Option<&serde_json::Value>,
    types: &BTreeMap<&'static str, ()>,
) -> Result<Outputs> {
    let info = kind.info();
    let ports = params.map_or_else(|| Ok(info.outputs.clone()), |params| kind.outputs(params))?;
    let mut all = Outputs {
        types: ports.iter().map(|p| (p.name.clone(), p.ty.to_string())).collect(),
        main: ports.into_iter().map(|p| p.name).filter(|name| info.output(name).is_some()).collect(),
    };
    let Some(declared) = node.get("outputs") else {
        return if info.open && all.types.is_empty() {
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
        all.types.insert(key.name.clone(), name);
        all.main.push(key.name.clone());
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
            let output = match (earlier.stage(name), wanted) {
                (Some(stage), Some(wanted)) => named_output(stage, wanted, &reference.span)?,
                (Some(stage), None) => only_output(stage, port, &reference.span)?,
                (None, wanted) => earlier.output_of_broken(name, wanted.as_deref(), port),
            };
            match earlier.output_type(name, &output) {
                Some(ty) if !port.takes(ty) => Err(at(Error::usage(format!(
                    "`{name}.{output}` is of type {ty}, but the port `{}` of `{kind}` takes {}",
                    port.name, port.ty
                )))),
                _ => Ok(Input::Stage { stage: name.clone(), port: output }),
            }
        }
        Target::Stage { base, .. } => Err(at(Error::bug(format!("`{base}` was not resolved")))),
    }
}

fn named_output(stage: &StageSpec, wanted: &str, span: &Span) -> Result<String> {
    if stage.outputs.contains_key(wanted) {
        return Ok(wanted.to_string());
    }
    let (name, names) = (&stage.name, stage.output_names());
    Err(Error::usage(format!("the stage `{name}` has no output port `{wanted}`"))
        .at(span.place())
        .suggest(suggest::closest(wanted, names.iter().copied()))
        .help(format!(
            "its outputs are {}; a file of this name is `./{name}.{wanted}`",
            suggest::list(names)
        )))
}

/// `stage` alone means its only main output, or the only one whose type fits.
fn only_output(stage: &StageSpec, port: &Port, span: &Span) -> Result<String> {
    let fits = |name: &&String| stage.outputs.get(*name).is_some_and(|ty| port.takes(ty));
    let fitting: Vec<&String> = stage.main_outputs.iter().filter(fits).collect();
    match (stage.main_outputs.as_slice(), fitting.as_slice()) {
        // With one output the caller checks the type, with a better message.
        ([only], _) => Ok(only.clone()),
        (_, [only]) => Ok(only.to_string()),
        _ => {
            let name = &stage.name;
            Err(Error::usage(format!(
                "`{name}` has several outputs: {}; which one goes into `{}` ({})?",
                suggest::list(stage.output_names()),
                port.name,
                port.ty
            ))
            .at(span.place())
            .help(format!("write `{name}.PORT`")))
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
