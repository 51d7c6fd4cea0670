//! Projections made anew from the archive, for a server that is stopped.

use std::collections::HashMap;

use sendtrail_schemas::attempts::{LoggedAttempt, read_attempts};
use sendtrail_schemas::columns::read_events;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::archive::{Table, read_file};
use crate::{Error, Projections};

/// What projections were made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rebuilt {
    /// Events.
    pub events: u64,
    /// Attempts.
    pub attempts: u64,
}

/// Makes the sums and the last attempts anew. Afterwards they are those of the files, and the log has the rest. Broken off, it
/// leaves projections that no server opens.
///
/// The order of rows makes no difference: sums are added up, an hour overflows by how many rows it has, and of a delivery's
/// attempts that one counts which was recorded last.
///
/// # Errors
/// [`Error`]; run it again then.
pub async fn rebuild_projections(
    events: &Table,
    attempts: &Table,
    projections: &mut Projections,
    partitions: u32,
) -> Result<Rebuilt, Error> {
    projections.begin_rebuild(partitions)?;
    let rebuilt = Rebuilt { events: add_events(events, projections)?, attempts: add_attempts(attempts, projections)? };
    let mut marks = Vec::new();
    for partition in 0..partitions {
        marks.push((TopicPartition::new(Topic::Events, partition), events.mark(partition).await?));
        marks.push((TopicPartition::new(Topic::Attempts, partition), attempts.mark(partition).await?));
    }
    projections.end_rebuild(&marks)?;
    Ok(rebuilt)
}

fn add_events(table: &Table, projections: &mut Projections) -> Result<u64, Error> {
    let mut rows = 0;
    for file in table.files() {
        for batch in read_file(table.layout(), table.root(), &file)? {
            for event in read_events(&batch?)? {
                projections.add_sums(&event)?;
                projections.add_pending(&event)?;
                projections.add_erasure(&event)?;
                rows += 1;
            }
        }
        projections.flush(true)?;
    }
    Ok(rows)
}

/// Files are in the order of accounts and times, and one delivery's attempts may be in several: the last is the one that
/// was recorded last.
fn add_attempts(table: &Table, projections: &mut Projections) -> Result<u64, Error> {
    let reader = projections.reader();
    let mut rows = 0;
    for file in table.files() {
        for batch in read_file(table.layout(), table.root(), &file)? {
            let mut last: HashMap<_, LoggedAttempt> = HashMap::new();
            for logged in read_attempts(&batch?)? {
                rows += 1;
                let name = (logged.partition, logged.attempt.event_seq, logged.attempt.destination_id.clone());
                if last.get(&name).is_none_or(|kept| kept.offset < logged.offset) {
                    last.insert(name, logged);
                }
            }
            for logged in last.into_values() {
                let attempt = &logged.attempt;
                let known = reader.last_attempt(logged.partition, attempt.event_seq, attempt.destination()?)?;
                if known.is_none_or(|known| known.attempts == 0 || known.offset < logged.offset) {
                    projections.add_attempt(logged.partition, logged.offset, attempt);
                }
            }
            projections.flush(false)?;
        }
    }
    projections.flush(true)?;
    Ok(rows)
}

#[cfg(test)]
mod tests;
