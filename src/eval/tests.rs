//! Figures of a model about which everything is known.

use super::texts::cut_in_half;
use super::*;
use crate::base::Quiet;
use crate::corpus::conversation::{self, Conversation, ConversationWriter, Message, Role};
use crate::corpus::document::{Document, DocumentWriter, FILE_NAME};
use crate::corpus::held_out::{HeldOut, Rule, is_unseen};
use crate::model::{Config, Transformer, gpt2};
use crate::tokenizer::{Inputs, Tokenizer};

/// A model without any opinion: every weight is 0, so every token is equally likely.
fn uniform(vocab: usize) -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = Tokenizer::load(std::path::Path::new(path)).unwrap();
    let config = Config { d_ff: 16, dropout: 0.0, ..gpt2(vocab, 8, 1, 2, 16) };
    let mut transformer = Transformer::fresh(&config, 3);
    transformer.weights.fill(0.0);
    Model { transformer, tokenizer }
}

fn options(scored: Scored) -> Options {
    let held_out = HeldOut::default();
    Options { scored, held_out, max_tokens: 1_000_000, completions: 2, ..Options::default() }
}

fn of(model: &Model, texts: &Texts, options: &Options) -> Report {
    evaluate(model, texts, &Tasks::default(), options, &Quiet).unwrap().report
}

fn documents(folder: &std::path::Path) -> Texts {
    let split = Inputs { documents: vec![folder.join(FILE_NAME)], ..Inputs::default() };
    Texts { split, ..Texts::default() }
}

#[test]
fn a_model_without_opinion_has_log2_v_bits_a_token_and_every_token_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = DocumentWriter::create(dir.path()).unwrap();
    let texts: Vec<String> = (1..9).map(|i| "The cat sat on the mat and slept. ".repeat(i)).collect();
    for text in &texts {
        writer.push(&Document::new(text.clone(), "t", 0, 0)).unwrap();
    }
    writer.finish().unwrap();
    let model = uniform(1024);
    let report = of(&model, &documents(dir.path()), &options(Scored::All));
    let scores = report.documents.unwrap();
    let bytes: usize = texts.iter().map(String::len).sum();
    // Every token of the text and the <eos> behind it.
    let tokens: usize = texts.iter().map(|t| model.tokenizer.encode(t).unwrap().len() + 1).sum();
    assert_eq!((scores.tokens, scores.bytes, scores.texts), (tokens as u64, bytes as u64, 8));
    let expected = 10.0 * tokens as f64 / bytes as f64;
    assert!((scores.bits_per_byte - expected).abs() < 1e-6, "{} is not {expected}", scores.bits_per_byte);
    assert!((scores.perplexity - 1024.0).abs() < 1e-3);
    assert_eq!(report.completions, 2);
    assert_eq!(report.parameters, model.transformer.config.parameters() as u64);
}

/// In windows that begin within a question, within an answer, and where nothing is left to score.
#[test]
fn of_chats_the_answers_count_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ConversationWriter::create(dir.path()).unwrap();
    let (mut answers, mut chats) = (Vec::new(), 0);
    for turns in 1..7 {
        let mut messages = Vec::new();
        for i in 0..turns {
            let answer = "It sat on the mat. ".repeat(1 + (i + turns) % 3);
            messages.push(Message::new(Role::User, "Where is the cat, then? ".repeat(1 + i % 2)));
            // The first of four answers is context: neither its tokens nor its bytes count.
            let weight = u8::from(turns != 4 || i > 0);
            messages.push(Message { weight, ..Message::new(Role::Assistant, answer.clone()) });
            if weight == 1 {
                answers.push(answer);
            }
        }
        writer.push(&Conversation::new(messages, "t", turns as u64)).unwrap();
        chats += 1;
    }
    writer.finish().unwrap();
    let model = uniform(1024);
    let conversations = vec![dir.path().join(conversation::FILE_NAME)];
    let validation = Inputs { conversations, ..Inputs::default() };
    let texts = Texts { validation, ..Texts::default() };
    let report = of(&model, &texts, &options(Scored::Validation));
    assert!(report.documents.is_none() && report.completions == 0);
    let scores = report.chats.unwrap();
    let bytes: usize = answers.iter().map(String::len).sum();
    // Every token of an answer, and the <eos> behind it.
    let tokens: usize = answers.iter().map(|t| model.tokenizer.encode(t).unwrap().len() + 1).sum();
    assert_eq!((scores.texts, scores.tokens, scores.bytes), (chats, tokens as u64, bytes as u64));
    assert!((scores.perplexity - 1024.0).abs() < 1e-3);
    // Where all ids are equally likely the lowest ranks first, and no answer says it.
    assert_eq!((scores.top1_accuracy, scores.top5_accuracy > 0.0), (0.0, true));
}

#[test]
fn only_what_no_training_saw_counts_and_nothing_to_score_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = DocumentWriter::create(dir.path()).unwrap();
    let all: Vec<Document> =
        (0..100).map(|i| Document::new(format!("Text number {i} of a hundred."), "t", 0, 0)).collect();
    all.iter().for_each(|d| writer.push(d).unwrap());
    writer.finish().unwrap();
    let model = uniform(1024);
    let scored = |options: &Options| of(&model, &documents(dir.path()), options);
    let counted = |rules: &[Rule]| all.iter().filter(|d| is_unseen(rules, &d.id)).count() as u64;

    let by_fraction = Rule { validation_fraction: 0.05, ..Rule::default() };
    let report = scored(&options(Scored::Validation));
    assert_eq!(report.documents.unwrap().texts, counted(&[by_fraction]));
    // What the model says of its trainings wins over the fraction.
    let few =
        Rule { validation_fraction: 0.01, also_held_out: Some(all[7].id.clone()), also_trained_on: None };
    let held_out = HeldOut { documents: vec![few.clone()], conversations: Vec::new() };
    let report = scored(&Options { held_out, validation_fraction: 0.5, ..options(Scored::Validation) });
    assert_eq!(report.documents.unwrap().texts, counted(&[few]));

    let none = HeldOut { documents: vec![Rule::default()], conversations: Vec::new() };
    let report = scored(&Options { held_out: none, ..options(Scored::Validation) });
    assert!(report.documents.is_none() && report.completions == 0);
    assert_eq!(report.not_scored["documents"], "none of 100 is held out from training");
}

#[test]
fn a_text_is_cut_at_the_word_in_its_middle() {
    assert_eq!(cut_in_half("one two  three four\nfive six"), Some(("one two  three", "four")));
    assert_eq!(cut_in_half("too short to cut"), None);
}

#[test]
fn a_text_is_scored_token_by_token_in_windows() {
    let text = "The cat sat on the mat and slept. ".repeat(4);
    let score = score_text(&uniform(1024), &text, 2, 2).unwrap();
    let ids = uniform(1024).tokenizer.encode(&text).unwrap();
    assert!(ids.len() > 32, "three windows of 16");
    assert_eq!(score.tokens.iter().map(|t| t.id).collect::<Vec<_>>(), ids, "`<bos>` is context");
    assert!((score.loss - 1024f64.ln()).abs() < 1e-6 && score.bytes == text.len() as u64);
    assert!(
        score.tokens.iter().all(|t| t.top.iter().map(|(id, _)| *id).eq([0, 1])),
        "of equals the lower id"
    );

    let mut model = uniform(1024);
    model.transformer = Transformer::fresh(&model.transformer.config, 3);
    let score = score_text(&model, &text, 1024, 2).unwrap();
    for token in &score.tokens {
        let of_all: f64 = token.top.iter().map(|(_, p)| p.exp()).sum();
        assert!((of_all - 1.0).abs() < 1e-4, "{of_all}");
        let (_, own) = token.top.iter().find(|(id, _)| *id == token.id).unwrap();
        assert!((own - token.logprob).abs() < 1e-5, "{own} {}", token.logprob);
        assert!(token.top[token.rank as usize].1 <= own + 1e-6);
    }

    let sum: f64 = score.tokens.iter().map(|t| -t.logprob).sum();
    assert!((sum - score.nats).abs() < 1e-9);
}
