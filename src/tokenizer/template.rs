//! Chat templates: Jinja, rendered by minijinja with what `transformers` gives to templates
//! (`_compile_jinja_template` and `render_jinja_template` of its `chat_template_utils.py`).
//!
//! There is no clock: `strftime_now` is not defined, which templates that can do without it ask for. A
//! template runs for a bounded time in bounded memory.

use std::error::Error as _;
use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde_json::json;

use crate::base::{Error, Result};
use crate::corpus::conversation::{Message, Role};

/// Instructions, or 64 bytes of text each, that a conversation may cost without its contents.
const FUEL: u64 = 1_000_000;

/// The name of the template within its environment.
const NAME: &str = "chat";

/// A template that was compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// What messages call it.
    file: String,
    variables: Vec<(&'static str, String)>,
}

/// The error that a template itself raises.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// Compiles a template; `variables` are the special tokens by their names in templates, `bos_token` and others.
    ///
    /// # Errors
    /// When it is not Jinja, or needs what minijinja does not have; names `file` and the line.
    pub fn new(file: &str, source: &str, variables: Vec<(&'static str, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::bug(format!("syntax of templates: {e}")))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_recursion_limit(128);
        environment.set_formatter(|out, state, value| match python_spelling(value) {
            Some(text) => out.write_str(text).map_err(minijinja::Error::from),
            None => minijinja::escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", |message: String| {
            let raised = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
            Err::<Value, _>(raised.with_source(Raised(message)))
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| unreadable(file, &e))?;
        Ok(ChatTemplate { environment, file: file.to_string(), variables })
    }

    /// The text of a conversation, with the opening of an answer behind it where `answer`.
    ///
    /// # Errors
    /// What the template raises, and what goes wrong in it, with its line.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        let contents: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        self.render_with(messages, &contents, answer)
    }

    /// [`ChatTemplate::render`] with other contents of the messages.
    pub fn render_with(&self, messages: &[Message], contents: &[&str], answer: bool) -> Result<String> {
        let said = messages.iter().zip(contents).map(|(message, content)| {
            Value::from_pairs([("role", message.role.as_str()), ("content", content)])
        });
        let all = context! {
            messages => said.collect::<Vec<Value>>(),
            tools => (),
            documents => (),
            add_generation_prompt => answer,
            ..Value::from_pairs(self.variables.iter().map(|(name, token)| (*name, token.as_str())))
        };
        let mut environment = self.environment.clone();
        let bytes: usize = contents.iter().map(|content| content.len()).sum();
        environment.set_fuel(Some(FUEL + bytes as u64));
        let template = environment.get_template(NAME).map_err(|e| self.wrong(&e))?;
        template.render(all).map_err(|e| self.wrong(&e))
    }

    /// What is told of an error in rendering.
    fn wrong(&self, error: &minijinja::Error) -> Error {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
                return Error::input(format!("`{}` refuses the conversation: {message}", self.file))
                    .help("its roles must come in the order that the template expects");
            }
            source = cause.source();
        }
        let (file, line) = (&self.file, error.line().unwrap_or(0));
        if error.kind() == ErrorKind::OutOfFuel {
            return Error::input(format!("`{file}` does not come to an end, or writes too much"));
        }
        let detail = error.detail().unwrap_or_default();
        let failed = Error::input(format!("`{file}`, line {line} fails: {}: {detail}", error.kind()));
        match detail.contains("strftime_now") {
            true => {
                failed.help("it asks for the date, which would make each day's text another: write one there")
            }
            false => failed,
        }
    }
}

fn unreadable(file: &str, error: &minijinja::Error) -> Error {
    let (line, detail) = (error.line().unwrap_or(0), error.detail().unwrap_or_default());
    Error::input(format!("`{file}`, line {line}: this is not a chat template: {detail}"))
        .help("chat templates are in Jinja")
}

/// Python's spelling of the constants that Jinja spells otherwise here.
fn python_spelling(value: &Value) -> Option<&'static str> {
    match (value.is_none(), value.kind()) {
        (true, _) => Some("None"),
        (_, minijinja::value::ValueKind::Bool) => Some(if value.is_true() { "True" } else { "False" }),
        _ => None,
    }
}

/// `{% generation %}` marks what the assistant says, which is known here otherwise.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else { break };
        out.push_str(before);
        let name = inside.trim_matches(['-', '+']).trim();
        let other = match name {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_string(),
        };
        out.extend(["{%", &other, "%}"]);
        rest = after;
    }
    out + rest
}

/// Python's `json.dumps(x, ensure_ascii=False, indent=…, separators=…, sort_keys=…)`.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let given = separators.as_deref().and_then(|both| Some((both.first()?.as_str(), both.get(1)?.as_str())));
    let (comma, colon) = given.unwrap_or((if indent.is_some() { "," } else { ", " }, ": "));
    let mut out = String::new();
    Json { comma, colon, indent, sorted }.write(&value, 0, &mut out);
    Ok(Value::from(out))
}

/// How JSON is laid out.
struct Json<'a> {
    comma: &'a str,
    colon: &'a str,
    indent: Option<usize>,
    sorted: bool,
}

impl Json<'_> {
    fn write(&self, value: &serde_json::Value, depth: usize, out: &mut String) {
        match value {
            serde_json::Value::Array(all) if !all.is_empty() => {
                let items: Vec<_> = all.iter().map(|item| (None, item)).collect();
                self.items(&items, ['[', ']'], depth, out);
            }
            serde_json::Value::Object(all) if !all.is_empty() => {
                let mut items: Vec<_> = all.iter().map(|(key, item)| (Some(key), item)).collect();
                if self.sorted {
                    items.sort_by_key(|(key, _)| *key);
                }
                self.items(&items, ['{', '}'], depth, out);
            }
            other => out.push_str(&other.to_string()),
        }
    }

    fn items(
        &self,
        all: &[(Option<&String>, &serde_json::Value)],
        [open, close]: [char; 2],
        depth: usize,
        out: &mut String,
    ) {
        out.push(open);
        for (i, (key, value)) in all.iter().enumerate() {
            out.push_str(if i > 0 { self.comma } else { "" });
            self.line(depth + 1, out);
            if let Some(key) = key {
                out.extend([&json!(key).to_string(), self.colon]);
            }
            self.write(value, depth + 1, out);
        }
        self.line(depth, out);
        out.push(close);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

/// What our own templates begin with; the openings of turns follow, as JSON.
const OWN: &str = "{%- set turn = ";

/// The rest of our own templates.
const OWN_REST: &str = " -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in turn -%}
        {{- raise_exception('there is no token for the role ' + message['role']) -}}
    {%- endif -%}
    {{- turn[message['role']] + message['content'] -}}
    {%- if message['role'] == 'assistant' -%}
        {{- eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- turn['assistant'] -}}
{%- endif -%}
";

/// The template of our own chat format ([`super::chat`]), from the texts that open a turn of each role.
pub fn own(openings: &[(Role, String)]) -> String {
    let openings: serde_json::Map<_, _> =
        openings.iter().map(|(role, text)| (role.as_str().to_string(), json!(text))).collect();
    format!("{OWN}{}{OWN_REST}", json!(openings))
}

/// Whether a template is one that [`own`] writes, to the letter.
pub fn is_own(source: &str) -> bool {
    let openings = source.strip_prefix(OWN).and_then(|rest| rest.strip_suffix(OWN_REST));
    openings.is_some_and(|json| {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json)
            .is_ok_and(|map| map.iter().all(|(role, text)| Role::parse(role).is_some() && text.is_string()))
    })
}
