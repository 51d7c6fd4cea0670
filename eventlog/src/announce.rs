//! How other servers learn what an owner of a partition knows.

use futures::future::BoxFuture;
use sendtrail_schemas::exchange::Seen;

use crate::Error;

/// Makes known to other servers what they must know of a partition.
///
/// Guarantees: what is announced of one partition is seen in the order of the calls, by servers that start later too, as
/// far as it is the last word on its key.
pub trait Announce: Send + Sync + 'static {
    /// Announces it; resolves once it is durable. It is on its way also when nobody waits.
    fn announce(&self, partition: u32, seen: Seen) -> BoxFuture<'static, Result<(), Error>>;
}
