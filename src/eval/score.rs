//! The probability of a text, token by token.

use serde::Serialize;

use super::windows::{Window, stride, windows};
use crate::base::Result;
use crate::kernel::Team;
use crate::model::{Executor, Model, Prediction, Sequences, Transformer, mean_top_k};
use crate::tokenizer::Special;

/// How probable a text is.
#[derive(Debug, Clone, Serialize)]
pub struct TextScore {
    /// The tokens that are scored, in order. `<bos>` before the text is context; without one the first token
    /// of the text is.
    pub tokens: Vec<TokenScore>,
    /// Of the text that the scored tokens stand for.
    pub bytes: u64,
    /// The sum of `-ln p`.
    pub nats: f64,
    /// The mean of `-ln p`.
    pub loss: f64,
    pub perplexity: f64,
    pub bits_per_byte: f64,
    /// The most tokens before a token that its probability depends on.
    pub context: usize,
    /// How far apart the windows of a longer text begin.
    pub stride: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct TokenScore {
    pub id: u32,
    /// As the vocabulary spells it.
    pub token: String,
    pub logprob: f64,
    /// How many ids are more probable.
    pub rank: u64,
    /// The ids that are most probable at this place, with their log-probabilities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(u32, f64)>,
}

/// Scores `text`, and gives the `top` most probable ids of every place.
///
/// # Errors
/// When the text cannot be encoded.
pub fn score_text(model: &Model, text: &str, top: usize, threads: usize) -> Result<TextScore> {
    let Model { transformer, tokenizer } = model;
    let text_ids = tokenizer.encode(text)?;
    let bos = tokenizer.special(Special::Bos);
    let context = if bos.is_some() { 0 } else { tokenizer.decode(&text_ids[..1.min(text_ids.len())])?.len() };
    let ids: Vec<u32> = bos.into_iter().chain(text_ids).collect();
    let tokens = score_ids(model, &ids, top, threads);
    Ok(summary(tokens, (text.len() - context) as u64, transformer.config.seq_len))
}

/// Scores `ids` but the first, which is context, and gives the `top` most probable ids of every place. Where one
/// of these is the id itself, it has the same log-probability.
///
/// # Panics
/// When an id is not of the model's.
pub fn score_ids(model: &Model, ids: &[u32], top: usize, threads: usize) -> Vec<TokenScore> {
    let Model { transformer, tokenizer } = model;
    let team = Team::new(threads).in_dtype(transformer.products());
    let mut executor = Executor::forward_only(&transformer.config, team);
    let top = top.min(transformer.config.vocab_size);
    let mut tokens = Vec::with_capacity(ids.len());
    let seq_len = transformer.config.seq_len;
    for window in windows(ids.len(), seq_len, stride(seq_len)) {
        let likeliest =
            if top > 0 { top_of(transformer, &mut executor, ids, &window, top) } else { Vec::new() };
        let predictions = predictions(transformer, &mut executor, ids, &window);
        for (i, Prediction { nats, rank }) in predictions.into_iter().enumerate() {
            let id = ids[window.scored.start + i];
            let token = tokenizer.token(id).unwrap_or_default();
            let mut top = likeliest.get(i).cloned().unwrap_or_default();
            top.iter_mut().filter(|(other, _)| *other == id).for_each(|(_, logprob)| *logprob = -nats);
            tokens.push(TokenScore { id, token, logprob: -nats, rank: rank as u64, top });
        }
    }
    tokens
}

fn summary(tokens: Vec<TokenScore>, bytes: u64, seq_len: usize) -> TextScore {
    let nats: f64 = -tokens.iter().map(|t| t.logprob).sum::<f64>();
    let loss = nats / tokens.len() as f64;
    TextScore {
        bytes,
        nats,
        loss,
        perplexity: libm::exp(loss),
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes as f64,
        context: seq_len,
        stride: stride(seq_len),
        tokens,
    }
}

fn predictions(
    model: &Transformer,
    executor: &mut Executor,
    ids: &[u32],
    window: &Window,
) -> Vec<Prediction> {
    let targets = window.targets(ids, |_| true);
    executor.predictions(model, Sequences::new(&ids[window.read.clone()], &targets, window.read.len()))
}

/// Of each id that the window scores, the `k` likeliest at its place.
fn top_of(
    model: &Transformer,
    executor: &mut Executor,
    ids: &[u32],
    window: &Window,
    k: usize,
) -> Vec<Vec<(u32, f64)>> {
    let (rows, targets) = (window.read.len(), window.targets(ids, |_| true));
    let all = Sequences::new(&ids[window.read.clone()], &targets, rows);
    let (mut best, mut probabilities) = (vec![0; rows * k], vec![0.0; rows * k]);
    mean_top_k(&mut [(executor, model)], all, 1.0, k, &mut best, &mut probabilities);
    let pairs = best.iter().zip(&probabilities).map(|(id, p)| (*id, libm::log(f64::from(*p))));
    let pairs: Vec<(u32, f64)> = pairs.collect();
    pairs.chunks(k).skip(rows - window.scored.len()).map(<[_]>::to_vec).collect()
}
