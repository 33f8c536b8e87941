//! The vocabulary of SentencePiece's models.

use std::collections::HashMap;

use serde_json::Value;

use super::into_pieces::{HAS_TEXT, OUTER_SPACES, SPACES, SPECIAL_CUT};
use super::of_json::{Source, kind, no_rules};
use super::{GgufVocabulary, VocabularyModel};
use crate::base::Result;
use crate::tokenizer::base64;
use crate::tokenizer::classes::{Class, MARKED};
use crate::tokenizer::cut::{Cut, SPACE};

impl Source<'_> {
    pub fn spm(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::Spm)?;
        let spaces = self.spaces()?;
        if spaces.charsmap.is_some() || spaces.merged || self.json["model"]["ignore_merges"] == true {
            return Err(no_rules("its BPE over characters normalizes text or ignores merges"));
        }
        let merges = self.merges()?;
        let mut order: Vec<String> = merges.iter().map(|merge| merge.concat()).collect();
        if Cut::of(&self.json) == Some(Cut::Pieces) {
            order.sort_by_key(|token| kind_of_word(token));
        }
        let mut scores = HashMap::new();
        for (rank, token) in order.iter().enumerate() {
            // A token that several merges make has the score of the first.
            scores.entry(token.as_str()).or_insert(-(rank as f32));
        }
        // The others are never made of two.
        let score = |token: &String| scores.get(token.as_str()).copied().unwrap_or(-(merges.len() as f32));
        base.scores = Some(base.tokens.iter().map(score).collect());
        base.add_space_prefix = Some(spaces.prefixed);
        Ok(base)
    }

    pub fn unigram(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::Unigram)?;
        let spaces = self.spaces()?;
        let pieces = self.json["model"]["vocab"].as_array().map_or(&[][..], Vec::as_slice);
        let score = |id: usize| pieces.get(id).and_then(|piece| piece[1].as_f64()).unwrap_or(0.0) as f32;
        base.scores = Some((0..base.tokens.len()).map(score).collect());
        if base.unknown.is_none() {
            return Err(no_rules("it has no unknown token"));
        }
        base.add_space_prefix = Some(spaces.prefixed);
        base.remove_extra_whitespaces = Some(spaces.merged);
        base.precompiled_charsmap = spaces.charsmap;
        Ok(base)
    }

    /// How SentencePiece's models treat spaces, and normalize text.
    fn spaces(&self) -> Result<Spaces> {
        let mut spaces = Spaces::default();
        for step in self.steps("normalizer", "normalizers") {
            spaces.normalize(step)?;
        }
        if Cut::of(&self.json) == Some(Cut::Pieces) {
            return Ok(spaces);
        }
        for step in self.pre_tokenizers() {
            match kind(step) {
                "Metaspace" if step["replacement"] == SPACE.to_string() => {
                    spaces.prefixed |= step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
                }
                "Split" if is_special_cut(step) => {}
                // White space ends words, and is not kept.
                "WhitespaceSplit" => spaces.merged = true,
                _ => return Err(no_rules(&format!("its pre-tokenizer is {step}"))),
            }
        }
        Ok(spaces)
    }
}

/// In which words of [`Cut::Pieces`] a token occurs, those first whose merges must come first: llama.cpp does
/// not cut words, so that merges of different words compete for the apostrophe in ` 'the` and `'the` and for
/// the last space in `a   b`. In one word, all tokens are of one kind, so that their order stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum WordKind {
    Signs,
    Contraction,
    LettersOrDigits,
    Blanks,
}

fn kind_of_word(token: &str) -> WordKind {
    let class = |c: char| MARKED.at(c.encode_utf8(&mut [0; 4]), 0).0;
    let word = token.strip_prefix(SPACE).unwrap_or(token);
    let mut classes = word.chars().map(class);
    match (classes.next(), classes.next()) {
        _ if token.chars().all(|c| c == SPACE || class(c) == Class::Blank) => WordKind::Blanks,
        (Some(Class::Sign), Some(Class::Letter)) => WordKind::Contraction,
        (Some(Class::Sign | Class::Alone), _) => WordKind::Signs,
        _ => WordKind::LettersOrDigits,
    }
}

/// How spaces are treated, and text is normalized, before it is spelled in tokens.
#[derive(Default)]
struct Spaces {
    /// Text begins with a space.
    prefixed: bool,
    /// Several are one, and those at both ends are dropped.
    merged: bool,
    charsmap: Option<Vec<u8>>,
}

impl Spaces {
    fn normalize(&mut self, step: &Value) -> Result<()> {
        let to_space = step["content"] == SPACE.to_string() || step["content"] == " ";
        // The last: as SentencePiece does it, after spaces are replaced.
        let outer = [OUTER_SPACES, r"▁+\z"];
        match kind(step) {
            "Prepend" if step["prepend"] == SPACE.to_string() => self.prefixed = true,
            "Replace" if step["pattern"]["String"] == " " && step["content"] == SPACE.to_string() => {}
            "Replace" if step["pattern"]["Regex"] == SPACES && to_space => self.merged = true,
            "Replace"
                if outer.iter().any(|regex| step["pattern"]["Regex"] == *regex) && step["content"] == "" => {}
            "Replace" if step["pattern"]["Regex"] == HAS_TEXT && to_space => self.prefixed = true,
            "Strip" => {}
            "Precompiled" => {
                let text = step["precompiled_charsmap"].as_str().and_then(|text| base64::decode(text).ok());
                self.charsmap = Some(text.ok_or_else(|| no_rules("its character map is damaged"))?);
            }
            _ => return Err(no_rules(&format!("it normalizes text by {step}"))),
        }
        Ok(())
    }
}

/// Whether a step only keeps text from being encoded to special tokens, which llama.cpp never does.
fn is_special_cut(step: &Value) -> bool {
    step["pattern"]["Regex"].as_str().is_some_and(|regex| regex.starts_with(SPECIAL_CUT))
}
