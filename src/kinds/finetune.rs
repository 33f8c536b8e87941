//! `finetune`: a pretrained model learns to answer. Loss on the assistant's tokens, or on all.

use std::collections::HashSet;
use std::path::Path;

use super::adapters::{ADAPTER, Adapters};
use super::texts::held_out_by;
use super::training;
use super::training_params::{BF16_TILE, NOT_IN_KEY, NOT_IN_STATE, training_params};
use super::{facts, tokenizers};
use crate::base::{Error, Result, units};
use crate::corpus::conversation::{self, ConversationReader};
use crate::corpus::held_out::{Rule, Split};
use crate::model::{Model, TOKENIZER_FILE, Transformer};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port, Resume};
use crate::tokenizer::chat::{self, Rendered};
use crate::tokenizer::{Names, Special, Tokenizer};
use crate::train::{self, NextToken, Packed, Packing, pack, shortest_row};

pub struct Finetune;

training_params! {
    /// How the model is tuned.
    Params;
    defaults { steps: 300, learning_rate: 0.001, warmup_steps: 20 }
    own {
        /// The share of conversations held out for validation, by the digest of their text. Above 0, at
        /// least one is when there are two. With conversations connected to `validation`, none is.
        validation_fraction: f64 = 0.05,
        /// Which tokens begin a turn of each role, for a model that has learned none:
        /// `{ user: "<|user|>", assistant: "<|assistant|>" }`. Default: what the model says, or its
        /// tokenizer's token of a usual name, or what begins a text and the role's name on a line.
        special_tokens: Names = Names::default(),
        /// The tokens that are learned: what the `assistant` says, where the weight of its message is not 0;
        /// or `all` of a conversation, openings of turns and what others say among them.
        loss_on: LossOn = LossOn::Assistant,
        /// Trains low-rank adapters (LoRA) instead of the weights: `{ rank: 8, alpha: 16 }`. They become the
        /// output `adapter`. Default: the weights are trained.
        lora: Option<Adapters> = None,
    }
}

/// Which tokens of a conversation are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// What the assistant says.
    Assistant,
    /// All of them.
    All,
}

impl LossOn {
    fn apply(self, packing: &mut Packing) {
        if self == LossOn::All {
            packing.rows.iter_mut().for_each(|(_, learn)| learn.fill(true));
        }
    }
}

/// Below this no exchange fits.
const SHORTEST: u64 = 16;

impl Kind for Finetune {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "finetune",
            version: 7, // 6: architectures and recipes; 7: a folder that `transformers` loads
            summary: "Teaches a pretrained model to answer, on conversations.",
            inputs: vec![
                Port::new("model", "model", "The pretrained model."),
                Port::new("tokenizer", "tokenizer", "The model's tokenizer, or one with further tokens.")
                    .or(&["model"])
                    .or_source(&["tokenizer.json", ".json"]),
                Port::new("chats", "conversations", "What it learns to say.").many(),
                Port::new(
                    "validation",
                    "conversations",
                    "What it is validated on, all of it, instead of what is held out of `chats`.",
                )
                .optional()
                .many(),
            ],
            outputs: vec![
                Port::new(
                    "model",
                    "model",
                    "`model.safetensors` with what `transformers` loads beside it; `held_out.json`, metrics and samples.",
                ),
                Port::new(
                    "adapter",
                    ADAPTER,
                    "With `lora`: `adapter_model.safetensors`, `adapter_config.json`, as PEFT has them; \
                     `held_out.json`.",
                ),
            ],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: NOT_IN_KEY,
            not_in_state: NOT_IN_STATE,
            value_versions: BF16_TILE,
        }
    }

    fn outputs(params: &Params) -> Vec<Port> {
        let is_there = |port: &Port| match port.name.as_str() {
            "adapter" => params.lora.is_some(),
            _ => params.merges(),
        };
        let checkpoints = training::checkpoints(&params.keep_checkpoints);
        Self::info().outputs.into_iter().filter(is_there).chain(checkpoints).collect()
    }

    fn resumes(params: &Params, seed: u64, state: &Path) -> Option<Resume> {
        training::resumes(&params.options(seed), state)
    }

    fn committed(params: &Params, seed: u64, state: &Path) {
        train::remove_used(&params.options(seed), state);
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let mut issues = params.validate_training();
        if !(0.0..1.0).contains(&params.validation_fraction) {
            let found = params.validation_fraction;
            issues.push(Issue::param("validation_fraction", format!("expected 0 to below 1, found {found}")));
        }
        if let Some(lora) = &params.lora {
            issues.extend(lora.validate());
            let frozen = [
                ("embedding_learning_rate", params.embedding_learning_rate),
                ("vector_learning_rate", params.vector_learning_rate),
            ];
            let given = frozen.into_iter().filter(|(_, rate)| rate.is_some());
            issues.extend(given.map(|(name, _)| {
                let what = "it changes nothing here: with `lora` the matrices of adapters alone are trained";
                Issue::param(name, what).help("leave it or `lora` away")
            }));
            let size = |port| inputs.number(port, "vocab_size").map(|(_, n)| n);
            if let (Some(model), Some(tokens)) = (size("model"), size("tokenizer"))
                && tokens > model
            {
                issues.push(Issue::input("tokenizer", new_tokens(tokens, model)).help(WITHOUT_NEW_TOKENS));
            }
        }
        if let Some((up, len)) = inputs.number("model", "seq_len").filter(|(_, len)| *len < SHORTEST) {
            let what = format!("`{}` holds {len} tokens, too few for an exchange", up.label);
            issues
                .push(Issue::input("model", what).help(format!("pretrain with seq_len {SHORTEST} or more")));
        }
        issues
    }

    fn facts(_: &Params, inputs: &Connected, _: &str) -> Facts {
        let number = |port, fact| inputs.number(port, fact).map(|(_, n)| n);
        // The embedding is extended when the tokenizer has more.
        let vocab_size =
            number("model", "vocab_size").zip(number("tokenizer", "vocab_size")).map(|(a, b)| a.max(b));
        let config = inputs.get("model").first().and_then(facts::config);
        let mut facts = facts::of_model(vocab_size, number("model", "seq_len"), config);
        facts.extend(facts::of_same_tokenizer(inputs, "tokenizer"));
        facts
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let mut model = load(params, ctx)?;
        check_length(&model)?;
        let (train, validation, rule) = rows(params, ctx, &model)?;
        if let Some(lora) = &params.lora {
            model.transformer = lora.begin(model.transformer, ctx.seed)?;
        }
        let places = training::places(ctx, if params.merges() { "model" } else { "adapter" })?;
        let mut objective = NextToken { label_smoothing: params.label_smoothing };
        let options = params.options(ctx.seed);
        let outcome =
            train::run(&mut model, &mut objective, &train, &validation, &options, places, ctx.monitor)?;
        let mut held_out = held_out_by(ctx.input("model")?)?;
        held_out.conversations.push(rule);
        held_out.save(places.output)?;
        if params.lora.is_some() {
            let folder = ctx.output("adapter")?;
            held_out.save(folder)?;
            model.transformer.save_adapter(folder)?;
        }
        if params.merges() {
            model.save(places.output)?;
        }
        training::save_checkpoints(ctx, &mut model, &outcome, &held_out)
    }
}

impl Params {
    /// Whether a whole model comes out.
    fn merges(&self) -> bool {
        self.lora.as_ref().is_none_or(|lora| lora.merge)
    }
}

fn new_tokens(tokens: u64, room: u64) -> String {
    format!(
        "{tokens} tokens for a model of {room}: with `lora` the embedding is frozen, and learns no new ones"
    )
}

const WITHOUT_NEW_TOKENS: &str = "connect the model's own tokenizer, or leave `lora` away";

/// The model with the tokenizer that is connected, its embedding extended where that has new tokens.
fn load(params: &Params, ctx: &Context) -> Result<Model> {
    let input = ctx.input("model")?;
    let mut transformer = Transformer::open(&input.as_files())?.dequantized();
    let names = tokenizers::names(input)?;
    let own = Tokenizer::load_with(input.file(TOKENIZER_FILE)?, &names)?;
    let connected = ctx.input("tokenizer")?;
    let names = params.special_tokens.clone().or(names);
    let tokenizer = tokenizers::load(connected, names)?;
    own.is_part_of(&tokenizer)?;
    let (tokens, room) = (tokenizer.vocab_size(), transformer.config.vocab_size);
    if tokens > room && params.lora.is_some() {
        let what = format!("`{}`: {}", connected.label, new_tokens(tokens as u64, room as u64));
        return Err(Error::input(what).help(WITHOUT_NEW_TOKENS));
    }
    if tokens > room {
        tracing::info!(
            "the embedding grows from {} to {} tokens",
            transformer.config.vocab_size,
            tokenizer.vocab_size()
        );
        let rows = |id| (id < transformer.config.vocab_size).then_some(id);
        let rows: Vec<Option<usize>> = (0..tokenizer.vocab_size()).map(rows).collect();
        transformer = transformer.with_rows(&rows, ctx.seed);
    }
    if let Some(dropout) = params.dropout {
        transformer.config.dropout = dropout;
    }
    Ok(Model { transformer, tokenizer })
}

/// An error where a model is too short for an exchange.
pub(super) fn check_length(model: &Model) -> Result<()> {
    let seq_len = model.transformer.config.seq_len;
    let shortest = shortest_row(chat::longest_opening(&model.tokenizer)?).max(SHORTEST as usize);
    if seq_len >= shortest {
        return Ok(());
    }
    Err(Error::input(format!("a model of {seq_len} positions holds no exchange"))
        .help(format!("pretrain with `seq_len: {shortest}` or more")))
}

/// The conversations packed into rows, to train on and to validate on, and the rule that parted them.
fn rows(params: &Params, ctx: &Context, model: &Model) -> Result<(Packed, Packed, Rule)> {
    let chats = rendered(ctx, "chats", model)?;
    let mut given = rendered(ctx, "validation", model)?;
    let fraction = if given.is_empty() { params.validation_fraction } else { 0.0 };
    let rule = Rule::new(fraction, &chats.iter().map(|(id, _)| id.as_str()).collect());
    if !given.is_empty() {
        warn_of_trained(&chats, &given);
    }
    let (read, mut train) = (chats.len() + given.len(), Vec::new());
    for (id, conversation) in chats {
        match rule.split(&id) {
            Split::Train => train.push(conversation),
            Split::Validation => given.push((id, conversation)),
        }
    }
    let seq_len = model.transformer.config.seq_len;
    let mut train = pack(train.into_iter(), seq_len + 1);
    let mut validation = pack(given.into_iter().map(|(_, conversation)| conversation), seq_len + 1);
    params.loss_on.apply(&mut train);
    params.loss_on.apply(&mut validation);
    tracing::info!(
        "{} conversations in {} rows of {seq_len} tokens, {} rows held out; {} conversations split, {} exchanges cut",
        units::count(read as u64),
        units::count(train.rows.len() as u64),
        validation.rows.len(),
        train.split + validation.split,
        train.cut + validation.cut
    );
    let pad = model.tokenizer.require(Special::Pad)?;
    Ok((Packed::new(train.rows, seq_len, pad), Packed::new(validation.rows, seq_len, pad), rule))
}

/// The conversations at `port` as token ids, each with its id.
fn rendered(ctx: &Context, port: &str, model: &Model) -> Result<Vec<(String, Rendered)>> {
    let mut all = Vec::new();
    for artifact in ctx.all(port) {
        let reader = ConversationReader::open(artifact.file(conversation::FILE_NAME)?)?;
        let total = all.len() as u64 + reader.rows;
        for conversation in reader {
            let conversation = conversation?;
            if all.len() % 512 == 0 {
                ctx.monitor.step("packing", all.len() as u64, Some(total), "conversations")?;
            }
            let rendered = chat::render(&model.tokenizer, &conversation.messages)
                .map_err(|e| e.context(format!("conversation `{}`", conversation.id)))?;
            all.push((conversation.id, rendered));
        }
    }
    Ok(all)
}

fn warn_of_trained(chats: &[(String, Rendered)], given: &[(String, Rendered)]) {
    let trained: HashSet<&str> = chats.iter().map(|(id, _)| id.as_str()).collect();
    let known = given.iter().filter(|(id, _)| trained.contains(id.as_str())).count();
    if known > 0 {
        tracing::warn!(
            "{known} conversations to validate on are trained on, too: the validation loss is too low"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::adapters;
    use super::super::texts::fixtures;
    use super::*;
    use crate::corpus::held_out;
    use crate::model::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Config, gpt2};
    use crate::model::{CONFIG_FILE, WEIGHTS_FILE};
    use crate::stage::{Artifact, harness};

    fn tokenizer(name: &str) -> Artifact {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/");
        harness::artifact("tokenizer", &Path::new(path).join(name)).unwrap()
    }

    /// A fresh model of the byte-level tokenizer, with room for `vocab_size` tokens.
    fn model(folder: &Path) -> Artifact {
        let tokenizer = Tokenizer::load(tokenizer("byte_bpe.json").file_or_only("").unwrap()).unwrap();
        let config = Config { d_ff: 32, dropout: 0.1, ..gpt2(tokenizer.vocab_size(), 16, 1, 2, 48) };
        Model { transformer: Transformer::fresh(&config, 1), tokenizer }.save(folder).unwrap();
        harness::artifact("base", folder).unwrap()
    }

    fn run(tokenizer: Artifact, threads: usize) -> Result<harness::Outcome> {
        run_with("", tokenizer, threads)
    }

    fn run_with(params: &str, tokenizer: Artifact, threads: usize) -> Result<harness::Outcome> {
        let dir = tempfile::tempdir().unwrap();
        let inputs = [("model", model(dir.path())), ("tokenizer", tokenizer), ("chats", fixtures::chats(60))];
        let params = format!("{{ steps: 3, batch_size: 4, eval_every: 2, keep_checkpoints: [2], {params} }}");
        harness::run_with::<Finetune>(&params, &inputs, 1, threads, &crate::base::Quiet)
    }

    #[test]
    fn it_tunes_to_the_same_bytes_on_any_number_of_threads() {
        let (one, two) =
            (run(tokenizer("byte_bpe.json"), 1).unwrap(), run(tokenizer("byte_bpe.json"), 2).unwrap());
        for file in
            [WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE, "metrics.jsonl", "metrics.parquet", "samples.jsonl"]
        {
            assert_eq!(one.read("model", file), two.read("model", file), "{file}");
        }
        let checkpoint = one.read("step-2", WEIGHTS_FILE);
        assert_eq!(checkpoint, two.read("step-2", WEIGHTS_FILE));
        assert_ne!(checkpoint, one.read("model", WEIGHTS_FILE));
        assert_eq!(one.read("step-2", held_out::FILE_NAME), one.read("model", held_out::FILE_NAME));
        let metrics = String::from_utf8(one.read("model", "metrics.jsonl")).unwrap();
        assert!(metrics.contains("\"step\":3") && metrics.contains("val_loss"), "{metrics}");
    }

    #[test]
    fn the_loss_is_on_the_assistant_or_on_all() {
        let mut packing =
            Packing { rows: vec![(vec![2, 4, 9], vec![false, false, true])], ..Packing::default() };
        let assistant = packing.rows.clone();
        LossOn::Assistant.apply(&mut packing);
        assert_eq!(packing.rows, assistant);
        LossOn::All.apply(&mut packing);
        assert_eq!(packing.rows[0].1, [true; 3]);

        let dir = tempfile::tempdir().unwrap();
        let own = ("tokenizer", tokenizer("byte_bpe.json"));
        let inputs = [("model", model(dir.path())), own, ("chats", fixtures::chats(20))];
        let tune = |params: &str| {
            let tuned = harness::run::<Finetune>(&format!("{{ steps: 1, {params} }}"), &inputs, 1).unwrap();
            tuned.read("model", WEIGHTS_FILE)
        };
        assert_eq!(tune("epochs: null"), tune("loss_on: assistant"));
        assert_ne!(tune("loss_on: all"), tune("loss_on: assistant"));
    }

    #[test]
    fn a_tokenizer_with_new_tokens_extends_the_embedding() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let own = tokenizer("byte_bpe.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&crate::base::fs::read(own.file_or_only("").unwrap()).unwrap()).unwrap();
        let size = Tokenizer::load(own.file_or_only("").unwrap()).unwrap().vocab_size();
        json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
            "id": size, "content": "<another>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }));
        crate::base::fs::write(&path, json.to_string().as_bytes()).unwrap();
        let wider = || harness::artifact("wider", &path).unwrap();
        let frozen = run_with("lora: {}", wider(), 2).err().unwrap().to_string();
        assert!(frozen.contains("with `lora` the embedding is frozen, and learns no new ones"), "{frozen}");
        let tuned = run(wider(), 2).unwrap();
        let config = String::from_utf8(tuned.read("model", CONFIG_FILE)).unwrap();
        assert!(config.contains(&format!("\"vocab_size\": {}", size + 1)), "{config}");
    }

    /// Base model, tokenizer and conversations.
    fn inputs(folder: &Path) -> [(&'static str, Artifact); 3] {
        [("model", model(folder)), ("tokenizer", tokenizer("byte_bpe.json")), ("chats", fixtures::chats(60))]
    }

    #[test]
    fn adapters_are_trained_to_the_same_bytes_and_merged() {
        let dir = tempfile::tempdir().unwrap();
        let tune = |params: &str, threads: usize| {
            let params =
                format!("{{ steps: 4, batch_size: 4, eval_every: 2, keep_checkpoints: [2], {params} }}");
            let inputs = inputs(dir.path());
            harness::run_with::<Finetune>(&params, &inputs, 1, threads, &crate::base::Quiet).unwrap()
        };
        let lora = "lora: { rank: 2, targets: [v, q, down] }";
        let (one, two) = (tune(lora, 1), tune(lora, 2));
        for (port, file) in [
            ("model", WEIGHTS_FILE),
            ("model", "metrics.jsonl"),
            ("step-2", WEIGHTS_FILE),
            ("adapter", ADAPTER_WEIGHTS_FILE),
            ("adapter", ADAPTER_CONFIG_FILE),
        ] {
            assert_eq!(one.read(port, file), two.read(port, file), "{port}, {file}");
        }
        // The adapters on the base are the model; they alone were trained.
        let base = inputs(dir.path())[0].1.clone();
        let load = |a: &Artifact| {
            Transformer::load(a.file(CONFIG_FILE).unwrap(), a.file(WEIGHTS_FILE).unwrap()).unwrap()
        };
        let adapted = adapters::merged(load(&base), &one.artifact("adapter").unwrap()).unwrap();
        assert_eq!(adapted.to_safetensors().unwrap(), one.read("model", WEIGHTS_FILE));
        let (base, tuned) = (load(&base), load(&one.artifact("model").unwrap()));
        for p in base.parameters() {
            let changes = p.name.ends_with("c_attn.weight") || p.name.ends_with("mlp.c_proj.weight");
            let same = base.weights[p.range.clone()] == tuned.weights[p.range.clone()];
            assert_ne!(changes, same, "{}", p.name);
        }
        assert_ne!(one.read("step-2", WEIGHTS_FILE), one.read("model", WEIGHTS_FILE));

        let apart = tune("lora: { rank: 2, targets: [q, v, down], merge: false }", 2);
        assert!(apart.artifact("model").is_err());
        for file in [ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, held_out::FILE_NAME] {
            assert_eq!(apart.read("adapter", file), one.read("adapter", file), "{file}");
        }
        assert_eq!(apart.read("adapter", "metrics.jsonl"), one.read("model", "metrics.jsonl"));
    }

    #[test]
    fn adapters_that_cannot_be_trained_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = |params: &str| {
            let found = harness::run::<Finetune>(&format!("{{ {params} }}"), &inputs(dir.path()), 1);
            found.err().unwrap().to_string()
        };
        assert!(error("lora: { rank: 0 }").contains("`lora.rank`: must be 1 to"));
        assert!(error("lora: { targets: [q, q] }").contains("`lora.targets`: `q` stands twice"));
        assert!(error("lora: { targets: [k, gate] }").contains("the model has no `gate`, only"));
        assert!(error("lora: { targets: [qkv] }").contains("unknown value `qkv`"));
        let found = error("lora: {}, vector_learning_rate: 0.1");
        assert!(found.contains("`vector_learning_rate`: it changes nothing here"), "{found}");
    }

    #[test]
    fn another_tokenizer_than_the_models_is_refused_by_its_first_token() {
        let error = run(tokenizer("wordpiece.json"), 2).err().unwrap();
        assert!(error.message().contains("for the model and"), "{error}");
    }
}
