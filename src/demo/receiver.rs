//! A receiver of webhooks that believes nothing it has not verified itself.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What came to one path.
#[derive(Default)]
pub struct Received {
    /// Deliveries with a good signature, by the name of their event, each identifier once.
    pub verified: BTreeMap<String, u64>,
    /// Posts whose signature was wrong.
    pub refused: u64,
    identifiers: HashSet<String>,
}

impl Received {
    /// Deliveries with a good signature.
    pub fn total(&self) -> u64 {
        self.identifiers.len() as u64
    }
}

/// The receiver.
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    /// By path.
    paths: Arc<Mutex<BTreeMap<String, Received>>>,
    stop: CancellationToken,
}

/// The secret of the splashify destinations.
pub const SPLASHIFY_SECRET: &str = "a secret that the demonstration shares with itself";
/// The key of the standard destinations.
const STANDARD_KEY: [u8; 32] = *b"32 bytes for the demonstration!!";

/// The secret of the standard destinations, in the form of Standard Webhooks.
pub fn standard_secret() -> String {
    format!("whsec_{}", BASE64_STANDARD.encode(STANDARD_KEY))
}

impl Receiver {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let receiver = Self { address: listener.local_addr()?, paths: Arc::default(), stop: CancellationToken::new() };
        let (paths, stop) = (receiver.paths.clone(), receiver.stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let paths = paths.clone();
                let service = service_fn(move |request| receive(paths.clone(), request));
                // A sender that hangs up is not the receiver's trouble.
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(receiver)
    }

    /// Looks at what came to a path.
    pub fn look<T>(&self, path: &str, at: impl FnOnce(&Received) -> T) -> T {
        at(self.paths.lock().entry(path.to_owned()).or_default())
    }

    /// Everything that came.
    pub fn total(&self) -> u64 {
        self.paths.lock().values().map(Received::total).sum()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn receive(
    paths: Arc<Mutex<BTreeMap<String, Received>>>,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let verified = verify(&parts.headers, &body);
    let mut paths = paths.lock();
    let received = paths.entry(parts.uri.path().to_owned()).or_default();
    let mut response = Response::new(Empty::new());
    match verified {
        Some((identifier, event)) => {
            if received.identifiers.insert(identifier) {
                *received.verified.entry(event).or_default() += 1;
            }
        }
        None => {
            received.refused += 1;
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
    }
    Ok(response)
}

/// The delivery's identifier and the event's name, if the signature is right.
fn verify(headers: &HeaderMap, body: &[u8]) -> Option<(String, String)> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let told: Value = serde_json::from_slice(body).ok()?;
    if let Some(signature) = header("x-splashify-signature") {
        let given = unhex(signature.strip_prefix("sha256=")?)?;
        mac(SPLASHIFY_SECRET.as_bytes(), &[body]).verify_slice(&given).ok()?;
        let event = told["eventType"].as_str()?;
        (header("x-splashify-event")? == event).then_some(())?;
        return Some((header("x-splashify-delivery-id")?.to_owned(), event.to_owned()));
    }
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let given = BASE64_STANDARD.decode(header("webhook-signature")?.strip_prefix("v1,")?).ok()?;
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    mac(&STANDARD_KEY, &signed).verify_slice(&given).ok()?;
    Some((id.to_owned(), told["type"].as_str()?.to_owned()))
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
