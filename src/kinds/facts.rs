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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::kinds::distill::Distill;
    use crate::kinds::export::Export;
    use crate::kinds::finetune::Finetune;
    use crate::kinds::prefer::Prefer;
    use crate::kinds::pretrain::Pretrain;
    use crate::kinds::train_tokenizer::TrainTokenizer;
    use crate::stage::Kind;

    fn facts<K: Kind>(params: Value, inputs: &[(&str, &Facts)]) -> Facts {
        K::facts(&serde_json::from_value(params).unwrap(), &connected(inputs), "model")
    }

    fn connected(inputs: &[(&str, &Facts)]) -> Connected {
        let up = |facts: &&Facts| Upstream { facts: (*facts).clone(), ..Upstream::default() };
        Connected(inputs.iter().map(|(port, facts)| (port.to_string(), vec![up(facts)])).collect())
    }

    #[test]
    fn architecture_and_algorithm_are_known_along_a_chain_of_stages() {
        let words = facts::<TrainTokenizer>(json!({ "algorithm": "char", "vocab_size": 600 }), &[]);
        let wider = facts::<TrainTokenizer>(json!({ "algorithm": "char", "vocab_size": 700 }), &[]);
        let base = json!({ "preset": "modern-1.5m", "n_layer": 2, "vocab_size": 600 });
        let base = facts::<Pretrain>(base, &[("tokenizer", &words)]);
        let tuned = facts::<Finetune>(json!({}), &[("model", &base), ("tokenizer", &wider)]);
        let preferred = facts::<Prefer>(json!({}), &[("model", &tuned)]);
        let longer = json!({ "seq_len": 256 });
        let student = facts::<Distill>(longer, &[("teacher", &preferred), ("tokenizer", &wider)]);
        let model = |facts: &Facts| Upstream { facts: facts.clone(), ..Upstream::default() };
        for (facts, vocab_size) in [(&base, 600), (&tuned, 700), (&preferred, 700), (&student, 700)] {
            let found = config(&model(facts)).unwrap();
            assert_eq!((found.vocab_size, found.n_layer), (vocab_size, 2));
            assert_eq!(algorithm(&model(facts)), Some(Algorithm::Char));
        }
        assert_eq!(config(&model(&student)).unwrap().seq_len, 256);

        let params = serde_json::from_value(json!({ "format": "hf", "quantize": "q8_0" })).unwrap();
        let issues = Export::validate(&params, &connected(&[("model", &student)]));
        assert_eq!(issues[0].at, "params.format");
        assert!(issues[0].message.contains("q8_0"), "{issues:?}");
    }

    #[test]
    fn nothing_is_said_of_an_architecture_that_is_not_known_whole() {
        let base = facts::<Pretrain>(json!({ "vocab_size": 600 }), &[]);
        let tuned = facts::<Finetune>(json!({}), &[("model", &base)]);
        assert!(
            tuned.contains_key(SEQ_LEN) && !tuned.contains_key(CONFIG),
            "of the tokenizer nothing is known"
        );
    }
}
