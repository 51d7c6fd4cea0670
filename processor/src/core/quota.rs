//! How many recipients a second and a day. Both decided by the log's time, so that a replay decides alike.

use sendtrail_schemas::time::{DAY, Day, Millis, SECOND};

/// What an account has used, part of its state.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Usage {
    /// The UTC day that the counts speak of.
    #[prost(sint32, tag = "1")]
    pub day: Day,
    /// Recipients accepted on that day.
    #[prost(uint64, tag = "2")]
    pub sent: u64,
    /// Of these, those accepted while in the sandbox.
    #[prost(uint64, tag = "3")]
    pub sandbox_sent: u64,
    /// When the rate's bucket is full again, microseconds since the epoch (GCRA's theoretical arrival time).
    #[prost(int64, tag = "4")]
    pub full_at_micros: i64,
}

impl Usage {
    /// Begins a new day when the log's time has reached one.
    pub fn roll(&mut self, t: Millis) {
        if self.day < t.day() {
            (self.day, self.sent, self.sandbox_sent) = (t.day(), 0, 0);
        }
    }

    /// Whether a call may pass at `t`: the bucket, which holds one second's worth, has a token. If not, after how many
    /// whole seconds it will have.
    ///
    /// # Errors
    /// The whole seconds to wait, at least 1.
    pub fn check_rate(&self, t: Millis, per_second: u32) -> Result<(), u64> {
        let Some(token) = token_micros(per_second) else { return Err((DAY / SECOND) as u64) };
        let tolerance = SECOND * 1_000 - token;
        let wait = self.full_at_micros - tolerance - t.0 * 1_000;
        if wait <= 0 { Ok(()) } else { Err((wait as u64).div_ceil(1_000_000)) }
    }

    /// Takes one token a recipient, into debt if need be.
    pub fn take(&mut self, t: Millis, per_second: u32, recipients: u64) {
        if let Some(token) = token_micros(per_second) {
            let now = t.0 * 1_000;
            self.full_at_micros = self.full_at_micros.max(now).saturating_add(token.saturating_mul(recipients as i64));
        }
    }

    /// Notes at `t` that the rate is another one from now on. A debt stays as many tokens as it is, which take as long as the new
    /// rate says; a bucket that is not in debt stays as full as it is, in parts.
    pub fn change_rate(&mut self, t: Millis, from: u32, to: u32) {
        // At a rate of nothing a debt goes as at one a second.
        let (Some(from), Some(to)) = (token_micros(from.max(1)), token_micros(to.max(1))) else { return };
        let empty = (t.0 + SECOND) * 1_000;
        let debt = self.full_at_micros.saturating_sub(empty);
        if debt > 0 {
            // Rounded up, so that changing it to and fro forgives nothing.
            let (debt, from, to) = (i128::from(debt), i128::from(from), i128::from(to));
            let debt = i64::try_from((debt * to + from - 1) / from).unwrap_or(i64::MAX);
            self.full_at_micros = empty.saturating_add(debt);
        }
    }
}

fn token_micros(per_second: u32) -> Option<i64> {
    (SECOND * 1_000).checked_div(i64::from(per_second)).map(|token| token.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_a_second() {
        let mut usage = Usage::default();
        let t = Millis(1_000_000);
        assert_eq!(usage.check_rate(t, 1), Ok(()));
        usage.take(t, 1, 1);
        assert_eq!(usage.check_rate(t.plus(1), 1), Err(1));
        assert_eq!(usage.check_rate(t.plus(999), 1), Err(1));
        assert_eq!(usage.check_rate(t.plus(1000), 1), Ok(()));
    }

    #[test]
    fn a_second_is_a_burst_and_a_large_call_goes_into_debt() {
        let mut usage = Usage::default();
        let t = Millis(1_000_000);
        for _ in 0..14 {
            assert_eq!(usage.check_rate(t, 14), Ok(()));
            usage.take(t, 14, 1);
        }
        assert_eq!(usage.check_rate(t, 14), Err(1));
        let later = t.plus(2000);
        assert_eq!(usage.check_rate(later, 14), Ok(()));
        usage.take(later, 14, 50);
        // 50 tokens taken from 14: 36 in debt, and one more needed.
        assert_eq!(usage.check_rate(later, 14), Err(3));
        assert_eq!(usage.check_rate(later.plus(2600), 14), Err(1));
        assert_eq!(usage.check_rate(later.plus(2643), 14), Ok(()));
    }

    #[test]
    fn a_debt_is_of_sends_and_not_of_time() {
        let t = Millis(1_000_000);
        let mut usage = Usage::default();
        usage.take(t, 1, 50);
        assert_eq!(usage.check_rate(t, 1), Err(50));
        // 49 in debt, and one more needed.
        usage.change_rate(t, 1, 14);
        assert_eq!(usage.check_rate(t, 14), Err(4));
        assert_eq!(usage.check_rate(t.plus(3571), 14), Err(1));
        assert_eq!(usage.check_rate(t.plus(3572), 14), Ok(()));
        usage.change_rate(t, 14, 0);
        usage.change_rate(t, 0, 1);
        assert_eq!(usage.check_rate(t, 1), Err(50));
        // One that is not in debt is as full as before.
        let mut usage = Usage::default();
        usage.take(t, 10, 5);
        let before = usage;
        usage.change_rate(t, 10, 1);
        assert_eq!(usage, before);
    }

    #[test]
    fn a_rate_of_nothing_lets_nothing_pass() {
        assert!(Usage::default().check_rate(Millis(0), 0).is_err());
    }

    #[test]
    fn a_new_day_begins_at_midnight_utc() {
        let mut usage = Usage { day: 3, sent: 7, sandbox_sent: 7, full_at_micros: 1 };
        usage.roll(Millis(4 * DAY - 1));
        assert_eq!(usage.sent, 7);
        usage.roll(Millis(4 * DAY));
        assert_eq!((usage.day, usage.sent, usage.sandbox_sent, usage.full_at_micros), (4, 0, 0, 1));
    }

    proptest! {
        /// Whatever the rates in between.
        #[test]
        fn a_debt_is_paid_off_at_the_rate_of_the_time(
            debt in 0i64..500,
            rates in prop::collection::vec((0usize..10, 0i64..40), 1..20),
        ) {
            // Rates that divide a second's milliseconds.
            let rate = |at: usize| [1u32, 2, 4, 5, 8, 10, 20, 25, 40, 50][at];
            let mut t = Millis(1_000_000_000);
            let mut usage = Usage::default();
            let (mut now, mut debt) = (rate(rates[0].0), debt);
            // All that the bucket holds, and more.
            usage.take(t, now, u64::from(now) + debt as u64);
            for (at, paid) in rates {
                usage.change_rate(t, now, rate(at));
                now = rate(at);
                let token = 1_000 / i64::from(now);
                let wait = (debt + 1) * token;
                prop_assert!(usage.check_rate(t.plus(wait - 1), now).is_err());
                prop_assert_eq!(usage.check_rate(t.plus(wait), now), Ok(()));
                // Never out of debt: what a bucket has is told in parts, and not in tokens.
                let paid = paid.min(debt);
                (t, debt) = (t.plus(paid * token), debt - paid);
            }
        }

        /// Against a bucket counted in exact fractions.
        #[test]
        fn equals_a_plain_bucket(rate in 1u32..50, calls in prop::collection::vec((0i64..900, 1u64..20), 1..60)) {
            // Rates that divide a second's microseconds, so that both count exactly.
            let rate = [1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50][rate as usize % 11];
            let mut usage = Usage::default();
            let mut t = Millis(1_000_000_000);
            // Tokens in units of one token's microseconds.
            let (token, capacity) = (1_000_000 / i64::from(rate), 1_000_000);
            let (mut level, mut seen) = (capacity, t);
            for (wait, recipients) in calls {
                t = t.plus(wait);
                level = (level + (t.0 - seen.0) * 1_000).min(capacity);
                seen = t;
                let passes = level >= token;
                prop_assert_eq!(usage.check_rate(t, rate).is_ok(), passes);
                if passes {
                    usage.take(t, rate, recipients);
                    level -= token * recipients as i64;
                } else if let Err(seconds) = usage.check_rate(t, rate) {
                    prop_assert!(level + seconds as i64 * 1_000_000 >= token);
                    prop_assert!(level + (seconds as i64 - 1) * 1_000_000 < token);
                }
            }
        }
    }
}
