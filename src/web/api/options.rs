//! How to decode, as the fields of a request say it. What is not said is as `tinylm generate` has it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use serde_json::Value;

use crate::generate::{Options, Strategy};
use crate::web::fields::{Fields, wrong};
use crate::web::{ApiError, Limits};

/// Fields that OpenAI's clients send and that change nothing of an answer here.
const WITHOUT_EFFECT: [&str; 10] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "cache_prompt",
    "timings_per_token",
];

/// How a request is to be answered.
pub struct Asked {
    pub options: Options,
    /// Texts behind each prompt.
    pub samples: usize,
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub include_usage: bool,
}

impl Asked {
    /// Takes the fields that chat and completions have in common.
    ///
    /// # Errors
    /// A field of another type or out of range.
    pub fn take(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        fields.ignore(&WITHOUT_EFFECT);
        let default = Options::default();
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(default.temperature);
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
        let options = Options {
            strategy: if temperature == 0.0 { Strategy::Greedy } else { Strategy::Sample },
            temperature: if temperature == 0.0 { default.temperature } else { temperature },
            top_k: top_k.map_or(default.top_k, |k| k.max(0) as usize),
            top_p: top_p(fields)?.unwrap_or(default.top_p),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
            repetition_penalty: fields.number("repeat_penalty", 0.01..=100.0)?.unwrap_or(1.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields)?,
            stop: stop(fields, limits.stops)?,
            seed: seed(fields)?,
            ..default
        };
        let samples = fields.integer("n", 1..=limits.samples as i64)?.unwrap_or(1) as usize;
        let stream = fields.flag("stream")?;
        let include_usage = stream_options(fields, stream)?;
        Ok(Asked { options, samples, stream, include_usage })
    }
}

fn top_p(fields: &mut Fields) -> Result<Option<f64>, ApiError> {
    match fields.number("top_p", 0.0..=1.0)? {
        Some(0.0) => Err(fields.wrong("top_p", &Value::from(0), "a number above 0, at most 1")),
        other => Ok(other),
    }
}

/// Any whole number; a new one each time for a request that names none.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(RandomState::new().hash_one(0)) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.ok_or_else(|| fields.wrong("seed", &value, "a whole number"))
}

fn stop(fields: &mut Fields, most: usize) -> Result<Vec<String>, ApiError> {
    let expected = format!("a text or up to {most} texts, none of them empty");
    let (texts, value) = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => (Some(vec![text.clone()]), Value::String(text)),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|v| v.as_str().map(str::to_string)).collect::<Option<Vec<_>>>();
            (texts, Value::Array(list))
        }
        Some(other) => (None, other),
    };
    let texts = texts.filter(|texts| texts.len() <= most && texts.iter().all(|text| !text.is_empty()));
    texts.ok_or_else(|| fields.wrong("stop", &value, &expected))
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f64>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(BTreeMap::new()) };
    let Value::Object(map) = &value else {
        return Err(fields.wrong("logit_bias", &value, "an object of token ids and numbers"));
    };
    let bias = |(id, bias): (&String, &Value)| {
        let number = id.parse::<u32>().map_err(|_| {
            let what = format!("`logit_bias` has the key `{id}`: expected the id of a token");
            ApiError::param("logit_bias", what)
        })?;
        let in_range = bias.as_f64().filter(|x| (-100.0..=100.0).contains(x));
        let name = format!("logit_bias.{id}");
        Ok((number, in_range.ok_or_else(|| wrong(&name, bias, "a number from -100 to 100"))?))
    };
    map.iter().map(bias).collect()
}

/// Whether numbers of tokens are to end a stream.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(fields.wrong("stream_options", &value, "it only with `stream`"));
    }
    let mut options = Fields::of("stream_options".to_string(), value)?;
    options.ignore(&["include_obfuscation"]);
    let usage = options.flag("include_usage")?;
    options.finish()?;
    Ok(usage)
}

/// `max_new_tokens` under one of its names.
///
/// # Errors
/// When it is no whole number from `least` to the limit.
pub fn max_tokens(
    fields: &mut Fields,
    names: &[&'static str],
    least: usize,
    limits: &Limits,
) -> Result<Option<usize>, ApiError> {
    let range = least as i64..=limits.max_tokens as i64;
    let mut found = None;
    for name in names {
        let value = fields.integer(name, range.clone())?.map(|n| n as usize);
        found = found.or(value);
    }
    Ok(found)
}
