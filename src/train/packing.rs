//! Conversations into rows of bounded length, so that little of a batch is padding.
//!
//! Whole conversations are laid side by side while they fit. A longer one is cut between exchanges,
//! each piece beginning with `<bos>` and the system message again. An exchange that is longer than a
//! row by itself is cut inside its contents, never at a role token. Conversations of one row can see
//! each other; each still begins with `<bos>`, and the model learns to begin anew there.

use crate::tokenizer::chat::Rendered;

/// Rows of ids, each with whether it is to be learned; and what had to be cut for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packing {
    pub rows: Vec<(Vec<u32>, Vec<bool>)>,
    /// Conversations that became several pieces.
    pub split: usize,
    /// Exchanges that lost tokens.
    pub cut: usize,
}

/// Packs into rows of at most `len` ids.
///
/// # Panics
/// When `len` is below 8: not even an exchange of one word fits.
pub fn pack(conversations: impl Iterator<Item = Rendered>, len: usize) -> Packing {
    assert!(len >= 8, "rows of {len} tokens hold no exchange");
    let mut packing = Packing::default();
    let mut row = (Vec::new(), Vec::new());
    for conversation in conversations {
        let pieces = pieces(&conversation, len, &mut packing.cut);
        packing.split += usize::from(pieces.len() > 1);
        for (ids, learn) in pieces {
            if row.0.len() + ids.len() > len {
                packing.rows.push(std::mem::take(&mut row));
            }
            row.0.extend(ids);
            row.1.extend(learn);
        }
    }
    if !row.0.is_empty() {
        packing.rows.push(row);
    }
    packing
}

type Piece = (Vec<u32>, Vec<bool>);

fn pieces(c: &Rendered, len: usize, cut: &mut usize) -> Vec<Piece> {
    if c.ids.len() <= len {
        return vec![(c.ids.clone(), c.target.clone())];
    }
    let (head, exchanges) = exchanges(c);
    // A system message that leaves no room for talk is left away, and that counts as a cut.
    let head = if head.0.len() > len / 2 {
        *cut += 1;
        (head.0[..1].to_vec(), head.1[..1].to_vec())
    } else {
        head
    };
    let mut out: Vec<Piece> = Vec::new();
    let mut piece = head.clone();
    for exchange in exchanges {
        let exchange = if head.0.len() + exchange.ids.len() > len {
            *cut += 1;
            exchange.shortened(len - head.0.len())
        } else {
            exchange
        };
        if piece.0.len() + exchange.ids.len() > len {
            out.push(std::mem::replace(&mut piece, head.clone()));
        }
        piece.0.extend(exchange.ids);
        piece.1.extend(exchange.learn);
    }
    out.push(piece);
    // A piece that teaches nothing is only in the way.
    out.retain(|(_, learn)| learn.iter().any(|l| *l));
    out
}

/// What is said up to and with an answer.
struct Exchange {
    ids: Vec<u32>,
    learn: Vec<bool>,
    /// Where the answer's role token stands; 0 where nothing was asked, as in a greeting.
    answer: usize,
}

impl Exchange {
    /// The end of what was asked, if anything was, and the beginning of the answer, with their role tokens.
    fn shortened(self, len: usize) -> Exchange {
        let asked = self.answer.min((len / 2).max(2));
        let answer = (self.ids.len() - self.answer).min(len - asked);
        let pick = |all: &[u32]| {
            let role = asked.min(1);
            let question = all[..role].iter().chain(&all[self.answer - (asked - role)..self.answer]);
            question.chain(&all[self.answer..self.answer + answer]).copied().collect::<Vec<u32>>()
        };
        let flags: Vec<u32> = self.learn.iter().map(|l| u32::from(*l)).collect();
        Exchange {
            ids: pick(&self.ids),
            learn: pick(&flags).iter().map(|l| *l == 1).collect(),
            answer: asked,
        }
    }
}

/// `<bos>` with the system message, and the exchanges behind it.
fn exchanges(c: &Rendered) -> (Piece, Vec<Exchange>) {
    let answers = |turn: &std::ops::Range<usize>| c.target[turn.clone()].iter().any(|t| *t);
    // Turns up to the first that is followed by an answer's turn belong to the head, less that one.
    let first = c.turns.iter().position(answers).unwrap_or(c.turns.len());
    let head_end = if first > 0 { c.turns[first - 1].start } else { c.turns.first().map_or(1, |t| t.start) };
    let head = (c.ids[..head_end].to_vec(), c.target[..head_end].to_vec());
    let mut out = Vec::new();
    let mut start = head_end;
    for turn in c.turns.iter().filter(|t| t.start >= head_end && answers(t)) {
        out.push(Exchange {
            ids: c.ids[start..turn.end].to_vec(),
            learn: c.target[start..turn.end].to_vec(),
            answer: turn.start - start,
        });
        start = turn.end;
    }
    (head, out)
}
