//! `tinylm validate`: everything that can be found wrong without running.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Format, PipelineArgs, out, print_json};
use crate::base::Result;

#[derive(Args)]
pub struct Validate {
    #[command(flatten)]
    pipeline: PipelineArgs,
}

impl Validate {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let loaded = self.pipeline.load()?;
        let sources = loaded.sources(&[])?;
        let (stages, count) = (loaded.pipeline.stages.len(), sources.iter().count());
        match format {
            Format::Text => {
                out::line(&format!("{}: {stages} stages, {count} sources: valid", loaded.pipeline.name))?;
            }
            Format::Json => print_json(&json!({
                "pipeline": loaded.pipeline.name, "valid": true, "stages": stages, "sources": count
            }))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
