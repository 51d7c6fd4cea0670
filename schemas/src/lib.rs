//! What every other room agrees on: identifiers, time, records, events, account views, codecs, columns and error
//! bodies. No IO and no runtime: everything here is a value or a pure function of values.

pub mod account;
pub mod address;
pub mod archive;
pub mod attempts;
pub mod block;
pub mod clickhouse;
pub mod codec;
pub mod columns;
pub mod destination;
pub mod directory;
pub mod event;
pub mod exchange;
pub mod ids;
pub mod kind;
pub mod mail;
pub mod networks;
pub mod personal;
pub mod problem;
pub mod record;
pub mod reputation;
pub mod rollup;
pub mod secret;
pub mod time;
pub mod topic;
pub mod web;

/// What can be wrong with a value.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Not what it should be; the text says what.
    #[error("{0}")]
    Malformed(String),
    /// Written by a newer program: upgrade this one first.
    #[error("{what} of version {version}, newer than this program reads: upgrade it first")]
    NewerVersion {
        /// What kind of record.
        what: &'static str,
        /// The version it names.
        version: u32,
    },
    /// A secret that this key does not open.
    #[error("a sealed secret does not open with the configured key")]
    Sealed,
}
