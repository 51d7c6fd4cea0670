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
/// When one that is to be disabled is looked at again, milliseconds; whoever disables it wakes it sooner.
const SOON: i64 = 1_000;

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

impl Job {
    /// How much memory it takes, in units of 4 KiB and one.
    pub fn weight(&self) -> usize {
        1 + (self.waiting.body.len() >> 12)
    }
}

/// What waits in memory, and what the book has besides.
struct Queue {
    jobs: VecDeque<Job>,
    /// Whether the book may have due deliveries that are not in memory.
    has_more: bool,
    /// None of those stands before this place.
    from: Place,
    /// Places of the book that are in memory.
    loaded: BTreeSet<Place>,
    waits: Waits,
}

impl Queue {
    fn new(waits: Waits) -> Self {
        Self { jobs: VecDeque::new(), has_more: false, from: (0, 0), loaded: BTreeSet::new(), waits }
    }

    /// Loads from the book while there is room, and memory, but one at least; how much more is in memory now.
    fn refill(&mut self, book: &Book, destination: DestinationId, memory: usize) -> Result<usize, Error> {
        if !self.has_more || self.jobs.len() > ROOM / 2 || !self.jobs.is_empty() && memory == 0 {
            return Ok(0);
        }
        let wanted = ROOM - self.jobs.len();
        let found = book.waiting_for(destination, self.waits, self.from, &self.loaded, wanted)?;
        self.has_more = found.len() >= wanted;
        let mut taken = 0;
        let trigger = if self.waits == Waits::Replay { Trigger::Replay } else { Trigger::Schedule };
        for (key, waiting) in found {
            if !self.jobs.is_empty() && taken >= memory {
                self.has_more = true;
                break;
            }
            self.loaded.insert((waiting.due_at, key.seq));
            self.from = (waiting.due_at, key.seq + 1);
            let trigger = if waiting.replay_id.is_empty() { trigger } else { Trigger::Replay };
            let job = Job { key, waiting, booked: true, trigger };
            taken += job.weight();
            self.jobs.push_back(job);
        }
        Ok(taken)
    }

    /// The book has one more, at a place.
    fn has_booked(&mut self, place: Place) {
        self.from = if self.has_more { self.from.min(place) } else { place };
        self.has_more = true;
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
    /// Whether it takes anything at all.
    pub takes: Takes,
}

/// Whether a destination takes anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// It does.
    Events,
    /// Its owner, or somebody for him, has disabled it: what waits for it ends.
    Nothing,
    /// There is none any more.
    NeverAgain,
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

    /// Puts what has waited in memory only, since before a time, into the book, too: whose it was.
    pub fn spill(&mut self, book: &Book, before: i64) -> Result<Vec<DeliveryKey>, Error> {
        let mut spilled = Vec::new();
        for job in self.live.jobs.iter_mut().filter(|job| !job.booked && job.waiting.due_at < before) {
            job.waiting.set_waits(Waits::Backlog);
            book.put(job.key, &job.waiting)?;
            job.booked = true;
            self.live.loaded.insert((job.waiting.due_at, job.key.seq));
            spilled.push(job.key);
        }
        Ok(spilled)
    }

    /// The book has one more for it, at a place.
    pub fn has_booked(&mut self, waits: Waits, place: Place) {
        if waits == Waits::Replay { self.replays.has_booked(place) } else { self.live.has_booked(place) }
    }

    /// The next delivery to attempt, loaded from the book if need be, within so much memory (see [`Job::weight`]), or one if
    /// there is none; also how much more or less is in memory now.
    pub fn next(
        &mut self,
        book: &Book,
        destination: DestinationId,
        limits: Limits,
        now: i64,
        memory: usize,
    ) -> Result<(Next, isize), Error> {
        let room = match self.standing.breaker.room(limits.concurrency, now) {
            Ok(room) => room,
            // One that is to be disabled is left alone until its account knows.
            Err(at) if limits.takes == Takes::Events => return Ok((Next::Later(at.unwrap_or(now + SOON)), 0)),
            // What waits for one that is disabled or gone ends, one after the other; nobody is approached.
            Err(_) => 1,
        };
        if self.under_way >= room {
            return Ok((Next::Nothing, 0));
        }
        let paced = limits.rate_per_second.filter(|_| limits.takes == Takes::Events);
        if paced.is_some() && now * 1_000 < self.next_at {
            return Ok((Next::Later(self.paced_until()), 0));
        }
        let loaded = self.live.refill(book, destination, memory)?;
        let loaded = loaded + self.replays.refill(book, destination, memory.saturating_sub(loaded))?;
        let replay_first = self.since_replay >= REPLAY_EVERY - 1;
        let (one, other) =
            if replay_first { (&mut self.replays, &mut self.live) } else { (&mut self.live, &mut self.replays) };
        let Some(mut job) = one.jobs.pop_front().or_else(|| other.jobs.pop_front()) else {
            // How fast it may be approached is remembered for as long as it matters.
            let next = if now < self.paced_until() { Next::Later(self.paced_until()) } else { Next::Nothing };
            return Ok((next, loaded as isize));
        };
        self.since_replay = if job.trigger == Trigger::Replay { 0 } else { self.since_replay.saturating_add(1) };
        if self.standing.breaker.health() == Health::Failing && limits.takes == Takes::Events {
            job.trigger = Trigger::Probe;
        }
        if let Some(rate) = paced {
            self.next_at = self.next_at.max(now * 1_000) + 1_000_000 / i64::from(rate.max(1));
        }
        self.under_way += 1;
        let freed = job.weight();
        Ok((Next::Attempt(Box::new(job)), loaded as isize - freed as isize))
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

    /// Whether what is in memory has its bound, and what is remembered of the book is of deliveries in memory or under way.
    #[cfg(test)]
    pub fn is_tidy(&self) -> bool {
        [&self.live, &self.replays]
            .iter()
            .all(|queue| queue.jobs.len() <= ROOM && queue.loaded.len() <= queue.jobs.len() + self.under_way)
    }

    /// Since when the first of what is in memory is due.
    pub fn oldest_due(&self) -> Option<i64> {
        self.live.jobs.front().map(|job| job.waiting.due_at)
    }

    /// Whether nothing waits, and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.live.is_idle() && self.replays.is_idle() && self.under_way == 0
    }

    /// Whether there is nothing to be remembered, either.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.standing.breaker.is_closed()
    }
}
