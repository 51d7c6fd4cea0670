//! What happens once outputs are durable, in the order in which they were made.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::future::{BoxFuture, join_all};
use metrics::{gauge, histogram};
use parking_lot::Mutex;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_eventlog::{Pulse, Reader, Replies, Retention};
use sendtrail_schemas::exchange::ProgressView;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::{Decision, ReplyTo};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::TopicPartition;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::telling::Telling;
use super::{Ended, Ordering, Partition};
use crate::core::effects::SuppressionChange;
use crate::snapshots::Taker;
use crate::store::Writes;
use crate::{Error, Store, Views};

/// Pieces of intake whose outputs may be on their way at once.
const IN_FLIGHT: usize = 16;

/// Tells when the whole state of a partition was durable.
pub fn note_durable(partition: u32) {
    let at = Millis::wall().0 as f64 / 1e3;
    gauge!("sendtrail_checkpoint_timestamp_seconds", "partition" => partition.to_string()).set(at);
}

/// One piece of work.
pub enum Work {
    /// What came of a piece of intake.
    Outputs(Outputs),
    /// A checkpoint of everything before.
    Checkpoint(Box<Writes>),
}

/// Something on its way to the log, or beside it.
type OnItsWay<T> = BoxFuture<'static, Result<T, sendtrail_eventlog::Error>>;

/// Outputs, and what follows from them once they are durable.
pub struct Outputs {
    pub appends: Vec<OnItsWay<u64>>,
    pub announced: Vec<OnItsWay<()>>,
    pub suppressions: Vec<(AccountId, SuppressionChange)>,
    pub decisions: Vec<(ReplyTo, Decision)>,
    /// How far the partition is then.
    pub reached: ProgressView,
    /// Whoever asked for what is announced: told once it is durable. Dropped if it may not be, so that it is asked for again.
    pub told: Option<oneshot::Sender<()>>,
}

impl Outputs {
    /// Of no record: the partition is where it was.
    pub fn nothing(reached: ProgressView) -> Self {
        Self {
            appends: Vec::new(),
            announced: Vec::new(),
            suppressions: Vec::new(),
            decisions: Vec::new(),
            reached,
            told: None,
        }
    }
}

/// The task that completes pieces of work in order.
pub struct Completer {
    work: mpsc::Sender<Work>,
    task: JoinHandle<()>,
    committed: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<Error>>>,
}

struct Task {
    intake: TopicPartition,
    store: Store,
    views: Views,
    replies: Arc<dyn Replies>,
    telling: Telling,
    taker: Option<Arc<Mutex<Taker>>>,
    pulse: Arc<Pulse>,
    retention: Arc<Retention>,
    committed: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<Error>>>,
}

impl Completer {
    pub fn start(of: &Partition, handle: &Handle, taker: Option<Arc<Mutex<Taker>>>, reached: ProgressView) -> Self {
        let (work, pieces) = mpsc::channel(IN_FLIGHT);
        let committed = Arc::new(AtomicBool::new(true));
        let failure = Arc::new(Mutex::new(None));
        let task = Task {
            intake: of.intake(),
            store: of.store.clone(),
            views: of.views.clone(),
            replies: of.replies.clone(),
            telling: Telling::new(of, reached),
            taker,
            pulse: of.pulse.clone(),
            retention: of.retention.clone(),
            committed: committed.clone(),
            failure: failure.clone(),
        };
        Self { work, task: handle.spawn(task.run(pieces)), committed, failure }
    }

    /// Hands a piece of work over, waiting for room.
    pub fn give(&self, work: Work) -> Result<(), Ended> {
        self.work.blocking_send(work).map_err(|_| self.why())
    }

    /// Hands a checkpoint over.
    pub fn commit(&self, writes: Writes) -> Result<(), Ended> {
        self.committed.store(false, Ordering::Release);
        self.give(Work::Checkpoint(Box::new(writes)))
    }

    /// Whether the last checkpoint is durable.
    pub fn is_committed(&self) -> bool {
        self.committed.load(Ordering::Acquire)
    }

    /// Whether all goes well.
    pub fn check(&self) -> Result<(), Ended> {
        if self.failure.lock().is_some() { Err(self.why()) } else { Ok(()) }
    }

    fn why(&self) -> Ended {
        // Only its first caller learns why; a session has one.
        self.failure.lock().take().map_or_else(|| Ended::Again("the completer ended".into()), Ended::from)
    }

    /// Waits for everything handed over.
    pub fn finish(self, handle: &Handle) {
        drop(self.work);
        // A panic in it was logged by the panic hook.
        let _ = handle.block_on(self.task);
    }
}

impl Task {
    async fn run(mut self, mut pieces: mpsc::Receiver<Work>) {
        let mut committing: Option<JoinHandle<()>> = None;
        loop {
            let work = tokio::select! {
                biased;
                work = pieces.recv() => work,
                () = self.telling.is_due() => {
                    self.telling.tell();
                    continue;
                }
            };
            let Some(work) = work else { break };
            let done = match work {
                Work::Outputs(outputs) => self.complete(outputs).await,
                Work::Checkpoint(writes) => {
                    committing = Some(self.checkpoint(*writes));
                    Ok(())
                }
            };
            if let Err(error) = done {
                *self.failure.lock() = Some(error);
                break;
            }
        }
        self.telling.tell();
        if let Some(committing) = committing {
            // Its own failure is noted by itself.
            let _ = committing.await;
        }
    }

    async fn complete(&mut self, outputs: Outputs) -> Result<(), Error> {
        let Outputs { appends, announced, suppressions, decisions, reached, told } = outputs;
        reach("outputs.before");
        for appended in join_all(appends).await {
            appended?;
        }
        reach("outputs.durable");
        // Those who start later must find it: after a crash it is announced again.
        let is_news = !announced.is_empty();
        for announced in join_all(announced).await {
            announced?;
        }
        if let Some(told) = told {
            // Whoever asked may have gone.
            let _ = told.send(());
        }
        for (account, change) in &suppressions {
            self.views.note(*account, change)?;
        }
        self.pulse.set_applied(reached.applied, Millis(reached.last_t));
        // Whoever waits for a decision elsewhere waits for this, too, before looking at what was changed.
        self.telling.note(reached, is_news || !decisions.is_empty());
        for (reply_to, decision) in decisions {
            self.replies.tell(reply_to, decision);
        }
        Ok(())
    }

    /// Writes a checkpoint beside the work that goes on; everything before it is durable.
    fn checkpoint(&self, writes: Writes) -> JoinHandle<()> {
        let (store, retention, intake) = (self.store.clone(), self.retention.clone(), self.intake);
        let (committed, failure) = (self.committed.clone(), self.failure.clone());
        let (taker, pulse) = (self.taker.clone(), self.pulse.clone());
        let commit = move || {
            let (next_offset, rows) = (writes.next_offset(), writes.len());
            let keys: Vec<_> = taker.iter().flat_map(|_| writes.keys()).collect();
            let begun = std::time::Instant::now();
            reach("checkpoint.before");
            store.commit(intake.partition, writes)?;
            reach("checkpoint.durable");
            histogram!("sendtrail_checkpoint_seconds").record(begun.elapsed().as_secs_f64());
            note_durable(intake.partition);
            tracing::trace!(partition = intake.partition, next_offset, rows, "checkpoint");
            if let Some(taker) = taker {
                taker.lock().note(keys, next_offset);
            }
            retention.passed(Reader::Processor, intake, next_offset);
            Ok(())
        };
        tokio::task::spawn_blocking(move || {
            // After a panic whoever waits must not wait for ever. What it left half done is read anew from the store.
            let outcome = catch_unwind(AssertUnwindSafe(commit));
            match outcome.unwrap_or_else(|_| Err(Error::Missing("the checkpoint's thread, which panicked".into()))) {
                Ok(()) => {
                    // Not before: the next one may fail like the one that it went back for.
                    pulse.trouble(None);
                    committed.store(true, Ordering::Release);
                }
                Err(error) => {
                    tracing::error!(partition = intake.partition, %error, "a checkpoint failed");
                    *failure.lock() = Some(error);
                }
            }
        })
    }
}
