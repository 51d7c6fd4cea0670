//! The owner of partitions.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sendtrail_eventlog::{EventLog, Pulse};
use sendtrail_processor::core::step::LOGIC_VERSION;
use sendtrail_processor::{Inquiries, Partition, PartitionHandle, Snapshots};
use sendtrail_schemas::record::Settings;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::config::Config;

/// The partitions of this process.
#[derive(Default)]
pub struct Owning {
    /// They run.
    pub partitions: Vec<PartitionHandle>,
}

impl Owning {
    /// Starts all partitions; returns once everything in the log is applied.
    pub async fn start(config: &Config, shared: &Shared, stop: &CancellationToken) -> anyhow::Result<Self> {
        if let Some(exchange) = &shared.exchange {
            for number in 0..config.log.partitions {
                exchange.reign(number).await?;
            }
        }
        let folder = &config.state.snapshots;
        let every = Duration::from_secs(config.state.snapshot_seconds);
        // Of this log: others may use the same folder.
        let folder = (!folder.as_os_str().is_empty()).then(|| folder.join(config.kafka_options().log_name()));
        let snapshots = folder.map(|folder| Snapshots::in_folder(&folder, every));
        let snapshots = snapshots.transpose().context("open the snapshots")?.map(Arc::new);
        let mut partitions = Vec::new();
        for (number, pulse) in (0..).zip(&shared.pulses) {
            let partition = partition(config, shared, number, pulse.clone(), snapshots.clone());
            partitions.push(partition.start(stop.clone())?);
        }
        catch_up(&*shared.log, &shared.pulses).await;
        Ok(Self { partitions })
    }

    /// Where questions go, by partition.
    pub fn inquiries(&self) -> Vec<Inquiries> {
        self.partitions.iter().map(|partition| partition.inquiries.clone()).collect()
    }
}

fn partition(
    config: &Config,
    shared: &Shared,
    number: u32,
    pulse: Arc<Pulse>,
    snapshots: Option<Arc<Snapshots>>,
) -> Partition {
    Partition {
        number,
        log: shared.log.clone(),
        store: shared.store.clone(),
        views: shared.views.clone(),
        replies: shared.replies.clone(),
        announce: shared.announce(),
        pulse,
        retention: shared.retention.clone(),
        clock: shared.clock.clone(),
        settings: Settings {
            logic_version: LOGIC_VERSION,
            simulated: config.log.simulated,
            repeatable_horizon_hours: config.dedup.repeatable_horizon_hours,
            system_sender: config.sending.system_sender.clone(),
        },
        checkpoint_every: config.checkpoint_every(),
        snapshots,
    }
}

/// Waits until everything in the log is applied, so that what is outside begins with what is inside.
async fn catch_up(log: &dyn EventLog, pulses: &[Arc<Pulse>]) {
    for (number, pulse) in pulses.iter().enumerate() {
        let end = *log.end(TopicPartition::new(Topic::Intake, number as u32)).borrow();
        loop {
            let wait = tokio::time::timeout(Duration::from_millis(200), pulse.reached(end)).await;
            // A halted partition never catches up; the others serve, and health tells.
            if wait.is_ok() || pulse.halted().is_some() {
                break;
            }
        }
    }
}
