//! What acts on the world: mail and webhooks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sendtrail_eventlog::objects::Place;
use sendtrail_eventlog::{Blobs, Clock, EventLog};
use sendtrail_processor::Store;
use sendtrail_processor::delivery::{Delivery, Mix, Simulator, oldest_waiting};
use sendtrail_processor::dispatch::{BookSnapshots, Dispatcher, History};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Tasks;
use super::shared::Shared;
use crate::backbone::Backbone;
use crate::config::Config;
use crate::roles::Role;

/// Starts what the roles ask for, for every partition.
///
/// # Errors
/// When the folder of snapshots cannot be opened.
pub fn start(
    config: &Config,
    shared: &Shared,
    backbone: &Backbone,
    history: &Arc<dyn History>,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let roles = &config.server.roles;
    tasks.spawn(look_at(config.places(), tasks.stop.clone()));
    if roles.has(Role::Delivery) {
        let old = OldBlobs {
            blobs: shared.blobs.clone(),
            clock: shared.clock.clone(),
            days: config.blobs.retention_days,
            log: shared.log.clone(),
            store: shared.store.clone(),
            partitions: config.log.partitions,
        };
        tasks.spawn(old.run(tasks.stop.clone()));
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
                waits: shared.waits.clone(),
            };
            tasks.spawn(delivery.run(tasks.stop.clone()));
        }
    }
    if roles.has(Role::Dispatcher) {
        let turns = Arc::new(Semaphore::new(config.webhooks.concurrency));
        let every = Duration::from_secs(config.state.snapshot_seconds);
        let snapshots = config.book_snapshots().map(|place| BookSnapshots::open(&place, every));
        let snapshots = match snapshots.transpose().context("open the snapshots of webhooks")? {
            Some(snapshots) => Some(Arc::new(snapshots.of(backbone.identity(config)?))),
            None => None,
        };
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

/// Tells soon of a place that the settings name wrongly: those who use it only find out by and by, and try again.
async fn look_at(places: Vec<Place>, stop: CancellationToken) {
    for place in places {
        tokio::select! {
            () = stop.cancelled() => return,
            seen = place.look() => {
                if let Err(error) = seen {
                    tracing::error!(%place, %error, "a place that the settings name does not answer");
                }
            }
        }
    }
}

/// Drops bodies that are old, and of no message that waits: a server may have been away for longer than they are kept.
struct OldBlobs {
    blobs: Blobs,
    clock: Clock,
    days: u32,
    log: Arc<dyn EventLog>,
    store: Store,
    partitions: u32,
}

impl OldBlobs {
    async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                dropped = self.drop_old() => {
                    if let Err(error) = dropped {
                        tracing::warn!(%error, "old message bodies could not be dropped");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(3_600)) => {}
            }
        }
    }

    async fn drop_old(&self) -> anyhow::Result<()> {
        let before = self.clock.now().day() - self.days as i32;
        let waiting = oldest_waiting(&self.log, &self.store, self.partitions).await?;
        // A body is stored before its message is accepted, perhaps on the day before.
        Ok(self.blobs.drop_before(waiting.map_or(before, |day| before.min(day - 1))).await?)
    }
}
