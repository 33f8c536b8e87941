//! Damaged variants of a file, for tests of readers.

use super::Rng;

/// Variants of a whole file, each with what was done to it: cut off, lengthened, bytes and little-endian numbers
/// overwritten with large ones at places spread over the file, the denser the nearer to its beginning.
pub fn damaged(whole: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("empty".to_string(), Vec::new())];
    let places = |n: usize| (0..n).map(move |i| (whole.len() * i * i) / (n * n));
    for at in places(16).chain([whole.len().saturating_sub(1)]) {
        all.push((format!("cut off at {at}"), whole[..at].to_vec()));
    }
    all.push(("lengthened".into(), [whole, &[7; 5]].concat()));
    let mut rng = Rng::new(1, "damage");
    for at in places(24).chain((0..64.min(whole.len())).step_by(4)) {
        for width in [1, 4, 8] {
            let mut bytes = whole.to_vec();
            let end = (at + width).min(bytes.len());
            bytes[at..end].fill(0xff);
            if width == 8 && end == at + 8 {
                bytes[end - 1] = 0x7f;
            }
            all.push((format!("{width} bytes at {at} are large"), bytes));
        }
        let mut bytes = whole.to_vec();
        bytes[at.min(whole.len() - 1)] ^= 1 << rng.below(8);
        all.push((format!("a bit at {at} is flipped"), bytes));
    }
    all
}
