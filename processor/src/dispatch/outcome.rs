//! What attempts came to: made durable first, then acted upon.

use std::ops::Range;

use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::{counter, histogram};
use sendtrail_eventlog::Batch;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::codec;
use sendtrail_schemas::ids::{AccountId, delivery_id};
use sendtrail_schemas::mail::{Attempt, DeliveryStatus, FailureClass, Trigger};
use sendtrail_schemas::topic::Topic;

use super::Running;
use super::attempt::{Outcome, joining, kept, spent};
use super::book::{DeliveryKey, Waiting};
use crate::Error;
use crate::core::webhook::retry::{Ended, Next, next, not_before};

/// Attempts recorded together.
const RECORD_TOGETHER: usize = 256;

/// Attempts on their way to the device. Nothing is done about them until they are there; meanwhile others go on.
pub(super) struct Recording {
    appended: BoxFuture<'static, Result<u64, sendtrail_eventlog::Error>>,
    decided: Vec<(Outcome, Attempt)>,
}

/// Where the attempts begin that are being recorded, once they are durable; never, if there are none.
pub(super) async fn recorded(recording: &mut Option<Recording>) -> Result<u64, Error> {
    match recording {
        Some(recording) => Ok((&mut recording.appended).await?),
        None => std::future::pending().await,
    }
}

impl Running {
    /// Acts on what was recorded, and begins to record what has ended, without waiting for more.
    pub(super) fn take_outcomes(&mut self) -> Result<(), Error> {
        if self.recording.is_some() {
            let Some(first) = recorded(&mut self.recording).now_or_never() else { return Ok(()) };
            self.settle_recorded(first?)?;
        }
        match self.under_way.try_join_next() {
            // A panic in one sends the dispatcher back to its marks.
            Some(first) => self.record(first.map_err(joining)?),
            None => Ok(()),
        }
    }

    /// Begins to make attempts durable; what was recorded before is settled.
    pub(super) fn record(&mut self, first: Outcome) -> Result<(), Error> {
        let mut outcomes = vec![first];
        while outcomes.len() < RECORD_TOGETHER
            && let Some(outcome) = self.under_way.try_join_next()
        {
            outcomes.push(outcome.map_err(joining)?);
        }
        let (unwanted, outcomes): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.unwanted);
        for Outcome { job, destination, .. } in unwanted {
            let account = AccountId::from_slice(&job.waiting.account_id)?;
            self.replays.ended(&job.waiting.replay_id, destination);
            self.desk.forget(account, destination, &job)?;
        }
        if outcomes.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        let mut decided = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            let attempt = judge(&outcome, self.of.partition, self.of.patience.first_probe);
            batch.push(&attempt);
            decided.push((outcome, attempt));
        }
        reach("attempt.posted");
        let appended = self.of.log.append(self.of.of(Topic::Attempts), batch);
        self.recording = Some(Recording { appended, decided });
        Ok(())
    }

    /// Acts on attempts that are recorded from an offset on.
    pub(super) fn settle_recorded(&mut self, first: u64) -> Result<(), Error> {
        let Some(Recording { decided, .. }) = self.recording.take() else { return Ok(()) };
        reach("attempt.recorded");
        let end = *self.of.log.end(self.of.of(Topic::Attempts)).borrow();
        let places = places(first, decided.len() as u64, end);
        self.next_attempt = places.end;
        let mut over = Vec::new();
        for (offset, (outcome, attempt)) in places.zip(decided) {
            self.settle(outcome, &attempt, offset, &mut over)?;
        }
        self.desk.book.remove_all(&over)?;
        self.replays.want_more(&self.desk);
        Ok(())
    }

    fn settle(
        &mut self,
        outcome: Outcome,
        attempt: &Attempt,
        offset: u64,
        over: &mut Vec<(DeliveryKey, Waiting)>,
    ) -> Result<(), Error> {
        let Outcome { job, destination, .. } = outcome;
        let status = attempt.status().name();
        counter!("sendtrail_webhook_attempts_total", "status" => status).increment(1);
        histogram!("sendtrail_webhook_attempt_seconds").record((attempt.finished_at - attempt.started_at) as f64 / 1e3);
        if attempt.next_due_at.is_none() {
            self.replays.ended(&job.waiting.replay_id, destination);
        }
        if attempt.number == 1 && job.trigger == Trigger::Schedule {
            let waited = (attempt.started_at - attempt.event_received_at).max(0);
            histogram!("sendtrail_webhook_first_attempt_seconds").record(waited as f64 / 1e3);
        }
        let change = self.desk.settle(destination, job, attempt, offset, over)?;
        let account = AccountId::from_slice(&attempt.account_id)?;
        if let Some(health) = change {
            tracing::info!(partition = self.of.partition, %account, %destination, health = health.name(), "a webhook's health changed");
            counter!("sendtrail_webhook_health_changes_total", "to" => health.name()).increment(1);
        }
        let delivered = attempt.status() == DeliveryStatus::Delivered;
        if change.is_some() || delivered && self.is_thought_failing(account, destination) {
            self.untold.insert((account, destination), None);
        }
        Ok(())
    }
}

/// Where attempts are taken to be that begin at an offset, in a log that now has so many records. A server that was replaced and does
/// not know it may have recorded others in between; then none of these is thought to be before where it is, for whoever begins again
/// would take it for a later one.
fn places(first: u64, count: u64, end: u64) -> Range<u64> {
    let end = end.max(first + count);
    end - count..end
}

/// What an attempt is recorded as.
pub(super) fn judge(outcome: &Outcome, partition: u32, probe_after: i64) -> Attempt {
    let (waiting, answer) = (&outcome.job.waiting, &outcome.answer);
    let account = AccountId::from_slice(&waiting.account_id).unwrap_or(AccountId(uuid::Uuid::nil()));
    // Schedules count from the first attempt; of a replay, from the first of the replay.
    let begins = waiting.attempts == 0 || waiting.first_started_at == 0;
    let first_started_at = if begins { outcome.started_at } else { waiting.first_started_at };
    let spent = spent(&outcome.job);
    let status_code = answer.status.as_ref().ok().copied();
    let never_went_out = answer.class() == FailureClass::Unavailable;
    let ended = Ended {
        spent,
        first_started_at,
        finished_at: outcome.finished_at,
        status_code,
        retry_after: answer.retry_after,
        salt: delivery_id(account, partition, outcome.job.key.seq, outcome.destination).as_u128(),
    };
    let probed = (outcome.finished_at + probe_after).max(not_before(&ended));
    let next = match outcome.plan() {
        _ if never_went_out => Next::GiveUp,
        None => Next::GiveUp,
        Some(plan) => next(&plan, ended),
    };
    // A probe asks whether anything is taken at all: that this one is not says nothing of it.
    let next = match next {
        Next::GiveUp | Next::Retry(_) if outcome.job.trigger == Trigger::Probe && !waiting.once && !never_went_out => {
            Next::Retry(probed)
        }
        next => next,
    };
    let (status, next_due_at) = match next {
        Next::Delivered => (DeliveryStatus::Delivered, None),
        Next::Retry(due_at) => (DeliveryStatus::Failed, Some(due_at)),
        Next::GiveUp | Next::Disable => (DeliveryStatus::GaveUp, None),
    };
    let failure = if next == Next::Disable { FailureClass::Gone } else { answer.class() };
    Attempt {
        version: codec::VERSION,
        account_id: waiting.account_id.clone(),
        event_seq: outcome.job.key.seq,
        destination_id: outcome.destination.bytes().to_vec(),
        number: waiting.attempts + 1,
        started_at: outcome.started_at,
        finished_at: outcome.finished_at,
        status_code: status_code.map(u32::from),
        error: answer.status.as_ref().err().map(|failed| failed.message.clone()),
        status: status as i32,
        next_due_at,
        first_started_at,
        response: kept(answer),
        failure: failure as i32,
        event_received_at: waiting.event_received_at,
        event_type: waiting.event_type,
        spent,
        trigger: outcome.job.trigger as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_attempt_is_thought_to_be_before_where_it_is() {
        assert_eq!(places(100, 3, 103), 100..103);
        assert_eq!(places(100, 3, 0), 100..103, "of a log whose end is not known");
        // Another server's are at 101 and 103.
        for (thought, is) in places(100, 3, 105).zip([100, 102, 104]) {
            assert!(thought >= is, "{thought} {is}");
        }
    }
}
