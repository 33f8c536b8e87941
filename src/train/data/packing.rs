//! Conversations into rows of bounded length, so that little of a batch is padding.
//!
//! Whole conversations are laid side by side while they fit. A longer one is cut between exchanges,
//! each piece beginning with `<bos>` and the system message again. An exchange that is longer than a
//! row by itself is cut inside its contents, never in the opening of a turn. Conversations of one row can
//! see each other; each still begins with `<bos>`, and the model learns to begin anew there.

use std::ops::Range;

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

/// The shortest rows that hold an exchange of one word behind a system message of another, when the
/// longest opening of a turn has so many ids.
pub fn shortest_row(opening: usize) -> usize {
    4 * (opening + 1)
}

/// Packs into rows of at most `len` ids.
///
/// # Panics
/// When `len` is below [`shortest_row`] of the openings.
pub fn pack(conversations: impl Iterator<Item = Rendered>, len: usize) -> Packing {
    assert!(len >= shortest_row(1), "rows of {len} tokens hold no exchange");
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
    let longest = c.openings.iter().copied().max().unwrap_or(1);
    assert!(len >= shortest_row(longest), "rows of {len} tokens hold no exchange");
    let (head, exchanges) = exchanges(c);
    // A system message that leaves no room for talk is left away, and that counts as a cut.
    let head = if head.0.len() > len / 2 {
        *cut += 1;
        (head.0[..c.begin].to_vec(), head.1[..c.begin].to_vec())
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
    /// Where each of its turns opens; the last is the answer's.
    openings: Vec<Range<usize>>,
}

impl Exchange {
    /// The end of what was asked, if anything was, and the beginning of the answer, each with the opening
    /// of its turn.
    fn shortened(self, len: usize) -> Exchange {
        let Some((answer, asked)) = self.openings.split_last() else { return self };
        let opening = |turns: &[Range<usize>]| turns.iter().map(Range::len).max().unwrap_or(0);
        let room = (len / 2).max(opening(asked) + 1).min(len - answer.len() - 1);
        // The turn in which the end of the question begins; what comes before it is left away.
        let start = answer.start - room.saturating_sub(opening(asked)).min(answer.start);
        let turn = asked.iter().rev().find(|turn| turn.start <= start).or(asked.first());
        let (turn, question) = match turn {
            Some(turn) if answer.start > room => (turn.clone(), turn.end.max(start)..answer.start),
            _ => (0..0, 0..answer.start),
        };
        let said = answer.start..self.ids.len().min(answer.start + len - turn.len() - question.len());
        let kept: Vec<usize> = turn.chain(question).chain(said).collect();
        Exchange {
            ids: kept.iter().map(|i| self.ids[*i]).collect(),
            learn: kept.iter().map(|i| self.learn[*i]).collect(),
            openings: self.openings,
        }
    }
}

/// `<bos>` with the system message, and the exchanges behind it.
fn exchanges(c: &Rendered) -> (Piece, Vec<Exchange>) {
    let answers = |turn: &Range<usize>| c.target[turn.clone()].iter().any(|t| *t);
    let head = (c.ids[..c.head].to_vec(), c.target[..c.head].to_vec());
    let mut out = Vec::new();
    let mut start = c.head;
    let mut openings = Vec::new();
    for (turn, opening) in c.turns.iter().zip(&c.openings).filter(|(turn, _)| turn.start >= c.head) {
        openings.push(turn.start - start..turn.start - start + opening);
        if answers(turn) {
            out.push(Exchange {
                ids: c.ids[start..turn.end].to_vec(),
                learn: c.target[start..turn.end].to_vec(),
                openings: std::mem::take(&mut openings),
            });
            start = turn.end;
        }
    }
    (head, out)
}
