//! What a message of a source says, and whose it is.

use bytes::Bytes;
use sendtrail_eventlog::kafka::SourceMessage;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::{AccountId, hash128};
use sendtrail_schemas::record::{Body, Unreadable};
use serde_json::Value;

use super::numbering::Place;
use crate::intake::{Format, split};

/// Items of one message.
const MAX_ITEMS: usize = 10_000;
/// Bytes of a message that is kept as a dead letter.
const MAX_KEPT: usize = 1 << 20;

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
    /// What a message becomes: the same whenever it is read, also when it cannot be understood.
    pub fn read(&self, source: &str, message: &SourceMessage<'_>, items: &mut Vec<Item>) {
        let Some(payload) = message.payload else { return };
        let mut index = 0;
        let mut put = |account, mut body: Body| {
            index += 1;
            let at = Place { partition: message.partition, offset: message.offset, index };
            if let Body::Fact(fact) = &mut body
                && fact.event_id.is_none()
                && fact.occurred_at_nanos.is_none()
            {
                fact.lent_identity = Some(lent(source, at));
            }
            items.push(Item { at, account, body });
        };
        let known = match &self.owner {
            Owner::Fixed(account) => Ok(Some(*account)),
            Owner::Header(name) => of_header(name, message.header).map(Some),
            Owner::Field(_) => Ok(None),
        };
        let texts = known.and_then(|known| Ok((known, texts(payload)?)));
        let (known, texts) = match texts {
            Ok(found) => found,
            Err(reason) => return put(None, unreadable(reason, payload)),
        };
        for text in texts {
            match self.events(&text, known) {
                Ok((account, facts)) => facts.into_iter().for_each(|fact| put(Some(account), Body::Fact(fact))),
                Err((account, reason)) => put(account, unreadable(reason, text.as_bytes())),
            }
        }
    }

    /// What a message that was set aside says now.
    ///
    /// # Errors
    /// Why it still cannot be read.
    pub fn read_again(&self, payload: &[u8], known: Option<AccountId>) -> Result<(AccountId, Vec<EventFact>), String> {
        let text = std::str::from_utf8(payload).map_err(|cause| cause.to_string())?;
        self.events(text, known.or(self.fixed())).map_err(|(_, reason)| reason)
    }

    fn fixed(&self) -> Option<AccountId> {
        if let Owner::Fixed(account) = &self.owner { Some(*account) } else { None }
    }

    /// The header that is to be read of each message.
    pub fn header(&self) -> Option<&str> {
        if let Owner::Header(name) = &self.owner { Some(name) } else { None }
    }

    fn events(
        &self,
        text: &str,
        known: Option<AccountId>,
    ) -> Result<(AccountId, Vec<EventFact>), (Option<AccountId>, String)> {
        let account = match (known, &self.owner) {
            (Some(account), _) => account,
            (None, Owner::Field(pointer)) => of_field(pointer, text).map_err(|reason| (None, reason))?,
            (None, _) => return Err((None, "its account is not known".into())),
        };
        let mut facts = Vec::new();
        let read = self.format.read(text, &mut facts);
        read.map_err(|fault| (Some(account), fault.message().to_owned()))?;
        Ok((account, facts))
    }
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

fn of_field(pointer: &str, text: &str) -> Result<AccountId, String> {
    let document: Value = serde_json::from_str(text).map_err(|cause| cause.to_string())?;
    let value = document.pointer(pointer).and_then(Value::as_str);
    let value = value.ok_or_else(|| format!("{pointer} is missing, or no text"))?;
    value.parse().map_err(|_| format!("{pointer} holds {value:?}, which is no account"))
}

fn unreadable(mut reason: String, payload: &[u8]) -> Body {
    let kept = payload.get(..MAX_KEPT).unwrap_or(payload);
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
        let rule = rule(Format::Native, Owner::Fixed(ACCOUNT.parse().unwrap()));
        let items = read(&rule, format!("[{}, {{\"event_type\":\"Open\"}}, {}]", open(""), open("")).as_bytes(), None);
        assert_eq!(items.iter().map(|item| item.at.index).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(matches!(&items[1].body, Body::Unreadable(message) if message.payload == br#"{"event_type":"Open"}"#));
        assert_eq!(items[1].account, rule.fixed());
        assert!(reason(&read(&rule, b"\xff{}", None)).starts_with("not UTF-8"));
        assert!(reason(&read(&rule, b"[1", None)).contains("not JSON"));
        assert!(reason(&read(&rule, b"", None)).contains("EOF"));
        let long = [b'x'; MAX_KEPT + 5];
        let items = read(&rule, &long, None);
        assert!(reason(&items).contains("the first 1048576 are kept"), "{}", reason(&items));
        let mut none = Vec::new();
        rule.read("mail", &SourceMessage { partition: 0, offset: 0, payload: None, header: None }, &mut none);
        assert!(none.is_empty(), "a tombstone says nothing");
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
