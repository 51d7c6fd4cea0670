//! The plain model: it keeps all that ever happened, and looks at it anew each time.

use sendtrail_schemas::destination::Health;

use super::PATIENCE;
use super::history::Receiver;
use crate::dispatch::lane::{Limits, Takes};

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum State {
    Waits { due: i64 },
    UnderWay,
    Done,
}

/// What the model knows of a delivery.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub receiver: usize,
    /// What it comes in order of; 0: nothing.
    pub group: u64,
    pub state: State,
    pub attempts: u32,
    pub is_replay: bool,
    pub cancelled: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Came {
    Delivered,
    Failed,
    Gone,
}

/// What the model knows of a receiver.
pub struct Known {
    pub of: Receiver,
    pub enabled: bool,
    pub revival: u32,
    /// How attempts ended since it was enabled.
    pub history: Vec<(i64, Came)>,
    /// When the last attempt began.
    pub last_start: Option<i64>,
    /// Attempts since the last replay while one could have been made.
    pub without_replay: u32,
}

impl Known {
    /// How it is doing, the failures since the last success, and when it is probed: by looking at all that ever happened.
    pub fn health(&self) -> (Health, usize, i64) {
        let successes = self.history.iter().rposition(|(_, came)| *came == Came::Delivered);
        let failures = &self.history[successes.map_or(0, |at| at + 1)..];
        let Some((since, _)) = failures.first() else { return (Health::Working, 0, 0) };
        let failing = failures
            .iter()
            .enumerate()
            .position(|(n, (at, _))| n + 1 >= PATIENCE.failures as usize && at - since >= PATIENCE.lasting);
        let gone = failures.iter().position(|(_, came)| *came == Came::Gone);
        let Some(failing) = failing.filter(|failing| gone.is_none_or(|gone| gone > *failing)) else {
            return (if gone.is_some() { Health::Disabled } else { Health::Working }, failures.len(), 0);
        };
        let mut probe_at = failures[failing].0 + PATIENCE.first_probe;
        for (probe, (at, _)) in failures[failing + 1..].iter().enumerate() {
            if gone.is_some() || at - since >= PATIENCE.disabled_after {
                return (Health::Disabled, failures.len(), 0);
            }
            let wait = PATIENCE.first_probe * 2i64.pow(probe as u32 + 1);
            probe_at = probe_at.max(at + wait.min(PATIENCE.last_probe));
        }
        (Health::Failing, failures.len(), probe_at)
    }

    pub fn limits(&self) -> Limits {
        let (concurrency, rate_per_second) = (self.of.concurrency, self.of.rate);
        let takes = if self.enabled { Takes::Events } else { Takes::Nothing };
        Limits { concurrency, rate_per_second, revival: self.revival, takes }
    }

    /// How many attempts may be under way by now.
    pub fn room(&self, now: i64) -> usize {
        match self.health() {
            (Health::Working, failures, _) => (self.of.concurrency >> failures.min(10)).max(1),
            (Health::Failing, _, probe_at) => usize::from(now >= probe_at || !self.enabled),
            (Health::Disabled, ..) => 1,
        }
    }

    /// Whether its owner's rate allows an attempt by now.
    pub fn is_paced(&self, now: i64) -> bool {
        let Some((rate, last)) = self.of.rate.zip(self.last_start).filter(|_| self.enabled) else { return true };
        now * 1_000 >= last * 1_000 + 1_000_000 / i64::from(rate)
    }
}
