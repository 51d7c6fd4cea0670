//! When a webhook is tried again, and when no more. Schedules are those of the dialects (S2 "Retries & Replays", S4
//! "Retries").

use sendtrail_schemas::account::Dialect;
use sendtrail_schemas::time::{HOUR, MINUTE, SECOND};

/// The longest wait that a receiver may ask for, milliseconds.
const LONGEST_RETRY_AFTER: i64 = HOUR;

/// Waits of S2, each after the attempt before.
const SPLASHIFY: [i64; 3] = [MINUTE, 5 * MINUTE, 15 * MINUTE];
/// Waits of S4, each from the first attempt.
const STANDARD: [i64; 6] = [30 * SECOND, 2 * MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, 24 * HOUR];

/// How an attempt ended. Times are milliseconds since the epoch, by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Counts from 1.
    pub number: u32,
    /// When the first attempt began.
    pub first_started_at: i64,
    /// When this one ended.
    pub finished_at: i64,
    /// The receiver's status code; `None` after a time-out or an error of the network.
    pub status_code: Option<u16>,
    /// What the receiver asked for, milliseconds.
    pub retry_after: Option<i64>,
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
        Dialect::Splashify => 10 * SECOND,
        Dialect::Standard => 15 * SECOND,
    }
}

/// What follows from an attempt. `own` are waits in seconds, each after the attempt before, instead of the dialect's.
pub fn next(dialect: Dialect, own: &[u32], ended: Ended) -> Next {
    match ended.status_code {
        Some(200..=299) => return Next::Delivered,
        Some(410) if dialect == Dialect::Standard => return Next::Disable,
        // S2: a refusal other than 408 and 429 will not change by trying again.
        Some(code @ 400..=499) if dialect == Dialect::Splashify && !matches!(code, 408 | 429) => return Next::GiveUp,
        _ => {}
    }
    let at = ended.number.saturating_sub(1) as usize;
    let planned = if own.is_empty() {
        match dialect {
            Dialect::Splashify => SPLASHIFY.get(at).map(|wait| ended.finished_at + wait),
            Dialect::Standard => STANDARD.get(at).map(|wait| ended.first_started_at + wait),
        }
    } else {
        own.get(at).map(|wait| ended.finished_at + i64::from(*wait) * SECOND)
    };
    let Some(planned) = planned else { return Next::GiveUp };
    let asked = ended.retry_after.filter(|_| matches!(ended.status_code, Some(429 | 503)));
    let asked = asked.map_or(i64::MIN, |wait| ended.finished_at + wait.clamp(0, LONGEST_RETRY_AFTER));
    Next::Retry(planned.max(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(number: u32, status_code: Option<u16>) -> Ended {
        Ended { number, first_started_at: 0, finished_at: 1_000_000, status_code, retry_after: None }
    }

    fn splashify(number: u32, status: Option<u16>) -> Next {
        next(Dialect::Splashify, &[], ended(number, status))
    }

    #[test]
    fn s2_retries_after_1_5_and_15_minutes() {
        for (number, wait) in [(1, MINUTE), (2, 5 * MINUTE), (3, 15 * MINUTE)] {
            for status in [None, Some(500), Some(503), Some(302), Some(408), Some(429), Some(101)] {
                assert_eq!(splashify(number, status), Next::Retry(1_000_000 + wait), "{status:?}");
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
    fn standard_webhooks_keep_s4s_schedule_from_the_first_attempt() {
        for (at, wait) in STANDARD.into_iter().enumerate() {
            assert_eq!(next(Dialect::Standard, &[], ended(at as u32 + 1, Some(404))), Next::Retry(wait));
        }
        assert_eq!(next(Dialect::Standard, &[], ended(7, None)), Next::GiveUp);
        assert_eq!(next(Dialect::Standard, &[], ended(1, Some(410))), Next::Disable);
    }

    #[test]
    fn retry_after_lengthens_up_to_an_hour_and_never_shortens() {
        let asked = |status, seconds: i64| {
            next(Dialect::Splashify, &[], Ended { retry_after: Some(seconds * SECOND), ..ended(1, Some(status)) })
        };
        assert_eq!(asked(429, 5), Next::Retry(1_000_000 + MINUTE));
        assert_eq!(asked(503, 90), Next::Retry(1_000_000 + 90 * SECOND));
        assert_eq!(asked(429, 100_000), Next::Retry(1_000_000 + HOUR));
        assert_eq!(asked(500, 90), Next::Retry(1_000_000 + MINUTE));
    }

    #[test]
    fn a_schedule_of_ones_own_counts_after_the_attempt_before() {
        let own = [1, 2];
        assert_eq!(next(Dialect::Standard, &own, ended(1, None)), Next::Retry(1_001_000));
        assert_eq!(next(Dialect::Splashify, &own, ended(2, None)), Next::Retry(1_002_000));
        assert_eq!(next(Dialect::Splashify, &own, ended(3, None)), Next::GiveUp);
    }
}
