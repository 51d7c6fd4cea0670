//! What is not about email, on its way to the account-level webhook: callbacks of others, which come with a token in their
//! path, and what the administrator tells (S2 "RCS Incoming Events", "WhatsApp Events", "RCS Events").

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::account::KeyForm;
use sendtrail_schemas::block::Lifecycle;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Body, Change, Command};
use sendtrail_schemas::web::{Nothing, Path, Query, account_id, invalid, ok};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::Ingest;
use crate::admission::Kind;
use crate::body::{Json, Payload};
use crate::intake::check_object;
use crate::submit::Stamp;

/// Bytes of a callback.
const MAX_BYTES: usize = 256 << 10;

/// What the administrator may tell (S2's names).
const TOLD: [&str; 16] = [
    "production_access.approved",
    "production_access.denied",
    "account.deletion.requested",
    "account.deletion.cancelled",
    "rcs_kyc.approved",
    "rcs_kyc.rejected",
    "rcs.message.text",
    "rcs.message.media",
    "rcs.message.location",
    "rcs.suggestion.response",
    "rcs.status.sent",
    "rcs.status.delivered",
    "rcs.status.read",
    "rcs.status.failed",
    "rcs.status.unknown",
    "WABA_ONBOARDED",
];

impl Ingest {
    /// Whose token this is, and whether it is of a form.
    fn token(&self, token: &str, form: KeyForm) -> Result<KeyOwner, Problem> {
        let unknown = || Problem::new(Code::KeyNotFound, "the token was revoked or never existed");
        self.owner(token).ok().filter(|owner| owner.form == form).ok_or_else(unknown)
    }

    /// Sends something on its way; durable when this returns.
    async fn pass_on(&self, owner: &KeyOwner, stamp: Stamp, lifecycle: Lifecycle) -> Result<(), Problem> {
        let account = owner.account.id();
        self.admit(Kind::Command, self.partition(account))?;
        let body = Body::Command(Command { change: Some(Change::Lifecycle(lifecycle)) });
        self.durable(self.append(account, stamp.time, None, body)).await?;
        Ok(())
    }
}

fn json_text(payload: &Payload) -> Result<(&str, Value), Problem> {
    if payload.bytes.len() > MAX_BYTES {
        return Err(Problem::new(Code::PayloadTooLarge, format!("a callback has at most {MAX_BYTES} bytes")));
    }
    let text = std::str::from_utf8(&payload.bytes).map_err(|_| invalid("the body is not UTF-8"))?;
    let value = serde_json::from_str(text).map_err(|cause| invalid(format!("the body is not JSON: {cause}")))?;
    Ok((text, value))
}

/// The name of an RCS provider's event (S2 "RCS Incoming Events").
fn rcs_name(event: &Value) -> &'static str {
    match event["event_type"].as_str().unwrap_or_default() {
        "text_message" => "rcs.message.text",
        "media_message" => "rcs.message.media",
        "location_message" => "rcs.message.location",
        "response" => "rcs.suggestion.response",
        _ => match event["message_status"].as_str().unwrap_or_default().to_ascii_uppercase().as_str() {
            "SENT" => "rcs.status.sent",
            "DELIVERED" => "rcs.status.delivered",
            "READ" => "rcs.status.read",
            "FAILED" => "rcs.status.failed",
            _ => "rcs.status.unknown",
        },
    }
}

#[derive(Serialize)]
struct RcsData<'a> {
    customer_id: Option<&'a str>,
    bot_name: Option<&'a str>,
    rm_event: &'a RawValue,
}

/// Take a callback of an RCS provider; it goes to the account-level webhook, wrapped and otherwise untouched.
#[utoipa::path(post, path = "/rcs/{token}", tag = "inbound", params(("token" = String, Path)), request_body = Object,
    responses((status = 200, description = "taken")))]
pub(super) async fn rcs(
    State(ingest): State<Ingest>,
    Path(token): Path<String>,
    stamp: Stamp,
    request: Request,
) -> Result<Response, Problem> {
    let owner = ingest.token(&token, KeyForm::InRcs)?;
    let payload = Payload::at_most(request, &ingest, MAX_BYTES).await?;
    let (text, event) = json_text(&payload)?;
    let key = owner.account.keys.iter().find(|key| key.key_id == owner.key.bytes());
    let data = RcsData {
        customer_id: key.and_then(|key| key.customer_id.as_deref()),
        bot_name: event["bot_name"].as_str(),
        rm_event: serde_json::from_str(text).map_err(|_| Problem::internal())?,
    };
    let data = serde_json::to_string(&data).map_err(|_| Problem::internal())?;
    let lifecycle = Lifecycle { event_type: Some(rcs_name(&event).into()), data: Some(data), passthrough: Some(false) };
    ingest.pass_on(&owner, stamp, lifecycle).await?;
    Ok(ok(Nothing {}))
}

/// The name of a callback of WhatsApp, for the header beside it.
fn whatsapp_name(body: &Value) -> String {
    let value = &body["entry"][0]["changes"][0]["value"];
    let word =
        |value: &Value| value.as_str().filter(|word| word.bytes().all(|b| b.is_ascii_lowercase())).map(str::to_owned);
    let status = word(&value["statuses"][0]["status"]);
    match status.or_else(|| word(&value["messages"][0]["type"])) {
        Some(name) if name.len() <= 64 => format!("whatsapp.{name}"),
        _ => "whatsapp".into(),
    }
}

/// Take a callback of WhatsApp; it goes to the account-level webhook as it came, byte for byte.
#[utoipa::path(post, path = "/whatsapp/{token}", tag = "inbound", params(("token" = String, Path)), request_body = Object,
    responses((status = 200, description = "taken")))]
pub(super) async fn whatsapp(
    State(ingest): State<Ingest>,
    Path(token): Path<String>,
    stamp: Stamp,
    request: Request,
) -> Result<Response, Problem> {
    let owner = ingest.token(&token, KeyForm::InWhatsapp)?;
    let payload = Payload::at_most(request, &ingest, MAX_BYTES).await?;
    let (text, body) = json_text(&payload)?;
    let lifecycle =
        Lifecycle { event_type: Some(whatsapp_name(&body)), data: Some(text.to_owned()), passthrough: Some(true) };
    ingest.pass_on(&owner, stamp, lifecycle).await?;
    Ok(ok(Nothing {}))
}

#[derive(Deserialize)]
pub(super) struct Challenge {
    #[serde(rename = "hub.mode")]
    mode: Option<String>,
    #[serde(rename = "hub.challenge")]
    challenge: Option<String>,
}

/// Answer WhatsApp's question whether this path is ours (Meta "Webhooks: Verification Requests").
#[utoipa::path(get, path = "/whatsapp/{token}", tag = "inbound",
    params(("token" = String, Path), ("hub.mode" = String, Query), ("hub.challenge" = String, Query)),
    responses((status = 200, description = "the challenge", content_type = "text/plain", body = String)))]
pub(super) async fn whatsapp_challenge(
    State(ingest): State<Ingest>,
    Path(token): Path<String>,
    Query(asked): Query<Challenge>,
) -> Result<Response, Problem> {
    ingest.token(&token, KeyForm::InWhatsapp)?;
    match (asked.mode.as_deref(), asked.challenge) {
        (Some("subscribe"), Some(challenge)) if challenge.len() <= 1_024 => Ok(challenge.into_response()),
        _ => Err(Problem::new(Code::MissingParam, "hub.mode is subscribe, and hub.challenge is given")),
    }
}

/// Something that happened to an account.
#[derive(Deserialize, ToSchema)]
pub(super) struct LifecycleRequest {
    /// One of S2's names, such as `production_access.approved`.
    event_type: Option<String>,
    /// Passed on as it is.
    #[schema(value_type = Object)]
    data: Option<Box<RawValue>>,
}

/// Tell an account's webhook something that is not about email: one attempt, unsigned, in S2's lifecycle envelope.
#[utoipa::path(post, path = "/accounts/{account_id}/lifecycle-events", tag = "admin", params(("account_id" = String, Path)),
    request_body = LifecycleRequest,
    responses((status = 200, description = "on its way"), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn lifecycle(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    stamp: Stamp,
    Json(request): Json<LifecycleRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    let name = request.event_type.ok_or_else(|| invalid("event_type is needed"))?;
    if !TOLD.contains(&name.as_str()) {
        return Err(invalid(format!("event_type {name:?} is none of {}", TOLD.join(", "))));
    }
    let data = request.data.map_or_else(|| "{}".to_owned(), |data| data.get().to_owned());
    check_object("data", &data, MAX_BYTES).map_err(invalid)?;
    let lifecycle = Lifecycle { event_type: Some(name), data: Some(data), passthrough: Some(false) };
    ingest.command(account, stamp, Change::Lifecycle(lifecycle)).await?;
    Ok(ok(Nothing {}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn callbacks_have_the_names_of_the_seed() {
        let of = |kind: &str, status: &str| rcs_name(&json!({"event_type": kind, "message_status": status}));
        assert_eq!(of("text_message", ""), "rcs.message.text");
        assert_eq!(of("media_message", ""), "rcs.message.media");
        assert_eq!(of("location_message", ""), "rcs.message.location");
        assert_eq!(of("response", ""), "rcs.suggestion.response");
        for (status, name) in [("SENT", "sent"), ("DELIVERED", "delivered"), ("READ", "read"), ("FAILED", "failed")] {
            assert_eq!(of("status", status), format!("rcs.status.{name}"));
        }
        assert_eq!((of("status", "SOMETHING"), of("new", "")), ("rcs.status.unknown", "rcs.status.unknown"));
    }

    #[test]
    fn whatsapp_is_named_by_what_it_tells() {
        let of = |value: Value| whatsapp_name(&json!({"entry": [{"changes": [{"value": value}]}]}));
        assert_eq!(of(json!({"statuses": [{"status": "read"}]})), "whatsapp.read");
        assert_eq!(of(json!({"messages": [{"type": "text"}]})), "whatsapp.text");
        assert_eq!(
            (of(json!({})), of(json!({"messages": [{"type": "a\r\nb"}]}))),
            ("whatsapp".into(), "whatsapp".into())
        );
    }
}
