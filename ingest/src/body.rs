//! Bodies: bounded in size and time, unpacked if need be, read as JSON.

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::web::{check_type, object};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncReadExt};

use crate::Ingest;

/// The largest window a zstd stream may ask for, as a power of two: 8 MiB, what RFC 8878 tells decoders to support.
const ZSTD_WINDOW_LOG: u32 = 23;

/// A request's body, whole and unpacked.
pub struct Payload {
    /// Its bytes.
    pub bytes: Bytes,
    /// Whether its Content-Type says that each line is a value of its own.
    pub lines: bool,
}

impl FromRequest<Ingest> for Payload {
    type Rejection = Problem;

    async fn from_request(request: Request, ingest: &Ingest) -> Result<Self, Problem> {
        Self::at_most(request, ingest, ingest.limits().max_body_bytes).await
    }
}

impl Payload {
    /// Reads a body of at most so many bytes, packed and unpacked.
    ///
    /// # Errors
    /// 408, 413, 415, or 400 for what cannot be unpacked.
    pub async fn at_most(request: Request, ingest: &Ingest, most: usize) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let lines = check_type(&parts.headers)?;
        let limits = ingest.limits();
        let read = read(&parts.headers, body, most);
        let late = |_| Problem::new(Code::RequestTimeout, "the body took too long to arrive");
        let bytes = tokio::time::timeout(limits.body_timeout, read).await.map_err(late)??;
        Ok(Self { bytes, lines })
    }
}

/// A body read as JSON, whatever its Content-Type unless that is clearly another.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Ingest> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, ingest: &Ingest) -> Result<Self, Problem> {
        object(&Payload::from_request(request, ingest).await?.bytes).map(Self)
    }
}

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let encoding =
        headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
    let body = Limited::new(body, limit);
    match encoding.as_deref().map(str::trim) {
        None | Some("" | "identity") => {
            let collected = body.collect().await.map_err(|cause| broken(&*cause, limit))?;
            Ok(collected.to_bytes())
        }
        Some("gzip" | "x-gzip") => {
            let mut decoder = GzipDecoder::new(reader(body));
            decoder.multiple_members(true);
            unpack(decoder, limit).await
        }
        Some("zstd") => {
            let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
            let mut decoder = ZstdDecoder::with_params(reader(body), &[window]);
            decoder.multiple_members(true);
            unpack(decoder, limit).await
        }
        Some(other) => Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("Content-Encoding {other} is not read; use gzip or zstd"),
        )),
    }
}

fn reader(body: Limited<Body>) -> impl AsyncBufRead + Unpin {
    tokio_util::io::StreamReader::new(body.into_data_stream().map_err(std::io::Error::other))
}

/// Unpacks up to a limit: a bomb is stopped there, whatever it would become.
async fn unpack(decoder: impl tokio::io::AsyncRead + Unpin, limit: usize) -> Result<Bytes, Problem> {
    let mut bytes = Vec::new();
    let read = decoder.take(limit as u64 + 1).read_to_end(&mut bytes).await;
    if bytes.len() > limit {
        return Err(too_large(limit));
    }
    read.map_err(|cause| match cause.get_ref() {
        Some(inner) => broken(inner, limit),
        None => Problem::new(Code::InvalidRequest, format!("the body does not unpack: {cause}")),
    })?;
    Ok(bytes.into())
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::PayloadTooLarge, format!("the body has more than {limit} bytes"))
}

fn broken(cause: &(dyn std::error::Error + 'static), limit: usize) -> Problem {
    let mut next = Some(cause);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return too_large(limit);
        }
        next = error.source();
    }
    Problem::new(Code::InvalidRequest, "the body did not arrive whole")
}
