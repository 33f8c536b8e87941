//! `tinylm serve`: models for a browser and for OpenAI's clients.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;

use super::{DtypeArg, Format, out, print_json};
use crate::base::{Error, Result, machine, units};
use crate::target;
use crate::web::{self, Access, App, Limits, Metrics, Project, Registry, Token};

#[derive(Args)]
pub struct Serve {
    /// A model: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`, perhaps with a name before it. May be
    /// repeated. Default: every model that the pipelines in `pipelines/` have made.
    #[arg(long = "model", value_name = "[NAME=]TARGET")]
    models: Vec<String>,
    /// The address to listen at. Others than this machine's own need --token-file.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS", value_parser = address)]
    host: IpAddr,
    /// The port to listen at; 0 for any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A file whose first line is the token that requests must have as `Authorization: Bearer TOKEN`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Numbers that the models' matrices are made of: rounded to bf16, less is read for each token.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
    #[command(flatten)]
    limits: LimitArgs,
}

/// What requests are held to.
#[derive(Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Memory of loaded models: weights, and sequences that are kept to be continued. Models that are not used
    /// make room for others [default: half of the machine's].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Connections at a time; further ones wait.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections as u64,
        value_parser = clap::value_parser!(u64).range(1..=100_000))]
    max_connections: u64,
    /// Requests that wait for a model, each; further ones are refused.
    #[arg(long, value_name = "N", default_value_t = Limits::default().waiting as u64,
        value_parser = clap::value_parser!(u64).range(1..=100_000))]
    max_waiting: u64,
    /// New tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_tokens as u64,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    max_tokens: u64,
    /// Sequences that a model continues side by side.
    #[arg(long, value_name = "N", default_value_t = Limits::default().scheduler.width as u64,
        value_parser = clap::value_parser!(u64).range(1..=1024))]
    width: u64,
    /// Memory of sequences that a model keeps to be continued, so that a conversation is not read again at each
    /// turn; 0 for none.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    prefix_memory: u64,
    /// Size of a request.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1MiB")]
    max_body: u64,
    /// Seconds for a request's headers to come.
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "10")]
    header_timeout: Duration,
    /// Seconds for a request's body to come.
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "30")]
    body_timeout: Duration,
    /// Seconds for an answer.
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "300")]
    timeout: Duration,
}

fn address(text: &str) -> std::result::Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => {
            text.parse().map_err(|_| "expected an IP address, such as 127.0.0.1, 0.0.0.0 or ::1".to_string())
        }
    }
}

fn size(text: &str) -> std::result::Result<u64, String> {
    units::parse_bytes(text).ok_or_else(|| "expected a size such as `512MiB` or `8GiB`".to_string())
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.001..=1e6).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds, from 0.001 to 1000000".to_string())
}

impl From<&LimitArgs> for Limits {
    fn from(args: &LimitArgs) -> Limits {
        let mut limits = Limits {
            connections: args.max_connections as usize,
            waiting: args.max_waiting as usize,
            max_tokens: args.max_tokens as usize,
            body_bytes: args.max_body as usize,
            header_time: args.header_timeout,
            body_time: args.body_timeout,
            generation_time: args.timeout,
            ..Limits::default()
        };
        limits.memory = args.memory.unwrap_or(limits.memory);
        limits.scheduler.width = args.width as usize;
        limits.scheduler.prefix_bytes = args.prefix_memory;
        limits
    }
}

impl Serve {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        out::logged_by_all(|| self.serve(format))
    }

    fn serve(&self, format: Format) -> Result<ExitCode> {
        let app = Arc::new(self.app(Project::here())?);
        // Few threads, each of which takes its time from those that compute: models have their own, and reading files is
        // bounded.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let workers = machine::threads().div_ceil(4);
        let runtime = runtime.worker_threads(workers).max_blocking_threads(16).enable_all().build();
        let runtime = runtime.map_err(|e| Error::input(format!("cannot start threads: {e}")))?;
        let served = runtime.block_on(async {
            let listener = self.listen().await?;
            let address = listener.local_addr().map_err(|e| Error::input(format!("no address: {e}")))?;
            let stop = stopped();
            app.models.refresh().await;
            announce(address, &app.models.ids(), app.access.token.is_some(), format)?;
            web::serve(listener, app, stop).await
        });
        // Threads that still compute are of no use to anybody.
        runtime.shutdown_background();
        served.map(|()| ExitCode::SUCCESS)
    }

    async fn listen(&self) -> Result<TcpListener> {
        let address = SocketAddr::new(self.host, self.port);
        TcpListener::bind(address).await.map_err(|e| {
            let error = Error::usage(format!("cannot listen at {address}: {e}"));
            match e.kind() {
                std::io::ErrorKind::AddrInUse => error.help("another program listens there: end it, or name another port by --port; 0 for any that is free"),
                std::io::ErrorKind::PermissionDenied => error.help("name a port above 1023 by --port"),
                std::io::ErrorKind::AddrNotAvailable => error.help("name an address of this machine by --host"),
                _ => error,
            }
        })
    }

    /// Names and targets of the models that were given.
    fn models(&self) -> Result<Vec<(String, String)>> {
        let models: Vec<(String, String)> = self.models.iter().map(|text| named(text)).collect();
        let mut seen = BTreeSet::new();
        for (id, target) in &models {
            if !seen.insert(id) {
                return Err(Error::usage(format!("--model {id} is given twice"))
                    .help("give one of them another name: --model NAME=TARGET"));
            }
            target::of_model(target)?;
        }
        Ok(models)
    }

    fn app(&self, project: Project) -> Result<App> {
        let token = self.token_file.as_deref().map(Token::read).transpose()?;
        let loopback = self.host.is_loopback();
        if !loopback && token.is_none() {
            return Err(Error::usage(format!(
                "--host {} is open to other machines, and there is no token",
                self.host
            ))
            .help("write a secret into a file and name it by --token-file, or leave out --host"));
        }
        let (limits, metrics) = (Limits::from(&self.limits), Arc::new(Metrics::default()));
        let dtype = self.dtype.into();
        let models = match self.models.is_empty() {
            true => Registry::of_project(project.clone(), dtype, &limits, metrics.clone()),
            false => Registry::new(self.models()?, dtype, &limits, metrics.clone()),
        };
        Ok(App { models, project, limits, access: Access { loopback, token }, metrics })
    }
}

/// Name and target of `[NAME=]TARGET`.
fn named(text: &str) -> (String, String) {
    match text.split_once('=').filter(|(name, _)| !name.is_empty() && !Path::new(text).exists()) {
        // Values of a matrix: PIPELINE:STAGE@x=1.
        Some((name, target)) if !name.contains(':') => (name.to_string(), target.to_string()),
        _ => (text.to_string(), text.to_string()),
    }
}

/// Says where to look.
fn announce(address: SocketAddr, models: &[String], token: bool, format: Format) -> Result<()> {
    let url = format!("http://{address}");
    if format == Format::Json {
        return print_json(&json!({
            "url": url, "host": address.ip().to_string(), "port": address.port(), "models": models, "token": token,
        }));
    }
    let what = match models {
        [] => "no models: runs and artifacts only".to_string(),
        models => format!("models: {}", models.join(", ")),
    };
    let token = if token { "\nasks for the token" } else { "" };
    out::line(&format!(
        "{what}\nchat       {url}/\nattention  {url}/attention\nruns       {url}/runs\nOpenAI API {url}/v1{token}\nCtrl-C ends it"
    ))
}

/// Resolves at Ctrl-C or a signal to end.
#[cfg(unix)]
fn stopped() -> impl Future + Send {
    use tokio::signal::unix::{SignalKind, signal};
    // From now on, not only once somebody waits.
    let listen = |kind| signal(kind).ok();
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    async move {
        let received = async |signal: &mut Option<tokio::signal::unix::Signal>| match signal {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        };
        tokio::select! {
            () = received(&mut interrupt) => {}
            () = received(&mut terminate) => {}
        }
    }
}

#[cfg(not(unix))]
fn stopped() -> impl Future + Send {
    tokio::signal::ctrl_c()
}
