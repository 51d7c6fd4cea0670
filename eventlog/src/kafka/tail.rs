//! The newest records, in memory: read from the broker once, however many readers there are.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::watch;

use super::Options;
use super::connect::{self, Context, Health, io};
use super::numbers::{End, gap, number, received_at};
use crate::Error;
use crate::batch::{Batch, StoredBatch};

/// Bytes of records that are kept as one piece.
const PIECE: usize = 256 << 10;

/// See the module.
pub struct Tail {
    options: Arc<Options>,
    consumer: Arc<BaseConsumer<Context>>,
    tracks: Arc<HashMap<TopicPartition, Track>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Track {
    end: watch::Sender<u64>,
    kept: Mutex<Kept>,
}

impl Track {
    /// It is read from a number on.
    fn begin(&self, next: Option<u64>) {
        *self.kept.lock() = Kept { first: next.unwrap_or(0), next, ..Kept::default() };
        self.end.send_replace(next.unwrap_or(0));
    }

    /// It is read no more, and takes no room.
    fn leave(&self) {
        self.stop(Error::Failed("the partition is another server's".into()));
        let mut kept = self.kept.lock();
        (kept.pieces, kept.bytes, kept.first, kept.left) = (VecDeque::new(), 0, kept.next.unwrap_or(0), true);
    }

    /// Nothing more can be read; readers are woken to learn of it. Whether it is news.
    fn stop(&self, error: Error) -> bool {
        let is_new = {
            let mut kept = self.kept.lock();
            let is_new = kept.broken.is_none();
            kept.broken.get_or_insert(error);
            is_new
        };
        self.end.send_modify(|_| {});
        is_new
    }
}

#[derive(Default)]
struct Kept {
    pieces: VecDeque<StoredBatch>,
    bytes: usize,
    /// The first number in memory, or the one after the last.
    first: u64,
    next: Option<u64>,
    /// Why nothing more can be read.
    broken: Option<Error>,
    /// It is another server's.
    left: bool,
}

/// What memory has.
pub enum Found {
    /// This, or nothing because there is nothing yet.
    Batches(Vec<StoredBatch>),
    /// What is asked for is older; memory goes on at `until`.
    Older {
        /// The first number in memory.
        until: u64,
    },
}

impl Tail {
    /// Starts to read, nothing yet.
    ///
    /// # Errors
    /// [`Error::Settings`], [`Error::Io`].
    pub fn start(options: &Arc<Options>, health: Arc<Health>) -> Result<Self, Error> {
        let consumer: Arc<BaseConsumer<Context>> = Arc::new(connect::create(&connect::consumer(options), &health)?);
        let tracks: HashMap<_, _> = options.all().map(|of| (of, Track::default())).collect();
        let (tracks, stop) = (Arc::new(tracks), Arc::<AtomicBool>::default());
        let reading = Reading {
            names: options.names(),
            room: options.cache_bytes / tracks.len().max(1),
            tracks: tracks.clone(),
            gathered: None,
            health,
        };
        let (stopped, polled) = (stop.clone(), consumer.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-tail".into())
            .spawn(move || reading.run(&polled, &stopped))
            .map_err(|cause| Error::Io { what: "start kafka-tail".into(), cause: cause.to_string() })?;
        Ok(Self { options: options.clone(), consumer, tracks, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Reads partitions from where they end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn follow<'a>(&self, ends: impl Iterator<Item = (&'a TopicPartition, &'a End)>) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        for (of, end) in ends {
            let Some(track) = self.tracks.get(of) else { continue };
            let at = Offset::Offset(end.offset);
            list.add_partition_offset(&self.options.topic(of.topic), of.partition as i32, at)
                .map_err(io("read the tail"))?;
            track.begin(end.next);
        }
        self.consumer.incremental_assign(&list).map_err(io("read the tail"))
    }

    /// Reads partitions no more.
    pub fn leave(&self, partitions: impl Iterator<Item = TopicPartition>) {
        let mut list = TopicPartitionList::new();
        for of in partitions {
            list.add_partition(&self.options.topic(of.topic), of.partition as i32);
            if let Some(track) = self.tracks.get(&of) {
                track.leave();
            }
        }
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            // It was not begun.
            tracing::debug!(%error, "a partition of the log is not left");
        }
    }

    /// Whether a partition is read as it grows.
    pub fn follows(&self, of: TopicPartition) -> bool {
        let is_read = |track: &Track| {
            let kept = track.kept.lock();
            kept.next.is_some() && !kept.left
        };
        self.tracks.get(&of).is_some_and(is_read)
    }

    /// Records from a number on.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Failed`]: nothing after what was read can be read.
    pub fn read(&self, of: TopicPartition, from: u64, max_bytes: usize) -> Result<Found, Error> {
        let Some(track) = self.tracks.get(&of) else { return Ok(Found::Batches(Vec::new())) };
        let kept = track.kept.lock();
        if kept.next.is_none_or(|next| from >= next) {
            return kept.broken.clone().map_or(Ok(Found::Batches(Vec::new())), Err);
        }
        if from < kept.first {
            return Ok(Found::Older { until: kept.first });
        }
        let begin = kept.pieces.partition_point(|piece| piece.next_offset() <= from);
        let mut bytes = 0;
        let fits = |piece: &&StoredBatch| {
            let fits = bytes == 0 || bytes + piece.bytes() <= max_bytes;
            bytes += piece.bytes();
            fits
        };
        Ok(Found::Batches(kept.pieces.range(begin..).take_while(fits).cloned().collect()))
    }

    /// The number after the last, as it moves.
    pub fn end(&self, of: TopicPartition) -> watch::Receiver<u64> {
        // A partition that does not exist never grows.
        self.tracks.get(&of).map_or_else(|| watch::channel(0).1, |track| track.end.subscribe())
    }

    /// What tells when readers see what was appended.
    pub fn seen(&self, of: TopicPartition) -> Seen {
        Seen { tracks: self.tracks.clone(), of }
    }

    /// Ends the reading.
    pub fn close(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

/// See [`Tail::seen`].
pub struct Seen {
    tracks: Arc<HashMap<TopicPartition, Track>>,
    of: TopicPartition,
}

impl Seen {
    /// Why nothing more will be seen, if so.
    pub fn broken(&self) -> Option<Error> {
        self.tracks.get(&self.of).and_then(|track| track.kept.lock().broken.clone())
    }

    /// Waits until readers see everything before a number.
    ///
    /// # Errors
    /// Why they never will.
    pub async fn await_next(self, next: u64) -> Result<(), Error> {
        let Some(track) = self.tracks.get(&self.of) else { return Ok(()) };
        let mut end = track.end.subscribe();
        loop {
            if *end.borrow_and_update() >= next {
                return Ok(());
            }
            if let Some(error) = self.broken() {
                return Err(error);
            }
            if end.changed().await.is_err() {
                return Err(Error::InDoubt("the log was closed".into()));
            }
        }
    }
}

struct Reading {
    names: [(String, Topic); 5],
    /// Bytes of a partition that are kept.
    room: usize,
    tracks: Arc<HashMap<TopicPartition, Track>>,
    gathered: Option<(TopicPartition, Piece)>,
    health: Arc<Health>,
}

/// Records of one partition that were taken by the broker at the same time.
pub struct Piece {
    base: u64,
    received_at: i64,
    records: Batch,
}

impl Piece {
    pub fn new(base: u64, received_at: i64) -> Self {
        Self { base, received_at, records: Batch::new() }
    }

    /// Whether a record with a number and a time may be added.
    pub fn takes(&self, number: u64, received_at: i64) -> bool {
        let next = self.base + self.records.len() as u64;
        next == number && self.received_at == received_at && self.records.bytes() < PIECE
    }

    pub fn push(&mut self, record: &[u8]) {
        self.records.push_bytes(record);
    }

    pub fn finish(self) -> StoredBatch {
        let (payload, count) = self.records.freeze(0);
        StoredBatch { base_offset: self.base, count, received_at: self.received_at, payload }
    }
}

impl Reading {
    fn run(mut self, consumer: &BaseConsumer<Context>, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            // What was gathered is shown as soon as nothing more is there.
            let wait = if self.gathered.is_some() { Duration::ZERO } else { Duration::from_millis(100) };
            match consumer.poll(wait) {
                Some(Ok(message)) => self.take(&message),
                Some(Err(error)) if is_gone(&error) => self.fail(&error),
                // The client goes on by itself.
                Some(Err(error)) => tracing::debug!(%error, "the tail of the log"),
                None => self.show(),
            }
        }
        self.show();
        // Whoever waits for more waits in vain.
        for track in self.tracks.values() {
            track.stop(Error::Failed("the log is closed".into()));
        }
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some((_, topic)) = self.names.iter().find(|(name, _)| name == message.topic()) else { return };
        let of = TopicPartition::new(*topic, message.partition() as u32);
        let received_at = received_at(message);
        let number = match number(message, *topic) {
            Ok(number) => number,
            Err(error) => return self.stop_at(of, error),
        };
        if let Some((other, piece)) = &mut self.gathered {
            if *other == of && piece.takes(number, received_at) {
                return piece.push(message.payload().unwrap_or_default());
            }
            self.show();
        }
        self.health.well();
        let Some(track) = self.tracks.get(&of) else { return };
        let kept = track.kept.lock();
        match kept.next {
            _ if kept.broken.is_some() => return,
            // Written again after a crash.
            Some(next) if number < next => return,
            Some(next) if number > next => {
                drop(kept);
                return self.stop_at(of, gap(message, number, next));
            }
            _ => drop(kept),
        }
        let mut piece = Piece::new(number, received_at);
        piece.push(message.payload().unwrap_or_default());
        self.gathered = Some((of, piece));
    }

    /// Hands on what was gathered.
    fn show(&mut self) {
        let Some((of, piece)) = self.gathered.take() else { return };
        let Some(track) = self.tracks.get(&of) else { return };
        let piece = piece.finish();
        let next = piece.next_offset();
        let mut kept = track.kept.lock();
        if kept.broken.is_some() || kept.next.is_some_and(|next| next != piece.base_offset) {
            // It was left meanwhile, and perhaps begun again.
            return;
        }
        if kept.pieces.is_empty() {
            kept.first = piece.base_offset;
        }
        kept.next = Some(next);
        kept.bytes += piece.bytes();
        kept.pieces.push_back(piece);
        while kept.bytes > self.room && kept.pieces.len() > 1 {
            let bytes = kept.pieces.pop_front().map_or(0, |piece| piece.bytes());
            kept.bytes -= bytes;
            kept.first = kept.pieces.front().map_or(next, |piece| piece.base_offset);
        }
        drop(kept);
        track.end.send_replace(next);
    }

    /// Nothing after this can be read of a partition.
    fn stop_at(&mut self, of: TopicPartition, error: Error) {
        self.show();
        if self.tracks.get(&of).is_some_and(|track| track.stop(error.clone())) {
            tracing::error!(%of, %error, "a partition of the log cannot be read on");
        }
    }

    /// The broker lacks what it had: which partition, the client does not tell.
    fn fail(&mut self, error: &KafkaError) {
        let why =
            format!("Kafka has lost records that it had acknowledged ({error}); restart to see which are missing");
        for of in self.tracks.keys().copied().collect::<Vec<_>>() {
            self.stop_at(of, Error::Failed(why.clone()));
        }
    }
}

/// Whether the broker says that it does not have an offset.
pub fn is_gone(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange))
}
