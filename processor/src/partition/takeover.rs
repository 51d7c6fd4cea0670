//! Before a partition begins: the state that another server left.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sendtrail_eventlog::Error as LogError;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Partition;
use crate::Error;
use crate::snapshots::{Taker, Until};

/// How long each object of a snapshot may take to be read. Whoever has a state goes on without.
const PATIENCE: Duration = Duration::from_secs(600);

impl Partition {
    /// Takes over the state that another server left, if it is far ahead of what is here, or what is here is too old.
    pub(super) fn ready(
        &self,
        handle: &Handle,
        taker: &mut Option<Arc<Mutex<Taker>>>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        self.clear_remains()?;
        let Some(snapshots) = self.snapshots.as_ref().filter(|_| taker.is_none()) else { return Ok(()) };
        let known = self.store.progress(self.number)?.map(|progress| progress.next_offset);
        let end = *self.log.end(self.intake()).borrow();
        let is_old =
            known.is_some_and(|known| matches!(self.log.read(self.intake(), known, 1), Err(LogError::Trimmed { .. })));
        let until = Until::new(stop, PATIENCE);
        // Not given up in the middle: what is still being written would be written into what another one makes of it.
        let begun = handle.block_on(async {
            match snapshots.restore(&self.store, &self.views, self.number, end, is_old, &until).await {
                Ok(_) => {}
                Err(error) if stop.is_cancelled() => return Err(error),
                // Others lack them, this one has a state of its own.
                Err(error) if self.store.progress(self.number)?.is_some() => {
                    tracing::error!(partition = self.number, %error, "snapshots cannot be read");
                }
                Err(error) => return Err(error),
            }
            self.clear_remains()?;
            Ok::<_, Error>(Taker::begin(snapshots.clone(), self.store.clone(), self.number, &until).await)
        })?;
        *taker = Some(Arc::new(Mutex::new(begun)));
        Ok(())
    }

    /// What a restore left that did not end would be taken for what was seen.
    fn clear_remains(&self) -> Result<(), Error> {
        if self.store.progress(self.number)?.is_none() { self.store.empty(self.number) } else { Ok(()) }
    }
}
