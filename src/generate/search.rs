//! The continuation of one prompt under way: of all strategies, a token at a time, so that several are read as
//! one batch.

use super::sampler::Sampler;
use super::writer::Writer;
use super::{Continuation, Finish, Options, Sequence, Strategy, beam};
use crate::base::Rng;
use crate::model::Model;

/// One of the texts that a search follows.
pub struct Branch {
    pub sequence: Sequence,
    pub writer: Writer,
    /// The sum of the new tokens' log-probabilities that beams are compared by.
    pub score: f64,
}

enum How {
    Greedy,
    Sample(Rng),
    Beam(beam::Finished),
}

pub struct Search {
    branches: Vec<Branch>,
    how: How,
    /// Of the model.
    seq_len: usize,
    result: Option<Continuation>,
}

impl Search {
    /// Of what follows `sequence`, whose last tokens are `prompt`.
    pub fn new(model: &Model, mut sequence: Sequence, prompt: &[u32], options: &Options, rng: Rng) -> Self {
        sequence.prompt = sequence.tokens.len();
        let writer = Writer::new(model, prompt, options);
        let branch = Branch { sequence, writer, score: 0.0 };
        let how = match options.strategy {
            Strategy::Greedy => How::Greedy,
            Strategy::Sample => How::Sample(rng),
            Strategy::Beam => How::Beam(beam::Finished::default()),
        };
        let seq_len = model.transformer.config.seq_len;
        let mut search = Search { branches: vec![branch], how, seq_len, result: None };
        if options.max_new_tokens == 0 {
            search.end(Finish::Length);
        }
        search
    }

    /// Chooses the next token, which is then to be read, or ends. The sequences have been read.
    pub fn step(&mut self, sampler: &Sampler) {
        if self.result.is_some() {
            return;
        }
        let branch = &mut self.branches[0];
        let id = match &mut self.how {
            How::Greedy => sampler.greedy(&branch.sequence),
            How::Sample(rng) => sampler.sample(&branch.sequence, rng),
            How::Beam(finished) => {
                let next;
                (self.branches, next) = beam::step(&self.branches, finished, sampler);
                self.result = finished.result(&self.branches, sampler.options());
                return self.append(&next);
            }
        };
        let token = sampler.token(&branch.sequence, id);
        if sampler.is_end(id) {
            branch.writer.close(token);
            return self.end(Finish::End);
        }
        match branch.writer.push(token, sampler.options().max_new_tokens) {
            Some(finish) => self.end(finish),
            None => self.append(&[id]),
        }
    }

    /// Appends a token to each branch.
    fn append(&mut self, next: &[u32]) {
        for (branch, id) in self.branches.iter_mut().zip(next) {
            branch.sequence.append(&[*id], self.seq_len);
        }
    }

    fn end(&mut self, finish: Finish) {
        self.result = Some(self.branches[0].writer.clone().end(finish));
    }

    pub fn is_over(&self) -> bool {
        self.result.is_some()
    }

    /// What no further token changes of the result; nothing while the best beam may become another.
    pub fn written(&self) -> Option<&Continuation> {
        match (&self.result, &self.how) {
            (Some(result), _) => Some(result),
            (None, How::Beam(_)) => None,
            (None, _) => Some(self.branches[0].writer.written()),
        }
    }

    /// The text of [`Search::written`].
    pub fn text(&self) -> &str {
        self.written().map_or("", |written| &written.text)
    }

    /// The sequences that are read for the next token; none when the search is over.
    pub fn sequences(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let open = if self.result.is_some() { 0 } else { self.branches.len() };
        self.branches[..open].iter_mut().map(|branch| &mut branch.sequence)
    }

    /// Whether the next token can be chosen.
    pub fn is_read(&self) -> bool {
        self.branches.iter().all(|branch| branch.sequence.unread().is_empty())
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
