//! How fast a model generates.

use std::time::Instant;

use crate::base::{Result, Rng};
use crate::kernel::Team;
use crate::model::{Cache, Decoder, Reading, Transformer};

/// Rounds, of which the fastest counts: others were disturbed.
const ROUNDS: usize = 5;

/// Tokens a second of one sequence behind a short prompt, greedily, with cached keys and values.
///
/// # Errors
/// When the model cannot be read on.
pub fn tokens_per_second(gpt: &Transformer, team: Team) -> Result<f64> {
    let config = &gpt.config;
    let mut rng = Rng::new(1, "speed");
    let prompt = (config.seq_len / 2).clamp(1, 64);
    let new = (config.seq_len - prompt).min(64);
    let mut decoder = Decoder::new(gpt, team);
    let mut best: f64 = 0.0;
    for _ in 0..ROUNDS {
        let mut cache = Cache::default();
        let mut ids: Vec<u32> = (0..prompt).map(|_| rng.index(config.vocab_size) as u32).collect();
        let mut begun = Instant::now();
        for i in 0..=new {
            let logits = decoder.read(&mut [Reading { cache: &mut cache, ids: &ids }])?;
            let likeliest = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            ids = vec![likeliest.unwrap_or(0) as u32];
            if i == 0 {
                begun = Instant::now();
            }
        }
        best = best.max(new as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
