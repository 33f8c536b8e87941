//! `tinylm score`: how probable a model finds a text, token by token. The text is scored as it is given, not
//! cleaned as prompts are.

use std::process::ExitCode;

use clap::Args;

use super::given::{ModelArgs, TextArgs};
use super::{DtypeArg, Format, out, print_json, terminal_width};
use crate::base::table::Table;
use crate::base::{Error, Result, machine, units};
use crate::eval::{self, TextScore};
use crate::tokenizer::Tokenizer;

#[derive(Args)]
pub struct Score {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    /// How many of the most probable tokens of every place to show.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top: usize,
    /// Numbers that the model's matrices are made of.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
}

impl Score {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let text = self.text.read()?;
        let model = self.model.load(self.dtype)?;
        let score = eval::score_text(&model, &text, self.top, machine::threads())?;
        if score.tokens.is_empty() {
            return Err(Error::input("there is nothing to score: the text is too short")
                .help("the first token is scored where the tokenizer has a token to begin a text with"));
        }
        match format {
            Format::Text => print(&score, &model.tokenizer)?,
            Format::Json => print_json(
                &serde_json::to_value(&score).map_err(|e| Error::bug(format!("the scores: {e}")))?,
            )?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(score: &TextScore, tokenizer: &Tokenizer) -> Result<()> {
    let mut table = Table::new(["token", ">id", ">log-probability", ">rank", "most probable"]);
    let shown = |id: u32| format!("{:?}", tokenizer.decode(&[id]).unwrap_or_default());
    for token in &score.tokens {
        let top = token.top.iter().map(|(id, p)| format!("{} {p:.3}", shown(*id)));
        let cells = [shown(token.id), token.id.to_string(), format!("{:.4}", token.logprob)];
        table.push(cells.into_iter().chain([token.rank.to_string(), top.collect::<Vec<_>>().join("  ")]));
    }
    out::out(&table.render(terminal_width()))?;
    out::line(&format!(
        "\n{} tokens, {} bytes: {:.4} nats a token, perplexity {:.3}, {:.4} bits per byte (context {}, stride {})",
        units::count(score.tokens.len() as u64),
        units::count(score.bytes),
        score.loss,
        score.perplexity,
        score.bits_per_byte,
        score.context,
        score.stride
    ))
}
