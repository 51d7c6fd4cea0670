//! The state machine of every account, and what surrounds it: store, delivery, dispatcher, sinks and projections.

pub mod core;
mod partition;
mod store;
mod views;

pub use partition::{Inquiries, Inquiry, Partition, PartitionHandle};
pub use store::{Store, Writes};
pub use views::Views;

/// What can go wrong around the core.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error("the state store: {0}")]
    Store(#[from] fjall::Error),
    /// The log failed.
    #[error("the log: {0}")]
    Log(#[from] sendtrail_eventlog::Error),
    /// A row or record is not what it should be.
    #[error("{0}")]
    Schema(#[from] sendtrail_schemas::Error),
    /// The device failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        cause: std::io::Error,
    },
}
