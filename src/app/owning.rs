//! The owner of partitions: of all, or of those that it is given while others own the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metrics::counter;
use sendtrail_eventlog::objects::Place;
use sendtrail_processor::{Archiver, IntakeArchive, Partition, PartitionHandle, Snapshots};
use sendtrail_schemas::record::Settings;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::backbone::Backbone;
use crate::config::Config;

/// How long a server waits at its start for the partitions that it is given; there may be none for it.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// How long until it is tried again to begin a partition.
const BACKOFF: Duration = Duration::from_millis(500);
/// Partitions that are begun at once.
const AT_ONCE: usize = 4;

/// The partitions of this process, as they come and go.
pub struct Owning {
    task: JoinHandle<()>,
}

impl Owning {
    /// Starts the partitions that this server owns; returns once everything in the log is applied that was in theirs. They end
    /// when `stop` is cancelled.
    pub async fn start(
        config: &Config,
        shared: &Arc<Shared>,
        backbone: &Backbone,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let every = Duration::from_secs(config.state.snapshot_seconds);
        let snapshots = config.snapshots().map(|place| Snapshots::open(&place, every));
        let snapshots = match snapshots.transpose().context("open the snapshots")? {
            Some(snapshots) => Some(Arc::new(snapshots.of(backbone.identity(config)?))),
            None => None,
        };
        let kept = config.archives_intake().then(|| {
            let every = Duration::from_secs(config.archive.intake_seconds);
            IntakeArchive::open(&config.intake_place(), config.archive.intake_days, every, shared.clock.clone())
        });
        if config.archive.intake_days == 0 {
            // Nothing is to be kept, also of what was.
            tokio::spawn(forget(config.clone(), stop.clone()));
        } else if let Place::Folder(usual) = config.usual_intake_place()
            && config.intake_place() != config.usual_intake_place()
            && usual.is_dir()
        {
            let usual = usual.display();
            tracing::warn!(%usual, "archive.intake is elsewhere now: nobody reads what was kept here, nor deletes it when its time is over");
        }
        // Of a rebuild that was broken off; as personal as the state.
        remove(&config.data.dir.join("rebuild"))?;
        let intake = kept.transpose().context("open the archive of intake")?.map(Arc::new);
        let keeper = Keeper {
            shared: shared.clone(),
            backbone: backbone.clone(),
            snapshots,
            intake,
            settings: Settings {
                logic_version: config.logic_version(),
                simulated: config.log.simulated,
                repeatable_horizon_hours: config.dedup.repeatable_horizon_hours,
                system_sender: config.sending.system_sender.clone(),
            },
            checkpoint_every: config.checkpoint_every(),
            drains: !config.shares_partitions(),
            beginning: Semaphore::new(AT_ONCE),
        };
        let keeper = Arc::new(keeper);
        let task = tokio::spawn(keeper.clone().run(stop.clone()));
        keeper.settled().await;
        Ok(Self { task })
    }

    /// Waits until the partitions ended, whose `stop` was cancelled.
    pub async fn join(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the keeper of partitions went wrong");
        }
    }
}

/// Deletes what was kept of intake.
async fn forget(config: Config, stop: CancellationToken) {
    let partitions = || (0..config.log.partitions).map(|partition| format!("partition-{partition:05}"));
    for place in [config.intake_place(), config.usual_intake_place()] {
        for kept in partitions().map(|name| place.join(&name)) {
            let cleared = tokio::select! {
                cleared = kept.clear() => cleared,
                () = stop.cancelled() => return,
            };
            if let Err(error) = cleared {
                tracing::error!(%kept, %error, "archived intake, of which nothing is to be kept, cannot be deleted");
                break;
            }
        }
    }
}

/// Deletes a folder, if there is one.
pub fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", folder.display()))
        }
        _ => Ok(()),
    }
}

struct Keeper {
    shared: Arc<Shared>,
    backbone: Backbone,
    snapshots: Option<Arc<Snapshots>>,
    intake: Option<Arc<IntakeArchive>>,
    settings: Settings,
    checkpoint_every: Duration,
    drains: bool,
    beginning: Semaphore,
}

impl Keeper {
    /// Owns what the log gives, until it is stopped.
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut assigned = self.shared.log.assignments();
        let mut running: BTreeMap<u32, (CancellationToken, JoinHandle<()>)> = BTreeMap::new();
        loop {
            let wanted: BTreeSet<u32> = match stop.is_cancelled() {
                true => BTreeSet::new(),
                false => assigned.borrow_and_update().iter().copied().collect(),
            };
            let gone: Vec<_> = running.extract_if(.., |partition, _| !wanted.contains(partition)).collect();
            // All at once, then each.
            gone.iter().for_each(|(_, (stop, _))| stop.cancel());
            for (partition, (_, task)) in gone {
                if let Err(error) = task.await {
                    tracing::error!(partition, %error, "a partition ended badly");
                }
            }
            if stop.is_cancelled() {
                return;
            }
            for partition in wanted {
                running.entry(partition).or_insert_with(|| {
                    let stop = CancellationToken::new();
                    let held = self.clone().hold(partition, stop.clone());
                    (stop, tokio::spawn(held))
                });
            }
            tokio::select! {
                // A log that is always its own never tells of others.
                Ok(()) = assigned.changed() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Owns a partition until it is stopped.
    async fn hold(self: Arc<Self>, partition: u32, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.begin(partition, &stop).await {
                Ok(running) => {
                    let archiver_stop = CancellationToken::new();
                    let archiving = tokio::spawn(self.clone().archive(partition, archiver_stop.clone()));
                    stop.cancelled().await;
                    // The thread is joined beside the runtime's workers, which it still needs.
                    let _ = tokio::task::spawn_blocking(move || running.join()).await;
                    archiver_stop.cancel();
                    // A panic in it was logged by the panic hook.
                    let _ = archiving.await;
                    self.end(partition);
                }
                Err(error) => {
                    tracing::warn!(partition, error = format!("{error:#}"), "a partition could not be begun");
                    self.end(partition);
                    let _ = timeout(BACKOFF, stop.cancelled()).await;
                }
            }
        }
    }

    async fn begin(&self, partition: u32, stop: &CancellationToken) -> anyhow::Result<PartitionHandle> {
        let shared = &self.shared;
        let pulse = shared.pulses.get(partition as usize).context("no such partition")?.clone();
        {
            // Each looks at the broker with clients of its own.
            let _turn = self.beginning.acquire().await?;
            self.backbone.acquire(partition).await?;
        }
        // From here on nobody else tells how far it is. What others had reached was not reached here yet.
        shared.ownership.begin(partition);
        pulse.set_applied(0, Millis(0));
        pulse.set_pending(Some((u64::MAX, Millis::wall().0)));
        pulse.resume();
        let reign = match &shared.steward {
            Some(steward) => Some(steward.begin(partition).await?),
            None => None,
        };
        let running = Partition {
            number: partition,
            log: shared.log.clone(),
            store: shared.store.clone(),
            views: shared.own.clone().context("this server owns nothing")?,
            replies: shared.replies.clone(),
            announce: shared.announce(),
            pulse: pulse.clone(),
            retention: shared.retention.clone(),
            clock: shared.clock.clone(),
            settings: self.settings.clone(),
            checkpoint_every: self.checkpoint_every,
            snapshots: self.snapshots.clone(),
            drains: self.drains,
        };
        let running = running.start(stop.clone())?;
        shared.ownership.set_running(partition, running.inquiries.clone());
        let (end, stop, shared) = (self.end_of(partition), stop.clone(), shared.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = pulse.reached(end) => {}
            }
            shared.ownership.set_ready(partition);
            if let Some((steward, reign)) = shared.steward.clone().zip(reign) {
                steward.set_right(partition, reign).await;
            }
        });
        Ok(running)
    }

    fn archiver(&self, partition: u32) -> Option<Archiver> {
        let (shared, archive) = (&self.shared, self.intake.clone()?);
        let (log, store, retention) = (shared.log.clone(), shared.store.clone(), shared.retention.clone());
        Some(Archiver { archive, partition, log, store, retention })
    }

    /// Archives what a partition takes in, if that is asked for, until it is stopped; begins anew after a panic.
    async fn archive(self: Arc<Self>, partition: u32, stop: CancellationToken) {
        while let Some(archiver) = self.archiver(partition).filter(|_| !stop.is_cancelled()) {
            let Err(error) = tokio::spawn(archiver.run(stop.clone())).await else { return };
            counter!("sendtrail_intake_archive_failures_total").increment(1);
            tracing::error!(partition, %error, "the archive of intake begins anew");
            let _ = timeout(BACKOFF, stop.cancelled()).await;
        }
    }

    /// Nothing of a partition is on its way any more.
    fn end(&self, partition: u32) {
        self.shared.ownership.end(partition);
        if let Some(steward) = &self.shared.steward {
            steward.end(partition);
        }
        self.backbone.release(partition);
    }

    fn end_of(&self, partition: u32) -> u64 {
        *self.shared.log.end(TopicPartition::new(Topic::Intake, partition)).borrow()
    }

    /// Waits until everything in the log is applied that is in partitions of this server, so that what is outside begins with
    /// what is inside.
    async fn settled(&self) {
        let mut assigned = self.shared.log.assignments();
        let given = timeout(GIVEN_WITHIN, assigned.wait_for(|given| !given.is_empty())).await;
        let Ok(Ok(given)) = given.map(|given| given.map(|given| given.clone())) else { return };
        for partition in given {
            let Some(pulse) = self.shared.pulses.get(partition as usize) else { continue };
            let given_up = async {
                // A halted partition never catches up; the others serve, and health tells. Nor does one that was taken away.
                while pulse.halted().is_none() && self.shared.log.assignments().borrow().contains(&partition) {
                    sleep(BACKOFF / 10).await;
                }
            };
            tokio::select! {
                () = self.shared.ownership.ready(partition) => {}
                () = given_up => {}
            }
        }
    }
}
