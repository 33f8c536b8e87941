//! The JSON Schema of pipeline and stage files, for editors: completion, hover text and diagnostics. Made
//! from the list of kinds, so that it is never out of date.

use serde_json::{Map, Value, json};

use crate::stage::{Info, Kinds, Stage};

/// A schema that accepts a pipeline file (it has `stages`) or a stage file (it has `kind`).
pub fn schema(kinds: &Kinds) -> Value {
    let mut definitions = Map::new();
    for kind in kinds.iter() {
        let mut params = kind.schema();
        lift_definitions(kind.info().name, &mut params, &mut definitions);
        if let Some(object) = params.as_object_mut() {
            object.remove("$schema");
        }
        allow_references(&mut params);
        definitions.insert(format!("params.{}", kind.info().name), params);
        definitions.insert(format!("stage.{}", kind.info().name), stage(kind, false));
        definitions.insert(format!("file.{}", kind.info().name), stage(kind, true));
    }
    definitions.insert("source".into(), source());
    definitions.insert("connection".into(), json!({
        "anyOf": [{"$ref": "#/$defs/source"}, {"type": "array", "items": {"$ref": "#/$defs/source"}, "minItems": 1}]
    }));
    definitions.insert("resources".into(), resources());
    definitions.insert("used_stage".into(), used_stage());
    definitions.insert("stage".into(), any_stage(kinds));
    definitions.insert("pipeline".into(), pipeline());
    definitions.insert(
        "stage_file".into(),
        json!({
            "oneOf": kinds.names().map(|n| json!({"$ref": format!("#/$defs/file.{n}")})).collect::<Vec<_>>()
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tinylm pipeline or stage file",
        "if": {"required": ["stages"]},
        "then": {"$ref": "#/$defs/pipeline"},
        "else": {"$ref": "#/$defs/stage_file"},
        "$defs": definitions,
    })
}

/// schemars puts shared types below each schema's own `$defs`, while references start at the root. There they
/// have the kind's name before their own: types of two kinds may be called alike.
fn lift_definitions(kind: &str, params: &mut Value, definitions: &mut Map<String, Value>) {
    let own = params.as_object_mut().and_then(|o| o.remove("$defs"));
    rename_references(kind, params);
    if let Some(Value::Object(own)) = own {
        for (name, mut definition) in own {
            rename_references(kind, &mut definition);
            definitions.insert(format!("{kind}.{name}"), definition);
        }
    }
}

fn rename_references(kind: &str, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace("#/$defs/", &format!("#/$defs/{kind}."));
            }
            fields.values_mut().for_each(|value| rename_references(kind, value));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| rename_references(kind, value)),
        _ => {}
    }
}

/// Any param, and any item of a list, may be `${vars.NAME}` whatever its type, which the loader checks once it is
/// replaced.
fn allow_references(schema: &mut Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for property in properties.values_mut() {
        allow_references(property);
        if let Some(items) = property.get_mut("items") {
            *items = or_reference(items.take());
        }
        let mut own = property.take();
        let mut outer = Map::new();
        // Title and description stay where editors look for them.
        for key in ["description", "default"] {
            if let Some(value) = own.as_object_mut().and_then(|o| o.remove(key)) {
                outer.insert(key.into(), value);
            }
        }
        outer.insert("anyOf".into(), or_reference(own)["anyOf"].take());
        *property = Value::Object(outer);
    }
}

fn or_reference(own: Value) -> Value {
    json!({"anyOf": [own, {"type": "string", "pattern": "^\\$\\{[^}]*\\}$"}]})
}

fn pipeline() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["stages"],
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$", "description": "What messages call it. Default: the file's name, which the folder of its results below artifacts/ always has."},
            "description": {"type": "string"},
            "seed": {"type": "integer", "minimum": 0, "description": "What all randomness derives from. Default 0."},
            "vars": {"type": "object", "description": "Values used as ${vars.NAME}; --set vars.NAME=VALUE replaces them."},
            "resources": {"$ref": "#/$defs/resources"},
            "stages": {"type": "object", "additionalProperties": {"$ref": "#/$defs/stage"}},
        }
    })
}

fn any_stage(kinds: &Kinds) -> Value {
    let mut branches: Vec<Value> = kinds
        .names()
        .map(|name| {
            json!({
                "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
                "then": {"$ref": format!("#/$defs/stage.{name}")},
            })
        })
        .collect();
    branches.push(json!({"if": {"required": ["use"]}, "then": {"$ref": "#/$defs/used_stage"}}));
    let names: Vec<_> = kinds.names().collect();
    json!({
        "type": "object",
        "oneOf": [{"required": ["kind"]}, {"required": ["use"]}],
        "properties": {"kind": {"enum": names}},
        "allOf": branches,
    })
}

/// The stage of one kind; `file`: as a file under `stages/`, which needs no inputs yet.
fn stage(kind: &dyn Stage, file: bool) -> Value {
    let info = kind.info();
    let mut properties = common();
    properties.insert("kind".into(), json!({"const": info.name, "description": info.summary}));
    properties.insert("params".into(), nullable(json!({"$ref": format!("#/$defs/params.{}", info.name)})));
    properties.insert("inputs".into(), inputs(info, file));
    if info.open {
        properties.insert(
            "outputs".into(),
            json!({
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "Port: artifact type, such as `file`."
            }),
        );
    }
    if file {
        properties.remove("matrix");
    }
    let needs_inputs = !file && info.inputs.iter().any(|p| p.required);
    let required: &[&str] = if needs_inputs { &["kind", "inputs"] } else { &["kind"] };
    json!({
        "type": "object",
        "description": info.summary,
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

fn inputs(info: &Info, file: bool) -> Value {
    if info.open {
        return json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/connection"}});
    }
    let mut ports = Map::new();
    for port in &info.inputs {
        let target = if port.many { "connection" } else { "source" };
        let doc = format!("{} ({})", port.doc, port.ty);
        ports.insert(port.name.clone(), json!({"$ref": format!("#/$defs/{target}"), "description": doc}));
    }
    let required: Vec<_> = info.inputs.iter().filter(|p| p.required && !file).map(|p| &p.name).collect();
    json!({"type": "object", "additionalProperties": false, "properties": ports, "required": required})
}

fn used_stage() -> Value {
    let mut properties = common();
    properties.insert(
        "use".into(),
        json!({"type": "string", "description": "A stage file, from the folder that holds pipelines/."}),
    );
    properties.insert(
        "params".into(),
        json!({"type": ["object", "null"], "description": "On top of the stage file's."}),
    );
    properties.insert(
        "inputs".into(),
        json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/connection"}}),
    );
    properties
        .insert("outputs".into(), json!({"type": "object", "additionalProperties": {"type": "string"}}));
    json!({"type": "object", "required": ["use"], "additionalProperties": false, "properties": properties})
}

fn common() -> Map<String, Value> {
    let value = json!({
        "description": {"type": "string"},
        "seed": {"type": "integer", "minimum": 0, "description": "Instead of the pipeline's seed."},
        "resources": {"$ref": "#/$defs/resources"},
        "matrix": {
            "type": "object",
            "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": true},
            "description": "One stage for each combination of values, named by them: train@d_model=64."
        },
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn source() -> Value {
    json!({
        "anyOf": [
            {"type": "string", "description": "A stage, stage.port, or a source: a file, a glob, a folder."},
            {
                "type": "object",
                "required": ["url", "sha256"],
                "additionalProperties": false,
                "properties": {"url": {"type": "string", "pattern": "^https?://|^\\$\\{"}, "sha256": {"type": "string"}}
            }
        ]
    })
}

fn resources() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "What it asks for; never part of a key.",
        "properties": {
            "threads": {"type": "integer", "minimum": 1},
            "memory": {"type": ["string", "integer"], "description": "Such as 2GiB."}
        }
    })
}
