//! What would run, and why: a pure function of a pipeline, its sources' digests and what is known of
//! earlier actions and of the states that they left. `plan`, `run` and `why` all ask [`decide`], so they
//! cannot disagree.
//!
//! A fingerprint holds the digests of inputs, so a stage downstream of one that will run is *pending*: its
//! key is not known yet, and if the upstream stage gives the same bytes again, it is a hit.

mod differences;
pub mod lock;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::Value;

pub use differences::differences;

use crate::base::Digest;
use crate::spec::{Input, Pipeline, StageSpec};
use crate::stage::{Info, Kinds, Resume, Stage, ValueVersion};
use crate::store::source::Sources;
use crate::store::{Action, Damage, Difference, Fingerprint, Manifest, Reason, Store, VERSION};

/// The record of earlier runs that a plan reads.
pub trait Records {
    fn action(&self, key: &Digest) -> Option<Action>;
    /// Why the record of an action is unreadable, where it is.
    fn damaged_record(&self, _: &Digest) -> Option<String> {
        None
    }
    /// Why a stage's history is unreadable, where it is.
    fn damaged_history(&self, _pipeline: &str, _stage: &str) -> Option<String> {
        None
    }
    /// What is missing or changed in an artifact, down to its bytes.
    fn damage(&self, artifact: &Digest) -> Option<Damage>;
    fn manifest(&self, artifact: &Digest) -> Option<Manifest>;
    /// Keys of the stage's latest actions, the newest last.
    fn history(&self, pipeline: &str, stage: &str) -> Vec<Digest>;
    /// Where the states of a trajectory are, if there are any.
    fn states(&self, _trajectory: &Digest) -> Option<PathBuf> {
        None
    }
}

/// The store, and the present sources, whose manifests a plan must not write to the store.
pub struct Past<'a> {
    pub store: &'a Store,
    pub sources: &'a Sources,
}

impl Records for Past<'_> {
    fn action(&self, key: &Digest) -> Option<Action> {
        self.store.action(key)
    }
    fn damaged_record(&self, key: &Digest) -> Option<String> {
        self.store.damaged_record(key)
    }
    fn damaged_history(&self, pipeline: &str, stage: &str) -> Option<String> {
        self.store.damaged_history(pipeline, stage)
    }
    fn damage(&self, artifact: &Digest) -> Option<Damage> {
        self.store.damage(artifact)
    }
    fn manifest(&self, artifact: &Digest) -> Option<Manifest> {
        self.store.manifest(artifact).or_else(|| {
            self.sources.iter().find(|(_, s)| s.artifact.digest == *artifact).map(|(_, s)| s.manifest.clone())
        })
    }
    fn history(&self, pipeline: &str, stage: &str) -> Vec<Digest> {
        self.store.history(pipeline, stage)
    }
    fn states(&self, trajectory: &Digest) -> Option<PathBuf> {
        Some(self.store.state_folder(trajectory))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its record and all blobs of its outputs are there.
    Cached,
    Run,
    /// Waits for the digest of an input.
    Pending,
}

/// A verdict with its reason, key and fingerprint.
#[derive(Debug, Clone)]
pub struct Decision {
    pub verdict: Verdict,
    pub reason: Reason,
    /// `None` while an input's digest is not known.
    pub fingerprint: Option<Fingerprint>,
    /// Of the fingerprint: the action key.
    pub key: Option<Digest>,
    /// The artifacts of a cached stage.
    pub action: Option<Action>,
    /// Names the folder of the stage's states, where its kind saves any.
    pub trajectory: Option<Digest>,
    /// From where a stage that runs goes on; `None` where it starts from nothing.
    pub resumes: Option<Resume>,
}

impl Decision {
    /// The reason, and from where the stage goes on, in one line for a terminal.
    pub fn detail(&self) -> String {
        let reason = self.reason.detail();
        self.resumes.map_or(reason.clone(), |resume| format!("{reason}; {resume}"))
    }
}

/// One stage of a plan.
#[derive(Debug, Clone)]
pub struct Planned {
    pub stage: String,
    pub decision: Decision,
}

/// The ordered actions, each with a verdict.
#[derive(Debug, Clone)]
pub struct Plan {
    pub stages: Vec<Planned>,
}

impl Plan {
    pub fn has_work(&self) -> bool {
        self.stages.iter().any(|s| s.decision.verdict != Verdict::Cached)
    }
}

/// The digests of a stage's inputs, or the input that has none yet.
pub type InputDigests = Result<BTreeMap<String, Vec<Digest>>, String>;

/// Plans `stages`, which are in an order in which they can run and closed under "needs".
pub fn build(
    pipeline: &Pipeline,
    stages: &[&StageSpec],
    kinds: &Kinds,
    sources: &Sources,
    records: &dyn Records,
    forced: &dyn Fn(&StageSpec) -> bool,
) -> Plan {
    let mut outputs: HashMap<&str, BTreeMap<String, Digest>> = HashMap::new();
    let mut planned = Vec::with_capacity(stages.len());
    for &stage in stages {
        let inputs = input_digests(stage, sources, |name| outputs.get(name));
        let decision = decide(pipeline, stage, kinds, inputs, records, forced(stage));
        if let Some(action) = &decision.action {
            outputs.insert(&stage.name, action.outputs.clone());
        }
        planned.push(Planned { stage: stage.name.clone(), decision });
    }
    Plan { stages: planned }
}

/// Looks up what is connected to `stage`; `outputs` gives the artifacts of finished stages.
pub fn input_digests<'a>(
    stage: &StageSpec,
    sources: &Sources,
    outputs: impl Fn(&str) -> Option<&'a BTreeMap<String, Digest>>,
) -> InputDigests {
    let digest = |input: &Input| match input {
        Input::Source(spec) => sources
            .get(spec)
            .map(|s| s.artifact.digest)
            .ok_or_else(|| format!("the download of {}", spec.text)),
        Input::Stage { stage, port } => {
            outputs(stage).and_then(|o| o.get(port)).copied().ok_or_else(|| format!("`{stage}`"))
        }
    };
    stage
        .inputs
        .iter()
        .map(|(port, inputs)| Ok((port.clone(), inputs.iter().map(digest).collect::<Result<_, _>>()?)))
        .collect()
}

/// Decides whether a stage runs; the only place that does.
pub fn decide(
    pipeline: &Pipeline,
    stage: &StageSpec,
    kinds: &Kinds,
    inputs: InputDigests,
    records: &dyn Records,
    forced: bool,
) -> Decision {
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(waits_for) => return pending(waits_for),
    };
    let Some(kind) = kinds.get(&stage.kind) else {
        return pending(format!("a kind `{}`", stage.kind));
    };
    let info = kind.info();
    let fingerprint = fingerprint(stage, info, inputs);
    let key = fingerprint.key();
    let (verdict, reason, action) = match records.action(&key) {
        _ if forced => (Verdict::Run, Reason::Forced, None),
        Some(action) => match damage(&action, records) {
            Some((port, damage)) => (Verdict::Run, Reason::damaged(port, damage), None),
            None => (Verdict::Cached, Reason::UpToDate, Some(action)),
        },
        None => (Verdict::Run, why_new(&fingerprint, &key, pipeline, stage, records), None),
    };
    let trajectory = (!info.not_in_state.is_empty()).then(|| fingerprint.trajectory(info.not_in_state));
    let resumes = match (verdict, forced) {
        (Verdict::Run, false) => trajectory.and_then(|t| resumes(stage, kind, &t, records)),
        _ => None,
    };
    Decision { verdict, reason, fingerprint: Some(fingerprint), key: Some(key), action, trajectory, resumes }
}

/// From where the states that are there take the stage.
fn resumes(
    stage: &StageSpec,
    kind: &dyn Stage,
    trajectory: &Digest,
    records: &dyn Records,
) -> Option<Resume> {
    kind.resumes(&stage.params, stage.seed, &records.states(trajectory)?)
}

/// Why an action is not cached.
fn why_new(
    fingerprint: &Fingerprint,
    key: &Digest,
    pipeline: &Pipeline,
    stage: &StageSpec,
    records: &dyn Records,
) -> Reason {
    if let Some(why) = records.damaged_record(key) {
        return Reason::RecordDamaged(why);
    }
    match nearest(fingerprint, key, pipeline, stage, records) {
        Some((_, differences)) => Reason::Changed(differences),
        None => {
            let damaged = records.damaged_history(&pipeline.folder, &stage.name);
            damaged.map_or(Reason::NeverRan, Reason::RecordDamaged)
        }
    }
}

fn pending(waits_for: String) -> Decision {
    Decision {
        verdict: Verdict::Pending,
        reason: Reason::Waits(waits_for),
        fingerprint: None,
        key: None,
        action: None,
        trajectory: None,
        resumes: None,
    }
}

fn damage(action: &Action, records: &dyn Records) -> Option<(String, Damage)> {
    action.outputs.iter().find_map(|(port, artifact)| Some((port.clone(), records.damage(artifact)?)))
}

fn fingerprint(stage: &StageSpec, info: &Info, inputs: BTreeMap<String, Vec<Digest>>) -> Fingerprint {
    let mut params = stage.params.clone();
    if let Value::Object(map) = &mut params {
        map.retain(|name, _| !info.not_in_key.contains(&name.as_str()));
    }
    let has = |v: &&ValueVersion| params.get(v.param).and_then(Value::as_str) == Some(v.value);
    let value_versions = info.value_versions.iter().filter(has);
    Fingerprint {
        kind: info.name.to_string(),
        kind_version: info.version,
        value_versions: value_versions.map(|v| (v.param.to_string(), v.version)).collect(),
        params,
        // An optional port with nothing connected is left out.
        inputs: inputs.into_iter().filter(|(_, d)| !d.is_empty()).collect(),
        outputs: if info.open { stage.outputs.clone() } else { BTreeMap::new() },
        seed: info.seeded.then_some(stage.seed),
    }
}

/// The earlier action of this stage that differs least from `fingerprint`, the newest of equals, with the
/// differences.
pub fn nearest(
    fingerprint: &Fingerprint,
    key: &Digest,
    pipeline: &Pipeline,
    stage: &StageSpec,
    records: &dyn Records,
) -> Option<(Action, Vec<Difference>)> {
    records
        .history(&pipeline.folder, &stage.name)
        .iter()
        .rev()
        .filter(|k| *k != key)
        .filter_map(|k| records.action(k))
        .filter(|a| a.version == VERSION)
        .map(|action| {
            let differences = differences(&action.fingerprint, fingerprint, records);
            (action, differences)
        })
        .min_by_key(|(_, differences)| differences.len())
}

#[cfg(test)]
mod tests;
