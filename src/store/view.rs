//! `artifacts/PIPELINE/STAGE/PORT/…`: what people look at. Links to blobs, remade when they differ.

use std::path::Path;

use crate::base::{Result, fs};
use crate::stage::Artifact;

/// Makes `folder` show exactly `artifact`; built beside and renamed, so that it is never half there.
pub fn refresh(folder: &Path, artifact: &Artifact, tmp: &Path) -> Result<()> {
    if is_current(folder, artifact) {
        return Ok(());
    }
    let fresh = fs::temp_dir(tmp, "view-")?;
    let built = fresh.path().join("view");
    for file in &artifact.files {
        fs::link(&file.path, &built.join(&file.name))?;
    }
    fs::remove(folder)?;
    fs::rename(&built, folder)
}

/// Hard links share the blob's inode; reflinks do not and are cheap to make again.
fn is_current(folder: &Path, artifact: &Artifact) -> bool {
    let shown = fs::files_below(folder).map_or(0, |files| files.len());
    shown == artifact.files.len()
        && artifact.files.iter().all(|file| {
            let (a, b) = (fs::stat(&folder.join(&file.name)), fs::stat(&file.path));
            a.is_some() && a == b
        })
}
