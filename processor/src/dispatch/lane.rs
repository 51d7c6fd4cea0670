//! The lane of one destination: what waits in memory, in order, and how much is under way.

use std::collections::{BTreeSet, VecDeque};

use sendtrail_schemas::ids::DestinationId;

use super::book::{Book, DeliveryKey, Place, Waiting};
use crate::Error;

/// Deliveries of one destination kept in memory.
const ROOM: usize = 256;

/// One delivery in memory.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which.
    pub key: DeliveryKey,
    /// What is sent.
    pub waiting: Waiting,
    /// Whether the book has it too.
    pub booked: bool,
}

/// See the module.
#[derive(Default)]
pub struct Lane {
    queue: VecDeque<Job>,
    /// Attempts that have not ended.
    pub under_way: usize,
    /// Whether the book may have due deliveries that are not in memory.
    pub has_backlog: bool,
    /// Whether it is to be looked at.
    pub is_ready: bool,
    /// Places of the backlog that are in memory.
    loaded: BTreeSet<Place>,
}

impl Lane {
    /// Whether a new delivery may join: not before those that wait in the book.
    pub fn has_room(&self) -> bool {
        !self.has_backlog && self.queue.len() < ROOM
    }

    /// Adds a delivery.
    pub fn push(&mut self, job: Job) {
        self.queue.push_back(job);
    }

    /// The next delivery to attempt.
    pub fn take(&mut self) -> Option<Job> {
        self.queue.pop_front()
    }

    /// Loads from the book while there is room.
    pub fn refill(&mut self, book: &Book, destination: DestinationId) -> Result<(), Error> {
        if !self.has_backlog || self.queue.len() > ROOM / 2 {
            return Ok(());
        }
        // A delivery that failed and became due again may stand before those that are loaded, so the search begins at
        // the front and passes over at most as many as are in memory.
        let found = book.backlog(destination, None, self.loaded.len() + ROOM)?;
        let before = self.loaded.len();
        let wanted = found.len();
        for (key, waiting) in found {
            if self.queue.len() >= ROOM {
                return Ok(());
            }
            if self.loaded.insert((waiting.due_at, key.seq)) {
                self.queue.push_back(Job { key, waiting, booked: true });
            }
        }
        self.has_backlog = wanted >= before + ROOM;
        Ok(())
    }

    /// Notes that an attempt has ended.
    pub fn done(&mut self, job: &Job) {
        if job.booked {
            self.loaded.remove(&(job.waiting.due_at, job.key.seq));
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.under_way == 0 && !self.has_backlog
    }
}
