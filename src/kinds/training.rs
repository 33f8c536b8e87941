//! What training kinds share beside their params: states to go on from, and checkpoints.

use std::path::Path;

use crate::base::Result;
use crate::corpus::held_out::HeldOut;
use crate::model::Model;
use crate::stage::{Context, Port, Resume};
use crate::train::{self, Options, Outcome, Places};

/// The port of the weights after `step`.
fn checkpoint(step: u64) -> String {
    format!("step-{step}")
}

/// The output ports of the steps that are kept.
pub(super) fn checkpoints(steps: &[u64]) -> impl Iterator<Item = Port> {
    let doc = "The model after this step: `model.safetensors` with what `transformers` loads beside it; `held_out.json`.";
    steps.iter().map(move |step| Port::new(&checkpoint(*step), "model", doc))
}

/// Where a stage trains whose model becomes output `port`.
pub(super) fn places<'a>(ctx: &'a Context, port: &str) -> Result<Places<'a>> {
    Ok(Places { output: ctx.output(port)?, scratch: &ctx.scratch, state: ctx.state.as_deref() })
}

/// [`Kind::resumes`](crate::stage::Kind::resumes) of a training with these `options`.
pub(super) fn resumes(options: &Options, state: &Path) -> Option<Resume> {
    let (step, steps) = train::resumes(options, state)?;
    Some(Resume { step, steps: Some(steps) })
}

/// Writes the model after each step that is kept to its output. The model ends with the weights of the last of
/// them, so its own are written before.
///
/// # Errors
/// When a file can't be read or written.
pub(super) fn save_checkpoints(
    ctx: &Context,
    model: &mut Model,
    outcome: &Outcome,
    held_out: &HeldOut,
) -> Result<()> {
    for (step, file) in &outcome.kept {
        let folder = ctx.output(&checkpoint(*step))?;
        train::load_kept(file, &mut model.transformer)?;
        held_out.save(folder)?;
        model.save(folder)?;
    }
    Ok(())
}
