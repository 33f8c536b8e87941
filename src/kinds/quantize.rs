//! `quantize`: a model with its matrices in few bits, and what that costs.

use std::collections::BTreeMap;
use std::path::Path;

use super::{facts, texts, tokenizers};
use crate::base::{Error, Files, Invalid, Monitor, Progress, Result, fs, suggest, units};
use crate::corpus::held_out::{self, HeldOut, Rule};
use crate::eval::{self, Gate, Scored, Scores};
use crate::kernel::{BlockType, Team};
use crate::model::{CONFIG_FILE, GGUF_FILE, Model, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::quantize::{self, Inputs, Method, Rounded, Types, Windows};
use crate::stage::{Artifact, Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::{Inputs as TextFiles, TOKENIZER_CONFIG_FILE, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub struct Quantize;

/// The report in the model's folder.
pub const REPORT_FILE: &str = "quantization.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodParam {
    /// `gptq` where `docs` or `chats` are connected, else `round`.
    #[default]
    Auto,
    /// Each number to the nearest, with the scales that ggml chooses. Needs no text.
    Round,
    /// So that what layers compute of the calibration text changes least (GPTQ; Frantar et al., 2022).
    Gptq,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// The type of matrices, embeddings included, as GGUF files have it. Where a row is no whole number of its blocks
    /// (32 numbers, 256 for those with a `k`), a tensor gets what llama.cpp takes instead, which the report says.
    #[serde(rename = "type")]
    pub ty: BlockType,
    /// Other types by patterns (`*`, `?`) of tensors' names in GGUF files: `{ "*.attn_v.*": q6_k, token_embd.weight:
    /// q8_0 }`. Of several patterns that match a name, the one with the most characters that are no wildcards
    /// decides.
    pub tensors: BTreeMap<String, BlockType>,
    /// How numbers are rounded.
    pub method: MethodParam,
    /// Tokens of `docs` and `chats` that `gptq` looks at at most; of what was held out from training none.
    pub calibration_tokens: usize,
    /// Tokens of documents and of conversations each that the model is scored on before and after; whole texts that
    /// were held out from training.
    pub eval_tokens: u64,
    /// The share of texts that counts as held out where the model does not say it, as an imported one.
    pub validation_fraction: f64,
    /// Conditions on figures of `quantization.json` that fail the run while the model is kept:
    /// `documents.loss_increase: "<= 0.01"`. Not part of the key.
    pub gates: BTreeMap<String, String>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            ty: BlockType::Q8_0,
            tensors: BTreeMap::new(),
            method: MethodParam::Auto,
            calibration_tokens: 1 << 16,
            eval_tokens: 50_000,
            validation_fraction: 0.05,
            gates: BTreeMap::new(),
        }
    }
}

impl Params {
    fn method(&self, has_texts: bool) -> Method {
        match self.method {
            MethodParam::Round => Method::Round,
            MethodParam::Gptq => Method::Gptq,
            MethodParam::Auto if has_texts => Method::Gptq,
            MethodParam::Auto => Method::Round,
        }
    }
}

/// A figure of the model and of what became of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Change {
    before: u64,
    after: u64,
}

/// On held-out texts.
#[derive(Debug, Serialize)]
struct Quality {
    before: Scores,
    after: Scores,
    /// `after / before - 1`, of bits per byte as well.
    loss_increase: f64,
}

/// What GPTQ looked at.
#[derive(Debug, Serialize)]
struct Calibration {
    tokens: usize,
    /// Tokens of a window, before which the model sees nothing.
    window: usize,
}

/// A function of the inputs alone, without times.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "type")]
    ty: BlockType,
    method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Calibration>,
    /// Of configuration, weights and tokenizer.
    bytes_on_disk: Change,
    /// Of the weights.
    bytes_in_memory: Change,
    #[serde(skip_serializing_if = "Option::is_none")]
    documents: Option<Quality>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chats: Option<Quality>,
    /// Tokens that were seen at most, and how far apart windows began, when the texts were scored.
    context: usize,
    stride: usize,
    tensors: Vec<Rounded>,
}

/// Figures that gates can be on.
const FIGURES: [&str; 4] =
    ["documents.loss_increase", "chats.loss_increase", "bytes_on_disk.after", "bytes_in_memory.after"];

impl Kind for Quantize {
    type Params = Params;

    fn info() -> Info {
        let mut inputs = vec![Port::new("model", "model", "What is quantized.")];
        inputs.extend(texts::ports().into_iter().map(|port| Port {
            doc: "Texts of the model's training: those trained on calibrate, those held out are scored.",
            ..port
        }));
        Info {
            name: "quantize",
            // 2: x is rounded as llama.cpp rounds it, which the figures show; 3: so is GELU; 4: so are norms, SiLU and
            // products
            version: 4,
            summary: "Stores a model's matrices in 8, 6, 5 or 4 bits, and reports what that costs.",
            inputs,
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.gguf` with `config.json` and tokenizer; `quantization.json`: types and errors of tensors, \
                 bytes, bits per byte before and after.",
            )],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &["gates"],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let has = |port: &str| !inputs.get(port).is_empty();
        let has_texts = has("docs") || has("chats");
        let mut issues: Vec<Issue> =
            Types::new(params.ty, &params.tensors).err().map(Issue::from).into_iter().collect();
        if params.method == MethodParam::Gptq && !has_texts {
            let what = "`gptq` needs texts that the model was trained on at `docs` or `chats`";
            issues.push(Issue::param("method", what).help("connect them, or set `method: round`"));
        }
        if params.method(has_texts) == Method::Gptq && params.calibration_tokens == 0 {
            let help = "set it to some thousands, or `method: round`";
            issues.push(Issue::param("calibration_tokens", "expected 1 or more, found 0").help(help));
        }
        if !(0.0..1.0).contains(&params.validation_fraction) {
            let why = format!("must be at least 0 and below 1, found {}", params.validation_fraction);
            issues.push(Invalid::new("validation_fraction", why).into());
        }
        for (figure, condition) in &params.gates {
            let measured = |figure: &str| match figure {
                "documents.loss_increase" if !has("docs") => Err("needs texts at `docs`".to_string()),
                "chats.loss_increase" if !has("chats") => Err("needs texts at `chats`".to_string()),
                _ if FIGURES.contains(&figure) => Ok(()),
                _ => Err(format!("there is no such figure, but {}", suggest::list(FIGURES))),
            };
            if let Err(why) = Gate::parse(condition).and_then(|_| measured(figure)) {
                issues.push(Issue::param(&format!("gates.{figure}"), why));
            }
        }
        issues
    }

    fn facts(_: &Params, inputs: &Connected, _: &str) -> Facts {
        facts::of_same_model(inputs, "model")
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let (input, folder) = (ctx.input("model")?, ctx.output("model")?);
        let types = Types::new(params.ty, &params.tensors).map_err(Error::invalid)?;
        let model = open(input)?;
        let texts = texts::inputs(ctx)?;
        let known = texts::held_out_by(input)?;
        let held_out = held_out(params, &known, &texts)?;
        let method = params.method(!texts.documents.is_empty() || !texts.conversations.is_empty());
        let windows = match method {
            Method::Round => None,
            Method::Gptq => Some(calibration(params, ctx, &model, &texts, &held_out)?),
        };
        let calibration = windows.as_ref().map(Calibration::of);
        let before = Measured::of(params, ctx, &model, (&texts, &held_out), "before")?;
        let team = Team::new(rayon::current_num_threads());
        let inputs = windows.map(|windows| Inputs::new(&model.transformer, windows, team));
        let tensors = quantize::save(&model, folder, &types, inputs, ctx.monitor)?;
        fs::write(&folder.join(TOKENIZER_FILE), &model.tokenizer.compact_json())?;
        // What calibrated is no longer unseen, by whichever rule it was chosen.
        if calibration.is_some() || input.find(held_out::FILE_NAME).is_some() {
            if calibration.is_some() { &held_out } else { &known }.save(folder)?;
        }
        let saved = Model::open(&Files::at(folder)?, model.tokenizer)?;
        let after = Measured::of(params, ctx, &saved, (&texts, &held_out), "after")?;
        let speeds = [before.speed, after.speed].map(|speed| units::count(speed as u64));
        tracing::info!("generates {} tokens/s, {} before", speeds[1], speeds[0]);
        let bytes = bytes_on_disk(input, folder)?;
        let report = Report::new(params, method, calibration, bytes, [before, after], tensors);
        announce(&report);
        fs::write_json(&folder.join(REPORT_FILE), &report)
    }

    fn gates(params: &Params, outputs: &BTreeMap<String, Artifact>) -> Result<Vec<String>> {
        if params.gates.is_empty() {
            return Ok(Vec::new());
        }
        let model = outputs.get("model").ok_or_else(|| Error::bug("quantize made no model"))?;
        let report = serde_json::from_slice(&fs::read(model.file(REPORT_FILE)?)?)
            .map_err(|e| Error::input(format!("the report of `{}` is not JSON: {e}", model.label)))?;
        Ok(eval::missed(&params.gates, &report))
    }
}

/// The model with the tokenizer that it was trained with; one that is quantized already with the numbers that its
/// blocks stand for.
fn open(input: &Artifact) -> Result<Model> {
    let tokenizer = Tokenizer::load_with(input.file(TOKENIZER_FILE)?, &tokenizers::names(input)?)?;
    let Model { transformer, tokenizer } = Model::open(&input.as_files(), tokenizer)?;
    if transformer.is_quantized() {
        tracing::warn!("`{}` is quantized already: the errors add up", input.label);
    }
    Ok(Model { transformer: transformer.dequantized(), tokenizer })
}

/// The rules by which texts are held out: the model's own, or where it has none for texts that are connected, one of
/// `validation_fraction`.
fn held_out(params: &Params, own: &HeldOut, texts: &TextFiles) -> Result<HeldOut> {
    let TextFiles { documents, conversations } = texts.clone();
    let rules = |own: &[Rule], texts: TextFiles| match texts.documents.len() + texts.conversations.len() {
        0 => Ok(own.to_vec()),
        _ => eval::rules(own, params.validation_fraction, &texts),
    };
    Ok(HeldOut {
        documents: rules(&own.documents, TextFiles { documents, ..TextFiles::default() })?,
        conversations: rules(&own.conversations, TextFiles { conversations, ..TextFiles::default() })?,
    })
}

fn calibration(
    params: &Params,
    ctx: &Context,
    model: &Model,
    texts: &TextFiles,
    held_out: &HeldOut,
) -> Result<Windows> {
    let windows = quantize::windows(model, texts, held_out, params.calibration_tokens, ctx.monitor)?;
    let (tokens, length) = (units::count(windows.ids.len() as u64), windows.length);
    tracing::info!("calibrating on {tokens} tokens in windows of {length}");
    Ok(windows)
}

/// What is measured of a model.
struct Measured {
    documents: Option<Scores>,
    chats: Option<Scores>,
    memory: u64,
    seq_len: usize,
    /// Tokens a second.
    speed: f64,
}

impl Measured {
    /// Times are measurements of the run, and no part of the report.
    fn of(
        params: &Params,
        ctx: &Context,
        model: &Model,
        (texts, held_out): (&TextFiles, &HeldOut),
        when: &'static str,
    ) -> Result<Self> {
        let monitor = During { monitor: ctx.monitor, when };
        let gpt = &model.transformer;
        let speed = quantize::tokens_per_second(gpt, Team::new(rayon::current_num_threads()))?;
        monitor.measure("generated_tokens_per_s", speed, "tok/s");
        let texts = eval::Texts { split: texts.clone(), validation: TextFiles::default() };
        let options = eval::Options {
            scored: Scored::Validation,
            held_out: held_out.clone(),
            validation_fraction: params.validation_fraction,
            max_tokens: params.eval_tokens,
            completions: 0,
            ..eval::Options::default()
        };
        let tasks = eval::Tasks::default();
        let eval::Report { documents, chats, .. } =
            eval::evaluate(model, &texts, &tasks, &options, &monitor)?.report;
        let (memory, seq_len) = (gpt.weight_bytes() as u64, gpt.config.seq_len);
        Ok(Measured { documents, chats, memory, seq_len, speed })
    }
}

/// Names what is measured after when it is.
struct During<'a> {
    monitor: &'a dyn Monitor,
    when: &'static str,
}

impl Monitor for During<'_> {
    fn progress(&self, progress: Progress) {
        self.monitor.progress(progress);
    }

    fn measure(&self, name: &str, value: f64, unit: &str) {
        self.monitor.measure(&format!("{name}_{}", self.when), value, unit);
    }

    fn metrics(&self, step: u64, figures: &[(&str, f64)]) {
        self.monitor.metrics(step, figures);
    }

    fn cancelled(&self) -> bool {
        self.monitor.cancelled()
    }
}

impl Calibration {
    fn of(windows: &Windows) -> Self {
        Calibration { tokens: windows.ids.len(), window: windows.length }
    }
}

impl Report {
    fn new(
        params: &Params,
        method: Method,
        calibration: Option<Calibration>,
        bytes_on_disk: Change,
        [before, after]: [Measured; 2],
        tensors: Vec<Rounded>,
    ) -> Self {
        let quality = |(before, after): (Scores, Scores)| {
            let loss_increase = after.loss / before.loss - 1.0;
            Quality { before, after, loss_increase }
        };
        Report {
            ty: params.ty,
            method,
            calibration,
            bytes_on_disk,
            bytes_in_memory: Change { before: before.memory, after: after.memory },
            documents: before.documents.zip(after.documents).map(quality),
            chats: before.chats.zip(after.chats).map(quality),
            context: before.seq_len,
            stride: eval::stride(before.seq_len),
            tensors,
        }
    }
}

/// The files that a model is read from.
const MODEL_FILES: [&str; 6] =
    [CONFIG_FILE, "generation_config.json", WEIGHTS_FILE, GGUF_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE];

fn bytes_on_disk(input: &Artifact, output: &Path) -> Result<Change> {
    let size = |files: &Files| -> Result<u64> {
        MODEL_FILES.iter().filter_map(|name| files.find(name)).map(fs::size).sum()
    };
    Ok(Change { before: size(&input.as_files())?, after: size(&Files::at(output)?)? })
}

fn announce(report: &Report) {
    for Rounded { name, ty, instead_of, shape, .. } in &report.tensors {
        if let Some(asked) = instead_of {
            let k = shape.last().copied().unwrap_or(0);
            tracing::info!("`{name}` is {}: rows of {k} are no whole blocks of {}", ty.name(), asked.name());
        }
    }
    let Change { before, after } = report.bytes_on_disk;
    let shrunk = |before: u64, after: u64| {
        let share = 100.0 * after as f64 / before as f64;
        format!("{} instead of {} ({share:.0} %)", units::bytes(after), units::bytes(before))
    };
    let memory = report.bytes_in_memory;
    tracing::info!(
        "on disk {}, weights in memory {}",
        shrunk(before, after),
        shrunk(memory.before, memory.after)
    );
    for (what, quality) in [("documents", &report.documents), ("chats", &report.chats)] {
        if let Some(Quality { before, after, loss_increase }) = quality {
            tracing::info!(
                "{what}: {:.4} bits per byte, {:.4} before: {:+.2} %",
                after.bits_per_byte,
                before.bits_per_byte,
                100.0 * loss_increase
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::texts::fixtures::{chats, docs};
    use super::*;
    use crate::base::Quiet;
    use crate::kinds::eval::Eval;
    use crate::kinds::finetune::Finetune;
    use crate::kinds::teachers::fixtures::connected;
    use crate::model::{Transformer, modern};
    use crate::stage::harness;

    /// An untrained model of the byte-level tokenizer whose rows are whole blocks, and which held out a third of
    /// documents.
    fn model(folder: &Path) -> Artifact {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
        let tokenizer = Tokenizer::load(Path::new(path)).unwrap();
        let config = modern(tokenizer.vocab_size(), 64, 2, 2, 96, 32);
        let mut transformer = Transformer::fresh(&config, 1);
        transformer.weights.iter_mut().enumerate().for_each(|(i, x)| *x += 0.05 * (i as f32).sin());
        Model { transformer, tokenizer }.save(folder).unwrap();
        let rule = Rule { validation_fraction: 0.3, ..Rule::default() };
        HeldOut { documents: vec![rule], conversations: Vec::new() }.save(folder).unwrap();
        harness::artifact("base", folder).unwrap()
    }

    fn run(params: &str, inputs: &[(&str, Artifact)], threads: usize) -> Result<harness::Outcome> {
        harness::run_with::<Quantize>(&format!("{{ {params} }}"), inputs, 1, threads, &Quiet)
    }

    fn report(made: &harness::Outcome) -> Value {
        serde_json::from_slice(&made.read("model", REPORT_FILE)).unwrap()
    }

    #[test]
    fn what_comes_out_is_a_model_like_any_other_and_the_same_on_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let base = model(folder.path());
        let inputs = [("model", base.clone()), ("docs", docs(30)), ("chats", chats(20))];
        let params = "type: q4_0, tensors: { '*.ffn_down.*': q8_0 }, calibration_tokens: 500";
        let one = run(params, &inputs, 1).unwrap();
        let digest = |made: &harness::Outcome| made.artifact("model").unwrap().digest;
        for threads in [2, 3] {
            assert_eq!(digest(&one), digest(&run(params, &inputs, threads).unwrap()), "{threads} threads");
        }
        let report = report(&one);
        assert_eq!((&report["method"], &report["type"]), (&"gptq".into(), &"q4_0".into()));
        assert_eq!((&report["context"], &report["stride"]), (&32.into(), &16.into()));
        assert_eq!(report["calibration"], serde_json::json!({ "tokens": 480, "window": 32 }));
        let tensors = report["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), 1 + 2 * 7);
        for tensor in tensors {
            let down = tensor["name"].as_str().unwrap().contains("ffn_down");
            assert_eq!(tensor["type"], if down { "q8_0" } else { "q4_0" }, "{tensor}");
            assert!(tensor["mean_squared_error"].as_f64().unwrap() > 0.0, "{tensor}");
            assert!(tensor["output_error"].as_f64().unwrap() < 0.02, "{tensor}");
        }
        for texts in ["documents", "chats"] {
            let quality = &report[texts];
            let [before, after] = ["before", "after"].map(|when| quality[when]["loss"].as_f64().unwrap());
            assert!(before != after && (after / before - 1.0).abs() < 0.02, "{quality}");
        }
        let [before, after] =
            ["before", "after"].map(|when| report["bytes_in_memory"][when].as_u64().unwrap());
        assert!(3 * after < before, "{report}");
        let quantized = one.artifact("model").unwrap();
        assert!(quantized.find(WEIGHTS_FILE).is_none() && quantized.find(GGUF_FILE).is_some());

        // Texts of both sorts were looked at, by the model's rule and by one of its own.
        let rules: HeldOut = serde_json::from_slice(&one.read("model", held_out::FILE_NAME)).unwrap();
        let fractions = |rules: &[Rule]| rules.iter().map(|r| r.validation_fraction).collect::<Vec<_>>();
        assert_eq!((fractions(&rules.documents), fractions(&rules.conversations)), (vec![0.3], vec![0.05]));
        let inputs = [("model", quantized.clone()), ("tokenizer", quantized.clone()), ("docs", docs(30))];
        let made = harness::run::<Eval>("{ completions: 0 }", &inputs, 1).unwrap();
        let scores: Value = serde_json::from_slice(&made.read("report", "report.json")).unwrap();
        assert_eq!(scores["loss"], report["documents"]["after"]["loss"]);

        let inputs = [("model", quantized.clone()), ("tokenizer", quantized.clone()), ("chats", chats(20))];
        let tuned = harness::run::<Finetune>("{ steps: 1, batch_size: 2 }", &inputs, 1).unwrap();
        assert!(!Transformer::open(&tuned.artifact("model").unwrap().as_files()).unwrap().is_quantized());
        let again = run("type: q8_0", &[("model", quantized)], 2).unwrap();
        assert_eq!(self::report(&again)["method"], "round");
    }

    #[test]
    fn without_texts_numbers_are_rounded_and_other_types_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = [("model", model(folder.path()))];
        let made = run("type: q4_k, tensors: { token_embd.weight: f16 }", &inputs, 2).unwrap();
        let report = report(&made);
        assert_eq!((&report["method"], &report["documents"]), (&"round".into(), &Value::Null));
        for tensor in report["tensors"].as_array().unwrap() {
            let expected = match tensor["name"] == "token_embd.weight" {
                true => (Value::from("f16"), Value::Null),
                false => ("q5_0".into(), "q4_k".into()),
            };
            assert_eq!((tensor["type"].clone(), tensor["instead_of"].clone()), expected, "{tensor}");
        }
        assert_eq!(
            made.read("model", held_out::FILE_NAME),
            fs::read(&folder.path().join(held_out::FILE_NAME)).unwrap()
        );
        assert!(
            made.read("model", TOKENIZER_FILE).len()
                < 3 * fs::read(&folder.path().join(TOKENIZER_FILE)).unwrap().len() / 4
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let base = model(folder.path());
        let fails = |params: &str, inputs: &[_]| run(params, inputs, 1).err().expect(params).to_string();
        let alone = [("model", base.clone())];
        assert!(fails("method: gptq", &alone).contains("`method`: `gptq` needs texts"));
        let found = fails("tensors: { '*.attn_w.*': q8_0 }", &alone);
        assert!(
            found.contains("no matrix is called `*.attn_w.*`") && found.contains("`blk.0.attn_q.weight`"),
            "{found}"
        );
        assert!(fails("tensors: { 'a[': q8_0 }", &alone).contains("is no pattern"));
        assert!(fails("type: q3_0", &alone).contains("q3_0"));
        assert!(fails("calibration_tokens: 0", &[alone[0].clone(), ("docs", docs(3))]).contains("found 0"));
        assert!(
            fails("gates: { documents.loss_increase: '<= 1' }", &alone).contains("needs texts at `docs`")
        );
        assert!(fails("gates: { loss: '<= 1' }", &alone).contains("there is no such figure"));
        let all_held_out = Rule { validation_fraction: 1.0, ..Rule::default() };
        HeldOut { documents: vec![all_held_out], conversations: vec![] }.save(folder.path()).unwrap();
        let inputs = [("model", harness::artifact("base", folder.path()).unwrap()), ("docs", docs(3))];
        assert!(fails("", &inputs).contains("no text to calibrate with"));
    }

    #[test]
    fn gates_are_judged_on_the_report() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = [("model", model(folder.path())), ("docs", docs(30))];
        let made = run("type: q8_0", &inputs, 2).unwrap();
        let outputs = BTreeMap::from([("model".to_string(), made.artifact("model").unwrap())]);
        let missed = |gate: [&str; 2]| {
            let gates = BTreeMap::from([(gate[0].to_string(), gate[1].to_string())]);
            Quantize::gates(&Params { gates, ..Params::default() }, &outputs).unwrap()
        };
        assert_eq!(missed(["documents.loss_increase", "<= 0.01"]), [""; 0]);
        assert_eq!(missed(["bytes_on_disk.after", "<= 10"]).len(), 1);
    }

    #[test]
    fn what_is_known_of_the_model_is_known_of_what_comes_out() {
        let known = serde_json::json!({ "vocab_size": 600, "seq_len": 32 });
        let facts = Quantize::facts(
            &Params::default(),
            &connected(&[("model", std::slice::from_ref(&known))]),
            "model",
        );
        assert_eq!(serde_json::json!(facts), known);
    }
}
