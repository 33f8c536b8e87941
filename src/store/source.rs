//! Sources: files, globs, directories and URLs, found, hashed in parallel, and made into artifacts whose
//! manifests name files relative to the declared path, so that no key depends on where they lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Manifest, ManifestFile, Store};
use crate::base::fs::Stat;
use crate::base::{Digest, Error, Monitor, Result, fs, machine, suggest};
use crate::spec::SourceSpec;
use crate::stage::{Artifact, ArtifactFile, FILES};

/// The sources of a pipeline, by the text that declares them.
#[derive(Default)]
pub struct Sources {
    found: BTreeMap<String, Source>,
}

pub struct Source {
    pub artifact: Artifact,
    pub manifest: Manifest,
    /// The files' stat when they were hashed, and their digests.
    seen: Vec<(PathBuf, Option<Stat>, Digest)>,
}

impl Sources {
    /// `None` for a URL that is not downloaded yet.
    pub fn get(&self, spec: &SourceSpec) -> Option<&Source> {
        self.found.get(&spec.text)
    }

    /// Every source and the text that declares it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.found.iter().map(|(text, source)| (text.as_str(), source))
    }
}

impl Source {
    /// A file that changed since it was hashed, if one did: a stage may have read other bytes than those of
    /// its key.
    pub fn changed(&self, store: &Store) -> Option<&Path> {
        let touched = |then: &Option<Stat>, now: &Option<Stat>| match (then, now) {
            // A link or a chmod changes the ctime too; then, as where the stat is too fresh to prove
            // anything, the content decides.
            (Some(a), Some(b)) => Stat { ctime_ns: a.ctime_ns, ..*b } != *a,
            _ => true,
        };
        let changed = |(path, then, digest): &&(PathBuf, Option<Stat>, Digest)| {
            let now = fs::stat(path);
            touched(then, &now) || store.digest_of_stated(path, now).ok() != Some(*digest)
        };
        self.seen.iter().find(changed).map(|(path, ..)| path.as_path())
    }
}

/// Finds and hashes what `specs` declare, relative to `root`. URLs are looked up, not fetched.
///
/// # Errors
/// Every source that is missing, empty or of the wrong kind, at its place in the pipeline.
pub fn resolve<'a>(
    specs: impl Iterator<Item = &'a SourceSpec>,
    root: &Path,
    store: &Store,
) -> Result<Sources> {
    let mut listed: BTreeMap<&str, (&SourceSpec, Listing)> = BTreeMap::new();
    let mut mistakes = Vec::new();
    for spec in specs.filter(|s| !s.is_url() || s.sha256.is_some()) {
        if listed.contains_key(spec.text.as_str()) {
            continue;
        }
        match list(spec, root, store) {
            Ok(Some(files)) => drop(listed.insert(&spec.text, (spec, files))),
            Ok(None) => {}
            Err(e) => mistakes.push(e),
        }
    }
    if let Some(errors) = Error::join(mistakes) {
        return Err(errors);
    }
    let found = listed.into_values();
    let found = found.map(|(spec, files)| Ok((spec.text.clone(), source(spec, files, store)?)));
    Ok(Sources { found: found.collect::<Result<_>>()? })
}

/// Downloads the URLs among `specs` that the store does not hold.
///
/// # Errors
/// As [`super::download::download`].
pub fn fetch<'a>(
    specs: impl Iterator<Item = &'a SourceSpec>,
    store: &Store,
    monitor: &dyn Monitor,
) -> Result<()> {
    for spec in specs {
        let Some(sha256) = spec.sha256.as_ref().filter(|_| spec.is_url()) else { continue };
        if store.downloaded(sha256).is_some() {
            continue;
        }
        let whole = store.partial().join(format!("{sha256}.whole"));
        super::download::download(&spec.text, sha256, &whole, &store.partial(), monitor)
            .map_err(|e| e.at(spec.span.place()))?;
        store.keep_download(sha256, &whole, &url_name(&spec.text))?;
        let _ = fs::remove(&whole);
    }
    Ok(())
}

fn url_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let name = path.rsplit('/').next().unwrap_or("");
    if name.is_empty() || path.matches('/').count() < 3 { "download".into() } else { name.into() }
}

/// Characters that make a path a glob, unless there is a file or folder of exactly this name.
const WILDCARDS: [char; 3] = ['*', '?', '['];

type Listing = Vec<(String, PathBuf)>;

/// Names within the source, and paths. `None` for a URL that is not downloaded yet.
fn list(spec: &SourceSpec, root: &Path, store: &Store) -> Result<Option<Listing>> {
    let files = if let Some(sha256) = &spec.sha256 {
        let Some(file) = store.downloaded(sha256) else { return Ok(None) };
        vec![(url_name(&spec.text), store.object(&file.digest))]
    } else if spec.text.contains(WILDCARDS) && !root.join(&spec.text).exists() {
        glob(spec, root)?
    } else {
        path(spec, root)?
    };
    if let Some((name, _)) = files.iter().find(|(name, _)| !spec.endings.iter().any(|e| name.ends_with(e))) {
        return Err(at(spec, format!("`{name}` cannot be connected here"))
            .help(format!("expected a file that ends in {}", suggest::list(spec.endings.iter().copied()))));
    }
    Ok(Some(files))
}

fn at(spec: &SourceSpec, message: String) -> Error {
    Error::usage(message).at(spec.span.place())
}

fn path(spec: &SourceSpec, root: &Path) -> Result<Listing> {
    let path = root.join(&spec.text);
    if path.is_dir() {
        let files = fs::files_below(&path).map_err(|e| e.at(spec.span.place()))?;
        let files = listing(spec, &path, files)?;
        return if files.is_empty() {
            Err(at(spec, format!("the folder `{}` is empty", spec.text)))
        } else {
            Ok(files)
        };
    }
    if path.symlink_metadata().is_ok() {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| not_utf8(spec, &path))?;
        return Ok(vec![(name.to_string(), path)]);
    }
    let parent = path.parent().unwrap_or(root);
    let siblings: Vec<String> = fs::children(parent)
        .unwrap_or_default()
        .iter()
        .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
        .collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let error = at(spec, format!("there is no file or folder `{}`", spec.text));
    let error = match parent.is_dir() {
        true => error.suggest(suggest::closest(&name, siblings.iter().map(String::as_str))),
        false => error,
    };
    Err(of_variable(error, spec).help(format!("relative paths start from `{}`", root.display())))
}

/// How to name other files where a variable of the pipeline names these.
fn of_variable(error: Error, spec: &SourceSpec) -> Error {
    let place = spec.span.place();
    let written: String = place.excerpt.chars().skip(place.column - 1).take(place.width).collect();
    let variable = written.split_once("${vars.").and_then(|(_, rest)| rest.split_once('}'));
    match variable {
        Some((name, _)) => error.help(format!("to name yours: `--set vars.{name}=PATH`")),
        None => error,
    }
}

fn glob(spec: &SourceSpec, root: &Path) -> Result<Listing> {
    // Names are relative to the folders before the first wildcard.
    let first = spec.text.find(WILDCARDS).unwrap_or(0);
    let split = spec.text[..first].rfind('/').map_or(0, |i| i + 1);
    // Without `./`, which the glob crate drops from what it finds.
    let base: PathBuf =
        root.join(&spec.text[..split]).components().filter(|c| *c != std::path::Component::CurDir).collect();
    let pattern = Path::new(&glob::Pattern::escape(&base.to_string_lossy())).join(&spec.text[split..]);
    let matches = glob::glob(&pattern.to_string_lossy())
        .map_err(|e| literally(at(spec, format!("`{}` is not a glob: {}", spec.text, e.msg)), spec))?;
    let mut files = listing(spec, &base, matches.filter_map(Result::ok).filter(|p| !p.is_dir()))?;
    files.sort();
    if files.is_empty() {
        let error = literally(at(spec, format!("no file matches `{}`", spec.text)), spec);
        return Err(of_variable(error, spec).help(format!("relative paths start from `{}`", root.display())));
    }
    Ok(files)
}

/// How to write a glob that matches brackets.
fn literally(error: Error, spec: &SourceSpec) -> Error {
    match spec.text.contains('[') {
        true => error.help("`[` begins a set of characters; the character itself is written `[[]` in a glob"),
        false => error,
    }
}

/// The files and their names below `base`, without hidden files.
fn listing(spec: &SourceSpec, base: &Path, files: impl IntoIterator<Item = PathBuf>) -> Result<Listing> {
    let mut named = Vec::new();
    for path in files {
        let name = fs::name_below(base, &path).ok_or_else(|| not_utf8(spec, &path))?;
        if !name.split('/').any(|part| part.starts_with('.') && part != "." && part != "..") {
            named.push((name, path));
        }
    }
    Ok(named)
}

fn not_utf8(spec: &SourceSpec, path: &Path) -> Error {
    let shown = path.as_os_str().as_encoded_bytes().escape_ascii();
    at(spec, format!("the name of the file `{shown}` is not UTF-8")).help("rename it")
}

/// Below so many bytes to read, starting threads takes longer than reading.
const WORTH_THREADS: u64 = 1 << 20;

fn source(spec: &SourceSpec, listing: Listing, store: &Store) -> Result<Source> {
    let stats: Vec<_> = listing.iter().map(|(_, path)| (path.clone(), fs::stat(path))).collect();
    // Opening a named pipe waits for a writer, and a device may have no end.
    if let Some((path, _)) = stats.iter().find(|(_, stat)| stat.is_none()) {
        let what = fs::what_is(path);
        return Err(at(spec, format!("`{}` is {what}; a source is made of files", path.display())));
    }
    let unread = |(path, stat): &&(PathBuf, Option<Stat>)| stat.is_none_or(|s| !store.knows(path, &s));
    let bytes: u64 = stats.iter().filter(unread).filter_map(|(_, stat)| stat.map(|s| s.size)).sum();
    let digest = |(path, stat): &(PathBuf, Option<Stat>)| store.digest_of_stated(path, *stat);
    let digests: Vec<Digest> = match (bytes >= WORTH_THREADS).then(machine::pool).flatten() {
        Some(pool) => pool.install(|| stats.par_iter().map(digest).collect::<Result<_>>())?,
        None => stats.iter().map(digest).collect::<Result<_>>()?,
    };
    let seen = stats.iter().zip(&digests).map(|((path, stat), d)| (path.clone(), *stat, *d)).collect();
    let sizes = stats.iter().map(|(_, stat)| stat.map_or(0, |s| s.size));
    let mut files: Vec<ArtifactFile> = listing
        .into_iter()
        .zip(digests)
        .zip(sizes)
        .map(|(((name, path), digest), size)| {
            let executable = fs::is_executable(&path);
            ArtifactFile { name, path, digest, size, executable }
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let listed = files.iter().map(ManifestFile::of);
    let manifest = Manifest::new(FILES, listed.collect());
    Ok(Source {
        artifact: Artifact { label: spec.text.clone(), digest: manifest.digest(), files },
        manifest,
        seen,
    })
}
