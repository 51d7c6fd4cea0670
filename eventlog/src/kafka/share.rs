//! Servers that share partitions: members of one group, which gives each partition to one of them. One that is to be given
//! to another is first finished where it was; only then does the other get it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail_schemas::topic::Topic;
use tokio::sync::watch;

use super::connect::{self, Context, Health, io};
use super::owner::{self, Asking, Membership, Part, Saying};
use super::{Options, PATIENCE};
use crate::Error;

/// How long a partition may take to be finished that goes to another server; librdkafka allows five minutes.
const FINISH_WITHIN: Duration = Duration::from_secs(120);
/// How often the group is told how far partitions are.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether this server was frozen meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Membership, as long as it lives.
pub struct Share {
    hands: Arc<Hands>,
    membership: Membership,
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
    /// How far the state is, as far as the group was not told.
    reached: BTreeMap<u32, u64>,
}

impl Hands {
    fn change(&self, change: impl FnOnce(&mut BTreeSet<u32>)) {
        let mut held = self.state.lock();
        change(&mut held.given);
        self.given.send_replace(held.given.iter().copied().collect());
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
    /// Takes partitions away, and waits until nobody works on them; whether that came to pass while the session lasted.
    fn finish(&self, partitions: &[u32]) -> bool {
        self.hands.change(|given| given.retain(|partition| !partitions.contains(partition)));
        let begun = Instant::now();
        let mut held = self.hands.state.lock();
        while partitions.iter().any(|partition| held.worked.contains(partition)) {
            let before = Instant::now();
            self.hands.freed.wait_for(&mut held, LOOK_EVERY);
            if self.stop.load(Ordering::Acquire) {
                return true;
            }
            // One that was frozen is thought dead, and librdkafka does not tell in the middle of a move.
            if before.elapsed() > self.session || begun.elapsed() > FINISH_WITHIN {
                return false;
            }
        }
        true
    }

    fn lost(&self, why: &str) {
        if !self.stop.load(Ordering::Acquire) && self.usual.health.is_lost().is_none() {
            self.usual.health.lost(&format!("{why}: others may own its partitions; start this server again"));
        }
    }
}

impl ClientContext for Member {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.usual.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if owner::is_loss(&error) {
            self.lost(reason);
        }
        self.usual.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.usual.generate_oauth_token(config)
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(taken) = rebalance else { return };
        // What was lost nobody finishes.
        if taken.count() == 0 || self.stop.load(Ordering::Acquire) || self.usual.health.is_lost().is_some() {
            return;
        }
        if consumer.assignment_lost() {
            self.lost("the group went on without this server");
        } else if !self.finish(&numbers(taken)) {
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
            self.hands.change(|all| all.extend(numbers(given)));
        }
    }
}

/// Tells the group how far partitions are. Nothing goes by it.
fn note(consumer: &BaseConsumer<Member>, topic: &str) {
    let mut held = consumer.context().hands.state.lock();
    let (reached, given) = (std::mem::take(&mut held.reached), held.given.clone());
    drop(held);
    let mut places = TopicPartitionList::new();
    for (partition, offset) in reached.into_iter().filter(|(partition, _)| given.contains(partition)) {
        // Never refused: an offset of a record is one.
        let _ = places.add_partition_offset(topic, partition as i32, Offset::Offset(offset as i64));
    }
    if places.count() > 0
        && let Err(error) = consumer.commit(&places, CommitMode::Async)
    {
        tracing::debug!(%error, "the group does not learn how far partitions are");
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
        let mut wait = || {
            saying.wait(Part::Processor.name(), "joining the processors", || health.failure());
            std::thread::sleep(PATIENCE / 100);
            health.is_lost().map_or(Ok(()), |why| Err(Error::Failed(why)))
        };
        // One who wants everything looks here once it is a member of its own group: one of the two sees the other.
        let (here, alone) = (group(options), Part::Processor.group(&options.namespace));
        while asking.has_own(&here) != Some(true) {
            wait()?;
        }
        loop {
            match asking.has_others(&alone) {
                Some(is_anothers) => return Ok((!is_anothers).then_some(share)),
                None => wait()?,
            }
        }
    }

    fn enter(options: &Options, health: &Arc<Health>) -> Result<Self, Error> {
        let (stop, given) = (Arc::<AtomicBool>::default(), watch::Sender::default());
        let hands = Arc::new(Hands { state: Mutex::default(), freed: Condvar::new(), given });
        let usual = Context { health: health.clone() };
        let member = Member { usual, stop: stop.clone(), hands: hands.clone(), session: owner::session(options) };
        let consumer: BaseConsumer<Member> = connect::create_with(&owner::member(options, &group(options)), member)?;
        let topic = options.topic(Topic::Intake);
        consumer.subscribe(&[&topic]).map_err(io("ask Kafka for partitions"))?;
        let (stopped, health) = (stop.clone(), health.clone());
        let membership = Membership::start("kafka-share", stop, move || {
            let mut saying = Saying::default();
            let lost = |why: &str| consumer.context().lost(why);
            let (hands, mut noted) = (consumer.context().hands.clone(), Instant::now());
            owner::stay(&consumer, &stopped, &health, &topic, lost, || {
                if hands.given.borrow().is_empty() {
                    saying.wait(Part::Processor.name(), "the others have every partition", || health.failure());
                }
                if noted.elapsed() >= NOTE_EVERY {
                    noted = Instant::now();
                    note(&consumer, &topic);
                }
            });
        });
        Ok(Self { hands, membership: membership? })
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

    /// Notes how far the state of a partition is, for Kafka's tools to show.
    pub fn note(&self, partition: u32, offset: u64) {
        self.hands.state.lock().reached.insert(partition, offset);
    }

    /// Leaves. Others wait for it to come back as long as its session lasts.
    pub fn close(&self) {
        self.membership.close();
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
