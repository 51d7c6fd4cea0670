//! A small client of the API, for the command line, the demonstration and load.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sendtrail_ingest::SIMULATED_TIME;
use sendtrail_schemas::time::Millis;
use serde_json::Value;

/// Calls one server with one key.
#[derive(Clone)]
pub struct Api {
    base: String,
    key: String,
    time: Option<Millis>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What came back.
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as it came.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body of a success.
    ///
    /// # Errors
    /// What the server says is wrong.
    pub fn success(self) -> anyhow::Result<Value> {
        let json = self.json();
        if self.status.is_success() {
            return Ok(json);
        }
        let text = |name: &str| json.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        bail!("{} {}: {}", self.status.as_u16(), text("error"), text("message"))
    }
}

impl Api {
    /// A client of `http://host:port`.
    pub fn new(base: &str, key: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { base: base.trim_end_matches('/').to_owned(), key: key.to_owned(), time: None, client }
    }

    /// The same server with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// The same server at a simulated time, which each call carries. Heeded only where time is simulated.
    #[must_use]
    pub fn at(&self, time: Millis) -> Self {
        Self { time: Some(time), ..self.clone() }
    }

    /// Where the server is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The key that it calls with.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Calls, with a body and further headers.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Reply> {
        let uri = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&uri);
        if !self.key.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.key));
        }
        if let Some(time) = self.time {
            request = request.header(SIMULATED_TIME, time.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into()))?;
        let response = self.client.request(request).await.with_context(|| format!("call {uri}"))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.with_context(|| format!("read the answer of {uri}"))?.to_bytes();
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    }

    /// Downloads into a file, as it comes.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses, or the file cannot be written.
    pub async fn download(&self, path: &str, to: &std::path::Path) -> anyhow::Result<u64> {
        let uri = format!("{}{path}", self.base);
        let request = Request::builder().uri(&uri).header(header::AUTHORIZATION, format!("Bearer {}", self.key));
        let response = self.client.request(request.body(Full::default())?).await?;
        if !response.status().is_success() {
            bail!("{uri}: {}", response.status());
        }
        let mut body = response.into_body();
        let mut file = tokio::fs::File::create(to).await.with_context(|| format!("create {}", to.display()))?;
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.with_context(|| format!("read the answer of {uri}"))?.into_data() {
                bytes += data.len() as u64;
                tokio::io::AsyncWriteExt::write_all(&mut file, &data).await?;
            }
        }
        file.sync_all().await?;
        Ok(bytes)
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, &[], Bytes::new()).await?.success()
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let headers = [("content-type", "application/json")];
        self.call(method, path, &headers, body.to_string()).await?.success()
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::POST, path, body).await
    }

    /// Every row of a list, page after page.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn rows(&self, path: &str, name: &str) -> anyhow::Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        let joint = if path.contains('?') { '&' } else { '?' };
        loop {
            let page = self.get(&format!("{path}{joint}limit=1000{cursor}")).await?;
            rows.extend(page[name].as_array().cloned().unwrap_or_default());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(rows),
            }
        }
    }
}
