//! Made-up traffic: five partners of different size and health, with duplicates, disorder and late events.

use std::collections::BTreeMap;
use std::fmt::Write;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use sendtrail_schemas::time::Millis;

/// Milliseconds of an hour.
pub const HOUR: i64 = 3_600_000;
/// Days that are replayed.
pub const DAYS: u32 = 20;
/// Events that a message makes on average, duplicates left out; a little less, so that there are enough.
const EVENTS_PER_MESSAGE: f64 = 2.35;
const MAILBOXES: [&str; 8] = [
    "gmail.example",
    "outlook.example",
    "yahoo.example",
    "icloud.example",
    "proton.example",
    "fastmail.example",
    "gmx.example",
    "orange.example",
];

/// What happened, as far as the recount needs it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Kind {
    Send,
    Delivery,
    HardBounce,
    SoftBounce,
    Complaint,
    Open,
    Click,
    Delay,
    Other,
}

/// One event of a partner. Numbers stand for names.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    /// What.
    pub kind: Kind,
    /// Which message to which recipient.
    pub message: u64,
    /// Who.
    pub recipient: u64,
    /// Tells repeatable facts of one message apart.
    pub repeat: u64,
    /// When it happened.
    pub at: Millis,
    /// Whether it belongs to a configuration set, and so goes to webhooks.
    pub hooked: bool,
}

/// A partner: how much it sends, and what becomes of it.
pub struct Profile {
    /// What people call it.
    pub name: &'static str,
    /// Its domain, which is also the beginning of its message identifiers.
    pub domain: &'static str,
    /// Part of all messages.
    share: f64,
    /// Parts per million of its messages.
    hard_bounce: u32,
    soft_bounce: u32,
    complaint: u32,
    open: u32,
    click: u32,
    /// From which day it mails a bought list, and how many of those bounce.
    degrades: Option<(u32, u32)>,
}

/// The five.
pub const PARTNERS: [Profile; 5] = [
    Profile {
        name: "Northwind Retail",
        domain: "northwind.example",
        share: 0.52,
        hard_bounce: 7_000,
        soft_bounce: 4_000,
        complaint: 150,
        open: 310_000,
        click: 90_000,
        degrades: None,
    },
    Profile {
        name: "Bluebird Travel",
        domain: "bluebird.example",
        share: 0.25,
        hard_bounce: 12_000,
        soft_bounce: 9_000,
        complaint: 300,
        open: 420_000,
        click: 140_000,
        degrades: None,
    },
    Profile {
        name: "Cobalt Games",
        domain: "cobalt.example",
        share: 0.13,
        hard_bounce: 16_000,
        soft_bounce: 8_000,
        complaint: 2_400,
        open: 240_000,
        click: 60_000,
        degrades: None,
    },
    Profile {
        name: "Dune Outlet",
        domain: "dune.example",
        share: 0.0999,
        hard_bounce: 9_000,
        soft_bounce: 6_000,
        complaint: 250,
        open: 200_000,
        click: 50_000,
        degrades: Some((11, 330_000)),
    },
    Profile {
        name: "Elm Studio",
        domain: "elm.example",
        share: 0.0001,
        hard_bounce: 150_000,
        soft_bounce: 50_000,
        complaint: 0,
        open: 500_000,
        click: 200_000,
        degrades: None,
    },
];

/// A partner's events, hour by hour. The same seed gives the same events.
pub struct Traffic {
    profile: &'static Profile,
    random: StdRng,
    begin: Millis,
    messages_per_hour: f64,
    owed: f64,
    mailboxes: u64,
    next_message: u64,
    next_repeat: u64,
    due: BTreeMap<u32, Vec<Fact>>,
    sending: bool,
}

impl Traffic {
    /// Traffic that begins with an hour; about `events` of all partners together.
    pub fn new(profile: &'static Profile, begin: Millis, events: u64, seed: u64) -> Self {
        let messages = events as f64 / EVENTS_PER_MESSAGE * profile.share;
        Self {
            profile,
            random: StdRng::seed_from_u64(seed ^ u64::from(profile.domain.as_bytes()[0]) << 32),
            begin,
            messages_per_hour: messages / f64::from(DAYS * 24),
            owed: 0.0,
            mailboxes: (messages / 4.0) as u64 + 1,
            next_message: 0,
            next_repeat: 0,
            due: BTreeMap::new(),
            sending: true,
        }
    }

    /// Sends nothing more; what is under way goes on.
    pub fn stop_sending(&mut self) {
        self.sending = false;
    }

    /// What the partner streams in an hour, in no order.
    pub fn hour(&mut self, hour: u32) -> Vec<Fact> {
        if self.sending {
            // Twice as much at noon as at midnight.
            let daylight = 1.0 - 0.33 * (f64::from(hour % 24) * std::f64::consts::TAU / 24.0).cos();
            self.owed += self.messages_per_hour * daylight;
            while self.owed >= 1.0 {
                self.owed -= 1.0;
                self.message(hour);
            }
        }
        let mut facts = self.due.remove(&hour).unwrap_or_default();
        facts.shuffle(&mut self.random);
        facts
    }

    fn chance(&mut self, ppm: u32) -> bool {
        self.random.random_range(0..1_000_000) < ppm
    }

    /// A message of an hour and all that will become of it.
    fn message(&mut self, hour: u32) {
        let profile = self.profile;
        let at = self.begin.plus(i64::from(hour) * HOUR + self.random.random_range(0..HOUR - 120_000));
        let recipient = self.random.random_range(0..self.mailboxes);
        let fact = Fact { kind: Kind::Send, message: self.next_message, recipient, repeat: 0, at, hooked: true };
        self.next_message += 1;
        self.tell(fact);
        let bounces = match profile.degrades {
            Some((day, ppm)) if hour >= day * 24 => ppm,
            _ => profile.hard_bounce,
        };
        let soon = at.plus(self.random.random_range(200..90_000));
        if self.chance(bounces) {
            return self.tell(Fact { kind: Kind::HardBounce, at: soon, ..fact });
        }
        if self.chance(profile.soft_bounce) {
            self.repeatable(Fact { kind: Kind::SoftBounce, at: soon, ..fact });
            return;
        }
        if self.chance(12_000) {
            self.repeatable(Fact { kind: Kind::Delay, at: soon, ..fact });
        }
        self.tell(Fact { kind: Kind::Delivery, at: soon, ..fact });
        // A complaint among the very first messages would be a high rate of little.
        if hour >= 36 && self.chance(profile.complaint) {
            let later = self.random.random_range(HOUR..20 * HOUR);
            self.tell(Fact { kind: Kind::Complaint, at: at.plus(later), ..fact });
        }
        let mut opens = profile.open;
        while self.chance(opens) {
            let later = self.random.random_range(60_000..40 * HOUR);
            self.repeatable(Fact { kind: Kind::Open, at: at.plus(later), ..fact });
            opens /= 2;
        }
        if self.chance(profile.click) {
            let later = self.random.random_range(60_000..40 * HOUR);
            self.repeatable(Fact { kind: Kind::Click, at: at.plus(later), ..fact });
        }
    }

    fn repeatable(&mut self, fact: Fact) {
        self.next_repeat += 1;
        self.tell(Fact { repeat: self.next_repeat, ..fact });
    }

    /// Has a fact streamed: mostly in its hour, sometimes later, sometimes much later, sometimes twice.
    fn tell(&mut self, fact: Fact) {
        let happened = ((fact.at.0 - self.begin.0) / HOUR) as u32;
        let mut told = happened;
        if self.chance(20_000) {
            told += self.random.random_range(1..6);
        } else if self.chance(2_000) {
            told += self.random.random_range(24..72);
        } else if fact.kind == Kind::Delivery && self.chance(300) {
            // So late that no window counts it.
            told += 15 * 24;
        }
        self.due.entry(told).or_default().push(fact);
        if self.chance(10_000) {
            self.due.entry(told).or_default().push(fact);
        } else if self.chance(4_000) {
            let again = told + self.random.random_range(1..48);
            self.due.entry(again).or_default().push(fact);
        }
    }
}

impl Profile {
    /// The name of a message.
    pub fn message_id(&self, message: u64) -> String {
        format!("{}-{message:07}", &self.domain[..self.domain.len() - ".example".len()])
    }

    /// The identity of an event, the same for each of its copies.
    pub fn event_id(&self, fact: &Fact) -> String {
        format!("{}-{:?}-{}", self.message_id(fact.message), fact.kind, fact.repeat)
    }

    /// Appends an event as a line of NDJSON.
    pub fn write(&self, fact: &Fact, set: &str, out: &mut String) {
        let (kind, block) = match fact.kind {
            Kind::Send => ("Send", r#","subject":"This week","tags":{"campaign":"weekly"}"#),
            Kind::Delivery => ("Delivery", r#","delivery":{"smtpResponse":"250 2.0.0 OK","processingTimeMillis":640}"#),
            Kind::HardBounce => (
                "Bounce",
                r#","bounce":{"bounceType":"Permanent","bounceSubType":"General","diagnosticCode":"smtp; 550 5.1.1 no such user","status":"5.1.1","action":"failed"}"#,
            ),
            Kind::SoftBounce => (
                "Bounce",
                r#","bounce":{"bounceType":"Transient","bounceSubType":"MailboxFull","diagnosticCode":"smtp; 452 4.2.2 mailbox full"}"#,
            ),
            Kind::Complaint => ("Complaint", r#","complaint":{"complaintFeedbackType":"abuse"}"#),
            Kind::Open => ("Open", r#","open":{"ipAddress":"203.0.113.7","userAgent":"Mozilla/5.0"}"#),
            Kind::Click => (
                "Click",
                r#","click":{"ipAddress":"203.0.113.7","userAgent":"Mozilla/5.0","link":"https://shop.example/week"}"#,
            ),
            Kind::Delay | Kind::Other => ("DeliveryDelay", r#","deliveryDelay":{"delayType":"MailboxFull"}"#),
        };
        let mailbox = MAILBOXES[(fact.recipient % MAILBOXES.len() as u64) as usize];
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            r#"{{"event_type":"{kind}","message_id":"{}","recipient":"user{}@{mailbox}","occurred_at":"{}","event_id":"{}","from":"news@{}","configuration_set_name":"{set}"{block}}}"#,
            self.message_id(fact.message),
            fact.recipient,
            fact.at,
            self.event_id(fact),
            self.domain,
        );
    }
}
