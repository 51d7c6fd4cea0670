//! Where the demonstration plays: a real server in a temporary folder, its partners, and a receiver of webhooks.

use std::path::Path;

use http::Method;
use sendtrail_schemas::time::Millis;
use serde_json::{Value, json};

use super::receiver::{Receiver, SPLASHIFY_SECRET, standard_secret};
use super::recount::Recount;
use super::traffic::HOUR;
use crate::app::App;
use crate::client::Api;
use crate::config::Config;
use crate::keys::ADMIN_KEY_VARIABLE;

const PARTNER: &str = "/api/v1/partner/email";
/// The name of each partner's configuration set.
pub const SET: &str = "newsletters";

/// Server and receiver.
pub struct Stage {
    /// The server.
    pub app: App,
    /// As the administrator.
    pub admin: Api,
    /// The receiver.
    pub receiver: Receiver,
}

/// A partner as the demonstration knows it.
pub struct Partner {
    /// What people call it.
    pub name: String,
    /// Its domain, which is also its path at the receiver.
    pub domain: String,
    /// With its key.
    pub api: Api,
    /// Its key.
    pub key: String,
    /// How many configuration sets it has.
    pub sets: u64,
    /// What should be.
    pub recount: Recount,
    /// Requests that were answered 503 and sent again.
    pub held_back: u64,
    /// Lines that the server rejected.
    pub rejected: u64,
    /// What its first send after the pause was answered.
    pub refusal: Option<(u16, String)>,
}

impl Stage {
    /// Starts everything in a folder.
    ///
    /// # Errors
    /// When the server does not start.
    pub async fn build(folder: &Path, keep: bool) -> anyhow::Result<Self> {
        let mut config = Config::defaults();
        config.data.dir = folder.to_path_buf();
        // Somebody who stays wants to find it where README says.
        config.server.listen = if keep { "127.0.0.1:8420" } else { "127.0.0.1:0" }.into();
        config.log.simulated = true;
        config.webhooks.allow_http = true;
        config.webhooks.allow_private_networks = vec!["127.0.0.0/8".parse()?];
        config.archive.commit_seconds = 3;
        let receiver = Receiver::start().await?;
        let app = match App::start(&config).await {
            Err(_) if keep => {
                config.server.listen = "127.0.0.1:0".into();
                App::start(&config).await?
            }
            started => started?,
        };
        // None was made if the environment presets one.
        let preset = || std::env::var(ADMIN_KEY_VARIABLE).unwrap_or_default();
        let key = app.fresh_admin_key.clone().unwrap_or_else(preset);
        let admin = Api::new(&format!("http://{}", app.address), &key);
        Ok(Self { app, admin, receiver })
    }

    /// Creates a partner in production with a verified domain, and configuration sets with two webhooks each.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn partner(&self, name: &str, domain: &str, sets: &[&str], begin: Millis) -> anyhow::Result<Partner> {
        let admin = self.admin.at(begin);
        let body = json!({"name": name, "contact_email": format!("postmaster@{domain}"), "mode": "production"});
        let account = admin.post("/api/v1/admin/accounts", &body).await?;
        let account = format!("/api/v1/admin/accounts/{}", text(&account["account"]["account_id"]));
        let key = admin.post(&format!("{account}/keys"), &json!({"name": "demo"})).await?;
        let key = text(&key["key"]["api_key"]).to_owned();
        let api = admin.with_key(&key);
        let identity = json!({"identity_type": "DOMAIN", "identity_value": domain});
        api.post(&format!("{PARTNER}/identities"), &identity).await?;
        let path = format!("{account}/identities/DOMAIN/{domain}/override");
        admin.post(&path, &json!({"status": "VERIFIED"})).await?;
        for set in sets {
            self.webhooks(&api, domain, set).await?;
        }
        Ok(Partner {
            name: name.to_owned(),
            domain: domain.to_owned(),
            api,
            key,
            sets: sets.len() as u64,
            recount: Recount::new(begin.0.div_euclid(HOUR) - 24 * 400),
            held_back: 0,
            rejected: 0,
            refusal: None,
        })
    }

    async fn webhooks(&self, api: &Api, domain: &str, set: &str) -> anyhow::Result<()> {
        let set = api.post(&format!("{PARTNER}/configuration-sets"), &json!({"name": set})).await?;
        let set = text(&set["configuration_set"]["config_set_id"]).to_owned();
        let to = |dialect: &str| format!("http://{}/{domain}/{dialect}", self.receiver.address);
        for destination in [
            json!({"name": "what went wrong", "destination_type": "WEBHOOK", "dialect": "splashify",
                "webhook_url": to("splashify"), "webhook_secret": SPLASHIFY_SECRET,
                "matching_event_types": ["bounce", "complaint"]}),
            json!({"name": "how we stand", "destination_type": "WEBHOOK", "dialect": "standard",
                "webhook_url": to("standard"), "webhook_secret": standard_secret(),
                "matching_event_types": ["complaint", "account.at_risk", "account.paused", "account.healthy"]}),
        ] {
            api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &destination).await?;
        }
        Ok(())
    }
}

impl Partner {
    /// Calls that set it up: account, key, identity and its proof; of each set, itself and two webhooks.
    pub fn calls(&self) -> u64 {
        4 + 3 * self.sets
    }

    /// Gets from the partner's own routes.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.api.get(&format!("{PARTNER}{path}")).await
    }

    /// Every row of a list of the partner's own routes.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn rows(&self, path: &str, name: &str) -> anyhow::Result<Vec<Value>> {
        self.api.rows(&format!("{PARTNER}{path}"), name).await
    }

    /// Streams a body that is received at `t`; what the server holds back is sent again.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn stream(&mut self, body: String, format: &str, t: Millis) -> anyhow::Result<u64> {
        let api = self.api.at(t);
        let body = bytes::Bytes::from(body);
        let path = format!("{PARTNER}/events?format={format}");
        loop {
            let headers = [("content-type", "application/x-ndjson")];
            let reply = api.call(Method::POST, &path, &headers, body.clone()).await?;
            if reply.status == http::StatusCode::SERVICE_UNAVAILABLE {
                self.held_back += 1;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
            let answer = reply.success()?;
            self.rejected += answer["rejected"].as_array().map_or(0, |rejected| rejected.len() as u64);
            return Ok(answer["accepted"].as_u64().unwrap_or_default());
        }
    }

    /// Tries to send a message: the status, and the error's code if there is one.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn send(&self, t: Millis) -> anyhow::Result<(u16, Value)> {
        let message = json!({"from": format!("news@{}", self.domain), "to": ["success@simulator.example"],
            "subject": "Still there?", "text_body": "Are we still allowed to send?"});
        let headers = [("content-type", "application/json")];
        let reply =
            self.api.at(t).call(Method::POST, &format!("{PARTNER}/send"), &headers, message.to_string()).await?;
        Ok((reply.status.as_u16(), reply.json()))
    }
}

/// A JSON string; empty when it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
