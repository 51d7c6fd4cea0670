//! Every figure that the server gives, held against the recount.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use sendtrail_schemas::time::Millis;
use serde_json::Value;

use super::recount::{Change, FIGURES};
use super::stage::{Partner, Stage, text};
use super::traffic::{HOUR, Kind};
use crate::app::ArchiveTotals;

/// How long webhooks and the archive may take to catch up.
const PATIENCE: Duration = Duration::from_secs(120);
const DAY: i64 = 24 * HOUR;
/// Days that `/stats` takes at once.
const SPAN: i64 = 400;

/// What was compared.
#[derive(Default)]
pub struct Checks {
    /// Comparisons that held.
    pub held: u64,
    /// Those that did not, in words.
    pub failed: Vec<String>,
}

impl Checks {
    fn equal<T: PartialEq + Debug>(&mut self, what: impl FnOnce() -> String, should: T, is: T) {
        if should == is {
            self.held += 1;
        } else {
            self.failed.push(format!("{}: {should:?} by the recount, {is:?} by the server", what()));
        }
    }

    /// Compares everything that the server tells a partner.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn partner(&mut self, partner: &Partner, now: Millis, event_id: EventIds<'_>) -> anyhow::Result<()> {
        self.statistics(partner).await?;
        self.reputation(partner, now, event_id).await?;
        self.changes(partner, event_id).await?;
        let rows = partner.rows("/suppression", "suppressions").await?;
        let what = || format!("{}: suppressed recipients", partner.name);
        self.equal(what, partner.recount.suppressed.len(), rows.len());
        Ok(())
    }

    /// What a paused partner's next send was answered.
    pub fn refusal(&mut self, partner: &Partner, should: Option<(u16, String)>) {
        self.equal(|| format!("{}: the send after the pause", partner.name), should, partner.refusal.clone());
    }

    /// Each figure of each day.
    async fn statistics(&mut self, partner: &Partner) -> anyhow::Result<()> {
        let days = &partner.recount.days;
        let (Some((first, _)), Some((last, _))) = (days.first_key_value(), days.last_key_value()) else {
            return Ok(());
        };
        let mut totals = [0u64; FIGURES.len()];
        for from in (*first..=*last).step_by(SPAN as usize) {
            let to = (from + SPAN).min(last + 1);
            let name = |day: i64| Millis(day * DAY).day_text();
            let path = format!("/stats?from={}&to={}&granularity=day", name(from), name(to));
            let told = partner.get(&path).await?;
            let buckets = told["buckets"].as_array().cloned().unwrap_or_default();
            for day in from..to {
                let should = days.get(&day).copied().unwrap_or_default();
                let bucket = buckets.iter().find(|bucket| text(&bucket["bucket"]) == name(day));
                for (place, figure) in FIGURES.iter().enumerate() {
                    let is = bucket.map_or(0, |bucket| number(&bucket[*figure]));
                    self.equal(|| format!("{}: {figure} of {}", partner.name, name(day)), should[place], is);
                }
            }
            for (sum, figure) in totals.iter_mut().zip(FIGURES) {
                *sum += number(&told["totals"][figure]);
            }
        }
        self.equal(|| format!("{}: totals", partner.name), partner.recount.totals(), totals);
        Ok(())
    }

    async fn reputation(&mut self, partner: &Partner, now: Millis, event_id: EventIds<'_>) -> anyhow::Result<()> {
        let told = partner.get("/reputation").await?;
        let of = |what: &str| format!("{}: {what} of the 14 days", partner.name);
        for (figure, should) in ["sent", "bounced", "complained"].into_iter().zip(partner.recount.window(now)) {
            self.equal(|| of(figure), should, number(&told[figure]));
        }
        self.equal(|| of("status"), partner.recount.status(), text(&told["status"]));
        let pause = partner.recount.changes.iter().find(|change| change.to == "PAUSED");
        let should = pause.map(|change| (change.at.to_string(), change.share));
        let paused = Some(&told["paused"]).filter(|paused| paused.is_object());
        let is = paused.map(|paused| {
            (text(&paused["at"]).to_owned(), (number(&paused["numerator"]), number(&paused["denominator"])))
        });
        self.equal(|| of("pause"), should, is);
        if let (Some(pause), Some(paused)) = (pause, paused) {
            self.equal(
                || of("pausing event"),
                event_id(pause),
                event_id(pause).and(Some(text(&paused["event_id"]).into())),
            );
        }
        Ok(())
    }

    /// Each change of standing, as an event with its evidence.
    async fn changes(&mut self, partner: &Partner, event_id: EventIds<'_>) -> anyhow::Result<()> {
        let mut told = Vec::new();
        for kind in ["AtRisk", "Paused", "Healthy", "Resumed"] {
            // The beginning of time, so that none is missed.
            told.extend(partner.rows(&format!("/events?from=2000-01-01&event_type={kind}"), "events").await?);
        }
        told.sort_by_key(|event| number(&event["seq"]));
        let what = || format!("{}: changes of standing", partner.name);
        let changes = &partner.recount.changes;
        self.equal(what, changes.len(), told.len());
        for (should, event) in changes.iter().zip(&told) {
            let status = &event["status"];
            let is = (text(&status["to"]), number(&status["numerator"]), number(&status["denominator"]));
            self.equal(what, (should.to, should.share.0, should.share.1), is);
            if let Some(id) = event_id(should) {
                self.equal(what, id.as_str(), text(&status["event_id"]));
            }
        }
        Ok(())
    }

    /// Each webhook: delivered, once for each event, and signed. Waits until they have come, or for [`PATIENCE`] without
    /// one.
    pub async fn webhooks(&mut self, stage: &Stage, partners: &[Partner]) {
        let should: u64 = partners.iter().map(|partner| hooks(partner).iter().map(|(_, _, n)| n).sum::<u64>()).sum();
        let (mut last, mut since) = (0, Instant::now());
        while last < should && since.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let total = stage.receiver.total();
            if total > last {
                (last, since) = (total, Instant::now());
            }
        }
        for partner in partners {
            for (path, event, should) in hooks(partner) {
                let path = format!("/{}/{path}", partner.domain);
                let is = stage.receiver.look(&path, |received| received.verified.get(event).copied().unwrap_or(0));
                self.equal(|| format!("{}: verified webhooks {event}", partner.name), should, is);
            }
            for dialect in ["splashify", "standard"] {
                let path = format!("/{}/{dialect}", partner.domain);
                let refused = stage.receiver.look(&path, |received| received.refused);
                self.equal(|| format!("{}: webhooks that failed verification", partner.name), 0, refused);
            }
        }
    }

    /// The rows of the archive: every fact once, every change of standing, and every call that changed something.
    pub async fn archive(&mut self, stage: &Stage, partners: &[Partner]) -> ArchiveTotals {
        let changes = |partner: &Partner| partner.recount.changes.len() as u64 + partner.calls();
        let of = |partner: &Partner| partner.recount.distinct + changes(partner);
        let should: u64 = partners.iter().map(of).sum();
        let begun = Instant::now();
        let mut totals = stage.app.archive();
        while totals.rows < should && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
            totals = stage.app.archive();
        }
        self.equal(|| "rows of the archive".into(), should, totals.rows);
        totals
    }
}

/// The identity of the event that a change names, where it is known beforehand.
pub type EventIds<'a> = &'a (dyn Fn(&Change) -> Option<String> + Sync);

/// Webhooks that a partner should have received: path, event, how many.
pub fn hooks(partner: &Partner) -> Vec<(&'static str, &'static str, u64)> {
    let kind = |kind| partner.recount.hooked.get(&kind).copied().unwrap_or_default();
    let changes = |to| partner.recount.changes.iter().filter(|change| change.to == to).count() as u64 * partner.sets;
    vec![
        ("splashify", "Bounce", kind(Kind::HardBounce) + kind(Kind::SoftBounce)),
        ("splashify", "Complaint", kind(Kind::Complaint)),
        ("standard", "email.complained", kind(Kind::Complaint)),
        ("standard", "account.at_risk", changes("AT_RISK")),
        ("standard", "account.paused", changes("PAUSED")),
        ("standard", "account.healthy", changes("HEALTHY")),
    ]
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}
