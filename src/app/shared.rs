//! What several roles are handed.

use std::sync::Arc;

use anyhow::Context;
use rand::Rng;
use sendtrail_eventlog::kafka::Exchange;
use sendtrail_eventlog::{Announce, Blobs, Clock, Desk, EventLog, LocalReplies, Pulse, Replies, Retention};
use sendtrail_processor::delivery::Waits;
use sendtrail_processor::dispatch::{Poster, PosterOptions, Reach, Sender};
use sendtrail_processor::{Store, Views};
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::secret::Vault;
use sendtrail_schemas::time::Millis;
use tokio::runtime::Handle;

use crate::backbone::Backbone;
use crate::config::Config;
use crate::elsewhere::{Elsewhere, Keep};
use crate::keys::vault;
use crate::ownership::Ownership;
use crate::ports::SuppressionLists;
use crate::reception::{AllReplies, Owners, Questions, Reception};
use crate::roles::Role;
use crate::steward::Steward;

/// See the module.
pub struct Shared {
    pub log: Arc<dyn EventLog>,
    /// The way to other servers, if there may be any.
    pub exchange: Option<Arc<Exchange>>,
    pub store: Store,
    pub directory: Arc<Directory>,
    /// What the partitions of this process made of accounts, if it may own any.
    pub own: Option<Views>,
    /// What others made known, if there may be any.
    pub others: Option<Views>,
    pub ownership: Arc<Ownership>,
    pub replies: Arc<dyn Replies>,
    local: Arc<LocalReplies>,
    /// Whoever knows windows, here or elsewhere.
    pub owners: Owners,
    pub steward: Option<Arc<Steward>>,
    pub pulses: Vec<Arc<Pulse>>,
    pub elsewhere: Arc<Elsewhere>,
    pub retention: Arc<Retention>,
    pub clock: Clock,
    pub blobs: Blobs,
    /// Why mail waits, where it does.
    pub waits: Waits,
    pub vault: Vault,
    /// Posts to webhooks.
    pub sender: Sender,
}

impl Shared {
    pub fn open(config: &Config, backbone: &Backbone) -> anyhow::Result<Self> {
        let (data, log, exchange) = (&config.data.dir, backbone.log(), backbone.exchange());
        let count = config.log.partitions;
        let store = Store::open(&data.join("state"), count, config.state.cache_bytes).context("open the state")?;
        let directory = Arc::new(Directory::default());
        let own = config.server.roles.has(Role::Processor).then(|| Views::open(&store, directory.clone()));
        let own = own.transpose().context("read the accounts")?;
        let others = exchange.as_ref().map(|_| Views::of_others(&store, directory.clone()));
        let others = others.transpose().context("make room for the accounts")?;
        let clock = clock(config, &store)?;
        // Kafka keeps records by its own rules, and is told how far the state is.
        let holds_intake = config.archives_intake() && exchange.is_none();
        let instance = rand::rng().next_u64();
        let local = Arc::new(LocalReplies::new(instance));
        let replies: Arc<dyn Replies> = match &exchange {
            Some(exchange) => Arc::new(AllReplies { here: local.clone(), exchange: exchange.clone() }),
            None => local.clone(),
        };
        let ownership = Arc::<Ownership>::default();
        let questions = exchange.clone().map(|exchange| Arc::new(Questions { exchange, desk: Desk::new(instance) }));
        let steward = exchange
            .clone()
            .zip(own.clone())
            .map(|(exchange, views)| Arc::new(Steward::new(exchange, views, count, ownership.clone())));
        let pulses: Vec<Arc<Pulse>> = (0..count).map(|_| Arc::default()).collect();
        let vault = vault(data, config)?;
        let sender = Sender {
            directory: directory.clone(),
            vault: vault.clone(),
            poster: poster(config)?,
            concurrency: config.webhooks.concurrency_per_destination,
        };
        Ok(Self {
            elsewhere: Arc::new(Elsewhere::new(pulses.clone(), ownership.clone())),
            retention: Arc::new(Retention::new(log.clone(), holds_intake)),
            blobs: Blobs::open(config.blobs_place())?,
            waits: Waits::default(),
            vault,
            sender,
            owners: Owners { ownership: ownership.clone(), questions },
            log,
            exchange,
            store,
            directory,
            own,
            others,
            ownership,
            replies,
            local,
            steward,
            pulses,
            clock,
        })
    }

    /// Where the owner of a partition makes things known.
    pub fn announce(&self) -> Option<Arc<dyn Announce>> {
        self.exchange.clone().map(|exchange| exchange as Arc<dyn Announce>)
    }

    /// Suppression lists of all accounts.
    pub fn suppressions(&self, config: &Config) -> SuppressionLists {
        let owns_all = self.own.is_some() && !config.shares_partitions();
        let others = self.others.clone().filter(|_| !owns_all);
        let (own, ownership) = (self.own.clone(), self.ownership.clone());
        SuppressionLists { own, others, ownership, partitions: self.pulses.len() as u32 }
    }

    /// Learns what others made known, and listens from then on.
    pub async fn meet_others(&self, config: &Config) -> anyhow::Result<()> {
        let Some((questions, others)) = self.owners.questions.clone().zip(self.others.clone()) else { return Ok(()) };
        let exchange = questions.exchange.clone();
        let reception = Reception {
            ownership: self.ownership.clone(),
            replies: self.local.clone(),
            questions,
            handle: Handle::current(),
        };
        let keep = match (config.server.roles.has_clients(), config.shares_partitions()) {
            (false, _) => Keep::None,
            (true, true) => Keep::All,
            (true, false) => Keep::Others,
        };
        let (clock, elsewhere, steward) = (self.clock.clone(), self.elsewhere.clone(), self.steward.clone());
        // Both wait for brokers.
        tokio::task::spawn_blocking(move || {
            let is_owner = steward.is_some();
            elsewhere.follow(&exchange, others, clock, steward, keep)?;
            reception.open(is_owner)?;
            anyhow::Ok(())
        })
        .await?
        .context("speak with other servers")
    }
}

fn poster(config: &Config) -> anyhow::Result<Poster> {
    let webhooks = &config.webhooks;
    let options = PosterOptions {
        reach: Reach {
            allow_http: webhooks.allow_http,
            allow_private_networks: webhooks.allow_private_networks.clone(),
            ports: webhooks.ports.clone(),
        },
        dns_servers: webhooks.dns_servers.clone(),
        proxy: config.webhook_proxy(),
        ca_file: (!webhooks.ca_location.as_os_str().is_empty()).then(|| webhooks.ca_location.clone()),
    };
    Poster::new(options).context("set up posting to webhooks")
}

/// A clock that goes on from where the state stands.
fn clock(config: &Config, store: &Store) -> anyhow::Result<Clock> {
    let clock = if config.log.simulated { Clock::simulated(Millis(0)) } else { Clock::wall() };
    for partition in 0..config.log.partitions {
        if let Some(progress) = store.progress(partition)? {
            clock.reached(Millis(progress.last_t));
        }
    }
    Ok(clock)
}
