//! The JSON file of `tiny-lm`, a language model in Go (<https://github.com/crislerwin/tiny-lm>): sizes, vocabulary
//! and weights in one object.
//!
//! ```json
//! {"d_model": 4, "n_layers": 1, "n_heads": 2, "vocab": ["the", …, "END"],
//!  "weights": {"token_embed.weight": [[…], …], "ln_f.bias": […], …}}
//! ```
//!
//! Matrices of blocks are `[in, out]`, as ours; the output projection is `[V, C]` and is never the embedding.
//! There are as many positions as `pos_embed.weight` has rows; epsilon is 1e-5 whatever the file says.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::Value;

use super::container::difference;
use super::weights::{read_json, unused_note};
use super::{Container, ExportOptions, Fields, Imported, Outgoing, Stored};
use crate::base::{Error, Files, Result, files, fs};
use crate::kernel::BlockType;
use crate::model::{Config, Layout, Role, Transformer, gpt2};
use crate::tokenizer;
use crate::tokenizer::format::{all_words, strict_words_until};
use crate::tokenizer::train::Algorithm;

pub struct GoJson;

/// The file that is written.
pub const GO_FILE: &str = "tiny_gpt_weights.json";

/// The word that ends a text.
const END: &str = "END";

/// How much of a file says what it is.
const HEAD: usize = 1 << 16;

/// Names of modules in a block: ours, and theirs by the matrices that lie side by side in ours.
const BLOCK: [(&str, &[&str]); 6] = [
    ("ln_1", &["norm1"]),
    ("attn.c_attn", &["attn.W_q", "attn.W_k", "attn.W_v"]),
    ("attn.c_proj", &["attn.W_o"]),
    ("ln_2", &["norm2"]),
    ("mlp.c_fc", &["ff.linear1"]),
    ("mlp.c_proj", &["ff.linear2"]),
];

const OUTSIDE: [(&str, &str); 4] = [
    ("transformer.wte", "token_embed"),
    ("transformer.wpe", "pos_embed"),
    ("transformer.ln_f", "ln_f"),
    ("lm_head", "lm_head"),
];

impl Container for GoJson {
    fn name(&self) -> &'static str {
        "json"
    }

    fn summary(&self) -> &'static str {
        "tiny-lm in Go: sizes, words and weights in one JSON file such as `tiny_gpt_weights.json`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        find(files).is_some()
    }

    fn read(&self, files: &Files) -> Result<Imported> {
        let path = match find(files).or_else(|| files.only()) {
            Some(path) => path,
            None => files.file(GO_FILE)?,
        };
        let (file, value) = read_json(path)?;
        let fields = Fields::of(&file, &value)?;
        let (transformer, words) = read(&fields)?;
        fields.unknown().iter().for_each(|note| tracing::warn!("{note}"));
        let tokenizer = strict_words_until(&words, END);
        let tokenizer = tokenizer.map_err(|e| e.context(format!("`{file}`: its `vocab` is no tokenizer")))?;
        Ok(Imported { transformer, tokenizer: Some(tokenizer), blocks: None })
    }

    fn refuses(&self, config: &Config, options: &ExportOptions) -> Option<String> {
        if let Some(ty) = options.dtype.filter(|ty| *ty != BlockType::F32) {
            return Some(format!("JSON holds numbers as text, not as {}", ty.name()));
        }
        let reason = difference(config, &config_of(config))?;
        Some(format!("tiny-lm in Go computes GPT-2's parts with an output of its own: {reason}"))
    }

    fn refuses_tokenizer(&self, algorithm: Algorithm) -> Option<String> {
        tokenizer::format::format("strict_words").ok()?.refuses(algorithm)
    }

    fn write(&self, out: &Outgoing, into: &Path) -> Result<()> {
        let config = &out.model.transformer.config;
        if let Some(why) = self.refuses(config, out.options) {
            return Err(Error::input(why));
        }
        let words = all_words(&out.model.tokenizer)?;
        if words.len() != config.vocab_size {
            let rows = config.vocab_size;
            return Err(Error::input(format!("there are {} words, and {rows} rows for them", words.len())));
        }
        out.with_numbers(|transformer| write(transformer, &words, &into.join(GO_FILE)))
    }
}

/// The one file that begins with some of its keys.
fn find(files: &Files) -> Option<&Path> {
    let is_one = |path: &Path| {
        let head = String::from_utf8_lossy(&files::head(path, HEAD)).into_owned();
        let has = |key: &str| head.contains(&format!("\"{key}\""));
        head.trim_start_matches('\u{FEFF}').trim_start().starts_with('{')
            && (has("token_embed.weight") || has("d_model") && has("vocab"))
    };
    let mut found = files.all.iter().map(|(_, path)| path.as_path()).filter(|path| is_one(path));
    found.next().filter(|_| found.next().is_none())
}

/// What is computed with the sizes of `c`.
fn config_of(c: &Config) -> Config {
    Config {
        d_ff: c.d_ff,
        attn_bias: false,
        tied: false,
        rope_base: c.rope_base,
        ..gpt2(c.vocab_size, c.d_model, c.n_layer, c.n_head, c.seq_len)
    }
}

/// The model, and its words.
pub(super) fn read(fields: &Fields) -> Result<(Transformer, Vec<String>)> {
    let words = words(fields)?;
    let weights = fields.object("weights")?.ok_or_else(|| fields.wrong("weights", "expected an object"))?;
    let config = config(fields, &weights, words.len())?;
    let layout = Layout::new(&config);
    let stored = tensors(&layout);
    // Shapes first, so that no memory is taken for numbers that are not there.
    let tensors: Vec<Vec<f32>> = stored.iter().map(|s| numbers(&weights, s)).collect::<Result<_>>()?;
    let mut transformer = Transformer::zeros(&config);
    for (stored, numbers) in stored.iter().zip(tensors) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        transformer.put(stored, BlockType::F32, &bytes);
    }
    let unused = weights.all().map(|(name, _)| name).filter(|name| stored.iter().all(|s| s.name != *name));
    unused_note(fields.file(), unused.collect()).iter().for_each(|note| tracing::warn!("{note}"));
    Ok((transformer, words))
}

fn words(fields: &Fields) -> Result<Vec<String>> {
    let expected = || fields.wrong("vocab", "expected a list of words");
    let list = fields.get("vocab").and_then(Value::as_array).filter(|list| !list.is_empty());
    let text = |(i, word): (usize, &Value)| {
        word.as_str().map(str::to_string).ok_or_else(|| {
            Error::input(format!("`{}`: `vocab[{i}]` is {word}: expected a word", fields.file()))
        })
    };
    list.ok_or_else(expected)?.iter().enumerate().map(text).collect()
}

/// Sizes that the file states, and those that its tensors have.
fn config(fields: &Fields, weights: &Fields, vocab_size: usize) -> Result<Config> {
    let sizes = ["d_model", "n_layers", "n_heads"].map(|name| fields.size(name));
    let [d_model, n_layer, n_head] = sizes;
    let (d_model, n_layer, n_head) = (d_model?, n_layer?, n_head?);
    if n_head == 0 || !d_model.is_multiple_of(n_head) {
        return Err(fields.wrong("n_heads", format_args!("these heads do not divide `d_model` {d_model}")));
    }
    if n_layer > weights.all().count() {
        return Err(fields.wrong("n_layers", "more than there are tensors"));
    }
    let rows = |name| weights.find(name).and_then(Value::as_array).map(Vec::len);
    let seq_len = rows("pos_embed.weight").ok_or_else(|| missing(weights, "pos_embed.weight"))?;
    let d_ff =
        rows("blocks.0.ff.linear2.weight").ok_or_else(|| missing(weights, "blocks.0.ff.linear2.weight"))?;
    let base = Config { d_ff, dropout: 0.0, ..gpt2(vocab_size, d_model, n_layer, n_head, seq_len) };
    let config = config_of(&base);
    let config = Config { dropout: 0.0, ..config };
    config.validate().map_err(|e| {
        let name = match e.param.as_str() {
            "n_layer" => "n_layers",
            "n_head" => "n_heads",
            other => other,
        };
        Error::input(format!("`{}`: `{name}` {}", fields.file(), e.why))
    })?;
    Ok(config)
}

fn missing(weights: &Fields, name: &str) -> Error {
    let some: Vec<&str> = weights.all().map(|(name, _)| name).take(6).collect();
    Error::input(format!("`{}` has no tensor `{name}`", weights.file()))
        .help(format!("among its weights are: {}", some.join(", ")))
}

/// A tensor of the file.
struct Tensor<'a> {
    file: &'a str,
    name: &'a str,
}

impl Tensor<'_> {
    /// # Errors
    /// When `value` is no list of `expected` entries.
    fn list<'v>(&self, row: Option<usize>, value: &'v Value, expected: usize) -> Result<&'v [Value]> {
        let found = match value {
            Value::Array(list) if list.len() == expected => return Ok(list),
            Value::Array(list) => format!("has {} entries, expected {expected}", list.len()),
            other => format!("is {}, expected a list", short(other)),
        };
        Err(Error::input(format!("`{}`: {} {found}", self.file, self.part(row))))
    }

    fn numbers(&self, row: Option<usize>, value: &Value, width: usize) -> Result<Vec<f32>> {
        let number = |(i, x): (usize, &Value)| {
            x.as_f64().map(|x| x as f32).filter(|x| x.is_finite()).ok_or_else(|| {
                let (file, part, x) = (self.file, self.part(row), short(x));
                Error::input(format!("`{file}`: number {i} of {part} is {x}, expected a number of f32"))
            })
        };
        self.list(row, value, width)?.iter().enumerate().map(number).collect()
    }

    fn part(&self, row: Option<usize>) -> String {
        let row = row.map(|row| format!("row {row} of ")).unwrap_or_default();
        format!("{row}tensor `{}`", self.name)
    }
}

/// A tensor's numbers, in its order.
fn numbers(weights: &Fields, stored: &Stored) -> Result<Vec<f32>> {
    let tensor = Tensor { file: weights.file(), name: &stored.name };
    let value = weights.find(&stored.name).ok_or_else(|| missing(weights, &stored.name))?;
    let [rows, width] = stored.shape[..] else { return tensor.numbers(None, value, stored.shape[0]) };
    let rows = tensor.list(None, value, rows)?.iter().enumerate();
    let rows: Result<Vec<Vec<f32>>> = rows.map(|(i, row)| tensor.numbers(Some(i), row, width)).collect();
    Ok(rows?.concat())
}

/// A value for a message.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Where each of the file's tensors belongs, in the order in which they are written.
fn tensors(layout: &Layout) -> Vec<Stored> {
    let mut stored = Vec::new();
    for (i, p) in layout.parameters.iter().enumerate() {
        let (module, kind) = p.name.rsplit_once('.').expect("a module and what it is of it");
        let names = names_of(module);
        let whole = 0..*p.shape.last().expect("no parameter is a single number");
        let columns = if p.role == Role::Matrix { p.columns.clone() } else { vec![whole] };
        for (name, columns) in names.iter().zip(columns) {
            let shape = match p.shape[..] {
                [rows, _] => vec![rows, columns.len()],
                _ => vec![columns.len()],
            };
            stored.push(Stored { shape, columns, ..Stored::whole(p, i, format!("{name}.{kind}")) });
        }
    }
    stored
}

fn names_of(module: &str) -> Vec<String> {
    if let Some((block, part)) = module.strip_prefix("transformer.h.").and_then(|rest| rest.split_once('.')) {
        let found = BLOCK.iter().find(|(ours, _)| *ours == part);
        let names = found.expect("a module that the file has").1;
        return names.iter().map(|name| format!("blocks.{block}.{name}")).collect();
    }
    let found = OUTSIDE.iter().find(|(ours, _)| *ours == module);
    vec![found.expect("a module that the file has").1.to_string()]
}

pub(super) fn write(transformer: &Transformer, words: &[String], path: &Path) -> Result<()> {
    let (config, layout) = (&transformer.config, &transformer.layout);
    let (d_model, n_layers, n_heads) = (config.d_model, config.n_layer, config.n_head);
    let vocab = serde_json::to_string(words).map_err(|e| Error::bug(format!("words as JSON: {e}")))?;
    let mut file = BufWriter::new(fs::create(path)?);
    let mut print = |text: &str| file.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, &e));
    print(&format!(
        "{{\n  \"d_model\": {d_model},\n  \"n_layers\": {n_layers},\n  \"n_heads\": {n_heads},\n"
    ))?;
    print(&format!("  \"vocab\": {vocab},\n  \"weights\": {{"))?;
    for (i, stored) in tensors(layout).iter().enumerate() {
        let numbers: Vec<String> =
            stored.places(layout).map(|place| digits(transformer.weights[place])).collect();
        let between = if i == 0 { "" } else { "," };
        print(&format!("{between}\n    \"{}\": ", stored.name))?;
        match stored.shape[..] {
            [_, width] => {
                let rows = numbers.chunks(width).map(|row| format!("\n      [{}]", row.join(", ")));
                print(&format!("[{}\n    ]", rows.collect::<Vec<_>>().join(",")))?;
            }
            _ => print(&format!("[{}]", numbers.join(", ")))?,
        }
    }
    print("\n  }\n}\n")?;
    file.flush().map_err(|e| Error::io("write", path, &e))
}

/// As few digits as give the same number when they are read as f64 and rounded.
fn digits(x: f32) -> String {
    let short = x.to_string();
    match short.parse::<f64>() {
        Ok(wide) if wide as f32 == x => short,
        _ => f64::from(x).to_string(),
    }
}
