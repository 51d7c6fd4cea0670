//! Whose turn it is: accounts one after the other, and the destinations of each one after the other, so that one with much
//! to post keeps nobody waiting.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// Who waits for a turn, by account and destination.
#[derive(Debug)]
pub struct Turns<A, D> {
    accounts: VecDeque<A>,
    waiting: HashMap<A, VecDeque<D>>,
    known: HashSet<D>,
}

impl<A, D> Default for Turns<A, D> {
    fn default() -> Self {
        Self { accounts: VecDeque::new(), waiting: HashMap::new(), known: HashSet::new() }
    }
}

impl<A: Copy + Eq + Hash, D: Copy + Eq + Hash> Turns<A, D> {
    /// A destination has something to do, and waits behind the others of its account; once, however often this is said.
    pub fn join(&mut self, account: A, destination: D) {
        if !self.known.insert(destination) {
            return;
        }
        let of_account = self.waiting.entry(account).or_default();
        if of_account.is_empty() {
            self.accounts.push_back(account);
        }
        of_account.push_back(destination);
    }

    /// Who is next. It waits no longer; if it has more to do, it joins again.
    pub fn take(&mut self) -> Option<(A, D)> {
        let account = self.accounts.pop_front()?;
        let of_account = self.waiting.get_mut(&account)?;
        let destination = of_account.pop_front()?;
        if of_account.is_empty() {
            self.waiting.remove(&account);
        } else {
            self.accounts.push_back(account);
        }
        self.known.remove(&destination);
        Some((account, destination))
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_take_turns_however_many_destinations_they_have() {
        let mut turns = Turns::default();
        for destination in 0..10 {
            turns.join('a', destination);
        }
        turns.join('b', 100);
        turns.join('b', 100);
        turns.join('c', 200);
        let mut next = || {
            let (account, destination) = turns.take()?;
            turns.join(account, destination);
            Some((account, destination))
        };
        let order: Vec<_> = std::iter::from_fn(&mut next).take(9).collect();
        let expected =
            [('a', 0), ('b', 100), ('c', 200), ('a', 1), ('b', 100), ('c', 200), ('a', 2), ('b', 100), ('c', 200)];
        assert_eq!(order, expected);
        let rest: Vec<_> = std::iter::from_fn(|| turns.take()).collect();
        assert_eq!(rest.len(), 12);
        assert!(turns.is_empty());
    }
}
