//! `tinylm chat`: a conversation with a fine-tuned model, streamed; the cache is kept between turns.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::generate::Decoding;
use super::given::ModelArgs;
use super::{Format, out, print_json};
use crate::base::{Error, Result, machine};
use crate::generate::{Conversation, Options};
use crate::model::Model;
use crate::report::style::Style;

#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    decoding: Decoding,
}

impl Chat {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let mut options = self.decoding.options()?;
        let model = self.model.load(self.decoding.dtype)?;
        let mut chat = Conversation::new(&model, self.system.as_deref(), machine::threads());
        let stdin = std::io::stdin();
        let live = stdin.is_terminal();
        let s = Style::stdout();
        if live {
            out::say("/reset begins anew, /quit or Ctrl-D ends");
        }
        let mut lines = Lines { input: stdin.lock(), read: 0 };
        loop {
            if live {
                out::out(&format!("{} ", s.bold("you:")))?;
            }
            let Some(line) = lines.next()? else { break };
            let line = line.unwrap_or_else(|bad| {
                out::warn(&bad);
                String::new()
            });
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => break,
                "/reset" => {
                    chat.reset();
                    continue;
                }
                said => {
                    turn(&mut chat, said, &options, format)?;
                    // A new seed for each turn; the whole conversation is still determined by the first.
                    options.seed = options.seed.wrapping_add(1);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The user's lines.
struct Lines<R> {
    input: R,
    read: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line, or what is wrong with it; `None` at the end.
    fn next(&mut self) -> Result<Option<std::result::Result<String, String>>> {
        let mut bytes = Vec::new();
        let read = self.input.read_until(b'\n', &mut bytes);
        if read.map_err(|e| Error::input(format!("cannot read what you say: {e}")))? == 0 {
            return Ok(None);
        }
        self.read += 1;
        Ok(Some(String::from_utf8(bytes).map_err(|e| {
            let good = e.utf8_error().valid_up_to();
            let column = String::from_utf8_lossy(&e.as_bytes()[..good]).chars().count() + 1;
            let byte = e.as_bytes()[good];
            format!(
                "line {}, column {column}: the byte 0x{byte:02X} is not UTF-8; the line is left out, say it again",
                self.read
            )
        })))
    }
}

/// Sends `text`, prints the answer, and warns of tokens that were dropped for it.
fn turn(
    conversation: &mut Conversation<&Model>,
    text: &str,
    options: &Options,
    format: Format,
) -> Result<()> {
    if format == Format::Text {
        out::out(&format!("{} ", Style::stdout().cyan("assistant:")))?;
    }
    let mut printed = Ok(());
    let answer = conversation.turn(text, options, &mut |piece| {
        if format == Format::Text {
            printed = out::out(piece);
        }
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed?;
    match format {
        Format::Text => out::line("")?,
        Format::Json => {
            print_json(&json!({"user": text, "assistant": answer.text, "finish_reason": answer.finish}))?
        }
    }
    if answer.forgotten > 0 {
        let (all, now) = (conversation.tokens(), conversation.forgotten());
        let seq_len = conversation.model().transformer.config.seq_len;
        out::warn(&format!(
            "the conversation has {all} tokens, the model holds {seq_len}: the first {now} are forgotten"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_byte_is_told_by_its_place_and_the_next_line_is_read() {
        let mut lines = Lines { input: &b"hello\ncaf\xE9 au lait\nbye"[..], read: 0 };
        assert_eq!(lines.next().unwrap(), Some(Ok("hello\n".to_string())));
        let bad = lines.next().unwrap().unwrap().unwrap_err();
        assert!(bad.starts_with("line 2, column 4: the byte 0xE9"), "{bad}");
        assert_eq!(lines.next().unwrap(), Some(Ok("bye".to_string())));
        assert_eq!(lines.next().unwrap(), None);
    }
}
