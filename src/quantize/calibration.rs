//! Which ids of a model's training texts its layers are watched on.

use crate::base::{Error, Monitor, Result};
use crate::corpus::held_out::{HeldOut, Rule, is_unseen};
use crate::model::Model;
use crate::tokenizer::{Inputs, Special, Text, chat};

/// Bytes of a document that are encoded together.
const PIECE: usize = 8192;

/// Bytes that are encoded for each token that is asked for, so that windows come from all over the texts.
const BYTES_A_TOKEN: u64 = 32;

/// Windows of training text, end to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    pub ids: Vec<u32>,
    /// Tokens of each.
    pub length: usize,
}

/// Windows of `model`'s longest sequence with `tokens` in all or what there is, evenly spread over the texts that
/// `held_out` does not hold out. Where there is less text than a window, one that is shorter.
///
/// # Errors
/// When no text is left, one cannot be read or encoded; cancellation.
pub fn windows(
    model: &Model,
    texts: &Inputs,
    held_out: &HeldOut,
    tokens: usize,
    monitor: &dyn Monitor,
) -> Result<Windows> {
    let mut bytes = 0;
    each_training_text(texts, held_out, monitor, &mut |text| {
        bytes += text.bytes() as u64;
        Ok(())
    })?;
    let every = (bytes / (BYTES_A_TOKEN * tokens.max(1) as u64)).max(1);
    let (mut ids, mut piece) = (Vec::new(), 0);
    each_training_text(texts, held_out, monitor, &mut |text| {
        encode(model, text, &mut ids, &mut || {
            piece += 1;
            (piece - 1) % every == 0
        })
    })?;
    if ids.is_empty() {
        return Err(Error::input(
            "there is no text to calibrate with: all is held out from training, or empty",
        )
        .help("connect texts that the model was trained on, or set `method: round`"));
    }
    let length = model.transformer.config.seq_len.min(ids.len());
    let (all, some) = (ids.len() / length, (tokens / length).max(1));
    let count = all.min(some);
    let window = |i: usize| &ids[i * all / count * length..][..length];
    Ok(Windows { ids: (0..count).flat_map(window).copied().collect(), length })
}

fn each_training_text(
    texts: &Inputs,
    held_out: &HeldOut,
    monitor: &dyn Monitor,
    f: &mut dyn FnMut(&Text) -> Result<()>,
) -> Result<()> {
    let texts = texts.texts()?;
    let total = texts.total;
    for (i, text) in texts.enumerate() {
        monitor.step("choosing texts", i as u64, Some(total), "texts")?;
        let text = text?;
        let rules: &[Rule] = match text {
            Text::Document(_) => &held_out.documents,
            Text::Conversation(_) => &held_out.conversations,
        };
        if text.bytes() > 0 && (rules.is_empty() || !is_unseen(rules, text.id())) {
            f(&text)?;
        }
    }
    Ok(())
}

/// Appends the ids of the pieces of a text that are `wanted`, as training has them.
fn encode(model: &Model, text: &Text, ids: &mut Vec<u32>, wanted: &mut dyn FnMut() -> bool) -> Result<()> {
    let tokenizer = &model.tokenizer;
    match text {
        Text::Document(document) => {
            let mut rest = document.text.as_str();
            let (mut begins, mut ends) = (true, false);
            while !ends {
                let (piece, behind) = rest.split_at(rest.floor_char_boundary(PIECE));
                ends = behind.is_empty();
                if wanted() {
                    ids.extend(if begins { Some(tokenizer.require(Special::Bos)?) } else { None });
                    ids.extend(tokenizer.encode(piece)?);
                    ids.extend(if ends { Some(tokenizer.require(Special::Eos)?) } else { None });
                }
                (rest, begins) = (behind, false);
            }
        }
        Text::Conversation(conversation) if wanted() => {
            ids.extend(chat::render(tokenizer, &conversation.messages)?.ids);
        }
        Text::Conversation(_) => {}
    }
    Ok(())
}
