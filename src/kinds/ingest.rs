//! `ingest`: files of text, Markdown, JSONL, CSV or Parquet -> documents.
//!
//! Binds [`crate::corpus::ingest`] to ports.

use crate::base::Result;
use crate::corpus::ingest::{Options, ingest};
use crate::corpus::input::InputFile;
use crate::stage::{Artifact, Connected, Context, FILES, Info, Issue, Kind, Port};

pub struct Ingest;

impl Kind for Ingest {
    type Params = Options;

    fn info() -> Info {
        Info {
            name: "ingest",
            // 2: near-duplicates that differ in a sign are kept; the report accounts for every row; CSV
            // provenance ends before the line break; front matter is only what parses.
            version: 2,
            summary: "Reads txt, md, JSONL, CSV and Parquet; cleans, filters and deduplicates documents.",
            inputs: vec![
                Port::new("files", FILES, "what to read: files, globs, directories or URLs")
                    .many()
                    .or_source(&[""]),
            ],
            outputs: vec![Port::new(
                "docs",
                "documents",
                "documents.parquet with provenance; duplicates.parquet with the pairs; report.json with the counts",
            )],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Options, _: &Connected) -> Vec<Issue> {
        params.validate().into_iter().map(Issue::from).collect()
    }

    fn run(params: &Options, ctx: &Context) -> Result<()> {
        let files = input_files(ctx.all("files"));
        ingest(&files, params, ctx.output("docs")?, &ctx.scratch, ctx.monitor).map(drop)
    }
}

/// The files of all artifacts, in order. A name that an earlier artifact has too gets the number of its
/// artifact (`#2/corpus.txt`), so that provenance stays unambiguous without naming a machine's folders.
pub fn input_files(artifacts: &[Artifact]) -> Vec<InputFile> {
    let mut files: Vec<InputFile> = Vec::new();
    let mut names = std::collections::HashSet::new();
    for (number, artifact) in artifacts.iter().enumerate() {
        for file in &artifact.files {
            let name = match names.insert(file.name.clone()) {
                true => file.name.clone(),
                false => format!("#{}/{}", number + 1, file.name),
            };
            files.push(InputFile { name, path: file.path.clone(), size: file.size });
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::document::{DocumentReader, FILE_NAME};
    use crate::stage::harness;

    fn source(files: &[(&str, &str)]) -> (tempfile::TempDir, Artifact) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            crate::base::fs::write(&dir.path().join(name), text.as_bytes()).unwrap();
        }
        let artifact = harness::artifact("source", dir.path()).unwrap();
        (dir, artifact)
    }

    #[test]
    fn the_kind_writes_documents_whatever_the_number_of_threads() {
        let text: String = (0..300)
            .map(|i| format!("Story {} begins. {}\n<|endoftext|>\n", i % 250, "So it went. ".repeat(i % 7)))
            .collect();
        let (_a, first) = source(&[("a.txt", &text), ("b.md", "# One\n\nText.")]);
        let (_b, second) = source(&[("a.txt", "Another story.")]);
        let inputs = [("files", first), ("files", second)];
        let run = |threads| {
            harness::run_with::<Ingest>("min_chars: 3", &inputs, 1, threads, &crate::base::Quiet).unwrap()
        };
        let (one, two) = (run(1), run(2));
        for name in [FILE_NAME, "duplicates.parquet", "report.json"] {
            assert_eq!(one.read("docs", name), two.read("docs", name), "{name}");
        }
        let documents: Vec<_> =
            DocumentReader::open(&one.path("docs").join(FILE_NAME)).unwrap().collect::<Result<_>>().unwrap();
        let sources: std::collections::BTreeSet<&str> = documents.iter().map(|d| d.source.as_str()).collect();
        assert_eq!(sources.into_iter().collect::<Vec<_>>(), ["#2/a.txt", "a.txt", "b.md"]);
        assert_eq!(documents.last().unwrap().text, "Another story.");
    }

    #[test]
    fn params_out_of_range_are_pointed_at() {
        let (_dir, files) = source(&[("a.txt", "x")]);
        let error = harness::run::<Ingest>("near_duplicates:\n  bands: 3\n", &[("files", files)], 1);
        let error = error.err().unwrap();
        assert!(error.to_string().contains("params:2:10") && error.message().contains("128"), "{error}");
    }
}
