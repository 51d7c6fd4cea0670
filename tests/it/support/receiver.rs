//! A receiver of webhooks that answers what a test says.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;

/// What to answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub after: Duration,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, after: Duration::ZERO, headers: Vec::new(), body: String::new() }
    }
}

/// A post that came.
#[derive(Clone)]
pub struct Post {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: std::time::Instant,
}

impl Post {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

type Script = dyn Fn(&Post, usize) -> Answer + Send + Sync;

/// The receiver. Ends with its test's runtime.
pub struct Receiver {
    pub base: String,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    /// Answers each post by its path and how many came to that path before.
    pub async fn start(script: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_reading(move |post, before| script(&post.path, before)).await
    }

    /// The same by all that is in the post.
    pub async fn start_reading(script: impl Fn(&Post, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let posts: Arc<Mutex<Vec<Post>>> = Arc::default();
        let (kept, script): (_, Arc<Script>) = (posts.clone(), Arc::new(script));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, script) = (kept.clone(), script.clone());
                let service = hyper::service::service_fn(move |request| receive(kept.clone(), script.clone(), request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { base, posts }
    }

    pub async fn start_ok() -> Self {
        Self::start(|_, _| Answer::status(200)).await
    }

    /// The same under another name.
    pub fn named(&self, name: &str) -> Self {
        Self { base: self.base.replace("127.0.0.1", name), posts: self.posts.clone() }
    }

    /// What came to a path.
    pub fn posts(&self, path: &str) -> Vec<Post> {
        self.posts.lock().iter().filter(|post| post.path == path).cloned().collect()
    }

    /// Waits for posts to a path.
    pub async fn wait(&self, path: &str, count: usize) -> Vec<Post> {
        super::eventually(&format!("{count} posts to {path}"), async || self.posts(path).len() >= count).await;
        self.posts(path)
    }
}

async fn receive(
    posts: Arc<Mutex<Vec<Post>>>,
    script: Arc<Script>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = parts.uri.path().to_owned();
    let answer = {
        let mut posts = posts.lock();
        let before = posts.iter().filter(|post| post.path == path).count();
        let post = Post { path, headers: parts.headers, body, at: std::time::Instant::now() };
        let answer = script(&post, before);
        posts.push(post);
        answer
    };
    tokio::time::sleep(answer.after).await;
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    Ok(response.body(Full::new(Bytes::from(answer.body))).unwrap())
}
