//! Recipients of whom nothing may be kept.
//!
//! The state forgets the address at once. Whoever files events learns of it by an event of its own, and clears what was filed
//! before; what comes late of messages from before is told without anything personal.

use sendtrail_schemas::account::{Erasure, MAX_ERASURES};
use sendtrail_schemas::address;
use sendtrail_schemas::event::{Event, EventFact};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::Code;
use sendtrail_schemas::record::{EndErasure, EraseRecipient, Outcome, Refusal};
use sendtrail_schemas::time::{DAY, Millis};
use uuid::Uuid;

use super::command::done;
use super::{Step, Told, refused};
use crate::core::account::Account;
use crate::core::effects::SuppressionChange;
use crate::core::overlay::Keys;
use crate::core::rows::ONCE_HORIZON;

impl Step<'_> {
    pub(super) fn erase_recipient(
        &mut self,
        id: AccountId,
        account: &mut Account,
        erase: EraseRecipient,
        keys: &Keys,
    ) -> Told {
        if account.config.legal_hold {
            return refused(Code::LegalHold, "the account is on legal hold: nothing may be erased");
        }
        let t = self.t;
        // Late events of messages from before are no longer told apart from new ones by then.
        let is_over = |known: &Erasure| known.erased_at.is_some() && t.0 >= known.requested_at + ONCE_HORIZON;
        if account.config.erasures.iter().filter(|known| !is_over(known)).count() >= MAX_ERASURES {
            let message = format!("an account has at most {MAX_ERASURES} recipients erased within 15 days");
            let code = Code::ErasureLimitReached.name().into();
            let refusal = Refusal { code, message, retry_after_seconds: Some((DAY / 1_000) as u64) };
            return (Outcome::Refused(refusal), false);
        }
        let EraseRecipient { erasure_id, recipient } = erase;
        let config = account.config_mut();
        config.erasures.retain(|known| !is_over(known));
        config.erasures.push(Erasure {
            erasure_id: erasure_id.clone(),
            address_hash: Erasure::hash(&recipient).to_vec(),
            requested_at: t.0,
            erased_at: None,
            rows: 0,
        });
        if let Some(key) = keys.suppressed.first().filter(|key| self.overlay.row(key).is_some()) {
            self.overlay.put_row(*key, None);
            let email = address::fold(&recipient).into_owned();
            self.effects.suppressions.push((id, SuppressionChange::Delete(email)));
        }
        self.emit(Event {
            account_id: account.config.account_id.clone(),
            kind: EventType::RecipientErased as i32,
            event_id: Uuid::from_slice(&erasure_id).unwrap_or_default().to_string(),
            occurred_at: t.0,
            recipient,
            ..Event::default()
        });
        done(true)
    }
}

/// Notes that an erasure has reached every store.
pub(super) fn end(account: &mut Account, end: &EndErasure, now: i64) -> Told {
    let Some(at) = account.config.erasures.iter().position(|known| known.erasure_id == end.erasure_id) else {
        return refused(Code::NotFound, "no such erasure");
    };
    if account.config.erasures[at].erased_at.is_some() {
        return done(false);
    }
    let known = &mut account.config_mut().erasures[at];
    (known.erased_at, known.rows) = (Some(now), end.rows);
    done(true)
}

/// Whether a fact is of a message to somebody who was erased since. `sent_at` is when the message was sent, if that is known.
pub(super) fn is_erased(
    account: &Account,
    fact: &EventFact,
    sent_at: Option<i64>,
    occurred_at: Millis,
    t: Millis,
) -> bool {
    let erasures = &account.config.erasures;
    // What is on hold is kept as it comes.
    if erasures.is_empty() || account.config.legal_hold {
        return false;
    }
    let hash = Erasure::hash(&fact.recipient);
    let last = erasures.iter().rfind(|known| known.address_hash == hash);
    let sent_at = sent_at.or((fact.kind() == EventType::Send).then_some(occurred_at.0));
    last.is_some_and(|last| {
        t.0 < last.requested_at + ONCE_HORIZON && sent_at.is_none_or(|sent_at| sent_at <= last.requested_at)
    })
}
