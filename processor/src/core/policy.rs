//! When an account is warned, paused and well again. Integers only: a rate equal to its limit does not breach it.

use sendtrail_schemas::account::{Policy, Status};
use sendtrail_schemas::reputation::Counts;

/// Why a status changes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Too many permanent bounces.
    BounceRate,
    /// Too many complaints.
    ComplaintRate,
    /// Below the warning limits again.
    Recovered,
}

impl Rule {
    /// As events tell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BounceRate => "bounce_rate",
            Self::ComplaintRate => "complaint_rate",
            Self::Recovered => "recovered",
        }
    }
}

/// A change of status, with what it was judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The status from now on.
    pub to: Status,
    /// Why.
    pub rule: Rule,
    /// Bounces or complaints.
    pub numerator: u64,
    /// Sends.
    pub denominator: u64,
    /// The limit, parts per million.
    pub limit_ppm: u32,
}

/// Judges what a window holds; `None` when the status stays. PAUSED is left by a resume only.
pub fn judge(policy: &Policy, counts: Counts, status: Status) -> Option<Verdict> {
    if status == Status::Paused {
        return None;
    }
    let verdict = worst(policy, counts);
    let to = verdict.map_or(Status::Healthy, |verdict| verdict.to);
    if to == status {
        return None;
    }
    verdict.or(Some(Verdict {
        to: Status::Healthy,
        rule: Rule::Recovered,
        numerator: counts.bounced,
        denominator: counts.sent,
        limit_ppm: policy.warn_bounce_ppm.unwrap_or_default(),
    }))
}

fn worst(policy: &Policy, counts: Counts) -> Option<Verdict> {
    if counts.sent < policy.minimum_sends {
        return None;
    }
    let complaints_count = counts.complained >= policy.minimum_complaints;
    let bounces = |to, limit: Option<u32>| breach(to, Rule::BounceRate, counts.bounced, counts.sent, limit);
    let complaints = |to, limit: Option<u32>| {
        let limit = limit.filter(|_| complaints_count);
        breach(to, Rule::ComplaintRate, counts.complained, counts.sent, limit)
    };
    bounces(Status::Paused, Some(policy.pause_bounce_ppm))
        .or_else(|| complaints(Status::Paused, Some(policy.pause_complaint_ppm)))
        .or_else(|| bounces(Status::AtRisk, policy.warn_bounce_ppm))
        .or_else(|| complaints(Status::AtRisk, policy.warn_complaint_ppm))
}

fn breach(to: Status, rule: Rule, numerator: u64, denominator: u64, limit: Option<u32>) -> Option<Verdict> {
    let limit_ppm = limit?;
    let breached = u128::from(numerator) * 1_000_000 > u128::from(denominator) * u128::from(limit_ppm);
    breached.then_some(Verdict { to, rule, numerator, denominator, limit_ppm })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sent: u64, bounced: u64, complained: u64) -> Counts {
        Counts { sent, bounced, complained }
    }

    fn status(policy: &Policy, c: Counts) -> Status {
        judge(policy, c, Status::Healthy).map_or(Status::Healthy, |verdict| verdict.to)
    }

    #[test]
    fn a_rate_equal_to_its_limit_does_not_breach_it() {
        let policy = Policy::splashify();
        assert_eq!(status(&policy, counts(1000, 50, 0)), Status::Healthy);
        assert_eq!(status(&policy, counts(1000, 51, 0)), Status::AtRisk);
        assert_eq!(status(&policy, counts(1000, 100, 0)), Status::AtRisk);
        assert_eq!(status(&policy, counts(1000, 101, 0)), Status::Paused);
        assert_eq!(status(&policy, counts(1000, 0, 1)), Status::Healthy);
        assert_eq!(status(&policy, counts(1000, 0, 2)), Status::AtRisk);
        assert_eq!(status(&policy, counts(1000, 0, 5)), Status::AtRisk);
        assert_eq!(status(&policy, counts(1000, 0, 6)), Status::Paused);
    }

    #[test]
    fn s4_pauses_at_what_s2_warns_of_and_never_warns() {
        let policy = Policy::zmailer();
        assert_eq!(status(&policy, counts(1000, 50, 1)), Status::Healthy);
        assert_eq!(status(&policy, counts(1000, 51, 0)), Status::Paused);
        assert_eq!(status(&policy, counts(1000, 0, 2)), Status::Paused);
    }

    #[test]
    fn the_floor_holds_for_warnings_and_pauses_and_can_be_lifted() {
        let mut policy = Policy::splashify();
        assert_eq!(status(&policy, counts(49, 49, 49)), Status::Healthy);
        assert_eq!(status(&policy, counts(50, 6, 0)), Status::Paused);
        // One complaint in 50 to 199 pauses, unless more are asked for.
        assert_eq!(status(&policy, counts(50, 0, 1)), Status::Paused);
        assert_eq!(status(&policy, counts(199, 0, 1)), Status::Paused);
        assert_eq!(status(&policy, counts(200, 0, 1)), Status::AtRisk);
        policy.minimum_complaints = 2;
        assert_eq!(status(&policy, counts(50, 0, 1)), Status::Healthy);
        assert_eq!(status(&policy, counts(50, 0, 2)), Status::Paused);
        policy.minimum_sends = 0;
        assert_eq!(status(&policy, counts(1, 1, 0)), Status::Paused);
        // A bounce without any send is more than any share of nothing.
        assert_eq!(status(&policy, counts(0, 1, 0)), Status::Paused);
        assert_eq!(status(&policy, counts(0, 0, 0)), Status::Healthy);
    }

    #[test]
    fn paused_stays_and_at_risk_recovers() {
        let policy = Policy::splashify();
        assert_eq!(judge(&policy, counts(1000, 0, 0), Status::Paused), None);
        assert_eq!(judge(&policy, counts(1000, 60, 0), Status::AtRisk), None);
        let verdict = judge(&policy, counts(1000, 50, 0), Status::AtRisk).unwrap();
        assert_eq!((verdict.to, verdict.rule), (Status::Healthy, Rule::Recovered));
        let verdict = judge(&policy, counts(1000, 101, 0), Status::AtRisk).unwrap();
        assert_eq!((verdict.to, verdict.rule, verdict.numerator), (Status::Paused, Rule::BounceRate, 101));
    }
}
