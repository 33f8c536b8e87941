//! The command line: one file a command, each a short text over the library. Results go to stdout,
//! progress and logs to stderr.

mod attention;
mod bench;
mod chat;
mod compare;
mod completions;
mod export;
mod generate;
mod given;
mod graph;
mod import;
mod inspect;
mod out;
mod place;
mod plan;
mod prompts;
mod query;
mod run;
mod schema;
mod score;
mod serve;
mod stages;
mod validate;
mod why;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::base::error::Fault;
use crate::base::text::visible;
use crate::base::{Error, Invalid, Result, machine};
use crate::kernel::Dtype;
use crate::plan::{Past, Plan};
use crate::report::style::Style;
use crate::spec::{self, Overrides, Pipeline};
use crate::stage::Kinds;
use crate::store::Store;
use crate::store::source::{self, Sources};
use crate::target::pipeline_file;

/// Declarative pipelines that build tiny language models.
#[derive(Parser)]
#[command(name = "tinylm", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How results are printed; may stand behind the command as well, except behind `import` and `export`,
    /// whose own option of this name says how a model is stored.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

/// How results are printed.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// A command with the option `--format` behind it.
#[derive(Args)]
struct Reporting<C: Args> {
    #[command(flatten)]
    command: C,
    /// How results are printed [default: text].
    #[arg(long, global = true, value_enum)]
    format: Option<Format>,
}

/// `--dtype`.
#[derive(Clone, Copy, ValueEnum)]
pub enum DtypeArg {
    F32,
    Bf16,
    #[value(name = "bf16_tile")]
    Bf16Tile,
}

impl From<DtypeArg> for Dtype {
    fn from(arg: DtypeArg) -> Dtype {
        match arg {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::Bf16 => Dtype::Bf16,
            DtypeArg::Bf16Tile => Dtype::Bf16Tile,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Bring a pipeline, or the named stages and what they need, up to date.
    Run(Reporting<run::Run>),
    /// Show what `run` would do, each stage with its reason. Changes nothing.
    Plan(Reporting<plan::PlanCommand>),
    /// Show what differs from the nearest earlier action of a stage.
    Why(Reporting<why::Why>),
    /// Draw the graph of a pipeline, with verdicts.
    Graph(Reporting<graph::Graph>),
    /// Check a pipeline: schema, types, connections and paths.
    Validate(Reporting<validate::Validate>),
    /// Show what an artifact or a file holds.
    Inspect(Reporting<inspect::Inspect>),
    /// Ask SQL of Parquet or JSON lines.
    Query(Reporting<query::Query>),
    /// Generate text behind a prompt, or behind each prompt of a file.
    Generate(Reporting<generate::Generate>),
    /// Talk with a model.
    Chat(Reporting<chat::Chat>),
    /// Show how probable a model finds a text, token by token.
    Score(Reporting<score::Score>),
    /// Show which tokens of a text attend to which, by layer and head, and what comes next.
    Attention(Reporting<attention::Attention>),
    /// Put several models or reports into one table, with intervals and paired tests.
    Compare(Reporting<compare::Compare>),
    /// Read a model, a tokenizer or token ids of another program.
    Import(import::Import),
    /// Write a model, a tokenizer or token ids as another program reads them.
    Export(export::Export),
    /// Serve models to a browser and to OpenAI's clients, with a page for runs and artifacts.
    Serve(Reporting<serve::Serve>),
    /// Measure how fast this machine trains, generates, tokenizes and plans.
    Bench(Reporting<bench::Bench>),
    /// List the stage kinds, or the ports and params of one.
    Stages(Reporting<stages::Stages>),
    /// Print the JSON Schema of pipeline and stage files.
    Schema(Reporting<schema::Schema>),
    /// Print the completions of a shell.
    Completions(Reporting<completions::Completions>),
}

/// What `run`, `plan`, `why` and `graph` have in common.
#[derive(Args, Clone)]
pub struct PipelineArgs {
    /// The pipeline: a file, or the name of one in `pipelines/`.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pipeline: String,
    /// Replace a value: `stages.NAME.params.PARAM=VALUE` or `vars.NAME=VALUE`. May be repeated.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    sets: Vec<String>,
    /// Replace the pipeline's seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Trust no memory of file digests: read every source and blob again.
    #[arg(long)]
    paranoid: bool,
}

/// A pipeline with everything that a plan needs.
pub struct Loaded {
    pub pipeline: Pipeline,
    pub kinds: Kinds,
    pub store: Store,
}

impl PipelineArgs {
    fn load(&self) -> Result<Loaded> {
        let kinds = crate::kinds::kinds();
        let file = pipeline_file(&self.pipeline)?;
        let overrides = Overrides { sets: self.sets.clone(), seed: self.seed };
        let pipeline = spec::load(&file, &kinds, &overrides)?;
        let store = Store::open(&pipeline.artifacts(), self.paranoid);
        Ok(Loaded { pipeline, kinds, store })
    }
}

impl Loaded {
    fn sources(&self, selected: &[String]) -> Result<Sources> {
        let stages = self.pipeline.closure(selected)?;
        let specs = stages.iter().flat_map(|s| s.sources());
        source::resolve(specs, &self.pipeline.root, &self.store)
    }

    /// The plan of the selected stages and what they need.
    fn plan(&self, selected: &[String], forced: &[String], sources: &Sources) -> Result<Plan> {
        let stages = self.pipeline.closure(selected)?;
        for name in forced {
            self.pipeline.select(name)?;
        }
        let forced = |s: &crate::spec::StageSpec| forced.iter().any(|f| *f == s.name || *f == s.base);
        let past = Past { store: &self.store, sources };
        Ok(crate::plan::build(&self.pipeline, &stages, &self.kinds, sources, &past, &forced))
    }
}

/// The error of an option that is set by a flag of the same name.
pub fn flag_error(invalid: Invalid) -> Error {
    let error = Error::usage(format!("--{} {}", invalid.param.replace('_', "-"), invalid.why));
    invalid.help.into_iter().fold(error, Error::help)
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        tracing::error!("panic{place}");
    }));
    let cli = Cli::parse();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(cli)));
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            say_error(&error);
            exit_code(&error)
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text =
                text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
            say_error(&Error::bug(format!("tinylm panicked: {text}")));
            ExitCode::from(101)
        }
    }
}

fn say_error(error: &Error) {
    // It contains names of files and lines of data.
    out::say(&format!("{}: {}", Style::stderr().red("error"), visible(&error.to_string())));
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let (given, how) =
        (cli.format.unwrap_or_default(), |own: Option<Format>| own.or(cli.format).unwrap_or_default());
    // The other commands run stages, which have thread pools of their own, or compute nothing; starting
    // threads would take longer than all their work.
    if matches!(
        cli.command,
        Command::Inspect(_)
            | Command::Query(_)
            | Command::Generate(_)
            | Command::Chat(_)
            | Command::Score(_)
            | Command::Attention(_)
            | Command::Serve(_)
            | Command::Compare(_)
            | Command::Import(_)
            | Command::Export(_)
            | Command::Bench(_)
    ) {
        machine::use_all_cores();
    }
    match cli.command {
        Command::Run(c) => c.command.run(how(c.format)),
        Command::Plan(c) => c.command.run(how(c.format)),
        Command::Why(c) => c.command.run(how(c.format)),
        Command::Graph(c) => c.command.run(how(c.format)),
        Command::Validate(c) => c.command.run(how(c.format)),
        Command::Inspect(c) => c.command.run(how(c.format)),
        Command::Query(c) => c.command.run(how(c.format)),
        Command::Generate(c) => c.command.run(how(c.format)),
        Command::Chat(c) => c.command.run(how(c.format)),
        Command::Score(c) => c.command.run(how(c.format)),
        Command::Attention(c) => c.command.run(how(c.format)),
        Command::Compare(c) => c.command.run(how(c.format)),
        Command::Serve(c) => c.command.run(how(c.format)),
        Command::Import(c) => c.run(given),
        Command::Export(c) => c.run(given),
        Command::Bench(c) => c.command.run(how(c.format)),
        Command::Stages(c) => c.command.run(how(c.format)),
        Command::Schema(c) => c.command.run(),
        Command::Completions(c) => c.command.run(),
    }
}

/// 1 a stage or an input failed, 2 usage or an invalid pipeline, 101 a bug.
fn exit_code(error: &Error) -> ExitCode {
    match error.fault() {
        Fault::Usage => ExitCode::from(2),
        Fault::Input | Fault::Cancelled => ExitCode::from(1),
        Fault::Bug => ExitCode::from(101),
    }
}

/// One JSON value on a line of stdout.
fn print_json(value: &serde_json::Value) -> Result<()> {
    out::line(&value.to_string())
}

/// Columns that tables may take: `COLUMNS` where it is set.
fn terminal_width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(120)
}
