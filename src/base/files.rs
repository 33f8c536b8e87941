//! Some files by their names: those of an artifact or a folder, or a single file.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Error, Result, fs};

/// Files by their names, which are relative to the folder that they are in, with `/`.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// What messages call them.
    pub label: String,
    /// Names and where the bytes are, which may be called otherwise.
    pub all: Vec<(String, PathBuf)>,
}

impl Files {
    /// All files below a folder, or the file at `path` alone.
    ///
    /// # Errors
    /// When there is none, or the folder cannot be read.
    pub fn at(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let (base, paths) = match path.is_dir() {
            true => (path, fs::files_below(path)?),
            false => (path.parent().unwrap_or(Path::new("")), vec![path.to_path_buf()]),
        };
        let name = |path: &Path| path.strip_prefix(base).unwrap_or(path).to_string_lossy().replace('\\', "/");
        let all: Vec<_> = paths.into_iter().map(|path| (name(&path), path)).collect();
        match all.is_empty() {
            true => Err(Error::input(format!("the folder `{label}` is empty"))),
            false => Ok(Files { label, all }),
        }
    }

    /// The file called `name`.
    pub fn find(&self, name: &str) -> Option<&Path> {
        self.all.iter().find(|(n, _)| n == name).map(|(_, path)| path.as_path())
    }

    /// The file called `name`.
    ///
    /// # Errors
    /// When there is none; says which there are.
    pub fn file(&self, name: &str) -> Result<&Path> {
        self.find(name).ok_or_else(|| {
            let names: Vec<_> = self.all.iter().take(8).map(|(name, _)| name.as_str()).collect();
            Error::input(format!("`{}` has no file `{name}`", self.label))
                .help(format!("it has: {}", names.join(", ")))
        })
    }

    /// The file, when there is one alone.
    pub fn only(&self) -> Option<&Path> {
        match self.all.as_slice() {
            [(_, path)] => Some(path),
            _ => None,
        }
    }

    /// The one file whose name ends so; `None` when there is none, or there are several.
    pub fn ending(&self, end: &str) -> Option<&Path> {
        let mut found = self.all.iter().filter(|(name, _)| name.ends_with(end));
        match (found.next(), found.next()) {
            (Some((_, path)), None) => Some(path),
            _ => None,
        }
    }
}

/// The first `n` bytes of a file, or as many as it has; none when it cannot be read.
pub fn head(path: &Path, n: usize) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(file) = fs::open(path) {
        let _ = file.take(n as u64).read_to_end(&mut head);
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_name_or_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Files::at(dir.path()).unwrap_err().message().contains("is empty"));
        fs::write(&dir.path().join("a/b.bin"), b"abc").unwrap();
        let file = dir.path().join("c.txt");
        fs::write(&file, b"").unwrap();
        let both = Files::at(dir.path()).unwrap();
        assert_eq!(both.find("a/b.bin"), Some(dir.path().join("a/b.bin").as_path()));
        assert_eq!((both.ending(".txt"), both.only()), (Some(file.as_path()), None));
        assert!(both.file("d").unwrap_err().to_string().contains("it has: a/b.bin, c.txt"));
        assert_eq!(Files::at(&file).unwrap().only(), Some(file.as_path()));
        assert_eq!(head(both.find("a/b.bin").unwrap(), 2), b"ab");
    }
}
