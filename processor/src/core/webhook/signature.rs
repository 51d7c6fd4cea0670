//! What a receiver verifies: the headers of each dialect, signed anew at every attempt.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sendtrail_schemas::destination::{Dialect, Envelope};
use sendtrail_schemas::secret::hex;
use sha2::Sha256;

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The delivery's identifier, the same over retries and replays.
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

/// A header: its name in lower case, and its value.
pub type Header = (&'static str, String);

/// What our own senders call themselves.
const USER_AGENT: &str = concat!("Sendtrail/", env!("CARGO_PKG_VERSION"));

/// What a body is.
pub fn content_type(envelope: Envelope) -> &'static str {
    match envelope {
        Envelope::Dialect => "application/json",
        Envelope::Cloudevents => "application/cloudevents+json; charset=utf-8",
    }
}

/// The headers of an attempt besides Content-Type. Without secrets nothing is signed; of several, only dialects that carry
/// more than one signature use more than the first.
pub fn headers(dialect: Dialect, secrets: &[Vec<u8>], signed: &Signed<'_>) -> Vec<Header> {
    let timestamp = signed.timestamp.to_string();
    let first = secrets.first().map(Vec::as_slice);
    let named = |names: [&'static str; 4], agent: &str| {
        let [event, id, attempt, time] = names;
        let mut headers = vec![("user-agent", agent.to_owned())];
        let values = [(event, signed.event_name.to_owned()), (id, signed.delivery_id.to_owned())];
        headers.extend(values.into_iter().chain([(attempt, signed.attempt.to_string()), (time, timestamp.clone())]));
        headers.retain(|(name, _)| !name.is_empty());
        headers
    };
    let of_body = |secret: &[u8]| hex(&hmac_sha256(secret, &[signed.body]));
    match dialect {
        Dialect::Splashify => {
            let names =
                ["x-splashify-event", "x-splashify-delivery-id", "x-splashify-attempt", "x-splashify-timestamp"];
            let mut headers = named(names, "Splashify-Pro-Webhook/1.0");
            headers.extend(first.map(|secret| ("x-splashify-signature", format!("sha256={}", of_body(secret)))));
            headers
        }
        Dialect::Nexuspromail => {
            let names = ["", "x-nexuspromail-delivery-id", "x-nexuspromail-attempt", ""];
            let mut headers = named(names, USER_AGENT);
            headers.extend(first.map(|secret| ("x-nexuspromail-signature", of_body(secret))));
            headers
        }
        Dialect::Sendcomms => {
            let mut headers = named(["", "x-sendcomms-delivery-id", "x-sendcomms-attempt", ""], USER_AGENT);
            headers.extend(first.map(|secret| ("x-sendcomms-signature", format!("sha256={}", of_body(secret)))));
            headers
        }
        Dialect::Zmailer => {
            let mut headers = named(["x-zmailer-event", "x-zmailer-delivery-id", "x-zmailer-attempt", ""], USER_AGENT);
            headers.extend(first.map(|secret| {
                let signature = hex(&hmac_sha256(secret, &[timestamp.as_bytes(), b".", signed.body]));
                ("x-zmailer-signature", format!("t={timestamp},v1={signature}"))
            }));
            headers
        }
        Dialect::Standard => {
            let mut headers = named(["", "webhook-id", "webhook-attempt", "webhook-timestamp"], USER_AGENT);
            headers.extend(several(secrets, signed).map(|signatures| ("webhook-signature", signatures)));
            headers
        }
        Dialect::Securesmtp => {
            let mut headers = named(["", "svix-id", "svix-attempt", "svix-timestamp"], USER_AGENT);
            headers.extend(several(secrets, signed).map(|signatures| ("svix-signature", signatures)));
            headers
        }
    }
}

/// A signature a secret, separated by spaces (Standard Webhooks, "Signature scheme").
fn several(secrets: &[Vec<u8>], signed: &Signed<'_>) -> Option<String> {
    let timestamp = signed.timestamp.to_string();
    let parts = [signed.delivery_id.as_bytes(), b".", timestamp.as_bytes(), b".", signed.body];
    let sign = |secret: &Vec<u8>| format!("v1,{}", BASE64_STANDARD.encode(hmac_sha256(&decoded_key(secret), &parts)));
    let signatures: Vec<String> = secrets.iter().map(sign).collect();
    (!signatures.is_empty()).then(|| signatures.join(" "))
}

/// The key of a Standard Webhooks or Svix secret: base64 after `whsec_`. A secret that is not is taken as it is.
fn decoded_key(secret: &[u8]) -> Vec<u8> {
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

    fn of(dialect: Dialect, secrets: &[&[u8]], name: &str) -> Option<String> {
        let signed = Signed {
            delivery_id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
            event_name: "Delivery",
            attempt: 2,
            timestamp: 1_614_265_330,
            body: br#"{"test": 2432232314}"#,
        };
        let secrets: Vec<_> = secrets.iter().map(|secret| secret.to_vec()).collect();
        headers(dialect, &secrets, &signed).into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    const SECRET: &[u8] = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    /// The vector that the Standard Webhooks and Svix libraries test with.
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn standard_webhooks_own_example_verifies_and_svix_signs_alike() {
        assert_eq!(of(Dialect::Standard, &[SECRET], "webhook-signature").unwrap(), SIGNATURE);
        assert_eq!(of(Dialect::Standard, &[SECRET], "webhook-timestamp").unwrap(), "1614265330");
        assert_eq!(of(Dialect::Standard, &[], "webhook-signature"), None);
        assert_eq!(of(Dialect::Standard, &[], "webhook-attempt").unwrap(), "2");
        assert_eq!(of(Dialect::Securesmtp, &[SECRET], "svix-signature").unwrap(), SIGNATURE);
        assert_eq!(of(Dialect::Securesmtp, &[SECRET], "svix-id").unwrap(), "msg_p5jXN8AQM9LWM0D4loKWxJek");
        let both = of(Dialect::Standard, &[b"whsec_AAAA", SECRET], "webhook-signature").unwrap();
        assert!(both.starts_with("v1,") && both.ends_with(&format!(" {SIGNATURE}")));
    }

    #[test]
    fn the_others_sign_once_with_the_secret_as_it_is() {
        // RFC 4231, test case 2.
        assert_eq!(
            hex(&hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let body = hex(&hmac_sha256(SECRET, &[br#"{"test": 2432232314}"#]));
        let signature = |dialect, name| of(dialect, &[SECRET, b"other"], name).unwrap();
        assert_eq!(signature(Dialect::Splashify, "x-splashify-signature"), format!("sha256={body}"));
        assert_eq!(signature(Dialect::Nexuspromail, "x-nexuspromail-signature"), body);
        assert_eq!(signature(Dialect::Sendcomms, "x-sendcomms-signature"), format!("sha256={body}"));
        let stamped = hex(&hmac_sha256(SECRET, &[br#"1614265330.{"test": 2432232314}"#]));
        assert_eq!(signature(Dialect::Zmailer, "x-zmailer-signature"), format!("t=1614265330,v1={stamped}"));
    }

    #[test]
    fn every_dialect_counts_attempts_and_keeps_the_delivery() {
        for (dialect, prefix) in [
            (Dialect::Splashify, "x-splashify"),
            (Dialect::Nexuspromail, "x-nexuspromail"),
            (Dialect::Sendcomms, "x-sendcomms"),
            (Dialect::Zmailer, "x-zmailer"),
        ] {
            assert_eq!(of(dialect, &[], &format!("{prefix}-attempt")).unwrap(), "2");
            assert_eq!(of(dialect, &[], &format!("{prefix}-delivery-id")).unwrap(), "msg_p5jXN8AQM9LWM0D4loKWxJek");
            assert_eq!(of(dialect, &[], &format!("{prefix}-signature")), None);
        }
        assert_eq!(of(Dialect::Splashify, &[], "x-splashify-event").unwrap(), "Delivery");
        assert_eq!(of(Dialect::Zmailer, &[], "x-zmailer-event").unwrap(), "Delivery");
        assert_eq!(of(Dialect::Splashify, &[], "user-agent").unwrap(), "Splashify-Pro-Webhook/1.0");
        assert_eq!(of(Dialect::Splashify, &[], "x-splashify-timestamp").unwrap(), "1614265330");
    }
}
