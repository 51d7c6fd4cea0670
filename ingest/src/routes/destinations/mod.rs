//! Webhook destinations, whatever surface they are made on: what is asked for and what is shown.

pub mod of_sets;
pub mod own;
pub mod secrets;
mod types;

use std::collections::BTreeMap;

use rand::Rng;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::destination::{Destination, Dialect, Envelope, Header, Health, Ordering, Surface};
use sendtrail_schemas::ids::{ConfigSetId, DestinationId};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Change, CreateDestination, DestinationName, DestinationPatch};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{id, invalid};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use url::Url;
use utoipa::ToSchema;

use self::types::Asked;
use super::{fresh, one_line};
use crate::Ingest;
use crate::submit::Stamp;

/// Attempts after the first that a schedule of one's own may have, and the longest wait, seconds.
const MAX_RETRIES: usize = 20;
const MAX_WAIT_SECONDS: u32 = 7 * 86_400;
/// Headers of one's own, and bytes of a value.
const MAX_HEADERS: usize = 10;
const MAX_HEADER_BYTES: usize = 1_024;
/// Attempts at once, and a second, that may be asked for.
const MAX_CONCURRENCY: u32 = 100;
const MAX_RATE: u32 = 10_000;
/// What headers of one's own begin with, and what they must not, for that is ours or somebody's on the way.
const OWN_HEADERS: &str = "x-";
const NOT_OWN: [&str; 9] = [
    "x-splashify-",
    "x-nexuspromail-",
    "x-sendcomms-",
    "x-zmailer-",
    "x-sendtrail-",
    "x-forwarded-",
    "x-real-ip",
    "x-http-method",
    "x-original-",
];

/// A destination, or other values for one; in a patch, what is absent stays.
#[derive(Deserialize, ToSchema, Default)]
#[serde(default)]
pub(super) struct DestinationRequest {
    pub(super) name: Option<String>,
    /// `WEBHOOK`.
    destination_type: Option<String>,
    pub(super) webhook_url: Option<String>,
    /// Never shown again; a patch switches at once.
    webhook_secret: Option<String>,
    /// A secret of 32 random bytes is made, in the dialect's form, and shown in this answer only.
    generate_secret: bool,
    /// Empty: all. `bounced.hard` or `bounced.soft` without the other: of the bounces only those.
    matching_event_types: Option<Vec<String>>,
    /// `splashify` (default), `standard`, `securesmtp`, `nexuspromail`, `sendcomms` or `zmailer`.
    dialect: Option<String>,
    enabled: Option<bool>,
    /// Waits before the second and later attempts, instead of the dialect's.
    retry_schedule_seconds: Option<Vec<u32>>,
    pub(super) description: Option<String>,
    /// Sent along with each attempt: names that begin with `X-`, and text.
    #[schema(value_type = Option<Object>)]
    headers: Option<BTreeMap<String, String>>,
    /// `unordered` (default) or `per_message`.
    ordering: Option<String>,
    /// Attempts at once; 0: the server's default.
    concurrency: Option<u32>,
    /// Attempts a second; 0: as many as there are.
    rate_per_second: Option<u32>,
    /// `dialect` (default), or `cloudevents` for the standard dialect.
    envelope: Option<String>,
}

/// What was checked of a request.
#[derive(Default)]
struct Checked {
    types: Option<Asked>,
    dialect: Option<Dialect>,
    ordering: Option<Ordering>,
    envelope: Option<Envelope>,
    headers: Option<Vec<Header>>,
}

impl DestinationRequest {
    /// What S3 and S4 ask for.
    pub(super) fn of(
        name: &str,
        url: Option<String>,
        events: Option<Vec<String>>,
        secret: Option<String>,
        description: Option<String>,
    ) -> Self {
        Self {
            name: Some(name.to_owned()),
            webhook_url: url,
            matching_event_types: events,
            generate_secret: secret.is_none(),
            webhook_secret: secret,
            description,
            ..Self::default()
        }
    }

    /// Other values for one of theirs; its secret stays.
    pub(super) fn changes(url: Option<String>, events: Option<Vec<String>>, description: Option<String>) -> Self {
        Self { webhook_url: url, matching_event_types: events, description, ..Self::default() }
    }

    /// Whether it gets anything.
    pub(super) fn with_enabled(self, enabled: Option<bool>) -> Self {
        Self { enabled, ..self }
    }

    fn check(&self, ingest: &Ingest, usual: Dialect, before: Option<&Destination>) -> Result<Checked, Problem> {
        if let Some(name) = &self.name {
            one_line("name", name)?;
            if name.is_empty() || name.len() > 256 {
                return Err(invalid("name has 1 to 256 bytes"));
            }
        }
        if self.destination_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("WEBHOOK")) {
            return Err(invalid("destination_type is WEBHOOK"));
        }
        if self.description.as_ref().is_some_and(|text| text.len() > 1_000) {
            return Err(invalid("description has at most 1000 bytes"));
        }
        if let Some(url) = &self.webhook_url {
            check_url(url, ingest)?;
        }
        let dialect = read(self.dialect.as_deref(), "dialect", Dialect::parse, &Dialect::ALL.map(Dialect::name))?;
        let spoken = dialect.or(before.map(Destination::dialect)).unwrap_or(usual);
        match &self.webhook_secret {
            Some(_) if self.generate_secret => {
                return Err(invalid("webhook_secret is given, or made with generate_secret"));
            }
            Some(secret) => secrets::check(secret, spoken)?,
            None => {}
        }
        // The secret that is there must fit a dialect that is new.
        let stays = before
            .filter(|before| before.dialect() != spoken && self.webhook_secret.is_none() && !self.generate_secret);
        if let Some(secret) = stays.and_then(|before| ingest.shown_secret(before)) {
            secrets::check(&secret, spoken)?;
        }
        if let Some(schedule) = &self.retry_schedule_seconds
            && (schedule.len() > MAX_RETRIES || schedule.iter().any(|wait| *wait > MAX_WAIT_SECONDS))
        {
            return Err(invalid("retry_schedule_seconds has at most 20 waits of at most seven days"));
        }
        let orders = [Ordering::Unordered, Ordering::PerMessage].map(Ordering::name);
        let ordering = read(self.ordering.as_deref(), "ordering", Ordering::parse, &orders)?;
        let envelopes = [Envelope::Dialect, Envelope::Cloudevents].map(Envelope::name);
        let envelope = read(self.envelope.as_deref(), "envelope", Envelope::parse, &envelopes)?;
        let around = envelope.or(before.map(Destination::envelope)).unwrap_or(Envelope::Dialect);
        if around == Envelope::Cloudevents && spoken != Dialect::Standard {
            return Err(invalid("the envelope cloudevents goes with the dialect standard"));
        }
        if self.concurrency.is_some_and(|most| most > MAX_CONCURRENCY) {
            return Err(invalid(format!("concurrency is at most {MAX_CONCURRENCY}")));
        }
        if self.rate_per_second.is_some_and(|most| most > MAX_RATE) {
            return Err(invalid(format!("rate_per_second is at most {MAX_RATE}")));
        }
        Ok(Checked {
            types: self.matching_event_types.as_deref().map(Asked::read).transpose()?,
            dialect,
            ordering,
            envelope,
            headers: self.headers.as_ref().map(check_headers).transpose()?,
        })
    }

    /// The secret that is asked for, given or made.
    fn secret(&self, dialect: Dialect) -> Option<String> {
        let made = || self.generate_secret.then(|| secrets::make(dialect));
        self.webhook_secret.clone().or_else(made)
    }
}

fn read<T>(text: Option<&str>, what: &str, parse: fn(&str) -> Option<T>, names: &[&str]) -> Result<Option<T>, Problem> {
    let unknown = |text| invalid(format!("{what} {text:?} is none of {}", names.join(", ")));
    text.map(|text| parse(text).ok_or_else(|| unknown(text))).transpose()
}

fn check_url(text: &str, ingest: &Ingest) -> Result<(), Problem> {
    if text.len() > 2_048 {
        return Err(invalid("webhook_url has at most 2048 bytes"));
    }
    let url = Url::parse(text).map_err(|cause| invalid(format!("webhook_url: {cause}")))?;
    // Before whether it is reachable, for this is about what is kept.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("webhook_url holds credentials; sign with a secret instead"));
    }
    match ingest.parts().samples.refusal(&url) {
        Some(why) => Err(invalid(format!("webhook_url: {why}"))),
        None => Ok(()),
    }
}

fn check_headers(headers: &BTreeMap<String, String>) -> Result<Vec<Header>, Problem> {
    if headers.len() > MAX_HEADERS {
        return Err(invalid(format!("there are at most {MAX_HEADERS} headers")));
    }
    let mut checked = Vec::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        let token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && name.len() <= 64;
        let own = name.starts_with(OWN_HEADERS) && name.len() > OWN_HEADERS.len();
        if !token || !own || NOT_OWN.iter().any(|taken| name.starts_with(taken)) {
            return Err(invalid(format!("headers: {name:?} cannot be sent; names begin with X- and are not ours")));
        }
        let visible = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if !visible || value.len() > MAX_HEADER_BYTES || value.trim() != value {
            return Err(invalid(format!("headers: the value of {name:?} is at most 1024 bytes of visible ASCII")));
        }
        if checked.iter().any(|header: &Header| header.name == name) {
            return Err(invalid(format!("headers: {name:?} is there twice")));
        }
        checked.push(Header { name, value: value.clone() });
    }
    Ok(checked)
}

/// A destination as its owner sees it; never its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct DestinationView {
    destination_id: String,
    name: String,
    destination_type: &'static str,
    webhook_url: String,
    has_secret: bool,
    /// None: all. `bounced.hard` or `bounced.soft` for one kind of bounces, `Bounce` for both.
    matching_event_types: Vec<&'static str>,
    dialect: &'static str,
    enabled: bool,
    retry_schedule_seconds: Vec<u32>,
    created_at: Millis,
    /// `configuration_set`, `account`, `operational`, `sendcomms` or `zmailer`: where it was made.
    surface: &'static str,
    config_set_id: Option<String>,
    description: Option<String>,
    #[schema(value_type = Object)]
    headers: BTreeMap<String, String>,
    ordering: &'static str,
    concurrency: Option<u32>,
    rate_per_second: Option<u32>,
    envelope: &'static str,
    /// `working`, `failing` or `disabled`.
    health: &'static str,
    failing_since: Option<Millis>,
    health_reason: Option<String>,
    /// While a rotation goes on: until when both secrets sign, or since when a switch is waited for.
    rotation: Option<RotationView>,
    /// The secret that was made for it, in the answer to that only.
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook_secret: Option<String>,
}

/// A secret that takes another's place.
#[derive(Serialize, ToSchema)]
struct RotationView {
    /// `both` sign until `until` (it is over once that is past), or the `previous` one signs until a switch is asked for.
    signing: &'static str,
    until: Millis,
}

impl DestinationView {
    pub(super) fn of(account: &AccountConfig, destination: &Destination) -> Self {
        let set = destination.id().and_then(|id| account.set_of(id)).and_then(|set| set.id());
        let both = destination.dialect().carries_several_signatures();
        Self {
            destination_id: destination.id().map(|id| id.to_string()).unwrap_or_default(),
            name: destination.name.clone(),
            destination_type: "WEBHOOK",
            webhook_url: destination.webhook_url.clone(),
            has_secret: destination.sealed_secret.is_some(),
            matching_event_types: types::shown(destination),
            dialect: destination.dialect().name(),
            enabled: destination.enabled,
            retry_schedule_seconds: destination.retry_schedule_seconds.clone(),
            created_at: Millis(destination.created_at),
            surface: destination.surface().name(),
            config_set_id: set.map(|id| id.to_string()),
            description: destination.description.clone(),
            headers: destination.headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect(),
            ordering: destination.ordering().name(),
            concurrency: destination.concurrency,
            rate_per_second: destination.rate_per_second,
            envelope: destination.envelope().name(),
            health: destination.health().name(),
            failing_since: (destination.failing_since > 0).then_some(Millis(destination.failing_since)),
            health_reason: (destination.health() != Health::Working).then(|| destination.health_reason.clone()),
            rotation: destination.previous_secret.as_ref().map(|_| RotationView {
                signing: if both { "both" } else { "previous" },
                until: Millis(destination.previous_until),
            }),
            webhook_secret: None,
        }
    }

    fn with_secret(self, webhook_secret: Option<String>) -> Self {
        Self { webhook_secret, ..self }
    }
}

pub(super) fn destination_id(text: &str) -> Result<DestinationId, Problem> {
    id(text, Code::NotFound, "event destination")
}

/// A destination of an account.
pub(super) fn find(account: &AccountConfig, id: DestinationId) -> Result<&Destination, Problem> {
    account.destination(id).ok_or_else(|| Problem::new(Code::NotFound, "no such event destination"))
}

/// What was made or changed: the account with it, which one, and the secret that was made.
pub(super) struct Made {
    pub(super) account: Arc<AccountConfig>,
    pub(super) id: DestinationId,
    /// What was given or made.
    pub(super) secret: Option<String>,
    /// Whether it was made.
    made: bool,
}

impl Made {
    /// What is shown of it, with the secret if that was made.
    fn view(&self) -> Result<DestinationView, Problem> {
        let secret = self.secret.clone().filter(|_| self.made);
        Ok(DestinationView::of(&self.account, find(&self.account, self.id)?).with_secret(secret))
    }
}

impl Ingest {
    /// Makes a destination of a set, or of the account.
    pub(super) async fn create_destination(
        &self,
        account: &AccountConfig,
        stamp: Stamp,
        set: Option<ConfigSetId>,
        (surface, dialect): (Surface, Dialect),
        request: DestinationRequest,
    ) -> Result<Made, Problem> {
        let checked = request.check(self, dialect, None)?;
        let dialect = checked.dialect.unwrap_or(dialect);
        let id = DestinationId(fresh());
        let secret = request.secret(dialect);
        let asked = checked.types.unwrap_or_default();
        if let Some(secret) = &secret {
            secrets::check(secret, dialect)?;
        }
        let some = |number: Option<u32>| number.filter(|number| *number > 0);
        let destination = Destination {
            destination_id: id.bytes().to_vec(),
            name: request.name.ok_or_else(|| invalid("name is needed"))?,
            webhook_url: request.webhook_url.ok_or_else(|| invalid("webhook_url is needed"))?,
            sealed_secret: secret.as_ref().map(|secret| self.seal(secret, id)),
            matching_event_types: asked.types,
            bounces: asked.bounces as i32,
            dialect: dialect as i32,
            enabled: request.enabled.unwrap_or(true),
            retry_schedule_seconds: request.retry_schedule_seconds.unwrap_or_default(),
            surface: surface as i32,
            description: request.description.filter(|text| !text.is_empty()),
            headers: checked.headers.unwrap_or_default(),
            ordering: checked.ordering.unwrap_or(Ordering::Unordered) as i32,
            concurrency: some(request.concurrency),
            rate_per_second: some(request.rate_per_second),
            envelope: checked.envelope.unwrap_or(Envelope::Dialect) as i32,
            ..Destination::default()
        };
        let config_set_id = set.map(|set| set.bytes().to_vec()).unwrap_or_default();
        let create = CreateDestination { config_set_id, destination: Some(destination) };
        self.command(account.id(), stamp, Change::CreateDestination(create)).await?;
        Ok(Made { account: self.account(account.id())?, id, secret, made: request.generate_secret })
    }

    /// Changes a destination; what is absent stays.
    pub(super) async fn patch_destination(
        &self,
        account: &AccountConfig,
        stamp: Stamp,
        name: DestinationName,
        request: DestinationRequest,
    ) -> Result<Made, Problem> {
        let id = DestinationId::from_slice(&name.destination_id).map_err(|_| Problem::internal())?;
        // The latest, for whoever made it elsewhere a moment ago.
        let known = self.account(account.id())?;
        let before = known.destination(id);
        let checked = request.check(self, Dialect::Splashify, before)?;
        let dialect = checked.dialect.or(before.map(Destination::dialect)).unwrap_or(Dialect::Splashify);
        let secret = request.secret(dialect);
        let has_types = checked.types.is_some();
        let asked = checked.types.unwrap_or_default();
        let patch = DestinationPatch {
            destination: Some(name),
            name: request.name,
            webhook_url: request.webhook_url,
            sealed_secret: secret.as_ref().map(|secret| self.seal(secret, id)),
            has_matching_event_types: has_types,
            matching_event_types: asked.types,
            bounces: asked.bounces as i32,
            dialect: checked.dialect.map(|dialect| dialect as i32),
            enabled: request.enabled,
            has_retry_schedule: request.retry_schedule_seconds.is_some(),
            retry_schedule_seconds: request.retry_schedule_seconds.unwrap_or_default(),
            description: request.description,
            has_headers: checked.headers.is_some(),
            headers: checked.headers.unwrap_or_default(),
            ordering: checked.ordering.map(|ordering| ordering as i32),
            concurrency: request.concurrency,
            rate_per_second: request.rate_per_second,
            envelope: checked.envelope.map(|envelope| envelope as i32),
        };
        self.command(account.id(), stamp, Change::PatchDestination(patch)).await?;
        Ok(Made { account: self.account(account.id())?, id, secret, made: request.generate_secret })
    }

    /// Deletes a destination.
    pub(super) async fn delete_destination(
        &self,
        account: &AccountConfig,
        stamp: Stamp,
        id: DestinationId,
    ) -> Result<(), Problem> {
        let name = DestinationName { config_set_id: Vec::new(), destination_id: id.bytes().to_vec() };
        self.command(account.id(), stamp, Change::DeleteDestination(name)).await?;
        Ok(())
    }

    /// Seals a secret for a destination.
    fn seal(&self, secret: &str, of: DestinationId) -> Vec<u8> {
        let mut nonce = [0u8; sendtrail_schemas::secret::NONCE_LENGTH];
        rand::rng().fill_bytes(&mut nonce);
        self.parts().vault.seal(secret.as_bytes(), nonce, of.bytes())
    }
}
