//! States of a training: all that it needs to go on, saved as it goes, so that one that was killed, or a
//! longer one, need not begin anew. Outputs are the same bytes with and without them.
//!
//! ```text
//! v1-step-500-0f9a…/
//!   state.safetensors         weights, moments of the optimizer, the average
//!   state.json                all else: step, tokens, loss since the last row, metrics, samples
//!   best.safetensors          the weights of the best validation
//!   step-250.safetensors      weights to be kept
//!   B3SUMS                    BLAKE3 of each file, as `b3sum` writes it
//! ```
//!
//! A state is that after the update of a step, before the step is logged, validated or sampled: what happens
//! then depends on whether it is the last. What needs no saving follows from the step: which rows come next,
//! and what dropout drops.
//!
//! A folder is of one trajectory: trainings that differ at most in their number of steps, the schedule of
//! their learning rate and what they save. A state says which rates its steps had, and is used by trainings
//! with the same. Several processes may use the folder: a state appears whole, and goes with its `B3SUMS`
//! first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Options;
#[cfg(doc)]
use super::Outcome;
use super::early_stop::EarlyStop;
use super::metrics::Metrics;
use super::objective::Loss;
use super::tensors::{self, Reader, Stored, Tensor};
use crate::base::{Digest, Error, Result, fs};

/// What names of states begin with. The version is raised when earlier states can't be read, or would give
/// other bytes.
const PREFIX: &str = "v1-step-";
const JSON: &str = "state.json";
const TENSORS: &str = "state.safetensors";
const BEST: &str = "best.safetensors";
const SUMS: &str = "B3SUMS";

/// States of trainings with other rates that may stay in a folder, of those that were killed and never run
/// again.
const OTHERS: usize = 8;

/// Where a training writes.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The folder of metrics and samples.
    pub output: &'a Path,
    /// The folder of temporaries, and of the files that [`Outcome::kept`] names. On the file system of `state`.
    pub scratch: &'a Path,
    /// The folder of the states of this trajectory. `None`: none is saved or used.
    pub state: Option<&'a Path>,
}

/// What a state holds beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub step: u64,
    /// Of the learning rates up to this step.
    pub rates: Digest,
    /// Of the training data.
    pub rows: u64,
    pub tokens: u64,
    /// Since the last row of metrics.
    pub since: Loss,
    /// Of this step.
    pub grad_norm: f64,
    /// The optimizer's single numbers, by name.
    pub optimizer: BTreeMap<String, f64>,
    /// Steps that the average has seen.
    pub averaged: u64,
    pub early_stop: EarlyStop,
    pub metrics: Metrics,
}

/// What decides which states a training can use.
#[derive(Debug, Clone, Copy)]
struct Use<'a> {
    options: &'a Options,
    steps: u64,
    /// The step whose state stays when the training is done, for longer ones.
    shared: Option<u64>,
}

impl<'a> Use<'a> {
    fn new(options: &'a Options, rows: u64) -> Self {
        let steps = options.steps(rows as usize);
        Use { options, steps, shared: options.schedule.shared(steps) }
    }

    /// The digest that a state of `step` has.
    fn rates(&self, step: u64) -> Digest {
        self.options.schedule.digest(step, self.steps)
    }

    /// The steps up to `step` whose weights are kept.
    fn kept(&self, step: u64) -> impl Iterator<Item = u64> {
        self.options.keep_steps.iter().copied().filter(move |kept| *kept <= step)
    }

    /// Whether this training would come to the same state.
    fn comes_to(&self, state: &State) -> bool {
        state.step <= self.steps && state.rates == self.rates(state.step)
    }
}

/// The name of a file of kept weights.
pub(super) fn kept_file(step: u64) -> String {
    format!("step-{step}.safetensors")
}

/// A state in the folder.
struct Saved {
    path: PathBuf,
    state: State,
    sums: BTreeMap<String, Digest>,
}

impl Saved {
    /// `None` when it is just being removed.
    fn open(path: PathBuf) -> Result<Option<Self>> {
        let Some(sums) = fs::read_if_there(&path.join(SUMS))? else { return Ok(None) };
        let wrong = |what: String| Error::input(format!("`{}`: {what}", path.display()));
        let sums = parse_sums(&sums).ok_or_else(|| wrong(format!("`{SUMS}` is not readable")))?;
        let Some(json) = fs::read_if_there(&path.join(JSON))? else { return Ok(None) };
        if sums.get(JSON) != Some(&Digest::of(&json)) {
            return Err(wrong(format!("`{JSON}` is not what was saved")));
        }
        let state = serde_json::from_slice(&json).map_err(|e| wrong(format!("`{JSON}`: {e}")))?;
        Ok(Some(Saved { path, state, sums }))
    }

    /// Whether a training can go on from it: it comes to the state, and what is to be kept is there.
    fn is_for(&self, training: &Use) -> bool {
        let has = |name: &str| self.sums.contains_key(name) && self.path.join(name).is_file();
        training.comes_to(&self.state)
            && has(TENSORS)
            && training.kept(self.state.step).all(|step| has(&kept_file(step)))
    }
}

/// Where states of this version lie in `folder`, whole or not.
fn paths(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let is_state =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    fs::children(folder).unwrap_or_default().into_iter().filter(is_state)
}

/// The states in `folder` that can be read, those with the largest step first.
fn saved(folder: &Path) -> Vec<Saved> {
    let mut all: Vec<Saved> = paths(folder).filter_map(|path| Saved::open(path).ok().flatten()).collect();
    all.sort_by_key(|saved| std::cmp::Reverse(saved.state.step));
    all
}

/// Removes what can't be read of the states in `folder`, and says so.
fn remove_broken(folder: &Path) {
    for path in paths(folder) {
        match Saved::open(path.clone()) {
            Ok(Some(_)) => {}
            // The process that was removing it was killed meanwhile.
            Ok(None) => remove(&path),
            Err(e) => {
                tracing::warn!("a saved state is damaged and removed: {e}");
                remove(&path);
            }
        }
    }
}

/// Lines of a digest in hex digits, two spaces and a name.
fn parse_sums(bytes: &[u8]) -> Option<BTreeMap<String, Digest>> {
    let line = |line: &str| {
        let (hex, name) = line.split_once("  ")?;
        Some((name.to_string(), format!("blake3:{hex}").parse().ok()?))
    };
    std::str::from_utf8(bytes).ok()?.lines().map(line).collect()
}

/// Removes a state so that none sees a part of it. That it stays, in a folder that can't be written to, is no
/// reason to fail.
fn remove(path: &Path) {
    let _ = fs::remove(&path.join(SUMS)).and_then(|()| fs::remove(path));
}

/// The step from which a training would go on with the states in `folder`, and its steps in all.
pub fn resumes(options: &Options, folder: &Path) -> Option<(u64, u64)> {
    saved(folder).iter().find_map(|saved| {
        let training = Use::new(options, saved.state.rows);
        saved.is_for(&training).then_some((saved.state.step, training.steps))
    })
}

/// Removes the states in `folder` that lie on the way of a training with these `options`, once it is done, but for
/// the one that longer trainings share.
pub fn remove_used(options: &Options, folder: &Path) {
    let mut stays = true;
    for saved in saved(folder) {
        let training = Use::new(options, saved.state.rows);
        if !training.comes_to(&saved.state) {
            continue;
        }
        if stays && training.shared.is_some_and(|shared| saved.state.step <= shared) {
            stays = false;
        } else {
            remove(&saved.path);
        }
    }
}

/// A state that a training goes on from, its files in the training's own folder.
pub(super) struct Restored {
    pub state: State,
    reader: Reader,
    files: BTreeMap<String, Stored>,
}

impl Restored {
    /// Reads the tensors that it was opened for.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(self, tensors: &mut [Tensor]) -> Result<()> {
        self.reader.read(tensors)?;
        self.files.get(TENSORS).map_or(Ok(()), |stored| fs::remove(&stored.path))
    }

    pub fn best(&self) -> Option<Stored> {
        self.files.get(BEST).cloned()
    }

    pub fn kept(&self, step: u64) -> Option<Stored> {
        self.files.get(&kept_file(step)).cloned()
    }
}

/// The folder of states as one training uses it.
pub(super) struct States<'a> {
    folder: &'a Path,
    scratch: &'a Path,
    training: Use<'a>,
    rows: u64,
    /// States on this training's way, with their steps.
    own: Vec<(u64, PathBuf)>,
    /// Said once.
    warned: bool,
}

impl<'a> States<'a> {
    /// For training data of so many `rows`; `None` without a folder.
    pub fn new(places: Places<'a>, options: &'a Options, rows: usize) -> Option<Self> {
        let training = Use::new(options, rows as u64);
        Some(States {
            folder: places.state?,
            scratch: places.scratch,
            training,
            rows: rows as u64,
            own: Vec::new(),
            warned: false,
        })
    }

    /// Whether the state of this step is wanted by longer trainings.
    pub fn is_shared(&self, step: u64) -> bool {
        self.training.shared == Some(step)
    }

    /// The state with the largest step that is whole and fits these tensors. Others are warned of.
    pub fn newest(&mut self, tensors: &[Tensor]) -> Option<Restored> {
        remove_broken(self.folder);
        let mut own = saved(self.folder);
        own.retain(|saved| saved.state.rows == self.rows && self.training.comes_to(&saved.state));
        self.own = own.iter().map(|saved| (saved.state.step, saved.path.clone())).collect();
        let mut usable = own.into_iter().filter(|saved| saved.is_for(&self.training));
        usable.find_map(|saved| self.adopt(saved, tensors))
    }

    /// Takes the files of a state over into the training's own folder, where no other process removes them.
    fn adopt(&self, saved: Saved, tensors: &[Tensor]) -> Option<Restored> {
        let path = saved.path.clone();
        match self.try_adopt(saved, tensors) {
            Ok(restored) => return Some(restored),
            // Another training has removed it meanwhile.
            Err(_) if !path.join(SUMS).exists() => {}
            Err(e) => tracing::warn!("the saved state `{}` is not used: {e}", path.display()),
        }
        None
    }

    fn try_adopt(&self, saved: Saved, tensors: &[Tensor]) -> Result<Restored> {
        let folder = self.scratch.join(format!("from-step-{}", saved.state.step));
        let mut files = BTreeMap::new();
        for (name, digest) in saved.sums.into_iter().filter(|(name, _)| name != JSON) {
            let path = folder.join(&name);
            fs::link(&saved.path.join(&name), &path)?;
            if Digest::of_file(&path)? != digest {
                return Err(Error::input(format!("`{name}` is not what was saved")));
            }
            files.insert(name, Stored { path, digest });
        }
        let reader = Reader::open(&folder.join(TENSORS), tensors)?;
        Ok(Restored { state: saved.state, reader, files })
    }

    /// Saves a state, and removes those before it that no one needs. If it can't be saved, that is warned of
    /// once: the training goes on without.
    pub fn save(
        &mut self,
        state: &State,
        tensors: &[Tensor],
        best: Option<&Stored>,
        kept: &BTreeMap<u64, Stored>,
    ) {
        match self.try_save(state, tensors, best, kept) {
            Ok(path) => self.tidy(state.step, path),
            Err(e) if self.warned => tracing::debug!("the state of step {} is not saved: {e}", state.step),
            Err(e) => {
                self.warned = true;
                tracing::warn!(
                    "the state of step {} can't be saved; if this training is stopped, the steps since the \
                     last state are lost: {e}",
                    state.step
                );
            }
        }
    }

    fn try_save(
        &self,
        state: &State,
        tensors: &[Tensor],
        best: Option<&Stored>,
        kept: &BTreeMap<u64, Stored>,
    ) -> Result<PathBuf> {
        let fresh = fs::temp_dir(self.scratch, "saving-")?;
        let fresh = fresh.path().join("state");
        let stored = tensors::write(&fresh.join(TENSORS), tensors)?;
        let mut sums = BTreeMap::from([(TENSORS.to_string(), stored.digest)]);
        let kept = kept.iter().map(|(step, stored)| (kept_file(*step), stored));
        for (name, stored) in kept.chain(best.map(|stored| (BEST.to_string(), stored))) {
            fs::link(&stored.path, &fresh.join(&name))?;
            sums.insert(name, stored.digest);
        }
        fs::write_json(&fresh.join(JSON), state)?;
        sums.insert(JSON.to_string(), Digest::of(&fs::read(&fresh.join(JSON))?));
        let lines: String = sums.iter().map(|(name, digest)| format!("{}  {name}\n", digest.hex())).collect();
        fs::write(&fresh.join(SUMS), lines.as_bytes())?;
        for path in fs::children(&fresh)? {
            fs::sync(&path)?;
        }
        fs::sync(&fresh)?;
        let place = self.folder.join(self.name(state));
        fs::swap_folder(&fresh, &place)?;
        fs::sync(self.folder)?;
        Ok(place)
    }

    /// The same for the same files: the step, and what of rates and kept weights there is up to it.
    fn name(&self, state: &State) -> String {
        let kept: Vec<u64> = self.training.kept(state.step).collect();
        let what = Digest::of(format!("{} {kept:?}", state.rates).as_bytes());
        format!("{PREFIX}{}-{}", state.step, &what.hex()[..12])
    }

    /// After a new state those before it are not needed, but for the one that longer trainings share.
    fn tidy(&mut self, step: u64, path: PathBuf) {
        let shared = self.training.shared;
        self.own.retain(|(before, path)| {
            let stays = *before >= step || Some(*before) == shared;
            if !stays {
                remove(path);
            }
            stays
        });
        self.own.push((step, path));
        self.tidy_others();
    }

    /// The oldest states of other trainings, beyond a few.
    fn tidy_others(&self) {
        let all = fs::children(self.folder).unwrap_or_default().into_iter();
        let other = |path: &PathBuf| self.own.iter().all(|(_, own)| own != path);
        let saved_at = |path: &PathBuf| fs::stat(&path.join(SUMS)).map_or(0, |stat| stat.mtime_ns);
        let mut others: Vec<PathBuf> = all.filter(other).collect();
        others.sort_by_cached_key(|path| std::cmp::Reverse(saved_at(path)));
        others.iter().skip(OTHERS).for_each(|path| remove(path));
    }
}
