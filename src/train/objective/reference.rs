//! What a model gives both answers of pairs: computed once for the reference, and kept for a training that goes
//! on after it was stopped.

use std::io::Write;
use std::path::Path;

use crate::base::digest::Hasher;
use crate::base::{Digest, Error, Monitor, Result, fs};
use crate::model::{Executor, Transformer, round_of};
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

/// [`pair_nats`] of the reference, from `folder` where they were computed before: in a file named by the
/// digest of all that they depend on, with a digest of its content. A damaged file is computed anew.
///
/// # Errors
/// As [`pair_nats`]; when the file cannot be read or written.
pub fn kept_pair_nats(
    folder: &Path,
    executor: &mut Executor,
    transformer: &Transformer,
    data: &Pairs,
    monitor: &dyn Monitor,
) -> Result<Vec<PairNats>> {
    let key = key(executor, transformer, data);
    let path = folder.join(format!("{PREFIX}{}", &key.hex()[..16]));
    if let Some(bytes) = fs::read_if_there(&path)? {
        if let Some(nats) = decode(&bytes, key.bytes()) {
            tracing::info!("what the reference gives {} pairs was computed before", nats.len());
            return Ok(nats);
        }
        tracing::warn!("`{}` is damaged: it is computed anew", path.display());
    }
    let nats = pair_nats(executor, transformer, data, monitor)?;
    write_whole(folder, &path, &encode(&nats, key.bytes()))?;
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

/// Under its name the file is whole or absent, also for another process.
fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path).map(drop).map_err(|e| e.error)
    };
    write().map_err(|e| Error::io("write", path, &e))
}

/// A file with other numbers, and the digests that belong to them.
#[cfg(test)]
pub(super) fn rewritten(bytes: &[u8], change: impl FnOnce(&mut [PairNats])) -> Vec<u8> {
    let key = bytes[..32].try_into().expect("32 bytes");
    let mut nats = decode(bytes, &key).expect("a whole file");
    change(&mut nats);
    encode(&nats, &key)
}
