//! Posting to receivers: bounded in time and size, to public addresses only, redirects never followed.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ipnet::IpNet;
use sendtrail_schemas::time::Millis;
use tower_service::Service;

/// Bytes of an answer that are read; what is beyond does not matter.
const ANSWER_BYTES: usize = 4 << 10;
/// Connections to one receiver that are kept open.
const IDLE_PER_HOST: usize = 8;

/// What may be posted to.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// `http://` too.
    pub allow_http: bool,
    /// Private addresses that may be reached none the less.
    pub allow_private_networks: Vec<IpNet>,
}

impl Reach {
    /// Whether an address may be connected to.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.allow_private_networks.iter().any(|network| network.contains(&address))
    }
}

/// Whether an address is of the public Internet (IANA's special-purpose registries).
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Only global unicast, less what embeds an IPv4 address or documents.
    let global = segments[0] & 0xe000 == 0x2000;
    let teredo_orchid_or_benchmark = segments[0] == 0x2001 && segments[1] < 0x200;
    let documentation =
        (segments[0] == 0x2001 && segments[1] == 0xdb8) || (segments[0] == 0x3fff && segments[1] < 0x1000);
    let six_to_four = segments[0] == 0x2002;
    global && !teredo_orchid_or_benchmark && !documentation && !six_to_four
}

/// How a post ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code, or what went wrong before there was one.
    pub status: Result<u16, String>,
    /// What the receiver asked for, milliseconds.
    pub retry_after: Option<i64>,
}

impl Answer {
    fn failed(why: impl Into<String>) -> Self {
        Self { status: Err(why.into()), retry_after: None }
    }
}

/// Posts bodies.
#[derive(Clone)]
pub struct Poster {
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    reach: Arc<Reach>,
}

impl Poster {
    /// A poster that keeps to a reach. Certificates are verified against Mozilla's roots.
    pub fn new(reach: Reach) -> Self {
        let reach = Arc::new(reach);
        let mut connector = HttpConnector::new_with_resolver(Resolver { reach: reach.clone() });
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_webpki_roots().with_no_client_auth());
        let https = HttpsConnectorBuilder::new();
        let https = match tls {
            Ok(tls) => https.with_tls_config(tls),
            // Ring supports every default version; this arm cannot be reached.
            Err(_) => https.with_webpki_roots(),
        };
        let connector = https.https_or_http().enable_http1().wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .build(connector);
        Self { client, reach }
    }

    /// Posts JSON, within a time for everything.
    pub async fn post(&self, url: &str, headers: &[(&'static str, String)], body: Bytes, within: Duration) -> Answer {
        let request = match self.request(url, headers, body) {
            Ok(request) => request,
            Err(why) => return Answer::failed(why),
        };
        match tokio::time::timeout(within, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Answer::failed(format!("no answer within {} s", within.as_secs())),
        }
    }

    fn request(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, String> {
        let parsed = url::Url::parse(url).map_err(|cause| format!("the URL does not parse: {cause}"))?;
        if parsed.scheme() != "https" && !(parsed.scheme() == "http" && self.reach.allow_http) {
            return Err(format!("{}:// is not allowed", parsed.scheme()));
        }
        // Names are checked when they are resolved; literals, in any spelling, are normalised by the parser.
        let literal = match parsed.host() {
            Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            _ => None,
        };
        if let Some(address) = literal.filter(|address| !self.reach.allows(*address)) {
            return Err(format!("{address} is not a public address"));
        }
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(parsed.as_str())
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.body(Full::new(body)).map_err(|cause| cause.to_string())
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return Answer::failed(reason(&error)),
        };
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        // The rest of a short answer is read, so that the connection can be used again.
        let _ = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        Answer { status: Ok(status), retry_after }
    }
}

/// An error with its causes, the last of which says what happened.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A Retry-After in milliseconds from now: seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(i64::from(seconds) * 1_000);
    }
    let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    Some((date.timestamp_millis() - Millis::wall().0).max(0))
}

/// Resolves names and keeps only addresses within reach: the connection goes to an address that was checked.
#[derive(Clone)]
struct Resolver {
    reach: Arc<Reach>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.reach.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found.into_iter().filter(|address| reach.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(std::io::Error::other(format!("{} resolves to no public address", name.as_str())));
            }
            Ok(allowed.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_within_reach_unless_listed() {
        let private = [
            "10.0.0.1",
            "172.16.9.9",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "203.0.113.5",
            "192.0.2.1",
            "198.51.100.7",
            "240.0.0.1",
            "192.0.0.8",
            "192.88.99.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "::7f00:1",
        ];
        for text in private {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        let reach = Reach { allow_private_networks: vec!["127.0.0.0/8".parse().unwrap()], ..Reach::default() };
        assert!(reach.allows("127.0.0.1".parse().unwrap()) && reach.allows("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!reach.allows("10.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn what_is_out_of_reach_is_refused_by_name() {
        let poster = Poster::new(Reach::default());
        let post =
            async |url: &str| poster.post(url, &[], Bytes::new(), Duration::from_secs(5)).await.status.unwrap_err();
        assert!(post("http://example.com/").await.contains("not allowed"));
        for literal in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
        ] {
            assert!(post(literal).await.contains("not a public address"), "{literal}");
        }
        assert!(post("https://localhost/").await.contains("resolves to no public address"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let header = |text: &str| retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(header("120"), Some(120_000));
        assert_eq!(header("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        assert_eq!(header("soon"), None);
    }
}
