//! The producer. It lives until a delivery fails; the next one goes on after the last number that was acknowledged
//! without a hole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::{oneshot, watch};

use super::connect::{self, Context, Health};
use super::numbers::{End, key};
use super::{Options, PATIENCE};
use crate::{Batch, Error};

/// The first number of a batch, and the one after its last: where others write, too, theirs may be in between.
type Outcome = Result<(u64, u64), Error>;
type Written = BoxFuture<'static, Result<Outcome, oneshot::error::RecvError>>;

/// See the module.
pub struct Writer {
    options: Arc<Options>,
    health: Arc<Health>,
    lanes: HashMap<TopicPartition, Arc<Lane>>,
    current: Mutex<Current>,
    queued: Arc<AtomicU64>,
}

struct Current {
    producer: Option<Arc<Generation>>,
    made: u64,
    closed: bool,
}

/// One producer, from its making to its first failure.
struct Generation {
    number: u64,
    broken: Arc<AtomicBool>,
    producer: ThreadedProducer<Acknowledging>,
}

/// One partition, as it is written.
struct Lane {
    name: String,
    partition: i32,
    order: Mutex<Order>,
    /// The number after the last acknowledged one, and the generation that may still raise it.
    acknowledged: watch::Sender<(Option<u64>, u64)>,
}

struct Order {
    /// The number after the last that was handed to the producer.
    next: Option<u64>,
    generation: u64,
}

/// One batch on its way.
struct Ticket {
    left: AtomicU32,
    first_offset: AtomicI64,
    last_offset: AtomicI64,
    bytes: u64,
    numbers: Option<(u64, u64)>,
    failed: Mutex<Option<String>>,
    done: Mutex<Option<oneshot::Sender<Outcome>>>,
    lane: Arc<Lane>,
    generation: u64,
    queued: Arc<AtomicU64>,
}

impl Ticket {
    fn settle(&self, outcome: Result<i64, String>) {
        match outcome {
            Ok(offset) => {
                self.first_offset.fetch_min(offset, Ordering::AcqRel);
                self.last_offset.fetch_max(offset, Ordering::AcqRel);
            }
            Err(why) => drop(self.failed.lock().get_or_insert(why)),
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        self.queued.fetch_sub(self.bytes, Ordering::AcqRel);
        let outcome = match self.failed.lock().take() {
            Some(why) => {
                // Whoever waits for this generation's numbers waits in vain.
                self.lane
                    .acknowledged
                    .send_modify(|(_, generation)| *generation = (*generation).max(self.generation + 1));
                Err(Error::InDoubt(why))
            }
            None => {
                if let Some((_, next)) = self.numbers {
                    self.lane.acknowledged.send_modify(|(number, _)| *number = (*number).max(Some(next)));
                }
                let place = |offset: &AtomicI64| offset.load(Ordering::Acquire) as u64;
                Ok(self.numbers.unwrap_or_else(|| (place(&self.first_offset), place(&self.last_offset) + 1)))
            }
        };
        if let Some(done) = self.done.lock().take() {
            // The caller may have given up waiting.
            let _ = done.send(outcome);
        }
    }
}

/// Counts acknowledgements, and notices the failure that ends a producer.
struct Acknowledging {
    usual: Context,
    broken: Arc<AtomicBool>,
}

impl ClientContext for Acknowledging {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.usual.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.usual.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.usual.generate_oauth_token(config)
    }
}

impl ProducerContext for Acknowledging {
    type DeliveryOpaque = Arc<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Arc<Ticket>) {
        match result {
            Ok(message) if message.offset() >= 0 => {
                self.usual.health.well();
                ticket.settle(Ok(message.offset()));
            }
            // The broker says that it has the record from before, but not where.
            Ok(_) => {
                self.broken.store(true, Ordering::Release);
                ticket.settle(Err("acknowledged without an offset".into()));
            }
            Err((error, _)) => {
                self.broken.store(true, Ordering::Release);
                ticket.settle(Err(error.to_string()));
            }
        }
    }
}

impl Writer {
    pub fn new(options: Arc<Options>, health: Arc<Health>) -> Self {
        let lane = |of: TopicPartition| {
            let lane = Lane {
                name: options.topic(of.topic),
                partition: of.partition as i32,
                order: Mutex::new(Order { next: None, generation: 0 }),
                acknowledged: watch::Sender::new((None, 0)),
            };
            (of, Arc::new(lane))
        };
        let lanes = options.all().map(lane).collect();
        let current = Mutex::new(Current { producer: None, made: 0, closed: false });
        Self { options, health, lanes, current, queued: Arc::default() }
    }

    /// Goes on where numbered partitions end, which others may have written meanwhile.
    pub fn begin<'a>(&self, ends: impl Iterator<Item = (&'a TopicPartition, &'a End)>) {
        for (of, end) in ends.filter(|(of, _)| of.topic.is_numbered()) {
            let Some(lane) = self.lanes.get(of) else { continue };
            let mut order = lane.order.lock();
            // Where nothing is left on the broker, nobody knows which number comes next but the state.
            let later = |known: Option<u64>| end.next.map(|next| known.map_or(next, |known| known.max(next)));
            order.next = later(order.next);
            lane.acknowledged.send_modify(|(number, _)| *number = later(*number));
        }
    }

    /// Bytes that are not acknowledged yet.
    pub fn queued_bytes(&self) -> u64 {
        self.queued.load(Ordering::Acquire)
    }

    /// Hands a batch to the producer.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Gap`], [`Error::Failed`], [`Error::Settings`], [`Error::Write`]: nothing was written.
    pub fn append(&self, to: TopicPartition, batch: &Batch) -> Result<Written, Error> {
        let lane = self.lanes.get(&to).ok_or_else(|| {
            let count = self.options.partitions;
            Error::Settings(format!("{to} does not exist: there are {count} partitions"))
        })?;
        let queued = self.queued.load(Ordering::Acquire);
        if to.topic == Topic::Intake && queued > 0 && queued + batch.bytes() as u64 > self.options.queue_bytes {
            return Err(Error::Full);
        }
        let generation = self.generation()?;
        let mut order = lane.order.lock();
        if order.generation != generation.number {
            // What the producer before had not been told of is in doubt: it is written again, and readers drop it.
            let (acknowledged, _) = *lane.acknowledged.borrow();
            *order = Order { next: acknowledged, generation: generation.number };
        }
        let dropped = match (batch.first_number(), order.next) {
            (Some(first), Some(next)) if first > next => return Err(Error::Gap { of: to, first, next }),
            (Some(first), Some(next)) => (next - first).min(batch.len() as u64) as u32,
            _ => 0,
        };
        let count = batch.len() as u32 - dropped;
        let numbers = batch.first_number().zip(batch.next_number());
        if count == 0 {
            drop(order);
            return Ok(lane.wait(numbers, generation.number));
        }
        let (done, wait) = oneshot::channel();
        let bytes = batch.bytes() as u64;
        self.queued.fetch_add(bytes, Ordering::AcqRel);
        let ticket = Arc::new(Ticket {
            left: AtomicU32::new(count),
            first_offset: AtomicI64::new(i64::MAX),
            last_offset: AtomicI64::new(i64::MIN),
            bytes,
            numbers,
            failed: Mutex::default(),
            done: Mutex::new(Some(done)),
            lane: lane.clone(),
            generation: generation.number,
            queued: self.queued.clone(),
        });
        for (at, payload) in batch.payloads().enumerate().skip(dropped as usize) {
            let key = batch.first_number().map(|first| key(first + at as u64));
            let mut record =
                BaseRecord::with_opaque_to(&lane.name, ticket.clone()).partition(lane.partition).payload(payload);
            if let Some(key) = &key {
                record = record.key(key.as_slice());
            }
            if let Err((error, _)) = generation.producer.send(record) {
                generation.broken.store(true, Ordering::Release);
                (at..batch.len()).for_each(|_| ticket.settle(Err(error.to_string())));
                break;
            }
        }
        order.next = batch.next_number();
        Ok(wait.boxed())
    }

    /// The producer that works, or a new one.
    fn generation(&self) -> Result<Arc<Generation>, Error> {
        let mut current = self.current.lock();
        if current.closed {
            return Err(Error::Failed("the log is closed".into()));
        }
        if let Some(why) = self.health.is_lost() {
            return Err(Error::Failed(why));
        }
        if let Some(generation) = current.producer.as_ref().filter(|of| !of.broken.load(Ordering::Acquire)) {
            return Ok(generation.clone());
        }
        let broken = Arc::<AtomicBool>::default();
        let context = Acknowledging { usual: Context { health: self.health.clone() }, broken: broken.clone() };
        let producer = connect::create_with(&connect::producer(&self.options), context)?;
        current.made += 1;
        let generation = Arc::new(Generation { number: current.made, broken, producer });
        if let Some(old) = current.producer.replace(generation.clone()) {
            tracing::warn!("a delivery to Kafka failed; a new producer goes on after the last acknowledged record");
            connect::end_aside(old);
        }
        Ok(generation)
    }

    /// Waits until everything is acknowledged, for a while, and takes nothing more.
    pub fn close(&self) {
        let producer = {
            let mut current = self.current.lock();
            current.closed = true;
            current.producer.take()
        };
        if let Some(generation) = producer
            && let Err(error) = generation.producer.flush(PATIENCE)
        {
            tracing::warn!(%error, "not everything was acknowledged by Kafka in time");
        }
    }
}

impl Lane {
    /// Waits until numbers that were handed over before are acknowledged.
    fn wait(&self, numbers: Option<(u64, u64)>, generation: u64) -> Written {
        let mut acknowledged = self.acknowledged.subscribe();
        async move {
            let Some((first, next)) = numbers else { return Ok(Ok((0, 0))) };
            let settled = |told: &(Option<u64>, u64)| told.0 >= Some(next) || told.1 > generation;
            let reached = acknowledged.wait_for(settled).await.is_ok_and(|told| told.0 >= Some(next));
            Ok(if reached { Ok((first, next)) } else { Err(Error::InDoubt("the producer failed".into())) })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_after_its_last_record_wherever_others_wrote() {
        for (numbers, placed) in [(None, (7, 13)), (Some((2, 5)), (2, 5))] {
            let lane = Lane {
                name: "sendtrail.intake".into(),
                partition: 0,
                order: Mutex::new(Order { next: None, generation: 0 }),
                acknowledged: watch::Sender::new((None, 0)),
            };
            let (done, mut wait) = oneshot::channel();
            let ticket = Ticket {
                left: AtomicU32::new(3),
                first_offset: AtomicI64::new(i64::MAX),
                last_offset: AtomicI64::new(i64::MIN),
                bytes: 9,
                numbers,
                failed: Mutex::default(),
                done: Mutex::new(Some(done)),
                lane: Arc::new(lane),
                generation: 1,
                queued: Arc::new(AtomicU64::new(9)),
            };
            // Another server's records are at 8, 10 and 11.
            for offset in [7, 12] {
                ticket.settle(Ok(offset));
                assert!(wait.try_recv().is_err(), "not all of it is acknowledged");
            }
            ticket.settle(Ok(9));
            assert_eq!(wait.try_recv().unwrap().unwrap(), placed);
        }
    }

    #[test]
    fn a_partition_that_comes_back_empty_goes_on_with_whatever_number_comes() {
        let options = Options {
            properties: [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())].into(),
            ..Options::default()
        };
        let writer = Writer::new(Arc::new(options), Arc::default());
        let of = TopicPartition::new(Topic::DeadLetter, 0);
        let begin = |next| writer.begin([(&of, &End { offset: 9, next })].into_iter());
        let append = |first| {
            let mut batch = Batch::numbered(first);
            batch.push_bytes(b"x");
            writer.append(of, &batch).map(|_| ())
        };
        begin(Some(1));
        assert!(matches!(append(5), Err(Error::Gap { next: 1, .. })));
        // Others wrote up to here, and all of it is gone.
        begin(None);
        assert!(append(5).is_ok());
        assert!(matches!(append(7), Err(Error::Gap { next: 6, .. })));
    }
}
