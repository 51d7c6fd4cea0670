//! What befalls the world, one after the other: events, what owners ask for, checkpoints and crashes.

use super::history::Op;
use super::*;

impl World {
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

    pub fn step(&mut self, op: &Op) {
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
}
