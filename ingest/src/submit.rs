//! From a request to a record, and from its decision to an answer.

use axum::extract::FromRequestParts;
use axum::http::request::Parts as RequestParts;
use sendtrail_eventlog::{Batch, SETTLE};
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::codec;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Actor, Body, Change, Command, Decision, Outcome, Record, Refusal, ReplyTo};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use sendtrail_schemas::web;
use std::sync::Arc;

use crate::admission::Kind;
use crate::{Error, Ingest};

/// Tells a simulated log what time it is: RFC 3339. Without meaning on any other log.
pub const SIMULATED_TIME: &str = "x-simulated-time";
/// What an event usually takes in the log.
const USUAL_BYTES: usize = 256;

/// What a request's records say of it: the time that it carries, where time is simulated, and who asks.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    /// Milliseconds since the epoch.
    pub time: Option<i64>,
    /// Whose request it is.
    pub actor: Option<Actor>,
}

impl FromRequestParts<Ingest> for Stamp {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut RequestParts, ingest: &Ingest) -> Result<Self, Problem> {
        let actor = Some(web::actor(&parts.extensions));
        if !ingest.parts().clock.is_simulated() {
            return Ok(Self { time: None, actor });
        }
        let Some(value) = parts.headers.get(SIMULATED_TIME) else { return Ok(Self { time: None, actor }) };
        let malformed = |_| Problem::new(Code::InvalidParam, format!("{SIMULATED_TIME} is not an RFC 3339 time"));
        let time = Millis::parse(value.to_str().unwrap_or_default()).map_err(malformed)?;
        Ok(Self { time: Some(time.0), actor })
    }
}

impl Stamp {
    /// The time that the request's records will have, near enough for names and folders.
    pub fn or_now(&self, ingest: &Ingest) -> Millis {
        self.time.map_or_else(|| ingest.parts().clock.now(), Millis)
    }
}

/// What a client is told when the log does not take something.
pub fn log_problem(error: &sendtrail_eventlog::Error) -> Problem {
    match error {
        sendtrail_eventlog::Error::Full => Problem::unavailable("too much is being written at the moment"),
        sendtrail_eventlog::Error::InDoubt(_) => {
            tracing::error!(%error, "whether the log took a record is not known");
            unknown_outcome()
        }
        error => {
            tracing::error!(%error, "the log did not take a record");
            Problem::new(Code::DbUnavailable, "the event log did not take the request").retry_after(5)
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        tracing::error!(%error, "a request failed");
        match error {
            Error::Log(error) => log_problem(&error),
            Error::Topic(_) | Error::Port(_) => {
                Self::new(Code::DbUnavailable, "the store did not answer").retry_after(5)
            }
        }
    }
}

pub(crate) fn record(account: AccountId, stamp: Option<i64>, reply_to: Option<ReplyTo>, body: Body) -> Record {
    Record {
        version: body.version(),
        account_id: account.bytes().to_vec(),
        simulated_time: stamp,
        reply_to,
        body: Some(body),
        ..Record::default()
    }
}

impl Ingest {
    /// Appends one record; the future resolves once it is durable.
    pub(crate) fn append(
        &self,
        account: AccountId,
        stamp: Option<i64>,
        reply_to: Option<ReplyTo>,
        body: Body,
    ) -> impl Future<Output = Result<u64, sendtrail_eventlog::Error>> + 'static + use<> {
        let mut batch = Batch::new();
        batch.push(&record(account, stamp, reply_to, body));
        self.parts().log.append(TopicPartition::new(Topic::Intake, self.partition(account)), batch)
    }

    /// Appends a record that concerns a whole partition.
    pub(crate) async fn append_tick(
        &self,
        partition: u32,
        now: Millis,
        body: Body,
    ) -> Result<u64, sendtrail_eventlog::Error> {
        let mut batch = Batch::new();
        let record =
            Record { version: codec::VERSION, simulated_time: Some(now.0), body: Some(body), ..Record::default() };
        batch.push(&record);
        self.parts().log.append(TopicPartition::new(Topic::Intake, partition), batch).await
    }

    /// Waits until a record is durable, but not for ever: a broker may be away for longer than a client waits.
    pub(crate) async fn durable(
        &self,
        appended: impl Future<Output = Result<u64, sendtrail_eventlog::Error>>,
    ) -> Result<u64, Problem> {
        match tokio::time::timeout(self.limits().decision_timeout, appended).await {
            Ok(appended) => appended.map_err(|error| log_problem(&error)),
            Err(_) => Err(unknown_outcome()),
        }
    }

    /// Appends events together; all of them are durable when this returns. When it fails some may be in the log all the
    /// same, and are known as duplicates when they come again.
    pub(crate) async fn append_facts(
        &self,
        account: AccountId,
        stamp: Stamp,
        facts: impl IntoIterator<Item = EventFact>,
    ) -> Result<(), Problem> {
        let facts = facts.into_iter();
        let mut batch = Batch::new().with_room(facts.size_hint().0 * USUAL_BYTES);
        for fact in facts {
            batch.push(&record(account, stamp.time, None, Body::Fact(fact)));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let to = TopicPartition::new(Topic::Intake, self.partition(account));
        self.durable(self.parts().log.append(to, batch)).await?;
        Ok(())
    }

    /// Appends a record and waits for what is decided about it.
    pub(crate) async fn decide(&self, account: AccountId, stamp: Stamp, body: Body) -> Result<Decision, Problem> {
        self.admit(Kind::Command, self.partition(account))?;
        let mut waiting = self.parts().replies.expect();
        let actor = stamp.actor.filter(|_| matches!(body, Body::Command(_)));
        let mut batch = Batch::new();
        batch.push(&Record { actor, ..record(account, stamp.time, Some(waiting.reply_to), body) });
        let to = TopicPartition::new(Topic::Intake, self.partition(account));
        self.durable(self.parts().log.append(to, batch)).await?;
        let decided = tokio::time::timeout(self.limits().decision_timeout, waiting.answer()).await;
        decided.ok().flatten().ok_or_else(unknown_outcome)
    }

    /// Waits until what was acknowledged for an account is applied, but not for ever: then what is there is shown, and the time
    /// before which everything is.
    pub(crate) async fn settle(&self, account: AccountId) -> Option<Millis> {
        let partition = self.partition(account);
        let end = *self.parts().log.end(TopicPartition::new(Topic::Intake, partition)).borrow();
        self.applied(account, end).await
    }

    /// Waits until everything before an offset of an account's partition is applied, but not for ever; of when it is if not.
    async fn applied(&self, account: AccountId, next: u64) -> Option<Millis> {
        let pulse = self.parts().pulses.get(self.partition(account) as usize)?;
        let reached = tokio::time::timeout(SETTLE, pulse.reached(next)).await;
        reached.err().map(|_| pulse.applied_at())
    }

    /// Makes a change that another part of the server asks for, on somebody's behalf, and waits until it is made.
    ///
    /// # Errors
    /// Why it is refused, or that nobody knows whether it was made.
    pub async fn change(&self, account: AccountId, actor: Option<Actor>, change: Change) -> Result<(), Problem> {
        self.command(account, Stamp { time: None, actor }, change).await?;
        Ok(())
    }

    /// Makes a change and waits until it is made; whether anything is other than before.
    pub(crate) async fn command(&self, account: AccountId, stamp: Stamp, change: Change) -> Result<bool, Problem> {
        let body = Body::Command(Command { change: Some(change) });
        let decision = self.decide(account, stamp, body).await?;
        match decision.outcome {
            Some(Outcome::Done(done)) => {
                // Whoever made a change sees it, also where it was made known by another server.
                self.applied(account, decision.offset + 1).await;
                Ok(done.changed)
            }
            Some(Outcome::Refused(refusal)) => Err(refused(refusal)),
            _ => Err(Problem::internal()),
        }
    }

    /// An account as it is after the caller's own changes.
    pub(crate) fn account(&self, id: AccountId) -> Result<Arc<AccountConfig>, Problem> {
        self.parts().directory.account(id).ok_or_else(|| Problem::new(Code::PartnerNotFound, "no such account"))
    }
}

/// What is said when nobody knows whether a request had an effect.
fn unknown_outcome() -> Problem {
    Problem::unavailable(
        "the outcome of the request is not known yet; repeating it with the same Idempotency-Key is safe",
    )
}

/// A refusal as a client sees it.
pub fn refused(refusal: Refusal) -> Problem {
    let code = Code::parse(&refusal.code).unwrap_or(Code::InternalError);
    Problem { code, message: refusal.message, retry_after: refusal.retry_after_seconds }
}
