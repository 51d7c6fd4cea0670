//! What is attempted next, and what follows from what came of it: lanes, turns and the book, without clock or network.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sendtrail_schemas::destination::Health;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::{Attempt, DeliveryStatus, FailureClass, Trigger};

use super::book::{Book, DeliveryKey, Marks, Standing, Waiting, Waits};
use super::lane::{Job, Lane, Limits, Next, Takes};
use crate::Error;
use crate::core::webhook::breaker::Patience;
use crate::core::webhook::turns::Turns;

/// What of all destinations is kept in memory, by weight (64 MiB of bodies at most); the rest waits in the book.
pub const IN_MEMORY: isize = if cfg!(test) { 16 } else { 16_384 };
/// Timers looked at together.
const RIPEN_TOGETHER: usize = 1_024;

/// What waits.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Deliveries in memory.
    pub in_memory: usize,
    /// Attempts that have not ended.
    pub under_way: usize,
    /// Destinations that are left alone.
    pub failing: usize,
    /// How long what is due for a destination that works waits already, at most, milliseconds.
    pub overdue: i64,
}

/// See the module. Times are milliseconds since the epoch, by the wall clock.
pub struct Desk {
    /// What waits on the device.
    pub book: Book,
    lanes: HashMap<DestinationId, Lane>,
    turns: Turns<AccountId, DestinationId>,
    /// Lanes in which nothing happens before a time.
    sleeping: BTreeSet<(i64, DestinationId)>,
    /// When the next timer ends; none: there is none.
    next_due: Option<i64>,
    /// Deliveries that only memory has, and the attempt before which none of theirs is.
    unbooked: BTreeMap<DeliveryKey, u64>,
    /// Attempts recorded after the marks, until the events they belong to are folded again.
    known: HashMap<DeliveryKey, Attempt>,
    /// The first of them, while events are folded that they may be of.
    known_from: Option<u64>,
    in_memory: isize,
    patience: Patience,
}

impl Desk {
    /// Begins with what the book has.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn open(book: Book, patience: Patience) -> Result<Self, Error> {
        let mut desk = Self {
            book,
            lanes: HashMap::new(),
            turns: Turns::default(),
            sleeping: BTreeSet::new(),
            next_due: Some(0),
            unbooked: BTreeMap::new(),
            known: HashMap::new(),
            known_from: None,
            in_memory: 0,
            patience,
        };
        for (destination, standing) in desk.book.standings()? {
            let account = AccountId::from_slice(&standing.account_id)?;
            desk.lane(account, destination).standing = standing;
        }
        for ((account, destination, waits), place) in desk.book.destinations()? {
            desk.lane(AccountId::from_slice(&account)?, destination).has_booked(waits, place);
        }
        Ok(desk)
    }

    /// A lane in which something is about to change.
    fn lane(&mut self, account: AccountId, destination: DestinationId) -> &mut Lane {
        self.turns.join(account, destination);
        self.lanes.entry(destination).or_insert_with(|| Lane::new(account))
    }

    /// How a destination is taken to be doing.
    pub fn health(&self, destination: DestinationId) -> Health {
        self.lanes.get(&destination).map_or(Health::Working, |lane| lane.standing.breaker.health())
    }

    /// What is known of the failures of a destination.
    pub fn lane_of(&self, destination: DestinationId) -> Option<&Lane> {
        self.lanes.get(&destination)
    }

    /// What waits, for people to see. Looks at every lane.
    pub fn figures(&self, now: i64) -> Figures {
        let mut figures = Figures { in_memory: self.in_memory.max(0) as usize, ..Figures::default() };
        for lane in self.lanes.values() {
            figures.under_way += lane.under_way;
            match lane.standing.breaker.health() {
                Health::Working => figures.overdue = figures.overdue.max(now - lane.oldest_due().unwrap_or(now)),
                Health::Failing | Health::Disabled => figures.failing += 1,
            }
        }
        figures
    }

    /// A delivery of an event that is read, maybe not for the first time; attempts from `next_attempt` on are not folded.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn take_in(
        &mut self,
        account: AccountId,
        key: DeliveryKey,
        next_attempt: u64,
        begin: impl FnOnce() -> Option<Waiting>,
    ) -> Result<(), Error> {
        if self.book.get(key)?.is_some() {
            return Ok(());
        }
        let known = self.known.remove(&key);
        if known.as_ref().is_some_and(|attempt| attempt.next_due_at.is_none()) {
            return Ok(());
        }
        let Some(waiting) = begin() else { return Ok(()) };
        match known {
            Some(attempt) => self.put_after(account, key, waiting, &attempt),
            None => self.offer(account, key, waiting, next_attempt),
        }
    }

    /// Every event was read: nothing of the past is asked for any more.
    pub fn caught_up(&mut self) {
        self.known = HashMap::new();
        self.known_from = None;
    }

    /// Where somebody would have to go on who has the book and no more.
    pub fn marks(&self, next_event: u64, next_attempt: u64) -> Marks {
        // Who folds these events again must find the attempts at them.
        match self.unbooked.first_key_value() {
            Some((key, attempt)) => Marks { event: key.seq, attempt: *attempt },
            None => Marks { event: next_event, attempt: next_attempt },
        }
    }

    fn offer(
        &mut self,
        account: AccountId,
        key: DeliveryKey,
        waiting: Waiting,
        next_attempt: u64,
    ) -> Result<(), Error> {
        if waiting.in_order_of != 0 {
            let first = self.book.first_in_order(key.destination, waiting.in_order_of)?.is_none();
            let waits = if first { Waits::Backlog } else { Waits::Held };
            if first {
                self.lane(account, key.destination).has_booked(waits, (waiting.due_at, key.seq));
            }
            return self.book.put(key, &Waiting { waits: waits as i32, ..waiting });
        }
        let has_memory = self.in_memory < IN_MEMORY;
        let lane = self.lane(account, key.destination);
        if has_memory && lane.has_room() {
            let job = Job { key, waiting, booked: false, trigger: Trigger::Schedule };
            let weight = job.weight();
            lane.push(job);
            self.in_memory += weight as isize;
            self.unbooked.insert(key, self.known_from.unwrap_or(next_attempt));
            return Ok(());
        }
        lane.has_booked(Waits::Backlog, (waiting.due_at, key.seq));
        self.book.put(key, &Waiting { waits: Waits::Backlog as i32, ..waiting })
    }

    /// A delivery that is to be made once more, unless it is about to be made anyway; whether it is new. One that waits to be
    /// tried again is tried as soon as there is room. Attempts before `waiting.since_attempt` are not its.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn replay(&mut self, account: AccountId, key: DeliveryKey, waiting: Waiting, now: i64) -> Result<bool, Error> {
        if self.unbooked.contains_key(&key) {
            return Ok(false);
        }
        let there = self.book.get(key)?;
        let is_new = there.is_none();
        let (waits, waiting) = match there {
            Some(there) if there.waits() == Waits::Timer => (Waits::Backlog, there),
            Some(_) => return Ok(false),
            None => (Waits::Replay, waiting),
        };
        self.lane(account, key.destination).has_booked(waits, (now, key.seq));
        self.book.put(key, &Waiting { waits: waits as i32, due_at: now, ..waiting })?;
        Ok(is_new)
    }

    /// A delivery that is due later.
    fn put_off(&mut self, key: DeliveryKey, waiting: &Waiting) -> Result<(), Error> {
        self.next_due = Some(self.next_due.map_or(waiting.due_at, |due| due.min(waiting.due_at)));
        self.book.put(key, waiting)
    }

    /// Lets timers that are due join their destinations' backlogs, and lanes whose time has come take turns again.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn ripen(&mut self, now: i64) -> Result<(), Error> {
        while let Some((at, destination)) = self.sleeping.first().copied().filter(|(at, _)| *at <= now) {
            self.sleeping.remove(&(at, destination));
            if let Some(lane) = self.lanes.get(&destination) {
                self.turns.join(lane.account, destination);
            }
        }
        if let Some(due) = self.next_due.filter(|due| *due <= now) {
            let (destinations, next) = self.book.ripen(due, now, RIPEN_TOGETHER)?;
            self.next_due = next;
            for ((account, destination, waits), place) in destinations {
                self.lane(AccountId::from_slice(&account)?, destination).has_booked(waits, place);
            }
        }
        Ok(())
    }

    /// Lets destinations take turns again whose owners enabled them anew, or no longer want them.
    pub fn revive(&mut self, limits: impl Fn(AccountId, DestinationId) -> Limits) {
        for (_, destination) in &self.sleeping {
            let Some(lane) = self.lanes.get(destination) else { continue };
            let limits = limits(lane.account, *destination);
            if lane.standing.breaker.revival != limits.revival || limits.takes != Takes::Events {
                self.turns.join(lane.account, *destination);
            }
        }
    }

    /// Puts into the book what has waited in memory only since before a time, so that nothing keeps the marks back for long.
    /// Looks at every lane.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn spill(&mut self, before: i64) -> Result<(), Error> {
        if self.unbooked.is_empty() {
            return Ok(());
        }
        for lane in self.lanes.values_mut() {
            for key in lane.spill(&self.book, before)? {
                self.unbooked.remove(&key);
            }
        }
        Ok(())
    }

    /// When there is something to do by itself.
    pub fn wake_at(&self) -> Option<i64> {
        let sleeping = self.sleeping.first().map(|(at, _)| *at);
        sleeping.into_iter().chain(self.next_due).min()
    }

    /// Whether somebody waits for a turn.
    pub fn is_waiting(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The attempt whose turn it is.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn next(
        &mut self,
        now: i64,
        mut limits: impl FnMut(AccountId, DestinationId) -> Limits,
    ) -> Result<Option<(DestinationId, Job)>, Error> {
        while let Some((account, destination)) = self.turns.first() {
            let Some(lane) = self.lanes.get_mut(&destination) else {
                self.turns.leaves();
                continue;
            };
            let limits = limits(account, destination);
            if lane.standing.breaker.revive(limits.revival) {
                self.book.put_standing(destination, &lane.standing)?;
            }
            let memory = (IN_MEMORY - self.in_memory).max(0) as usize;
            let (next, change) = lane.next(&self.book, destination, limits, now, memory)?;
            self.in_memory += change;
            match next {
                Next::Attempt(job) => {
                    self.turns.took();
                    return Ok(Some((destination, *job)));
                }
                Next::Later(at) => drop(self.sleeping.insert((at, destination))),
                Next::Nothing if lane.is_idle() => drop(self.lanes.remove(&destination)),
                Next::Nothing if limits.takes == Takes::NeverAgain && lane.is_empty() => {
                    // What was known of its failures is of no use.
                    self.book.put_standing(destination, &Standing::default())?;
                    self.lanes.remove(&destination);
                }
                Next::Nothing => {}
            }
            self.turns.leaves();
        }
        Ok(None)
    }

    /// What came of an attempt, once it is recorded at an offset; whether its destination is taken for another thing. What is over
    /// and nothing waits for is added to `over`, for the book to forget together with others; nobody may ask for more before.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn settle(
        &mut self,
        destination: DestinationId,
        job: Job,
        attempt: &Attempt,
        offset: u64,
        over: &mut Vec<(DeliveryKey, Waiting)>,
    ) -> Result<Option<Health>, Error> {
        let account = AccountId::from_slice(&attempt.account_id)?;
        self.lane(account, destination).done(&job);
        if job.booked && attempt.next_due_at.is_none() && job.waiting.in_order_of == 0 {
            over.push((job.key, job.waiting));
        } else if job.booked {
            self.follow(job.key, attempt, offset)?;
        } else {
            self.unbooked.remove(&job.key);
            if attempt.next_due_at.is_some() {
                self.put_after(account, job.key, job.waiting, attempt)?;
            }
        }
        self.note(account, destination, attempt, offset)
    }

    /// A job that is no longer wanted.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn forget(&mut self, account: AccountId, destination: DestinationId, job: &Job) -> Result<(), Error> {
        self.lane(account, destination).done(job);
        self.unbooked.remove(&job.key);
        if job.booked
            && let Some(place) = self.book.remove(job.key)?
        {
            self.lane(account, destination).has_booked(Waits::Backlog, place);
        }
        Ok(())
    }

    /// An attempt that was recorded before this began, and may not be in the book yet. Events are folded from `next_event` on.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn fold(&mut self, mut attempt: Attempt, offset: u64, next_event: u64) -> Result<(), Error> {
        let account = AccountId::from_slice(&attempt.account_id)?;
        let destination = DestinationId::from_slice(&attempt.destination_id)?;
        let key = DeliveryKey { seq: attempt.event_seq, destination };
        self.follow(key, &attempt, offset)?;
        self.note(account, destination, &attempt, offset)?;
        // Events before are not folded again.
        if key.seq < next_event {
            return Ok(());
        }
        attempt.response = Vec::new();
        self.known.insert(key, attempt);
        self.known_from.get_or_insert(offset);
        Ok(())
    }

    /// Puts a delivery that the book has where an attempt leaves it.
    fn follow(&mut self, key: DeliveryKey, attempt: &Attempt, offset: u64) -> Result<(), Error> {
        let account = AccountId::from_slice(&attempt.account_id)?;
        let Some(waiting) = self.book.get(key)? else { return Ok(()) };
        // It says already what came of a later one, or was asked for after this one.
        if waiting.attempts >= attempt.number && attempt.next_due_at.is_some() || offset < waiting.since_attempt {
            return Ok(());
        }
        if attempt.next_due_at.is_none() {
            if let Some(place) = self.book.remove_row(key, &waiting)? {
                self.lane(account, key.destination).has_booked(Waits::Backlog, place);
            }
            return Ok(());
        }
        self.put_after(account, key, waiting, attempt)
    }

    /// Notes what a delivery waits for after an attempt that was not its last.
    fn put_after(
        &mut self,
        account: AccountId,
        key: DeliveryKey,
        waiting: Waiting,
        attempt: &Attempt,
    ) -> Result<(), Error> {
        // One that was a probe waits behind the others, so that it is not the same one every time.
        let (waits, due_at) = match attempt.trigger() {
            Trigger::Probe => (waiting.when_due(), attempt.finished_at),
            Trigger::Schedule | Trigger::Replay => (Waits::Timer, attempt.next_due_at.unwrap_or_default()),
        };
        let waiting = Waiting {
            attempts: attempt.number,
            spent: attempt.spent,
            first_started_at: attempt.first_started_at,
            due_at,
            waits: waits as i32,
            ..waiting
        };
        if waits == Waits::Timer {
            return self.put_off(key, &waiting);
        }
        self.lane(account, key.destination).has_booked(waits, (due_at, key.seq));
        self.book.put(key, &waiting)
    }

    /// Notes how its destination took an attempt.
    fn note(
        &mut self,
        account: AccountId,
        destination: DestinationId,
        attempt: &Attempt,
        offset: u64,
    ) -> Result<Option<Health>, Error> {
        let (failure, is_probe) = (attempt.failure(), attempt.trigger() == Trigger::Probe);
        // What never went out tells nothing, but for when to probe again.
        if failure == FailureClass::Unavailable || (failure == FailureClass::Secret && !is_probe) {
            return Ok(None);
        }
        let delivered = attempt.status() == DeliveryStatus::Delivered;
        let patience = self.patience;
        let lane = self.lane(account, destination);
        let standing = &mut lane.standing;
        if delivered && standing.breaker.is_closed() || offset < standing.next_attempt {
            return Ok(None);
        }
        standing.next_attempt = offset + 1;
        let change = match failure {
            FailureClass::Secret => None,
            FailureClass::Gone => standing.breaker.end(attempt.finished_at),
            _ => standing.breaker.note(&patience, delivered, attempt.finished_at),
        };
        if is_probe {
            standing.breaker.not_before(attempt.next_due_at.unwrap_or_default());
        }
        let standing = standing.clone();
        self.book.put_standing(destination, &standing)?;
        Ok(change)
    }
}
