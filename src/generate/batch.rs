//! Many prompts at once. Up to [`WIDTH`] sequences are read as one batch; one that is over leaves it, and the
//! next prompt takes its place. A sequence's numbers do not depend on those beside it, so each text is what it
//! would be alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::sampler::Sampler;
use super::search::{Chooser, Search};
use super::{Continuation, Options, Sequence, Session, Strategy};
use crate::base::monitor::Monitor;
use crate::base::{Error, Result, Rng};
use crate::model::Model;

/// Sequences in a batch.
const WIDTH: usize = 32;

/// Tokens of prompts that are read at once, unless the first alone has more: the memory of a batch.
const PROMPT_TOKENS: usize = 2048;

/// The randomness of the `sample`th text behind the `prompt`th prompt.
pub fn stream_of(options: &Options, prompt: usize, sample: usize) -> Rng {
    match (prompt, sample) {
        (0, 0) => Rng::new(options.seed, "generate"),
        _ => Rng::new(options.seed, &format!("generate {prompt} {sample}")),
    }
}

/// Continues each prompt `samples` times. `done` gets the number of the prompt, that of the sample and the
/// continuation, in the order of prompts and samples, each as soon as all before it are there.
///
/// # Errors
/// When an option is out of range, a prompt has no tokens, the model's logits are NaN, on cancellation, or what
/// `done` returns.
pub fn continue_each(
    model: &Model,
    prompts: &[Vec<u32>],
    samples: usize,
    options: &Options,
    threads: usize,
    monitor: &dyn Monitor,
    done: &mut dyn FnMut(usize, usize, Continuation) -> Result<()>,
) -> Result<()> {
    options.validate().map_err(Error::invalid)?;
    if let Some(i) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::input(format!("there is nothing to continue: prompt {} has no tokens", i + 1)));
    }
    let total = prompts.len() * samples;
    let mut batch = Batch::new(model, prompts, samples, options, threads);
    let (mut given, mut waiting) = (0, BTreeMap::new());
    while given < total {
        monitor.step("generating", given as u64, Some(total as u64), "texts")?;
        batch.admit()?;
        waiting.extend(batch.step()?);
        while let Some(continuation) = waiting.remove(&given) {
            done(given / samples, given % samples, continuation)?;
            given += 1;
        }
    }
    Ok(())
}

struct Batch<'a> {
    model: &'a Model,
    session: Session<'a>,
    sampler: Sampler,
    options: &'a Options,
    prompts: &'a [Vec<u32>],
    samples: usize,
    /// With the number of each: `prompt * samples + sample`.
    searches: Vec<(usize, Mutex<Search>)>,
    /// The number of the search that begins next.
    next: usize,
    /// Prompts that were read, of which further samples begin.
    read: BTreeMap<usize, Sequence>,
}

impl<'a> Batch<'a> {
    fn new(
        model: &'a Model,
        prompts: &'a [Vec<u32>],
        samples: usize,
        options: &'a Options,
        threads: usize,
    ) -> Self {
        let (session, sampler) = (Session::new(model, threads), Sampler::new(model, options));
        let (searches, read) = (Vec::new(), BTreeMap::new());
        Batch { model, session, sampler, options, prompts, samples, searches, next: 0, read }
    }

    /// Begins as many searches as there is room for.
    fn admit(&mut self) -> Result<()> {
        let each = if self.options.strategy == Strategy::Beam { self.options.num_beams } else { 1 };
        let room = (WIDTH / each).max(1).saturating_sub(self.searches.len());
        let end = self.read_prompts((self.next + room).min(self.prompts.len() * self.samples))?;
        for number in self.next..end {
            let (prompt, sample) = (number / self.samples, number % self.samples);
            let sequence = match sample + 1 == self.samples {
                true => self.read.remove(&prompt),
                false => self.read.get(&prompt).cloned(),
            };
            let (sequence, ids) = (sequence.expect("the prompt was read"), &self.prompts[prompt]);
            let rng = stream_of(self.options, prompt, sample);
            let search = Search::new(self.model, sequence, ids, self.options, rng);
            self.searches.push((number, Mutex::new(search)));
        }
        self.next = end;
        Ok(())
    }

    /// Reads the prompts of the searches up to number `end`, or fewer where those have many tokens; gives the
    /// number up to which they are read.
    fn read_prompts(&mut self, end: usize) -> Result<usize> {
        let seq_len = self.model.transformer.config.seq_len;
        let (mut new, mut tokens, mut number) = (Vec::new(), 0, self.next);
        while number < end {
            let prompt = number / self.samples;
            if !self.read.contains_key(&prompt) && new.last() != Some(&prompt) {
                tokens += self.prompts[prompt].len().min(seq_len);
                if tokens > PROMPT_TOKENS && !new.is_empty() {
                    break;
                }
                new.push(prompt);
            }
            number += 1;
        }
        let mut sequences = vec![Sequence::default(); new.len()];
        let ids = new.iter().map(|prompt| self.prompts[*prompt].as_slice());
        self.session.read_each(sequences.iter_mut().zip(ids).collect())?;
        self.read.extend(new.into_iter().zip(sequences));
        Ok(number)
    }

    /// Takes all searches a token further; gives those that are over.
    fn step(&mut self) -> Result<Vec<(usize, Continuation)>> {
        let Batch { session, sampler, options, searches, .. } = self;
        let team = session.decoder.team();
        let chooser = Chooser { sampler, options, team };
        team.each(searches.len(), |i| {
            searches[i].1.lock().unwrap_or_else(PoisonError::into_inner).step(&chooser)
        });
        let (mut over, mut open) = (Vec::new(), Vec::new());
        for (number, search) in searches.drain(..) {
            let search = search.into_inner().unwrap_or_else(PoisonError::into_inner);
            match search.is_over() {
                true => over.push((number, search.finish().0)),
                false => open.push((number, search)),
            }
        }
        session.read_each(open.iter_mut().flat_map(|(_, search)| search.readings()).collect())?;
        searches.extend(open.into_iter().map(|(number, search)| (number, Mutex::new(search))));
        Ok(over)
    }
}
