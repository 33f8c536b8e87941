//! The rules of a conversation: known roles, at most one system message and that first, user and
//! assistant in turn, an answer at the end.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::suggest;
use crate::corpus::clean::{Changes, Cleaning, clean};
use crate::corpus::conversation::{Message, Role};
use crate::corpus::input::BadRecord;
use crate::corpus::json::{Step, locate};

/// A message as it was read, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn<'a> {
    pub role: String,
    pub content: String,
    /// 0 or 1, see [`Message::weight`].
    pub weight: u8,
    pub at: At<'a>,
}

/// The place of a message in the text of its row; only computed for an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At<'a> {
    Byte(usize),
    /// A field of JSON.
    Field(Vec<Step<'a>>),
    /// An object of JSON, and its keys of role and content.
    Message {
        path: Vec<Step<'a>>,
        role: &'a str,
        content: &'a str,
    },
}

impl At<'_> {
    /// The offset of the role, or of the message where it has none.
    fn role(&self, text: &str) -> u64 {
        match self {
            At::Message { role, .. } => self.place(text, Some(role)),
            _ => self.place(text, None),
        }
    }

    fn content(&self, text: &str) -> u64 {
        match self {
            At::Message { content, .. } => self.place(text, Some(content)),
            _ => self.place(text, None),
        }
    }

    fn place(&self, text: &str, key: Option<&str>) -> u64 {
        let path = match self {
            At::Byte(at) => return *at as u64,
            At::Field(path) | At::Message { path, .. } => path,
        };
        let path: Vec<Step> = path.iter().copied().chain(key.map(Step::Key)).collect();
        locate(text, &path).value.start as u64
    }
}

/// Names of the roles in common use.
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
    /// The common names and `more`, which has precedence.
    pub fn with(more: &BTreeMap<String, Role>) -> Self {
        let mut roles = Self::default();
        roles.0.extend(more.iter().map(|(name, role)| (name.to_lowercase(), *role)));
        roles
    }

    pub fn find(&self, name: &str) -> Option<Role> {
        self.0.get(name).or_else(|| self.0.get(&name.trim().to_lowercase())).copied()
    }

    fn unknown(&self, turn: &Turn, text: &str, number: usize) -> BadRecord {
        let names = || self.0.keys().map(String::as_str);
        BadRecord::new(
            "unknown_role",
            turn.at.role(text),
            format!("message {number} has the unknown role {:?}", turn.role),
        )
        .suggest(suggest::closest(&turn.role, names()))
        .help(format!("known are {}; name others in `roles`", suggest::list(names())))
    }
}

/// How two consecutive messages of one role are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameRole {
    /// The row is bad.
    #[default]
    Error,
    /// They are joined with a line break, and counted.
    Merge,
}

/// Repairs of a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Repairs {
    /// Messages merged into the one before.
    pub merged_messages: u64,
    /// User messages at the end without an answer, dropped.
    pub trailing_user_dropped: u64,
    /// System messages without content, dropped.
    pub empty_system_dropped: u64,
    /// Markers such as `<bos>` and `<|im_end|>` at either end of a content, dropped.
    pub markers_dropped: u64,
    /// Messages that contain the text of one of our special tokens, such as `<eos>`; kept.
    pub special_tokens_in_content: u64,
    /// The changes of cleaning to the contents.
    pub text: Changes,
}

/// The rules that conversations are checked by.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    pub roles: &'a Roles,
    pub same_role: SameRole,
    pub cleaning: Cleaning,
}

/// Checks a conversation and gives its messages. `text` is its row, for places.
///
/// # Errors
/// The first violated rule, with the number of the message, at an offset of `text`.
pub fn check(
    turns: Vec<Turn>,
    text: &str,
    rules: Rules,
    repairs: &mut Repairs,
) -> Result<Vec<Message>, BadRecord> {
    let mut messages: Vec<Message> = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let number = i + 1;
        let role = rules.roles.find(&turn.role).ok_or_else(|| rules.roles.unknown(turn, text, number))?;
        let content = clean(&turn.content, rules.cleaning, &mut repairs.text);
        let content = without_markers(&content, &mut repairs.markers_dropped);
        if content.is_empty() && role == Role::System {
            repairs.empty_system_dropped += 1;
            continue;
        }
        if content.is_empty() {
            let message = format!("message {number} ({}) is empty", role.as_str());
            return Err(BadRecord::new("empty_message", turn.at.content(text), message));
        }
        repairs.special_tokens_in_content += u64::from(holds_special_token(content));
        // Only answers are part of the loss: the weight of other messages is ignored.
        let weight = if role == Role::Assistant { turn.weight } else { 1 };
        match messages.last_mut() {
            Some(last)
                if last.role == role && (rules.same_role == SameRole::Merge || role == Role::System) =>
            {
                repairs.merged_messages += 1;
                merge(last, content, weight).map_err(|why| {
                    BadRecord::new("mixed_weights", turn.at.role(text), format!("message {number} {why}"))
                })?;
            }
            last => {
                follows(last.map(|m| m.role), role)
                    .map_err(|(cause, why)| bad_order(cause, &why, turn.at.role(text), number))?;
                messages.push(Message { weight, ..Message::new(role, content) });
            }
        }
    }
    if messages.last().is_some_and(|m| m.role == Role::User) {
        messages.pop();
        repairs.trailing_user_dropped += 1;
    }
    has_something_to_learn(&messages)?;
    Ok(messages)
}

/// Joins `content` to `last`; a repeated system message is left out.
fn merge(last: &mut Message, content: &str, weight: u8) -> Result<(), String> {
    if last.weight != weight {
        let old = last.weight;
        return Err(format!("has weight {weight} and cannot be merged with the one before, of weight {old}"));
    }
    if last.role != Role::System || last.content != content {
        last.content.push('\n');
        last.content.push_str(content);
    }
    Ok(())
}

fn has_something_to_learn(messages: &[Message]) -> Result<(), BadRecord> {
    if !messages.iter().any(|m| m.role == Role::Assistant) {
        return Err(BadRecord::new("no_answer", 0, "this conversation has no assistant message"));
    }
    match messages.iter().any(Message::is_learned) {
        true => Ok(()),
        false => Err(BadRecord::new("nothing_to_learn", 0, "every assistant message here has weight 0")
            .help("give weight 1 to the answers that are to be learned, or leave the row out")),
    }
}

/// Markers that other programs put around contents.
const MARKERS: [&str; 9] = [
    "<bos>",
    "<eos>",
    "<pad>",
    "<|endoftext|>",
    "<|startoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
];

/// `content` without the markers and blanks at its ends.
fn without_markers<'a>(content: &'a str, dropped: &mut u64) -> &'a str {
    let mut rest = content.trim();
    let bare = |text: &'a str| {
        let cut = |marker: &str| text.strip_prefix(marker).or_else(|| text.strip_suffix(marker));
        MARKERS.into_iter().find_map(cut)
    };
    while let Some(less) = bare(rest) {
        *dropped += 1;
        rest = less.trim();
    }
    rest
}

/// Whether `role` may follow `last`; else the cause and the reason.
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

fn bad_order(cause: &'static str, why: &str, at: u64, number: usize) -> BadRecord {
    let bad = BadRecord::new(cause, at, format!("message {number} {why}"));
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

    fn turn(role: &str, content: &str, at: usize) -> Turn<'static> {
        Turn { role: role.into(), content: content.into(), weight: 1, at: At::Byte(at) }
    }

    fn judge_all(turns: Vec<Turn>, same_role: SameRole) -> (Result<Vec<Message>, BadRecord>, Repairs) {
        let mut repairs = Repairs::default();
        let roles = Roles::default();
        let rules = Rules { roles: &roles, same_role, cleaning: Cleaning::default() };
        (check(turns, "", rules, &mut repairs), repairs)
    }

    fn judge(turns: &[(&str, &str)], same_role: SameRole) -> (Result<String, BadRecord>, Repairs) {
        let turns = turns.iter().enumerate().map(|(i, (role, content))| turn(role, content, i)).collect();
        let (result, repairs) = judge_all(turns, same_role);
        let text = result.map(|messages| {
            messages.iter().map(|m| format!("{}={};", &m.role.as_str()[..1], m.content)).collect()
        });
        (text, repairs)
    }

    fn cause(turns: &[(&str, &str)]) -> (&'static str, Option<u64>) {
        let bad = judge(turns, SameRole::Error).0.unwrap_err();
        (bad.cause, bad.at)
    }

    #[test]
    fn a_good_conversation_passes_and_is_cleaned() {
        let turns =
            [("System", " Be\r\nbrief. "), ("human", "Cafe\u{301}?"), ("gpt", "Yes."), ("user", "Bye")];
        let (text, repairs) = judge(&turns, SameRole::Error);
        assert_eq!(text.unwrap(), "s=Be\nbrief.;u=Café?;a=Yes.;");
        assert_eq!((repairs.trailing_user_dropped, repairs.text.crlf), (1, 1));
    }

    #[test]
    fn each_broken_rule_has_a_name_and_a_place() {
        assert_eq!(cause(&[("user", "a"), ("asistant", "b")]), ("unknown_role", Some(1)));
        assert_eq!(cause(&[("user", "a"), ("user", "b"), ("bot", "c")]), ("not_alternating", Some(1)));
        assert_eq!(cause(&[("assistant", "a")]), ("starts_with_assistant", Some(0)));
        assert_eq!(cause(&[("user", "a"), ("system", "b")]), ("late_system", Some(1)));
        assert_eq!(cause(&[("user", "a"), ("assistant", " \n")]), ("empty_message", Some(1)));
        assert_eq!(cause(&[("user", "a")]), ("no_answer", Some(0)));
        assert_eq!(cause(&[]), ("no_answer", Some(0)));
        let bad = judge(&[("asistant", "b")], SameRole::Error).0.unwrap_err();
        assert_eq!(bad.help[0], "did you mean `assistant`?");
    }

    #[test]
    fn one_role_in_a_row_can_be_merged() {
        let turns = [("user", "a"), ("user", "b"), ("bot", "c"), ("bot", "say <eos>!")];
        let (text, repairs) = judge(&turns, SameRole::Merge);
        assert_eq!(text.unwrap(), "u=a\nb;a=c\nsay <eos>!;");
        assert_eq!((repairs.merged_messages, repairs.special_tokens_in_content), (2, 1));
    }
    #[test]
    fn markers_at_the_ends_are_markup_and_inside_are_content() {
        let turns = [
            ("system", "<bos> Be brief. <eos>"),
            ("user", "<|begin_of_text|><bos> What is <eos>? <|eot_id|> <|im_end|>\n"),
            ("assistant", "A marker. <|endoftext|>"),
        ];
        let (text, repairs) = judge(&turns, SameRole::Error);
        assert_eq!(text.unwrap(), "s=Be brief.;u=What is <eos>?;a=A marker.;");
        assert_eq!((repairs.markers_dropped, repairs.special_tokens_in_content), (7, 1));
        assert_eq!(cause(&[("user", "a"), ("bot", "<bos> <eos>")]), ("empty_message", Some(1)));
    }

    #[test]
    fn a_system_message_that_stands_twice_is_said_once() {
        let turns = [("system", "Be."), ("system", "Be. "), ("system", "See."), ("user", "a"), ("bot", "b")];
        assert_eq!(judge(&turns, SameRole::Error).0.unwrap(), "s=Be.\nSee.;u=a;a=b;");
    }

    #[test]
    fn weights_are_kept_and_something_must_be_learned() {
        let weighed = |weights: [u8; 3]| {
            let roles = ["user", "bot", "bot"];
            let all = roles.iter().zip(weights).map(|(role, weight)| Turn { weight, ..turn(role, "x", 7) });
            judge_all(all.collect(), SameRole::Merge)
                .0
                .map(|all| all.iter().map(|m| m.weight).collect::<Vec<_>>())
        };
        assert_eq!(weighed([0, 1, 1]).unwrap(), [1, 1]);
        assert_eq!(weighed([1, 0, 0]).unwrap_err().cause, "nothing_to_learn");
        let bad = weighed([1, 0, 1]).unwrap_err();
        assert_eq!((bad.cause, bad.at), ("mixed_weights", Some(7)));
    }
}
