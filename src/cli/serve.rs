//! `tinylm serve`: models for a browser and for OpenAI's clients.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Format, out, print_json};
use crate::base::{Error, Result};
use crate::web::{self, Access, App, Limits, Metrics, Project, Registry, Token};

#[derive(Args)]
pub struct Serve {
    /// A model: a folder, `PIPELINE:STAGE` or `PIPELINE:STAGE.PORT`, perhaps with a name before it. May be
    /// repeated.
    #[arg(long = "model", value_name = "[NAME=]TARGET")]
    models: Vec<String>,
    /// The address to listen at. Others than this machine's own need --token-file.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen at; 0 for any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A file whose first line is the token that requests must have as `Authorization: Bearer TOKEN`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Serve {
    pub fn run(self, format: Format) -> Result<ExitCode> {
        let app = Arc::new(self.app()?);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Error::input(format!("cannot start threads: {e}")))?;
        runtime.block_on(async {
            let address = SocketAddr::new(self.host, self.port);
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|e| Error::input(format!("cannot listen at {address}: {e}")))?;
            let address = listener.local_addr().unwrap_or(address);
            announce(address, format)?;
            web::serve(listener, app, stopped()).await
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn app(&self) -> Result<App> {
        let token = self.token_file.as_deref().map(Token::read).transpose()?;
        let loopback = self.host.is_loopback();
        if !loopback && token.is_none() {
            return Err(Error::usage(format!("--host {} is open to other machines", self.host))
                .help("name a file with a token for them by --token-file, or leave out --host"));
        }
        Ok(App {
            models: Registry::new(self.models.iter().map(|text| named(text))),
            project: Project::here(),
            limits: Limits::default(),
            access: Access { loopback, token },
            metrics: Metrics::default(),
        })
    }
}

/// Name and target of `[NAME=]TARGET`.
fn named(text: &str) -> (String, String) {
    match text.split_once('=').filter(|_| !Path::new(text).exists()) {
        Some((name, target)) => (name.to_string(), target.to_string()),
        None => (text.to_string(), text.to_string()),
    }
}

fn announce(address: SocketAddr, format: Format) -> Result<()> {
    let url = format!("http://{address}");
    match format {
        Format::Text => out::line(&format!("listening at {url}")),
        Format::Json => print_json(&json!({"url": url, "address": address.to_string()})),
    }
}

/// Resolves at Ctrl-C or SIGTERM.
async fn stopped() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupted => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    let _ = interrupted.await;
}
