//! What is cached: an action, its fingerprint (everything that may change the bytes), and its outputs.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::Reason;
use crate::base::{Digest, canonical};

/// The readable record of everything that may change a stage's bytes. Never in here: mtimes, absolute
/// paths, host, thread count, log level, the stage's name. Adding a field that is not left out while it is empty
/// changes every key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub kind: String,
    pub kind_version: u32,
    /// Param -> version of what its value stands for, where it is not the first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub value_versions: BTreeMap<String, u32>,
    /// Canonical, with defaults, without the params of gates.
    pub params: Value,
    /// Port -> digests of the artifacts connected, in their order.
    pub inputs: BTreeMap<String, Vec<Digest>>,
    /// Port -> type, where the pipeline declares them.
    pub outputs: BTreeMap<String, String>,
    /// `None` for a kind that draws no random numbers.
    pub seed: Option<u64>,
}

impl Fingerprint {
    /// `pretrain 7`, `pretrain 7, dtype 2`: the kind, and the versions of it and of values of its params.
    pub fn versions(&self) -> String {
        let values = self.value_versions.iter().map(|(param, version)| format!(", {param} {version}"));
        format!("{} {}{}", self.kind, self.kind_version, values.collect::<String>())
    }

    /// The action key.
    pub fn key(&self) -> Digest {
        canonical::digest(&serde_json::json!({ "format": super::VERSION, "action": self }))
    }

    /// Names the course of the work: two actions with one trajectory differ at most in the params
    /// `not_in_state`, and the states that one leaves the other can go on from.
    pub fn trajectory(&self, not_in_state: &[&str]) -> Digest {
        let mut course = self.clone();
        if let Value::Object(params) = &mut course.params {
            params.retain(|name, _| !not_in_state.contains(&name.as_str()));
        }
        canonical::digest(&serde_json::json!({ "format": super::VERSION, "trajectory": course }))
    }
}

/// A figure of one run, which is not part of any key or artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub name: String,
    pub value: f64,
    pub unit: String,
}

/// The record of a run of a fingerprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub version: u32,
    pub fingerprint: Fingerprint,
    /// Port -> artifact.
    pub outputs: BTreeMap<String, Digest>,
    /// Why it ran; `None` where another version of the program wrote a reason that this one lacks.
    #[serde(default, deserialize_with = "known")]
    pub reason: Option<Reason>,
    pub seconds: f64,
    /// The run that made it.
    pub run: String,
    pub measurements: Vec<Measurement>,
}

/// An unknown reason does not invalidate the record.
fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reason>, D::Error> {
    Value::deserialize(deserializer).map(|value| serde_json::from_value(value).ok())
}
