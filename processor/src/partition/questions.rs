//! What a partition is asked between batches: how an account stands, and to say again what is true.

use sendtrail_schemas::exchange::{Seen, SuppressionView};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::SourcePosition;
use sendtrail_schemas::reputation::Reputation;
use tokio::sync::{mpsc, oneshot};

use super::applying::load;
use super::completer::{Outputs, Work};
use super::{Ended, Session, reached};
use crate::core::overlay::Keys;
use crate::core::rows::{Row, RowKey};
use crate::said::ViewOf;

/// What is asked of a partition, done between batches.
pub enum Inquiry {
    /// How an account stands.
    Reputation {
        /// Which.
        account: AccountId,
        /// Answered once everything before this offset is applied.
        after: u64,
        /// Where the answer goes.
        answer: oneshot::Sender<Option<Reputation>>,
    },
    /// How far a source has come.
    Source {
        /// Which.
        name: String,
        /// Answered once everything before this offset is applied.
        after: u64,
        /// Where the answer goes: its last number from each of its partitions.
        answer: oneshot::Sender<Vec<SourcePosition>>,
    },
    /// That it makes known again what is true now.
    Announce {
        /// Of these.
        views: Vec<ViewOf>,
        /// Told when it is durable; dropped when it may not be.
        done: oneshot::Sender<()>,
    },
}

/// Where questions go.
pub type Inquiries = mpsc::Sender<Inquiry>;

impl Session<'_> {
    /// Answers what can be answered by now.
    pub(super) fn answer_questions(&mut self) -> Result<(), Ended> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let applied = self.overlay.progress.next_offset;
        for inquiry in std::mem::take(&mut self.waiting) {
            match inquiry {
                // Whoever gave up is not asked for again.
                Inquiry::Reputation { account, after, answer } if after > applied => {
                    if !answer.is_closed() {
                        self.waiting.push(Inquiry::Reputation { account, after, answer });
                    }
                }
                Inquiry::Source { name, after, answer } if after > applied => {
                    if !answer.is_closed() {
                        self.waiting.push(Inquiry::Source { name, after, answer });
                    }
                }
                Inquiry::Source { name, answer, .. } => {
                    let marks = self.overlay.progress.sources.iter().filter(|mark| mark.source == name);
                    let _ = answer.send(marks.cloned().collect());
                }
                Inquiry::Reputation { account, answer, .. } => {
                    let keys = Keys { account: Some(account), ..Keys::default() };
                    let loaded = load(&self.of.store, &mut self.overlay, &keys);
                    let found = loaded.ok().and_then(|()| self.overlay.account(account)).map(|a| a.reputation());
                    // Whoever asked may have gone.
                    let _ = answer.send(found);
                }
                // Before, something newer may have been made known than is true here.
                Inquiry::Announce { views, done } if applied < self.began => {
                    self.waiting.push(Inquiry::Announce { views, done });
                }
                Inquiry::Announce { views, done } => self.announce(views, done)?,
            }
        }
        Ok(())
    }

    /// Makes known what is true now. Nobody else does, so that the last word is the newest.
    fn announce(&mut self, views: Vec<ViewOf>, done: oneshot::Sender<()>) -> Result<(), Ended> {
        let Some(to) = self.of.announce.clone() else {
            // There is nobody to know.
            let _ = done.send(());
            return Ok(());
        };
        let (store, partition) = (self.of.store.clone(), self.of.number);
        let mut announced = Vec::new();
        // What is not in memory stays where it is: there may be many.
        for view in views {
            let seen = match view {
                ViewOf::Account(id) => {
                    let held = self.overlay.account(id).map(|account| account.config.clone());
                    let config = match held {
                        Some(config) => Some(config),
                        None => store.account(partition, id)?.map(|account| account.config),
                    };
                    config.map(|config| Seen::Account(Box::new((*config).clone())))
                }
                ViewOf::Suppression(account, email) => {
                    let key = RowKey::suppressed(account, &email);
                    let row = match self.overlay.held_row(&key) {
                        Some(held) => held.cloned(),
                        None => store.row(partition, &key)?,
                    };
                    let row = match row {
                        Some(Row::Suppressed(row)) => Some(*row),
                        _ => None,
                    };
                    let account_id = account.bytes().to_vec();
                    Some(Seen::Suppression(SuppressionView { account_id, email, row }))
                }
            };
            announced.extend(seen.map(|seen| to.announce(self.of.number, seen)));
        }
        let reached = reached(&self.overlay.progress);
        let outputs = Outputs { announced, told: Some(done), ..Outputs::nothing(reached) };
        self.completer.give(Work::Outputs(outputs))
    }
}
