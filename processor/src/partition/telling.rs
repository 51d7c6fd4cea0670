//! Tells other servers how far a partition is: at once when somebody waits for it, else not too often, and again and again,
//! so that it does not matter when one word is lost.

use std::sync::Arc;
use std::time::Duration;

use sendtrail_eventlog::Announce;
use sendtrail_schemas::exchange::{ProgressView, Seen};
use tokio::time::Instant;

use super::Partition;

/// How long others may believe that a partition is where it was.
const EVERY: Duration = Duration::from_millis(50);
/// How often the same is told again.
const AGAIN: Duration = Duration::from_secs(2);

/// See the module.
pub struct Telling {
    partition: u32,
    to: Option<Arc<dyn Announce>>,
    reached: ProgressView,
    is_told: bool,
    told: Instant,
}

impl Telling {
    pub fn new(of: &Partition, reached: ProgressView) -> Self {
        Self { partition: of.number, to: of.announce.clone(), reached, is_told: false, told: Instant::now() }
    }

    /// Notes how far the partition is.
    pub fn note(&mut self, reached: ProgressView, at_once: bool) {
        if self.to.is_none() {
            return;
        }
        (self.reached, self.is_told) = (reached, false);
        if at_once || self.told.elapsed() >= EVERY {
            self.tell();
        }
    }

    /// Resolves when it should be told.
    pub async fn is_due(&self) {
        if self.to.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.told + if self.is_told { AGAIN } else { EVERY }).await;
    }

    /// Tells it.
    pub fn tell(&mut self) {
        if let Some(to) = &self.to {
            (self.told, self.is_told) = (Instant::now(), true);
            // The next one comes soon: nobody waits for this one.
            drop(to.announce(self.partition, Seen::Progress(self.reached.clone())));
        }
    }
}
