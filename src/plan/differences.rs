//! The differences of two fingerprints, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Records;
use crate::base::Digest;
use crate::store::{Difference, FileChange, Fingerprint};

/// Every field in which `new` differs from `old`.
pub fn differences(old: &Fingerprint, new: &Fingerprint, records: &dyn Records) -> Vec<Difference> {
    let mut out = Vec::new();
    if old.kind != new.kind {
        out.push(Difference::Kind { old: old.kind.clone(), new: new.kind.clone() });
    } else if old.kind_version != new.kind_version {
        out.push(Difference::KindVersion { old: old.kind_version, new: new.kind_version });
    }
    params("", &old.params, &new.params, &mut out);
    let values: BTreeSet<_> = old.value_versions.keys().chain(new.value_versions.keys()).collect();
    for name in values {
        let of =
            |f: &Fingerprint| (f.params.get(name).cloned(), f.value_versions.get(name).copied().unwrap_or(1));
        let ((value, old), (new_value, new)) = (of(old), of(new));
        // Of another value the param says it.
        if value == new_value && old != new {
            let (name, value) = (name.clone(), value.unwrap_or_default());
            out.push(Difference::ValueVersion { name, value, old, new });
        }
    }
    let ports: BTreeSet<_> = old.inputs.keys().chain(new.inputs.keys()).collect();
    for port in ports {
        let of = |f: &Fingerprint| f.inputs.get(port).cloned().unwrap_or_default();
        let (old, new) = (of(old), of(new));
        if old != new {
            let files = file_differences(&old, &new, records);
            out.push(Difference::Input { port: port.clone(), old, new, files });
        }
    }
    if old.outputs != new.outputs {
        out.push(Difference::Outputs { old: old.outputs.clone(), new: new.outputs.clone() });
    }
    if old.seed != new.seed {
        out.push(Difference::Seed { old: old.seed, new: new.seed });
    }
    out
}

fn params(path: &str, old: &Value, new: &Value, out: &mut Vec<Difference>) {
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            params(&path, a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), out);
        }
    } else if old != new {
        out.push(Difference::Param { name: path.into(), old: old.clone(), new: new.clone() });
    }
}

/// By name over all artifacts of the port; nothing where a manifest is no longer known.
fn file_differences(old: &[Digest], new: &[Digest], records: &dyn Records) -> Vec<FileChange> {
    let files = |all: &[Digest]| -> Option<BTreeMap<String, (Digest, bool)>> {
        let manifests: Vec<_> = all.iter().map(|d| records.manifest(d)).collect::<Option<_>>()?;
        Some(
            manifests.into_iter().flat_map(|m| m.files).map(|f| (f.path, (f.digest, f.executable))).collect(),
        )
    };
    let (Some(a), Some(b)) = (files(old), files(new)) else { return Vec::new() };
    let names: BTreeSet<_> = a.keys().chain(b.keys()).cloned().collect();
    names
        .into_iter()
        .filter_map(|name| match (a.get(&name), b.get(&name)) {
            (Some(x), Some(y)) if x == y => None,
            (Some(_), Some(_)) => Some(FileChange::Changed(name)),
            (Some(_), None) => Some(FileChange::Removed(name)),
            (None, _) => Some(FileChange::Added(name)),
        })
        .collect()
}
