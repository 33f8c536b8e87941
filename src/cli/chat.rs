//! `tinylm chat`: a conversation with a fine-tuned model, streamed; the cache is kept between turns.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::generate::{Decoding, load_model};
use super::{Format, print_json};
use crate::base::{Error, Result, machine};
use crate::generate::{Options, Session, generate};
use crate::model::Model;
use crate::report::style::Style;
use crate::tokenizer::Special;

#[derive(Args)]
pub struct Chat {
    /// The model: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`.
    #[arg(long, value_name = "TARGET")]
    model: String,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    decoding: Decoding,
}

impl Chat {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let mut options = self.decoding.options()?;
        let model = load_model(&self.model, self.decoding.dtype)?;
        let mut talk = Talk::new(&model, self.system.as_deref())?;
        let stdin = std::io::stdin();
        let live = stdin.is_terminal();
        let s = Style::stdout();
        if live {
            eprintln!("/reset begins anew, /quit or Ctrl-D ends");
        }
        loop {
            if live {
                print!("{} ", s.bold("you:"));
                let _ = std::io::stdout().flush();
            }
            let mut line = String::new();
            let read = stdin.lock().read_line(&mut line);
            if read.map_err(|e| Error::input(format!("cannot read what you say: {e}")))? == 0 {
                break;
            }
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => break,
                "/reset" => {
                    talk = Talk::new(&model, self.system.as_deref())?;
                    continue;
                }
                said => {
                    if format == Format::Text {
                        print!("{} ", s.cyan("assistant:"));
                        let _ = std::io::stdout().flush();
                    }
                    let answer = talk.answer(said, &options, format)?;
                    match format {
                        Format::Text => println!(),
                        Format::Json => print_json(&json!({"user": said, "assistant": answer})),
                    }
                    // Another turn, another draw; the whole conversation still follows from the seed.
                    options.seed = options.seed.wrapping_add(1);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

struct Talk<'a> {
    model: &'a Model,
    session: Session<'a>,
}

impl<'a> Talk<'a> {
    fn new(model: &'a Model, system: Option<&str>) -> Result<Self> {
        let mut session = Session::new(model, machine::threads());
        let mut ids = vec![model.tokenizer.require(Special::Bos)?];
        if let Some(system) = system {
            ids.push(model.tokenizer.require(Special::System)?);
            ids.extend(model.tokenizer.encode(system)?);
        }
        session.feed(&ids)?;
        Ok(Talk { model, session })
    }

    /// Says `text` and gives the answer, which is printed as it comes.
    fn answer(&mut self, text: &str, options: &Options, format: Format) -> Result<String> {
        let tokenizer = &self.model.tokenizer;
        let mut ids = vec![tokenizer.require(Special::User)?];
        ids.extend(tokenizer.encode(text)?);
        ids.push(tokenizer.require(Special::Assistant)?);
        self.session.feed(&ids)?;
        let mut decoder = tokenizer.decoder();
        let mut answer = String::new();
        let mut show = |piece: Option<String>| {
            let Some(piece) = piece else { return };
            // Some tokenizers begin every text with a space.
            let piece = if answer.is_empty() { piece.trim_start() } else { &piece };
            answer.push_str(piece);
            if format == Format::Text {
                print!("{piece}");
                let _ = std::io::stdout().flush();
            }
        };
        generate(&mut self.session, options, &mut |id| {
            show(decoder.push(id));
            ControlFlow::Continue(())
        })?;
        show(decoder.finish());
        // The end token was chosen and not read; the next turn has to see it.
        self.session.feed(&[tokenizer.require(Special::Eos)?])?;
        Ok(answer)
    }
}
