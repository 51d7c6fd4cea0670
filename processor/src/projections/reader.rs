//! What readers see of projections.

use fjall::{Database, Keyspace, PersistMode};
use prost::Message;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::rollup::HourRows;
use sendtrail_schemas::time::Hour;

use super::{HEAD, hash_of, hour_key, hour_of, letter_key, read_row};
use crate::Error;

/// How a reader gets at projections, from any thread.
#[derive(Clone)]
pub struct ProjectionReader {
    pub(super) database: Database,
    pub(super) rollups: Keyspace,
    pub(super) deliveries: Keyspace,
    pub(super) troubled: Keyspace,
    pub(super) dead_letters: Keyspace,
}

impl ProjectionReader {
    /// The rows of an account's hours, `from` to `to` exclusive, in the order of hours. An hour without rows is left
    /// out.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn rollups(&self, account: AccountId, from: Hour, to: Hour) -> Result<Vec<HourRows>, Error> {
        let mut hours: Vec<HourRows> = Vec::new();
        for row in self.rollups.range(hour_key(account, from, HEAD)..hour_key(account, to, HEAD)) {
            let (key, value) = row.into_inner()?;
            let (Some(hour), Some(hash)) = (hour_of(&key), hash_of(&key)) else { continue };
            if hash == HEAD {
                hours.push(HourRows::Overflowing(hour));
                continue;
            }
            match hours.last_mut() {
                // Rows from before the hour overflowed say nothing.
                Some(HourRows::Overflowing(last)) if *last == hour => {}
                Some(HourRows::Exact(last, rows)) if *last == hour => rows.push(read_row(&value)?),
                _ => hours.push(HourRows::Exact(hour, vec![read_row(&value)?])),
            }
        }
        Ok(hours)
    }

    /// Dead letters from a place on.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn dead_letters(&self, from: (u32, u64), limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let mut letters = Vec::new();
        for row in self.dead_letters.range(letter_key(from.0, from.1)..).take(limit) {
            let (_, value) = row.into_inner()?;
            letters.extend(DeadLetter::decode(&value[..]).ok());
        }
        Ok(letters)
    }

    /// Takes what dead letters say of somebody out of them: those of an account, or of none that is known, that hold an
    /// address. How many did. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn clear_dead_letters(&self, account: AccountId, folded: &str) -> Result<u64, Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        let mut cleared = 0;
        for row in self.dead_letters.iter() {
            let (key, value) = row.into_inner()?;
            let Ok(mut letter) = DeadLetter::decode(&value[..]) else { continue };
            let is_of = letter.account_id.is_empty() || letter.account_id == account.bytes();
            if is_of && (holds(&letter.payload, folded) || holds(letter.reason.as_bytes(), folded)) {
                letter.payload.clear();
                letter.reason = ERASED_LETTER.into();
                batch.insert(&self.dead_letters, key, letter.encode_to_vec());
                cleared += 1;
            }
        }
        batch.commit()?;
        Ok(cleared)
    }

    /// One dead letter.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn dead_letter(&self, partition: u32, seq: u64) -> Result<Option<DeadLetter>, Error> {
        let value = self.dead_letters.get(letter_key(partition, seq))?;
        Ok(value.and_then(|value| DeadLetter::decode(&value[..]).ok()))
    }
}

/// What a dead letter says instead of what it said, once it is cleared.
const ERASED_LETTER: &str = "its recipient was erased";

/// Whether bytes hold a text that is in lower case, in any case.
fn holds(bytes: &[u8], folded: &str) -> bool {
    bytes.windows(folded.len()).any(|part| part.eq_ignore_ascii_case(folded.as_bytes()))
}
