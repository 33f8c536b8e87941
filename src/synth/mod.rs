//! Template files to documents and conversations.
//!
//! A template file is YAML, one file a domain. Users write templates; texts are drawn from them by a seed.
//!
//! ```yaml
//! domain: farm                        # else the file's name
//! description: Animals on a farm.
//! categories: {stories: 2, facts: 1}  # how often each category is drawn; may be left out
//!
//! slots:                              # what texts are filled with
//!   color: [red, blue, green]                             # a list
//!   mood: [{value: glad, weight: 3}, sad]                 # with weights (1 where none is given)
//!   animal:                                               # values with attributes: a list of maps
//!     - {value: cat, sound: meows, home: house}
//!     - {value: owl, sound: hoots, home: [tree, barn]}    # an attribute may be a list, too
//!   person:                                               # or a table
//!     columns: [value, he, his]
//!     rows:
//!       - [Tom, he, his]
//!       - [Anna, she, her]
//!   toy: ["{color} ball", kite]                           # values may use other slots
//!   n: {from: 1, to: 10}                                  # numbers (`step: 2` for every second)
//!
//! documents:
//!   - name: visit
//!     category: stories
//!     weight: 2                       # among the templates of its category
//!     text:                           # sentences, joined with spaces
//!       - "{person} met {animal|a}. {Person.he} was [?very ]{mood}."
//!       - ["It {animal.sound}.", {text: "It looked at {person}.", weight: 3}]    # one of these
//!       - {one: ["It had {toy|a}.", "It had no {toy}."], chance: 0.5}  # perhaps one of these
//!       - {some: ["It ate.", "It slept.", "It ran."], count: [1, 2], shuffle: true}
//!   - name: two
//!     category: facts
//!     paragraphs:                     # instead of `text`: several, with a blank line between
//!       - "The {animal} and the {animal.2} are friends."
//!       - ["{N} and {n.2} make {n|plus:n.2}."]
//!
//! conversations:
//!   - name: ask
//!     category: facts
//!     system: {text: "You know animals.", chance: 0.3}    # may be left out; a part as above
//!     turns:                          # exchanges, in order
//!       - user: ["What does the {animal} do?", "Tell me about the {animal}."]
//!         assistant: "The {animal} {animal.sound}."
//!       - one:                        # answers that go with their own questions
//!           - {user: "Is it big?", assistant: "No, it is small."}
//!           - {user: "Is it small?", assistant: "Yes, it is.", weight: 2}
//!         chance: 0.5
//!       - {exchange: [thanks, bye], chance: 0.8}          # one of the named exchanges
//!
//! exchanges:
//!   thanks:
//!     user: [Thanks!, "Thank you."]
//!     assistant: You are welcome.
//!     then: {exchange: bye, chance: 0.5}                  # what may follow
//!   bye: {user: "Goodbye.", assistant: "Goodbye, [?my ]friend."}
//! ```
//!
//! In a text:
//!
//! | written | means |
//! | --- | --- |
//! | `{animal}` | a value, the same throughout one document or conversation |
//! | `{animal.2}`, `{animal.3}` | others, all different from each other and from `{animal}` |
//! | `{animal.sound}`, `{animal.2.sound}` | an attribute of that very value |
//! | `{any:color}` | drawn anew at each use |
//! | `{Animal}`, `{person.He}` | with a capital letter |
//! | `{animal\|a}` | modifiers, from left to right: `a` (a cat, an owl), `A` (A cat), `capitalize`, `upper`, `lower`, `title`, `plural`, `possessive`; and for numbers `plus:`, `minus:`, `times:` with a number or a slot |
//! | `[hello\|hi\|hey]` | one of these; options may hold slots and choices |
//! | `[?very ]`, `[?30%very ]` | there or not: an even chance, or 30 in 100 (`[?a\|b]`: perhaps one of these) |
//! | `\{ \} \[ \] \| \? \\` | the characters themselves (write such texts in single quotes) |
//!
//! Runs of spaces come out as one. An exchange comes at most once in a conversation. Names of slots
//! and attributes are small letters, digits and `_`.
//!
//! Found before anything is drawn, with file, line and column: unknown slots, attributes, modifiers,
//! exchanges, categories and keys; slots that need themselves; empty lists; negative weights;
//! unbalanced brackets; values that lack an attribute; messages and documents that could come out
//! empty; more different values than a slot has. Reported as warnings: slots and exchanges that are
//! never used, and texts that stand twice in a list.
//!
//! `load` reads a file, `draw` makes one item, `count` says how many there are, `explore` what may come next in
//! one, `generate` makes many. What is not here: grammar beyond English articles and plurals, conditions, state.

pub mod check;
pub mod count;
pub mod domain;
pub mod draw;
pub mod explore;
pub mod generate;
pub mod load;
pub mod modify;
pub mod text;

pub use domain::{Domain, Warning};
pub use generate::{Cloze, Report, Request, Shortage, cloze, conversations, documents};
pub use load::load;

#[cfg(test)]
mod tests;
