//! `shard`: documents and conversations to token shards, split into training and validation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{texts, tokenizers};
use crate::base::{Result, fs};
use crate::shard::{self, Options};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::{Names, Special, TOKENIZER_CONFIG_FILE, Tokenizer};

pub struct Shard;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// The share of documents, and of conversations, that is held out for validation, by the digest of
    /// their text. Above 0, at least one is when there are two. A text stays in its split when others
    /// come or go. 0: all are trained on, as where `pretrain` is given texts to validate on.
    pub validation_fraction: f64,
    /// A file takes no further document once it has this many tokens.
    pub shard_tokens: u64,
    /// Which tokens of the tokenizer begin and end a text, fill up a batch, and begin a turn of each role:
    /// `{ bos: "<s>", eos: "</s>" }`. Default: what the tokenizer says, or its token of a usual name; a role
    /// without a token of its own begins with what begins a text, and the role's name on a line. Models
    /// trained on the shards keep to it.
    pub special_tokens: Names,
}

impl Default for Params {
    fn default() -> Self {
        Params { validation_fraction: 0.05, shard_tokens: 32 << 20, special_tokens: Names::default() }
    }
}

impl Params {
    fn options(&self, seed: u64) -> Options {
        Options { validation_fraction: self.validation_fraction, shard_tokens: self.shard_tokens, seed }
    }
}

impl Kind for Shard {
    type Params = Params;

    fn info() -> Info {
        let mut inputs = texts::ports();
        inputs.push(
            Port::new("tokenizer", "tokenizer", "What encodes the text.")
                .or(&["model"])
                .or_source(&["tokenizer.json", ".json"]),
        );
        Info {
            name: "shard",
            version: 2, // 2: documents and conversations split each by themselves; `held_out.json`
            summary: "Encodes documents and conversations into token shards in Parquet, shuffled and split.",
            inputs,
            outputs: vec![Port::new(
                "shards",
                "shards",
                "`train-*.parquet` and `validation-*.parquet`, a document a row; `held_out.json`, `report.json`; \
                 `tokenizer_config.json` where the tokenizer alone does not name the special tokens.",
            )],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let mut issues = texts::validate(inputs);
        issues.extend(params.options(0).validate().into_iter().map(Issue::from));
        issues
    }

    fn facts(_: &Params, inputs: &Connected, _: &str) -> Facts {
        let vocab_size = inputs.number("tokenizer", "vocab_size");
        vocab_size.map(|(_, n)| ("vocab_size".to_string(), json!(n))).into_iter().collect()
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let tokenizer = tokenizers::load(ctx.input("tokenizer")?, params.special_tokens.clone())?;
        announce(&tokenizer);
        let folder = ctx.output("shards")?;
        if let Some(json) = tokenizer.config()? {
            fs::write(&folder.join(TOKENIZER_CONFIG_FILE), &json)?;
        }
        let report = shard::build(
            &texts::inputs(ctx)?,
            &tokenizer,
            &params.options(ctx.seed),
            folder,
            &ctx.scratch,
            ctx.monitor,
        )?;
        fs::write_json(&folder.join("report.json"), &report)
    }
}

/// Logs which tokens are `<bos>` and `<eos>`, where they have other names.
fn announce(tokenizer: &Tokenizer) {
    for (special, what) in [(Special::Bos, "begins"), (Special::Eos, "ends")] {
        let token = tokenizer.special(special).and_then(|id| tokenizer.token(id));
        if let Some(token) = token.filter(|token| token != special.as_str()) {
            tracing::info!("`{token}` {what} a text");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::held_out::Split;
    use crate::kinds::texts::fixtures::{chats, docs};
    use crate::kinds::train_tokenizer::TrainTokenizer;
    use crate::shard::Shards;
    use crate::stage::harness;

    #[test]
    fn it_shards_what_train_tokenizer_can_encode() {
        let texts = [("docs", docs(60)), ("chats", chats(10))];
        let made = harness::run::<TrainTokenizer>("vocab_size: 300", &texts, 1).unwrap();
        let tokenizer = ("tokenizer", made.artifact("tokenizer").unwrap());
        let inputs: Vec<_> = texts.into_iter().chain([tokenizer]).collect();
        let shards = |threads| {
            let params = "{ shard_tokens: 2000, validation_fraction: 0.2 }";
            harness::run_with::<Shard>(params, &inputs, 5, threads, &crate::base::Quiet).unwrap()
        };
        let (one, two) = (shards(1), shards(2));
        let artifact = one.artifact("shards").unwrap();
        assert_eq!(artifact.digest, two.artifact("shards").unwrap().digest);
        let files: Vec<_> = artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
        let read = Shards::open(&files).unwrap();
        assert_eq!(read.train_documents + read.validation_documents, 70);
        assert_eq!(read.read(Split::Validation).unwrap().len() as u64, read.validation_tokens);
        let report: serde_json::Value = serde_json::from_slice(&one.read("shards", "report.json")).unwrap();
        assert_eq!((&report["conversations"], &report["unknown_tokens"]), (&json!(10), &json!(0)));
    }

    #[test]
    fn a_tokenizer_that_is_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.json");
        fs::write(&path, b"{]").unwrap();
        let inputs = [("docs", docs(3)), ("tokenizer", harness::artifact("mine", &path).unwrap())];
        let error = harness::run::<Shard>("{}", &inputs, 1).err().unwrap();
        assert!(error.to_string().contains("mine.json:1:2"), "{error}");
        let error = harness::run::<Shard>("validation_fraction: 1.5", &inputs, 1).err().unwrap();
        assert!(error.message().contains("below 1"), "{error}");
    }
}
