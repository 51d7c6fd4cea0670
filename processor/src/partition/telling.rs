//! Tells other servers how far a partition is: at once when somebody waits for it, else not too often.

use std::sync::Arc;
use std::time::Duration;

use sendtrail_eventlog::Announce;
use sendtrail_schemas::exchange::{ProgressView, Seen};
use tokio::time::Instant;

use super::Partition;

/// How long others may believe that a partition is where it was.
const EVERY: Duration = Duration::from_millis(50);

/// See the module.
pub struct Telling {
    partition: u32,
    to: Option<Arc<dyn Announce>>,
    /// What was not told yet.
    untold: Option<ProgressView>,
    told: Instant,
}

impl Telling {
    pub fn new(of: &Partition) -> Self {
        Self { partition: of.number, to: of.announce.clone(), untold: None, told: Instant::now() }
    }

    /// Notes how far the partition is.
    pub fn note(&mut self, reached: ProgressView, at_once: bool) {
        if self.to.is_none() {
            return;
        }
        self.untold = Some(reached);
        if at_once || self.told.elapsed() >= EVERY {
            self.tell();
        }
    }

    /// Resolves when something should be told.
    pub async fn is_due(&self) {
        if self.untold.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.told + EVERY).await;
    }

    /// Tells what was not told yet.
    pub fn tell(&mut self) {
        if let Some((to, reached)) = self.to.as_ref().zip(self.untold.take()) {
            self.told = Instant::now();
            // The next one comes soon: nobody waits for this one.
            drop(to.announce(self.partition, Seen::Progress(reached)));
        }
    }
}
