//! A partition on a map instead of a store: loads, steps, checkpoints and restarts.

use std::collections::BTreeMap;

use sendtrail_schemas::Error;
use sendtrail_schemas::account::{AccountConfig, Policy};
use sendtrail_schemas::event::{Event, EventFact};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    AccountFields, Body, Change, Command, Decision, Outcome, Recipient, Record, ReplyTo, SendRequest,
};
use sendtrail_schemas::reputation::Reputation;
use sendtrail_schemas::time::Millis;
use uuid::Uuid;

use crate::core::account::Account;
use crate::core::effects::Effects;
use crate::core::overlay::{Keys, Overlay, Progress, StoreKey};
use crate::core::rows::Row;
use crate::core::step::{inherited_call, keys, step, usual_settings};

pub const ACCOUNT: AccountId = AccountId(Uuid::from_u128(0xacc));

pub struct Machine {
    pub overlay: Overlay,
    store: BTreeMap<StoreKey, Vec<u8>>,
    progress: Progress,
    pub now: Millis,
}

impl Machine {
    pub fn new(now: Millis) -> Self {
        let progress = Progress { settings: Some(usual_settings()), ..Progress::default() };
        Self { overlay: Overlay::new(3, progress.clone()), store: BTreeMap::new(), progress, now }
    }

    /// With an account in production, without limits that get in the way.
    pub fn with_account(now: Millis, policy: Policy) -> Self {
        let mut machine = Self::new(now);
        let fields = AccountFields {
            name: Some("Acme".into()),
            contact_email: Some("ops@acme.com".into()),
            mode: Some(1),
            policy: Some(policy),
            daily_send_quota: Some(1_000_000),
            peak_send_rate_per_second: Some(1_000_000),
            ..AccountFields::default()
        };
        machine.command(Change::CreateAccount(fields));
        machine
    }

    pub fn apply(&mut self, record: Record) -> Effects {
        let mut keys = keys(&record);
        self.load(&keys);
        if let Some(call) = inherited_call(&mut self.overlay, &record, &keys) {
            keys.call = Some(call);
            self.load(&keys);
        }
        let mut effects = Effects::default();
        let offset = self.overlay.progress.next_offset;
        step(&mut self.overlay, record, &keys, offset, self.now, &mut effects);
        effects
    }

    fn load(&mut self, keys: &Keys) {
        let store = &self.store;
        if let Some(id) = keys.account {
            self.overlay.load_account(id, || stored_account(store, id)).unwrap();
        }
        for key in keys.rows() {
            let value = || store.get(&StoreKey::Row(key.bytes()));
            self.overlay.load_row(*key, || value().map(|value| Row::decode(key.kind, value)).transpose()).unwrap();
        }
    }

    pub fn checkpoint(&mut self) {
        let store = &mut self.store;
        self.overlay.checkpoint(|key, value| match value {
            Some(value) => drop(store.insert(key, value)),
            None => drop(store.remove(&key)),
        });
        self.progress = self.overlay.progress.clone();
    }

    /// Ends and begins anew from the last checkpoint, which is made first.
    pub fn restart(&mut self) {
        self.checkpoint();
        self.overlay = Overlay::new(3, self.progress.clone());
    }

    pub fn fact(&mut self, fact: EventFact) -> Vec<Event> {
        self.apply(record(Body::Fact(fact))).events
    }

    pub fn command(&mut self, change: Change) -> Decision {
        self.ask(Body::Command(Command { change: Some(change) })).1
    }

    pub fn send(&mut self, request: SendRequest) -> (Effects, Decision) {
        self.ask(Body::Send(request))
    }

    pub fn ask(&mut self, body: Body) -> (Effects, Decision) {
        let record = Record { reply_to: Some(ReplyTo { instance: 1, request: 1 }), ..record(body) };
        let effects = self.apply(record);
        let decision = effects.decisions[0].1.clone();
        (effects, decision)
    }

    pub fn account(&mut self) -> &Account {
        self.load(&Keys { account: Some(ACCOUNT), ..Keys::default() });
        self.overlay.account(ACCOUNT).unwrap()
    }

    pub fn config(&mut self) -> AccountConfig {
        (*self.account().config).clone()
    }

    pub fn reputation(&mut self) -> Reputation {
        self.account().reputation()
    }

    pub fn store_bytes(&self) -> Vec<(StoreKey, Vec<u8>)> {
        self.store.iter().map(|(key, value)| (*key, value.clone())).collect()
    }
}

fn stored_account(store: &BTreeMap<StoreKey, Vec<u8>>, id: AccountId) -> Result<Option<Account>, Error> {
    let rows = store.iter().filter_map(|(key, value)| match key {
        StoreKey::Account(key) if key.starts_with(id.bytes()) => Some((&key[..], value.as_slice())),
        _ => None,
    });
    Account::restore(rows)
}

pub fn record(body: Body) -> Record {
    Record { version: 1, account_id: ACCOUNT.bytes().to_vec(), body: Some(body), ..Record::default() }
}

pub fn fact(kind: EventType, message: &str, recipient: &str) -> EventFact {
    EventFact { kind: kind as i32, message_id: message.into(), recipient: recipient.into(), ..EventFact::default() }
}

pub fn send(send_id: &str, recipients: &[&str]) -> SendRequest {
    let recipients = recipients.iter().enumerate().map(|(at, address)| Recipient {
        address: (*address).into(),
        message_id: format!("{send_id}-{at}"),
        kind: 0,
    });
    SendRequest {
        send_id: send_id.into(),
        from: "Acme <hello@acme.com>".into(),
        from_address: "hello@acme.com".into(),
        recipients: recipients.collect(),
        subject: "Hello".into(),
        category: "transactional".into(),
        ..SendRequest::default()
    }
}

/// The code of a refusal, or `ok`.
pub fn code(decision: &Decision) -> String {
    match decision.outcome.as_ref().unwrap() {
        Outcome::Refused(refusal) => refusal.code.clone(),
        _ => "ok".into(),
    }
}
