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

impl Owned {
    fn runs(&self) -> bool {
        self.inquiries.is_some()
    }
}

/// Tells that a partition came or left, and how many there are.
fn moved(all: &BTreeMap<u32, Owned>, to: &'static str) {
    counter!("sendtrail_rebalances_total", "to" => to).increment(1);
    gauge!("sendtrail_partitions_owned").set(all.values().filter(|owned| owned.runs()).count() as f64);
}

impl Ownership {
    /// A partition is about to be owned here: nobody else owns it.
    pub fn begin(&self, partition: u32) {
        self.0.send_modify(|owned| drop(owned.insert(partition, Owned::default())));
    }

    /// It runs, and answers.
    pub fn set_running(&self, partition: u32, inquiries: Inquiries) {
        self.0.send_modify(|all| {
            all.entry(partition).or_default().inquiries = Some(inquiries);
            moved(all, "here");
        });
    }

    /// Everything is applied that was in the log when it began.
    pub fn set_ready(&self, partition: u32) {
        self.0.send_modify(|all| {
            if let Some(owned) = all.get_mut(&partition) {
                owned.is_ready = true;
            }
        });
    }

    /// A partition is owned here no more.
    pub fn end(&self, partition: u32) {
        self.0.send_modify(|all| {
            if all.remove(&partition).is_some_and(|owned| owned.runs()) {
                moved(all, "away");
            }
        });
    }

    /// Does something that a partition does itself where it is owned: not if that is here, or about to be.
    pub fn unless_owned(&self, partition: u32, work: impl FnOnce()) {
        // Nothing begins meanwhile.
        let all = self.0.borrow();
        if !all.contains_key(&partition) {
            work();
        }
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

    /// Resolves once everything is applied that was in the log when a partition began here.
    pub async fn ready(&self, partition: u32) {
        let mut changes = self.0.subscribe();
        // The sender lives as long as this does.
        let _ = changes.wait_for(|all| all.get(&partition).is_some_and(|owned| owned.is_ready)).await;
    }

    /// Resolves once a partition runs here, or once it does no more.
    pub async fn becomes(&self, partition: u32, running: bool) {
        let mut changes = self.0.subscribe();
        let runs = |all: &BTreeMap<u32, Owned>| all.get(&partition).is_some_and(Owned::runs);
        // The sender lives as long as this does.
        let _ = changes.wait_for(|all| runs(all) == running).await;
    }
}
