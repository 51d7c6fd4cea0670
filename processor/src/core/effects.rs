//! What a step gives rise to.

use sendtrail_schemas::account::Suppression;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::exchange::{Seen, SuppressionView};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::{DeadLetter, Mail};
use sendtrail_schemas::record::{Decision, ReplyTo};

/// What one or several steps give rise to, in order. Outputs go to their topics, decisions to who waits for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// For `sendtrail.events`.
    pub events: Vec<Event>,
    /// For `sendtrail.mail`.
    pub mail: Vec<Mail>,
    /// For `sendtrail.dead-letter`.
    pub dead_letters: Vec<DeadLetter>,
    /// For requests that wait, once the outputs are durable.
    pub decisions: Vec<(ReplyTo, Decision)>,
    /// Accounts whose configuration or standing changed.
    pub changed: Vec<AccountId>,
    /// Changes of suppression lists, for those who list them.
    pub suppressions: Vec<(AccountId, SuppressionChange)>,
    /// Records of sources that were passed over because others before them are missing.
    pub gaps: u64,
}

/// A change of a suppression list.
#[derive(Clone, Debug, PartialEq)]
pub enum SuppressionChange {
    /// An address must not be mailed.
    Put(Suppression),
    /// An address may be mailed again; lower-cased.
    Delete(String),
}

impl SuppressionChange {
    /// As other servers see it.
    pub fn seen(&self, account: AccountId) -> Seen {
        let (email, row) = match self {
            Self::Put(row) => (row.email.clone(), Some(row.clone())),
            Self::Delete(email) => (email.clone(), None),
        };
        Seen::Suppression(SuppressionView { account_id: account.bytes().to_vec(), email, row })
    }
}

impl Effects {
    /// Forgets everything; room stays.
    pub fn clear(&mut self) {
        self.events.clear();
        self.mail.clear();
        self.dead_letters.clear();
        self.decisions.clear();
        self.changed.clear();
        self.suppressions.clear();
        self.gaps = 0;
    }
}
