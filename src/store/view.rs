//! Views, `artifacts/PIPELINE/STAGE/PORT/…`: an artifact's files under their names, as links to blobs.
//! Remade when they differ.

use std::collections::BTreeMap;
use std::path::Path;

use super::Store;
use super::scratch::Scratch;
use crate::base::{Digest, Result, fs};
use crate::stage::{Artifact, ArtifactFile};

/// Makes `folder` show exactly `artifact`; built beside and swapped in, so that it is never partial, also
/// while other processes do the same.
pub fn refresh(folder: &Path, artifact: &Artifact, store: &Store, scratch: &Scratch) -> Result<()> {
    if artifact.files.len() == count(folder) && artifact.files.iter().all(|f| is_shown(folder, f, store)) {
        return Ok(());
    }
    let fresh = place_to_build(folder, scratch)?;
    let built = fresh.path().join("view");
    for file in &artifact.files {
        store.linked(file, &built.join(&file.name))?;
    }
    fs::swap_folder(&built, folder)
}

/// A folder may lie on another disk than its parent, as where `artifacts/PIPELINE` is a symbolic link.
fn place_to_build(folder: &Path, scratch: &Scratch) -> Result<tempfile::TempDir> {
    let fresh = scratch.view_folder()?;
    let beside = folder.parent().unwrap_or(folder);
    match fs::on_one_file_system(fresh.path(), beside) {
        true => Ok(fresh),
        false => fs::temp_dir(beside, ".view-"),
    }
}

/// Removes the folders of a stage's view that show none of `outputs`. What cannot be removed stays: the
/// artifacts themselves are right.
pub fn remove_others(stage: &Path, outputs: &BTreeMap<String, Digest>) {
    for path in fs::children(stage).unwrap_or_default() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Views that other processes are building have names with a dot.
        if path.is_dir() && !name.starts_with('.') && !outputs.contains_key(&*name) {
            let _ = fs::remove(&path);
        }
    }
}

fn count(folder: &Path) -> usize {
    fs::files_below(folder).map_or(0, |files| files.len())
}

/// A hard link shares the blob's inode; a reflink or a copy is compared by content and executable bit.
fn is_shown(folder: &Path, file: &ArtifactFile, store: &Store) -> bool {
    let path = folder.join(&file.name);
    let (Some(shown), Some(blob)) = (fs::stat(&path), fs::stat(&file.path)) else { return false };
    let same = |digest| digest == file.digest;
    (shown == blob && !file.executable)
        || (shown.size == file.size
            && fs::is_executable(&path) == file.executable
            && store.digest_of(&path).is_ok_and(same))
}
