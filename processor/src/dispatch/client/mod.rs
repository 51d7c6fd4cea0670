//! Posting to receivers: bounded in time and size, to public addresses only, redirects never followed.

mod names;
mod reach;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sendtrail_schemas::mail::FailureClass;
use sendtrail_schemas::time::Millis;
use url::Url;

use crate::Error;
use names::Names;

pub use reach::{Reach, is_public};

/// Bytes of an answer that are kept; what is beyond does not matter.
const ANSWER_BYTES: usize = 4 << 10;
/// How long the rest of an answer is waited for once its status is known.
const REST_WITHIN: Duration = Duration::from_secs(1);
/// Connections to one receiver that are kept open, for as long as many destinations of it may have attempts at once.
const IDLE_PER_HOST: usize = 256;
/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How posts are made.
#[derive(Clone, Debug, Default)]
pub struct PosterOptions {
    /// What may be posted to.
    pub reach: Reach,
    /// DNS servers to ask; empty: those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// An HTTP proxy through which everything goes, by CONNECT; it resolves names once more. Nothing of the environment
    /// makes one.
    pub proxy: Option<Uri>,
    /// Certificates of further authorities that may vouch for receivers, a PEM file.
    pub ca_file: Option<PathBuf>,
}

/// How a post ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code, or what went wrong before there was one.
    pub status: Result<u16, Failed>,
    /// What the receiver asked for, milliseconds.
    pub retry_after: Option<i64>,
    /// The first 4 KiB of what it said.
    pub body: Bytes,
    /// How long it took.
    pub took: Duration,
}

/// Why there is no status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What kind of failure.
    pub class: FailureClass,
    /// For people.
    pub message: String,
}

impl Answer {
    /// None, for a reason.
    pub fn failed(class: FailureClass, message: impl Into<String>) -> Self {
        let status = Err(Failed { class, message: message.into() });
        Self { status, retry_after: None, body: Bytes::new(), took: Duration::ZERO }
    }

    /// What kind of failure it is, if it is one.
    pub fn class(&self) -> FailureClass {
        match &self.status {
            Ok(200..=299) => FailureClass::None,
            Ok(_) => FailureClass::Status,
            Err(failed) => failed.class,
        }
    }
}

type HttpsClient<C> = Client<hyper_rustls::HttpsConnector<C>, Full<Bytes>>;

#[derive(Clone)]
enum Through {
    Straight(HttpsClient<HttpConnector<Names>>),
    Proxy(HttpsClient<Tunnel<HttpConnector>>),
}

/// Posts bodies.
#[derive(Clone)]
pub struct Poster {
    through: Through,
    reach: Arc<Reach>,
    names: Names,
}

impl Poster {
    /// A poster. Certificates are verified against Mozilla's roots, and those of the options.
    ///
    /// # Errors
    /// [`Error::Io`] when the certificates cannot be read.
    pub fn new(options: PosterOptions) -> Result<Self, Error> {
        let reach = Arc::new(options.reach);
        let names = Names::new(reach.clone(), &options.dns_servers);
        let tls = tls(options.ca_file)?;
        let through = match options.proxy {
            None => Through::Straight(client(tls, of_tcp(HttpConnector::new_with_resolver(names.clone())))),
            Some(proxy) => Through::Proxy(client(tls, Tunnel::new(proxy, of_tcp(HttpConnector::new())))),
        };
        Ok(Self { through, reach, names })
    }

    /// Why a URL may not be posted to, if that can be told from it alone.
    pub fn refusal(&self, url: &Url) -> Option<String> {
        self.reach.check(url).err()
    }

    /// Posts a body, within a time for everything up to the status. Headers must hold no line breaks.
    pub async fn post(
        &self,
        url: &str,
        content_type: &'static str,
        headers: &[(&str, &str)],
        body: Bytes,
        within: Duration,
    ) -> Answer {
        let begun = Instant::now();
        let answered = async {
            let request = self.request(url, content_type, headers, body).await?;
            let response = match &self.through {
                Through::Straight(client) => client.request(request).await,
                Through::Proxy(client) => client.request(request).await,
            };
            response.map_err(|error| Answer::failed(class_of(&error), reason(&error)))
        };
        let response = match tokio::time::timeout(within, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(answer)) => return Answer { took: begun.elapsed(), ..answer },
            Err(_) => {
                let late = Answer::failed(FailureClass::Timeout, format!("no answer within {} s", within.as_secs()));
                return Answer { took: begun.elapsed(), ..late };
            }
        };
        let took = begun.elapsed();
        let (head, body) = response.into_parts();
        Answer {
            status: Ok(head.status.as_u16()),
            retry_after: retry_after(&head.headers),
            // The rest of a short answer is read, so that the connection can be used again.
            body: beginning(body, within.saturating_sub(took).min(REST_WITHIN)).await,
            took,
        }
    }

    async fn request(
        &self,
        url: &str,
        content_type: &'static str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Answer> {
        let refused = |why: String| Answer::failed(FailureClass::Refused, why);
        let parsed = Url::parse(url).map_err(|cause| refused(format!("the URL does not parse: {cause}")))?;
        self.reach.check(&parsed).map_err(refused)?;
        if let (Through::Proxy(_), Some(url::Host::Domain(name))) = (&self.through, parsed.host()) {
            // The proxy looks the name up itself, and may take any of its addresses.
            let found = self.names.all_within_reach(name).await;
            found.map_err(|error| match class_of_io(&error) {
                class @ (FailureClass::Refused | FailureClass::Timeout) => Answer::failed(class, error.to_string()),
                _ => Answer::failed(FailureClass::Dns, error.to_string()),
            })?;
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        let uri: Uri = parsed.as_str().parse().map_err(|cause| refused(format!("the URL: {cause}")))?;
        *request.uri_mut() = match &self.through {
            Through::Proxy(_) => with_port(uri).map_err(|cause| refused(format!("the URL: {cause}")))?,
            Through::Straight(_) => uri,
        };
        let all = request.headers_mut();
        all.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        for (name, value) in headers {
            let (Ok(name), Ok(value)) = (HeaderName::try_from(*name), HeaderValue::try_from(*value)) else {
                return Err(refused(format!("the header {name:?} cannot be sent")));
            };
            all.insert(name, value);
        }
        Ok(request)
    }
}

/// The same with its port said: a tunnel takes one that is not for that of https.
fn with_port(uri: Uri) -> Result<Uri, http::Error> {
    let mut parts = uri.into_parts();
    if let Some(host) = parts.authority.as_ref().filter(|authority| authority.port().is_none())
        && parts.scheme == Some(Scheme::HTTP)
    {
        parts.authority = Some(format!("{host}:80").parse()?);
    }
    Ok(Uri::from_parts(parts)?)
}

fn of_tcp<R>(mut connector: HttpConnector<R>) -> HttpConnector<R> {
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_WITHIN));
    connector
}

fn client<C>(tls: rustls::ClientConfig, connector: C) -> HttpsClient<C>
where
    hyper_rustls::HttpsConnector<C>: hyper_util::client::legacy::connect::Connect + Clone,
{
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .build(connector)
}

fn tls(ca_file: Option<PathBuf>) -> Result<rustls::ClientConfig, Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = ca_file {
        let io = |cause: String| Error::Io {
            what: format!("read the certificates of {}", file.display()),
            cause: std::io::Error::other(cause),
        };
        for certificate in CertificateDer::pem_file_iter(&file).map_err(|cause| io(cause.to_string()))? {
            let certificate = certificate.map_err(|cause| io(cause.to_string()))?;
            roots.add(certificate).map_err(|cause| io(cause.to_string()))?;
        }
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    // Ring supports every default version.
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::Io { what: "set up TLS".into(), cause: std::io::Error::other(cause) })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The first bytes of a body; all of it only if it is short, and comes soon.
async fn beginning(mut body: hyper::body::Incoming, within: Duration) -> Bytes {
    let mut kept = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else { continue };
            let room = ANSWER_BYTES - kept.len();
            kept.extend_from_slice(data.get(..room).unwrap_or(data));
            if data.len() > room {
                return;
            }
        }
    };
    // One that drips is heard no longer.
    let _ = tokio::time::timeout(within, read).await;
    kept.into()
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

/// What kind of failure an error of the client is.
fn class_of(error: &hyper_util::client::legacy::Error) -> FailureClass {
    let mut next = std::error::Error::source(error);
    let mut class = FailureClass::Connection;
    let mut of_names = false;
    while let Some(cause) = next {
        if is_of_tls(cause) {
            return FailureClass::Tls;
        }
        match cause.downcast_ref::<std::io::Error>().map(class_of_io) {
            None | Some(FailureClass::Dns) => {}
            Some(known) => class = known,
        }
        // The only word that the connector has for it.
        of_names |= cause.to_string().contains("dns error");
        next = cause.source();
    }
    if of_names && class == FailureClass::Connection { FailureClass::Dns } else { class }
}

/// Whether an error is one of TLS, which stands inside errors of IO: their `source` passes over what they hold.
fn is_of_tls(cause: &(dyn std::error::Error + 'static)) -> bool {
    let mut held = cause;
    loop {
        if held.is::<rustls::Error>() {
            return true;
        }
        let Some(inner) = held.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) else { return false };
        held = inner;
    }
}

fn class_of_io(error: &std::io::Error) -> FailureClass {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => FailureClass::Refused,
        std::io::ErrorKind::TimedOut => FailureClass::Timeout,
        std::io::ErrorKind::Other => FailureClass::Dns,
        _ => FailureClass::Connection,
    }
}

/// A Retry-After in milliseconds from now: seconds, or a date in any of its three forms (RFC 9110 §5.6.7, §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than any number of seconds is as long as may be.
        return Some(text.parse().unwrap_or(i64::MAX / 1_000).min(i64::MAX / 1_000) * 1_000);
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((date.as_millis() as i64 - Millis::wall().0).max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_out_of_reach_is_refused_by_name() {
        let poster = Poster::new(PosterOptions::default()).unwrap();
        let post = async |url: &str| {
            let answer = poster.post(url, "application/json", &[], Bytes::new(), Duration::from_secs(5)).await;
            answer.status.unwrap_err()
        };
        for (url, why) in [
            ("http://example.com/", "not allowed"),
            ("https://127.0.0.1/", "not a public address"),
            ("https://[::ffff:10.0.0.1]/", "not a public address"),
            ("https://localhost/", "resolves to no public address"),
            ("https://example.com:25/", "port 25"),
            ("::", "does not parse"),
        ] {
            let Failed { class, message } = post(url).await;
            assert!(message.contains(why), "{url}: {message}");
            assert_eq!(class, FailureClass::Refused, "{url}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let header = |text: &str| retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(header("120"), Some(120_000));
        assert_eq!(header(" 0 "), Some(0));
        assert!(header("99999999999999999999999").is_some_and(|wait| wait > 1 << 60));
        for past in ["Wed, 21 Oct 2015 07:28:00 GMT", "Wednesday, 21-Oct-15 07:28:00 GMT", "Wed Oct 21 07:28:00 2015"] {
            assert_eq!(header(past), Some(0), "{past}");
        }
        let far = header("Wed, 21 Oct 2099 07:28:00 GMT").unwrap();
        assert!(far > 365 * sendtrail_schemas::time::DAY);
        for none in ["soon", "-5", "1.5", ""] {
            assert_eq!(header(none), None, "{none}");
        }
    }
}
