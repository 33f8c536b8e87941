//! Shared by kinds that read documents and conversations: the two ports, of which at least one must be
//! connected.

use std::path::{Path, PathBuf};

use crate::base::Result;
use crate::corpus::held_out::{self, HeldOut};
use crate::corpus::{conversation, document};
use crate::stage::{Artifact, Connected, Context, Issue, Port};
use crate::tokenizer::Inputs;

pub fn ports() -> Vec<Port> {
    vec![
        Port::new("docs", "documents", "Documents.").optional().many(),
        Port::new("chats", "conversations", "Conversations.").optional().many(),
    ]
}

pub fn validate(inputs: &Connected) -> Vec<Issue> {
    if inputs.get("docs").is_empty() && inputs.get("chats").is_empty() {
        return vec![
            Issue::input("docs", "nothing is connected to `docs` or `chats`")
                .help("connect one of them at least: `inputs: { docs: STAGE }`"),
        ];
    }
    Vec::new()
}

/// The rules by which the trainings of a model held out texts; none where it has no record (an imported
/// model).
pub fn held_out_by(model: &Artifact) -> Result<HeldOut> {
    model.find(held_out::FILE_NAME).map_or(Ok(HeldOut::default()), HeldOut::load)
}

/// The files behind the two ports.
pub fn inputs(ctx: &Context) -> Result<Inputs> {
    inputs_at(ctx, "docs", "chats")
}

/// The files behind a port of documents and one of conversations.
pub fn inputs_at(ctx: &Context, docs: &str, chats: &str) -> Result<Inputs> {
    let files = |port: &str, name: &str| -> Result<Vec<PathBuf>> {
        ctx.all(port).iter().map(|artifact| artifact.file(name).map(Path::to_path_buf)).collect()
    };
    Ok(Inputs {
        documents: files(docs, document::FILE_NAME)?,
        conversations: files(chats, conversation::FILE_NAME)?,
    })
}

#[cfg(test)]
pub mod fixtures {
    use crate::corpus::conversation::{Conversation, ConversationWriter, Message, Role};
    use crate::corpus::document::{Document, DocumentWriter};
    use crate::stage::{Artifact, harness};

    /// A text that no other number gives, of some sentences.
    pub fn story(i: usize) -> String {
        const WHO: [&str; 5] = ["The fox", "Her old dog", "A small bird", "Kucing itu", "The “king”"];
        const DOES: [&str; 4] = ["was walking", "is talking", "has been waiting", "sedang berjalan"];
        const WHERE: [&str; 3] = ["in the forest", "near the river", "at home — naïve café"];
        let sentence =
            |k: usize| format!("{} {} {}, {k} times.", WHO[k % 5], DOES[k / 5 % 4], WHERE[k / 20 % 3]);
        (0..4).map(|j| sentence(i * 7 + j * 13)).collect::<Vec<_>>().join("\n")
    }

    thread_local! {
        /// Folders that live as long as the test, which has a thread of its own.
        static KEPT: std::cell::RefCell<Vec<tempfile::TempDir>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    /// A folder that lives as long as the test.
    pub fn folder() -> std::path::PathBuf {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        KEPT.with_borrow_mut(|kept| kept.push(folder));
        path
    }

    /// `n` documents.
    pub fn docs(n: usize) -> Artifact {
        docs_of((0..n).map(story))
    }

    pub fn docs_of(texts: impl Iterator<Item = String>) -> Artifact {
        let folder = folder();
        let mut writer = DocumentWriter::create(&folder).unwrap();
        for text in texts {
            let end = text.len() as u64;
            writer.push(&Document::new(text, "story.txt", 0, end)).unwrap();
        }
        writer.finish().unwrap();
        harness::artifact("docs", &folder).unwrap()
    }

    pub fn chats(n: usize) -> Artifact {
        let folder = folder();
        let mut writer = ConversationWriter::create(&folder).unwrap();
        for i in 0..n {
            let say = |role, content: String| Message::new(role, content);
            let messages = vec![
                say(Role::User, format!("Who is walking, number {i}?")),
                say(Role::Assistant, story(i).lines().next().unwrap().to_string()),
                say(Role::User, "Thank you!".to_string()),
            ];
            writer.push(&Conversation::new(messages, "chats.jsonl", i as u64 + 1)).unwrap();
        }
        writer.finish().unwrap();
        harness::artifact("chats", &folder).unwrap()
    }
}
