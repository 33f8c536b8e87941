//! `tinylm serve` over the network: what clients get, however slow, many or wrong they are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tinylm::model::{Config, Model, Transformer, gpt2};
use tinylm::tokenizer::Tokenizer;

use crate::project::Project;

/// A small untrained model.
fn write_model(folder: &Path, seed: u64) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = Tokenizer::load(Path::new(path)).unwrap();
    let config = Config { d_ff: 32, dropout: 0.0, ..gpt2(tokenizer.vocab_size(), 16, 2, 2, 64) };
    std::fs::create_dir_all(folder).unwrap();
    Model { transformer: Transformer::fresh(&config, seed), tokenizer }.save(folder).unwrap();
}

struct Server {
    child: Child,
    at: SocketAddr,
    /// What it said at its start.
    said: Value,
    project: Project,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let project = Project::new("stages: {}\n");
        write_model(&project.path("m"), 1);
        Self::in_project(project, &[&["--model", "m"], args].concat())
    }

    fn in_project(project: Project, args: &[&str]) -> Self {
        let mut command = project.command(&[&["serve", "--port", "0", "--format", "json"], args].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it said {line:?}"));
        let at = SocketAddr::from(([127, 0, 0, 1], said["port"].as_u64().unwrap() as u16));
        Server { child, at, said, project }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends `bytes` and gives all that comes back.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        rest(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.exchange(
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.at).as_bytes(),
        )
    }

    fn post(&self, path: &str, body: &Value) -> String {
        self.exchange(&self.posted(path, body))
    }

    fn posted(&self, path: &str, body: &Value) -> Vec<u8> {
        let (at, body) = (self.at, body.to_string());
        let head = "Content-Type: application/json\r\nConnection: close\r\n";
        format!("POST {path} HTTP/1.1\r\nHost: {at}\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal, and gives the exit code.
    #[cfg(unix)]
    fn end(mut self, signal: nix::sys::signal::Signal) -> Option<i32> {
        let id = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(id, signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection may be reset behind what it said.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(response: &str) -> u16 {
    let status = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no response: {response:?}"))
}

fn body(response: &str) -> Value {
    let body = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no body: {response:?}")).1;
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{response}"))
}

/// A stream that would go on for very long.
fn endless() -> Value {
    json!({"model": "m", "prompt": "a", "max_tokens": 1_000_000, "stream": true, "logit_bias": {"40": 100}})
}

#[test]
fn a_stream_comes_piece_by_piece_and_ends_with_its_client() {
    let server = Server::start(&["--max-tokens", "1000000"]);
    assert_eq!(server.said["models"], json!(["m"]));
    let mut stream = server.connect();
    stream.write_all(&server.posted("/v1/completions", &endless())).unwrap();
    let mut first = [0; 600];
    stream.read_exact(&mut first).unwrap();
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(
        status(&first) == 200 && first.contains("text/event-stream") && first.contains("data: {"),
        "{first}"
    );
    assert_eq!(server.metric("tinylm_sequences_running{model=\"m\"}"), 1.0);
    drop(stream);
    server.wait_for("the place is free", |s| s.metric("tinylm_sequences_running{model=\"m\"}") == 0.0);
    assert_eq!(server.metric("tinylm_requests_cancelled_total"), 1.0);
    // A client that waits for a whole answer is missed as well.
    let mut whole = endless();
    whole["stream"] = json!(false);
    let mut stream = server.connect();
    stream.write_all(&server.posted("/v1/completions", &whole)).unwrap();
    server.wait_for("it runs", |s| s.metric("tinylm_sequences_running{model=\"m\"}") == 1.0);
    drop(stream);
    server.wait_for("the place is free", |s| s.metric("tinylm_requests_cancelled_total") == 2.0);
}

#[test]
fn two_hundred_clients_get_their_streams() {
    let server = Server::start(&[]);
    let ask = json!({"model": "m", "prompt": "The cat", "max_tokens": 20, "stream": true, "seed": 1});
    let request = server.posted("/v1/completions", &ask);
    let mut all: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    for stream in &mut all {
        stream.write_all(&request).unwrap();
    }
    let texts: Vec<String> = all.iter_mut().map(rest).collect();
    for text in &texts {
        assert!(status(text) == 200 && text.contains("data: [DONE]"), "{text}");
    }
    let said = |text: &String| -> String {
        let events =
            text.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        events.map(|event| event["choices"][0]["text"].as_str().unwrap().to_string()).collect()
    };
    // Whoever runs beside it.
    assert!(texts.iter().all(|text| said(text) == said(&texts[0])));
    server.wait_for("connections end", |s| s.metric("tinylm_connections") == 1.0);
}

#[test]
fn slow_large_and_senseless_requests_have_their_status() {
    let server = Server::start(&["--header-timeout", "0.4", "--body-timeout", "0.4"]);
    let head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let large = "x".repeat(2 << 20);
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n200000\r\n{large}\r\n0\r\n\r\n");
    let cases = [
        // Nothing further comes.
        (format!("{head}X: "), 408),
        (format!("{head}Content-Length: 100\r\n\r\n{{\"prompt\":"), 408),
        (format!("{head}Content-Length: {}\r\n\r\n{large}", large.len()), 413),
        (chunked, 413),
        (format!("{head}X: {}\r\n\r\n", "y".repeat(20_000)), 431),
        (format!("{head}X: {}\r\n\r\n", "y".repeat(1 << 20)), 431),
        ("GET / HTTP/1.1\r\n\r\n".to_string(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n".to_string(), 400),
        ("\u{1}\u{2}\u{3} garbage\r\n\r\n".to_string(), 400),
        ("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_string(), 421),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n".to_string(), 403),
    ];
    for (request, expected) in cases {
        let begun = Instant::now();
        let response = server.exchange(request.as_bytes());
        let what = &request[..request.len().min(100)];
        assert_eq!(status(&response), expected, "{what}: {response}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
    }
    let late = server.exchange(format!("{head}X: ").as_bytes());
    assert!(body(&late)["error"]["message"].as_str().unwrap().contains("within 0.4 s"), "{late}");
    // A byte at a time is no faster.
    let mut stream = server.connect();
    for byte in format!("{head}X: {}", "z".repeat(100)).bytes() {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(stream);
    // A client that is silent is let go without a word.
    assert_eq!(server.exchange(b""), "");
    assert_eq!(status(&server.get("/health")), 200);
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = Server::start(&["--max-connections", "4", "--header-timeout", "1"]);
    let silent: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    assert_eq!(status(&server.get("/health")), 200);
    drop(silent);
}

#[test]
fn a_stage_that_ran_again_is_seen_at_the_next_request() {
    let project = Project::new(
        "stages:\n  chat: { kind: import, inputs: { files: 'source/*' } }\n  other: { kind: import, inputs: { files: 'none/*' } }\n",
    );
    write_model(&project.path("source"), 1);
    write_model(&project.path("none"), 3);
    assert_eq!(project.tinylm(&["run", "p", "chat"]).code, 0);
    let server = Server::in_project(project, &[]);
    // What has not run is no model.
    assert_eq!(server.said["models"], json!(["p:chat"]));
    let ask = || {
        // Texts of untrained models may be alike, their log-probabilities are not.
        let request = json!({"model": "p:chat", "prompt": "The cat", "temperature": 0, "logprobs": 0});
        body(&server.post("/v1/completions", &request))["choices"][0]["logprobs"].clone()
    };
    let before = ask();
    write_model(&server.project.path("source"), 2);
    assert_eq!(ask(), before);
    assert_eq!(server.project.tinylm(&["run", "p", "chat"]).code, 0);
    assert_ne!(ask(), before);
    assert_eq!(status(&server.get("/v1/models/p:chat")), 200);
    assert_eq!(status(&server.get("/v1/models/p%3Achat")), 200);
}

#[cfg(unix)]
#[test]
fn it_ends_soon_after_a_signal_and_tells_who_waits() {
    use nix::sys::signal::Signal;
    let server = Server::start(&["--max-tokens", "1000000"]);
    let mut stream = server.connect();
    stream.write_all(&server.posted("/v1/completions", &endless())).unwrap();
    stream.read_exact(&mut [0; 100]).unwrap();
    let idle = server.connect();
    // It takes what it is told while it waits for the end.
    let end = std::thread::spawn(move || rest(&mut stream));
    let (at, begun) = (server.at, Instant::now());
    assert_eq!(server.end(Signal::SIGTERM), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let end = end.join().unwrap();
    assert!(
        end.contains("the server stops") && end.contains("[DONE]"),
        "{}",
        &end[end.len().saturating_sub(300)..]
    );
    assert!(TcpStream::connect(at).is_err());
    drop(idle);
    let begun = Instant::now();
    assert_eq!(Server::start(&[]).end(Signal::SIGINT), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_cannot_be_served_is_told_at_once() {
    let server = Server::start(&[]);
    let port = server.at.port().to_string();
    let cases = [
        (vec!["--port", &port], "cannot listen at 127.0.0.1:", "--port"),
        (vec!["--port", "0", "--host", "0.0.0.0"], "there is no token", "--token-file"),
        (vec!["--port", "0", "--model", "nothing"], "there is no `nothing`", "PIPELINE:STAGE"),
        (vec!["--port", "0", "--model", "m", "--model", "m"], "given twice", "NAME=TARGET"),
        (vec!["--port", "0", "--token-file", "empty"], "`empty` holds no token", "8 or more"),
        (vec!["--memory", "much"], "expected a size", ""),
    ];
    server.project.write("empty", "\n");
    for (args, what, help) in cases {
        let ran = server.project.tinylm(&[vec!["serve"], args.clone()].concat());
        assert!(
            ran.code == 2 && ran.stderr.contains(what) && ran.stderr.contains(help),
            "{args:?}: {}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "", "{args:?}");
    }
}

#[test]
fn a_token_is_asked_for_beyond_loopback_and_models_have_names() {
    let project = Project::new("stages: {}\n");
    write_model(&project.path("m"), 1);
    project.write("token", "0123456789abcdef\nanything\n");
    let args = ["--host", "0.0.0.0", "--token-file", "token", "--model", "small=m"];
    let server = Server::in_project(project, &args);
    assert_eq!((&server.said["models"], &server.said["token"]), (&json!(["small"]), &json!(true)));
    let get = |path: &str, header: &str| {
        let host = "Host: anything.example";
        status(&server.exchange(
            format!("GET {path} HTTP/1.1\r\n{host}\r\n{header}Connection: close\r\n\r\n").as_bytes(),
        ))
    };
    assert_eq!(get("/v1/models", ""), 401);
    assert_eq!(get("/v1/models", "Authorization: Bearer 0123456789abcdeg\r\n"), 401);
    assert_eq!(get("/v1/models/small", "Authorization: Bearer 0123456789abcdef\r\n"), 200);
    assert_eq!(get("/", ""), 200);
}

#[test]
fn the_start_says_where_to_look() {
    let project = Project::new("stages: {}\n");
    let mut child = project.command(&["serve", "--port", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> =
        BufReader::new(child.stdout.as_mut().unwrap()).lines().take(5).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lines[0].contains("no models"), "{lines:?}");
    assert!(lines[1].starts_with("chat") && lines[1].contains("http://127.0.0.1:"), "{lines:?}");
    assert!(lines[4].ends_with("/v1"), "{lines:?}");
}
