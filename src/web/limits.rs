//! What requests are held to.

use std::time::Duration;

use crate::base::machine;
use crate::generate;

/// Sizes, times and numbers that keep one client from taking everything.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of a request's body.
    pub body_bytes: usize,
    /// For a request's body to come.
    pub body_time: Duration,
    /// Of a request's first line and headers.
    pub header_bytes: usize,
    /// For a request's first line and headers to come, and for the next request on a connection.
    pub header_time: Duration,
    pub connections: usize,
    /// Requests that wait for a model, each.
    pub waiting: usize,
    /// New tokens of a request.
    pub max_tokens: usize,
    /// Texts behind a prompt.
    pub samples: usize,
    /// Stop strings.
    pub stops: usize,
    /// For a request to be answered.
    pub generation_time: Duration,
    /// Of all models that are loaded: their weights, and sequences that are kept to be continued.
    pub memory: u64,
    /// Of each model's batch.
    pub scheduler: generate::Limits,
    /// For running requests to end once the server is to stop.
    pub shutdown_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 1 << 20,
            body_time: Duration::from_secs(30),
            header_bytes: 16 << 10,
            header_time: Duration::from_secs(10),
            connections: 512,
            waiting: 256,
            max_tokens: 4096,
            samples: 16,
            stops: 16,
            generation_time: Duration::from_secs(300),
            memory: machine::memory().map_or(2 << 30, |all| all / 2),
            // Most clients of a tiny model are answered at once rather than one behind the other.
            scheduler: generate::Limits { width: 64, prefix_bytes: 64 << 20, ..generate::Limits::default() },
            shutdown_time: Duration::from_secs(3),
        }
    }
}
