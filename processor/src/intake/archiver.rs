//! Writes the intake of a partition to the archive, and now and then its state, for as long as this process owns it.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_eventlog::{Error as LogError, EventLog, Reader, Retention};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::IntakeArchive;
use super::segment::{self, Name, Writer};
use crate::{Error, Store, blocking};

/// How often it is looked what the log has.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether a base is due, and what is too old.
const TIDY: Duration = Duration::from_secs(3_600);
/// Records that are written without waiting for more.
const MANY: u64 = 200_000;
/// Bytes of intake that are read together.
const READ_BYTES: usize = 1 << 20;
/// What to do when it is not this log's.
const ANOTHERS: &str = "the folder has another log's: name another, or put the log right";
/// How long the end of a server may wait for the last segment; the next server writes it otherwise.
const LAST: Duration = Duration::from_secs(10);

/// See the module.
pub struct Archiver {
    /// Where it goes.
    pub archive: Arc<IntakeArchive>,
    /// Which partition.
    pub partition: u32,
    /// What has it.
    pub log: Arc<dyn EventLog>,
    /// The state that bases are of.
    pub store: Store,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
}

/// How far it is.
#[derive(Default)]
pub(super) struct Progress {
    /// The offset that comes next, once that is known.
    next: Option<u64>,
    /// Since when something waits.
    since: Option<Instant>,
    tidied: Option<Instant>,
}

impl Archiver {
    /// Archives until it is stopped, then what is left.
    pub async fn run(self, stop: CancellationToken) {
        let mut progress = Progress::default();
        while !stop.is_cancelled() {
            let work = async {
                self.try_once(&mut progress, false).await;
                sleep(LOOK).await;
            };
            // What is broken off is done again: whoever owns the partition next waits for this to end.
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        }
        if timeout(LAST, self.try_once(&mut progress, true)).await.is_err() {
            tracing::warn!(partition = self.partition, "the last of intake is archived by the next server");
        }
    }

    async fn try_once(&self, progress: &mut Progress, is_last: bool) {
        let Err(error) = self.once(progress, is_last).await else { return };
        counter!("sendtrail_intake_archive_failures_total").increment(1);
        tracing::error!(partition = self.partition, %error, "intake could not be archived; it stays in the log");
        // It goes on from what was acknowledged here: a file that is there may not be on the device.
        if !is_last {
            sleep(LOOK * 4).await;
        }
    }

    pub(super) async fn once(&self, progress: &mut Progress, is_last: bool) -> Result<(), Error> {
        let intake = TopicPartition::new(Topic::Intake, self.partition);
        let mut next = match progress.next {
            Some(next) => next,
            None => self.begin().await?,
        };
        let end = *self.log.end(intake).borrow();
        if next > end {
            return Err(Error::Intake(format!("records up to {next} are archived, the log ends at {end}; {ANOTHERS}")));
        }
        progress.next = Some(next);
        self.retention.passed(Reader::IntakeArchive, intake, next);
        if next == end {
            progress.since = None;
        } else {
            let waits = progress.since.get_or_insert_with(Instant::now).elapsed();
            if is_last || end - next >= MANY || waits >= self.archive.every {
                while next < end {
                    next = match self.write(intake, next, end).await {
                        Ok(next) => next,
                        Err(error) => {
                            if matches!(error, Error::Log(LogError::Trimmed { .. })) {
                                // What the log lost meanwhile is passed over by a base, as at a start.
                                progress.next = None;
                            }
                            return Err(error);
                        }
                    };
                    progress.next = Some(next);
                    self.retention.passed(Reader::IntakeArchive, intake, next);
                }
                progress.since = None;
            }
        }
        if !is_last && progress.tidied.is_none_or(|tidied| tidied.elapsed() >= TIDY) {
            progress.tidied = Some(Instant::now());
            self.base_if_due().await?;
            self.archive.prune(self.partition).await?;
        }
        Ok(())
    }

    /// Where to go on. What the log no longer has, and the archive never got, is passed over by a base.
    async fn begin(&self) -> Result<u64, Error> {
        let mut kept = self.archive.kept(self.partition).await?;
        let intake = TopicPartition::new(Topic::Intake, self.partition);
        kept.segments.sort_unstable_by_key(|segment| segment.next);
        // Not from a base that is further than the records: older bases need those in between.
        let mut next = None;
        while let Some(last) = kept.segments.pop().filter(|_| next.is_none()) {
            next = self.settle(intake, &last).await?;
        }
        let next = next.unwrap_or_else(|| kept.bases.first().map_or(0, |(offset, _)| *offset));
        match sendtrail_eventlog::read(&self.log, intake, next, 1).await {
            Err(LogError::Trimmed { first, .. }) => {
                let state = self.store.progress(self.partition)?.map_or(0, |progress| progress.next_offset);
                if state < first {
                    return Err(Error::Intake(format!("the log begins at {first}, the state is at {state}")));
                }
                let at = self.base().await?;
                if next > 0 {
                    tracing::error!(
                        partition = self.partition,
                        from = next,
                        to = first,
                        "the log let intake go that was not archived; the state can be rebuilt from here on"
                    );
                }
                Ok(at)
            }
            read => read.map(|_| next).map_err(Error::from),
        }
    }

    /// Sees to it that a segment is on the device, for whoever wrote it may have ended before it was, and that it is of this log; where
    /// to go on. None: it is torn.
    async fn settle(&self, of: TopicPartition, last: &Name) -> Result<Option<u64>, Error> {
        let name = last.to_string();
        let bytes = self.archive.objects.get(self.partition, &name).await?;
        let records = match segment::read(last, &bytes) {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(partition = self.partition, %error, "it is written once more if the log still has it");
                return Ok(None);
            }
        };
        self.archive.objects.put(self.partition, &name, bytes).await?;
        let Some(last) = records.last() else { return Ok(Some(last.next)) };
        match sendtrail_eventlog::read(&self.log, of, last.offset, 1).await {
            Ok(batches) => {
                let there = batches.iter().flat_map(|batch| batch.records(last.offset)).next();
                if there.is_some_and(|there| there != *last) {
                    return Err(Error::Intake(format!("record {} of the log is another; {ANOTHERS}", last.offset)));
                }
                Ok(Some(last.offset + 1))
            }
            // It had it, and let it go since.
            Err(LogError::Trimmed { .. }) => Ok(Some(last.offset + 1)),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the segment that begins at an offset; where it ends.
    async fn write(&self, of: TopicPartition, first: u64, end: u64) -> Result<u64, Error> {
        let _turn = self.archive.turn().await?;
        let (log, most) = (self.log.clone(), self.archive.segment_bytes);
        let (name, bytes) = blocking("archive intake", move || gather(&*log, of, first, end, most)).await?;
        let next = name.next;
        if next == first {
            return Err(Error::Intake(format!("the log says that it ends at {end}, and has nothing at {first}")));
        }
        counter!("sendtrail_intake_archived_bytes_total").increment(bytes.len() as u64);
        reach("intake.before");
        self.archive.objects.put(self.partition, &name.to_string(), bytes).await?;
        reach("intake.archived");
        Ok(next)
    }

    /// Writes a base when the newest is old and there is something new.
    pub(super) async fn base_if_due(&self) -> Result<(), Error> {
        let Some(progress) = self.store.progress(self.partition)? else { return Ok(()) };
        let kept = self.archive.kept(self.partition).await?;
        let old = self.archive.keep / 4;
        let is_due = match kept.bases.first() {
            Some((offset, _)) if *offset >= progress.next_offset => false,
            Some((_, name)) => match self.archive.objects.manifest(self.partition, name).await {
                Ok(base) => self.archive.clock.now().0 - base.progress.last_t >= old,
                Err(error @ Error::Snapshot(_)) => {
                    tracing::error!(partition = self.partition, %error, "a base is damaged; another one is made");
                    true
                }
                Err(error) => return Err(error),
            },
            // Whatever begins later than the log is of no use without one.
            None => match kept.beginning() {
                Some(at) => Millis::wall().0 - at.0 >= old,
                None => !kept.segments.is_empty(),
            },
        };
        if is_due { self.base().await.map(|_| ()) } else { Ok(()) }
    }

    /// Writes all of the state as of its checkpoint; the offset it is at.
    pub(super) async fn base(&self) -> Result<u64, Error> {
        let _turn = self.archive.turn().await?;
        let view = self.store.view();
        if view.progress(self.partition)?.is_none() {
            return Err(Error::Intake("there is no state to keep yet".into()));
        }
        let base = self.archive.objects.write(view, self.partition, None).await?;
        Ok(base.progress.next_offset)
    }
}

/// The records from an offset on, up to another or until there is enough of them.
fn gather(log: &dyn EventLog, of: TopicPartition, first: u64, end: u64, most: usize) -> Result<(Name, Vec<u8>), Error> {
    let mut segment = Writer::new(first)?;
    while segment.next() < end && segment.raw_bytes() < most {
        let batches = log.read(of, segment.next(), READ_BYTES)?;
        if batches.is_empty() {
            break;
        }
        let from = segment.next();
        for record in batches.iter().flat_map(|batch| batch.records(from)) {
            segment.push(&record)?;
        }
    }
    segment.finish()
}
