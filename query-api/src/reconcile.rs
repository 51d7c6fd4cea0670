//! What each store has of the same events, side by side, by the numbers of rows.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::rollup::{HourRows, Rollup, Sums};
use sendtrail_schemas::time::{Hour, Millis};

use crate::Error;

/// A row as every store knows it: when it happened, its partition, its number there.
pub type Numbered = (Millis, u32, u64);

/// Events that are still in the log.
#[async_trait]
pub trait LoggedEvents: Send + Sync + 'static {
    /// Those of an account that happened in a span of time, the first number that is kept of each partition, and the number
    /// after its last unless none is kept.
    ///
    /// # Errors
    /// [`Error::Port`]; [`Error::Excess`]: there are more than `limit` events to look at.
    async fn numbers(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        limit: usize,
    ) -> Result<(Vec<Numbered>, BTreeMap<u32, u64>, BTreeMap<u32, u64>), Error>;
}

/// A store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// The topic of events, as far back as it is kept.
    Log,
    /// Files and tail.
    Archive,
    /// ClickHouse.
    ClickHouse,
}

impl Store {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Archive => "archive",
            Self::ClickHouse => "clickhouse",
        }
    }
}

/// How a store differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It lacks rows that another has.
    Missing,
    /// It has rows more than once.
    Twice,
}

/// Rows by which a store differs: numbers of a partition, both included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where.
    pub store: Store,
    /// How.
    pub difference: Difference,
    /// The partition.
    pub partition: u32,
    /// The first number.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// Counts of an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events by store.
    pub log: u64,
    /// Events in files and tail.
    pub archive: u64,
    /// Events in ClickHouse.
    pub clickhouse: u64,
    /// What the hourly sums add up to.
    pub rollups: u64,
    /// What the sums would be by the archive.
    pub summed: u64,
    /// What ClickHouse's hourly sums add up to.
    pub clickhouse_rollups: u64,
}

impl Counts {
    /// Adds others up.
    pub fn add(&mut self, other: &Self) {
        self.log += other.log;
        self.archive += other.archive;
        self.clickhouse += other.clickhouse;
        self.rollups += other.rollups;
        self.summed += other.summed;
        self.clickhouse_rollups += other.clickhouse_rollups;
    }
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    /// By hour.
    pub hours: BTreeMap<Hour, Counts>,
    /// Where stores differ.
    pub ranges: Vec<Range>,
}

/// Compares the rows of stores; `kept` is the first number of each partition that the log still has, and ClickHouse has what
/// happened `since` a time.
pub fn compare(stores: &[(Store, Vec<Numbered>)], kept: &BTreeMap<u32, u64>, since: Millis, into: &mut Compared) {
    let has = |store: Store, at: Millis| store != Store::ClickHouse || at >= since;
    let mut all: BTreeMap<(u32, u64), Millis> = BTreeMap::new();
    for (store, rows) in stores {
        for (occurred_at, partition, seq) in rows.iter().filter(|(at, ..)| has(*store, *at)) {
            all.insert((*partition, *seq), *occurred_at);
            let counts = into.hours.entry(occurred_at.hour()).or_default();
            match store {
                Store::Log => counts.log += 1,
                Store::Archive => counts.archive += 1,
                Store::ClickHouse => counts.clickhouse += 1,
            }
        }
    }
    for (store, rows) in stores {
        let rows = rows.iter().filter(|(at, ..)| has(*store, *at));
        let mut there: Vec<(u32, u64)> = rows.map(|(_, partition, seq)| (*partition, *seq)).collect();
        there.sort_unstable();
        let twice = there.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        let is_kept = |(partition, seq): &(u32, u64)| {
            *store != Store::Log || kept.get(partition).is_none_or(|first| seq >= first)
        };
        let wanted = all.iter().filter(|(_, at)| has(*store, **at)).map(|(row, _)| *row);
        let missing = wanted.filter(is_kept).filter(|row| there.binary_search(row).is_err());
        for (difference, rows) in
            [(Difference::Missing, missing.collect::<Vec<_>>()), (Difference::Twice, twice.collect())]
        {
            for (partition, seq) in rows {
                match into.ranges.last_mut() {
                    Some(range)
                        if (range.store, range.difference, range.partition) == (*store, difference, partition)
                            && (seq == range.last + 1 || seq == range.last) =>
                    {
                        range.last = seq;
                    }
                    _ => into.ranges.push(Range { store: *store, difference, partition, first: seq, last: seq }),
                }
            }
        }
    }
}

/// How many events sums stand for.
pub fn total(sums: &Sums) -> u64 {
    let Sums {
        sends,
        deliveries,
        permanent_bounces,
        transient_bounces,
        complaints,
        rejects,
        opens,
        unique_opens: _,
        clicks,
        unique_clicks: _,
        delays,
        rendering_failures,
        replies,
    } = sums;
    [
        sends,
        deliveries,
        permanent_bounces,
        transient_bounces,
        complaints,
        rejects,
        opens,
        clicks,
        delays,
        rendering_failures,
        replies,
    ]
    .into_iter()
    .sum()
}

/// Adds hourly rows up; hours of too many rows, which are counted from the events, are given back.
pub fn add_up(rows: Vec<HourRows>, mut add: impl FnMut(Hour, u64)) -> Vec<Hour> {
    let mut overflowing = Vec::new();
    for row in rows {
        match row {
            HourRows::Exact(hour, rows) => add(hour, rows.iter().map(|Rollup { sums, .. }| total(sums)).sum()),
            HourRows::Overflowing(hour) => overflowing.push(hour),
        }
    }
    overflowing
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What one store lacks or has twice is told, row by row, and nothing else.
        #[test]
        fn differences_are_exact(
            rows in prop::collection::btree_set((0u32..3, 0u64..30), 0..60),
            lost in prop::collection::vec((0usize..3, any::<prop::sample::Index>()), 0..6),
            twice in prop::collection::vec((0usize..3, any::<prop::sample::Index>()), 0..6),
            kept in 0u64..30,
            since in 0i64..30,
        ) {
            let time = |seq: u64| Millis(seq as i64 * 1_800_000);
            let since = Millis(since * 1_800_000);
            let names = [Store::Log, Store::Archive, Store::ClickHouse];
            let all: Vec<(u32, u64)> = rows.iter().copied().collect();
            let mut sets = [rows.clone(), rows.clone(), rows.clone()];
            sets[0].retain(|(_, seq)| *seq >= kept);
            let mut wanted: BTreeSet<(Store, bool, u32, u64)> = BTreeSet::new();
            let mut stores: Vec<(Store, Vec<Numbered>)> = Vec::new();
            if !all.is_empty() {
                for (store, index) in lost {
                    sets[store].remove(&all[index.index(all.len())]);
                }
            }
            for (at, name) in names.into_iter().enumerate() {
                let mut there: Vec<Numbered> = sets[at].iter().map(|(p, s)| (time(*s), *p, *s)).collect();
                for (store, index) in &twice {
                    if *store == at && !there.is_empty() {
                        let copy = there[index.index(sets[at].len())];
                        wanted.insert((name, true, copy.1, copy.2));
                        there.push(copy);
                    }
                }
                stores.push((name, there));
            }
            // What ClickHouse keeps no longer is nobody's concern there, neither as missing nor as a sign that others miss it.
            let heeded = |name: Store, seq: u64| name != Store::ClickHouse || time(seq) >= since;
            let named = names.into_iter().zip(&sets);
            let heard = named.flat_map(|(name, set)| set.iter().copied().filter(move |(_, seq)| heeded(name, *seq)));
            let union: BTreeSet<(u32, u64)> = heard.collect();
            for (at, name) in names.into_iter().enumerate() {
                for row in union.difference(&sets[at]) {
                    if name != Store::Log || row.1 >= kept {
                        wanted.insert((name, false, row.0, row.1));
                    }
                }
            }
            let first = (0..3).map(|partition| (partition, kept)).collect();
            let mut compared = Compared::default();
            compare(&stores, &first, since, &mut compared);
            wanted.retain(|(store, _, _, seq)| heeded(*store, *seq));
            let mut told = BTreeSet::new();
            for range in &compared.ranges {
                for seq in range.first..=range.last {
                    prop_assert!(told.insert((range.store, range.difference == Difference::Twice, range.partition, seq)));
                }
            }
            prop_assert_eq!(told, wanted);
            let counted: u64 = compared.hours.values().map(|counts| counts.archive).sum();
            prop_assert_eq!(counted as usize, stores[1].1.len());
        }
    }
}
