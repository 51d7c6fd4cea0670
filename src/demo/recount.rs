//! A plain recount of what was streamed, written from the contract and not from the processor: sets and sums, no more.

use std::collections::{BTreeMap, HashSet};

use sendtrail_schemas::time::Millis;

use super::traffic::{Fact, HOUR, Kind};

/// Hours of the window.
const WINDOW: i64 = 336;
/// Sends that must be in the window before anything is judged.
const FLOOR: u64 = 50;

/// The figures of `/stats` that are compared, in this order.
pub const FIGURES: [&str; 10] = [
    "sends",
    "deliveries",
    "permanent_bounces",
    "transient_bounces",
    "complaints",
    "opens",
    "unique_opens",
    "clicks",
    "unique_clicks",
    "delays",
];

/// The figures of one day.
pub type Figures = [u64; FIGURES.len()];

/// A change of standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new status.
    pub to: &'static str,
    /// The time of the record that crossed the limit.
    pub at: Millis,
    /// That record.
    pub fact: (Kind, u64, u64),
    /// `bounces` or `complaints`: what it was judged by.
    pub what: &'static str,
    /// How many of them, and sends.
    pub share: (u64, u64),
}

/// Everything that is counted of one partner.
#[derive(Default)]
pub struct Recount {
    /// Facts that were told, copies included.
    pub told: u64,
    /// Facts, each once.
    pub distinct: u64,
    /// By UTC day of the fact, days since the epoch.
    pub days: BTreeMap<i64, Figures>,
    /// Changes of standing, in order.
    pub changes: Vec<Change>,
    /// Recipients that must not be mailed again.
    pub suppressed: HashSet<u64>,
    /// Facts that belong to a configuration set, by kind.
    pub hooked: BTreeMap<Kind, u64>,
    seen: HashSet<(Kind, u64, u64)>,
    opened: HashSet<u64>,
    clicked: HashSet<u64>,
    first_hour: i64,
    /// Sends, bounces and complaints by hour since the first.
    hours: Vec<[u64; 3]>,
    status: &'static str,
}

impl Recount {
    /// A recount that begins with an hour, before which nothing happened that is in a window.
    pub fn new(first_hour: i64) -> Self {
        Self { first_hour, status: "HEALTHY", ..Self::default() }
    }

    /// The status that the policy gives.
    pub fn status(&self) -> &'static str {
        self.status
    }

    /// Counts a fact that was received at `t`.
    pub fn tell(&mut self, fact: &Fact, t: Millis) {
        self.told += 1;
        if !self.seen.insert((fact.kind, fact.message, fact.repeat)) {
            return;
        }
        self.distinct += 1;
        *self.hooked.entry(fact.kind).or_default() += u64::from(fact.hooked);
        let day = self.days.entry(fact.at.0.div_euclid(24 * HOUR)).or_default();
        match fact.kind {
            Kind::Send => day[0] += 1,
            Kind::Delivery => day[1] += 1,
            Kind::HardBounce => day[2] += 1,
            Kind::SoftBounce => day[3] += 1,
            Kind::Complaint => day[4] += 1,
            Kind::Open => {
                day[5] += 1;
                day[6] += u64::from(self.opened.insert(fact.message));
            }
            Kind::Click => {
                day[7] += 1;
                day[8] += u64::from(self.clicked.insert(fact.message));
            }
            Kind::Delay => day[9] += 1,
            Kind::Other => {}
        }
        let column = match fact.kind {
            Kind::Send => 0,
            Kind::HardBounce => 1,
            Kind::Complaint => 2,
            _ => return,
        };
        if column > 0 {
            self.suppressed.insert(fact.recipient);
        }
        let (hour, now) = (fact.at.0.div_euclid(HOUR), t.0.div_euclid(HOUR));
        if hour <= now - WINDOW {
            return;
        }
        let place = usize::try_from(hour - self.first_hour).unwrap_or_default();
        if self.hours.len() <= place {
            self.hours.resize(place + 1, [0; 3]);
        }
        self.hours[place][column] += 1;
        self.judge(fact, t);
    }

    /// Sends, permanent bounces and complaints of the 14 days before a time, added up anew.
    pub fn window(&self, t: Millis) -> [u64; 3] {
        let last = t.0.div_euclid(HOUR) - self.first_hour;
        let first = (last - WINDOW + 1).max(0) as usize;
        let mut sum = [0; 3];
        for hour in self.hours.iter().take(usize::try_from(last + 1).unwrap_or_default()).skip(first) {
            for (sum, part) in sum.iter_mut().zip(hour) {
                *sum += part;
            }
        }
        sum
    }

    /// S2's limits: over 10 % bounces or 0.5 % complaints is PAUSED, over 5 % or 0.1 % is AT_RISK.
    fn judge(&mut self, fact: &Fact, t: Millis) {
        if self.status == "PAUSED" {
            return;
        }
        let [sent, bounced, complained] = self.window(t);
        let over = |part: u64, per_thousand: u64| sent >= FLOOR && part * 1_000 > sent * per_thousand;
        let (to, what, part) = if over(bounced, 100) {
            ("PAUSED", "bounces", bounced)
        } else if over(complained, 5) {
            ("PAUSED", "complaints", complained)
        } else if over(bounced, 50) {
            ("AT_RISK", "bounces", bounced)
        } else if over(complained, 1) {
            ("AT_RISK", "complaints", complained)
        } else {
            ("HEALTHY", "bounces", bounced)
        };
        if to != self.status {
            self.status = to;
            let fact = (fact.kind, fact.message, fact.repeat);
            self.changes.push(Change { to, at: t, fact, what, share: (part, sent) });
        }
    }

    /// The sums of all days.
    pub fn totals(&self) -> Figures {
        let mut totals = Figures::default();
        for day in self.days.values() {
            for (sum, part) in totals.iter_mut().zip(day) {
                *sum += part;
            }
        }
        totals
    }
}
