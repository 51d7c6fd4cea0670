//! Servers that share partitions: members of one group, which gives each partition to one of them. One that is to be given
//! to another is first finished where it was; only then does the other get it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use sendtrail_schemas::topic::Topic;
use tokio::sync::watch;

use super::connect::{Context, Health, io};
use super::owner::{self, Asking, Part, Saying};
use super::{Options, PATIENCE};
use crate::Error;

/// How long a partition may take to be finished that goes to another server; librdkafka allows five minutes.
const FINISH_WITHIN: Duration = Duration::from_secs(120);
/// How often it is looked whether this server was frozen meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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

    /// Takes partitions away, and waits until nobody works on them; whether that came to pass while the session lasted.
    fn take(&self, partitions: &[u32], session: Duration) -> bool {
        let mut held = self.state.lock();
        held.given.retain(|partition| !partitions.contains(partition));
        self.tell(&held);
        let begun = Instant::now();
        while partitions.iter().any(|partition| held.worked.contains(partition)) {
            let before = Instant::now();
            self.freed.wait_for(&mut held, LOOK_EVERY);
            // One that was frozen is thought dead, and librdkafka does not tell in the middle of a move.
            if before.elapsed() > session || begun.elapsed() > FINISH_WITHIN {
                return false;
            }
        }
        true
    }
}

struct Member {
    usual: Context,
    /// It is given up: nothing that happens then is a loss.
    stop: Arc<AtomicBool>,
    hands: Arc<Hands>,
    session: Duration,
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
        } else if !self.hands.take(&numbers(taken), self.session) {
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
    /// Joins those who share; none when one owns everything by then. What this server is given it learns by and by. Blocks until
    /// it is a member.
    ///
    /// # Errors
    /// [`Error::Settings`] when Kafka refuses for good; [`Error::Io`] when no thread can be started; [`Error::Failed`].
    pub fn join(options: &Options, health: &Arc<Health>) -> Result<Option<Self>, Error> {
        let asking = Asking::new(options, health)?;
        let share = Self::enter(options, health)?;
        let mut saying = Saying::default();
        // One who wants everything looks here once it is a member of its own group: one of the two sees the other.
        for (group, wanted) in [(group(options), true), (Part::Processor.group(&options.namespace), false)] {
            let is_own = |group: &str| if wanted { asking.has_own(group) } else { asking.has_others(group) };
            loop {
                if let Some(why) = health.is_lost() {
                    return Err(Error::Failed(why));
                }
                match is_own(&group) {
                    Some(is) if is == wanted => break,
                    Some(true) => return Ok(None),
                    Some(false) | None => {
                        saying.wait(Part::Processor.name(), "joining the processors", || health.failure())
                    }
                }
                std::thread::sleep(PATIENCE / 100);
            }
        }
        Ok(Some(share))
    }

    fn enter(options: &Options, health: &Arc<Health>) -> Result<Self, Error> {
        let (stop, given) = (Arc::<AtomicBool>::default(), watch::Sender::default());
        let hands = Arc::new(Hands { state: Mutex::default(), freed: Condvar::new(), given });
        let usual = Context { health: health.clone() };
        let member = Member { usual, stop: stop.clone(), hands: hands.clone(), session: owner::session(options) };
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
                    saying.wait(Part::Processor.name(), "the others have every partition", || health.failure());
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

impl Drop for Share {
    fn drop(&mut self) {
        self.close();
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
