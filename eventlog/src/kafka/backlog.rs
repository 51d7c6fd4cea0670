//! Records that are no longer in memory, read from the broker by consumers of their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail_schemas::topic::TopicPartition;

use super::connect::{self, Context, Health, io};
use super::numbers::{gap, number, received_at, watermarks};
use super::tail::{Piece, is_gone};
use super::{Options, PATIENCE};
use crate::Error;
use crate::batch::StoredBatch;

/// How long a consumer that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);

/// Places that are remembered of a partition.
const KNOWN: usize = 1_000;

/// See the module.
pub struct Backlog {
    options: Arc<Options>,
    health: Arc<Health>,
    places: Mutex<HashMap<TopicPartition, Places>>,
}

/// What is known of one partition.
#[derive(Default)]
struct Places {
    free: Vec<Seeker>,
    /// Numbers, and offsets before which they were not written.
    known: BTreeMap<u64, i64>,
}

/// A consumer of one partition, and the number that it returns next.
struct Seeker {
    consumer: BaseConsumer<Context>,
    next: Option<u64>,
    used: Instant,
}

impl Backlog {
    pub fn new(options: Arc<Options>, health: Arc<Health>) -> Self {
        Self { options, health, places: Mutex::default() }
    }

    /// Records from a number on, up to about `max_bytes` but at least one, none from `until` on.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when the broker no longer has them; [`Error::Corrupt`] at a gap; [`Error::Io`].
    pub fn read(&self, of: TopicPartition, from: u64, until: u64, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        let mut seeker = self.take(of, from)?;
        let name = self.options.topic(of.topic);
        let (mut low, mut begin) = (-1, self.begin(of, from));
        if seeker.next != Some(from) {
            low = watermarks(&seeker.consumer, &name, of.partition)?.0;
            begin = begin.max(low);
            if !of.topic.is_numbered() && low > from as i64 {
                return Err(Error::Trimmed { of, from, first: low as u64 });
            }
            seeker.go_to(&name, of, begin)?;
        }
        let (mut next, mut bytes, mut offset) = (from, 0, begin);
        let mut batches = Vec::new();
        let mut piece = Piece::new(from, 0);
        while next < until && (bytes == 0 || bytes < max_bytes) {
            let Some(message) = seeker.next_message()? else {
                let first = watermarks(&seeker.consumer, &name, of.partition)?.0 as u64;
                return Err(Error::Trimmed { of, from, first });
            };
            let found = number(&message, of.topic)?;
            if found < next {
                // Written again after a crash.
                continue;
            }
            if found > next && next == from && begin == low {
                return Err(Error::Trimmed { of, from, first: found });
            }
            if found > next {
                return Err(gap(&message, found, next));
            }
            let at = received_at(&message);
            if !piece.takes(found, at) {
                batches.push(std::mem::replace(&mut piece, Piece::new(found, at)).finish());
            }
            let payload = message.payload().unwrap_or_default();
            piece.push(payload);
            // Never nothing, so that there is progress.
            bytes += payload.len() + 4;
            next += 1;
            offset = message.offset() + 1;
        }
        self.learn(of, next, offset);
        batches.push(piece.finish());
        batches.retain(|batch| batch.count > 0);
        self.health.well();
        if next < until {
            seeker.next = Some(next);
            seeker.used = Instant::now();
            self.places.lock().entry(of).or_default().free.push(seeker);
        } else {
            // Memory goes on from here.
            connect::end_aside(seeker);
        }
        Ok(batches)
    }

    /// An offset at which a number may be looked for: what is written again only puts it further back.
    fn begin(&self, of: TopicPartition, number: u64) -> i64 {
        if !of.topic.is_numbered() {
            return number as i64;
        }
        let places = self.places.lock();
        let known = places.get(&of).and_then(|places| places.known.range(..=number).next_back());
        known.map_or(number as i64, |(near, offset)| offset + (number - near) as i64)
    }

    fn learn(&self, of: TopicPartition, number: u64, offset: i64) {
        if of.topic.is_numbered() {
            let mut places = self.places.lock();
            let known = &mut places.entry(of).or_default().known;
            known.insert(number, offset);
            if known.len() > KNOWN {
                known.pop_first();
            }
        }
    }

    /// The consumer that stands at a number, or another that is free, or a new one.
    fn take(&self, of: TopicPartition, from: u64) -> Result<Seeker, Error> {
        let (taken, idle) = {
            let mut all = self.places.lock();
            let idle: Vec<Seeker> =
                all.values_mut().flat_map(|of| of.free.extract_if(.., |it| it.used.elapsed() > IDLE)).collect();
            let free = &mut all.entry(of).or_default().free;
            let at = free.iter().position(|seeker| seeker.next == Some(from));
            (at.map(|at| free.swap_remove(at)), idle)
        };
        if !idle.is_empty() {
            connect::end_aside(idle);
        }
        if let Some(seeker) = taken {
            return Ok(seeker);
        }
        let consumer = connect::create(&connect::consumer(&self.options), &self.health)?;
        Ok(Seeker { consumer, next: None, used: Instant::now() })
    }
}

impl Seeker {
    fn go_to(&self, name: &str, of: TopicPartition, offset: i64) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        let at = Offset::Offset(offset);
        list.add_partition_offset(name, of.partition as i32, at).map_err(io("read older records"))?;
        self.consumer.assign(&list).map_err(io("read older records"))
    }

    /// The next record; none when the broker no longer has what stands there.
    fn next_message(&self) -> Result<Option<BorrowedMessage<'_>>, Error> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.consumer.poll(PATIENCE / 10) {
                Some(Ok(message)) => return Ok(Some(message)),
                Some(Err(error)) if is_gone(&error) => return Ok(None),
                // The client goes on by itself.
                Some(Err(error)) => tracing::debug!(%error, "older records"),
                None => {}
            }
        }
        Err(Error::Io { what: "read older records".into(), cause: "Kafka does not answer".into() })
    }
}
