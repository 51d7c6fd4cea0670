//! How a decision finds the request that waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sendtrail_schemas::record::{Decision, ReplyTo};
use tokio::sync::oneshot;

/// Carries decisions back. Not durable: a request whose decision is lost may be repeated with its `Idempotency-Key`.
pub trait Replies: Send + Sync + 'static {
    /// A place for a decision to come to; dropping it stops waiting.
    fn expect(&self) -> Waiting<Decision>;

    /// Tells a decision. Whoever no longer waits, or never did, is passed over.
    fn tell(&self, to: ReplyTo, decision: Decision);
}

/// A request that waits.
pub struct Waiting<T> {
    /// What its record carries.
    pub reply_to: ReplyTo,
    answer: oneshot::Receiver<T>,
    table: Arc<Table<T>>,
}

type Table<T> = Mutex<HashMap<u64, oneshot::Sender<T>>>;

impl<T> Waiting<T> {
    /// What it waits for; `None` when it will never come.
    pub async fn answer(&mut self) -> Option<T> {
        (&mut self.answer).await.ok()
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.reply_to.request);
    }
}

/// Those who wait in one process.
pub struct Desk<T> {
    instance: u64,
    next: AtomicU64,
    table: Arc<Table<T>>,
}

/// Replies within one process.
pub type LocalReplies = Desk<Decision>;

impl<T> Desk<T> {
    /// `instance` is random, so that records of an earlier process find nobody.
    pub fn new(instance: u64) -> Self {
        Self { instance, next: AtomicU64::new(0), table: Arc::default() }
    }

    /// Whose it is.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// A place for an answer to come to; dropping it stops waiting.
    pub fn expect(&self) -> Waiting<T> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.table.lock().insert(request, sender);
        Waiting { reply_to: ReplyTo { instance: self.instance, request }, answer, table: self.table.clone() }
    }

    /// Tells an answer. Whoever no longer waits, or waits elsewhere, is passed over.
    pub fn tell(&self, to: ReplyTo, answer: T) {
        if to.instance != self.instance {
            return;
        }
        let sender = self.table.lock().remove(&to.request);
        if let Some(sender) = sender {
            // The request may have been given up in between.
            let _ = sender.send(answer);
        }
    }
}

impl Replies for LocalReplies {
    fn expect(&self) -> Waiting<Decision> {
        Desk::expect(self)
    }

    fn tell(&self, to: ReplyTo, decision: Decision) {
        Desk::tell(self, to, decision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn decisions_find_their_requests_and_only_those() {
        let replies = LocalReplies::new(7);
        let (mut one, two) = (replies.expect(), replies.expect());
        let of_two = two.reply_to;
        drop(two);
        replies.tell(of_two, Decision::default());
        replies.tell(ReplyTo { instance: 8, ..one.reply_to }, Decision { offset: 1, ..Decision::default() });
        replies.tell(one.reply_to, Decision { offset: 2, ..Decision::default() });
        replies.tell(one.reply_to, Decision { offset: 3, ..Decision::default() });
        assert_eq!(one.answer().await.unwrap().offset, 2);
        assert!(replies.table.lock().is_empty());
    }
}
