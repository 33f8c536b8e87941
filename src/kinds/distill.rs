//! `distill`: a model learns from texts and from what other models expect of them.

use std::path::Path;

use serde::Serialize;

use super::architecture::{Architecture, architecture_params};
use super::streams::{self, Streams};
use super::teachers::{self, LOGITS_FILE, LogitsReport, Scores, TeacherScores};
use super::training;
use super::training_params::{BF16_TILE, NOT_IN_KEY, NOT_IN_STATE};
use super::{facts, tokenizers};
use crate::base::{Error, Monitor, Result, fs, units};
use crate::kernel::Dtype;
use crate::model::{self, Config, Model, Transformer};
use crate::shard::logits::{Logits, Table};
use crate::stage::{Artifact, Connected, Context, Facts, Info, Issue, Kind, Port, Resume};
use crate::tokenizer::{Special, Tokenizer};
use crate::train::{self, Data, DistillOptions, Source, Teachers, Windows};

/// How good teacher and student are, in the model's folder.
pub const REPORT_FILE: &str = "distillation.json";

/// Of models that are asked as it goes.
const TEMPERATURE: f64 = 1.0;

pub struct Distill;

architecture_params! {
    /// The student's architecture, how it is trained, and what it learns of the teacher.
    Params;
    preset "Default: the connected model's architecture, or else the first teacher's own (born-again networks;\n\
            Furlanello et al., 2018). With `logits` one must be given."
    defaults { steps: 600, learning_rate: 0.002, warmup_steps: 50 }
    own {
        /// What the logits of teacher and student are divided by before they are compared: above 1, what the
        /// teacher finds unlikely counts more. Default: 1, or that of the connected logits.
        temperature: Option<f64> = None,
        /// The share of the divergence from the teacher in the loss; the rest is cross-entropy with the text.
        share: f64 = 0.7,
        /// How many of the teacher's likeliest tokens are told apart at each position; the others count
        /// together. 0: all are. Default: 0, or as many as the connected logits have.
        top_k: Option<usize> = None,
        /// Tokens from the beginning of one training sequence to that of the next. Default: `seq_len`, end to
        /// end; below it they overlap.
        stride: Option<usize> = None,
    }
}

/// What [`REPORT_FILE`] holds.
#[derive(Debug, Clone, Serialize)]
struct Report {
    temperature: f64,
    share: f64,
    /// Ids that were told apart at each position.
    top_k: usize,
    /// Each by itself. Empty, and `teacher` null, where logits are connected and `validation`, too: theirs was
    /// measured on what the shards hold out.
    teachers: Vec<TeacherScores>,
    /// Of the teacher, or the mean of what several expect.
    teacher: Option<Scores>,
    /// Tokens of a window that the teacher saw; the students' have `seq_len`.
    context: usize,
    student: Student,
    /// The same for the model at `baseline`.
    alone: Option<Student>,
    /// (alone - student) / (alone - teacher), of the losses.
    gap_closed: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Student {
    parameters: u64,
    #[serde(flatten)]
    scores: Option<Scores>,
}

impl Params {
    /// What is learned of the teacher, whose vocabulary is the student's.
    fn distill(&self, logits: Option<&Logits>, vocab_size: usize) -> Result<DistillOptions> {
        let header = logits.map(|logits| &logits.header);
        let temperature = header.map_or(self.temperature.unwrap_or(TEMPERATURE), |header| header.temperature);
        let some = self.top_k.filter(|k| *k > 0);
        let top_k = header.map_or(some.unwrap_or(vocab_size), |header| header.top_k);
        if let Some(issue) =
            self.fixed_by(header.map(|header| (header.temperature, header.top_k as u64))).pop()
        {
            return Err(as_error(issue));
        }
        if top_k > vocab_size {
            let what = format!("`top_k: {top_k}`: the teacher has a vocabulary of {vocab_size}");
            return Err(Error::usage(what).help("0 tells all tokens apart"));
        }
        Ok(DistillOptions {
            temperature,
            share: self.share,
            top_k,
            rounded: some.is_some(),
            label_smoothing: self.label_smoothing,
        })
    }

    /// What is given otherwise than logits of this temperature and with so many ids a position fix it.
    fn fixed_by(&self, logits: Option<(f64, u64)>) -> Vec<Issue> {
        let Some((temperature, top_k)) = logits else { return Vec::new() };
        let fixed = |name, given: String, theirs: String| {
            let what = format!("the connected logits were computed with {theirs}, not {given}");
            Issue::param(name, what).help("leave it away, or compute others with `teach`")
        };
        let other = self.temperature.filter(|given| *given != temperature);
        let mut issues: Vec<Issue> =
            other.map(|t| fixed("temperature", t.to_string(), temperature.to_string())).into_iter().collect();
        let other = self.top_k.filter(|given| *given as u64 != top_k);
        issues.extend(other.map(|k| fixed("top_k", k.to_string(), top_k.to_string())));
        issues
    }

    fn validate_own(&self) -> Vec<Issue> {
        let mut issues = self.validate_training();
        issues.extend(self.temperature.and_then(teachers::temperature_issue));
        if !(self.share > 0.0 && self.share <= 1.0) {
            let what = format!("expected above 0, at most 1, found {}", self.share);
            issues.push(Issue::param("share", what).help("`pretrain` learns from texts alone"));
        }
        if self.stride == Some(0) {
            issues.push(Issue::param("stride", "expected 1 or more, found 0"));
        }
        issues
    }

    /// What does not go together with the teacher, or with logits.
    fn validate_teacher(&self, inputs: &Connected) -> Vec<Issue> {
        let (known, expected) = (|fact| teachers::known(inputs, fact), Expected::of(inputs));
        let temperature = known("temperature").and_then(|t| t.as_f64());
        let mut issues = self.fixed_by(temperature.zip(known("top_k").and_then(|k| k.as_u64())));
        let facts = Distill::facts(self, inputs, "model");
        let own = |fact: &str| facts.get(fact).and_then(|n| n.as_u64());
        let vocab_size = expected.vocab_size.zip(own("vocab_size"));
        if let Some((theirs, own)) = vocab_size.filter(|(theirs, own)| theirs != own) {
            let what = format!("the student has a vocabulary of {own}, the teacher of {theirs}");
            issues.push(match inputs.get("model").is_empty() {
                true => {
                    Issue::param("vocab_size", what).help("leave it away: the student gets the teacher's")
                }
                false => Issue::input("model", what).help("connect a model of the teacher's vocabulary"),
            });
        }
        let seq_len = expected.seq_len.zip(own("seq_len"));
        let divides = |(window, own): &(u64, u64)| own.is_multiple_of((*window).min(*own).max(1));
        if let Some((window, own)) = seq_len.filter(|both| !divides(both)) {
            let what =
                format!("sequences of {own} tokens don't divide into the {window} that the teacher sees");
            let help = format!("set it to at most {window}, or a multiple of it");
            issues.push(Issue::param("seq_len", what).help(help));
        }
        let top_k = expected.vocab_size.zip(self.top_k).filter(|(all, top_k)| *top_k as u64 > *all);
        if let Some((vocab_size, top_k)) = top_k {
            let what = format!("the teacher has a vocabulary of {vocab_size}, not {top_k}");
            issues.push(Issue::param("top_k", what).help("0 tells all tokens apart"));
        }
        issues
    }
}

/// Exactly one of the ports must be connected.
fn validate_ports(inputs: &Connected) -> Option<Issue> {
    match (inputs.get("teacher").is_empty(), inputs.get("logits").is_empty()) {
        (true, true) => Some(
            Issue::input("teacher", "nothing is connected to `teacher` or `logits`")
                .help("connect a model to `teacher`, or what `teach` computed to `logits`"),
        ),
        (false, false) => Some(
            Issue::input("logits", "`teacher` and `logits` are both connected")
                .help("leave one of them away: logits already hold what the teacher expects"),
        ),
        _ => None,
    }
}

/// The vocabulary of the teacher, and tokens that it sees at once, as far as they are known before it runs.
struct Expected {
    vocab_size: Option<u64>,
    seq_len: Option<u64>,
}

impl Expected {
    fn of(inputs: &Connected) -> Self {
        let known = |fact| inputs.number("teacher", fact).map(|(_, n)| n);
        let of_logits = teachers::known(inputs, "vocab_size").and_then(|n| n.as_u64());
        let longest = inputs.get("teacher").iter().filter_map(|up| up.facts.get("seq_len")?.as_u64());
        Expected { vocab_size: known("vocab_size").or(of_logits), seq_len: longest.min() }
    }
}

/// The configuration of a student that begins anew; `base` is the teacher's, `vocab_size` its vocabulary.
fn new_config(
    architecture: &Architecture,
    base: Option<&Config>,
    vocab_size: Option<u64>,
) -> Result<Option<Config>> {
    let base = match &architecture.preset {
        Some(name) => Some(model::preset(name)?),
        None => base,
    };
    let own = architecture.number("vocab_size").or(vocab_size).map(|n| n as usize);
    Ok(base.map(|base| {
        let config = architecture.replacing(base);
        Config { vocab_size: own.unwrap_or(config.vocab_size), ..config }
    }))
}

/// What a student that begins anew gets wrong.
fn validate_new(architecture: &Architecture, inputs: &Connected) -> Vec<Issue> {
    let expected = Expected::of(inputs);
    let config = match new_config(architecture, None, expected.vocab_size) {
        Ok(config) => config,
        Err(e) => return vec![Issue::param("preset", e.to_string())],
    };
    let Some(config) = config else {
        let missing = Issue::param("preset", "logits don't say which architecture the student is to have")
            .help("set a `preset`, or connect a model to begin with to `model`");
        return if inputs.get("teacher").is_empty() { vec![missing] } else { Vec::new() };
    };
    let mut issues: Vec<Issue> = architecture.validate(&config).into_iter().collect();
    let room = config.vocab_size as u64;
    issues.extend(tokenizers::fits(inputs, room, |_| {
        "connect the tokenizer that the teacher was trained with".to_string()
    }));
    issues
}

impl Kind for Distill {
    type Params = Params;

    fn info() -> Info {
        let mut inputs = streams::ports();
        let teacher = "A model to learn from; of several, the mean of what they expect.";
        let baseline = "The student trained without a teacher, for the report: how much it helped.";
        inputs.extend([
            Port::new("teacher", "model", teacher).optional().many(),
            Port::new(
                "logits",
                "logits",
                "What `teach` computed over the same shards, instead of a teacher.",
            )
            .optional(),
            Port::new("model", "model", "A student to begin with, instead of a fresh one.").optional(),
            Port::new("baseline", "model", baseline).optional(),
        ]);
        Info {
            name: "distill",
            version: 2, // 2: a folder that `transformers` loads
            summary: "Trains a model on token shards and on what other models expect of them.",
            inputs,
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.safetensors` with what `transformers` loads beside it; `distillation.json`, `held_out.json`, \
                 metrics and samples.",
            )],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: NOT_IN_KEY,
            not_in_state: NOT_IN_STATE,
            value_versions: BF16_TILE,
        }
    }

    fn outputs(params: &Params) -> Vec<Port> {
        let checkpoints = training::checkpoints(&params.keep_checkpoints);
        Self::info().outputs.into_iter().chain(checkpoints).collect()
    }

    fn resumes(params: &Params, seed: u64, state: &Path) -> Option<Resume> {
        training::resumes(&params.options(seed), state)
    }

    fn committed(params: &Params, seed: u64, state: &Path) {
        train::remove_used(&params.options(seed), state);
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let architecture = params.architecture();
        let mut issues: Vec<Issue> = validate_ports(inputs).into_iter().collect();
        issues.extend(params.validate_own());
        issues.extend(architecture.validate_warm_start(inputs));
        issues.extend(teachers::vocabulary_issues(inputs));
        if inputs.get("model").is_empty() {
            issues.extend(validate_new(&architecture, inputs));
        }
        issues.extend(params.validate_teacher(inputs));
        issues
    }

    fn facts(params: &Params, inputs: &Connected, _: &str) -> Facts {
        let (architecture, expected) = (params.architecture(), Expected::of(inputs));
        let teacher = inputs.get("teacher").first();
        let base = teacher.and_then(facts::config);
        let Ok(config) = new_config(&architecture, base.as_ref(), expected.vocab_size) else {
            return Facts::new();
        };
        let seq_len = config
            .as_ref()
            .map(|config| config.seq_len as u64)
            .or_else(|| architecture.number("seq_len").or_else(|| teacher?.facts.get("seq_len")?.as_u64()));
        let vocab_size = architecture.number("vocab_size").or(expected.vocab_size);
        architecture.facts([vocab_size, seq_len], config, inputs)
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let tokenizer = streams::tokenizer(ctx)?;
        let shards = streams::shards(ctx, &tokenizer)?;
        let teachers = teachers::load(ctx, &tokenizer)?;
        let logits = ctx.optional("logits").map(|artifact| open(artifact, ctx, &tokenizer)).transpose()?;
        let baseline = ctx.optional("baseline").map(|it| teachers::load_one(it, &tokenizer)).transpose()?;
        let transformer = begin(params, ctx, &tokenizer, &teachers, logits.as_ref())?;
        let distill = params.distill(logits.as_ref(), transformer.config.vocab_size)?;
        let streams = Streams::read(ctx, &shards, &tokenizer)?;
        let pad = tokenizer.special(Special::Pad).unwrap_or(0);
        let seq_len = transformer.config.seq_len;
        let stride = params.stride.unwrap_or(seq_len);
        let train = Windows::new(&streams.train, seq_len, pad).every(stride);
        let validation = Windows::new(&streams.validation, seq_len, pad);

        let (bytes_per_token, monitor) = (streams.bytes_per_token, ctx.monitor);
        let measure = Measure { validation: &validation, bytes_per_token, monitor };
        // Before the training, so that what cannot be compared comes to light early.
        let alone = baseline.map(|model| measure.student(&model)).transpose()?;
        let (source, known) = match &logits {
            Some(logits) => {
                let table = Table::new(logits, &streams.train, &ctx.scratch, ctx.monitor)?;
                (Source::Table { table, stride }, Known::of_logits(logits, ctx)?)
            }
            None => {
                let all: Vec<&Transformer> = teachers.iter().map(|(_, model)| model).collect();
                let mut asked = Teachers::new(&all, rayon::current_num_threads(), params.dtype)?;
                let known = measure.teachers(&mut asked, &teachers)?;
                (Source::Models(asked), known)
            }
        };
        let mut objective = train::Distill::new(source, distill);
        let mut model = Model { transformer, tokenizer };
        let places = training::places(ctx, "model")?;
        let options = params.options(ctx.seed);
        let outcome =
            train::run(&mut model, &mut objective, &train, &validation, &options, places, ctx.monitor)?;
        let student = measure.student(&model.transformer)?;
        Report::new(&distill, known, student, alone).save(places.output)?;
        let held_out = teachers::with_rules_of(streams::held_out(ctx)?, ctx.all("teacher"))?;
        let held_out = teachers::with_rules_of(held_out, ctx.all("logits"))?;
        held_out.save(places.output)?;
        model.save(places.output)?;
        training::save_checkpoints(ctx, &mut model, &outcome, &held_out)
    }
}

/// What models are measured on.
struct Measure<'a> {
    validation: &'a Windows<'a>,
    bytes_per_token: f64,
    monitor: &'a dyn Monitor,
}

impl Measure<'_> {
    fn teachers(&self, asked: &mut Teachers, models: &[(String, Transformer)]) -> Result<Known> {
        let context = asked.window(self.validation.length())?;
        let (each, mean) = asked.losses(self.validation, self.monitor)?;
        let teachers = teachers::scores(models, each, self.bytes_per_token);
        Ok(Known { teachers, teacher: Scores::of(mean, self.bytes_per_token), context })
    }

    fn student(&self, model: &Transformer) -> Result<Student> {
        let mut asked = Teachers::new(&[model], rayon::current_num_threads(), Dtype::F32)?;
        let (_, loss) = asked.losses(self.validation, self.monitor)?;
        let parameters = model.config.parameters() as u64;
        Ok(Student { parameters, scores: Scores::of(loss, self.bytes_per_token) })
    }
}

/// How good the teacher is.
struct Known {
    teachers: Vec<TeacherScores>,
    teacher: Option<Scores>,
    context: usize,
}

impl Known {
    /// As was found when the logits were computed, where that was on what this training is validated on.
    fn of_logits(logits: &Logits, ctx: &Context) -> Result<Self> {
        let path = ctx.input("logits")?.file(LOGITS_FILE)?;
        let report: LogitsReport = serde_json::from_slice(&fs::read(path)?).map_err(|e| {
            Error::input(format!("`{LOGITS_FILE}` does not say how good the teacher is: {e}"))
        })?;
        let same = ctx.optional("validation").is_none();
        let teachers = if same { report.teachers } else { Vec::new() };
        Ok(Known { teachers, teacher: report.teacher.filter(|_| same), context: logits.header.context })
    }
}

impl Report {
    fn new(distill: &DistillOptions, known: Known, student: Student, alone: Option<Student>) -> Self {
        let Known { teachers, teacher, context } = known;
        let loss = |student: &Student| Some(student.scores?.loss);
        let gap_closed = alone.as_ref().and_then(loss).and_then(|alone| {
            let (own, teacher) = (loss(&student)?, teacher?.loss);
            (teacher < alone).then(|| (alone - own) / (alone - teacher))
        });
        Report {
            temperature: distill.temperature,
            share: distill.share,
            top_k: distill.top_k,
            teachers,
            teacher,
            context,
            student,
            alone,
            gap_closed,
        }
    }

    /// Logs and writes it.
    fn save(&self, folder: &Path) -> Result<()> {
        let alone = self.alone.as_ref().and_then(|alone| alone.scores);
        let all = [("teacher", self.teacher), ("student", self.student.scores), ("student alone", alone)];
        let known = all.iter().filter_map(|(name, scores)| Some(format!("{name} {:.4}", (*scores)?.loss)));
        let mut text = format!("validation loss: {}", known.collect::<Vec<_>>().join(", "));
        match self.gap_closed {
            Some(closed) => text += &format!("; {:.0} % of the gap closed", 100.0 * closed),
            None if alone.is_some() && self.teacher.is_some() => {
                text += "; the teacher is no better than the student alone";
            }
            None => {}
        }
        tracing::info!("{text}");
        if let Some(alone) = self.alone.as_ref().filter(|alone| alone.parameters != self.student.parameters) {
            tracing::warn!(
                "the student has {} parameters, the one it is compared with {}",
                units::count(self.student.parameters),
                units::count(alone.parameters)
            );
        }
        fs::write_json(&folder.join(REPORT_FILE), self)
    }
}

/// The logits of `artifact`, which must be of the connected shards and tokenizer.
fn open(artifact: &Artifact, ctx: &Context, tokenizer: &Tokenizer) -> Result<Logits> {
    let logits = Logits::open(&teachers::files(artifact))?;
    let shards = ctx.input("shards")?;
    let (of_tokenizer, of_shards) = (logits.header.tokenizer, logits.header.shards);
    for (what, theirs, own, same) in [
        ("tokenizer", of_tokenizer, tokenizer.digest(), tokenizer.has_digest(of_tokenizer)),
        ("shards", of_shards, shards.digest, of_shards == shards.digest),
    ] {
        if !same {
            let found = format!("{what} {}, connected is {}", theirs.short(), own.short());
            return Err(Error::input(format!("`{}` was computed with the {found}", artifact.label))
                .help(format!("connect the same {what} to `teach` and `distill`")));
        }
    }
    Ok(logits)
}

/// The student: the connected model, or a fresh one.
fn begin(
    params: &Params,
    ctx: &Context,
    tokenizer: &Tokenizer,
    teachers: &[(String, Transformer)],
    logits: Option<&Logits>,
) -> Result<Transformer> {
    let architecture = params.architecture();
    let first = teachers.first().map(|(_, model)| &model.config);
    let vocab_size = logits.map(|logits| logits.header.vocab_size).or(first.map(|config| config.vocab_size));
    let student = match ctx.optional("model") {
        Some(artifact) => architecture.warm_start(artifact, tokenizer, ctx.seed)?,
        None => {
            let config =
                new_config(&architecture, first, vocab_size.map(|n| n as u64))?.ok_or_else(|| {
                    Error::input("nothing says which architecture the student has").help("set `preset`")
                })?;
            if let Some(issue) = architecture.validate(&config) {
                return Err(as_error(issue));
            }
            config.fits(tokenizer)?;
            Transformer::fresh(&config, ctx.seed)
        }
    };
    let own = student.config.vocab_size;
    match vocab_size.filter(|theirs| *theirs != own) {
        Some(theirs) => {
            let what = format!("the student has room for {own} tokens, the teacher for {theirs}");
            Err(Error::input(what).help("give the student the teacher's `vocab_size`"))
        }
        None => Ok(student),
    }
}

/// What is found only when it runs.
fn as_error(issue: Issue) -> Error {
    issue.help.into_iter().fold(Error::usage(issue.message), Error::help)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::teach::Teach;
    use super::super::teachers::fixtures::{Fixture, connected};
    use super::*;
    use crate::base::Quiet;
    use crate::model::{CONFIG_FILE, WEIGHTS_FILE};
    use crate::stage::harness::{self, Outcome};

    const STUDENT: &str = "preset: modern-1.5m, d_model: 8, n_layer: 1, n_head: 2, seq_len: 32, steps: 6, \
                           batch_size: 3, eval_every: 3, dropout: 0.1";

    fn distill(params: &str, inputs: &[(&str, Artifact)], threads: usize) -> Result<Outcome> {
        harness::run_with::<Distill>(&format!("{{ {params} }}"), inputs, 1, threads, &Quiet)
    }

    fn read(made: &Outcome, file: &str) -> Value {
        serde_json::from_slice(&made.read("model", file)).unwrap()
    }

    /// Of each logged step, by name.
    fn metrics(made: &Outcome, name: &str) -> Vec<f64> {
        let text = String::from_utf8(made.read("model", "metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()[name].as_f64().unwrap())
            .collect()
    }

    fn same_bytes(one: &Outcome, two: &Outcome, what: &str) {
        for file in [WEIGHTS_FILE, CONFIG_FILE, "metrics.jsonl"] {
            assert!(one.read("model", file) == two.read("model", file), "{what}: {file}");
        }
    }

    #[test]
    fn asking_the_teacher_and_reading_its_logits_give_the_same_bytes() {
        let fixture = Fixture::new();
        let teachers = [("teacher", fixture.model("one", 1)), ("teacher", fixture.model("two", 2))];
        let inputs = fixture.inputs(&teachers);
        let params = "{ top_k: 6, temperature: 2, file_positions: 1000 }";
        let taught = harness::run::<Teach>(params, &inputs, 1).unwrap();
        let logits = ("logits", taught.artifact("logits").unwrap());
        let asked = distill(&format!("{STUDENT}, top_k: 6, temperature: 2"), &inputs, 2).unwrap();
        let read = distill(STUDENT, &fixture.inputs(std::slice::from_ref(&logits)), 3).unwrap();
        same_bytes(&asked, &read, "two teachers");

        let other = distill(&format!("{STUDENT}, top_k: 5, temperature: 2"), &inputs, 2).unwrap();
        assert!(other.read("model", WEIGHTS_FILE) != read.read("model", WEIGHTS_FILE), "another `top_k`");
        let overlapping = distill(&format!("{STUDENT}, stride: 7"), &fixture.inputs(&[logits]), 2).unwrap();
        assert!(overlapping.read("model", WEIGHTS_FILE) != read.read("model", WEIGHTS_FILE), "a stride");
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let fixture = Fixture::new();
        let inputs =
            fixture.inputs(&[("teacher", fixture.model("one", 1)), ("teacher", fixture.model("two", 3))]);
        let params = format!("{STUDENT}, optimizer: muon, accumulate: 2, share: 0.9, temperature: 1.5");
        let one = distill(&params, &inputs, 1).unwrap();
        for threads in [2, 3] {
            same_bytes(&one, &distill(&params, &inputs, threads).unwrap(), &format!("{threads} threads"));
        }
    }

    #[test]
    fn without_an_architecture_the_student_is_born_again() {
        let fixture = Fixture::new();
        let teacher = fixture.model("teacher", 2);
        let inputs = fixture.inputs(&[("teacher", teacher.clone())]);
        let again = distill("steps: 2, batch_size: 2", &inputs, 2).unwrap();
        let config: Value =
            serde_json::from_slice(&fs::read(teacher.file(CONFIG_FILE).unwrap()).unwrap()).unwrap();
        assert_eq!(read(&again, CONFIG_FILE), config);
        let narrow = distill("d_model: 8, d_ff: 8, n_layer: 2, steps: 2, batch_size: 2", &inputs, 2).unwrap();
        let narrow = read(&narrow, CONFIG_FILE);
        assert_eq!((&narrow["n_embd"], &narrow["n_layer"]), (&json!(8), &json!(2)), "{narrow}");
        assert_eq!(narrow["vocab_size"], config["vocab_size"]);
    }

    #[test]
    fn a_student_that_is_its_teacher_has_nothing_to_learn_of_it() {
        let fixture = Fixture::new();
        let teacher = fixture.model("teacher", 2);
        let inputs = fixture.inputs(&[
            ("teacher", teacher.clone()),
            ("model", teacher.clone()),
            ("baseline", teacher),
        ]);
        let params = "dropout: 0, weight_decay: 0, share: 1, steps: 10, learning_rate: 0.000001";
        let made = distill(params, &inputs, 2).unwrap();
        let loss = metrics(&made, "loss")[0];
        assert!(loss.abs() < 1e-4, "{loss}");
        let report = read(&made, REPORT_FILE);
        let loss = |of: &str| report[of]["loss"].as_f64().unwrap();
        assert_eq!(loss("teacher"), loss("alone"));
        assert!((loss("student") - loss("teacher")).abs() < 1e-3, "{report}");
        assert_eq!(
            (&report["gap_closed"], &report["teachers"][0]["name"]),
            (&Value::Null, &json!("teacher"))
        );
    }

    #[test]
    fn the_share_of_the_gap_is_between_the_student_alone_and_the_teacher() {
        let scores = |loss| Some(Scores { loss, bits_per_byte: loss, tokens: 1 });
        let student = |loss| Student { parameters: 1, scores: scores(loss) };
        let distill =
            DistillOptions { temperature: 1.0, share: 0.5, top_k: 1, rounded: false, label_smoothing: 0.0 };
        let closed = |teacher, own, alone| {
            let known = Known { teachers: Vec::new(), teacher: scores(teacher), context: 1 };
            Report::new(&distill, known, student(own), Some(student(alone))).gap_closed
        };
        assert_eq!(closed(2.0, 2.5, 3.0), Some(0.5));
        assert_eq!(closed(2.0, 3.5, 3.0), Some(-0.5));
        assert_eq!(closed(3.0, 2.5, 3.0), None);
    }

    #[test]
    fn a_teacher_of_shorter_sequences_sees_equal_windows() {
        let fixture = Fixture::new();
        let inputs = fixture.inputs(&[("teacher", fixture.model_of("short", 1, 16))]);
        let made = distill(STUDENT, &inputs, 2).unwrap();
        assert_eq!(read(&made, REPORT_FILE)["context"], 16);
        let error = distill(&format!("{STUDENT}, seq_len: 40").replacen("seq_len: 32, ", "", 1), &inputs, 2);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("40 tokens don't divide into the 16 that the teacher sees"), "{error}");
    }

    #[test]
    fn logits_of_other_shards_or_params_are_refused() {
        let fixture = Fixture::new();
        let inputs = fixture.inputs(&[("teacher", fixture.model("one", 1))]);
        let taught = harness::run::<Teach>("{ top_k: 6, temperature: 2 }", &inputs, 1).unwrap();
        let logits = ("logits", taught.artifact("logits").unwrap());
        let fails = |params: &str, inputs: &[_]| distill(params, inputs, 1).err().expect(params).to_string();
        let other = Fixture::split("byte_bpe.json", 0.5);
        let error = fails(STUDENT, &other.inputs(std::slice::from_ref(&logits)));
        assert!(error.contains("`logits` was computed with the shards"), "{error}");
        let own = fixture.inputs(std::slice::from_ref(&logits));
        let error = fails(&format!("{STUDENT}, temperature: 1"), &own);
        assert!(error.contains("computed with 2, not 1"), "{error}");
        let error = fails("steps: 2", &own);
        assert!(error.contains("logits don't say which architecture"), "{error}");
        let both = fixture.inputs(&[logits, ("teacher", fixture.model("two", 1))]);
        assert!(fails(STUDENT, &both).contains("both connected"));
        assert!(
            fails(STUDENT, &fixture.inputs(&[])).contains("nothing is connected to `teacher` or `logits`")
        );
        let error = fails(&format!("{STUDENT}, vocab_size: 700"), &inputs);
        assert!(error.contains("room for 700 tokens, the teacher for 600"), "{error}");
    }

    #[test]
    fn what_is_known_of_the_teacher_is_checked_before_anything_runs() {
        let teacher = json!({ "vocab_size": 600, "seq_len": 32 });
        let logits = json!({ "vocab_size": 600, "temperature": 2.0, "top_k": 16 });
        let small = json!({ "vocab_size": 500, "seq_len": 32 });
        let check = |params: Value, ports: &[(&str, &[Value])]| {
            let params: Params = serde_json::from_value(params).unwrap();
            let issues = Distill::validate(&params, &connected(ports));
            issues.into_iter().map(|issue| issue.at).collect::<Vec<_>>()
        };
        let of_teacher = [("teacher", &[teacher.clone()][..])];
        let of_logits = [("logits", &[logits][..])];
        let preset = json!({ "preset": "mini" });
        for (params, at) in [
            (json!({}), None),
            (preset.clone(), None),
            (json!({ "preset": "mini", "seq_len": 48 }), Some("params.seq_len")),
            (json!({ "vocab_size": 601 }), Some("params.vocab_size")),
            (json!({ "top_k": 601 }), Some("params.top_k")),
            (json!({ "share": 0.0 }), Some("params.share")),
            (json!({ "temperature": -1.0 }), Some("params.temperature")),
            (json!({ "preset": "minni" }), Some("params.preset")),
            (json!({ "embedding": "new" }), Some("params.embedding")),
            (json!({ "stride": 0 }), Some("params.stride")),
        ] {
            assert_eq!(check(params.clone(), &of_teacher), at.into_iter().collect::<Vec<_>>(), "{params}");
        }
        assert_eq!(check(preset.clone(), &of_logits), [""; 0]);
        assert_eq!(check(json!({}), &of_logits), ["params.preset"]);
        assert_eq!(
            check(json!({ "preset": "mini", "temperature": 1.0 }), &of_logits),
            ["params.temperature"]
        );
        assert_eq!(check(json!({ "preset": "mini", "top_k": 8 }), &of_logits), ["params.top_k"]);
        let two = [("teacher", &[teacher.clone(), small.clone()][..])];
        assert_eq!(check(preset, &two), ["inputs.teacher"]);
        let begun = [("teacher", &[teacher][..]), ("model", &[small][..])];
        assert_eq!(check(json!({}), &begun), ["inputs.model"]);

        let facts = |params: Value, ports: &[(&str, &[Value])]| {
            let params: Params = serde_json::from_value(params).unwrap();
            serde_json::to_value(Distill::facts(&params, &connected(ports), "model")).unwrap()
        };
        assert_eq!(facts(json!({}), &of_teacher), json!({ "vocab_size": 600, "seq_len": 32 }));
        assert_eq!(
            facts(json!({ "preset": "mini" }), &of_logits),
            json!({ "vocab_size": 600, "seq_len": 128,
                "config": Config { vocab_size: 600, ..model::preset("mini").unwrap().clone() } })
        );
    }
}
