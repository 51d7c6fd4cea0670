//! What may be trimmed: what every essential reader has passed.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::EventLog;

/// Who must have read a record before it may go. Readers that can be refilled from elsewhere are not among them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reader {
    /// Steps intake records; passed with a checkpoint.
    Processor,
    /// Writes events and attempts to Parquet; passed with a commit, once projections have them too.
    Archive,
    /// Posts events to webhooks; passed with a checkpoint.
    Dispatcher,
    /// Hands messages to servers; passed with their outcome.
    Delivery,
    /// Keeps dead letters for the operator.
    DeadLetters,
}

impl Reader {
    fn of(topic: Topic) -> &'static [Self] {
        match topic {
            Topic::Intake => &[Self::Processor],
            Topic::Events => &[Self::Archive, Self::Dispatcher],
            Topic::Mail => &[Self::Delivery],
            Topic::Attempts => &[Self::Dispatcher, Self::Archive],
            Topic::DeadLetter => &[Self::DeadLetters],
        }
    }
}

/// Gathers how far readers are and trims the log behind the slowest.
pub struct Retention {
    log: Arc<dyn EventLog>,
    passed: Mutex<HashMap<(TopicPartition, Reader), u64>>,
}

impl Retention {
    /// For a log whose readers have passed nothing yet.
    pub fn new(log: Arc<dyn EventLog>) -> Self {
        Self { log, passed: Mutex::default() }
    }

    /// Notes that a reader will never ask for anything before an offset again.
    pub fn passed(&self, reader: Reader, of: TopicPartition, before: u64) {
        let low = {
            let mut passed = self.passed.lock();
            passed.insert((of, reader), before);
            Reader::of(of.topic).iter().map(|reader| passed.get(&(of, *reader)).copied().unwrap_or(0)).min()
        };
        if let Some(low) = low.filter(|low| *low > 0) {
            self.log.trim(of, low);
        }
    }
}
