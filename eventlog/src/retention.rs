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
    /// Keeps intake for the state to be folded once more, if it is kept; passed with a file.
    IntakeArchive,
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
            Topic::Intake => &[Self::Processor, Self::IntakeArchive],
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
    archives_intake: bool,
    passed: Mutex<HashMap<(TopicPartition, Reader), u64>>,
}

impl Retention {
    /// For a log whose readers have passed nothing yet. `archives_intake`: whether intake is kept before it goes.
    pub fn new(log: Arc<dyn EventLog>, archives_intake: bool) -> Self {
        Self { log, archives_intake, passed: Mutex::default() }
    }

    /// Notes that a reader will never ask for anything before an offset again.
    pub fn passed(&self, reader: Reader, of: TopicPartition, before: u64) {
        let low = {
            let mut passed = self.passed.lock();
            passed.insert((of, reader), before);
            let readers = Reader::of(of.topic).iter();
            let readers = readers.filter(|reader| self.archives_intake || **reader != Reader::IntakeArchive);
            readers.map(|reader| passed.get(&(of, *reader)).copied().unwrap_or(0)).min()
        };
        if let Some(low) = low.filter(|low| *low > 0) {
            self.log.trim(of, low);
        }
    }
}
