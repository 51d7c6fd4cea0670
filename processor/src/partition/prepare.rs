//! From bytes to something that can be stepped, or to the reason why not.

use std::collections::HashMap;

use bytes::Bytes;
use sendtrail_schemas::codec;
use sendtrail_schemas::record::{Body, Record};

use crate::core::overlay::Keys;
use crate::core::step::{LOGIC_VERSION, keys};

/// What to do with a record of the log.
pub enum Prepared<'a> {
    /// Step it.
    Step(Box<Record>, Keys),
    /// Pass it over, as a later record tells.
    Skip(Bytes, &'a str),
    /// It is not a record: tell that it is to be skipped.
    Poison(String),
    /// A newer program wrote it: apply nothing more.
    Newer(String),
}

/// Decodes a record and finds what its step will read.
pub fn prepare<'a>(record: &sendtrail_eventlog::Record, skips: &'a HashMap<u64, String>) -> Prepared<'a> {
    if let Some(reason) = skips.get(&record.offset) {
        return Prepared::Skip(record.value.clone(), reason);
    }
    match codec::decode::<Record>(&record.value) {
        Ok(Record { body: Some(Body::Settings(settings)), .. }) if settings.logic_version > LOGIC_VERSION => {
            Prepared::Newer(newer_logic(settings.logic_version))
        }
        Ok(decoded) if decoded.body.is_none() => Prepared::Poison("intake record without a body".into()),
        Ok(decoded) => {
            let keys = keys(&decoded);
            Prepared::Step(Box::new(decoded), keys)
        }
        Err(error @ sendtrail_schemas::Error::NewerVersion { .. }) => Prepared::Newer(error.to_string()),
        Err(error) => Prepared::Poison(error.to_string()),
    }
}

/// Why a partition that a newer program has decided in is halted.
pub fn newer_logic(version: u32) -> String {
    format!("it decides by logic {version}; this program knows {LOGIC_VERSION}")
}
