//! How far other servers are, as they make it known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use metrics::counter;
use sendtrail_eventlog::kafka::{Exchange, Voice, Word};
use sendtrail_eventlog::{Announce, Clock, EventLog, Pulse};
use sendtrail_processor::Views;
use sendtrail_processor::clickhouse::{ClickHouseHandle, FAR};
use sendtrail_schemas::exchange::{ClickHouseView, ProgressView, Seen};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::time::{Day, Millis};
use sendtrail_schemas::topic::{Topic, TopicPartition, partition_of};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ownership::Ownership;
use crate::steward::Steward;

/// How often it is looked how long records have waited.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Looks that are remembered while a partition is behind.
const LOOKS: usize = 1_200;
/// How often others are told how far ClickHouse is, at most, and at least.
const TELL_EVERY: Duration = Duration::from_millis(50);
const REPEAT_EVERY: Duration = Duration::from_secs(2);

/// Whose suppressed addresses are kept of those that are made known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nobody's: nobody asks.
    None,
    /// Those of partitions that others own.
    Others,
    /// Also those of partitions that this process owns, for others may own them later.
    All,
}

/// How long what was received may take until it is read here, milliseconds.
const ON_ITS_WAY: i64 = 1_000;

/// How far others are, as they made it known.
pub struct Elsewhere {
    /// How far partitions are. Of those that are owned here they tell it themselves.
    pub pulses: Vec<Arc<Pulse>>,
    ownership: Arc<Ownership>,
    next_events: Vec<AtomicU64>,
    clickhouse: watch::Sender<BTreeMap<u32, ClickHouseView>>,
    /// A query was not answered, and nothing was heard since.
    is_silent: AtomicBool,
}

impl Elsewhere {
    /// Nothing is known yet.
    pub fn new(pulses: Vec<Arc<Pulse>>, ownership: Arc<Ownership>) -> Self {
        let next_events = pulses.iter().map(|_| AtomicU64::new(0)).collect();
        Self { pulses, ownership, next_events, clickhouse: watch::Sender::default(), is_silent: AtomicBool::new(false) }
    }

    fn take(&self, partition: u32, seen: Seen, views: &Views, clock: &Clock) {
        let Seen::Progress(progress) = seen else {
            if let Err(error) = views.take(seen) {
                tracing::error!(partition, %error, "what another server made known could not be kept");
            }
            return;
        };
        self.note_events(partition, &progress);
        clock.reached(Millis(progress.last_t));
        let Some(pulse) = self.pulses.get(partition as usize) else { return };
        self.ownership.unless_owned(partition, || {
            match &progress.halted {
                Some(why) => pulse.halt(why.clone()),
                None => pulse.resume(),
            }
            // Whoever starts again begins with what it had; what was true stays true.
            let known = *pulse.applied().borrow();
            let at = pulse.applied_at().max(Millis(progress.last_t));
            pulse.set_applied(known.max(progress.applied), at);
        });
    }

    /// How far the events of each partition are, as far as is known, and a time before which none came that is not among them.
    pub fn look(&self, log: &dyn EventLog, clock: &Clock) -> (Millis, BTreeMap<u32, u64>) {
        let now = clock.now().plus(-ON_ITS_WAY);
        let applied = |(partition, pulse): (u32, &Arc<Pulse>)| {
            // The time first: what is before it is before this offset.
            let at = pulse.applied_at();
            let end = *log.end(TopicPartition::new(Topic::Intake, partition)).borrow();
            if *pulse.applied().borrow() >= end { now } else { at.min(now) }
        };
        // Events are noted before what they follow from is.
        let at = (0..).zip(&self.pulses).map(applied).fold(now, Millis::min);
        (at, (0..self.next_events.len() as u32).map(|partition| (partition, self.next_event(partition))).collect())
    }

    /// Notes how far the events of a partition are.
    pub fn note_events(&self, partition: u32, progress: &ProgressView) {
        if let Some(next) = self.next_events.get(partition as usize) {
            next.fetch_max(progress.next_event, Ordering::AcqRel);
        }
    }

    /// The number after the last event of a partition, as far as is known.
    pub fn next_event(&self, partition: u32) -> u64 {
        self.next_events.get(partition as usize).map_or(0, |next| next.load(Ordering::Acquire))
    }

    /// The same with what is read here: of what was applied here that is known sooner, of what was applied elsewhere perhaps later.
    pub fn end_of_events(&self, log: &dyn EventLog, partition: u32) -> u64 {
        let read = *log.end(TopicPartition::new(Topic::Events, partition)).borrow();
        self.next_event(partition).max(read)
    }

    /// Notes how far ClickHouse is.
    pub fn note(&self, partition: u32, view: ClickHouseView) {
        self.is_silent.store(false, Ordering::Release);
        self.clickhouse.send_modify(|known| known.extend([(partition, view)]));
    }

    /// Follows what others make known; of partitions that are owned here, `steward` hears what is said. Blocks until everything
    /// is known that was made known before.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub fn follow(
        self: &Arc<Self>,
        exchange: &Exchange,
        views: Views,
        clock: Clock,
        steward: Option<Arc<Steward>>,
        keep: Keep,
    ) -> Result<(), sendtrail_eventlog::Error> {
        let elsewhere = self.clone();
        exchange.follow_views(move |partition, word| {
            if let Some(steward) = &steward {
                steward.hear(partition, &word);
            }
            let is_owned = elsewhere.ownership.has(partition);
            let is_kept = |seen: &Seen| match seen {
                Seen::Progress(_) => true,
                // What this process itself says of an address is what is known here once the partition has left.
                Seen::Suppression(_) => keep == Keep::All || keep == Keep::Others && !is_owned,
                _ => !is_owned,
            };
            match word {
                Word::Said(_, Seen::ClickHouse(view)) => elsewhere.note(partition, view),
                Word::Said(Voice::Owner, seen) if is_kept(&seen) => elsewhere.take(partition, seen, &views, &clock),
                Word::Said(Voice::Former, _) if !is_owned => counter!("sendtrail_stale_views_total").increment(1),
                Word::Reign { .. } | Word::Said(..) => {}
            }
        })
    }

    /// Keeps an eye on how long records have waited to be applied, here or elsewhere, by when they were first seen here: clocks of
    /// machines are apart.
    pub async fn watch_lag(self: Arc<Self>, log: Arc<dyn EventLog>, stop: CancellationToken) {
        let mut looks: Vec<VecDeque<(u64, i64)>> = vec![VecDeque::new(); self.pulses.len()];
        while !stop.is_cancelled() {
            let now = Millis::wall().0;
            for ((partition, pulse), looks) in (0..).zip(&self.pulses).zip(&mut looks) {
                let end = *log.end(TopicPartition::new(Topic::Intake, partition)).borrow();
                let applied = *pulse.applied().borrow();
                // Beyond a minute it does not matter how many it is.
                if looks.back().is_none_or(|(seen, _)| *seen < end) && looks.len() < LOOKS {
                    looks.push_back((end, now));
                }
                while looks.front().is_some_and(|(seen, _)| *seen <= applied) {
                    looks.pop_front();
                }
                pulse.set_pending(looks.front().copied());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// How far ClickHouse is, which another server fills.
pub struct DistantReplica {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// What it made known.
    pub elsewhere: Arc<Elsewhere>,
    /// How long a reader waits for it.
    pub patience: Duration,
}

#[async_trait]
impl sendtrail_query_api::Replica for DistantReplica {
    async fn is_ready(&self, account: AccountId) -> bool {
        let elsewhere = &self.elsewhere;
        let partition = partition_of(account, elsewhere.pulses.len() as u32);
        let next = elsewhere.end_of_events(&*self.log, partition);
        let mut known = elsewhere.clickhouse.subscribe();
        let of = |known: &BTreeMap<u32, ClickHouseView>| known.get(&partition).cloned();
        let has = |view: &ClickHouseView| view.whole_since.is_some() && view.next_event >= next;
        let decided = |known: &BTreeMap<u32, ClickHouseView>| {
            let far = |view: &ClickHouseView| view.whole_since.is_none() || view.next_event + FAR < next;
            of(known).is_some_and(|view| has(&view) || far(&view))
        };
        if elsewhere.is_silent.load(Ordering::Acquire) {
            return false;
        }
        match tokio::time::timeout(self.patience, known.wait_for(decided)).await {
            Ok(Ok(known)) => of(&known).is_some_and(|view| has(&view)),
            _ => false,
        }
    }

    fn note_silence(&self) {
        self.elsewhere.is_silent.store(true, Ordering::Release);
    }

    fn whole_since(&self) -> Option<Day> {
        let known = self.elsewhere.clickhouse.borrow();
        let days = known.values().map(|view| view.whole_since);
        days.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// Makes known how far ClickHouse is.
pub async fn tell_clickhouse(
    sink: ClickHouseHandle,
    announce: Arc<dyn Announce>,
    partitions: u32,
    stop: CancellationToken,
) {
    let mut told: BTreeMap<u32, ClickHouseView> = BTreeMap::new();
    let mut repeated = tokio::time::Instant::now();
    while !stop.is_cancelled() {
        let (whole_since, marks) = (sink.whole_since(), sink.marks());
        let again = repeated.elapsed() >= REPEAT_EVERY;
        if again {
            repeated = tokio::time::Instant::now();
        }
        for partition in 0..partitions {
            let next_event = marks.get(&partition).copied().unwrap_or(0);
            let view = ClickHouseView { next_event, whole_since };
            if again || told.get(&partition) != Some(&view) {
                // The next one comes soon: nobody waits for this one.
                drop(announce.announce(partition, Seen::ClickHouse(view.clone())));
                told.insert(partition, view);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(TELL_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
}
