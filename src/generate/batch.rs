//! Many prompts that are there at once: each becomes a request of a [`Scheduler`], and is continued as it would
//! be alone.

use std::collections::BTreeMap;

use super::scheduler::{Event, Limits, Request, Scheduler};
use super::{Continuation, Options};
use crate::base::monitor::Monitor;
use crate::base::{Error, Result, Rng};
use crate::model::Model;

/// Sequences in a batch.
const WIDTH: usize = 32;

/// Tokens of prompts that are read at once: the memory of a batch.
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
    options.validate_for(model).map_err(Error::invalid)?;
    if let Some(i) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::input(format!("there is nothing to continue: prompt {} has no tokens", i + 1)));
    }
    let limits = Limits { width: WIDTH, step_tokens: PROMPT_TOKENS, prefix_bytes: 0 };
    let mut scheduler = Scheduler::new(model, threads, limits);
    let total = prompts.len() * samples;
    let (mut asked, mut given, mut over) = (prompts.iter().enumerate(), 0, BTreeMap::new());
    while given < total {
        monitor.step("generating", given as u64, Some(total as u64), "texts")?;
        let wanted = WIDTH.saturating_sub(scheduler.waiting());
        asked.by_ref().take(wanted).try_for_each(|(i, prompt)| {
            let request = Request { prompt: prompt.clone(), options: options.clone(), samples };
            scheduler.submit_as(request, i).map(|_| ())
        })?;
        for event in scheduler.step() {
            match event {
                Event::Finished { id, sample, continuation } => {
                    // Requests are numbered as the prompts are.
                    over.insert((id.0 as usize, sample), continuation);
                }
                Event::Failed { error, .. } => return Err(error),
                Event::Started { .. } | Event::Piece { .. } => {}
            }
        }
        while let Some(continuation) = over.remove(&(given / samples, given % samples)) {
            done(given / samples, given % samples, continuation)?;
            given += 1;
        }
    }
    Ok(())
}

/// The model's continuations of several prompts, computed side by side, each drawn with its own stream of the
/// seed; the first with that of a single prompt.
///
/// # Errors
/// As [`continue_each`].
pub fn continue_all(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &Options,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Vec<Continuation>> {
    let mut all = Vec::with_capacity(prompts.len());
    continue_each(model, prompts, 1, options, threads, monitor, &mut |_, _, continuation| {
        all.push(continuation);
        Ok(())
    })?;
    Ok(all)
}
