//! `eval`: figures of a model on held-out text and on tasks, with gates that fail the run.
//!
//! `report.json` has `parameters`, `model_bytes`, `vocab_size`, and `context` and `stride` in tokens; of documents
//! `texts`, `tokens`, `bytes`, `loss`, `perplexity`, `bits_per_byte`, `bytes_per_token`, `top1_accuracy`,
//! `top5_accuracy`; `chats` with the same; `completion_accuracy` of `completions`; `cloze {items, accuracy,
//! by_category}`, `pairs {items, accuracy, by_paradigm}`, `choices {items, accuracy, accuracy_per_byte,
//! by_category}`, `exam {questions, passed, pass_rate, by_category}`; where there are some, `longer_than_context`
//! of a task; `intervals`, figure -> [low, high]; and `not_scored`, what has nothing held out. What was not
//! measured is left out. `exam.jsonl` has a question a line, see [`crate::eval::exam::Answered`], and
//! `items.parquet` an item a row, see [`crate::eval::items::Item`].

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ingest::input_files;
use super::{adapters, texts, tokenizers};
use crate::base::{Error, Invalid, Result, fs, machine, suggest, units};
use crate::corpus::conversation::{Message, Role};
use crate::corpus::held_out::{self, HeldOut};
use crate::eval::exam::Answered;
use crate::eval::items::{self, ITEMS_FILE};
use crate::eval::{self, Evaluation, Gate, Scored, sheet};
use crate::generate;
use crate::model::{GGUF_FILE, Model, TOKENIZER_FILE};
use crate::stage::{Artifact, Connected, Context, FILES, Info, Issue, Kind, Port};
use crate::tokenizer::Tokenizer;
use crate::train::{Sample, json_lines};

pub struct Eval;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Which of `docs` and `chats` count: those held out from training (`validation`), or `all`.
    pub split: Scored,
    /// The share that counts as held out where the model does not say it: of texts for an imported model,
    /// of conversations for one that was trained on none. A model trained here says what it held out.
    pub validation_fraction: f64,
    /// Tokens scored at most, of documents and of conversations each.
    pub max_tokens: u64,
    /// Documents whose next word is guessed at most.
    pub completions: usize,
    /// The most tokens that the model reads before a token that is scored; `null`: all that it can. Figures of
    /// models compare where it is the same.
    pub context: Option<usize>,
    /// How far apart the windows begin in which texts longer than `context` are scored; `null`: half of it.
    pub stride: Option<usize>,
    /// Whether a question of `choices` is put as a user's turn, and each choice scored as what the assistant
    /// says: for models that were tuned on conversations.
    pub as_chat: bool,
    /// Tokens of an answer in the exam at most.
    pub exam_max_new_tokens: usize,
    /// What sample texts begin with, beside the input of this name.
    pub prompts: Vec<String>,
    /// What sample answers are given to.
    pub questions: Vec<String>,
    /// Tokens of a sample at most.
    pub sample_max_new_tokens: usize,
    /// Conditions that fail the run while the report is kept: `bits_per_byte: "<= 2.2"`, `exam.pass_rate: ">= 0.8"`,
    /// any number of `report.json`. Not part of the key: changing one judges the same report anew.
    pub gates: BTreeMap<String, String>,
}

impl Default for Params {
    fn default() -> Self {
        let options = eval::Options::default();
        Params {
            split: options.scored,
            validation_fraction: options.validation_fraction,
            max_tokens: options.max_tokens,
            completions: options.completions,
            context: options.context,
            stride: options.stride,
            as_chat: options.as_chat,
            exam_max_new_tokens: options.exam_max_new_tokens,
            prompts: Vec::new(),
            questions: Vec::new(),
            sample_max_new_tokens: 60,
            gates: BTreeMap::new(),
        }
    }
}

const KEPT_APART: &str = "Kept apart from training as a whole: all of it counts.";
const CLOZE: &str =
    "Texts that break off before a word, as JSON lines: {id, category, text, accept: [word, …]}.";
const PAIRS: &str =
    "Good and bad sentences, as BLiMP has them: JSON lines, TSV or CSV with good, bad, uid, pair_id.";
const CHOICES: &str =
    "Multiple choice, as JSON lines: {id, category, question or context, choices: […], answer}.";
const EXAM: &str =
    "Questions with accepted answers, as JSON lines: {id, category, question, accept, reject} or {…, turns}.";
const PROMPTS: &str =
    "What sample texts begin with: a YAML list, JSON lines with `prompt`, or lines of text.";
const REPORT: &str = "`report.json`: all figures, with 95 % intervals (bootstrap over items) and the context and stride \
                      that they hold for; `items.parquet`: each item that they are computed from; `exam.jsonl`: each \
                      question with its answer and what was accepted; `samples.jsonl` and `samples.md`.";

/// The inputs that something is measured on, or samples begin with.
const MEASURED: [&str; 9] =
    ["docs", "chats", "validation_docs", "validation_chats", "cloze", "pairs", "choices", "exam", "prompts"];

/// Endings of JSON lines, and of what else some inputs take.
const ROWS: &[&str] = &[".jsonl", ".ndjson", ".json"];
const ROWS_OR_TABLES: &[&str] = &[".jsonl", ".ndjson", ".json", ".tsv", ".csv"];
const ROWS_OR_LINES: &[&str] = &[".yaml", ".yml", ".jsonl", ".ndjson", ".json", ".txt", ".text"];

impl Kind for Eval {
    type Params = Params;

    fn info() -> Info {
        let mut inputs = vec![
            Port::new("model", "model", "What is judged."),
            Port::new("tokenizer", "tokenizer", "The model's tokenizer.")
                .or(&["model"])
                .or_source(&["tokenizer.json", ".json"]),
            Port::new("adapter", adapters::ADAPTER, "What is merged into the model before.").optional(),
        ];
        inputs.extend(texts::ports());
        inputs.push(Port::new("validation_docs", "documents", KEPT_APART).optional().many());
        inputs.push(Port::new("validation_chats", "conversations", KEPT_APART).optional().many());
        let tasks = [
            ("cloze", CLOZE, ROWS),
            ("pairs", PAIRS, ROWS_OR_TABLES),
            ("choices", CHOICES, ROWS),
            ("exam", EXAM, ROWS),
            ("prompts", PROMPTS, ROWS_OR_LINES),
        ];
        let port = |(name, doc, endings)| Port::new(name, FILES, doc).optional().many().or_source(endings);
        inputs.extend(tasks.map(port));
        Info {
            name: "eval",
            // 4: what the model says was held out; 5: x beside blocks is rounded as llama.cpp rounds it; 6: items,
            // intervals, context and stride; 7: GELU of quantized models is rounded as llama.cpp rounds it; 8: so are
            // their norms, SiLU and products
            version: 8,
            summary: "Measures a model: held-out text, cloze, minimal pairs, multiple choice, an exam; with gates.",
            inputs,
            outputs: vec![Port::new("report", "report", REPORT)],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: &["gates"],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let mut issues = nothing_to_measure(inputs);
        for (metric, condition) in &params.gates {
            if let Err(why) = Gate::parse(condition).and_then(|_| measurable(metric, inputs)) {
                issues.push(Issue::param(&format!("gates.{metric}"), why));
            }
        }
        let seq_len = inputs.number("model", "seq_len").map_or(usize::MAX, |(_, seq_len)| seq_len as usize);
        if let Err(invalid) = params.options(HeldOut::default(), 0).reach(seq_len) {
            issues.push(invalid.into());
        }
        for (name, tokens) in [
            ("exam_max_new_tokens", params.exam_max_new_tokens),
            ("sample_max_new_tokens", params.sample_max_new_tokens),
        ] {
            if tokens == 0 {
                issues.push(Invalid::new(name, "is 0: expected 1 or more").into());
            }
        }
        if !(0.0..=1.0).contains(&params.validation_fraction) {
            let why = format!("must be 0 to 1, found {}", params.validation_fraction);
            issues.push(Invalid::new("validation_fraction", why).into());
        }
        if let Some((_, room)) = inputs.number("model", "vocab_size") {
            let help = |_| "connect the tokenizer that the model was trained with".to_string();
            issues.extend(tokenizers::fits(inputs, room, help));
        }
        issues
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let input = ctx.input("model")?;
        // The special tokens are those that the model was trained with.
        let names = tokenizers::names(input)?;
        let tokenizer = Tokenizer::load_with(tokenizers::path(ctx.input("tokenizer")?)?, &names)?;
        if let Ok(own) = input.file(TOKENIZER_FILE) {
            Tokenizer::load_with(own, &names)?.is_part_of(&tokenizer)?;
        }
        let mut model = Model::open(&input.as_files(), tokenizer)?;
        let adapter = ctx.optional("adapter");
        if let Some(adapter) = adapter {
            model.transformer = adapters::merged(model.transformer, adapter)?;
        }
        // An adapter that was trained here says what was held out from the model, too.
        let trained = adapter.filter(|adapter| adapter.find(held_out::FILE_NAME).is_some());
        let texts = eval::Texts {
            split: texts::inputs(ctx)?,
            validation: texts::inputs_at(ctx, "validation_docs", "validation_chats")?,
        };
        let files = |port| input_files(ctx.all(port));
        let tasks = eval::Tasks {
            cloze: files("cloze"),
            pairs: files("pairs"),
            choices: files("choices"),
            exam: files("exam"),
        };
        let options = params.options(texts::held_out_by(trained.unwrap_or(input))?, ctx.seed);
        let mut found = eval::evaluate(&model, &texts, &tasks, &options, ctx.monitor)?;
        if let (Some(blocks), None) = (input.find(GGUF_FILE), adapter) {
            found.report.model_bytes = fs::size(blocks)?;
        }
        announce(&found);
        let folder = ctx.output("report")?;
        write(&found, folder)?;
        samples(params, ctx, &model, folder)?;
        if let Some(peak) = machine::peak_memory() {
            ctx.monitor.measure("peak_memory", peak as f64 / f64::from(1 << 20), "MiB");
        }
        Ok(())
    }

    fn gates(params: &Params, outputs: &BTreeMap<String, Artifact>) -> Result<Vec<String>> {
        if params.gates.is_empty() {
            return Ok(Vec::new());
        }
        let report = outputs.get("report").ok_or_else(|| Error::bug("eval made no report"))?;
        let path = report.file("report.json")?;
        let value = serde_json::from_slice(&fs::read(path)?)
            .map_err(|e| Error::input(format!("the report of `{}` is not JSON: {e}", report.label)))?;
        Ok(eval::missed(&params.gates, &value))
    }
}

impl Params {
    fn options(&self, held_out: HeldOut, seed: u64) -> eval::Options {
        eval::Options {
            scored: self.split,
            held_out,
            validation_fraction: self.validation_fraction,
            max_tokens: self.max_tokens,
            completions: self.completions,
            context: self.context,
            stride: self.stride,
            as_chat: self.as_chat,
            exam_max_new_tokens: self.exam_max_new_tokens,
            intervals: Some(seed),
        }
    }
}

fn nothing_to_measure(inputs: &Connected) -> Vec<Issue> {
    if MEASURED.iter().any(|port| !inputs.get(port).is_empty()) {
        return Vec::new();
    }
    let message = "nothing is connected that the model could be measured on";
    let help = format!("connect at least one of {}: `inputs: {{ docs: STAGE }}`", suggest::list(MEASURED));
    vec![Issue::input("docs", message).help(help)]
}

/// Whether what a figure is measured on is connected.
fn measurable(metric: &str, inputs: &Connected) -> Result<(), String> {
    let ports: &[&str] = match eval::needs(metric)? {
        eval::Needs::Nothing => return Ok(()),
        eval::Needs::Documents => &["docs", "validation_docs"],
        eval::Needs::Chats => &["chats", "validation_chats"],
        eval::Needs::Cloze => &["cloze"],
        eval::Needs::Pairs => &["pairs"],
        eval::Needs::Choices => &["choices"],
        eval::Needs::Exam => &["exam"],
    };
    if ports.iter().any(|port| !inputs.get(port).is_empty()) {
        return Ok(());
    }
    let ports: Vec<String> = ports.iter().map(|port| format!("`{port}`")).collect();
    Err(format!("`{metric}` needs an input at {}", ports.join(" or ")))
}

fn write(found: &Evaluation, folder: &Path) -> Result<()> {
    fs::write_json(&folder.join("report.json"), &found.report)?;
    items::write(&folder.join(ITEMS_FILE), &found.items)?;
    if found.report.exam.is_some() {
        fs::write(&folder.join("exam.jsonl"), &json_lines(&found.answered)?)?;
    }
    Ok(())
}

/// Failures of an exam that are logged; the others are in `exam.jsonl`.
const FAILURES: usize = 10;

fn announce(found: &Evaluation) {
    let report = &found.report;
    for (what, scores) in [("documents", &report.documents), ("chats", &report.chats)] {
        if let Some(s) = scores {
            tracing::info!(
                "{what}: {:.3} bits per byte, perplexity {:.1}, top-1 {:.1} %, top-5 {:.1} % over {} tokens",
                s.bits_per_byte,
                s.perplexity,
                100.0 * s.top1_accuracy,
                100.0 * s.top5_accuracy,
                s.tokens
            );
        }
    }
    announce_tasks(report);
    if let Some(exam) = &report.exam {
        let interval = interval(report, "exam.pass_rate", 0);
        tracing::info!("exam: {} of {} passed{interval}", exam.passed, exam.questions);
        announce_failures(&found.answered);
    }
}

fn announce_tasks(report: &eval::Report) {
    let share = |name: &str, items: u64, accuracy: f64| {
        let (percents, interval) = (100.0 * accuracy, interval(report, &format!("{name}.accuracy"), 1));
        format!("{name}: {percents:.1} % of {} right{interval}", units::count(items))
    };
    if let Some(cloze) = &report.cloze {
        tracing::info!("{}", share("cloze", cloze.all.items, cloze.all.accuracy));
        warn_long("cloze texts", cloze.longer_than_context, "the model sees their end alone");
    }
    if let Some(pairs) = &report.pairs {
        tracing::info!("{}", share("pairs", pairs.all.items, pairs.all.accuracy));
        warn_long("pairs", pairs.longer_than_context, "they are scored in windows");
    }
    if let Some(choices) = &report.choices {
        let per_byte = 100.0 * choices.all.accuracy_per_byte;
        let line = share("choices", choices.all.items, choices.all.accuracy);
        tracing::info!("{line}, {per_byte:.1} % by nats a byte");
        warn_long("questions with choices", choices.longer_than_context, "they are scored in windows");
    }
}

fn warn_long(what: &str, count: u64, then: &str) {
    if count > 0 {
        tracing::warn!("{} {what} are longer than the context: {then}", units::count(count));
    }
}

fn announce_failures(answered: &[Answered]) {
    let failures: Vec<String> = answered.iter().filter_map(Answered::failure).collect();
    failures.iter().take(FAILURES).for_each(|failure| tracing::info!("failed {failure}"));
    if failures.len() > FAILURES {
        tracing::info!("and {} more, see exam.jsonl of the report", failures.len() - FAILURES);
    }
}

/// ` (95 % interval 75 to 90)`, of a share in percent with some digits; nothing where there is no interval.
fn interval(report: &eval::Report, figure: &str, digits: usize) -> String {
    report.intervals.get(figure).map_or_else(String::new, |[low, high]| {
        format!(" (95 % interval {:.digits$} to {:.digits$})", 100.0 * low, 100.0 * high)
    })
}

/// Continuations of the prompts and answers to the questions, written; those of params are logged.
fn samples(params: &Params, ctx: &Context, model: &Model, folder: &Path) -> Result<()> {
    let max_new_tokens = params.sample_max_new_tokens;
    let options = generate::Options { max_new_tokens, seed: ctx.seed, ..Default::default() };
    let threads = rayon::current_num_threads();
    let listed = sheet::prompts(&input_files(ctx.all("prompts")), ctx.monitor)?;
    let prompts: Vec<&String> = params.prompts.iter().chain(&listed).collect();
    let ids = prompts.iter().map(|prompt| generate::prompt_ids(model, prompt)).collect::<Result<Vec<_>>>()?;
    let texts = generate::continue_all(model, &ids, &options, threads, ctx.monitor)?;
    let mut all = Vec::new();
    for (i, (prompt, said)) in prompts.into_iter().zip(texts).enumerate() {
        if i < params.prompts.len() {
            tracing::info!("{prompt}{}", said.text);
        }
        all.push(Sample { step: 0, prompt: prompt.clone(), text: said.text });
    }
    let chat = |question: &String| vec![Message::new(Role::User, question.as_str())];
    let chats: Vec<Vec<Message>> = params.questions.iter().map(chat).collect();
    let answers = generate::answers(model, &chats, &options, threads, ctx.monitor)?;
    for (question, text) in params.questions.iter().zip(answers) {
        tracing::info!("user: {question} assistant: {text}");
        all.push(Sample { step: 0, prompt: question.clone(), text });
    }
    if !listed.is_empty() {
        tracing::info!("{} prompts are continued in samples.md of the report", listed.len());
    }
    write_samples(&all, &options, folder)
}

fn write_samples(all: &[Sample], options: &generate::Options, folder: &Path) -> Result<()> {
    fs::write(&folder.join("samples.jsonl"), &json_lines(all)?)?;
    if all.is_empty() {
        return Ok(());
    }
    let generate::Options { temperature, top_k, top_p, seed, max_new_tokens, .. } = options;
    let how = format!(
        "Sampled at temperature {temperature}, top-k {top_k}, top-p {top_p}, seed {seed}, at most {max_new_tokens} tokens."
    );
    let page = sheet::markdown(&how, all.iter().map(|sample| (sample.prompt.as_str(), sample.text.as_str())));
    fs::write(&folder.join("samples.md"), page.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::finetune::Finetune;
    use crate::kinds::pretrain::Pretrain;
    use crate::kinds::shard::Shard;
    use crate::kinds::texts::fixtures::{chats, docs, folder};
    use crate::stage::harness;

    const TINY: &str =
        "vocab_size: 400, d_model: 8, n_layer: 1, n_head: 2, seq_len: 32, steps: 2, batch_size: 2";

    fn tokenizer() -> Artifact {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
        harness::artifact("tokenizer", Path::new(path)).unwrap()
    }

    fn make<K: Kind>(params: &str, inputs: &[(&str, Artifact)], port: &str) -> (harness::Outcome, Artifact) {
        let made = harness::run::<K>(&format!("{{ {params} }}"), inputs, 1).unwrap();
        let artifact = made.artifact(port).unwrap();
        (made, artifact)
    }

    fn json(made: &harness::Outcome, port: &str, file: &str) -> serde_json::Value {
        serde_json::from_slice(&made.read(port, file)).unwrap()
    }

    /// Of the last step.
    fn val_loss(made: &harness::Outcome) -> serde_json::Value {
        let metrics = String::from_utf8(made.read("model", "metrics.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        last["val_loss"].clone()
    }

    /// Documents and conversations each: how many were scored, and what was not.
    fn scored(params: &str, inputs: &[(&str, Artifact)]) -> (serde_json::Value, serde_json::Value, String) {
        let (made, _) = make::<Eval>(params, inputs, "report");
        let report = json(&made, "report", "report.json");
        (report["texts"].clone(), report["chats"]["texts"].clone(), report["not_scored"].to_string())
    }

    #[test]
    fn shard_finetune_and_eval_hold_out_the_same_few_texts() {
        for n in [2, 3] {
            let (docs, chats, tokenizer) = (docs(n), chats(n), ("tokenizer", tokenizer()));
            let inputs = [("docs", docs.clone()), tokenizer.clone()];
            let (_a, shards) = make::<Shard>("validation_fraction: 0.999", &inputs, "shards");
            let inputs = [("shards", shards), tokenizer.clone()];
            let (base, model) = make::<Pretrain>(TINY, &inputs, "model");
            assert!(val_loss(&base).is_number());
            let inputs = [("model", model.clone()), tokenizer.clone(), ("chats", chats.clone())];
            let (_b, tuned) = make::<Finetune>("steps: 2, batch_size: 2", &inputs, "model");
            let inputs = [("model", tuned), tokenizer.clone(), ("docs", docs.clone()), ("chats", chats)];
            let (documents, conversations, not_scored) = scored("validation_fraction: 0.9", &inputs);
            assert_eq!(documents, n - 1, "all but the one that must be trained on");
            assert_eq!(
                (conversations, not_scored.as_str()),
                (1.into(), "null"),
                "the one that must be held out"
            );
        }
    }

    #[test]
    fn where_nothing_is_held_out_nothing_fails_and_given_texts_are_validated_on() {
        let (one, tokenizer) = (docs(1), ("tokenizer", tokenizer()));
        let (_a, shards) = make::<Shard>("", &[("docs", one.clone()), tokenizer.clone()], "shards");
        let inputs = [("shards", shards.clone()), tokenizer.clone()];
        let (base, model) = make::<Pretrain>(TINY, &inputs, "model");
        assert!(val_loss(&base).is_null(), "nothing is held out");
        let (documents, _, not_scored) =
            scored("", &[("model", model), tokenizer.clone(), ("docs", one.clone())]);
        assert_eq!(
            (documents, not_scored.contains("none of 1 is held out")),
            (serde_json::Value::Null, true)
        );

        let apart = docs(7);
        let inputs = [("docs", apart.clone()), tokenizer.clone()];
        let (_b, validation) = make::<Shard>("validation_fraction: 0", &inputs, "shards");
        let inputs = [("shards", shards), tokenizer.clone(), ("validation", validation)];
        let (base, model) = make::<Pretrain>(TINY, &inputs, "model");
        assert!(val_loss(&base).is_number());
        let inputs =
            [("model", model.clone()), tokenizer.clone(), ("chats", chats(3)), ("validation", chats(5))];
        let (tuned, tuned_model) = make::<Finetune>("steps: 2, batch_size: 2", &inputs, "model");
        assert!(val_loss(&tuned).is_number());
        let held_out = json(&tuned, "model", "held_out.json");
        assert_eq!(held_out["conversations"][0]["validation_fraction"], 0.0, "all of `chats` is trained on");
        let inputs =
            [("model", tuned_model), tokenizer, ("validation_docs", apart), ("validation_chats", chats(5))];
        let (documents, conversations, _) = scored("", &inputs);
        assert_eq!((documents, conversations), (7.into(), 5.into()));
    }

    #[test]
    fn an_adapter_is_judged_on_its_model_as_merged() {
        let fixed = [("tokenizer", tokenizer()), ("docs", docs(20))];
        let (_shards, shards) = make::<Shard>("", &fixed, "shards");
        let (_base, base) = make::<Pretrain>(TINY, &[("shards", shards), fixed[0].clone()], "model");
        let inputs = [("model", base.clone()), ("tokenizer", tokenizer()), ("chats", chats(20))];
        let params = "steps: 3, batch_size: 2, learning_rate: 0.1, lora: { rank: 2 }";
        let (tuned, merged) = make::<Finetune>(params, &inputs, "model");
        let scored = |model: &Artifact, adapter: Option<Artifact>| {
            let mut inputs = vec![("model", model.clone()), ("tokenizer", tokenizer()), ("chats", chats(20))];
            inputs.extend(adapter.map(|adapter| ("adapter", adapter)));
            let (made, _) = make::<Eval>("", &inputs, "report");
            json(&made, "report", "report.json")["chats"].clone()
        };
        let adapted = scored(&base, Some(tuned.artifact("adapter").unwrap()));
        assert!(adapted["tokens"].as_u64().unwrap() > 0);
        assert_eq!(adapted, scored(&merged, None), "the same split, too");
        assert_ne!(adapted, scored(&base, None));
    }

    fn source(name: &str, text: &str) -> Artifact {
        let path = folder().join(name);
        fs::write(&path, text.as_bytes()).unwrap();
        harness::artifact(name, &path).unwrap()
    }

    /// A model that was trained on a few chats.
    fn chat_model() -> (harness::Outcome, Artifact) {
        let fixed = [("tokenizer", tokenizer()), ("docs", docs(20))];
        let (_shards, shards) = make::<Shard>("", &fixed, "shards");
        let (_base, base) = make::<Pretrain>(TINY, &[("shards", shards), fixed[0].clone()], "model");
        let inputs = [("model", base), ("tokenizer", tokenizer()), ("chats", chats(20))];
        make::<Finetune>("steps: 3, batch_size: 2", &inputs, "model")
    }

    #[test]
    fn an_exam_alone_is_measured_listed_and_gated() {
        let exam = "{\"id\": \"a/1\", \"category\": \"a\", \"question\": \"Who?\", \"accept\": [\"/^/\"]}\n\
                    {\"id\": \"a/2\", \"category\": \"a\", \"question\": \"What?\", \"accept\": [\"zyzzyva\"]}\n";
        let (_model, model) = chat_model();
        let inputs = [("model", model), ("tokenizer", tokenizer()), ("exam", source("e.jsonl", exam))];
        let (made, report) = make::<Eval>("exam_max_new_tokens: 5", &inputs, "report");
        let found = json(&made, "report", "report.json");
        let passed = serde_json::json!({"questions": 2, "passed": 1, "pass_rate": 0.5});
        assert_eq!(found["exam"]["by_category"]["a"], passed);
        assert_eq!((&found["exam"]["pass_rate"], found.get("loss")), (&0.5.into(), None));
        assert_eq!(found["intervals"], serde_json::json!({"exam.pass_rate": [0.0, 1.0]}));
        assert_eq!((&found["context"], &found["stride"]), (&32.into(), &16.into()));
        let answers = String::from_utf8(made.read("report", "exam.jsonl")).unwrap();
        assert_eq!(answers.lines().count(), 2);
        let items = items::read(&made.path("report").join(ITEMS_FILE)).unwrap();
        assert_eq!(
            items.iter().map(|item| (item.id.as_str(), item.score)).collect::<Vec<_>>(),
            [("a/1", 1.0), ("a/2", 0.0)]
        );
        let gates = |gate: &str| {
            let params =
                Params { gates: [("exam.pass_rate".into(), gate.into())].into(), ..Params::default() };
            Eval::gates(&params, &[("report".to_string(), report.clone())].into()).unwrap()
        };
        assert!(gates(">= 0.5").is_empty());
        assert_eq!(gates(">= 0.8"), ["exam.pass_rate is 0.5000, the gate is >= 0.8"]);
    }

    #[test]
    fn tasks_are_measured_side_by_side_and_prompts_continued() {
        let cloze = "{\"text\": \"The fox was\", \"accept\": [\"walking\"]}\n";
        let pairs = "uid\tpair_id\tgood\tbad\nw\t0\tThe fox was walking.\tThe fox walking was.\n";
        let choices = "{\"question\": \"Who?\", \"choices\": [\"the fox\", \"xyz\"], \"answer\": 0}\n";
        let (_model, model) = chat_model();
        let inputs = [
            ("model", model),
            ("tokenizer", tokenizer()),
            ("docs", docs(9)),
            ("cloze", source("t.jsonl", cloze)),
            ("pairs", source("p.tsv", pairs)),
            ("choices", source("c.jsonl", choices)),
            ("prompts", source("p.yaml", "- The fox\n- |-\n  A bird\n  sang\n")),
        ];
        let params = "split: all, stride: 4, as_chat: true, prompts: [Her dog], questions: [Who?], sample_max_new_tokens: 3";
        let (one, _) = make::<Eval>(params, &inputs, "report");
        let report = json(&one, "report", "report.json");
        for (task, items) in [("cloze", 1), ("pairs", 1), ("choices", 1)] {
            assert_eq!(report[task]["items"], items, "{task}");
        }
        assert_eq!((&report["texts"], &report["stride"]), (&9.into(), &4.into()));
        assert!(report["pairs"]["by_paradigm"]["w"]["accuracy"].is_number());
        assert_eq!(report["intervals"]["bits_per_byte"].as_array().unwrap().len(), 2);
        assert_eq!(report["intervals"].get("pairs.accuracy"), None, "of one item there is none");
        let items = items::read(&one.path("report").join(ITEMS_FILE)).unwrap();
        let found = items::Figure::named("bits_per_byte").unwrap().of(&items).unwrap();
        assert!((found - report["bits_per_byte"].as_f64().unwrap()).abs() < 1e-12);
        let samples = String::from_utf8(one.read("report", "samples.jsonl")).unwrap();
        assert_eq!(samples.lines().count(), 4);
        let sheet = String::from_utf8(one.read("report", "samples.md")).unwrap();
        assert!(sheet.contains("## 3\n\n> A bird\n> sang\n"), "{sheet}");

        let params = format!("{{ {params} }}");
        let two = harness::run_with::<Eval>(&params, &inputs, 1, 1, &crate::base::Quiet).unwrap();
        for name in ["report.json", ITEMS_FILE, "samples.jsonl", "samples.md"] {
            assert!(one.read("report", name) == two.read("report", name), "{name}: the same by one thread");
        }
    }

    #[test]
    fn a_gate_on_what_is_not_measured_is_found_before_anything_runs() {
        let fails = |gate: &str| {
            let params = format!("gates: {{ {gate} }}");
            let inputs = [("model", docs(1)), ("tokenizer", tokenizer()), ("docs", docs(1))];
            harness::run::<Eval>(&params, &inputs, 1).err().expect(gate).to_string()
        };
        assert!(fails("chats.perplexity: '< 9'").contains("needs an input at `chats` or `validation_chats`"));
        assert!(fails("exam.pass_rate: '> 0.8'").contains("needs an input at `exam`"));
        assert!(fails("pairs.by_paradigm.a.accuracy: '> 0.8'").contains("needs an input at `pairs`"));
        let refused = |params: &str, inputs: &[(&str, Artifact)]| {
            let fixed = [("model", docs(1)), ("tokenizer", tokenizer())];
            harness::run::<Eval>(params, &[&fixed, inputs].concat(), 1).err().unwrap().to_string()
        };
        assert!(refused("{}", &[]).contains("nothing is connected that the model could be measured on"));
        assert!(
            refused("{ exam_max_new_tokens: 0 }", &[("docs", docs(1))]).contains("is 0: expected 1 or more")
        );
        assert!(refused("{ context: 0 }", &[("docs", docs(1))]).contains("`context` is 0"));
        assert!(refused("{ context: 8, stride: 9 }", &[("docs", docs(1))]).contains("`stride` is 9"));
        assert!(fails("perplexty: '< 9'").contains("did you mean `perplexity`"));
        assert!(fails("perplexity: '< .nan'").contains("not a finite number"));
    }
}
