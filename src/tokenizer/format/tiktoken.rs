//! tiktoken's files of ranks: a token in Base64, a space and its rank a line
//! (`load_tiktoken_bpe` in <https://github.com/openai/tiktoken/blob/main/tiktoken/load.py>). Ranks are ids; of
//! two neighbours the pair whose token has the lowest rank is merged first.
//!
//! The regular expression that cuts words and the special tokens are not in the file. They go by the number
//! of ranks: 100,256 are `cl100k_base`'s, 199,998 are `o200k_base`'s, and all others are cut as GPT-2's are. A
//! `special_tokens.json` beside the file, tokens with their ids, names other special tokens.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::build::{Draft, byte_level};
use super::compare::same_on_own_texts;
use super::lines::{Line, Lines};
use super::splits::{reaches_all, splits};
use super::vocab_json::{self, MOST_IDS, Vocab};
use super::{Format, gpt2};
use crate::base::{Error, Files, Result, files, fs};
use crate::tokenizer::train::{Algorithm, form};
use crate::tokenizer::{Names, TOKENIZER_CONFIG_FILE, Tokenizer, base64, byte_of_symbol, byte_symbol};

pub struct Tiktoken;

const RANKS: &str = "ranks.tiktoken";
const SPECIAL: &str = "special_tokens.json";
const END_OF_TEXT: &str = "<|endoftext|>";

/// An encoding of OpenAI's by the number of its ranks.
struct Known {
    ranks: usize,
    name: &'static str,
    /// How words are cut; GPT-2's way if empty.
    pattern: &'static [&'static str],
    special: &'static [(&'static str, u32)],
}

/// From <https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py>.
const KNOWN: [Known; 4] = [
    Known { ranks: 50_256, name: "r50k_base", pattern: &[], special: &[(END_OF_TEXT, 50_256)] },
    Known { ranks: 50_280, name: "p50k_base", pattern: &[], special: &[(END_OF_TEXT, 50_256)] },
    Known {
        ranks: 100_256,
        name: "cl100k_base",
        pattern: CL100K,
        special: &[
            (END_OF_TEXT, 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ],
    },
    Known {
        ranks: 199_998,
        name: "o200k_base",
        pattern: O200K,
        special: &[(END_OF_TEXT, 199_999), ("<|endofprompt|>", 200_018)],
    },
];

const CL100K: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

const O200K: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

impl Format for Tiktoken {
    fn name(&self) -> &'static str {
        "tiktoken"
    }

    fn summary(&self) -> &'static str {
        "tiktoken: ranks of tokens in Base64, such as `r50k_base.tiktoken`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        find(files).is_some()
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let path = find(files).or_else(|| files.only()).ok_or_else(|| {
            Error::input(format!("`{}` has not one file of ranks", files.label))
                .help(format!("name the file, or call it `{RANKS}`"))
        })?;
        let file = path.display().to_string();
        let ranks = parse(&file, &fs::read_text(path)?)?;
        let known = KNOWN.iter().find(|known| known.ranks == ranks.len());
        tracing::info!(
            "`{file}` has {} ranks: words are cut as in {}",
            ranks.len(),
            known.map_or("GPT-2", |known| known.name)
        );
        let special = match files.find(SPECIAL) {
            Some(path) => {
                let file = path.display().to_string();
                vocab_json::parse::<Vocab>(&file, &fs::read_text(path)?, "special tokens with their ids")?.0
            }
            None => {
                let special = known.map_or(&[][..], |known| known.special);
                special.iter().map(|(token, id)| (token.to_string(), *id)).collect()
            }
        };
        let names = Names::beside(|name| files.find(name))?;
        tokenizer(&file, &ranks, special, known.map_or(&[], |known| known.pattern), &names)
    }

    fn refuses(&self, algorithm: Algorithm) -> Option<String> {
        (algorithm != Algorithm::ByteBpe).then(|| "it holds byte-level BPE alone (`byte_bpe`)".into())
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        let (tokens, _) = gpt2::parts_of(tokenizer)?;
        let (mut ranks, mut special) = (String::new(), BTreeMap::new());
        for (token, id) in tokens.iter().zip(0u32..) {
            if tokenizer.is_special(id) {
                special.insert(id, token);
                continue;
            }
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_symbol).collect();
            let bytes = bytes.ok_or_else(|| {
                Error::input(format!(
                    "tiktoken cannot hold this tokenizer: the token {token:?} is not of bytes"
                ))
            })?;
            ranks += &format!("{} {id}\n", base64::encode(&bytes));
        }
        fs::write(&into.join(RANKS), ranks.as_bytes())?;
        let special: Vec<String> =
            special.iter().map(|(id, token)| format!("{}: {id}", Value::from(token.as_str()))).collect();
        if !special.is_empty() {
            fs::write(&into.join(SPECIAL), format!("{{{}}}\n", special.join(", ")).as_bytes())?;
        }
        if let Some(config) = tokenizer.config()? {
            fs::write(&into.join(TOKENIZER_CONFIG_FILE), &config)?;
        }
        same_on_own_texts(self.name(), tokenizer, &self.read(&Files::at(into)?)?, &[])
    }
}

/// The one file of ranks.
fn find(files: &Files) -> Option<&Path> {
    let mut found = files.all.iter().map(|(_, path)| path.as_path()).filter(|path| begins_so(path));
    found.next().filter(|_| found.next().is_none())
}

/// Whether the first line is Base64, a space and a number.
fn begins_so(path: &Path) -> bool {
    let head = files::head(path, 256);
    let line = head.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let parts = line.and_then(|line| line.trim_end_matches('\r').split_once(' '));
    parts.is_some_and(|(token, rank)| {
        !token.is_empty() && base64::decode(token).is_ok() && rank.parse::<u32>().is_ok()
    })
}

/// The tokens by rank.
type Ranks = BTreeMap<u32, Vec<u8>>;

fn parse(file: &str, text: &str) -> Result<Ranks> {
    let (mut ranks, mut lines) = (Ranks::new(), HashMap::new());
    for line in Lines::of(file, text).filter(|line| !line.text.is_empty()) {
        let (token, rank) = rank_of(&line)?;
        if let Some(before) = lines.insert(token.clone(), line.number) {
            let what = format!("the token {:?} is also in line {before}", String::from_utf8_lossy(&token));
            return Err(Error::input(what).at(line.place(0)));
        }
        if let Some(before) = ranks.insert(rank, token) {
            let what = format!("the rank {rank} is also that of {:?}", String::from_utf8_lossy(&before));
            return Err(Error::input(what).at(line.place(line.text.len() - rank.to_string().len())));
        }
    }
    let of_byte = |byte: &u8| lines.contains_key(&[*byte][..]);
    match (0..=255).find(|byte| !of_byte(byte)) {
        None => Ok(ranks),
        Some(byte) => Err(Error::input(format!("`{file}` has no rank for the byte 0x{byte:02X}"))
            .help("without it some texts could not be encoded; is the file cut off?")),
    }
}

fn rank_of(line: &Line) -> Result<(Vec<u8>, u32)> {
    let (token, rank) = line.text.split_once(' ').ok_or_else(|| {
        Error::input(format!("found {:?}, expected a token in Base64, a space and its rank", line.text))
            .at(line.place(0))
    })?;
    let bytes = base64::decode(token)
        .map_err(|at| Error::input(format!("{token:?} is not Base64")).at(line.place(at)))?;
    if bytes.is_empty() || bytes.len() > super::splits::LONGEST {
        let what = format!("the token has {} bytes, expected 1 to {}", bytes.len(), super::splits::LONGEST);
        return Err(Error::input(what).at(line.place(0)));
    }
    let rank = rank.parse::<u32>().ok().filter(|rank| *rank < MOST_IDS).ok_or_else(|| {
        Error::input(format!("found {rank:?}, expected a rank below {MOST_IDS}"))
            .at(line.place(token.len() + 1))
    })?;
    Ok((bytes, rank))
}

fn tokenizer(
    file: &str,
    ranks: &Ranks,
    special: Vec<(String, u32)>,
    pattern: &[&str],
    names: &Names,
) -> Result<Tokenizer> {
    let spelled = |bytes: &[u8]| -> String { bytes.iter().map(|byte| byte_symbol(*byte)).collect() };
    let mut vocab: BTreeMap<String, u32> =
        ranks.iter().map(|(rank, token)| (spelled(token), *rank)).collect();
    for (token, id) in &special {
        if ranks.contains_key(id) || vocab.insert(token.clone(), *id).is_some() {
            let what =
                format!("`{file}`: the special token {token:?} with the id {id} is also one of the ranks");
            return Err(Error::input(what));
        }
    }
    let known: HashMap<&[u8], u32> = ranks.iter().map(|(rank, token)| (token.as_slice(), *rank)).collect();
    let mut merges = Vec::new();
    for token in ranks.values() {
        for at in splits(token) {
            let (left, right) = token.split_at(at);
            if known.contains_key(left) && known.contains_key(right) {
                merges.push((spelled(left), spelled(right)));
            }
        }
    }
    let mut model = form::bpe(&[], &merges, None, false);
    model["vocab"] = json!(vocab);
    // A word that is a token is encoded to it, whatever the merges.
    let ordinary = vocab.iter().filter(|(_, id)| ranks.contains_key(id));
    if reaches_all(&model, ordinary.map(|(token, id)| (token.as_str(), *id)))?.is_some() {
        model["ignore_merges"] = json!(true);
    }
    let pre_tokenizer = match pattern {
        [] => byte_level(true),
        pattern => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern.join("|")}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]}),
    };
    let special = special.into_iter().map(|(token, id)| (id, token)).collect();
    Draft { normalizer: Value::Null, pre_tokenizer, decoder: byte_level(true), model, special }
        .tokenizer(file, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Special;
    use crate::tokenizer::format::tests_common::{file, files, folder, forms, ids_of_texts};

    /// All bytes, then some tokens.
    fn ranks(tokens: &[&str]) -> String {
        let bytes = (0..=255u8).map(|byte| vec![byte]);
        let all = bytes.chain(tokens.iter().map(|token| token.as_bytes().to_vec()));
        all.zip(0..).map(|(token, rank)| format!("{} {rank}\n", base64::encode(&token))).collect()
    }

    /// tiktoken's way: the pair with the lowest rank, the leftmost of equals, until none is left.
    fn plain_encode(ranks: &Ranks, word: &str) -> Vec<u32> {
        let rank = |bytes: &[u8]| ranks.iter().find(|(_, token)| *token == bytes).map(|(rank, _)| *rank);
        if let Some(whole) = rank(word.as_bytes()) {
            return vec![whole];
        }
        let mut parts: Vec<Vec<u8>> = word.bytes().map(|byte| vec![byte]).collect();
        loop {
            let pairs = (1..parts.len()).filter_map(|i| Some((rank(&parts[i - 1..=i].concat())?, i)));
            let Some((_, at)) = pairs.min() else { break };
            let right = parts.remove(at);
            parts[at - 1].extend(right);
        }
        parts.iter().map(|part| rank(part).unwrap()).collect()
    }

    #[test]
    fn the_ids_are_those_of_tiktoken() {
        // The last is reached by no merges.
        for tokens in [&["ab", "ba", "aa", "aba", "aaa", "bab", "é"][..], &["ab", "ba", "aa", "xyz"]] {
            let text = ranks(tokens);
            let parsed = parse("t", &text).unwrap();
            let (_dir, files) = file("t.tiktoken", text.as_bytes());
            assert!(Tiktoken.recognizes(&files));
            let tokenizer = Tiktoken.read(&files).unwrap();
            let mut words: Vec<String> = ["xyz", "xyzx", "é", "中"].map(String::from).into();
            for n in 0..1 << 9 {
                words.push((0..9).map(|i| if n >> i & 1 == 0 { 'a' } else { 'b' }).collect());
            }
            for word in words {
                assert_eq!(tokenizer.encode(&word).unwrap(), plain_encode(&parsed, &word), "{word}");
            }
        }
    }

    /// The ids that tiktoken gives for the same ranks with each of the patterns.
    #[test]
    fn words_are_cut_as_by_tiktoken() {
        let bytes = fs::read_text(&folder("tokenizer_forms/small.tiktoken")).unwrap();
        let ranks = parse("small.tiktoken", &bytes).unwrap();
        for (name, pattern) in [("r50k_base", &[][..]), ("cl100k_base", CL100K), ("o200k_base", O200K)] {
            let tokenizer = tokenizer("small", &ranks, Vec::new(), pattern, &Names::default()).unwrap();
            assert_eq!(ids_of_texts(&tokenizer), forms()["tiktoken"][name], "{name}");
        }
    }

    #[test]
    fn byte_bpe_is_written_with_its_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::load(&folder("tokenizers/byte_bpe.json")).unwrap();
        Tiktoken.write(&tokenizer, dir.path()).unwrap();
        let again = Tiktoken.read(&Files::at(dir.path()).unwrap()).unwrap();
        tokenizer.is_part_of(&again).unwrap();
        assert_eq!(again.special(Special::User), tokenizer.special(Special::User));
        let other = Tokenizer::load(&folder("tokenizers/wordpiece.json")).unwrap();
        assert!(Tiktoken.write(&other, dir.path()).unwrap_err().to_string().contains("no byte-level BPE"));
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_stands() {
        let good = ranks(&["ab", "abc"]);
        let error = |text: &str| {
            let (_dir, files) = file("t.tiktoken", text.as_bytes());
            Tiktoken.read(&files).unwrap_err().to_string()
        };
        for (from, to, due) in [
            ("YWI= 256", "YWI=256", ["t.tiktoken:257:1", "expected a token in Base64"]),
            ("YWI= 256", "YW!= 256", ["t.tiktoken:257:3", "not Base64"]),
            ("YWI= 256", "YWI 256", ["t.tiktoken:257:3", "not Base64"]),
            ("YWI= 256", " 256", ["t.tiktoken:257:1", "has 0 bytes"]),
            ("YWI= 256", "YWI= x", ["t.tiktoken:257:6", "expected a rank"]),
            ("YWI= 256", "YWI= -1", ["t.tiktoken:257:6", "expected a rank"]),
            ("YWI= 256", "YWI= 99999999", ["t.tiktoken:257:6", "expected a rank"]),
            ("YWI= 256", "YWI= 7", ["t.tiktoken:257:6", "the rank 7 is also"]),
            ("YWI= 256", "YWJj 256", ["t.tiktoken:258:1", "also in line 257"]),
            ("IQ== 33\n", "", ["t.tiktoken", "no rank for the byte 0x21"]),
        ] {
            assert!(good.contains(from));
            let found = error(&good.replacen(from, to, 1));
            assert!(due.iter().all(|part| found.contains(part)), "{from} -> {to}: {found}");
        }
        for at in (0..good.len() - 20).step_by(101) {
            assert!(error(&good[..at]).contains("t.tiktoken"), "cut off at {at}");
        }
        let (_dir, both) = files(&[("t.tiktoken", good.as_bytes()), (SPECIAL, b"{\"<s>\": 256}")]);
        assert!(Tiktoken.read(&both).unwrap_err().to_string().contains("\"<s>\" with the id 256"));
        let (_dir, both) = files(&[("t.tiktoken", good.as_bytes()), (SPECIAL, b"{\"<s>\": 258, }")]);
        assert!(Tiktoken.read(&both).unwrap_err().to_string().contains("special_tokens.json:1:"));
    }
}
