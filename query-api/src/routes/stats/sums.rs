//! How sums are read and added up: some hours at once, and no more buckets than an answer may have.

use std::collections::BTreeMap;

use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::rollup::{Apart, HourRows, Rollup, Sums};
use sendtrail_schemas::time::{HOUR, Hour, Millis};

use super::{Granularity, Wanted};
use crate::{Error, Source};

/// Hours whose sums are read at once: of each there may be [`sendtrail_schemas::rollup::MAX_ROWS`].
const STEP: Hour = 72;
/// Rows of a step after which the next one is twice as long.
const FEW: usize = 20_000;
/// Buckets of an answer.
const MAX_BUCKETS: usize = 500_000;

/// Sums by bucket and group, and of everything once.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) buckets: BTreeMap<(Millis, Option<String>), Sums>,
    pub(super) totals: Sums,
}

impl Answer {
    fn check(&self) -> Result<(), Error> {
        if self.buckets.len() > MAX_BUCKETS {
            return Err(Error::Excess(format!(
                "there are more than {MAX_BUCKETS} buckets: ask for fewer days or groups"
            )));
        }
        Ok(())
    }

    fn add(&mut self, wanted: &Wanted, hour: Hour, row: &Rollup) {
        let dims = &row.dims;
        if wanted.set.as_ref().is_some_and(|set| !set.matches(dims))
            || wanted.tag.as_ref().is_some_and(|tag| !tag.matches(&dims.tags))
        {
            return;
        }
        self.totals.add(&row.sums);
        let start = match wanted.granularity {
            Granularity::Hour => Millis::of_hour(hour),
            Granularity::Day => Millis::of_day(Millis::of_hour(hour).day()),
        };
        let groups = wanted.group_by.map_or_else(|| vec![None], |by| by.of(dims));
        for group in groups {
            self.buckets.entry((start, group)).or_default().add(&row.sums);
        }
    }
}

/// Sums whole hours from the rollups; what begins or ends within an hour, and hours that overflow, from the events.
pub(super) async fn sum_up(source: Source, account: AccountId, wanted: &Wanted) -> Result<Answer, Error> {
    let mut answer = Answer::default();
    let apart = wanted.apart();
    let first_whole =
        Millis(wanted.from.0.div_euclid(HOUR) * HOUR + if wanted.from.0.rem_euclid(HOUR) == 0 { 0 } else { HOUR });
    let last_whole = Millis(wanted.to.0.div_euclid(HOUR) * HOUR);
    let mut scanned: Vec<(Millis, Millis)> = Vec::new();
    if first_whole > last_whole {
        scanned.push((wanted.from, wanted.to));
    } else {
        scanned.push((wanted.from, first_whole));
        scanned.push((last_whole, wanted.to));
        let (mut next, end) = (first_whole.hour(), last_whole.hour());
        // As much at once as memory holds, and ClickHouse hands out: more where there are few rows.
        let mut step = if apart == Apart::NONE { Hour::MAX } else { STEP };
        while next < end {
            let until = next.saturating_add(step).min(end);
            let hours = match source.rollups.rows(account, next, until, &apart).await {
                // There are more than there were.
                Err(_) if apart != Apart::NONE && step > STEP => {
                    step = STEP;
                    continue;
                }
                hours => hours?,
            };
            let mut count = 0;
            for hour in hours {
                match hour {
                    HourRows::Exact(hour, rows) => {
                        count += rows.len();
                        rows.iter().for_each(|row| answer.add(wanted, hour, row));
                    }
                    HourRows::Overflowing(hour) => scanned.push((Millis::of_hour(hour), Millis::of_hour(hour + 1))),
                }
            }
            answer.check()?;
            next = until;
            step = if count < FEW { step.saturating_mul(2) } else { STEP };
        }
    }
    for (from, to) in scanned.into_iter().filter(|(from, to)| from < to) {
        for (hour, row) in source.analytics.scan(account, from, to, &apart).await? {
            answer.add(wanted, hour, &row);
        }
        answer.check()?;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use sendtrail_schemas::rollup::Dims;
    use sendtrail_schemas::time::DAY;

    use super::super::GroupBy;
    use super::*;
    use crate::analytics::TagFilter;

    #[test]
    fn tags_group_as_key_value_or_key_and_totals_count_once() {
        let dims = Dims { tags: [("a".into(), "1".into()), ("bare".into(), String::new())].into(), ..Dims::default() };
        let row = Rollup { dims, sums: Sums { sends: 3, ..Sums::default() } };
        let mut wanted = Wanted {
            from: Millis(0),
            to: Millis(DAY),
            set: None,
            tag: None,
            granularity: Granularity::Day,
            group_by: Some(GroupBy::Tag),
        };
        let mut answer = Answer::default();
        answer.add(&wanted, 5, &row);
        answer.add(&wanted, 6, &Rollup { dims: Dims::default(), sums: Sums { sends: 1, ..Sums::default() } });
        let groups: Vec<_> = answer.buckets.iter().map(|((_, group), sums)| (group.as_deref(), sums.sends)).collect();
        assert_eq!(groups, [(None, 1), (Some("a:1"), 3), (Some("bare"), 3)]);
        assert_eq!(answer.totals.sends, 4);
        for (tag, sends) in [("a", 3), ("a:1", 3), ("a:2", 0), ("bare", 3), ("none", 0)] {
            wanted.tag = Some(TagFilter::parse(tag));
            let mut answer = Answer::default();
            answer.add(&wanted, 5, &row);
            assert_eq!(answer.totals.sends, sends, "{tag}");
        }
    }
}
