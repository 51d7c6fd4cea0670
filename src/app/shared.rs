//! What several roles are handed.

use std::sync::Arc;

use anyhow::Context;
use rand::Rng;
use sendtrail_eventlog::kafka::Exchange;
use sendtrail_eventlog::{Announce, Blobs, Clock, Desk, EventLog, LocalReplies, Pulse, Replies, Retention};
use sendtrail_processor::{Store, Views};
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::secret::Vault;
use sendtrail_schemas::time::Millis;
use tokio::runtime::Handle;

use super::owning::Owning;
use crate::backbone::Backbone;
use crate::config::Config;
use crate::elsewhere::Elsewhere;
use crate::keys::vault;
use crate::reception::{AllReplies, Questions, Reception};
use crate::roles::Role;
use crate::steward::Steward;

/// See the module.
pub struct Shared {
    pub log: Arc<dyn EventLog>,
    /// The way to other servers, if there may be any.
    pub exchange: Option<Arc<Exchange>>,
    pub store: Store,
    pub directory: Arc<Directory>,
    pub views: Views,
    pub replies: Arc<dyn Replies>,
    local: Arc<LocalReplies>,
    /// Where windows are asked for that another server keeps.
    pub questions: Option<Arc<Questions>>,
    pub pulses: Vec<Arc<Pulse>>,
    pub elsewhere: Arc<Elsewhere>,
    pub retention: Arc<Retention>,
    pub clock: Clock,
    pub blobs: Blobs,
    pub vault: Vault,
}

impl Shared {
    pub fn open(config: &Config, backbone: &Backbone) -> anyhow::Result<Self> {
        let (data, log, exchange) = (&config.data.dir, backbone.log(), backbone.exchange());
        let count = config.log.partitions;
        let store = Store::open(&data.join("state"), count, config.state.cache_bytes).context("open the state")?;
        let directory = Arc::new(Directory::default());
        let is_owner = config.server.roles.has(Role::Processor);
        let open = if is_owner { Views::open } else { Views::of_others };
        let views = open(&store, directory.clone()).context("read the accounts")?;
        let clock = if config.log.simulated { simulated_clock(&store, count)? } else { Clock::wall() };
        let instance = rand::rng().next_u64();
        let local = Arc::new(LocalReplies::new(instance));
        let replies: Arc<dyn Replies> = match &exchange {
            Some(exchange) => Arc::new(AllReplies { here: local.clone(), exchange: exchange.clone() }),
            None => local.clone(),
        };
        let elsewhere = exchange.clone().filter(|_| !is_owner);
        let questions = elsewhere.map(|exchange| Arc::new(Questions { exchange, desk: Desk::new(instance) }));
        let pulses: Vec<Arc<Pulse>> = (0..count).map(|_| Arc::default()).collect();
        Ok(Self {
            elsewhere: Arc::new(Elsewhere::new(pulses.clone())),
            retention: Arc::new(Retention::new(log.clone())),
            blobs: Blobs::open(&config.blobs_folder())?,
            vault: vault(data, config)?,
            log,
            exchange,
            store,
            directory,
            views,
            replies,
            local,
            questions,
            pulses,
            clock,
        })
    }

    /// Where the owner of a partition makes things known.
    pub fn announce(&self) -> Option<Arc<dyn Announce>> {
        self.exchange.clone().map(|exchange| exchange as Arc<dyn Announce>)
    }

    /// Learns what others made known, or sets it right; listens from then on.
    pub async fn meet_others(&self, config: &Config, owning: &Owning) -> anyhow::Result<()> {
        let Some(exchange) = self.exchange.clone() else { return Ok(()) };
        let reception = Reception {
            exchange: exchange.clone(),
            inquiries: owning.inquiries(),
            replies: self.local.clone(),
            questions: self.questions.clone(),
            handle: Handle::current(),
        };
        let (views, clock, elsewhere) = (self.views.clone(), self.clock.clone(), self.elsewhere.clone());
        let steward = config.server.roles.has(Role::Processor).then(|| Steward {
            exchange: exchange.clone(),
            views: self.views.clone(),
            inquiries: owning.inquiries(),
            elsewhere: self.elsewhere.clone(),
            handle: Handle::current(),
        });
        // Both wait for brokers.
        tokio::task::spawn_blocking(move || {
            match steward {
                Some(steward) => steward.begin()?,
                None => elsewhere.follow(&exchange, views, clock)?,
            }
            reception.open()?;
            anyhow::Ok(())
        })
        .await?
        .context("speak with other servers")
    }
}

/// A simulated clock goes on from where the state stands.
fn simulated_clock(store: &Store, partitions: u32) -> anyhow::Result<Clock> {
    let clock = Clock::simulated(Millis(0));
    for partition in 0..partitions {
        if let Some(progress) = store.progress(partition)? {
            clock.reached(Millis(progress.last_t));
        }
    }
    Ok(clock)
}
