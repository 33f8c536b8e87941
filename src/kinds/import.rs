//! `import`: a model, a tokenizer or token ids of another program become ours.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::{Error, Files, Invalid, Monitor, Result, units};
use crate::model::format::{self, Container, ImportOptions, Imported};
use crate::model::{Config, Model};
use crate::shard::Totals;
use crate::shard::flat::{self, FlatOptions, FlatReport, Width};
use crate::stage::{Artifact, Connected, Context, FILES, Info, Issue, Kind, Port};
use crate::tokenizer::format as tokenizer_format;
use crate::tokenizer::{Names, Special, Tokenizer};

pub struct Import;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// What is read; the output is called so.
    pub what: What,
    /// How it is stored, by a name of the list below; `auto` tells by the files' names and first bytes.
    pub format: String,
    /// Which tokens of the tokenizer begin and end a text, fill up a batch, and begin a turn of each role:
    /// `{ bos: "<s>", eos: "</s>" }`. Default: what the files say, or a token of a usual name.
    pub special_tokens: Names,
    /// What the files of a model don't say of its architecture, by the names of the params of `pretrain`:
    /// `{ n_head: 4 }`. Where something is missing, the error names it.
    pub config: Map<String, Value>,
    /// Bytes of an id of `train.bin`, 2 or 4. Default: 2 where the vocabulary fits.
    pub id_bytes: Option<u64>,
}

/// What may be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Model,
    Tokenizer,
    Shards,
}

impl What {
    /// The name and the type of the output.
    pub fn name(self) -> &'static str {
        match self {
            What::Model => "model",
            What::Tokenizer => "tokenizer",
            What::Shards => "shards",
        }
    }
}

/// The form of token ids, and what it is.
pub const TOKEN_FILES: (&str, &str) =
    ("train_bin", "nanoGPT: `train.bin` and `val.bin`, ids of 2 bytes, or 4 for large vocabularies");

/// A shard takes no further document once it has this many tokens.
const SHARD_TOKENS: u64 = 32 << 20;

/// The value of `format` that has it detected.
pub const AUTO: &str = "auto";

impl Default for Params {
    fn default() -> Self {
        Params {
            what: What::Model,
            format: AUTO.into(),
            special_tokens: Names::default(),
            config: Map::new(),
            id_bytes: None,
        }
    }
}

impl Kind for Import {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "import",
            version: 1,
            summary: "Reads a model, a tokenizer or token ids of another program.",
            inputs: vec![
                Port::new("files", FILES, "The files of the other program: one, several, or a folder.")
                    .or_source(&[""])
                    .many(),
                Port::new(
                    "tokenizer",
                    "tokenizer",
                    "The tokenizer of a model, where its own files hold none, or of token ids; of any form.",
                )
                .or(&["model"])
                .or_source(&[""])
                .optional(),
            ],
            outputs: vec![
                Port::new(
                    "model",
                    "model",
                    "With `what: model`: the model's folder, as `pretrain` makes it.",
                ),
                Port::new("tokenizer", "tokenizer", "With `what: tokenizer`: `tokenizer.json`."),
                Port::new("shards", "shards", "With `what: shards`: token shards, as `shard` makes them."),
            ],
            open: false,
            seeded: false,
            parallel: true,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn outputs(params: &Params) -> Vec<Port> {
        Self::info().outputs.into_iter().filter(|port| port.name == params.what.name()).collect()
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        let unknown = check_format(params.what, &params.format).err();
        let mut issues: Vec<Issue> =
            unknown.into_iter().map(|e| Issue::param("format", e.to_string())).collect();
        let has_tokenizer = !inputs.get("tokenizer").is_empty();
        if params.what == What::Tokenizer && has_tokenizer {
            let what = "`tokenizer` is connected, and a tokenizer is imported";
            issues.push(Issue::input("tokenizer", what).help("leave it away, or set `what: model`"));
        }
        if params.what == What::Shards && !has_tokenizer {
            let what = "files of token ids do not say which tokens they are";
            issues.push(Issue::input("files", what).help("connect their tokenizer to `tokenizer`"));
        }
        if params.what != What::Model && !params.config.is_empty() {
            issues.push(Issue::param("config", "it completes the files of a model").help("leave it away"));
        }
        issues.extend(width(params.id_bytes).err().map(Issue::from));
        issues
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let files = joined(ctx.all("files"))?;
        let folder = ctx.output(params.what.name())?;
        let names = &params.special_tokens;
        match params.what {
            What::Model => {
                let tokenizer = ctx.optional("tokenizer").map(Artifact::as_files);
                let options = ImportOptions { config: params.config.clone() };
                let read = model(&files, tokenizer.as_ref(), &params.format, &options, names)?;
                tracing::info!("{}: {}", read.format, about_model(&read.model.transformer.config));
                tracing::info!("tokenizer: {}", about_tokenizer(&read.model.tokenizer));
                read.save(folder)
            }
            What::Tokenizer => {
                let (format, tokenizer) = tokenizer(&files, &params.format, names)?;
                tracing::info!("{format}: {}", about_tokenizer(&tokenizer));
                save_tokenizer(&tokenizer, folder)
            }
            What::Shards => {
                let tokenizer = tokenizer(&ctx.input("tokenizer")?.as_files(), AUTO, names)?.1;
                let report = shards(
                    &files,
                    &tokenizer,
                    width(params.id_bytes).map_err(Error::invalid)?,
                    folder,
                    ctx.monitor,
                )?;
                tracing::info!("{}", about_shards(&report));
                Ok(())
            }
        }
    }
}

/// # Errors
/// When ids are not so wide.
fn width(bytes: Option<u64>) -> std::result::Result<Option<Width>, Invalid> {
    match bytes {
        None => Ok(None),
        Some(2) => Ok(Some(Width::Two)),
        Some(4) => Ok(Some(Width::Four)),
        Some(other) => Err(Invalid::new("id_bytes", format!("must be 2 or 4, found {other}"))),
    }
}

/// The files of several artifacts together.
fn joined(artifacts: &[Artifact]) -> Result<Files> {
    let mut files = Files::default();
    for artifact in artifacts {
        let more = artifact.as_files();
        if let Some((name, _)) = more.all.iter().find(|(name, _)| files.find(name).is_some()) {
            return Err(Error::input(format!("`files`: two of them are called `{name}`"))
                .help("connect those of one model alone"));
        }
        files.label =
            [files.label, more.label].into_iter().filter(|l| !l.is_empty()).collect::<Vec<_>>().join(", ");
        files.all.extend(more.all);
    }
    Ok(files)
}

/// Whether `name` is [`AUTO`] or a form that `what` is stored in.
///
/// # Errors
/// When it is not; says which there are.
pub fn check_format(what: What, name: &str) -> Result<()> {
    match what {
        _ if name == AUTO => Ok(()),
        What::Model => format::container(name).map(drop),
        What::Tokenizer => tokenizer_format::format(name).map(drop),
        What::Shards if name == TOKEN_FILES.0 => Ok(()),
        What::Shards => Err(Error::usage(format!("there is no format `{name}` of token ids"))
            .help(format!("there is `{}`", TOKEN_FILES.0))),
    }
}

/// A model that was read, with its tokenizer.
pub struct ReadModel {
    /// The form that it was stored in.
    pub format: &'static str,
    pub model: Model,
    /// The file with the blocks of a quantized model.
    blocks: Option<PathBuf>,
}

/// Reads a model whose tokenizer may lie apart.
///
/// # Errors
/// When a file is damaged or of no known form, when there is no tokenizer, or it has more tokens than the model.
pub fn model(
    files: &Files,
    tokenizer: Option<&Files>,
    format: &str,
    options: &ImportOptions,
    names: &Names,
) -> Result<ReadModel> {
    let container = container_of(files, format)?;
    let Imported { transformer, tokenizer: own, blocks } = container.read_with(files, options)?;
    let given =
        tokenizer.map(|files| self::tokenizer(files, AUTO, names).map(|(_, given)| given)).transpose()?;
    let tokenizer = match (given, own) {
        (Some(given), _) => given,
        (None, Some(own)) => own.with_names(names)?,
        (None, None) => {
            return Err(Error::input(format!("`{}` holds no tokenizer", files.label))
                .help("give the file of its tokenizer, too (`tokenizer`)"));
        }
    };
    transformer.config.fits(&tokenizer).map_err(|e| {
        let help = "give the tokenizer that the model was trained with (`tokenizer`)";
        e.context(format!("`{}` can't be read", files.label)).help(help)
    })?;
    Ok(ReadModel { format: container.name(), model: Model { transformer, tokenizer }, blocks })
}

/// The form called `format`, or the one that the files are of.
fn container_of(files: &Files, format: &str) -> Result<&'static dyn Container> {
    if format != AUTO {
        return format::container(format);
    }
    format::detect(files).map_err(|e| match tokenizer_format::detect(files) {
        Ok(other) => Error::input(format!("`{}` is a tokenizer ({}), no model", files.label, other.name()))
            .help("import it as one: `what` is `tokenizer`"),
        Err(_) => e,
    })
}

/// Reads a tokenizer, that of a model too; the name of the form that it was stored in, and `names` for special
/// tokens that the files name otherwise or not.
///
/// # Errors
/// When a file is damaged or of no known form, or the vocabulary lacks one of `names`.
pub fn tokenizer(files: &Files, format: &str, names: &Names) -> Result<(&'static str, Tokenizer)> {
    let form =
        if format == AUTO { tokenizer_format::detect(files) } else { tokenizer_format::format(format) };
    let (format, tokenizer) = match (form, format::detect(files)) {
        (Ok(form), _) => (form.name(), form.read(files)?),
        (Err(_), Ok(container)) if format == AUTO => {
            let none = || Error::input(format!("the model `{}` holds no tokenizer", files.label));
            (container.name(), container.read_tokenizer(files)?.ok_or_else(none)?)
        }
        (Err(e), _) => return Err(e),
    };
    Ok((format, tokenizer.with_names(names)?))
}

impl ReadModel {
    /// Writes the model's folder, with the blocks of a quantized model as they are.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        match &self.blocks {
            Some(blocks) => self.model.save_blocks_of(blocks, folder),
            None => self.model.save(folder),
        }
    }
}

/// Writes a tokenizer's folder.
///
/// # Errors
/// When a file cannot be written.
pub fn save_tokenizer(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    tokenizer_format::format("tokenizer_json")?.write(tokenizer, folder)
}

/// Reads token ids, of which `tokenizer` says what they are, as token shards. A document ends with the token that
/// ends a text.
///
/// # Errors
/// When a file is damaged, or an id is beyond the vocabulary.
pub fn shards(
    files: &Files,
    tokenizer: &Tokenizer,
    width: Option<Width>,
    folder: &Path,
    monitor: &dyn Monitor,
) -> Result<FlatReport> {
    let options = FlatOptions { width, eos: flat::eos_of(tokenizer), shard_tokens: SHARD_TOKENS };
    flat::import(files, tokenizer, &options, folder, monitor)
}

/// How many tokens and documents there are.
pub fn about_shards(report: &FlatReport) -> String {
    let split = |name: &str, totals: &Totals| {
        format!(
            "{} tokens in {} documents to {name}",
            units::count(totals.tokens),
            units::count(totals.documents)
        )
    };
    format!("{}, {}", split("train on", &report.train), split("validate on", &report.validation))
}

/// Its size and architecture in words.
pub fn about_model(config: &Config) -> String {
    let count = |n: usize| units::count(n as u64);
    format!(
        "{} parameters, {} layers of width {}, sequences of up to {} tokens; {}",
        count(config.parameters()),
        config.n_layer,
        config.d_model,
        count(config.seq_len),
        config.describe()
    )
}

/// Its size and which tokens begin and end a text.
pub fn about_tokenizer(tokenizer: &Tokenizer) -> String {
    let name = |special| tokenizer.special(special).and_then(|id| tokenizer.token(id));
    let named = match (name(Special::Bos), name(Special::Eos)) {
        (Some(bos), Some(eos)) if bos == eos => format!("`{bos}` begins and ends a text"),
        (Some(bos), Some(eos)) => format!("`{bos}` begins a text, `{eos}` ends it"),
        (Some(bos), None) => format!("`{bos}` begins a text, nothing ends it"),
        (None, Some(eos)) => format!("`{eos}` ends a text, nothing begins it"),
        (None, None) => "no token begins or ends a text".into(),
    };
    format!("{} tokens; {named}", units::count(tokenizer.vocab_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;
    use crate::model::{Transformer, gpt2};
    use crate::stage::harness;
    use crate::tokenizer::TOKENIZER_FILE;

    fn words() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
        Tokenizer::load(Path::new(path)).unwrap()
    }

    /// A model's folder with room for so many tokens, and its tokenizer under another name beside it.
    fn made(folder: &Path, vocab_size: usize) -> [Artifact; 2] {
        let model =
            Model { transformer: Transformer::fresh(&gpt2(vocab_size, 16, 1, 2, 48), 1), tokenizer: words() };
        let (inside, beside) = (folder.join("model"), folder.join("words.json"));
        model.save(&inside).unwrap();
        fs::rename(&inside.join(TOKENIZER_FILE), &beside).unwrap();
        [harness::artifact("folder", &inside).unwrap(), harness::artifact("words", &beside).unwrap()]
    }

    fn import(params: &str, inputs: &[(&str, Artifact)]) -> Result<harness::Outcome> {
        harness::run::<Import>(&format!("{{ {params} }}"), inputs, 1)
    }

    fn error(params: &str, inputs: &[(&str, Artifact)]) -> String {
        import(params, inputs).err().expect(params).to_string()
    }

    #[test]
    fn a_model_needs_a_tokenizer_that_it_has_room_for() {
        let (dir, size) = (tempfile::tempdir().unwrap(), words().vocab_size());
        let [folder, beside] = made(dir.path(), size + 3);
        let files = ("files", folder);
        let said = error("", std::slice::from_ref(&files));
        assert!(said.contains("`folder` holds no tokenizer") && said.contains("(`tokenizer`)"), "{said}");
        let read = import("", &[files.clone(), ("tokenizer", beside.clone())]).unwrap();
        assert!(read.read("model", TOKENIZER_FILE) == words().json(), "fewer tokens than rows are fine");

        let narrow = tempfile::tempdir().unwrap();
        let [folder, _] = made(narrow.path(), size - 1);
        let said = error("", &[("files", folder), ("tokenizer", beside.clone())]);
        assert!(said.contains(&format!("{size} tokens, the model room for {}", size - 1)), "{said}");
        let said = error("", &[("files", beside.clone())]);
        assert!(
            said.contains("is a tokenizer (tokenizer_json), no model") && said.contains("`what`"),
            "{said}"
        );
        let said = error("", &[files.clone(), ("files", files.1.clone())]);
        assert!(said.contains("two of them are called `config.json`"), "{said}");
        let said = error("what: tokenizer", &[files, ("tokenizer", beside)]);
        assert!(said.contains("`tokenizer` is connected, and a tokenizer is imported"), "{said}");
    }

    #[test]
    fn special_tokens_of_a_tokenizer_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let [_, beside] = made(dir.path(), words().vocab_size());
        let files = [("files", beside)];
        let read = import("what: tokenizer, special_tokens: { eos: \"<user>\" }", &files).unwrap();
        let tokenizer =
            tokenizer(&Files::at(&read.path("tokenizer")).unwrap(), AUTO, &Names::default()).unwrap().1;
        let name = |special| tokenizer.special(special).and_then(|id| tokenizer.token(id));
        assert_eq!((name(Special::Eos), name(Special::Bos)), (Some("<user>".into()), Some("<bos>".into())));
        let said = error("what: tokenizer, special_tokens: { eos: \"<no>\" }", &files);
        assert!(said.contains("`eos` is to be `<no>`"), "{said}");
    }
}
