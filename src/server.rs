//! The HTTP server: bounded in connections, headers and time, and stopped without cutting a request short.

mod activity;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use ipnet::IpNet;
use sendtrail_ingest::Ingest;
use sendtrail_schemas::networks::{ClientAddress, client};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::config;
use activity::{Activity, Patience, Watched};

/// Headers of one request.
const MAX_HEADERS: usize = 100;

/// How the server is bounded.
pub struct ServerOptions {
    listen: String,
    max_connections: usize,
    max_header_bytes: usize,
    header_timeout: Duration,
    body_timeout: Duration,
    grace: Duration,
    trusted_proxies: Arc<[IpNet]>,
}

impl ServerOptions {
    /// From the settings.
    pub fn of(config: &config::Server) -> Self {
        Self {
            listen: config.listen.clone(),
            max_connections: config.max_connections,
            max_header_bytes: config.max_header_bytes,
            header_timeout: Duration::from_millis(config.header_timeout_ms),
            body_timeout: Duration::from_millis(config.body_timeout_ms),
            grace: Duration::from_secs(config.shutdown_grace_seconds),
            trusted_proxies: config.trusted_proxies.clone().into(),
        }
    }
}

/// A running server.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    ingest: Ingest,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(options: &ServerOptions, router: Router, ingest: Ingest) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(&options.listen).await.with_context(|| format!("listen on {}", options.listen))?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(options.header_timeout)
            .max_buf_size(options.max_header_bytes)
            .max_headers(MAX_HEADERS);
        builder.http2().timer(TokioTimer::new()).max_header_list_size(options.max_header_bytes as u32);
        let accepting = Accepting {
            builder,
            router,
            room: Arc::new(Semaphore::new(options.max_connections)),
            patience: Patience {
                idle: options.header_timeout,
                stalled: options.body_timeout.max(options.header_timeout),
            },
            grace: options.grace,
            trusted_proxies: options.trusted_proxies.clone(),
            connections: TaskTracker::new(),
        };
        let task = tokio::spawn(accepting.run(listener, stop.clone()));
        Ok(Self { address, stop, task, ingest })
    }

    /// Refuses what is new and waits for what is under way.
    pub async fn stop(self) {
        self.ingest.close();
        self.stop.cancel();
        // A panic in it was logged by the panic hook.
        let _ = self.task.await;
    }
}

/// Where a request came from.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> ClientAddress {
    // One that is no text tells nothing, and stops whoever reads on.
    let forwarded = headers.get_all("x-forwarded-for").iter().map(|line| line.to_str().unwrap_or_default());
    ClientAddress(client(peer, &forwarded.collect::<Vec<_>>(), trusted))
}

struct Accepting {
    builder: Builder<TokioExecutor>,
    router: Router,
    room: Arc<Semaphore>,
    patience: Patience,
    grace: Duration,
    trusted_proxies: Arc<[IpNet]>,
    connections: TaskTracker,
}

impl Accepting {
    async fn run(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accept = async {
                // Never closed, so there is always a permit to wait for.
                let permit = self.room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>((listener.accept().await?, permit))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok(((stream, peer), permit)) => self.serve(stream, peer.ip(), permit, stop.clone()),
                Err(cause) => {
                    // Out of descriptors, most likely: let some connections end.
                    tracing::warn!(%cause, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        // Not before nothing holds a part of the server any more.
        self.connections.close();
        if tokio::time::timeout(self.grace, self.connections.wait()).await.is_err() {
            tracing::warn!("requests under way were cut short");
        }
    }

    fn serve(&self, stream: TcpStream, peer: IpAddr, permit: OwnedSemaphorePermit, stop: CancellationToken) {
        // Small answers are not held back; a socket that refuses this is no worse.
        let _ = stream.set_nodelay(true);
        let router = self.router.clone();
        let trusted = self.trusted_proxies.clone();
        let (activity, patience) = (Activity::new(), self.patience);
        let asked = activity.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let address = client_address(peer, request.headers(), &trusted);
            request.extensions_mut().insert(address);
            asked.clone().answer(router.clone().call(request))
        });
        let stream = TokioIo::new(Watched::new(stream, activity.clone()));
        let connection = self.builder.serve_connection_with_upgrades(stream, service).into_owned();
        self.connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                biased;
                // First: what has come by now is taken, and answered.
                ended = connection.as_mut() => Some(ended),
                // Also before it has said which HTTP it speaks, and with streams that are open but ask nothing.
                () = activity.idle(patience) => None,
                () = stop.cancelled() => None,
            };
            let ended = match ended {
                Some(ended) => ended,
                None => {
                    // What was asked by now is answered, and whoever asks next is told that nobody hears it.
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => ended,
                        () = activity.idle(patience) => Ok(()),
                    }
                }
            };
            if let Err(cause) = ended {
                tracing::debug!(%cause, "a connection ended");
            }
            drop(permit);
        });
    }
}
