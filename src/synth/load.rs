//! A template file in YAML to a checked [`Domain`]. All errors are found here, before anything is drawn,
//! with file, line and column; several are reported at once.
//!
//! Two passes: the slots' outlines first, since every text may name every slot; then the texts. Checks of
//! the whole domain (no cycles, nothing unused) are in `check`.

use std::collections::HashMap;

use super::check;
use super::domain::{
    Chat, Document, Domain, Entry, Exchange, Pair, Part, Slot, Step, Template, Texts, Warning,
};
use super::text::{self, Flaw, Names, SlotNames, TemplateText};
use crate::base::error::Fault;
use crate::base::yaml::{self, Limits, Node, Span, Value};
use crate::base::{Error, Place, Result, suggest};

/// The most errors reported at once.
const MAX_ERRORS: usize = 10;
/// Numbers in one `from`/`to` slot, at most.
const MAX_RANGE: i64 = 100_000;
/// The largest absolute value of numbers in sums.
const MAX_NUMBER: i64 = 1_000_000_000;

/// Reads the text of a template file. `name` is how messages and reports call the file.
///
/// # Errors
/// Malformed YAML, and everything that the format's reference in [`super`] forbids.
pub fn load(name: &str, text: &str) -> Result<Domain> {
    read(name, text).map_err(|e| e.blame(Fault::Input))
}

fn read(name: &str, text: &str) -> Result<Domain> {
    let root = yaml::parse(name, text, Limits::default())?;
    let known = ["domain", "description", "categories", "slots", "documents", "conversations", "exchanges"];
    keys(&root, "a template file", &known)?;
    let mut loader = Loader::default();
    let domain = loader.domain(name, &root)?;
    loader.errors.truncate(MAX_ERRORS);
    match Error::join(loader.errors) {
        Some(error) => Err(error),
        None => check::finish(domain),
    }
}

#[derive(Default)]
struct Loader {
    names: Names,
    /// The named exchanges, in the order of the file; those that stand in conversations follow.
    exchange_names: Vec<String>,
    exchanges: Vec<Exchange>,
    warnings: Vec<Warning>,
    errors: Vec<Error>,
}

/// A slot before its texts are read.
struct RawSlot {
    span: Span,
    entries: Vec<RawEntry>,
}

struct RawEntry {
    value: Node,
    weight: f64,
    /// In the order of the slot's attributes.
    attributes: Vec<Node>,
}

impl Loader {
    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.errors.push(e)).ok()
    }

    fn domain(&mut self, file: &str, root: &Node) -> Result<Domain> {
        let name = match root.get("domain") {
            Some(node) => word(node, "the domain's name")?.to_string(),
            None => stem(file),
        };
        let slots = self.slots(root);
        if let Some(errors) = Error::join(std::mem::take(&mut self.errors)) {
            return Err(errors); // texts that name a broken slot would only add noise
        }
        let empty = Node::new(Value::Null, root.span.clone());
        let exchanges = root.get("exchanges").unwrap_or(&empty);
        self.exchange_names = exchanges.entries().iter().map(|(key, _)| key.name.clone()).collect();
        let named: Vec<_> =
            map(exchanges, "`exchanges`")?.iter().map(|(_, node)| self.exchange(node, &[])).collect();
        for exchange in named {
            let exchange = self.keep(exchange).unwrap_or_else(no_exchange);
            self.exchanges.push(exchange);
        }
        let categories = self.categories(root);
        let documents =
            self.templates(root, "documents", &["text", "paragraphs"], &categories, Self::document);
        let conversations =
            self.templates(root, "conversations", &["system", "turns"], &categories, Self::chat);
        if self.errors.is_empty() && documents.is_empty() && conversations.is_empty() {
            return Err(root
                .error("this file makes nothing: it has neither `documents` nor `conversations`")
                .help("see the reference of the template format in data/templates/README.md"));
        }
        let (exchanges, warnings) = (std::mem::take(&mut self.exchanges), std::mem::take(&mut self.warnings));
        let named = &self.exchange_names;
        let mut domain = Domain { name, slots, documents, conversations, exchanges, warnings };
        if self.errors.is_empty() {
            let spans = root.get("exchanges").map_or(&[][..], Node::entries).iter().map(|(k, _)| &k.span);
            check::unused_exchanges(&mut domain, named.iter().map(String::as_str).zip(spans));
        }
        Ok(domain)
    }

    // -- slots --

    fn slots(&mut self, root: &Node) -> Vec<Slot> {
        let Some(node) = root.get("slots") else { return Vec::new() };
        let Some(entries) = self.keep(map(node, "`slots`")) else { return Vec::new() };
        let mut raw = Vec::new();
        for (key, node) in entries {
            let outline =
                name(&key.name, &key.span, "slot").and_then(|()| outline(&key.name, &key.span, node));
            if let Some((names, slot)) = self.keep(outline) {
                self.names.push(names);
                raw.push(slot);
            }
        }
        if !self.errors.is_empty() {
            return Vec::new();
        }
        raw.into_iter().enumerate().map(|(i, slot)| self.slot(i, slot)).collect()
    }

    fn slot(&mut self, index: usize, raw: RawSlot) -> Slot {
        let SlotNames { name, attributes, .. } = self.names.slots[index].clone();
        let mut slot =
            Slot { name, attributes, entries: Vec::new(), weights: Vec::new(), span: raw.span.clone() };
        let mut seen = HashMap::new();
        for entry in &raw.entries {
            self.note_duplicate(&entry.value, &mut seen);
            let value = self.text(&entry.value).and_then(|text| match text.is_empty() {
                true => Err(entry
                    .value
                    .error("a slot's value must not be empty")
                    .help("an optional part is written [?{slot}] where it is used")),
                false => Ok(text),
            });
            let attributes: Vec<_> = entry.attributes.iter().map(|node| self.texts(node)).collect();
            let attributes: Option<Vec<Texts>> = attributes.into_iter().map(|a| self.keep(a)).collect();
            if let (Some(value), Some(attributes)) = (self.keep(value), attributes) {
                slot.entries.push(Entry { value, attributes });
                slot.weights.push(entry.weight);
            }
        }
        slot
    }

    // -- texts --

    fn text(&self, node: &Node) -> Result<TemplateText> {
        text::parse(&scalar(node)?, &self.names).map_err(|flaw| placed(node, flaw))
    }

    /// A text, or a list of texts of which one is drawn.
    fn texts(&mut self, node: &Node) -> Result<Texts> {
        let Value::Seq(items) = &node.value else {
            return Ok(Texts { texts: vec![self.text(node)?], weights: vec![1.0] });
        };
        let mut texts = Texts::default();
        let mut seen = HashMap::new();
        for item in items {
            let (text, weight) = match &item.value {
                Value::Map(_) if item.get("text").is_some() => {
                    keys(item, "a text with a weight", &["text", "weight"])?;
                    (item.locate("text"), weight(item)?)
                }
                _ => (item, 1.0),
            };
            self.note_duplicate(text, &mut seen);
            texts.texts.push(self.text(text)?);
            texts.weights.push(weight);
        }
        some_weight(node, &texts.weights, "text")?;
        Ok(texts)
    }

    /// Texts of a message, none of which may come out empty.
    fn message(&mut self, node: &Node) -> Result<Texts> {
        let texts = self.texts(node)?;
        match texts.texts.iter().any(check::may_be_empty) {
            true => Err(node
                .error("this message can come out empty")
                .help("give it something that always stands there")),
            false => Ok(texts),
        }
    }

    fn note_duplicate(&mut self, node: &Node, seen: &mut HashMap<String, usize>) {
        let Some(text) = node.as_str() else { return };
        if let Some(line) = seen.insert(text.to_string(), node.span.line) {
            let message = format!("{text:?} stands twice in this list (first on line {line})");
            self.warnings.push(Warning::new(&node.span, message));
        }
    }

    // -- documents and conversations --

    /// The categories' weights; `None` when the file declares none, and any name will do.
    fn categories(&mut self, root: &Node) -> Option<Vec<(String, f64)>> {
        let node = root.get("categories")?;
        let entries = self.keep(map(node, "`categories`"))?;
        let read: Vec<_> =
            entries.iter().map(|(key, node)| Ok((key.name.clone(), number(node, "a weight")?))).collect();
        Some(read.into_iter().filter_map(|r| self.keep(r)).collect())
    }

    fn templates<T>(
        &mut self,
        root: &Node,
        what: &str,
        own_keys: &[&'static str],
        categories: &Option<Vec<(String, f64)>>,
        body: fn(&mut Self, &Node) -> Result<T>,
    ) -> Vec<Template<T>> {
        let Some(node) = root.get(what) else { return Vec::new() };
        let Some(items) = self.keep(list(node, &format!("`{what}`"))) else { return Vec::new() };
        let mut known = vec!["name", "category", "weight"];
        known.extend(own_keys);
        let mut templates: Vec<(Template<T>, f64)> = Vec::new();
        for item in items {
            let template = self.template(item, &known, categories, body);
            let Some((template, weight)) = self.keep(template) else { continue };
            if templates.iter().any(|(t, _)| t.name == template.name) {
                self.errors.push(
                    item.error(format!("`{}` is the name of two templates in `{what}`", template.name)),
                );
            }
            templates.push((template, weight));
        }
        let total = |category: &str| -> f64 {
            templates.iter().filter(|(t, _)| t.category == category).map(|(t, _)| t.weight).sum()
        };
        let weights: Vec<f64> = templates
            .iter()
            .map(|(t, category)| category * t.weight / total(&t.category).max(f64::MIN_POSITIVE))
            .collect();
        if self.errors.is_empty() && !weights.iter().any(|w| *w > 0.0) {
            self.errors.push(node.error(format!("no template of `{what}` has a weight above 0")));
        }
        templates.into_iter().zip(weights).map(|((t, _), weight)| Template { weight, ..t }).collect()
    }

    /// A template with its weight within its category, and the category's weight.
    fn template<T>(
        &mut self,
        node: &Node,
        known: &[&'static str],
        categories: &Option<Vec<(String, f64)>>,
        body: fn(&mut Self, &Node) -> Result<T>,
    ) -> Result<(Template<T>, f64)> {
        keys(node, "a template", known)?;
        let name = word(required(node, "name", "a template")?, "a template's name")?.to_string();
        let weight = weight(node)?;
        let category = node.get("category").map(|n| word(n, "a category")).transpose()?.unwrap_or("general");
        let found = categories.as_ref().map(|all| {
            all.iter().find(|(n, _)| n == category).map(|(_, w)| *w).ok_or_else(|| {
                node.locate("category")
                    .error(format!("unknown category `{category}`"))
                    .suggest(suggest::closest(category, all.iter().map(|(n, _)| n.as_str())))
                    .help("list it under `categories:`")
            })
        });
        let body = body(self, node)?;
        Ok((
            Template { name, category: category.to_string(), weight, body },
            found.transpose()?.unwrap_or(1.0),
        ))
    }

    fn document(&mut self, node: &Node) -> Result<Document> {
        let paragraphs = match (node.get("text"), node.get("paragraphs")) {
            (Some(text), None) => vec![self.paragraph(text)?],
            (None, Some(paragraphs)) => {
                list(paragraphs, "`paragraphs`")?.iter().map(|p| self.paragraph(p)).collect::<Result<_>>()?
            }
            _ => return Err(node.error("a document has either `text` or `paragraphs`")),
        };
        let sure = |part: &Part| {
            part.chance >= 1.0 && part.count.0 > 0 && !part.texts.texts.iter().any(check::may_be_empty)
        };
        let document = Document { paragraphs };
        if !document.parts().any(sure) {
            return Err(node
                .error("this document can come out empty")
                .help("give it at least one part that always stands there"));
        }
        Ok(document)
    }

    /// A single part, or a list of parts.
    fn paragraph(&mut self, node: &Node) -> Result<Vec<Part>> {
        match &node.value {
            Value::Seq(_) => list(node, "a document's text")?.iter().map(|part| self.part(part)).collect(),
            _ => Ok(vec![self.part(node)?]),
        }
    }

    fn part(&mut self, node: &Node) -> Result<Part> {
        if !matches!(node.value, Value::Map(_)) {
            return Ok(Part { texts: self.texts(node)?, count: (1, 1), shuffle: false, chance: 1.0 });
        }
        keys(node, "a part", &["text", "one", "some", "count", "shuffle", "chance"])
            .map_err(|e| e.help("a text that contains a colon must stand in quotes"))?;
        let chosen: Vec<_> =
            ["text", "one", "some"].into_iter().filter_map(|k| Some((k, node.get(k)?))).collect();
        let [(kind, texts)] = chosen[..] else {
            return Err(node.error("a part has exactly one of `text`, `one` and `some`"));
        };
        let texts = self.texts(texts)?;
        let drawable = texts.weights.iter().filter(|w| **w > 0.0).count();
        let count = match (kind, node.get("count")) {
            ("some", Some(count)) => count_of(count, drawable)?,
            ("some", None) => (1, drawable),
            (_, Some(count)) => return Err(count.error("`count` goes with `some`")),
            (_, None) => (1, 1),
        };
        let shuffle = match node.get("shuffle").map(|n| &n.value) {
            None => false,
            Some(Value::Bool(shuffle)) => *shuffle,
            Some(_) => return Err(node.locate("shuffle").error("`shuffle` is true or false")),
        };
        Ok(Part { texts, count, shuffle, chance: chance(node)? })
    }

    fn chat(&mut self, node: &Node) -> Result<Chat> {
        let system = node.get("system").map(|n| self.part(n)).transpose()?;
        let turns = required(node, "turns", "a conversation")?;
        let steps = list(turns, "`turns`")?.iter().map(|turn| self.turn(turn)).collect::<Result<Vec<_>>>()?;
        match steps.iter().any(|s| s.chance >= 1.0) {
            true => Ok(Chat { system, steps }),
            false => Err(turns
                .error("this conversation can come out empty")
                .help("give it at least one turn without a `chance`")),
        }
    }

    fn turn(&mut self, node: &Node) -> Result<Step> {
        if node.get("exchange").is_some() || !matches!(node.value, Value::Map(_)) {
            return self.step(node);
        }
        let exchange = self.exchange(node, &["chance"])?;
        self.exchanges.push(exchange);
        Ok(Step { exchanges: vec![self.exchange_index()], weights: vec![1.0], chance: chance(node)? })
    }

    /// Of the exchange pushed last. Named ones come first, even those not read yet.
    fn exchange_index(&self) -> usize {
        self.exchanges.len() - 1
    }

    /// `{user, assistant}` or `{one: [{user, assistant}, …]}`, either with `then`.
    fn exchange(&mut self, node: &Node, more: &[&'static str]) -> Result<Exchange> {
        let mut known = vec!["user", "assistant", "one", "then"];
        known.extend(more);
        keys(node, "an exchange", &known)?;
        let then = node.get("then").map(|n| self.step(n)).transpose()?;
        let Some(one) = node.get("one") else {
            return Ok(Exchange { pairs: vec![self.pair(node)?], weights: vec![1.0], then });
        };
        if let Some(extra) = node.get("user").or(node.get("assistant")) {
            return Err(extra.error("an exchange has either `one` or `user` and `assistant`"));
        }
        let (mut pairs, mut weights) = (Vec::new(), Vec::new());
        for item in list(one, "`one`")? {
            keys(item, "a pair", &["user", "assistant", "weight"])?;
            pairs.push(self.pair(item)?);
            weights.push(weight(item)?);
        }
        some_weight(one, &weights, "pair")?;
        Ok(Exchange { pairs, weights, then })
    }

    fn pair(&mut self, node: &Node) -> Result<Pair> {
        let missing = |role: &str, why: &str| node.error(format!("{why}: `{role}` is missing"));
        let user = node.get("user").ok_or_else(|| missing("user", "the assistant answers nobody"))?;
        let assistant =
            node.get("assistant").ok_or_else(|| missing("assistant", "the user gets no answer"))?;
        Ok(Pair { user: self.message(user)?, assistant: self.message(assistant)? })
    }

    /// A name, a list of names, or `{exchange: …, chance: …}`.
    fn step(&mut self, node: &Node) -> Result<Step> {
        if let Value::Map(_) = &node.value {
            keys(node, "a step", &["exchange", "chance"])?;
            let named = required(node, "exchange", "a step")?;
            return Ok(Step { chance: chance(node)?, ..self.step_of_names(named)? });
        }
        self.step_of_names(node)
    }

    fn step_of_names(&self, node: &Node) -> Result<Step> {
        let one = std::slice::from_ref(node);
        let items = if let Value::Seq(_) = &node.value { list(node, "the exchanges")? } else { one };
        let mut step = Step { exchanges: Vec::new(), weights: Vec::new(), chance: 1.0 };
        for item in items {
            let (named, weight) = match &item.value {
                Value::Map(_) => {
                    keys(item, "an exchange with a weight", &["name", "weight"])?;
                    (required(item, "name", "an exchange with a weight")?, weight(item)?)
                }
                _ => (item, 1.0),
            };
            let name = word(named, "an exchange's name")?;
            let index = self.exchange_names.iter().position(|n| n == name).ok_or_else(|| {
                named
                    .error(format!("unknown exchange `{name}`"))
                    .suggest(suggest::closest(name, self.exchange_names.iter().map(String::as_str)))
                    .help("exchanges stand under `exchanges:`, each with its name")
            })?;
            step.exchanges.push(index);
            step.weights.push(weight);
        }
        some_weight(node, &step.weights, "exchange")?;
        Ok(step)
    }
}

/// Placeholder for an exchange with errors, so that the indices of the others stay right.
fn no_exchange() -> Exchange {
    Exchange { pairs: Vec::new(), weights: Vec::new(), then: None }
}

// -- the three ways to write a slot --

/// A slot's names and its entries, from any of its three forms.
fn outline(name: &str, span: &Span, node: &Node) -> Result<(SlotNames, RawSlot)> {
    let what = format!("the slot `{name}`");
    let (attributes, entries) = match &node.value {
        Value::Map(_) if node.get("from").is_some() || node.get("to").is_some() => (Vec::new(), range(node)?),
        Value::Map(_) => table(node)?,
        Value::Seq(_) => entries(name, list(node, &what)?)?,
        _ => {
            return Err(
                node.error(format!("{what} must be a list, a table or a range, found {}", node.describe()))
            );
        }
    };
    let weights: Vec<f64> = entries.iter().map(|e| e.weight).collect();
    some_weight(node, &weights, "value")?;
    let numeric = entries
        .iter()
        .all(|e| scalar(&e.value).is_ok_and(|t| t.parse::<i64>().is_ok_and(|n| n.abs() <= MAX_NUMBER)));
    let drawable = weights.iter().filter(|w| **w > 0.0).count();
    let names = SlotNames { name: name.to_string(), attributes, entries: drawable, numeric };
    Ok((names, RawSlot { span: span.clone(), entries }))
}

/// `{from: 1, to: 20, step: 1}`: every number of a range.
fn range(node: &Node) -> Result<Vec<RawEntry>> {
    keys(node, "a range", &["from", "to", "step"])?;
    let whole = |key: &str| match required(node, key, "a range")?.value {
        Value::Int(n) if n.abs() <= i128::from(MAX_NUMBER) => Ok(n as i64),
        _ => Err(node.locate(key).error(format!("`{key}` must be a whole number of at most nine digits"))),
    };
    let step = if node.get("step").is_some() { whole("step")? } else { 1 };
    let (from, to) = (whole("from")?, whole("to")?);
    if step < 1 || to < from || (to - from) / step >= MAX_RANGE {
        return Err(node.error(format!(
            "the range from {from} to {to} by {step} does not give 1 to {MAX_RANGE} numbers"
        )));
    }
    let entry = |n: i64| RawEntry {
        value: Node::new(Value::Int(n.into()), node.span.clone()),
        weight: 1.0,
        attributes: Vec::new(),
    };
    Ok((0..=(to - from) / step).map(|i| entry(from + i * step)).collect())
}

/// `{columns: [value, sound], rows: [[cat, meows], …]}`.
fn table(node: &Node) -> Result<(Vec<String>, Vec<RawEntry>)> {
    keys(node, "a slot written as a table", &["columns", "rows"])?;
    let columns = list(required(node, "columns", "a table")?, "`columns`")?;
    let names = columns.iter().map(|c| word(c, "a column's name")).collect::<Result<Vec<_>>>()?;
    let value = names.iter().position(|n| *n == "value").ok_or_else(|| {
        node.locate("columns")
            .error("one of the columns must be called `value`: it is what {slot} stands for")
    })?;
    let mut attributes = Vec::new();
    for (i, column) in columns.iter().enumerate().filter(|(i, _)| names[*i] != "weight" && *i != value) {
        name(names[i], &column.span, "attribute")?;
        if names[..i].contains(&names[i]) {
            return Err(column.error(format!("the column `{}` stands here a second time", names[i])));
        }
        attributes.push((i, names[i].to_string()));
    }
    let mut entries = Vec::new();
    for row in list(required(node, "rows", "a table")?, "`rows`")? {
        let cells = list(row, "a row")?;
        if cells.len() != columns.len() {
            let what = format!("this row has {} cells, the table has {} columns", cells.len(), columns.len());
            return Err(row
                .error(what)
                .help(format!("columns: {}", names.join(", ")))
                .help("a text with a comma in it must stand in quotes"));
        }
        let weight = names.iter().position(|n| *n == "weight");
        entries.push(RawEntry {
            value: cells[value].clone(),
            weight: weight.map_or(Ok(1.0), |i| number(&cells[i], "a weight"))?,
            attributes: attributes.iter().map(|(i, _)| cells[*i].clone()).collect(),
        });
    }
    Ok((attributes.into_iter().map(|(_, n)| n).collect(), entries))
}

/// A list of texts and of maps `{value, weight, attribute…}`. Every entry has every attribute.
fn entries(slot: &str, items: &[Node]) -> Result<(Vec<String>, Vec<RawEntry>)> {
    let mut attributes: Vec<String> = Vec::new();
    for (key, _) in
        items.iter().flat_map(Node::entries).filter(|(k, _)| k.name != "value" && k.name != "weight")
    {
        name(&key.name, &key.span, "attribute")?;
        if !attributes.contains(&key.name) {
            attributes.push(key.name.clone());
        }
    }
    let mut found = Vec::new();
    for item in items {
        let is_map = matches!(item.value, Value::Map(_));
        let value = if is_map { required(item, "value", "a value of a slot")? } else { item };
        let own = attributes.iter().map(|a| {
            item.get(a).cloned().ok_or_else(|| {
                item.error(format!("this value of `{slot}` lacks the attribute `{a}` that others have"))
                    .help("attributes are for every value of a slot; one may be the empty text \"\"")
            })
        });
        found.push(RawEntry {
            value: value.clone(),
            weight: if is_map { weight(item)? } else { 1.0 },
            attributes: own.collect::<Result<_>>()?,
        });
    }
    Ok((attributes, found))
}

// -- reading nodes --

fn keys(node: &Node, what: &str, known: &[&'static str]) -> Result<()> {
    for (key, _) in map(node, what)? {
        if !known.contains(&key.name.as_str()) {
            return Err(Error::usage(format!("unknown key `{}` in {what}", key.name))
                .at(key.span.place())
                .suggest(suggest::closest(&key.name, known.iter().copied()))
                .help(format!("known: {}", suggest::list(known.iter().copied()))));
        }
    }
    Ok(())
}

fn map<'n>(node: &'n Node, what: &str) -> Result<&'n [(yaml::Key, Node)]> {
    match &node.value {
        Value::Map(entries) => Ok(entries),
        Value::Null => Ok(&[]),
        _ => Err(node.error(format!("{what} must be a map, found {}", node.describe()))),
    }
}

fn list<'n>(node: &'n Node, what: &str) -> Result<&'n [Node]> {
    match &node.value {
        Value::Seq(items) if items.is_empty() => Err(node.error(format!("{what} is an empty list"))),
        Value::Seq(items) => Ok(items),
        _ => Err(node.error(format!("{what} must be a list, found {}", node.describe()))),
    }
}

fn required<'n>(node: &'n Node, key: &str, what: &str) -> Result<&'n Node> {
    node.get(key).ok_or_else(|| node.error(format!("{what} needs the key `{key}`")))
}

fn word<'n>(node: &'n Node, what: &str) -> Result<&'n str> {
    let text = node.as_str().filter(|t| !t.trim().is_empty());
    text.ok_or_else(|| node.error(format!("{what} must be a text, found {}", node.describe())))
}

/// A text; whole numbers need no quotes and stay as they are written, as `007` does.
fn scalar(node: &Node) -> Result<String> {
    match (&node.value, node.written()) {
        (Value::Str(_) | Value::Int(_), Some(text)) => Ok(text.into_owned()),
        _ => Err(node
            .error(format!("expected a text, found {}", node.describe()))
            .help("put texts with `{`, `[`, `: ` or ` #` in them, and words such as true, in quotes")),
    }
}

fn number(node: &Node, what: &str) -> Result<f64> {
    let number = match node.value {
        Value::Int(n) => n as f64,
        Value::Float(x) => x,
        _ => return Err(node.error(format!("{what} must be a number, found {}", node.describe()))),
    };
    match number.is_finite() && number >= 0.0 {
        true => Ok(number),
        false => Err(node.error(format!("{what} must not be negative or infinite, found {number}"))),
    }
}

fn weight(node: &Node) -> Result<f64> {
    node.get("weight").map_or(Ok(1.0), |n| number(n, "a weight"))
}

fn some_weight(node: &Node, weights: &[f64], what: &str) -> Result<()> {
    match weights {
        [] => Err(node.error(format!("there is no {what} in this list"))),
        _ if weights.iter().all(|w| *w <= 0.0) => {
            Err(node.error(format!("no {what} in this list has a weight above 0")))
        }
        _ => Ok(()),
    }
}

fn chance(node: &Node) -> Result<f64> {
    let Some(node) = node.get("chance") else { return Ok(1.0) };
    let chance = number(node, "a chance")?;
    match chance > 0.0 && chance <= 1.0 {
        true => Ok(chance),
        false => Err(node.error(format!("a chance lies above 0 and is at most 1, found {chance}"))),
    }
}

/// `3`, or `[1, 3]` for one to three, of the `most` that there are.
fn count_of(node: &Node, most: usize) -> Result<(usize, usize)> {
    let whole = |n: &Node| match n.value {
        Value::Int(n) => usize::try_from(n).ok(),
        _ => None,
    };
    let found = match &node.value {
        Value::Seq(items) if items.len() == 2 => whole(&items[0]).zip(whole(&items[1])),
        _ => whole(node).map(|n| (n, n)),
    };
    match found {
        Some((least, upto)) if least <= upto && upto <= most && upto > 0 => Ok((least, upto)),
        _ => Err(node.error(format!("`count` is a number from 1 to {most}, or two such as [1, {most}]"))),
    }
}

fn name(name: &str, span: &Span, what: &str) -> Result<()> {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match plain && name != "any" {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "`{name}` cannot be the name of {} {what}",
            if what == "attribute" { "an" } else { "a" }
        ))
        .at(span.place())
        .help("names are small letters, digits and _, begin with a letter, and are not `any`")),
    }
}

fn stem(file: &str) -> String {
    let base = file.rsplit(['/', '\\']).next().unwrap_or(file);
    base.strip_suffix(".yaml").or(base.strip_suffix(".yml")).unwrap_or(base).to_string()
}

/// An error within a text at its place in the file: exact where the text is on one line without escapes,
/// else at the start of the text.
fn placed(node: &Node, flaw: Flaw) -> Error {
    let mut place = node.span.place();
    let text = node.as_str().unwrap_or("");
    match verbatim(&place, text, flaw.at) {
        Some(column) => {
            place.column = column;
            place.width = flaw.width;
        }
        None => {
            let near: String = text.chars().skip(flaw.at.saturating_sub(10)).take(30).collect();
            let error = Error::usage(flaw.message).at(place).help(format!("it is near {near:?}"));
            return flaw.help.into_iter().fold(error, |e, help| e.help(help));
        }
    }
    flaw.help.into_iter().fold(Error::usage(flaw.message).at(place), |e, help| e.help(help))
}

/// The column of the character `at` of the text at `place`, if there are no escapes before it.
fn verbatim(place: &Place, text: &str, at: usize) -> Option<usize> {
    let written: Vec<char> = place.excerpt.chars().skip(place.column - 1).collect();
    let quote = usize::from(matches!(written.first(), Some('"' | '\'')));
    let mut both = written.iter().skip(quote).zip(text.chars());
    both.by_ref().take(at + 1).all(|(a, b)| *a == b).then_some(())?;
    (written.len() > quote + at).then_some(place.column + quote + at)
}
