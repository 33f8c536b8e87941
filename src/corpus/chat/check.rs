//! The rules of a conversation: known roles, at most one system message and that first, user and
//! assistant in turn, an answer at the end.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::suggest;
use crate::corpus::clean::{Changes, Cleaning, clean};
use crate::corpus::conversation::{Message, Role};
use crate::corpus::input::Bad;

/// A message as it was found: nothing checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub role: String,
    pub content: String,
    /// The byte of the file where it, or its row, stands.
    pub at: u64,
}

/// What the roles are called elsewhere.
const SYNONYMS: [(&str, Role); 14] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("human", Role::User),
    ("prompter", Role::User),
    ("customer", Role::User),
    ("assistant", Role::Assistant),
    ("gpt", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("bot", Role::Assistant),
    ("chatbot", Role::Assistant),
    ("model", Role::Assistant),
    ("ai", Role::Assistant),
    ("agent", Role::Assistant),
];

/// Names of roles, without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(BTreeMap<String, Role>);

impl Default for Roles {
    fn default() -> Self {
        Roles(SYNONYMS.iter().map(|(name, role)| (name.to_string(), *role)).collect())
    }
}

impl Roles {
    /// The usual names and `more`, which win.
    pub fn with(more: &BTreeMap<String, Role>) -> Self {
        let mut roles = Self::default();
        roles.0.extend(more.iter().map(|(name, role)| (name.to_lowercase(), *role)));
        roles
    }

    pub fn find(&self, name: &str) -> Option<Role> {
        self.0.get(name).or_else(|| self.0.get(&name.trim().to_lowercase())).copied()
    }

    fn unknown(&self, turn: &Turn, number: usize) -> Bad {
        let names = || self.0.keys().map(String::as_str);
        Bad::new("unknown_role", turn.at, format!("message {number} has the unknown role {:?}", turn.role))
            .suggest(suggest::closest(&turn.role, names()))
            .help(format!("known are {}; name others in `roles`", suggest::list(names())))
    }
}

/// What happens to two messages of one role in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameRole {
    /// The row is bad.
    #[default]
    Error,
    /// They become one, with a line break between, and are counted.
    Merge,
}

/// How often a conversation was mended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// Messages merged into the one before.
    pub merged_messages: u64,
    /// User messages at the end that nobody answered, dropped.
    pub trailing_user_dropped: u64,
    /// System messages without content, dropped.
    pub empty_system_dropped: u64,
    /// Messages that contain the text of one of our special tokens, such as `<eos>`; kept.
    pub special_tokens_in_content: u64,
    /// What cleaning did to the contents.
    pub text: Changes,
}

/// The messages of a conversation that obeys the rules.
///
/// # Errors
/// The first rule that is broken, with the number of the message.
pub fn check(
    turns: Vec<Turn>,
    roles: &Roles,
    same_role: SameRole,
    how: Cleaning,
    row_at: u64,
    mended: &mut Mended,
) -> Result<Vec<Message>, Bad> {
    let mut messages: Vec<Message> = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let number = i + 1;
        let role = roles.find(&turn.role).ok_or_else(|| roles.unknown(turn, number))?;
        let content = clean(&turn.content, how, &mut mended.text);
        let content = content.trim();
        if content.is_empty() && role == Role::System {
            mended.empty_system_dropped += 1;
            continue;
        }
        if content.is_empty() {
            let message = format!("message {number} ({}) is empty", role.as_str());
            return Err(Bad::new("empty_message", turn.at, message));
        }
        mended.special_tokens_in_content += u64::from(holds_special_token(content));
        match messages.last_mut() {
            Some(last) if last.role == role && (same_role == SameRole::Merge || role == Role::System) => {
                mended.merged_messages += 1;
                last.content.push('\n');
                last.content.push_str(content);
            }
            last => {
                follows(last.map(|m| m.role), role)
                    .map_err(|(cause, why)| bad_order(cause, &why, turn.at, number))?;
                messages.push(Message { role, content: content.to_string() });
            }
        }
    }
    if messages.last().is_some_and(|m| m.role == Role::User) {
        messages.pop();
        mended.trailing_user_dropped += 1;
    }
    match messages.iter().any(|m| m.role == Role::Assistant) {
        true => Ok(messages),
        false => Err(Bad::new("no_answer", row_at, "this conversation has no assistant message")),
    }
}

/// Whether `role` may stand behind `last`; else the cause and the reason.
fn follows(last: Option<Role>, role: Role) -> Result<(), (&'static str, String)> {
    match (last, role) {
        (None, Role::System | Role::User)
        | (Some(Role::System | Role::Assistant), Role::User)
        | (Some(Role::User), Role::Assistant) => Ok(()),
        (None | Some(Role::System), Role::Assistant) => {
            Err(("starts_with_assistant", "is from the assistant, expected the user first".into()))
        }
        (Some(_), Role::System) => {
            Err(("late_system", "is a system message, which only may come first".into()))
        }
        (Some(_), role) => {
            let role = role.as_str();
            Err(("not_alternating", format!("is from the {role}, as is the one before: they must alternate")))
        }
    }
}

fn bad_order(cause: &'static str, why: &str, at: u64, number: usize) -> Bad {
    let bad = Bad::new(cause, at, format!("message {number} {why}"));
    match cause {
        "not_alternating" => bad.help("set `same_role: merge` to join such messages"),
        _ => bad,
    }
}

fn holds_special_token(content: &str) -> bool {
    ["<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>", "<system>"]
        .iter()
        .any(|token| content.contains(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(turns: &[(&str, &str)], same_role: SameRole) -> (Result<String, Bad>, Mended) {
        let mut mended = Mended::default();
        let turns = turns
            .iter()
            .enumerate()
            .map(|(i, (role, content))| Turn {
                role: role.to_string(),
                content: content.to_string(),
                at: i as u64,
            })
            .collect();
        let result = check(turns, &Roles::default(), same_role, Cleaning::default(), 99, &mut mended);
        let text = result.map(|messages| {
            messages.iter().map(|m| format!("{}={};", &m.role.as_str()[..1], m.content)).collect()
        });
        (text, mended)
    }

    fn cause(turns: &[(&str, &str)]) -> (&'static str, Option<u64>) {
        let bad = judge(turns, SameRole::Error).0.unwrap_err();
        (bad.cause, bad.at)
    }

    #[test]
    fn a_good_conversation_passes_and_is_cleaned() {
        let turns =
            [("System", " Be\r\nbrief. "), ("human", "Cafe\u{301}?"), ("gpt", "Yes."), ("user", "Bye")];
        let (text, mended) = judge(&turns, SameRole::Error);
        assert_eq!(text.unwrap(), "s=Be\nbrief.;u=Café?;a=Yes.;");
        assert_eq!((mended.trailing_user_dropped, mended.text.crlf), (1, 1));
    }

    #[test]
    fn each_broken_rule_has_a_name_and_a_place() {
        assert_eq!(cause(&[("user", "a"), ("asistant", "b")]), ("unknown_role", Some(1)));
        assert_eq!(cause(&[("user", "a"), ("user", "b"), ("bot", "c")]), ("not_alternating", Some(1)));
        assert_eq!(cause(&[("assistant", "a")]), ("starts_with_assistant", Some(0)));
        assert_eq!(cause(&[("user", "a"), ("system", "b")]), ("late_system", Some(1)));
        assert_eq!(cause(&[("user", "a"), ("assistant", " \n")]), ("empty_message", Some(1)));
        assert_eq!(cause(&[("user", "a")]), ("no_answer", Some(99)));
        assert_eq!(cause(&[]), ("no_answer", Some(99)));
        let bad = judge(&[("asistant", "b")], SameRole::Error).0.unwrap_err();
        assert_eq!(bad.help[0], "did you mean `assistant`?");
    }

    #[test]
    fn one_role_in_a_row_can_be_merged() {
        let turns = [("user", "a"), ("user", "b"), ("bot", "c"), ("bot", "say <eos>")];
        let (text, mended) = judge(&turns, SameRole::Merge);
        assert_eq!(text.unwrap(), "u=a\nb;a=c\nsay <eos>;");
        assert_eq!((mended.merged_messages, mended.special_tokens_in_content), (2, 1));
    }
}
