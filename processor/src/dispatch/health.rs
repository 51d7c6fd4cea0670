//! How destinations are doing: told to their accounts until they know, and measured.

use std::time::{Duration, Instant};

use metrics::gauge;
use sendtrail_schemas::destination::{Destination, Health};
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::record::{Change, WebhookHealth};
use sendtrail_schemas::time::Millis;

use super::Running;
use super::desk::Desk;

/// How soon it is told again how a destination is doing, as long as that is not known.
const TELL_AGAIN: Duration = Duration::from_secs(5);

impl Running {
    /// Tells accounts how their destinations are doing, until they know.
    pub(super) fn tell_health(&mut self) {
        let (of, desk) = (&self.of, &self.desk);
        self.untold.retain(|(account, destination), told| {
            let config = of.sender.directory.account(*account);
            let Some(found) = config.as_ref().and_then(|config| config.destination(*destination)) else { return false };
            let Some(health) = desk.told_health(*destination, found) else { return false };
            if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
                *told = Some(Instant::now());
                of.tell(*account, Change::WebhookHealth(health));
            }
            true
        });
    }

    /// Whether everyone is told that a destination fails.
    pub(super) fn is_thought_failing(&self, account: AccountId, destination: DestinationId) -> bool {
        let config = self.of.sender.directory.account(account);
        let found = config.as_ref().and_then(|config| config.destination(destination));
        found.is_some_and(|found| found.health() == Health::Failing)
    }

    /// Shows what waits.
    pub(super) fn measure(&self) {
        let figures = self.desk.figures(Millis::wall().0);
        for (name, value) in [
            ("sendtrail_webhook_deliveries_in_memory", figures.in_memory as f64),
            ("sendtrail_webhook_attempts_under_way", figures.under_way as f64),
            ("sendtrail_webhook_destinations_failing", figures.failing as f64),
            ("sendtrail_webhook_overdue_seconds", figures.overdue as f64 / 1e3),
        ] {
            gauge!(name, "partition" => self.of.partition.to_string()).set(value);
        }
    }
}

impl Desk {
    /// What is to be told of a destination's health; `None` when that is known, or of a time that is over.
    fn told_health(&self, destination: DestinationId, known: &Destination) -> Option<WebhookHealth> {
        let health = self.health(destination);
        let breaker = self.lane_of(destination).map(|lane| lane.standing.breaker.clone()).unwrap_or_default();
        let current = breaker.revival == known.revival || breaker.is_closed();
        (current && health != known.health()).then(|| WebhookHealth {
            destination_id: destination.bytes().to_vec(),
            health: health as i32,
            failing_since: breaker.failing_since,
            failed_attempts: breaker.failures,
            reason: reason(health, breaker.failures, breaker.failing_since),
            revival: known.revival,
        })
    }
}

fn reason(health: Health, failures: u32, since: i64) -> String {
    match health {
        Health::Working => "an attempt was delivered".into(),
        Health::Failing => format!("{failures} attempts failed one after the other, since {}", Millis(since)),
        Health::Disabled => {
            format!(
                "{failures} attempts failed one after the other, since {}, or it said that it is gone",
                Millis(since)
            )
        }
    }
}
