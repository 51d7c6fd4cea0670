//! Sends: checked for form here, decided in the order of the log.

use std::collections::HashSet;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sendtrail_schemas::address::{self, parse_mailbox};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::event::Tags;
use sendtrail_schemas::mail::{Attachment, Body as ContentBody, Content, MailContent};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Body, Idempotency, Outcome, Recipient, RecipientKind, SendRequest};
use sendtrail_schemas::web::{invalid, object, ok};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::{fresh, one_line};
use crate::body::Payload;
use crate::intake::{MAX_HEADER, MAX_ID, MAX_METADATA, check_object, check_tags};
use crate::submit::{Stamp, log_problem, refused};
use crate::{Ingest, mime};

/// Recipients of one call: to, cc and bcc together (S2 "TOO_MANY_RECIPIENTS").
const MAX_RECIPIENTS: usize = 50;

/// Marks an answer that was given before.
pub(super) fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert("idempotent-replayed", axum::http::HeaderValue::from_static("true"));
    response
}

/// The `Idempotency-Key` of a request.
pub(super) fn idempotency(headers: &HeaderMap, route: &str, body: &[u8]) -> Result<Option<Idempotency>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > 256 {
        return Err(invalid("Idempotency-Key has 1 to 256 visible ASCII characters"));
    }
    let body_hash = Sha256::digest(body).to_vec();
    Ok(Some(Idempotency { route: route.into(), key: key.into(), body_hash }))
}

/// A message to send (S2 "Send").
#[derive(Deserialize, ToSchema)]
pub(super) struct Message {
    /// "Name <a@b>" or an address.
    from: Option<String>,
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    to: OneOrMany,
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    cc: OneOrMany,
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    bcc: OneOrMany,
    reply_to: Option<String>,
    subject: Option<String>,
    html_body: Option<String>,
    /// Derived from the HTML when absent.
    text_body: Option<String>,
    configuration_set_name: Option<String>,
    customer_id: Option<String>,
    /// `transactional` (default) or `marketing`.
    category: Option<String>,
    tags: Option<Tags>,
    /// A JSON object, kept as it is.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    #[serde(default)]
    attachments: Vec<AttachmentRequest>,
}

/// One address or several.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// An attached file.
#[derive(Deserialize, ToSchema)]
pub(super) struct AttachmentRequest {
    filename: String,
    content_type: Option<String>,
    content_base64: String,
    #[serde(default)]
    inline: bool,
    content_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Sent {
    results: Vec<SentResult>,
    send_id: String,
}

#[derive(Serialize, ToSchema)]
struct SentResult {
    recipient: String,
    message_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Send a message. Each recipient gets a message of its own, and one result.
///
/// Checked in this order: key, body, paused, rate, identity, set, suppression, quota. A call refused whole makes no
/// message; a recipient that is rejected does, with a Reject event.
#[utoipa::path(post, path = "/send", tag = "send", request_body = Message,
    params(("Idempotency-Key" = Option<String>, Header, description = "honoured for 24 hours")),
    responses((status = 200, description = "one result a recipient", body = inline(Sent)),
        (status = 400, description = "INVALID_REQUEST, BAD_RECIPIENT, TOO_MANY_RECIPIENTS, FROM_NOT_VERIFIED"),
        (status = 403, description = "SENDING_PAUSED, SANDBOX_QUOTA_REACHED"), (status = 404, description = "CONFIG_SET_NOT_FOUND"),
        (status = 409, description = "IDEMPOTENCY_MISMATCH"), (status = 413, description = "PAYLOAD_TOO_LARGE"),
        (status = 429, description = "RATE_LIMITED, DAILY_LIMIT_REACHED"), (status = 503, description = "UNAVAILABLE, DB_UNAVAILABLE")))]
pub(super) async fn send(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    headers: HeaderMap,
    stamp: Stamp,
    payload: Payload,
) -> Result<Response, Problem> {
    let message: Message = object(&payload.bytes)?;
    let idempotency = idempotency(&headers, "send", &payload.bytes)?;
    let (mut request, content) = check(message)?;
    request.idempotency = idempotency;
    if !ingest.parts().clock.is_simulated() {
        // Who may not send at all is told so, however often he tries.
        let paused = || owner.account.why_paused().map(|why| Problem::new(Code::SendingPaused, why));
        ingest.inner.guard.check_send(&owner.account).map_err(|flood| paused().unwrap_or(flood))?;
    }
    request.content = Some(store(&ingest, &stamp, content).await?);
    let decision = ingest.decide(owner.account.id(), stamp, Body::Send(request)).await?;
    let response = match decision.outcome {
        Some(Outcome::Sent(sent)) => {
            let results = sent.results.into_iter().map(|result| SentResult {
                recipient: result.recipient,
                message_id: result.message_id,
                status: if result.rejected.is_some() { "rejected" } else { "queued" },
                reason: result.rejected,
            });
            ok(Sent { results: results.collect(), send_id: sent.send_id })
        }
        Some(Outcome::Refused(refusal)) => return Err(refused(refusal)),
        _ => return Err(Problem::internal()),
    };
    Ok(if decision.replayed { replayed(response) } else { response })
}

/// Checks a message for form.
fn check(message: Message) -> Result<(SendRequest, MailContent), Problem> {
    let from = message.from.ok_or_else(|| invalid("from is needed"))?;
    one_line("from", &from)?;
    let mailbox = parse_mailbox(&from).map_err(|cause| invalid(format!("from: {cause}")))?;
    let from_address = address::fold(mailbox.address).into_owned();
    let subject = message.subject.ok_or_else(|| invalid("subject is needed"))?;
    one_line("subject", &subject)?;
    if from.len() > MAX_HEADER || subject.len() > MAX_HEADER {
        return Err(invalid(format!("from and subject have at most {MAX_HEADER} bytes")));
    }
    if let Some(reply_to) = &message.reply_to {
        parse_mailbox(reply_to).map_err(|cause| invalid(format!("reply_to: {cause}")))?;
    }
    let category = message.category.unwrap_or_else(|| "transactional".into());
    if !matches!(category.as_str(), "transactional" | "marketing") {
        return Err(invalid("category is transactional or marketing"));
    }
    let bounded = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= MAX_ID && !text.contains('\0'));
    if !bounded(&message.configuration_set_name) || !bounded(&message.customer_id) {
        return Err(invalid(format!("configuration_set_name and customer_id have at most {MAX_ID} bytes")));
    }
    let tags = message.tags.unwrap_or_default();
    check_tags(&tags).map_err(invalid)?;
    let metadata = message.metadata.map(|raw| raw.get().to_owned()).filter(|text| text != "null");
    metadata.as_ref().map_or(Ok(()), |json| check_object("metadata", json, MAX_METADATA)).map_err(invalid)?;
    let recipients = recipients(message.to, message.cc, message.bcc)?;
    let content = content(message.html_body, message.text_body, message.attachments)?;
    let headers = recipients.iter().map(|to| to.address.len() + 4).sum::<usize>() + from.len() + subject.len();
    if mime::is_too_large(&content, headers) {
        return Err(Problem::new(Code::PayloadTooLarge, "the message has more than 10 MiB as MIME"));
    }
    let request = SendRequest {
        send_id: fresh().to_string(),
        from,
        from_address,
        recipients,
        subject,
        configuration_set_name: message.configuration_set_name.filter(|name| !name.is_empty()),
        customer_id: message.customer_id,
        category,
        tags,
        metadata,
        reply_to: message.reply_to,
        ..SendRequest::default()
    };
    Ok((request, content))
}

/// To, cc and bcc as one list; an address that is named twice is mailed once.
fn recipients(to: OneOrMany, cc: OneOrMany, bcc: OneOrMany) -> Result<Vec<Recipient>, Problem> {
    let mut seen = HashSet::new();
    let mut recipients = Vec::new();
    let (to, cc, bcc) = (to.into_vec(), cc.into_vec(), bcc.into_vec());
    if to.is_empty() {
        return Err(invalid("to is needed"));
    }
    if to.len() + cc.len() + bcc.len() > MAX_RECIPIENTS {
        let message = format!("a call has at most {MAX_RECIPIENTS} recipients, cc and bcc included");
        return Err(Problem::new(Code::TooManyRecipients, message));
    }
    for (kind, addresses) in [(RecipientKind::To, to), (RecipientKind::Cc, cc), (RecipientKind::Bcc, bcc)] {
        for text in addresses {
            let bad = |_| Problem::new(Code::BadRecipient, format!("{text:?} is not an e-mail address"));
            let address = parse_mailbox(&text).map_err(bad)?.address.to_owned();
            if seen.insert(address::fold(&address).into_owned()) {
                recipients.push(Recipient { address, message_id: fresh().to_string(), kind: kind as i32 });
            }
        }
    }
    Ok(recipients)
}

fn content(
    html: Option<String>,
    text: Option<String>,
    attachments: Vec<AttachmentRequest>,
) -> Result<MailContent, Problem> {
    let html = html.filter(|html| !html.is_empty());
    let text = text.filter(|text| !text.is_empty());
    if html.is_none() && text.is_none() {
        return Err(invalid("html_body or text_body is needed"));
    }
    let text = text.or_else(|| html.as_deref().map(mime::text_of_html));
    let attachments = attachments.into_iter().map(attachment).collect::<Result<_, _>>()?;
    Ok(MailContent { html, text, attachments })
}

fn attachment(given: AttachmentRequest) -> Result<Attachment, Problem> {
    one_line("filename", &given.filename)?;
    if given.filename.is_empty() || given.filename.len() > 255 {
        return Err(invalid("an attachment's filename has 1 to 255 bytes"));
    }
    let content_type = given.content_type.unwrap_or_else(|| "application/octet-stream".into());
    if !mime::is_media_type(&content_type) {
        return Err(invalid(format!("{content_type:?} is not a media type")));
    }
    if let Some(id) = &given.content_id {
        one_line("content_id", id)?;
    }
    let malformed = |_| invalid(format!("content_base64 of {:?} is not base64", given.filename));
    let content = BASE64_STANDARD.decode(given.content_base64.as_bytes()).map_err(malformed)?;
    Ok(Attachment {
        filename: given.filename,
        content_type,
        content,
        inline: given.inline,
        content_id: given.content_id,
    })
}

/// Puts content where it belongs: into the record, or into the blob store first.
async fn store(ingest: &Ingest, stamp: &Stamp, content: MailContent) -> Result<Content, Problem> {
    let encoded = sendtrail_schemas::mail::encoded_len(&content);
    if encoded <= ingest.limits().inline_bytes {
        return Ok(Content { body: Some(ContentBody::Inline(content)) });
    }
    let day = stamp.or_now(ingest).day();
    let stored = ingest.parts().blobs.put(day, sendtrail_schemas::mail::encode(&content)).await;
    let blob = stored.map_err(|error| log_problem(&error))?;
    Ok(Content { body: Some(ContentBody::Blob(blob)) })
}
