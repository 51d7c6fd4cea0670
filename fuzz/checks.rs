//! What holds of every input, however it came about: fuzz targets look for one of which it does not, and a test has the corpus
//! keep it.

use std::convert::Infallible;

use sendtrail_ingest::Format;
use sendtrail_processor::core::effects::Effects;
use sendtrail_processor::core::overlay::{Overlay, Progress};
use sendtrail_processor::core::step::{keys, step, usual_settings};
use sendtrail_processor::core::webhook::envelope::render;
use sendtrail_query_api::cursor;
use sendtrail_schemas::codec::{Wire, decode, encode};
use sendtrail_schemas::destination::{Dialect, Envelope};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::{Attempt, DeadLetter, Mail};
use sendtrail_schemas::record::{AccountFields, Body, Change, Command, Record};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::{Error, address};

/// A check of an input.
pub type Check = fn(&[u8]);

/// Every check, by the name of its target and of its folder in the corpus.
pub const ALL: [(&str, Check); 7] = [
    ("native", native),
    ("ses", ses),
    ("kumomta", kumomta),
    ("record", record),
    ("wire", wire),
    ("cursor", cursors),
    ("address", addresses),
];

/// An event of one's own.
pub fn native(data: &[u8]) {
    told(Format::Native, data);
}

/// A document of Amazon SES, bare or in the envelopes of SNS and EventBridge.
pub fn ses(data: &[u8]) {
    told(Format::Ses, data);
}

/// A log record of KumoMTA.
pub fn kumomta(data: &[u8]) {
    told(Format::KumoMta, data);
}

/// What is taken can be kept, is within what was promised of it, and becomes events that can be told in every dialect.
fn told(format: Format, data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (mut facts, mut again) = (Vec::new(), Vec::new());
    let taken = format.read(text, &mut facts);
    assert_eq!(taken, format.read(text, &mut again), "the same text is taken alike");
    assert_eq!(facts, again);
    assert!(taken.is_ok() || facts.is_empty(), "of what is refused nothing is taken");
    for fact in facts {
        assert!(!fact.message_id.is_empty() && address::is_valid(&fact.recipient), "{fact:?}");
        let header = |text: &Option<String>| text.as_deref().is_none_or(|text| !address::has_line_break(text));
        assert!(header(&fact.from) && header(&fact.subject), "{fact:?}");
        if let Some(metadata) = &fact.metadata {
            is_readable(metadata.as_bytes());
        }
        let record = of_account(Body::Fact(fact));
        reads_back(&record);
        let effects = applied(&record);
        effects.events.iter().for_each(|event| is_told(event, is_readable));
        assert!(effects.dead_letters.is_empty(), "what the door took the core takes: {:?}", effects.dead_letters);
    }
}

/// Whatever stands on the intake topic is applied, dead, or of a newer version; and always alike.
pub fn record(data: &[u8]) {
    let Ok(record) = decode::<Record>(data) else { return };
    reads_back(&record);
    assert_eq!(applied(&record), applied(&record));
}

/// What stands on the other topics.
pub fn wire(data: &[u8]) {
    fn one<W: Wire + PartialEq + std::fmt::Debug>(data: &[u8]) {
        match decode::<W>(data) {
            Ok(record) => reads_back(&record),
            Err(Error::Malformed(_) | Error::NewerVersion { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    one::<Mail>(data);
    one::<Attempt>(data);
    one::<DeadLetter>(data);
    one::<Event>(data);
    if let Ok(event) = decode::<Event>(data) {
        is_told(&event, is_json);
    }
}

/// A cursor is one of ours, or refused.
pub fn cursors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(position) = cursor::decode(text) else { return };
    assert_eq!(cursor::decode(&cursor::encode(&position)).ok(), Some(position));
}

/// An address is judged without surprise, and folding it changes nothing twice.
pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let folded = address::fold(text).into_owned();
    assert_eq!(address::fold(&folded), folded);
    if address::is_valid(text) {
        assert!(text.len() <= address::MAX_ADDRESS && !address::has_line_break(text), "{text:?}");
        assert!(!address::domain(text).is_empty(), "{text:?}");
        assert_eq!(address::parse_mailbox(text).map(|mailbox| mailbox.address).ok(), Some(text.trim()));
    }
    if let Ok(mailbox) = address::parse_mailbox(text) {
        assert!(address::is_valid(mailbox.address), "{text:?}");
        assert_eq!(address::bare(text), mailbox.address);
    }
}

fn account() -> AccountId {
    AccountId(uuid::Uuid::from_u128(1))
}

fn of_account(body: Body) -> Record {
    Record { version: 1, account_id: account().bytes().to_vec(), body: Some(body), ..Record::default() }
}

fn reads_back<W: Wire + PartialEq + std::fmt::Debug>(record: &W) {
    let read = decode::<W>(&encode(record));
    assert!(read.is_ok_and(|read| same(&read, record)), "{} {record:?}", W::NAME);
}

/// Equal, or equal on the wire: a NaN is not equal to itself.
fn same<W: Wire + PartialEq>(one: &W, other: &W) -> bool {
    one == other || encode(one) == encode(other)
}

/// What a record gives rise to in an account that is there, and after it.
fn applied(record: &Record) -> Effects {
    let progress = Progress { settings: Some(usual_settings()), ..Progress::default() };
    let mut overlay = Overlay::new(0, progress);
    let mut effects = Effects::default();
    let fields = AccountFields { name: Some("Acme".into()), mode: Some(1), ..AccountFields::default() };
    let begin = of_account(Body::Command(Command { change: Some(Change::CreateAccount(fields)) }));
    // The second time it is a copy, or comes after itself.
    for (offset, record) in [&begin, record, record].into_iter().enumerate() {
        let keys = keys(record);
        if let Some(id) = keys.account {
            overlay.load_account(id, || Ok::<_, Infallible>(None)).unwrap_or_else(|never| match never {});
        }
        for key in keys.rows() {
            overlay.load_row(*key, || Ok::<_, Infallible>(None)).unwrap_or_else(|never| match never {});
        }
        step(&mut overlay, record.clone(), &keys, offset as u64, Millis(1_777_636_800_000), &mut effects);
    }
    effects.events.iter().for_each(|event| is_told(event, is_json));
    effects.events.iter().for_each(reads_back);
    effects.mail.iter().for_each(reads_back);
    effects.dead_letters.iter().for_each(reads_back);
    effects
}

/// In each dialect, the body is JSON.
fn is_told(event: &Event, holds: Check) {
    for dialect in Dialect::ALL {
        for around in [Envelope::Dialect, Envelope::Cloudevents] {
            let Some(told) = render(dialect, around, event) else { continue };
            // What a provider's callback says is handed on byte for byte.
            if told.signed {
                holds(&told.body);
            }
        }
    }
}

fn is_json(json: &[u8]) {
    serde_json::from_slice::<serde::de::IgnoredAny>(json).expect("it is JSON");
}

/// Whether it is JSON that those can read, too, who look into every text. Numbers may be greater than theirs.
fn is_readable(json: &[u8]) {
    match serde_json::from_slice::<serde_json::Value>(json) {
        Err(error) if error.to_string().contains("number out of range") => is_json(json),
        read => drop(read.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(json)))),
    }
}
