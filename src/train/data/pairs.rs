//! Pairs of answers to one prompt: each row is two sequences, the prompt with the chosen answer and the prompt
//! with the rejected one.
//!
//! The targets are the assistant's tokens after the prompt, from the first one of an answer to its `<eos>`; what
//! the assistant said in the prompt is context. A pair that is too long loses the beginning of its prompt, by
//! whole exchanges, and then the ends of its answers, so that both sequences begin with the same prompt.
//!
//! Memory: 5 bytes for each id of both sequences.

use super::{Data, fill_sequence};
use crate::base::Result;
use crate::corpus::preference::Preference;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat::{self, Rendered};

/// Two conversations that differ from an answer on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPair {
    pub chosen: Rendered,
    pub rejected: Rendered,
    /// How many turns both begin with: the prompt.
    pub prompt: usize,
}

impl RenderedPair {
    /// # Errors
    /// As [`chat::render`].
    pub fn of(tokenizer: &Tokenizer, pair: &Preference) -> Result<Self> {
        let with = |answer| chat::render(tokenizer, &[&pair.prompt[..], answer].concat());
        Ok(RenderedPair {
            chosen: with(&pair.chosen)?,
            rejected: with(&pair.rejected)?,
            prompt: pair.prompt.len(),
        })
    }
}

/// Pairs that fit a model, and what had to be cut for it.
pub struct Pairs {
    /// Chosen and rejected.
    rows: Vec<[super::Sequence; 2]>,
    /// Which of the pairs that came each row is.
    numbers: Vec<usize>,
    length: usize,
    pad: u32,
    /// Pairs whose prompt lost its beginning.
    pub prompts_cut: usize,
    /// Pairs of which an answer lost its end, and with it the `<eos>`.
    pub answers_cut: usize,
    /// Pairs that are not among the rows: no token of an answer is a target, or the answers differ only where
    /// they were cut.
    pub left_out: usize,
}

impl Pairs {
    /// Rows that are as long as the longest pair, at most `seq_len`. `pad` fills up those that are shorter.
    ///
    /// # Panics
    /// When `seq_len` is below [`super::shortest_row`] of the openings of the turns.
    pub fn new(pairs: impl IntoIterator<Item = RenderedPair>, seq_len: usize, pad: u32) -> Self {
        let (rows, numbers) = (Vec::new(), Vec::new());
        let mut all = Pairs { rows, numbers, length: 1, pad, prompts_cut: 0, answers_cut: 0, left_out: 0 };
        for (number, pair) in pairs.into_iter().enumerate() {
            all.add(&pair, number, seq_len + 1);
        }
        all
    }

    fn add(&mut self, pair: &RenderedPair, number: usize, len: usize) {
        let answers = [&pair.chosen, &pair.rejected].map(|side| answer(side, pair.prompt));
        let longest = answers[0].0.len().max(answers[1].0.len());
        let limit = len.saturating_sub(longest).max(len / 2);
        let whole = prompt_len(&pair.chosen, pair.prompt);
        let prompt = shortened(&pair.chosen, pair.prompt, limit);
        let rest = len - prompt.len();
        let row = answers.map(|(ids, learn)| {
            let kept = ids.len().min(rest);
            let learn = [&vec![false; prompt.len()][..], &learn[..kept]].concat();
            ([&prompt[..], &ids[..kept]].concat(), learn)
        });
        if row[0] == row[1] || row.iter().any(|(_, learn)| !learn.contains(&true)) {
            self.left_out += 1;
            return;
        }
        self.prompts_cut += usize::from(prompt.len() < whole);
        self.answers_cut += usize::from(longest > rest);
        self.length = row.iter().map(|(ids, _)| ids.len() - 1).fold(self.length, usize::max);
        self.rows.push(row);
        self.numbers.push(number);
    }

    /// Which of the pairs that came each row is, from 0: all of them but those that were left out.
    pub fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// Targets of both answers of row `i`.
    ///
    /// # Panics
    /// When `i` is not below the number of rows.
    pub fn targets(&self, i: usize) -> [usize; 2] {
        self.rows[i].each_ref().map(|(_, learn)| learn.iter().filter(|learn| **learn).count())
    }
}

impl Data for Pairs {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn length(&self) -> usize {
        self.length
    }

    fn sequences(&self) -> usize {
        2
    }

    fn fill(&self, i: usize, ids: &mut [u32], targets: &mut [u32]) -> usize {
        let sequences = ids.chunks_exact_mut(self.length).zip(targets.chunks_exact_mut(self.length));
        let rows = self.rows[i].iter().zip(sequences);
        rows.map(|(row, (ids, targets))| fill_sequence(row, self.pad, ids, targets)).sum()
    }
}

/// What follows the first `prompt` turns, the opening of the answer included.
fn answer(side: &Rendered, prompt: usize) -> (&[u32], &[bool]) {
    let start = prompt_len(side, prompt);
    (&side.ids[start..], &side.target[start..])
}

fn prompt_len(side: &Rendered, prompt: usize) -> usize {
    side.turns[prompt].start
}

/// The first `prompt` turns in at most `limit` ids: `<bos>`, the system message where it takes at most half of
/// them, and the last exchanges that fit; if none does, the end of the last turn after its opening.
fn shortened(side: &Rendered, prompt: usize, limit: usize) -> Vec<u32> {
    let end = prompt_len(side, prompt);
    if end <= limit {
        return side.ids[..end].to_vec();
    }
    let head = if side.head <= limit / 2 { side.head } else { side.begin };
    let limit = limit - head;
    let opening = |turn: usize| &side.ids[side.turns[turn].start..][..side.openings[turn]];
    let mut turns = (0..prompt).filter(|turn| side.turns[*turn].start >= side.head);
    let asks = |turn: &usize| opening(*turn) != opening(prompt);
    let first = turns.clone().filter(asks).find(|turn| end - side.turns[*turn].start <= limit);
    let rest = match (first, turns.next_back()) {
        (Some(first), _) => side.ids[side.turns[first].start..end].to_vec(),
        (None, Some(last)) => {
            let content = side.turns[last].start + side.openings[last];
            let kept = limit.saturating_sub(side.openings[last]).min(end - content);
            [opening(last), &side.ids[end - kept..end]].concat()
        }
        (None, None) => Vec::new(),
    };
    [&side.ids[..head], &rest].concat()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::corpus::conversation::{Message, Role};
    use crate::model::IGNORE;
    use crate::tokenizer::Special;

    fn tokenizer() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
        Tokenizer::load(Path::new(path)).unwrap()
    }

    fn say(role: Role, content: &str) -> Message {
        Message::new(role, content)
    }

    fn preference(prompt: &[Message], chosen: &[Message], rejected: &[Message]) -> Preference {
        let with = |answer: &[Message]| [prompt, answer].concat();
        Preference::of(&with(chosen), &with(rejected), "pairs.jsonl", 1).unwrap()
    }

    /// Of a row: for both sequences each target with the id that it follows.
    fn scored(pairs: &Pairs, i: usize) -> [Vec<(u32, u32)>; 2] {
        let n = pairs.length();
        let (mut ids, mut targets) = (vec![0; 2 * n], vec![0; 2 * n]);
        pairs.fill(i, &mut ids, &mut targets);
        [0..n, n..2 * n].map(|own| {
            let both = ids[own.clone()].iter().zip(&targets[own]);
            both.filter(|(_, target)| **target != IGNORE).map(|(id, target)| (*id, *target)).collect()
        })
    }

    /// Each token of the answers is predicted from the one before: the first from the opening of the turn,
    /// `<eos>` from the last. What the assistant said in the prompt, and what the user says later, is not scored.
    #[test]
    fn exactly_the_tokens_of_the_answers_are_scored() {
        let tokenizer = tokenizer();
        let prompt = [
            say(Role::System, "Be kind."),
            say(Role::User, "Hello!"),
            say(Role::Assistant, "Hello. What is it?"),
            say(Role::User, "Who walks?"),
        ];
        let chosen =
            [say(Role::Assistant, "The fox."), say(Role::User, "Thanks"), say(Role::Assistant, "Bye")];
        let rejected = [say(Role::Assistant, "A")];
        let pair = RenderedPair::of(&tokenizer, &preference(&prompt, &chosen, &rejected)).unwrap();
        let pairs = Pairs::new([pair], 500, 0);
        let eos = tokenizer.require(Special::Eos).unwrap();
        let opening = *tokenizer.turn(Role::Assistant).unwrap().last().unwrap();
        let expected = |answers: &[&str]| -> Vec<(u32, u32)> {
            let ids = |text| [vec![opening], tokenizer.encode(text).unwrap(), vec![eos]].concat();
            answers
                .iter()
                .flat_map(|text| ids(text).windows(2).map(|w| (w[0], w[1])).collect::<Vec<_>>())
                .collect()
        };
        assert_eq!(scored(&pairs, 0), [expected(&["The fox.", "Bye"]), expected(&["A"])]);
        assert_eq!(pairs.targets(0), scored(&pairs, 0).map(|side| side.len()));
        let longest = chat::render(&tokenizer, &[&prompt[..], &chosen].concat()).unwrap().ids.len();
        assert_eq!((pairs.length(), pairs.sequences(), pairs.prompts_cut), (longest - 1, 2, 0));
    }

    #[test]
    fn what_does_not_fit_is_cut_or_left_out_and_counted() {
        let tokenizer = tokenizer();
        let talk = |n: usize| -> Vec<Message> {
            let roles = [Role::User, Role::Assistant].into_iter().cycle();
            roles.take(2 * n - 1).enumerate().map(|(i, role)| say(role, &format!("number {i}"))).collect()
        };
        let answer = |text: &str| vec![say(Role::Assistant, text)];
        let rendered = |prompt: &[Message], chosen: &[Message], rejected: &[Message]| {
            RenderedPair::of(&tokenizer, &preference(prompt, chosen, rejected)).unwrap()
        };
        let unlearned = vec![Message { weight: 0, ..say(Role::Assistant, "y") }];
        let pairs = [
            rendered(&talk(1), &answer("a"), &answer("b")),
            rendered(&talk(9), &answer("a"), &answer("b")),
            rendered(&talk(1), &answer(&"long ".repeat(50)), &answer("b")),
            rendered(&talk(1), &answer(&"x".repeat(90)), &answer(&"x".repeat(91))),
            rendered(&talk(1), &answer("a"), &unlearned),
        ];
        let all = Pairs::new(pairs, 47, 0);
        assert_eq!(
            (all.numbers(), all.prompts_cut, all.answers_cut, all.left_out),
            (&[0, 1, 2][..], 1, 1, 2)
        );
        let eos = tokenizer.require(Special::Eos).unwrap();
        let ends = |row: usize| scored(&all, row).map(|side| side.last().unwrap().1 == eos);
        assert_eq!([ends(0), ends(1), ends(2)], [[true; 2], [true; 2], [false, true]]);
        // Whole exchanges are what the long prompt kept.
        let text = tokenizer.decode(&all.rows[1][0].0).unwrap();
        assert!(text.contains("number 16") && !text.contains("number 0"), "{text}");
        assert_eq!(
            all.rows[1][0].0[1..3],
            chat::render(&tokenizer, &talk(1)).unwrap().ids[1..3],
            "a user begins"
        );
    }

    const BOS: u32 = 2;
    const ROLES: [u32; 3] = [4, 5, 6];

    /// A prompt of a system message and turns of these lengths, and two answers.
    fn of_lengths(system: usize, turns: &[usize], answers: [usize; 2]) -> RenderedPair {
        let side = |answer: usize, content: u32| {
            let mut r =
                Rendered { ids: vec![BOS], target: vec![false], begin: 1, head: 1, ..Rendered::default() };
            let mut turn = |role: usize, len: usize, content: u32| {
                let start = r.ids.len();
                r.ids.push(ROLES[role]);
                r.ids.extend((0..len as u32).map(|i| content + i % 7));
                r.target.push(false);
                r.target.resize(r.ids.len(), role == 1);
                r.turns.push(start..r.ids.len());
                r.openings.push(1);
                r.head = if role == 2 { r.ids.len() } else { r.head };
            };
            if system > 0 {
                turn(2, system, 10);
            }
            turns.iter().enumerate().for_each(|(i, len)| turn(i % 2, *len, 20));
            turn(1, answer, content);
            r
        };
        let prompt = turns.len() + usize::from(system > 0);
        RenderedPair { chosen: side(answers[0], 40), rejected: side(answers[1], 50), prompt }
    }

    proptest! {
        /// Both sequences of a row begin with the same prompt, `<bos>` and whole openings; the answers keep
        /// their beginnings; what fits is whole.
        #[test]
        fn rows_hold_one_prompt_and_two_answers(
            system in 0usize..9,
            turns in proptest::collection::vec(1usize..20, 0..5).prop_map(|t| if t.len() % 2 == 0 { [t, vec![3]].concat() } else { t }),
            answers in (1usize..40, 1usize..40),
            seq_len in 15usize..120,
        ) {
            let pair = of_lengths(system, &turns, answers.into());
            let whole = pair.chosen.ids.len().max(pair.rejected.ids.len());
            let start = pair.chosen.turns[pair.prompt].start;
            let pairs = Pairs::new([pair.clone()], seq_len, 0);
            prop_assert_eq!((pairs.rows(), pairs.left_out), (1, 0));
            let [(chosen, learn), (rejected, _)] = &pairs.rows[0];
            prop_assert!(chosen.len().max(rejected.len()) <= seq_len + 1);
            prop_assert_eq!(chosen.len().max(rejected.len()), pairs.length() + 1);
            let prompt = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
            prop_assert_eq!((chosen[0], chosen[prompt - 1]), (BOS, ROLES[1]), "up to the answer's opening");
            prop_assert!(!learn[..prompt].contains(&true) && !learn[prompt..].contains(&false));
            prop_assert_eq!(&chosen[prompt..], &pair.chosen.ids[start + 1..][..chosen.len() - prompt]);
            prop_assert_eq!(&rejected[prompt..], &pair.rejected.ids[start + 1..][..rejected.len() - prompt]);
            if whole <= seq_len + 1 {
                prop_assert_eq!((chosen, pairs.prompts_cut, pairs.answers_cut), (&pair.chosen.ids, 0, 0));
            } else {
                prop_assert_eq!(pairs.prompts_cut + pairs.answers_cut > 0, true);
                prop_assert!(ROLES.contains(&chosen[1]), "a turn, or the system message, is whole in front");
            }
        }
    }
}
