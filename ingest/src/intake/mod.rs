//! Delivery events as they are sent to us: our own form, Amazon SES's and KumoMTA's.

mod kumomta;
pub mod native;
mod object;
mod ses;
mod split;

use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::problem::Code;
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use object::check_object;
pub use split::split;

/// Longest identifier of a message, an event or a customer, bytes.
pub const MAX_ID: usize = 512;
/// Longest subject or From, bytes (RFC 5322 §2.1.1 bounds a line at 998).
pub const MAX_HEADER: usize = 998;
/// Tags of one event or message.
pub const MAX_TAGS: usize = 50;
/// Longest name or value of a tag, bytes.
pub const MAX_TAG: usize = 256;
/// Longest metadata, bytes of JSON.
pub const MAX_METADATA: usize = 32 << 10;
/// Recipients of one document of others; SES sends to at most 50.
const MAX_RECIPIENTS: usize = 1_000;
/// Bytes of the block of a type: a reply's text and HTML fit (S2: 32 KB and 64 KB).
const MAX_BLOCK: usize = 128 << 10;

/// An event that was not taken, by its place in the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Rejection {
    /// Place in the array, or among the lines that are not empty, from 0.
    pub index: usize,
    /// The stable code.
    #[schema(value_type = String)]
    pub error: &'static str,
    /// For people.
    pub message: String,
}

/// Why an event is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    code: Code,
    message: String,
}

impl Fault {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// Why, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// As the reply tells it.
    pub fn at(self, index: usize) -> Rejection {
        Rejection { index, error: self.code.name(), message: self.message }
    }
}

/// In which form events are told: `native`, `ses` or `kumomta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Our own.
    #[default]
    Native,
    /// Documents that Amazon SES publishes.
    Ses,
    /// Log records of KumoMTA.
    KumoMta,
}

impl Format {
    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::deserialize(StrDeserializer::<serde::de::value::Error>::new(name)).ok()
    }

    /// Reads one item, and adds the events that it tells of: several where it names several recipients, none where it
    /// speaks of no message.
    ///
    /// # Errors
    /// Why it is not taken; then none of its events is.
    pub fn read(self, text: &str, facts: &mut Vec<EventFact>) -> Result<(), Fault> {
        match self {
            Self::Native => facts.push(native::read(text)?),
            Self::Ses => facts.extend(ses::read(text)?),
            Self::KumoMta => facts.extend(kumomta::read(text)?),
        }
        Ok(())
    }
}

/// A header in one line and no longer than it may be: others hand on what was in the message, and that is no fault of the
/// event's.
fn fit(mut text: String, most: usize) -> String {
    if sendtrail_schemas::address::has_line_break(&text) {
        text = text.replace(['\r', '\n', '\0'], " ");
    }
    text.truncate(text.floor_char_boundary(most));
    text
}

/// Metadata of our own making, unless there is too much of it.
fn kept(metadata: String) -> String {
    if metadata.len() > MAX_METADATA { r#"{"truncated":true}"#.into() } else { metadata }
}

/// Checks what any form of an event must keep to.
fn check(fact: &EventFact) -> Result<(), Fault> {
    let bounded = |name: &str, text: Option<&String>, most: usize| match text {
        Some(text) if text.len() > most => Err(Fault::invalid(format!("{name} has more than {most} bytes"))),
        Some(text) if text.contains('\0') => Err(Fault::invalid(format!("{name} holds a NUL"))),
        _ => Ok(()),
    };
    let header = |name: &str, text: Option<&String>| match text {
        Some(text) if sendtrail_schemas::address::has_line_break(text) => {
            Err(Fault::invalid(format!("{name} holds a line break or NUL")))
        }
        text => bounded(name, text, MAX_HEADER),
    };
    if fact.message_id.is_empty() {
        return Err(Fault::invalid("message_id is missing"));
    }
    if !sendtrail_schemas::address::is_valid(&fact.recipient) {
        let message = if fact.recipient.is_empty() {
            "recipient is missing".to_owned()
        } else {
            format!("recipient {:?} is not an e-mail address", fact.recipient)
        };
        return Err(Fault::new(Code::BadRecipient, message));
    }
    bounded("message_id", Some(&fact.message_id), MAX_ID)?;
    bounded("event_id", fact.event_id.as_ref(), MAX_ID)?;
    bounded("send_id", fact.send_id.as_ref(), MAX_ID)?;
    bounded("customer_id", fact.customer_id.as_ref(), MAX_ID)?;
    bounded("configuration_set_name", fact.configuration_set_name.as_ref(), MAX_TAG)?;
    header("from", fact.from.as_ref())?;
    header("subject", fact.subject.as_ref())?;
    bounded("metadata", fact.metadata.as_ref(), MAX_METADATA)?;
    if fact.block.as_ref().is_some_and(|block| block.encoded_len() > MAX_BLOCK) {
        return Err(Fault::invalid(format!("the block of its type has more than {MAX_BLOCK} bytes")));
    }
    check_tags(&fact.tags).map_err(Fault::invalid)
}

/// Checks tags, of events and of messages alike.
pub fn check_tags(tags: &sendtrail_schemas::event::Tags) -> Result<(), String> {
    if tags.len() > MAX_TAGS {
        return Err(format!("more than {MAX_TAGS} tags"));
    }
    let fits = |text: &String| text.len() <= MAX_TAG && !text.contains('\0');
    if tags.iter().all(|(name, value)| !name.is_empty() && fits(name) && fits(value)) {
        Ok(())
    } else {
        Err(format!("a tag has a name of 1 to {MAX_TAG} bytes and a value of at most {MAX_TAG}"))
    }
}
