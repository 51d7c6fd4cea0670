//! What time it is: the wall's, or the log's own where that is simulated.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sendtrail_schemas::time::Millis;

/// The time that readers and delivery go by. On a log created as simulated it is the latest time that any record
/// carried, so that weeks pass in seconds with the very same code.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    simulated: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The wall clock.
    pub fn wall() -> Self {
        Self::default()
    }

    /// A clock that stands at `start` until a record moves it.
    pub fn simulated(start: Millis) -> Self {
        Self { simulated: Some(Arc::new(AtomicI64::new(start.0))) }
    }

    /// Now.
    pub fn now(&self) -> Millis {
        match &self.simulated {
            Some(time) => Millis(time.load(Ordering::Acquire)),
            None => Millis::wall(),
        }
    }

    /// Notes that a record's time was reached. Means nothing to the wall clock.
    pub fn reached(&self, time: Millis) {
        if let Some(latest) = &self.simulated {
            latest.fetch_max(time.0, Ordering::AcqRel);
        }
    }

    /// Whether time is the log's own.
    pub fn is_simulated(&self) -> bool {
        self.simulated.is_some()
    }
}
