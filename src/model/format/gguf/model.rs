//! A model's folder whose weights are in a `model.gguf`. The tokenizer lies beside it, as in every folder.

use std::path::Path;

use super::keys::{expect_same, metadata};
use super::vocabulary::NO_VOCABULARY;
use super::{Declared, File, GGUF_FILE, Tensor, VOCABULARY_KEY, Value, stored, write};
use crate::base::{Error, Result};
use crate::kernel::BlockType;
use crate::model::format::Stored;
use crate::model::{Config, Layout, Model, Role, Transformer};

/// Chooses the type of a tensor and rounds its rows, `[n, k]`, to it.
pub type Choose<'a> = dyn FnMut(&Stored, &[f32]) -> Result<(BlockType, Vec<u8>)> + 'a;

/// Gives the type and the bytes of a tensor.
pub(super) type Make<'a> = dyn FnMut(&Stored) -> Result<(BlockType, Vec<u8>)> + 'a;

impl Transformer {
    /// Reads the weights of a file that is of the architecture `config`, as its folder's `config.json` says.
    ///
    /// # Errors
    /// When the file does not read, is of another architecture, or a tensor is missing, of another shape, or
    /// no part of the model.
    pub(in crate::model::format) fn open_blocks(config: &Config, path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        expect_same(&file, config)?;
        Self::of_gguf(config, &file)
    }

    /// Reads the tensors of a file. A bias that the file lacks is 0.
    ///
    /// # Errors
    /// When one is missing, of another shape, or no part of the model.
    pub(super) fn of_gguf(config: &Config, file: &File) -> Result<Self> {
        let stored = stored(config, &Layout::new(config));
        // Shapes first: a model of another size is refused before its memory is taken.
        let tensors = tensors(&stored, file)?;
        let mut gpt = Transformer::zeros(config);
        for (stored, tensor) in stored.iter().zip(tensors) {
            if let Some(tensor) = tensor {
                gpt.put(stored, tensor.ty, &file.bytes(tensor)?);
            }
        }
        Ok(gpt)
    }

    /// The numbers of a tensor in the order of the file.
    pub(super) fn numbers(&self, stored: &Stored) -> Vec<f32> {
        stored.places(&self.layout).map(|place| self.weights[place]).collect()
    }
}

/// The tensors of the model in a file; `None` for a bias that it lacks.
fn tensors<'a>(stored: &[Stored], file: &'a File) -> Result<Vec<Option<&'a Tensor>>> {
    let found = stored.iter().map(|stored| tensor(stored, file)).collect::<Result<Vec<_>>>()?;
    let part_of = |name: &str| stored.iter().any(|stored| stored.name == name);
    match file.tensors.iter().find(|tensor| !part_of(&tensor.name)) {
        Some(Tensor { name, shape, .. }) => Err(file
            .wrong(format_args!("tensor `{name}` of shape {shape:?} is no part of the model"))
            .help("what it is for is not computed: use a model without it")),
        None => Ok(found),
    }
}

fn tensor<'a>(stored: &Stored, file: &'a File) -> Result<Option<&'a Tensor>> {
    let Stored { name, shape, .. } = stored;
    match file.find(name) {
        Some(tensor) if tensor.shape == *shape => Ok(Some(tensor)),
        Some(tensor) => {
            let what = format!("tensor `{name}` has shape {:?}, expected {shape:?}", tensor.shape);
            Err(file.wrong(what).help("its keys and its tensors must be of the same model"))
        }
        // llama.cpp adds those that there are.
        None if name.ends_with(".bias") && is_optional(name) => Ok(None),
        None => Err(file.wrong(format_args!("no tensor `{name}`, which is part of the model"))),
    }
}

/// Biases that are one by one optional in llama.cpp.
fn is_optional(name: &str) -> bool {
    ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        .iter()
        .any(|part| name.ends_with(&format!(".{part}.bias")))
}

impl Model {
    /// Writes a folder whose weights are a `model.gguf`, with the types and blocks that `choose` gives for
    /// matrices, the token embedding and the output. Learned positions are f16, all other tensors f32. Adapters are
    /// merged.
    ///
    /// # Errors
    /// When `choose` fails, a file cannot be written, or the weights are blocks already.
    pub fn save_blocks(&self, folder: &Path, choose: &mut Choose) -> Result<()> {
        let gpt = &self.transformer;
        if gpt.is_quantized() {
            return Err(Error::input("the weights are quantized already")
                .help("quantize the model that they were made of"));
        }
        let merged = gpt.lora.is_some().then(|| gpt.merged_copy());
        let gpt = merged.as_ref().unwrap_or(gpt);
        self.save_beside_weights(folder)?;
        write_weights(&gpt.config, &folder.join(GGUF_FILE), &mut |stored| {
            let numbers = gpt.numbers(stored);
            let ty = match gpt.layout.parameters[stored.parameter].role {
                Role::Matrix | Role::Embedding | Role::Head => return choose(stored, &numbers),
                Role::Position => BlockType::F16,
                Role::Vector | Role::Scalar => BlockType::F32,
            };
            Ok((ty, ty.encode(&numbers)?))
        })
    }

    /// Writes a folder whose `model.gguf` has the tensors of another GGUF file of this model as they are.
    ///
    /// # Errors
    /// When the file is of another model, or a file cannot be read or written.
    pub fn save_blocks_of(&self, from: &Path, folder: &Path) -> Result<()> {
        let (config, file) = (&self.transformer.config, File::open(from)?);
        tensors(&stored(config, &Layout::new(config)), &file)?;
        self.save_beside_weights(folder)?;
        write_weights(config, &folder.join(GGUF_FILE), &mut |stored| match file.find(&stored.name) {
            Some(tensor) => Ok((tensor.ty, file.bytes(tensor)?)),
            None => Ok((BlockType::F32, vec![0; BlockType::F32.bytes(stored.shape.iter().product())])),
        })
    }
}

/// Writes a file without a vocabulary.
fn write_weights(config: &Config, path: &Path, make: &mut Make) -> Result<()> {
    let mut metadata = metadata(config);
    metadata.push((VOCABULARY_KEY.into(), Value::from(NO_VOCABULARY)));
    write_tensors(config, path, &metadata, make)
}

/// Writes a file with these keys.
pub(super) fn write_tensors(
    config: &Config,
    path: &Path,
    metadata: &[(String, Value)],
    make: &mut Make,
) -> Result<()> {
    let stored = stored(config, &Layout::new(config));
    let declared = |s: &Stored| Declared { name: s.name.clone(), shape: s.shape.clone() };
    let declared: Vec<_> = stored.iter().map(declared).collect();
    write(path, metadata, &declared, &mut |i| make(&stored[i]).map_err(|e| name_tensor(&stored[i], e)))
}

fn name_tensor(stored: &Stored, error: Error) -> Error {
    match error.is_cancelled() {
        true => error,
        false => error.context(format!("tensor `{}` cannot be written", stored.name)),
    }
}

/// Whether it is a matrix that may be quantized: of a linear layer, the token embedding or the output.
pub(super) fn is_matrix(stored: &Stored, layout: &Layout) -> bool {
    matches!(layout.parameters[stored.parameter].role, Role::Matrix | Role::Embedding | Role::Head)
}
