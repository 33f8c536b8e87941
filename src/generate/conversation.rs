//! A conversation with a fine-tuned model, turn by turn; what was said stays in the cache.

use std::ops::{ControlFlow, Deref};

use super::{Finish, Options, Session, stream};
use crate::base::Result;
use crate::corpus::conversation::{Message, Role};
use crate::model::Model;
use crate::tokenizer::chat;

/// A model and what was said so far. `M` owns or borrows the model.
pub struct Conversation<M> {
    pub(super) session: Session<M>,
    /// What the model is told before the first turn.
    system: Option<Message>,
}

/// The model's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Without spaces before it.
    pub text: String,
    pub finish: Finish,
    /// How many tokens of the conversation the model ceased to see in this turn: it had more than `seq_len`.
    pub forgotten: usize,
}

impl<M: Deref<Target = Model>> Conversation<M> {
    /// A conversation in which nothing was said yet. Matrix products use up to `threads` threads.
    pub fn new(model: M, system: Option<&str>, threads: usize) -> Self {
        let system = system.map(|content| Message::new(Role::System, content));
        Conversation { session: Session::new(model, threads), system }
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.session.sequence = Default::default();
    }

    pub fn model(&self) -> &Model {
        self.session.model()
    }

    /// How many tokens the conversation has.
    pub fn tokens(&self) -> usize {
        self.session.sequence.tokens.len()
    }

    /// How many of its first tokens the model no longer sees.
    pub fn forgotten(&self) -> usize {
        self.session.sequence.dropped
    }

    /// Sends `text` and gives the answer; `on_text` gets its text as soon as it is certain, and ends it there
    /// with a `Break`.
    ///
    /// # Errors
    /// When an option is out of range, the tokenizer cannot render the turn, or the model's logits are NaN.
    pub fn turn(
        &mut self,
        text: &str,
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn> {
        let forgotten = self.forgotten();
        let ids = self.ids_of(text)?;
        let end = chat::end(&self.model().tokenizer)?;
        self.session.feed(&ids)?;
        let before = (self.tokens(), self.forgotten());
        let mut answer = String::new();
        let result = stream(&mut self.session, &ids, options, &mut |piece| {
            // Some tokenizers begin every text with a space.
            let piece = if answer.is_empty() { piece.trim_start() } else { piece };
            answer.push_str(piece);
            on_text(piece)
        })?;
        if result.finish == Finish::Stop {
            // What was said ends before the stop string.
            self.session.sequence.rewind(before.0, before.1);
            let said = self.model().tokenizer.encode(&answer)?;
            self.session.feed(&said)?;
        }
        // The end token was chosen but not read; the next turn must see it.
        self.session.feed(&[end])?;
        Ok(Turn { text: answer, finish: result.finish, forgotten: self.forgotten() - forgotten })
    }

    /// The tokens of the user's turn, and of what comes before it where it is the first.
    fn ids_of(&self, text: &str) -> Result<Vec<u32>> {
        let (tokenizer, user) = (&self.model().tokenizer, Message::new(Role::User, text));
        if self.tokens() > 0 {
            return chat::further(tokenizer, &[user]);
        }
        let messages: Vec<Message> = self.system.clone().into_iter().chain([user]).collect();
        chat::prompt(tokenizer, &messages)
    }
}
