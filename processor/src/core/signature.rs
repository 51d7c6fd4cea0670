//! What a receiver verifies: the headers of each dialect, signed anew at every attempt.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sendtrail_schemas::account::Dialect;
use sendtrail_schemas::secret::hex;
use sha2::Sha256;

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The delivery's identifier, the same over retries.
    pub delivery_id: &'a str,
    /// The event's name in the dialect.
    pub event_name: &'a str,
    /// Counts from 1.
    pub attempt: u32,
    /// When the attempt begins, seconds since the epoch.
    pub timestamp: i64,
    /// The bytes of the body.
    pub body: &'a [u8],
}

/// The headers of an attempt besides Content-Type, names in lower case. Without a secret nothing is signed.
pub fn headers(dialect: Dialect, secret: Option<&[u8]>, signed: &Signed<'_>) -> Vec<(&'static str, String)> {
    let timestamp = signed.timestamp.to_string();
    match dialect {
        Dialect::Splashify => {
            let mut headers = vec![
                ("user-agent", "Splashify-Pro-Webhook/1.0".to_owned()),
                ("x-splashify-event", signed.event_name.to_owned()),
                ("x-splashify-delivery-id", signed.delivery_id.to_owned()),
                ("x-splashify-timestamp", timestamp),
                ("x-splashify-attempt", signed.attempt.to_string()),
            ];
            if let Some(secret) = secret {
                let signature = format!("sha256={}", hex(&hmac_sha256(secret, &[signed.body])));
                headers.push(("x-splashify-signature", signature));
            }
            headers
        }
        Dialect::Standard => {
            let mut headers = vec![
                ("user-agent", concat!("Sendtrail/", env!("CARGO_PKG_VERSION")).to_owned()),
                ("webhook-id", signed.delivery_id.to_owned()),
                ("webhook-timestamp", timestamp.clone()),
                ("webhook-attempt", signed.attempt.to_string()),
            ];
            if let Some(secret) = secret {
                let parts = [signed.delivery_id.as_bytes(), b".", timestamp.as_bytes(), b".", signed.body];
                let signature = BASE64_STANDARD.encode(hmac_sha256(&standard_key(secret), &parts));
                headers.push(("webhook-signature", format!("v1,{signature}")));
            }
            headers
        }
    }
}

/// The key of a Standard Webhooks secret: base64 after `whsec_`. A secret that is not is taken as it is.
fn standard_key(secret: &[u8]) -> Vec<u8> {
    let encoded = secret.strip_prefix(b"whsec_").unwrap_or(secret);
    BASE64_STANDARD.decode(encoded).unwrap_or_else(|_| secret.to_vec())
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of every length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(dialect: Dialect, secret: Option<&[u8]>, name: &str) -> Option<String> {
        let signed = Signed {
            delivery_id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
            event_name: "Delivery",
            attempt: 2,
            timestamp: 1_614_265_330,
            body: br#"{"test": 2432232314}"#,
        };
        headers(dialect, secret, &signed).into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    #[test]
    fn standard_webhooks_own_example_verifies() {
        // The vector that the Standard Webhooks and Svix libraries test with.
        let secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let signature = header(Dialect::Standard, Some(secret), "webhook-signature").unwrap();
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(header(Dialect::Standard, Some(secret), "webhook-timestamp").unwrap(), "1614265330");
        assert_eq!(header(Dialect::Standard, None, "webhook-signature"), None);
        assert_eq!(header(Dialect::Standard, None, "webhook-attempt").unwrap(), "2");
    }

    #[test]
    fn s2_signs_the_body_in_hex() {
        // RFC 4231, test case 2.
        assert_eq!(
            hex(&hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let signature = header(Dialect::Splashify, Some(b"secret"), "x-splashify-signature").unwrap();
        assert!(signature.starts_with("sha256=") && signature.len() == 7 + 64);
        assert_eq!(header(Dialect::Splashify, Some(b"secret"), "x-splashify-event").unwrap(), "Delivery");
        assert_eq!(header(Dialect::Splashify, None, "user-agent").unwrap(), "Splashify-Pro-Webhook/1.0");
    }
}
