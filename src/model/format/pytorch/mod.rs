//! Checkpoints of PyTorch: state dicts that `torch.save` wrote, with the names of Hugging Face's types or of one of
//! the programs in [`schemes`].
//!
//! Pickles are read as data and nothing in them is executed. `candle_core::pickle` reads them too, but it takes
//! memory for whatever length a file states and copies an object each time that a pickle mentions it, so that a
//! few hundred bytes can ask for all memory; hence a reader of our own.
//!
//! ```text
//!  zip         the archive: its entries, their sizes and checksums
//!  pickle      objects of a pickle
//!  checkpoint  tensors of a state dict, settings beside it
//!  schemes     names of programs, and what they compute
//! ```

mod checkpoint;
mod pickle;
mod schemes;
#[cfg(test)]
mod tests;
mod zip;

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use self::checkpoint::Checkpoint;
use self::schemes::{Said, Scheme};
use super::container::tokenizer_among;
use super::weights::{read_json, unused_note};
use super::{Container, Description, ExportOptions, FORMATS, ImportOptions, Imported, Outgoing, Stored};
use crate::base::{Error, Files, Result, files, suggest};
use crate::kernel::BlockType;
use crate::model::{CONFIG_FILE, Config, Layout, Position, Transformer};

pub struct PyTorch;

const ENDINGS: [&str; 4] = [".pt", ".pth", ".ckpt", ".bin"];

/// Sines differ by this much from ours at most, computed in f32 at position 5,000.
const SINE_TOLERANCE: f32 = 1e-3;

/// The most numbers of computed positions that are kept for a length that a file claims: 64 MB.
const MOST_POSITIONS: usize = 1 << 24;

/// What a file is, by its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An archive of `torch.save`, since PyTorch 1.6.
    Zip,
    /// What `torch.save` wrote before.
    Legacy,
    /// A pickle without `torch.save`.
    Pickle,
    /// A compressed pickle, as Ardelyo/tinyLM writes it.
    Gzip,
}

impl Container for PyTorch {
    fn name(&self) -> &'static str {
        "pytorch"
    }

    fn summary(&self) -> &'static str {
        "PyTorch: a state dict of torch.save, such as `ckpt.pt` or `pytorch_model.bin`, its settings in it or in \
         `config.json`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        let others = [".safetensors", ".gguf"];
        let is_other = |name: &String| others.iter().any(|end| name.ends_with(end));
        !files.all.iter().any(|(name, _)| is_other(name)) && !candidates(files).is_empty()
    }

    fn read(&self, files: &Files) -> Result<Imported> {
        self.read_with(files, &ImportOptions::default())
    }

    fn read_with(&self, files: &Files, options: &ImportOptions) -> Result<Imported> {
        let paths = chosen(files)?;
        let mut checkpoints = paths.iter().map(|path| Checkpoint::open(path)).collect::<Result<Vec<_>>>()?;
        let beside = files.find(CONFIG_FILE).map(read_json).transpose()?;
        let transformer = match &beside {
            Some((file, config)) if is_of_transformers(config, &checkpoints) => {
                options.expect_none(self.name())?;
                let description = super::read(file, config)?;
                of_transformers(&description, &mut checkpoints)?
            }
            _ => {
                let [checkpoint] = checkpoints.as_mut_slice() else { return Err(several(files, &paths)) };
                of_program(checkpoint, beside.as_ref().map(|(_, config)| config), options)?
            }
        };
        let tokenizer = tokenizer_among(files)?;
        if let Some(tokenizer) = &tokenizer {
            transformer.config.fits(tokenizer)?;
        }
        Ok(Imported { transformer, tokenizer, blocks: None })
    }

    fn refuses(&self, _: &Config, _: &ExportOptions) -> Option<String> {
        Some(
            "PyTorch's pickles are read and not written: use `hf`, which PyTorch loads through safetensors"
                .into(),
        )
    }

    fn write(&self, out: &Outgoing, _: &Path) -> Result<()> {
        let why = self.refuses(&out.model.transformer.config, out.options);
        Err(Error::usage(why.unwrap_or_default()))
    }
}

/// What the file at `path` is, if it is of PyTorch or a pickle.
fn kind(name: &str, path: &Path) -> Option<Kind> {
    let head = files::head(path, 256);
    let named = ENDINGS.iter().any(|end| name.ends_with(end));
    let mentions = |what: &[u8]| head.windows(what.len()).any(|w| w == what);
    if head.starts_with(&zip::MAGIC) {
        return (named || mentions(b"data.pkl")).then_some(Kind::Zip);
    }
    // The pickle of the number 0x1950a86a20f9469cfc6c.
    const OLD: [u8; 14] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    if head.starts_with(&OLD) {
        return Some(Kind::Legacy);
    }
    if named && head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        return Some(Kind::Pickle);
    }
    let is_gzip = head.starts_with(&[0x1f, 0x8b]) && name.ends_with(".gz");
    (is_gzip && !name.contains(".json") && !name.contains(".txt")).then_some(Kind::Gzip)
}

fn candidates(files: &Files) -> Vec<(&str, &Path, Kind)> {
    let all =
        files.all.iter().filter_map(|(name, path)| Some((name.as_str(), path.as_path(), kind(name, path)?)));
    all.collect()
}

/// The file to be read, or the parts of a model of transformers.
fn chosen(files: &Files) -> Result<Vec<&Path>> {
    let all = candidates(files);
    let base = |name: &str| name.rsplit('/').next().unwrap_or(name).to_string();
    let parts: Vec<_> = all.iter().filter(|(name, ..)| base(name).starts_with("pytorch_model")).collect();
    let chosen = if parts.is_empty() { all.iter().collect() } else { parts };
    for (name, path, kind) in &chosen {
        refuse_old(name, path, *kind)?;
    }
    match chosen.as_slice() {
        [] => {
            let what = format!("`{}` has no checkpoint of PyTorch", files.label);
            Err(Error::input(what).help("expected an archive of torch.save: a zip file such as `model.pt`"))
        }
        [_, _, ..] if !base(chosen[0].0).starts_with("pytorch_model") => {
            let paths: Vec<&Path> = chosen.iter().map(|(_, path, _)| *path).collect();
            Err(several(files, &paths))
        }
        _ => Ok(chosen.iter().map(|(_, path, _)| *path).collect()),
    }
}

fn several(files: &Files, paths: &[&Path]) -> Error {
    let names = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let what = format!("`{}` has {} checkpoints", files.label, names.len());
    Error::input(what).help(format!("name one of {}", suggest::list(names.iter().map(String::as_str))))
}

/// # Errors
/// For what is no zip archive, with the lines that make one.
fn refuse_old(name: &str, path: &Path, kind: Kind) -> Result<()> {
    let (what, load) = match kind {
        Kind::Zip => return Ok(()),
        Kind::Legacy => {
            ("a checkpoint in the form before PyTorch 1.6", "torch.load(file, map_location=\"cpu\")")
        }
        Kind::Pickle => ("a plain pickle", "pickle.load(file)"),
        Kind::Gzip => ("a compressed file, such as the gzip of a pickle", "pickle.load(file)"),
    };
    let open = if kind == Kind::Gzip { "gzip.open" } else { "open" };
    let new = format!("{}.pt", name.rsplit('/').next().unwrap_or(name).split('.').next().unwrap_or("model"));
    Err(Error::input(format!("`{}` is {what}, which can only be read by running it", path.display()))
        .help("if you trust who made it, write it anew with these lines of Python, where its program can be imported:")
        .help("import gzip, pickle, torch")
        .help(format!("with {open}({name:?}, \"rb\") as file: saved = {load}"))
        .help(format!("torch.save(saved, {new:?})")))
}

/// Whether a `config.json` is of a type of Hugging Face's that is known. One program calls its own type as we do.
fn is_of_transformers(config: &Value, checkpoints: &[Checkpoint]) -> bool {
    let known = FORMATS.iter().any(|format| config["model_type"] == format.model_type());
    let ours = config["model_type"] == "tinylm" && checkpoints.iter().any(|c| schemes::of(c).is_ok());
    known && !ours
}

/// A model with the names of transformers, in one file or several.
fn of_transformers(description: &Description, checkpoints: &mut [Checkpoint]) -> Result<Transformer> {
    let Description { format, config, notes } = description;
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    let layout = fitting(config, checkpoints)?;
    let mut stored = format.tensors(&layout);
    // Files of a model without its output leave the prefix away.
    let is_there = |name: &str| checkpoints.iter().any(|c| c.tensors.contains_key(name));
    for tensor in stored.iter_mut().filter(|tensor| !is_there(&tensor.name)) {
        if let Some(short) = tensor.name.strip_prefix(format.prefix()).filter(|short| is_there(short)) {
            tensor.name = short.to_string();
        }
    }
    let used: HashSet<&str> = stored.iter().map(|s| s.name.as_str()).collect();
    let head = "lm_head.weight";
    for checkpoint in checkpoints.iter() {
        let constant = |name: &str| format.constants().iter().any(|end| name.ends_with(end));
        let names = checkpoint.tensors.keys().map(String::as_str);
        let unused = names.filter(|name| !used.contains(name) && !constant(name) && *name != head);
        unused_note(&checkpoint.file, unused.collect()).iter().for_each(|note| tracing::warn!("{note}"));
    }
    let transformer = filled(config, &stored, checkpoints, format.model_type())?;
    if config.tied && !used.contains(head) {
        for checkpoint in checkpoints.iter_mut().filter(|c| c.tensors.contains_key(head)) {
            expect_tied(&transformer, checkpoint, head)?;
        }
    }
    Ok(transformer)
}

/// The output of a tied model may be there once more, as long as it is the same.
fn expect_tied(transformer: &Transformer, checkpoint: &mut Checkpoint, head: &str) -> Result<()> {
    let embedding = &transformer.weights[transformer.layout.tokens.clone()];
    if checkpoint.numbers(head)? == embedding {
        return Ok(());
    }
    let what =
        format!("`{}`: tensor `{head}` is not the token embedding, which it is tied to", checkpoint.file);
    Err(Error::input(what).help("set \"tie_word_embeddings\": false in `config.json`"))
}

/// A model with the names of one of the programs that are known.
fn of_program(
    checkpoint: &mut Checkpoint,
    beside: Option<&Value>,
    options: &ImportOptions,
) -> Result<Transformer> {
    let scheme = schemes::of(checkpoint)?;
    let mut settings = checkpoint.settings.clone();
    let beside: Option<&Map<String, Value>> = beside.and_then(Value::as_object);
    for (key, value) in beside.into_iter().flatten() {
        settings.entry(key.as_str()).or_insert_with(|| value.clone());
    }
    let (mut config, notes) = scheme.config(checkpoint, &Said { user: &options.config, settings })?;
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    tie_equal(scheme, checkpoint, &mut config)?;
    let layout = fitting(&config, std::slice::from_ref(checkpoint))?;
    let stored = scheme.tensors(&layout);
    refuse_unknown(scheme, checkpoint, &config, &stored)?;
    let transformer = filled(&config, &stored, std::slice::from_mut(checkpoint), scheme.name)?;
    expect_sines(scheme, checkpoint, &transformer)?;
    Ok(transformer)
}

/// A program that shares its embedding with its output may have saved it twice.
fn tie_equal(scheme: &Scheme, checkpoint: &mut Checkpoint, config: &mut Config) -> Result<()> {
    let Some([embedding, head]) = scheme.shared().filter(|_| !config.tied) else { return Ok(()) };
    let shapes = [&embedding, &head].map(|name| checkpoint.tensors.get(name).map(|t| t.shape.clone()));
    if shapes[0] == shapes[1] {
        config.tied = checkpoint.numbers(&embedding)? == checkpoint.numbers(&head)?;
    }
    Ok(())
}

/// A tensor that the program does not have means that something else is computed.
fn refuse_unknown(
    scheme: &Scheme,
    checkpoint: &Checkpoint,
    config: &Config,
    stored: &[Stored],
) -> Result<()> {
    let used: HashSet<&str> = stored.iter().map(|s| s.name.as_str()).collect();
    let head = scheme.shared().filter(|_| config.tied).map(|[_, head]| head);
    let tensors = checkpoint.tensors.iter();
    let unknown = tensors.filter(|(name, tensor)| {
        !used.contains(name.as_str()) && head.as_ref() != Some(name) && !scheme.is_constant(name, tensor)
    });
    let mut unknown: Vec<&str> = unknown.map(|(name, _)| name.as_str()).collect();
    unknown.extend(checkpoint.others.iter().map(String::as_str));
    unknown.sort_unstable();
    if unknown.is_empty() {
        return Ok(());
    }
    let (file, name, some) = (&checkpoint.file, scheme.name, suggest::list(unknown.iter().take(8).copied()));
    let what = format!("`{file}` has {} tensors that models of {name} have not: {some}", unknown.len());
    Err(Error::input(what).help("its model computes something else: its weights would mean nothing here"))
}

/// The layout of `config`, when all its numbers can be in the files: each takes two bytes at least.
fn fitting(config: &Config, checkpoints: &[Checkpoint]) -> Result<Layout> {
    let bytes: u64 = checkpoints.iter().map(Checkpoint::bytes).sum();
    let tensors: usize = checkpoints.iter().map(|c| c.tensors.len()).sum();
    let file = &checkpoints[0].file;
    let computed = match config.position {
        Position::Rotary => config.seq_len.saturating_mul(config.d_head),
        Position::Sinusoidal => config.seq_len.saturating_mul(config.d_model),
        Position::Learned | Position::None => 0,
    };
    if computed > MOST_POSITIONS {
        return Err(Error::input(format!(
            "`{file}`: `seq_len` is {}, longer than what is computed",
            config.seq_len
        )));
    }
    let too_few = config.n_layer > tensors;
    let layout = if too_few { None } else { Some(Layout::new(config)) };
    layout.filter(|layout| layout.len as u64 <= bytes / 2).ok_or_else(|| {
        let (n_layer, width) = (config.n_layer, config.d_model);
        let what = format!("`{file}` has {tensors} tensors in {bytes} bytes, too few for {n_layer} layers");
        Error::input(format!("{what} of width {width}"))
    })
}

/// The model with the numbers of its tensors, each of which is in one of the files.
fn filled(config: &Config, stored: &[Stored], from: &mut [Checkpoint], program: &str) -> Result<Transformer> {
    let holder = |name: &str, from: &[Checkpoint]| from.iter().position(|c| c.tensors.contains_key(name));
    // Shapes first: a model of the wrong configuration is refused before its memory is taken.
    for tensor in stored {
        let (name, expected) = (&tensor.name, &tensor.shape);
        let at = holder(name, from).ok_or_else(|| schemes::missing(&from[0], program, name))?;
        let found = &from[at].tensors[name].shape;
        if found != expected {
            let what =
                format!("`{}`: tensor `{name}` has shape {found:?}, expected {expected:?}", from[at].file);
            return Err(Error::input(what).help("settings and weights must be of the same model"));
        }
    }
    let mut transformer = Transformer::zeros(config);
    for tensor in stored {
        let at = holder(&tensor.name, from).expect("each was found");
        let numbers = from[at].numbers(&tensor.name)?;
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        transformer.put(tensor, BlockType::F32, &bytes);
    }
    Ok(transformer)
}

/// The table of positions in a file is ours.
fn expect_sines(scheme: &Scheme, checkpoint: &mut Checkpoint, transformer: &Transformer) -> Result<()> {
    let Some(name) = scheme.table.filter(|name| checkpoint.tensors.contains_key(*name)) else {
        return Ok(());
    };
    let Some(ours) = transformer.positions() else { return Ok(()) };
    let theirs = checkpoint.numbers(name)?;
    let differs = |(a, b): (&f32, &f32)| (a - b).abs() > SINE_TOLERANCE;
    let width = transformer.config.d_model;
    match theirs.iter().zip(ours).position(differs) {
        None => Ok(()),
        Some(at) => {
            let (file, row, column) = (&checkpoint.file, at / width, at % width);
            let (found, due) = (theirs[at], ours[at]);
            let what = format!("`{file}`: tensor `{name}` has {found} in row {row}, column {column}");
            Err(Error::input(format!("{what}, where sines and cosines of positions give {due}")))
        }
    }
}
