//! What a message of a source says, and whose it is.

use bytes::Bytes;
use sendtrail_eventlog::kafka::SourceMessage;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::{AccountId, hash128};
use sendtrail_schemas::record::{Body, SourcePosition, Unreadable};
use serde_json::Value;

use super::numbering::Place;
use crate::intake::{Format, split};

/// Items of one message.
const MAX_ITEMS: usize = 10_000;
/// Bytes of the events that one message may become.
const MAX_EXPANDED: usize = 16 << 20;
/// Bytes of a message that is kept as a dead letter, and of the reason why.
const MAX_KEPT: usize = 1 << 20;
const MAX_REASON: usize = 1 << 10;

/// How the messages of a source are read.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The form of the events.
    pub format: Format,
    /// Whose they are.
    pub owner: Owner,
}

/// How a message tells its account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// All are of one account.
    Fixed(AccountId),
    /// A header holds the account's identifier.
    Header(String),
    /// A field of the JSON does, by its pointer (RFC 6901).
    Field(String),
}

/// One record that a message becomes.
#[derive(Debug, PartialEq)]
pub struct Item {
    /// Where it was read.
    pub at: Place,
    /// Whose it is, as far as that is known.
    pub account: Option<AccountId>,
    /// An event, or what could not be read.
    pub body: Body,
}

impl Rule {
    /// What a message becomes: the same whenever it is read, also when it cannot be understood. What of it cannot is one
    /// record, however much it is.
    pub fn read(&self, source: &str, message: &SourceMessage<'_>, items: &mut Vec<Item>) {
        let Some(payload) = message.payload else { return };
        let known = match &self.owner {
            Owner::Fixed(account) => Ok(Some(*account)),
            Owner::Header(name) => of_header(name, message.header).map(Some),
            Owner::Field(_) => Ok(None),
        };
        let place = Place { partition: message.partition, offset: message.offset, index: 0 };
        match known {
            Ok(known) => self.understand(source, place, payload, known, items),
            Err(reason) => items.push(Item { at: after(place, 1), account: None, body: unreadable(reason, payload) }),
        }
    }

    /// What a message that was set aside says by now, by its place and the account that was known.
    ///
    /// # Errors
    /// Why it still cannot be read; then none of it is taken.
    pub fn read_again(
        &self,
        at: &SourcePosition,
        payload: &[u8],
        known: Option<AccountId>,
    ) -> Result<Vec<(AccountId, EventFact)>, String> {
        let known = known.or(if let Owner::Fixed(account) = &self.owner { Some(*account) } else { None });
        // Told apart from the events that its message became at first.
        let place = Place { partition: at.partition, offset: at.offset, index: at.index };
        let mut items = Vec::new();
        self.understand(&at.source, place, payload, known, &mut items);
        let events = items.into_iter().map(|item| match (item.account, item.body) {
            (Some(account), Body::Fact(fact)) => Ok((account, fact)),
            (_, Body::Unreadable(message)) => Err(message.reason),
            _ => Err("its account is not known".into()),
        });
        events.collect()
    }

    /// The header that is to be read of each message.
    pub fn header(&self) -> Option<&str> {
        if let Owner::Header(name) = &self.owner { Some(name) } else { None }
    }

    /// Adds what a payload says; records are numbered after a place.
    fn understand(&self, source: &str, place: Place, payload: &[u8], known: Option<AccountId>, items: &mut Vec<Item>) {
        let texts = match texts(payload) {
            Ok(texts) => texts,
            Err(reason) => {
                return items.push(Item { at: after(place, 1), account: known, body: unreadable(reason, payload) });
            }
        };
        let (mut index, mut bad) = (0, Vec::new());
        let (before, mut bytes) = (items.len(), 0);
        for text in &texts {
            if items.len() - before > MAX_ITEMS || bytes > MAX_EXPANDED {
                items.truncate(before);
                let reason = format!("it would be more than {MAX_ITEMS} events, or {MAX_EXPANDED} bytes of them");
                return items.push(Item { at: after(place, 1), account: known, body: unreadable(reason, payload) });
            }
            match self.events(text, known) {
                Ok((account, facts)) => {
                    for mut fact in facts {
                        index += 1;
                        let at = after(place, index);
                        if fact.event_id.is_none() && fact.occurred_at_nanos.is_none() {
                            fact.lent_identity = Some(lent(source, at));
                        }
                        let body = Body::Fact(fact);
                        bytes += body.encoded_len();
                        items.push(Item { at, account: Some(account), body });
                    }
                }
                Err(reason) => bad.push((text, reason)),
            }
        }
        let count = bad.len();
        if let Some((first, reason)) = bad.first() {
            let (reason, payload) = if count == 1 {
                (reason.clone(), first.to_string())
            } else {
                let all: Vec<&str> = bad.iter().map(|(text, _)| text.as_ref()).collect();
                (
                    format!("{count} of {} cannot be read; the first: {reason}", texts.len()),
                    format!("[{}]", all.join(",")),
                )
            };
            let body = unreadable(reason, payload.as_bytes());
            items.push(Item { at: after(place, index + 1), account: known, body });
        }
    }

    fn events(&self, text: &str, known: Option<AccountId>) -> Result<(AccountId, Vec<EventFact>), String> {
        let account = match (known, &self.owner) {
            (Some(account), _) => account,
            (None, Owner::Field(pointer)) => of_field(self.format, pointer, text)?,
            (None, _) => return Err("its account is not known".into()),
        };
        let mut facts = Vec::new();
        self.format.read(text, &mut facts).map_err(|fault| fault.message().to_owned())?;
        Ok((account, facts))
    }
}

fn after(place: Place, index: u32) -> Place {
    Place { index: place.index + index, ..place }
}

/// The JSON texts of a message: one, or those of an array.
fn texts(payload: &[u8]) -> Result<Vec<std::borrow::Cow<'_, str>>, String> {
    let text = std::str::from_utf8(payload).map_err(|cause| format!("not UTF-8: {cause}"))?;
    if !text.trim_start().starts_with('[') {
        return Ok(vec![text.into()]);
    }
    let body = Bytes::copy_from_slice(payload);
    let items = split(&body, false, MAX_ITEMS).map_err(|problem| problem.message)?;
    Ok(items.into_iter().map(|item| item.into_owned().into()).collect())
}

fn of_header(name: &str, value: Option<&[u8]>) -> Result<AccountId, String> {
    let value = value.ok_or_else(|| format!("the header {name} is missing"))?;
    let text = std::str::from_utf8(value).map_err(|_| format!("the header {name} is not UTF-8"))?;
    text.trim().parse().map_err(|_| format!("the header {name} holds {text:?}, which is no account"))
}

fn of_field(format: Format, pointer: &str, text: &str) -> Result<AccountId, String> {
    let document: Value = serde_json::from_str(text).map_err(|cause| cause.to_string())?;
    let mut value = document.pointer(pointer);
    if value.is_none() && format == Format::KumoMta {
        // A complaint's record is of the report; what was traced of the message is in it.
        let (_, name) = pointer.rsplit_once('/').unwrap_or_default();
        value = document.pointer(&format!("/feedback_report/supplemental_trace/{name}"));
    }
    let value = value.and_then(Value::as_str).ok_or_else(|| format!("{pointer} is missing, or no text"))?;
    value.parse().map_err(|_| format!("{pointer} holds {value:?}, which is no account"))
}

fn unreadable(mut reason: String, payload: &[u8]) -> Body {
    let kept = payload.get(..MAX_KEPT).unwrap_or(payload);
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    if kept.len() < payload.len() {
        reason = format!("{reason} (of {} bytes the first {MAX_KEPT} are kept)", payload.len());
    }
    Body::Unreadable(Unreadable { reason, payload: kept.to_vec() })
}

/// What tells an event apart that nothing else does: its place.
fn lent(source: &str, at: Place) -> Vec<u8> {
    let place = [&at.partition.to_le_bytes()[..], &at.offset.to_le_bytes(), &at.index.to_le_bytes()].concat();
    hash128(&[source.as_bytes(), &place]).to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "018f2f6e-0000-7000-8000-000000000001";

    fn rule(format: Format, owner: Owner) -> Rule {
        Rule { format, owner }
    }

    fn read(rule: &Rule, payload: &[u8], header: Option<&[u8]>) -> Vec<Item> {
        let mut items = Vec::new();
        let message = SourceMessage { partition: 3, offset: 7, payload: Some(payload), header };
        rule.read("mail", &message, &mut items);
        items
    }

    fn reason(items: &[Item]) -> &str {
        match items {
            [Item { body: Body::Unreadable(message), .. }] => &message.reason,
            _ => panic!("{items:?}"),
        }
    }

    fn open(extra: &str) -> String {
        format!(r#"{{"event_type":"Open","message_id":"m","recipient":"a@b.co"{extra}}}"#)
    }

    #[test]
    fn the_account_is_fixed_or_in_a_header_or_in_a_field() {
        let account: AccountId = ACCOUNT.parse().unwrap();
        let with_field = open(&format!(r#","metadata":{{"partner":"{ACCOUNT}"}}"#));
        let rules = [
            (Owner::Fixed(account), None),
            (Owner::Header("account".into()), Some(ACCOUNT.as_bytes())),
            (Owner::Field("/metadata/partner".into()), None),
        ];
        for (owner, header) in rules {
            let rule = rule(Format::Native, owner);
            let items = read(&rule, with_field.as_bytes(), header);
            assert_eq!(items.len(), 1);
            assert_eq!(items[0].account, Some(account));
            assert!(matches!(&items[0].body, Body::Fact(fact) if fact.message_id == "m"));
            assert_eq!(items[0].at, Place { partition: 3, offset: 7, index: 1 });
        }
        let header = rule(Format::Native, Owner::Header("account".into()));
        assert_eq!(reason(&read(&header, with_field.as_bytes(), None)), "the header account is missing");
        assert!(reason(&read(&header, with_field.as_bytes(), Some(b"me"))).contains("\"me\""));
        let field = rule(Format::Native, Owner::Field("/metadata/partner".into()));
        assert!(reason(&read(&field, open("").as_bytes(), None)).starts_with("/metadata/partner is missing"));
    }

    #[test]
    fn what_cannot_be_read_is_kept_and_the_rest_goes_on() {
        let account: AccountId = ACCOUNT.parse().unwrap();
        let rule = rule(Format::Native, Owner::Fixed(account));
        let items = read(&rule, format!("[{}, {{\"event_type\":\"Open\"}}, {}]", open(""), open("")).as_bytes(), None);
        assert_eq!(items.iter().map(|item| item.at.index).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(matches!(&items[2].body, Body::Unreadable(message) if message.payload == br#"{"event_type":"Open"}"#));
        assert_eq!(items[2].account, Some(account));
        // However much of a message cannot be read, it is one record.
        let items = read(&rule, format!("[1, {}, 2]", open("")).as_bytes(), None);
        let Body::Unreadable(message) = &items[1].body else { panic!("{items:?}") };
        assert_eq!((items.len(), message.payload.as_slice()), (2, &b"[1,2]"[..]));
        assert!(message.reason.starts_with("2 of 3 cannot be read; the first: "), "{}", message.reason);
        assert!(reason(&read(&rule, b"\xff{}", None)).starts_with("not UTF-8"));
        assert!(reason(&read(&rule, b"[1", None)).contains("not JSON"));
        assert!(reason(&read(&rule, b"", None)).contains("EOF"));
        let long = [b'x'; MAX_KEPT + 5];
        let items = read(&rule, &long, None);
        assert!(reason(&items).contains("the first 1048576 are kept"), "{}", reason(&items));
        let far = format!("[{}]", vec![open(&format!(r#","subject":"{}""#, "x".repeat(900))); 9_999].join(","));
        assert_eq!(read(&rule, far.as_bytes(), None).len(), 9_999);
        let far =
            format!("[{}]", vec![open(&format!(r#","metadata":{{"x":"{}"}}"#, "x".repeat(9_000))); 2_000].join(","));
        assert!(reason(&read(&rule, far.as_bytes(), None)).starts_with("it would be more than"));
        let strange = open(&format!(r#","category":"{}""#, "x".repeat(9_000)));
        assert!(reason(&read(&rule, strange.replace("Open", &"y".repeat(9_000)).as_bytes(), None)).len() <= MAX_REASON);
        let mut none = Vec::new();
        rule.read("mail", &SourceMessage { partition: 0, offset: 0, payload: None, header: None }, &mut none);
        assert!(none.is_empty(), "a tombstone says nothing");
    }

    #[test]
    fn a_complaints_account_is_that_of_what_was_traced() {
        let rule = rule(Format::KumoMta, Owner::Field("/meta/account".into()));
        let report = format!(
            r#"{{"type":"Feedback","id":"r","recipient":"fbl@a.co","meta":{{}},"feedback_report":{{"feedback_type":"abuse",
                "supplemental_trace":{{"recipient":"a@b.co","message_id":"m","account":"{ACCOUNT}"}}}}}}"#
        );
        let items = read(&rule, report.as_bytes(), None);
        assert_eq!(items[0].account, ACCOUNT.parse().ok());
        assert!(matches!(&items[0].body, Body::Fact(fact) if fact.message_id == "m"), "{items:?}");
    }

    #[test]
    fn what_was_set_aside_can_be_read_again_whole_or_not_at_all() {
        let account: AccountId = ACCOUNT.parse().unwrap();
        let at =
            SourcePosition { source: "mail".into(), partition: 3, offset: 7, index: 2, ..SourcePosition::default() };
        let header = rule(Format::Native, Owner::Header("account".into()));
        let two = format!("[{}, {}]", open(""), open(""));
        assert!(header.read_again(&at, two.as_bytes(), None).unwrap_err().contains("not known"));
        assert!(header.read_again(&at, format!("[1, {}]", open("")).as_bytes(), Some(account)).is_err());
        let again = header.read_again(&at, two.as_bytes(), Some(account)).unwrap();
        assert_eq!(again, header.read_again(&at, two.as_bytes(), Some(account)).unwrap(), "the same when asked twice");
        let lent: Vec<_> = again.iter().map(|(_, fact)| fact.lent_identity.clone().unwrap()).collect();
        let first = read(&rule(Format::Native, Owner::Fixed(account)), two.as_bytes(), None);
        let known =
            |item: &Item| matches!(&item.body, Body::Fact(fact) if lent.contains(fact.lent_identity.as_ref().unwrap()));
        assert!(lent[0] != lent[1] && !first.iter().any(known), "none is taken for one that was read");
        let fixed = rule(Format::Native, Owner::Fixed(account));
        assert_eq!(fixed.read_again(&at, open("").as_bytes(), None).unwrap()[0].0, account);
    }

    #[test]
    fn events_that_nothing_tells_apart_are_told_apart_by_their_place() {
        let rule = rule(Format::Native, Owner::Fixed(ACCOUNT.parse().unwrap()));
        let lent = |item: &Item| match &item.body {
            Body::Fact(fact) => fact.lent_identity.clone(),
            _ => None,
        };
        let bare = format!("[{},{}]", open(""), open(""));
        let items = read(&rule, bare.as_bytes(), None);
        assert!(lent(&items[0]).is_some() && lent(&items[0]) != lent(&items[1]));
        assert_eq!(lent(&items[0]), lent(&read(&rule, bare.as_bytes(), None)[0]), "the same when it is read again");
        let named = read(&rule, open(r#","event_id":"e""#).as_bytes(), None);
        assert_eq!(lent(&named[0]), None);
    }
}
