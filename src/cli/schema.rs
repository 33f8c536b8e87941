//! `tinylm schema`: the JSON Schema of pipeline and stage files.

use std::process::ExitCode;

use clap::Args;

use super::out;
use crate::base::{Error, Result};
use crate::spec::schema::schema;

#[derive(Args)]
pub struct Schema {}

impl Schema {
    pub fn run(self) -> Result<ExitCode> {
        let schema = schema(&crate::kinds::kinds());
        let text =
            serde_json::to_string_pretty(&schema).map_err(|e| Error::bug(format!("the schema: {e}")))?;
        out::line(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
