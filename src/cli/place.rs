//! Where a command writes files for the user: whole or not at all, and over nothing that is there.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, fs};

/// What was written.
pub struct Written {
    /// The folder or the file.
    pub path: PathBuf,
    /// Names and sizes, relative to `path` where that is a folder.
    pub files: Vec<(String, u64)>,
}

impl Written {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }
}

/// Has `work` fill a folder, which then becomes `path`.
///
/// # Errors
/// When something is there already, or `work` fails: nothing is left then.
pub fn folder(path: &Path, work: impl FnOnce(&Path) -> Result<()>) -> Result<Written> {
    must_be_free(path, false)?;
    let temporary = beside(path)?;
    let made = temporary.path().join("made");
    fs::create_dir(&made)?;
    work(&made)?;
    let files = listed(&made)?;
    must_be_free(path, false)?;
    fs::rename(&made, path)?;
    Ok(Written { path: path.to_path_buf(), files })
}

/// As [`folder`], but where `path` ends as the only file that `work` writes, `path` becomes that file. With
/// `force` it replaces one.
///
/// # Errors
/// As [`folder`]; when `path` is to be a file and there are several.
pub fn folder_or_file(path: &Path, force: bool, work: impl FnOnce(&Path) -> Result<()>) -> Result<Written> {
    let free_for_a_file =
        || must_be_free(path, force).map_err(|e| e.help("--force replaces a file, but no folder"));
    if path.is_file() {
        free_for_a_file()?;
    }
    let temporary = beside(path)?;
    let made = temporary.path().join("made");
    fs::create_dir(&made)?;
    work(&made)?;
    let files = listed(&made)?;
    let ending = |name: &str| Path::new(name).extension().map(|e| e.to_ascii_lowercase());
    let is_file = !path.is_dir()
        && path
            .extension()
            .is_some_and(|own| files.iter().any(|(name, _)| ending(name).as_deref() == Some(own)));
    match files.as_slice() {
        [(name, _)] if is_file => {
            free_for_a_file()?;
            fs::rename(&made.join(name), path)?;
        }
        several if is_file => {
            let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
            let what = format!("`{}` would be several files: {}", path.display(), names.join(", "));
            return Err(Error::usage(what).help("name a folder for them, without an ending"));
        }
        _ => {
            must_be_free(path, false)?;
            fs::rename(&made, path)?;
        }
    }
    Ok(Written { path: path.to_path_buf(), files })
}

/// Has `work` write what `path` then holds, at once. With `force` it replaces a file.
///
/// # Errors
/// When something is there already, or `work` fails: nothing is left then.
pub fn file(path: &Path, force: bool, work: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
    must_be_free_for_a_file(path, force)?;
    let temporary = beside(path)?;
    let made = temporary.path().join("made");
    let mut writer = BufWriter::new(fs::create(&made)?);
    work(&mut writer)?;
    writer.flush().map_err(|e| Error::io("write", path, &e))?;
    must_be_free_for_a_file(path, force)?;
    fs::rename(&made, path)?;
    fs::size(path)
}

/// Refuses a path where something is, or with `force` only a folder.
///
/// # Errors
/// When there is.
pub fn must_be_free_for_a_file(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() {
        let error = Error::usage(format!("`{}` is a folder", path.display()));
        return Err(error.help("name a file that is to be written"));
    }
    must_be_free(path, force).map_err(|e| e.help("--force replaces a file"))
}

/// Refuses a path where something is, an empty folder aside.
///
/// # Errors
/// When there is.
pub fn must_be_free(path: &Path, force: bool) -> Result<()> {
    let is_free = match path.is_dir() {
        true => fs::children(path)?.is_empty(),
        false => path.symlink_metadata().is_err() || force,
    };
    if is_free {
        return Ok(());
    }
    let what = if path.is_dir() { "a folder that is not empty" } else { "a file" };
    Err(Error::usage(format!("`{}` is {what} already", path.display()))
        .help("nothing is overwritten: name another path, or remove it"))
}

/// A folder for temporaries on the file system of `path`, beside what there is of its folders.
fn beside(path: &Path) -> Result<tempfile::TempDir> {
    let path = fs::absolute(path)?;
    let parent = path.ancestors().skip(1).find(|p| p.is_dir()).unwrap_or(Path::new("."));
    fs::temp_dir(parent, ".tinylm-")
}

/// Names below `folder`, and sizes.
fn listed(folder: &Path) -> Result<Vec<(String, u64)>> {
    let file = |path: PathBuf| {
        let name = fs::name_below(folder, &path).unwrap_or_else(|| path.display().to_string());
        Ok((name, fs::size(&path)?))
    };
    fs::files_below(folder)?.into_iter().map(file).collect()
}
