//! How far the processor of a partition is: what admission and health go by.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sendtrail_schemas::time::Millis;
use tokio::sync::watch;

/// How long a reader waits for what was acknowledged before it asked. Beyond, it is told what is there.
pub const SETTLE: Duration = Duration::from_secs(2);

/// The pulse of one partition. Written by its processor, read by the edge.
pub struct Pulse {
    applied: watch::Sender<u64>,
    /// When the oldest record that is not applied yet was appended; 0: there is none.
    pending_since: AtomicI64,
    halted: Mutex<Option<String>>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { applied: watch::Sender::new(0), pending_since: AtomicI64::new(0), halted: Mutex::new(None) }
    }
}

impl Pulse {
    /// The offset after the last record whose outputs are durable.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until everything before an offset is applied, or nobody is left to apply it.
    pub async fn reached(&self, next: u64) {
        let _ = self.applied().wait_for(|applied| *applied >= next).await;
    }

    /// Notes that everything before an offset is applied.
    pub fn set_applied(&self, next_offset: u64) {
        self.applied.send_replace(next_offset);
    }

    /// Notes when the record that is being applied was appended; `None`: nothing is left to apply.
    pub fn set_pending_since(&self, received_at: Option<i64>) {
        self.pending_since.store(received_at.unwrap_or(0), Ordering::Relaxed);
    }

    /// How long the oldest record has waited, milliseconds by the wall clock.
    pub fn lag_millis(&self) -> i64 {
        match self.pending_since.load(Ordering::Relaxed) {
            0 => 0,
            since => (Millis::wall().0 - since).max(0),
        }
    }

    /// Notes why nothing more will be applied.
    pub fn halt(&self, why: String) {
        *self.halted.lock() = Some(why);
    }

    /// Notes that records are applied again.
    pub fn resume(&self) {
        *self.halted.lock() = None;
    }

    /// Why nothing more will be applied, if so.
    pub fn halted(&self) -> Option<String> {
        self.halted.lock().clone()
    }
}
