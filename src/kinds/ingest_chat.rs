//! `ingest_chat`: files of chats -> conversations.
//!
//! Binds [`crate::corpus::chat`] to ports.

use super::ingest::input_files;
use crate::base::Result;
use crate::corpus::chat::{Options, ingest_chat};
use crate::stage::{Connected, Context, FILES, Info, Issue, Kind, Port};

pub struct IngestChat;

impl Kind for IngestChat {
    type Params = Options;

    fn info() -> Info {
        Info {
            name: "ingest_chat",
            version: 2, // 2: weights of messages; system, context and history of rows; markers
            summary: "Reads conversations from the usual formats; checks roles, cleans, deduplicates.",
            inputs: vec![
                Port::new("files", FILES, "what to read: JSONL, JSON, plain text, CSV or Parquet")
                    .many()
                    .or_source(&[""]),
            ],
            outputs: vec![Port::new(
                "chats",
                "conversations",
                "conversations.parquet with provenance; preferences.parquet, if there are pairs; report.json",
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
        ingest_chat(&files, params, ctx.output("chats")?, &ctx.scratch, ctx.monitor).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::conversation::{ConversationReader, FILE_NAME};
    use crate::stage::harness;

    #[test]
    fn the_kind_writes_conversations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chats.jsonl");
        let row = "{\"prompt\": \"Apa kabar?\", \"completion\": \"Baik.\"}\n";
        crate::base::fs::write(&path, row.repeat(3).as_bytes()).unwrap();
        let files = harness::artifact("chats.jsonl", &path).unwrap();
        let params = "roles: { terapis: assistant }\nsame_role: merge\n";
        let outcome = harness::run::<IngestChat>(params, &[("files", files)], 1).unwrap();
        let reader = ConversationReader::open(&outcome.path("chats").join(FILE_NAME)).unwrap();
        let all = reader.collect::<Result<Vec<_>>>().unwrap();
        assert_eq!((all.len(), all[0].row, all[0].messages[1].content.as_str()), (1, 1, "Baik."));
    }
}
