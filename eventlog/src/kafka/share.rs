//! Servers that share partitions: members of one group, which gives each partition to one of them. One that is to be given
//! to another is first finished where it was; only then does the other get it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use sendtrail_schemas::topic::Topic;
use tokio::sync::watch;

use super::Options;
use super::connect::{Context, Health, io};
use super::owner::{self, Part, Saying};
use crate::Error;

/// How long a partition may take to be finished that goes to another server; librdkafka allows five minutes.
const FINISH_WITHIN: Duration = Duration::from_secs(120);

/// Membership, as long as it lives.
pub struct Share {
    hands: Arc<Hands>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The partitions of this server.
struct Hands {
    state: Mutex<Held>,
    freed: Condvar,
    given: watch::Sender<Vec<u32>>,
}

#[derive(Default)]
struct Held {
    /// Given by the group.
    given: BTreeSet<u32>,
    /// Of these and those before: what is being worked on.
    worked: BTreeSet<u32>,
}

impl Hands {
    fn tell(&self, held: &Held) {
        self.given.send_replace(held.given.iter().copied().collect());
    }

    fn give(&self, partitions: &[u32]) {
        let mut held = self.state.lock();
        held.given.extend(partitions);
        self.tell(&held);
    }

    /// Takes partitions away, and waits until nobody works on them; whether that came to pass.
    fn take(&self, partitions: &[u32]) -> bool {
        let mut held = self.state.lock();
        held.given.retain(|partition| !partitions.contains(partition));
        self.tell(&held);
        let is_worked = |held: &mut Held| partitions.iter().any(|partition| held.worked.contains(partition));
        !self.freed.wait_while_for(&mut held, is_worked, FINISH_WITHIN).timed_out()
    }
}

struct Member {
    usual: Context,
    /// It is given up: nothing that happens then is a loss.
    stop: Arc<AtomicBool>,
    hands: Arc<Hands>,
}

impl Member {
    fn lost(&self, why: &str) {
        if !self.stop.load(Ordering::Acquire) && self.usual.health.is_lost().is_none() {
            self.usual.health.lost(&format!("{why}: others may own its partitions; start this server again"));
        }
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.usual.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::FencedInstanceId)) {
            self.lost(reason);
        }
        self.usual.error(error, reason);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(taken) = rebalance else { return };
        if taken.count() == 0 || self.stop.load(Ordering::Acquire) {
            return;
        }
        if consumer.assignment_lost() {
            self.lost("the group went on without this server");
        } else if !self.hands.take(&numbers(taken)) {
            self.lost("a partition that goes to another server was not finished in time");
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(given) = rebalance else { return };
        // Others here read what is in them, from where the state is.
        if let Err(error) = consumer.pause(given) {
            tracing::debug!(%error, "partitions are read in vain");
        }
        if given.count() > 0 {
            self.hands.give(&numbers(given));
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<u32> {
    list.elements().iter().map(|element| element.partition() as u32).collect()
}

impl Share {
    /// Joins those who share. What this server is given it learns by and by. Blocks as long as one owns everything.
    ///
    /// # Errors
    /// [`Error::Settings`] when Kafka refuses for good; [`Error::Io`] when no thread can be started.
    pub fn join(options: &Options, health: &Arc<Health>) -> Result<Self, Error> {
        let alone = Part::Processor.group(&options.namespace);
        loop {
            owner::wait_until_left(options, health, &[(Part::Processor.name(), alone.clone())])?;
            let share = Self::enter(options, health)?;
            // One who wants everything looks here once it has joined its own group.
            if owner::is_joined_by_others(&owner::asking(options, health)?, options, &alone) {
                share.close();
                continue;
            }
            return Ok(share);
        }
    }

    fn enter(options: &Options, health: &Arc<Health>) -> Result<Self, Error> {
        let (stop, given) = (Arc::<AtomicBool>::default(), watch::Sender::default());
        let hands = Arc::new(Hands { state: Mutex::default(), freed: Condvar::new(), given });
        let member = Member { usual: Context { health: health.clone() }, stop: stop.clone(), hands: hands.clone() };
        let consumer: BaseConsumer<Member> = owner::membership(options, &group(options))
            .create_with_context(member)
            .map_err(|cause| Error::Settings(format!("Kafka: {cause}")))?;
        let topic = options.topic(Topic::Intake);
        consumer.subscribe(&[&topic]).map_err(io("ask Kafka for partitions"))?;
        let (stopped, health) = (stop.clone(), health.clone());
        let thread = std::thread::Builder::new().name("kafka-share".into()).spawn(move || {
            let mut saying = Saying::default();
            let lost = |why: &str| consumer.context().lost(why);
            let mut is_given = consumer.context().hands.given.subscribe();
            owner::stay(&consumer, &stopped, &health, &topic, lost, || {
                if is_given.borrow_and_update().is_empty() {
                    saying.wait(Part::Processor.name(), || health.failure());
                }
            });
        });
        let thread = thread.map_err(|cause| Error::Io { what: "start a thread".into(), cause: cause.to_string() })?;
        Ok(Self { hands, stop, thread: Mutex::new(Some(thread)) })
    }

    /// The partitions of this server, as they change.
    pub fn given(&self) -> watch::Receiver<Vec<u32>> {
        self.hands.given.subscribe()
    }

    /// Notes that a partition is worked on.
    ///
    /// # Errors
    /// [`Error::Failed`] when it was taken away meanwhile.
    pub fn begin(&self, partition: u32) -> Result<(), Error> {
        let mut held = self.hands.state.lock();
        if !held.given.contains(&partition) {
            return Err(Error::Failed(format!("partition {partition} is another server's")));
        }
        held.worked.insert(partition);
        Ok(())
    }

    /// Notes that nothing of a partition is on its way any more.
    pub fn end(&self, partition: u32) {
        self.hands.state.lock().worked.remove(&partition);
        self.hands.freed.notify_all();
    }

    /// Leaves. Others wait for it to come back as long as its session lasts.
    pub fn close(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Whom partitions are shared among.
fn group(options: &Options) -> String {
    format!("{}-processors", options.namespace)
}

/// Waits until nobody shares: whoever owns everything begins then. Blocks.
///
/// # Errors
/// [`Error::Settings`] when librdkafka does not know a setting or its value.
pub fn wait_until_left(options: &Options, health: &Arc<Health>) -> Result<(), Error> {
    owner::wait_until_left(options, health, &[(Part::Processor.name(), group(options))])
}

#[cfg(test)]
mod tests;
