//! What time it is: the wall's, or the log's own where that is simulated.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sendtrail_schemas::time::Millis;

/// Time that never runs back. When the wall clock was set back, it goes on at nine tenths of its pace until the clock has caught
/// up, so that nothing that waits for a time waits for a day.
#[derive(Debug)]
pub(crate) struct Onward {
    from: i64,
    since: Instant,
}

impl Onward {
    /// From a time on, milliseconds since the epoch.
    pub(crate) fn from(time: i64) -> Self {
        Self { from: time, since: Instant::now() }
    }

    /// What time it is, when the wall clock says this.
    pub(crate) fn at(&self, wall: i64) -> i64 {
        wall.max(self.from + self.since.elapsed().as_millis() as i64 / 10 * 9)
    }

    /// Notes that a time was reached.
    pub(crate) fn reached(&mut self, time: i64) {
        if time > self.at(i64::MIN) {
            *self = Self::from(time);
        }
    }
}

/// The time that readers and delivery go by. It is never behind the log's: what was stamped by a clock that is ahead, or was,
/// is not in the future. On a log created as simulated it is the latest time that any record carried and nothing else, so that
/// weeks pass in seconds with the very same code.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Wall(Arc<Mutex<Onward>>),
    Simulated(Arc<AtomicI64>),
}

impl Default for Clock {
    fn default() -> Self {
        Self::wall()
    }
}

impl Clock {
    /// The wall clock.
    pub fn wall() -> Self {
        Self(Kind::Wall(Arc::new(Mutex::new(Onward::from(0)))))
    }

    /// A clock that stands at `start` until a record moves it.
    pub fn simulated(start: Millis) -> Self {
        Self(Kind::Simulated(Arc::new(AtomicI64::new(start.0))))
    }

    /// Now.
    pub fn now(&self) -> Millis {
        match &self.0 {
            Kind::Wall(onward) => Millis(onward.lock().at(Millis::wall().0)),
            Kind::Simulated(time) => Millis(time.load(Ordering::Acquire)),
        }
    }

    /// Notes that a record's time was reached.
    pub fn reached(&self, time: Millis) {
        match &self.0 {
            Kind::Wall(onward) => onward.lock().reached(time.0),
            Kind::Simulated(latest) => {
                latest.fetch_max(time.0, Ordering::AcqRel);
            }
        }
    }

    /// Whether time is the log's own.
    pub fn is_simulated(&self) -> bool {
        matches!(self.0, Kind::Simulated(_))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_is_set_back_goes_on_until_it_has_caught_up() {
        let mut onward = Onward::from(1_000_000);
        assert_eq!(onward.at(1_000_005), 1_000_005);
        onward.reached(1_000_005);
        let first = onward.at(5);
        assert!(first >= 1_000_005);
        std::thread::sleep(Duration::from_millis(60));
        let second = onward.at(65);
        assert!(second >= first + 45, "{first}, then {second}");
        // What was reached before changes nothing, and a clock that is further counts again.
        onward.reached(1_000_000);
        assert!(onward.at(0) >= second);
        assert_eq!(onward.at(1_000_500), 1_000_500);
    }

    #[test]
    fn nothing_of_the_log_is_in_the_future() {
        let clock = Clock::wall();
        let tomorrow = Millis::wall().plus(sendtrail_schemas::time::DAY);
        clock.clone().reached(tomorrow);
        assert!(clock.now() >= tomorrow);
        let simulated = Clock::simulated(Millis(5));
        simulated.reached(Millis(9));
        simulated.reached(Millis(7));
        assert_eq!(simulated.now(), Millis(9));
    }
}
