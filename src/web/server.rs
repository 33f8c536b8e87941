//! Connections: how many, how slow, and how they end.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWrite;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::{ApiError, Limits, Shared, router};
use crate::base::Result;

/// How many times the size that headers may have is read of them.
const HEADER_ROOM: usize = 4;

/// After requests were made to fail, for what they say to go out.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Answers requests until `stop`; those that go on then have some time to end by themselves.
///
/// # Errors
/// None that a client causes.
pub async fn serve(listener: TcpListener, app: Shared, stop: impl Future + Send) -> Result<()> {
    let slots = Arc::new(Semaphore::new(app.limits.connections));
    let (tell, told) = watch::channel(false);
    let service = TowerToHyperService::new(router(app.clone()));
    let mut stop = pin!(stop);
    loop {
        let next = async { (slots.clone().acquire_owned().await, listener.accept().await) };
        let (slot, accepted) = tokio::select! {
            _ = &mut stop => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // Too many open files, or a client that is gone already.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let connection = connection(stream, service.clone(), app.limits.clone(), told.clone());
        let app = app.clone();
        tokio::spawn(async move {
            app.metrics.connections.fetch_add(1, Relaxed);
            connection.await;
            app.metrics.connections.fetch_sub(1, Relaxed);
            drop(slot);
        });
    }
    drop((listener, told));
    // An error means that there is no connection.
    let _ = tell.send(true);
    if tokio::time::timeout(app.limits.shutdown_time, tell.closed()).await.is_err() {
        app.models.stop();
        let _ = tokio::time::timeout(LAST_WORDS, tell.closed()).await;
    }
    Ok(())
}

type Connection = http1::Connection<TokioIo<TcpStream>, TowerToHyperService<axum::Router>>;

/// Serves the requests of a connection; told to stop, it ends with the request that goes on.
async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    // Only to be faster.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_time);
    // More than is allowed, so that mostly we refuse what is too large, and say so in our way.
    builder.max_buf_size(HEADER_ROOM * limits.header_bytes);
    let mut connection = builder.serve_connection(TokioIo::new(stream), service);
    // Tells, as long as it is there, that the connection is open.
    let _open = stop.clone();
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    let ended = tokio::select! {
        ended = served(&mut connection) => ended,
        () = stopped => {
            Pin::new(&mut connection).graceful_shutdown();
            served(&mut connection).await
        }
    };
    let error = ended.err().filter(hyper::Error::is_timeout).map(|_| {
        let seconds = limits.header_time.as_secs_f64();
        let what = format!("the request did not come within {seconds} s");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, what)
    });
    let parts = connection.into_parts();
    // A client that sent nothing did not ask.
    let error = error.filter(|_| !parts.read_buf.is_empty());
    // One that does not listen has lost nothing.
    let _ = tokio::time::timeout(LAST_WORDS, close(parts.io.into_inner(), error)).await;
}

async fn served(connection: &mut Connection) -> hyper::Result<()> {
    poll_fn(|context| connection.poll_without_shutdown(context)).await
}

/// Closes a connection with an error that it is to be told. What it still sends is read for a while: else the
/// system would drop what it was told.
async fn close(mut stream: TcpStream, error: Option<ApiError>) -> io::Result<()> {
    if let Some(error) = error {
        write(&stream, error_text(&error).as_bytes()).await?;
    }
    poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await?;
    let mut ignored = [0; 4096];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut ignored) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

fn error_text(error: &ApiError) -> String {
    let (status, body) = (error.status, error.to_json().to_string());
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
