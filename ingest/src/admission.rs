//! What is let in: events are held back first, sends and commands keep headroom.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use sendtrail_eventlog::Status;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};

use crate::Ingest;

/// What asks to be let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Events: plenty, and whoever streams them can wait.
    Events,
    /// Sends and commands: few, and somebody waits.
    Command,
    /// Events read from a source, which wait there: held back before those that partners stream.
    Source,
}

/// The share of the disk budget, and of the queue, that events leave to sends and commands: a sixteenth.
const RESERVED: u64 = 16;
const QUEUE_FOR_EVENTS: u64 = 32 << 20;

impl Ingest {
    /// Whether a request may go on to the log of this partition; asked before anything is taken.
    pub fn admit(&self, kind: Kind, partition: u32) -> Result<(), Problem> {
        let parts = self.parts();
        let Some(pulse) = parts.pulses.get(partition as usize) else { return Err(Problem::internal()) };
        let standing = Standing {
            closing: self.inner.closing.load(Ordering::Acquire),
            log: parts.log.status(),
            halted: pulse.halted().is_some(),
            lag_millis: pulse.lag_millis(),
        };
        standing.admit(kind, parts.limits.max_lag.as_millis() as i64)
    }
}

/// What admission goes by.
struct Standing {
    /// The server stops.
    closing: bool,
    log: Status,
    /// Nothing more is applied in the partition.
    halted: bool,
    /// How long the oldest record has waited to be applied.
    lag_millis: i64,
}

impl Standing {
    fn admit(&self, kind: Kind, max_lag_millis: i64) -> Result<(), Problem> {
        if self.closing {
            return Err(Problem::unavailable("the server is shutting down"));
        }
        if let Some(why) = &self.log.failed {
            if kind != Kind::Source {
                tracing::error!(%why, "refused: the log is out of service");
            }
            return Err(Problem::new(Code::DbUnavailable, "the event log is out of service").retry_after(30));
        }
        if self.halted {
            let message = "the account's partition is halted; /health tells why";
            return Err(Problem::new(Code::DbUnavailable, message).retry_after(30));
        }
        // A source leaves as much again to partners.
        let share = match kind {
            Kind::Command => 0,
            Kind::Events => 1,
            Kind::Source => 2,
        };
        let reserved = share * (self.log.disk_budget / RESERVED);
        if self.log.disk_bytes >= self.log.disk_budget - reserved {
            return Err(Problem::unavailable("the event log has used up its disk budget").retry_after(10));
        }
        if kind != Kind::Command {
            if self.log.queued_bytes >= QUEUE_FOR_EVENTS / share {
                return Err(Problem::unavailable("too much is being written at the moment"));
            }
            if self.lag_millis > max_lag_millis / share as i64 {
                return Err(Problem::unavailable(format!("processing is {} ms behind", self.lag_millis)));
            }
        }
        Ok(())
    }
}

/// Calls a second of each account, before anything is done for them.
#[derive(Default)]
pub struct Guard {
    limiters: Mutex<HashMap<AccountId, (u32, Arc<DefaultDirectRateLimiter>)>>,
    clock: DefaultClock,
}

/// Calls a second that pass whatever the account's rate.
const LOOSE: u32 = 50;
/// Accounts remembered; beyond, all begin anew.
const REMEMBERED: usize = 100_000;

impl Guard {
    /// Whether one more send of an account may go to the log: four times its rate a second, at least 50. A flood of refused
    /// ones does not fill it; the exact limit is decided in log order.
    pub fn check_send(&self, account: &AccountConfig) -> Result<(), Problem> {
        self.check(account.id(), account.peak_rate().saturating_mul(4).max(LOOSE))
    }

    /// Whether one more call of an account may go on.
    pub fn check(&self, account: AccountId, per_second: u32) -> Result<(), Problem> {
        let limiter = {
            let mut limiters = self.limiters.lock();
            if limiters.len() >= REMEMBERED {
                limiters.clear();
            }
            let fresh = || {
                let quota = Quota::per_second(NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN));
                (per_second, Arc::new(RateLimiter::direct(quota)))
            };
            let entry = limiters.entry(account).or_insert_with(fresh);
            if entry.0 != per_second {
                *entry = fresh();
            }
            entry.1.clone()
        };
        limiter.check().map_err(|refused| {
            let wait = refused.wait_time_from(self.clock.now()).as_secs() + 1;
            Problem::new(Code::RateLimited, format!("more than {per_second} calls a second")).retry_after(wait)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Standing {
        let log = Status { queued_bytes: 0, disk_bytes: 0, disk_budget: 1_600, failed: None };
        Standing { closing: false, log, halted: false, lag_millis: 0 }
    }

    /// What events and commands are told.
    fn told(standing: &Standing) -> [Option<(Code, u64)>; 2] {
        [Kind::Events, Kind::Command].map(|kind| {
            let refused = standing.admit(kind, 250).err();
            refused.map(|problem| (problem.code, problem.retry_after.expect("a Retry-After")))
        })
    }

    #[test]
    fn events_are_held_back_first() {
        let (later, soon) = (Some((Code::Unavailable, 10)), Some((Code::Unavailable, 1)));
        let with = |change: fn(&mut Standing)| {
            let mut standing = well();
            change(&mut standing);
            told(&standing)
        };
        assert_eq!(told(&well()), [None, None]);
        assert_eq!(with(|is| is.lag_millis = 250), [None, None]);
        assert_eq!(with(|is| is.lag_millis = 251), [soon, None]);
        assert_eq!(with(|is| is.log.queued_bytes = QUEUE_FOR_EVENTS - 1), [None, None]);
        assert_eq!(with(|is| is.log.queued_bytes = QUEUE_FOR_EVENTS), [soon, None]);
        assert_eq!(with(|is| is.log.disk_bytes = 1_499), [None, None]);
        assert_eq!(with(|is| is.log.disk_bytes = 1_500), [later, None]);
        assert_eq!(with(|is| is.log.disk_bytes = 1_600), [later, later]);
        assert_eq!(with(|is| is.closing = true), [soon, soon]);
        let out = Some((Code::DbUnavailable, 30));
        assert_eq!(with(|is| is.halted = true), [out, out]);
        assert_eq!(with(|is| is.log.failed = Some("fsync".into())), [out, out]);
    }

    #[test]
    fn sources_are_held_back_before_partners() {
        let lag = |lag_millis| Standing { lag_millis, ..well() }.admit(Kind::Source, 250).is_ok();
        assert_eq!([lag(125), lag(126)], [true, false]);
        let queue = |queued_bytes| {
            let log = Status { queued_bytes, ..well().log };
            Standing { log, ..well() }.admit(Kind::Source, 250).is_ok()
        };
        assert_eq!([queue(QUEUE_FOR_EVENTS / 2 - 1), queue(QUEUE_FOR_EVENTS / 2)], [true, false]);
        let disk = |disk_bytes| {
            Standing { log: Status { disk_bytes, ..well().log }, ..well() }.admit(Kind::Source, 250).is_ok()
        };
        assert_eq!([disk(1_399), disk(1_400)], [true, false]);
    }

    #[test]
    fn a_flood_is_stopped_and_accounts_are_apart() {
        let guard = Guard::default();
        let account = |id: u128| AccountConfig {
            account_id: uuid::Uuid::from_u128(id).as_bytes().to_vec(),
            ..AccountConfig::default()
        };
        let passed = (0..500).filter(|_| guard.check_send(&account(1)).is_ok()).count();
        assert!((50..200).contains(&passed), "{passed}");
        assert_eq!(guard.check_send(&account(1)).unwrap_err().code, Code::RateLimited);
        assert!(guard.check_send(&account(2)).is_ok());
    }
}
