//! `tinylm generate`: the continuation of a prompt, streamed; several samples, or the prompts of a file, as a
//! batch.

use std::fmt;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::given::ModelArgs;
use super::prompts::{Asked, Prompts, Row};
use super::{DtypeArg, Format, flag_error, out, place, print_json};
use crate::base::error::Fault;
use crate::base::{Error, Quiet, Result, machine, units};
use crate::corpus::clean;
use crate::corpus::conversation::{Message, Role};
use crate::generate::{self, Continuation, Finish, Options, Session, Strategy};
use crate::model::Model;
use crate::report::style::Style;
use crate::tokenizer::chat;

#[derive(Args)]
#[command(group(ArgGroup::new("asked").required(true).args(["prompt", "prompts"])))]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// What the text begins with.
    #[arg(long)]
    prompt: Option<String>,
    /// A file of prompts, which are continued side by side; the results are JSON lines. `.jsonl`: an object with
    /// `prompt`, or `messages` that are answered, and perhaps `id` on each line; `.txt`: a prompt on each line.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// How many texts to draw behind each prompt, each from a stream of the seed of its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
    /// A file for the results as JSON lines, which is written at once when all are there.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file that is there.
    #[arg(long, requires = "output")]
    force: bool,
    #[command(flatten)]
    decoding: Decoding,
}

/// How to decode; shared with `chat`.
#[derive(Args, Clone)]
pub struct Decoding {
    /// How the next token is chosen.
    #[arg(long, value_enum, default_value_t = StrategyArg::Sample)]
    strategy: StrategyArg,
    /// Divides the logits: below 1 for likelier tokens, above 1 for more varied ones [default: 0.8].
    #[arg(long)]
    temperature: Option<f64>,
    /// Only the K likeliest tokens; 0 for all [default: 40].
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability [default: 0.95].
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Only tokens of at least this share of the likeliest token's probability, after temperature, top-k and
    /// top-p; 0 for all [default: 0].
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Continuations followed side by side, with --strategy beam [default: 4].
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// With --strategy beam: above 0 for longer texts, below 0 for shorter ones. Divides the sum of
    /// log-probabilities as length to this power [default: 1].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Makes tokens that are there already less likely; 1 changes nothing.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Tokens to generate at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_new_tokens: usize,
    /// End where the model writes this text, which is left out. May be repeated. A line break is $'\n' in most
    /// shells.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// What sampling derives from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Numbers that the model's matrices are made of: rounded to bf16, less is read for each token.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub dtype: DtypeArg,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum StrategyArg {
    Greedy,
    Sample,
    Beam,
}

impl StrategyArg {
    fn name(self) -> &'static str {
        match self {
            StrategyArg::Greedy => "greedy",
            StrategyArg::Sample => "sample",
            StrategyArg::Beam => "beam",
        }
    }
}

impl Decoding {
    /// Warns of flags that the strategy has no use for.
    pub fn options(&self) -> Result<Options> {
        self.unused().iter().for_each(|what| out::warn(what));
        let defaults = Options::default();
        let options = Options {
            strategy: match self.strategy {
                StrategyArg::Greedy => Strategy::Greedy,
                StrategyArg::Sample => Strategy::Sample,
                StrategyArg::Beam => Strategy::Beam,
            },
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            num_beams: self.num_beams.unwrap_or(defaults.num_beams),
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            min_p: self.min_p.unwrap_or(defaults.min_p),
            length_penalty: self.length_penalty.unwrap_or(defaults.length_penalty),
            stop: self.stop.clone(),
            seed: self.seed,
            ..defaults
        };
        options.validate().map_err(flag_error)?;
        Ok(options)
    }

    /// What to say of the flags that were given and that the strategy has no use for.
    fn unused(&self) -> Vec<String> {
        let of_sample = [
            ("--temperature", self.temperature.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
        ];
        let of_beam =
            [("--num-beams", self.num_beams.is_some()), ("--length-penalty", self.length_penalty.is_some())];
        let sample = of_sample.map(|flag| (StrategyArg::Sample, flag));
        let beam = of_beam.map(|flag| (StrategyArg::Beam, flag));
        let given = sample.into_iter().chain(beam).filter(|(of, (_, given))| *given && *of != self.strategy);
        let strategy = self.strategy.name();
        let say = |of: StrategyArg, flag: &str| {
            format!("{flag} changes nothing with --strategy {strategy}: it is for --strategy {}", of.name())
        };
        given.map(|(of, (flag, _))| say(of, flag)).collect()
    }
}

impl Generate {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let options = self.decoding.options()?;
        self.validate_n(&options)?;
        // Mistakes are told before a model is loaded.
        let file = out::logged(|| self.prompts.as_deref().map(Prompts::read).transpose())?;
        self.output.iter().try_for_each(|path| place::must_be_free_for_a_file(path, self.force))?;
        let model = self.model.load(self.decoding.dtype)?;
        let inputs = match (file, &self.prompt) {
            (Some(file), _) => inputs_of(&model, file)?,
            (None, Some(prompt)) => {
                let input = Input::new(&model, None, Asked::Prompt(prompt.clone()));
                vec![input.map_err(|e| e.context("--prompt cannot be continued").blame(Fault::Usage))?]
            }
            (None, None) => return Err(Error::bug("neither a prompt nor a file of prompts")),
        };
        let run = Run { model: &model, options: &options, inputs: &inputs, samples: self.n };
        match (&self.output, inputs.as_slice()) {
            (Some(path), _) => self.write(&run, path, format)?,
            (None, [input]) if self.n == 1 && self.prompts.is_none() => run.stream(input, format)?,
            (None, [_]) if self.prompts.is_none() && format == Format::Text => run.print_samples()?,
            (None, _) => {
                let total = run.write_lines(&mut out::Out)?;
                if self.prompts.is_some() {
                    out::say(&total.to_string());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn validate_n(&self, options: &Options) -> Result<()> {
        let n = self.n;
        if n == 0 {
            return Err(Error::usage("--n is 0: expected 1 or more"));
        }
        if n > 1 && options.strategy != Strategy::Sample {
            return Err(Error::usage(format!("--n {n}: only with --strategy sample do texts differ"))
                .help("leave out --n, or --strategy"));
        }
        Ok(())
    }

    /// Writes all results to the file at `path`.
    fn write(&self, run: &Run, path: &Path, format: Format) -> Result<()> {
        let mut total = None;
        let bytes = place::file(path, self.force, |into| {
            total = Some(run.write_lines(into)?);
            Ok(())
        })?;
        let total = total.ok_or_else(|| Error::bug("a file without results"))?;
        match format {
            Format::Text => {
                out::line(&format!("wrote {} ({}): {total}", path.display(), units::bytes(bytes)))
            }
            Format::Json => print_json(&json!({
                "output": path.display().to_string(), "bytes": bytes, "texts": total.texts, "tokens": total.tokens,
                "seconds": total.seconds, "tokens_per_s": total.tokens as f64 / total.seconds,
            })),
        }
    }
}

/// What is asked, and as the model reads it.
struct Input {
    id: Option<Value>,
    asked: Asked,
    ids: Vec<u32>,
    /// How many of `ids` do not fit.
    cut: usize,
}

impl Input {
    fn new(model: &Model, id: Option<Value>, asked: Asked) -> Result<Self> {
        let asked = match asked {
            Asked::Prompt(text) => Asked::Prompt(clean::prompt(&text)),
            messages => messages,
        };
        let ids = match &asked {
            Asked::Prompt(text) => generate::prompt_ids(model, text)?,
            Asked::Messages(messages) => chat::prompt(&model.tokenizer, messages)?,
        };
        if ids.is_empty() {
            let message = "the prompt is empty, and this tokenizer has no token to begin a text with";
            return Err(Error::input(message).help("write what the text is to begin with"));
        }
        Ok(Input { id, asked, cut: generate::cut(model, &ids), ids })
    }
}

fn inputs_of(model: &Model, prompts: Prompts) -> Result<Vec<Input>> {
    let Prompts { file, rows } = prompts;
    let input = |row: Row| {
        let at = row.at;
        Input::new(model, row.id, row.asked).map_err(|e| {
            // Its own place, if it has one, is in another file.
            let place = file.place(at);
            place.map_or_else(|e| e, |place| e.at(place))
        })
    };
    rows.into_iter().map(input).collect()
}

/// A result as a line.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Said<'a>>>,
    sample: usize,
    text: &'a str,
    tokens: &'a [u32],
    logprobs: &'a [f64],
    finish_reason: Finish,
    /// Of the prompt, where it was too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_cut: Option<usize>,
}

#[derive(Serialize)]
struct Said<'a> {
    role: Role,
    content: &'a str,
}

impl<'a> Line<'a> {
    fn new(input: &'a Input, sample: usize, result: &'a Continuation) -> Self {
        let said = |message: &'a Message| Said { role: message.role, content: &message.content };
        let (prompt, messages, text) = match &input.asked {
            Asked::Prompt(prompt) => (Some(prompt.as_str()), None, result.text.as_str()),
            Asked::Messages(all) => (None, Some(all.iter().map(said).collect()), result.text.trim()),
        };
        let Continuation { tokens, logprobs, finish, .. } = result;
        let prompt_tokens_cut = Some(input.cut).filter(|cut| *cut > 0);
        let id = input.id.as_ref();
        Line {
            id,
            prompt,
            messages,
            sample,
            text,
            tokens,
            logprobs,
            finish_reason: *finish,
            prompt_tokens_cut,
        }
    }
}

/// What was generated.
struct Total {
    texts: usize,
    tokens: usize,
    seconds: f64,
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [texts, tokens] = [self.texts, self.tokens].map(|n| units::count(n as u64));
        let rate = units::count((self.tokens as f64 / self.seconds) as u64);
        write!(f, "{texts} texts, {tokens} tokens in {:.1} s ({rate} tokens/s)", self.seconds)
    }
}

struct Run<'a> {
    model: &'a Model,
    options: &'a Options,
    inputs: &'a [Input],
    samples: usize,
}

impl Run<'_> {
    /// Writes each result as a JSON line.
    fn write_lines(&self, into: &mut dyn Write) -> Result<Total> {
        self.each(&mut |input, sample, result| {
            let line = serde_json::to_string(&Line::new(input, sample, &result));
            let line = line.map_err(|e| Error::bug(format!("a result: {e}")))?;
            writeln!(into, "{line}").map_err(|e| Error::input(format!("cannot write the results: {e}")))
        })
    }

    /// Prints the samples behind the only prompt.
    fn print_samples(&self) -> Result<()> {
        self.each(&mut |input, sample, result| {
            let Asked::Prompt(prompt) = &input.asked else { return Ok(()) };
            let between = if sample > 0 { "\n" } else { "" };
            let heading = Style::stdout().dim(format!("[sample {} of {}]", sample + 1, self.samples));
            out::line(&format!("{between}{heading}\n{prompt}{}", result.text))
        })?;
        Ok(())
    }

    fn each(&self, done: &mut dyn FnMut(&Input, usize, Continuation) -> Result<()>) -> Result<Total> {
        let Run { model, options, inputs, samples } = *self;
        self.warn_of_cut();
        let prompts: Vec<Vec<u32>> = inputs.iter().map(|input| input.ids.clone()).collect();
        let (begun, mut tokens) = (Instant::now(), 0);
        let threads = machine::threads();
        generate::continue_each(
            model,
            &prompts,
            samples,
            options,
            threads,
            &Quiet,
            &mut |i, sample, result| {
                tokens += result.tokens.len();
                done(&inputs[i], sample, result)
            },
        )?;
        Ok(Total { texts: inputs.len() * samples, tokens, seconds: begun.elapsed().as_secs_f64() })
    }

    fn warn_of_cut(&self) {
        let cut: Vec<&Input> = self.inputs.iter().filter(|input| input.cut > 0).collect();
        match (cut.as_slice(), self.inputs.len()) {
            ([], _) => {}
            ([one], 1) => out::warn(&generate::cut_to_fit(self.model, one.ids.len(), one.cut)),
            (some, all) => out::warn(&format!(
                "{} of {all} prompts have more tokens than the {} that the model holds: their first ones are cut, \
                 as many as `prompt_tokens_cut` says",
                some.len(),
                self.model.transformer.config.seq_len
            )),
        }
    }

    /// Prints the continuation of a prompt as it is generated.
    fn stream(&self, input: &Input, format: Format) -> Result<()> {
        let Asked::Prompt(prompt) = &input.asked else { return Err(Error::bug("a prompt is a text")) };
        let (begun, mut printed) = (Instant::now(), Ok(()));
        let mut session = Session::new(self.model, machine::threads());
        session.feed(&input.ids)?;
        self.warn_of_cut();
        if format == Format::Text {
            out::out(prompt)?;
        }
        let result = generate::stream(&mut session, &input.ids, self.options, &mut |piece| {
            if format == Format::Text {
                printed = out::out(piece);
            }
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        printed?;
        let seconds = begun.elapsed().as_secs_f64();
        let Continuation { text, tokens, logprobs, finish, .. } = result;
        match format {
            Format::Text => out::line(""),
            Format::Json => print_json(&json!({
                "prompt": prompt, "sample": 0, "text": text, "tokens": tokens, "logprobs": logprobs,
                "finish_reason": finish, "prompt_tokens": input.ids.len(), "prompt_tokens_cut": input.cut,
                "seconds": seconds, "tokens_per_s": tokens.len() as f64 / seconds,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        decoding: Decoding,
    }

    fn decoding(args: &str) -> Decoding {
        let args = std::iter::once("tinylm").chain(args.split_whitespace());
        Only::try_parse_from(args).expect("flags that there are").decoding
    }

    fn options(args: &str) -> Result<Options> {
        decoding(args).options()
    }

    #[test]
    fn flags_that_a_strategy_has_no_use_for_are_named() {
        for (args, unused) in [
            ("", ""),
            ("--temperature 0.5 --min-p 0", ""),
            ("--strategy beam --num-beams 3", ""),
            (
                "--num-beams 3",
                "--num-beams changes nothing with --strategy sample: it is for --strategy beam",
            ),
            (
                "--strategy greedy --length-penalty -1 --temperature 0.5",
                "--temperature changes nothing with --strategy greedy: it is for --strategy sample\n\
                 --length-penalty changes nothing with --strategy greedy: it is for --strategy beam",
            ),
            (
                "--strategy beam --top-k 3",
                "--top-k changes nothing with --strategy beam: it is for --strategy sample",
            ),
        ] {
            assert_eq!(decoding(args).unused().join("\n"), unused, "{args}");
        }
    }

    #[test]
    fn what_is_not_given_is_as_the_library_has_it() {
        let of = |args: &str| format!("{:?}", options(args).unwrap());
        assert_eq!(of(""), format!("{:?}", Options::default()));
        let beams =
            Options { strategy: Strategy::Beam, num_beams: 3, length_penalty: -1.0, ..Options::default() };
        assert_eq!(of("--strategy beam --num-beams 3 --length-penalty -1"), format!("{beams:?}"));
        assert_eq!(options("--temperature 0.5 --top-k 2 --top-p 0.5 --min-p 0.1").unwrap().top_k, 2);
    }
}
