//! Secrets at rest: sealed with a key that is not beside them.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::Error;

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;
/// Bytes of a nonce, random for each sealing.
pub const NONCE_LENGTH: usize = 24;
const FORMAT: u8 = 1;
const HEADER: usize = 5;

/// Seals and opens secrets (XChaCha20-Poly1305). A sealed secret is `format (1), key id (4), nonce (24), ciphertext`.
///
/// It seals with one key, and opens with that and those of before.
#[derive(Clone)]
pub struct Vault {
    current: VaultKey,
    previous: Vec<VaultKey>,
}

#[derive(Clone)]
struct VaultKey {
    cipher: XChaCha20Poly1305,
    id: [u8; 4],
}

impl VaultKey {
    fn new(key: &[u8; KEY_LENGTH]) -> Self {
        let digest = crate::directory::hash_key(&hex(key));
        let mut id = [0u8; 4];
        id.copy_from_slice(&digest[..4]);
        Self { cipher: XChaCha20Poly1305::new(&Key::from(*key)), id }
    }
}

impl Vault {
    /// A vault with a key; its identifier is derived from it, so that a wrong key is told apart.
    pub fn new(key: &[u8; KEY_LENGTH]) -> Self {
        Self { current: VaultKey::new(key), previous: Vec::new() }
    }

    /// With keys that secrets were sealed with before.
    #[must_use]
    pub fn with_previous<'a>(mut self, keys: impl IntoIterator<Item = &'a [u8; KEY_LENGTH]>) -> Self {
        self.previous.extend(keys.into_iter().map(VaultKey::new));
        self
    }

    /// Whether a secret was sealed with a key of before, or is not sealed at all.
    pub fn is_outdated(&self, sealed: &[u8]) -> bool {
        sealed.get(1..HEADER) != Some(&self.current.id[..])
    }

    /// Seals a secret for one place: it opens only with the same `context`.
    pub fn seal(&self, secret: &[u8], nonce: [u8; NONCE_LENGTH], context: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(HEADER + NONCE_LENGTH + secret.len() + 16);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&self.current.id);
        sealed.extend_from_slice(&nonce);
        // Sealing fails only beyond 256 GiB.
        let payload = Payload { msg: secret, aad: context };
        sealed.extend(self.current.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default());
        sealed
    }

    /// Opens a sealed secret.
    ///
    /// # Errors
    /// [`Error::Sealed`] when another key or context sealed it, or it was tampered with.
    pub fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Vec<u8>, Error> {
        let (header, rest) = sealed.split_at_checked(HEADER).ok_or(Error::Sealed)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LENGTH>().ok_or(Error::Sealed)?;
        if header.first() != Some(&FORMAT) {
            return Err(Error::Sealed);
        }
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        let key = keys.find(|key| header.get(1..) == Some(&key.id[..])).ok_or(Error::Sealed)?;
        let payload = Payload { msg: ciphertext, aad: context };
        key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| Error::Sealed)
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault(key {})", hex(&self.current.id))
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        text
    })
}

/// 32 bytes from 64 hexadecimal digits.
pub fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_the_same_key_and_context() {
        let vault = Vault::new(&[7; KEY_LENGTH]);
        let sealed = vault.seal(b"whsec_x", [1; NONCE_LENGTH], b"destination");
        assert_eq!(vault.open(&sealed, b"destination").unwrap(), b"whsec_x");
        assert_eq!(vault.open(&sealed, b"another"), Err(Error::Sealed));
        assert_eq!(Vault::new(&[8; KEY_LENGTH]).open(&sealed, b"destination"), Err(Error::Sealed));
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert_eq!(vault.open(&bent, b"destination"), Err(Error::Sealed), "byte {at}");
        }
        assert_eq!(vault.open(&sealed[..10], b"destination"), Err(Error::Sealed));
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
    }

    #[test]
    fn a_key_of_before_opens_and_is_told_apart() {
        let (old, new) = ([7; KEY_LENGTH], [8; KEY_LENGTH]);
        let sealed = Vault::new(&old).seal(b"whsec_x", [1; NONCE_LENGTH], b"d");
        let vault = Vault::new(&new).with_previous([&old]);
        assert_eq!((vault.open(&sealed, b"d").unwrap(), vault.is_outdated(&sealed)), (b"whsec_x".to_vec(), true));
        let anew = vault.seal(b"whsec_x", [2; NONCE_LENGTH], b"d");
        assert_eq!(
            (Vault::new(&new).open(&anew, b"d").unwrap(), vault.is_outdated(&anew)),
            (b"whsec_x".to_vec(), false)
        );
        assert_eq!(Vault::new(&old).open(&anew, b"d"), Err(Error::Sealed));
    }
}
