use super::*;
use crate::base::Quiet;
use crate::corpus::conversation::{ConversationReader, ConversationWriter, Role};
use crate::corpus::document::{DocumentReader, DocumentWriter};
use crate::corpus::input::InputFile;
use crate::corpus::preference::{PreferenceReader, PreferenceWriter};
use crate::corpus::{conversation, document, preference};

struct Outcome {
    folder: tempfile::TempDir,
    report: Report,
}

impl Outcome {
    fn documents(&self) -> Vec<String> {
        let path = self.folder.path().join(document::FILE_NAME);
        DocumentReader::open(&path).unwrap().map(|document| document.unwrap().text).collect()
    }

    fn overlaps(&self) -> Vec<serde_json::Value> {
        let text = fs::read_text(&self.folder.path().join(OVERLAPS_FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn say(role: Role, text: &str) -> Message {
    Message::new(role, text)
}

/// Compares documents, conversations of a question and an answer, and a pair with questions.
fn run(documents: &[&str], chats: &[(&str, &str)], remove: Remove, questions: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let given = folder.path().join("given");
    fs::create_dir(&given).unwrap();
    let mut writer = DocumentWriter::create(&given).unwrap();
    for text in documents {
        writer.push(&Document::new(text.to_string(), "a.txt", 0, text.len() as u64)).unwrap();
    }
    writer.finish().unwrap();
    let mut writer = ConversationWriter::create(&given).unwrap();
    let mut pairs = PreferenceWriter::create(&given).unwrap();
    for (row, (question, answer)) in (1..).zip(chats) {
        let messages = vec![say(Role::User, question), say(Role::Assistant, answer)];
        let other = [messages[0].clone(), say(Role::Assistant, "no")];
        pairs.push(&Preference::of(&messages, &other, "c.jsonl", row).unwrap()).unwrap();
        writer.push(&Conversation::new(messages, "c.jsonl", row)).unwrap();
    }
    writer.finish().unwrap();
    pairs.finish().unwrap();
    let set = folder.path().join("exam.jsonl");
    fs::write(&set, questions.as_bytes()).unwrap();
    let training = Training {
        documents: vec![given.join(document::FILE_NAME)],
        conversations: vec![given.join(conversation::FILE_NAME)],
        preferences: vec![given.join(preference::FILE_NAME)],
    };
    let out = Outputs { documents: folder.path(), conversations: folder.path(), report: folder.path() };
    let options = Options { ngram: 6, remove };
    let against = [Against::File(InputFile::new(&set).unwrap())];
    let report = decontaminate(&training, &against, &options, &out, folder.path(), &Quiet).unwrap();
    Outcome { folder, report }
}

const QUESTIONS: &str = r#"{"id": "long", "question": "Where did the small brown fox sleep last night?", "accept": ["den"]}
{"id": "short", "question": "What is 7 + 5?", "accept": ["12"]}
{"id": "word", "question": "Hello!", "accept": ["hello"]}
"#;

const DOCUMENTS: [&str; 3] = [
    "A fable.\n\nWe know where the small, brown fox\nsleep last, he said.\n\nThe end.",
    "Sums: what is 7 - 5? And what is 7 + 6?",
    "Hello! What is 7 + 5? It is 12.",
];
const CHATS: [(&str, &str); 2] = [("hello", "Hi. What is it?"), ("Hello you", "Hi.")];

#[test]
fn documents_conversations_and_pairs_that_overlap_are_left_out_and_counted() {
    let made = run(&DOCUMENTS, &CHATS, Remove::Document, QUESTIONS);
    assert_eq!(made.documents(), [DOCUMENTS[1]], "another sum is another question");
    let chats = ConversationReader::open(&made.folder.path().join(conversation::FILE_NAME)).unwrap();
    assert_eq!(
        chats.map(|chat| chat.unwrap().row).collect::<Vec<_>>(),
        [2],
        "a word must be the whole message"
    );
    let pairs = PreferenceReader::open(&made.folder.path().join(preference::FILE_NAME)).unwrap();
    assert_eq!(pairs.count(), 1);
    let set = &made.report.evaluation[0];
    assert_eq!((set.overlapping, set.share), (3, 1.0));
    let counts = &made.report.documents;
    let bytes = |texts: &[usize]| texts.iter().map(|i| DOCUMENTS[*i].len() as u64).sum::<u64>();
    assert_eq!(
        (counts.texts, counts.overlapping_texts, counts.removed_texts, counts.kept_texts),
        (3, 2, 2, 1)
    );
    assert_eq!(
        (counts.bytes, counts.removed_bytes, counts.kept_bytes),
        (bytes(&[0, 1, 2]), bytes(&[0, 2]), bytes(&[1]))
    );
    assert_eq!((counts.overlapping_passages, counts.removed_passages), (2, 0));
    let overlaps = made.overlaps();
    let found: Vec<_> =
        overlaps.iter().map(|o| (o["item"].as_str().unwrap(), o["words"].as_str().unwrap())).collect();
    let first = ("long", "the small, brown fox\nsleep last");
    assert_eq!(found[..2], [first, ("short", "What is 7 + 5")]);
    assert_eq!(overlaps[0]["document"], document::text_id(DOCUMENTS[0]));
    assert_eq!((found.len(), found[2], found[3]), (4, ("word", "hello"), ("word", "hello")), "chat and pair");
}

#[test]
fn passages_are_cut_out_of_documents() {
    let made = run(&DOCUMENTS, &CHATS, Remove::Passage, QUESTIONS);
    assert_eq!(made.documents(), ["A fable.\n\nThe end.", DOCUMENTS[1]], "of the third, nothing is left");
    let counts = &made.report.documents;
    assert_eq!((counts.removed_texts, counts.removed_passages), (1, 1));
    assert_eq!(counts.bytes, counts.removed_bytes + counts.kept_bytes);
    assert_eq!(made.report.conversations.removed_texts, 1);
}

#[test]
fn nothing_is_removed_on_request() {
    let made = run(&DOCUMENTS, &CHATS, Remove::None, QUESTIONS);
    assert_eq!(made.documents(), DOCUMENTS);
    assert_eq!((made.report.documents.overlapping_texts, made.report.documents.removed_bytes), (2, 0));
}
