//! `tinylm attention`: who attends to whom in a text, and what the model expects next; in the terminal, as JSON
//! and as SVG. The text is read as it is given, not cleaned as prompts are.
//!
//! ```text
//!  heat   one head as a heat map of characters
//!  svg    heads as heat maps in a file
//! ```

mod heat;
mod svg;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::given::{ModelArgs, TextArgs};
use super::{DtypeArg, Format, flag_error, out, place, print_json, terminal_width};
use crate::base::table::Table;
use crate::base::text::label;
use crate::base::{Error, Result, machine, units};
use crate::generate;
use crate::model::Model;
use crate::model::attention::{self, Map, Pattern, Which};
use crate::report::style::Style;

/// Tokens that may come next, in the terminal and in JSON.
const NEXT: usize = 10;

#[derive(Args)]
pub struct Attention {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    /// Only this layer, counted from 0.
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Only this head of each layer, counted from 0; with --layer a heat map.
    #[arg(long, value_name = "N")]
    head: Option<usize>,
    /// A file for heat maps of these layers and heads as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace the file that is there.
    #[arg(long, requires = "svg")]
    force: bool,
    /// Numbers that the model's matrices are made of.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
}

impl Attention {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let text = self.text.read()?;
        // Mistakes are told before a model is loaded.
        self.svg.iter().try_for_each(|path| place::must_be_free_for_a_file(path, self.force))?;
        let model = self.model.load(self.dtype)?;
        let which = Which { layer: self.layer, head: self.head };
        which.validate(&model.transformer.config).map_err(flag_error)?;
        let seen = Seen { ids: generate::ids_of(&model, &text)?, model: &model, which };
        match (&self.svg, format) {
            (Some(path), _) => self.write_svg(&seen, path, format)?,
            (None, Format::Json) => out::line(&json(&seen.view()?)?)?,
            (None, Format::Text) => seen.print()?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn write_svg(&self, seen: &Seen, path: &Path, format: Format) -> Result<()> {
        let view = seen.view()?;
        let bytes = place::file(path, self.force, |into| {
            let written = into.write_all(svg::document(&view).as_bytes());
            written.map_err(|e| Error::io("write", path, &e))
        })?;
        match format {
            Format::Text => out::line(&format!("wrote {} ({})", path.display(), units::bytes(bytes))),
            Format::Json => {
                print_json(&serde_json::json!({"svg": path.display().to_string(), "bytes": bytes}))
            }
        }
    }
}

fn json(view: &attention::View) -> Result<String> {
    serde_json::to_string(view).map_err(|e| Error::bug(format!("the attention: {e}")))
}

/// A text with the heads that are looked at.
struct Seen<'a> {
    model: &'a Model,
    ids: Vec<u32>,
    which: Which,
}

impl Seen<'_> {
    fn view(&self) -> Result<attention::View> {
        attention::attention(self.model, &self.ids, self.which, NEXT, machine::threads())
    }

    fn labels(&self) -> Vec<String> {
        self.ids.iter().map(|id| label(&self.model.tokenizer.shown(*id))).collect()
    }

    fn print(&self) -> Result<()> {
        let (mut text, mut patterns) = (String::new(), Vec::new());
        let one = self.which.layer.is_some() && self.which.head.is_some();
        let (labels, style) = (self.labels(), Style::stdout());
        let each = &mut |layer: usize, head: usize, map: Map| {
            if one {
                text = heat::map(map, &labels, terminal_width(), style);
            }
            patterns.push((layer, head, map.pattern()));
        };
        let next = attention::each_map(
            &self.model.transformer,
            &self.ids,
            self.which,
            NEXT,
            machine::threads(),
            each,
        )?;
        let tokens = self.ids.len();
        if one {
            out::line("Each row is a token, shaded by how much it attends to the token of each column.\n")?;
            out::line(&text)?;
        } else {
            let count = units::count(tokens as u64);
            out::line(&format!("{count} tokens: {}\n", table_cell(&labels.join(" "))))?;
        }
        if tokens > 1 {
            out::out(&table_of(&patterns).render(terminal_width()))?;
            out::line(&format!(
                "Means over all tokens but the first; `mostly` is what gets more than half. Attention to all tokens \
                 alike has an entropy of {:.2} bits.\n",
                attention::uniform_entropy(tokens)
            ))?;
        }
        out::out(&self.table_of_next(&next).render(terminal_width()))
    }

    fn table_of_next(&self, next: &[(u32, f32)]) -> Table {
        let mut table = Table::new(["next token", ">id", ">probability", ""]);
        for (id, p) in next {
            let bar = "█".repeat((p * 40.0).round() as usize);
            let token = label(&self.model.tokenizer.shown(*id));
            table.push([token, id.to_string(), format!("{p:.4}"), bar]);
        }
        table
    }
}

/// As much of a line as the terminal is wide.
fn table_cell(text: &str) -> String {
    crate::base::table::shorten(text, terminal_width().saturating_sub(16))
}

fn table_of(patterns: &[(usize, usize, Option<Pattern>)]) -> Table {
    let mut table = Table::new([
        ">layer",
        ">head",
        ">previous token",
        ">first token",
        ">itself",
        ">entropy, bits",
        "mostly",
    ]);
    for (layer, head, pattern) in patterns {
        let Some(pattern) = pattern else { continue };
        let numbers = [pattern.previous, pattern.first, pattern.itself].map(|w| format!("{w:.3}"));
        let cells = [layer.to_string(), head.to_string()].into_iter().chain(numbers);
        table.push(cells.chain([format!("{:.2}", pattern.entropy), mostly(pattern).to_string()]));
    }
    table
}

/// What gets more than half of the weight.
fn mostly(pattern: &Pattern) -> &'static str {
    let weights =
        [(pattern.previous, "previous token"), (pattern.first, "first token"), (pattern.itself, "itself")];
    let (weight, name) = weights.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, ""));
    if weight > 0.5 { name } else { "" }
}
