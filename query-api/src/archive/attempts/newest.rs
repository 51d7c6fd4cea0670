//! The newest deliveries of many attempts, in little memory.

use std::collections::BTreeMap;

use sendtrail_schemas::attempts::LoggedAttempt;
use sendtrail_schemas::time::Millis;

use crate::DeliveryRow;

/// The deliveries of the greatest numbers, each as the last of its attempts left it; never more of them than so many.
pub struct Newest {
    most: usize,
    /// By event and partition: the offset of the last attempt, and what it says.
    rows: BTreeMap<(u64, u32), (u64, DeliveryRow)>,
}

impl Newest {
    /// Of so many deliveries at most.
    pub fn new(most: usize) -> Self {
        Self { most, rows: BTreeMap::new() }
    }

    /// Takes an attempt; they may come in any order. A delivery that has no room will never have any, since none of those before it
    /// goes for a lesser one: of those that are left no attempt was passed over.
    pub fn take(&mut self, logged: &LoggedAttempt) {
        let key = key(logged);
        if self.renew(logged) || self.is_full() && self.rows.first_key_value().is_some_and(|(least, _)| key < *least) {
            return;
        }
        self.rows.insert(key, (logged.offset, row(logged)));
        if self.rows.len() > self.most {
            self.rows.pop_first();
        }
    }

    /// Takes an attempt at a delivery that is here, and no other; whether it is.
    pub fn renew(&mut self, logged: &LoggedAttempt) -> bool {
        let Some((offset, kept)) = self.rows.get_mut(&key(logged)) else { return false };
        if *offset < logged.offset {
            *offset = logged.offset;
            *kept = row(logged);
        }
        true
    }

    /// Whether there may be more than are here.
    pub fn is_full(&self) -> bool {
        self.rows.len() >= self.most
    }

    /// The least number.
    pub fn least(&self) -> Option<u64> {
        self.rows.first_key_value().map(|((seq, _), _)| *seq)
    }

    /// They, the greatest number first.
    pub fn into_rows(self) -> impl Iterator<Item = DeliveryRow> {
        self.rows.into_values().rev().map(|(_, row)| row)
    }
}

fn key(logged: &LoggedAttempt) -> (u64, u32) {
    (logged.attempt.event_seq, logged.partition)
}

/// How an attempt left its delivery.
pub fn row(logged: &LoggedAttempt) -> DeliveryRow {
    let attempt = &logged.attempt;
    let received = if attempt.event_received_at > 0 { attempt.event_received_at } else { attempt.first_started_at };
    DeliveryRow {
        partition: logged.partition,
        seq: attempt.event_seq,
        status: attempt.status(),
        attempts: attempt.number,
        last_status_code: attempt.status_code,
        created_at: Millis(received),
        event_type: attempt.event_type(),
        finished_at: Some(Millis(attempt.finished_at)),
        next_due_at: attempt.next_due_at.map(Millis),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use sendtrail_schemas::mail::Attempt;

    use super::*;

    fn attempt((offset, (seq, partition)): (usize, (u64, u32))) -> LoggedAttempt {
        let attempt = Attempt { event_seq: seq, number: offset as u32, ..Attempt::default() };
        LoggedAttempt { partition, offset: offset as u64, attempt }
    }

    proptest! {
        /// What is left is what would be, were all kept; and there are never more than so many.
        #[test]
        fn the_newest_are_those_of_all(
            attempts in prop::collection::vec((0u64..20, 0u32..2), 0..80)
                .prop_map(|all| all.into_iter().enumerate().map(attempt).collect::<Vec<_>>())
                .prop_shuffle(),
            most in 1usize..24,
        ) {
            let mut newest = Newest::new(most);
            let mut all: HashMap<(u64, u32), &LoggedAttempt> = HashMap::new();
            for logged in &attempts {
                newest.take(logged);
                prop_assert!(newest.rows.len() <= most);
                let last = all.entry(key(logged)).or_insert(logged);
                if last.offset < logged.offset {
                    *last = logged;
                }
            }
            let mut wanted: Vec<DeliveryRow> = all.into_values().map(row).collect();
            wanted.sort_by_key(|row| std::cmp::Reverse((row.seq, row.partition)));
            wanted.truncate(most);
            prop_assert_eq!(newest.is_full(), wanted.len() == most);
            prop_assert_eq!(newest.least(), wanted.last().map(|row| row.seq));
            prop_assert_eq!(newest.into_rows().collect::<Vec<_>>(), wanted);
        }
    }
}
