//! White space between the parts of a JSON text, which changes its bytes and not what it says.

/// Without any.
pub fn compact(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    each(json, |byte, inside| {
        if inside || !byte.is_ascii_whitespace() {
            out.push(byte);
        }
    });
    out
}

/// Indented by two spaces, as serde_json and so Hugging Face's `tokenizers` lay it out.
pub fn pretty(json: &[u8]) -> Vec<u8> {
    let (compact, mut out, mut depth) = (compact(json), Vec::with_capacity(2 * json.len()), 0);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    // The byte before, where it is no part of a string.
    let mut before = b' ';
    each(&compact, |byte, inside| {
        let opened = matches!(before, b'{' | b'[');
        let closes = !inside && matches!(byte, b'}' | b']');
        depth -= usize::from(closes);
        if closes != opened || before == b',' {
            line(&mut out, depth);
        }
        depth += usize::from(!inside && matches!(byte, b'{' | b'['));
        out.push(byte);
        if !inside && byte == b':' {
            out.push(b' ');
        }
        before = if inside { b' ' } else { byte };
    });
    out
}

/// Calls `f` with each byte, and whether it is within a string: its quotes are, but the first.
fn each(json: &[u8], mut f: impl FnMut(u8, bool)) {
    let (mut inside, mut escaped) = (false, false);
    for byte in json {
        f(*byte, inside);
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn both_are_what_serde_json_writes() {
        let odd = json!({ "a": [], "b": {}, "c": [1, [2, {}], { "d": " { \"[, : \\" }], "e\" ,": null, "f": "",
            "ö\u{1}": [[["\\"]], -1.5e3, true], "": "\n\t " });
        for value in [odd, json!([]), json!("x y"), json!({ "a": { "b": { "c": 1 } } })] {
            let (short, long) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
            for text in [&short, &long, &long.replace('\n', "\r\n\t")] {
                assert_eq!(String::from_utf8(compact(text.as_bytes())).unwrap(), short);
                assert_eq!(String::from_utf8(pretty(text.as_bytes())).unwrap(), long);
                assert_eq!(serde_json::from_str::<Value>(text).unwrap(), value);
            }
        }
    }
}
