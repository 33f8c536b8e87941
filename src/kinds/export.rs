//! `export`: a model, a tokenizer or token ids in a form that another program reads.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::import::{self, What};
use super::{facts, texts, tokenizers};
use crate::base::{Error, Monitor, Result, fs, suggest, units};
use crate::kernel::BlockType;
use crate::model::Model;
use crate::model::format::{self, Container, ExportOptions, Outgoing};
use crate::shard::flat;
use crate::stage::{Artifact, Connected, Context, FILES, Info, Issue, Kind, Port, Upstream};
use crate::tokenizer::format as tokenizer_format;
use crate::tokenizer::format::Format as TokenizerFormat;
use crate::tokenizer::{Inputs, Names};

pub struct Export;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The form that it is written in, by a name of the list below.
    pub format: String,
    /// The type of a model's matrices: `q8_0` for 8 bits, `q4_k` for 4. Where rows don't divide into its
    /// blocks, llama.cpp's fallback. Default: the type that they have.
    #[serde(default)]
    pub quantize: Option<BlockType>,
}

/// The ports of which one must be connected.
pub const PORTS: [&str; 3] = ["model", "tokenizer", "shards"];

impl Kind for Export {
    type Params = Params;

    fn info() -> Info {
        let docs = "Documents whose token ids are compared with those that the other program will give.";
        let chats = "Conversations of which the same is compared.";
        Info {
            name: "export",
            version: 1,
            summary: "Writes a model, a tokenizer or token ids as another program reads them.",
            inputs: vec![
                Port::new("model", "model", "The model to write.").optional(),
                Port::new("tokenizer", "tokenizer", "The tokenizer to write, in a form of tokenizers.")
                    .or(&["model"])
                    .or_source(&["tokenizer.json", ".json"])
                    .optional(),
                Port::new("shards", "shards", "The token ids to write, in a form of token ids.").optional(),
                Port::new("docs", "documents", docs).optional().many(),
                Port::new("chats", "conversations", chats).optional().many(),
            ],
            outputs: vec![Port::new("files", FILES, "The files of the other program.")],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let connected: Vec<&str> = PORTS.into_iter().filter(|port| !inputs.get(port).is_empty()).collect();
        match connected[..] {
            [port] => validate_one(params, port, inputs),
            [] => vec![
                Issue::input("model", format!("nothing is connected to {}", suggest::list(PORTS)))
                    .help("connect what is to be written to one of them"),
            ],
            [_, second, ..] => vec![
                Issue::input(
                    second,
                    format!("{} are all connected", suggest::list(connected.iter().copied())),
                )
                .help("connect one of them: a model brings its tokenizer along"),
            ],
        }
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let texts = Texts::new(texts::inputs(ctx)?, Vec::new());
        let port = PORTS.into_iter().find(|port| ctx.optional(port).is_some()).unwrap_or(PORTS[0]);
        let form = Form::named(port, &params.format)?;
        form.write(ctx.input(port)?, params.quantize, &texts, ctx.output("files")?, ctx.monitor)?;
        texts.report().iter().for_each(|line| tracing::info!("texts: {line}"));
        Ok(())
    }
}

/// What is wrong with the form of what is connected to `port`, as far as it is known before anything runs.
fn validate_one(params: &Params, port: &str, inputs: &Connected) -> Vec<Issue> {
    let form = match Form::named(port, &params.format) {
        Ok(form) => form,
        Err(e) => return vec![Issue::param("format", e.to_string())],
    };
    let mut issues = Vec::new();
    if port != "model" {
        let what = format!("it says how a model is written, and `{port}` is connected");
        issues.extend(params.quantize.map(|_| Issue::param("quantize", what).help("leave it away")));
    }
    if port == "shards" {
        let given = ["docs", "chats"].into_iter().find(|port| !inputs.get(port).is_empty());
        let what = "token ids are written as they are: there is nothing to compare texts with";
        issues.extend(given.map(|port| Issue::input(port, what).help("leave them away")));
    }
    let up = inputs.get(port).first();
    let reason = up.and_then(|up| form.refuses(up, params.quantize));
    issues.extend(reason.map(|why| Issue::param("format", format!("`{}`: {why}", params.format))));
    issues
}

/// A form of models, of tokenizers or of token ids.
#[derive(Clone, Copy)]
pub enum Form {
    Model(&'static dyn Container),
    Tokenizer(&'static dyn TokenizerFormat),
    /// [`TOKEN_FILES`]
    Shards,
}

impl Form {
    /// The form called `name` for what is connected to `port`.
    ///
    /// # Errors
    /// When there is none; says which there are, or whose form it is.
    pub fn named(port: &str, name: &str) -> Result<Self> {
        Form::of_port(port, name).map_err(|e| {
            let other = PORTS.into_iter().find(|other| Form::of_port(other, name).is_ok());
            other.map_or(e, |other| {
                Error::usage(format!("`{name}` is a form for a `{other}`, not for a `{port}`"))
                    .help(format!("give what is to be written as `{other}`"))
            })
        })
    }

    fn of_port(port: &str, name: &str) -> Result<Self> {
        match port {
            "model" => format::container(name).map(Form::Model),
            "tokenizer" => tokenizer_format::format(name).map(Form::Tokenizer),
            _ => import::check_format(What::Shards, name).map(|()| Form::Shards),
        }
    }

    /// Why it can't be written, as far as it is known of what is connected before that exists.
    fn refuses(self, up: &Upstream, quantize: Option<BlockType>) -> Option<String> {
        let algorithm = facts::algorithm(up);
        match self {
            Form::Shards => None,
            Form::Tokenizer(form) => form.refuses(algorithm?),
            Form::Model(form) => {
                let options = ExportOptions { dtype: quantize };
                let by_config = facts::config(up).and_then(|config| form.refuses(&config, &options));
                by_config.or_else(|| form.refuses_tokenizer(algorithm?))
            }
        }
    }

    /// Writes an artifact into the empty folder `into`.
    ///
    /// # Errors
    /// When it does not read, the form can't hold it, the other program would read one of the texts otherwise,
    /// or a file cannot be written.
    pub fn write(
        self,
        artifact: &Artifact,
        quantize: Option<BlockType>,
        texts: &Texts,
        into: &Path,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        match self {
            Form::Model(form) => write_model(form, artifact, quantize, texts, into),
            Form::Tokenizer(form) => write_tokenizer(form, artifact, texts, into),
            Form::Shards => flat::export(&artifact.as_files().all, None, into, monitor).map(drop),
        }
    }
}

fn write_model(
    form: &dyn Container,
    artifact: &Artifact,
    quantize: Option<BlockType>,
    texts: &Texts,
    into: &Path,
) -> Result<()> {
    let (files, options) = (artifact.as_files(), ExportOptions { dtype: quantize });
    let model = Model::open(&files, tokenizers::load(artifact, Names::default())?)?;
    if let Some(why) = form.refuses(&model.transformer.config, &options) {
        let what = format!("`{}` can't be written as `{}`: {why}", artifact.label, form.name());
        return Err(Error::usage(what));
    }
    let each = |work: &mut dyn FnMut(&str) -> Result<()>| texts.each(work);
    form.write(&Outgoing { model: &model, files: &files, options: &options, texts: &each }, into)
}

fn write_tokenizer(
    form: &dyn TokenizerFormat,
    artifact: &Artifact,
    texts: &Texts,
    into: &Path,
) -> Result<()> {
    let tokenizer = tokenizers::load(artifact, Names::default())?;
    form.write(&tokenizer, into)?;
    let each = |work: &mut dyn FnMut(&str) -> Result<()>| texts.each(work);
    tokenizer_format::check_written(form, &tokenizer, into, &each).map(drop)
}

/// Texts whose ids are compared with those of another program, and how many of them were.
#[derive(Default)]
pub struct Texts {
    stored: Inputs,
    /// Plain text, each file one.
    plain: Vec<PathBuf>,
    compared: Cell<u64>,
}

impl Texts {
    pub fn new(stored: Inputs, plain: Vec<PathBuf>) -> Self {
        Texts { stored, plain, compared: Cell::new(0) }
    }

    /// Calls `work` with each document, message and file.
    fn each(&self, work: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        self.compared.set(0);
        let mut count = |text: &str| {
            work(text)?;
            self.compared.set(self.compared.get() + 1);
            Ok(())
        };
        for text in self.stored.texts()? {
            text?.parts().into_iter().try_for_each(&mut count)?;
        }
        self.plain.iter().try_for_each(|path| count(&fs::read_text(path)?))
    }

    /// How many were compared, and are the same.
    pub fn compared(&self) -> u64 {
        self.compared.get()
    }

    /// What became of them, in words; nothing where there are none.
    pub fn report(&self) -> Option<String> {
        let is_empty = [&self.stored.documents, &self.stored.conversations, &self.plain];
        match self.compared() {
            0 if is_empty.iter().all(|files| files.is_empty()) => None,
            0 => Some("the form keeps the tokenizer as it is: no texts were compared".into()),
            n => Some(format!("{} compared: the same token ids in the other form", units::count(n))),
        }
    }
}
