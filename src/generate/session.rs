//! A sequence that a model reads and continues.

use std::ops::{ControlFlow, Deref};
use std::sync::{Mutex, PoisonError};

use super::sampler::Sampler;
use super::search::Search;
use super::{Continuation, Options, Strategy, batch};
use crate::base::{Error, Result};
use crate::kernel::Team;
use crate::model::{Cache, Decoder, Model, Reading, Transformer, nan};

/// Tokens of a text, what a model keeps of those that it has read, and its prediction of the next one.
#[derive(Clone, Default)]
pub struct Sequence {
    /// Of `tokens` from `dropped` on; those behind are yet to be read.
    cache: Cache,
    /// All tokens so far, those dropped from the cache included.
    pub tokens: Vec<u32>,
    /// `[V]`, of the next token; empty before anything is read.
    pub logits: Vec<f32>,
    /// How many of the first tokens the model no longer sees.
    pub dropped: usize,
    /// How many of `tokens` were there before the model began to continue them.
    pub(super) prompt: usize,
}

impl Sequence {
    /// Appends `ids`, which are then to be read. When all would exceed `seq_len`, only the newest `seq_len / 2`
    /// tokens stay, to be read again into an empty cache.
    pub(super) fn append(&mut self, ids: &[u32], seq_len: usize) {
        self.tokens.extend_from_slice(ids);
        if self.tokens.len() - self.dropped > seq_len {
            self.cache.truncate(0);
            self.dropped = self.tokens.len() - self.tokens.len().min(seq_len.div_ceil(2));
        }
    }

    /// Goes back to when it had `tokens` tokens, of which the first `dropped` were no longer seen.
    pub(super) fn rewind(&mut self, tokens: usize, dropped: usize) {
        if dropped != self.dropped {
            self.cache.truncate(0);
        }
        self.dropped = dropped;
        self.tokens.truncate(tokens);
        self.cache.truncate(tokens - dropped);
    }

    /// The tokens that are yet to be read.
    pub(super) fn unread(&self) -> &[u32] {
        &self.tokens[self.dropped + self.cache.len()..]
    }

    /// The next `most` tokens to be read.
    fn reading(&mut self, most: usize) -> Reading<'_> {
        let begin = self.dropped + self.cache.len();
        let end = begin + most.min(self.tokens.len() - begin);
        Reading { cache: &mut self.cache, ids: &self.tokens[begin..end] }
    }

    /// Takes over what was read of the same tokens before.
    ///
    /// # Panics
    /// When something was read already.
    pub(super) fn resume(&mut self, cache: Cache) {
        assert!(self.cache.is_empty(), "a sequence that was read already");
        self.cache = cache;
    }

    /// What was read, with its tokens; nothing where tokens were dropped.
    pub(super) fn into_read(mut self) -> Option<(Vec<u32>, Cache)> {
        self.tokens.truncate(self.cache.len());
        (self.dropped == 0 && !self.cache.is_empty()).then_some((self.tokens, self.cache))
    }

    fn set_logits(&mut self, logits: &[f32]) -> Result<()> {
        if !self.unread().is_empty() {
            return Ok(());
        }
        // Without an early end, so that it takes whole vectors.
        if logits.iter().fold(false, |nan, logit| nan | logit.is_nan()) {
            return Err(nan("logits"));
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        Ok(())
    }
}

/// The transformer of a model, for a [`Decoder`] that owns or borrows what `M` does.
pub struct TransformerOf<M>(M);

impl<M: Deref<Target = Model>> Deref for TransformerOf<M> {
    type Target = Transformer;

    fn deref(&self) -> &Transformer {
        &self.0.transformer
    }
}

/// A model that reads sequences on.
pub struct Reader<M>(Decoder<TransformerOf<M>>);

impl<M: Deref<Target = Model>> Reader<M> {
    pub fn new(model: M, threads: usize) -> Self {
        Reader(Decoder::new(TransformerOf(model), Team::new(threads)))
    }

    pub fn model(&self) -> &Model {
        &self.0.model().0
    }

    pub fn team(&self) -> &Team {
        self.0.team()
    }

    /// Reads on in several sequences, as one batch; each has tokens to be read, of which up to so many are. Gives of
    /// each whether its logits are numbers.
    ///
    /// # Errors
    /// When the decoder refuses the batch.
    pub fn read(&mut self, parts: &mut [(&mut Sequence, usize)]) -> Result<Vec<Result<()>>> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let vocab_size = self.model().transformer.config.vocab_size;
        let mut readings: Vec<Reading> =
            parts.iter_mut().map(|(sequence, most)| sequence.reading(*most)).collect();
        self.0.read(&mut readings)?;
        let rows = parts.iter_mut().zip(self.0.logits().chunks_exact(vocab_size));
        let rows: Vec<_> = rows.map(|((sequence, _), row)| Mutex::new((sequence, row, Ok(())))).collect();
        self.team().each(rows.len(), |i| {
            let (sequence, row, result) = &mut *rows[i].lock().unwrap_or_else(PoisonError::into_inner);
            *result = sequence.set_logits(row);
        });
        let result =
            |row: Mutex<(_, _, Result<()>)>| row.into_inner().unwrap_or_else(PoisonError::into_inner).2;
        Ok(rows.into_iter().map(result).collect())
    }

    /// Reads what the sequences have to be read, as one batch.
    ///
    /// # Errors
    /// When the model's logits are NaN.
    pub fn read_all<'s>(&mut self, sequences: impl Iterator<Item = &'s mut Sequence>) -> Result<()> {
        let unread = sequences.filter(|sequence| !sequence.unread().is_empty());
        let mut all: Vec<(&mut Sequence, usize)> = unread.map(|sequence| (sequence, usize::MAX)).collect();
        self.read(&mut all)?.into_iter().collect()
    }
}

/// A model and a sequence that it reads and continues. `M` is whatever owns or borrows the model: `&Model`,
/// `Arc<Model>`.
pub struct Session<M> {
    pub(super) reader: Reader<M>,
    pub sequence: Sequence,
}

impl<M: Deref<Target = Model>> Session<M> {
    /// A session whose matrix products use up to `threads` threads; small models use one.
    pub fn new(model: M, threads: usize) -> Self {
        Session { reader: Reader::new(model, threads), sequence: Sequence::default() }
    }

    pub fn model(&self) -> &Model {
        self.reader.model()
    }

    /// Reads `ids`. When the sequence exceeds `seq_len`, only its newest `seq_len / 2` tokens stay in the
    /// cache. Gives how many tokens this dropped, some of `ids` among them where there are so many.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or logits that are NaN.
    pub fn feed(&mut self, ids: &[u32]) -> Result<usize> {
        let config = &self.reader.model().transformer.config;
        // Before the sequence is changed.
        config.validate_ids(ids)?;
        let before = self.sequence.dropped;
        self.sequence.append(ids, config.seq_len);
        self.reader.read_all([&mut self.sequence].into_iter())?;
        Ok(self.sequence.dropped - before)
    }
}

/// Continues `session` until an end token, a stop string, `max_new_tokens`, or a `Break` of `on_text`, which
/// gets the text as soon as it is certain. The text follows that of `prompt`, the tokens read last.
///
/// # Errors
/// When an option is out of range, nothing was read yet, or the model's logits are NaN.
pub fn stream<M: Deref<Target = Model>>(
    session: &mut Session<M>,
    prompt: &[u32],
    options: &Options,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Continuation> {
    options.validate_for(session.model()).map_err(Error::invalid)?;
    if session.sequence.logits.is_empty() {
        return Err(Error::input("there is nothing to continue: the prompt has no tokens"));
    }
    let sampler = Sampler::new(session.model(), options);
    let beams = options.strategy == Strategy::Beam;
    let sequence = if beams { session.sequence.clone() } else { std::mem::take(&mut session.sequence) };
    let read_before = sequence.tokens.len();
    let rng = batch::stream_of(options, 0, 0);
    let (mut search, mut said) = (Search::new(session.model(), sequence, prompt, options, rng), 0);
    while !search.is_over() {
        search.step(&sampler);
        let new = &search.text()[said..];
        if !new.is_empty() && on_text(new).is_break() {
            break;
        }
        said = search.text().len();
        session.reader.read_all(search.sequences())?;
    }
    let (result, sequence) = search.finish();
    if !beams {
        session.sequence = sequence;
    }
    // The session reads all that was said: in a conversation, the next turn follows it.
    let read = session.sequence.tokens.len() - read_before;
    session.feed(&result.tokens[read..])?;
    Ok(result)
}
