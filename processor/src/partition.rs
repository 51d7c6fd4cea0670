//! The owner of one partition: reads intake in order, steps, makes outputs durable, answers, checkpoints.
//!
//! ```text
//! thread:    read → decode → load keys → step → encode outputs ─┐ bounded
//! completer: outputs durable → views → answers → applied        ◄┘
//!            checkpoint, once all outputs before it are durable → trim
//! ```

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
use sendtrail_eventlog::{Announce, Batch, Clock, Error as LogError, EventLog, Pulse, Reader, Replies, Retention};
use sendtrail_schemas::codec;
use sendtrail_schemas::exchange::{ProgressView, Seen};
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::record::{Body, Decision, Outcome, Record, Refusal, Settings, Skip};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::core::effects::Effects;
use crate::core::overlay::{Keys, Overlay, Progress};
use crate::core::step::{LOGIC_VERSION, skip, step};
use crate::snapshots::Taker;
use crate::store::Writes;
use crate::{Error, Snapshots, Store, Views};
use completer::{Completer, Outputs, Work, note_durable};
use prepare::{Prepared, newer_logic, prepare};
pub use questions::{Inquiries, Inquiry};
use records::{append, numbered, scan};

/// Bytes of intake that are stepped together.
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
            .spawn(move || self.run(&handle, questions, &stop))
            .map_err(|cause| Error::Io { what: format!("start {name}"), cause })?;
        Ok(PartitionHandle { inquiries, thread })
    }

    fn run(self, handle: &Handle, mut questions: mpsc::Receiver<Inquiry>, stop: &CancellationToken) {
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
                    self.tell_gone();
                    return;
                }
                Ended::Again(why) => {
                    counter!("sendtrail_partition_restarts_total").increment(1);
                    tracing::error!(partition = self.number, %why, "going back to the checkpoint");
                    if stop.is_cancelled() {
                        return self.tell_gone();
                    }
                    std::thread::sleep(BACKOFF);
                }
                Ended::Halted(why) => {
                    tracing::error!(partition = self.number, %why, "the partition is halted");
                    // What was true stays true.
                    let kept = self.store.progress(self.number).ok().flatten().unwrap_or_default();
                    let applied = kept.next_offset.max(*self.pulse.applied().borrow());
                    self.tell(ProgressView { applied, halted: Some(why.clone()), ..reached(&kept) });
                    self.pulse.halt(why);
                    handle.block_on(stop.cancelled());
                    return self.tell_gone();
                }
            }
        }
    }

    /// Whoever looks at this process's figures must not take it for one that stands still.
    fn tell_gone(&self) {
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
        of.pulse.set_applied(progress.next_offset);
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
        self.of.pulse.set_pending_since(None);
        if !self.dirty && self.completer.is_committed() {
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

    /// Reads a piece of intake and steps it.
    fn apply(&mut self) -> Result<(), Ended> {
        let (of, next) = (self.of, self.overlay.progress.next_offset);
        let batches = of.log.read(of.intake(), next, READ_BYTES).map_err(Error::from)?;
        of.pulse.set_pending_since(batches.first().map(|batch| batch.received_at));
        let records = batches.iter().flat_map(|batch| batch.records(next));
        for record in records {
            let (offset, received_at) = (record.offset, Millis(record.received_at));
            match prepare(&record, &self.skips) {
                Prepared::Step(record, keys) => self.step(*record, &keys, offset, received_at)?,
                Prepared::Skip(payload, reason) => {
                    let reason = reason.to_owned();
                    skip(&mut self.overlay, payload.to_vec(), &reason, offset, received_at, &mut self.effects);
                    // What made it necessary must not be stepped again after the next restart.
                    self.checkpointed -= of.checkpoint_every;
                }
                Prepared::Poison(reason) => {
                    self.poison(offset, reason)?;
                    break;
                }
                Prepared::Newer(why) => {
                    self.emit()?;
                    return Err(Ended::Halted(format!("intake record {offset}: {why}")));
                }
            }
        }
        self.emit()
    }

    fn step(&mut self, record: Record, keys: &Keys, offset: u64, received_at: Millis) -> Result<(), Ended> {
        self.load(keys)?;
        let (overlay, effects) = (&mut self.overlay, &mut self.effects);
        let waiting = record.reply_to;
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            tests::panic_if_asked(&record);
            step(overlay, record, keys, offset, received_at, effects);
        }));
        stepped.map_err(|panic| {
            // The overlay is in doubt, and so are the effects of this piece: both are thrown away.
            let reason = format!("the logic panicked: {}", panic_text(&*panic));
            if let Some(reply_to) = waiting {
                self.of.replies.tell(reply_to, Decision { offset, replayed: false, outcome: Some(at_fault()) });
            }
            match self.announce_skip(offset, &reason) {
                Ok(()) => Ended::Again(format!("intake record {offset}: {reason}")),
                Err(ended) => ended,
            }
        })
    }

    fn load(&mut self, keys: &Keys) -> Result<(), Ended> {
        let (store, partition) = (&self.of.store, self.of.number);
        if let Some(id) = keys.account {
            self.overlay.load_account(id, || store.account(partition, id))?;
        }
        for key in keys.rows() {
            self.overlay.load_row(*key, || store.row(partition, key))?;
        }
        Ok(())
    }

    /// Something that cannot be decoded: announced as a skip, then skipped when it is read again.
    fn poison(&mut self, offset: u64, reason: String) -> Result<(), Ended> {
        self.announce_skip(offset, &reason)?;
        self.skips.insert(offset, reason);
        Ok(())
    }

    /// The skip is a record of its own, durable before anything after it is applied.
    fn announce_skip(&self, offset: u64, reason: &str) -> Result<(), Ended> {
        tracing::error!(partition = self.of.number, offset, %reason, "an intake record becomes a dead letter");
        let body = Some(Body::Skip(Skip { offset, reason: reason.to_owned() }));
        append(self.of, self.handle, &Record { version: codec::VERSION, body, ..Record::default() })
    }

    /// Hands the effects of this piece on.
    fn emit(&mut self) -> Result<(), Ended> {
        // Before its events can be read: whoever reads one acts by the configuration that it came under. It is as durable
        // as the intake that it follows from.
        let mut announced = Vec::new();
        for id in std::mem::take(&mut self.effects.changed) {
            if let Some(account) = self.overlay.account(id) {
                self.of.views.publish(account.config.clone())?;
                if let Some(to) = &self.of.announce {
                    let seen = Seen::Account(Box::new((*account.config).clone()));
                    announced.push(to.announce(self.of.number, seen));
                }
            }
        }
        let (progress, effects) = (&self.overlay.progress, &mut self.effects);
        if let Some(to) = &self.of.announce {
            let changes = effects.suppressions.iter();
            announced.extend(changes.map(|(account, change)| to.announce(self.of.number, change.seen(*account))));
        }
        self.dirty = true;
        self.of.clock.reached(Millis(progress.last_t));
        counter!("sendtrail_events_total").increment(effects.events.len() as u64);
        counter!("sendtrail_dead_letters_total").increment(effects.dead_letters.len() as u64);
        if effects.gaps > 0 {
            tracing::warn!(
                partition = self.of.number,
                records = effects.gaps,
                "records of a source came without those before"
            );
        }
        counter!("sendtrail_source_gaps_total").increment(effects.gaps);
        let mut appends = Vec::new();
        let mut append = |topic, batches: Vec<Batch>| {
            let to = TopicPartition::new(topic, self.of.number);
            appends.extend(batches.into_iter().map(|batch| self.of.log.append(to, batch)));
        };
        append(Topic::Events, numbered(progress.next_event, &effects.events));
        append(Topic::Mail, numbered(progress.next_mail, &effects.mail));
        append(Topic::DeadLetter, numbered(progress.next_dead_letter, &effects.dead_letters));
        let reached = reached(progress);
        let (decisions, suppressions) =
            (std::mem::take(&mut effects.decisions), std::mem::take(&mut effects.suppressions));
        effects.clear();
        let outputs = Outputs { appends, announced, suppressions, decisions, reached };
        self.completer.give(Work::Outputs(outputs))
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

/// What a request is told whose record cannot be applied.
fn at_fault() -> Outcome {
    let Problem { code, message, .. } = Problem::internal();
    Outcome::Refused(Refusal { code: code.name().into(), message, retry_after_seconds: None })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests;
