//! The weights of a model: a safetensors file, of which only the header is read, and its `config.json`; what
//! is shown of a GGUF file, too.
//!
//! The form is that of <https://huggingface.co/docs/safetensors>: 8 bytes with the length of a JSON
//! header, the header, the bytes of all tensors without gaps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Options, Page, json, plain};
use crate::base::table::Table;
use crate::base::{Error, Result, fs, units};
use crate::model::{ADAPTER_CONFIG_FILE, Config};

#[derive(Debug, Clone, Serialize)]
pub struct ModelSummary {
    /// A weight that two tensors share is counted once.
    pub parameters: u64,
    pub tensor_bytes: u64,
    /// In the order of their names, numbers by their value.
    pub tensors: Vec<Tensor>,
    /// The output projection, when it holds the same numbers as the token embedding.
    pub tied: Option<Tied>,
    /// How many tokens the vocabulary of a GGUF file has.
    pub tokens: Option<u64>,
    /// The metadata of the header, long lists shortened.
    pub metadata: BTreeMap<String, String>,
    /// `config.json`.
    pub config: Option<Value>,
    /// What of a model it adapts, and how: low-rank adapters, instead of a model.
    pub adapter: Option<Adapter>,
    /// What the model is made of, where `config.json` says it in a way that is known.
    pub architecture: Option<String>,
}

/// What the `adapter_config.json` of low-rank adapters (LoRA) says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Adapter {
    pub rank: Option<u64>,
    pub alpha: Option<f64>,
    pub dropout: Option<f64>,
    /// Names of modules, or an expression for them.
    pub targets: Vec<String>,
}

impl Adapter {
    fn of(config: &Value) -> Self {
        let targets = match &config["target_modules"] {
            Value::Array(all) => all.iter().filter_map(|t| t.as_str().map(str::to_string)).collect(),
            Value::String(expression) => vec![expression.clone()],
            _ => Vec::new(),
        };
        let float = |key: &str| config[key].as_f64();
        Adapter {
            rank: config["r"].as_u64(),
            alpha: float("lora_alpha"),
            dropout: float("lora_dropout"),
            targets,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub bytes: u64,
    #[serde(skip)]
    pub(super) start: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tied {
    pub output: String,
    pub embedding: String,
}

/// The name of a model's configuration.
pub(super) const CONFIG: &str = "config.json";

/// The longest header (the limit of the safetensors library).
const LONGEST_HEADER: u64 = 100_000_000;

/// 8 bytes that are text would be a far larger length than that of a header; behind a header's stands an
/// object.
pub(super) fn is_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    length.is_some_and(|n| (2..=LONGEST_HEADER).contains(&n)) && head.get(8) == Some(&b'{')
}

/// # Errors
/// When the header is damaged, or the file is not as long as the header says.
pub(super) fn read(path: &Path, options: &Options) -> Result<ModelSummary> {
    let mut file = fs::open(path)?;
    let size = fs::size(path)?;
    let Header { data, declared, metadata } = Header::read(&mut file, path)?;
    let tensors = declared.into_iter().map(|(name, declared)| declared.tensor(name));
    let mut tensors: Vec<Tensor> = tensors.collect::<Result<_>>()?;
    tensors.sort_by_key(|tensor| natural(&tensor.name));
    whole(&tensors, size - data)?;
    let tied = tied(&mut file, path, data, &tensors)?;
    let twice = tied.as_ref().and_then(|tied| tensors.iter().find(|t| t.name == tied.output));
    let parameters = tensors.iter().map(Tensor::elements).sum::<u64>() - twice.map_or(0, Tensor::elements);
    let is_adapter = tensors.iter().any(|tensor| tensor.name.contains(".lora_A."));
    let beside = path.with_file_name(if is_adapter { ADAPTER_CONFIG_FILE } else { CONFIG });
    let config = options.config.as_deref().or(Some(beside.as_path()).filter(|p| p.is_file()));
    let config = config.map(json::read).transpose()?;
    // Of a type that tinylm does not compute, the keys alone are shown.
    let architecture = config.as_ref().and_then(|config| Config::from_json(CONFIG, config).ok());
    Ok(ModelSummary {
        parameters,
        tensor_bytes: size - data,
        tensors,
        tied,
        tokens: None,
        metadata,
        architecture: architecture.map(|config| config.describe()),
        adapter: is_adapter.then(|| Adapter::of(config.as_ref().unwrap_or(&Value::Null))),
        config,
    })
}

fn read_at(file: &mut File, path: &Path, start: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| Error::io("read", path, &e))?;
    Ok(bytes)
}

/// A tensor's entry in the header.
#[derive(Deserialize)]
pub(super) struct Declared {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub data_offsets: (u64, u64),
}

/// What the header of a safetensors file declares.
struct Header {
    /// The byte at which the tensors begin.
    data: u64,
    declared: BTreeMap<String, Declared>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    fn read(file: &mut File, path: &Path) -> Result<Self> {
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|e| Error::io("read", path, &e))?;
        let data = u64::from_le_bytes(length).saturating_add(8);
        let size = fs::size(path)?;
        if data > size {
            return Err(Error::input(format!(
                "this model is cut off: its header should end at byte {data}, and the file has {size}"
            )));
        }
        let header = read_at(file, path, 8, data - 8)?;
        let unreadable = |e: serde_json::Error| Error::input("the header of this model is damaged").cause(e);
        let mut entries: BTreeMap<String, Value> = serde_json::from_slice(&header).map_err(unreadable)?;
        let metadata = match entries.remove("__metadata__") {
            Some(value) => serde_json::from_value(value).map_err(unreadable)?,
            None => BTreeMap::new(),
        };
        let declared = entries.into_iter().map(|(name, value)| {
            let wrong = |e| Error::input(format!("the tensor `{name}` is declared wrongly")).cause(e);
            let declared: Declared = serde_json::from_value(value).map_err(wrong)?;
            Ok((name, declared))
        });
        Ok(Header { data, declared: declared.collect::<Result<_>>()?, metadata })
    }
}

/// The byte at which the tensors of a safetensors file begin, and what is declared of each, which fits the file.
///
/// # Errors
/// As [`read`].
pub(super) fn declared(path: &Path) -> Result<(u64, BTreeMap<String, Declared>)> {
    let mut file = fs::open(path)?;
    let Header { data, declared, .. } = Header::read(&mut file, path)?;
    let tensors = declared.iter().map(|(name, declared)| declared.tensor(name.clone()));
    whole(&tensors.collect::<Result<Vec<_>>>()?, fs::size(path)? - data)?;
    Ok((data, declared))
}

impl Declared {
    fn tensor(&self, name: String) -> Result<Tensor> {
        let (start, end) = self.data_offsets;
        let bits = self.shape.iter().try_fold(self.dtype.bitsize() as u64, |bits, n| bits.checked_mul(*n));
        let bytes = end.checked_sub(start);
        if bits.is_none() || bytes.and_then(|b| b.checked_mul(8)) != bits {
            return Err(Error::input(format!(
                "the tensor `{name}`, {:?} {:?}, does not fit its bytes {start}..{end}",
                self.dtype, self.shape
            )));
        }
        let dtype = format!("{:?}", self.dtype);
        Ok(Tensor { name, dtype, shape: self.shape.clone(), bytes: end - start, start })
    }
}

/// The tensors lie one after the other from the first byte of the data to the last.
fn whole(tensors: &[Tensor], available: u64) -> Result<()> {
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| (tensor.start, tensor.bytes));
    let mut end = 0;
    for tensor in order {
        if tensor.start != end {
            let Tensor { name, start, .. } = tensor;
            return Err(Error::input(format!("the tensor `{name}` begins at byte {start}, expected {end}")));
        }
        end += tensor.bytes;
    }
    if end != available {
        let what = if available < end { "cut off" } else { "followed by other bytes" };
        return Err(Error::input(format!(
            "this model is {what}: {available} bytes of tensors, expected {end}"
        )));
    }
    Ok(())
}

/// An output projection whose bytes are those of a token embedding.
fn tied(file: &mut File, path: &Path, data: u64, tensors: &[Tensor]) -> Result<Option<Tied>> {
    let ends = |tensor: &Tensor, names: &[&str]| names.iter().any(|name| tensor.name.ends_with(name));
    let outputs = tensors.iter().filter(|t| ends(t, &["lm_head.weight", "output.weight", "head.weight"]));
    for output in outputs {
        let embeds =
            ["wte.weight", "embed_tokens.weight", "embedding.weight", "embeddings.weight", "embed.weight"];
        let twin = |t: &&Tensor| ends(t, &embeds) && t.shape == output.shape && t.dtype == output.dtype;
        for embedding in tensors.iter().filter(twin) {
            let bytes = read_at(file, path, data + output.start, output.bytes)?;
            if bytes == read_at(file, path, data + embedding.start, embedding.bytes)? {
                return Ok(Some(Tied { output: output.name.clone(), embedding: embedding.name.clone() }));
            }
        }
    }
    Ok(None)
}

/// A key by which `h.2` comes before `h.10`.
fn natural(name: &str) -> Vec<(u64, String)> {
    let part = |part: &str| part.parse().map_or((u64::MAX, part.to_string()), |n| (n, String::new()));
    name.split('.').map(part).collect()
}

impl Tensor {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl ModelSummary {
    pub(super) fn summary(&self) -> String {
        if let (Some(tokens), true) = (self.tokens, self.tensors.is_empty()) {
            return format!("vocabulary of {} tokens", units::count(tokens));
        }
        let what = match &self.adapter {
            Some(Adapter { rank: Some(rank), .. }) => format!("adapter of rank {rank}, "),
            Some(_) => "adapter of ".to_string(),
            None => "model of ".to_string(),
        };
        format!("{what}{} parameters in {} tensors", units::count(self.parameters), self.tensors.len())
    }

    /// How many tensors there are of each type, when there are several.
    fn types(&self) -> Option<String> {
        let mut types: BTreeMap<&str, usize> = BTreeMap::new();
        self.tensors.iter().for_each(|tensor| *types.entry(&tensor.dtype).or_default() += 1);
        let all: Vec<String> = types.iter().map(|(ty, n)| format!("{n} of {ty}")).collect();
        (all.len() > 1).then(|| all.join(", "))
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.field("parameters", Some(units::count(self.parameters)));
        page.field("tensors", Some(format!("{}, {}", self.tensors.len(), units::bytes(self.tensor_bytes))));
        page.field("types", self.types());
        page.field("vocabulary", self.tokens.map(|tokens| format!("{} tokens", units::count(tokens))));
        let tied =
            self.tied.as_ref().map(|tied| format!("{} = {}, counted once", tied.output, tied.embedding));
        page.field("tied", tied);
        page.field("architecture", self.architecture.as_ref());
        if let Some(adapter) = &self.adapter {
            page.field("rank", adapter.rank);
            page.field("alpha", adapter.alpha);
            page.field("dropout", adapter.dropout);
            page.field("targets", Some(adapter.targets.join(", ")).filter(|targets| !targets.is_empty()));
        }
        page.pairs(&self.metadata);
        if let Some(Value::Object(config)) = &self.config {
            let pairs: Vec<String> =
                config.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
            page.field("config", Some(pairs.join(" ")));
        }
        let mut table = Table::new(["tensor", "dtype", ">shape", ">parameters", ">size"]);
        for tensor in &self.tensors {
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            table.push([
                tensor.name.clone(),
                tensor.dtype.clone(),
                shape.join(" × "),
                units::count(tensor.elements()),
                units::bytes(tensor.bytes),
            ]);
        }
        page.table(&table);
    }
}
