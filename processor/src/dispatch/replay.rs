//! Deliveries made once more: read page by page from wherever events are kept, behind what is new.
//!
//! A replay is a record of its account, and so is how far it is: whoever owns the partition goes on with it. A page is in the
//! book, durably, before its end is told, so that a crash makes some of it twice and none of it never.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sendtrail_eventlog::Batch;
use sendtrail_schemas::destination::{Health, Replay, ReplayCounts, ReplayQuery, ReplayState};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId, ReplayId};
use sendtrail_schemas::record::{Body, Change, Command, Record};
use sendtrail_schemas::topic::{Topic, partition_of};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::attempt::waiting;
use super::book::{DeliveryKey, Reached, Waiting};
use super::desk::Desk;
use super::{Dispatcher, Running};
use crate::Error;

/// Deliveries of one page.
const PAGE: usize = 500;
/// Deliveries of a replay to one destination that wait or are under way, at most, before more are read.
const OUTSTANDING: usize = 1_000;
/// The same of a destination that fails: they wait in the book while others are told.
const ASIDE: usize = 100_000;
/// How soon it is told again that a replay is over, as long as that is not known.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// How soon a page is asked for again that could not be read, and how often before the replay has failed.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// See [`AGAIN_AFTER`].
const TRIES: u32 = 30;
/// How often it is looked which replays there are.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A delivery that is made once more.
#[derive(Clone, Debug)]
pub struct Redelivery {
    /// Of what.
    pub event: Event,
    /// Where to.
    pub destination: DestinationId,
    /// Attempts that there were, as far as is known.
    pub attempts: u32,
}

/// Some of what a replay asks for.
#[derive(Clone, Debug, Default)]
pub struct HistoryPage {
    /// Deliveries, of the oldest events first.
    pub deliveries: Vec<Redelivery>,
    /// Events that were looked at.
    pub events: u64,
    /// Where to go on; `None`: this was all.
    pub next: Option<String>,
}

/// Where events are kept, and how their deliveries stand.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// The page of a query after a cursor (empty: the first), of about so many deliveries.
    ///
    /// # Errors
    /// Why it cannot be read now, for people.
    async fn page(
        &self,
        account: AccountId,
        query: &ReplayQuery,
        cursor: &str,
        limit: usize,
    ) -> Result<HistoryPage, String>;
}

/// A page on its way to the book.
pub(super) struct Page {
    account: AccountId,
    replay_id: ReplayId,
    deliveries: Vec<Redelivery>,
    counts: ReplayCounts,
    cursor: String,
    state: ReplayState,
    error: String,
    /// Resolves when more is wanted.
    wanted: oneshot::Sender<()>,
}

/// The replays of a partition that run.
pub(super) struct Replays {
    running: HashMap<ReplayId, Going>,
    /// Those that are over for their accounts, and are to be read again.
    lost: HashMap<ReplayId, (AccountId, Replay)>,
    tasks: JoinSet<()>,
    give: mpsc::Sender<Page>,
    pages: mpsc::Receiver<Page>,
    looked: Instant,
}

struct Going {
    task: tokio::task::AbortHandle,
    /// Deliveries that wait or are under way.
    outstanding: HashMap<DestinationId, usize>,
    wanted: Option<oneshot::Sender<()>>,
    /// What its account is told of its end, until that is known, and since when.
    ended: Option<(AccountId, Replay, Instant)>,
}

impl Going {
    /// Whether no more is to be read. What one that fails does not take keeps the others waiting only when it is a lot.
    fn is_full(&self, is_working: impl Fn(DestinationId) -> bool) -> bool {
        let is_full =
            |(to, count): (&DestinationId, &usize)| *count >= OUTSTANDING && (is_working(*to) || *count >= ASIDE);
        self.outstanding.iter().any(is_full)
    }
}

impl Replays {
    pub(super) fn new() -> Self {
        let (give, pages) = mpsc::channel(1);
        Self {
            running: HashMap::new(),
            lost: HashMap::new(),
            tasks: JoinSet::new(),
            give,
            pages,
            looked: Instant::now() - LOOK_EVERY,
        }
    }

    /// The next page; never resolves while there is none.
    pub(super) async fn page(&mut self) -> Page {
        match self.pages.recv().await {
            Some(page) => page,
            // One end is ours.
            None => std::future::pending().await,
        }
    }

    /// When it is time to look which replays there are.
    pub(super) fn look_at(&self) -> Instant {
        self.looked + LOOK_EVERY
    }

    /// A delivery of a replay has ended.
    pub(super) fn ended(&mut self, replay_id: &[u8], to: DestinationId) {
        let Some(going) = ReplayId::from_slice(replay_id).ok().and_then(|id| self.running.get_mut(&id)) else { return };
        if let Some(count) = going.outstanding.get_mut(&to) {
            *count = count.saturating_sub(1);
        }
    }

    /// Asks for more where there is room.
    pub(super) fn want_more(&mut self, desk: &Desk) {
        for going in self.running.values_mut().filter(|going| going.wanted.is_some()) {
            if !going.is_full(|to| desk.health(to) == Health::Working)
                && let Some(wanted) = going.wanted.take()
            {
                let _ = wanted.send(());
            }
        }
    }
}

impl Running {
    /// What is to be done about replays by now, without waiting for more.
    pub(super) async fn go_on_with_replays(&mut self) -> Result<(), Error> {
        if self.replays.look_at() <= Instant::now() {
            self.look_for_replays()?;
        }
        match self.replays.pages.try_recv() {
            Ok(page) => self.take_page(page).await,
            Err(_) => Ok(()),
        }
    }

    /// Begins replays that are new, ends those that were ended, and approaches destinations that were enabled anew.
    pub(super) fn look_for_replays(&mut self) -> Result<(), Error> {
        self.replays.looked = Instant::now();
        let sender = &self.of.sender;
        self.desk.revive(|account, destination| sender.limits(account, destination));
        while self.replays.tasks.try_join_next().is_some() {}
        let of = self.of.clone();
        let mine = |id: &AccountId| partition_of(*id, of.partitions) == of.partition;
        let mut wanted: HashMap<ReplayId, (AccountId, Replay)> = HashMap::new();
        for account in of.sender.directory.replaying().into_iter().filter(mine) {
            let Some(config) = of.sender.directory.account(account) else { continue };
            let running = config.replays.iter().filter(|replay| replay.state() == ReplayState::Running);
            wanted.extend(running.filter_map(|replay| Some((replay.id()?, (account, replay.clone())))));
        }
        wanted.extend(self.replays.lost.clone());
        self.replays.running.retain(|id, going| {
            let goes_on = wanted.contains_key(id);
            if !goes_on {
                going.task.abort();
            }
            goes_on
        });
        for going in self.replays.running.values_mut() {
            // The log may not have taken it.
            if let Some((account, end, told)) = going.ended.as_mut().filter(|(.., told)| told.elapsed() >= TELL_AGAIN) {
                *told = Instant::now();
                of.tell(*account, Change::ReplayProgress(end.clone()));
            }
        }
        self.replays.want_more(&self.desk);
        for (id, (account, replay)) in wanted {
            if !self.replays.running.contains_key(&id) {
                let (of, give) = (self.of.clone(), self.replays.give.clone());
                let task = self.replays.tasks.spawn(read(of, account, replay, self.desk.book.reached(id)?, give));
                let going = Going { task, outstanding: HashMap::new(), wanted: None, ended: None };
                self.replays.running.insert(id, going);
            }
        }
        Ok(())
    }

    /// Finds replays that are over for their accounts, and not in this book: it may be another server's of some time ago.
    pub(super) fn find_lost_replays(&mut self) -> Result<(), Error> {
        let of = &self.of;
        let mut known = HashSet::new();
        for account in of.sender.directory.replayed() {
            if partition_of(account, of.partitions) != of.partition {
                continue;
            }
            let Some(config) = of.sender.directory.look(account) else { continue };
            for replay in &config.replays {
                let Some(id) = replay.id() else { continue };
                known.insert(id);
                if replay.state() == ReplayState::Done && !self.desk.book.reached(id)?.is_done {
                    self.replays.lost.insert(id, (account, replay.clone()));
                }
            }
        }
        self.desk.book.keep_reached(|id| known.contains(&id))
    }

    /// Puts a page into the book, durably, then tells how far its replay is.
    pub(super) async fn take_page(&mut self, page: Page) -> Result<(), Error> {
        let now = sendtrail_schemas::time::Millis::wall().0;
        let config = self.of.sender.directory.account(page.account);
        let mut more: HashMap<DestinationId, usize> = HashMap::new();
        for Redelivery { event, destination, attempts } in &page.deliveries {
            // One that takes nothing would only be noted as having failed.
            let to = config.as_ref().and_then(|config| config.destination(*destination)).filter(|to| to.enabled);
            let Some(begun) = to.and_then(|to| waiting(event, Some(to), now)) else { continue };
            let again = Waiting {
                attempts: *attempts,
                // It has an order of its own: after what is new.
                in_order_of: 0,
                replay_id: page.replay_id.bytes().to_vec(),
                since_attempt: self.next_attempt,
                ..begun
            };
            let key = DeliveryKey { seq: event.seq, destination: *destination };
            // What is about to be made anyway does not end as one of the replay.
            if self.desk.replay(page.account, key, again, now)? {
                *more.entry(*destination).or_default() += 1;
            }
        }
        let is_done = page.state == ReplayState::Done;
        let reached = Reached { cursor: page.cursor.clone(), counts: Some(page.counts), is_done };
        self.desk.book.put_reached(page.replay_id, &reached)?;
        if page.state != ReplayState::Running {
            self.replays.lost.remove(&page.replay_id);
        }
        self.checkpoint(true).await?;
        let progress = Replay {
            replay_id: page.replay_id.bytes().to_vec(),
            counts: Some(page.counts),
            cursor: page.cursor,
            state: page.state as i32,
            error: page.error,
            ..Replay::default()
        };
        self.of.tell(page.account, Change::ReplayProgress(progress.clone()));
        if let Some(going) = self.replays.running.get_mut(&page.replay_id) {
            for (to, count) in more {
                *going.outstanding.entry(to).or_default() += count;
            }
            going.wanted = Some(page.wanted);
            going.ended = (page.state != ReplayState::Running).then(|| (page.account, progress, Instant::now()));
        }
        self.replays.want_more(&self.desk);
        Ok(())
    }
}

impl Dispatcher {
    /// Tells the account of something, by way of the log. If it is lost, it is told again or found out again.
    pub(super) fn tell(&self, account: AccountId, change: Change) {
        let mut batch = Batch::new();
        batch.push(&Record {
            version: change.version(),
            account_id: account.bytes().to_vec(),
            body: Some(Body::Command(Command { change: Some(change) })),
            ..Record::default()
        });
        let appended = self.log.append(self.of(Topic::Intake), batch);
        tokio::spawn(async move { drop(appended.await) });
    }
}

/// Reads page after page.
async fn read(of: Arc<Dispatcher>, account: AccountId, replay: Replay, reached: Reached, give: mpsc::Sender<Page>) {
    let (Some(replay_id), Some(query)) = (replay.id(), &replay.query) else { return };
    // What its account was told may be of another server's book.
    let mut counts = reached.counts.unwrap_or_default();
    let mut cursor = reached.cursor;
    let limit = match replay.rate_per_second {
        0 => PAGE,
        rate => PAGE.min(rate as usize),
    };
    loop {
        let begun = Instant::now();
        let read = read_page(&of, account, query, &cursor, limit).await;
        let (page, state, error) = match read {
            Ok(page) if page.next.is_some() => (page, ReplayState::Running, String::new()),
            Ok(page) => (page, ReplayState::Done, String::new()),
            Err(why) => (HistoryPage::default(), ReplayState::Failed, why),
        };
        counts.events += page.events;
        counts.deliveries += page.deliveries.len() as u64;
        let taken = page.deliveries.len();
        cursor = page.next.unwrap_or(cursor);
        let (wanted, more) = oneshot::channel();
        let page = Page {
            account,
            replay_id,
            deliveries: page.deliveries,
            counts,
            cursor: cursor.clone(),
            state,
            error,
            wanted,
        };
        if give.send(page).await.is_err() || more.await.is_err() || state != ReplayState::Running {
            return;
        }
        if replay.rate_per_second > 0 {
            sleep_until(begun + Duration::from_secs_f64(taken as f64 / f64::from(replay.rate_per_second))).await;
        }
    }
}

/// Asks until there is an answer, but not for ever.
async fn read_page(
    of: &Dispatcher,
    account: AccountId,
    query: &ReplayQuery,
    cursor: &str,
    limit: usize,
) -> Result<HistoryPage, String> {
    let mut tries = 0;
    loop {
        match of.history.page(account, query, cursor, limit).await {
            Ok(page) => return Ok(page),
            Err(why) => {
                tries += 1;
                tracing::warn!(%account, %why, "a page of a replay cannot be read");
                if tries >= TRIES {
                    return Err(why);
                }
                sleep(AGAIN_AFTER).await;
            }
        }
    }
}
