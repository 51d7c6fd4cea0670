//! Which log the server runs on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rand::Rng;
use sendtrail_eventlog::EventLog;
use sendtrail_eventlog::embedded::{self, EmbeddedLog};
use sendtrail_eventlog::kafka::{Exchange, KafkaLog, Options};
use sendtrail_schemas::topic::Topic;

use crate::config::{Backend, Config};
use crate::roles::Role;

/// The log, of which the server is the only user in this data folder.
#[derive(Clone)]
pub enum Backbone {
    /// In the data folder.
    Embedded(Arc<EmbeddedLog>),
    /// On Kafka, with the data folder's lock.
    Kafka(Arc<KafkaLog>, Arc<File>),
}

impl Backbone {
    /// Opens the log that the settings name.
    ///
    /// # Errors
    /// When it cannot be opened, or another process uses the data folder.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let folder = config.data.dir.join("log");
        match config.log.backend {
            Backend::Embedded => {
                let log = EmbeddedLog::open(&folder, config.log_options()).context("open the log")?;
                Ok(Self::Embedded(Arc::new(log)))
            }
            Backend::Kafka => {
                let lock = lock(&config.data.dir)?;
                let instance = Instance::of(&folder)?;
                let options = Options { instance: instance.name(), ..config.kafka_options() };
                let opened = tokio::task::spawn_blocking(move || KafkaLog::open(options)).await?;
                let log = Arc::new(opened.context("open the log on Kafka")?);
                if instance.is_new && !config.kafka.accept_new_folder && is_anothers(config, &log).await? {
                    let data = config.data.dir.display();
                    anyhow::bail!(
                        "the topics hold another server's log, and {data} has nothing of it: its state, large messages \
                         and keys. Start with its folder. With kafka.accept_new_folder the whole log is applied again, \
                         and mail and webhooks go out again"
                    );
                }
                instance.keep()?;
                Ok(Self::Kafka(log, Arc::new(lock)))
            }
        }
    }

    /// The log.
    pub fn log(&self) -> Arc<dyn EventLog> {
        match self {
            Self::Embedded(log) => log.clone(),
            Self::Kafka(log, _) => log.clone(),
        }
    }

    /// The way to other servers, if there may be any.
    pub fn exchange(&self) -> Option<Arc<Exchange>> {
        match self {
            Self::Embedded(_) => None,
            Self::Kafka(log, _) => Some(log.exchange().clone()),
        }
    }

    /// Resolves when the log belongs to another server.
    pub async fn lost(self) {
        match self {
            Self::Embedded(_) => std::future::pending().await,
            Self::Kafka(log, _) => log.lost().await,
        }
    }

    /// Writes what is queued and takes no more.
    pub fn close(&self) {
        match self {
            Self::Embedded(log) => log.close(),
            Self::Kafka(log, _) => log.close(),
        }
    }
}

/// Whether another server's folder has what this one would begin without.
async fn is_anothers(config: &Config, log: &Arc<KafkaLog>) -> anyhow::Result<bool> {
    let roles = &config.server.roles;
    // The state comes from a snapshot where there are any, else from the log. The archive tells by itself whether it lacks
    // what the log no longer has, and whoever only speaks with clients keeps nothing.
    let is_owner = roles.has(Role::Processor) && config.state.snapshots.as_os_str().is_empty();
    let decides = is_owner && (log.has(Topic::Events) || log.has(Topic::Mail));
    let mails = roles.has(Role::Delivery) && log.has(Topic::Mail);
    let posts = roles.has(Role::Dispatcher) && log.has(Topic::Events);
    if decides || mails || posts {
        return Ok(true);
    }
    let log = log.clone();
    let had_owner = is_owner.then(|| tokio::task::spawn_blocking(move || log.exchange().had_owner()));
    match had_owner {
        Some(had_owner) => Ok(had_owner.await??),
        None => Ok(false),
    }
}

/// What tells the server of this folder, on this machine, from others. Of a copied folder on another machine it is not
/// the same: that one waits until the first is gone.
struct Instance {
    path: PathBuf,
    id: String,
    is_new: bool,
}

impl Instance {
    fn of(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("instance");
        match std::fs::read_to_string(&path) {
            Ok(known) => Ok(Self { path, id: known.trim().to_owned(), is_new: false }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { path, id: format!("{:016x}", rand::rng().next_u64()), is_new: true })
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn name(&self) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).take(64).collect();
        format!("{}-{host}", self.id)
    }

    fn keep(&self) -> anyhow::Result<()> {
        if self.is_new {
            std::fs::write(&self.path, &self.id).with_context(|| format!("write {}", self.path.display()))?;
        }
        Ok(())
    }
}

/// Makes sure that no server uses a data folder, as long as the file is held.
///
/// # Errors
/// When one does.
pub fn lock(data: &Path) -> anyhow::Result<File> {
    let folder = data.join("log");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    embedded::lock(&folder).context("the server must be stopped")
}
