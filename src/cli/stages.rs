//! `tinylm stages`: the reference of stage kinds, made from the kinds themselves.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{Format, out, print_json};
use crate::base::{Error, Result, suggest, units};
use crate::kinds::import::TOKEN_FILES;
use crate::model::format::CONTAINERS;
use crate::model::{PRESETS, Preset};
use crate::report::style::{Style, table};
use crate::stage::{Port, Stage};
use crate::tokenizer::format::FORMATS;

#[derive(Args)]
pub struct Stages {
    /// The kind to describe; without it all are listed.
    kind: Option<String>,
}

impl Stages {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let kinds = crate::kinds::kinds();
        let Some(name) = self.kind else {
            match format {
                Format::Text => out::out(&list(kinds.iter()))?,
                Format::Json => print_json(&kinds.iter().map(to_json).collect())?,
            }
            return Ok(ExitCode::SUCCESS);
        };
        let kind = kinds.get(&name).ok_or_else(|| {
            Error::usage(format!("there is no stage kind `{name}`"))
                .suggest(suggest::closest(&name, kinds.names()))
                .help(format!("the kinds are {}", suggest::list(kinds.names())))
        })?;
        match format {
            Format::Text => out::out(&describe(kind))?,
            Format::Json => print_json(&to_json(kind))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list<'a>(kinds: impl Iterator<Item = &'a dyn Stage>) -> String {
    let s = Style::stdout();
    let rows: Vec<Vec<String>> =
        kinds.map(|k| vec![k.info().name.to_string(), k.info().summary.to_string()]).collect();
    table(&rows, |_, column, cell| if column == 0 { s.bold(cell) } else { cell })
}

fn describe(kind: &dyn Stage) -> String {
    let s = Style::stdout();
    let info = kind.info();
    let mut out = format!("{} (version {})\n{}\n", s.bold(info.name), info.version, info.summary);
    let ports = |title: &str, ports: &[Port]| {
        let rows: Vec<Vec<String>> = ports.iter().map(port_row).collect();
        match rows.is_empty() {
            true => String::new(),
            false => format!(
                "\n{}\n{}",
                s.bold(title),
                table(&rows, |_, c, cell| if c == 0 { s.cyan(cell) } else { cell })
            ),
        }
    };
    out += &ports("inputs", &info.inputs);
    out += &ports("outputs", &info.outputs);
    if info.open {
        out += "\nInputs and outputs are declared by the pipeline.\n";
    }
    out += &format!("\n{}\n{}", s.bold("params"), params(&kind.schema(), s));
    if takes_preset(kind) {
        out += &format!("\n{}\n{}", s.bold("presets"), presets(s));
    }
    if takes_format(kind) {
        let row = |(of, name, about): (&str, &str, &str)| vec![format!("  {name}"), of.into(), about.into()];
        let rows: Vec<Vec<String>> = formats().map(row).collect();
        let rows = table(&rows, |_, column, cell| if column == 0 { s.cyan(cell) } else { cell });
        out += &format!("\n{}\n{rows}", s.bold("formats"));
    }
    out
}

/// Whether one of its params is the name of an architecture.
fn takes_preset(kind: &dyn Stage) -> bool {
    kind.schema()["properties"].get("preset").is_some()
}

/// The named architectures, their parameters, and what they are.
fn presets(s: Style) -> String {
    let row = |preset: &Preset| {
        let parameters = units::count(preset.config.parameters() as u64);
        vec![format!("  {}", preset.name), parameters, preset.about.to_string()]
    };
    let rows: Vec<Vec<String>> = PRESETS.iter().map(row).collect();
    table(&rows, |_, column, cell| if column == 0 { s.cyan(cell) } else { cell })
}

/// Whether its param `format` is a form of models and tokenizers.
fn takes_format(kind: &dyn Stage) -> bool {
    ["import", "export"].contains(&kind.info().name)
}

/// What the form stores, its name, and what it is.
fn formats() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let models = CONTAINERS.iter().map(|form| ("model", form.name(), form.summary()));
    let tokenizers = FORMATS.iter().map(|form| ("tokenizer", form.name(), form.summary()));
    models.chain(tokenizers).chain([("shards", TOKEN_FILES.0, TOKEN_FILES.1)])
}

fn port_row(port: &Port) -> Vec<String> {
    let mut notes = Vec::new();
    if port.many {
        notes.push("one or more");
    }
    if !port.required {
        notes.push("optional");
    }
    if !port.sources.is_empty() {
        notes.push("takes a source");
    }
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
    vec![format!("  {}", port.name), format!("{}{notes}", port.ty), port.doc.to_string()]
}

fn params(schema: &Value, s: Style) -> String {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut out = String::new();
    for (name, param) in schema["properties"].as_object().into_iter().flatten() {
        let default = match &param["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_string(),
            Value::Null => "default: none".to_string(),
            value => format!("default: {value}"),
        };
        out +=
            &format!("  {} {} {}\n", s.cyan(name), type_name(param, schema), s.dim(format!("({default})")));
        for line in param["description"].as_str().unwrap_or("").lines() {
            out += &format!("      {line}\n");
        }
    }
    if out.is_empty() { "  none\n".into() } else { out }
}

/// A schema's type in a few words.
fn type_name(param: &Value, root: &Value) -> String {
    if let Some(reference) = param["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
        return type_name(target, root);
    }
    if let Some(values) = param["enum"].as_array() {
        return values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("|");
    }
    if let Some(constant) = param["const"].as_str() {
        return constant.to_string();
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = param[key].as_array() {
            let names: Vec<String> =
                options.iter().map(|o| type_name(o, root)).filter(|n| n != "null").collect();
            return names.join("|");
        }
    }
    match &param["type"] {
        Value::String(name) if name == "array" => format!("list of {}", type_name(&param["items"], root)),
        Value::String(name) if name == "object" => "map".into(),
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).filter(|n| *n != "null").collect::<Vec<_>>().join("|")
        }
        _ => "any".into(),
    }
}

fn to_json(kind: &dyn Stage) -> Value {
    let info = kind.info();
    let ports = |ports: &[Port]| -> Value {
        ports
            .iter()
            .map(|p| {
                json!({
                    "name": p.name, "type": p.ty, "required": p.required, "many": p.many,
                    "takes_sources": !p.sources.is_empty(), "description": p.doc,
                })
            })
            .collect()
    };
    let mut json = json!({
        "kind": info.name,
        "version": info.version,
        "summary": info.summary,
        "inputs": ports(&info.inputs),
        "outputs": ports(&info.outputs),
        "open": info.open,
        "params": kind.schema(),
    });
    if takes_preset(kind) {
        let preset = |p: &Preset| json!({ "name": p.name, "parameters": p.config.parameters(), "about": p.about, "config": p.config });
        json["presets"] = PRESETS.iter().map(preset).collect();
    }
    if takes_format(kind) {
        let format = |(of, name, about)| json!({ "of": of, "name": name, "about": about });
        json["formats"] = formats().map(format).collect();
    }
    json
}
