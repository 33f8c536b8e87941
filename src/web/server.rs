//! Connections: how many, how slow, and how they end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::{Limits, Shared, router};
use crate::base::{Error, Result};

/// Answers requests until `stop`; running ones then have `shutdown_time` to end.
///
/// # Errors
/// None that a client causes.
pub async fn serve(listener: TcpListener, app: Shared, stop: impl Future) -> Result<()> {
    let slots = Arc::new(Semaphore::new(app.limits.connections));
    let (tell, told) = watch::channel(false);
    let service = TowerToHyperService::new(router(app.clone()));
    let mut stop = pin!(stop);
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.map_err(|_| Error::bug("no slots"))?;
            Ok::<_, Error>((slot, listener.accept().await))
        };
        let (slot, accepted) = tokio::select! {
            _ = &mut stop => break,
            next = next => next?,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, service.clone(), app.limits.clone(), told.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            // Too many open files, or a client that is gone already.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    // An error means that nobody listens.
    let _ = tell.send(true);
    drop(told);
    let _ = tokio::time::timeout(app.limits.shutdown_time, tell.closed()).await;
    Ok(())
}

/// Serves the requests of a connection; told to stop, it ends with the request that runs.
async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let stopped = async move { stop.wait_for(|stop| *stop).await.map(drop) };
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stopped => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}
