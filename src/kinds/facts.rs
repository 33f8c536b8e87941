//! What is known of models and tokenizers before they exist, so that the plan refuses what cannot be made of
//! them: `vocab_size`, `seq_len`, the architecture, the tokenizer's algorithm.

use serde::de::DeserializeOwned;
use serde_json::json;

use crate::model::Config;
use crate::stage::{Connected, Facts, Upstream};
use crate::tokenizer::train::Algorithm;

const VOCAB_SIZE: &str = "vocab_size";
const SEQ_LEN: &str = "seq_len";
/// The [`Config`] of a model.
const CONFIG: &str = "config";
/// The [`Algorithm`] of a tokenizer, or of a model's tokenizer.
pub const ALGORITHM: &str = "algorithm";

/// Of a model with a vocabulary and sequences of these sizes, whose other parts are those of `config`. Of the
/// architecture nothing is said until all of it is known.
pub fn of_model(vocab_size: Option<u64>, seq_len: Option<u64>, config: Option<Config>) -> Facts {
    let mut facts = Facts::new();
    if let (Some(vocab_size), Some(seq_len), Some(config)) = (vocab_size, seq_len, config) {
        let config = Config { vocab_size: vocab_size as usize, seq_len: seq_len as usize, ..config };
        facts.insert(CONFIG.into(), json!(config));
    }
    let sizes = [(VOCAB_SIZE, vocab_size), (SEQ_LEN, seq_len)];
    facts.extend(sizes.into_iter().filter_map(|(name, n)| Some((name.into(), n?.into()))));
    facts
}

/// All facts of the model at `port`, which hold of what is made from it.
pub fn of_same_model(inputs: &Connected, port: &str) -> Facts {
    inputs.get(port).first().map(|up| up.facts.clone()).unwrap_or_default()
}

/// The algorithm of the tokenizer at `port`, as a fact of what is made with it.
pub fn of_same_tokenizer(inputs: &Connected, port: &str) -> Facts {
    let known = inputs.get(port).first().and_then(|up| up.facts.get(ALGORITHM));
    known.map(|value| (ALGORITHM.to_string(), value.clone())).into_iter().collect()
}

/// The architecture of a connected model.
pub fn config(up: &Upstream) -> Option<Config> {
    value(up, CONFIG)
}

/// The algorithm of a connected tokenizer, or model's tokenizer.
pub fn algorithm(up: &Upstream) -> Option<Algorithm> {
    value(up, ALGORITHM)
}

fn value<T: DeserializeOwned>(up: &Upstream, fact: &str) -> Option<T> {
    T::deserialize(up.facts.get(fact)?).ok()
}
