//! URL sources: bytes over http or https into a file whose sha256 was declared beforehand.
//!
//! Received bytes are kept in a partial file named by the digest, so that an interrupted download is
//! resumed, in this run or a later one. Nothing appears under the final name before its digest is verified.
//! Independent of the store: the caller gives the paths.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use sha2::Digest as _;
use ureq::http::{HeaderMap, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use crate::base::{Error, Monitor, Progress, Result, fs};

/// A SHA-256 as URL sources declare it: 64 hex digits, with or without `sha256:` in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sha256([u8; 32]);

impl FromStr for Sha256 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = text.trim();
        let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
        let wrong = |why: String| {
            Error::input(format!("`{text}` is not a sha256: {why}"))
                .help("expected 64 hex digits, as `sha256sum FILE` prints them")
        };
        if let Some(c) = hex.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(wrong(format!("{c:?} is not a hex digit")));
        }
        if hex.len() != 64 {
            return Err(wrong(format!("it has {} digits", hex.len())));
        }
        let digit = |i: usize| hex.as_bytes().get(i).and_then(|b| char::from(*b).to_digit(16)).unwrap_or(0);
        Ok(Sha256(std::array::from_fn(|i| (digit(2 * i) << 4 | digit(2 * i + 1)) as u8)))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Downloads `url` to the file `into`, with the platform's root certificates (a file named by
/// `SSL_CERT_FILE` instead, when that is set) and the proxy of the environment.
///
/// `partial_dir` must be on the same file system as `into`. Two processes may ask for the same
/// digest at once: the second waits and finds the first one's file.
///
/// # Errors
/// An invalid URL, another scheme than http or https, a malformed sha256, a status that is not a success, a
/// connection that keeps breaking, an untrusted certificate, content of another digest, a full disk,
/// cancellation.
pub fn download(
    url: &str,
    sha256: &str,
    into: &Path,
    partial_dir: &Path,
    monitor: &dyn Monitor,
) -> Result<()> {
    Fetcher::new().fetch(url, sha256, into, partial_dir, monitor)
}

/// Settings of downloads: trusted certificates and retries.
pub struct Fetcher {
    agent: Agent,
    /// Attempts in a row without a further byte before giving up.
    attempts: u32,
    /// The delay after the first of them; doubled after each further one.
    backoff: Duration,
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::new()
    }
}

impl Fetcher {
    /// With the platform's root certificates.
    pub fn new() -> Self {
        Self::with(RootCerts::PlatformVerifier, Proxy::try_from_env())
    }

    /// Trusts the certificates of this PEM text, and no others.
    ///
    /// # Errors
    /// When it is not PEM or holds no certificate.
    pub fn trusting(pem: &str) -> Result<Self> {
        Ok(Self::with(roots(pem)?, Proxy::try_from_env()))
    }

    fn with(roots: RootCerts, proxy: Option<Proxy>) -> Self {
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .proxy(proxy)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("tinylm/", env!("CARGO_PKG_VERSION")))
            .build();
        Fetcher { agent: config.new_agent(), attempts: 5, backoff: Duration::from_millis(500) }
    }

    /// [`download`] as this fetcher does it.
    ///
    /// # Errors
    /// As [`download`].
    pub fn fetch(
        &self,
        url: &str,
        sha256: &str,
        into: &Path,
        partial_dir: &Path,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let source = Source { url, phase: phase(&parse_url(url)?), monitor };
        let expected: Sha256 = sha256.parse()?;
        let mut partial = Partial::open(partial_dir.join(format!("{expected}.partial")), &source)?;
        if fs::stat(into).is_some() && sha256_of(&mut fs::open(into)?, into, &source)?.0 == expected {
            return partial.remove();
        }
        if partial.len == 0 || partial.digest() != expected {
            self.complete(&mut partial, &expected, &source)?;
        }
        fs::rename(&partial.path, into)
    }

    /// Attempts until the partial file is whole and its digest right.
    fn complete(&self, partial: &mut Partial, expected: &Sha256, source: &Source) -> Result<()> {
        let mut resumed = partial.len > 0;
        let mut most = partial.len;
        let mut failures = 0;
        loop {
            match self.attempt(partial, source) {
                Ok(()) if partial.digest() == *expected => return Ok(()),
                Ok(()) if resumed => {
                    // The parts may be of two versions of the file: retry from the start.
                    tracing::warn!("`{}`: the resumed file has a wrong sha256; starting over", source.url);
                    partial.clear()?;
                    resumed = false;
                }
                Ok(()) => return Err(wrong_content(partial, expected, source)),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Broken { why, wait }) => {
                    failures = if partial.len > most { 1 } else { failures + 1 };
                    most = most.max(partial.len);
                    resumed |= partial.len > 0;
                    if failures >= self.attempts {
                        return Err(gave_up(&why, failures, partial, source));
                    }
                    tracing::warn!("`{}`: {why}; trying again", source.url);
                    pause(wait.unwrap_or(self.backoff * (1 << (failures - 1).min(5))), source.monitor)?;
                }
            }
        }
    }

    /// One request, and its body appended to the partial file.
    fn attempt(&self, partial: &mut Partial, source: &Source) -> Result<(), Stop> {
        let pieces = self.request(source.url, partial);
        let Some(Piece::Head(head)) = next(&pieces, source.monitor)? else {
            return Err(Stop::broken("the connection closed before an answer"));
        };
        let total = accept(&head, partial, source)?;
        while let Some(piece) = next(&pieces, source.monitor)? {
            if let Piece::Body(bytes) = piece {
                partial.append(&bytes)?;
                source.progress(partial.len, total);
            }
        }
        match total {
            Some(total) if partial.len < total => {
                Err(Stop::broken(format!("it ended after {} of {total} bytes", partial.len)))
            }
            _ => Ok(()),
        }
    }

    /// Starts a thread that requests the missing bytes. A thread, because a blocked network read cannot be
    /// cancelled; it ends by itself once the receiver is dropped.
    fn request(&self, url: &str, partial: &Partial) -> Receiver<Result<Piece, Stop>> {
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if partial.len > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", partial.len));
            if let Some(etag) = &partial.etag {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        let (sender, pieces) = sync_channel(16);
        thread::spawn(move || {
            if let Err(stop) = transfer(request, &sender) {
                let _ = sender.send(Err(stop));
            }
        });
        pieces
    }
}

fn roots(pem: &str) -> Result<RootCerts> {
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        match item {
            Ok(PemItem::Certificate(certificate)) => roots.push(certificate),
            Ok(_) => {}
            Err(e) => return Err(Error::input("the root certificates are not valid PEM").cause(e)),
        }
    }
    if roots.is_empty() {
        return Err(Error::input("there is no certificate among the root certificates"));
    }
    Ok(RootCerts::new_with_certs(&roots))
}

/// The source of the bytes and the monitor.
struct Source<'a> {
    url: &'a str,
    phase: String,
    monitor: &'a dyn Monitor,
}

impl Source<'_> {
    fn progress(&self, done: u64, total: Option<u64>) {
        let note = String::new();
        self.monitor.progress(Progress { phase: self.phase.clone(), done, total, unit: "B", note });
    }
}

fn parse_url(url: &str) -> Result<Uri> {
    let wrong = |why: &str| Error::input(format!("cannot download `{url}`: {why}"));
    match url.split_once("://") {
        Some((scheme, _)) if ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) => {}
        Some((other, _)) => {
            return Err(wrong(&format!("the scheme `{other}` is not supported"))
                .help("use http or https, or a file by its path"));
        }
        None => return Err(wrong("it has no scheme").help("begin it with `https://` or `http://`")),
    }
    let uri: Uri = url.parse().map_err(|e| {
        wrong("it is not a URL").cause(e).help("write other characters than ASCII, and spaces, as %XX")
    })?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(wrong("it names no host"));
    }
    Ok(uri)
}

fn phase(uri: &Uri) -> String {
    let name = uri.path().rsplit('/').find(|part| !part.is_empty());
    format!("download {}", name.or(uri.host()).unwrap_or_default())
}

/// The partial file: its size, its digest so far, and the lock that permits to extend it.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: sha2::Sha256,
    /// The ETag of the content that the bytes are of; only within one run.
    etag: Option<String>,
}

impl Partial {
    /// Opens the partial file of an earlier run, or an empty one; waits for another process that extends it.
    fn open(path: PathBuf, source: &Source) -> Result<Self> {
        let mut file = loop {
            match fs::open_exclusive(&path)? {
                Some(file) => break file,
                None => pause(Duration::from_millis(100), source.monitor)?,
            }
        };
        let (_, hasher, len) = sha256_of(&mut file, &path, source)?;
        Ok(Partial { path, file, len, hasher, etag: None })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, &e))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io("empty", &self.path, &e))?;
        self.file.seek(SeekFrom::Start(0)).map_err(|e| Error::io("rewind", &self.path, &e))?;
        self.hasher = sha2::Sha256::new();
        self.len = 0;
        self.etag = None;
        Ok(())
    }

    fn digest(&self) -> Sha256 {
        Sha256(self.hasher.clone().finalize().into())
    }

    fn remove(&self) -> Result<()> {
        fs::remove(&self.path)
    }
}

/// Hashes a file from its present position to its end; gives the hasher, to be continued, and how many bytes.
fn sha256_of(file: &mut File, path: &Path, source: &Source) -> Result<(Sha256, sha2::Sha256, u64)> {
    let mut hasher = sha2::Sha256::new();
    let mut len = 0;
    let mut buffer = vec![0; 1 << 18];
    loop {
        source.monitor.check()?;
        let n = file.read(&mut buffer).map_err(|e| Error::io("read", path, &e))?;
        if n == 0 {
            return Ok((Sha256(hasher.clone().finalize().into()), hasher, len));
        }
        hasher.update(&buffer[..n]);
        len += n as u64;
    }
}

/// Why an attempt ended before the file was whole.
enum Stop {
    /// Trying again would not help.
    Failed(Error),
    /// Trying again may help, after `wait` when the server asked for it.
    Broken { why: String, wait: Option<Duration> },
}

impl Stop {
    fn broken(why: impl Into<String>) -> Self {
        Stop::Broken { why: why.into(), wait: None }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// Messages of the transferring thread: one head, then the body.
enum Piece {
    Head(Head),
    Body(Vec<u8>),
}

struct Head {
    status: u16,
    headers: HeaderMap,
}

impl Head {
    fn get(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `bytes START-END/TOTAL`, the total absent where the server wrote `*`.
    fn content_range(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = self.get(header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
        Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
    }
}

type Request = ureq::RequestBuilder<ureq::typestate::WithoutBody>;

fn transfer(request: Request, pieces: &SyncSender<Result<Piece, Stop>>) -> Result<(), Stop> {
    let response = request.call().map_err(stop)?;
    let (parts, body) = response.into_parts();
    let head = Head { status: parts.status.as_u16(), headers: parts.headers };
    let mut body = body.into_reader();
    let mut piece = Piece::Head(head);
    // A send fails when the receiver was dropped, on cancellation.
    while pieces.send(Ok(piece)).is_ok() {
        let mut buffer = vec![0; 1 << 16];
        match body.read(&mut buffer).map_err(|e| stop(ureq::Error::from(e)))? {
            0 => break,
            n => buffer.truncate(n),
        }
        piece = Piece::Body(buffer);
    }
    Ok(())
}

/// Which failures of a transfer are transient.
fn stop(error: ureq::Error) -> Stop {
    use std::io::ErrorKind::InvalidData;
    use ureq::Error as E;
    let untrusted = |e: &dyn fmt::Display| {
        Error::input("no secure connection").cause(e).help(
            "the environment variable SSL_CERT_FILE can name a PEM file with the certificate of your own authority",
        )
    };
    match error {
        // rustls reports certificate errors as io errors.
        E::Io(e) if e.kind() == InvalidData => Stop::Failed(untrusted(&e)),
        E::Rustls(_) | E::Tls(_) | E::Pem(_) => Stop::Failed(untrusted(&error)),
        E::Io(e) => Stop::broken(e.to_string()),
        E::Timeout(_) => Stop::broken("nothing came for too long"),
        E::ConnectionFailed | E::Protocol(_) | E::BodyStalled => Stop::broken(error.to_string()),
        other => Stop::Failed(Error::input(other.to_string())),
    }
}

/// The next piece; `None` at the end of the body.
fn next(pieces: &Receiver<Result<Piece, Stop>>, monitor: &dyn Monitor) -> Result<Option<Piece>, Stop> {
    loop {
        monitor.check()?;
        match pieces.recv_timeout(Duration::from_millis(100)) {
            Ok(piece) => return piece.map(Some),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Prepares the partial file for the body that follows; returns the size of the whole file where the server
/// gave it.
fn accept(head: &Head, partial: &mut Partial, source: &Source) -> Result<Option<u64>, Stop> {
    let total = match head.status {
        200 => {
            partial.clear()?;
            head.get(header::CONTENT_LENGTH).and_then(|n| n.parse().ok())
        }
        206 => match head.content_range() {
            Some((start, total)) if start == partial.len => total,
            found => {
                let why = match found {
                    Some((start, _)) => format!("asked for byte {} on, got {start} on", partial.len),
                    None => "it sent a part without saying which".to_string(),
                };
                partial.clear()?;
                return Err(Stop::broken(why));
            }
        },
        416 if partial.len > 0 => {
            partial.clear()?;
            return Err(Stop::broken("the server has fewer bytes than the partial file"));
        }
        status => return Err(refused(status, head, source)),
    };
    // A weak ETag does not guarantee the same bytes.
    partial.etag = head.get(header::ETAG).filter(|tag| tag.starts_with('"')).map(str::to_string);
    Ok(total)
}

fn refused(status: u16, head: &Head, source: &Source) -> Stop {
    let reason = ureq::http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    let what = format!("the server answered {status} {}", reason.unwrap_or_default());
    if matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504) {
        let wait = head.get(header::RETRY_AFTER).and_then(|s| s.trim().parse().ok());
        let wait = wait.map(|seconds: u64| Duration::from_secs(seconds.min(60)));
        return Stop::Broken { why: what.trim_end().to_string(), wait };
    }
    Stop::Failed(Error::input(format!("cannot download `{}`: {}", source.url, what.trim_end())))
}

fn gave_up(why: &str, failures: u32, partial: &Partial, source: &Source) -> Error {
    let error =
        Error::input(format!("cannot download `{}`: it failed {failures} times in a row", source.url))
            .cause(why);
    match partial.len {
        0 => error,
        n => error.help(format!("{n} bytes are kept: the next run goes on from there")),
    }
}

fn wrong_content(partial: &Partial, expected: &Sha256, source: &Source) -> Error {
    let found = partial.digest();
    let removed = match partial.remove() {
        Ok(()) => "what was downloaded is removed".to_string(),
        Err(e) => format!("what was downloaded could not be removed: {e}"),
    };
    Error::input(format!(
        "`{}` has another content than declared ({} bytes; {removed})\n  expected sha256 {expected}\n  found    sha256 {found}",
        source.url, partial.len
    ))
    .help("when the new content is wanted, declare its sha256")
}

fn pause(wait: Duration, monitor: &dyn Monitor) -> Result<()> {
    let until = Instant::now() + wait;
    loop {
        monitor.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    /// What the test server saw of a request.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Asked {
        path: String,
        range: Option<u64>,
        if_range: Option<String>,
    }

    struct Reply {
        head: String,
        body: Vec<u8>,
        /// Closes the connection after so many bytes of the body.
        cut: Option<usize>,
    }

    impl Reply {
        fn new(status: &str, headers: &str, body: &[u8]) -> Self {
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n");
            Reply { head, body: body.to_vec(), cut: None }
        }

        fn cut(mut self, at: usize) -> Self {
            self.cut = Some(at);
            self
        }
    }

    type Script = Box<dyn Fn(usize, &Asked) -> Reply + Send + Sync>;
    type Tls = Option<Arc<rustls::ServerConfig>>;

    /// A server of one connection per request; it ends with the test's process.
    struct Server {
        url: String,
        asked: Arc<Mutex<Vec<Asked>>>,
    }

    impl Server {
        fn start(script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
            Self::start_with(None, Box::new(script))
        }

        fn start_with(tls: Tls, script: Script) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let scheme = if tls.is_some() { "https" } else { "http" };
            let asked = Arc::new(Mutex::new(Vec::new()));
            let log = asked.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    match &tls {
                        None => answer(stream, &log, &script),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                            answer(rustls::StreamOwned::new(connection, stream), &log, &script);
                        }
                    }
                }
            });
            Server { url: format!("{scheme}://localhost:{port}/data/a.txt"), asked }
        }

        fn asked(&self) -> Vec<Asked> {
            self.asked.lock().unwrap().clone()
        }
    }

    fn answer<S: Read + Write>(stream: S, log: &Mutex<Vec<Asked>>, script: &Script) {
        let mut reader = BufReader::new(stream);
        let mut asked = Asked::default();
        let mut line = String::new();
        // A client that refuses the certificate closes the connection here.
        while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
            let (name, value) = line.trim_end().split_once([' ', ':']).unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "get" => asked.path = value.split(' ').next().unwrap_or_default().to_string(),
                "range" => {
                    asked.range =
                        value.trim().strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().ok()
                }
                "if-range" => asked.if_range = Some(value.trim().to_string()),
                _ => {}
            }
            line.clear();
        }
        if asked.path.is_empty() {
            return;
        }
        let number = log.lock().unwrap().len();
        log.lock().unwrap().push(asked.clone());
        let reply = script(number, &asked);
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
        let stream = reader.get_mut();
        let _ = stream.write_all(reply.head.as_bytes()).and_then(|()| stream.write_all(body));
        let _ = stream.flush();
    }

    /// A server's right answer, with or without a range.
    fn serve(content: &[u8], asked: &Asked) -> Reply {
        match asked.range {
            None => Reply::new("200 OK", "ETag: \"v1\"\r\n", content),
            Some(start) if start as usize >= content.len() => Reply::new(
                "416 Range Not Satisfiable",
                &format!("Content-Range: bytes */{}\r\n", content.len()),
                b"",
            ),
            Some(start) => {
                let range =
                    format!("Content-Range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
                Reply::new(
                    "206 Partial Content",
                    &format!("{range}ETag: \"v1\"\r\n"),
                    &content[start as usize..],
                )
            }
        }
    }

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Place { folder: tempfile::tempdir().unwrap() }
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("blobs/a")
        }

        fn partials(&self) -> PathBuf {
            self.folder.path().join("partial")
        }

        fn partial(&self, sha256: &str) -> PathBuf {
            self.partials().join(format!("{sha256}.partial"))
        }

        fn fetch(&self, url: &str, sha256: &str) -> Result<()> {
            quick(RootCerts::PlatformVerifier).fetch(url, sha256, &self.file(), &self.partials(), &Quiet)
        }

        fn files(&self) -> usize {
            fs::files_below(self.folder.path()).unwrap().len()
        }
    }

    /// Does not wait long, and goes to the test's server whatever proxy the environment names.
    fn quick(roots: RootCerts) -> Fetcher {
        let mut fetcher = Fetcher::with(roots, None);
        fetcher.backoff = Duration::from_millis(1);
        fetcher.attempts = 3;
        fetcher
    }

    fn sha(bytes: &[u8]) -> String {
        Sha256(sha2::Sha256::digest(bytes).into()).to_string()
    }

    fn content() -> Vec<u8> {
        (0..200_000u32).flat_map(|i| (i % 251).to_le_bytes()).collect()
    }

    #[test]
    fn a_file_arrives_whole_and_alone() {
        let server = Server::start(|_, asked| serve(&content(), asked));
        let place = Place::new();
        place.fetch(&server.url, &format!("sha256:{}", sha(&content()).to_uppercase())).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), content());
        assert_eq!(place.files(), 1, "the partial file is gone");
        place.fetch(&server.url, &sha(&content())).unwrap();
        assert_eq!(server.asked().len(), 1, "what is there is not asked for again");
    }

    #[test]
    fn a_break_is_resumed_with_the_version_that_was_begun() {
        let server = Server::start(|number, asked| {
            let reply = serve(&content(), asked);
            if number < 2 { reply.cut(100_000) } else { reply }
        });
        let place = Place::new();
        place.fetch(&server.url, &sha(&content())).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), content());
        let ranges: Vec<_> = server.asked().iter().map(|a| a.range).collect();
        assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
        assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"v1\""));
    }

    #[test]
    fn a_later_run_goes_on_from_what_an_earlier_one_left() {
        let server = Server::start(|_, asked| serve(&content(), asked));
        let (place, sha) = (Place::new(), sha(&content()));
        fs::write(&place.partial(&sha), &content()[..1234]).unwrap();
        place.fetch(&server.url, &sha).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), content());
        assert_eq!(server.asked()[0].range, Some(1234));
    }

    #[test]
    fn a_partial_file_of_other_content_is_started_over() {
        let server = Server::start(|_, asked| serve(&content(), asked));
        let sha = sha(&content());
        for left in [vec![9u8; 1234], vec![9u8; 1_000_000]] {
            let place = Place::new();
            fs::write(&place.partial(&sha), &left).unwrap();
            place.fetch(&server.url, &sha).unwrap();
            assert_eq!(fs::read(&place.file()).unwrap(), content());
        }
    }

    #[test]
    fn a_server_without_ranges_is_asked_for_the_whole_file_again() {
        let server = Server::start(|number, _| {
            let reply = Reply::new("200 OK", "", &content());
            if number == 0 { reply.cut(100_000) } else { reply }
        });
        let place = Place::new();
        place.fetch(&server.url, &sha(&content())).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), content());
    }

    #[test]
    fn a_range_other_than_asked_for_is_not_taken() {
        let server = Server::start(|number, asked| match number {
            0 => serve(&content(), asked).cut(1000),
            1 => Reply::new("206 Partial Content", "Content-Range: bytes 5-9/800000\r\n", b"xxxxx"),
            _ => serve(&content(), asked),
        });
        let place = Place::new();
        place.fetch(&server.url, &sha(&content())).unwrap();
        assert_eq!(server.asked()[2].range, None);
    }

    #[test]
    fn a_server_that_keeps_breaking_is_given_up_and_what_came_is_kept() {
        let server =
            Server::start(|number, asked| serve(&content(), asked).cut(if number == 0 { 70_000 } else { 0 }));
        let (place, sha) = (Place::new(), sha(&content()));
        let error = place.fetch(&server.url, &sha).unwrap_err().to_string();
        assert!(error.contains("3 times in a row") && error.contains("70000 bytes are kept"), "{error}");
        assert_eq!(fs::size(&place.partial(&sha)).unwrap(), 70_000);
        assert!(!place.file().exists());
    }

    #[test]
    fn wrong_content_is_refused_and_removed() {
        let server = Server::start(|_, asked| serve(b"other", asked));
        let (place, wanted) = (Place::new(), sha(b"wanted"));
        let error = place.fetch(&server.url, &wanted).unwrap_err().to_string();
        for part in [server.url.as_str(), &wanted, &sha(b"other"), "is removed", "5 bytes"] {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
        assert_eq!(place.files(), 0);
    }

    #[test]
    fn a_status_is_told_at_once_and_a_passing_one_is_tried_again() {
        let server = Server::start(|_, _| Reply::new("404 Not Found", "", b"no such page"));
        let error = Place::new().fetch(&server.url, &sha(b"")).unwrap_err().to_string();
        assert!(error.contains("404 Not Found") && error.contains(&server.url), "{error}");
        assert_eq!(server.asked().len(), 1);

        let server = Server::start(|number, asked| match number {
            0 => Reply::new("503 Service Unavailable", "Retry-After: 0\r\n", b""),
            _ => serve(b"text", asked),
        });
        Place::new().fetch(&server.url, &sha(b"text")).unwrap();
        assert_eq!(server.asked().len(), 2);
    }

    #[test]
    fn redirects_are_followed_and_a_ring_of_them_is_refused() {
        let server = Server::start(|_, asked| match asked.path.as_str() {
            "/there" => serve(b"text", asked),
            _ => Reply::new("302 Found", "Location: /there\r\n", b""),
        });
        let place = Place::new();
        place.fetch(&server.url, &sha(b"text")).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), b"text");

        let server = Server::start(|_, _| Reply::new("302 Found", "Location: /data/a.txt\r\n", b""));
        let error = Place::new().fetch(&server.url, &sha(b"text")).unwrap_err().to_string();
        assert!(error.contains("too many redirects"), "{error}");
    }

    #[test]
    fn chunks_without_a_length_arrive_and_a_missing_end_is_a_break() {
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n0\r\n\r\n";
        let server = Server::start(move |number, _| {
            let head = if number == 0 { &whole[..whole.len() - 5] } else { whole };
            Reply { head: head.to_string(), body: Vec::new(), cut: None }
        });
        let place = Place::new();
        place.fetch(&server.url, &sha(b"text")).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), b"text");
    }

    #[test]
    fn invalid_urls_and_digests_are_refused() {
        let cases = [
            ("ftp://host/a", "`ftp` is not supported"),
            ("file:///etc/hosts", "`file` is not supported"),
            ("/data/a.txt", "has no scheme"),
            ("http://", "is not a URL"),
            ("https://host/a b", "is not a URL"),
        ];
        for (url, expected) in cases {
            let error = parse_url(url).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(url), "{url}: {error}");
        }
        for (text, expected) in
            [("12ab", "it has 4 digits"), ("blake3:00", "'l' is not a hex digit"), ("", "0 digits")]
        {
            let error = text.parse::<Sha256>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn nobody_there_is_an_error_that_names_the_url() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a", listener.local_addr().unwrap());
        drop(listener);
        let error = Place::new().fetch(&url, &sha(b"")).unwrap_err().to_string();
        assert!(error.contains(&url) && error.contains("3 times"), "{error}");
    }

    /// Stops once `limit` bytes have come; remembers the last report.
    struct Watch {
        limit: u64,
        done: AtomicU64,
        total: AtomicU64,
        stop: AtomicBool,
    }

    impl Monitor for Watch {
        fn progress(&self, progress: Progress) {
            self.done.store(progress.done, Ordering::SeqCst);
            self.total.store(progress.total.unwrap_or(0), Ordering::SeqCst);
            self.stop.fetch_or(progress.done >= self.limit, Ordering::SeqCst);
        }
        fn measure(&self, _: &str, _: f64, _: &str) {}
        fn cancelled(&self) -> bool {
            self.stop.load(Ordering::SeqCst)
        }
    }

    fn watch(limit: u64) -> Watch {
        Watch { limit, done: 0.into(), total: 0.into(), stop: false.into() }
    }

    #[test]
    fn it_reports_bytes_and_stops_on_request_and_goes_on_later() {
        let server = Server::start(|_, asked| serve(&content(), asked));
        let (place, sha) = (Place::new(), sha(&content()));
        let fetcher = quick(RootCerts::PlatformVerifier);
        let monitor = watch(200_000);
        let error = fetcher.fetch(&server.url, &sha, &place.file(), &place.partials(), &monitor).unwrap_err();
        assert!(error.is_cancelled(), "{error}");
        assert!(fs::size(&place.partial(&sha)).unwrap() >= 200_000 && !place.file().exists());
        let monitor = watch(u64::MAX);
        fetcher.fetch(&server.url, &sha, &place.file(), &place.partials(), &monitor).unwrap();
        assert_eq!(monitor.done.load(Ordering::SeqCst), 800_000);
        assert_eq!(monitor.total.load(Ordering::SeqCst), 800_000);
    }

    /// A server certificate for `localhost`, and the PEM of the authority that signed it.
    fn authority() -> (Arc<rustls::ServerConfig>, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_string()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], leaf_key.serialize_der().try_into().unwrap())
            .unwrap();
        (Arc::new(config), pem)
    }

    #[test]
    fn https_needs_an_authority_that_is_trusted() {
        let (config, pem) = authority();
        let server = Server::start_with(Some(config), Box::new(|_, asked| serve(&content(), asked)));
        let (place, sha) = (Place::new(), sha(&content()));
        let error = place.fetch(&server.url, &sha).unwrap_err().to_string();
        assert!(error.contains("no secure connection") && error.contains("SSL_CERT_FILE"), "{error}");
        assert!(server.asked().is_empty(), "nothing is asked of a server that is not trusted");

        let fetcher = quick(roots(&pem).unwrap());
        fetcher.fetch(&server.url, &sha, &place.file(), &place.partials(), &Quiet).unwrap();
        assert_eq!(fs::read(&place.file()).unwrap(), content());
        assert!(Fetcher::trusting("nothing").is_err());
    }

    #[test]
    fn two_at_once_wait_for_each_other() {
        let server = Server::start(|_, asked| serve(&content(), asked));
        let (place, sha) = (Place::new(), sha(&content()));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| place.fetch(&server.url, &sha).unwrap());
            }
        });
        assert_eq!(fs::read(&place.file()).unwrap(), content());
        assert_eq!(server.asked().len(), 1);
    }
}
