//! Names to addresses: resolved once, and only addresses within reach are connected to. A name that leads elsewhere the
//! next moment gains nothing by it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver as Hickory, ResolverBuilder, TokioResolver};
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use super::Reach;

/// How long a DNS server may take, and how often one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// See [`PATIENCE`].
const ATTEMPTS: usize = 2;

/// Who is asked.
#[derive(Clone)]
enum Servers {
    /// Without a thread that waits: many names whose servers are silent harm nobody.
    Asked(Arc<TokioResolver>),
    /// The system looks names up, in threads.
    System,
}

/// Resolves names and keeps only addresses within reach.
#[derive(Clone)]
pub(super) struct Names {
    reach: Arc<Reach>,
    servers: Servers,
}

impl Names {
    /// Asks these DNS servers; those of the system, and its file of hosts, when there is none.
    pub(super) fn new(reach: Arc<Reach>, servers: &[SocketAddr]) -> Self {
        let builder = if servers.is_empty() { Hickory::builder_tokio() } else { Ok(named(servers)) };
        let resolver = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            (options.timeout, options.attempts) = (PATIENCE, ATTEMPTS);
            builder.build()
        });
        let servers = match resolver {
            Ok(resolver) => Servers::Asked(Arc::new(resolver)),
            Err(error) => {
                tracing::warn!(%error, "the system's DNS servers cannot be told; names are looked up by the system itself");
                Servers::System
            }
        };
        Self { reach, servers }
    }

    /// The addresses of a name that may be connected to.
    pub(super) async fn within_reach(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.look_up(name, false).await
    }

    /// The addresses of a name, all of which may be connected to.
    pub(super) async fn all_within_reach(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.look_up(name, true).await
    }

    async fn look_up(&self, name: &str, all: bool) -> io::Result<Vec<IpAddr>> {
        let found: Vec<IpAddr> = match &self.servers {
            Servers::System => tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect(),
            Servers::Asked(resolver) => resolver.lookup_ip(name).await.map_err(io::Error::other)?.iter().collect(),
        };
        let count = found.len();
        let allowed: Vec<IpAddr> = found.into_iter().filter(|address| self.reach.allows(*address)).collect();
        if allowed.is_empty() || (all && allowed.len() < count) {
            // Told apart from a name that does not resolve by its kind.
            let what =
                if allowed.is_empty() { "to no public address" } else { "also to addresses that are not public" };
            let message = format!("{name} resolves {what}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(allowed)
    }
}

fn named(servers: &[SocketAddr]) -> ResolverBuilder<TokioRuntimeProvider> {
    let configs = servers.iter().map(|server| {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        config
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), configs.collect());
    Hickory::builder_with_config(config, TokioRuntimeProvider::default())
}

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let names = self.clone();
        Box::pin(async move {
            let addresses = names.within_reach(name.as_str()).await?;
            Ok(addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}
