// hmac 0.13, sha2 0.11, base64 0.23, subtle 2
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

fn sign(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("keys of any length will do");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fresh(stamp: &str, now: i64) -> bool {
    stamp.parse::<i64>().is_ok_and(|stamp| (now - stamp).abs() <= 300)
}

/// Whether a post is genuine; `body` is what came, `now` the time in Unix seconds.
pub fn verify<'a>(dialect: &str, secret: &str, header: impl Fn(&str) -> &'a str, body: &[u8], now: i64) -> bool {
    let same = |one: &str, other: &str| bool::from(one.as_bytes().ct_eq(other.as_bytes()));
    match dialect {
        "standard" | "securesmtp" => {
            let of = if dialect == "standard" { "webhook" } else { "svix" };
            let (id, stamp) = (header(&format!("{of}-id")), header(&format!("{of}-timestamp")));
            let Ok(key) = BASE64_STANDARD.decode(secret.trim_start_matches("whsec_")) else { return false };
            let parts = [id.as_bytes(), b".", stamp.as_bytes(), b".", body];
            let wanted = format!("v1,{}", BASE64_STANDARD.encode(sign(&key, &parts)));
            fresh(stamp, now) && header(&format!("{of}-signature")).split(' ').any(|given| same(given, &wanted))
        }
        "zmailer" => {
            let given = header("x-zmailer-signature");
            let part = |name: &str| given.split(',').find_map(|part| part.strip_prefix(name)).unwrap_or_default();
            let (stamp, signature) = (part("t="), part("v1="));
            fresh(stamp, now) && same(signature, &hex(&sign(secret.as_bytes(), &[stamp.as_bytes(), b".", body])))
        }
        _ => {
            let prefix = if dialect == "nexuspromail" { "" } else { "sha256=" };
            let wanted = format!("{prefix}{}", hex(&sign(secret.as_bytes(), &[body])));
            same(header(&format!("x-{dialect}-signature")), &wanted)
        }
    }
}
