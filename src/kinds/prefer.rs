//! `prefer`: a model learns which of two answers is preferred. Direct preference optimization (DPO).

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Serialize;

use super::finetune::check_length;
use super::texts::held_out_by;
use super::training;
use super::training_params::{BF16_TILE, NOT_IN_KEY, NOT_IN_STATE, training_params};
use super::{facts, tokenizers};
use crate::base::{Error, Result, fs, units};
use crate::corpus::held_out::{self, Rule};
use crate::corpus::preference::{self, PreferenceReader};
use crate::eval::sign_test;
use crate::kernel::Team;
use crate::model::{Executor, Model, TOKENIZER_FILE, Transformer};
use crate::stage::{Artifact, Connected, Context, Facts, Info, Issue, Kind, Port, Resume};
use crate::tokenizer::{Special, Tokenizer};
use crate::train::{self, Compared, Data, Dpo, PairNats, Pairs, Preference, RenderedPair};

pub struct Prefer;

/// The file of [`Report`] in the model's folder.
pub const REPORT_NAME: &str = "preference.json";

training_params! {
    /// How preferences are learned.
    Params;
    defaults {
        steps: 200, learning_rate: 0.0001, warmup_steps: 20,
        dropout: Some(0.0), weight_decay: Some(0.0), eval_every: 20, eval_rows: 512
    }
    own {
        /// How much the model may come to differ from what it was: the higher, the less. The `β` of DPO.
        beta: f64 = 0.1,
        /// The weight of the chosen answer's own cross-entropy, nats a token, beside DPO's loss: it keeps small
        /// models fluent (RPO). 0: plain DPO. The validation loss does not contain it.
        nll_weight: f64 = 1.0,
        /// The share of prompts whose pairs are held out for validation, by the digest of the prompt. Above 0,
        /// at least one is when there are two. With pairs connected to `validation`, none is.
        validation_fraction: f64 = 0.1,
    }
}

impl Kind for Prefer {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "prefer",
            version: 2, // 2: a folder that `transformers` loads
            summary: "Teaches a model which of two answers to prefer, on pairs (DPO).",
            inputs: vec![
                Port::new("model", "model", "The model, fine-tuned on conversations: also the reference."),
                Port::new(
                    "preferences",
                    "conversations",
                    "Pairs of a chosen and a rejected answer: of `ingest_chat`, from rows with `chosen` and `rejected`.",
                )
                .many(),
                Port::new("tokenizer", "tokenizer", "The model's tokenizer, where the model has none.")
                .or(&["model"])
                    .or_source(&["tokenizer.json", ".json"])
                    .optional(),
                Port::new(
                    "validation",
                    "conversations",
                    "Pairs that it is validated on, all of them, instead of what is held out of `preferences`.",
                )
                .optional()
                .many(),
            ],
            outputs: vec![Port::new(
                "model",
                "model",
                "`model.safetensors` with what `transformers` loads beside it; `preference.json`, `held_out.json`, metrics \
                 and samples.",
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
        train::remove_kept_pair_nats(state);
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let mut issues = params.validate_training();
        let mut expect = |name, holds: bool, expected: &str, found: f64| {
            if !holds {
                issues.push(Issue::param(name, format!("expected {expected}, found {found}")));
            }
        };
        let (beta, nll) = (params.beta, params.nll_weight);
        expect("beta", beta > 0.0 && beta.is_finite(), "a number above 0", beta);
        expect("nll_weight", nll >= 0.0 && nll.is_finite(), "0 or more", nll);
        let (fraction, smoothing) = (params.validation_fraction, params.label_smoothing);
        expect("validation_fraction", (0.0..1.0).contains(&fraction), "0 to below 1", fraction);
        let of_pairs = !(0.5..1.0).contains(&smoothing);
        expect(
            "label_smoothing",
            of_pairs,
            "0 to below 0.5, as the labels of most pairs are right",
            smoothing,
        );
        if let Some((_, room)) = inputs.number("model", "vocab_size") {
            let help = |_| "connect the tokenizer that the model was trained with, or none".to_string();
            issues.extend(tokenizers::fits(inputs, room, help));
        }
        issues
    }

    fn facts(_: &Params, inputs: &Connected, _: &str) -> Facts {
        facts::of_same_model(inputs, "model")
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let mut model = load(ctx)?;
        check_length(&model)?;
        let (data, places) = (Split::read(params, ctx, &model)?, training::places(ctx, "model")?);
        let (of_train, before) = reference(params, ctx, &model.transformer, &data)?;
        let own_dropout = model.transformer.config.dropout;
        model.transformer.config.dropout = params.dropout.unwrap_or(own_dropout);
        let mut objective = Preference::new(params.dpo(), of_train, before.clone());
        let (train, held_out, options) = (&data.train, &data.held_out, params.options(ctx.seed));
        let outcome = train::run(&mut model, &mut objective, train, held_out, &options, places, ctx.monitor)?;
        // That of this training is no property of the model.
        model.transformer.config.dropout = own_dropout;
        let mut executor = executor(params, &model.transformer);
        let after = train::pair_nats(&mut executor, &model.transformer, held_out, ctx.monitor)?;
        let report = Report::new(params, &data, &before, &after);
        report.announce();
        fs::write_json(&places.output.join(REPORT_NAME), &report)?;
        let earlier = held_out_by(ctx.input("model")?)?;
        earlier.save(places.output)?;
        model.save(places.output)?;
        training::save_checkpoints(ctx, &mut model, &outcome, &earlier)
    }
}

impl Params {
    fn dpo(&self) -> Dpo {
        Dpo { beta: self.beta, label_smoothing: self.label_smoothing, nll_weight: self.nll_weight }
    }
}

/// The model with its own tokenizer, or the one that is connected.
fn load(ctx: &Context) -> Result<Model> {
    let input = ctx.input("model")?;
    let transformer = Transformer::open(&input.as_files())?.dequantized();
    // The special tokens are those that the model was trained with.
    let names = tokenizers::names(input)?;
    let own = input.find(TOKENIZER_FILE).map(|path| Tokenizer::load_with(path, &names)).transpose()?;
    let connected =
        ctx.optional("tokenizer").map(|artifact| tokenizers::load(artifact, names.clone())).transpose()?;
    if let (Some(own), Some(connected)) = (&own, &connected) {
        own.is_part_of(connected)?;
    }
    let tokenizer = connected.or(own).ok_or_else(|| {
        Error::input(format!("`{}` has no `{TOKENIZER_FILE}`", input.label))
            .help("connect the tokenizer that the model was trained with to `tokenizer`")
    })?;
    if tokenizer.vocab_size() > transformer.config.vocab_size {
        let (tokens, room) = (tokenizer.vocab_size(), transformer.config.vocab_size);
        return Err(Error::input(format!(
            "the tokenizer has {tokens} tokens, the model has room for {room}"
        ))
        .help("fine-tune with this tokenizer first, which extends the embedding"));
    }
    Ok(Model { transformer, tokenizer })
}

/// Computes as training does, without a backward pass.
fn executor(params: &Params, transformer: &Transformer) -> Executor {
    let team = Team::new(rayon::current_num_threads()).in_dtype(params.dtype);
    Executor::forward_only(&transformer.config, team)
}

/// What the reference, which is the model before this training, gives the answers that are trained on and those held
/// out.
fn reference(
    params: &Params,
    ctx: &Context,
    model: &Transformer,
    data: &Split,
) -> Result<(Vec<PairNats>, Vec<PairNats>)> {
    let (places, mut executor) = (training::places(ctx, "model")?, executor(params, model));
    let mut nats = |pairs| train::kept_pair_nats(places, &mut executor, model, pairs, ctx.monitor);
    Ok((nats(&data.train)?, nats(&data.held_out)?))
}

/// A pair as token ids, with the id of its prompt.
type Read = (String, RenderedPair);

/// The pairs to train on, and those to validate on.
struct Split {
    train: Pairs,
    held_out: Pairs,
    /// The ids of the prompts of `held_out`, one a row.
    prompts: Vec<String>,
    rule: Rule,
    read: usize,
}

impl Split {
    fn read(params: &Params, ctx: &Context, model: &Model) -> Result<Self> {
        let pairs = rendered(ctx, "preferences", model)?;
        let mut held_out = rendered(ctx, "validation", model)?;
        let fraction = if held_out.is_empty() { params.validation_fraction } else { 0.0 };
        let rule = Rule::new(fraction, &pairs.iter().map(|(prompt, _)| prompt.as_str()).collect());
        warn_of_trained(&pairs, &held_out);
        let (read, mut train) = (pairs.len() + held_out.len(), Vec::new());
        for (prompt, pair) in pairs {
            match rule.split(&prompt) {
                held_out::Split::Train => train.push(pair),
                held_out::Split::Validation => held_out.push((prompt, pair)),
            }
        }
        let (seq_len, pad) = (model.transformer.config.seq_len, model.tokenizer.require(Special::Pad)?);
        let (prompts, held_out): (Vec<String>, Vec<RenderedPair>) = held_out.into_iter().unzip();
        let (train, held_out) = (Pairs::new(train, seq_len, pad), Pairs::new(held_out, seq_len, pad));
        let prompts = held_out.numbers().iter().map(|number| prompts[*number].clone()).collect();
        let split = Split { train, held_out, prompts, rule, read };
        split.announce(seq_len);
        if split.train.rows() == 0 {
            return Err(Error::input(format!("of {read} pairs none is left to train on")).help(format!(
                "at least one needs answers that differ within the model's {seq_len} tokens"
            )));
        }
        Ok(split)
    }

    fn counts(&self) -> Counts {
        let both = [&self.train, &self.held_out];
        let sum = |of: fn(&Pairs) -> usize| both.iter().map(|pairs| of(pairs)).sum();
        Counts {
            read: self.read,
            trained_on: self.train.rows(),
            held_out: self.held_out.rows(),
            prompts_cut: sum(|pairs| pairs.prompts_cut),
            answers_cut: sum(|pairs| pairs.answers_cut),
            left_out: sum(|pairs| pairs.left_out),
        }
    }

    fn announce(&self, seq_len: usize) {
        let counts = self.counts();
        tracing::info!(
            "{} pairs: {} to train on, {} held out; {} lost the beginning of the prompt and {} the end of an answer",
            units::count(counts.read as u64),
            units::count(counts.trained_on as u64),
            units::count(counts.held_out as u64),
            counts.prompts_cut,
            counts.answers_cut,
        );
        if counts.left_out > 0 {
            tracing::warn!(
                "{} pairs are left out: their answers don't differ within the model's {seq_len} tokens, or have no \
                 token that is learned",
                counts.left_out
            );
        }
    }
}

/// The pairs at `port` as token ids.
fn rendered(ctx: &Context, port: &str, model: &Model) -> Result<Vec<Read>> {
    let mut all = Vec::new();
    for artifact in ctx.all(port) {
        let reader = PreferenceReader::open(pairs_of(artifact)?)?;
        let total = all.len() as u64 + reader.rows;
        for pair in reader {
            let pair = pair?;
            if all.len() % 512 == 0 {
                ctx.monitor.step("reading pairs", all.len() as u64, Some(total), "pairs")?;
            }
            all.push((pair.prompt_id(), RenderedPair::of(&model.tokenizer, &pair)?));
        }
    }
    Ok(all)
}

fn pairs_of(artifact: &Artifact) -> Result<&Path> {
    artifact.find(preference::FILE_NAME).ok_or_else(|| {
        let what = format!("`{}` has no pairs of a chosen and a rejected answer", artifact.label);
        Error::input(what).help(format!(
            "`ingest_chat` writes them into `{}` where rows have `chosen` and `rejected`, and a `prompt`",
            preference::FILE_NAME
        ))
    })
}

fn warn_of_trained(pairs: &[Read], given: &[Read]) {
    let trained: HashSet<&str> = pairs.iter().map(|(prompt, _)| prompt.as_str()).collect();
    let known = given.iter().filter(|(prompt, _)| trained.contains(prompt.as_str())).count();
    if known > 0 {
        tracing::warn!(
            "{known} pairs to validate on have prompts that are trained on, too: the accuracy is too high"
        );
    }
}

/// What became of the pairs that were read.
#[derive(Debug, Clone, Serialize)]
struct Counts {
    read: usize,
    trained_on: usize,
    held_out: usize,
    /// Pairs whose prompt lost its beginning.
    prompts_cut: usize,
    /// Pairs of which an answer lost its end.
    answers_cut: usize,
    /// Pairs whose answers don't differ where they fit, or have no token that is learned.
    left_out: usize,
}

/// `preference.json`.
#[derive(Debug, Clone, Serialize)]
struct Report {
    beta: f64,
    pairs: Counts,
    /// By the ids of prompts.
    held_out_by: Rule,
    held_out: Option<OfHeldOut>,
}

/// How the model that is kept tells chosen from rejected answers that it was not trained on.
#[derive(Debug, Clone, Serialize)]
struct OfHeldOut {
    pairs: usize,
    prompts: usize,
    /// The share of pairs whose chosen answer has the higher reward; of ties, one half counts.
    accuracy: f64,
    /// 95 %. Pairs of one prompt are not independent: each prompt counts as one observation.
    accuracy_interval: [f64; 2],
    /// Of the accuracy against 0.5: of a two-sided sign test over prompts, each won or lost by most of its
    /// pairs.
    p_value: f64,
    /// Of DPO, nats a pair.
    loss: f64,
    /// The mean reward of chosen answers less that of rejected ones. All rewards were 0 before training.
    margin: f64,
    chosen_reward: f64,
    rejected_reward: f64,
    before: Likelihood,
    after: Likelihood,
}

/// How likely a model finds answers, whatever the reference does.
#[derive(Debug, Clone, Serialize)]
struct Likelihood {
    chosen_nats_per_token: f64,
    rejected_nats_per_token: f64,
    /// The share of pairs whose chosen answer is, as a whole, the likelier one.
    chosen_is_likelier: f64,
}

impl Report {
    fn new(params: &Params, data: &Split, before: &[PairNats], after: &[PairNats]) -> Self {
        let held_out = (!after.is_empty()).then(|| OfHeldOut::new(&params.dpo(), data, before, after));
        Report { beta: params.beta, pairs: data.counts(), held_out_by: data.rule.clone(), held_out }
    }

    fn announce(&self) {
        let Some(held_out) = &self.held_out else { return };
        let [low, high] = held_out.accuracy_interval;
        tracing::info!(
            "held-out accuracy {:.1} % (95 % interval {:.1} to {:.1} %, p {:.1e}) over {} pairs of {} prompts; margin {:.3}",
            100.0 * held_out.accuracy,
            100.0 * low,
            100.0 * high,
            held_out.p_value,
            held_out.pairs,
            held_out.prompts,
            held_out.margin
        );
    }
}

impl OfHeldOut {
    fn new(dpo: &Dpo, data: &Split, before: &[PairNats], after: &[PairNats]) -> Self {
        let mut all = Compared::default();
        let mut prompts: BTreeMap<&str, Compared> = BTreeMap::new();
        for ((prompt, before), after) in data.prompts.iter().zip(before).zip(after) {
            all.add(dpo, *after, *before);
            prompts.entry(prompt).or_default().add(dpo, *after, *before);
        }
        let most = |wins: bool| {
            prompts
                .values()
                .map(Compared::accuracy)
                .filter(move |share| if wins { *share > 0.5 } else { *share < 0.5 })
                .count() as u64
        };
        let pairs = all.pairs as f64;
        OfHeldOut {
            pairs: after.len(),
            prompts: prompts.len(),
            accuracy: all.accuracy(),
            accuracy_interval: sign_test::interval(all.accuracy(), prompts.len() as u64),
            p_value: sign_test::p_value(most(true), most(false)),
            loss: all.loss / pairs,
            margin: all.margin(),
            chosen_reward: all.chosen_reward / pairs,
            rejected_reward: all.rejected_reward / pairs,
            before: Likelihood::new(&data.held_out, before),
            after: Likelihood::new(&data.held_out, after),
        }
    }
}

impl Likelihood {
    fn new(pairs: &Pairs, nats: &[PairNats]) -> Self {
        let per_token = |side: usize| {
            let tokens: usize = (0..nats.len()).map(|row| pairs.targets(row)[side]).sum();
            nats.iter().map(|nats| nats[side]).sum::<f64>() / tokens as f64
        };
        let likelier = nats.iter().filter(|[chosen, rejected]| chosen < rejected).count();
        Likelihood {
            chosen_nats_per_token: per_token(0),
            rejected_nats_per_token: per_token(1),
            chosen_is_likelier: likelier as f64 / nats.len() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use serde_json::Value;

    use super::super::texts::fixtures;
    use super::*;
    use crate::base::yaml::{self, Limits};
    use crate::base::{Monitor, Progress};
    use crate::corpus::conversation::{Message, Role};
    use crate::corpus::preference::PreferenceWriter;
    use crate::model::{CONFIG_FILE, WEIGHTS_FILE};
    use crate::model::{Config, gpt2};
    use crate::stage::harness;

    fn tokenizer() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
        Tokenizer::load(Path::new(path)).unwrap()
    }

    fn model(folder: &Path) -> Artifact {
        let tokenizer = tokenizer();
        let config = Config { d_ff: 32, dropout: 0.1, ..gpt2(tokenizer.vocab_size(), 16, 1, 2, 64) };
        Model { transformer: Transformer::fresh(&config, 1), tokenizer }.save(folder).unwrap();
        harness::artifact("chat", folder).unwrap()
    }

    /// Three pairs for each of so many prompts: kind answers are preferred.
    fn pairs(folder: &Path, prompts: usize, chosen: fn(usize) -> String) -> Artifact {
        let mut writer = PreferenceWriter::create(folder).unwrap();
        for i in 0..3 * prompts {
            let talk = |answer: String| {
                let asked = format!("Number {}?", i / 3);
                [Message::new(Role::User, asked), Message::new(Role::Assistant, answer)]
            };
            let rejected = talk(["No.", "Go.", "Why?"][i % 3].to_string());
            let pair = preference::Preference::of(&talk(chosen(i)), &rejected, "pairs.jsonl", i as u64 + 1);
            writer.push(&pair.unwrap()).unwrap();
        }
        writer.finish().unwrap();
        harness::artifact("pairs", folder).unwrap()
    }

    fn kind_answer(i: usize) -> String {
        format!("Yes, it is {}.", i / 3)
    }

    fn run(params: &str, prompts: usize, threads: usize) -> Result<harness::Outcome> {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inputs = [("model", model(one.path())), ("preferences", pairs(two.path(), prompts, kind_answer))];
        harness::run_with::<Prefer>(params, &inputs, 1, threads, &crate::base::Quiet)
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    const FEW: &str = "steps: 40, batch_size: 8, learning_rate: 0.01, validation_fraction: 0.3";

    #[test]
    fn it_prefers_what_was_chosen_by_the_same_bytes_on_any_number_of_threads() {
        let [one, two, three] = [1, 2, 3].map(|threads| run(&format!("{{ {FEW} }}"), 30, threads).unwrap());
        for file in [
            WEIGHTS_FILE,
            CONFIG_FILE,
            TOKENIZER_FILE,
            REPORT_NAME,
            "held_out.json",
            "metrics.jsonl",
            "metrics.parquet",
            "samples.jsonl",
        ] {
            assert!(one.read("model", file) == two.read("model", file), "{file}");
            assert!(one.read("model", file) == three.read("model", file), "{file}");
        }
        let [config, weights] = [CONFIG_FILE, WEIGHTS_FILE].map(|file| one.path("model").join(file));
        assert_eq!(Transformer::load(&config, &weights).unwrap().config.dropout, 0.1, "as it came in");
        let report = json(&one.read("model", REPORT_NAME));
        let (counts, held_out) = (&report["pairs"], &report["held_out"]);
        let count = |name: &str| counts[name].as_u64().unwrap();
        assert_eq!((count("read"), count("trained_on") + count("held_out"), count("left_out")), (90, 90, 0));
        assert_eq!(count("held_out"), 3 * held_out["prompts"].as_u64().unwrap(), "a prompt is on one side");
        let number = |name: &str| held_out[name].as_f64().unwrap();
        assert!(number("accuracy") > 0.9 && number("p_value") < 0.05 && number("margin") > 0.1, "{held_out}");
        let nats = |when: &str, side: &str| held_out[when][side].as_f64().unwrap();
        let [chosen, rejected] = ["chosen_nats_per_token", "rejected_nats_per_token"];
        let fell = |side: &str| nats("before", side) - nats("after", side);
        assert!(fell(chosen) > fell(rejected), "{held_out}");

        let metrics = one.read("model", "metrics.jsonl");
        let last = json(metrics.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap());
        assert!(last["accuracy"].as_f64().unwrap() > 0.9 && last["margin"].is_number(), "{last}");
        // The best weights are those of the validation, whose loss the report has again.
        let best = metrics.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let best = best.filter_map(|line| json(line)["val_loss"].as_f64()).fold(f64::INFINITY, f64::min);
        assert!((best - number("loss")).abs() < 1e-9, "{best}, {held_out}");
    }

    /// Asks to stop after step 12; says whether the reference was computed.
    #[derive(Default)]
    struct Stopping {
        stop: AtomicBool,
        compared: AtomicBool,
    }

    impl Monitor for Stopping {
        fn progress(&self, progress: Progress) {
            self.compared.fetch_or(progress.phase == "comparing answers", Ordering::Relaxed);
            self.stop.fetch_or(progress.phase == "training" && progress.done >= 12, Ordering::Relaxed);
        }

        fn measure(&self, _: &str, _: f64, _: &str) {}

        fn cancelled(&self) -> bool {
            self.stop.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn stopped_and_run_again_it_gives_the_same_bytes_and_computes_the_reference_once() {
        let folders = [0; 3].map(|_| tempfile::tempdir().unwrap());
        let [base, some, state] = folders.each_ref().map(tempfile::TempDir::path);
        let inputs = [("model", model(base)), ("preferences", pairs(some, 30, kind_answer))];
        let params = format!("{{ {FEW}, dropout: 0.1, keep_checkpoints: [5, 30] }}");
        let whole = harness::run::<Prefer>(&params, &inputs, 1).unwrap();
        let run = |monitor: &Stopping| {
            harness::run_in_state::<Prefer>(&params, &inputs, 1, 2, monitor, Some(state))
        };
        let stopping = Stopping::default();
        assert!(run(&stopping).err().unwrap().is_cancelled() && stopping.compared.into_inner());
        let files = || fs::children(state).unwrap().len();
        assert_eq!(files(), 3, "a state, and the reference of the pairs to train on and of those held out");

        let params_of =
            |text: &str| serde_json::from_value(yaml::parse("", text, Limits::default()).unwrap().to_json());
        let resumes = Prefer::resumes(&params_of(&params).unwrap(), 1, state).unwrap();
        assert!(resumes.step >= 12 && resumes.steps == Some(40), "{resumes:?}");
        // What compares answers once more is the report.
        let watching = Watching::default();
        let again = harness::run_in_state::<Prefer>(&params, &inputs, 1, 3, &watching, Some(state)).unwrap();
        assert_eq!(watching.0.into_inner(), 1);
        for (port, file) in [
            ("model", WEIGHTS_FILE),
            ("model", REPORT_NAME),
            ("model", "metrics.parquet"),
            ("step-5", WEIGHTS_FILE),
            ("step-30", WEIGHTS_FILE),
        ] {
            assert!(again.read(port, file) == whole.read(port, file), "{port}, {file}");
        }
        assert_eq!(files(), 0, "cosine: no longer training begins with a state of this one");
    }

    /// Counts the batches of answers that are compared.
    #[derive(Default)]
    struct Watching(AtomicUsize);

    impl Monitor for Watching {
        fn progress(&self, progress: Progress) {
            self.0.fetch_add(usize::from(progress.phase == "comparing answers"), Ordering::Relaxed);
        }

        fn measure(&self, _: &str, _: f64, _: &str) {}

        fn cancelled(&self) -> bool {
            false
        }
    }

    #[test]
    fn pairs_to_validate_on_can_be_given() {
        let folders = [0; 3].map(|_| tempfile::tempdir().unwrap());
        let [base, some, others] = folders.each_ref().map(tempfile::TempDir::path);
        let model = ("model", model(base));
        let inputs = [
            model,
            ("preferences", pairs(some, 9, kind_answer)),
            ("validation", pairs(others, 4, |_| "Yes!".into())),
        ];
        let made = harness::run::<Prefer>("{ steps: 1 }", &inputs, 1).unwrap();
        let report = json(&made.read("model", REPORT_NAME));
        assert_eq!((&report["pairs"]["trained_on"], &report["pairs"]["held_out"]), (&27.into(), &12.into()));
    }

    #[test]
    fn without_pairs_it_says_where_they_come_from() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = [("model", model(folder.path())), ("preferences", fixtures::chats(3))];
        let error = harness::run::<Prefer>("{ }", &inputs, 1).err().unwrap().to_string();
        assert!(
            error.contains("`chats` has no pairs") && error.contains("`ingest_chat` writes them"),
            "{error}"
        );

        let other = tempfile::tempdir().unwrap();
        // The model's 64 tokens end before the answers differ.
        let long = |i: usize| format!("{}{i}", ["No.", "Go.", "Why?"][i % 3].repeat(60));
        let folder = tempfile::tempdir().unwrap();
        let inputs = [("model", model(folder.path())), ("preferences", pairs(other.path(), 2, long))];
        let made = harness::run::<Prefer>("{ steps: 1, validation_fraction: 0 }", &inputs, 1).unwrap();
        let report = json(&made.read("model", REPORT_NAME));
        assert_eq!((&report["pairs"]["answers_cut"], &report["held_out"]), (&6.into(), &Value::Null));
    }

    #[test]
    fn what_is_out_of_range_is_found_before_anything_runs() {
        for (param, value) in [
            ("beta", "0"),
            ("nll_weight", "-1"),
            ("label_smoothing", "0.5"),
            ("label_smoothing", "1"),
            ("validation_fraction", "1"),
        ] {
            let error = run(&format!("{{ {param}: {value} }}"), 2, 2).err().expect(param).to_string();
            assert!(error.contains(&format!("`{param}`: expected")), "{error}");
        }
    }
}
