//! Salts of the persons of a sealed day: with its salt, a person's fields can be checked; without, nobody can guess them
//! from what is left.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::Error;

/// Bytes of a salt.
pub const SALT_LENGTH: usize = 16;
/// Bytes of a record of the side file.
const RECORD: usize = 2 * SALT_LENGTH;

/// Names a recipient of an account without naming them: the first 16 bytes of a SHA-256.
pub type SubjectKey = [u8; SALT_LENGTH];

/// The key of a recipient: of `SHA-256(account ‖ 0x00 ‖ folded recipient)`. Rows without a recipient have the empty one.
pub fn subject_key(account: &str, recipient: &str) -> SubjectKey {
    let hash = Sha256::new_with_prefix(account).chain_update([0]).chain_update(recipient).finalize();
    let mut key = SubjectKey::default();
    key.copy_from_slice(&hash[..SALT_LENGTH]);
    key
}

/// The salts of one seal.
#[derive(Debug, Default)]
pub struct Salts {
    of: HashMap<SubjectKey, [u8; SALT_LENGTH]>,
}

impl Salts {
    /// Reads a side file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`]: it is not one.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(Error::io(format!("read {}", path.display())))?;
        if bytes.len() % RECORD != 0 {
            return Err(Error::Malformed(format!("{} does not hold whole records", path.display())));
        }
        let halves = |record: &[u8]| {
            let (mut key, mut salt) = ([0; SALT_LENGTH], [0; SALT_LENGTH]);
            key.copy_from_slice(&record[..SALT_LENGTH]);
            salt.copy_from_slice(&record[SALT_LENGTH..]);
            (key, salt)
        };
        Ok(Self { of: bytes.chunks_exact(RECORD).map(halves).collect() })
    }

    /// As a side file: 16 bytes of key and 16 of salt each, in the order of the keys.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut all: Vec<_> = self.of.iter().collect();
        all.sort_unstable();
        all.into_iter().flat_map(|(key, salt)| key.iter().chain(salt).copied()).collect()
    }

    /// The salt of somebody.
    pub fn get(&self, subject: &SubjectKey) -> Option<&[u8; SALT_LENGTH]> {
        self.of.get(subject)
    }

    /// The salt of somebody, which is made if there is none.
    pub fn get_or_make(
        &mut self,
        subject: SubjectKey,
        make: &mut dyn FnMut() -> [u8; SALT_LENGTH],
    ) -> &[u8; SALT_LENGTH] {
        self.of.entry(subject).or_insert_with(make)
    }

    /// Forgets somebody's; whether it was there.
    pub fn remove(&mut self, subject: &SubjectKey) -> bool {
        self.of.remove(subject).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}
