//! The only module that calls `std::fs`: every error names the path, every listing is sorted. A file that
//! other processes may read is written to a temporary file, then renamed.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Error, Place, Result};

/// The metadata by which a changed file is recognized without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    pub size: u64,
    pub mtime_ns: u64,
    /// When content, name or permissions last changed, which no program can set; 0 where the system does not
    /// record it.
    pub ctime_ns: u64,
    pub inode: u64,
}

pub fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| Error::io("open", path, &e))?;
    match file.metadata() {
        Ok(meta) if meta.is_dir() => {
            Err(Error::input(format!("`{}` is a directory, expected a file", path.display())))
        }
        _ => Ok(file),
    }
}

pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, &e))?;
    Ok(bytes)
}

/// As [`read`]; `None` when nothing is there.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

/// A file that must be UTF-8.
///
/// # Errors
/// When it cannot be read, or with line and column where it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let bytes = e.as_bytes();
        Error::input(format!("byte {at} (0x{:02X}) is not valid UTF-8", bytes[at]))
            .at(place_of_byte(&path.display().to_string(), bytes, at))
            .help("save the file as UTF-8")
    })
}

/// Line and column of byte `at` in `bytes`, for messages about a file.
pub fn place_of_byte(file: &str, bytes: &[u8], at: usize) -> Place {
    let start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let end = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |i| at + i);
    Place {
        file: file.to_string(),
        line: bytes[..at].iter().filter(|b| **b == b'\n').count() + 1,
        column: String::from_utf8_lossy(&bytes[start..at]).chars().count() + 1,
        excerpt: String::from_utf8_lossy(&bytes[start..end]).trim_end_matches('\r').to_string(),
        width: 1,
    }
}

/// A new file for a writer in a folder that no other process reads yet (a stage's output folder).
pub fn create(path: &Path) -> Result<File> {
    create_parent(path)?;
    File::create(path).map_err(|e| Error::io("create", path, &e))
}

/// [`create`] and write in one go.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    create(path)?.write_all(bytes).map_err(|e| Error::io("write", path, &e))
}

/// [`write`] a value as indented JSON with a line break at its end.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::bug(format!("`{}` does not fit in JSON: {e}", path.display())))?;
    json.push(b'\n');
    write(path, &json)
}

pub fn append(path: &Path) -> Result<File> {
    create_parent(path)?;
    File::options().append(true).create(true).open(path).map_err(|e| Error::io("open", path, &e))
}

/// The result of locking a file. The kernel releases the lock when the process ends, however it ends.
#[derive(Debug)]
pub enum Lock {
    Mine(File),
    /// Another process holds the lock.
    Taken,
    /// Opened, but not locked: the file system has no locks.
    Unknown(File),
}

/// Opens and locks a file to read and append to, created when absent; `None` while another process holds
/// its lock.
pub fn open_exclusive(path: &Path) -> Result<Option<File>> {
    create_parent(path)?;
    Ok(match lock(path, true)? {
        // Some network file systems have no locks: the user must then run one process at a time.
        Some(Lock::Mine(file) | Lock::Unknown(file)) => Some(file),
        _ => None,
    })
}

/// Locks the file at `path`, which is created when absent and `create`; `None` when there is none.
pub fn lock(path: &Path, create: bool) -> Result<Option<Lock>> {
    lock_with(path, create, File::try_lock)
}

/// Locks the file at `path`, created when absent, together with others that do so: while one of them holds
/// it, [`lock`] finds it taken.
pub fn lock_shared(path: &Path) -> Result<Lock> {
    create_parent(path)?;
    Ok(lock_with(path, true, File::try_lock_shared)?.unwrap_or(Lock::Taken))
}

fn lock_with(
    path: &Path,
    create: bool,
    try_lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<Option<Lock>> {
    loop {
        let file = match File::options().read(true).append(true).create(create).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound && !create => return Ok(None),
            file => file.map_err(|e| Error::io("open", path, &e))?,
        };
        let known = match try_lock(&file) {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Ok(Some(Lock::Taken)),
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => false,
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path, &e)),
        };
        // The previous owner may have removed it between opening and locking.
        let meta = file.metadata().map_err(|e| Error::io("read", path, &e))?;
        if stat(path).is_some_and(|now| now.inode == inode(&meta)) {
            return Ok(Some(if known { Lock::Mine(file) } else { Lock::Unknown(file) }));
        }
    }
}

/// Whether a process holds the lock of the file at `path`; `None` where the file system has no locks. Only
/// looks: nothing is created, and others that look at the same time see the same.
pub fn is_locked(path: &Path) -> Result<Option<bool>> {
    match open(path)?.try_lock_shared() {
        Ok(()) => Ok(Some(false)),
        Err(TryLockError::WouldBlock) => Ok(Some(true)),
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", path, &e)),
    }
}

/// Creates a folder; `false` when it exists.
pub fn create_new_dir(path: &Path) -> Result<bool> {
    create_parent(path)?;
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("create the folder", path, &e)),
    }
}

pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("create the folder", path, &e))
}

fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => create_dir(parent),
        _ => Ok(()),
    }
}

/// Removes what is at `path`, if anything, whatever permissions the folders below it have.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).or_else(|e| match e.kind() {
            ErrorKind::PermissionDenied => {
                open_folders(path);
                fs::remove_dir_all(path)
            }
            _ => Err(e),
        }),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.map_err(|e| Error::io("remove", path, &e))
}

/// Gives the owner all permissions of `folder` and every folder below it, as far as possible. Follows no
/// links.
pub fn open_folders(folder: &Path) {
    let mut open = vec![folder.to_path_buf()];
    while let Some(dir) = open.pop() {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let closed = |mode: u32| mode & 0o700 != 0o700;
            if let Ok(mode) = fs::symlink_metadata(&dir).map(|m| m.permissions().mode())
                && closed(mode)
            {
                let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(mode | 0o700));
            }
        }
        let below = entries(&dir).unwrap_or_default();
        open.extend(below.iter().filter(|e| e.file_type().is_ok_and(|k| k.is_dir())).map(fs::DirEntry::path));
    }
}

pub fn rename(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    fs::rename(from, to).map_err(|e| Error::io("move a file to", to, &e))
}

/// Has the file or folder at `path` on the disk, not only in the system's memory, so that it outlasts a loss
/// of power.
pub fn sync(path: &Path) -> Result<()> {
    let is_dir = path.is_dir();
    if is_dir && !cfg!(unix) {
        // Elsewhere folders cannot be opened.
        return Ok(());
    }
    let opened = File::options().read(true).write(!is_dir).open(path);
    opened.and_then(|opened| opened.sync_all()).map_err(|e| Error::io("write", path, &e))
}

/// Swaps the folder `fresh` with the one at `place` atomically, or moves it there if there is none. Readers
/// see the old folder or the new, also when other processes do the same.
pub fn swap_folder(fresh: &Path, place: &Path) -> Result<()> {
    create_parent(place)?;
    loop {
        match fs::rename(fresh, place) {
            Ok(()) => return Ok(()),
            Err(e) if is_occupied(e.kind()) => {}
            Err(e) => return Err(Error::io("move a folder to", place, &e)),
        }
        match exchange(fresh, place) {
            Ok(()) => return Ok(()),
            // Another process has removed it again.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::io("replace", place, &e));
            }
            // A file system that cannot exchange two names: `place` is absent for a moment.
            Err(_) => set_aside(fresh, place)?,
        }
    }
}

fn is_occupied(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory)
}

fn set_aside(fresh: &Path, place: &Path) -> Result<()> {
    let old = temp_dir(fresh.parent().unwrap_or(Path::new(".")), "old-")?;
    match fs::rename(place, old.path().join("was")) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("replace", place, &e)),
        _ => Ok(()),
    }
}

/// Exchanges two paths of one file system atomically.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes());
    let (a, b) = (name(a)?, name(b)?);
    // SAFETY: both names end with a zero byte and live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether two paths, or what they will lie in, are on one file system, so that renaming can move.
pub fn on_one_file_system(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| path.ancestors().find_map(|p| fs::metadata(p).ok()).map(|m| m.dev());
        device(a) == device(b)
    }
    #[cfg(not(unix))]
    {
        a.components().next() == b.components().next()
    }
}

/// Whether the file at `path` has an executable bit.
pub fn is_executable(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }
    #[cfg(not(unix))]
    path.is_file()
}

/// Makes a blob read-only and not executable, since all files with these bytes share it.
pub fn make_read_only(path: &Path) -> Result<()> {
    let mut permissions = fs::metadata(path).map_err(|e| Error::io("read", path, &e))?.permissions();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        permissions.set_mode(permissions.mode() & 0o444 | 0o400);
    }
    #[cfg(not(unix))]
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).map_err(|e| Error::io("make read-only", path, &e))
}

/// A copy that is executable for those who may read it, and read-only.
pub fn copy_executable(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    remove(to)?;
    fs::copy(from, to).map_err(|e| Error::io("copy a file to", to, &e))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let meta = fs::metadata(to).map_err(|e| Error::io("read", to, &e))?;
        let may_read = meta.permissions().mode() & 0o444;
        let runnable = fs::Permissions::from_mode(may_read | may_read >> 2);
        fs::set_permissions(to, runnable).map_err(|e| Error::io("make executable", to, &e))?;
    }
    Ok(())
}

/// The same bytes under a second name: a reflink where the file system has them (an edit of one
/// leaves the other alone), else a hard link, else a copy.
pub fn link(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    remove(to)?;
    if reflink_copy::reflink(from, to).is_ok() || fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(drop).map_err(|e| Error::io("copy a file to", to, &e))
}

/// The mtime of copies for commands, in seconds since 1970: fixed, so that it does not depend on when they
/// were made; ZIP archives have no times before 1980.
const COPY_TIME: u64 = 315_619_200;

/// A copy of the file at `from` that shares nothing with it, read-only, whatever `from` may be, and with a
/// fixed time. Where the file system can share blocks until one is changed, no byte is copied.
pub fn copy_plain(from: &Path, to: &Path, executable: bool) -> Result<()> {
    create_parent(to)?;
    let mut source = open(from)?;
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if executable { 0o555 } else { 0o444 });
    let mut copy = options.open(to).map_err(|e| Error::io("create", to, &e))?;
    std::io::copy(&mut source, &mut copy).map_err(|e| Error::io("copy a file to", to, &e))?;
    copy.set_modified(copy_time()).map_err(|e| Error::io("set the time of", to, &e))
}

fn copy_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(COPY_TIME)
}

/// Sets the mtime of `folder` and the folders below it to that of copies.
pub fn set_copy_times(folder: &Path) -> Result<()> {
    for entry in entries(folder)? {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            set_copy_times(&entry.path())?;
        }
    }
    let set = File::open(folder).and_then(|opened| opened.set_modified(copy_time()));
    // Elsewhere folders cannot be opened.
    if cfg!(unix) { set.map_err(|e| Error::io("set the time of", folder, &e)) } else { Ok(()) }
}

/// `path` from the root of the file system; links and `..` stay.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, &e))
}

/// `None` when there is no file at `path`.
pub fn stat(path: &Path) -> Option<Stat> {
    let meta = fs::metadata(path).ok().filter(|m| m.is_file())?;
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(Stat {
        size: meta.len(),
        mtime_ns: since.as_nanos() as u64,
        ctime_ns: ctime_ns(&meta),
        inode: inode(&meta),
    })
}

/// When the file at `path` was made; `None` where the system does not record it.
pub fn created(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.created().ok()
}

#[cfg(unix)]
fn ctime_ns(meta: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    (meta.ctime().max(0) as u64).saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec().max(0) as u64)
}

#[cfg(not(unix))]
fn ctime_ns(_: &fs::Metadata) -> u64 {
    0
}

#[cfg(unix)]
fn inode(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(meta)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

/// The size of the file at `path`.
pub fn size(path: &Path) -> Result<u64> {
    fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io("read", path, &e))
}

/// Every file below `folder`, in byte order of the path. Links are followed.
///
/// # Errors
/// When a folder cannot be listed, or a link leads back to a folder that it lies in.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_path_buf(), Vec::new())];
    while let Some((dir, left)) = open.pop() {
        for entry in entries(&dir)? {
            let path = entry.path();
            match entry.file_type() {
                // Listing a folder gives the types of entries, except for targets of links.
                Ok(kind) if !kind.is_symlink() => match kind.is_dir() {
                    true => open.push((path, left.clone())),
                    false => found.push(path),
                },
                _ if path.is_dir() => {
                    let left = through_link(&dir, &path, &left)?;
                    open.push((path, left));
                }
                _ => found.push(path),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The folders in which links were followed on the way through `link`, which lies in `dir`.
fn through_link(dir: &Path, link: &Path, left: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("follow", path, &e));
    let (from, target) = (real(dir)?, real(link)?);
    let left: Vec<PathBuf> = left.iter().cloned().chain([from]).collect();
    if left.iter().any(|folder| folder.starts_with(&target)) {
        return Err(Error::input(format!(
            "the link `{}` leads back to `{}`, in which it lies",
            link.display(),
            target.display()
        ))
        .help("remove the link: a folder that contains itself has no end"));
    }
    Ok(left)
}

/// The type of what is at `path`, in words: `a named pipe`, `a link to nothing`.
pub fn what_is(path: &Path) -> &'static str {
    let Ok(meta) = fs::symlink_metadata(path) else { return "nothing" };
    let kind = match meta.file_type().is_symlink() {
        true => match fs::metadata(path) {
            Ok(target) => target.file_type(),
            Err(e) if e.kind() == ErrorKind::NotFound => return "a link to nothing",
            Err(_) => return "a link that cannot be followed",
        },
        false => meta.file_type(),
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a folder" } else { "a file" }
}

/// The name of `path` below `base`, with `/` on every system; `None` when it is not UTF-8.
pub fn name_below(base: &Path, path: &Path) -> Option<String> {
    let name = path.strip_prefix(base).unwrap_or(path).to_str()?;
    // On other systems a backslash is an ordinary character.
    Some(if cfg!(windows) { name.replace('\\', "/") } else { name.to_string() })
}

/// The entries of `folder`, sorted.
pub fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = entries(folder)?.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let failed = |e| Error::io("list", folder, &e);
    fs::read_dir(folder).map_err(failed)?.map(|entry| entry.map_err(failed)).collect()
}

/// A private folder in `parent` that removes itself when dropped.
pub fn temp_dir(parent: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    create_dir(parent)?;
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(parent)
        .map_err(|e| Error::io("create a folder in", parent, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_utf8_are_located() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write(&path, b"good\nse\xC3\xA9 bad\xFFbyte\n").unwrap();
        let error = read_text(&path).unwrap_err();
        let place = error.place().unwrap();
        assert_eq!((place.line, place.column), (2, 8), "{error}");
        assert!(error.message().contains("0xFF"), "{error}");
    }

    #[test]
    fn a_folder_takes_the_place_of_another_and_leaves_it_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, place) = (dir.path().join("fresh"), dir.path().join("deep/er/place"));
        for text in ["one", "two"] {
            remove(&fresh).unwrap();
            write(&fresh.join("a.txt"), text.as_bytes()).unwrap();
            swap_folder(&fresh, &place).unwrap();
            assert_eq!(read_text(&place.join("a.txt")).unwrap(), text);
        }
        // Where two names cannot be exchanged, the old folder goes first.
        remove(&fresh).unwrap();
        write(&fresh.join("b.txt"), b"three").unwrap();
        set_aside(&fresh, &place).unwrap();
        swap_folder(&fresh, &place).unwrap();
        assert_eq!(files_below(dir.path()).unwrap(), [place.join("b.txt")]);
    }

    #[test]
    fn a_locked_file_is_taken_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(lock(&path, false).unwrap().is_none());
        let held = lock(&path, true).unwrap();
        assert!(matches!(held, Some(Lock::Mine(_))));
        assert!(matches!(lock(&path, false).unwrap(), Some(Lock::Taken)));
        assert_eq!(is_locked(&path).unwrap(), Some(true));
        drop(held);
        let looking = File::open(&path).unwrap();
        looking.lock_shared().unwrap();
        assert_eq!(is_locked(&path).unwrap(), Some(false));
        drop(looking);
        assert!(matches!(lock(&path, false).unwrap(), Some(Lock::Mine(_))));
    }

    #[test]
    fn a_link_shows_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("x/b"));
        write(&a, b"bytes").unwrap();
        link(&a, &b).unwrap();
        link(&a, &b).unwrap();
        assert_eq!(read(&b).unwrap(), b"bytes");
    }
}
