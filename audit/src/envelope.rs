//! Signed documents: DSSE envelopes (<https://github.com/secure-systems-lab/dsse>) with one Ed25519 signature.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::merkle::Hash;

/// The key by which a server signs. Never shown.
pub struct SealKey(SigningKey);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

impl SealKey {
    /// Of a seed of 32 random bytes.
    pub fn new(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// What others check its signatures with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a document.
    ///
    /// # Errors
    /// [`Error::Malformed`]: it cannot be written as JSON.
    pub fn sign<T: Serialize>(&self, payload_type: &str, document: &T) -> Result<Envelope, Error> {
        let payload = serde_json::to_vec(document).map_err(|cause| Error::Malformed(cause.to_string()))?;
        let signature = self.0.sign(&to_be_signed(payload_type, &payload));
        Ok(Envelope {
            payload_type: payload_type.to_owned(),
            payload: BASE64_STANDARD.encode(payload),
            signatures: vec![SignatureOf {
                keyid: self.public().to_string(),
                sig: BASE64_STANDARD.encode(signature.to_bytes()),
            }],
        })
    }
}

/// The public half of a [`SealKey`]; as text, its 32 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0.as_bytes()))
    }
}

impl std::str::FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Malformed(format!("{text:?} is no Ed25519 public key in base64"));
        let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| malformed())?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| malformed())?;
        Ok(Self(VerifyingKey::from_bytes(&bytes).map_err(|_| malformed())?))
    }
}

/// A signed document as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// What the document is.
    pub payload_type: String,
    /// The document's bytes, base64.
    pub payload: String,
    /// The signatures; ours have one.
    pub signatures: Vec<SignatureOf>,
}

/// A signature, and by which key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignatureOf {
    /// The public key.
    pub keyid: String,
    /// The signature, base64.
    pub sig: String,
}

/// What a signature is over: DSSE's pre-authentication encoding.
fn to_be_signed(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend(payload);
    bytes
}

impl Envelope {
    /// The document's bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        BASE64_STANDARD.decode(&self.payload).map_err(|_| Error::Malformed("the payload is no base64".into()))
    }

    /// SHA-256 of the document: what the next seal names.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn hash(&self) -> Result<Hash, Error> {
        Ok(Sha256::digest(self.bytes()?).into())
    }

    /// The key that it says it was signed with, if it could be one.
    pub fn key(&self) -> Option<PublicKey> {
        self.signatures.first().and_then(|signature| signature.keyid.parse().ok())
    }

    /// The document, once a signature by one of these keys holds.
    ///
    /// # Errors
    /// [`Error::Signature`]: it does not. [`Error::Malformed`]: it is of another type or form.
    pub fn open<T: for<'a> Deserialize<'a>>(&self, payload_type: &str, keys: &[PublicKey]) -> Result<T, Error> {
        if self.payload_type != payload_type {
            return Err(Error::Malformed(format!("it is of the type {}, not {payload_type}", self.payload_type)));
        }
        let payload = self.bytes()?;
        let message = to_be_signed(payload_type, &payload);
        let holds = self.signatures.iter().any(|signature| {
            let bytes = BASE64_STANDARD.decode(&signature.sig).ok().and_then(|bytes| bytes.try_into().ok());
            let signature = bytes.map(|bytes| Signature::from_bytes(&bytes));
            signature.is_some_and(|signature| keys.iter().any(|key| key.0.verify_strict(&message, &signature).is_ok()))
        });
        if !holds {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            return Err(Error::Signature(format!("it is not signed by {}", keys.join(" or "))));
        }
        serde_json::from_slice(&payload).map_err(|cause| Error::Malformed(cause.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_opens() {
        let key = SealKey::new(&[1; 32]);
        let envelope = key.sign("text", &"hello").unwrap();
        let other = SealKey::new(&[2; 32]).public();
        let public: PublicKey = key.public().to_string().parse().unwrap();
        assert_eq!(envelope.open::<String>("text", &[other, public]).unwrap(), "hello");
        assert_eq!(envelope.key(), Some(public));
        assert!(matches!(envelope.open::<String>("text", &[other]), Err(Error::Signature(_))));
        let mut changed = envelope.clone();
        changed.payload = BASE64_STANDARD.encode("\"hallo\"");
        assert!(matches!(changed.open::<String>("text", &[other, public]), Err(Error::Signature(_))));
        // The type is signed too.
        let mut changed = envelope;
        changed.payload_type = "test".into();
        assert!(matches!(changed.open::<String>("test", &[public]), Err(Error::Signature(_))));
        assert!("short".parse::<PublicKey>().is_err());
    }
}
