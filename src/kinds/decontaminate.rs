//! `decontaminate`: training text without what evaluation sets ask. Binds [`crate::corpus::decontaminate`] to
//! ports.

use super::ingest::input_files;
use super::texts;
use crate::base::{Result, units};
use crate::corpus::decontaminate::{
    Against, Counts, Options, Outputs, Remove, Report, SetReport, Training, decontaminate,
};
use crate::corpus::{conversation, document, preference};
use crate::stage::{Artifact, Connected, Context, FILES, Info, Issue, Kind, Port};

pub struct Decontaminate;

impl Kind for Decontaminate {
    type Params = Options;

    fn info() -> Info {
        let mut inputs = texts::ports();
        inputs.push(
            Port::new("against", FILES, "Evaluation sets: questions, pairs, cloze items, prompts, texts.")
                .or(&["documents", "conversations"])
                .many()
                .or_source(&[""]),
        );
        Info {
            name: "decontaminate",
            version: 1,
            summary: "Finds words that training text shares with evaluation sets, and leaves such text out.",
            inputs,
            outputs: vec![
                Port::new("docs", "documents", "The documents that are left, of all inputs."),
                Port::new("chats", "conversations", "The conversations that are left, and their pairs."),
                Port::new(
                    "report",
                    "report",
                    "`report.json` with counts, `overlaps.jsonl` with each overlap.",
                ),
            ],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Options, inputs: &Connected) -> Vec<Issue> {
        let mut issues: Vec<Issue> = params.validate().into_iter().map(Issue::from).collect();
        issues.extend(texts::validate(inputs));
        issues
    }

    fn run(params: &Options, ctx: &Context) -> Result<()> {
        let texts = texts::inputs(ctx)?;
        let pairs = ctx.all("chats").iter().filter_map(|chats| chats.find(preference::FILE_NAME));
        let training = Training {
            documents: texts.documents,
            conversations: texts.conversations,
            preferences: pairs.map(Into::into).collect(),
        };
        let out = Outputs {
            documents: ctx.output("docs")?,
            conversations: ctx.output("chats")?,
            report: ctx.output("report")?,
        };
        let against = sets(ctx.all("against"));
        let report = decontaminate(&training, &against, params, &out, &ctx.scratch, ctx.monitor)?;
        announce(&report);
        Ok(())
    }
}

/// The sets of all artifacts: one for documents or conversations of a stage, one for each file of others.
fn sets(artifacts: &[Artifact]) -> Vec<Against> {
    let mut sets = Vec::new();
    let mut files = Vec::new();
    for artifact in artifacts {
        let name = artifact.label.clone();
        if let Some(path) = artifact.find(document::FILE_NAME) {
            sets.push(Against::Documents { name, path: path.into() });
        } else if let Some(path) = artifact.find(conversation::FILE_NAME) {
            sets.push(Against::Conversations { name, path: path.into() });
        } else {
            files.push(artifact.clone());
        }
    }
    sets.extend(input_files(&files).into_iter().map(Against::File));
    sets
}

fn announce(report: &Report) {
    for SetReport { set, overlapping, share, examples } in &report.evaluation {
        tracing::info!(
            "{}: {} of {} items overlap with training text ({:.1} %)",
            set.name,
            units::count(*overlapping),
            units::count(set.items),
            100.0 * share
        );
        if set.compared < set.items {
            let idle = units::count(set.items - set.compared);
            tracing::info!("{}: {idle} items hold no text of enough words to be compared", set.name);
        }
        for example in examples.iter().take(2) {
            tracing::info!("for example {}: \"{}\" in {}", example.item, example.words, example.source);
        }
    }
    let sorts = [
        ("documents", &report.documents),
        ("conversations", &report.conversations),
        ("preferences", &report.preferences),
    ];
    for (what, counts) in sorts.into_iter().filter(|(_, counts)| counts.overlapping_texts > 0) {
        tracing::info!("{}", removed(what, counts, report.options.remove));
    }
}

fn removed(what: &str, counts: &Counts, remove: Remove) -> String {
    let overlap = format!(
        "{} of {} {what} overlap, in {} passages of {}",
        units::count(counts.overlapping_texts),
        units::count(counts.texts),
        units::count(counts.overlapping_passages),
        units::bytes(counts.overlapping_bytes)
    );
    match remove {
        Remove::None => format!("{overlap}; nothing is removed"),
        _ => format!(
            "{overlap}; removed are {} whole and {} passages of others, {} in all",
            units::count(counts.removed_texts),
            units::count(counts.removed_passages),
            units::bytes(counts.removed_bytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::texts::fixtures::{chats, docs, story};
    use crate::stage::harness;

    fn source(name: &str, text: &str) -> (tempfile::TempDir, Artifact) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        crate::base::fs::write(&path, text.as_bytes()).unwrap();
        let artifact = harness::artifact(name, &path).unwrap();
        (dir, artifact)
    }

    #[test]
    fn the_kind_writes_the_same_bytes_on_any_number_of_threads() {
        let asked: String = story(3).lines().map(|line| format!("{line} And then?\n")).collect();
        let (_dir, prompts) = source("prompts.txt", &asked);
        let inputs = [("docs", docs(60)), ("chats", chats(60)), ("against", prompts)];
        let run = |threads| {
            let params = "{ngram: 5, remove: passage}";
            harness::run_with::<Decontaminate>(params, &inputs, 1, threads, &crate::base::Quiet).unwrap()
        };
        let (one, two) = (run(1), run(2));
        let files = [
            ("docs", document::FILE_NAME),
            ("chats", conversation::FILE_NAME),
            ("report", "report.json"),
            ("report", "overlaps.jsonl"),
        ];
        for (port, name) in files {
            assert_eq!(one.read(port, name), two.read(port, name), "{name}");
        }
        let report: serde_json::Value = serde_json::from_slice(&one.read("report", "report.json")).unwrap();
        assert_eq!((&report["evaluation"][0]["items"], &report["remove"]), (&4.into(), &"passage".into()));
        for sort in ["documents", "conversations"] {
            let counts = &report[sort];
            assert!(counts["overlapping_texts"].as_u64().unwrap() > 0, "{sort}: {counts}");
            assert!(counts["kept_texts"].as_u64().unwrap() > 0, "{sort}: {counts}");
        }
    }

    #[test]
    fn documents_of_a_stage_are_a_set_too_and_what_does_not_overlap_is_passed_on() {
        let inputs = [("docs", docs(9)), ("against", docs(20))];
        let error = harness::run::<Decontaminate>("", &inputs, 1).err().unwrap().to_string();
        assert!(error.contains("all 9 documents overlap"), "{error}");
        let (_dir, other) = source("q.jsonl", "{\"question\": \"Is that so?\", \"accept\": [\"yes\"]}\n");
        let inputs = [("docs", docs(9)), ("against", other)];
        let made = harness::run::<Decontaminate>("", &inputs, 1).unwrap();
        let given = std::fs::read(inputs[0].1.file(document::FILE_NAME).unwrap()).unwrap();
        assert!(made.read("docs", document::FILE_NAME) == given, "the very bytes");
        let error = harness::run::<Decontaminate>("{ngram: 2}", &inputs, 1).err().unwrap().to_string();
        assert!(error.contains("3 to 63 words, found 2"), "{error}");
    }
}
