//! Shared by kinds that learn from other models: the models at `teacher`, the logits at `logits`, and how good
//! either is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::texts::held_out_by;
use super::tokenizers;
use crate::base::{Error, Result};
use crate::corpus::held_out::HeldOut;
use crate::model::{Model, Transformer};
use crate::stage::{Artifact, Connected, Context, Issue, Upstream};
use crate::tokenizer::{Names, Tokenizer};
use crate::train::Loss;

/// What was computed and how good the teacher is, beside the logits.
pub const LOGITS_FILE: &str = "logits.json";

/// What [`LOGITS_FILE`] holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitsReport {
    pub positions: u64,
    pub vocab_size: usize,
    pub temperature: f64,
    pub top_k: usize,
    /// Tokens of a window.
    pub context: usize,
    /// The mean probability of all ids that are not stored.
    pub rest: Option<f64>,
    pub teachers: Vec<TeacherScores>,
    /// Of the mean of the teachers' distributions, on what the shards hold out, in windows of `context`.
    pub teacher: Option<Scores>,
}

/// A teacher by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeacherScores {
    /// What is connected.
    pub name: String,
    pub parameters: u64,
    #[serde(flatten)]
    pub scores: Option<Scores>,
}

/// How well held-out tokens are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Nats a token.
    pub loss: f64,
    /// The loss in bits by the mean bytes of a token.
    pub bits_per_byte: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

impl Scores {
    /// `None` of no tokens.
    pub fn of(loss: Loss, bytes_per_token: f64) -> Option<Self> {
        (loss.targets > 0).then(|| Scores {
            loss: loss.mean(),
            bits_per_byte: loss.mean() / std::f64::consts::LN_2 / bytes_per_token,
            tokens: loss.targets,
        })
    }
}

pub fn temperature_issue(temperature: f64) -> Option<Issue> {
    let fits = temperature > 0.0 && temperature <= 100.0;
    (!fits)
        .then(|| Issue::param("temperature", format!("expected above 0, at most 100, found {temperature}")))
}

/// The teachers, tokenizer and shards that are connected must have one vocabulary.
pub fn vocabulary_issues(inputs: &Connected) -> Vec<Issue> {
    let teachers: Vec<_> =
        inputs.get("teacher").iter().filter_map(|up| Some((up, vocab_size(up)?))).collect();
    let Some((first, room)) = teachers.first() else { return Vec::new() };
    let other = teachers.iter().find(|(_, other)| other != room).map(|(up, other)| {
        let what = format!("`{}` has a vocabulary of {room}, `{}` of {other}", first.label, up.label);
        Issue::input("teacher", what).help("train the teachers with the same `vocab_size`")
    });
    let help = |_| "connect the tokenizer that the teacher was trained with".to_string();
    other.into_iter().chain(tokenizers::fits(inputs, *room, help)).collect()
}

fn vocab_size(up: &Upstream) -> Option<u64> {
    up.facts.get("vocab_size")?.as_u64()
}

/// The connected teachers, each with the name of what is connected.
///
/// # Errors
/// When one cannot be read, or has other tokens than `tokenizer`.
pub fn load(ctx: &Context, tokenizer: &Tokenizer) -> Result<Vec<(String, Transformer)>> {
    ctx.all("teacher")
        .iter()
        .map(|teacher| Ok((teacher.label.clone(), load_one(teacher, tokenizer)?)))
        .collect()
}

/// The model of `artifact`, whose tokens must be those of `tokenizer`.
///
/// # Errors
/// As [`load`].
pub fn load_one(artifact: &Artifact, tokenizer: &Tokenizer) -> Result<Transformer> {
    let own = tokenizers::load(artifact, Names::default())?;
    let context = || format!("`{}` cannot teach with this tokenizer", artifact.label);
    own.is_part_of(tokenizer).map_err(|e| e.context(context()))?;
    let (known, tokens) = (own.vocab_size(), tokenizer.vocab_size());
    if known < tokens {
        return Err(Error::input(format!("the tokenizer has {tokens} tokens, the model knows {known}"))
            .help("connect the tokenizer that the model was trained with")
            .context(context()));
    }
    Ok(Model::open(&artifact.as_files(), own)?.transformer.dequantized())
}

/// The rules of `held_out`, and those of the artifacts at `port` that are not among them: what they were not
/// trained on, either.
pub fn with_rules_of(mut held_out: HeldOut, artifacts: &[Artifact]) -> Result<HeldOut> {
    for artifact in artifacts {
        let theirs = held_out_by(artifact)?;
        for (all, rules) in
            [(&mut held_out.documents, theirs.documents), (&mut held_out.conversations, theirs.conversations)]
        {
            for rule in rules {
                if !all.contains(&rule) {
                    all.push(rule);
                }
            }
        }
    }
    Ok(held_out)
}

/// The scores of each teacher by itself.
pub fn scores(
    models: &[(String, Transformer)],
    losses: Vec<Loss>,
    bytes_per_token: f64,
) -> Vec<TeacherScores> {
    let one = |((name, model), loss): (&(String, Transformer), Loss)| TeacherScores {
        name: name.clone(),
        parameters: model.config.parameters() as u64,
        scores: Scores::of(loss, bytes_per_token),
    };
    models.iter().zip(losses).map(one).collect()
}

/// The files of a connected artifact of logits.
pub fn files(artifact: &Artifact) -> Vec<(String, PathBuf)> {
    artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect()
}

/// What is known before it runs of the logits at port `logits`.
pub fn known(inputs: &Connected, fact: &str) -> Option<Value> {
    inputs.get("logits").iter().find_map(|up| up.facts.get(fact).cloned())
}

#[cfg(test)]
pub mod fixtures {
    use serde_json::Value;

    use super::*;
    use crate::kinds::shard::Shard;
    use crate::kinds::texts::fixtures::docs;
    use crate::model::{Config, gpt2};
    use crate::stage::harness;

    pub const SEQ_LEN: usize = 32;

    /// Token shards with their tokenizer.
    pub struct Fixture {
        tokenizer: Artifact,
        shards: harness::Outcome,
        folder: tempfile::TempDir,
    }

    impl Fixture {
        pub fn new() -> Self {
            Self::of("byte_bpe.json")
        }

        pub fn of(tokenizer: &str) -> Self {
            Self::split(tokenizer, 0.2)
        }

        /// With another share of documents held out.
        pub fn split(tokenizer: &str, validation_fraction: f64) -> Self {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/");
            let path = std::path::Path::new(folder).join(tokenizer);
            let tokenizer = harness::artifact("tokenizer", &path).unwrap();
            let inputs = [("docs", docs(40)), ("tokenizer", tokenizer.clone())];
            let params = format!("{{ validation_fraction: {validation_fraction} }}");
            let shards = harness::run::<Shard>(&params, &inputs, 1).unwrap();
            Fixture { tokenizer, shards, folder: tempfile::tempdir().unwrap() }
        }

        pub fn inputs<'a>(&self, further: &[(&'a str, Artifact)]) -> Vec<(&'a str, Artifact)> {
            let own =
                [("shards", self.shards.artifact("shards").unwrap()), ("tokenizer", self.tokenizer.clone())];
            own.into_iter().chain(further.iter().cloned()).collect()
        }

        /// An untrained model called `name`, of a width that follows from `seed`, for the tokenizer.
        pub fn model(&self, name: &str, seed: u64) -> Artifact {
            self.model_of(name, seed, SEQ_LEN)
        }

        pub fn model_of(&self, name: &str, seed: u64, seq_len: usize) -> Artifact {
            let tokenizer = tokenizers::load(&self.tokenizer, Names::default()).unwrap();
            let config = Config { d_ff: 24, ..gpt2(600, 8 * seed as usize, 1, 2, seq_len) };
            let folder = self.folder.path().join(name);
            crate::base::fs::create_dir(&folder).unwrap();
            let mut transformer = Transformer::fresh(&config, seed);
            // So that some tokens are likelier than others.
            transformer.weights.iter_mut().for_each(|w| *w *= 4.0);
            Model { transformer, tokenizer }.save(&folder).unwrap();
            harness::artifact(name, &folder).unwrap()
        }
    }

    /// Ports with what is known of what is connected to each.
    pub fn connected(ports: &[(&str, &[Value])]) -> Connected {
        let upstream = |port: &str, facts: &Value| Upstream {
            label: port.to_string(),
            facts: serde_json::from_value(facts.clone()).unwrap(),
            ..Default::default()
        };
        let all = |(port, facts): &(&str, &[Value])| {
            (port.to_string(), facts.iter().map(|facts| upstream(port, facts)).collect())
        };
        Connected(ports.iter().map(all).collect())
    }
}
