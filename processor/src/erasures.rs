//! Carries erasures into every store, and what accounts keep for a while only.
//!
//! ```text
//! event RecipientErased ─► job, with the address ─► archive ─► dead letters ─► ClickHouse ─► EndErasure on intake ─► job gone
//! ```
//!
//! Each step may be done again. A step whose store does not answer is tried again until it does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use clickhouse::Client;
use metrics::{counter, gauge};
use sendtrail_eventlog::failpoint::reach;
use sendtrail_eventlog::{Batch, Clock, EventLog};
use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::{Body, Change, Command, EndErasure, Record};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::archive::{Eraser, Table, Target, Who, clear_answers};
use crate::clickhouse::{ClickHouseHandle, Rows, clear};
use crate::projections::{ErasureJobs, Job};
use crate::{Error, ProjectionReader, blocking};

/// How often to look for erasures.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often to look for what is too old.
const RETAIN_EVERY: Duration = Duration::from_secs(600);
/// Erasures done in one go: each goes through the archive once.
const TOGETHER: usize = 1_000;
/// Accounts looked at in one go.
const ACCOUNTS: usize = 1_000;
/// How long a table of ClickHouse may take to have what the archive has.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Erasures {
    /// What is under way.
    pub jobs: ErasureJobs,
    /// Clears events.
    pub eraser: Eraser,
    /// The archive of attempts, and what readers see of it.
    pub attempts: (Arc<Mutex<Table>>, Arc<ArchiveCell>),
    /// Dead letters.
    pub letters: ProjectionReader,
    /// ClickHouse, if there is one, and how far it is.
    pub clickhouse: Option<(Client, ClickHouseHandle)>,
    /// Where it is told that an erasure has reached every store.
    pub log: Arc<dyn EventLog>,
    /// Holds and retention.
    pub directory: Arc<Directory>,
    /// What day it is.
    pub clock: Clock,
}

/// The number after the last attempt there was when an erasure was first seen, by its key.
type Attempted = HashMap<[u8; 10], u64>;

impl Erasures {
    /// Runs until `stop` is cancelled; a step under way is finished first.
    pub async fn run(self, stop: CancellationToken) {
        // Told from the start, so that the first failure is seen.
        for name in
            ["sendtrail_erased_recipients_total", "sendtrail_erased_rows_total", "sendtrail_erasure_failures_total"]
        {
            counter!(name).absolute(0);
        }
        gauge!("sendtrail_erasures_pending").set(0.0);
        let mut attempted = Attempted::new();
        let mut retained = None::<tokio::time::Instant>;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = self.erase_due(&mut attempted).await {
                counter!("sendtrail_erasure_failures_total").increment(1);
                tracing::warn!(%error, "an erasure does not get on; it is tried again");
            }
            if retained.is_none_or(|at| at.elapsed() > RETAIN_EVERY) {
                retained = Some(tokio::time::Instant::now());
                if let Err(error) = self.retain().await {
                    counter!("sendtrail_erasure_failures_total").increment(1);
                    tracing::warn!(%error, "what is too old cannot be cleared; it is tried again");
                    retained = None;
                }
            }
        }
    }

    /// Does what is due; how many erasures have reached every store.
    ///
    /// # Errors
    /// Of the store that did not get on.
    async fn erase_due(&self, attempted: &mut Attempted) -> Result<usize, Error> {
        let mut jobs = self.jobs.all()?;
        gauge!("sendtrail_erasures_pending").set(jobs.len() as f64);
        jobs.retain(|job| !self.is_held(job));
        jobs.truncate(TOGETHER);
        if jobs.is_empty() {
            return Ok(0);
        }
        attempted.retain(|key, _| jobs.iter().any(|job| job.key() == *key));
        self.clear_archive(&mut jobs, attempted).await?;
        let mut done = 0;
        for job in jobs.iter().filter(|job| job.archived) {
            let account = AccountId::from_slice(&job.account_id)?;
            let (letters, folded) = (self.letters.clone(), job.folded.clone());
            blocking("clear dead letters", move || letters.clear_dead_letters(account, &folded)).await?;
            if let Some((client, handle)) = &self.clickhouse {
                // Whatever is inserted from here on was read from the archive as it is now.
                if !handle.has(job.partition, job.seq + 1, PATIENCE).await {
                    return Err(Error::Missing("ClickHouse has not yet what the archive has".into()));
                }
                let (partition, through) = (job.partition, job.seq);
                clear(client, account, &Rows::Recipient { folded: job.folded.clone(), partition, through }).await?;
            }
            self.tell(job).await?;
            reach("erase.told");
            self.jobs.done(job)?;
            counter!("sendtrail_erased_recipients_total").increment(1);
            tracing::info!(%account, rows = job.rows, "a recipient was erased");
            done += 1;
        }
        Ok(done)
    }

    fn is_held(&self, job: &Job) -> bool {
        let account = AccountId::from_slice(&job.account_id).ok();
        let config = account.and_then(|account| self.directory.account(account));
        config.is_some_and(|config| config.legal_hold)
    }

    /// Clears those whose events are all in files, and what was answered to posts of them before the erasure was seen here.
    async fn clear_archive(&self, jobs: &mut [Job], attempted: &mut Attempted) -> Result<(), Error> {
        let mut due = Vec::new();
        for job in jobs.iter_mut().filter(|job| !job.archived) {
            let of = TopicPartition::new(Topic::Attempts, job.partition);
            let attempted = *attempted.entry(job.key()).or_insert_with(|| *self.log.end(of).borrow());
            let has_events = self.eraser.table.lock().await.mark(job.partition).await? > job.seq;
            let has_answers = self.attempts.0.lock().await.mark(job.partition).await? >= attempted;
            if has_events && has_answers {
                due.push(job);
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        let target = |job: &Job| -> Result<Target, Error> {
            let account = AccountId::from_slice(&job.account_id)?.to_string();
            Ok(Target { account, who: Who::Recipient { folded: job.folded.clone(), through: job.seq } })
        };
        let targets = due.iter().map(|job| target(job)).collect::<Result<_, _>>()?;
        let erasing = self.eraser.begin(targets).await?;
        // Counted before they are cleared: afterwards nobody finds them. A crash in between finds none, or all of them again.
        for (job, rows) in due.iter_mut().zip(&erasing.found.rows) {
            job.rows = if *rows > 0 { *rows } else { job.rows };
        }
        self.keep(&due)?;
        clear_answers(&self.attempts.0, &self.attempts.1, erasing.found.places.clone()).await?;
        let ids = due.iter().filter_map(|job| uuid::Uuid::from_slice(&job.erasure_id).ok().map(|id| id.to_string()));
        let reason = format!("asked for: {}", ids.collect::<Vec<_>>().join(", "));
        let found = self.eraser.end(erasing, self.clock.now(), reason).await?;
        counter!("sendtrail_erased_rows_total").increment(found.rows.iter().sum());
        due.iter_mut().for_each(|job| job.archived = true);
        self.keep(&due)
    }

    fn keep(&self, jobs: &[&mut Job]) -> Result<(), Error> {
        let jobs: Vec<Job> = jobs.iter().map(|job| (**job).clone()).collect();
        self.jobs.keep(&jobs)
    }

    async fn tell(&self, job: &Job) -> Result<(), Error> {
        let change = Change::EndErasure(EndErasure { erasure_id: job.erasure_id.clone(), rows: job.rows });
        let mut batch = Batch::new();
        batch.push(&Record {
            version: change.version(),
            account_id: job.account_id.clone(),
            body: Some(Body::Command(Command { change: Some(change) })),
            ..Record::default()
        });
        self.log.append(TopicPartition::new(Topic::Intake, job.partition), batch).await?;
        Ok(())
    }

    /// Clears what accounts no longer keep.
    ///
    /// # Errors
    /// Of the store that did not get on.
    async fn retain(&self) -> Result<(), Error> {
        let today = self.clock.now().day();
        let mut after = None;
        loop {
            let accounts = self.directory.list(after, ACCOUNTS);
            for config in accounts.iter().filter(|config| config.retention_days > 0 && !config.legal_hold) {
                let (account, to) = (config.id(), today.saturating_sub(config.retention_days as i32));
                let from = self.jobs.kept_from(account)?.unwrap_or(i32::MIN);
                if from < to {
                    self.clear_days(account, from, to).await?;
                }
            }
            match accounts.last() {
                Some(last) => after = Some(last.id()),
                None => return Ok(()),
            }
        }
    }

    async fn clear_days(&self, account: AccountId, from: i32, to: i32) -> Result<(), Error> {
        let target = Target { account: account.to_string(), who: Who::Received { from, to } };
        let erasing = self.eraser.begin(vec![target]).await?;
        clear_answers(&self.attempts.0, &self.attempts.1, erasing.found.places.clone()).await?;
        let until = Millis::of_day(to);
        let reason = format!("retention of account {account}: received before {}", until.day_text());
        let found = self.eraser.end(erasing, self.clock.now(), reason).await?;
        let rows: u64 = found.rows.iter().sum();
        counter!("sendtrail_erased_rows_total").increment(rows);
        if let Some((client, handle)) = &self.clickhouse {
            for (partition, next) in self.eraser.cell.load().filed.iter() {
                if !handle.has(*partition, *next, PATIENCE).await {
                    return Err(Error::Missing("ClickHouse has not yet what the archive has".into()));
                }
            }
            clear(client, account, &Rows::ReceivedBefore(until.0)).await?;
        }
        self.jobs.note_kept_from(account, to)?;
        tracing::info!(%account, rows, before = until.day_text(), "cleared what the account no longer keeps");
        Ok(())
    }
}
