//! A file of Amazon SES events, one a line, read plainly: only what a recount needs.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, ensure};
use sendtrail_schemas::time::Millis;
use serde_json::Value;

use super::traffic::{Fact, Kind};

/// Lines of one request.
const LINES: usize = 500;

/// The file, as requests.
pub struct Batch {
    /// When it is received: at its latest event, or that of the batch before.
    pub t: Millis,
    /// NDJSON.
    pub body: String,
    /// What it tells.
    pub facts: Vec<Fact>,
    /// The configuration sets that it names.
    pub sets: Vec<String>,
}

/// Reads a file. Lines that tell nothing are left in the bodies, for the server to reject.
///
/// # Errors
/// When the file cannot be read, or tells nothing.
pub fn read(path: &Path) -> anyhow::Result<Vec<Batch>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut numbers = Numbers::default();
    let mut batches: Vec<Batch> = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut t = Millis(i64::MIN);
    for lines in lines.chunks(LINES) {
        let told = lines.iter().filter_map(|line| facts(line, &mut numbers));
        let (facts, sets): (Vec<Vec<Fact>>, Vec<Option<String>>) = told.unzip();
        let facts = facts.concat();
        t = facts.iter().map(|fact| fact.at).fold(t, Millis::max);
        batches.push(Batch { t, body: lines.join("\n"), facts, sets: sets.into_iter().flatten().collect() });
    }
    ensure!(batches.iter().any(|batch| !batch.facts.is_empty()), "{} holds no event of SES", path.display());
    // Lines before the first event are received with it.
    let first = batches.iter().map(|batch| batch.t).find(|t| t.0 > i64::MIN).unwrap_or(t);
    batches.iter_mut().for_each(|batch| batch.t = batch.t.max(first));
    Ok(batches)
}

/// Numbers for names.
#[derive(Default)]
struct Numbers(HashMap<String, u64>);

impl Numbers {
    fn of(&mut self, name: String) -> u64 {
        let next = self.0.len() as u64 + 1;
        *self.0.entry(name).or_insert(next)
    }
}

/// The events of a line, one a recipient, and the configuration set that they name.
fn facts(line: &str, numbers: &mut Numbers) -> Option<(Vec<Fact>, Option<String>)> {
    let mut document: Value = serde_json::from_str(line).ok()?;
    if let Some(message) = document["Message"].as_str() {
        document = serde_json::from_str(message).ok()?;
    } else if document["detail"].is_object() {
        document = document["detail"].take();
    }
    let name = document["eventType"].as_str().or(document["notificationType"].as_str())?;
    let (block, named) = match name {
        "Bounce" => ("bounce", "bouncedRecipients"),
        "Complaint" => ("complaint", "complainedRecipients"),
        "Delivery" => ("delivery", "recipients"),
        "DeliveryDelay" => ("deliveryDelay", "delayedRecipients"),
        "Send" => ("send", ""),
        "Open" => ("open", ""),
        "Click" => ("click", ""),
        "Reject" => ("reject", ""),
        "Rendering Failure" => ("failure", ""),
        "Subscription" => ("subscription", ""),
        _ => return None,
    };
    let kind = match (name, document[block]["bounceType"].as_str()) {
        ("Bounce", Some("Permanent")) => Kind::HardBounce,
        ("Bounce", _) => Kind::SoftBounce,
        ("Send", _) => Kind::Send,
        ("Delivery", _) => Kind::Delivery,
        ("Complaint", _) => Kind::Complaint,
        ("DeliveryDelay", _) => Kind::Delay,
        ("Open", _) => Kind::Open,
        ("Click", _) => Kind::Click,
        _ => Kind::Other,
    };
    let mail = &document["mail"];
    let time = document[block]["timestamp"].as_str().or(mail["timestamp"].as_str())?;
    let at = Millis::parse(time).ok()?;
    let listed = |list: &Value| {
        let address = |item: &Value| item.as_str().or(item["emailAddress"].as_str()).map(str::to_lowercase);
        list.as_array().map(|list| list.iter().filter_map(address).collect::<Vec<_>>()).unwrap_or_default()
    };
    let mut recipients = listed(&document[block][named]);
    if recipients.is_empty() {
        recipients = listed(&mail["destination"]);
    }
    let set = mail["tags"]["ses:configuration-set"][0].as_str().map(str::to_owned);
    let message = mail["messageId"].as_str()?;
    let repeatable = matches!(kind, Kind::SoftBounce | Kind::Delay | Kind::Open | Kind::Click)
        || (kind == Kind::Other && name == "Subscription");
    let told = recipients.into_iter().map(|recipient| Fact {
        kind,
        message: numbers.of(format!("m {message} {recipient}")),
        repeat: if repeatable { numbers.of(format!("r {name} {time} {}", document[block])) } else { 0 },
        recipient: numbers.of(recipient),
        at,
        hooked: set.is_some(),
    });
    Some((told.collect(), set))
}
