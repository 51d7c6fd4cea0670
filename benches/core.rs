//! The state machine alone: keys and step, with what was seen in memory and in the store.

use std::collections::HashSet;
use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

use sendtrail_processor::core::effects::Effects;
use sendtrail_processor::core::overlay::{Overlay, Progress};
use sendtrail_processor::core::step::{keys, step, usual_settings};
use sendtrail_processor::{Store, Writes};
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::{AccountId, hash128};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{AccountFields, Body, Change, Command, Record};
use sendtrail_schemas::time::Millis;
use uuid::Uuid;

use crate::rate;

const MESSAGES: u64 = 400_000;
const NOW: Millis = Millis(1_777_636_800_000);
/// Records between two hand-overs of effects, and between two checkpoints.
const PIECE: usize = 1_000;
const CHECKPOINT: usize = 200_000;

fn record(body: Body) -> Record {
    let account = AccountId(Uuid::from_u128(1));
    Record { version: 1, account_id: account.bytes().to_vec(), body: Some(body), ..Record::default() }
}

/// A Send, a Delivery and an Open of each message, in this order but far apart.
fn records() -> Vec<Record> {
    let mut records = Vec::with_capacity(3 * MESSAGES as usize);
    for kind in [EventType::Send, EventType::Delivery, EventType::Open] {
        for n in 0..MESSAGES {
            records.push(record(Body::Fact(EventFact {
                kind: kind as i32,
                message_id: format!("message-{n:010}"),
                recipient: format!("user{n}@mail{}.example", n % 40),
                event_id: (kind == EventType::Open).then(|| format!("open-{n}")),
                from: Some("News <news@acme.example>".into()),
                ..EventFact::default()
            })));
        }
    }
    records
}

fn account() -> Record {
    let fields = AccountFields { name: Some("Acme".into()), mode: Some(1), ..AccountFields::default() };
    record(Body::Command(Command { change: Some(Change::CreateAccount(fields)) }))
}

pub fn run() {
    bare();
    in_memory();
    in_the_store();
}

/// What nothing could beat: 336 buckets and a set of hashes.
fn bare() {
    let records = records();
    let (mut buckets, mut seen) = ([0u64; 336], HashSet::new());
    let begun = Instant::now();
    for record in &records {
        let Some(Body::Fact(fact)) = &record.body else { continue };
        let key = hash128(&[&fact.kind.to_le_bytes(), fact.message_id.as_bytes(), fact.recipient.as_bytes()]);
        if seen.insert(key) {
            buckets[(NOW.0 / 3_600_000 % 336) as usize] += 1;
        }
    }
    rate("a bare fold: 336 buckets, a hash set", records.len() as u64, begun.elapsed());
    black_box(buckets);
}

fn in_memory() {
    let progress = Progress { settings: Some(usual_settings()), ..Progress::default() };
    let mut overlay = Overlay::new(0, progress);
    let mut effects = Effects::default();
    let mut apply = |offset: usize, record: Record| {
        let keys = keys(&record);
        if let Some(id) = keys.account {
            overlay.load_account(id, || Ok::<_, Infallible>(None)).unwrap();
        }
        for key in keys.rows() {
            overlay.load_row(*key, || Ok::<_, Infallible>(None)).unwrap();
        }
        step(&mut overlay, record, &keys, offset as u64, NOW, &mut effects);
        if offset.is_multiple_of(PIECE) {
            effects.clear();
        }
    };
    apply(0, account());
    let records = records();
    let count = records.len() as u64;
    let begun = Instant::now();
    records.into_iter().enumerate().for_each(|(at, record)| apply(at + 1, record));
    rate("steps, what was seen in memory", count, begun.elapsed());
}

fn in_the_store() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = Store::open(folder.path(), 1, 128 << 20).unwrap();
    let progress = Progress { settings: Some(usual_settings()), ..Progress::default() };
    let mut overlay = Overlay::new(0, progress);
    let mut effects = Effects::default();
    let records = records();
    let count = records.len() as u64;
    let begun = Instant::now();
    for (offset, record) in std::iter::once(account()).chain(records).enumerate() {
        let keys = keys(&record);
        if let Some(id) = keys.account {
            overlay.load_account(id, || store.account(0, id)).unwrap();
        }
        for key in keys.rows() {
            overlay.load_row(*key, || store.row(0, key)).unwrap();
        }
        step(&mut overlay, record, &keys, offset as u64, NOW, &mut effects);
        if offset.is_multiple_of(PIECE) {
            effects.clear();
        }
        if offset.is_multiple_of(CHECKPOINT) {
            store.commit(0, Writes::take(&mut overlay)).unwrap();
        }
    }
    rate("steps, what was seen in the store, with checkpoints", count, begun.elapsed());
}
