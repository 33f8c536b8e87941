//! Whether a stage read the inputs of its key: they are checked again after it ran, before its outputs are
//! committed.

use std::collections::BTreeMap;

use super::Shared;
use crate::base::{Error, Result};
use crate::spec::StageSpec;
use crate::stage::Artifact;

/// # Errors
/// When a source or a blob has changed. The blob is moved out of the store, so that the stage that made it
/// reruns.
pub fn check(shared: &Shared, stage: &StageSpec, inputs: &BTreeMap<String, Vec<Artifact>>) -> Result<()> {
    blobs(shared, inputs)?;
    for spec in stage.sources() {
        if let Some(path) = shared.sources.get(spec).and_then(|s| s.changed(&shared.store)) {
            return Err(Error::input(format!("`{}` changed while the stage read it", path.display()))
                .help("run again: nothing was kept of this attempt"));
        }
    }
    Ok(())
}

fn blobs(shared: &Shared, inputs: &BTreeMap<String, Vec<Artifact>>) -> Result<()> {
    let mut moved = Vec::new();
    for (port, artifact) in inputs.iter().flat_map(|(port, all)| all.iter().map(move |a| (port, a))) {
        for file in &artifact.files {
            if let Some(to) = shared.store.quarantine_if_damaged(file)? {
                let from = &artifact.label;
                moved.push(format!(
                    "`{}` of `{from}` (input `{port}`), kept as `{}`",
                    file.name,
                    to.display()
                ));
            }
        }
    }
    if moved.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!("the store was changed while the stage read it: {}", moved.join("; ")))
        .help("a stage must not write to its inputs, and nothing may write to `artifacts/store`")
        .help("run again: what made them will run anew, and nothing was kept of this attempt"))
}
