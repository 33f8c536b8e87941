//! Prepares the files of an output's folder to be moved into the store: regular files, owned by this user,
//! with one hard link. A stage may be any program, so nothing here follows a symbolic link unchecked, waits
//! for a named pipe, or changes a file that has hard links elsewhere.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, fs};

/// A file of an output that may be moved and made read-only.
#[derive(Debug, PartialEq, Eq)]
pub struct Collected {
    pub path: PathBuf,
    /// Its path within the artifact.
    pub name: String,
    pub executable: bool,
}

/// All files of the output `port` at `root`: a folder of them, or a single file.
///
/// # Errors
/// When there is none, or something that cannot be stored: a link to outside, to a folder or to nothing, a
/// named pipe, a socket, a device, a name that is not UTF-8.
pub fn collect(port: &str, root: &Path) -> Result<Vec<Collected>> {
    let output = Output { port, root };
    let mut files = match root.symlink_metadata() {
        Ok(meta) if meta.is_dir() => output.below()?,
        Ok(meta) => vec![output.file(root, port.to_string(), &meta)?],
        Err(_) => Vec::new(),
    };
    if files.is_empty() {
        return Err(Error::input(format!("the stage wrote nothing to its output `{port}`")));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

struct Output<'a> {
    port: &'a str,
    root: &'a Path,
}

impl Output<'_> {
    fn below(&self) -> Result<Vec<Collected>> {
        let (mut files, mut empty) = (Vec::new(), Vec::new());
        let mut open = vec![self.root.to_path_buf()];
        while let Some(folder) = open.pop() {
            let inside = self.list(&folder)?;
            if inside.is_empty() && folder != self.root {
                empty.push(self.name(&folder)?);
            }
            for path in inside {
                let meta = path.symlink_metadata().map_err(|e| Error::io("read", &path, &e))?;
                match meta.is_dir() {
                    true => open.push(path),
                    false => files.push(self.file(&path, self.name(&path)?, &meta)?),
                }
            }
        }
        if !empty.is_empty() {
            empty.sort();
            tracing::warn!("output `{}`: empty folders are not kept: {}", self.port, empty.join(", "));
        }
        Ok(files)
    }

    /// The entries of a folder, whose permissions the program may have removed.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::children(folder).or_else(|_| {
            fs::open_folders(folder);
            fs::children(folder)
        })
    }

    fn name(&self, path: &Path) -> Result<String> {
        fs::name_below(self.root, path).ok_or_else(|| {
            let shown = path.strip_prefix(self.root).unwrap_or(path).as_os_str().as_encoded_bytes();
            self.error(&format!("has a file whose name is not UTF-8: `{}`", shown.escape_ascii()))
        })
    }

    fn error(&self, what: &str) -> Error {
        Error::input(format!("the output `{}` {what}", self.port))
    }

    fn file(&self, path: &Path, name: String, meta: &Metadata) -> Result<Collected> {
        let executable = match meta.file_type() {
            kind if kind.is_file() => {
                let executable = is_executable(meta);
                match is_ours_alone(meta) {
                    true => make_readable(path, meta)?,
                    false => replace_by_copy(path, path, executable)?,
                }
                executable
            }
            kind if kind.is_symlink() => self.follow(path, &name)?,
            _ => {
                let what = fs::what_is(path);
                return Err(self
                    .error(&format!("holds {what}, `{name}`"))
                    .help("an output is made of files; remove it at the end of the command"));
            }
        };
        Ok(Collected { path: path.to_path_buf(), name, executable })
    }

    /// Replaces a link by a copy of its target; whether that is executable.
    fn follow(&self, link: &Path, name: &str) -> Result<bool> {
        let shown = link.read_link().unwrap_or_default();
        let refuse = |why: &str| {
            self.error(&format!("holds a link, `{name}` -> `{}`, {why}", shown.display()))
                .help("copy what it leads to: `cp -L`, `cp -rL`")
        };
        let target = link.canonicalize().map_err(|_| refuse("that leads to nothing"))?;
        let root = self.root.canonicalize().map_err(|e| Error::io("find", self.root, &e))?;
        if !target.starts_with(&root) || target == root {
            return Err(refuse("that leads out of the output"));
        }
        let meta = target.metadata().map_err(|e| Error::io("read", &target, &e))?;
        if !meta.is_file() {
            return Err(refuse(&format!("that leads to {}", fs::what_is(&target))));
        }
        if is_ours_alone(&meta) {
            make_readable(&target, &meta)?;
        }
        replace_by_copy(&target, link, is_executable(&meta))?;
        Ok(is_executable(&meta))
    }
}

/// Replaces the link at `place` by a copy of `from`.
fn replace_by_copy(from: &Path, place: &Path, executable: bool) -> Result<()> {
    let folder = place.parent().unwrap_or(Path::new("."));
    let beside = fs::temp_dir(folder, ".copy-").or_else(|_| {
        fs::open_folders(folder);
        fs::temp_dir(folder, ".copy-")
    })?;
    let copy = beside.path().join("copy");
    fs::copy_plain(from, &copy, executable)?;
    fs::rename(&copy, place)
}

/// Whether moving the file and making it read-only affects nothing else.
#[cfg(unix)]
fn is_ours_alone(meta: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: it only returns a number.
    meta.nlink() == 1 && meta.uid() == unsafe { libc::geteuid() }
}

#[cfg(not(unix))]
fn is_ours_alone(_: &Metadata) -> bool {
    true
}

#[cfg(unix)]
fn is_executable(meta: &Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o111 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &Metadata) -> bool {
    false
}

/// A file of this user without permission to read it.
fn make_readable(path: &Path, meta: &Metadata) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = meta.permissions().mode();
        if mode & 0o400 == 0 {
            let readable = std::fs::Permissions::from_mode(mode | 0o400);
            return std::fs::set_permissions(path, readable)
                .map_err(|e| Error::io("make readable", path, &e));
        }
    }
    #[cfg(not(unix))]
    let _ = (path, meta);
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn names(files: &[Collected]) -> Vec<&str> {
        files.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn links_within_become_copies_and_other_names_keep_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let (out, user) = (dir.path().join("out"), dir.path().join("user.txt"));
        fs::write(&out.join("a/real"), b"bytes").unwrap();
        symlink("real", out.join("a/link")).unwrap();
        fs::write(&user, b"mine").unwrap();
        std::fs::hard_link(&user, out.join("twin")).unwrap();
        let before = user.metadata().unwrap();
        let files = collect("t", &out).unwrap();
        assert_eq!(names(&files), ["a/link", "a/real", "twin"]);
        for file in &files {
            let meta = file.path.symlink_metadata().unwrap();
            assert!(meta.is_file() && meta.nlink() == 1, "{file:?}");
            assert_ne!(meta.ino(), before.ino());
        }
        assert_eq!(fs::read(&files[0].path).unwrap(), b"bytes");
        assert_eq!(fs::read(&files[2].path).unwrap(), b"mine");
        assert_eq!(user.metadata().unwrap().mode(), before.mode());
    }

    #[test]
    fn what_is_no_file_is_refused_by_its_name() {
        let refused = |make: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            fs::create_dir(&out).unwrap();
            make(&out.join("x"));
            collect("t", &out).unwrap_err().message().to_string()
        };
        assert!(refused(&|x| symlink("/etc/hostname", x).unwrap()).contains("leads out of the output"));
        assert!(refused(&|x| symlink("gone", x).unwrap()).contains("leads to nothing"));
        assert!(refused(&|x| symlink(".", x).unwrap()).contains("leads out of the output"));
        assert!(
            refused(&|x| drop(std::os::unix::net::UnixListener::bind(x).unwrap())).contains("a socket, `x`")
        );
        assert!(refused(&|_| ()).contains("wrote nothing"));
        assert_eq!(
            refused(&|x| {
                fs::write(&x.with_file_name("f/y"), b"y").unwrap();
                symlink("f", x).unwrap();
            }),
            "the output `t` holds a link, `x` -> `f`, that leads to a folder"
        );
    }
}
