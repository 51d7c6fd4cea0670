//! The lane of one destination: what waits in memory, in order, how much is under way, and whether it is approached at all.

use std::collections::{BTreeSet, VecDeque};

use sendtrail_schemas::destination::Health;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::Trigger;

use super::book::{Book, DeliveryKey, Place, Standing, Waiting, Waits};
use crate::Error;

/// Deliveries of one destination kept in memory.
const ROOM: usize = if cfg!(test) { 4 } else { 256 };
/// Of so many attempts one is a replay, while there is anything new.
const REPLAY_EVERY: u32 = 4;

/// One delivery in memory.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which.
    pub key: DeliveryKey,
    /// What is sent.
    pub waiting: Waiting,
    /// Whether the book has it too.
    pub booked: bool,
    /// What makes the attempt.
    pub trigger: Trigger,
}

/// What waits in memory, and what the book has besides.
struct Queue {
    jobs: VecDeque<Job>,
    /// Whether the book may have due deliveries that are not in memory.
    has_more: bool,
    /// Places of the book that are in memory.
    loaded: BTreeSet<Place>,
    waits: Waits,
}

impl Queue {
    fn new(waits: Waits) -> Self {
        Self { jobs: VecDeque::new(), has_more: false, loaded: BTreeSet::new(), waits }
    }

    /// Loads from the book while there is room; how many more are in memory now.
    fn refill(&mut self, book: &Book, destination: DestinationId) -> Result<usize, Error> {
        if !self.has_more || self.jobs.len() > ROOM / 2 {
            return Ok(0);
        }
        // A delivery that failed and became due again may stand before those that are loaded, so the search begins at
        // the front and passes over at most as many as are in memory.
        let found = book.waiting_for(destination, self.waits, self.loaded.len() + ROOM)?;
        let (before, wanted, had) = (self.loaded.len(), found.len(), self.jobs.len());
        let trigger = if self.waits == Waits::Replay { Trigger::Replay } else { Trigger::Schedule };
        for (key, waiting) in found {
            if self.jobs.len() >= ROOM {
                return Ok(self.jobs.len() - had);
            }
            if self.loaded.insert((waiting.due_at, key.seq)) {
                let trigger = if waiting.replay_id.is_empty() { trigger } else { Trigger::Replay };
                self.jobs.push_back(Job { key, waiting, booked: true, trigger });
            }
        }
        self.has_more = wanted >= before + ROOM;
        Ok(self.jobs.len() - had)
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && !self.has_more
    }
}

/// See the module.
pub struct Lane {
    /// Whose destination.
    pub account: AccountId,
    /// How it is doing.
    pub standing: Standing,
    /// Attempts that have not ended.
    pub under_way: usize,
    live: Queue,
    replays: Queue,
    /// Attempts since the last replay.
    since_replay: u32,
    /// Not before this is the next attempt made, microseconds since the epoch: where its owner bounds the rate.
    next_at: i64,
}

/// What a lane does next.
pub enum Next {
    /// An attempt.
    Attempt(Box<Job>),
    /// Nothing before this time, milliseconds since the epoch.
    Later(i64),
    /// Nothing, unless something changes.
    Nothing,
}

/// What a destination's owner, or the settings, allow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Attempts at once.
    pub concurrency: usize,
    /// Attempts a second.
    pub rate_per_second: Option<u32>,
    /// See [`sendtrail_schemas::destination::Destination::revival`].
    pub revival: u32,
}

impl Lane {
    /// A lane without anything in it.
    pub fn new(account: AccountId) -> Self {
        let standing = Standing { account_id: account.bytes().to_vec(), ..Standing::default() };
        Self {
            account,
            standing,
            under_way: 0,
            live: Queue::new(Waits::Backlog),
            replays: Queue::new(Waits::Replay),
            since_replay: 0,
            next_at: 0,
        }
    }

    /// Whether a new delivery may join: not before those that wait in the book.
    pub fn has_room(&self) -> bool {
        !self.live.has_more && self.live.jobs.len() < ROOM
    }

    /// Adds a delivery.
    pub fn push(&mut self, job: Job) {
        self.live.jobs.push_back(job);
    }

    /// The book has something for it.
    pub fn has_booked(&mut self, waits: Waits) {
        if waits == Waits::Replay { self.replays.has_more = true } else { self.live.has_more = true }
    }

    /// The next delivery to attempt, loaded from the book if need be; also how many more or fewer are in memory now.
    pub fn next(
        &mut self,
        book: &Book,
        destination: DestinationId,
        limits: Limits,
        now: i64,
    ) -> Result<(Next, isize), Error> {
        let room = match self.standing.breaker.room(limits.concurrency, now) {
            // What waits for one that is disabled ends, too.
            Err(None) => limits.concurrency,
            Err(Some(at)) => return Ok((Next::Later(at), 0)),
            Ok(room) => room,
        };
        if self.under_way >= room {
            return Ok((Next::Nothing, 0));
        }
        if limits.rate_per_second.is_some() && now * 1_000 < self.next_at {
            return Ok((Next::Later(self.paced_until()), 0));
        }
        let loaded = self.live.refill(book, destination)? + self.replays.refill(book, destination)?;
        let replay_first = self.since_replay >= REPLAY_EVERY - 1;
        let (one, other) =
            if replay_first { (&mut self.replays, &mut self.live) } else { (&mut self.live, &mut self.replays) };
        let Some(mut job) = one.jobs.pop_front().or_else(|| other.jobs.pop_front()) else {
            return Ok((Next::Nothing, loaded as isize));
        };
        self.since_replay = if job.trigger == Trigger::Replay { 0 } else { self.since_replay.saturating_add(1) };
        if self.standing.breaker.health() == Health::Failing {
            job.trigger = Trigger::Probe;
        }
        if let Some(rate) = limits.rate_per_second {
            self.next_at = self.next_at.max(now * 1_000) + 1_000_000 / i64::from(rate.max(1));
        }
        self.under_way += 1;
        Ok((Next::Attempt(Box::new(job)), loaded as isize - 1))
    }

    /// Not before this is the next attempt made, milliseconds since the epoch.
    fn paced_until(&self) -> i64 {
        self.next_at.div_euclid(1_000) + i64::from(self.next_at.rem_euclid(1_000) > 0)
    }

    /// Notes that an attempt has ended.
    pub fn done(&mut self, job: &Job) {
        self.under_way -= 1;
        if job.booked {
            let queue = if job.waiting.waits() == Waits::Replay { &mut self.replays } else { &mut self.live };
            queue.loaded.remove(&(job.waiting.due_at, job.key.seq));
        }
    }

    /// Whether what is remembered of the book is of deliveries in memory or under way.
    #[cfg(test)]
    pub fn is_tidy(&self) -> bool {
        [&self.live, &self.replays].iter().all(|queue| queue.loaded.len() <= queue.jobs.len() + self.under_way)
    }

    /// Since when the first of what is in memory is due.
    pub fn oldest_due(&self) -> Option<i64> {
        self.live.jobs.front().map(|job| job.waiting.due_at)
    }

    /// Whether nothing waits, nothing is under way, and nothing is to be remembered.
    pub fn is_idle(&self) -> bool {
        self.live.is_idle() && self.replays.is_idle() && self.under_way == 0 && self.standing.breaker.is_closed()
    }
}
