//! The desk on simulated time, with crashes, beside a plain model that looks at everything anew each time: what may begin
//! must begin, nothing else may, and everybody takes turns.

mod befalling;
mod history;
mod model;

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

use self::history::{Receiver, op, receiver};
use self::model::{Came, Delivery, Known, State};
use super::attempt::Outcome;
use super::book::{Book, DeliveryKey, Marks, Waiting};
use super::client::Answer;
use super::desk::{Desk, IN_MEMORY};
use super::lane::{Job, Limits};
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
        // Whoever has nothing in memory gets one of each kind beyond.
        let most = IN_MEMORY.unsigned_abs() + 2 * self.receivers.len();
        assert!(self.desk.figures(self.now).in_memory <= most, "however much waits, it waits in the book");
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
