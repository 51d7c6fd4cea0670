//! Whose export is made next.

use std::collections::HashMap;

use uuid::Uuid;

/// Who an export is of; none is the operator.
pub type Owner = Option<Uuid>;

/// Owners take turns: who was served longest ago comes next, however many the others wait for.
#[derive(Debug, Default)]
pub struct Turns {
    /// Whose are being made, and what was noted of them before.
    making: HashMap<Owner, (u64, bool)>,
    /// After which turn each of those who wait was served last, or came; who came then is before who was served.
    since: HashMap<Owner, (u64, bool)>,
    turns: u64,
}

impl Turns {
    /// Begins a turn: which of those that wait is to be made, oldest first. None if nobody waits but owners of what is being made.
    pub fn begin(&mut self, waiting: &[(Owner, Uuid)]) -> Option<(Owner, Uuid)> {
        // Whoever waits for nothing more is a newcomer next time, behind all who were served or came before.
        self.since.retain(|owner, _| self.making.contains_key(owner) || waiting.iter().any(|(who, _)| who == owner));
        for (owner, _) in waiting {
            self.since.entry(*owner).or_insert((self.turns, false));
        }
        let free = waiting.iter().filter(|(owner, _)| !self.making.contains_key(owner));
        let next = *free.min_by_key(|(owner, _)| self.since.get(owner))?;
        self.turns += 1;
        let before = self.since.insert(next.0, (self.turns, true));
        self.making.insert(next.0, before.unwrap_or_default());
        Some(next)
    }

    /// Gives back a turn that was of no use: there was nothing to make any more.
    pub fn waive(&mut self, owner: Owner) {
        if let Some(before) = self.making.get(&owner) {
            self.since.insert(owner, *before);
        }
    }

    /// Ends the turn of an owner.
    pub fn end(&mut self, owner: Owner) {
        self.making.remove(&owner);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of(owner: u128, export: u128) -> (Owner, Uuid) {
        (Some(Uuid::from_u128(owner)), Uuid::from_u128(export))
    }

    #[test]
    fn whoever_waits_comes_however_often_others_come_back() {
        let mut turns = Turns::default();
        let mut order = Vec::new();
        // The first has many; the others ask for one more as soon as theirs is made, which is always newer.
        for round in 0..30 {
            let waiting = [of(1, round), of(2, 100 + round), of(3, 200 + round)];
            let (owner, _) = turns.begin(&waiting).unwrap();
            turns.end(owner);
            // It is seen once that nothing of theirs waits.
            let rest: Vec<_> = waiting.into_iter().filter(|(who, _)| *who == waiting[0].0 || *who != owner).collect();
            turns.since.retain(|owner, _| rest.iter().any(|(who, _)| who == owner));
            order.push(owner);
        }
        for three in order.chunks(3).skip(1) {
            assert_eq!(three.iter().collect::<HashSet<_>>().len(), 3, "{order:?}");
        }
        let waiting = [of(1, 1), of(2, 2), of(3, 3)];
        let next = turns.begin(&waiting).unwrap();
        turns.waive(next.0);
        turns.end(next.0);
        assert_eq!(turns.begin(&waiting), Some(next), "its turn was of no use");
    }

    #[test]
    fn one_of_each_owner_at_a_time_and_the_longest_unserved_first() {
        let mut turns = Turns::default();
        let waiting = [of(1, 10), of(1, 11), of(1, 12), of(2, 20), of(3, 30)];
        assert_eq!(turns.begin(&waiting), Some(of(1, 10)));
        assert_eq!(turns.begin(&waiting), Some(of(2, 20)), "the first one has one made");
        turns.end(of(1, 10).0);
        // The first one's are older, but it was just served.
        assert_eq!(turns.begin(&waiting[1..]), Some(of(3, 30)));
        turns.end(of(2, 20).0);
        turns.end(of(3, 30).0);
        // Who comes anew is behind those who were served before, and before who was served last.
        let waiting = [of(1, 11), of(1, 12), of(3, 31), (None, Uuid::nil())];
        assert_eq!(turns.begin(&waiting), Some(of(1, 11)));
        assert_eq!(turns.begin(&waiting), Some((None, Uuid::nil())));
        assert_eq!(turns.begin(&waiting), Some(of(3, 31)));
        assert_eq!(turns.begin(&waiting), None, "everybody has one made");
        turns.end(None);
        turns.end(of(1, 11).0);
        turns.end(of(3, 31).0);
        assert_eq!(turns.begin(&[]), None);
        assert!(turns.since.is_empty() && turns.making.is_empty(), "nothing is kept of those who wait for nothing");
    }
}
