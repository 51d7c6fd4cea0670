//! What is let in: events are held back first, sends and commands keep headroom.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
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
}

/// The share of the disk budget, and of the queue, that events leave to sends and commands: a sixteenth.
const RESERVED: u64 = 16;
const QUEUE_FOR_EVENTS: u64 = 32 << 20;

impl Ingest {
    /// Whether a request may go on to the log of this partition; asked before anything is taken.
    pub fn admit(&self, kind: Kind, partition: u32) -> Result<(), Problem> {
        let parts = self.parts();
        if self.inner.closing.load(Ordering::Acquire) {
            return Err(Problem::unavailable("the server is shutting down"));
        }
        let status = parts.log.status();
        if let Some(why) = status.failed {
            tracing::error!(%why, "refused: the log is out of service");
            return Err(Problem::new(Code::DbUnavailable, "the event log is out of service").retry_after(30));
        }
        let Some(pulse) = parts.pulses.get(partition as usize) else { return Err(Problem::internal()) };
        if pulse.halted().is_some() {
            let message = "the account's partition is halted: its processor must be upgraded first";
            return Err(Problem::new(Code::DbUnavailable, message).retry_after(30));
        }
        let budget = match kind {
            Kind::Events => status.disk_budget - status.disk_budget / RESERVED,
            Kind::Command => status.disk_budget,
        };
        if status.disk_bytes >= budget {
            return Err(Problem::unavailable("the event log has used up its disk budget").retry_after(10));
        }
        if kind == Kind::Events {
            if status.queued_bytes >= QUEUE_FOR_EVENTS {
                return Err(Problem::unavailable("too much is being written at the moment"));
            }
            let lag = pulse.lag_millis();
            if lag > parts.limits.max_lag.as_millis() as i64 {
                return Err(Problem::unavailable(format!("processing is {lag} ms behind")));
            }
        }
        Ok(())
    }
}

/// A loose limit on sends before they reach the log, so that a flood of refused ones does not fill it. The exact limit
/// is decided in log order.
#[derive(Default)]
pub struct SendGuard {
    limiters: Mutex<HashMap<AccountId, (u32, Arc<DefaultDirectRateLimiter>)>>,
    clock: DefaultClock,
}

/// Calls a second that pass whatever the account's rate.
const LOOSE: u32 = 50;
/// Accounts remembered; beyond, all begin anew.
const REMEMBERED: usize = 100_000;

impl SendGuard {
    /// Whether one more call of an account may go on: four times its rate a second, at least 50.
    pub fn check(&self, account: &AccountConfig) -> Result<(), Problem> {
        let per_second = account.peak_rate().saturating_mul(4).max(LOOSE);
        let limiter = {
            let mut limiters = self.limiters.lock();
            if limiters.len() >= REMEMBERED {
                limiters.clear();
            }
            let fresh = || {
                let quota = Quota::per_second(NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN));
                (per_second, Arc::new(RateLimiter::direct(quota)))
            };
            let entry = limiters.entry(account.id()).or_insert_with(fresh);
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

    #[test]
    fn a_flood_is_stopped_and_accounts_are_apart() {
        let guard = SendGuard::default();
        let account = |id: u128| AccountConfig {
            account_id: uuid::Uuid::from_u128(id).as_bytes().to_vec(),
            ..AccountConfig::default()
        };
        let passed = (0..500).filter(|_| guard.check(&account(1)).is_ok()).count();
        assert!((50..200).contains(&passed), "{passed}");
        assert_eq!(guard.check(&account(1)).unwrap_err().code, Code::RateLimited);
        assert!(guard.check(&account(2)).is_ok());
    }
}
