//! What a model gives both answers of pairs: computed once for the reference, and kept for a training that goes
//! on after it was stopped.

use std::path::{Path, PathBuf};

use crate::base::digest::Hasher;
use crate::base::{Digest, Monitor, Result, fs};
use crate::model::{Executor, Transformer, round_of};
use crate::train::Places;
use crate::train::data::{Batch, Data, Pairs};

/// `−log π` of a chosen and a rejected answer, in nats.
pub type PairNats = [f64; 2];

/// What `transformer` gives the answers of all pairs, without dropout.
///
/// # Errors
/// When somebody asked to stop.
pub fn pair_nats(
    executor: &mut Executor,
    transformer: &Transformer,
    data: &Pairs,
    monitor: &dyn Monitor,
) -> Result<Vec<PairNats>> {
    let (rows, mut found) = (data.rows(), Vec::with_capacity(data.rows()));
    let mut batch = Batch::default();
    let step = (round_of(data.length()) / 2).max(1);
    for first in (0..rows).step_by(step) {
        monitor.step("comparing answers", first as u64, Some(rows as u64), "pairs")?;
        batch.fill(data, first..(first + step).min(rows));
        found.extend(by_pairs(&executor.sequence_nats(transformer, batch.sequences(), None)));
    }
    Ok(found)
}

/// Those of sequences, by twos.
pub(super) fn by_pairs(nats: &[f64]) -> Vec<PairNats> {
    nats.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
}

/// [`pair_nats`] of the reference, from the folder of the training's states where they were computed before: in a
/// file named by the digest of all that they depend on, with a digest of its content. A damaged file is
/// computed anew; one that can't be written is done without.
///
/// # Errors
/// As [`pair_nats`].
pub fn kept_pair_nats(
    places: Places,
    executor: &mut Executor,
    transformer: &Transformer,
    data: &Pairs,
    monitor: &dyn Monitor,
) -> Result<Vec<PairNats>> {
    let Some(folder) = places.state else { return pair_nats(executor, transformer, data, monitor) };
    let key = key(executor, transformer, data);
    let path = folder.join(format!("{PREFIX}{}", &key.hex()[..16]));
    if let Some(bytes) = fs::read_if_there(&path).ok().flatten() {
        if let Some(nats) = decode(&bytes, key.bytes()) {
            tracing::info!("what the reference gives {} pairs was computed before", nats.len());
            return Ok(nats);
        }
        tracing::warn!("`{}` is damaged: it is computed anew", path.display());
    }
    let nats = pair_nats(executor, transformer, data, monitor)?;
    // Moved there when it is whole, as another process may read it.
    let fresh = places.scratch.join("reference");
    let written = fs::write(&fresh, &encode(&nats, key.bytes())).and_then(|()| fs::rename(&fresh, &path));
    if let Err(e) = written {
        tracing::warn!(
            "what the reference gives the pairs can't be kept, and is computed again if need be: {e}"
        );
    }
    Ok(nats)
}

/// What names of files of [`kept_pair_nats`] begin with.
const PREFIX: &str = "reference-";

/// The digest of all that [`pair_nats`] depend on.
fn key(executor: &Executor, transformer: &Transformer, data: &Pairs) -> Digest {
    let mut hasher = Hasher::new();
    let (dtype, config) = (executor.team().dtype, &transformer.config);
    hasher.update(format!("pair nats 1\0{dtype:?}\0{config:?}\0{}\0", data.length()).as_bytes());
    let mut bytes = Vec::new();
    for weights in transformer.weights.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
        hasher.update(&bytes);
    }
    let mut batch = Batch::default();
    for i in 0..data.rows() {
        batch.fill(data, std::iter::once(i));
        bytes.clear();
        bytes.extend(batch.ids.iter().chain(&batch.targets).flat_map(|id| id.to_le_bytes()));
        hasher.update(&bytes);
    }
    hasher.finish()
}

/// The key, the numbers, and the digest of both.
fn encode(nats: &[PairNats], key: &[u8; 32]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    bytes.extend(nats.iter().flatten().flat_map(|nats| nats.to_le_bytes()));
    bytes.extend_from_slice(Digest::of(&bytes).bytes());
    bytes
}

/// `None` where the bytes are not those of [`encode`] with this key.
fn decode(bytes: &[u8], key: &[u8; 32]) -> Option<Vec<PairNats>> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let numbers = content.strip_prefix(key)?;
    (Digest::of(content).bytes() == digest).then(|| {
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        by_pairs(&numbers.chunks_exact(8).map(number).collect::<Vec<_>>())
    })
}

/// Removes what [`kept_pair_nats`] left in `folder`, unless there is something else: states that a longer training
/// begins with. That it stays, in a folder that can't be written to, is no reason to fail.
pub fn remove_kept_pair_nats(folder: &Path) {
    let all = fs::children(folder).unwrap_or_default();
    let is_kept =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if all.iter().all(is_kept) {
        all.iter().for_each(|path| drop(fs::remove(path)));
    }
}

/// A file with other numbers, and the digests that belong to them.
#[cfg(test)]
pub(super) fn rewritten(bytes: &[u8], change: impl FnOnce(&mut [PairNats])) -> Vec<u8> {
    let key = bytes[..32].try_into().expect("32 bytes");
    let mut nats = decode(bytes, &key).expect("a whole file");
    change(&mut nats);
    encode(&nats, &key)
}
