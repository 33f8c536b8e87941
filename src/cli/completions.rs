//! `tinylm completions`: what a shell sources to complete our commands and flags.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, out};
use crate::base::Result;

#[derive(Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tinylm", &mut script);
        out::out(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
