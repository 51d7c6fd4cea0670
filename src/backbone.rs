//! Which log the server runs on.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rand::Rng;
use sendtrail_audit::put_durably;
use sendtrail_eventlog::EventLog;
use sendtrail_eventlog::embedded::{self, EmbeddedLog};
use sendtrail_eventlog::kafka::{Exchange, KafkaLog, Options};
use sendtrail_processor::dispatch::BookSnapshots;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::config::{Backend, Config};
use crate::roles::{Role, Roles};

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
                let mut instance = Instance::of(&folder)?;
                let options = Options { instance: instance.name(), ..config.kafka_options() };
                let opened = tokio::task::spawn_blocking(move || KafkaLog::open(options)).await?;
                let log = Arc::new(opened.context("open the log on Kafka")?);
                if !config.kafka.accept_new_folder && is_anothers(config, &log, &instance).await? {
                    let data = config.data.dir.display();
                    anyhow::bail!(
                        "the topics hold another server's log, and {data} has nothing of it: its state, large messages \
                         and keys. Start with its folder. With kafka.accept_new_folder the whole log is applied again, \
                         and mail and webhooks go out again"
                    );
                }
                instance.keep(&config.server.roles)?;
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

    /// What tells this log from others for as long as there is one, if anything does.
    ///
    /// # Errors
    /// When the data folder cannot be read or written.
    pub fn identity(&self, config: &Config) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Embedded(_) => Some(folder_identity(&config.data.dir)?),
            Self::Kafka(log, _) => cluster_identity(log),
        })
    }

    /// The way to other servers, if there may be any.
    pub fn exchange(&self) -> Option<Arc<Exchange>> {
        match self {
            Self::Embedded(_) => None,
            Self::Kafka(log, _) => Some(log.exchange().clone()),
        }
    }

    /// Where the partitions of intake end, with whatever others wrote by now: what was read here may be behind.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub async fn intake_ends(&self, partitions: u32) -> Result<Vec<u64>, sendtrail_eventlog::Error> {
        match self {
            Self::Embedded(log) => {
                let end = |partition| *log.end(TopicPartition::new(Topic::Intake, partition)).borrow();
                Ok((0..partitions).map(end).collect())
            }
            Self::Kafka(log, _) => log.intake_ends().await,
        }
    }

    /// Begins to work on a partition that this server was given.
    ///
    /// # Errors
    /// When it was taken away meanwhile, or the brokers do not answer.
    pub async fn acquire(&self, partition: u32) -> Result<(), sendtrail_eventlog::Error> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Kafka(log, _) => log.acquire(partition).await,
        }
    }

    /// Nothing of a partition is on its way any more: another server may be given it.
    pub fn release(&self, partition: u32) {
        match self {
            Self::Embedded(_) => {}
            Self::Kafka(log, _) => log.release(partition),
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
async fn is_anothers(config: &Config, log: &KafkaLog, instance: &Instance) -> anyhow::Result<bool> {
    let roles = &config.server.roles;
    let begins = |role: Role| roles.has(role) && !instance.has_done(role);
    if roles.is_all() {
        let is_new = [Role::Processor, Role::Delivery, Role::Dispatcher].into_iter().any(begins);
        return Ok(is_new && Topic::ALL.iter().any(|topic| log.has(*topic)));
    }
    // The state comes from a snapshot where there are any, else from the log; so does what webhooks wait. The archive tells by itself whether it lacks
    // what the log no longer has, and whoever only speaks with clients keeps nothing.
    let decides = begins(Role::Processor)
        && config.state.snapshots.is_empty()
        && (log.has(Topic::Events) || log.has(Topic::Mail));
    let has_books = match config.book_snapshots() {
        Some(place) if begins(Role::Dispatcher) => {
            let are_there = BookSnapshots::are_at(&place, cluster_identity(log)).await;
            are_there.with_context(|| format!("look for snapshots of webhooks at {place}"))?
        }
        _ => false,
    };
    let posts = begins(Role::Dispatcher) && log.has(Topic::Events) && !has_books;
    Ok(decides || begins(Role::Delivery) && log.has(Topic::Mail) || posts)
}

/// What tells the server of this folder, on this machine, from others. Of a copied folder on another machine it is not
/// the same: that one waits until the first is gone.
struct Instance {
    path: PathBuf,
    id: String,
    is_new: bool,
    /// What was done in this folder before, by the names of roles; none: everything.
    done: Option<BTreeSet<String>>,
}

impl Instance {
    fn of(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("instance");
        let failed = || format!("read {}", path.display());
        match std::fs::read_to_string(&path) {
            Ok(known) => {
                let mut lines = known.lines();
                let id = lines.next().unwrap_or_default().trim().to_owned();
                let done: BTreeSet<String> = lines.map(|line| line.trim().to_owned()).collect();
                let done = (!done.is_empty()).then_some(done);
                Ok(Self { path, id, is_new: false, done })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = fresh_id();
                Ok(Self { path, id, is_new: true, done: Some(BTreeSet::new()) })
            }
            Err(error) => Err(error).with_context(failed),
        }
    }

    fn name(&self) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).take(64).collect();
        format!("{}-{host}", self.id)
    }

    /// Whether a role was done in this folder.
    fn has_done(&self, role: Role) -> bool {
        self.done.as_ref().is_none_or(|done| done.contains(role.name()))
    }

    /// Keeps it, and that these are done from now on.
    fn keep(&mut self, roles: &Roles) -> anyhow::Result<()> {
        let Some(done) = &mut self.done else { return Ok(()) };
        let before = done.len();
        done.extend(Role::ALL.into_iter().filter(|role| roles.has(*role)).map(|role| role.name().to_owned()));
        if self.is_new || done.len() > before {
            let lines: Vec<&str> = std::iter::once(&*self.id).chain(done.iter().map(String::as_str)).collect();
            put_durably(&self.path, lines.join("\n").as_bytes())?;
        }
        Ok(())
    }
}

fn fresh_id() -> String {
    format!("{:016x}", rand::rng().next_u64())
}

/// What tells the log of a Kafka cluster from others, if the brokers tell it.
fn cluster_identity(log: &KafkaLog) -> Option<String> {
    log.cluster().map(|cluster| format!("Kafka cluster {cluster}"))
}

/// What tells the embedded log of a data folder from others.
///
/// # Errors
/// When it cannot be read or written.
pub fn folder_identity(data: &Path) -> anyhow::Result<String> {
    Ok(format!("folder {}", id_of(&data.join("log"))?))
}

/// What tells the log in a folder from others, wherever the folder is moved to; made when it is first asked for.
fn id_of(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("id");
    match std::fs::read_to_string(&path) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = fresh_id();
            put_durably(&path, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_in_a_folder_is_told_from_others_wherever_it_is_moved() {
        let (one, other) = (tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap());
        let id = id_of(&one.path().join("log")).unwrap();
        assert_eq!(id.len(), 16);
        std::fs::rename(one.path().join("log"), one.path().join("moved")).unwrap();
        assert_eq!(id_of(&one.path().join("moved")).unwrap(), id);
        assert_ne!(id_of(&other.path().join("log")).unwrap(), id);
    }
}
