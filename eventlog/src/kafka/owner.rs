//! One server at a time for each part: whoever is given, in the part's group, the only partition of a topic of its own.
//! Others wait, and one of them takes over when the owner has not been heard of for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;

use super::connect::{self, Context, Health, io};
use super::{Options, PATIENCE};
use crate::Error;

/// After how long without a sign of life an owner is replaced, unless `session.timeout.ms` says otherwise.
const SESSION_MILLIS: &str = "30000";
/// How soon a member hears of a move, of which it hears twice.
const HEARTBEAT_MILLIS: &str = "1000";

/// What a server does of which there must be one at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// Decides.
    Processor,
    /// Hands mail over.
    Delivery,
    /// Posts webhooks.
    Dispatcher,
    /// Files events.
    Sinks,
}

impl Part {
    /// All, in the order in which whoever does several waits for them: otherwise two servers could wait for each other.
    pub const ALL: [Self; 4] = [Self::Processor, Self::Delivery, Self::Dispatcher, Self::Sinks];

    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Delivery => "delivery",
            Self::Dispatcher => "dispatcher",
            Self::Sinks => "sinks",
        }
    }

    /// Its group.
    pub(super) fn group(self, namespace: &str) -> String {
        match self {
            // That of whoever owned everything.
            Self::Processor => format!("{namespace}-owner"),
            part => format!("{namespace}-owner-{}", part.name()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Owner,
    Lost,
}

/// Ownership of the log, as long as it lives.
pub struct Owner(Membership);

/// Membership of a group, as long as it lives.
pub struct Membership {
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Membership {
    /// A thread that [stays](stay) a member until `stop` is set.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn start(name: &str, stop: Arc<AtomicBool>, run: impl FnOnce() + Send + 'static) -> Result<Self, Error> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.map_err(|cause| Error::Io { what: format!("start {name}"), cause: cause.to_string() })?;
        Ok(Self { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Gives it up.
    pub fn close(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.close();
    }
}

struct Joining {
    usual: Context,
    /// It is given up: nothing that happens then is a loss.
    stop: Arc<AtomicBool>,
    state: watch::Sender<State>,
}

impl Joining {
    fn lost(&self, why: &str) {
        self.state.send_if_modified(|state| {
            let held = *state == State::Owner && !self.stop.load(Ordering::Acquire);
            if held {
                *state = State::Lost;
                self.usual.health.lost(&format!("{why}: another server may own the log; start this one again"));
            }
            held
        });
    }
}

impl ClientContext for Joining {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.usual.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_loss(&error) {
            self.lost(reason);
        }
        self.usual.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.usual.generate_oauth_token(config)
    }
}

impl ConsumerContext for Joining {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(given) if given.count() > 0 => {
                self.state.send_if_modified(|state| {
                    let waited = *state == State::Waiting;
                    if waited {
                        *state = State::Owner;
                    }
                    waited
                });
            }
            Rebalance::Revoke(taken) if taken.count() > 0 => self.lost("the log was taken away"),
            Rebalance::Assign(_) | Rebalance::Revoke(_) | Rebalance::Error(_) => {}
        }
    }
}

impl Owner {
    /// Waits until this server may do a part. Blocks for as long as another one does it.
    ///
    /// # Errors
    /// [`Error::Settings`] when Kafka refuses for good; [`Error::Io`] when no thread can be started. Brokers that are away
    /// are waited for.
    pub fn become_owner(part: Part, options: &Options, health: &Arc<Health>) -> Result<Self, Error> {
        let config = member(options, &part.group(&options.namespace));
        let (state, mut told) = watch::channel(State::Waiting);
        let stop = Arc::<AtomicBool>::default();
        let context = Joining { usual: Context { health: health.clone() }, stop: stop.clone(), state };
        let consumer: BaseConsumer<Joining> = connect::create_with(&config, context)?;
        consumer.subscribe(&[&options.owner_topic()]).map_err(io("ask Kafka for the log"))?;
        let mut saying = Saying::default();
        let mut last = None;
        while *told.borrow_and_update() == State::Waiting {
            if let Some(why) = health.is_lost() {
                return Err(Error::Failed(why));
            }
            match poll(&consumer, |why| consumer.context().lost(why)) {
                Some(error) if is_final(&error) => {
                    return Err(Error::Settings(format!("Kafka does not let this server own the log: {error}")));
                }
                Some(error) => last = Some(error.to_string()),
                None => {}
            }
            let what = "another server does this; waiting to take over";
            saying.wait(part.name(), what, || health.failure().or_else(|| last.take()));
        }
        let (stopped, health, topic) = (stop.clone(), health.clone(), options.owner_topic());
        let stay = move || stay(&consumer, &stopped, &health, &topic, |why| consumer.context().lost(why), || {});
        Ok(Self(Membership::start(&format!("kafka-{}", part.name()), stop, stay)?))
    }

    /// Gives the log up.
    pub fn close(&self) {
        self.0.close();
    }
}

/// After how long without a sign of life a member of a group is replaced.
pub fn session(options: &Options) -> Duration {
    let given = options.properties.get("session.timeout.ms").map_or(SESSION_MILLIS, String::as_str);
    // What cannot be read librdkafka has refused.
    Duration::from_millis(given.parse().unwrap_or(u64::MAX))
}

/// The settings of a member of a group.
pub fn member(options: &Options, group: &str) -> ClientConfig {
    let mut config = connect::consumer(options);
    config
        .set("group.id", group)
        .set("group.instance.id", &options.instance)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("auto.offset.reset", "latest");
    for (name, usual) in [("session.timeout.ms", SESSION_MILLIS), ("heartbeat.interval.ms", HEARTBEAT_MILLIS)] {
        if !options.properties.contains_key(name) {
            config.set(name, usual);
        }
    }
    config
}

/// Stays a member until it is stopped, or the log is lost.
pub fn stay<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    stop: &AtomicBool,
    health: &Health,
    topic: &str,
    lost: impl Fn(&str),
    mut meanwhile: impl FnMut(),
) {
    // Whoever lost the log must not be given it again: it would keep it from others.
    while !stop.load(Ordering::Acquire) && health.is_lost().is_none() {
        poll(consumer, &lost);
        // An idle server would not notice that brokers are back.
        if health.failure().is_some() && consumer.fetch_metadata(Some(topic), PATIENCE / 10).is_ok() {
            health.well();
        }
        meanwhile();
    }
}

/// Says now and then that a part is waited for.
pub struct Saying {
    begun: Instant,
    said: Instant,
}

impl Default for Saying {
    fn default() -> Self {
        Self { begun: Instant::now(), said: Instant::now() }
    }
}

impl Saying {
    pub fn wait(&mut self, part: &str, what: &str, trouble: impl FnOnce() -> Option<String>) {
        if self.said.elapsed() <= PATIENCE {
            return;
        }
        self.said = Instant::now();
        let seconds = self.begun.elapsed().as_secs();
        match trouble() {
            Some(trouble) => tracing::warn!(seconds, trouble, part, "waiting for the log"),
            None => tracing::warn!(seconds, part, "{what}"),
        }
    }
}

/// Waits until nobody else does, or is about to do, any of some parts; whoever shares partitions also waits for one who owns all.
/// Whoever took one and then waited for another would keep the first from those who could do it. Blocks.
///
/// # Errors
/// [`Error::Settings`] when librdkafka does not know a setting or its value.
pub fn wait_until_free(options: &Options, health: &Arc<Health>) -> Result<(), Error> {
    let shared = (!options.shared.is_empty()).then_some(&Part::Processor);
    let groups = options.parts.iter().chain(shared).map(|part| (part.name(), part.group(&options.namespace)));
    wait_until_left(options, health, &groups.collect::<Vec<_>>())
}

/// Waits until nobody else is a member of some groups, each with what to call it. Blocks.
///
/// # Errors
/// [`Error::Settings`] when librdkafka does not know a setting or its value; [`Error::Failed`] when the log is lost meanwhile.
pub fn wait_until_left(options: &Options, health: &Arc<Health>, groups: &[(&str, String)]) -> Result<(), Error> {
    let asking = Asking::new(options, health)?;
    let mut saying = Saying::default();
    // While nobody can tell, somebody may be.
    while let Some((what, _)) = groups.iter().find(|(_, group)| asking.has_others(group) != Some(false)) {
        if let Some(why) = health.is_lost() {
            return Err(Error::Failed(why));
        }
        saying.wait(what, "another server does this, or nobody can tell; waiting until none does", || health.failure());
        std::thread::sleep(PATIENCE / 20);
    }
    Ok(())
}

/// A client that asks about groups.
pub struct Asking {
    client: BaseConsumer<Context>,
    /// What this server's own members begin with, as the broker names one that named itself.
    own: String,
}

impl Asking {
    /// Prepares to connect.
    ///
    /// # Errors
    /// [`Error::Settings`] when librdkafka does not know a setting or its value.
    pub fn new(options: &Options, health: &Arc<Health>) -> Result<Self, Error> {
        let client = connect::create(&connect::consumer(options), health)?;
        Ok(Self { client, own: format!("{}-", options.instance) })
    }

    fn is_there(&self, group: &str, which: impl Fn(bool) -> bool) -> Option<bool> {
        // Nothing is read here: what the client has to tell, and to ask for, is heard.
        self.client.poll(Duration::ZERO);
        let found = self.client.fetch_group_list(Some(group), PATIENCE).ok()?;
        let mut members = found.groups().iter().flat_map(|group| group.members());
        Some(members.any(|member| which(member.id().starts_with(&self.own))))
    }

    /// Whether another server is a member of a group; none: nobody can tell.
    pub fn has_others(&self, group: &str) -> Option<bool> {
        self.is_there(group, |is_own| !is_own)
    }

    /// Whether this one is.
    pub fn has_own(&self, group: &str) -> Option<bool> {
        self.is_there(group, |is_own| is_own)
    }
}

/// Signs of life are sent meanwhile. There is nothing to read.
fn poll<C: ConsumerContext>(consumer: &BaseConsumer<C>, lost: impl Fn(&str)) -> Option<KafkaError> {
    let error = consumer.poll(Duration::from_millis(100))?.err()?;
    if is_final(&error) {
        lost(&error.to_string());
    }
    tracing::debug!(%error, "ownership of the log");
    Some(error)
}

/// Whether another one is the member now.
pub fn is_loss(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::FencedInstanceId))
}

/// Whether trying on is no use.
fn is_final(error: &KafkaError) -> bool {
    is_loss(error) || error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}
