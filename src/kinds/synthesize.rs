//! `synthesize`: template files to documents and conversations. Binds [`crate::synth`], whose
//! documentation is the reference of the template format.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::error::Fault;
use crate::base::{Error, Invalid, Result, fs};
use crate::corpus::conversation::ConversationWriter;
use crate::corpus::document::DocumentWriter;
use crate::stage::{ArtifactFile, Connected, Context, FILE, FILES, Info, Issue, Kind, Port};
use crate::synth::{self, Domain, Report, Request, Shortage};

/// Params of `synthesize`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// How many documents to make, over all domains. 0 makes none, for a run on other text alone.
    pub documents: u64,
    /// How many conversations to make, over all domains.
    pub conversations: u64,
    /// How many texts to draw beyond the documents, each cut before a word, with all words that the
    /// templates could say there: for the port `cloze` of `eval`. They are in no other output.
    pub cloze: u64,
    /// No two documents and no two conversations are the same: duplicates are drawn again.
    pub unique: bool,
    /// How often one item is drawn again before it is given up.
    pub max_redraws: u32,
    /// What to do when an item is given up: `fail`, or go on with `fewer` items and count them.
    pub on_shortage: Shortage,
    /// The most exchanges (a question and its answer) of one conversation.
    pub max_turns: usize,
    /// The share of each domain, relative to the others: `{english: 2, medical: 0.5}`. A domain that
    /// is not named has 1.
    pub domains: BTreeMap<String, f64>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            documents: 2000,
            conversations: 2000,
            cloze: 0,
            unique: true,
            max_redraws: 100,
            on_shortage: Shortage::Fail,
            max_turns: 4,
            domains: BTreeMap::new(),
        }
    }
}

/// The file of cloze items.
const CLOZE_FILE: &str = "cloze.jsonl";

pub struct Synthesize;

impl Kind for Synthesize {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "synthesize",
            version: 2, // 2: messages have a weight
            summary: "Writes documents and conversations from template files, seeded and without duplicates.",
            inputs: vec![
                Port::new("templates", FILES, "Template files in YAML, one a domain.")
                    .many()
                    .or_source(&[".yaml", ".yml"]),
            ],
            outputs: vec![
                Port::new("docs", "documents", "The documents, and a report with counts and warnings."),
                Port::new(
                    "chats",
                    "conversations",
                    "The conversations, and a report with counts and warnings.",
                ),
                Port::new(
                    "cloze",
                    FILE,
                    "With `cloze` above 0: cloze.jsonl, texts and the words that may follow.",
                ),
            ],
            open: false,
            seeded: true,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Params, _: &Connected) -> Vec<Issue> {
        let mut issues = Vec::new();
        if params.max_turns == 0 {
            issues.push(Invalid::new("max_turns", "must be at least 1").into());
        }
        for (name, weight) in params.domains.iter().filter(|(_, w)| !w.is_finite() || **w < 0.0) {
            let why = format!("must be 0 or more and finite, found {weight}");
            issues.push(Invalid::new(format!("domains.{name}"), why).into());
        }
        issues
    }

    fn outputs(params: &Params) -> Vec<Port> {
        let all = Self::info().outputs;
        all.into_iter().filter(|port| params.cloze > 0 || port.name != "cloze").collect()
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let domains = load_all(ctx)?;
        for warning in domains.iter().flat_map(|d| &d.warnings) {
            tracing::warn!("{}:{}:{}: {}", warning.file, warning.line, warning.column, warning.message);
        }
        let ids = make_documents(params, ctx, &domains)?;
        make_conversations(params, ctx, &domains)?;
        if params.cloze == 0 { Ok(()) } else { make_cloze(params, ctx, &domains, &ids) }
    }
}

fn load_all(ctx: &Context) -> Result<Vec<Domain>> {
    let files: Vec<&ArtifactFile> = ctx.all("templates").iter().flat_map(|a| &a.files).collect();
    if files.is_empty() {
        return Err(Error::input("no template file is connected to `templates`"));
    }
    let load = |file: &&ArtifactFile| {
        let text = fs::read_text(&file.path)?;
        synth::load(&file.name, &text)
    };
    let (mut domains, mut errors) = (Vec::new(), Vec::new());
    for result in files.iter().map(load) {
        result.map_or_else(|e| errors.push(e), |domain| domains.push(domain));
    }
    Error::join(errors).map_or(Ok(domains), |e| Err(e.blame(Fault::Input)))
}

/// Gives the ids of the documents, where they are needed.
fn make_documents(params: &Params, ctx: &Context, domains: &[Domain]) -> Result<HashSet<String>> {
    let folder = ctx.output("docs")?;
    let mut writer = DocumentWriter::create(folder)?;
    let request = request(params, params.documents);
    let start = Instant::now();
    let mut ids = HashSet::new();
    let report = synth::documents(domains, &request, ctx.seed, ctx.monitor, &mut |document| {
        writer.push(&document)?;
        if params.cloze > 0 {
            ids.insert(document.id);
        }
        Ok(())
    })?;
    writer.finish()?;
    ctx.monitor.measure("documents per second", per_second(&report, start), "docs/s");
    finish(folder, "documents", &report)?;
    Ok(ids)
}

/// Writes the cloze items that are cut from documents other than those with `ids`.
fn make_cloze(params: &Params, ctx: &Context, domains: &[Domain], ids: &HashSet<String>) -> Result<()> {
    let path = ctx.output("cloze")?.join(CLOZE_FILE);
    let unwritten = |e| Error::io("write", &path, &e);
    let mut out = BufWriter::new(fs::create(&path)?);
    let request = request(params, params.cloze);
    let mut accepted = 0;
    let report = synth::cloze(domains, &request, ctx.seed, ids, ctx.monitor, &mut |item| {
        accepted += item.accept.len();
        let line = serde_json::to_string(&item)
            .map_err(|e| Error::bug(format!("a cloze item cannot be written down: {e}")))?;
        writeln!(out, "{line}").map_err(unwritten)
    })?;
    out.flush().map_err(unwritten)?;
    let mean = accepted as f64 / report.items.max(1) as f64;
    tracing::info!("a cloze item accepts {mean:.1} words on average");
    announce("cloze items", &report);
    Ok(())
}

fn make_conversations(params: &Params, ctx: &Context, domains: &[Domain]) -> Result<()> {
    let folder = ctx.output("chats")?;
    let mut writer = ConversationWriter::create(folder)?;
    let request = request(params, params.conversations);
    let start = Instant::now();
    let report = synth::conversations(domains, &request, ctx.seed, ctx.monitor, &mut |c| writer.push(&c))?;
    writer.finish()?;
    ctx.monitor.measure("conversations per second", per_second(&report, start), "chats/s");
    finish(folder, "conversations", &report)
}

fn request(params: &Params, items: u64) -> Request {
    Request {
        items,
        unique: params.unique,
        max_redraws: params.max_redraws,
        on_shortage: params.on_shortage,
        max_turns: params.max_turns,
        weights: params.domains.clone(),
    }
}

fn per_second(report: &Report, start: Instant) -> f64 {
    report.items as f64 / start.elapsed().as_secs_f64().max(1e-9)
}

fn finish(folder: &Path, what: &str, report: &Report) -> Result<()> {
    announce(what, report);
    fs::write_json(&folder.join("report.json"), report)
}

fn announce(what: &str, report: &Report) {
    tracing::info!(
        "{} {what}, {} draws repeated, {} given up; {} domains",
        report.items,
        report.redrawn,
        report.short,
        report.domains.len()
    );
    if report.short > 0 {
        tracing::warn!(
            "{} of {} {what} are missing: the templates do not give more",
            report.short,
            report.requested
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{conversation, document};
    use crate::stage::harness::{self, Outcome};

    const TEMPLATES: &str = "
slots:
  animal: [cat, dog, owl, fox, hen]
documents:
  - {name: meet, text: 'The {animal} met the {animal.2}[? and the {animal.3}].'}
conversations:
  - name: like
    turns: [{user: 'Do you like the {animal}?', assistant: '[Yes|No], I like the {animal.2}.'}]
";

    fn run(params: &str, templates: &str, seed: u64, threads: usize) -> Result<Outcome> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(&dir.path().join("farm.yaml"), templates.as_bytes()).unwrap();
        let input = harness::artifact("templates", dir.path()).unwrap();
        harness::run_with::<Synthesize>(params, &[("templates", input)], seed, threads, &crate::base::Quiet)
    }

    const FILES: [(&str, &str); 4] = [
        ("docs", document::FILE_NAME),
        ("docs", "report.json"),
        ("chats", conversation::FILE_NAME),
        ("chats", "report.json"),
    ];

    #[test]
    fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
        let bytes = |seed, threads| {
            let outcome = run("{documents: 60, conversations: 30}", TEMPLATES, seed, threads).unwrap();
            FILES.map(|(port, name)| outcome.read(port, name))
        };
        let first = bytes(1, 1);
        assert!(first == bytes(1, 2), "threads or a second run change the bytes");
        assert!(first[0] != bytes(2, 1)[0] && first[2] != bytes(2, 1)[2], "the seed changes nothing");
    }

    #[test]
    fn both_outputs_hold_what_was_asked_for_and_a_report() {
        let outcome = run("{documents: 50, conversations: 20}", TEMPLATES, 1, 2).unwrap();
        let path = outcome.path("docs").join(document::FILE_NAME);
        let documents: Vec<_> = document::DocumentReader::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(documents.len(), 50);
        assert_eq!(documents[0].source, "synthesize:farm");
        let path = outcome.path("chats").join(conversation::FILE_NAME);
        assert_eq!(conversation::ConversationReader::open(&path).unwrap().count(), 20);
        let report: serde_json::Value =
            serde_json::from_slice(&outcome.read("chats", "report.json")).unwrap();
        assert_eq!(report["domains"][0]["space"]["at_least"], "40");
        assert_eq!(report["items"], 20);
    }

    #[test]
    fn cloze_items_come_from_texts_that_no_other_output_has_and_leave_those_as_they_are() {
        let params = "{documents: 30, conversations: 10, cloze: 8}";
        let made = run(params, TEMPLATES, 1, 2).unwrap();
        let plain = run("{documents: 30, conversations: 10}", TEMPLATES, 1, 2).unwrap();
        for (port, name) in FILES {
            assert!(made.read(port, name) == plain.read(port, name), "{port} {name}");
        }
        assert!(!plain.path("cloze").exists(), "a port that isn't asked for");
        assert_eq!(
            made.read("cloze", CLOZE_FILE),
            run(params, TEMPLATES, 1, 1).unwrap().read("cloze", CLOZE_FILE)
        );
        let lines = String::from_utf8(made.read("cloze", CLOZE_FILE)).unwrap();
        let items: Vec<synth::Cloze> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(items.len(), 8);
        for item in items {
            let animals = ["cat", "dog", "fox", "hen", "owl"];
            let others = animals.into_iter().filter(|animal| !item.text.contains(animal));
            match item.text.split(' ').next_back().unwrap() {
                "met" | "and" => assert_eq!(item.accept, ["the"]),
                _ => assert!(item.accept.iter().eq(others), "{item:?}"),
            }
        }
        let error = run(
            "{documents: 0, conversations: 1, cloze: 5}",
            "conversations: [{name: c, turns: [{user: a, assistant: b}]}]",
            1,
            1,
        );
        assert!(error.err().unwrap().to_string().contains("none of the template files makes cloze items"));
        let error = run("{documents: 60, conversations: 1, cloze: 50}", TEMPLATES, 1, 1).err().unwrap();
        assert!(error.to_string().contains("different cloze items"), "{error}");
    }

    #[test]
    fn a_bad_template_and_bad_params_are_the_users_errors() {
        let error = run("", "documents: [{name: t, text: '{x}'}]", 1, 1).err().unwrap();
        assert_eq!(error.fault(), Fault::Input);
        assert!(error.to_string().contains("farm.yaml:1:31"), "{error}");
        let error = run("{max_turns: 0}", TEMPLATES, 1, 1).err().unwrap();
        assert!(error.to_string().contains("`max_turns` must be at least 1"), "{error}");
        let error = run("{on_shortage: stop}", TEMPLATES, 1, 1).err().unwrap();
        assert!(error.to_string().contains("`fail`, `fewer`"), "{error}");
        let error = run("{documents: 500}", TEMPLATES, 1, 1).err().unwrap();
        assert!(error.to_string().contains("after 100 redraws, no further one"), "{error}");
    }
}
