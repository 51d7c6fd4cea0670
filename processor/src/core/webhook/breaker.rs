//! When a destination that fails all the time is left alone, and when it is given up.
//!
//! ```text
//! working ──── failures in a row, for a while ───► failing ──── failing for five days ───► disabled
//!    ▲                                               │ ▲
//!    └────────── a probe is taken ───────────────────┘ └── a probe fails: the next one later
//! ```
//!
//! While it fails, deliveries wait and spend nothing of their schedules; one of them, a probe, is tried now and then.

use sendtrail_schemas::destination::Health;
use sendtrail_schemas::time::{DAY, MINUTE, SECOND};

/// How much is borne of a destination. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Failures in a row before it is taken for failing.
    pub failures: u32,
    /// The shortest time that they take: a short trouble of a busy destination is none.
    pub lasting: i64,
    /// How soon the first probe is made.
    pub first_probe: i64,
    /// The longest between two.
    pub last_probe: i64,
    /// After so long without a success it is disabled.
    pub disabled_after: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            failures: 10,
            lasting: 30 * SECOND,
            first_probe: 30 * SECOND,
            last_probe: 10 * MINUTE,
            disabled_after: 5 * DAY,
        }
    }
}

/// What is known of a destination's failures. Times are milliseconds since the epoch, by the wall clock.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Breaker {
    /// Failures since the last success.
    #[prost(uint32, tag = "1")]
    pub failures: u32,
    /// When the first of them ended; 0: there is none.
    #[prost(int64, tag = "2")]
    pub failing_since: i64,
    /// How it is taken to be doing.
    #[prost(enumeration = "Health", tag = "3")]
    pub health: i32,
    /// While it fails: not before this is it tried.
    #[prost(int64, tag = "4")]
    pub probe_at: i64,
    /// Probes that failed.
    #[prost(uint32, tag = "5")]
    pub probes: u32,
    /// What its owner had enabled; see [`sendtrail_schemas::destination::Destination::revival`].
    #[prost(uint32, tag = "6")]
    pub revival: u32,
}

impl Breaker {
    /// Forgets what was before its owner enabled it anew; whether he did.
    pub fn revive(&mut self, revival: u32) -> bool {
        let anew = self.revival != revival;
        if anew {
            *self = Self { revival, ..Self::default() };
        }
        anew
    }

    /// Notes that the destination said that it is gone; what it is taken for from now on, if that is another thing.
    pub fn end(&mut self, ended_at: i64) -> Option<Health> {
        self.failures = self.failures.saturating_add(1);
        if self.failing_since == 0 {
            self.failing_since = ended_at;
        }
        let before = self.health();
        self.set_health(Health::Disabled);
        (before != Health::Disabled).then_some(Health::Disabled)
    }

    /// Notes how an attempt ended; what the destination is taken for from now on, if that is another thing.
    pub fn note(&mut self, patience: &Patience, succeeded: bool, ended_at: i64) -> Option<Health> {
        let before = self.health();
        if before == Health::Disabled {
            // Its owner enables it, not an answer that was under way.
            return None;
        }
        if succeeded {
            *self = Self { revival: self.revival, ..Self::default() };
            return (before != Health::Working).then_some(Health::Working);
        }
        if self.failures == 0 {
            self.failing_since = ended_at;
        }
        self.failures = self.failures.saturating_add(1);
        let lasts = ended_at - self.failing_since;
        match before {
            Health::Working if self.failures >= patience.failures && lasts >= patience.lasting => {
                self.set_health(Health::Failing);
                self.probe_at = ended_at + patience.first_probe;
                Some(Health::Failing)
            }
            Health::Failing if lasts >= patience.disabled_after => {
                self.set_health(Health::Disabled);
                Some(Health::Disabled)
            }
            Health::Failing => {
                self.probes = self.probes.saturating_add(1);
                let wait = patience.first_probe.saturating_mul(1 << self.probes.min(10)).min(patience.last_probe);
                // Attempts that were under way when it was found to fail end together.
                self.probe_at = self.probe_at.max(ended_at + wait);
                None
            }
            Health::Working | Health::Disabled => None,
        }
    }

    /// Notes that one that fails asked not to be approached before a time.
    pub fn not_before(&mut self, at: i64) {
        if self.health() == Health::Failing {
            self.probe_at = self.probe_at.max(at);
        }
    }

    /// Whether nothing is known of failures.
    pub fn is_closed(&self) -> bool {
        self.failures == 0 && self.health() == Health::Working
    }

    /// How many attempts may be made at once, of so many when it works, while so many are under way; and if none, when
    /// it is worth looking again.
    pub fn room(&self, most: usize, now: i64) -> Result<usize, Option<i64>> {
        match self.health() {
            // What has just failed is approached with care, so that one that hangs holds little of what others need.
            Health::Working => Ok((most >> self.failures.min(10)).max(1)),
            Health::Failing if now >= self.probe_at => Ok(1),
            Health::Failing => Err(Some(self.probe_at)),
            Health::Disabled => Err(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(breaker: &mut Breaker) -> i64 {
        let changes: Vec<_> =
            (0..20).map(|n| (n, breaker.note(&Patience::default(), false, 1_000 + n * 5 * SECOND))).collect();
        let (at, _) = *changes.iter().find(|(_, change)| *change == Some(Health::Failing)).unwrap();
        assert_eq!(changes.iter().filter(|(_, change)| change.is_some()).count(), 1);
        assert_eq!(at, 9, "ten failures, more than half a minute apart");
        1_000 + 19 * 5 * SECOND
    }

    #[test]
    fn a_short_trouble_is_none() {
        let mut breaker = Breaker::default();
        for n in 0..100 {
            assert_eq!(breaker.note(&Patience::default(), false, n * 100), None);
        }
        assert_eq!(breaker.room(8, 0), Ok(1));
        assert_eq!(breaker.note(&Patience::default(), true, 20_000), None);
        assert_eq!((breaker.room(8, 0), breaker.is_closed()), (Ok(8), true));
    }

    #[test]
    fn what_was_under_way_enables_nothing() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.end(1_000), Some(Health::Disabled));
        assert_eq!(breaker.note(&Patience::default(), true, 1_001), None);
        assert_eq!((breaker.health(), breaker.room(8, i64::MAX)), (Health::Disabled, Err(None)));
        assert!(breaker.revive(1));
        assert!(breaker.is_closed());
    }

    #[test]
    fn one_that_fails_is_left_alone_for_as_long_as_it_asks() {
        let mut breaker = Breaker::default();
        breaker.not_before(i64::MAX);
        failing(&mut breaker);
        let at = breaker.probe_at;
        breaker.not_before(at - 1);
        assert_eq!(breaker.room(8, at), Ok(1));
        breaker.not_before(at + 60 * SECOND);
        assert_eq!(breaker.room(8, at), Err(Some(at + 60 * SECOND)));
    }

    #[test]
    fn one_that_fails_is_probed_ever_more_seldom_until_it_answers() {
        let mut breaker = Breaker::default();
        failing(&mut breaker);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let Err(Some(at)) = breaker.room(8, 0) else { panic!("it is probed at once") };
            assert_eq!(breaker.room(8, at), Ok(1));
            breaker.note(&Patience::default(), false, at);
            waits.push((breaker.probe_at - at) / SECOND);
        }
        assert!(waits.is_sorted() && waits.last() == Some(&600), "{waits:?}");
        assert_eq!(breaker.note(&Patience::default(), true, breaker.probe_at), Some(Health::Working));
        assert!(breaker.is_closed());
    }

    #[test]
    fn after_five_days_it_is_disabled_until_its_owner_revives_it() {
        let mut breaker = Breaker::default();
        failing(&mut breaker);
        let since = breaker.failing_since;
        assert_eq!(breaker.note(&Patience::default(), false, since + Patience::default().disabled_after - 1), None);
        assert_eq!(
            breaker.note(&Patience::default(), false, since + Patience::default().disabled_after),
            Some(Health::Disabled)
        );
        assert_eq!(
            (
                breaker.note(&Patience::default(), false, since + Patience::default().disabled_after + 1),
                breaker.room(8, i64::MAX)
            ),
            (None, Err(None))
        );
        breaker.revive(0);
        assert_eq!(breaker.room(8, i64::MAX), Err(None));
        breaker.revive(1);
        assert_eq!(breaker.room(8, 0), Ok(8));
    }
}
