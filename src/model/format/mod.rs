//! Architectures and weights as other programs have them: the model types of Hugging Face (`config.json`, and
//! names and shapes of tensors), a file each, and the [`CONTAINERS`] that models are stored in, a file each.
//!
//! A model is written as the first type of [`FORMATS`] that computes the same; what none of them holds is
//! written as `tinylm`. What a type has no key for and what only training needs (how weights were
//! initialized) stands in an object `tinylm`, which other programs pass over.

mod adapter;
mod container;
mod fields;
pub mod gguf;
mod go;
mod gpt2;
mod hf;
mod llama;
mod llama2c;
mod numbers;
mod pytorch;
mod qwen3;
mod rope;
mod stored;
mod tinylm;
mod weights;

use serde_json::{Value, json};

pub use self::adapter::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};
pub use self::container::{
    CONTAINERS, Container, ExportOptions, ImportOptions, Imported, Outgoing, container, detect,
};
use self::fields::Fields;
pub use self::go::GO_FILE;
pub use self::llama2c::LLAMA2C_FILE;
pub use self::stored::Stored;
use super::{Activation, Config, Layout};
use crate::base::{Error, Result, suggest};

/// One `model_type`.
pub trait Format: Sync {
    fn model_type(&self) -> &'static str;

    /// The class of `transformers` that computes it.
    fn architecture(&self) -> &'static str;

    /// Our fields by its keys, for messages.
    fn keys(&self) -> &'static [(&'static str, &'static str)];

    /// Whether a model of this type computes what `config` says.
    fn holds(&self, config: &Config) -> bool;

    /// The keys that say what is computed: an object.
    fn write(&self, config: &Config) -> Value;

    /// What [`Format::write`] wrote, or another program.
    ///
    /// # Errors
    /// Names a key that is missing, odd, or asks for what can't be computed.
    fn read(&self, fields: &Fields) -> Result<Config>;

    /// Where each tensor of the file belongs.
    fn tensors(&self, layout: &Layout) -> Vec<Stored>;

    /// What begins the names of tensors, and what files of the model without its output leave away.
    fn prefix(&self) -> &'static str;

    /// Ends of the names of tensors that files of this type may hold and that are not learned: masks and
    /// frequencies, which are computed.
    fn constants(&self) -> &'static [&'static str];
}

/// All of them, the one to be preferred first.
pub static FORMATS: [&dyn Format; 4] = [&gpt2::Gpt2, &llama::Llama, &qwen3::Qwen3, &tinylm::Tinylm];

/// The type that a model of this architecture is written as.
pub fn of(config: &Config) -> &'static dyn Format {
    *FORMATS.iter().find(|f| f.holds(config)).expect("the last one holds everything")
}

/// What a `config.json` says.
pub struct Description {
    pub format: &'static dyn Format,
    pub config: Config,
    /// Keys that nothing here knows, and values that were not taken as they are: to be told to the user.
    pub notes: Vec<String>,
}

/// Our own key.
const OURS: &str = "tinylm";

/// Fields that change nothing of what a model computes and that a type may have no key for.
const TRAINING: [&str; 2] = ["init", "rope_base"];

/// The `config.json` of `config`.
///
/// # Errors
/// When `config` can't be read back, which is a bug.
pub fn to_json(config: &Config, bos: Option<u32>, eos: Option<u32>) -> Result<Value> {
    let format = of(config);
    let mut value = json!({ "architectures": [format.architecture()], "model_type": format.model_type() });
    for (key, part) in format.write(config).as_object().into_iter().flatten() {
        value[key] = part.clone();
    }
    value["bos_token_id"] = json!(bos);
    value["eos_token_id"] = json!(eos);
    value["torch_dtype"] = json!("float32");
    let read = read("config.json", &value).map_err(|e| Error::bug(e.message().to_string()))?.config;
    let (own, read) = (json!(config), json!(read));
    for field in TRAINING.into_iter().filter(|f| own[f] != read[f]) {
        value[OURS][field] = own[field].clone();
    }
    Ok(value)
}

/// # Errors
/// When `value` is no type that is known, a key is missing or odd, or asks for what can't be computed.
pub fn read(file: &str, value: &Value) -> Result<Description> {
    let fields = Fields::of(file, value)?;
    let format = format_of(&fields)?;
    if fields.get("quantization_config").is_some() {
        let read = "only weights of F32, F16 and BF16 are read";
        return Err(fields
            .wrong("quantization_config", read)
            .help("use the model's weights before quantization"));
    }
    let mut config = format.read(&fields)?;
    if let Some(own) = fields.object(OURS)? {
        for (field, value) in own.all() {
            if !TRAINING.contains(&field) {
                return Err(own.wrong(field, format_args!("expected {}", suggest::list(TRAINING))));
            }
            config = tinylm::with_field(&config, &own, field, value)?;
        }
    }
    config.validate().map_err(|invalid| {
        let name = invalid.param.as_str();
        let key = format.keys().iter().find(|(ours, _)| *ours == name).map_or(name, |(_, key)| key);
        Error::input(format!("`{file}`: `{key}` {}", invalid.why))
    })?;
    let mut notes = fields.notes();
    if let Some(unknown) = fields.unknown() {
        notes.push(unknown);
    }
    Ok(Description { format, config, notes })
}

fn format_of(fields: &Fields) -> Result<&'static dyn Format> {
    let names = || FORMATS.iter().map(|f| f.model_type());
    let found = fields.text("model_type", "")?;
    FORMATS.iter().find(|f| f.model_type() == found).copied().ok_or_else(|| {
        fields
            .wrong("model_type", format_args!("expected one of {}", suggest::list(names())))
            .suggest(suggest::closest(found, names()))
    })
}

impl Config {
    /// The `config.json` of the type that [`of`] chooses.
    ///
    /// # Errors
    /// As [`to_json`].
    pub fn to_json(&self, bos: Option<u32>, eos: Option<u32>) -> Result<Value> {
        to_json(self, bos, eos)
    }

    /// Reads what [`Config::to_json`] writes, or what another program wrote.
    ///
    /// # Errors
    /// As [`read`].
    pub fn from_json(file: &str, value: &Value) -> Result<Self> {
        Ok(read(file, value)?.config)
    }
}

/// Names of activations in `transformers`; of several that mean the same, the first is written.
const ACTIVATIONS: [(&str, Activation); 10] = [
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("relu2", Activation::Relu2),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

fn activation_name(activation: Activation) -> &'static str {
    let found = ACTIVATIONS.iter().find(|(_, a)| *a == activation);
    found.expect("each activation has a name").0
}

fn activation(fields: &Fields, key: &'static str, default: &'static str) -> Result<Activation> {
    let name = fields.text(key, default)?;
    ACTIVATIONS.iter().find(|(n, _)| *n == name).map(|(_, a)| *a).ok_or_else(|| {
        let names = ACTIVATIONS.iter().map(|(n, _)| *n);
        fields.wrong(key, format_args!("what is computed is {}", suggest::list(names)))
    })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_adapters;
#[cfg(test)]
mod tests_of_folders;
#[cfg(test)]
mod tests_of_import;
#[cfg(test)]
mod tests_of_llama2c;
#[cfg(test)]
mod tests_of_go;
