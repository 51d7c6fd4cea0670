//! The owner of one partition: reads intake in order, steps, makes outputs durable, answers, checkpoints.
//!
//! ```text
//! thread:    read → decode → load keys → step → encode outputs ─┐ bounded
//! completer: outputs durable → views → answers → applied        ◄┘
//!            checkpoint, once all outputs before it are durable → trim
//! ```

mod applying;
mod completer;
mod prepare;
mod questions;
mod records;
mod takeover;
mod telling;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use parking_lot::Mutex;
use sendtrail_eventlog::{Announce, Clock, Error as LogError, EventLog, Pulse, Reader, Replies, Retention};
use sendtrail_schemas::codec;
use sendtrail_schemas::exchange::{ProgressView, Seen};
use sendtrail_schemas::record::{Body, Record, Settings};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::core::effects::Effects;
use crate::core::overlay::{Overlay, Progress};
use crate::core::step::LOGIC_VERSION;
use crate::snapshots::Taker;
use crate::store::Writes;
use crate::{Error, Snapshots, Store, Views};
pub(crate) use applying::{load_for, step_safely};
use completer::{Completer, note_durable};
use prepare::newer_logic;
pub(crate) use prepare::{Prepared, prepare};
pub use questions::{Inquiries, Inquiry};
use records::{append, scan};

/// Bytes of intake that are read together.
const READ_BYTES: usize = 256 << 10;
/// How long to wait before going back to the checkpoint after a failure.
const BACKOFF: Duration = Duration::from_millis(500);

/// What is told of a partition that is here.
const GAUGES: [&str; 4] = [
    "sendtrail_checkpoint_timestamp_seconds",
    "sendtrail_snapshot_timestamp_seconds",
    "sendtrail_state_rows_in_memory",
    "sendtrail_accounts_in_memory",
];

/// What the owner of a partition works with.
pub struct Partition {
    /// Which.
    pub number: u32,
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// The state.
    pub store: Store,
    /// What others see of it.
    pub views: Views,
    /// Where decisions go.
    pub replies: Arc<dyn Replies>,
    /// Where other servers learn what they must know, if there may be others.
    pub announce: Option<Arc<dyn Announce>>,
    /// What others see of its progress.
    pub pulse: Arc<Pulse>,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
    /// Moved by records on a simulated log.
    pub clock: Clock,
    /// What the logic is to read besides records; becomes a record when it differs from the state.
    pub settings: Settings,
    /// How often the state is made durable.
    pub checkpoint_every: Duration,
    /// Where its state is kept for other servers, if anywhere.
    pub snapshots: Option<Arc<Snapshots>>,
    /// Whether everything in intake is applied before it ends; else another server goes on.
    pub drains: bool,
}

/// A running partition.
pub struct PartitionHandle {
    /// Where questions go.
    pub inquiries: Inquiries,
    thread: JoinHandle<()>,
}

impl PartitionHandle {
    /// Waits until the partition has made its last checkpoint and ended.
    pub fn join(self) {
        drop(self.inquiries);
        // A panic outside a step was logged by the panic hook.
        let _ = self.thread.join();
    }
}

/// Why a session ended.
enum Ended {
    Stopped,
    /// Go back to the checkpoint.
    Again(String),
    /// Apply nothing more.
    Halted(String),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error {
            Error::Log(cause @ LogError::Trimmed { .. }) => Self::Halted(format!(
                "{cause}: the state is older than the log reaches back; stop the server and put the data folder back \
                 from a newer backup"
            )),
            // Going back would only read it again.
            Error::Log(cause @ LogError::Corrupt { .. }) => Self::Halted(cause.to_string()),
            error => Self::Again(error.to_string()),
        }
    }
}

impl Partition {
    /// Starts the partition on a thread of its own. It ends when `stop` is cancelled.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be started.
    pub fn start(self, stop: CancellationToken) -> Result<PartitionHandle, Error> {
        let (inquiries, questions) = mpsc::channel(1_024);
        let handle = Handle::current();
        let name = format!("partition-{}", self.number);
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| self.run(&handle, questions, &stop))).is_err() {
                    // What was on its way is in doubt. Whoever looks must not take it for one that works.
                    self.halt("its thread panicked: restart the server".into());
                    handle.block_on(stop.cancelled());
                }
                self.tell_gone();
            })
            .map_err(|cause| Error::Io { what: format!("start {name}"), cause })?;
        Ok(PartitionHandle { inquiries, thread })
    }

    fn run(&self, handle: &Handle, mut questions: mpsc::Receiver<Inquiry>, stop: &CancellationToken) {
        let mut taker = None;
        loop {
            let ended = match self.ready(handle, &mut taker, stop) {
                Ok(()) => self.session(handle, &mut questions, stop, taker.as_ref()),
                Err(error) => error.into(),
            };
            match ended {
                Ended::Stopped => {
                    if let Some(taker) = taker {
                        taker.lock().finish();
                    }
                    return;
                }
                Ended::Again(why) => {
                    counter!("sendtrail_partition_restarts_total").increment(1);
                    tracing::error!(partition = self.number, %why, "going back to the checkpoint");
                    self.pulse.trouble(Some(why.clone()));
                    if stop.is_cancelled() {
                        return;
                    }
                    std::thread::sleep(BACKOFF);
                }
                Ended::Halted(why) => {
                    self.halt(why);
                    handle.block_on(stop.cancelled());
                    return;
                }
            }
        }
    }

    fn halt(&self, why: String) {
        tracing::error!(partition = self.number, %why, "the partition is halted");
        self.pulse.halt(why.clone());
        // What was true stays true.
        let kept = self.store.progress(self.number).ok().flatten().unwrap_or_default();
        let applied = kept.next_offset.max(*self.pulse.applied().borrow());
        self.tell(ProgressView { applied, halted: Some(why), ..reached(&kept) });
    }

    /// Whoever looks at this process's figures must not take it for one that stands still.
    fn tell_gone(&self) {
        self.pulse.trouble(None);
        let partition = self.number.to_string();
        for name in GAUGES {
            gauge!(name, "partition" => partition.clone()).set(0.0);
        }
    }

    /// Tells other servers how far it is. They are told again soon, so nobody waits for it.
    fn tell(&self, reached: ProgressView) {
        drop(self.announce.as_ref().map(|to| to.announce(self.number, Seen::Progress(reached))));
    }

    fn intake(&self) -> TopicPartition {
        TopicPartition::new(Topic::Intake, self.number)
    }

    /// From the last checkpoint until something ends it.
    fn session(
        &self,
        handle: &Handle,
        questions: &mut mpsc::Receiver<Inquiry>,
        stop: &CancellationToken,
        taker: Option<&Arc<Mutex<Taker>>>,
    ) -> Ended {
        let mut session = match Session::begin(self, handle, taker) {
            Ok(session) => session,
            Err(ended) => return ended,
        };
        let ended = loop {
            if let Err(ended) = session.turn(questions, stop) {
                break ended;
            }
        };
        session.end(ended)
    }
}

struct Session<'a> {
    of: &'a Partition,
    handle: &'a Handle,
    overlay: Overlay,
    /// Records that must not be applied, with the reason.
    skips: HashMap<u64, String>,
    end: watch::Receiver<u64>,
    /// Where the log ended when this began.
    began: u64,
    completer: Completer,
    taker: Option<Arc<Mutex<Taker>>>,
    checkpointed: Instant,
    dirty: bool,
    waiting: Vec<Inquiry>,
    effects: Effects,
}

impl<'a> Session<'a> {
    fn begin(of: &'a Partition, handle: &'a Handle, taker: Option<&Arc<Mutex<Taker>>>) -> Result<Self, Ended> {
        let progress = of.store.progress(of.number)?.unwrap_or_default();
        let end = of.log.end(of.intake());
        let (next, ends) = (progress.next_offset, *end.borrow());
        if next > ends {
            let why = "this is not the log that the state was made from: put the log or the data folder right";
            return Err(Ended::Halted(format!(
                "the state is at intake record {next} and the log ends at {ends}; {why}"
            )));
        }
        let (skips, announced) = scan(of, progress.next_offset, *end.borrow())?;
        let known = announced.or_else(|| progress.settings.clone());
        if let Some(version) = known.as_ref().map(|known| known.logic_version).filter(|known| *known > LOGIC_VERSION) {
            return Err(Ended::Halted(newer_logic(version)));
        }
        // What was once decided by newer logic is not decided by older logic again.
        let logic_version = known.as_ref().map_or(0, |known| known.logic_version).max(of.settings.logic_version);
        let wanted = Settings { logic_version, ..of.settings.clone() };
        if known.as_ref() != Some(&wanted) {
            let record = Record { version: codec::VERSION, body: Some(Body::Settings(wanted)), ..Record::default() };
            append(of, handle, &record)?;
        }
        note_durable(of.number);
        of.pulse.set_applied(progress.next_offset, Millis(progress.last_t));
        of.tell(reached(&progress));
        // A partition to which nothing comes must not keep the log from being trimmed.
        of.retention.passed(Reader::Processor, of.intake(), progress.next_offset);
        let completer = Completer::start(of, handle, taker.cloned(), reached(&progress));
        let overlay = Overlay::new(of.number, progress);
        Ok(Self {
            of,
            handle,
            overlay,
            skips,
            end,
            began: ends,
            completer,
            taker: taker.cloned(),
            checkpointed: Instant::now(),
            dirty: false,
            waiting: Vec::new(),
            effects: Effects::default(),
        })
    }

    /// Applies what there is, or waits for something to do.
    fn turn(&mut self, questions: &mut mpsc::Receiver<Inquiry>, stop: &CancellationToken) -> Result<(), Ended> {
        self.completer.check()?;
        self.checkpoint_if_due()?;
        while let Ok(inquiry) = questions.try_recv() {
            self.waiting.push(inquiry);
        }
        self.answer_questions()?;
        let next = self.overlay.progress.next_offset;
        let is_over = stop.is_cancelled() && !self.of.drains;
        if *self.end.borrow_and_update() > next && !is_over {
            return self.apply();
        }
        if !stop.is_cancelled() {
            // A log that breaks off wakes nobody.
            self.of.log.read(self.of.intake(), next, 1).map_err(Error::from)?;
        }
        if !self.dirty && self.completer.is_committed() {
            self.of.pulse.trouble(None);
            note_durable(self.of.number);
            // The last of what came must get into a snapshot, too.
            if let Some(taker) = &self.taker {
                taker.lock().look();
            }
        }
        if stop.is_cancelled() {
            return Err(Ended::Stopped);
        }
        // Woken by new records, questions, the end, or the next checkpoint.
        let nap = if self.dirty { self.of.checkpoint_every } else { Duration::from_secs(5) };
        self.handle.block_on(async {
            tokio::select! {
                _ = self.end.changed() => {}
                Some(inquiry) = questions.recv() => self.waiting.push(inquiry),
                () = stop.cancelled() => {}
                () = tokio::time::sleep(nap) => {}
            }
        });
        Ok(())
    }

    fn checkpoint_if_due(&mut self) -> Result<(), Ended> {
        if !self.dirty || self.checkpointed.elapsed() < self.of.checkpoint_every || !self.completer.is_committed() {
            return Ok(());
        }
        self.checkpoint()
    }

    fn checkpoint(&mut self) -> Result<(), Ended> {
        let writes = Writes::take(&mut self.overlay);
        let (rows, accounts) = self.overlay.held();
        gauge!("sendtrail_state_rows_in_memory", "partition" => self.of.number.to_string()).set(rows as f64);
        gauge!("sendtrail_accounts_in_memory", "partition" => self.of.number.to_string()).set(accounts as f64);
        self.checkpointed = Instant::now();
        self.dirty = false;
        self.completer.commit(writes)
    }

    /// Makes a last checkpoint when all is well, and waits until nothing is on its way any more: the next session must
    /// not read a store that still changes.
    fn end(mut self, ended: Ended) -> Ended {
        let last = if matches!(ended, Ended::Stopped) { self.last_checkpoint() } else { Ok(()) };
        self.completer.finish(self.handle);
        last.err().unwrap_or(ended)
    }

    fn last_checkpoint(&mut self) -> Result<(), Ended> {
        while !self.completer.is_committed() {
            self.completer.check()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.dirty { self.checkpoint() } else { Ok(()) }
    }
}

/// How far a partition is, as others see it.
fn reached(progress: &Progress) -> ProgressView {
    ProgressView {
        applied: progress.next_offset,
        next_event: progress.next_event,
        last_t: progress.last_t,
        halted: None,
    }
}

#[cfg(test)]
mod tests;
