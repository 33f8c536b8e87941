//! What a modifier does to a drawn value: `{animal|a}`, `{animal|plural}`, `{n|plus:m}`.
//!
//! Articles and plurals are English, by spelling with the common exceptions; for other words write the form
//! as an attribute.

use super::text::Binding;
use crate::base::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Modifier {
    /// `a cat`, `an owl`.
    A,
    /// `A cat`, `An owl`.
    CapitalA,
    Capitalize,
    Upper,
    Lower,
    /// Every Word With A Capital.
    Title,
    Plural,
    /// `Tom's`, `the boys'`.
    Possessive,
    Reckon(Operation, Operand),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Plus,
    Minus,
    Times,
}

/// The second term of a sum: a number, or the value of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    Number(i64),
    Slot(Binding),
}

const PLAIN: [(&str, Modifier); 8] = [
    ("a", Modifier::A),
    ("A", Modifier::CapitalA),
    ("capitalize", Modifier::Capitalize),
    ("upper", Modifier::Upper),
    ("lower", Modifier::Lower),
    ("title", Modifier::Title),
    ("plural", Modifier::Plural),
    ("possessive", Modifier::Possessive),
];

impl Modifier {
    /// Those that take a number or a slot after a colon.
    pub const RECKONING: [&str; 3] = ["plus", "minus", "times"];

    /// The modifier called `name`, if it is one without an argument.
    pub fn plain(name: &str) -> Option<Modifier> {
        PLAIN.iter().find(|(n, _)| *n == name).map(|(_, m)| *m)
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        PLAIN.iter().map(|(n, _)| *n).chain(Self::RECKONING)
    }

    pub fn reckoning_number(name: &str, number: i64) -> Modifier {
        Modifier::Reckon(operation(name), Operand::Number(number))
    }

    pub fn reckoning_slot(name: &str, slot: Binding) -> Modifier {
        Modifier::Reckon(operation(name), Operand::Slot(slot))
    }

    pub fn reckons(&self) -> bool {
        matches!(self, Modifier::Reckon(..))
    }

    /// Applies a modifier of words; sums are [`reckon`]'s.
    pub fn apply(&self, word: &str) -> String {
        match self {
            Modifier::A => format!("{} {word}", article(word)),
            Modifier::CapitalA => format!("{} {word}", capitalize(article(word))),
            Modifier::Capitalize => capitalize(word),
            Modifier::Upper => word.to_uppercase(),
            Modifier::Lower => word.to_lowercase(),
            Modifier::Title => word.split(' ').map(capitalize).collect::<Vec<_>>().join(" "),
            Modifier::Plural => plural(word),
            Modifier::Possessive if word.ends_with('s') => format!("{word}'"),
            Modifier::Possessive => format!("{word}'s"),
            Modifier::Reckon(..) => word.to_string(),
        }
    }
}

fn operation(name: &str) -> Operation {
    match name {
        "plus" => Operation::Plus,
        "minus" => Operation::Minus,
        _ => Operation::Times,
    }
}

/// The sum, difference or product.
///
/// # Errors
/// When it does not fit in 64 bits.
pub fn reckon(operation: Operation, a: i64, b: i64) -> Result<i64> {
    let (result, sign) = match operation {
        Operation::Plus => (a.checked_add(b), '+'),
        Operation::Minus => (a.checked_sub(b), '-'),
        Operation::Times => (a.checked_mul(b), '×'),
    };
    result.ok_or_else(|| Error::input(format!("{a} {sign} {b} does not fit in 64 bits")))
}

/// The first letter in capital, the others as they are.
pub fn capitalize(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// `a` or `an`, by how the word is most likely spoken.
fn article(word: &str) -> &'static str {
    const SILENT_H: [&str; 4] = ["hour", "honest", "heir", "honor"];
    const SPOKEN_CONSONANT: [&str; 7] = ["uni", "use", "usu", "eu", "one", "once", "ukulele"];
    let lower = word.to_lowercase();
    let starts = |with: &[&str]| with.iter().any(|w| lower.starts_with(w));
    let vowel = lower.starts_with(['a', 'e', 'i', 'o', 'u', '8']) || lower == "11" || lower == "18";
    // "unimportant" and its like begin with a vowel, "uniform" does not.
    let un = starts(&["unim", "unin"]);
    if starts(&SILENT_H) || (vowel && (un || !starts(&SPOKEN_CONSONANT))) { "an" } else { "a" }
}

/// Of the last word of a phrase.
fn plural(phrase: &str) -> String {
    const IRREGULAR: [(&str, &str); 26] = [
        ("child", "children"),
        ("man", "men"),
        ("woman", "women"),
        ("person", "people"),
        ("mouse", "mice"),
        ("goose", "geese"),
        ("foot", "feet"),
        ("tooth", "teeth"),
        ("ox", "oxen"),
        ("sheep", "sheep"),
        ("fish", "fish"),
        ("deer", "deer"),
        ("bread", "bread"),
        ("rice", "rice"),
        ("wolf", "wolves"),
        ("calf", "calves"),
        ("leaf", "leaves"),
        ("loaf", "loaves"),
        ("knife", "knives"),
        ("life", "lives"),
        ("shelf", "shelves"),
        ("half", "halves"),
        ("thief", "thieves"),
        ("potato", "potatoes"),
        ("tomato", "tomatoes"),
        ("hero", "heroes"),
    ];
    let start = phrase.rfind(' ').map_or(0, |i| i + 1);
    let (front, word) = phrase.split_at(start);
    let lower = word.to_lowercase();
    if let Some((_, many)) = IRREGULAR.iter().find(|(one, _)| *one == lower) {
        let capital = word.starts_with(char::is_uppercase);
        return format!("{front}{}", if capital { capitalize(many) } else { many.to_string() });
    }
    let consonant_y =
        lower.ends_with('y') && !lower.trim_end_matches('y').ends_with(['a', 'e', 'i', 'o', 'u']);
    if consonant_y {
        format!("{front}{}ies", &word[..word.len() - 1])
    } else if ["s", "x", "z", "ch", "sh"].iter().any(|end| lower.ends_with(end)) {
        format!("{phrase}es")
    } else {
        format!("{phrase}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_go_by_sound() {
        for (word, with) in [
            ("cat", "a cat"),
            ("owl", "an owl"),
            ("hour", "an hour"),
            ("house", "a house"),
            ("uniform", "a uniform"),
            ("umbrella", "an umbrella"),
            ("unimportant day", "an unimportant day"),
            ("one-eyed owl", "a one-eyed owl"),
            ("8", "an 8"),
            ("11", "an 11"),
            ("1", "a 1"),
            ("Éclair", "a Éclair"),
        ] {
            assert_eq!(Modifier::A.apply(word), with);
        }
        assert_eq!(Modifier::CapitalA.apply("apple"), "An apple");
    }

    #[test]
    fn plurals_follow_the_rules_and_the_exceptions() {
        for (one, many) in [
            ("cat", "cats"),
            ("fox", "foxes"),
            ("peach", "peaches"),
            ("puppy", "puppies"),
            ("monkey", "monkeys"),
            ("field mouse", "field mice"),
            ("Child", "Children"),
            ("sheep", "sheep"),
        ] {
            assert_eq!(Modifier::Plural.apply(one), many);
        }
    }

    #[test]
    fn words_change_their_letters() {
        assert_eq!(Modifier::Title.apply("the big élan"), "The Big Élan");
        assert_eq!(Modifier::Possessive.apply("Tom"), "Tom's");
        assert_eq!(Modifier::Possessive.apply("boys"), "boys'");
        assert_eq!(capitalize(""), "");
        assert!(reckon(Operation::Times, i64::MAX, 2).is_err());
    }
}
