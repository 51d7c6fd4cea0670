//! What people read at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, Table};

use super::check::{Checks, hooks};
use super::recount::FIGURES;
use super::stage::{Partner, Stage};
use crate::app::ArchiveTotals;

/// Figures that are none of a partner's.
pub struct Outcome {
    /// How long streaming took.
    pub took: Duration,
    /// The archive.
    pub archive: ArchiveTotals,
    /// What was compared.
    pub checks: Checks,
}

/// Prints everything.
pub fn print(stage: &Stage, partners: &[Partner], outcome: &Outcome) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["partner", "sends", "bounces", "complaints", "opens", "clicks", "webhooks", "status"]);
    for column in 1..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for partner in partners {
        let totals = partner.recount.totals();
        let figure = |name: &str| FIGURES.iter().position(|figure| *figure == name).map_or(0, |at| totals[at]);
        let [sends, bounces, complaints] = ["sends", "permanent_bounces", "complaints"].map(figure);
        let share = |part: u64, digits: usize| {
            format!("{} ({:.digits$} %)", grouped(part), part as f64 * 100.0 / sends.max(1) as f64)
        };
        let webhooks: u64 = hooks(partner).iter().map(|(_, _, count)| count).sum();
        table.add_row([
            partner.name.clone(),
            grouped(sends),
            share(bounces, 1),
            share(complaints, 2),
            grouped(figure("opens")),
            grouped(figure("clicks")),
            grouped(webhooks),
            partner.recount.status().to_owned(),
        ]);
    }
    println!("\n{table}\n");
    for partner in partners {
        for change in &partner.recount.changes {
            let (part, sent) = change.share;
            let rate = part as f64 * 100.0 / sent.max(1) as f64;
            let name = &partner.name;
            let (at, to, what) = (change.at, change.to, change.what);
            println!("  {at}  {name} is {to}: {part} {what} of {sent} sends in 14 days, {rate:.3} %");
        }
        if let Some((status, code)) = &partner.refusal {
            println!("  {}  its next send is answered {status} {code}", " ".repeat(24));
        }
    }
    let told: u64 = partners.iter().map(|partner| partner.recount.told).sum();
    let distinct: u64 = partners.iter().map(|partner| partner.recount.distinct).sum();
    let rejected: u64 = partners.iter().map(|partner| partner.rejected).sum();
    let held_back: u64 = partners.iter().map(|partner| partner.held_back).sum();
    let seconds = outcome.took.as_secs_f64();
    println!();
    println!(
        "  events     {} streamed, {} of them copies, {rejected} lines rejected",
        grouped(told),
        grouped(told - distinct)
    );
    println!(
        "  rate       {} events/s acknowledged over HTTP in {seconds:.1} s, {held_back} requests held back",
        grouped((told as f64 / seconds) as u64)
    );
    println!("  webhooks   {} delivered, each signature verified", grouped(stage.receiver.total()));
    let archive = &outcome.archive;
    println!(
        "  archive    {} rows in {} Parquet files, {:.1} MB (Delta Lake)",
        grouped(archive.rows),
        archive.files,
        archive.bytes as f64 / 1e6
    );
    if outcome.checks.failed.is_empty() {
        println!("  checked    {} figures against a plain recount: all equal", grouped(outcome.checks.held));
    } else {
        println!("  checked    {} figures are WRONG, {} are right", outcome.checks.failed.len(), outcome.checks.held);
        for failed in outcome.checks.failed.iter().take(20) {
            println!("             {failed}");
        }
    }
}

/// Prints how to ask the server oneself.
pub fn print_curl(stage: &Stage, partner: &Partner, from: &str, kept: bool) {
    let hint = if kept {
        "the server stays up; Ctrl-C ends it"
    } else {
        "this server ends now, and its data with it: 'demo --keep' leaves one up to try these"
    };
    println!("\nAsk it yourself ({hint}):\n");
    println!("  export KEY={}", partner.key);
    for path in [
        "/reputation".to_owned(),
        "/quotas".to_owned(),
        format!("/stats?from={from}&group_by=recipient_domain"),
        "/events?limit=5&event_type=bounce".to_owned(),
        "/suppression?limit=5".to_owned(),
    ] {
        println!("  curl -s -H \"Authorization: Bearer $KEY\" '{}/api/v1/partner/email{path}'", stage.admin.base());
    }
    println!("\n  {}/docs shows every route", stage.admin.base());
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
