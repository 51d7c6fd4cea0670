//! Which partitions this process owns, and where to ask them.

use std::collections::BTreeMap;

use metrics::{counter, gauge};
use sendtrail_processor::Inquiries;
use tokio::sync::watch;

/// See the module. Told by whoever keeps the partitions, read by everyone.
#[derive(Default)]
pub struct Ownership(watch::Sender<BTreeMap<u32, Owned>>);

/// A partition that is owned here, perhaps not quite yet.
#[derive(Default)]
struct Owned {
    /// Once it runs.
    inquiries: Option<Inquiries>,
    /// Whether everything is applied that was in the log when it began.
    is_ready: bool,
}

impl Ownership {
    /// A partition is about to be owned here: nobody else owns it.
    pub fn begin(&self, partition: u32) {
        self.0.send_modify(|owned| drop(owned.insert(partition, Owned::default())));
    }

    /// It runs, and answers.
    pub fn runs(&self, partition: u32, inquiries: Inquiries) {
        let inquiries = Some(inquiries);
        self.0.send_modify(|owned| drop(owned.insert(partition, Owned { inquiries, is_ready: false })));
        self.moved("here");
    }

    /// Everything is applied that was in the log when it began.
    pub fn is_ready(&self, partition: u32) {
        self.0.send_modify(|owned| {
            if let Some(owned) = owned.get_mut(&partition) {
                owned.is_ready = true;
            }
        });
    }

    /// A partition is owned here no more.
    pub fn end(&self, partition: u32) {
        let mut ran = false;
        self.0.send_modify(|owned| ran = owned.remove(&partition).is_some_and(|owned| owned.inquiries.is_some()));
        if ran {
            self.moved("away");
        }
    }

    fn moved(&self, to: &'static str) {
        counter!("sendtrail_rebalances_total", "to" => to).increment(1);
        let run = self.0.borrow().values().filter(|owned| owned.inquiries.is_some()).count();
        gauge!("sendtrail_partitions_owned").set(run as f64);
    }

    /// Whether a partition is owned here, or about to be.
    pub fn has(&self, partition: u32) -> bool {
        self.0.borrow().contains_key(&partition)
    }

    /// Whether what is known here of a partition is what was true when it began, or newer.
    pub fn knows(&self, partition: u32) -> bool {
        self.0.borrow().get(&partition).is_some_and(|owned| owned.is_ready)
    }

    /// Where a partition is asked, if it runs here.
    pub fn of(&self, partition: u32) -> Option<Inquiries> {
        self.0.borrow().get(&partition)?.inquiries.clone()
    }

    /// Resolves once a partition runs here, or once it does no more.
    pub async fn becomes(&self, partition: u32, running: bool) {
        let mut changes = self.0.subscribe();
        let runs = |all: &BTreeMap<u32, Owned>| all.get(&partition).is_some_and(|owned| owned.inquiries.is_some());
        // The sender lives as long as this does.
        let _ = changes.wait_for(|all| runs(all) == running).await;
    }
}
