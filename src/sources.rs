//! The Kafka topics that are read into the intake, as the settings name them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sendtrail_eventlog::kafka::SourceOptions;
use sendtrail_ingest::Format;
use sendtrail_ingest::sources::{Owner, Rule, Source, Start, Status};
use sendtrail_schemas::ids::AccountId;
use serde::{Deserialize, Serialize};

use crate::properties::{are_sound, parse};

/// A topic that is read into the intake; each field is told in `config.default.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSource {
    pub topic: String,
    pub name: String,
    pub format: Format,
    pub account: String,
    pub account_header: String,
    pub account_field: String,
    pub start: Start,
    pub accept_loss: bool,
    pub group: String,
    pub bootstrap_servers: String,
    pub properties: Vec<String>,
}

impl KafkaSource {
    /// What the log knows it by.
    fn id(&self) -> String {
        if self.name.is_empty() { self.topic.clone() } else { format!("{}/{}", self.name, self.topic) }
    }

    /// Whose its events are; why not, if that is not told.
    fn owner(&self) -> Result<Owner, String> {
        match [&self.account, &self.account_header, &self.account_field].map(|given| given.as_str()) {
            [account, "", ""] if !account.is_empty() => {
                let account: Result<AccountId, _> = account.parse();
                account.map(Owner::Fixed).map_err(|_| "account is no account's identifier".into())
            }
            ["", header, ""] if !header.is_empty() => Ok(Owner::Header(header.into())),
            ["", "", field] if field.starts_with('/') => Ok(Owner::Field(field.into())),
            ["", "", field] if !field.is_empty() => {
                Err("account_field is no JSON pointer, such as /meta/account".into())
            }
            _ => Err("one of account, account_header and account_field is needed".into()),
        }
    }

    fn source(&self, cluster: &BTreeMap<String, String>) -> Result<Source, String> {
        let owner = self.owner()?;
        let mut properties = if self.bootstrap_servers.is_empty() {
            cluster.clone()
        } else {
            [("bootstrap.servers".to_owned(), self.bootstrap_servers.clone())].into()
        };
        properties.extend(parse(&self.properties));
        let rule = Rule { format: self.format, owner };
        Ok(Source {
            name: self.id(),
            options: SourceOptions {
                topic: self.topic.clone(),
                group: if self.group.is_empty() { "sendtrail".into() } else { self.group.clone() },
                header: rule.header().map(ToOwned::to_owned),
                properties,
            },
            rule: Arc::new(rule),
            start: self.start,
            accept_loss: self.accept_loss,
            status: Status::default(),
        })
    }
}

/// What is wrong with the sources.
pub fn check(sources: &[KafkaSource], errors: &mut Vec<String>) {
    let mut known = HashSet::new();
    for (at, source) in sources.iter().enumerate() {
        let mut need = |holds: bool, what: &str| {
            if !holds {
                errors.push(format!("sources.kafka {}: {what}", at + 1));
            }
        };
        need(!source.topic.is_empty(), "topic: none");
        need(!source.name.contains('/'), "name: without /");
        need(known.insert(source.id()), "there is another of this topic and name");
        need(are_sound(&source.properties), "properties: each is name=value");
        if let Err(why) = source.owner() {
            need(false, &why);
        }
    }
}

/// The sources, which were checked; those that name no cluster of their own are on this one.
pub fn sources(settings: &[KafkaSource], cluster: &BTreeMap<String, String>) -> Vec<Source> {
    settings.iter().filter_map(|source| source.source(cluster).ok()).collect()
}

/// How their messages are read, by their names.
pub fn rules(sources: &[Source]) -> HashMap<String, Arc<Rule>> {
    sources.iter().map(|source| (source.name.clone(), source.rule.clone())).collect()
}
