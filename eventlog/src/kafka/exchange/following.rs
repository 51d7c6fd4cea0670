//! Listening: to views from the beginning, to questions and replies from now on.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail_schemas::codec::{self, Wire};
use sendtrail_schemas::exchange::{Question, Reply, Seen, View};

use super::super::connect::{self, Context, Health, io};
use super::super::{PATIENCE, numbers};
use super::Exchange;
use crate::Error;

/// How long a poll waits.
const POLL: Duration = Duration::from_millis(100);

/// Whose word a view is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Voice {
    /// The owner's, as far as is known.
    Owner,
    /// Somebody's who owned the partition before: not to be believed, and to be contradicted by the owner.
    Former,
}

/// A word on a partition.
#[derive(Clone, PartialEq, Debug)]
pub enum Word {
    /// Somebody owns it from here on.
    Reign {
        /// Whether it is this process.
        is_ours: bool,
    },
    /// Something was made known.
    Said(Voice, Seen),
}

/// What a view at an offset is, where the one who reigned before it began at another.
fn word(reign: &mut u64, offset: u64, claimed: u64, seen: Seen, instance: u64) -> Word {
    match seen {
        Seen::Reign(by) => {
            *reign = offset;
            Word::Reign { is_ours: by.instance == instance }
        }
        // How far ClickHouse is, is not the owner's to say.
        Seen::ClickHouse(_) => Word::Said(Voice::Owner, seen),
        _ if claimed < *reign => Word::Said(Voice::Former, seen),
        _ => Word::Said(Voice::Owner, seen),
    }
}

/// What was said to this server.
#[derive(Debug)]
pub enum Heard {
    /// A question about an account of a partition.
    Question(u32, Question),
    /// What somebody here waits for.
    Reply(Reply),
}

impl Exchange {
    /// Hands over every word there is on views, and then each as it comes, in the order of each partition. Returns once all
    /// are handed over that there were; blocks until then.
    ///
    /// # Errors
    /// [`Error::Io`] when the brokers do not answer.
    pub fn follow_views(&self, mut take: impl FnMut(u32, Word) + Send + 'static) -> Result<(), Error> {
        let name = self.options.views_topic();
        let consumer = self.consumer()?;
        let mut from = TopicPartitionList::new();
        let mut left = HashMap::new();
        for partition in 0..self.options.partitions {
            let (low, high) = numbers::watermarks(&consumer, &name, partition)?;
            from.add_partition_offset(&name, partition as i32, Offset::Offset(low)).map_err(io("read views"))?;
            if high > low {
                left.insert(partition as i32, high);
            }
        }
        consumer.assign(&from).map_err(io("read views"))?;
        let (caught_up, wait) = mpsc::channel();
        let mut caught_up = Some(caught_up);
        let (stop, health, instance) = (self.stop.clone(), self.health.clone(), self.instance);
        let mut reigns = vec![0; self.options.partitions as usize];
        self.thread("kafka-views", move || {
            while !stop.load(Ordering::Acquire) {
                if let Some(told) = caught_up.take_if(|_| left.is_empty()) {
                    // Whoever waits, below, may have given up.
                    let _ = told.send(());
                }
                let message = match poll(&consumer) {
                    Some(Ok(message)) => message,
                    // Its last records may have been replaced by later ones.
                    Some(Err(End(partition))) => {
                        left.remove(&partition);
                        continue;
                    }
                    None => {
                        // A server that only reads may hear nothing for long: that the brokers answer again is asked for.
                        if health.failure().is_some() && consumer.fetch_metadata(Some(&name), PATIENCE / 10).is_ok() {
                            health.well();
                        }
                        continue;
                    }
                };
                health.well();
                let (partition, offset) = (message.partition(), message.offset());
                let reign = reigns.get_mut(partition as usize);
                if let Some(word) = reign.and_then(|reign| read_word(&message, reign, instance, &health)) {
                    take(partition as u32, word);
                }
                if left.get(&partition).is_some_and(|high| offset + 1 >= *high) {
                    left.remove(&partition);
                }
            }
        })?;
        loop {
            match wait.recv_timeout(PATIENCE) {
                Ok(()) => return Ok(()),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Io { what: "read views".into(), cause: "the reader ended".into() });
                }
                Err(mpsc::RecvTimeoutError::Timeout) => match self.health.failure() {
                    Some(cause) => return Err(Error::Io { what: "read views".into(), cause }),
                    None => tracing::info!("reading what other servers made known"),
                },
            }
        }
    }

    /// Hands over every view of a partition before an offset. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] when the brokers do not answer.
    pub fn look_back(&self, partition: u32, until: u64, mut take: impl FnMut(Voice, Seen)) -> Result<(), Error> {
        let name = self.options.views_topic();
        let consumer = self.consumer()?;
        let (low, _) = numbers::watermarks(&consumer, &name, partition)?;
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&name, partition as i32, Offset::Offset(low)).map_err(io("read views"))?;
        consumer.assign(&from).map_err(io("read views"))?;
        let (mut reign, mut heard) = (0, Instant::now());
        while heard.elapsed() < PATIENCE && !self.stop.load(Ordering::Acquire) {
            let message = match poll(&consumer) {
                Some(Ok(message)) if (message.offset() as u64) < until => message,
                Some(Ok(_) | Err(End(_))) => return Ok(()),
                None => continue,
            };
            heard = Instant::now();
            if let Some(Word::Said(voice, seen)) = read_word(&message, &mut reign, self.instance, &self.health) {
                take(voice, seen);
            }
        }
        Err(Error::Io { what: "read views".into(), cause: "no answer".into() })
    }

    /// Hands over what is said to this server from now on: questions to the owner if it is one, replies to an instance.
    ///
    /// # Errors
    /// [`Error::Io`] when the brokers do not answer.
    pub fn listen(
        &self,
        is_owner: bool,
        instance: u64,
        mut take: impl FnMut(Heard) + Send + 'static,
    ) -> Result<(), Error> {
        let consumer = self.consumer()?;
        let (questions, replies) = (self.options.questions_topic(), self.options.replies_topic());
        let asked = (0..self.options.partitions).filter(|_| is_owner).map(|partition| (&questions, partition));
        let mut from = TopicPartitionList::new();
        for (name, partition) in asked.chain([(&replies, self.partition_of(instance))]) {
            // Told now, not when the first message is fetched: nothing that is said after this returns is missed.
            let end = Offset::Offset(numbers::watermarks(&consumer, name, partition)?.1);
            from.add_partition_offset(name, partition as i32, end).map_err(io("listen to other servers"))?;
        }
        consumer.assign(&from).map_err(io("listen to other servers"))?;
        let (stop, health) = (self.stop.clone(), self.health.clone());
        self.thread("kafka-exchange", move || {
            while !stop.load(Ordering::Acquire) {
                let Some(Ok(message)) = consumer.poll(POLL) else { continue };
                let heard = if message.topic() == questions {
                    let question = read::<Question>(&message, &health);
                    question.map(|question| Heard::Question(message.partition() as u32, question))
                } else {
                    let reply = read::<Reply>(&message, &health).filter(|reply| reply.to.instance == instance);
                    reply.map(Heard::Reply)
                };
                if let Some(heard) = heard {
                    take(heard);
                }
            }
        })
    }

    fn consumer(&self) -> Result<BaseConsumer<Context>, Error> {
        let mut config = connect::consumer(&self.options);
        // What is gone was replaced by later words, or nobody waits for it any more.
        config.set("auto.offset.reset", "earliest").set("enable.partition.eof", "true").set("fetch.wait.max.ms", "50");
        connect::create(&config, &self.health)
    }

    fn thread(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.map_err(|cause| Error::Io { what: format!("start {name}"), cause: cause.to_string() })?;
        self.threads.lock().push(thread);
        Ok(())
    }
}

/// There is nothing more in a partition for now.
struct End(i32);

/// The next message, if one comes soon.
fn poll(consumer: &BaseConsumer<Context>) -> Option<Result<BorrowedMessage<'_>, End>> {
    match consumer.poll(POLL)? {
        Ok(message) => Some(Ok(message)),
        Err(KafkaError::PartitionEOF(partition)) => Some(Err(End(partition))),
        // The client goes on by itself.
        Err(error) => {
            tracing::debug!(%error, "views");
            None
        }
    }
}

/// What a message says of its partition.
fn read_word(message: &BorrowedMessage<'_>, reign: &mut u64, instance: u64, health: &Health) -> Option<Word> {
    let view = read::<View>(message, health)?;
    Some(word(reign, message.offset() as u64, view.reign, view.seen?, instance))
}

/// What a message says. A newer program's is not for this one to pass over.
fn read<W: Wire>(message: &BorrowedMessage<'_>, health: &Health) -> Option<W> {
    match codec::decode::<W>(message.payload().unwrap_or_default()) {
        Ok(read) => Some(read),
        Err(error @ sendtrail_schemas::Error::NewerVersion { .. }) => {
            health.lost(&error.to_string());
            None
        }
        Err(error) => {
            tracing::warn!(%error, topic = message.topic(), "another program writes to this topic");
            None
        }
    }
}
