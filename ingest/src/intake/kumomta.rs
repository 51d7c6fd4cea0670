//! Events as KumoMTA logs them: one JSON record a line, a request or a Kafka message.
//!
//! Source: KumoMTA reference manual, "Log Record". What has no field of ours is kept in `metadata`. Fields of `meta` with
//! our names (`message_id`, `send_id`, `configuration_set_name`, `customer_id`) fill ours, its others are tags; without a
//! `message_id` there the message is known by its spool id.

use sendtrail_schemas::address;
use sendtrail_schemas::block::{Block, Bounce, Complaint, Delivery, DeliveryDelay, Reject};
use sendtrail_schemas::event::{EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::parse_nanos;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Fault, MAX_HEADER, MAX_RECIPIENTS, MAX_TAG, MAX_TAGS, check, fit, kept};

/// Bytes of a server's answer that are kept; RFC 5321 §4.5.3.1.5 allows 512 a line.
const MAX_LINE: usize = 4 << 10;

/// What we read of a record; the rest goes to `metadata`.
#[derive(Deserialize)]
struct LogRecord {
    r#type: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    sender: String,
    #[serde(default)]
    recipient: Recipients,
    #[serde(default)]
    response: Response,
    peer_address: Option<Peer>,
    timestamp: Option<Value>,
    created: Option<Value>,
    bounce_classification: Option<String>,
    feedback_report: Option<FeedbackReport>,
    #[serde(default)]
    meta: Map<String, Value>,
    #[serde(default)]
    headers: Map<String, Value>,
    reception_protocol: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One recipient, or those of one transaction.
#[derive(Deserialize)]
#[serde(untagged)]
enum Recipients {
    One(String),
    Many(Vec<String>),
}

impl Recipients {
    fn is_nobody(&self) -> bool {
        match self {
            Self::One(to) => to.is_empty(),
            Self::Many(all) => all.iter().all(String::is_empty),
        }
    }
}

impl Default for Recipients {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Deserialize, Default)]
struct Response {
    #[serde(default)]
    code: u16,
    enhanced_code: Option<EnhancedCode>,
    #[serde(default)]
    content: String,
}

/// RFC 3463.
#[derive(Deserialize)]
struct EnhancedCode {
    class: u16,
    subject: u16,
    detail: u16,
}

#[derive(Deserialize)]
struct Peer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    addr: String,
}

/// RFC 5965, as far as we read it.
#[derive(Deserialize)]
struct FeedbackReport {
    #[serde(default)]
    feedback_type: String,
    user_agent: Option<String>,
    arrival_date: Option<String>,
    #[serde(default)]
    original_rcpto_to: Vec<String>,
    supplemental_trace: Option<Map<String, Value>>,
}

/// Reads one record: an event for each recipient, or none when it tells nothing of a message's way.
///
/// # Errors
/// Why it is not taken.
pub fn read(text: &str) -> Result<Vec<EventFact>, Fault> {
    let record: LogRecord = serde_json::from_str(text).map_err(|cause| Fault::invalid(cause.to_string()))?;
    // What KumoMTA sends of its own log, to us perhaps.
    if record.reception_protocol.as_deref() == Some("LogRecord") {
        return Ok(Vec::new());
    }
    let Some((kind, block)) = what(&record)? else { return Ok(Vec::new()) };
    let facts = facts(record, kind, block)?;
    facts.iter().try_for_each(check)?;
    Ok(facts)
}

/// The event that a record is, if it is one.
fn what(record: &LogRecord) -> Result<Option<(EventType, Option<Block>)>, Fault> {
    Ok(Some(match record.r#type.as_str() {
        // A report that came to us, most likely: mail from nobody is none that somebody sends.
        "Reception" if record.sender.is_empty() => return Ok(None),
        "Reception" => (EventType::Send, None),
        "Delivery" => (EventType::Delivery, Some(Block::Delivery(delivery(record)?))),
        "Bounce" => (EventType::Bounce, Some(bounce(record, verdict(record)))),
        "Expiration" => (EventType::Bounce, Some(bounce(record, TRANSIENT))),
        // Nobody knows what the recipient's server would have said.
        "AdminBounce" => (EventType::Bounce, Some(bounce(record, ("Undetermined", "AdminBounce")))),
        "OOB" if is_no_bounce(record) => return Ok(None),
        "OOB" => (EventType::Bounce, Some(bounce(record, verdict(record)))),
        "TransientFailure" => (EventType::DeliveryDelay, Some(delay(record))),
        "Feedback" => match complaint(record)? {
            Some(complaint) => (EventType::Complaint, Some(Block::Complaint(complaint))),
            None => return Ok(None),
        },
        // Usually it was refused before it was a message, and has no identifier.
        "Rejection" if record.id.is_empty() || record.recipient.is_nobody() => return Ok(None),
        "Rejection" => (EventType::Reject, Some(Block::Reject(Reject { reason: Some(record.response.line()) }))),
        "Delay" | "Delayed" | "AdminRebind" | "DeferredInjectionRebind" | "XferIn" | "XferOut" => return Ok(None),
        other => return Err(Fault::invalid(format!("type {other:?} is none of KumoMTA's"))),
    }))
}

fn facts(mut record: LogRecord, kind: EventType, block: Option<Block>) -> Result<Vec<EventFact>, Fault> {
    let occurred_at_nanos = nanos("timestamp", record.timestamp.as_ref())?;
    let recipients = recipients(&mut record, kind)?;
    let mut trace = record.feedback_report.as_mut().and_then(|report| report.supplemental_trace.take());
    // A report is a message of its own; what it is about is what was traced.
    let mut own = |name: &str| {
        let traced = trace.as_mut().and_then(|trace| trace.remove(name));
        record.meta.remove(name).or(traced).and_then(|value| scalar(&value))
    };
    let message_id = own("message_id").unwrap_or(record.id);
    let (send_id, configuration_set_name) = (own("send_id"), own("configuration_set_name"));
    let customer_id = own("customer_id");
    let tags: Tags = record.meta.iter().filter_map(|(name, value)| Some((name, scalar(value)?))).map(tag).collect();
    let tags = tags.into_iter().take(MAX_TAGS).collect();
    let mut header = |name: &str| {
        let (key, _) = record.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        let key = key.clone();
        let text = match record.headers.remove(&key)? {
            Value::Array(mut all) if !all.is_empty() => scalar(&all.swap_remove(0)),
            value => scalar(&value),
        };
        text.map(|text| fit(text, MAX_HEADER))
    };
    let (from, subject) = (header("from"), header("subject"));
    let sender = (!record.sender.is_empty()).then_some(record.sender);
    let mut rest = record.rest;
    rest.extend([("headers", record.headers)].into_iter().filter(|(_, map)| !map.is_empty()).map(named));
    rest.extend(record.bounce_classification.map(|class| ("bounce_classification".into(), Value::String(class))));
    rest.retain(|_, value| !value.is_null());
    let metadata = (!rest.is_empty()).then(|| kept(Value::Object(rest).to_string()));
    let shared = EventFact {
        kind: kind as i32,
        message_id,
        occurred_at_nanos,
        from: from.or(sender),
        subject,
        configuration_set_name,
        customer_id,
        send_id,
        tags,
        metadata,
        block,
        ..EventFact::default()
    };
    Ok(recipients.into_iter().map(|recipient| EventFact { recipient, ..shared.clone() }).collect())
}

fn named((name, map): (&str, Map<String, Value>)) -> (String, Value) {
    (name.into(), Value::Object(map))
}

fn tag((name, value): (&String, String)) -> (String, String) {
    (fit(name.clone(), MAX_TAG), fit(value, MAX_TAG))
}

/// Whom the event is of. A feedback report goes to us: whoever complained is named in it.
fn recipients(record: &mut LogRecord, kind: EventType) -> Result<Vec<String>, Fault> {
    let report = record.feedback_report.as_mut().filter(|_| kind == EventType::Complaint);
    let all = if let Some(report) = report {
        let traced = report.supplemental_trace.as_mut().and_then(|trace| trace.remove("recipient"));
        match traced {
            Some(Value::String(to)) => vec![to],
            Some(Value::Array(all)) => all.iter().filter_map(scalar).collect(),
            _ => std::mem::take(&mut report.original_rcpto_to),
        }
    } else {
        match std::mem::take(&mut record.recipient) {
            Recipients::One(to) => vec![to],
            Recipients::Many(all) => all,
        }
    };
    if all.is_empty() {
        return Err(Fault::invalid("no recipient is named"));
    }
    if all.len() > MAX_RECIPIENTS {
        return Err(Fault::invalid(format!("more than {MAX_RECIPIENTS} recipients")));
    }
    Ok(all.iter().map(|to| address::bare(to).to_owned()).collect())
}

fn delivery(record: &LogRecord) -> Result<Delivery, Fault> {
    let ended = nanos("timestamp", record.timestamp.as_ref())?;
    let begun = nanos("created", record.created.as_ref())?;
    let took = ended.zip(begun).and_then(|(ended, begun)| Some(ended.checked_sub(begun)? / 1_000_000));
    Ok(Delivery {
        smtp_response: Some(record.response.line()),
        processing_time_millis: took.filter(|millis| *millis >= 0),
        reporting_mta: None,
        remote_mta_ip: record.peer_ip(),
    })
}

/// A bounce's type and sub-type, in SES's words.
type Verdict = (&'static str, &'static str);

const TRANSIENT: Verdict = ("Transient", "General");
const CONTENT: Verdict = ("Transient", "ContentRejected");

/// Only what is wrong with the address is permanent: one that refuses spam or lacks room must not be suppressed. What
/// KumoMTA could not classify goes by the server's code.
fn verdict(record: &LogRecord) -> Verdict {
    match record.bounce_classification.as_deref().unwrap_or_default() {
        "InvalidRecipient" => ("Permanent", "NoEmail"),
        "InactiveMailbox" | "BadDomain" => ("Permanent", "General"),
        "QuotaIssues" => ("Transient", "MailboxFull"),
        "ProhibitedAttachment" => ("Transient", "AttachmentRejected"),
        "SpamBlock" | "SpamContent" | "SpamRelated" | "VirusRelated" | "ContentRelated" => CONTENT,
        "AuthenticationFailed"
        | "BadConfiguration"
        | "BadConnection"
        | "DNSFailure"
        | "InvalidSender"
        | "MessageExpired"
        | "NoAnswerFromHost"
        | "PolicyRelated"
        | "ProtocolErrors"
        | "RelayDenied"
        | "RelayingIssues"
        | "RoutingErrors"
        | "TransientFailure" => TRANSIENT,
        _ if record.response.class() == 5 => ("Permanent", "General"),
        _ => TRANSIENT,
    }
}

/// What comes back to the sender's address and is not about a delivery.
fn is_no_bounce(record: &LogRecord) -> bool {
    let class = record.bounce_classification.as_deref();
    matches!(class, Some("AutoReply" | "Subscribe" | "Unsubscribe" | "ChallengeResponse"))
}

fn bounce(record: &LogRecord, (bounce_type, sub_type): Verdict) -> Block {
    let response = &record.response;
    let line = response.line();
    // Of a report that came later the peer is who made it.
    let reporter = record.peer_address.as_ref().filter(|peer| record.r#type == "OOB" && !peer.name.is_empty());
    Block::Bounce(Bounce {
        bounce_type: Some(bounce_type.into()),
        bounce_sub_type: Some(sub_type.into()),
        diagnostic_code: (!line.is_empty()).then(|| format!("smtp; {line}")),
        status: response.enhanced_code.as_ref().map(EnhancedCode::text),
        action: Some("failed".into()),
        reporting_mta: reporter.map(|peer| format!("dns; {}", peer.name.trim_end_matches('.'))),
        remote_mta_ip: record.peer_ip(),
        feedback_id: (record.r#type == "OOB").then(|| record.id.clone()),
    })
}

fn delay(record: &LogRecord) -> Block {
    let delay_type = match record.bounce_classification.as_deref().unwrap_or_default() {
        "QuotaIssues" => "MailboxFull",
        "SpamBlock" | "SpamContent" | "SpamRelated" => "SpamDetected",
        "BadConnection" | "DNSFailure" | "NoAnswerFromHost" => "TransientCommunicationFailure",
        _ => "General",
    };
    Block::DeliveryDelay(DeliveryDelay { delay_type: Some(delay_type.into()), ..DeliveryDelay::default() })
}

/// The complaint that a report is; reports on authentication, and of mail that is no spam, are none.
fn complaint(record: &LogRecord) -> Result<Option<Complaint>, Fault> {
    let report = record.feedback_report.as_ref().ok_or_else(|| Fault::invalid("feedback_report is missing"))?;
    if matches!(report.feedback_type.as_str(), "not-spam" | "auth-failure") {
        return Ok(None);
    }
    Ok(Some(Complaint {
        complaint_feedback_type: Some(report.feedback_type.clone()),
        user_agent: report.user_agent.clone(),
        complaint_sub_type: None,
        feedback_id: Some(record.id.clone()),
        arrival_date: report.arrival_date.clone(),
    }))
}

impl LogRecord {
    fn peer_ip(&self) -> Option<String> {
        self.peer_address.as_ref().map(|peer| peer.addr.clone()).filter(|ip| !ip.is_empty() && ip != "0.0.0.0")
    }
}

impl Response {
    /// 2, 4 or 5; 0 when there was none.
    fn class(&self) -> u16 {
        self.enhanced_code.as_ref().map_or(self.code / 100, |code| code.class)
    }

    /// In one line, as a server says it.
    fn line(&self) -> String {
        let code = (self.code > 0).then(|| self.code.to_string());
        let enhanced = self.enhanced_code.as_ref().map(EnhancedCode::text);
        let content = self.content.replace(['\r', '\n', '\0'], " ");
        let parts = [code, enhanced, Some(content)];
        let line = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        fit(line, MAX_LINE)
    }
}

impl EnhancedCode {
    fn text(&self) -> String {
        format!("{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// A time: seconds since the epoch, or RFC 3339; in nanoseconds.
fn nanos(name: &str, value: Option<&Value>) -> Result<Option<i64>, Fault> {
    let malformed = || Fault::invalid(format!("{name} is not a time"));
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(seconds)) if seconds.is_i64() => {
            let nanos = seconds.as_i64().and_then(|seconds| seconds.checked_mul(1_000_000_000));
            nanos.map(Some).ok_or_else(malformed)
        }
        Some(Value::String(text)) => parse_nanos(text).map(Some).map_err(|_| malformed()),
        Some(_) => Err(malformed()),
    }
}

/// What can stand in a tag.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
