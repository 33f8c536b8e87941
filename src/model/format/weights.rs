//! Weights as safetensors, under the names and in the shapes of a model type.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::Value;

use super::gguf::GGUF_FILE;
use super::{Description, Format, Stored};
use crate::base::{Error, Files, Result, fs, suggest};
use crate::corpus::input::InputFile;
use crate::corpus::json;
use crate::kernel::BlockType;
use crate::model::{CONFIG_FILE, Layout, Transformer, WEIGHTS_FILE};

/// The file that says which of several files of weights holds each tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The output projection, in each type of file.
const HEAD: &str = "lm_head.weight";

impl Transformer {
    /// Reads the configuration and the weights of a model's folder, which are safetensors, one file or several
    /// with an index, or a GGUF file.
    ///
    /// # Errors
    /// When one of them is missing, there are two files of weights, or the index is not as the files are, and as
    /// [`Transformer::load`].
    pub fn open(files: &Files) -> Result<Self> {
        let config = files.file(CONFIG_FILE)?;
        let Some(blocks) = files.find(GGUF_FILE) else {
            return match files.find(INDEX_FILE) {
                Some(index) if files.find(WEIGHTS_FILE).is_none() => Self::load_shards(config, files, index),
                _ => Self::load(config, files.file(WEIGHTS_FILE)?),
            };
        };
        if files.find(WEIGHTS_FILE).is_some() {
            let what = format!("`{}` has a `{WEIGHTS_FILE}` and a `{GGUF_FILE}`", files.label);
            return Err(Error::input(what).help("remove the one that is not to be read"));
        }
        let Description { config, notes, .. } = description(config)?;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        Self::open_blocks(&config, blocks)
    }

    /// Reads configuration and weights.
    ///
    /// # Errors
    /// When one does not read, a key asks for what can't be computed, or a tensor is missing or of another
    /// shape or type, or has a number that is not finite.
    pub fn load(config: &Path, weights: &Path) -> Result<Self> {
        let (name, bytes) = (weights.display().to_string(), fs::read(weights)?);
        let parts = vec![(name.clone(), tensors_of(&name, &bytes)?)];
        Self::load_from(config, |format| File { name: &name, parts, format })
    }

    /// [`Transformer::load`] from the files that an index names.
    fn load_shards(config: &Path, files: &Files, index: &Path) -> Result<Self> {
        let index = Index::read(index)?;
        let mut all = Vec::new();
        for shard in index.shards() {
            let path =
                files.file(shard).map_err(|e| e.context(format!("`{}` names `{shard}`", index.name)))?;
            all.push((path.display().to_string(), fs::read(path)?));
        }
        let parts = all.iter().map(|(name, bytes)| Ok((name.clone(), tensors_of(name, bytes)?)));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        index.expect(&parts)?;
        Self::load_from(config, |format| File { name: &index.name, parts, format })
    }

    fn load_from<'a>(config: &Path, open: impl FnOnce(&'static dyn Format) -> File<'a>) -> Result<Self> {
        let Description { format, config, notes } = description(config)?;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        let file = open(format);
        let layout = Layout::new(&config);
        let stored = format.tensors(&layout);
        // Shapes first: a model of the wrong configuration is refused before its memory is taken.
        for tensor in &stored {
            file.tensor(tensor)?;
        }
        file.expect_tied(&layout, &stored)?;
        file.unused(&stored).iter().for_each(|note| tracing::warn!("{note}"));
        let mut gpt = Transformer::zeros(&config);
        for tensor in &stored {
            let view = file.tensor(tensor)?;
            expect_finite(file.name, &tensor.name, &view)?;
            widen(&view, tensor.places(&layout), &mut gpt.weights);
        }
        Ok(gpt)
    }

    /// The weights as the type of file that holds the architecture has them, f32, little endian; adapters are
    /// merged into them, blocks dequantized.
    ///
    /// # Errors
    /// When they can't be laid out.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        self.to_safetensors_as(BlockType::F32)
    }

    /// [`Transformer::to_safetensors`] in f32, f16 or bf16, rounded to the nearest number.
    ///
    /// # Errors
    /// When a weight is too large for f16, or they can't be laid out.
    ///
    /// # Panics
    /// When `ty` is another type.
    pub fn to_safetensors_as(&self, ty: BlockType) -> Result<Vec<u8>> {
        if self.lora.is_some() {
            return self.merged_copy().to_safetensors_as(ty);
        }
        if self.is_quantized() {
            return self.dequantized_copy().to_safetensors_as(ty);
        }
        let stored = super::of(&self.config).tensors(&self.layout);
        if ty == BlockType::F16 {
            for stored in &stored {
                let large = |place: &usize| half::f16::from_f32(self.weights[*place]).is_infinite();
                if let Some(place) = stored.places(&self.layout).find(large) {
                    let what =
                        format!("tensor `{}` has {}, too large for f16", stored.name, self.weights[place]);
                    return Err(Error::input(what).help("write bf16 or f32"));
                }
            }
        }
        let tensors = stored.iter().map(|stored| (&stored.name, Written { stored, gpt: self, ty }));
        // What `transformers` asks for before it reads a file.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize(tensors, Some(metadata))
            .map_err(|e| Error::bug(format!("the weights can't be written: {e}")))
    }
}

/// What the `config.json` at `path` says.
fn description(path: &Path) -> Result<Description> {
    let (name, value) = read_json(path)?;
    super::read(&name, &value)
}

/// The JSON of a file, and what the file is called in messages.
pub(super) fn read_json(path: &Path) -> Result<(String, Value)> {
    let name = path.display().to_string();
    let text = fs::read_text(path)?;
    let body = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let value = json::parse_json(body, (text.len() - body.len()) as u64).map_err(|bad| {
        bad.into_error(&InputFile { name: name.clone(), path: path.to_path_buf(), size: text.len() as u64 })
    })?;
    Ok((name, value))
}

/// # Errors
/// When a tensor's numbers are of a type that is not read.
pub(super) fn expect_numbers(file: &str, name: &str, view: &TensorView) -> Result<()> {
    if matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Ok(());
    }
    let what = format!("is {:?}, expected F32, F16 or BF16", view.dtype());
    Err(Error::input(format!("`{file}`: tensor `{name}` {what}"))
        .help("convert the weights to one of these types first"))
}

/// # Errors
/// When a number is infinite or NaN: whatever is computed with it is worth nothing.
pub(super) fn expect_finite(file: &str, name: &str, view: &TensorView) -> Result<()> {
    let data = view.data();
    // All bits of the exponent are set.
    let bits = |exponent: u16| move |b: &[u8; 2]| u16::from_le_bytes(*b) & exponent == exponent;
    let found = match view.dtype() {
        Dtype::F16 => data.as_chunks().0.iter().position(bits(0x7c00)),
        Dtype::BF16 => data.as_chunks().0.iter().position(bits(0x7f80)),
        _ => data.as_chunks().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
    };
    match found {
        None => Ok(()),
        Some(at) => Err(Error::input(format!(
            "`{file}`: tensor `{name}` has a number that is NaN or infinite, at {at}"
        ))
        .help("the file is damaged, or its training diverged: take an earlier checkpoint")),
    }
}

fn tensors_of<'a>(name: &str, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| Error::input(format!("`{name}` is not a whole safetensors file: {e}")))
}

/// An [`INDEX_FILE`].
struct Index {
    name: String,
    /// The file of each tensor.
    files: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Index> {
        let (name, value) = read_json(path)?;
        let wrong = |what: String| Error::input(format!("`{name}`: {what}"));
        let Some(map) = value["weight_map"].as_object() else {
            return Err(wrong("`weight_map` is missing, which names the file of each tensor".into()));
        };
        let mut files = BTreeMap::new();
        for (tensor, file) in map {
            let plain = |file: &&str| !file.is_empty() && *file != ".." && !file.contains(['/', '\\']);
            let file = file.as_str().filter(plain).ok_or_else(|| {
                wrong(format!("the file of `{tensor}` is {file}, expected the name of a file beside"))
            })?;
            files.insert(tensor.clone(), file.to_string());
        }
        Ok(Index { name, files })
    }

    /// The files, each once.
    fn shards(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.files.values().map(String::as_str).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// # Errors
    /// When a tensor is not in its file, or in another. `parts` are in the order of [`Index::shards`].
    fn expect(&self, parts: &[(String, SafeTensors)]) -> Result<()> {
        let wrong = |what: String| Err(Error::input(format!("`{}`: {what}", self.name)));
        for (shard, (_, part)) in self.shards().into_iter().zip(parts) {
            let named = self.files.iter().filter(|(_, file)| *file == shard);
            if let Some((tensor, _)) = named.into_iter().find(|(tensor, _)| part.tensor(tensor).is_err()) {
                return wrong(format!("`{shard}` has no tensor `{tensor}`"));
            }
            for tensor in part.names() {
                match self.files.get(tensor) {
                    Some(file) if file == shard => {}
                    Some(file) => {
                        return wrong(format!("tensor `{tensor}` is in `{shard}`, expected in `{file}`"));
                    }
                    None => return wrong(format!("tensor `{tensor}` of `{shard}` is not named")),
                }
            }
        }
        Ok(())
    }
}

/// A tensor whose bytes are made when they are written.
struct Written<'a> {
    stored: &'a Stored,
    gpt: &'a Transformer,
    ty: BlockType,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self.ty {
            BlockType::F32 => Dtype::F32,
            BlockType::F16 => Dtype::F16,
            BlockType::Bf16 => Dtype::BF16,
            other => panic!("safetensors of {}", other.name()),
        }
    }

    fn shape(&self) -> &[usize] {
        &self.stored.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = self.stored.places(&self.gpt.layout).map(|place| self.gpt.weights[place]);
        let mut bytes = Vec::with_capacity(self.data_len());
        match self.ty {
            BlockType::F16 => {
                numbers.for_each(|x| bytes.extend_from_slice(&half::f16::from_f32(x).to_le_bytes()));
            }
            BlockType::Bf16 => {
                numbers.for_each(|x| bytes.extend_from_slice(&half::bf16::from_f32(x).to_le_bytes()));
            }
            _ => numbers.for_each(|x| bytes.extend_from_slice(&x.to_le_bytes())),
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.ty.bytes(self.stored.shape.iter().product())
    }
}

/// Weights, in one file or several.
struct File<'a> {
    /// The file, or the index of several.
    name: &'a str,
    /// Each with its name.
    parts: Vec<(String, SafeTensors<'a>)>,
    format: &'static dyn Format,
}

impl<'a> File<'a> {
    /// By its name with or without the prefix, which files of a model without its output leave away.
    fn find(&self, name: &str) -> Option<TensorView<'a>> {
        let short = name.strip_prefix(self.format.prefix()).unwrap_or(name);
        let find = |name: &str| self.parts.iter().find_map(|(_, tensors)| tensors.tensor(name).ok());
        find(name).or_else(|| find(short))
    }

    fn names(&self) -> Vec<&str> {
        self.parts.iter().flat_map(|(_, tensors)| tensors.names()).collect()
    }

    fn tensor(&self, stored: &Stored) -> Result<TensorView<'a>> {
        let (file, name, shape) = (self.name, &stored.name, &stored.shape);
        let view = self.find(name).ok_or_else(|| self.missing(name))?;
        if view.shape() != shape {
            let what = format!("has shape {:?}, expected {shape:?}", view.shape());
            return Err(Error::input(format!("`{file}`: tensor `{name}` {what}"))
                .help("`config.json` and the weights must be of the same model"));
        }
        expect_numbers(file, name, &view)?;
        Ok(view)
    }

    fn missing(&self, name: &str) -> Error {
        let mut names = self.names();
        names.sort_unstable();
        let (some, more) = (names.iter().take(4), names.len().saturating_sub(4));
        let error = Error::input(format!("`{}` has no tensor `{name}`", self.name));
        let error = match more {
            0 if names.is_empty() => error.help("it has none at all"),
            0 => error.help(format!("it has {}", suggest::list(some.copied()))),
            _ => error.help(format!("it has {} and {more} more", suggest::list(some.copied()))),
        };
        if name == HEAD {
            return error.help("is its output the token embedding? Then set \"tie_word_embeddings\": true");
        }
        error
    }

    /// The output of a tied model may be in the file once more, as long as it is the same.
    fn expect_tied(&self, layout: &Layout, stored: &[Stored]) -> Result<()> {
        let tied = layout.head == layout.tokens;
        let (Some(head), true) = (self.find(HEAD), tied) else { return Ok(()) };
        let embedding = stored.iter().find(|s| layout.parameters[s.parameter].range == layout.tokens);
        let embedding = self.tensor(embedding.expect("each model has an embedding"))?;
        if head.dtype() == embedding.dtype() && head.data() == embedding.data() {
            return Ok(());
        }
        let what =
            format!("`{}`: tensor `{HEAD}` is not the token embedding, which it is tied to", self.name);
        Err(Error::input(what)
            .help("set \"tie_word_embeddings\": false in `config.json`, or remove the tensor"))
    }

    /// What is said of tensors that are not part of the model, should there be any.
    fn unused(&self, stored: &[Stored]) -> Option<String> {
        let prefix = self.format.prefix();
        let used = |name: &str| {
            name == HEAD || stored.iter().any(|s| s.name == name || s.name.strip_prefix(prefix) == Some(name))
        };
        let constant = |name: &str| self.format.constants().iter().any(|end| name.ends_with(end));
        let names = self.names().into_iter();
        unused_note(self.name, names.filter(|name| !used(name) && !constant(name)).collect())
    }
}

/// What is said of tensors that are not part of a model, should there be any.
pub(super) fn unused_note(file: &str, mut unused: Vec<&str>) -> Option<String> {
    unused.sort_unstable();
    let (all, some) = (unused.len(), suggest::list(unused.iter().take(8).copied()));
    let what = if all == 1 { "tensor is" } else { "tensors are" };
    let more = if all > 8 { format!(" and {} more", all - 8) } else { String::new() };
    (all > 0).then(|| format!("`{file}`: {all} {what} not part of the model and not used: {some}{more}"))
}

/// Puts the numbers of a tensor to their places.
pub(super) fn widen(view: &TensorView, places: impl Iterator<Item = usize>, weights: &mut [f32]) {
    let data = view.data();
    match view.dtype() {
        Dtype::F16 => {
            let halves = data.as_chunks::<2>().0.iter().map(|b| f16(u16::from_le_bytes(*b)));
            places.zip(halves).for_each(|(place, x)| weights[place] = x);
        }
        Dtype::BF16 => {
            let halves = data.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)) << 16);
            places.zip(halves).for_each(|(place, x)| weights[place] = f32::from_bits(x));
        }
        _ => {
            let all = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            places.zip(all).for_each(|(place, x)| weights[place] = x);
        }
    }
}

/// A number of IEEE 754's binary16.
fn f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, bits >> 10 & 31, u32::from(bits & 1023));
    match exponent {
        // 2^-24 a step.
        0 => f32::from_bits(sign | (fraction as f32 / 16_777_216.0).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (u32::from(exponent) + 127 - 15) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::model::gpt2;

    #[test]
    fn every_half_is_widened_as_candle_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let halves = Tensor::from_raw_buffer(&bytes, DType::F16, &[65_536], &Device::Cpu).unwrap();
        let expected: Vec<f32> = halves.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        for (bits, expected) in (0..=u16::MAX).zip(expected) {
            let found = f16(bits);
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:x}");
        }
    }
    #[test]
    fn tensors_that_no_one_needs_are_counted_and_named() {
        let config = gpt2(5, 4, 1, 1, 3);
        let (gpt, format) = (Transformer::fresh(&config, 1), super::super::of(&config));
        let stored = format.tensors(&gpt.layout);
        let unused = |others: &[&str]| {
            let mut names: Vec<String> = stored.iter().map(|s| s.name.clone()).collect();
            names.extend(others.iter().map(|name| name.to_string()));
            let views =
                names.iter().map(|name| (name, TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
            let bytes = safetensors::serialize(views, None).unwrap();
            let parts = vec![("w".to_string(), SafeTensors::deserialize(&bytes).unwrap())];
            File { name: "w", parts, format }.unused(&stored)
        };
        assert_eq!(unused(&[]), None);
        assert_eq!(unused(&["transformer.h.0.attn.bias", "h.0.attn.masked_bias", "lm_head.weight"]), None);
        let found = unused(&["transformer.h.1.ln_1.weight", "score.weight"]).unwrap();
        let expected = "2 tensors are not part of the model and not used: \
                        `score.weight`, `transformer.h.1.ln_1.weight`";
        assert_eq!(found, format!("`w`: {expected}"));
    }
}
