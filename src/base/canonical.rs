//! The canonical encoding of values whose digests are keys: JSON without white space, map keys in byte order.
//!
//! Written out here rather than left to `serde_json::to_string`, whose key order depends on a
//! feature that any crate in the build may switch on.

use serde_json::Value;

use super::Digest;

/// The canonical bytes of `value`. Equal values give equal bytes, whatever order they were built in.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

/// The digest of the canonical bytes.
pub fn digest(value: &Value) -> Digest {
    Digest::of(&encode(value))
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            out.push(b'{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                scalar(key, out);
                out.push(b':');
                write(value, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        other => scalar(other, out),
    }
}

fn scalar(value: &impl serde::Serialize, out: &mut Vec<u8>) {
    // Numbers and strings have one spelling in serde_json: shortest round-trip floats, minimal escapes.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "a Vec takes whatever is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_at_every_depth() {
        let value = json!({"b": [1, {"z": null, "a": 0.5}], "a": "é\n"});
        assert_eq!(
            String::from_utf8(encode(&value)).unwrap(),
            "{\"a\":\"é\\n\",\"b\":[1,{\"a\":0.5,\"z\":null}]}"
        );
    }

    proptest! {
        #[test]
        fn order_of_insertion_does_not_matter(entries in proptest::collection::btree_map("[a-z]{0,6}", any::<i64>(), 0..8)) {
            let forward: Value = Value::Object(entries.iter().map(|(k, v)| (k.clone(), json!(v))).collect());
            let backward: Value = Value::Object(entries.iter().rev().map(|(k, v)| (k.clone(), json!(v))).collect());
            prop_assert_eq!(encode(&forward), encode(&backward));
        }

        #[test]
        fn it_is_json_of_the_same_value(text in ".*", number in any::<f64>()) {
            prop_assume!(number.is_finite());
            let value = json!({"t": text, "n": number});
            prop_assert_eq!(serde_json::from_slice::<Value>(&encode(&value)).unwrap(), value);
        }
    }
}
