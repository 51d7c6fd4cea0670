//! What a connection is at: one on which nothing is asked is not kept, or a few thousand that stay silent would keep everybody
//! else out.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Bytes of an answer that are handed on at once, so that it is seen how a peer takes them: a frame of HTTP/2 has no more,
/// unless a peer asks for larger ones.
const PIECE: usize = 16 << 10;

/// What a connection is at. Each change counts, also one that was taken back before anybody looked.
#[derive(Clone, Debug)]
pub struct Activity(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How many requests are being answered.
    requests: usize,
    /// How many of their answers wait until the peer takes the next piece: over HTTP/2 it says itself how much it takes.
    untaken: usize,
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
struct Answering {
    activity: Activity,
    untaken: AtomicBool,
}

impl Activity {
    /// Of a connection on which nothing was asked yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// Answers a request; it counts as being answered until the last byte of the answer was taken over, or the answer is given up.
    pub async fn answer<E>(self, answer: impl Future<Output = Result<Response, E>>) -> Result<Response, E> {
        self.0.send_modify(|state| state.requests += 1);
        let answering = Arc::new(Answering { activity: self, untaken: AtomicBool::new(false) });
        let response = answer.await?;
        answering.is_untaken(true);
        Ok(response.map(|body| Body::new(Answer { body, rest: Bytes::new(), answering })))
    }

    /// Resolves when nothing was asked, or nothing taken, for too long.
    pub async fn idle(&self, patience: Patience) {
        let mut states = self.0.subscribe();
        loop {
            let state = *states.borrow_and_update();
            let limit = match state {
                State { blocked: true, .. } => patience.stalled,
                State { requests: 0, .. } => patience.idle,
                State { requests, untaken, .. } if requests == untaken => patience.stalled,
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

impl Answering {
    /// Notes whose turn it is; that the peer took a piece counts, also when it is its turn again.
    fn is_untaken(&self, untaken: bool) {
        let before = self.untaken.swap(untaken, Ordering::AcqRel);
        if before || untaken {
            self.activity
                .0
                .send_modify(|state| state.untaken = state.untaken + usize::from(untaken) - usize::from(before));
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let untaken = *self.untaken.get_mut();
        self.activity.0.send_modify(|state| {
            state.requests -= 1;
            state.untaken -= usize::from(untaken);
        });
    }
}

/// The body of an answer, and that it is being given.
struct Answer {
    body: Body,
    /// What was read of it and not handed on.
    rest: Bytes,
    answering: Arc<Answering>,
}

/// A piece of an answer that was handed on, and that this is being given: over HTTP/2 it waits in this process until the peer has room,
/// also when nothing is left of the body.
struct Piece {
    bytes: Bytes,
    answering: Arc<Answering>,
}

impl Answer {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        let bytes = self.rest.split_to(self.rest.len().min(PIECE));
        let piece = Piece { bytes, answering: self.answering.clone() };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Nothing more is made of it, whatever waits yet.
        self.answering.is_untaken(true);
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // That it was taken counts.
        self.answering.activity.0.send_modify(|_| {});
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let piece = self.poll_piece(cx);
        // Whoever makes it is not hurried.
        let untaken = piece.is_ready();
        self.answering.is_untaken(untaken);
        piece
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
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
        let stays_for = async |stalled| {
            let patience = Patience { stalled: Duration::from_millis(stalled), ..of(10) };
            tokio::time::timeout(Duration::from_millis(100), activity.idle(patience)).await.is_err()
        };
        assert!(is_idle().await, "nothing was ever asked");
        let answer = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(Body::from("told"))) });
        let Ok(response) = answer.await;
        assert_eq!(response.body().size_hint().exact(), Some(4));
        assert!(stays_for(3_600_000).await, "an answer is being read");
        assert!(is_idle().await, "nobody takes it");
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
    async fn an_answer_is_handed_on_in_pieces_that_are_taken_in_time() {
        use http_body_util::BodyExt;
        let activity = Activity::new();
        let patience = Patience { idle: Duration::from_millis(100), stalled: Duration::from_secs(2) };
        let bytes: Bytes = (0..10 * PIECE + 1).map(|n| (n / 7) as u8).collect();
        let answer = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(Body::from(bytes.clone()))) });
        let Ok(response) = answer.await;
        let mut body = response.into_body();
        // Far longer than it may be stalled, all together.
        let taking = async {
            let mut told = Vec::new();
            while !body.is_end_stream() {
                assert_eq!(body.size_hint().exact(), Some((bytes.len() - told.len()) as u64));
                tokio::time::sleep(Duration::from_millis(300)).await;
                let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert!(piece.len() <= PIECE);
                told.extend_from_slice(&piece);
            }
            told
        };
        let told = tokio::select! {
            // First: when the machine stands still, both are over.
            biased;
            told = taking => told,
            () = activity.idle(patience) => panic!("it is being taken"),
        };
        assert_eq!(told, bytes);
        drop(body);
        // What is being made is waited for.
        let made = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let Ok(response) = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(made)) }).await;
        let mut body = response.into_body();
        let patience = Patience { stalled: Duration::from_millis(10), ..patience };
        let waiting = tokio::time::timeout(Duration::from_millis(200), body.frame());
        tokio::select! {
            biased;
            waited = waiting => assert!(waited.is_err()),
            () = activity.idle(patience) => panic!("it is this server's turn"),
        }
    }

    #[tokio::test]
    async fn what_waits_for_room_is_still_being_given_when_all_was_handed_on() {
        use http_body_util::BodyExt;
        let activity = Activity::new();
        let patience = Patience { idle: Duration::from_millis(10), stalled: Duration::from_secs(2) };
        let ends = async || tokio::time::timeout(Duration::from_secs(60), activity.idle(patience)).await.is_ok();
        let pieces = async |count: usize| {
            let bytes = Bytes::from(vec![1_u8; count * PIECE]);
            let answer = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(Body::from(bytes))) });
            let Ok(response) = answer.await;
            let mut body = response.into_body();
            let mut pieces = Vec::new();
            while !body.is_end_stream() {
                pieces.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(pieces.len(), count);
            pieces
        };
        // Far longer than it may be idle, or stalled, all together.
        let waiting = pieces(10).await;
        let taking = async {
            for piece in waiting {
                tokio::time::sleep(Duration::from_millis(300)).await;
                drop(piece);
            }
        };
        tokio::select! {
            // First: when the machine stands still, both are over.
            biased;
            () = taking => {}
            () = activity.idle(patience) => panic!("it is being taken"),
        }
        assert!(ends().await, "all was taken");
        // A part of it, as frames are.
        let mut whole = pieces(1).await.remove(0);
        let rest = whole.split_off(1);
        drop(whole);
        let long = Patience { stalled: Duration::from_secs(3_600), ..patience };
        let idle = tokio::time::timeout(Duration::from_millis(100), activity.idle(long)).await;
        assert!(idle.is_err(), "it is not silent");
        assert!(ends().await, "but its peer takes nothing");
        drop(rest);
        let state = *activity.0.borrow();
        assert_eq!((state.requests, state.untaken), (0, 0));
        // One that is given up while it is being made, of which something waits.
        let first = futures::stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"told"))]);
        let made = Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()));
        let Ok(response) = activity.clone().answer(async { Ok::<_, Infallible>(Response::new(made)) }).await;
        let mut body = response.into_body();
        let waits = body.frame().await.unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(10), body.frame()).await.is_err());
        assert_eq!(activity.0.borrow().untaken, 0, "it is this server's turn");
        drop(body);
        assert_eq!(activity.0.borrow().untaken, 1, "it is not any more");
        drop(waits);
        assert_eq!(activity.0.borrow().requests, 0);
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
