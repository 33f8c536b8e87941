//! How programs that train with PyTorch name their tensors, and what they compute.
//!
//! A table a program: our modules, and theirs. Sizes are those of the tensors; what shapes don't tell (heads,
//! the longest sequence) the checkpoint's settings or the user says.

use serde_json::{Map, Value, json};

use super::checkpoint::{Checkpoint, Tensor};
use crate::base::{Error, Result, suggest};
use crate::model::format::{ACTIVATIONS, Stored};
use crate::model::{Activation, Config, Init, Layout, Position, Role, gpt2, llama, post_norm};

/// How a program names its tensors.
pub struct Scheme {
    /// Whose it is, for messages.
    pub name: &'static str,
    /// A tensor that no other program's models have.
    mark: &'static str,
    /// Before the index of a block.
    blocks: &'static str,
    /// Modules within a block: ours, and theirs by the matrices that lie side by side in ours. `*` is `weight` or
    /// `bias`.
    block: &'static [(&'static str, &'static [&'static str])],
    /// Modules outside of blocks.
    outside: &'static [(&'static str, &'static str)],
    /// The table of positions that are not learned, which must be ours.
    pub table: Option<&'static str>,
    /// Ends of names of tensors that are computed: masks.
    constants: &'static [&'static str],
    /// What it computes, with sizes of 1.
    config: Config,
    /// Fields of ours that the program lets its user choose and that a file may lack: those that it then takes.
    usual: &'static [&'static str],
}

/// Linear layers of a block that most programs name alike.
const APART: &[&str] = &["attention.q_proj.*", "attention.k_proj.*", "attention.v_proj.*"];

/// nanoGPT's names but those of norms.
const GPT_OUTSIDE: &[(&str, &str)] = &[
    ("transformer.wte", "transformer.wte.*"),
    ("transformer.wpe", "transformer.wpe.*"),
    ("transformer.ln_f", "transformer.ln_f.*"),
    ("lm_head", "lm_head.*"),
];

const EXACT: Config = Config { activation: Activation::Gelu, ..gpt2(1, 1, 1, 1, 1) };

pub static SCHEMES: [Scheme; 6] = [
    Scheme {
        name: "nanoGPT",
        mark: "transformer.h.0.ln_1.weight",
        blocks: "transformer.h.",
        block: &[
            ("ln_1", &["ln_1.*"]),
            ("attn.c_attn", &["attn.c_attn.*"]),
            ("attn.c_proj", &["attn.c_proj.*"]),
            ("ln_2", &["ln_2.*"]),
            ("mlp.c_fc", &["mlp.c_fc.*"]),
            ("mlp.c_proj", &["mlp.c_proj.*"]),
        ],
        outside: GPT_OUTSIDE,
        table: None,
        constants: &[".attn.bias"],
        config: EXACT,
        usual: &[],
    },
    Scheme {
        name: "HarshTomar1234/SLMs",
        mark: "transformer.h.0.ln1.weight",
        blocks: "transformer.h.",
        block: &[
            ("ln_1", &["ln1.*"]),
            ("attn.c_attn", &["attn.c_attn.*"]),
            ("attn.c_proj", &["attn.c_proj.*"]),
            ("ln_2", &["ln2.*"]),
            ("mlp.c_fc", &["mlp.c_fc.*"]),
            ("mlp.c_proj", &["mlp.c_proj.*"]),
        ],
        outside: GPT_OUTSIDE,
        table: None,
        constants: &[".attn.bias"],
        config: EXACT,
        usual: &[],
    },
    Scheme {
        name: "ThomasCode23/TinyLM",
        mark: "layers.0.attn.in_proj_weight",
        blocks: "layers.",
        block: &[
            ("ln_1", &["ln1.*"]),
            ("attn.c_attn", &["attn.in_proj_*"]),
            ("attn.c_proj", &["attn.out_proj.*"]),
            ("ln_2", &["ln2.*"]),
            ("mlp.c_fc", &["ffn.0.*"]),
            ("mlp.c_proj", &["ffn.2.*"]),
        ],
        outside: &[
            ("transformer.wte", "embedding.*"),
            ("transformer.ln_f", "ln_final.*"),
            ("lm_head", "output.*"),
        ],
        table: Some("pos_encoder.pe"),
        constants: &[],
        config: Config { init: Init::Normal, ..post_norm(1, 1, 1, 1, 1) },
        usual: &[],
    },
    Scheme {
        name: "lyuzlion/Tiny-Language-Model (tiny_lm)",
        mark: "blocks.0.attention.w_q.weight",
        blocks: "blocks.",
        block: &[
            ("ln_1", &["norm1.*"]),
            ("attn.c_attn", &["attention.w_q.*", "attention.w_k.*", "attention.w_v.*"]),
            ("attn.c_proj", &["attention.w_o.*"]),
            ("ln_2", &["norm2.*"]),
            ("mlp.c_fc", &["feed_forward.linear1.*"]),
            ("mlp.c_proj", &["feed_forward.linear2.*"]),
        ],
        outside: &[
            ("transformer.wte", "token_embedding.*"),
            ("transformer.wpe", "positional_encoding.position_embeddings.*"),
            ("transformer.ln_f", "norm.*"),
            ("lm_head", "lm_head.*"),
        ],
        table: Some("positional_encoding.pe"),
        constants: &[],
        config: Config { embed_scale: true, ..post_norm(1, 1, 1, 1, 1) },
        usual: &[],
    },
    Scheme {
        name: "lyuzlion/Tiny-Language-Model (TinyLMForCausalLM)",
        mark: "model.layers.0.attention.q_proj.weight",
        blocks: "model.layers.",
        block: &[
            ("ln_1", &["norm1.*"]),
            ("attn.c_attn", APART),
            ("attn.c_proj", &["attention.out_proj.*"]),
            ("ln_2", &["norm2.*"]),
            ("mlp.c_fc", &["ffn.gate_proj.*", "ffn.up_proj.*"]),
            ("mlp.c_proj", &["ffn.down_proj.*"]),
        ],
        outside: &[
            ("transformer.wte", "model.embed_tokens.*"),
            ("transformer.ln_f", "model.norm.*"),
            ("lm_head", "lm_head.*"),
        ],
        table: None,
        constants: &["model.freqs_cos", "model.freqs_sin"],
        config: Config { rope_base: 1e6, init: Init::Normal, ..llama(1, 1, 1, 1, 1) },
        usual: &["rope_base", "norm_eps"],
    },
    Scheme {
        name: "Ardelyo/tinyLM",
        mark: "layers.0.attention.q_proj.weight",
        blocks: "layers.",
        block: &[
            ("ln_1", &["ln1.*"]),
            ("attn.c_attn", APART),
            ("attn.c_proj", &["attention.out_proj.*"]),
            ("ln_2", &["ln2.*"]),
            ("mlp.c_fc", &["mlp.fc1.*"]),
            ("mlp.c_proj", &["mlp.fc2.*"]),
        ],
        outside: &[
            ("transformer.wte", "token_embedding.*"),
            ("transformer.wpe", "position_embedding.*"),
            ("transformer.ln_f", "ln_f.*"),
            ("lm_head", "lm_head.*"),
        ],
        table: None,
        constants: &[],
        config: Config { init: Init::Normal, ..EXACT },
        usual: &[],
    },
];

/// The keys of settings, and the fields of ours that they give.
const KEYS: [(&str, &[&str]); 11] = [
    ("n_head", &["n_head", "n_heads", "nhead", "num_heads", "num_attention_heads"]),
    ("n_kv_head", &["n_kv_head", "n_kv_heads", "num_kv_heads", "num_key_value_heads"]),
    ("n_layer", &["n_layer", "n_layers", "num_layers", "num_hidden_layers"]),
    ("d_model", &["d_model", "n_embd", "hidden_size"]),
    ("d_ff", &["d_ff", "dim_feedforward", "intermediate_size"]),
    ("vocab_size", &["vocab_size"]),
    ("seq_len", &["seq_len", "block_size", "max_seq_len", "max_length", "max_position_embeddings"]),
    ("dropout", &["dropout", "dropout_p"]),
    ("rope_base", &["rope_base", "rope_theta"]),
    ("norm_eps", &["norm_eps", "rms_norm_eps"]),
    ("activation", &["activation", "hidden_act"]),
];

/// Fields that the tensors tell, and the user cannot say otherwise.
const TOLD: [&str; 18] = [
    "vocab_size",
    "d_model",
    "n_layer",
    "n_kv_head",
    "d_head",
    "d_ff",
    "position",
    "norm",
    "norm_weight",
    "norm_bias",
    "qk_norm",
    "embed_norm",
    "residual_mix",
    "gated",
    "attn_bias",
    "mlp_bias",
    "head_bias",
    "tied",
];

/// What is said of a model beside its tensors.
pub struct Said<'a> {
    /// By the user, as fields of [`Config`].
    pub user: &'a Map<String, Value>,
    /// By the checkpoint, and a file beside it; the former counts.
    pub settings: Map<String, Value>,
}

/// The program whose names the tensors have.
///
/// # Errors
/// When it is none that is known.
pub fn of(checkpoint: &Checkpoint) -> Result<&'static Scheme> {
    SCHEMES.iter().find(|s| checkpoint.tensors.contains_key(s.mark)).ok_or_else(|| unknown(checkpoint))
}

fn unknown(checkpoint: &Checkpoint) -> Error {
    let mut names: Vec<&str> = checkpoint.tensors.keys().map(String::as_str).collect();
    names.sort_unstable();
    let known = SCHEMES.iter().map(|s| format!("{} (`{}`)", s.name, s.mark)).collect::<Vec<_>>();
    let what = format!("`{}` has tensors of no program that is known", checkpoint.file);
    let error = Error::input(what)
        .help(format!("it has {}", suggest::list(names.iter().take(6).copied())))
        .help(format!("known are {}", known.join(", ")));
    if names.iter().any(|name| name.contains("lora_")) {
        return error.help("these are low-rank adapters: merge them into their model first");
    }
    error.help("a model of transformers needs its `config.json` beside `pytorch_model.bin`")
}

impl Scheme {
    /// Their names of a module of ours.
    fn names_of(&self, module: &str) -> Option<Vec<String>> {
        if let Some((block, part)) =
            module.strip_prefix("transformer.h.").and_then(|rest| rest.split_once('.'))
        {
            let (_, names) = self.block.iter().find(|(ours, _)| *ours == part)?;
            return Some(names.iter().map(|name| format!("{}{block}.{name}", self.blocks)).collect());
        }
        let (_, name) = self.outside.iter().find(|(ours, _)| *ours == module)?;
        Some(vec![name.to_string()])
    }

    /// Their first name of a parameter of ours.
    fn name_of(&self, module: &str, kind: &str) -> Option<String> {
        Some(self.names_of(module)?.first()?.replace('*', kind))
    }

    /// Where each tensor belongs: matrices are `[out, in]`.
    pub fn tensors(&self, layout: &Layout) -> Vec<Stored> {
        let mut stored = Vec::new();
        // A bias is divided as the matrix before it.
        let mut columns = Vec::new();
        for (i, p) in layout.parameters.iter().enumerate() {
            let (module, kind) = p.name.rsplit_once('.').expect("a module and what it is of it");
            let names = self.names_of(module).expect("a module that the program has");
            let names = names.iter().map(|name| name.replace('*', kind));
            if p.role == Role::Matrix {
                columns.clone_from(&p.columns);
            }
            if p.role != Role::Matrix && names.len() == 1 {
                stored.extend(names.map(|name| Stored::whole(p, i, name)));
                continue;
            }
            let whole = 0..p.shape[p.shape.len() - 1];
            let columns = if names.len() == 1 { vec![whole] } else { columns.clone() };
            stored.extend(names.zip(columns).map(|(name, columns)| Stored::part(p, i, name, columns)));
        }
        stored
    }

    /// Their names of the token embedding and of the output projection, where the program shares one matrix.
    pub fn shared(&self) -> Option<[String; 2]> {
        let name = |module| self.name_of(module, "weight");
        self.config.tied.then(|| Some([name("transformer.wte")?, name("lm_head")?]))?
    }

    /// Whether a tensor is computed rather than learned.
    pub fn is_constant(&self, name: &str, tensor: &Tensor) -> bool {
        Some(name) == self.table
            || self.constants.iter().any(|end| name.ends_with(end)) && tensor.shape.len() != 1
    }

    /// The architecture, and what is to be told to the user of how it was found.
    ///
    /// # Errors
    /// When a tensor or a setting is missing, or two of them contradict each other.
    pub fn config(&'static self, checkpoint: &Checkpoint, said: &Said) -> Result<(Config, Vec<String>)> {
        let sizes = Sizes { scheme: self, checkpoint };
        let settings = Settings { file: &checkpoint.file, said };
        settings.refuse_scaling()?;
        let config = sizes.config(&settings)?;
        let notes = self.usual.iter().filter(|field| settings.find(field).is_none());
        let own = json!(config);
        let notes = notes.map(|field| {
            let (file, name, value) = (&checkpoint.file, self.name, &own[*field]);
            format!("`{file}` does not say `{field}`: it is taken to be {value}, as {name} has it")
        });
        let config = settings.overlay(config)?;
        config
            .validate()
            .map_err(|e| Error::input(format!("`{}`: `{}` {}", checkpoint.file, e.param, e.why)))?;
        Ok((config, notes.collect()))
    }
}

/// What a user and a checkpoint say.
struct Settings<'a> {
    file: &'a str,
    said: &'a Said<'a>,
}

impl Settings<'_> {
    /// The value of a field of ours, and who says it.
    fn find(&self, field: &str) -> Option<(String, &Value)> {
        if let Some(value) = self.said.user.get(field) {
            return Some((format!("`config.{field}`"), value));
        }
        let (_, keys) = KEYS.iter().find(|(ours, _)| *ours == field)?;
        let (key, value) = keys.iter().find_map(|key| self.said.settings.get_key_value(*key))?;
        Some((format!("`{}`: its setting `{key}`", self.file), value))
    }

    fn size(&self, field: &str) -> Result<Option<usize>> {
        let Some((who, value)) = self.find(field) else { return Ok(None) };
        let size = value.as_u64().filter(|n| (1..=1 << 24).contains(n));
        let size =
            size.ok_or_else(|| Error::input(format!("{who} is {value}, expected a number above 0")))?;
        Ok(Some(size as usize))
    }

    /// A switch that scales rotary frequencies by numbers that are not in the file.
    fn refuse_scaling(&self) -> Result<()> {
        let scaled = self.said.settings.get("inference_rope_scaling") == Some(&json!(true));
        if !scaled || self.said.user.contains_key("rope_scaling") {
            return Ok(());
        }
        let what =
            format!("`{}`: its setting `inference_rope_scaling` is true, which says not how much", self.file);
        let usual = "{ factor: 16, original_seq_len: 2048, attention_factor: 1 }";
        Err(Error::input(what)
            .help(format!("its program's numbers are `config: {{ rope_scaling: {usual} }}`")))
    }

    /// The config with what is said, as far as the tensors leave it open.
    fn overlay(&self, config: Config) -> Result<Config> {
        let own = json!(config);
        let mut unknown = self.said.user.keys().filter(|field| own.get(field.as_str()).is_none());
        if let Some(field) = unknown.next() {
            let names = || own.as_object().into_iter().flat_map(|own| own.keys().map(String::as_str));
            return Err(Error::usage(format!("`config.{field}` is no field of an architecture"))
                .suggest(suggest::closest(field, names()))
                .help(format!("there are {}", suggest::list(names()))));
        }
        let mut all = own.clone();
        for field in own.as_object().into_iter().flat_map(|own| own.keys()) {
            let Some((who, value)) = self.find(field) else { continue };
            let value = value_of(field, value);
            let same = value == own[field] || value.as_f64().is_some_and(|x| Some(x) == own[field].as_f64());
            if TOLD.contains(&field.as_str()) && !same {
                let what = format!("{who} is {value}, but its tensors have {}", own[field]);
                return Err(Error::input(what).help("settings and weights must be of the same model"));
            }
            all[field] = value;
            serde_json::from_value::<Config>(all.clone()).map_err(|e| {
                Error::input(format!("{who} is {}, which `{field}` cannot be", all[field])).cause(e)
            })?;
        }
        serde_json::from_value(all).map_err(|e| Error::bug(format!("an architecture as JSON: {e}")))
    }
}

/// A setting as a field of ours: transformers' names of activations are not ours.
fn value_of(field: &str, value: &Value) -> Value {
    let known = ACTIVATIONS.iter().find(|(name, _)| field == "activation" && Some(*name) == value.as_str());
    known.map_or(value.clone(), |(_, activation)| json!(activation))
}

/// What the tensors tell.
struct Sizes<'a> {
    scheme: &'static Scheme,
    checkpoint: &'a Checkpoint,
}

impl Sizes<'_> {
    fn tensor(&self, module: &str, kind: &str) -> Option<&Tensor> {
        self.checkpoint.tensors.get(&self.scheme.name_of(module, kind)?)
    }

    fn has(&self, module: &str, kind: &str) -> bool {
        self.tensor(module, kind).is_some()
    }

    /// The two sizes of a matrix.
    fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        let tensor = self.checkpoint.tensors.get(name);
        let tensor = tensor.ok_or_else(|| missing(self.checkpoint, self.scheme.name, name))?;
        tensor.shape[..].try_into().map_err(|_| {
            let (file, shape) = (&self.checkpoint.file, &tensor.shape);
            Error::input(format!("`{file}`: tensor `{name}` has shape {shape:?}, expected two sizes"))
        })
    }

    fn module(&self, module: &str) -> Result<[usize; 2]> {
        let name = self.scheme.name_of(module, "weight");
        self.matrix(&name.ok_or_else(|| Error::bug(format!("a scheme without `{module}`")))?)
    }

    fn n_layer(&self) -> usize {
        let index =
            |name: &String| name.strip_prefix(self.scheme.blocks)?.split_once('.')?.0.parse::<usize>().ok();
        // Should one be missing, there are fewer tensors than that.
        let last = self.checkpoint.tensors.keys().filter_map(index).max().unwrap_or(0);
        (last + 1).min(self.checkpoint.tensors.len())
    }

    /// Positions of the tensors, and how many there are.
    fn positions(&self) -> Result<(Position, Option<usize>)> {
        if self.has("transformer.wpe", "weight") {
            return Ok((Position::Learned, Some(self.module("transformer.wpe")?[0])));
        }
        let table = self.scheme.table.and_then(|name| self.checkpoint.tensors.get(name));
        let rows = table.map(|table| table.shape.iter().rev().nth(1).copied().unwrap_or(1));
        Ok((self.scheme.config.position, rows))
    }

    fn config(&self, settings: &Settings) -> Result<Config> {
        let [vocab_size, d_model] = self.module("transformer.wte")?;
        let block = |part: &str| format!("transformer.h.0.{part}");
        let (position, rows) = self.positions()?;
        let (n_head, seq_len) = self.open(settings, position, rows)?;
        if d_model == 0 || !d_model.is_multiple_of(n_head) {
            let what =
                format!("`{}`: `n_head` is {n_head}, which does not divide the width", self.checkpoint.file);
            return Err(Error::input(format!("{what} {d_model} of its embedding")));
        }
        let d_head = d_model / n_head;
        Ok(Config {
            vocab_size,
            d_model,
            n_layer: self.n_layer(),
            n_head,
            n_kv_head: self.n_kv_head(d_model, d_head)?,
            d_head,
            d_ff: self.module(&block("mlp.c_fc"))?[0],
            seq_len,
            position,
            norm_bias: self.has(&block("ln_1"), "bias"),
            attn_bias: self.has(&block("attn.c_proj"), "bias"),
            mlp_bias: self.has(&block("mlp.c_proj"), "bias"),
            head_bias: self.has("lm_head", "bias"),
            tied: self.is_tied(),
            ..self.scheme.config.clone()
        })
    }

    /// What shapes do not tell: how many heads, and the longest sequence where positions are not learned.
    fn open(&self, settings: &Settings, position: Position, rows: Option<usize>) -> Result<(usize, usize)> {
        let n_head = settings.size("n_head")?;
        let said = settings.size("seq_len")?;
        if let (Position::Learned, Some(rows), Some(said)) =
            (position, rows, said.filter(|n| Some(*n) != rows))
        {
            let file = &self.checkpoint.file;
            return Err(Error::input(format!(
                "`{file}`: `seq_len` is {said}, but it has learned {rows} positions"
            )));
        }
        match (n_head, said.or(rows)) {
            (Some(n_head), Some(seq_len)) => Ok((n_head, seq_len)),
            (n_head, seq_len) => {
                let lacks =
                    [("n_head", n_head), ("seq_len", seq_len)].into_iter().filter(|(_, n)| n.is_none());
                let lacks: Vec<&str> = lacks.map(|(name, _)| name).collect();
                Err(self.lacks(&lacks))
            }
        }
    }

    fn lacks(&self, fields: &[&str]) -> Error {
        let (file, name) = (&self.checkpoint.file, self.scheme.name);
        let what =
            format!("`{file}` is of {name}, and does not say {}", suggest::list(fields.iter().copied()));
        let example = fields.iter().map(|field| format!("{field}: …")).collect::<Vec<_>>().join(", ");
        Error::input(what)
            .help(format!("say it as `config: {{ {example} }}`, or in a `config.json` beside the file"))
            .help("n_head is the number of attention heads, seq_len the longest sequence that it was trained on")
    }

    fn n_kv_head(&self, d_model: usize, d_head: usize) -> Result<usize> {
        let names = self.scheme.names_of("transformer.h.0.attn.c_attn").unwrap_or_default();
        let [_, keys, _] = names.as_slice() else { return Ok(d_model / d_head) };
        let name = keys.replace('*', "weight");
        let [rows, _] = self.matrix(&name)?;
        if rows == 0 || !rows.is_multiple_of(d_head) {
            let file = &self.checkpoint.file;
            return Err(Error::input(format!(
                "`{file}`: tensor `{name}` has {rows} rows, which is no number of heads"
            ))
            .help(format!("a head has {d_head} rows: is `n_head` right?")));
        }
        Ok(rows / d_head)
    }

    /// Whether the output projection is missing, or the same memory as the embedding.
    fn is_tied(&self) -> bool {
        match (self.tensor("transformer.wte", "weight"), self.tensor("lm_head", "weight")) {
            (Some(embedding), Some(head)) => head.is(embedding),
            (_, head) => head.is_none(),
        }
    }
}

pub fn missing(checkpoint: &Checkpoint, program: &str, name: &str) -> Error {
    if checkpoint.others.iter().any(|other| other == name) {
        return Error::input(format!("`{}`: `{name}` is no tensor", checkpoint.file));
    }
    let mut names: Vec<&str> = checkpoint.tensors.keys().map(String::as_str).collect();
    names.sort_unstable();
    let error =
        Error::input(format!("`{}` has no tensor `{name}`, as models of {program} do", checkpoint.file));
    error.help(format!("it has {}", suggest::list(names.iter().take(6).copied())))
}
