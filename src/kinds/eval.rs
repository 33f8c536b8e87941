//! `eval`: how good a model is on what it has not seen, with gates that fail the run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{texts, tokenizers};
use crate::base::{Error, Result, fs, machine};
use crate::eval::{self, Gate, Scored};
use crate::generate;
use crate::model::{CONFIG_FILE, Model, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::stage::{Artifact, Connected, Context, Info, Issue, Kind, Port};
use crate::tokenizer::Tokenizer;
use crate::train::Sample;

pub struct Eval;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Which documents and conversations count: those held out from training (`validation`), or `all`.
    pub split: Scored,
    /// The share that was held out: what `shard` and `finetune` were told.
    pub validation_fraction: f64,
    /// Tokens scored at most, of documents and of conversations each.
    pub max_tokens: u64,
    /// Documents whose next word is guessed at most.
    pub completions: usize,
    /// What sample texts begin with.
    pub prompts: Vec<String>,
    /// What sample answers are given to.
    pub questions: Vec<String>,
    /// Conditions that fail the run while the report is kept: `bits_per_byte: "<= 2.2"`. Not part of the
    /// key: changing one judges the same report anew.
    pub gates: BTreeMap<String, String>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            split: Scored::Validation,
            validation_fraction: 0.05,
            max_tokens: 100_000,
            completions: 100,
            prompts: Vec::new(),
            questions: Vec::new(),
            gates: BTreeMap::new(),
        }
    }
}

impl Kind for Eval {
    type Params = Params;

    fn info() -> Info {
        let mut inputs = vec![
            Port::new("model", "model", "What is judged."),
            Port::new("tokenizer", "tokenizer", "The model's tokenizer.")
                .or_source(&["tokenizer.json", ".json"]),
        ];
        inputs.extend(texts::ports());
        Info {
            name: "eval",
            version: 3, // 2: kernels of our own; 3: sums of e^x by them, too
            summary: "Measures a model on held-out text: bits per byte, perplexity, accuracies; with gates.",
            inputs,
            outputs: vec![Port::new("report", "report", "`report.json` and `samples.jsonl`.")],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: &["gates"],
        }
    }

    fn check(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let mut issues = texts::check(inputs);
        for (metric, condition) in &params.gates {
            if let Err(why) = Gate::parse(condition) {
                issues.push(Issue::param(&format!("gates.{metric}"), why));
            }
        }
        if !(0.0..=1.0).contains(&params.validation_fraction) {
            let found = params.validation_fraction;
            issues.push(Issue::param("validation_fraction", format!("expected 0 to 1, found {found}")));
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
        let model = Model::load(input.file(CONFIG_FILE)?, input.file(WEIGHTS_FILE)?, tokenizer)?;
        let texts = texts::inputs(ctx)?;
        let options = eval::Options {
            scored: params.split,
            validation_fraction: params.validation_fraction,
            max_tokens: params.max_tokens,
            completions: params.completions,
        };
        let report = eval::evaluate(&model, &texts.documents, &texts.conversations, &options, ctx.monitor)?;
        announce(&report);
        let folder = ctx.output("report")?;
        texts::write_report(folder, &report)?;
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

fn announce(report: &eval::Report) {
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
}

/// Texts behind the prompts, answers to the questions; printed too, since they say more than figures.
fn samples(params: &Params, ctx: &Context, model: &Model, folder: &Path) -> Result<()> {
    let options = generate::Options { max_new_tokens: 60, seed: ctx.seed, ..Default::default() };
    let mut all = Vec::new();
    for prompt in &params.prompts {
        let text = generate::text(model, prompt, &options, rayon::current_num_threads())?;
        tracing::info!("{prompt}{text}");
        all.push(Sample { step: 0, prompt: prompt.clone(), text });
    }
    for question in &params.questions {
        let message = crate::corpus::conversation::Message {
            role: crate::corpus::conversation::Role::User,
            content: question.clone(),
        };
        let text = generate::answer(model, &[message], &options, rayon::current_num_threads())?;
        tracing::info!("user: {question} assistant: {text}");
        all.push(Sample { step: 0, prompt: question.clone(), text });
    }
    let path: PathBuf = folder.join("samples.jsonl");
    fs::write(&path, &crate::train::json_lines(&all)?)
}
