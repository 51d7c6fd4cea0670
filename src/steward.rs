//! Keeps what is made known of this process's partitions true: whatever others said before, or say although they own
//! nothing any more, and whatever was never said.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use parking_lot::Mutex;
use sendtrail_eventlog::kafka::{Exchange, Voice, Word};
use sendtrail_processor::{Inquiry, Said, ViewOf, Views};
use sendtrail_schemas::exchange::Seen;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::ownership::Ownership;

/// How long one who says that a partition is theirs may go on: whoever lost it learns that by then, and ends.
const DISPUTED: Duration = Duration::from_secs(10);
/// How soon a comparison that failed is made again.
const AGAIN: Duration = Duration::from_secs(2);
/// Views that a partition is asked to make known at once.
const TOGETHER: usize = 1_000;
/// Partitions whose views are compared at once.
const AT_ONCE: usize = 4;

/// See the module.
pub struct Steward {
    exchange: Arc<Exchange>,
    /// What is true, or was a moment ago.
    views: Views,
    partitions: u32,
    ownership: Arc<Ownership>,
    /// Partitions of this process whose reign was heard.
    reigned: Mutex<BTreeSet<u32>>,
    comparing: Semaphore,
    /// Where work is done that takes longer.
    handle: Handle,
}

impl Steward {
    /// Of those partitions that are owned here.
    pub fn new(exchange: Arc<Exchange>, views: Views, partitions: u32, ownership: Arc<Ownership>) -> Self {
        let (reigned, comparing) = (Mutex::default(), Semaphore::new(AT_ONCE));
        Self { exchange, views, partitions, ownership, reigned, comparing, handle: Handle::current() }
    }

    /// Begins to own a partition: what is said of it from the returned offset on is this process's.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub async fn begin(&self, partition: u32) -> Result<u64, sendtrail_eventlog::Error> {
        self.reigned.lock().remove(&partition);
        self.exchange.reign(partition).await
    }

    /// Says what is other than what was said before this process's reign over a partition, or all if nothing was. What is in
    /// the log must be applied.
    pub async fn set_right(self: Arc<Self>, partition: u32, reign: u64) {
        while self.ownership.has(partition) {
            match self.clone().compare(partition, reign).await {
                Ok(to_say) => return self.say(partition, to_say).await,
                // Others would go on believing what is not true.
                Err(error) => tracing::error!(partition, %error, "views could not be compared; it is tried again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What is other than what was said before this process's reign.
    async fn compare(self: Arc<Self>, partition: u32, reign: u64) -> Result<Vec<ViewOf>, sendtrail_processor::Error> {
        // Never closed.
        let _turn = self.comparing.acquire().await;
        let steward = self.clone();
        let compared = tokio::task::spawn_blocking(move || {
            let mut said = Said::default();
            let note = |voice, seen: Seen| said.note(&seen, voice == Voice::Owner);
            steward.exchange.look_back(partition, reign, note)?;
            said.to_say(steward.views.of_partition(partition, steward.partitions))
        });
        let failed = |cause: tokio::task::JoinError| sendtrail_processor::Error::Io {
            what: "compare views".into(),
            cause: cause.into(),
        };
        compared.await.map_err(failed)?
    }

    /// A partition is owned here no more.
    pub fn end(&self, partition: u32) {
        self.reigned.lock().remove(&partition);
    }

    /// Takes note of what was said of any partition.
    pub fn hear(self: &Arc<Self>, partition: u32, word: &Word) {
        let is_ours = self.reigned.lock().contains(&partition);
        match word {
            Word::Reign { is_ours: true } if self.ownership.has(partition) => {
                self.reigned.lock().insert(partition);
            }
            // It left before this was heard.
            Word::Reign { is_ours: false } if is_ours && !self.ownership.has(partition) => self.end(partition),
            // One who was replaced before saying so: what comes after is believed to be theirs, until we say so again.
            Word::Reign { is_ours: false } if is_ours => self.clone().reign_again(partition),
            Word::Said(Voice::Former, seen) if is_ours => self.clone().contradict(partition, seen),
            Word::Reign { .. } | Word::Said(..) => {}
        }
    }

    /// Says how it really is. Also when it is the same: whoever comes later does not believe who said it.
    fn contradict(self: Arc<Self>, partition: u32, seen: &Seen) {
        counter!("sendtrail_stale_views_total").increment(1);
        let Some(of) = ViewOf::of(seen) else { return };
        tracing::warn!(partition, "a server that no longer owns the partition made something known");
        self.handle.clone().spawn(async move {
            // It may be about to begin.
            let begun = self.ownership.becomes(partition, true);
            if tokio::time::timeout(DISPUTED, begun).await.is_ok() {
                self.say(partition, vec![of]).await;
            }
        });
    }

    fn reign_again(self: Arc<Self>, partition: u32) {
        tracing::warn!(partition, "another server says that it owns the partition");
        self.handle.clone().spawn(async move {
            tokio::time::sleep(DISPUTED).await;
            if !self.ownership.has(partition) {
                return;
            }
            while self.ownership.has(partition) {
                match self.exchange.reign(partition).await {
                    Ok(reign) => return self.set_right(partition, reign).await,
                    Err(error) => tracing::error!(partition, %error, "others may not believe who owns the partition"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    async fn say(&self, partition: u32, views: Vec<ViewOf>) {
        if !views.is_empty() {
            tracing::info!(partition, views = views.len(), "making known what others do not know");
        }
        for views in views.chunks(TOGETHER) {
            loop {
                // A partition that ends leaves it to its next owner.
                let Some(asked) = self.ownership.of(partition) else { return };
                let (done, wait) = oneshot::channel();
                if asked.send(Inquiry::Announce { views: views.to_vec(), done }).await.is_ok() && wait.await.is_ok() {
                    break;
                }
                // It went back to its checkpoint, or is about to end.
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
