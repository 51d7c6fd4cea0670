//! What acts on the world: mail and webhooks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sendtrail_eventlog::{Blobs, Clock};
use sendtrail_processor::delivery::{Delivery, Mix, Simulator};
use sendtrail_processor::dispatch::{BookSnapshots, Dispatcher, History};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Tasks;
use super::shared::Shared;
use crate::config::Config;
use crate::roles::Role;

/// Starts what the roles ask for, for every partition.
///
/// # Errors
/// When the folder of snapshots cannot be opened.
pub fn start(config: &Config, shared: &Shared, history: &Arc<dyn History>, tasks: &mut Tasks) -> anyhow::Result<()> {
    let roles = &config.server.roles;
    if roles.has(Role::Delivery) {
        let days = config.blobs.retention_days;
        tasks.spawn(drop_old_blobs(shared.blobs.clone(), shared.clock.clone(), days, tasks.stop.clone()));
        let transport = Arc::new(Simulator::new(mix(config)));
        for number in 0..config.log.partitions {
            let delivery = Delivery {
                partition: number,
                log: shared.log.clone(),
                store: shared.store.clone(),
                blobs: shared.blobs.clone(),
                clock: shared.clock.clone(),
                retention: shared.retention.clone(),
                transport: transport.clone(),
                checkpoint_every: config.checkpoint_every(),
            };
            tasks.spawn(delivery.run(tasks.stop.clone()));
        }
    }
    if roles.has(Role::Dispatcher) {
        let turns = Arc::new(Semaphore::new(config.webhooks.concurrency));
        let every = Duration::from_secs(config.state.snapshot_seconds);
        let snapshots = config.book_snapshots().map(|folder| BookSnapshots::in_folder(&folder, every));
        let snapshots = snapshots.transpose().context("open the snapshots of webhooks")?.map(Arc::new);
        for (number, pulse) in (0..).zip(&shared.pulses) {
            let dispatcher = Dispatcher {
                partition: number,
                partitions: config.log.partitions,
                log: shared.log.clone(),
                store: shared.store.clone(),
                pulse: pulse.clone(),
                sender: shared.sender.clone(),
                turns: turns.clone(),
                patience: config.webhook_patience(),
                history: history.clone(),
                snapshots: snapshots.clone(),
                retention: shared.retention.clone(),
                checkpoint_every: config.checkpoint_every(),
            };
            tasks.spawn(dispatcher.run(tasks.stop.clone()));
        }
    }
    Ok(())
}

fn mix(config: &Config) -> Mix {
    let simulator = &config.simulator;
    Mix {
        permanent_bounce_ppm: simulator.permanent_bounce_ppm,
        delay_ppm: simulator.delay_ppm,
        complaint_ppm: simulator.complaint_ppm,
        open_ppm: simulator.open_ppm,
        click_ppm: simulator.click_ppm,
        delivery_delay: i64::from(simulator.delivery_delay_ms),
        reaction_delay: i64::from(simulator.reaction_delay_ms),
    }
}

async fn drop_old_blobs(blobs: Blobs, clock: Clock, days: u32, stop: CancellationToken) {
    loop {
        let before = clock.now().day() - days as i32;
        let folder = blobs.clone();
        match tokio::task::spawn_blocking(move || folder.drop_before(before)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "old message bodies could not be dropped"),
            Err(error) => tracing::warn!(%error, "old message bodies could not be dropped"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(3_600)) => {}
        }
    }
}
