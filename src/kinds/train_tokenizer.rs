//! `train_tokenizer`: documents and conversations to a `tokenizer.json`.

use serde_json::json;

use super::{facts, texts};
use crate::base::{Result, fs};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::train::{self, Options};

pub struct TrainTokenizer;

impl Kind for TrainTokenizer {
    type Params = Options;

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
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Options, inputs: &Connected) -> Vec<Issue> {
        let mut issues = texts::validate(inputs);
        issues.extend(params.validate().into_iter().map(Issue::from));
        issues
    }

    fn facts(params: &Options, _: &Connected, _: &str) -> Facts {
        Facts::from([
            ("vocab_size".to_string(), json!(params.vocab_size)),
            (facts::ALGORITHM.to_string(), json!(params.algorithm)),
        ])
    }

    fn run(params: &Options, ctx: &Context) -> Result<()> {
        let trained = train::train(&texts::inputs(ctx)?, params, ctx.monitor)?;
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
