//! Whose turn it is: so many queries at once, and of one account no more than its share, so that one who asks much does not
//! keep the others waiting.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sendtrail_schemas::ids::AccountId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// See the module.
pub struct Turns {
    all: Semaphore,
    share: usize,
    /// Accounts that have a turn or wait for one, with how many do.
    accounts: Mutex<HashMap<AccountId, (usize, Arc<Semaphore>)>>,
}

/// A query's turn, until it is dropped.
pub struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_share: OwnedSemaphorePermit,
    _asking: Asking<'a>,
}

/// One who has a turn or waits for it.
struct Asking<'a> {
    turns: &'a Turns,
    account: AccountId,
}

impl Turns {
    /// `all` turns at once, `share` of them for one account.
    pub fn new(all: usize, share: usize) -> Self {
        Self { all: Semaphore::new(all), share, accounts: Mutex::default() }
    }

    /// Waits for a turn; those of one account come one after the other.
    pub async fn take(&self, account: AccountId) -> Option<Turn<'_>> {
        let share = {
            let mut accounts = self.accounts.lock();
            let (asking, share) = accounts.entry(account).or_insert_with(|| (0, Arc::new(Semaphore::new(self.share))));
            *asking += 1;
            share.clone()
        };
        let asking = Asking { turns: self, account };
        // Neither is ever closed.
        let of_share = share.acquire_owned().await.ok()?;
        let of_all = self.all.acquire().await.ok()?;
        Some(Turn { _of_all: of_all, _of_share: of_share, _asking: asking })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut accounts = self.turns.accounts.lock();
        if let Some((asking, _)) = accounts.get_mut(&self.account) {
            *asking -= 1;
            if *asking == 0 {
                accounts.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_who_asks_much_keeps_nobody_waiting_and_nothing_is_kept_of_whoever_is_done() {
        let turns = Turns::new(2, 1);
        let account = |n| AccountId(Uuid::from_u128(n));
        let take = |n| turns.take(account(n)).now_or_never().flatten();
        let first = take(1);
        assert!(first.is_some());
        assert!(take(1).is_none(), "its share is taken");
        let other = take(2);
        assert!(other.is_some());
        assert!(take(3).is_none(), "all turns are taken");
        drop(first);
        let third = take(3);
        assert!(third.is_some() && take(1).is_none());
        drop((other, third));
        assert!(take(1).is_some());
        assert!(turns.accounts.lock().is_empty(), "also of those who gave up waiting");
    }
}
