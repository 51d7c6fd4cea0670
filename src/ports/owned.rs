//! Accounts, from the partitions that own them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sendtrail_eventlog::{EventLog, Pulse, SETTLE};
use sendtrail_processor::SinkHandle;
use sendtrail_query_api::Answered;
use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::reputation::Reputation;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition, partition_of};

use crate::elsewhere::Elsewhere;
use crate::reception::Owners;

/// Accounts, from the partitions that own them.
pub struct OwnedAccounts {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Who knows their windows.
    pub owners: Owners,
    /// How far the partitions are.
    pub pulses: Vec<Arc<Pulse>>,
    /// What is known of partitions that others own.
    pub elsewhere: Arc<Elsewhere>,
    /// What shows events to readers, if it is here.
    pub sink: Option<Arc<SinkHandle>>,
    /// What readers see of the archive.
    pub cell: Arc<ArchiveCell>,
}

/// How often it is looked whether another server has written a file.
const FILED_EVERY: Duration = Duration::from_millis(200);

impl OwnedAccounts {
    fn end_of_intake(&self, partition: u32) -> u64 {
        *self.log.end(TopicPartition::new(Topic::Intake, partition)).borrow()
    }

    /// The time before which everything of a partition is seen.
    fn seen_at(&self, partition: u32) -> Millis {
        // First, since events of what is applied are in the log.
        let applied_at = self.pulses.get(partition as usize).map_or(Millis(0), |pulse| pulse.applied_at());
        let Some(sink) = &self.sink else { return applied_at };
        let end = self.next_event(partition);
        let (next, shown_at) = sink.shown(partition);
        if next >= end { applied_at } else { applied_at.min(shown_at) }
    }

    /// The number after the last event of a partition.
    fn next_event(&self, partition: u32) -> u64 {
        self.elsewhere.end_of_events(&*self.log, partition)
    }

    /// Waits until what is in a partition is applied, and seen where the sink is here; false: the sink has ended.
    async fn settle_partition(&self, partition: u32) -> bool {
        let intake = self.end_of_intake(partition);
        if let Some(pulse) = self.pulses.get(partition as usize) {
            pulse.reached(intake).await;
        }
        match &self.sink {
            Some(sink) => sink.seen(partition, self.next_event(partition)).await,
            None => true,
        }
    }

    /// The same, also in files that another server writes.
    async fn settle_files(&self, partition: u32) -> bool {
        let settled = self.settle_partition(partition).await;
        if self.sink.is_some() {
            return settled;
        }
        let next = self.next_event(partition);
        while self.cell.load().ends().get(&partition).copied().unwrap_or(0) < next {
            tokio::time::sleep(FILED_EVERY).await;
        }
        true
    }
}

#[async_trait]
impl sendtrail_query_api::Accounts for OwnedAccounts {
    async fn settle(&self, account: AccountId, within: Duration) -> Option<Millis> {
        let partition = partition_of(account, self.pulses.len() as u32);
        let settled = tokio::time::timeout(within, self.settle_partition(partition)).await;
        if settled == Ok(true) { None } else { Some(self.seen_at(partition)) }
    }

    async fn settle_wholly(&self, account: AccountId, within: Duration) -> bool {
        let partition = partition_of(account, self.pulses.len() as u32);
        tokio::time::timeout(within, self.settle_files(partition)).await == Ok(true)
    }

    async fn reputation(&self, account: AccountId) -> Result<Answered<Option<Reputation>>, sendtrail_query_api::Error> {
        let port = |why: &str| sendtrail_query_api::Error::Port(why.to_owned());
        let partition = partition_of(account, self.pulses.len() as u32);
        let ask = async |after: u64| self.owners.reputation(partition, account, after).await.map_err(|why| port(&why));
        let settled = tokio::time::timeout(SETTLE, ask(self.end_of_intake(partition))).await;
        if let Ok(answer) = settled {
            return Ok(Answered { value: answer?, as_of: None, is_makeshift: false });
        }
        // Behind by more than a reader should wait for: what is known so far, which another owner may have to reach again.
        let pulse = self.pulses.get(partition as usize).ok_or_else(|| port("there is no such partition"))?;
        let (at, offset) = (pulse.applied_at(), *pulse.applied().borrow());
        let known = tokio::time::timeout(SETTLE, ask(offset)).await;
        let value = known.map_err(|_| port("the partition does not answer"))??;
        Ok(Answered { value, as_of: Some(at), is_makeshift: false })
    }
}
