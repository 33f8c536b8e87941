//! The continuation of one prompt under way: of all strategies, a token at a time, so that several are read as
//! one batch.

use super::sampler::Sampler;
use super::writer::Writer;
use super::{Continuation, Finish, Options, Sequence, Session, Strategy, beam};
use crate::base::{Result, Rng};
use crate::kernel::{Team, loss};
use crate::model::Model;

/// One of the texts that a search follows.
pub struct Branch {
    pub sequence: Sequence,
    pub writer: Writer,
    /// The sum of the new tokens' log-probabilities that beams are compared by.
    pub score: f64,
}

/// What all searches of a batch choose tokens with.
pub struct Chooser<'a> {
    pub sampler: &'a Sampler,
    pub options: &'a Options,
    pub team: &'a Team,
}

impl Chooser<'_> {
    /// The log-probability of `id` as the next token, by the model's own distribution.
    pub fn logprob(&self, sequence: &Sequence, id: u32) -> f64 {
        let mut logits = sequence.logits.clone();
        let vocab_size = logits.len();
        -loss::predictions(self.team, &mut logits, vocab_size, &[id])[0].nats
    }
}

enum How {
    Greedy,
    Sample(Rng),
    Beam(beam::Finished),
}

pub struct Search {
    branches: Vec<Branch>,
    /// The token that each branch reads next.
    next: Vec<u32>,
    how: How,
    result: Option<Continuation>,
}

impl Search {
    /// Of what follows `sequence`, whose last tokens are `prompt`.
    pub fn new(model: &Model, sequence: Sequence, prompt: &[u32], options: &Options, rng: Rng) -> Self {
        let writer = Writer::new(model, prompt, options);
        let branch = Branch { sequence, writer, score: 0.0 };
        let how = match options.strategy {
            Strategy::Greedy => How::Greedy,
            Strategy::Sample => How::Sample(rng),
            Strategy::Beam => How::Beam(beam::Finished::default()),
        };
        let mut search = Search { branches: vec![branch], next: Vec::new(), how, result: None };
        if options.max_new_tokens == 0 {
            search.end(Finish::Length);
        }
        search
    }

    /// Chooses the next token, or ends.
    pub fn step(&mut self, chooser: &Chooser) {
        if self.result.is_some() {
            return;
        }
        let branch = &mut self.branches[0];
        let id = match &mut self.how {
            How::Greedy => chooser.sampler.greedy(&branch.sequence),
            How::Sample(rng) => chooser.sampler.sample(&branch.sequence, rng),
            How::Beam(finished) => {
                (self.branches, self.next) = beam::step(&self.branches, finished, chooser);
                self.result = finished.result(&self.branches, chooser.options);
                return;
            }
        };
        if chooser.sampler.is_end(id) {
            return self.end(Finish::End);
        }
        let logprob = chooser.logprob(&branch.sequence, id);
        match branch.writer.push(id, logprob, chooser.options.max_new_tokens) {
            Some(finish) => self.end(finish),
            None => self.next = vec![id],
        }
    }

    fn end(&mut self, finish: Finish) {
        self.result = Some(self.branches[0].writer.clone().end(finish));
    }

    pub fn is_over(&self) -> bool {
        self.result.is_some()
    }

    /// The text that no further token changes.
    pub fn text(&self) -> &str {
        match (&self.result, &self.how) {
            (Some(result), _) => &result.text,
            // The best beam may become another.
            (None, How::Beam(_)) => "",
            (None, _) => self.branches[0].writer.text(),
        }
    }

    /// The sequences and what each reads next; none when the search is over.
    pub fn readings(&mut self) -> impl Iterator<Item = (&mut Sequence, &[u32])> {
        let next = if self.result.is_some() { &[] } else { self.next.as_slice() };
        let sequences = self.branches.iter_mut().map(|branch| &mut branch.sequence);
        sequences.zip(next.iter().map(std::slice::from_ref))
    }

    /// Reads the chosen tokens.
    ///
    /// # Errors
    /// When the model's logits are NaN.
    pub fn read(&mut self, session: &mut Session) -> Result<()> {
        session.read_each(self.readings().collect())
    }

    /// The result, and the sequence that was read for it; beams have none left. Of a search that is not over,
    /// what there is.
    pub fn finish(mut self) -> (Continuation, Sequence) {
        if self.result.is_none() {
            self.end(Finish::Length);
        }
        let sequence = self.branches.into_iter().next().map(|branch| branch.sequence);
        (self.result.expect("the search has ended"), sequence.unwrap_or_default())
    }
}
