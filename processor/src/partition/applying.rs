//! A piece of intake: decoded, stepped, and what comes of it handed on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use metrics::counter;
use sendtrail_eventlog::Batch;
use sendtrail_schemas::codec;
use sendtrail_schemas::exchange::Seen;
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::record::{Body, Decision, Outcome, Record, Refusal, Skip};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use super::completer::{Outputs, Work};
use super::prepare::{Prepared, prepare};
use super::records::{append, numbered};
use super::{Ended, READ_BYTES, Session, reached};
use crate::core::effects::Effects;
use crate::core::invariants::{Before, of_account};
use crate::core::overlay::{Keys, Overlay};
use crate::core::step::{inherited_call, skip, step};
use crate::{Error, Store};

impl Session<'_> {
    /// Reads a piece of intake and steps it.
    pub(super) fn apply(&mut self) -> Result<(), Ended> {
        let (of, next) = (self.of, self.overlay.progress.next_offset);
        let batches = of.log.read(of.intake(), next, READ_BYTES).map_err(Error::from)?;
        let records = batches.iter().flat_map(|batch| batch.records(next));
        for record in records {
            let (offset, received_at) = (record.offset, Millis(record.received_at));
            match prepare(&record, &self.skips) {
                Prepared::Step(record, keys) => self.step(*record, keys, offset, received_at)?,
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

    fn step(&mut self, record: Record, mut keys: Keys, offset: u64, received_at: Millis) -> Result<(), Ended> {
        load_for(&self.of.store, &mut self.overlay, &record, &mut keys)?;
        let waiting = record.reply_to;
        step_safely(&mut self.overlay, record, &keys, offset, received_at, &mut self.effects).map_err(|panic| {
            // The overlay is in doubt, and so are the effects of this piece: both are thrown away.
            let reason = format!("the logic panicked: {panic}");
            if let Some(reply_to) = waiting {
                self.of.replies.tell(reply_to, Decision { offset, replayed: false, outcome: Some(at_fault()) });
            }
            match self.announce_skip(offset, &reason) {
                Ok(()) => Ended::Again(format!("intake record {offset}: {reason}")),
                Err(ended) => ended,
            }
        })
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
                self.of.views.publish(&account.config)?;
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
        let outputs = Outputs { appends, announced, suppressions, decisions, reached, told: None };
        self.completer.give(Work::Outputs(outputs))
    }
}

/// What a request is told whose record cannot be applied.
fn at_fault() -> Outcome {
    let Problem { code, message, .. } = Problem::internal();
    Outcome::Refused(Refusal { code: code.name().into(), message, retry_after_seconds: None })
}

/// Steps a record, of which everything is loaded that it reads.
///
/// # Errors
/// What a panic of the logic says; the overlay and the effects are in doubt then.
pub(crate) fn step_safely(
    overlay: &mut Overlay,
    record: Record,
    keys: &Keys,
    offset: u64,
    received_at: Millis,
    effects: &mut Effects,
) -> Result<(), String> {
    let before = Before::of(&overlay.progress, effects);
    let stepped = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(test)]
        super::tests::panic_if_asked(&record);
        step(overlay, record, keys, offset, received_at, effects);
        if cfg!(debug_assertions) {
            assert_invariants(before, overlay, keys, offset, effects);
        }
    }));
    stepped.map_err(|panic| panic_text(&*panic))
}

/// Loads what the step of a record reads; what a fact takes from its Send may name one row more.
///
/// # Errors
/// Those of [`load`].
pub(crate) fn load_for(store: &Store, overlay: &mut Overlay, record: &Record, keys: &mut Keys) -> Result<(), Error> {
    load(store, overlay, keys)?;
    if let Some(call) = inherited_call(overlay, record, keys) {
        keys.call = Some(call);
        load(store, overlay, keys)?;
    }
    Ok(())
}

/// Loads rows and an account.
///
/// # Errors
/// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
pub(crate) fn load(store: &Store, overlay: &mut Overlay, keys: &Keys) -> Result<(), Error> {
    let partition = overlay.partition;
    if let Some(id) = keys.account {
        overlay.load_account(id, || store.account(partition, id))?;
    }
    for key in keys.rows() {
        overlay.load_row(*key, || store.row(partition, key))?;
    }
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// Whether everything holds that must; a violation is a panic of the logic.
fn assert_invariants(before: Before, overlay: &mut Overlay, keys: &Keys, offset: u64, effects: &Effects) {
    let of_record = before.check(&overlay.progress, effects, offset);
    let account = keys.account.and_then(|id| overlay.account(id));
    if let Err(violation) = of_record.and_then(|()| account.map_or(Ok(()), of_account)) {
        panic!("the invariant {} does not hold: {}", violation.name, violation.found);
    }
}
