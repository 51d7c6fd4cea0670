//! `sendtrail rebuild-state`: the state folded once more, compared with the one that is there.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sendtrail_eventlog::embedded::EmbeddedLog;
use sendtrail_eventlog::{Clock, EventLog};
use sendtrail_processor::{IntakeArchive, RebuiltState, Store, Verdict, Views, rebuild_state, replace_state};
use sendtrail_schemas::directory::Directory;

use crate::backbone;
use crate::config::{Backend, Config};

/// Folds every partition and compares it; with `replace`, puts it in the place of what is not the same.
///
/// # Errors
/// When the server runs, or something cannot be read or written.
pub async fn run(config: &Config, replace: bool) -> anyhow::Result<ExitCode> {
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
    let archive = IntakeArchive::in_folder(&config.intake_folder(), days, every, Clock::wall())?;
    let store = Store::open(&data.join("state"), config.log.partitions, config.state.cache_bytes)?;
    let views = Views::open(&store, Arc::<Directory>::default())?;
    let folder = data.join("rebuild");
    clear(&folder)?;
    let mut whole = true;
    {
        let scratch = Store::open(&folder, config.log.partitions, config.state.cache_bytes)?;
        for partition in 0..config.log.partitions {
            let rebuilt = rebuild_state(&archive, log.clone(), &store, &scratch, partition).await?;
            tell(partition, &rebuilt);
            let is_elsewhere = rebuilt.verdict == Verdict::Absent && config.shares_partitions();
            let is_same = rebuilt.verdict == Verdict::Equal || is_elsewhere;
            let can_replace = matches!(rebuilt.verdict, Verdict::Absent | Verdict::Differs { .. });
            if replace && can_replace && !is_elsewhere {
                replace_state(&store, &views, &scratch, partition).await?;
                println!("partition {partition}: replaced");
            } else {
                whole &= is_same;
            }
            whole &= rebuilt.damage.is_empty();
        }
    }
    clear(&folder)?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn clear(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", folder.display()))
        }
        _ => Ok(()),
    }
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
        Verdict::Behind { state } => println!(
            "partition {partition}: intake is archived up to record {to}, the state is at {state}: start the server and \
             stop it, then compare again"
        ),
    }
}
