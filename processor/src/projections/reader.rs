//! What readers see of projections.

use fjall::{Database, Keyspace, PersistMode};
use prost::Message;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::rollup::{Added, Apart, HourRows, Rollup};
use sendtrail_schemas::time::{Hour, Millis};

use super::{HEAD, hash_of, hour_key, hour_of, letter_key, read_row};
use crate::Error;

/// A dead letter's partition and number.
type Place = (u32, u64);

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
    pub fn rollups(&self, account: AccountId, from: Hour, to: Hour, apart: &Apart) -> Result<Vec<HourRows>, Error> {
        let mut hours: Vec<HourRows> = Vec::new();
        // Of the last hour, where rows fall together.
        let mut added = Added::default();
        let end = |hours: &mut Vec<HourRows>, added: &mut Added| {
            if let Some(HourRows::Exact(_, rows)) = hours.last_mut().filter(|_| !added.is_empty()) {
                *rows = added.take();
            }
        };
        for row in self.rollups.range(hour_key(account, from, HEAD)..hour_key(account, to, HEAD)) {
            let (key, value) = row.into_inner()?;
            let (Some(hour), Some(hash)) = (hour_of(&key), hash_of(&key)) else { continue };
            if hours.last().is_none_or(|last| last.hour() != hour) {
                end(&mut hours, &mut added);
                hours.push(if hash == HEAD { HourRows::Overflowing(hour) } else { HourRows::Exact(hour, Vec::new()) });
            }
            match hours.last_mut() {
                Some(HourRows::Exact(_, rows)) if *apart == Apart::ALL => rows.push(read_row(&value)?),
                Some(HourRows::Exact(..)) => {
                    let Rollup { dims, sums } = read_row(&value)?;
                    added.add(apart.of(dims), &sums);
                }
                // Rows from before the hour overflowed say nothing.
                _ => {}
            }
        }
        end(&mut hours, &mut added);
        Ok(hours)
    }

    /// Dead letters from a place on: at most `limit`, and at most so many bytes of them, but one if there is any; and the
    /// place of the one after them, if there is one.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn dead_letters(
        &self,
        from: Place,
        limit: usize,
        bytes: usize,
    ) -> Result<(Vec<DeadLetter>, Option<Place>), Error> {
        let (mut letters, mut left) = (Vec::new(), bytes);
        for row in self.dead_letters.range(letter_key(from.0, from.1)..) {
            let (_, value) = row.into_inner()?;
            // One that nobody can read takes no place on a page, and none ends before it.
            let Ok(letter) = DeadLetter::decode(&value[..]) else { continue };
            if letters.len() >= limit || value.len() > left && !letters.is_empty() {
                return Ok((letters, Some((letter.partition, letter.seq))));
            }
            left = left.saturating_sub(value.len());
            letters.push(letter);
        }
        Ok((letters, None))
    }

    /// Empties an account's dead letters: those that hold an address, or those of before a time. How many there were.
    /// Durable when this returns. Whose a letter is that nobody can read is what its bytes say; those that do not say are
    /// left to the operator.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn clear_dead_letters(&self, account: AccountId, which: &Letters) -> Result<u64, Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        let mut cleared = 0;
        for row in self.dead_letters.iter() {
            let (key, value) = row.into_inner()?;
            let Ok(mut letter) = DeadLetter::decode(&value[..]) else { continue };
            let is_chosen = match which {
                Letters::Naming(folded) => names(&letter.payload, folded) || names(letter.reason.as_bytes(), folded),
                Letters::Before(before) => letter.at < before.0,
            };
            if is_chosen && !letter.payload.is_empty() && is_of(&letter, account) {
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

/// Which dead letters.
#[derive(Clone, Debug)]
pub enum Letters {
    /// Those that hold an address, in lower case.
    Naming(String),
    /// Those of before a time.
    Before(Millis),
}

/// Whether a letter is an account's: it says so, or the account's identifier is in what it holds.
fn is_of(letter: &DeadLetter, account: AccountId) -> bool {
    if !letter.account_id.is_empty() {
        return letter.account_id == account.bytes();
    }
    let (bytes, text) = (account.bytes(), account.to_string());
    let holds = |what: &[u8]| letter.payload.windows(what.len()).any(|part| part.eq_ignore_ascii_case(what));
    letter.payload.windows(bytes.len()).any(|part| part == bytes) || holds(text.as_bytes())
}

/// Whether bytes hold an address that is in lower case, in any case, and not as a part of another.
fn names(bytes: &[u8], folded: &str) -> bool {
    let goes_on_before = |byte: u8| byte.is_ascii_alphanumeric() || b".!#$%&'*+/=?^_`{|}~-@".contains(&byte);
    let goes_on_after = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (0..bytes.len()).any(|from| {
        let to = from + folded.len();
        if !bytes.get(from..to).is_some_and(|part| part.eq_ignore_ascii_case(folded.as_bytes())) {
            return false;
        }
        let before = from.checked_sub(1).and_then(|at| bytes.get(at)).copied();
        // In Protobuf its length stands before it, and anything after it.
        before.is_some_and(|byte| usize::from(byte) == folded.len())
            || !before.is_some_and(goes_on_before) && !bytes.get(to).copied().is_some_and(goes_on_after)
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::Projections;

    #[test]
    fn pages_of_letters_are_bounded_by_bytes_and_lead_through_all() {
        let folder = TempDir::new().unwrap();
        let mut projections = Projections::open(&Database::builder(folder.path()).open().unwrap()).unwrap();
        for (partition, seq, size) in [(0, 0, 10), (0, 1, 5_000), (0, 2, 10), (0, 3, 10), (1, 0, 600), (1, 1, 600)] {
            let letter = DeadLetter { partition, seq, payload: vec![0; size], ..DeadLetter::default() };
            projections.add_dead_letter(&letter);
        }
        projections.flush(true).unwrap();
        let reader = projections.reader();
        reader.dead_letters.insert(letter_key(0, 3), b"\xff").unwrap();
        let pages = |limit, bytes| {
            let (mut pages, mut from) = (Vec::new(), Some((0, 0)));
            while let Some(place) = from {
                let (letters, next) = reader.dead_letters(place, limit, bytes).unwrap();
                pages.push(letters.iter().map(|letter| (letter.partition, letter.seq)).collect::<Vec<Place>>());
                from = next;
            }
            pages
        };
        // The second is larger than a page may be; the fourth cannot be read.
        assert_eq!(pages(1_000, 1_000), [vec![(0, 0)], vec![(0, 1)], vec![(0, 2), (1, 0)], vec![(1, 1)]]);
        assert_eq!(pages(2, usize::MAX), [vec![(0, 0), (0, 1)], vec![(0, 2), (1, 0)], vec![(1, 1)]]);
    }

    #[test]
    fn an_address_is_not_a_part_of_another() {
        for text in ["a@b.co", "<A@B.co>", "to:a@b.co, x", "\u{6}a@b.co2\u{1}", "a@b.co."] {
            assert!(names(text.as_bytes(), "a@b.co"), "{text:?}");
        }
        for text in ["data@b.co", "a@b.com", "a.a@b.co", "a@b.co-op.example", ""] {
            assert!(!names(text.as_bytes(), "a@b.co"), "{text:?}");
        }
    }
}
