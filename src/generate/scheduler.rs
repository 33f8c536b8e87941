//! Requests that come and go, continued in one batch: continuous batching (Yu et al., 2022, "Orca").
//!
//! Each step reads what all sequences have to be read and chooses a token for each that is read. A request that
//! is over leaves the batch, and the next takes its place. Long prompts are read in pieces beside the others'
//! tokens (chunked prefill; Agrawal et al., 2023, "Sarathi"). A sequence's numbers do not depend on those beside
//! it nor on the pieces that it is read in, so each text is what it would be alone.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use super::prefix::Prefixes;
use super::sampler::Sampler;
use super::search::Search;
use super::session::Reader;
use super::{Continuation, Options, Sequence, Strategy, Token, batch};
use crate::base::{Error, Invalid, Result};
use crate::model::{Config, Model};

/// A prompt to be continued.
#[derive(Debug, Clone)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub options: Options,
    /// How many continuations to draw, each from a stream of the seed of its own; the first from that of a
    /// single one.
    pub samples: usize,
}

/// Requests of a scheduler are numbered as they come, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// What a scheduler may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences in the batch, each beam of a beam search counted as one. A request with more beams runs alone.
    pub width: usize,
    /// Tokens of prompts, and of sequences whose older tokens were dropped, that are read in one step.
    pub step_tokens: usize,
    /// Memory of sequences that are kept for prompts that begin alike; 0 for none.
    pub prefix_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { width: 32, step_tokens: 256, prefix_bytes: 256 << 20 }
    }
}

/// What happened to a request in a step.
#[derive(Debug, Clone)]
pub enum Event {
    /// Its prompt begins to be read.
    Started {
        id: RequestId,
        prompt_tokens: usize,
        /// How many of them are not computed again: another request had them.
        cached_tokens: usize,
        /// How many of the first do not fit, and are not seen.
        cut: usize,
    },
    /// Text that no further token changes, perhaps none, and new tokens. Those of a sample are, one behind the
    /// other, the text and the tokens of its continuation.
    Piece { id: RequestId, sample: usize, text: String, tokens: Vec<Token> },
    /// A sample is complete; behind all its pieces.
    Finished { id: RequestId, sample: usize, continuation: Continuation },
    /// The request has ended with an error.
    Failed { id: RequestId, error: Error },
}

/// Continues requests that come and go, all in one batch. `M` owns or borrows the model.
pub struct Scheduler<M = Arc<Model>> {
    reader: Reader<M>,
    limits: Limits,
    waiting: VecDeque<Job>,
    /// In the order in which they began.
    running: Vec<Job>,
    kept: Prefixes,
    /// The number of the request that comes next.
    next: u64,
}

impl<M: Deref<Target = Model>> Scheduler<M> {
    /// A scheduler whose matrix products use up to `threads` threads.
    pub fn new(model: M, threads: usize, limits: Limits) -> Self {
        let (waiting, running, kept) = (VecDeque::new(), Vec::new(), Prefixes::new(limits.prefix_bytes));
        Scheduler { reader: Reader::new(model, threads), limits, waiting, running, kept, next: 0 }
    }

    pub fn model(&self) -> &Model {
        self.reader.model()
    }

    /// Adds a request, which begins in a later [`Scheduler::step`], behind those that came before it.
    ///
    /// # Errors
    /// When an option is out of range, the prompt has no tokens or one beyond the vocabulary, or no samples are
    /// asked for.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        self.submit_as(request, 0)
    }

    /// [`Scheduler::submit`], with the random streams of the `prompt`th of several prompts.
    ///
    /// # Errors
    /// As [`Scheduler::submit`].
    pub(super) fn submit_as(&mut self, request: Request, prompt: usize) -> Result<RequestId> {
        let model = self.reader.model();
        request.options.validate_for(model).map_err(Error::invalid)?;
        model.transformer.config.validate_ids(&request.prompt)?;
        if request.prompt.is_empty() {
            return Err(Error::input("there is nothing to continue: the prompt has no tokens"));
        }
        if request.samples == 0 {
            return Err(Error::invalid(Invalid::new("samples", "is 0: expected 1 or more")));
        }
        let id = RequestId(self.next);
        self.next += 1;
        let sampler = Sampler::new(model, &request.options);
        self.waiting.push_back(Job::new(id, request, prompt, sampler));
        Ok(id)
    }

    /// Ends a request at once, without a further event; one that is over or was never there is none.
    pub fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|job| job.id != id);
        if let Some(i) = self.running.iter().position(|job| job.id == id) {
            let job = self.running.remove(i);
            job.into_sequences().for_each(|sequence| self.kept.keep(sequence));
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// How many sequences the batch has.
    pub fn running(&self) -> usize {
        self.running.iter().map(Job::width).sum()
    }

    /// How many requests are yet to begin.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The memory of sequences that are kept for prompts that begin alike.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.bytes()
    }

    /// Takes all requests a step further: each sequence that is read by a token, or several of those that are to
    /// be read. Nothing happens when it is idle.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.begin();
        self.admit(&mut events);
        self.read(&mut events);
        self.begin();
        self.choose();
        self.report(&mut events);
        events
    }

    /// Begins samples of prompts that are read, as many as there is room for.
    fn begin(&mut self) {
        let mut room = self.limits.width.saturating_sub(self.running());
        for job in &mut self.running {
            while job.is_read() {
                // The first takes the place that the prompt had.
                let more = if job.searches.is_empty() { 0 } else { job.beams() };
                if more > room {
                    break;
                }
                room -= more;
                job.begin(self.reader.model(), &mut self.kept);
            }
        }
    }

    /// Begins to read prompts of waiting requests, as many as there is room for; none before all samples of
    /// earlier ones that are read.
    fn admit(&mut self, events: &mut Vec<Event>) {
        if self.running.iter().any(Job::is_read) {
            return;
        }
        while let Some(next) = self.waiting.front() {
            let running = self.running();
            if running > 0 && running + next.beams() > self.limits.width {
                return;
            }
            let config = &self.reader.model().transformer.config;
            self.running.extend(self.waiting.pop_front());
            events.extend(self.running.last_mut().map(|job| job.start(config, &mut self.kept)));
        }
    }

    /// Reads, as one batch, what sequences have to be read; requests with logits that are NaN have failed.
    fn read(&mut self, events: &mut Vec<Event>) {
        let jobs = self.running.iter_mut().enumerate();
        let unread: Vec<(usize, &mut Sequence)> = jobs
            .flat_map(|(i, job)| job.sequences().map(move |sequence| (i, sequence)))
            .filter(|(_, sequence)| !sequence.unread().is_empty())
            .collect();
        let lengths: Vec<usize> = unread.iter().map(|(_, sequence)| sequence.unread().len()).collect();
        let shares = shares(&lengths, self.limits.step_tokens);
        let parts = unread.into_iter().zip(shares).filter(|(_, share)| *share > 0);
        let (owners, mut parts): (Vec<usize>, Vec<_>) =
            parts.map(|((i, sequence), share)| (i, (sequence, share))).unzip();
        let failed: BTreeMap<usize, Error> = match self.reader.read(&mut parts) {
            Ok(all) => owners.into_iter().zip(all).filter_map(|(i, read)| Some((i, read.err()?))).collect(),
            Err(error) => owners.into_iter().map(|i| (i, error.clone())).collect(),
        };
        for (i, error) in failed.into_iter().rev() {
            events.push(Event::Failed { id: self.running.remove(i).id, error });
        }
    }

    /// Chooses a token for each sequence that is read.
    fn choose(&mut self) {
        let ready = self.running.iter_mut().flat_map(|job| {
            let sampler = &job.sampler;
            let searches = job.searches.iter_mut().map(|running| &mut running.search);
            searches.filter(|search| search.is_read()).map(move |search| Mutex::new((search, sampler)))
        });
        let ready: Vec<_> = ready.collect();
        self.reader.team().each(ready.len(), |i| {
            let (search, sampler) = &mut *ready[i].lock().unwrap_or_else(PoisonError::into_inner);
            search.step(sampler);
        });
    }

    /// Tells what is new, and ends what is over.
    fn report(&mut self, events: &mut Vec<Event>) {
        for job in &mut self.running {
            for mut running in std::mem::take(&mut job.searches) {
                events.extend(running.piece(job.id));
                if !running.search.is_over() {
                    job.searches.push(running);
                    continue;
                }
                let (continuation, sequence) = running.search.finish();
                events.push(Event::Finished { id: job.id, sample: running.sample, continuation });
                self.kept.keep(sequence);
            }
        }
        self.running.retain(|job| !job.is_over());
    }
}

/// How many tokens are read of each sequence that has so many unread. Single tokens are always read. Of the
/// `step_tokens` others, half are for the sequence that came first, so that it doesn't wait without end, the rest
/// for those that have the fewest to go.
fn shares(unread: &[usize], step_tokens: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = unread.iter().map(|n| usize::from(*n == 1)).collect();
    let mut left = step_tokens.max(1);
    let mut give = |i: usize, most: usize| {
        let more = most.min(unread[i] - shares[i]).min(left);
        shares[i] += more;
        left -= more;
    };
    let mut long: Vec<usize> = (0..unread.len()).filter(|i| unread[*i] > 1).collect();
    if let Some(first) = long.first() {
        give(*first, step_tokens.div_ceil(2).max(1));
    }
    long.sort_by_key(|i| unread[*i]);
    long.into_iter().for_each(|i| give(i, usize::MAX));
    shares
}

/// A request.
struct Job {
    id: RequestId,
    prompt: Vec<u32>,
    /// Which of several prompts it is: part of what its random streams derive from.
    number: usize,
    samples: usize,
    sampler: Sampler,
    /// The prompt, until the last sample began.
    sequence: Option<Sequence>,
    /// Samples that began.
    begun: usize,
    searches: Vec<Running>,
}

/// A sample under way.
struct Running {
    sample: usize,
    search: Search,
    /// How many bytes of its text and how many tokens were told.
    told: (usize, usize),
}

impl Job {
    fn new(id: RequestId, request: Request, number: usize, sampler: Sampler) -> Self {
        let Request { prompt, samples, .. } = request;
        let (sequence, searches) = (Some(Sequence::default()), Vec::new());
        Job { id, prompt, number, samples, sampler, sequence, begun: 0, searches }
    }

    fn is_beam(&self) -> bool {
        self.sampler.options().strategy == Strategy::Beam
    }

    /// How many sequences a sample has.
    fn beams(&self) -> usize {
        if self.is_beam() { self.sampler.options().num_beams } else { 1 }
    }

    /// How many places in the batch it takes.
    fn width(&self) -> usize {
        self.beams() * self.searches.len().max(1)
    }

    /// Takes over what was kept of the prompt's beginning.
    fn start(&mut self, config: &Config, kept: &mut Prefixes) -> Event {
        let mut sequence = Sequence::default();
        sequence.append(&self.prompt, config.seq_len);
        let cache = kept.take(sequence.unread(), config).unwrap_or_default();
        let (cached_tokens, cut) = (cache.len(), sequence.dropped);
        sequence.resume(cache);
        self.sequence = Some(sequence);
        Event::Started { id: self.id, prompt_tokens: self.prompt.len(), cached_tokens, cut }
    }

    /// Whether its prompt is read and further samples of it begin.
    fn is_read(&self) -> bool {
        self.sequence.as_ref().is_some_and(|sequence| sequence.unread().is_empty())
    }

    /// Begins the next sample.
    fn begin(&mut self, model: &Model, kept: &mut Prefixes) {
        let (sample, last) = (self.begun, self.begun + 1 == self.samples);
        if sample == 0 && (self.samples > 1 || self.is_beam()) {
            kept.keep_copy(self.sequence.as_ref());
        }
        let sequence = if last { self.sequence.take() } else { self.sequence.clone() };
        let options = self.sampler.options();
        let rng = batch::stream_of(options, self.number, sample);
        let search = Search::new(model, sequence.unwrap_or_default(), &self.prompt, options, rng);
        self.searches.push(Running { sample, search, told: (0, 0) });
        self.begun += 1;
    }

    fn is_over(&self) -> bool {
        self.sequence.is_none() && self.searches.is_empty()
    }

    /// All sequences that are read for it.
    fn sequences(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let searches = self.searches.iter_mut().flat_map(|running| running.search.sequences());
        self.sequence.iter_mut().chain(searches)
    }

    /// What was read for it.
    fn into_sequences(self) -> impl Iterator<Item = Sequence> {
        let searches = self.searches.into_iter().map(|running| running.search.finish().1);
        self.sequence.into_iter().chain(searches)
    }
}

impl Running {
    /// What is new since the last piece; nothing where nothing is.
    fn piece(&mut self, id: RequestId) -> Option<Event> {
        let written = self.search.written()?;
        let (text, tokens) = (&written.text[self.told.0..], written.tokens_from(self.told.1));
        if text.is_empty() && tokens.is_empty() {
            return None;
        }
        let event = Event::Piece { id, sample: self.sample, text: text.to_string(), tokens };
        self.told = (written.text.len(), written.tokens.len());
        Some(event)
    }
}
