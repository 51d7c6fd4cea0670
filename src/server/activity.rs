//! What a connection is at: one on which nothing is asked is not kept, or a few thousand that stay silent would keep everybody
//! else out.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// What a connection is at. Each change counts, also one that was taken back before anybody looked.
#[derive(Clone, Debug)]
pub struct Activity(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How many requests are being answered.
    requests: usize,
    /// Whether the peer takes nothing more at the moment.
    blocked: bool,
}

/// How long a connection is kept.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// On which nothing is asked.
    pub idle: Duration,
    /// Whose peer takes nothing of its answer.
    pub stalled: Duration,
}

/// A request that is being answered, until this is dropped.
struct Answering(Activity);

impl Activity {
    /// Of a connection on which nothing was asked yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// Answers a request; it counts as being answered until the last byte of the answer was taken over, or the answer is given up.
    pub async fn answer<E>(self, answer: impl Future<Output = Result<Response, E>>) -> Result<Response, E> {
        self.0.send_modify(|state| state.requests += 1);
        let answering = Answering(self);
        let response = answer.await?;
        Ok(response.map(|body| Body::new(Answer { body, _answering: answering })))
    }

    /// Resolves when nothing was asked, or nothing taken, for too long.
    pub async fn idle(&self, patience: Patience) {
        let mut states = self.0.subscribe();
        loop {
            let state = *states.borrow_and_update();
            let limit = match state {
                State { blocked: true, .. } => patience.stalled,
                State { requests: 0, .. } => patience.idle,
                // It is this server's turn.
                _ => Duration::MAX,
            };
            match tokio::time::timeout(limit, states.changed()).await {
                Ok(Ok(())) => {}
                // Never closed as long as this holds the other end.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// A stream that tells when its peer takes nothing more, and something again: of an answer much may be left long after its last byte
/// was taken over. What is read, and what is written at once (a ping's answer), is no activity: whoever asks must get to the end.
pub struct Watched<S> {
    stream: S,
    activity: Activity,
    blocked: bool,
}

impl<S> Watched<S> {
    /// Of a connection.
    pub fn new(stream: S, activity: Activity) -> Self {
        Self { stream, activity, blocked: false }
    }

    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let blocked = written.is_pending();
        if blocked != std::mem::replace(&mut self.blocked, blocked) {
            self.activity.0.send_modify(|state| state.blocked = blocked);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.requests -= 1);
    }
}

/// The body of an answer, and that it is being given.
struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_between_answers_and_not_during_one() {
        let activity = Activity::new();
        let of = |millis| Patience { idle: Duration::from_millis(millis), stalled: Duration::from_millis(10) };
        let idle = || activity.idle(of(10));
        let is_idle = async || tokio::time::timeout(Duration::from_secs(60), idle()).await.is_ok();
        let stays = async || tokio::time::timeout(Duration::from_millis(100), idle()).await.is_err();
        assert!(is_idle().await, "nothing was ever asked");
        let answer = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(Body::from("told"))) });
        let Ok(response) = answer.await;
        assert_eq!(response.body().size_hint().exact(), Some(4));
        assert!(stays().await, "an answer is being read");
        drop(response);
        assert!(is_idle().await, "it was read");
        let never = activity.clone().answer(std::future::pending::<Result<Response, Infallible>>());
        assert!(tokio::time::timeout(Duration::from_millis(10), never).await.is_err());
        assert!(is_idle().await, "it was given up");
        // One after the other, each over before anybody looks.
        let asking = async {
            loop {
                let answer = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(Body::from("told"))) });
                drop(answer.await);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            () = asking => {}
            () = tokio::time::sleep(Duration::from_secs(3)) => {}
            () = activity.idle(of(1_000)) => panic!("it is asked all the time"),
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_waited_for_longer_and_not_for_ever() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let activity = Activity::new();
        let (mut peer, stream) = tokio::io::duplex(1_000);
        let mut stream = Watched::new(stream, activity.clone());
        let of =
            |idle, stalled| Patience { idle: Duration::from_millis(idle), stalled: Duration::from_millis(stalled) };
        let ends = async |patience: Patience| {
            tokio::time::timeout(Duration::from_secs(60), activity.idle(patience)).await.is_ok()
        };
        let stays = async |patience: Patience| {
            tokio::time::timeout(Duration::from_millis(100), activity.idle(patience)).await.is_err()
        };
        let writing = tokio::spawn(async move {
            stream.write_all(&[1; 1_500]).await.unwrap();
            stream
        });
        while !activity.0.borrow().blocked {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(stays(of(1, 3_600_000)).await, "it is not silent: its peer is slow");
        assert!(ends(of(3_600_000, 10)).await, "its peer takes nothing");
        let answer = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(Body::from("told"))) });
        let Ok(response) = answer.await;
        assert!(ends(of(3_600_000, 10)).await, "nor does it take what is being answered");
        drop(response);
        peer.read_exact(&mut [0; 1_500]).await.unwrap();
        let _stream = writing.await.unwrap();
        assert!(stays(of(3_600_000, 1)).await, "it took all");
        assert!(ends(of(10, 3_600_000)).await, "and asks nothing");
    }
}
