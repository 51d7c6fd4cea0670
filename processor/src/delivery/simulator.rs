//! Delivers to nobody, and tells what would have happened: always the same for the same message.
//!
//! Honours the addresses of Amazon SES's mailbox simulator by their local part, on any domain, with `+label`
//! (SES developer guide, "Using the mailbox simulator").

use async_trait::async_trait;
use sendtrail_schemas::block::{Block, Bounce, Click, Complaint, Delivery, DeliveryDelay, Open, Reply};
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::hash128;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{Mail, MailContent};
use sendtrail_schemas::record::Recipient;

use super::{Report, Transport};

/// What happens to messages to all other addresses; shares in parts per million, delays in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Bounced for good.
    pub permanent_bounce_ppm: u32,
    /// Delayed once, then delivered.
    pub delay_ppm: u32,
    /// Delivered, then called spam.
    pub complaint_ppm: u32,
    /// Delivered, then opened.
    pub open_ppm: u32,
    /// Opened, then clicked.
    pub click_ppm: u32,
    /// From acceptance to the outcome.
    pub delivery_delay: i64,
    /// From delivery to an open, a click or a complaint.
    pub reaction_delay: i64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            permanent_bounce_ppm: 10_000,
            delay_ppm: 10_000,
            complaint_ppm: 200,
            open_ppm: 300_000,
            click_ppm: 150_000,
            delivery_delay: 200,
            reaction_delay: 2_000,
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Simulator {
    mix: Mix,
}

impl Simulator {
    /// A simulator with a mix.
    pub fn new(mix: Mix) -> Self {
        Self { mix }
    }

    fn outcomes(&self, to: &Recipient) -> Vec<Report> {
        let local = to.address.split('@').next().unwrap_or_default().to_ascii_lowercase();
        let name = local.split('+').next().unwrap_or_default();
        let (soon, later) = (self.mix.delivery_delay, self.mix.delivery_delay + self.mix.reaction_delay);
        let told = |after, kind, block| Report { after, fact: fact(to, kind, block) };
        let delivered = || told(soon, EventType::Delivery, delivery(soon));
        match name {
            "success" => vec![delivered()],
            "bounce" => vec![told(soon, EventType::Bounce, bounce("General", "smtp; 550 5.1.1 user unknown", "5.1.1"))],
            "suppressionlist" => {
                let block = bounce("Suppressed", "smtp; 550 5.1.1 address is on a global suppression list", "5.1.1");
                vec![told(soon, EventType::Bounce, block)]
            }
            "complaint" => vec![delivered(), told(later, EventType::Complaint, complaint())],
            "ooto" => vec![delivered(), told(later, EventType::Reply, out_of_office(to))],
            _ => self.mixed(to, soon, later),
        }
    }

    fn mixed(&self, to: &Recipient, soon: i64, later: i64) -> Vec<Report> {
        let told = |after, kind, block| Report { after, fact: fact(to, kind, block) };
        let happens = |what: &str, ppm: u32| {
            let hash = hash128(&[to.message_id.as_bytes(), to.address.as_bytes(), what.as_bytes()]);
            ((hash % 1_000_000) as u32) < ppm
        };
        if happens("bounce", self.mix.permanent_bounce_ppm) {
            let block = bounce("General", "smtp; 550 5.1.1 user unknown", "5.1.1");
            return vec![told(soon, EventType::Bounce, block)];
        }
        let mut reports = Vec::new();
        if happens("delay", self.mix.delay_ppm) {
            let delay = DeliveryDelay { delay_type: Some("MailboxFull".into()), ..DeliveryDelay::default() };
            reports.push(told(soon / 2, EventType::DeliveryDelay, Block::DeliveryDelay(delay)));
        }
        reports.push(told(soon, EventType::Delivery, delivery(soon)));
        if happens("complaint", self.mix.complaint_ppm) {
            reports.push(told(later, EventType::Complaint, complaint()));
        } else if happens("open", self.mix.open_ppm) {
            let (ip_address, user_agent) = (Some("203.0.113.42".into()), Some("Mozilla/5.0 (simulated)".into()));
            let open = Open { ip_address: ip_address.clone(), user_agent: user_agent.clone() };
            reports.push(told(later, EventType::Open, Block::Open(open)));
            if happens("click", self.mix.click_ppm) {
                let click = Click { ip_address, user_agent, link: Some("https://example.com/".into()) };
                reports.push(told(later + 500, EventType::Click, Block::Click(click)));
            }
        }
        reports
    }
}

#[async_trait]
impl Transport for Simulator {
    async fn deliver(&self, _: &Mail, _: &MailContent, to: &Recipient) -> Vec<Report> {
        self.outcomes(to)
    }
}

fn fact(to: &Recipient, kind: EventType, block: Block) -> EventFact {
    EventFact {
        kind: kind as i32,
        message_id: to.message_id.clone(),
        recipient: to.address.clone(),
        // The same after a crash, so that it is counted once.
        event_id: Some(format!("sim_{}_{}", to.message_id, kind.name())),
        block: Some(block),
        ..EventFact::default()
    }
}

fn delivery(after: i64) -> Block {
    Block::Delivery(Delivery {
        smtp_response: Some("250 2.6.0 Message received".into()),
        processing_time_millis: Some(after),
        reporting_mta: Some("simulator.sendtrail".into()),
        ..Delivery::default()
    })
}

fn bounce(sub_type: &str, diagnostic: &str, status: &str) -> Block {
    Block::Bounce(Bounce {
        bounce_type: Some("Permanent".into()),
        bounce_sub_type: Some(sub_type.into()),
        diagnostic_code: Some(diagnostic.into()),
        status: Some(status.into()),
        action: Some("failed".into()),
        reporting_mta: Some("dsn; simulator.sendtrail".into()),
        ..Bounce::default()
    })
}

fn complaint() -> Block {
    Block::Complaint(Complaint {
        complaint_feedback_type: Some("abuse".into()),
        user_agent: Some("Sendtrail mailbox simulator".into()),
        ..Complaint::default()
    })
}

fn out_of_office(to: &Recipient) -> Block {
    Block::Reply(Reply {
        outbox_id: Some(to.message_id.clone()),
        original_recipient: Some(to.address.clone()),
        from: Some(to.address.clone()),
        subject: Some("Out of office".into()),
        text_body: Some("I am out of the office.".into()),
        ..Reply::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(simulator: &Simulator, address: &str, message: &str) -> Vec<EventType> {
        let to = Recipient { address: address.into(), message_id: message.into(), kind: 0 };
        let reports = simulator.outcomes(&to);
        assert_eq!(reports, simulator.outcomes(&to), "always the same");
        assert!(reports.is_sorted_by_key(|report| report.after));
        reports.into_iter().map(|report| report.fact.kind()).collect()
    }

    #[test]
    fn honours_sess_addresses_by_local_part() {
        use EventType::{Bounce, Complaint, Delivery, Reply};
        let simulator = Simulator::default();
        for (address, expected) in [
            ("success@simulator.amazonses.com", vec![Delivery]),
            ("Success+label@example.com", vec![Delivery]),
            ("bounce+1@example.com", vec![Bounce]),
            ("suppressionlist@example.com", vec![Bounce]),
            ("complaint@example.com", vec![Delivery, Complaint]),
            ("ooto@example.com", vec![Delivery, Reply]),
        ] {
            assert_eq!(kinds(&simulator, address, "m"), expected, "{address}");
        }
    }

    #[test]
    fn the_mix_holds_over_many_messages() {
        let simulator = Simulator::new(Mix { permanent_bounce_ppm: 100_000, complaint_ppm: 50_000, ..Mix::default() });
        let all: Vec<_> = (0..20_000).map(|n| kinds(&simulator, "someone@example.com", &format!("m{n}"))).collect();
        let share = |kind| all.iter().filter(|kinds| kinds.contains(&kind)).count() as f64 / all.len() as f64;
        assert!((share(EventType::Bounce) - 0.1).abs() < 0.01);
        assert!((share(EventType::Complaint) - 0.9 * 0.05).abs() < 0.01);
        assert!((share(EventType::Delivery) - 0.9).abs() < 0.01);
        let nothing = Simulator::new(Mix {
            permanent_bounce_ppm: 0,
            delay_ppm: 0,
            complaint_ppm: 0,
            open_ppm: 0,
            click_ppm: 0,
            ..Mix::default()
        });
        assert!((0..1000).all(|n| kinds(&nothing, "someone@example.com", &format!("m{n}")) == [EventType::Delivery]));
    }
}
