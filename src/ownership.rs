//! Which partitions this process owns, and where to ask them.

use std::collections::BTreeMap;

use metrics::{counter, gauge};
use sendtrail_processor::Inquiries;
use tokio::sync::watch;

/// See the module. Told by whoever keeps the partitions, read by everyone.
#[derive(Default)]
pub struct Ownership(watch::Sender<BTreeMap<u32, Inquiries>>);

impl Ownership {
    /// A partition is owned here from now on.
    pub fn begin(&self, partition: u32, inquiries: Inquiries) {
        self.0.send_modify(|owned| drop(owned.insert(partition, inquiries)));
        self.moved("here");
    }

    /// A partition is owned here no more.
    pub fn end(&self, partition: u32) {
        if self.0.send_if_modified(|owned| owned.remove(&partition).is_some()) {
            self.moved("away");
        }
    }

    fn moved(&self, to: &'static str) {
        counter!("sendtrail_rebalances_total", "to" => to).increment(1);
        gauge!("sendtrail_partitions_owned").set(self.0.borrow().len() as f64);
    }

    /// Whether a partition is owned here.
    pub fn has(&self, partition: u32) -> bool {
        self.0.borrow().contains_key(&partition)
    }

    /// Where a partition is asked, if it is owned here.
    pub fn of(&self, partition: u32) -> Option<Inquiries> {
        self.0.borrow().get(&partition).cloned()
    }

    /// Resolves once a partition is owned here, or once it is no more.
    pub async fn becomes(&self, partition: u32, owned: bool) {
        let mut changes = self.0.subscribe();
        // The sender lives as long as this does.
        let _ = changes.wait_for(|all| all.contains_key(&partition) == owned).await;
    }
}
