//! How `gpt2` vocabularies cut text into words, by the names of `tokenizer.ggml.pre`.

use std::ops::Range;

use tokenizers::utils::SysRegex;

use crate::base::{Error, Result, suggest};
use crate::tokenizer::cut::Cut;

/// GPT-2's words, which [`Cut::Bytes`] cuts as well.
pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// A digit is a word.
pub const DIGIT: &str = r"\p{N}";
/// Three digits are a word.
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same contractions, as files of Hugging Face have them and as llama.cpp does.
const CONTRACTIONS: (&str, &str) =
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])");

/// A way of cutting.
pub struct Pre {
    /// All names of it; the first is written.
    names: &'static [&'static str],
    /// Regular expressions, each of which cuts the parts that those before it left: a match is a part, and so
    /// is what lies between two.
    pub splits: &'static [&'static str],
    /// Whether a word that is a token becomes that token, whatever the merges say.
    pub ignore_merges: bool,
}

/// The `pre` of files that have none.
pub const DEFAULT: &str = "default";

/// Those that are supported.
static ALL: [Pre; 9] = [
    Pre {
        names: &[
            "gpt-2",
            "mpt",
            "olmo",
            "phi-2",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
            "gigachat",
            "mellum",
            "modern-bert",
            "a.x-4.0",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        splits: &[GPT2],
        ignore_merges: false,
    },
    Pre {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        splits: &[DIGIT, GPT2],
        ignore_merges: false,
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        splits: &[LLAMA3],
        ignore_merges: true,
    },
    Pre { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], splits: &[LLAMA3], ignore_merges: false },
    Pre {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        splits: &[QWEN2],
        ignore_merges: false,
    },
    Pre { names: &["qwen35"], splits: &[QWEN35], ignore_merges: false },
    Pre { names: &["laguna"], splits: &[r"[^\n]+|[\n]+", QWEN2], ignore_merges: false },
    Pre { names: &["falcon"], splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS], ignore_merges: false },
    Pre {
        names: &[DEFAULT],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_DIGITS],
        ignore_merges: false,
    },
];

impl Pre {
    /// # Errors
    /// When it is none of those that are supported here.
    pub fn named(name: &str) -> Result<&'static Pre> {
        ALL.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            let names = || ALL.iter().flat_map(|pre| pre.names).copied();
            Error::input(format!("`tokenizer.ggml.pre` is `{name}`, which is not supported"))
                .suggest(suggest::closest(name, names()))
                .help(format!("supported are {}", suggest::list(names())))
        })
    }

    /// The one that cuts so; of several, the one that treats merges so.
    pub fn that_splits(splits: &[String], ignore_merges: bool) -> Option<&'static Pre> {
        let same = |pre: &&Pre| pre.names != [DEFAULT] && pre.splits == splits;
        let all = || ALL.iter().filter(same);
        all().find(|pre| pre.ignore_merges == ignore_merges).or_else(|| all().next())
    }

    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// For cutting.
    ///
    /// # Errors
    /// When a regular expression is not valid, which would be a bug.
    pub fn cutter(&self) -> Result<Vec<Split>> {
        self.splits.iter().map(|regex| Split::of(regex)).collect()
    }
}

/// A regular expression of a file of Hugging Face, as llama.cpp spells it.
pub fn as_llama_cpp(regex: &str) -> String {
    let (theirs, its) = CONTRACTIONS;
    regex.replace(theirs, its)
}

/// One step of cutting.
pub enum Split {
    Gpt2,
    Regex(SysRegex),
}

impl Split {
    fn of(regex: &str) -> Result<Split> {
        if regex == GPT2 {
            return Ok(Split::Gpt2);
        }
        SysRegex::new(regex).map(Split::Regex).map_err(|e| Error::bug(format!("the regex {regex}: {e}")))
    }

    /// Appends the parts of `part`.
    fn split(&self, text: &str, part: Range<usize>, out: &mut Vec<Range<usize>>) {
        match self {
            Split::Gpt2 => {
                // The boundary of a part ends a word as the end of the text does.
                let start = part.start;
                let Ok(()) = Cut::Bytes.words(&text[part.clone()], 0..part.len(), |word| {
                    out.push(start + word.start..start + word.end);
                    Ok::<(), std::convert::Infallible>(())
                });
            }
            Split::Regex(regex) => {
                let mut at = part.start;
                for (from, to) in regex.find_iter(&text[part.clone()]) {
                    let (from, to) = (part.start + from, part.start + to);
                    out.extend([at..from, from..to].into_iter().filter(|part| !part.is_empty()));
                    at = to;
                }
                out.extend(Some(at..part.end).filter(|part| !part.is_empty()));
            }
        }
    }
}

/// The words of a text; `spare` is a buffer.
pub fn words(splits: &[Split], text: &str, out: &mut Vec<Range<usize>>, spare: &mut Vec<Range<usize>>) {
    out.clear();
    out.push(0..text.len());
    for split in splits {
        std::mem::swap(out, spare);
        out.clear();
        for part in spare.iter() {
            split.split(text, part.clone(), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let (mut out, mut spare) = (Vec::new(), Vec::new());
        words(&Pre::named(name).unwrap().cutter().unwrap(), text, &mut out, &mut spare);
        out.into_iter().map(|part| text[part].to_string()).collect()
    }

    #[test]
    fn each_name_cuts_in_its_way() {
        let text = "It's 1234 (ok)!\n\n  IT'S";
        assert_eq!(cut("gpt-2", text), ["It", "'s", " 1234", " (", "ok", ")!", "\n\n ", " IT", "'", "S"]);
        assert_eq!(
            cut("smollm", text),
            ["It", "'s", " ", "1", "2", "3", "4", " (", "ok", ")!", "\n\n ", " IT", "'", "S"]
        );
        assert_eq!(
            cut("llama-bpe", text),
            ["It", "'s", " ", "123", "4", " (", "ok", ")!\n\n", " ", " IT", "'S"]
        );
        assert_eq!(cut("qwen2", "12  a"), ["1", "2", " ", " a"]);
        assert_eq!(cut("qwen35", "e\u{301}a"), ["e\u{301}a"]);
        assert_eq!(cut("default", "a-12345"), ["a", "-", "123", "45"]);
        assert_eq!(cut("falcon", "a`1"), ["a", "`", "1"]);
        assert_eq!(cut("gpt-2", ""), [""; 0]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest() {
        let error = Pre::named("gpt2").err().unwrap().to_string();
        assert!(error.contains("`gpt2`") && error.contains("did you mean `gpt-2`"), "{error}");
    }

    #[test]
    fn names_are_found_by_what_they_do() {
        let found = |splits: &[&str], ignore| {
            let splits: Vec<String> = splits.iter().map(|s| as_llama_cpp(s)).collect();
            Pre::that_splits(&splits, ignore).map(Pre::name)
        };
        let theirs = LLAMA3.replace(CONTRACTIONS.1, CONTRACTIONS.0);
        assert_ne!(theirs, LLAMA3);
        assert_eq!(found(&[&theirs], true), Some("llama-bpe"));
        assert_eq!(found(&[&theirs], false), Some("dbrx"));
        assert_eq!(found(&[GPT2], true), Some("gpt-2"));
        assert_eq!(found(&[DIGIT], false), None);
        let all: Vec<&str> = ALL.iter().flat_map(|pre| pre.names).copied().collect();
        assert!(all.iter().all(|name| all.iter().filter(|other| *other == name).count() == 1), "{all:?}");
    }
}
