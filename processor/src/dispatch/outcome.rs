//! What attempts came to: made durable first, then acted upon.

use std::collections::btree_map::Entry;

use metrics::{counter, histogram};
use sendtrail_eventlog::Batch;
use sendtrail_schemas::account::Dialect;
use sendtrail_schemas::codec;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::{Attempt, DeliveryStatus};
use sendtrail_schemas::record::{Body, Change, Command, DestinationName, DestinationPatch, Record};
use sendtrail_schemas::topic::Topic;
use tokio::task::JoinError;

use super::Running;
use super::book::Waiting;
use super::client::Answer;
use super::lane::Job;
use crate::Error;
use crate::core::retry::{Ended, Next, next};

/// Attempts recorded together.
const RECORD_TOGETHER: usize = 256;

/// What an attempt came to.
pub(super) struct Outcome {
    pub(super) job: Job,
    pub(super) destination: DestinationId,
    pub(super) started_at: i64,
    pub(super) finished_at: i64,
    pub(super) answer: Answer,
    /// How the destination is spoken to; `None` when it is gone.
    pub(super) spoken: Option<(Dialect, Vec<u32>)>,
}

/// What an attempt came to; a panic in one sends the dispatcher back to its marks.
pub(super) fn ended(joined: Result<Outcome, JoinError>) -> Result<Outcome, Error> {
    joined.map_err(|cause| Error::Io { what: "attempt a webhook".into(), cause: cause.into() })
}

impl Running {
    /// Records what has ended, without waiting for more.
    pub(super) async fn take_outcomes(&mut self) -> Result<(), Error> {
        match self.under_way.try_join_next() {
            Some(first) => self.record(vec![ended(first)?]).await,
            None => Ok(()),
        }
    }

    /// Makes attempts durable, then acts on them.
    pub(super) async fn record(&mut self, mut outcomes: Vec<Outcome>) -> Result<(), Error> {
        while outcomes.len() < RECORD_TOGETHER
            && let Some(outcome) = self.under_way.try_join_next()
        {
            outcomes.push(ended(outcome)?);
        }
        let mut batch = Batch::new();
        let mut decided = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            let (attempt, next) = judge(&outcome);
            batch.push(&attempt);
            decided.push((outcome, attempt, next));
        }
        let count = batch.len() as u64;
        let first = self.of.log.append(self.of.of(Topic::Attempts), batch).await?;
        self.next_attempt = first + count;
        for (outcome, attempt, next) in decided {
            self.settle(outcome, &attempt, next)?;
        }
        Ok(())
    }

    fn settle(&mut self, outcome: Outcome, attempt: &Attempt, next: Next) -> Result<(), Error> {
        let Outcome { job, destination, .. } = outcome;
        let lane = self.lane(destination);
        lane.under_way -= 1;
        lane.done(&job);
        let status = attempt.status().name();
        counter!("sendtrail_webhook_attempts_total", "status" => status).increment(1);
        histogram!("sendtrail_webhook_attempt_seconds").record((attempt.finished_at - attempt.started_at) as f64 / 1e3);
        match next {
            Next::Retry(due_at) => {
                let waiting = Waiting {
                    attempts: attempt.number,
                    first_started_at: attempt.first_started_at,
                    due_at,
                    is_due: false,
                    ..job.waiting
                };
                self.book.put(job.key, &waiting)?;
                self.next_due = Some(self.next_due.map_or(due_at, |due| due.min(due_at)));
            }
            _ if job.booked => self.book.remove(job.key)?,
            _ => {}
        }
        if next == Next::Disable {
            self.disable(AccountId::from_slice(&attempt.account_id)?, destination);
        }
        if !job.booked
            && let Entry::Occupied(mut count) = self.unbooked.entry(job.key.seq)
        {
            count.get_mut().0 -= 1;
            if count.get().0 == 0 {
                count.remove();
            }
        }
        Ok(())
    }

    /// A receiver that is gone for good is sent nothing more.
    fn disable(&self, account: AccountId, destination: DestinationId) {
        let config = self.of.directory.account(account);
        let Some(set) = config.as_ref().and_then(|config| config.destination(destination)).map(|(set, _)| set) else {
            return;
        };
        let name =
            DestinationName { config_set_id: set.config_set_id.clone(), destination_id: destination.bytes().to_vec() };
        let patch = DestinationPatch { destination: Some(name), enabled: Some(false), ..DestinationPatch::default() };
        let mut batch = Batch::new();
        batch.push(&Record {
            version: codec::VERSION,
            account_id: account.bytes().to_vec(),
            body: Some(Body::Command(Command { change: Some(Change::PatchDestination(patch)) })),
            ..Record::default()
        });
        let appended = self.of.log.append(self.of.of(Topic::Intake), batch);
        // If it is lost, the next 410 asks again.
        tokio::spawn(async move { drop(appended.await) });
    }
}

/// What an attempt is recorded as, and what follows.
fn judge(outcome: &Outcome) -> (Attempt, Next) {
    let waiting = &outcome.job.waiting;
    let number = waiting.attempts + 1;
    let first_started_at = if waiting.attempts == 0 { outcome.started_at } else { waiting.first_started_at };
    let next = match &outcome.spoken {
        None => Next::GiveUp,
        Some((dialect, own)) => next(
            *dialect,
            own,
            Ended {
                number,
                first_started_at,
                finished_at: outcome.finished_at,
                status_code: outcome.answer.status.as_ref().ok().copied(),
                retry_after: outcome.answer.retry_after,
            },
        ),
    };
    let (status, next_due_at) = match next {
        Next::Delivered => (DeliveryStatus::Delivered, None),
        Next::Retry(due_at) => (DeliveryStatus::Failed, Some(due_at)),
        Next::GiveUp | Next::Disable => (DeliveryStatus::GaveUp, None),
    };
    let attempt = Attempt {
        version: codec::VERSION,
        account_id: waiting.account_id.clone(),
        event_seq: outcome.job.key.seq,
        destination_id: outcome.destination.bytes().to_vec(),
        number,
        started_at: outcome.started_at,
        finished_at: outcome.finished_at,
        status_code: outcome.answer.status.as_ref().ok().map(|code| u32::from(*code)),
        error: outcome.answer.status.as_ref().err().cloned(),
        status: status as i32,
        next_due_at,
        first_started_at,
    };
    (attempt, next)
}
