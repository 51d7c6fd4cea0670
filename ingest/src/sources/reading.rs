//! The thread that reads a topic and understands its messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sendtrail_eventlog::kafka::SourceTopic;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::numbering::Numbering;
use super::rule::{Item, Rule};
use super::{Part, Reached, Source, Start, Status};
use crate::Error;

/// What one chunk may hold before no more is read for it: messages, the records that they became, and the bytes of those.
const MESSAGES: u64 = 2_000;
const ITEMS: usize = 10_000;
const BYTES: usize = 8 << 20;
/// How long nothing may come before it is looked around.
const PATIENCE: Duration = Duration::from_millis(200);
/// How soon it is tried again to hand over what was not taken.
const FULL: Duration = Duration::from_millis(2);
/// How often it is looked how far there is to go, and how many partitions there are.
const LOOK: Duration = Duration::from_secs(5);

/// What was read at once.
#[derive(Default)]
pub struct Chunk {
    /// What the messages became.
    pub items: Vec<Item>,
    /// Up to where they go.
    pub reached: Reached,
    /// How many there were.
    pub messages: u64,
}

/// In which order partitions are asked where they end: those that did not answer come last.
struct Turns(Vec<u32>);

impl Turns {
    /// Asks one after the other until one does not answer: that was waited for, and nothing is read meanwhile. Those after it have
    /// their turn the next time.
    fn ask(&mut self, mut answers: impl FnMut(u32) -> bool) {
        let silent = self.0.iter().position(|partition| !answers(*partition));
        if let Some(silent) = silent {
            self.0[silent..].rotate_left(1);
        }
    }
}

/// See the module.
pub struct Reading {
    topic: SourceTopic,
    name: String,
    rule: Arc<Rule>,
    status: Status,
    partitions: u32,
    settled: Arc<Mutex<Reached>>,
}

impl Reading {
    /// Connects, and begins where the log says that everything before is there. Blocks.
    ///
    /// # Errors
    /// [`Error::Topic`] when the brokers do not answer; [`Error::Port`] when messages are gone that were not read.
    pub fn begin(source: &Source, mut numbering: Numbering) -> Result<(Self, Numbering), Error> {
        let topic = SourceTopic::new(source.options.clone()).map_err(Error::Topic)?;
        let partitions = topic.partitions().map_err(Error::Topic)?;
        let is_new = numbering.is_new();
        for partition in 0..partitions {
            let (first, end) = topic.bounds(partition).map_err(Error::Topic)?;
            let from = match numbering.settled(partition) {
                Some(settled) => resume(source, partition, settled, first, end)?,
                None if is_new && source.start == Start::Latest => end,
                // Also of a partition that was added later.
                None => first,
            };
            numbering.settle(partition, from);
        }
        let places = numbering.all_settled().iter().map(|(partition, offset)| (*partition, *offset));
        topic.begin(places).map_err(Error::Topic)?;
        let settled = Arc::new(Mutex::new(numbering.all_settled().clone()));
        let (name, rule, status) = (source.name.clone(), source.rule.clone(), source.status.clone());
        Ok((Self { topic, name, rule, status, partitions, settled }, numbering))
    }

    /// Where it is noted how far the log has come.
    pub fn settled(&self) -> Arc<Mutex<Reached>> {
        self.settled.clone()
    }

    /// Reads until nobody takes it any more, or something goes wrong. Blocks.
    pub fn run(self, chunks: &mpsc::Sender<Result<Chunk, Error>>) {
        if let Err(error) = self.read(chunks) {
            // Whoever took chunks may be gone.
            let _ = chunks.blocking_send(Err(error));
        }
    }

    fn read(&self, chunks: &mpsc::Sender<Result<Chunk, Error>>) -> Result<(), Error> {
        let mut looked = Instant::now();
        let mut turns = Turns(self.settled.lock().keys().copied().collect());
        while !chunks.is_closed() {
            let (mut chunk, mut bytes) = (Chunk::default(), 0);
            self.topic.read(PATIENCE, |message| {
                let before = chunk.items.len();
                self.rule.read(&self.name, &message, &mut chunk.items);
                bytes += chunk.items.iter().skip(before).map(|item| item.body.encoded_len()).sum::<usize>();
                chunk.reached.insert(message.partition, message.offset + 1);
                chunk.messages += 1;
                chunk.messages < MESSAGES && chunk.items.len() < ITEMS && bytes < BYTES
            })?;
            if chunk.messages == 0 {
                // Where transactions end there is no message.
                chunk.reached = self.topic.positions().map_err(Error::Topic)?.into_iter().collect();
                let settled = self.settled.lock();
                chunk.reached.retain(|partition, offset| settled.get(partition).is_none_or(|settled| settled < offset));
            }
            let mut next = (!chunk.reached.is_empty()).then_some(Ok(chunk));
            loop {
                if looked.elapsed() >= LOOK {
                    self.look(&mut turns)?;
                    looked = Instant::now();
                }
                // What is not taken must not keep it from telling how far there is to go.
                match next.take().map(|next| chunks.try_send(next)) {
                    Some(Err(TrySendError::Full(full))) => next = Some(full),
                    _ => break,
                }
                std::thread::sleep(FULL);
            }
        }
        self.topic.note(self.settled.lock().clone());
        Ok(())
    }

    /// Tells how far it has come, and how far there is to go.
    fn look(&self, turns: &mut Turns) -> Result<(), Error> {
        let settled = self.settled.lock().clone();
        let partitions = match self.topic.partitions() {
            Ok(partitions) => partitions,
            Err(error) => {
                let why = self.topic.failure().unwrap_or_else(|| error.to_string());
                self.status.tell(&self.name, Part::Topic, Some(why));
                return Ok(());
            }
        };
        self.status.tell(&self.name, Part::Topic, None);
        if partitions != self.partitions {
            return Err(Error::Port(format!("the topic now has {partitions} partitions; beginning anew")));
        }
        turns.ask(|partition| {
            // One that nobody leads for a moment is no reason to stop.
            let Ok((_, end)) = self.topic.bounds(partition) else { return false };
            let offset = settled.get(&partition).copied().unwrap_or(end);
            self.status.tell_lag(&self.name, partition, end.saturating_sub(offset));
            true
        });
        self.topic.note(settled);
        Ok(())
    }
}

/// Where to go on after what is settled.
fn resume(source: &Source, partition: u32, settled: u64, first: u64, end: u64) -> Result<u64, Error> {
    let place = format!("{} partition {partition}", source.name);
    if settled > end {
        return Err(Error::Port(format!(
            "{place} ends at {end}, and was read up to {settled}: it is another topic by now. Give the source a name of its own"
        )));
    }
    if settled >= first {
        return Ok(settled);
    }
    let lost = first - settled;
    if !source.accept_loss {
        return Err(Error::Port(format!(
            "{place} begins at {first}, and was read up to {settled}: up to {lost} messages were deleted unread. \
             With accept_loss = true it goes on at {first}"
        )));
    }
    tracing::error!(source = source.name, partition, lost, "messages were deleted unread; going on without them");
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_waits_for_one_silent_partition_and_tells_of_all_others() {
        let mut turns = Turns((0..12).collect());
        // Ten are silent, then two of these answer again, then all.
        let times: [fn(u32) -> bool; 3] = [|of| of < 10, |of| (2..10).contains(&of), |_| false];
        for is_silent in times {
            for _ in 0..10 {
                look(&mut turns, is_silent);
            }
            let (mut told, _) = look(&mut turns, is_silent);
            told.sort_unstable();
            assert_eq!(told, (0..12).filter(|of| !is_silent(*of)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_silent_partition_has_its_turn() {
        let mut turns = Turns((0..5).collect());
        let silent: Vec<Option<u32>> = (0..6).map(|_| look(&mut turns, |of| [1, 2, 4].contains(&of)).1).collect();
        assert_eq!(silent, [1, 2, 4, 1, 2, 4].map(Some));
    }

    /// Those that answered, and the one that did not.
    fn look(turns: &mut Turns, is_silent: fn(u32) -> bool) -> (Vec<u32>, Option<u32>) {
        let (mut told, mut waited) = (Vec::new(), None);
        turns.ask(|partition| {
            assert_eq!(waited, None, "it is waited for one only");
            if is_silent(partition) {
                waited = Some(partition);
            } else {
                told.push(partition);
            }
            waited.is_none()
        });
        (told, waited)
    }
}
