//! The desk on simulated time, with crashes, beside a plain model that looks at everything anew each time: what may begin
//! must begin, nothing else may, and everybody takes turns.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fjall::Database;
use proptest::prelude::*;
use sendtrail_schemas::destination::{Dialect, Health};
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::{Attempt, FailureClass};
use sendtrail_schemas::time::SECOND;
use tempfile::TempDir;
use uuid::Uuid;

use super::attempt::Outcome;
use super::book::{Book, DeliveryKey, Marks, Waiting};
use super::client::Answer;
use super::desk::Desk;
use super::lane::{Job, Limits, Takes};
use super::outcome::judge;
use crate::core::webhook::breaker::Patience;

const PATIENCE: Patience = Patience {
    failures: 3,
    lasting: 2 * SECOND,
    first_probe: 5 * SECOND,
    last_probe: 60 * SECOND,
    disabled_after: 600 * SECOND,
};
/// Attempts at once, of all.
const TURNS: usize = 5;
const BEGIN: i64 = 1_000_000;

#[derive(Clone, Debug)]
struct Receiver {
    account: u128,
    concurrency: usize,
    rate: Option<u32>,
    ordered: bool,
    /// How long it takes, milliseconds.
    takes: i64,
    /// When it fails, seconds after the beginning.
    bad: (i64, i64),
    /// From when on it says that it is gone, seconds after the beginning.
    gone: Option<i64>,
    schedule: Vec<u32>,
}

#[derive(Clone, Debug)]
enum Op {
    /// An event of an account: its message, and for which of the account's receivers it is.
    Event {
        account: u128,
        message: u64,
        receivers: u8,
    },
    Wait(i64),
    Replay(usize),
    Cancel,
    Revive(usize),
    /// Its owner wants nothing for now.
    Disable(usize),
    Checkpoint,
    /// What is committed after so many commits is what the device has after the next power loss.
    Flush(usize),
    /// The process ends, with so many attempts recorded and not acted upon.
    Kill(usize),
    PowerLoss(usize),
}

fn receiver() -> impl Strategy<Value = Receiver> {
    let bad = prop_oneof![2 => Just((0, 0)), 2 => (0i64..60, 1i64..120).prop_map(|(from, long)| (from, from + long)), 1 => Just((0, 2_000))];
    (
        0..3u128,
        1..4usize,
        prop_oneof![3 => Just(None), 1 => (1..20u32).prop_map(Some)],
        any::<bool>(),
        prop_oneof![0..30i64, 0..3_000i64],
        bad,
        prop_oneof![8 => Just(None), 1 => (0..60i64).prop_map(Some)],
        prop::collection::vec(1..20u32, 0..4),
    )
        .prop_map(|(account, concurrency, rate, ordered, takes, bad, gone, schedule)| Receiver {
            account,
            concurrency,
            rate,
            ordered,
            takes,
            bad,
            gone,
            // No schedule of its own would be the dialect's: hours.
            schedule: if schedule.is_empty() { vec![1] } else { schedule },
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..3u128, 0..3u64, any::<u8>()).prop_map(|(account, message, receivers)| Op::Event { account, message, receivers }),
        4 => (0..4_000i64).prop_map(Op::Wait),
        4 => (0..100i64).prop_map(Op::Wait),
        1 => (10_000..200_000i64).prop_map(Op::Wait),
        2 => any::<usize>().prop_map(Op::Replay),
        1 => Just(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Revive),
        1 => any::<usize>().prop_map(Op::Disable),
        1 => Just(Op::Checkpoint),
        2 => (0..12usize).prop_map(Op::Flush),
        1 => (0..4usize).prop_map(Op::Kill),
        2 => (0..4usize).prop_map(Op::PowerLoss),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Waits { due: i64 },
    UnderWay,
    Done,
}

/// What the model knows of a delivery.
#[derive(Clone, Debug)]
struct Delivery {
    receiver: usize,
    /// What it comes in order of; 0: nothing.
    group: u64,
    state: State,
    attempts: u32,
    is_replay: bool,
    cancelled: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Came {
    Delivered,
    Failed,
    Gone,
}

/// What the model knows of a receiver.
struct Known {
    of: Receiver,
    enabled: bool,
    revival: u32,
    /// How attempts ended since it was enabled.
    history: Vec<(i64, Came)>,
    /// When the last attempt began.
    last_start: Option<i64>,
    /// Attempts since the last replay while one could have been made.
    without_replay: u32,
}

impl Known {
    /// How it is doing, the failures since the last success, and when it is probed: by looking at all that ever happened.
    fn health(&self) -> (Health, usize, i64) {
        let successes = self.history.iter().rposition(|(_, came)| *came == Came::Delivered);
        let failures = &self.history[successes.map_or(0, |at| at + 1)..];
        let Some((since, _)) = failures.first() else { return (Health::Working, 0, 0) };
        let failing = failures
            .iter()
            .enumerate()
            .position(|(n, (at, _))| n + 1 >= PATIENCE.failures as usize && at - since >= PATIENCE.lasting);
        let gone = failures.iter().position(|(_, came)| *came == Came::Gone);
        let Some(failing) = failing.filter(|failing| gone.is_none_or(|gone| gone > *failing)) else {
            return (if gone.is_some() { Health::Disabled } else { Health::Working }, failures.len(), 0);
        };
        let mut probe_at = failures[failing].0 + PATIENCE.first_probe;
        for (probe, (at, _)) in failures[failing + 1..].iter().enumerate() {
            if gone.is_some() || at - since >= PATIENCE.disabled_after {
                return (Health::Disabled, failures.len(), 0);
            }
            let wait = PATIENCE.first_probe * 2i64.pow(probe as u32 + 1);
            probe_at = probe_at.max(at + wait.min(PATIENCE.last_probe));
        }
        (Health::Failing, failures.len(), probe_at)
    }

    fn limits(&self) -> Limits {
        let (concurrency, rate_per_second) = (self.of.concurrency, self.of.rate);
        let takes = if self.enabled { Takes::Events } else { Takes::Nothing };
        Limits { concurrency, rate_per_second, revival: self.revival, takes }
    }

    /// How many attempts may be under way by now.
    fn room(&self, now: i64) -> usize {
        match self.health() {
            (Health::Working, failures, _) => (self.of.concurrency >> failures.min(10)).max(1),
            (Health::Failing, _, probe_at) => usize::from(now >= probe_at || !self.enabled),
            (Health::Disabled, ..) => 1,
        }
    }

    /// Whether its owner's rate allows an attempt by now.
    fn is_paced(&self, now: i64) -> bool {
        let Some((rate, last)) = self.of.rate.zip(self.last_start).filter(|_| self.enabled) else { return true };
        now * 1_000 >= last * 1_000 + 1_000_000 / i64::from(rate)
    }
}

fn id(receiver: usize) -> DestinationId {
    DestinationId(Uuid::from_u128(100 + receiver as u128))
}

fn account(n: u128) -> AccountId {
    AccountId(Uuid::from_u128(1 + n))
}

struct World {
    desk: Desk,
    book: Book,
    now: i64,
    receivers: Vec<Known>,
    deliveries: BTreeMap<DeliveryKey, Delivery>,
    /// Events in the log: whose, of which message, for which receivers.
    events: Vec<(u128, u64, Vec<usize>)>,
    /// When they were read last.
    events_at: Vec<i64>,
    /// Attempts in the log.
    attempts: Vec<Attempt>,
    /// By when they end.
    under_way: BTreeMap<(i64, DeliveryKey), (i64, Job)>,
    /// Who began an attempt while others could have, since the others did last.
    passed: HashMap<AccountId, HashSet<AccountId>>,
    passed_within: HashMap<usize, HashSet<usize>>,
}

/// One database for all cases; each has a partition of its own.
static DATABASE: LazyLock<(TempDir, Database)> = LazyLock::new(|| {
    let folder = TempDir::new().unwrap();
    let database = Database::builder(folder.path()).open().unwrap();
    (folder, database)
});
static PARTITION: AtomicU32 = AtomicU32::new(0);

impl World {
    fn new(receivers: Vec<Receiver>) -> Self {
        let book = Book::open(&DATABASE.1, PARTITION.fetch_add(1, Ordering::Relaxed)).unwrap();
        let known =
            |of| Known { of, enabled: true, revival: 0, history: Vec::new(), last_start: None, without_replay: 0 };
        Self {
            desk: Desk::open(book.clone(), PATIENCE).unwrap(),
            now: BEGIN,
            receivers: receivers.into_iter().map(known).collect(),
            deliveries: BTreeMap::new(),
            events: Vec::new(),
            events_at: Vec::new(),
            attempts: Vec::new(),
            under_way: BTreeMap::new(),
            passed: HashMap::new(),
            passed_within: HashMap::new(),
            book,
        }
    }

    fn waiting(&self, receiver: usize, message: u64) -> Waiting {
        let of = &self.receivers[receiver].of;
        Waiting {
            account_id: account(of.account).bytes().to_vec(),
            dialect: Dialect::Standard as i32,
            due_at: self.now,
            in_order_of: if of.ordered { message + 1 } else { 0 },
            ..Waiting::default()
        }
    }

    /// The deliveries that may be attempted now.
    fn eligible(&self) -> BTreeSet<DeliveryKey> {
        let mut found = BTreeSet::new();
        for (receiver, known) in self.receivers.iter().enumerate() {
            let under_way = self.under_way.keys().filter(|(_, key)| key.destination == id(receiver)).count();
            if under_way >= known.room(self.now) || !known.is_paced(self.now) {
                continue;
            }
            let of_it = || self.deliveries.iter().filter(|(_, delivery)| delivery.receiver == receiver);
            found.extend(
                of_it()
                    .filter(|(key, delivery)| {
                        let due = matches!(delivery.state, State::Waits { due } if due <= self.now);
                        let behind = delivery.group != 0
                            && of_it().any(|(other, before)| {
                                before.group == delivery.group && before.state != State::Done && other.seq < key.seq
                            });
                        due && !behind
                    })
                    .map(|(key, _)| *key),
            );
        }
        found
    }

    /// Reads the events from one on, as after a start.
    fn read_events(&mut self, from: usize) {
        for seq in from..self.events.len() {
            let (of, message, receivers) = self.events[seq].clone();
            self.events_at.truncate(seq);
            self.events_at.push(self.now);
            for receiver in receivers {
                let key = DeliveryKey { seq: seq as u64, destination: id(receiver) };
                let begun = self.waiting(receiver, message);
                self.desk.take_in(account(of), key, self.attempts.len() as u64, || Some(begun)).unwrap();
            }
        }
        self.desk.caught_up();
    }

    fn note_passed(&mut self, began: DeliveryKey, eligible: &BTreeSet<DeliveryKey>) {
        let of = |key: &DeliveryKey| self.deliveries[key].receiver;
        let accounts = |receiver: usize| account(self.receivers[receiver].of.account);
        let mine = of(&began);
        let waiting: BTreeSet<usize> = eligible.iter().map(of).filter(|receiver| *receiver != mine).collect();
        let waiting_accounts: BTreeSet<AccountId> =
            waiting.iter().map(|receiver| accounts(*receiver)).filter(|account| *account != accounts(mine)).collect();
        self.passed.retain(|account, _| waiting_accounts.contains(account));
        self.passed_within.retain(|receiver, _| waiting.contains(receiver));
        for account in waiting_accounts {
            let first = self.passed.entry(account).or_default().insert(accounts(mine));
            assert!(first, "{account} could have begun an attempt and had no turn, while {} had two", accounts(mine));
        }
        for receiver in waiting.into_iter().filter(|receiver| accounts(*receiver) == accounts(mine)) {
            let first = self.passed_within.entry(receiver).or_default().insert(mine);
            assert!(first, "receiver {receiver} could have had an attempt and had none, while {mine} had two");
        }
    }

    fn note_replays(&mut self, began: DeliveryKey, eligible: &BTreeSet<DeliveryKey>) {
        let Delivery { receiver, is_replay, .. } = self.deliveries[&began];
        let asked = |key: &DeliveryKey| self.deliveries[key].receiver == receiver && self.deliveries[key].is_replay;
        let could = eligible.iter().any(asked);
        let known = &mut self.receivers[receiver];
        known.without_replay = if is_replay || !could { 0 } else { known.without_replay + 1 };
        assert!(known.without_replay <= 3, "of four attempts one is a replay");
    }

    /// Begins what may begin.
    fn start(&mut self) {
        self.desk.ripen(self.now).unwrap();
        let revivals: HashMap<DestinationId, Limits> =
            (0..self.receivers.len()).map(|receiver| (id(receiver), self.receivers[receiver].limits())).collect();
        self.desk.revive(|_, destination| revivals[&destination]);
        while self.under_way.len() < TURNS {
            // What is forgotten when its owner enables it is forgotten when it is looked at.
            let outdated: BTreeSet<usize> = (0..self.receivers.len())
                .filter(|receiver| {
                    let lane = self.desk.lane_of(id(*receiver));
                    lane.is_some_and(|lane| lane.standing.breaker.revival != self.receivers[*receiver].revival)
                })
                .collect();
            let mut looked_at = BTreeSet::new();
            let limits: HashMap<DestinationId, Limits> =
                self.receivers.iter().enumerate().map(|(receiver, known)| (id(receiver), known.limits())).collect();
            let next = self.desk.next(self.now, |_, destination| {
                looked_at.insert(destination);
                limits[&destination]
            });
            for receiver in outdated.into_iter().filter(|receiver| looked_at.contains(&id(*receiver))) {
                self.receivers[receiver].history.clear();
            }
            let eligible = self.eligible();
            let Some((destination, job)) = next.unwrap() else {
                assert_eq!(eligible, BTreeSet::new(), "they could begin");
                break;
            };
            assert_eq!(destination, job.key.destination);
            let delivery = self.deliveries[&job.key].clone();
            // A device that lost its power may bring back what was cancelled.
            if !(delivery.cancelled && delivery.state == State::Done) {
                assert!(eligible.contains(&job.key), "{:?} may not begin: {delivery:?}", job.key);
                assert_eq!(job.waiting.attempts, delivery.attempts, "no attempt is forgotten");
                self.note_passed(job.key, &eligible);
                self.note_replays(job.key, &eligible);
            } else {
                (self.passed, self.passed_within) = Default::default();
                self.receivers[delivery.receiver].without_replay = 0;
            }
            let known = &mut self.receivers[delivery.receiver];
            if known.enabled {
                known.last_start = Some(self.now);
            }
            let ends = if known.enabled && !delivery.cancelled { self.now + known.of.takes } else { self.now };
            self.deliveries.get_mut(&job.key).unwrap().state = State::UnderWay;
            self.under_way.insert((ends, job.key), (self.now, job));
        }
        assert!(self.desk.wake_at().is_none_or(|at| at > self.now), "what is to be done is done");
        for (receiver, known) in self.receivers.iter().enumerate() {
            let lane = self.desk.lane_of(id(receiver));
            assert!(lane.is_none_or(|lane| lane.is_tidy()));
            if lane.is_none_or(|lane| lane.standing.breaker.revival == known.revival) {
                assert_eq!(self.desk.health(id(receiver)), known.health().0, "{:?}", known.history);
            }
        }
    }

    /// What comes of an attempt, in the log. `None`: it is not wanted any more.
    fn record(&mut self, started_at: i64, job: &Job) -> Option<Attempt> {
        let delivery = self.deliveries.get_mut(&job.key).unwrap();
        if delivery.cancelled {
            delivery.state = State::Done;
            return None;
        }
        let known = &mut self.receivers[delivery.receiver];
        let since = (started_at - BEGIN) / SECOND;
        let status = match known.of.gone {
            Some(gone) if since >= gone => 410,
            _ if (known.of.bad.0..known.of.bad.1).contains(&since) => 500,
            _ => 200,
        };
        let answer = match known.enabled {
            true => Answer { status: Ok(status), retry_after: None, body: Bytes::new(), took: Duration::ZERO },
            false => Answer::failed(FailureClass::Unavailable, "disabled"),
        };
        let outcome = Outcome {
            job: job.clone(),
            destination: job.key.destination,
            started_at,
            finished_at: self.now,
            answer,
            schedule: Some(known.of.schedule.clone()),
            unwanted: false,
        };
        let attempt = judge(&outcome, 0, PATIENCE.first_probe);
        delivery.attempts += 1;
        delivery.state = match attempt.next_due_at {
            None => State::Done,
            Some(_) if attempt.trigger() == sendtrail_schemas::mail::Trigger::Probe => State::Waits { due: self.now },
            Some(due) => State::Waits { due },
        };
        let came = match attempt.failure() {
            FailureClass::None => Some(Came::Delivered),
            FailureClass::Gone => Some(Came::Gone),
            FailureClass::Unavailable => None,
            _ => Some(Came::Failed),
        };
        known.history.extend(came.map(|came| (self.now, came)));
        self.attempts.push(attempt.clone());
        Some(attempt)
    }

    fn run_until(&mut self, end: i64) {
        loop {
            self.start();
            let ends = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let next = ends.into_iter().chain(self.desk.wake_at()).min().unwrap_or(end);
            if next > end {
                break;
            }
            let advanced = next > self.now;
            self.now = next.max(self.now);
            let mut over = Vec::new();
            while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let ((_, key), (started_at, job)) = entry.remove_entry();
                let receiver = self.deliveries[&key].receiver;
                let Some(attempt) = self.record(started_at, &job) else {
                    self.desk.forget(account(self.receivers[receiver].of.account), key.destination, &job).unwrap();
                    continue;
                };
                let offset = self.attempts.len() as u64 - 1;
                let change = self.desk.settle(key.destination, job, &attempt, offset, &mut over).unwrap();
                if change == Some(Health::Disabled) {
                    self.receivers[receiver].enabled = false;
                }
            }
            self.desk.book.remove_all(&over).unwrap();
            if next == end && !advanced && ends.is_none_or(|at| at > self.now) {
                break;
            }
        }
        self.now = end.max(self.now);
        self.start();
    }

    fn checkpoint(&mut self) {
        self.desk.spill(self.now - SECOND).unwrap();
        let kept = |key: &&DeliveryKey| self.under_way.keys().all(|(_, other)| other != *key);
        let stuck = self.deliveries.iter().filter(|(key, of)| {
            let young = self.events_at[key.seq as usize] >= self.now - SECOND;
            of.state != State::Done && !young && kept(key) && self.book.get(**key).unwrap().is_none()
        });
        assert_eq!(stuck.count(), 0, "what waits for long is in the book");
        self.book.checkpoint(self.desk.marks(self.events.len() as u64, self.attempts.len() as u64)).unwrap();
        self.book.flush_after(0);
    }

    /// Begins anew with what the device has; some attempts may be in the log that were not acted upon.
    fn crash(&mut self, recorded: usize) {
        for (n, ((_, key), (started_at, job))) in std::mem::take(&mut self.under_way).into_iter().enumerate() {
            if n >= recorded || self.deliveries[&key].cancelled {
                self.deliveries.get_mut(&key).unwrap().state = State::Waits { due: self.now };
            } else if let Some(attempt) = self.record(started_at, &job)
                && attempt.failure() == FailureClass::Gone
            {
                let receiver = self.deliveries[&key].receiver;
                self.receivers[receiver].enabled = false;
            }
        }
        let Marks { event, attempt } = self.book.marks().unwrap();
        self.desk = Desk::open(self.book.clone(), PATIENCE).unwrap();
        for (offset, attempt) in self.attempts.clone().into_iter().enumerate().skip(attempt as usize) {
            self.desk.fold(attempt, offset as u64, event).unwrap();
        }
        self.read_events(event as usize);
        for (receiver, known) in self.receivers.iter_mut().enumerate() {
            (known.last_start, known.without_replay) = (None, 0);
            // Its owner is told once more.
            if self.desk.health(id(receiver)) == Health::Disabled
                && self.desk.lane_of(id(receiver)).unwrap().standing.breaker.revival == known.revival
            {
                known.enabled = false;
            }
        }
        (self.passed, self.passed_within) = Default::default();
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Event { account, message, receivers } => {
                let theirs = (0..self.receivers.len()).filter(|n| self.receivers[*n].of.account == *account);
                let wanted: Vec<usize> = theirs.filter(|n| receivers >> n & 1 == 1).collect();
                let seq = self.events.len() as u64;
                for receiver in &wanted {
                    let delivery = Delivery {
                        receiver: *receiver,
                        group: self.waiting(*receiver, *message).in_order_of,
                        state: State::Waits { due: self.now },
                        attempts: 0,
                        is_replay: false,
                        cancelled: false,
                    };
                    self.deliveries.insert(DeliveryKey { seq, destination: id(*receiver) }, delivery);
                }
                self.events.push((*account, *message, wanted));
                self.read_events(seq as usize);
                self.start();
            }
            Op::Wait(millis) => self.run_until(self.now + millis),
            Op::Replay(n) => {
                let Some(key) = self.deliveries.keys().nth(n % self.deliveries.len().max(1)).copied() else { return };
                let delivery = self.deliveries[&key].clone();
                let again = Waiting {
                    attempts: delivery.attempts,
                    in_order_of: 0,
                    replay_id: vec![1],
                    since_attempt: self.attempts.len() as u64,
                    ..self.waiting(delivery.receiver, 0)
                };
                let of = account(self.receivers[delivery.receiver].of.account);
                // It may have come back with the device.
                let was_cancelled = delivery.cancelled;
                let is_new = self.desk.replay(of, key, again, self.now).unwrap();
                assert!(is_new == (delivery.state == State::Done) || was_cancelled);
                let known = self.deliveries.get_mut(&key).unwrap();
                match delivery.state {
                    State::Done if is_new => {
                        (known.state, known.group) = (State::Waits { due: self.now }, 0);
                        (known.is_replay, known.cancelled) = (true, false);
                    }
                    State::Waits { due } => known.state = State::Waits { due: due.min(self.now) },
                    _ => {}
                }
                self.checkpoint();
                self.start();
            }
            Op::Cancel => {
                for delivery in self.deliveries.values_mut().filter(|delivery| delivery.is_replay) {
                    delivery.cancelled |= delivery.state != State::Done;
                }
            }
            Op::Revive(n) => {
                let receivers = self.receivers.len();
                let known = &mut self.receivers[n % receivers];
                known.revival += 1;
                known.enabled = true;
                known.of.gone = None;
                self.start();
            }
            Op::Disable(n) => {
                let receivers = self.receivers.len();
                self.receivers[n % receivers].enabled = false;
                self.start();
            }
            Op::Checkpoint => self.checkpoint(),
            Op::Flush(commits) => self.book.flush_after(*commits),
            Op::Kill(recorded) => {
                self.crash(*recorded);
                self.start();
            }
            Op::PowerLoss(recorded) => {
                self.book.restore(&self.book.on_device());
                self.crash(*recorded);
                self.start();
            }
        }
    }

    /// Everybody is well again: everything ends, and nothing is left.
    fn finish(&mut self) {
        for known in &mut self.receivers {
            (known.of.bad, known.of.gone) = ((0, 0), None);
        }
        for _ in 0..100_000 {
            self.run_until(self.now + 60 * SECOND);
            if self.under_way.is_empty() && self.desk.wake_at().is_none() {
                break;
            }
        }
        for (key, delivery) in &self.deliveries {
            assert_eq!(delivery.state, State::Done, "{key:?} {delivery:?}");
            let of_it = self
                .attempts
                .iter()
                .filter(|attempt| attempt.event_seq == key.seq && attempt.destination_id == key.destination.bytes());
            let numbers: Vec<u32> = of_it.map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (1..=delivery.attempts).collect::<Vec<_>>(), "{key:?}");
        }
        let left = self.desk.figures(self.now);
        assert_eq!((left.in_memory, left.under_way, left.overdue), (0, 0, 0));
        let marks = self.desk.marks(7, 8);
        assert_eq!(marks, Marks { event: 7, attempt: 8 }, "the book has everything");
        assert!(!self.book.has_deliveries(), "nothing is left in the book");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_may_begin_begins_and_everybody_takes_turns(
        receivers in prop::collection::vec(receiver(), 1..7),
        ops in prop::collection::vec(op(), 1..90),
    ) {
        let mut world = World::new(receivers);
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }
}
