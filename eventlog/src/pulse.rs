//! How far the processor of a partition is: what admission and health go by.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sendtrail_schemas::time::Millis;
use tokio::sync::watch;

/// How long a reader waits for what was acknowledged before it asked. Beyond, it is told what is there.
pub const SETTLE: Duration = Duration::from_secs(2);

/// The pulse of one partition. Written by its processor, or by whoever hears of it; read by the edge.
#[derive(Default)]
pub struct Pulse {
    applied: watch::Sender<u64>,
    /// The log's time at the last record that is applied, milliseconds since the epoch.
    applied_at: AtomicI64,
    /// Up to where there is something that is not applied yet, as far as is known, and since when by the wall clock.
    pending: Mutex<Option<(u64, i64)>>,
    told: Mutex<Told>,
}

/// What keeps a partition, if anything does.
#[derive(Default)]
struct Told {
    /// Why nothing more will be applied.
    halted: Option<String>,
    /// Why it went back to its checkpoint, and has not got past that.
    troubled: Option<String>,
    /// Why webhooks wait.
    webhooks: Option<String>,
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

    /// Notes that everything before an offset is applied, and the log's time there.
    pub fn set_applied(&self, next_offset: u64, at: Millis) {
        // In this order: whoever reads the time first reads an offset that is as far.
        self.applied.send_replace(next_offset);
        self.applied_at.store(at.0, Ordering::Release);
    }

    /// Everything that was received before this is applied: what is before [`Pulse::applied`], asked for afterwards. The epoch:
    /// nothing is known.
    pub fn applied_at(&self) -> Millis {
        Millis(self.applied_at.load(Ordering::Acquire))
    }

    /// Notes that there is something before an offset that is not applied yet, and when it was first seen, by the wall clock; `None`:
    /// there is nothing.
    pub fn set_pending(&self, pending: Option<(u64, i64)>) {
        *self.pending.lock() = pending;
    }

    /// How long the oldest record has waited, milliseconds by the wall clock.
    pub fn lag_millis(&self) -> i64 {
        match *self.pending.lock() {
            // It may be applied by now.
            Some((end, since)) if *self.applied.borrow() < end => (Millis::wall().0 - since).max(0),
            _ => 0,
        }
    }

    /// Notes why nothing more will be applied.
    pub fn halt(&self, why: String) {
        self.told.lock().halted = Some(why);
    }

    /// Notes that records are applied again.
    pub fn resume(&self) {
        self.told.lock().halted = None;
    }

    /// Why nothing more will be applied, if so.
    pub fn halted(&self) -> Option<String> {
        self.told.lock().halted.clone()
    }

    /// Notes why it went back to its checkpoint; `None`: it is past that.
    pub fn trouble(&self, why: Option<String>) {
        self.told.lock().troubled = why;
    }

    /// Why it does not get on, if it does not: nothing more will be applied, or it went back and has not got past that.
    pub fn stuck(&self) -> Option<String> {
        let told = self.told.lock();
        told.halted.as_ref().or(told.troubled.as_ref()).cloned()
    }

    /// Notes why webhooks of the partition wait; `None`: they do not.
    pub fn webhooks_wait(&self, why: Option<String>) {
        self.told.lock().webhooks = why;
    }

    /// Why webhooks of the partition wait, if they do.
    pub fn webhooks_waiting(&self) -> Option<String> {
        self.told.lock().webhooks.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_keeps_it_is_told_and_what_is_for_good_first() {
        let pulse = Pulse::default();
        pulse.webhooks_wait(Some("slow".into()));
        assert_eq!((pulse.halted(), pulse.stuck()), (None, None), "webhooks keep no records");
        pulse.trouble(Some("full".to_owned()));
        assert_eq!((pulse.halted(), pulse.stuck()), (None, Some("full".to_owned())));
        pulse.halt("broken".into());
        assert_eq!((pulse.halted(), pulse.stuck()), (Some("broken".to_owned()), Some("broken".to_owned())));
        pulse.resume();
        assert_eq!((pulse.halted(), pulse.stuck()), (None, Some("full".to_owned())), "that is another matter");
        pulse.trouble(None);
        assert_eq!((pulse.stuck(), pulse.webhooks_waiting()), (None, Some("slow".to_owned())));
    }
}
