//! Whose turn it is: accounts one after the other, and the destinations of each one after the other, so that one with much
//! to post keeps nobody waiting. A turn that comes to nothing costs its account nothing.

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

    /// Whose turn it is.
    pub fn first(&self) -> Option<(A, D)> {
        let account = *self.accounts.front()?;
        Some((account, *self.waiting.get(&account)?.front()?))
    }

    /// Whose turn it was took it, and waits for the next, behind the others.
    pub fn took(&mut self) {
        self.accounts.rotate_left(usize::from(!self.accounts.is_empty()));
        if let Some(of_account) = self.accounts.back().and_then(|account| self.waiting.get_mut(account)) {
            of_account.rotate_left(usize::from(!of_account.is_empty()));
        }
    }

    /// Whose turn it is has nothing to do, and waits no longer; it is the next of its account.
    pub fn leaves(&mut self) {
        let Some(account) = self.accounts.front().copied() else { return };
        let Some(of_account) = self.waiting.get_mut(&account) else { return };
        if let Some(destination) = of_account.pop_front() {
            self.known.remove(&destination);
        }
        if of_account.is_empty() {
            self.waiting.remove(&account);
            self.accounts.pop_front();
        }
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
        let next = || {
            let first = turns.first();
            turns.took();
            first
        };
        let order: Vec<_> = std::iter::from_fn(next).take(9).collect();
        let expected =
            [('a', 0), ('b', 100), ('c', 200), ('a', 1), ('b', 100), ('c', 200), ('a', 2), ('b', 100), ('c', 200)];
        assert_eq!(order, expected);
        // Three of the first account leave: it is its fourth's turn.
        for _ in 0..3 {
            turns.leaves();
        }
        assert_eq!(turns.first(), Some(('a', 6)));
        let rest = std::iter::from_fn(|| {
            let first = turns.first();
            turns.leaves();
            first
        });
        assert_eq!(rest.count(), 9);
        assert!(turns.is_empty());
        turns.took();
        turns.leaves();
        assert_eq!(turns.first(), None);
    }
}
