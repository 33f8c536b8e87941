//! What the members of rows are: reports, whose items are read, and models, which are evaluated here as the stage
//! kind `eval` does it.

use std::path::Path;

use clap::Args;

use crate::base::{Error, Quiet, Result, fs, units};
use crate::cli::out;
use crate::corpus::{chat, ingest};
use crate::corpus::{conversation, document};
use crate::eval::compare::{Member, Settings};
use crate::eval::items::{self, ITEMS_FILE};
use crate::eval::{self, Tasks, Texts};
use crate::kernel::Dtype;
use crate::kinds::ingest::input_files;
use crate::model::{CONFIG_FILE, GGUF_FILE};
use crate::stage::Artifact;
use crate::target::{self, load_model};
use crate::tokenizer::Inputs;

/// What models are evaluated on. All of it counts, whether they were trained on it or not.
#[derive(Args, Default)]
#[command(next_help_heading = "What models are evaluated on")]
pub struct Judge {
    /// Documents: targets of documents, or files as `ingest` reads them.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    docs: Vec<String>,
    /// Conversations: targets of conversations, or files as `ingest_chat` reads them.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    chats: Vec<String>,
    /// Texts whose next word is to be said, as the input `cloze` of `eval` takes them.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    cloze: Vec<String>,
    /// Minimal pairs, as the input `pairs` of `eval` takes them.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    pairs: Vec<String>,
    /// Multiple choice, as the input `choices` of `eval` takes it.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    choices: Vec<String>,
    /// Questions with accepted answers, as the input `exam` of `eval` takes them.
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    exam: Vec<String>,
    /// The most tokens that a model reads before a token that is scored [default: all that it can].
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// How far apart the windows of a longer text begin [default: half the context].
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Put a question with choices as a user's turn, and score each choice as what the assistant says.
    #[arg(long)]
    as_chat: bool,
    /// Tokens scored at most, of documents and of conversations each [default: all].
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u64>,
}

/// What a target is.
pub enum Found {
    Report(Member),
    /// It is loaded only when its turn comes.
    Model,
}

/// Finds out what a target is, and reads it if it is a report.
///
/// # Errors
/// When it is not there, or neither a report of `eval` nor a model.
pub fn find(text: &str) -> Result<Found> {
    let artifact = target::folder_of_first(text, &["report", "model"])?;
    if artifact.find(ITEMS_FILE).is_some() {
        return report(text, &artifact).map(Found::Report);
    }
    if artifact.find(REPORT_FILE).is_some() && artifact.find(SAMPLES_FILE).is_some() {
        return Err(Error::input(format!(
            "the report `{text}` has no `{ITEMS_FILE}`, which figures are compared by"
        ))
        .help("an earlier version made it: evaluate the model anew"));
    }
    match artifact.find(CONFIG_FILE).is_some()
        || artifact.find(GGUF_FILE).is_some()
        || Path::new(text).is_file()
    {
        true => Ok(Found::Model),
        false => Err(Error::input(format!("`{text}` is neither a report of `eval` nor a model"))
            .help(format!("a report has `{REPORT_FILE}` and `{ITEMS_FILE}`, a model `{CONFIG_FILE}`"))),
    }
}

const REPORT_FILE: &str = "report.json";
/// Other stages have reports, too; such samples only `eval` has.
const SAMPLES_FILE: &str = "samples.jsonl";

fn report(text: &str, artifact: &Artifact) -> Result<Member> {
    let path = artifact.file(REPORT_FILE)?;
    let report: serde_json::Value = serde_json::from_slice(&fs::read(path)?)
        .map_err(|e| Error::input(format!("the report `{text}` is not JSON: {e}")))?;
    let number = |key: &str| report[key].as_u64();
    let settings =
        Settings { vocab_size: number("vocab_size"), context: number("context"), stride: number("stride") };
    Ok(Member { name: text.to_string(), items: items::read(artifact.file(ITEMS_FILE)?)?, settings })
}

/// What models are evaluated on, read once for all.
pub struct Prepared {
    texts: Texts,
    tasks: Tasks,
    options: eval::Options,
    /// Documents and conversations that were made of files for this.
    _folder: Option<tempfile::TempDir>,
}

impl Judge {
    /// Reads what `models` models are evaluated on.
    ///
    /// # Errors
    /// When nothing is named and there are models, or the other way round; files that can't be read.
    pub fn prepare(&self, models: usize) -> Result<Prepared> {
        let named = [&self.docs, &self.chats, &self.cloze, &self.pairs, &self.choices, &self.exam];
        let is_named = named.iter().any(|list| !list.is_empty());
        if models > 0 && !is_named {
            return Err(Error::usage("a model is compared by what it is evaluated on: none is named")
                .help("name it with --docs, --chats, --cloze, --pairs, --choices or --exam, or compare reports of `eval`"));
        }
        let options =
            [self.context.is_some(), self.stride.is_some(), self.as_chat, self.max_tokens.is_some()];
        if models == 0 && (is_named || options.contains(&true)) {
            return Err(Error::usage("all targets are reports, which say what they were evaluated on")
                .help("leave out --docs and the like, or name models"));
        }
        let folder =
            (models > 0).then(|| fs::temp_dir(&std::env::temp_dir(), "tinylm-compare-")).transpose()?;
        let texts = match &folder {
            Some(folder) => self.texts(folder.path())?,
            None => Inputs::default(),
        };
        Ok(Prepared {
            texts: Texts { validation: texts, ..Texts::default() },
            tasks: Tasks {
                cloze: files(&self.cloze)?,
                pairs: files(&self.pairs)?,
                choices: files(&self.choices)?,
                exam: files(&self.exam)?,
            },
            options: self.options(),
            _folder: folder,
        })
    }

    fn options(&self) -> eval::Options {
        eval::Options {
            scored: eval::Scored::All,
            max_tokens: self.max_tokens.unwrap_or(u64::MAX),
            context: self.context,
            stride: self.stride,
            as_chat: self.as_chat,
            ..eval::Options::default()
        }
    }

    /// Documents and conversations; those that are files are read as the stage kinds do it by default.
    fn texts(&self, folder: &Path) -> Result<Inputs> {
        let scratch = folder.join("scratch");
        fs::create_dir(&scratch)?;
        let (documents, files) = stored(&self.docs, document::FILE_NAME)?;
        let mut inputs = Inputs { documents, ..Inputs::default() };
        if !files.is_empty() {
            let made = folder.join("docs");
            let options = ingest::Options::default();
            ingest::ingest(&input_files(&files), &options, &made, &scratch, &Quiet)?;
            inputs.documents.push(made.join(document::FILE_NAME));
        }
        let (conversations, files) = stored(&self.chats, conversation::FILE_NAME)?;
        inputs.conversations = conversations;
        if !files.is_empty() {
            let made = folder.join("chats");
            chat::ingest_chat(&input_files(&files), &chat::Options::default(), &made, &scratch, &Quiet)?;
            inputs.conversations.push(made.join(conversation::FILE_NAME));
        }
        Ok(inputs)
    }
}

/// The files called `name` of the targets that have one, and the targets that have none.
fn stored(targets: &[String], name: &str) -> Result<(Vec<std::path::PathBuf>, Vec<Artifact>)> {
    let (mut paths, mut others) = (Vec::new(), Vec::new());
    for text in targets {
        let artifact = target::resolve(text)?;
        match artifact.find(name) {
            Some(path) => paths.push(path.to_path_buf()),
            None => others.push(artifact),
        }
    }
    Ok((paths, others))
}

fn files(targets: &[String]) -> Result<Vec<crate::corpus::input::InputFile>> {
    let artifacts: Vec<Artifact> = targets.iter().map(|text| target::resolve(text)).collect::<Result<_>>()?;
    Ok(input_files(&artifacts))
}

impl Prepared {
    /// Evaluates the model that a target is.
    ///
    /// # Errors
    /// When it can't be read, or not be evaluated on all that is named.
    pub fn evaluate(&self, text: &str) -> Result<Member> {
        let model = load_model(text, None, Dtype::F32)?;
        let parameters = model.transformer.config.parameters() as u64;
        out::say(&format!("evaluating `{text}` ({} parameters)", units::count(parameters)));
        let found = eval::evaluate(&model, &self.texts, &self.tasks, &self.options, &Quiet)
            .map_err(|e| e.context(format!("model `{text}`")))?;
        let report = found.report;
        let settings = Settings {
            vocab_size: Some(report.vocab_size as u64),
            context: Some(report.context as u64),
            stride: Some(report.stride as u64),
        };
        Ok(Member { name: text.to_string(), items: found.items, settings })
    }
}
