//! What is attempted next, and what follows from what came of it: lanes, turns and the book, without clock or network.

use std::collections::{BTreeSet, HashMap};

use sendtrail_schemas::destination::Health;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::{Attempt, DeliveryStatus, FailureClass, Trigger};

use super::book::{Book, DeliveryKey, Waiting, Waits};
use super::lane::{Job, Lane, Limits, Next};
use crate::Error;
use crate::core::webhook::breaker::Patience;
use crate::core::webhook::turns::Turns;

/// Deliveries of all destinations kept in memory; further ones wait in the book.
const IN_MEMORY: isize = 16_384;
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
            in_memory: 0,
            patience,
        };
        for (destination, standing) in desk.book.standings()? {
            let account = AccountId::from_slice(&standing.account_id)?;
            desk.lane(account, destination).standing = standing;
        }
        for (account, destination, waits) in desk.book.destinations()? {
            desk.lane(AccountId::from_slice(&account)?, destination).has_booked(waits);
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

    /// A new delivery; whether it is in memory only.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn offer(&mut self, account: AccountId, key: DeliveryKey, waiting: Waiting) -> Result<bool, Error> {
        if waiting.in_order_of != 0 {
            let first = self.book.first_in_order(key.destination, waiting.in_order_of)?.is_none();
            let waits = if first { Waits::Backlog } else { Waits::Held };
            self.book.put(key, &Waiting { waits: waits as i32, ..waiting })?;
            self.lane(account, key.destination).has_booked(Waits::Backlog);
            return Ok(false);
        }
        let has_memory = self.in_memory < IN_MEMORY;
        let lane = self.lane(account, key.destination);
        if has_memory && lane.has_room() {
            lane.push(Job { key, waiting, booked: false, trigger: Trigger::Schedule });
            self.in_memory += 1;
            return Ok(true);
        }
        lane.has_booked(Waits::Backlog);
        self.book.put(key, &Waiting { waits: Waits::Backlog as i32, ..waiting })?;
        Ok(false)
    }

    /// A delivery that is to be made once more; one that waits anyway is made as soon as there is room.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn replay(&mut self, account: AccountId, key: DeliveryKey, waiting: Waiting, now: i64) -> Result<(), Error> {
        let (waits, waiting) = match self.book.get(key)? {
            Some(there) if there.waits() == Waits::Held => return Ok(()),
            Some(there) => (Waits::Backlog, there),
            None => (Waits::Replay, waiting),
        };
        self.lane(account, key.destination).has_booked(waits);
        self.book.put(key, &Waiting { waits: waits as i32, due_at: now, ..waiting })
    }

    /// A delivery that is due later.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put_off(&mut self, key: DeliveryKey, waiting: &Waiting) -> Result<(), Error> {
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
        if self.next_due.is_some_and(|due| due <= now) {
            let (destinations, next) = self.book.ripen(now, RIPEN_TOGETHER)?;
            self.next_due = next;
            for (account, destination) in destinations {
                self.lane(AccountId::from_slice(&account)?, destination).has_booked(Waits::Backlog);
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
        while let Some((account, destination)) = self.turns.take() {
            let Some(lane) = self.lanes.get_mut(&destination) else { continue };
            let limits = limits(account, destination);
            if lane.standing.breaker.revive(limits.revival) {
                self.book.put_standing(destination, &lane.standing)?;
            }
            let (next, change) = lane.next(&self.book, destination, limits, now)?;
            self.in_memory += change;
            match next {
                Next::Attempt(job) => {
                    self.turns.join(account, destination);
                    return Ok(Some((destination, *job)));
                }
                Next::Later(at) => drop(self.sleeping.insert((at, destination))),
                Next::Nothing if lane.is_idle() => drop(self.lanes.remove(&destination)),
                Next::Nothing => {}
            }
        }
        Ok(None)
    }

    /// What came of an attempt, once it is recorded at an offset; whether its destination is taken for another thing.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn settle(
        &mut self,
        destination: DestinationId,
        job: Job,
        attempt: &Attempt,
        offset: u64,
    ) -> Result<Option<Health>, Error> {
        let account = AccountId::from_slice(&attempt.account_id)?;
        self.lane(account, destination).done(&job);
        self.follow(job.key, Some(&job), attempt)?;
        self.note(account, destination, attempt, offset)
    }

    /// A job that is no longer wanted.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn forget(&mut self, account: AccountId, destination: DestinationId, job: &Job) -> Result<(), Error> {
        self.lane(account, destination).done(job);
        if job.booked && self.book.remove(job.key)? {
            self.lane(account, destination).has_booked(Waits::Backlog);
        }
        Ok(())
    }

    /// An attempt that was recorded before this began, and may not be in the book yet.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn fold(&mut self, destination: DestinationId, attempt: &Attempt, offset: u64) -> Result<(), Error> {
        let account = AccountId::from_slice(&attempt.account_id)?;
        self.follow(DeliveryKey { seq: attempt.event_seq, destination }, None, attempt)?;
        self.note(account, destination, attempt, offset)?;
        Ok(())
    }

    /// Puts a delivery where its last attempt leaves it. Without a job it is what the book has.
    fn follow(&mut self, key: DeliveryKey, job: Option<&Job>, attempt: &Attempt) -> Result<(), Error> {
        let account = AccountId::from_slice(&attempt.account_id)?;
        let Some(due_at) = attempt.next_due_at else {
            if job.is_none_or(|job| job.booked) && self.book.remove(key)? {
                self.lane(account, key.destination).has_booked(Waits::Backlog);
            }
            return Ok(());
        };
        let waiting = match job {
            Some(job) => job.waiting.clone(),
            None => match self.book.get(key)? {
                Some(waiting) => waiting,
                None => return Ok(()),
            },
        };
        // One that was a probe waits behind the others, so that it is not the same one every time.
        let (waits, due_at) = match attempt.trigger() {
            Trigger::Probe => (Waits::Backlog, attempt.finished_at),
            Trigger::Schedule | Trigger::Replay => (Waits::Timer, due_at),
        };
        let waiting = Waiting {
            attempts: attempt.number,
            spent: attempt.spent,
            first_started_at: attempt.first_started_at,
            due_at,
            waits: waits as i32,
            ..waiting
        };
        if waits == Waits::Backlog {
            self.lane(account, key.destination).has_booked(waits);
            return self.book.put(key, &waiting);
        }
        self.put_off(key, &waiting)
    }

    /// Notes how its destination took an attempt.
    fn note(
        &mut self,
        account: AccountId,
        destination: DestinationId,
        attempt: &Attempt,
        offset: u64,
    ) -> Result<Option<Health>, Error> {
        // What never went out tells nothing.
        if matches!(attempt.failure(), FailureClass::Unavailable) {
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
        let change = match attempt.failure() {
            FailureClass::Gone => standing.breaker.end(attempt.finished_at),
            _ => standing.breaker.note(&patience, delivered, attempt.finished_at),
        };
        let standing = standing.clone();
        self.book.put_standing(destination, &standing)?;
        Ok(change)
    }
}
