//! Shared by kinds that take a tokenizer.

use std::path::Path;

use crate::base::Result;
use crate::model::TOKENIZER_FILE;
use crate::stage::{Artifact, Connected, Issue};
use crate::tokenizer::{Names, Tokenizer};

/// The `tokenizer.json` of an artifact, or the only file that it has.
pub fn path(artifact: &Artifact) -> Result<&Path> {
    artifact.file_or_only(TOKENIZER_FILE)
}

/// The names of special tokens that an artifact has beside its `tokenizer.json`.
pub fn names(artifact: &Artifact) -> Result<Names> {
    Names::beside(|name| artifact.find(name))
}

/// The tokenizer of an artifact. `names` have precedence over the artifact's own.
pub fn load(artifact: &Artifact, names: Names) -> Result<Tokenizer> {
    Tokenizer::load_with(path(artifact)?, &names.or(self::names(artifact)?))
}

/// An issue when the connected tokenizer has more tokens than the model's vocabulary.
pub fn fits(inputs: &Connected, room: u64, help: impl Fn(u64) -> String) -> Option<Issue> {
    let (label, tokens) = match inputs.number("tokenizer", "vocab_size") {
        Some((up, size)) => (up.label.clone(), size),
        None => inputs.get("tokenizer").iter().find_map(|up| {
            let tokenizer = up.files.iter().find_map(|f| Tokenizer::load(f).ok())?;
            Some((up.label.clone(), tokenizer.vocab_size() as u64))
        })?,
    };
    let what = format!("`{label}` has up to {tokens} tokens, the model has room for {room}");
    (tokens > room).then(|| Issue::input("tokenizer", what).help(help(tokens)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::base::fs;
    use crate::kinds::eval::Eval;
    use crate::kinds::finetune::Finetune;
    use crate::kinds::pretrain::Pretrain;
    use crate::kinds::shard::Shard;
    use crate::kinds::texts::fixtures::{chats, docs};
    use crate::stage::harness::{self, Outcome};
    use crate::tokenizer::tests_with_library::{bpe_of, byte_level, gpt_2};
    use crate::tokenizer::{Special, TOKENIZER_CONFIG_FILE};

    /// A folder with a `tokenizer.json`, as an artifact.
    fn source(json: &[u8]) -> (tempfile::TempDir, Artifact) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(&folder.path().join(TOKENIZER_FILE), json).unwrap();
        let artifact = harness::artifact("tokenizer", folder.path()).unwrap();
        (folder, artifact)
    }

    /// From text to a tuned model and its report, all with one tokenizer.
    fn run_all(json: &[u8], special_tokens: &str) -> (Outcome, Outcome, Outcome) {
        let (_folder, tokenizer) = source(json);
        let vocab_size = load(&tokenizer, Names::default()).unwrap().vocab_size();
        let port = ("tokenizer", tokenizer);
        let texts = [("docs", docs(20)), ("chats", chats(20)), port.clone()];
        let params = format!("{{ validation_fraction: 0.2, special_tokens: {special_tokens} }}");
        let shards = harness::run::<Shard>(&params, &texts, 1).unwrap();
        let params = format!(
            "{{ vocab_size: {vocab_size}, d_model: 8, n_layer: 1, n_head: 2, seq_len: 64, steps: 2, batch_size: 2 }}"
        );
        let inputs = [("shards", shards.artifact("shards").unwrap()), port.clone()];
        let base = harness::run::<Pretrain>(&params, &inputs, 1).unwrap();
        let inputs = [("model", base.artifact("model").unwrap()), port.clone(), ("chats", chats(20))];
        let tuned = harness::run::<Finetune>("{ steps: 2, batch_size: 2 }", &inputs, 1).unwrap();
        let inputs =
            [("model", tuned.artifact("model").unwrap()), port, ("docs", docs(20)), ("chats", chats(20))];
        let params = "{ split: all, prompts: [\"The\"], questions: [\"Who?\"], completions: 2 }";
        let report = harness::run::<Eval>(params, &inputs, 1).unwrap();
        (shards, tuned, report)
    }

    fn scored(report: &Outcome) {
        let report: Value = serde_json::from_slice(&report.read("report", "report.json")).unwrap();
        for scores in [&report, &report["chats"]] {
            assert!(scores["bits_per_byte"].as_f64().unwrap() > 0.0, "{report}");
        }
    }

    /// All bytes, a few words, and GPT-2's one special token, which nothing marks as special.
    fn like_gpt_2(extra: &[&str]) -> Vec<u8> {
        let mut model = bpe_of(&[("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g")]);
        for token in ["<|endoftext|>"].iter().chain(extra) {
            let id = model["vocab"].as_object().unwrap().len();
            model["vocab"][*token] = json!(id);
        }
        byte_level(&model)
    }

    #[test]
    fn every_kind_runs_on_a_tokenizer_like_gpt_2s() {
        let (shards, tuned, report) = run_all(&like_gpt_2(&[]), "{}");
        scored(&report);
        let shards = shards.artifact("shards").unwrap();
        assert_eq!(shards.find(TOKENIZER_CONFIG_FILE), None, "the tokenizer alone says it");
        let config: Value = serde_json::from_slice(&tuned.read("model", "config.json")).unwrap();
        assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(261), &json!(261)));
    }

    /// An added token that is marked as special.
    fn special(id: usize, content: &str) -> Value {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    }

    fn vocabulary(tokens: &[String]) -> Value {
        tokens
            .iter()
            .zip(0..)
            .map(|(token, id)| (token.clone(), json!(id)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Words and their pieces, lower-cased, between `[CLS]` and `[SEP]`.
    fn like_bert() -> Vec<u8> {
        let named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "user", "assistant", "system"];
        let letters = (b'!'..=b'~').map(char::from).filter(|c| !c.is_ascii_uppercase());
        let letters: Vec<String> = letters.flat_map(|c| [c.to_string(), format!("##{c}")]).collect();
        let tokens: Vec<String> = named.into_iter().map(String::from).chain(letters).collect();
        let added: Vec<Value> = (0..4).map(|id| special(id, named[id])).collect();
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary(&tokens)}})
        .to_string()
        .into_bytes()
    }

    /// Characters and bytes, as SentencePiece's are converted: byte tokens marked as special, dropout.
    fn like_llama() -> Vec<u8> {
        let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
        let letters = ('a'..='z').chain(['▁', '\u{2019}']).map(String::from);
        let named = ["<unk>", "<s>", "</s>"].map(String::from);
        let tokens: Vec<String> = named.into_iter().chain(bytes).chain(letters).collect();
        let added: Vec<Value> = (0..259).map(|id| special(id, &tokens[id])).collect();
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing", "special_tokens":
                {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": 0.2, "unk_token": "<unk>", "fuse_unk": true,
                "byte_fallback": true, "vocab": vocabulary(&tokens), "merges": []}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn every_kind_runs_on_tokenizers_like_berts_and_llamas() {
        for (json, bos, eos, unknown) in [(like_bert(), 2, 3, "—"), (like_llama(), 1, 2, "")] {
            let (shards, tuned, report) = run_all(&json, "{}");
            scored(&report);
            let config: Value = serde_json::from_slice(&tuned.read("model", "config.json")).unwrap();
            assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(bos), &json!(eos)));
            let report: Value = serde_json::from_slice(&shards.read("shards", "report.json")).unwrap();
            let is_unknown = report["unknown_tokens"].as_u64().unwrap() > 0;
            assert_eq!(is_unknown, !unknown.is_empty(), "bytes know every sign: {report}");
        }
    }

    #[test]
    fn what_shard_is_told_of_special_tokens_goes_with_the_model() {
        let json = like_gpt_2(&["[GO]", "[STOP]", "[U]", "[A]"]);
        let said = "{ bos: \"[GO]\", eos: \"[STOP]\", user: \"[U]\", assistant: \"[A]\" }";
        let (shards, tuned, report) = run_all(&json, said);
        scored(&report);
        let (of_shards, of_model) =
            (shards.read("shards", TOKENIZER_CONFIG_FILE), tuned.read("model", TOKENIZER_CONFIG_FILE));
        let [shards, model] =
            [of_shards, of_model.clone()].map(|json| serde_json::from_slice::<Value>(&json).unwrap());
        for key in ["bos_token", "eos_token", "pad_token", "role_tokens"] {
            assert_eq!(shards[key], model[key], "{key}");
        }
        assert!(shards["chat_template"].is_null() && model["chat_template"].is_string());
        let config: Value = serde_json::from_slice(&of_model).unwrap();
        assert_eq!((&config["bos_token"], &config["role_tokens"]["user"]), (&json!("[GO]"), &json!("[U]")));
        let tokenizer = load(&tuned.artifact("model").unwrap(), Names::default()).unwrap();
        let id = |token: &str| tokenizer.id(token);
        assert_eq!(tokenizer.special(Special::Eos), id("[STOP]"));
        assert_eq!(tokenizer.special(Special::Assistant), id("[A]"));
        // What the model learned cannot be said otherwise later.
        let (_folder, artifact) = source(&json);
        let inputs =
            [("model", tuned.artifact("model").unwrap()), ("tokenizer", artifact), ("chats", chats(5))];
        let params = "{ steps: 1, special_tokens: { user: \"[GO]\" } }";
        let error = harness::run::<Finetune>(params, &inputs, 1).err().unwrap().to_string();
        assert!(error.contains("`user` is `[U]` for the model and `[GO]` for the tokenizer"), "{error}");
    }

    #[test]
    fn names_of_roles_do_not_count_as_text() {
        let mut model = bpe_of(&[]);
        model["vocab"]["<|endoftext|>"] = json!(256);
        let (_folder, tokenizer) = source(&byte_level(&model));
        let inputs = [("chats", chats(5)), ("tokenizer", tokenizer)];
        let made = harness::run::<Shard>("{}", &inputs, 1).unwrap();
        let report: Value = serde_json::from_slice(&made.read("shards", "report.json")).unwrap();
        assert_eq!(report["bytes_per_token"], 1.0, "a token a byte: {report}");
    }

    #[test]
    fn a_name_that_is_no_token_is_told_with_its_param() {
        let (_folder, tokenizer) = source(&like_gpt_2(&[]));
        let inputs = [("docs", docs(3)), ("tokenizer", tokenizer)];
        let error = harness::run::<Shard>("special_tokens: { bos: \"<s>\" }", &inputs, 1).err().unwrap();
        assert!(error.to_string().contains("`bos` is to be `<s>`"), "{error}");
    }

    #[test]
    fn gpt_2s_own_tokenizer_runs_through_every_kind() {
        let Some(json) = gpt_2() else { return };
        let (shards, tuned, report) = run_all(&json, "{}");
        scored(&report);
        let shards: Value = serde_json::from_slice(&shards.read("shards", "report.json")).unwrap();
        assert_eq!(shards["vocab_size"], 50257);
        let config: Value = serde_json::from_slice(&tuned.read("model", "config.json")).unwrap();
        assert_eq!((&config["bos_token_id"], &config["vocab_size"]), (&json!(50256), &json!(50257)));
    }
}
