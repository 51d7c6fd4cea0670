//! When a webhook is tried again, and when no more. Schedules are those of the dialects (S2 "Retries & Replays", S4
//! "Retries").

use sendtrail_schemas::destination::Dialect;
use sendtrail_schemas::ids::hash128;
use sendtrail_schemas::time::{HOUR, MINUTE, SECOND};

/// The longest wait that a receiver may ask for, milliseconds.
const LONGEST_RETRY_AFTER: i64 = HOUR;
/// How much longer than planned a wait may be, so that not all that failed together comes together: a twentieth.
const JITTER: i64 = 20;

/// Waits of S2, each after the attempt before.
const SPLASHIFY: [i64; 3] = [MINUTE, 5 * MINUTE, 15 * MINUTE];
/// Waits of S4, each from the first attempt.
const FROM_THE_FIRST: [i64; 6] = [30 * SECOND, 2 * MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, 24 * HOUR];

/// How often, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    /// Whose schedule.
    pub dialect: Dialect,
    /// Waits in seconds, each after the attempt before, instead of the dialect's.
    pub own: &'a [u32],
    /// One attempt and no more (S2's lifecycle posts).
    pub once: bool,
}

/// How an attempt ended. Times are milliseconds since the epoch, by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How many attempts of the schedule are spent, this one included; 0 if it was none of the schedule.
    pub spent: u32,
    /// When the first attempt began.
    pub first_started_at: i64,
    /// When this one ended.
    pub finished_at: i64,
    /// The receiver's status code; `None` after a time-out or an error of the network.
    pub status_code: Option<u16>,
    /// What the receiver asked for, milliseconds.
    pub retry_after: Option<i64>,
    /// What is different from delivery to delivery.
    pub salt: u128,
}

/// What follows from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It was delivered.
    Delivered,
    /// Try again at this time.
    Retry(i64),
    /// No attempt is left.
    GiveUp,
    /// The receiver is gone for good: give up, and send it nothing more.
    Disable,
}

/// How long a receiver may take, milliseconds.
pub fn timeout_millis(dialect: Dialect) -> i64 {
    match dialect {
        Dialect::Standard => 15 * SECOND,
        Dialect::Sendcomms => 5 * SECOND,
        Dialect::Splashify | Dialect::Securesmtp | Dialect::Nexuspromail | Dialect::Zmailer => 10 * SECOND,
    }
}

/// What follows from an attempt of the schedule.
pub fn next(plan: &Plan<'_>, ended: Ended) -> Next {
    match ended.status_code {
        Some(200..=299) => return Next::Delivered,
        Some(410) if plan.dialect == Dialect::Standard => return Next::Disable,
        // S2: a refusal other than 408 and 429 will not change by trying again.
        Some(code @ 400..=499) if plan.dialect == Dialect::Splashify && !matches!(code, 408 | 429) => {
            return Next::GiveUp;
        }
        _ if plan.once => return Next::GiveUp,
        _ => {}
    }
    let at = ended.spent.saturating_sub(1) as usize;
    let planned = if !plan.own.is_empty() {
        plan.own.get(at).map(|wait| ended.finished_at + lengthened(i64::from(*wait) * SECOND, &ended))
    } else if plan.dialect == Dialect::Splashify {
        SPLASHIFY.get(at).map(|wait| ended.finished_at + lengthened(*wait, &ended))
    } else {
        FROM_THE_FIRST.get(at).map(|wait| {
            let planned = ended.first_started_at + lengthened(*wait, &ended);
            // After a long time of being left alone the plan is over; its steps are kept, so that it is not one burst.
            let step = wait - at.checked_sub(1).and_then(|before| FROM_THE_FIRST.get(before)).unwrap_or(&0);
            if planned > ended.finished_at { planned } else { ended.finished_at + lengthened(step, &ended) }
        })
    };
    let Some(planned) = planned else { return Next::GiveUp };
    Next::Retry(planned.max(not_before(&ended)))
}

/// Not before this may it be tried again, by what the receiver asked for (RFC 9110, 10.2.3), within bounds.
pub fn not_before(ended: &Ended) -> i64 {
    let asked = ended.retry_after.filter(|_| matches!(ended.status_code, Some(429 | 503)));
    asked.map_or(i64::MIN, |wait| ended.finished_at + wait.clamp(0, LONGEST_RETRY_AFTER))
}

/// A wait made somewhat longer, by as much each time that it is asked for the same attempt.
fn lengthened(wait: i64, ended: &Ended) -> i64 {
    let share = hash128(&[&ended.salt.to_le_bytes(), &ended.spent.to_le_bytes()]) as u64;
    wait + ((i128::from(wait / JITTER) * i128::from(share)) >> 64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: fn(Dialect) -> Plan<'static> = |dialect| Plan { dialect, own: &[], once: false };

    fn ended(spent: u32, status_code: Option<u16>) -> Ended {
        Ended { spent, first_started_at: 0, finished_at: 1_000_000, status_code, retry_after: None, salt: 7 }
    }

    /// Tried again, so long after `from`, or a twentieth longer.
    fn again(next: Next, from: i64, wait: i64) {
        let Next::Retry(at) = next else { panic!("{next:?}") };
        assert!((wait..=wait + wait / JITTER).contains(&(at - from)), "{} is not {wait}", at - from);
    }

    #[test]
    fn s2_retries_after_1_5_and_15_minutes() {
        let splashify = |spent, status| next(&OF(Dialect::Splashify), ended(spent, status));
        for (spent, wait) in [(1, MINUTE), (2, 5 * MINUTE), (3, 15 * MINUTE)] {
            for status in [None, Some(500), Some(503), Some(302), Some(408), Some(429), Some(101)] {
                again(splashify(spent, status), 1_000_000, wait);
            }
        }
        assert_eq!(splashify(4, Some(500)), Next::GiveUp);
        for status in [400, 401, 404, 405, 410, 422] {
            assert_eq!(splashify(1, Some(status)), Next::GiveUp, "{status}");
        }
        for status in [200, 204, 299] {
            assert_eq!(splashify(4, Some(status)), Next::Delivered);
        }
    }

    #[test]
    fn the_others_keep_s4s_schedule_from_the_first_attempt_whatever_the_answer() {
        for dialect in Dialect::ALL.into_iter().filter(|dialect| *dialect != Dialect::Splashify) {
            for (at, wait) in FROM_THE_FIRST.into_iter().enumerate() {
                for status in [None, Some(404), Some(302), Some(500)] {
                    let soon = Ended { finished_at: 1_000, ..ended(at as u32 + 1, status) };
                    again(next(&OF(dialect), soon), 0, wait);
                }
            }
            assert_eq!(next(&OF(dialect), ended(7, None)), Next::GiveUp);
            let gone = next(&OF(dialect), ended(1, Some(410)));
            assert_eq!(gone == Next::Disable, dialect == Dialect::Standard, "{gone:?}");
        }
    }

    #[test]
    fn steps_are_kept_when_the_plan_is_over() {
        let late = |spent| next(&OF(Dialect::Standard), Ended { finished_at: 100 * HOUR, ..ended(spent, Some(500)) });
        for (spent, step) in [(1, 30 * SECOND), (2, 90 * SECOND), (3, 8 * MINUTE), (6, 18 * HOUR)] {
            again(late(spent), 100 * HOUR, step);
        }
        assert_eq!(late(7), Next::GiveUp);
    }

    #[test]
    fn retry_after_lengthens_up_to_an_hour_and_never_shortens() {
        let asked = |status, seconds: i64| {
            let ended = Ended { retry_after: Some(seconds * SECOND), ..ended(1, Some(status)) };
            next(&OF(Dialect::Splashify), ended)
        };
        again(asked(429, 5), 1_000_000, MINUTE);
        assert_eq!(asked(503, 90), Next::Retry(1_000_000 + 90 * SECOND));
        assert_eq!(asked(429, 100_000), Next::Retry(1_000_000 + HOUR));
        again(asked(500, 90), 1_000_000, MINUTE);
    }

    #[test]
    fn a_schedule_of_ones_own_counts_after_the_attempt_before() {
        let own = |dialect, spent| next(&Plan { own: &[1, 2], ..OF(dialect) }, ended(spent, None));
        again(own(Dialect::Standard, 1), 1_000_000, SECOND);
        again(own(Dialect::Splashify, 2), 1_000_000, 2 * SECOND);
        assert_eq!(own(Dialect::Splashify, 3), Next::GiveUp);
    }

    #[test]
    fn receivers_have_as_long_as_their_documents_say() {
        let seconds = Dialect::ALL.map(|dialect| (dialect.name(), timeout_millis(dialect) / SECOND));
        let expected = [
            ("splashify", 10),
            ("standard", 15),
            ("securesmtp", 10),
            ("nexuspromail", 10),
            ("sendcomms", 5),
            ("zmailer", 10),
        ];
        assert_eq!(seconds, expected);
    }

    #[test]
    fn lifecycle_posts_have_one_attempt() {
        let once = |status| next(&Plan { once: true, ..OF(Dialect::Splashify) }, ended(1, status));
        assert_eq!((once(Some(500)), once(None), once(Some(200))), (Next::GiveUp, Next::GiveUp, Next::Delivered));
    }

    #[test]
    fn waits_differ_from_delivery_to_delivery_and_not_from_time_to_time() {
        let at = |salt| next(&OF(Dialect::Splashify), Ended { salt, ..ended(3, None) });
        let waits: std::collections::HashSet<_> = (0..100).map(|salt| format!("{:?}", at(salt))).collect();
        assert!(waits.len() > 90);
        assert_eq!(at(5), at(5));
    }
}
