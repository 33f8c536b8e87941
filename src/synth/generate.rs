//! Draws documents and conversations from several domains, optionally without duplicates, with a report.
//!
//! Item `i` of a domain draws from a stream of its own, (seed, kind, domain, i, attempt), and the
//! order of the domains does not depend on how many items are wanted. So asking for more keeps
//! those that were there, and the bytes do not depend on the number of threads. Writing files is
//! left to the caller.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::count;
use super::domain::{Domain, Template, Warning};
use super::draw::Draw;
use super::explore::{Continuations, next_words, word_starts};
use crate::base::{Error, Monitor, Result, Rng, suggest};
use crate::corpus::conversation::Conversation;
use crate::corpus::document::{Document, text_id};

/// Items drawn in parallel before they are checked for duplicates in order.
const CHUNK: usize = 512;

/// What to do when a domain has no further different text to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shortage {
    /// An error.
    Fail,
    /// Fewer items than asked for; the report counts them.
    Fewer,
}

/// How many, and how.
#[derive(Debug, Clone)]
pub struct Request {
    pub items: u64,
    /// Exact duplicates are drawn again.
    pub unique: bool,
    /// Per item, at most.
    pub max_redraws: u32,
    pub on_shortage: Shortage,
    /// Exchanges a conversation, at most.
    pub max_turns: usize,
    /// Relative shares; a domain that is not named has 1.
    pub weights: BTreeMap<String, f64>,
}

/// What was made; the same for the same input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub requested: u64,
    pub items: u64,
    /// Duplicates that were drawn again.
    pub redrawn: u64,
    /// Items given up after too many redraws.
    pub short: u64,
    /// Exact duplicates among the items.
    pub duplicates: u64,
    pub bytes: u64,
    pub domains: Vec<DomainReport>,
    pub warnings: Vec<Warning>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DomainReport {
    pub domain: String,
    pub items: u64,
    pub redrawn: u64,
    pub short: u64,
    /// The sum of its templates'. See [`Space`].
    pub space: Space,
    pub templates: Vec<TemplateReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TemplateReport {
    pub template: String,
    pub category: String,
    pub items: u64,
    pub space: Space,
}

/// A lower bound of how many different outputs there are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Space {
    /// As a string, since it may exceed JSON's numbers; `u128::MAX` stands for that or more.
    pub at_least: String,
    pub log10: f64,
}

impl Space {
    fn new(n: u128) -> Self {
        // Two decimals: the last digits of a logarithm differ between machines.
        Space { at_least: n.to_string(), log10: ((n.max(1) as f64).log10() * 100.0).round() / 100.0 }
    }
}

/// Draws documents and hands them to `sink` in order.
///
/// # Errors
/// No domain makes documents; an unknown domain in the weights; a shortage that is not allowed;
/// cancellation; whatever `sink` returns.
pub fn documents(
    domains: &[Domain],
    request: &Request,
    seed: u64,
    monitor: &dyn Monitor,
    sink: &mut dyn FnMut(Document) -> Result<()>,
) -> Result<Report> {
    let draw = |domain: &Domain, rng, _row| {
        let (template, text) = Draw::new(domain, rng).document()?;
        let source = format!("synthesize:{}", domain.name);
        let bytes = text.len() as u64;
        Ok(Item { template, id: id_of(text.as_bytes()), bytes, item: Document::new(text, source, 0, bytes) })
    };
    let spaces = |domain: &Domain| outlines(&domain.documents, |body| count::document(domain, body));
    Run::new("documents", domains, request, seed, spaces)?.go(draw, monitor, sink)
}

/// Draws conversations and hands them to `sink` in order.
///
/// # Errors
/// As [`documents`].
pub fn conversations(
    domains: &[Domain],
    request: &Request,
    seed: u64,
    monitor: &dyn Monitor,
    sink: &mut dyn FnMut(Conversation) -> Result<()>,
) -> Result<Report> {
    let draw = |domain: &Domain, rng, row| {
        let (template, messages) = Draw::new(domain, rng).conversation(request.max_turns)?;
        let item = Conversation::new(messages, format!("synthesize:{}", domain.name), row);
        Ok(Item { template, id: id_of(item.id.as_bytes()), bytes: item.len() as u64, item })
    };
    let spaces = |domain: &Domain| {
        outlines(&domain.conversations, |body| count::conversation(domain, body, request.max_turns))
    };
    Run::new("conversations", domains, request, seed, spaces)?.go(draw, monitor, sink)
}

/// A document that breaks off before a word, and what its templates could say there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloze {
    /// Of the text, as [`text_id`].
    pub id: String,
    /// Of the template.
    pub category: String,
    pub text: String,
    /// Each word that some document of the templates says next after this text, in byte order, without the
    /// signs around it.
    pub accept: Vec<String>,
}

const CLOZE: &str = "cloze items";

/// Words before the cut at least, where the document has that many.
const FEWEST_WORDS: usize = 3;

/// Places of a document where a cut is tried, at most.
const CUTS: usize = 8;

/// Ways of drawing that are tried for one cut, at most: a fraction of a second.
const WAYS: usize = 20_000;

/// Draws documents that are not among those with the ids `known`, cuts each before a word, and hands them to
/// `sink` in order. Not cut are places where a document may also end, where what comes next is a sign alone,
/// and where more than [`WAYS`] ways of drawing would have to be tried; a document without another place is
/// drawn again.
///
/// # Errors
/// As [`documents`].
pub fn cloze(
    domains: &[Domain],
    request: &Request,
    seed: u64,
    known: &HashSet<String>,
    monitor: &dyn Monitor,
    sink: &mut dyn FnMut(Cloze) -> Result<()>,
) -> Result<Report> {
    let request = Request { unique: true, ..request.clone() };
    let share = |domain: &Domain| request.weights.get(&domain.name).copied().unwrap_or(1.0);
    let sources: Vec<&Domain> = domains.iter().filter(|domain| share(domain) > 0.0).collect();
    let draw = |domain: &Domain, rng, _row| {
        let mut draw = Draw::new(domain, rng);
        let (template, text) = draw.document()?;
        let new = !known.contains(&text_id(&text));
        let item = new.then(|| cut(&text, &mut draw, &sources)).flatten();
        let item = item.map(|item| Cloze { category: domain.documents[template].category.clone(), ..item });
        let id = item.as_ref().map_or(UNUSABLE, |item| id_of(item.text.as_bytes()));
        Ok(Item { template, id, bytes: item.as_ref().map_or(0, |item| item.text.len() as u64), item })
    };
    let spaces = |domain: &Domain| outlines(&domain.documents, |body| count::document(domain, body));
    let mut run = Run::new(CLOZE, domains, &request, seed, spaces)?;
    run.seen.insert(UNUSABLE);
    run.go(draw, monitor, &mut |item| item.map_or(Ok(()), &mut *sink))
}

/// The id of what is drawn again as if it had been there.
const UNUSABLE: u128 = 0;

/// `text` up to some word, where that has an answer.
fn cut(text: &str, draw: &mut Draw, domains: &[&Domain]) -> Option<Cloze> {
    let starts = word_starts(text);
    let first = FEWEST_WORDS.min(starts.len().saturating_sub(1)).max(1);
    let places = starts.get(first..).filter(|places| !places.is_empty())?;
    let begin = draw.pick(places.len());
    (0..places.len().min(CUTS)).find_map(|i| {
        let beginning = text[..places[(begin + i) % places.len()]].trim_end();
        let Continuations::Words(words) = next_words(domains, beginning, WAYS) else { return None };
        let accept: BTreeSet<&str> =
            words.iter().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric())).collect();
        (!accept.contains("")).then(|| Cloze {
            id: text_id(beginning),
            category: String::new(),
            text: beginning.to_string(),
            accept: accept.into_iter().map(str::to_string).collect(),
        })
    })
}

/// A drawn item, with its digest and template.
struct Item<T> {
    template: usize,
    id: u128,
    bytes: u64,
    item: T,
}

/// 128 bits of the digest: no two texts of a run share them.
fn id_of(bytes: &[u8]) -> u128 {
    let digest = crate::base::Digest::of(bytes);
    u128::from_le_bytes(std::array::from_fn(|i| digest.bytes()[i]))
}

/// The report's templates, each with its count.
fn outlines<T>(templates: &[Template<T>], count: impl Fn(&T) -> u128) -> Vec<(TemplateReport, u128)> {
    let outline = |t: &Template<T>| {
        let ways = if t.weight > 0.0 { count(&t.body) } else { 0 };
        let space = Space::new(ways);
        (TemplateReport { template: t.name.clone(), category: t.category.clone(), items: 0, space }, ways)
    };
    templates.iter().map(outline).collect()
}

/// One kind of item from all domains that make it.
struct Run<'a> {
    kind: &'static str,
    /// The domains that make this kind and have a share.
    domains: Vec<&'a Domain>,
    shares: Vec<f64>,
    request: &'a Request,
    seed: u64,
    seen: HashSet<u128>,
    report: Report,
}

impl<'a> Run<'a> {
    fn new(
        kind: &'static str,
        domains: &'a [Domain],
        request: &'a Request,
        seed: u64,
        templates: impl Fn(&Domain) -> Vec<(TemplateReport, u128)>,
    ) -> Result<Self> {
        let mut run = Run {
            kind,
            domains: Vec::new(),
            shares: Vec::new(),
            request,
            seed,
            seen: HashSet::new(),
            report: Report {
                requested: request.items,
                items: 0,
                redrawn: 0,
                short: 0,
                duplicates: 0,
                bytes: 0,
                domains: Vec::new(),
                warnings: domains.iter().flat_map(|d| d.warnings.clone()).collect(),
            },
        };
        check_weights(domains, &request.weights)?;
        for domain in domains {
            let templates = templates(domain);
            let share = request.weights.get(&domain.name).copied().unwrap_or(1.0);
            if templates.is_empty() || share <= 0.0 {
                continue;
            }
            let space = templates.iter().map(|(_, n)| *n).fold(0, u128::saturating_add);
            run.domains.push(domain);
            run.shares.push(share);
            run.report.domains.push(DomainReport {
                domain: domain.name.clone(),
                items: 0,
                redrawn: 0,
                short: 0,
                space: Space::new(space),
                templates: templates.into_iter().map(|(report, _)| report).collect(),
            });
        }
        if run.domains.is_empty() && request.items > 0 {
            let (section, param) = if kind == CLOZE { ("documents", "cloze") } else { (kind, kind) };
            return Err(Error::input(format!("none of the template files makes {kind}"))
                .help(format!("write some under `{section}:`, or ask for none with `{param}: 0`")));
        }
        Ok(run)
    }

    fn go<T: Send>(
        mut self,
        draw: impl Fn(&Domain, Rng, u64) -> Result<Item<T>> + Sync,
        monitor: &dyn Monitor,
        sink: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<Report> {
        let (kind, seed, total) = (self.kind, self.seed, self.request.items);
        let attempt = |domain: &Domain, i: u64, attempt: u32| {
            let label = format!("synthesize/{kind}/{}/{i}/{attempt}", domain.name);
            draw(domain, Rng::new(seed, &label), i + 1)
                .map_err(|e| e.context(format!("cannot draw item {} of the domain `{}`", i + 1, domain.name)))
        };
        let mut schedule = Schedule::new(&self.shares);
        let mut done = 0;
        while done < total {
            monitor.step(kind, done, Some(total), kind)?;
            let size = (total - done).min(CHUNK as u64) as usize;
            let places: Vec<(usize, u64)> = (0..size).map(|_| schedule.next()).collect();
            let drawn: Vec<Result<Item<T>>> =
                places.par_iter().map(|(d, i)| attempt(self.domains[*d], *i, 0)).collect();
            for ((d, i), first) in places.into_iter().zip(drawn) {
                let domain = self.domains[d];
                if let Some(item) = self.admit(d, first?, &|n| attempt(domain, i, n))? {
                    sink(item)?;
                }
            }
            done += size as u64;
        }
        Ok(self.report)
    }

    /// Counts an item that is new or need not be; draws again what is not. `None`: given up.
    fn admit<T>(
        &mut self,
        domain: usize,
        first: Item<T>,
        again: &dyn Fn(u32) -> Result<Item<T>>,
    ) -> Result<Option<T>> {
        let mut item = first;
        let mut redraws = 0;
        while !self.seen.insert(item.id) {
            if !self.request.unique {
                self.report.duplicates += 1;
                break;
            }
            if redraws == self.request.max_redraws {
                return self.short(domain).map(|()| None);
            }
            redraws += 1;
            self.report.redrawn += 1;
            self.report.domains[domain].redrawn += 1;
            item = again(redraws)?;
        }
        self.report.items += 1;
        self.report.bytes += item.bytes;
        let report = &mut self.report.domains[domain];
        report.items += 1;
        report.templates[item.template].items += 1;
        Ok(Some(item.item))
    }

    fn short(&mut self, domain: usize) -> Result<()> {
        let report = &mut self.report.domains[domain];
        report.short += 1;
        self.report.short += 1;
        match self.request.on_shortage {
            Shortage::Fewer => Ok(()),
            Shortage::Fail => Err(Error::input(format!(
                "the domain `{}` gave {} different {} and, after {} redraws, no further one",
                report.domain, report.items, self.kind, self.request.max_redraws
            ))
            .help(format!("its templates have at least {} different outputs in all", report.space.at_least))
            .help("write more variations, ask for fewer, or set `on_shortage: fewer` or `unique: false`")),
        }
    }
}

fn check_weights(domains: &[Domain], weights: &BTreeMap<String, f64>) -> Result<()> {
    for (i, domain) in domains.iter().enumerate() {
        if domains[..i].iter().any(|d| d.name == domain.name) {
            return Err(Error::input(format!("two template files are of the domain `{}`", domain.name))
                .help("give one of them another name with `domain:`"));
        }
    }
    for name in weights.keys() {
        let known = || domains.iter().map(|d| d.name.as_str());
        if !known().any(|k| k == name) {
            return Err(Error::input(format!(
                "`domains` gives a weight to `{name}`, which no template file is of"
            ))
            .suggest(suggest::closest(name, known()))
            .help(format!("the domains are {}", suggest::list(known()))));
        }
    }
    Ok(())
}

/// Which domain each item is of: always the one that lags furthest behind its share (smooth
/// weighted round-robin), so that any beginning of the sequence is mixed as the whole is.
struct Schedule {
    shares: Vec<f64>,
    credit: Vec<f64>,
    given: Vec<u64>,
}

impl Schedule {
    fn new(shares: &[f64]) -> Self {
        let total: f64 = shares.iter().sum();
        let shares: Vec<f64> = shares.iter().map(|s| s / total).collect();
        Schedule { credit: vec![0.0; shares.len()], given: vec![0; shares.len()], shares }
    }

    /// A domain, and how many items it had before.
    fn next(&mut self) -> (usize, u64) {
        let mut best = 0;
        for (i, share) in self.shares.iter().enumerate() {
            self.credit[i] += share;
            if self.credit[i] > self.credit[best] {
                best = i;
            }
        }
        self.credit[best] -= 1.0;
        self.given[best] += 1;
        (best, self.given[best] - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use crate::synth::load::load;

    fn domains() -> Vec<Domain> {
        let one = "
slots:
  animal: [cat, dog, owl, fox, hen]
  place: [house, wood, field, barn]
documents:
  - name: meet
    text: 'The {animal} met the {animal.2} in the {place}, and the {animal} went [home|away].'
conversations:
  - name: where
    turns:
      - user: 'Where is the {animal}?'
        assistant: 'The {animal} is in the {place}.'
      - exchange: thanks
        chance: 0.5
exchanges:
  thanks:
    user: [Thanks., 'Thank you, {animal}.']
    assistant: You are welcome.
    then: {exchange: bye, chance: 0.5}
  bye: {user: Bye., assistant: 'Goodbye, [friend|dear].'}
";
        let two = "documents: [{name: t, text: '[a|b|c|d] [a|b|c|d] [a|b|c|d] [a|b|c|d]'}]";
        vec![load("one.yaml", one).unwrap(), load("two.yaml", two).unwrap()]
    }

    fn request(items: u64) -> Request {
        Request {
            items,
            unique: true,
            max_redraws: 200,
            on_shortage: Shortage::Fail,
            max_turns: 4,
            weights: BTreeMap::new(),
        }
    }

    fn texts(request: &Request, seed: u64) -> Result<(Vec<Document>, Report)> {
        let mut all = Vec::new();
        let report = documents(&domains(), request, seed, &Quiet, &mut |d| {
            all.push(d);
            Ok(())
        })?;
        Ok((all, report))
    }

    #[test]
    fn more_items_keep_the_first_ones_and_another_seed_gives_others() {
        let (few, _) = texts(&request(40), 1).unwrap();
        let (many, report) = texts(&request(200), 1).unwrap();
        assert_eq!(few, many[..40]);
        assert_ne!(few, texts(&request(40), 2).unwrap().0);
        assert!(report.redrawn > 0, "this space is small enough to meet itself: {report:?}");
        let distinct: HashSet<&str> = many.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(distinct.len(), 200);
    }

    #[test]
    fn threads_do_not_change_what_is_drawn() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| texts(&request(200), 7).unwrap())
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn two_animals_differ_and_one_stays_the_same() {
        for document in texts(&request(150), 3).unwrap().0.iter().filter(|d| d.source.ends_with("one")) {
            let words: Vec<&str> = document.text.split([' ', ',', '.']).collect();
            assert!(words[1] != words[4] && words[1] == words[11], "{}", document.text);
        }
    }

    #[test]
    fn shares_are_kept_in_every_beginning() {
        let mut request = request(100);
        request.weights = BTreeMap::from([("one".into(), 3.0)]);
        let (all, report) = texts(&request, 5).unwrap();
        let ones = |n: usize| all[..n].iter().filter(|d| d.source == "synthesize:one").count();
        assert_eq!((ones(4), ones(8), ones(100)), (3, 6, 75));
        assert_eq!(report.domains[0].items, 75);
    }

    #[test]
    fn a_space_that_is_too_small_is_an_error_or_a_counted_shortage() {
        let mut request = request(2000);
        let error = texts(&request, 1).unwrap_err().to_string();
        assert!(error.contains("different documents and, after 200 redraws"), "{error}");
        request.on_shortage = Shortage::Fewer;
        let (all, report) = texts(&request, 1).unwrap();
        // 5 * 4 * 4 * 2 and 4 ^ 4 are all there are; the last ones are hard to meet by chance.
        assert!((380..=416).contains(&all.len()), "{}", all.len());
        assert_eq!((report.items, report.items + report.short), (all.len() as u64, 2000));
        request.unique = false;
        let (all, report) = texts(&request, 1).unwrap();
        assert_eq!((all.len(), report.short, report.redrawn), (2000, 0, 0));
        assert!(report.duplicates > 1500, "{report:?}");
    }

    #[test]
    fn conversations_chain_their_exchanges_up_to_the_limit() {
        let draw = |max_turns, items| {
            let mut all: Vec<Conversation> = Vec::new();
            let request = Request { max_turns, ..request(items) };
            conversations(&domains(), &request, 1, &Quiet, &mut |c| {
                all.push(c);
                Ok(())
            })
            .unwrap();
            all
        };
        let lengths: HashSet<usize> = draw(4, 60).iter().map(|c| c.messages.len()).collect();
        assert_eq!(lengths, HashSet::from([2, 4, 6]));
        assert!(draw(1, 15).iter().all(|c| c.messages.len() == 2));
        for conversation in draw(4, 60) {
            let animal = conversation.messages[0].content.replace("Where is the ", "").replace('?', "");
            assert!(conversation.messages[1].content.contains(&animal), "{conversation:?}");
        }
    }

    #[test]
    fn a_weight_for_a_stranger_and_an_empty_kind_are_errors() {
        let mut request = request(1);
        request.weights = BTreeMap::from([("ones".into(), 3.0)]);
        let error = texts(&request, 1).unwrap_err().to_string();
        assert!(error.contains("did you mean `one`?"), "{error}");
        let two = &domains()[1..];
        let error = conversations(two, &self::request(1), 1, &Quiet, &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("none of the template files makes conversations"), "{error}");
    }
}
