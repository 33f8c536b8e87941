//! `teach`: what models expect at every position of the training texts, for another to learn from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::streams::{self, Streams};
use super::teachers::{self, LOGITS_FILE, LogitsReport, Scores};
use super::training_params::BF16_TILE;
use crate::base::{Error, Result, fs, machine};
use crate::corpus::held_out::HeldOut;
use crate::kernel::Dtype;
use crate::model::{Sequences, Transformer, round_of};
use crate::shard::TokenStream;
use crate::shard::logits::{Header, LogitsWriter};
use crate::stage::{Connected, Context, Facts, Info, Issue, Kind, Port};
use crate::tokenizer::{Special, Tokenizer};
use crate::train::{Likeliest, Teachers, Windows};

pub struct Teach;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// How many of the likeliest next tokens are stored at each position; of all others, their probability
    /// together. A position takes about 5 bytes for each.
    pub top_k: usize,
    /// What logits are divided by before the softmax: above 1, unlikely tokens weigh more. The student that
    /// learns from them uses the same.
    pub temperature: f64,
    /// Tokens of the windows that the texts are cut into, end to end, before which the teacher sees nothing.
    /// Default: its longest sequence, of several teachers the shortest of those.
    pub context: Option<usize>,
    /// What matrix products are made of: `f32`, `bf16` or `bf16_tile`.
    pub dtype: Dtype,
    /// Positions of a file at most.
    pub file_positions: u64,
}

impl Default for Params {
    fn default() -> Self {
        Params { top_k: 16, temperature: 1.0, context: None, dtype: Dtype::F32, file_positions: 1 << 22 }
    }
}

impl Kind for Teach {
    type Params = Params;

    fn info() -> Info {
        let [shards, tokenizer, _] = streams::ports().try_into().expect("three ports");
        Info {
            name: "teach",
            version: 1,
            summary: "Computes what models expect next at every position of token shards, for `distill`.",
            inputs: vec![
                Port::new("teacher", "model", "The model; of several, the mean of what they expect.").many(),
                Port { doc: "The texts that are to be learned from.", ..shards },
                tokenizer,
            ],
            outputs: vec![Port::new(
                "logits",
                "logits",
                "`logits-*.parquet`, a position a row: `position`, `token`, the likeliest next `ids` with their \
                 `log_probs`, and the probability of the `rest`; `logits.json`, `held_out.json`.",
            )],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: BF16_TILE,
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let mut issues: Vec<Issue> = teachers::temperature_issue(params.temperature).into_iter().collect();
        for (name, n) in [
            ("top_k", params.top_k),
            ("context", params.context.unwrap_or(1)),
            ("file_positions", params.file_positions as usize),
        ] {
            if n == 0 {
                issues.push(Issue::param(name, "expected 1 or more, found 0"));
            }
        }
        if let Some((up, tokens)) =
            inputs.number("teacher", "vocab_size").filter(|(_, n)| (*n as usize) < params.top_k)
        {
            let what = format!("`{}` has a vocabulary of {tokens}", up.label);
            issues.push(Issue::param("top_k", what).help(format!("set it to at most {tokens}")));
        }
        let longest = inputs.get("teacher").iter().filter_map(|up| up.facts.get("seq_len")?.as_u64()).min();
        if let (Some(context), Some(longest)) = (params.context, longest)
            && context as u64 > longest
        {
            let what = format!("the teacher sees {longest} tokens at once, not {context}");
            issues.push(Issue::param("context", what).help(format!("set it to at most {longest}")));
        }
        issues.extend(teachers::vocabulary_issues(inputs));
        issues
    }

    fn facts(params: &Params, inputs: &Connected, _: &str) -> Facts {
        let mut facts = Facts::new();
        facts.insert("temperature".into(), params.temperature.into());
        facts.insert("top_k".into(), params.top_k.into());
        if let Some((_, n)) = inputs.number("teacher", "vocab_size") {
            facts.insert("vocab_size".into(), n.into());
        }
        facts
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let tokenizer = streams::tokenizer(ctx)?;
        let shards = streams::shards(ctx, &tokenizer)?;
        let models = teachers::load(ctx, &tokenizer)?;
        let streams = Streams::read(ctx, &shards, &tokenizer)?;
        let all: Vec<&Transformer> = models.iter().map(|(_, model)| model).collect();
        let mut asked = Teachers::new(&all, rayon::current_num_threads(), params.dtype)?;
        let header = header(params, ctx, &tokenizer, &asked)?;
        let folder = ctx.output("logits")?;
        let mut writer = LogitsWriter::new(folder, header.clone(), params.file_positions);
        compute(&mut asked, &streams.train, &header, &mut writer, ctx)?;
        let rest = writer.finish()?;
        let pad = tokenizer.special(Special::Pad).unwrap_or(0);
        let validation = Windows::new(&streams.validation, header.context, pad);
        let (each, mean) = asked.losses(&validation, ctx.monitor)?;
        let report = LogitsReport {
            positions: streams.train.len() as u64,
            vocab_size: header.vocab_size,
            temperature: header.temperature,
            top_k: header.top_k,
            context: header.context,
            rest,
            teachers: teachers::scores(&models, each, streams.bytes_per_token),
            teacher: Scores::of(mean, streams.bytes_per_token),
        };
        announce(&report);
        fs::write_json(&folder.join(LOGITS_FILE), &report)?;
        teachers::with_rules_of(HeldOut::default(), ctx.all("teacher"))?.save(folder)?;
        if let Some(peak) = machine::peak_memory() {
            ctx.monitor.measure("peak_memory", peak as f64 / f64::from(1 << 20), "MiB");
        }
        Ok(())
    }
}

fn header(params: &Params, ctx: &Context, tokenizer: &Tokenizer, teachers: &Teachers) -> Result<Header> {
    let (seq_len, vocab_size) = (teachers.seq_len(), teachers.vocab_size());
    let context = params.context.unwrap_or(seq_len);
    if context > seq_len {
        return Err(Error::input(format!("`context: {context}`: the teacher sees {seq_len} tokens at once"))
            .help(format!("set it to at most {seq_len}")));
    }
    if params.top_k > vocab_size {
        let what = format!("`top_k: {}`: the teacher has a vocabulary of {vocab_size}", params.top_k);
        return Err(Error::input(what).help(format!("set it to at most {vocab_size}")));
    }
    Ok(Header {
        tokenizer: tokenizer.digest(),
        shards: ctx.input("shards")?.digest,
        vocab_size,
        temperature: params.temperature,
        top_k: params.top_k,
        context,
    })
}

/// All positions of `stream`, in windows of `header.context` end to end; the last window is what is left.
fn compute(
    teachers: &mut Teachers,
    stream: &TokenStream,
    header: &Header,
    writer: &mut LogitsWriter,
    ctx: &Context,
) -> Result<()> {
    let (some, k) = (round_of(header.context) * header.context, header.top_k);
    let (mut ids, mut found) = (Vec::new(), Likeliest::new(k));
    let (mut first, total) = (0, stream.len());
    while first < total {
        ctx.monitor.step("teaching", first as u64, Some(total as u64), "tokens")?;
        let left = (total - first).min(some);
        let (length, tokens) = match left / header.context {
            0 => (left, left),
            windows => (header.context, windows * header.context),
        };
        ids.resize(tokens, 0);
        stream.window(first, &mut ids);
        // Nothing is compared with targets here.
        teachers.likeliest(Sequences::new(&ids, &ids, length), header.temperature as f32, &mut found)?;
        for (token, (ids, probabilities)) in
            ids.iter().zip(found.ids.chunks_exact(k).zip(found.probabilities.chunks_exact(k)))
        {
            writer.push(*token, ids, probabilities)?;
        }
        first += tokens;
    }
    Ok(())
}

fn announce(report: &LogitsReport) {
    let rest = report.rest.unwrap_or_default();
    tracing::info!("{:.2} % of the probability is not among the {} ids", 100.0 * rest, report.top_k);
    if let Some(scores) = report.teacher {
        tracing::info!(
            "teacher: validation loss {:.4}, {:.4} bits per byte",
            scores.loss,
            scores.bits_per_byte
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::super::teachers::fixtures::{self, Fixture};
    use super::*;
    use crate::query;
    use crate::stage::harness;

    fn teach(
        params: &str,
        inputs: &[(&str, crate::stage::Artifact)],
        threads: usize,
    ) -> Result<harness::Outcome> {
        harness::run_with::<Teach>(&format!("{{ {params} }}"), inputs, 1, threads, &crate::base::Quiet)
    }

    fn files(folder: &Path) -> Vec<std::path::PathBuf> {
        let all = fs::files_below(folder).unwrap();
        all.into_iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect()
    }

    #[test]
    fn logits_are_the_same_bytes_on_any_number_of_threads_and_can_be_queried() {
        let fixture = Fixture::new();
        let teachers = [("teacher", fixture.model("small", 1)), ("teacher", fixture.model("wide", 2))];
        let inputs = fixture.inputs(&teachers);
        let params = "top_k: 5, temperature: 2, file_positions: 700";
        let one = teach(params, &inputs, 1).unwrap();
        let digest = |made: &harness::Outcome| made.artifact("logits").unwrap().digest;
        for threads in [2, 3] {
            assert_eq!(digest(&one), digest(&teach(params, &inputs, threads).unwrap()), "{threads} threads");
        }
        let report: LogitsReport = serde_json::from_slice(&one.read("logits", LOGITS_FILE)).unwrap();
        let named: Vec<&str> = report.teachers.iter().map(|teacher| teacher.name.as_str()).collect();
        assert_eq!((named, report.context), (vec!["small", "wide"], fixtures::SEQ_LEN));
        let mean = report.teacher.unwrap();
        assert!(mean.loss > 1.0 && mean.bits_per_byte > 0.3 && report.rest.unwrap() > 0.0, "{report:?}");

        let source = query::Source { name: "logits".into(), files: files(&one.path("logits")) };
        assert!(source.files.len() > 1);
        let sql = "SELECT COUNT(*) AS n, MIN(position) AS first, MAX(position) AS last, MIN(rest) AS least, \
                   SUM(CASE WHEN ARRAY_LENGTH(ids) = 5 AND ARRAY_LENGTH(log_probs) = 5 THEN 1 ELSE 0 END) AS whole \
                   FROM logits";
        let row = query::query(&[source], sql, None).unwrap();
        let n = report.positions;
        let value = |name: &str| row.value(0, name).unwrap_or_default();
        let found = ["n", "first", "last", "whole"].map(|name| value(name).as_u64());
        assert_eq!(found, [Some(n), Some(0), Some(n - 1), Some(n)]);
        assert!(value("least").as_f64().unwrap() >= 0.0);
    }

    #[test]
    fn what_does_not_fit_the_teacher_is_refused() {
        let fixture = Fixture::new();
        let inputs = fixture.inputs(&[("teacher", fixture.model("small", 1))]);
        let fails = |params: &str, inputs: &[_]| teach(params, inputs, 1).err().expect(params).to_string();
        assert!(fails("top_k: 9000", &inputs).contains("a vocabulary of 600"));
        assert!(fails("context: 99", &inputs).contains("sees 32 tokens at once"));
        assert!(fails("temperature: 0", &inputs).contains("above 0, at most 100, found 0"));
        assert!(fails("top_k: 0", &inputs).contains("1 or more, found 0"));
        let other = Fixture::of("wordpiece.json");
        let error = fails("top_k: 2", &other.inputs(&[("teacher", fixture.model("small", 1))]));
        assert!(error.contains("`small` cannot teach with this tokenizer"), "{error}");
    }

    #[test]
    fn what_is_known_of_the_teacher_is_checked_before_anything_runs() {
        let check = |params: &str, facts: &[&Value]| {
            let params: Params = serde_json::from_str(params).unwrap();
            let facts: Vec<Value> = facts.iter().map(|facts| (*facts).clone()).collect();
            let issues = Teach::validate(&params, &fixtures::connected(&[("teacher", &facts)]));
            issues.into_iter().map(|issue| issue.at).collect::<Vec<_>>()
        };
        let teacher = serde_json::json!({ "vocab_size": 600, "seq_len": 32 });
        let wider = serde_json::json!({ "vocab_size": 700, "seq_len": 32 });
        assert_eq!(check("{}", &[&teacher]), [""; 0]);
        assert_eq!(check(r#"{ "top_k": 601 }"#, &[&teacher]), ["params.top_k"]);
        assert_eq!(check(r#"{ "context": 64 }"#, &[&teacher]), ["params.context"]);
        assert_eq!(check("{}", &[&teacher, &wider]), ["inputs.teacher"]);
    }
}
