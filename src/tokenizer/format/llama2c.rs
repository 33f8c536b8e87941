//! The tokenizer of llama2.c (`tokenizer.bin`, `tok512.bin`): the number of bytes of the longest token, then
//! of each token its score, its length and its bytes, all little-endian
//! (`export` in <https://github.com/karpathy/llama2.c/blob/master/tokenizer.py>).
//!
//! The ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`, those from 3 to 258 the bytes, which llama2.c knows by
//! their ids alone. Models of llama2.c are trained on texts after `<s>` each and without a token at their
//! end, so that `<s>` both begins and ends a text.
//!
//! One character is read otherwise than llama2.c does: U+2581 in a text is a space, as for the SentencePiece
//! model that such a file is made from; llama2.c spells it in bytes.

use std::path::Path;

use super::Format;
use super::compare::same_on_own_texts;
use super::pieces::{Algorithm, Kind, Piece, Pieces};
use crate::base::{Error, Files, Result, files, fs};
use crate::tokenizer::cut::SPACE;
use crate::tokenizer::known::byte_of_name;
use crate::tokenizer::train;
use crate::tokenizer::{Names, Tokenizer};

pub struct Llama2c;

/// Where the bytes begin.
const FIRST_BYTE: usize = 3;
/// Where ordinary tokens begin.
const FIRST_PIECE: usize = FIRST_BYTE + 256;
const UNKNOWN: &str = "<unk>";
/// The file that is written.
const FILE: &str = "tokenizer.bin";

impl Format for Llama2c {
    fn name(&self) -> &'static str {
        "llama2c"
    }

    fn summary(&self) -> &'static str {
        "llama2.c: `tokenizer.bin`, tokens with scores"
    }

    fn recognizes(&self, files: &Files) -> bool {
        find(files).is_some()
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let path = files.only().or_else(|| find(files)).ok_or_else(|| {
            Error::input(format!("`{}` has no tokenizer of llama2.c", files.label))
                .help("name the file: its fifth token is `<0x01>`, as in `tokenizer.bin`")
        })?;
        parse(&path.display().to_string(), &fs::read(path)?)
    }

    fn refuses(&self, _: train::Algorithm) -> Option<String> {
        let ids = "its ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`, and 3 to 258 the bytes";
        Some(format!("{ids}; tokenizers that are trained here have others there"))
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        let bytes = bytes_of(tokenizer)?;
        same_on_own_texts(self.name(), tokenizer, &parse(FILE, &bytes)?, &[SPACE])?;
        fs::write(&into.join(FILE), &bytes)
    }
}

/// The file's bytes.
fn bytes_of(tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let all = Pieces::of(tokenizer)?;
    let cannot = |why: String| {
        Error::input(format!("llama2.c cannot hold this tokenizer: {why}"))
            .help("it takes those whose ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>` and 3 to 258 the bytes")
    };
    if all.algorithm != Algorithm::Bpe {
        return Err(cannot("its model is no byte-pair encoding".into()));
    }
    if !all.dummy_prefix {
        return Err(cannot("llama2.c adds a space before each text".into()));
    }
    if all.remove_extra_whitespaces || !all.charsmap.is_empty() {
        return Err(cannot("it normalizes texts, and llama2.c does not".into()));
    }
    let pieces = all.pieces;
    check_layout("the tokenizer", &pieces)?;
    let other = pieces.iter().enumerate().find(|(id, piece)| piece.kind != kind(*id));
    if let Some((id, piece)) = other {
        return Err(cannot(format!(
            "token {id} ({:?}) is {:?} here, and {:?} there",
            piece.text,
            piece.kind,
            kind(id)
        )));
    }
    let spelled = |(id, piece): (usize, Piece)| match id {
        1 | 2 => (format!("\n{}\n", piece.text), piece.score),
        _ => (piece.text.replace(SPACE, " "), piece.score),
    };
    let tokens: Vec<(String, f32)> = pieces.into_iter().enumerate().map(spelled).collect();
    let longest = tokens.iter().map(|(text, _)| text.len()).max().unwrap_or(0) as i32;
    let mut bytes = longest.to_le_bytes().to_vec();
    for (text, score) in tokens {
        bytes.extend(score.to_le_bytes());
        bytes.extend((text.len() as i32).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    Ok(bytes)
}

/// The one file that begins as such a tokenizer does.
pub(crate) fn find(files: &Files) -> Option<&Path> {
    let mut found = files.all.iter().map(|(_, path)| path.as_path()).filter(|path| begins_so(path));
    found.next().filter(|_| found.next().is_none())
}

fn begins_so(path: &Path) -> bool {
    let head = files::head(path, 4 + 8 + UNKNOWN.len());
    head.len() == 17 && head[8..12] == [5, 0, 0, 0] && head.ends_with(UNKNOWN.as_bytes())
}

/// Reads the file's bytes; `file` is what messages call them.
///
/// # Errors
/// When it is damaged, or no tokenizer of llama2.c.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Tokenizer> {
    let tokens = tokens(file, bytes)?;
    let piece = |(id, (text, score)): (usize, (String, f32))| {
        // The special tokens are spelled with line breaks around them.
        let text = if id < FIRST_BYTE { text.trim_matches('\n').to_string() } else { text };
        Piece { text: text.replace(' ', &SPACE.to_string()), score, kind: kind(id) }
    };
    let pieces: Vec<Piece> = tokens.into_iter().enumerate().map(piece).collect();
    check_layout(file, &pieces)?;
    let bos = Some(pieces[1].text.clone());
    let names = Names { eos: bos.clone(), bos, ..Names::default() };
    let pieces = Pieces { pieces, dummy_prefix: true, spelled_before: true, ..Pieces::default() };
    pieces.into_tokenizer(file, &names)
}

fn kind(id: usize) -> Kind {
    match id {
        0 => Kind::Unknown,
        1 | 2 => Kind::Control,
        FIRST_BYTE..FIRST_PIECE => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// Texts and scores by id.
fn tokens(file: &str, bytes: &[u8]) -> Result<Vec<(String, f32)>> {
    let mut rest = bytes;
    let wrong = |what: String| Error::input(format!("`{file}` is no tokenizer of llama2.c: {what}"));
    let longest = take(&mut rest, i32::from_le_bytes)
        .filter(|longest| *longest > 0)
        .ok_or_else(|| wrong("it does not begin with the length of the longest token".into()))?;
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        let (id, at) = (tokens.len(), bytes.len() - rest.len());
        let cut = || wrong(format!("it ends inside token {id}, which begins at byte {at}"));
        let score = take(&mut rest, f32::from_le_bytes).ok_or_else(cut)?;
        let length = take(&mut rest, i32::from_le_bytes).ok_or_else(cut)?;
        if !(1..=longest).contains(&length) {
            let what = format!("token {id} at byte {at} has {length} bytes, and the longest has {longest}");
            return Err(wrong(what));
        }
        let (token, after) = rest.split_at_checked(length as usize).ok_or_else(cut)?;
        let text = std::str::from_utf8(token);
        let text = text.map_err(|_| wrong(format!("token {id} at byte {at} is not UTF-8: {token:?}")))?;
        if !score.is_finite() {
            return Err(wrong(format!("token {id} ({text:?}) at byte {at} has the score {score}")));
        }
        tokens.push((text.to_string(), score));
        rest = after;
    }
    Ok(tokens)
}

fn take<T>(rest: &mut &[u8], number: fn([u8; 4]) -> T) -> Option<T> {
    let (first, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(number(*first))
}

fn check_layout(file: &str, pieces: &[Piece]) -> Result<()> {
    let wrong = |what: String| {
        Err(Error::input(format!("`{file}` is no tokenizer of llama2.c: {what}")).help(
            "llama2.c takes the ids 0, 1 and 2 for `<unk>`, `<s>` and `</s>`, and 3 to 258 for the bytes",
        ))
    };
    if pieces.len() < FIRST_PIECE {
        return wrong(format!("it has {} tokens, and the bytes alone end at 258", pieces.len()));
    }
    for (byte, piece) in pieces[FIRST_BYTE..FIRST_PIECE].iter().enumerate() {
        if byte_of_name(&piece.text) != Some(byte as u8) {
            return wrong(format!("token {} is {:?}, not `<0x{byte:02X}>`", byte + FIRST_BYTE, piece.text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::damage::damaged;
    use crate::tokenizer::Special;
    use crate::tokenizer::format::tests_common::{folder, shared};

    /// A file of `pieces` after the special tokens and bytes, with falling scores.
    fn file_of(pieces: &[&str]) -> Vec<u8> {
        let scored: Vec<(&str, f32)> = pieces.iter().zip(0..).map(|(text, i)| (*text, -(i as f32))).collect();
        scored_file(&scored)
    }

    fn scored_file(pieces: &[(&str, f32)]) -> Vec<u8> {
        let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0));
        let special = ["<unk>", "\n<s>\n", "\n</s>\n"].map(|text| (text.to_string(), 0.0));
        let pieces = pieces.iter().map(|(text, score)| (text.to_string(), *score));
        let all: Vec<(String, f32)> = special.into_iter().chain(bytes).chain(pieces).collect();
        let longest = all.iter().map(|(text, _)| text.len()).max().unwrap() as i32;
        let mut file = longest.to_le_bytes().to_vec();
        for (text, score) in all {
            file.extend(score.to_le_bytes());
            file.extend((text.len() as i32).to_le_bytes());
            file.extend(text.as_bytes());
        }
        file
    }

    /// `encode` of llama2.c, without its `<s>`: again and again the best pair, the leftmost of equals.
    fn plain_encode(file: &[u8], text: &str) -> Vec<usize> {
        let vocabulary = tokens("t", file).unwrap();
        let find = |text: &str| vocabulary.iter().position(|(token, _)| token == text);
        let mut ids: Vec<usize> = if text.is_empty() { vec![] } else { vec![find(" ").unwrap()] };
        for c in text.chars() {
            match find(&c.to_string()) {
                Some(id) => ids.push(id),
                None => ids.extend(c.to_string().bytes().map(|byte| byte as usize + FIRST_BYTE)),
            }
        }
        loop {
            let mut best = None;
            for at in 1..ids.len() {
                let pair = format!("{}{}", vocabulary[ids[at - 1]].0, vocabulary[ids[at]].0);
                let Some(id) = find(&pair) else { continue };
                if best.is_none_or(|(_, _, score)| vocabulary[id].1 > score) {
                    best = Some((at, id, vocabulary[id].1));
                }
            }
            let Some((at, id, _)) = best else { return ids };
            ids[at - 1] = id;
            ids.remove(at);
        }
    }

    #[test]
    fn the_ids_are_those_of_llama2c() {
        // Several ways to `aaa`, and to `aba` at overlapping places.
        let pieces = ["ab", "ba", "aa", " a", "aba", "aaa", "aaaa", " ", "a", "b", "é"];
        let file = file_of(&pieces);
        let tokenizer = parse("t.bin", &file).unwrap();
        let mut texts: Vec<String> = ["", " ", "  a", "é ü\n\t中", "<s>", "<0x41>"].map(String::from).into();
        for n in 0..1 << 9 {
            texts.push((0..9).map(|i| if n >> i & 1 == 0 { 'a' } else { 'b' }).collect());
        }
        for text in texts {
            let ids: Vec<usize> =
                tokenizer.encode(&text).unwrap().into_iter().map(|id| id as usize).collect();
            assert_eq!(ids, plain_encode(&file, &text), "{text:?}");
        }
    }

    #[test]
    fn stories260k_has_its_reference_ids() {
        let Some(folder) = shared("model_stories260K") else { return };
        let files = Files::at(&folder).unwrap();
        assert!(Llama2c.recognizes(&files));
        let tokenizer = Llama2c.read(&files).unwrap();
        assert_eq!(tokenizer.vocab_size(), 512);
        assert_eq!([Special::Bos, Special::Eos].map(|s| tokenizer.special(s)), [Some(1), Some(1)]);
        let golden = fs::read(&folder.join("golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        for case in golden["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = [vec![1], tokenizer.encode(text).unwrap()].concat();
            assert_eq!(serde_json::json!(ids), case["ids_with_bos_and_dummy_prefix"], "{text}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        let expected = fs::read_text(&folder.join("expected_greedy_200steps.txt")).unwrap();
        let ids = tokenizer.encode(&expected).unwrap();
        assert_eq!(tokenizer.decode(&[vec![1], ids.clone()].concat()).unwrap(), expected);
        let file = fs::read(find(&files).unwrap()).unwrap();
        assert!(bytes_of(&tokenizer).unwrap() == file, "what was read is written alike");
        let plain: Vec<u32> = plain_encode(&file, &expected).into_iter().map(|id| id as u32).collect();
        assert_eq!(ids, plain);
    }

    #[test]
    fn other_tokenizers_are_written_where_llama2c_can_hold_them() {
        let dir = tempfile::tempdir().unwrap();
        let read = parse("t.bin", &file_of(&["ab", " a", "abab", " ", "a", "b"])).unwrap();
        Llama2c.write(&read, dir.path()).unwrap();
        let again = Llama2c.read(&Files::at(dir.path()).unwrap()).unwrap();
        assert_eq!(again.json(), read.json());
        let error = |name: &str| {
            let tokenizer = Tokenizer::load(&folder(&format!("tokenizers/{name}.json"))).unwrap();
            Llama2c.write(&tokenizer, dir.path()).unwrap_err().to_string()
        };
        assert!(error("sentencepiece_bpe").contains("adds a space before each text"));
        assert!(
            error("byte_bpe").contains("cuts texts into words by \"ByteLevel\""),
            "{}",
            error("byte_bpe")
        );
        assert!(error("unigram").contains("no byte-pair encoding"));
        // One of two ways to a token is missing, so that `a ab` stays.
        let mut json: serde_json::Value = serde_json::from_slice(read.json()).unwrap();
        json["model"]["merges"].as_array_mut().unwrap().retain(|merge| merge[0] != "ab");
        let fewer = Tokenizer::parse("t.json", json.to_string().into_bytes()).unwrap();
        let error = Llama2c.write(&fewer, dir.path()).unwrap_err().to_string();
        assert!(error.contains("other ids") && error.contains("abab"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |file: &[u8]| parse("t.bin", file).unwrap_err().to_string();
        let good = file_of(&["a", "b", "ab"]);
        parse("t.bin", &good).unwrap();
        for (_, damaged) in damaged(&good) {
            let _ = parse("t.bin", &damaged);
        }
        let cut = error(&good[..good.len() - 1]);
        assert!(cut.contains("ends inside token 261"), "{cut}");
        let twice = error(&file_of(&["a", "b", "a"]));
        assert!(twice.contains("the tokens 259 and 261 are both \"a\""), "{twice}");
        let nan = error(&scored_file(&[("a", f32::NAN)]));
        assert!(nan.contains("token 259 (\"a\")") && nan.contains("NaN"), "{nan}");
        let equal = error(&scored_file(&[("a", 0.0), ("b", 0.0), ("c", 0.0), ("ab", -1.0), ("bc", -1.0)]));
        assert!(equal.contains("\"ab\" and \"bc\" have the same score -1"), "{equal}");
        let mut swapped = good.clone();
        let at = good.windows(6).position(|w| w == b"<0x07>").unwrap();
        swapped[at + 4] = b'8';
        let swapped = error(&swapped);
        assert!(swapped.contains("token 10 is \"<0x08>\", not `<0x07>`"), "{swapped}");
        let mut long = good.clone();
        long[8..12].copy_from_slice(&i32::MAX.to_le_bytes());
        let long = error(&long);
        assert!(long.contains("token 0 at byte 4 has 2147483647 bytes"), "{long}");
        assert!(error(b"").contains("does not begin with the length"));
    }
}
