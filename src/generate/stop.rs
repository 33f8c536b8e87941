//! Stop strings: text that ends generation, wherever tokens or pieces of streamed text divide it.

/// Passes text on until a stop string; holds back what may be the beginning of one.
///
/// The stop string that is complete first ends the text, of several that end at the same character the longest:
/// the result depends on the text alone, not on the pieces that it comes in.
#[derive(Clone)]
pub struct Stops {
    stop: Vec<String>,
    held: String,
    met: bool,
}

impl Stops {
    pub fn new(stop: &[String]) -> Self {
        Stops { stop: stop.to_vec(), held: String::new(), met: false }
    }

    /// Whether a stop string was met.
    pub fn met(&self) -> bool {
        self.met
    }

    /// The text that is certain with `piece` to lie before any stop string; empty after one.
    pub fn push(&mut self, piece: &str) -> String {
        if self.met {
            return String::new();
        }
        self.held.push_str(piece);
        let found = self.stop.iter().filter_map(|stop| Some((self.held.find(stop)?, stop.len())));
        if let Some((at, _)) = found.min_by_key(|(at, len)| (at + len, *at)) {
            self.met = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begun = self.stop.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - begun);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text held back, when no more follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).rev();
    lengths.into_iter().find(|length| text.ends_with(&stop[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of `pieces`, one behind the other, and whether a stop string was met.
    fn passed(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stops = Stops::new(&stop.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out: Vec<String> = pieces.iter().map(|piece| stops.push(piece)).collect();
        out.push(stops.finish());
        (out, stops.met())
    }

    #[test]
    fn text_is_cut_where_a_stop_string_begins_however_it_is_divided() {
        let text = "Ich höre aab, aaab und aaaab.";
        for (stop, expected) in [
            (vec!["aaab"], "Ich höre aab, "),
            (vec!["b und", "aaab"], "Ich höre aab, "),
            (vec!["aab, aaab und aaaab.", "aaab u"], "Ich höre aab, "),
            (vec!["öre"], "Ich h"),
            (vec!["Ich"], ""),
            (vec!["aaaaab", "aab.."], text),
            (vec![], text),
        ] {
            let chars: Vec<String> = text.chars().map(String::from).collect();
            for n in 1..=chars.len() {
                let pieces: Vec<String> = chars.chunks(n).map(<[_]>::concat).collect();
                let (out, met) = passed(&stop, &pieces.iter().map(String::as_str).collect::<Vec<_>>());
                assert_eq!(out.concat(), expected, "{stop:?} in pieces of {n}");
                assert_eq!(met, expected != text);
            }
        }
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held_back() {
        let (out, met) = passed(&["\n\nUser:"], &["Hi", ".\n", "\nUs", "ed", ": \n"]);
        assert_eq!(out, ["Hi", ".", "", "\n\nUsed", ": ", "\n"]);
        assert!(!met);
        assert_eq!(
            passed(&["\n\nUser:"], &["Hi.\n\nUse", "r: x", "y"]),
            (["Hi.", "", "", ""].map(String::from).to_vec(), true)
        );
    }
}
