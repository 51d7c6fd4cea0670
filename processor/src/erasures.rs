//! Carries erasures into every store, and what accounts keep for a while only.
//!
//! ```text
//! event RecipientErased ─► job, with the address ─► archive ─► dead letters ─► ClickHouse ─► EndErasure on intake ─► job gone
//! ```
//!
//! Each step may be done again. A step whose store does not answer is tried again until it does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use clickhouse::Client;
use metrics::{counter, gauge};
use sendtrail_eventlog::failpoint::reach;
use sendtrail_eventlog::{Batch, Clock, EventLog};
use sendtrail_schemas::archive::ArchiveView;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::{Body, Change, Command, EndErasure, Record};
use sendtrail_schemas::time::{Day, Millis};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio_util::sync::CancellationToken;

use crate::archive::{Eraser, Target, Who};
use crate::clickhouse::{ClickHouseHandle, Rows, clear};
use crate::projections::{ErasureJobs, Job, KeptIn, Letters};
use crate::{Error, ProjectionReader, blocking};

/// How often to look for erasures.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often to look for what is too old.
const RETAIN_EVERY: Duration = Duration::from_secs(600);
/// How soon to look again after that failed.
const RETRY_AFTER: Duration = Duration::from_secs(60);
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
    /// Clears what receivers answered.
    pub answers: Eraser,
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
    /// How many partitions there are.
    pub partitions: u32,
}

/// Where partitions ended.
type Ends = Vec<(TopicPartition, u64)>;

/// The number after the last attempt there was when an erasure was first seen, by its key.
type Attempted = HashMap<[u8; 10], u64>;

impl Erasures {
    /// Runs until `stop` is cancelled; a commit under way is finished first.
    pub async fn run(self, stop: CancellationToken) {
        // Told from the start, so that the first failure is seen.
        for name in
            ["sendtrail_erased_recipients_total", "sendtrail_erased_rows_total", "sendtrail_erasure_failures_total"]
        {
            counter!(name).absolute(0);
        }
        gauge!("sendtrail_erasures_pending").set(0.0);
        let mut attempted = Attempted::new();
        let mut retain_at = tokio::time::Instant::now();
        let mut awaited = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = self.erase_due(&mut attempted, &stop).await {
                counter!("sendtrail_erasure_failures_total").increment(1);
                tracing::warn!(%error, "an erasure does not get on; it is tried again");
            }
            if tokio::time::Instant::now() >= retain_at && !stop.is_cancelled() {
                // What comes after a day was cleared takes another look at it: whatever is there already must be in files by then.
                if !self.is_filed(awaited.get_or_insert_with(|| self.ends())) {
                    continue;
                }
                awaited = None;
                let retained = self.retain(&stop).await;
                if let Err(error) = &retained {
                    counter!("sendtrail_erasure_failures_total").increment(1);
                    tracing::warn!(%error, "what is too old cannot be cleared; it is tried again");
                }
                retain_at = tokio::time::Instant::now() + if retained.is_ok() { RETAIN_EVERY } else { RETRY_AFTER };
            }
        }
    }

    /// Does what is due, each as far as it gets on.
    async fn erase_due(&self, attempted: &mut Attempted, stop: &CancellationToken) -> Result<(), Error> {
        let mut jobs = self.jobs.all()?;
        gauge!("sendtrail_erasures_pending").set(jobs.len() as f64);
        jobs.retain(|job| !self.is_held(job));
        jobs.truncate(TOGETHER);
        attempted.retain(|key, _| jobs.iter().any(|job| job.key() == *key));
        for job in &jobs {
            let of = TopicPartition::new(Topic::Attempts, job.partition);
            attempted.entry(job.key()).or_insert_with(|| *self.log.end(of).borrow());
        }
        let mut outcome = self.clear_archive(&mut jobs, attempted).await;
        for job in jobs.iter().filter(|job| job.archived) {
            if stop.is_cancelled() {
                break;
            }
            if self.is_held(job) {
                continue;
            }
            let attempted = attempted.get(&job.key()).copied().unwrap_or(0);
            let ended = tokio::select! {
                ended = self.end(job, attempted) => ended,
                () = stop.cancelled() => break,
            };
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn is_held(&self, job: &Job) -> bool {
        AccountId::from_slice(&job.account_id).is_ok_and(|account| self.holds(account))
    }

    fn holds(&self, account: AccountId) -> bool {
        self.directory.account(account).is_some_and(|config| config.legal_hold)
    }

    /// The first day that an account keeps, as it is said now; none when it keeps everything, or is on hold.
    fn keeps_from(&self, account: AccountId) -> Option<Day> {
        let config = self.directory.account(account)?;
        let keeps = (config.retention_days > 0 && !config.legal_hold).then_some(config.retention_days)?;
        Some(self.clock.now().day().saturating_sub(keeps as i32))
    }

    /// Where events and attempts end.
    fn ends(&self) -> Ends {
        // Of every partition: whoever files does so for those that others work on, too.
        let of = |topic| (0..self.partitions).map(move |partition| TopicPartition::new(topic, partition));
        let all = of(Topic::Events).chain(of(Topic::Attempts));
        all.map(|of| (of, *self.log.end(of).borrow())).collect()
    }

    fn is_filed(&self, ends: &Ends) -> bool {
        let (events, answers) = (self.eraser.cell.load(), self.answers.cell.load());
        ends.iter().all(|(of, end)| {
            let view = if of.topic == Topic::Events { &events } else { &answers };
            view.filed.get(&of.partition).copied().unwrap_or(0) >= *end
        })
    }

    /// Clears those whose events are all in files, and what was answered to posts of them before the erasure was seen here.
    async fn clear_archive(&self, jobs: &mut [Job], attempted: &Attempted) -> Result<(), Error> {
        let (events, answers) = (self.eraser.cell.load(), self.answers.cell.load());
        let is_due = |job: &&mut Job| {
            let filed = |view: &ArchiveView| view.filed.get(&job.partition).copied().unwrap_or(0);
            let attempted = attempted.get(&job.key()).copied().unwrap_or(u64::MAX);
            !job.archived && filed(&events) > job.seq && filed(&answers) >= attempted
        };
        let mut due: Vec<&mut Job> = jobs.iter_mut().filter(is_due).collect();
        if due.is_empty() {
            return Ok(());
        }
        let Err(error) = self.clear_files(&mut due).await else { return Ok(()) };
        if due.len() == 1 {
            return Err(error);
        }
        // One that cannot be done must not keep the others.
        let mut outcome = Ok(());
        for job in due {
            outcome = outcome.and(self.clear_files(&mut [job]).await);
        }
        outcome
    }

    async fn clear_files(&self, due: &mut [&mut Job]) -> Result<(), Error> {
        let target = |job: &Job| -> Result<Target, Error> {
            let account = AccountId::from_slice(&job.account_id)?.to_string();
            Ok(Target { account, who: Who::Recipient { folded: job.folded.clone(), through: job.seq } })
        };
        let targets: Vec<Target> = due.iter().map(|job| target(job)).collect::<Result<_, _>>()?;
        let accounts = targets.iter().map(|target| target.account.clone()).collect();
        // A hold that is asked for meanwhile stops what is not irrevocable yet; the others are due again at once.
        let held = |due: &[&mut Job]| due.iter().any(|job| self.is_held(job));
        let erasing = self.eraser.begin(targets).await?;
        if held(due) {
            return Ok(());
        }
        // Counted before they are cleared: afterwards nobody finds them. A crash in between finds none, or all of them again.
        for (job, rows) in due.iter_mut().zip(&erasing.found.rows) {
            job.rows = if *rows > 0 { *rows } else { job.rows };
        }
        self.keep(due)?;
        let ids = due.iter().filter_map(|job| uuid::Uuid::from_slice(&job.erasure_id).ok().map(|id| id.to_string()));
        let reason = format!("asked for: {}", ids.collect::<Vec<_>>().join(", "));
        let (now, places) = (self.clock.now(), erasing.found.places.clone());
        self.answers.clear_answers(accounts, places, now, reason.clone()).await?;
        if held(due) {
            return Ok(());
        }
        let found = self.eraser.end(erasing, now, reason).await?;
        counter!("sendtrail_erased_rows_total").increment(found.rows.iter().sum());
        due.iter_mut().for_each(|job| job.archived = true);
        self.keep(due)
    }

    fn keep(&self, jobs: &[&mut Job]) -> Result<(), Error> {
        let jobs: Vec<Job> = jobs.iter().map(|job| (**job).clone()).collect();
        self.jobs.keep(&jobs)
    }

    /// Carries one whose archive is clear into the other stores. `attempted`: the attempts there were when it was first seen.
    async fn end(&self, job: &Job, attempted: u64) -> Result<(), Error> {
        let account = AccountId::from_slice(&job.account_id)?;
        let (letters, which) = (self.letters.clone(), Letters::Naming(job.folded.clone()));
        blocking("clear dead letters", move || letters.clear_dead_letters(account, &which)).await?;
        if let Some((client, handle)) = &self.clickhouse {
            // Whatever is inserted from here on was read from the archive as it is now.
            let has_events = handle.has(job.partition, job.seq + 1, PATIENCE).await;
            if !has_events || !handle.has_attempts(job.partition, attempted) {
                return Err(behind());
            }
            let (partition, through) = (job.partition, job.seq);
            clear(client, account, &Rows::Recipient { folded: job.folded.clone(), partition, through }).await?;
        }
        self.tell(job).await?;
        reach("erase.told");
        self.jobs.done(job)?;
        counter!("sendtrail_erased_recipients_total").increment(1);
        tracing::info!(%account, rows = job.rows, "a recipient was erased");
        Ok(())
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

    /// Clears what accounts no longer keep, a day of all of them after the other.
    async fn retain(&self, stop: &CancellationToken) -> Result<(), Error> {
        // Also of accounts that keep everything now, or that are not known here yet.
        let mut marks = self.jobs.all_kept_from(KeptIn::Archive)?;
        let mut due = Vec::new();
        let mut after = None;
        loop {
            let accounts = self.directory.list(after, ACCOUNTS);
            due.extend(accounts.iter().map(|config| config.id()).filter(|id| self.keeps_from(*id).is_some()));
            match accounts.last() {
                Some(last) => after = Some(last.id()),
                None => break,
            }
        }
        let mut days: BTreeMap<Day, u64> = BTreeMap::new();
        for file in self.eraser.cell.load().files.iter() {
            *days.entry(file.day).or_default() += file.rows;
        }
        let mut left = due.clone();
        for (day, rows) in days {
            // Rows stay, whatever is cleared or merged: a day with other than it had when it was cleared has some that came later,
            // from a partition or a clock that was behind.
            let grown = self.jobs.cleared_rows(day)? != Some(rows);
            loop {
                // Asked for each day: a hold, or a longer retention, that comes meanwhile keeps what is still there. Whoever keeps a
                // day is done with for now: what is noted says that every day before is cleared.
                left.retain(|account| self.keeps_from(*account).is_some_and(|to| day < to));
                let is_due = |account: &&AccountId| grown || marks.get(*account).is_none_or(|from| *from <= day);
                let accounts: Vec<AccountId> = left.iter().filter(is_due).copied().collect();
                if accounts.is_empty() || stop.is_cancelled() {
                    break;
                }
                if self.clear_day(&accounts, day).await? {
                    let moved = moved_by(&marks, &accounts, day, grown);
                    self.jobs.note_cleared(day, rows, &moved)?;
                    marks.extend(moved);
                    break;
                }
            }
        }
        for account in due {
            let Some(to) = self.keeps_from(account) else { continue };
            if stop.is_cancelled() || self.jobs.kept_from(account, KeptIn::Rest)? >= to {
                continue;
            }
            tokio::select! {
                cleared = self.clear_rest(account, to) => cleared?,
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Clears a day of some accounts; false, and nothing but answers is cleared, if one of them is to keep it after all.
    async fn clear_day(&self, accounts: &[AccountId], day: Day) -> Result<bool, Error> {
        let target = |account: &AccountId| Target {
            account: account.to_string(),
            who: Who::Received { from: day, to: day + 1 },
        };
        let kept = || accounts.iter().any(|account| self.keeps_from(*account).is_none_or(|to| to <= day));
        let erasing = self.eraser.begin(accounts.iter().map(target).collect()).await?;
        if kept() {
            return Ok(false);
        }
        let names = accounts.iter().map(ToString::to_string).collect();
        let name = Millis::of_day(day).day_text();
        let reason = format!("retention: received on {name}");
        let (now, places) = (self.clock.now(), erasing.found.places.clone());
        self.answers.clear_answers(names, places, now, reason.clone()).await?;
        if kept() {
            return Ok(false);
        }
        let found = self.eraser.end(erasing, now, reason).await?;
        let rows: u64 = found.rows.iter().sum();
        counter!("sendtrail_erased_rows_total").increment(rows);
        tracing::info!(accounts = accounts.len(), rows, day = name, "cleared what accounts no longer keep");
        Ok(true)
    }

    /// Clears what was received before a day in the other stores.
    async fn clear_rest(&self, account: AccountId, to: Day) -> Result<(), Error> {
        let until = Millis::of_day(to);
        let letters = self.letters.clone();
        let clear_letters = move || letters.clear_dead_letters(account, &Letters::Before(until));
        blocking("clear dead letters", clear_letters).await?;
        if let Some((client, handle)) = &self.clickhouse {
            for (partition, next) in self.eraser.cell.load().filed.iter() {
                if !handle.has(*partition, *next, PATIENCE).await {
                    return Err(behind());
                }
            }
            clear(client, account, &Rows::ReceivedBefore(until.0)).await?;
        }
        self.jobs.note_kept_from(&[account], KeptIn::Rest, to)
    }
}

/// From which day on accounts keep what is in the archive, where that is other than it was before a day of some of them was
/// cleared. `grown`: the day had rows that nobody had looked at, also of the others.
fn moved_by(marks: &BTreeMap<AccountId, Day>, cleared: &[AccountId], day: Day, grown: bool) -> Vec<(AccountId, Day)> {
    let cleared: BTreeSet<AccountId> = cleared.iter().copied().collect();
    let onward =
        cleared.iter().map(|account| (*account, marks.get(account).map_or(day + 1, |from| (*from).max(day + 1))));
    // Whoever is on hold, or keeps more than before, is looked at from that day on, when it is due again.
    let back = marks.iter().filter(|(account, from)| grown && **from > day && !cleared.contains(*account));
    onward.chain(back.map(|(account, _)| (*account, day))).collect()
}

fn behind() -> Error {
    Error::Missing("ClickHouse has not yet what the archive has".into())
}

#[cfg(test)]
mod tests;
