//! Which tokens of a vocabulary are the special tokens.
//!
//! In this order: names given by a user or by a file beside the `tokenizer.json` ([`Names`]), our own names
//! (`<bos>`), the tokens that the file's post-processor adds to a text, and names that are in common use
//! (`<s>`, `<|endoftext|>`).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Special;
use crate::base::{Error, Result, fs, suggest};

/// The file beside a `tokenizer.json` that names its special tokens, as Hugging Face writes it.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// The file with a chat template by itself, which has precedence over the one in [`TOKENIZER_CONFIG_FILE`].
const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// The file beside a model that says which tokens end what it generates.
pub const GENERATION_FILE: &str = "generation_config.json";

/// Our key in [`TOKENIZER_CONFIG_FILE`]: the token that begins a turn of each role.
const ROLES: &str = "role_tokens";

/// Names of special tokens, as given by a user or a file; `None` where not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Names {
    /// Begins a document or a conversation.
    pub bos: Option<String>,
    /// Ends a document or an answer.
    pub eos: Option<String>,
    /// Fills a batch up.
    pub pad: Option<String>,
    /// Begins what the user says.
    pub user: Option<String>,
    /// Begins an answer.
    pub assistant: Option<String>,
    /// Begins the system message.
    pub system: Option<String>,
    /// The chat template of another program's model, in Jinja. No param: it comes with the tokenizer.
    #[serde(skip)]
    pub chat_template: Option<String>,
    /// What messages call the chat template.
    #[serde(skip)]
    pub chat_template_file: Option<String>,
    /// Ids that end what is generated, beside `eos`.
    #[serde(skip)]
    pub ends: Vec<u32>,
}

/// Names of special tokens that end a turn in chat templates.
pub(super) const TURN_ENDS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
];

impl Names {
    /// Those that were given, as chat templates call them.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let all = [("bos_token", &self.bos), ("eos_token", &self.eos), ("pad_token", &self.pad)];
        all.into_iter().filter_map(|(name, token)| Some((name, token.clone()?))).collect()
    }

    pub fn get(&self, special: Special) -> Option<&str> {
        match special {
            Special::Bos => self.bos.as_deref(),
            Special::Eos => self.eos.as_deref(),
            Special::Pad => self.pad.as_deref(),
            Special::User => self.user.as_deref(),
            Special::Assistant => self.assistant.as_deref(),
            Special::System => self.system.as_deref(),
            Special::Unk => None,
        }
    }

    /// These names, completed with those of `others`.
    pub fn or(self, others: Names) -> Names {
        Names {
            bos: self.bos.or(others.bos),
            eos: self.eos.or(others.eos),
            pad: self.pad.or(others.pad),
            user: self.user.or(others.user),
            assistant: self.assistant.or(others.assistant),
            system: self.system.or(others.system),
            chat_template_file: match self.chat_template {
                Some(_) => self.chat_template_file,
                None => others.chat_template_file,
            },
            chat_template: self.chat_template.or(others.chat_template),
            ends: if self.ends.is_empty() { others.ends } else { self.ends },
        }
    }

    /// The names in the files beside a `tokenizer.json`; `find` gives the path of a file by its name.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn beside<'a>(find: impl Fn(&str) -> Option<&'a Path>) -> Result<Names> {
        let mut names = Names::default();
        if let Some(path) = find(CHAT_TEMPLATE_FILE) {
            names.chat_template = Some(fs::read_text(path)?);
            names.chat_template_file = Some(path.display().to_string());
        }
        if let Some(path) = find(GENERATION_FILE) {
            names.ends = ends(&path.display().to_string(), &fs::read(path)?)?;
        }
        for path in [TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE].into_iter().filter_map(find) {
            names = names.or(Names::parse(&path.display().to_string(), &fs::read(path)?)?);
        }
        Ok(names)
    }

    /// Reads a `tokenizer_config.json` or a `special_tokens_map.json`; `file` is what messages call it.
    pub(super) fn parse(file: &str, json: &[u8]) -> Result<Names> {
        let value = object(file, json)?;
        let token = |value: &Value, key: &str| match &value[key] {
            Value::Null => Ok(None),
            Value::String(token) => Ok(Some(token.clone())),
            // A token with options of matching in text, which do not apply to special tokens.
            Value::Object(token) if token.get("content").is_some_and(Value::is_string) => {
                Ok(token["content"].as_str().map(str::to_string))
            }
            other => Err(Error::input(format!("`{file}`: `{key}` is {other}, expected a token"))),
        };
        let chat_template = chat_template(file, &value["chat_template"])?;
        Ok(Names {
            chat_template_file: chat_template.is_some().then(|| file.to_string()),
            chat_template,
            ends: Vec::new(),
            bos: token(&value, "bos_token")?,
            eos: token(&value, "eos_token")?,
            pad: token(&value, "pad_token")?,
            user: token(&value[ROLES], "user")?,
            assistant: token(&value[ROLES], "assistant")?,
            system: token(&value[ROLES], "system")?,
        })
    }

    /// As a [`TOKENIZER_CONFIG_FILE`].
    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
        let mut roles = json!({});
        for (map, key, token) in [
            (0, "bos_token", &self.bos),
            (0, "eos_token", &self.eos),
            (0, "pad_token", &self.pad),
            (1, "user", &self.user),
            (1, "assistant", &self.assistant),
            (1, "system", &self.system),
        ] {
            if let Some(token) = token {
                (if map == 0 { &mut value } else { &mut roles })[key] = json!(token);
            }
        }
        if roles != json!({}) {
            value[ROLES] = roles;
        }
        if let Some(template) = &self.chat_template {
            value["chat_template"] = json!(template);
        }
        value
    }
}

/// A JSON object; `file` is what messages call it.
fn object(file: &str, json: &[u8]) -> Result<Value> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| Error::input(format!("`{file}` is not JSON: {e}")))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(Error::input(format!("`{file}` is not a JSON object"))),
    }
}

/// A template, or the default of a list of templates with names.
fn chat_template(file: &str, value: &Value) -> Result<Option<String>> {
    let text = |value: &Value| value.as_str().map(str::to_string);
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(all) => {
            let default = all.iter().find(|template| template["name"] == "default");
            default.and_then(|template| text(&template["template"])).map(Some).ok_or_else(|| {
                Error::input(format!("`{file}`: none of the templates of `chat_template` is named `default`"))
            })
        }
        other => Err(Error::input(format!(
            "`{file}`: `chat_template` is {other}, expected a text or a list of templates with names"
        ))),
    }
}

/// `eos_token_id` of a [`GENERATION_FILE`]: an id, or several.
fn ends(file: &str, json: &[u8]) -> Result<Vec<u32>> {
    let value = object(file, json)?;
    let found = &value["eos_token_id"];
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match found {
        Value::Null => Some(Vec::new()),
        Value::Array(all) => all.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| {
        Error::input(format!("`{file}`: `eos_token_id` is {found}, expected a token id or several"))
    })
}

/// The tokens that a post-processor adds before and after a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    pub bos: Option<String>,
    pub eos: Option<String>,
}

impl Template {
    /// The parts of a `post_processor`.
    pub fn of(processor: &Value) -> Template {
        let name = |value: &Value| value.as_str().map(str::to_string);
        match processor["type"].as_str() {
            Some("TemplateProcessing") => Template::of_pieces(processor["single"].as_array()),
            Some("BertProcessing" | "RobertaProcessing") => {
                Template { bos: name(&processor["cls"][0]), eos: name(&processor["sep"][0]) }
            }
            Some("Sequence") => {
                let all = processor["processors"].as_array().into_iter().flatten().map(Template::of);
                all.fold(Template::default(), |a, b| Template { bos: a.bos.or(b.bos), eos: a.eos.or(b.eos) })
            }
            _ => Template::default(),
        }
    }

    /// The first special token before the text, and the last after it.
    fn of_pieces(pieces: Option<&Vec<Value>>) -> Template {
        let pieces = pieces.map_or(&[][..], Vec::as_slice);
        let Some(text) = pieces.iter().position(|piece| piece.get("Sequence").is_some()) else {
            return Template::default();
        };
        let name = |piece: &Value| piece["SpecialToken"]["id"].as_str().map(str::to_string);
        Template {
            bos: pieces[..text].iter().find_map(name),
            eos: pieces[text..].iter().rev().find_map(name),
        }
    }
}

/// The queries to a vocabulary for its special tokens.
pub struct Vocabulary<'a> {
    pub id: &'a dyn Fn(&str) -> Option<u32>,
    /// Whether a token is marked as special, or at least never the result of encoding text.
    pub apart: &'a dyn Fn(&str, u32) -> bool,
    pub template: Template,
    pub unknown: Option<u32>,
}

/// The ids of the special tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    ids: [Option<u32>; Special::ALL.len()],
    /// The token that begins a turn of a role without a token of its own.
    pub turn_start: Option<u32>,
}

impl Named {
    /// # Errors
    /// When a token of `names` is not in the vocabulary, or text is encoded to it.
    pub fn of(vocabulary: &Vocabulary, names: &Names) -> Result<Named> {
        let mut named = Named::default();
        for special in Special::ALL {
            named.ids[special as usize] = match names.get(special) {
                Some(token) => Some(vocabulary.given(special, token)?),
                None => vocabulary.found(special),
            };
        }
        named.tells_roles_apart()?;
        if named.get(Special::Pad).is_none() {
            named.ids[Special::Pad as usize] = named.get(Special::Eos);
        }
        if Special::ROLES.into_iter().any(|role| named.get(role).is_none()) {
            named.turn_start = vocabulary.first(&["<|im_start|>"]).or(named.get(Special::Bos));
        }
        Ok(named)
    }

    fn tells_roles_apart(&self) -> Result<()> {
        for (i, role) in Special::ROLES.into_iter().enumerate() {
            let same = |other: &&Special| self.get(role).is_some() && self.get(**other) == self.get(role);
            if let Some(other) = Special::ROLES[..i].iter().find(same) {
                let what = format!("`{}` and `{}` are to be the same token", other.name(), role.name());
                return Err(Error::input(what).help("name a token of its own for each role"));
            }
        }
        Ok(())
    }

    pub fn get(&self, special: Special) -> Option<u32> {
        self.ids[special as usize]
    }

    /// All ids of special tokens.
    pub fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().copied().flatten().chain(self.turn_start)
    }
}

impl Vocabulary<'_> {
    fn given(&self, special: Special, token: &str) -> Result<u32> {
        let name = special.name();
        let id = (self.id)(token).ok_or_else(|| {
            Error::input(format!("`{name}` is to be `{token}`, and the tokenizer has no such token"))
                .help("name a token of the vocabulary, spelled as it stands there")
        })?;
        // What would be taken without a name is taken with it: such a token is never the result of encoding.
        if !(self.apart)(token, id) && self.found(special) != Some(id) {
            let what = format!("`{name}` is to be `{token}`, and text is encoded to that token as well");
            return Err(Error::input(what).help("name a special token, which no text is encoded to"));
        }
        Ok(id)
    }

    fn found(&self, special: Special) -> Option<u32> {
        let template = |name: &Option<String>| name.as_deref().and_then(self.id);
        (self.id)(special.as_str()).or_else(|| match special {
            Special::Bos => template(&self.template.bos).or_else(|| self.first(BOS)),
            Special::Eos => template(&self.template.eos).or_else(|| self.first(EOS)),
            Special::Pad => self.first(&["[PAD]", "<|padding|>"]),
            Special::User => self.first(&["<|user|>"]),
            Special::Assistant => self.first(&["<|assistant|>"]),
            Special::System => self.first(&["<|system|>"]),
            Special::Unk => self.unknown,
        })
    }

    /// The first of some names that is a special token here.
    fn first(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| (self.id)(name).filter(|id| (self.apart)(name, *id)))
    }
}

/// Common names of the token that begins a text, and of the one that ends it.
const BOS: &[&str] = &["<s>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "[CLS]", "<|endoftext|>"];
const EOS: &[&str] = &["</s>", "[EOS]", "<|im_end|>", "<|end_of_text|>", "[SEP]", "<|endoftext|>"];

/// Whether all special tokens of the first tokenizer are the same in the second; except `pad`, which no
/// model is trained on.
///
/// # Errors
/// The first that differs.
pub fn agree(own: &super::Tokenizer, other: &super::Tokenizer) -> Result<()> {
    let learned = [Special::Bos, Special::Eos].into_iter().chain(Special::ROLES);
    for special in learned {
        let (Some(its), other_id) = (own.special(special), other.special(special)) else { continue };
        if other_id != Some(its) {
            let shown = |t: Option<String>| t.map_or("nothing".to_string(), |t| format!("`{t}`"));
            let name = special.name();
            let (has, is) = (shown(own.token(its)), shown(other_id.and_then(|id| other.token(id))));
            return Err(Error::input(format!("`{name}` is {has} for the model and {is} for the tokenizer"))
                .help(format!(
                    "the model has learned it: `special_tokens: {{ {name}: {} }}`",
                    has.replace('`', "\"")
                )));
        }
    }
    Ok(())
}

/// The help for a special token that a vocabulary does not have.
pub(super) fn missing(special: Special, has: &[String]) -> Error {
    let error =
        Error::input(format!("the tokenizer has no special token `{}`", special.as_str())).help(match has {
            [] => "it has no special tokens at all".to_string(),
            some => format!("its special tokens are {}", suggest::list(some.iter().map(String::as_str))),
        });
    match special {
        Special::Unk => error,
        _ => error.help(format!(
            "say which token stands for it, where text becomes tokens: `special_tokens: {{ {}: \"…\" }}`",
            special.name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_tells_what_is_around_a_text() {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let single = json!([special("<s>"), special("<lang>"), text, special("</s>")]);
        let template = json!({"type": "TemplateProcessing", "single": single});
        let found = Template { bos: Some("<s>".into()), eos: Some("</s>".into()) };
        assert_eq!(Template::of(&template), found);
        let sequence = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        assert_eq!(Template::of(&sequence), found);
        let bert = json!({"type": "BertProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]});
        assert_eq!(Template::of(&bert), Template { bos: Some("[CLS]".into()), eos: Some("[SEP]".into()) });
        let only_bos = json!({"type": "TemplateProcessing", "single": [special("<s>"), text]});
        assert_eq!(Template::of(&only_bos), Template { bos: Some("<s>".into()), eos: None });
        assert_eq!(Template::of(&Value::Null), Template::default());
    }

    #[test]
    fn names_are_read_as_hugging_face_writes_them_and_read_back() {
        let read = |json: Value| Names::parse("tokenizer_config.json", json.to_string().as_bytes());
        let names = read(json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
            "pad_token": null, "model_max_length": 1024, "role_tokens": {"user": "<u>"}}))
        .unwrap();
        assert_eq!((names.get(Special::Bos), names.get(Special::Eos)), (Some("<s>"), Some("</s>")));
        assert_eq!((names.get(Special::Pad), names.get(Special::User)), (None, Some("<u>")));
        assert_eq!(Names::parse("x", names.to_json().to_string().as_bytes()).unwrap(), names);
        let error = read(json!({"bos_token": 1})).unwrap_err().to_string();
        assert!(error.contains("`bos_token` is 1"), "{error}");
    }
}
