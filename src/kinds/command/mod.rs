//! `kind: command`: any program as a stage, with declared inputs and outputs and a cleared
//! environment, so that users bring their own Python or shell step.
//!
//! It works in a scratch folder of its own and finds there, by relative paths that are the same in every
//! run, `inputs/PORT/…` and `outputs/PORT`. The inputs are copies: plain files, read-only, of a fixed time,
//! through which nothing in the store can be changed. The stage ends with the last process that the program
//! started; processes that stay behind are ended.
//!
//! The key has the command line, the declared environment and the inputs' digests. It does not have the
//! program itself: make a script an input, and use `--force` after a new version of an installed program.

#[cfg(unix)]
mod group;
#[cfg(unix)]
pub mod guard;
mod output;
mod process;
mod quote;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::{Error, Result, fs, suggest};
use crate::stage::{Artifact, Connected, Context, FILE, Info, Issue, Kind};
use quote::Piece;

/// Any program, with declared inputs and outputs.
pub struct Command;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The program and its arguments. `${inputs.PORT}` is the path of the input's file, or of its
    /// folder when it has several; `${outputs.PORT}` is the file to write (type `file`) or the
    /// folder to write into (any other type); both are relative to the folder that the program starts in.
    /// For a shell: `[sh, -c, "…"]`, in which these paths are quoted as the shell needs it.
    pub command: Vec<String>,
    /// The environment, beside PATH, HOME, TMPDIR, LANG and TZ, which have fixed values. Takes
    /// `${inputs.PORT}` and `${outputs.PORT}` too.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl Kind for Command {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "command",
            // 2: inputs and outputs are relative paths, inputs are files and not links.
            version: 2,
            summary: "Any program, with declared inputs and outputs and a cleared environment.",
            inputs: Vec::new(),
            outputs: Vec::new(),
            open: true,
            seeded: false,
            parallel: false,
            not_in_key: &[],
            not_in_state: &[],
            value_versions: &[],
        }
    }

    fn validate(params: &Params, inputs: &Connected) -> Vec<Issue> {
        if params.command.is_empty() {
            return vec![Issue::param("command", "there is no program to run")];
        }
        let words = params.command.iter().enumerate().map(|(i, word)| (format!("command.{i}"), word));
        let values = params.env.iter().map(|(name, value)| (format!("env.{name}"), value));
        let mut issues = Vec::new();
        for (at, text) in words.chain(values) {
            issues.extend(too_long(&at, text));
            for piece in quote::pieces(text) {
                if let Piece::Reference { namespace: "inputs", name } = piece
                    && !inputs.0.contains_key(name)
                {
                    issues.push(no_input(&at, name, inputs));
                }
            }
        }
        issues
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let paths = Paths::place(ctx)?;
        let script = quote::script(&params.command);
        let words = params.command.iter().enumerate();
        let words: Vec<String> =
            words.map(|(i, word)| paths.expand(word, script == Some(i))).collect::<Result<_>>()?;
        let env = params.env.iter().map(|(name, value)| Ok((name.clone(), paths.expand(value, false)?)));
        process::run(&words, &env.collect::<Result<_>>()?, ctx)?;
        ctx.types.iter().filter(|(_, ty)| *ty == FILE).try_for_each(|(port, _)| wrote_a_file(ctx, port))
    }
}

/// The most bytes of one argument or variable, a limit of the system.
const LONGEST: usize = if cfg!(target_os = "linux") { (128 << 10) - 1 } else { usize::MAX };

fn too_long(at: &str, text: &str) -> Option<Issue> {
    (text.len() > LONGEST).then(|| {
        Issue::param(at, format!("this has {} bytes, a program takes at most {LONGEST} in one", text.len()))
            .help("hand it over in a file: make it an input")
    })
}

fn no_input(at: &str, name: &str, inputs: &Connected) -> Issue {
    Issue::param(at, format!("there is no input `{name}`")).help(match inputs.0.is_empty() {
        true => format!("declare it: `inputs: {{ {name}: … }}`"),
        false => format!("its inputs are {}", suggest::list(inputs.0.keys().map(String::as_str))),
    })
}

/// The paths of `${inputs.…}` and `${outputs.…}`, relative to the scratch folder.
struct Paths {
    inputs: BTreeMap<String, String>,
    outputs: BTreeMap<String, String>,
}

impl Paths {
    /// Copies the inputs to their paths.
    fn place(ctx: &Context) -> Result<Self> {
        let inputs = ctx.inputs.iter().map(|(port, all)| Ok((port.clone(), place_input(ctx, port, all)?)));
        let inputs: BTreeMap<String, String> = inputs.collect::<Result<_>>()?;
        if !inputs.is_empty() {
            fs::set_copy_times(&ctx.scratch.join("inputs"))?;
        }
        let outputs = ctx.outputs.iter().map(|(port, folder)| {
            // The program writes a file of this name.
            if ctx.types.get(port).is_some_and(|ty| ty == FILE) {
                fs::remove(folder)?;
            }
            Ok((port.clone(), relative(ctx, folder)?))
        });
        Ok(Paths { inputs, outputs: outputs.collect::<Result<_>>()? })
    }

    fn expand(&self, text: &str, script: bool) -> Result<String> {
        quote::expand(text, script, |namespace, name| {
            let paths = if namespace == "inputs" { &self.inputs } else { &self.outputs };
            paths.get(name).cloned().ok_or_else(|| {
                let known = suggest::list(paths.keys().map(String::as_str));
                Error::input(format!("`${{{namespace}.{name}}}` in the command: there is no such port"))
                    .help(format!("its {namespace} are {known}"))
            })
        })
    }
}

fn relative(ctx: &Context, path: &Path) -> Result<String> {
    fs::name_below(&ctx.scratch, path)
        .filter(|name| Path::new(name).is_relative())
        .ok_or_else(|| Error::bug(format!("`{}` is not in the stage's folder", path.display())))
}

/// The file of a single artifact that has one, else the folder of all.
fn place_input(ctx: &Context, port: &str, artifacts: &[Artifact]) -> Result<String> {
    let folder = ctx.scratch.join("inputs").join(port);
    let placed = match artifacts {
        [one] => place(ctx, one, &folder)?,
        many => {
            for (i, artifact) in many.iter().enumerate() {
                place(ctx, artifact, &folder.join(i.to_string()))?;
            }
            folder
        }
    };
    relative(ctx, &placed)
}

fn place(ctx: &Context, artifact: &Artifact, folder: &Path) -> Result<PathBuf> {
    for file in &artifact.files {
        ctx.monitor.check()?;
        let copy = folder.join(&file.name);
        match file.executable {
            true => process::copy_program(&file.path, &copy)?,
            false => fs::copy_plain(&file.path, &copy, false)?,
        }
    }
    Ok(match artifact.files.as_slice() {
        [only] => folder.join(&only.name),
        _ => folder.to_path_buf(),
    })
}

/// Checks that an output of type `file` is a single file.
fn wrote_a_file(ctx: &Context, port: &str) -> Result<()> {
    let path = ctx.output(port)?;
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Err(Error::input(format!(
            "the output `{port}` is declared as `file`, and the command made a folder"
        ))
        .help(format!("declare it as `{port}: files`, or write the file `${{outputs.{port}}}`"))),
        _ => Ok(()),
    }
}
