//! `sendtrail rebuild-state`: the state folded once more, compared with the one that is there.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sendtrail_eventlog::embedded::EmbeddedLog;
use sendtrail_eventlog::{Clock, EventLog};
use sendtrail_processor::{
    IntakeArchive, RebuiltState, Snapshots, Store, Verdict, Views, rebuild_state, replace_state,
};
use sendtrail_schemas::directory::Directory;

use crate::app::remove;
use crate::backbone;
use crate::config::{Backend, Config};

/// What to fold, and what to do with it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether it is put in the place of what is not the same.
    pub replace: bool,
    /// These only; none: all, but those that other servers own.
    pub partitions: Vec<u32>,
}

/// Folds partitions and compares them with the state that is there.
///
/// # Errors
/// When the server runs, or something cannot be read or written.
pub async fn run(config: &Config, options: &Options) -> anyhow::Result<ExitCode> {
    let folder = config.data.dir.join("rebuild");
    let done = fold(config, options, &folder).await;
    // It is as personal as the state.
    remove(&folder)?;
    Ok(if done? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether all is as it should be.
async fn fold(config: &Config, options: &Options, folder: &Path) -> anyhow::Result<bool> {
    let data = &config.data.dir;
    // On Kafka the rest is applied by the server when it starts.
    let (log, _lock) = match config.log.backend {
        Backend::Embedded => {
            let log = EmbeddedLog::open(&data.join("log"), config.log_options()).context("open the log")?;
            (Some(Arc::new(log) as Arc<dyn EventLog>), None)
        }
        Backend::Kafka => (None, Some(backbone::lock(data)?)),
    };
    let (days, every) = (config.archive.intake_days, Duration::from_secs(config.archive.intake_seconds));
    let archive = IntakeArchive::open(&config.intake_place(), days, every, Clock::wall())?;
    let store = Store::open(&data.join("state"), config.log.partitions, config.state.cache_bytes)?;
    let views = Views::open(&store, Arc::<Directory>::default())?;
    remove(folder)?;
    let scratch = Store::open(folder, config.log.partitions, config.state.cache_bytes)?;
    let mut whole = true;
    for partition in 0..config.log.partitions {
        if !options.partitions.is_empty() && !options.partitions.contains(&partition) {
            continue;
        }
        let rebuilt = match rebuild_state(&archive, log.clone(), &store, &scratch, partition).await {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                println!("partition {partition}: {error}");
                whole = false;
                continue;
            }
        };
        tell(partition, &rebuilt);
        whole &= rebuilt.damage.is_empty();
        let is_elsewhere = config.shares_partitions() && options.partitions.is_empty();
        match &rebuilt.verdict {
            Verdict::Equal => {}
            Verdict::Absent | Verdict::Before { .. } if is_elsewhere => {}
            Verdict::Absent | Verdict::Differs { .. } if options.replace => {
                replace_state(&store, &views, &scratch, partition).await?;
                if rebuilt.verdict != Verdict::Absent {
                    // What was kept of the state that is gone must not come back.
                    archive.forget_bases(partition, rebuilt.from).await?;
                    if let Some(snapshots) = config.snapshots() {
                        // No broker is asked here which cluster it is of.
                        let is_here = config.log.backend == Backend::Embedded;
                        let identity = is_here.then(|| backbone::folder_identity(data)).transpose()?;
                        Snapshots::open(&snapshots, every)?.of(identity).forget(partition, rebuilt.from).await?;
                    }
                }
                println!("partition {partition}: replaced");
            }
            _ => whole = false,
        }
    }
    Ok(whole)
}

fn tell(partition: u32, rebuilt: &RebuiltState) {
    for damage in &rebuilt.damage {
        println!("partition {partition}: {damage}");
    }
    let RebuiltState { from, to, rows, verdict, .. } = rebuilt;
    let folded = format!("partition {partition}: intake records {from} to {to} folded, {rows} rows");
    match verdict {
        Verdict::Equal => println!("{folded}: the state is the same, byte for byte"),
        Verdict::Absent => println!("{folded}; there is no state here"),
        Verdict::Differs { rows, first } => println!("{folded}; the state differs in {rows} rows: {first}"),
        Verdict::Before { state } => println!(
            "partition {partition}: the state is at record {state}, before everything that is kept: another server owns it since"
        ),
        Verdict::Behind { state } => println!(
            "partition {partition}: intake is archived up to record {to}, the state is at {state}: start the server and \
             stop it, then compare again"
        ),
    }
}
