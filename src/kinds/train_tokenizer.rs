//! `train_tokenizer`: documents and conversations to a `tokenizer.json`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::texts;
use crate::base::{Result, fs};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::train::{self, Algorithm, Options, SpecialToken};

pub struct TrainTokenizer;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// How text becomes tokens.
    pub algorithm: Algorithm,
    /// How many tokens at most, special tokens included. Reached unless there is too little text.
    pub vocab_size: usize,
    /// What occurs less often is not learned: a pair of tokens (BPE, WordPiece), a word (word,
    /// unigram), a character (char).
    pub min_frequency: u64,
    /// Further special tokens of the form `<name>`, after `<pad> <unk> <bos> <eos> <user> <assistant>
    /// <system>`, which are always there. No text is encoded to them, but to those written as
    /// `{ token: "<think>", in_text: true }` wherever it spells them.
    pub special_tokens: Vec<SpecialToken>,
    /// Lower-case the text (wordpiece, word and char only).
    pub lowercase: bool,
    /// The share of all characters that get a token of their own; rarer ones are spelled in bytes
    /// (sentencepiece_bpe, unigram) or unknown (wordpiece).
    pub character_coverage: f64,
    /// The longest token, in characters (in bytes for byte_bpe).
    pub max_token_length: usize,
    /// Bytes of text to train on at most. Of a larger corpus a sample of documents is taken, by the
    /// digests of their texts.
    pub sample_bytes: u64,
    /// The share of documents, by digest, not trained on but measured on. 0 switches it off.
    pub held_out_fraction: f64,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            algorithm: Algorithm::ByteBpe,
            vocab_size: 4096,
            min_frequency: 2,
            special_tokens: Vec::new(),
            lowercase: false,
            character_coverage: 0.9999,
            max_token_length: 32,
            sample_bytes: 256 << 20,
            held_out_fraction: 0.05,
        }
    }
}

impl Params {
    fn options(&self) -> Options {
        Options {
            algorithm: self.algorithm,
            vocab_size: self.vocab_size,
            min_frequency: self.min_frequency,
            special_tokens: self.special_tokens.clone(),
            lowercase: self.lowercase,
            character_coverage: self.character_coverage,
            max_token_length: self.max_token_length,
            sample_bytes: self.sample_bytes,
            held_out_fraction: self.held_out_fraction,
        }
    }
}

impl Kind for TrainTokenizer {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "train_tokenizer",
            version: 2, // 2: logarithms of our own for unigram
            summary: "Trains a tokenizer on documents and conversations.",
            inputs: texts::ports(),
            outputs: vec![Port::new(
                "tokenizer",
                "tokenizer",
                "`tokenizer.json`, which Hugging Face `tokenizers` loads, and `report.json`.",
            )],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &[],
        }
    }

    fn check(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let options = params.options();
        let mut issues = texts::check(inputs);
        let least = options.least_vocab_size();
        if !(least..=1 << 20).contains(&params.vocab_size) {
            issues.push(Issue::param(
                "vocab_size",
                format!("`vocab_size` is {}: expected {least} to {}", params.vocab_size, 1 << 20),
            ));
        }
        for (i, token) in params.special_tokens.iter().enumerate() {
            if let Some(bad) = options.bad_special(token.as_str()) {
                issues.push(Issue::param(&format!("special_tokens[{i}]"), bad));
            }
        }
        if params.lowercase && !params.algorithm.may_lowercase() {
            issues.push(
                Issue::param(
                    "lowercase",
                    "`lowercase` does not go with an algorithm that gives back the very text",
                )
                .help("use `wordpiece`, `word` or `char`, or lower-case the documents"),
            );
        }
        if !(params.character_coverage > 0.0 && params.character_coverage <= 1.0) {
            issues.push(Issue::param(
                "character_coverage",
                "`character_coverage` must be above 0 and at most 1",
            ));
        }
        if !(0.0..1.0).contains(&params.held_out_fraction) {
            issues.push(Issue::param(
                "held_out_fraction",
                "`held_out_fraction` must be at least 0 and below 1",
            ));
        }
        for (name, value) in
            [("max_token_length", params.max_token_length as u64), ("sample_bytes", params.sample_bytes)]
        {
            if value == 0 {
                issues.push(Issue::param(name, format!("`{name}` must be above 0")));
            }
        }
        issues
    }

    fn facts(params: &Params, _: &Connected, _: &str) -> Facts {
        Facts::from([("vocab_size".to_string(), json!(params.vocab_size))])
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let trained = train::train(&texts::inputs(ctx)?, &params.options(), ctx.monitor)?;
        let folder = ctx.output("tokenizer")?;
        fs::write(&folder.join("tokenizer.json"), trained.tokenizer.json())?;
        fs::write_json(&folder.join("report.json"), &trained.report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::texts::fixtures::{chats, docs};
    use crate::stage::harness;

    #[test]
    fn it_makes_a_tokenizer_of_documents_and_conversations() {
        let inputs = [("docs", docs(40)), ("chats", chats(10))];
        let made = harness::run::<TrainTokenizer>("vocab_size: 400", &inputs, 1).unwrap();
        let tokenizer =
            crate::tokenizer::Tokenizer::load(&made.path("tokenizer").join("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.vocab_size(), 400);
        let report: serde_json::Value =
            serde_json::from_slice(&made.read("tokenizer", "report.json")).unwrap();
        assert_eq!(report["vocab_size"], 400);
        assert_eq!(report["tokenizer"], tokenizer.digest().to_string());
        assert!(report["train"]["bytes_per_token"].as_f64().unwrap() > 2.0, "{report}");
    }

    #[test]
    fn mistakes_in_params_are_found_before_it_runs() {
        let fails = |params: &str| {
            let inputs = [("docs", docs(3))];
            harness::run::<TrainTokenizer>(params, &inputs, 1).err().expect(params).to_string()
        };
        assert!(fails("vocab_size: 263").contains("expected 264"), "{}", fails("vocab_size: 263"));
        assert!(fails("special_tokens: [\"<tool>\", \"tool\"]").contains("`<name>`"));
        assert!(fails("special_tokens: [\"<user>\"]").contains("twice"));
        assert!(fails("special_tokens: [\"<0x0A>\"]").contains("byte"));
        assert!(fails("special_tokens: [{ token: \"<a>\", in_texts: true }]").contains("in_text: true"));
        assert!(fails("special_tokens: [{ token: \"a\", in_text: true }]").contains("`<name>`"));
        assert!(fails("lowercase: true").contains("lowercase"));
        assert!(fails("character_coverage: 0").contains("above 0"));
        assert!(fails("held_out_fraction: 1").contains("below 1"));
        assert!(fails("algorithm: bpe").contains("byte_bpe"));
        let nothing = harness::run::<TrainTokenizer>("{}", &[], 1).err().unwrap().to_string();
        assert!(nothing.contains("`docs`") && nothing.contains("`chats`"), "{nothing}");
    }
}
