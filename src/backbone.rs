//! Which log the server runs on.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rand::Rng;
use sendtrail_eventlog::EventLog;
use sendtrail_eventlog::embedded::{self, EmbeddedLog};
use sendtrail_eventlog::kafka::{KafkaLog, Options};

use crate::config::{Backend, Config};

/// The log, of which the server is the only user in this data folder.
pub enum Backbone {
    /// In the data folder.
    Embedded(Arc<EmbeddedLog>),
    /// On Kafka, with the data folder's lock.
    Kafka(Arc<KafkaLog>, File),
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
                let options = Options { instance: instance(&folder)?, ..config.kafka_options() };
                let opened = tokio::task::spawn_blocking(move || KafkaLog::open(options)).await?;
                Ok(Self::Kafka(Arc::new(opened.context("open the log on Kafka")?), lock))
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

    /// Writes what is queued and takes no more.
    pub fn close(&self) {
        match self {
            Self::Embedded(log) => log.close(),
            Self::Kafka(log, _) => log.close(),
        }
    }
}

/// What tells the server of this folder from others: made once.
fn instance(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("instance");
    if let Ok(known) = std::fs::read_to_string(&path) {
        return Ok(known.trim().to_owned());
    }
    let fresh = format!("{:016x}", rand::rng().next_u64());
    // Should it be lost, the next start only waits until the one before is taken for dead.
    std::fs::write(&path, &fresh).with_context(|| format!("write {}", path.display()))?;
    Ok(fresh)
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
