//! Everything in a minute: a real server, five partners, 20 simulated days, and every figure checked.

mod check;
mod receiver;
mod recount;
mod report;
mod ses;
mod stage;
mod traffic;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use sendtrail_schemas::time::Millis;
use serde_json::json;

use self::check::{Checks, EventIds};
use self::recount::Change;
use self::report::Outcome;
use self::stage::{Partner, SET, Stage, text};
use self::traffic::{DAYS, Fact, HOUR, Kind, PARTNERS, Profile, Traffic};
use crate::cli::Demo;
use crate::config::Telemetry;
use crate::{shutdown, telemetry};

/// Events of one request.
const BATCH: usize = 2_000;
/// When the made-up traffic begins.
const BEGIN: &str = "2026-05-01T00:00:00Z";

/// Shows everything. Fails when a figure is wrong.
///
/// # Errors
/// When the server does not start or refuses something.
pub async fn run(args: Demo) -> anyhow::Result<ExitCode> {
    telemetry::log(&Telemetry { log: "warn".into(), format: "auto".into() })?;
    let signal = shutdown::signal()?;
    tokio::pin!(signal);
    let folder = tempfile::Builder::new().prefix("sendtrail-demo-").tempdir()?;
    let stage = Stage::build(folder.path(), args.keep).await?;
    println!("A server at {}, its data in {}", stage.admin.base(), folder.path().display());
    let shown = tokio::select! {
        shown = show(&stage, &args) => shown,
        () = &mut signal => Ok(ExitCode::FAILURE),
    };
    if args.keep && shown.is_ok() {
        signal.await;
    }
    stage.app.stop().await;
    shown
}

async fn show(stage: &Stage, args: &Demo) -> anyhow::Result<ExitCode> {
    match &args.events {
        Some(file) => of_file(stage, file, args.keep).await,
        None => made_up(stage, args).await,
    }
}

/// Twenty days of five partners.
async fn made_up(stage: &Stage, args: &Demo) -> anyhow::Result<ExitCode> {
    let begin = Millis::parse(BEGIN)?;
    let mut partners = Vec::new();
    let mut traffic = Vec::new();
    for profile in &PARTNERS {
        partners.push(stage.partner(profile.name, profile.domain, &[SET], begin).await?);
        traffic.push(Traffic::new(profile, begin, args.count, args.seed));
    }
    println!("Five partners stream {DAYS} days of events\n");
    let bar = progress(args.count);
    let started = Instant::now();
    for hour in 0..DAYS * 24 {
        let t = begin.plus(i64::from(hour + 1) * HOUR - 1);
        let posts = partners.iter_mut().zip(&mut traffic).zip(&PARTNERS).map(|((partner, traffic), profile)| {
            let facts = traffic.hour(hour);
            let bar = &bar;
            async move { stream(partner, profile, &facts, t, bar).await }
        });
        try_join_all(posts).await?;
        // Time goes on for those, too, of whom nothing was heard.
        stage.admin.post("/api/v1/admin/clock", &json!({"now": t})).await?;
        if hour.is_multiple_of(24) {
            bar.set_message(format!("day {}", hour / 24 + 1));
        }
        for (partner, traffic) in partners.iter_mut().zip(&mut traffic) {
            if partner.refusal.is_none() && text(&partner.get("/reputation").await?["status"]) == "PAUSED" {
                let (status, answer) = partner.send(t).await?;
                partner.refusal = Some((status, text(&answer["error"]).to_owned()));
                traffic.stop_sending();
            }
        }
        if hour == 24 {
            try_sends(&mut partners, t).await?;
        }
    }
    let took = started.elapsed();
    bar.finish_and_clear();
    let now = begin.plus(i64::from(DAYS * 24) * HOUR - 1);
    let mut checks = Checks::default();
    for (partner, profile) in partners.iter().zip(&PARTNERS) {
        let own = |change: &Change| own_event(profile, change);
        checks.partner(partner, now, &own).await?;
        let paused = partner.recount.status() == "PAUSED";
        let should = paused.then(|| (403, "SENDING_PAUSED".to_owned()));
        checks.refusal(partner, should);
    }
    finish(stage, &partners, checks, took, args.keep, BEGIN.split_once('T').map_or(BEGIN, |(day, _)| day)).await
}

fn own_event(profile: &Profile, change: &Change) -> Option<String> {
    let (kind, message, repeat) = change.fact;
    Some(profile.event_id(&Fact { kind, message, repeat, recipient: 0, at: change.at, hooked: true }))
}

/// Streams one partner's events of an hour, and recounts them.
async fn stream(
    partner: &mut Partner,
    profile: &Profile,
    facts: &[Fact],
    t: Millis,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    for facts in facts.chunks(BATCH) {
        let mut body = String::with_capacity(facts.len() * 400);
        facts.iter().for_each(|fact| profile.write(fact, SET, &mut body));
        let accepted = partner.stream(body, "native", t).await?;
        ensure!(accepted == facts.len() as u64, "{accepted} of {} events were accepted", facts.len());
        facts.iter().for_each(|fact| partner.recount.tell(fact, t));
        bar.inc(accepted);
    }
    Ok(())
}

/// Sends one real message for each partner, which the simulator delivers.
async fn try_sends(partners: &mut [Partner], t: Millis) -> anyhow::Result<()> {
    for partner in partners {
        let (status, answer) = partner.send(t).await?;
        ensure!(status == 200, "a send was answered {status} {answer}");
        let sent = Fact { kind: Kind::Send, message: u64::MAX, recipient: u64::MAX, repeat: 0, at: t, hooked: false };
        partner.recount.tell(&sent, t);
        // By the simulator, once its time has come.
        partner.recount.tell(&Fact { kind: Kind::Delivery, ..sent }, t);
    }
    Ok(())
}

/// A file of SES events, as one partner's.
async fn of_file(stage: &Stage, file: &Path, keep: bool) -> anyhow::Result<ExitCode> {
    let batches = ses::read(file)?;
    let begin = batches.first().map_or(Millis(0), |batch| batch.t);
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sets: BTreeSet<&str> = batches.iter().flat_map(|batch| &batch.sets).map(String::as_str).collect();
    let sets: Vec<&str> = sets.into_iter().collect();
    let mut partner = stage.partner(&name, "file.example", &sets, begin).await?;
    let bar = progress(batches.iter().map(|batch| batch.facts.len() as u64).sum());
    let started = Instant::now();
    let mut now = begin;
    for batch in batches {
        now = batch.t;
        let accepted = partner.stream(batch.body, "ses", batch.t).await?;
        let understood = batch.facts.len() as u64;
        ensure!(accepted == understood, "{accepted} events were accepted, {understood} were expected");
        batch.facts.iter().for_each(|fact| partner.recount.tell(fact, batch.t));
        bar.inc(accepted);
    }
    let took = started.elapsed();
    bar.finish_and_clear();
    if partner.recount.status() == "PAUSED" {
        let (status, answer) = partner.send(now).await?;
        partner.refusal = Some((status, text(&answer["error"]).to_owned()));
    }
    let mut checks = Checks::default();
    let unknown: EventIds<'_> = &|_| None;
    checks.partner(&partner, now, unknown).await?;
    let from = partner.recount.days.first_key_value().map_or(begin, |(day, _)| Millis(day * 24 * HOUR));
    finish(stage, &[partner], checks, took, keep, &from.day_text()).await
}

async fn finish(
    stage: &Stage,
    partners: &[Partner],
    mut checks: Checks,
    took: Duration,
    keep: bool,
    from: &str,
) -> anyhow::Result<ExitCode> {
    checks.webhooks(stage, partners).await;
    let archive = checks.archive(stage, partners).await;
    let outcome = Outcome { took, archive, checks };
    report::print(stage, partners, &outcome);
    if let Some(partner) = partners.iter().max_by_key(|partner| partner.recount.changes.len()) {
        report::print_curl(stage, partner, from, keep);
    }
    Ok(if outcome.checks.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn progress(events: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {human_pos} events, {per_sec}, {msg}");
    ProgressBar::new(events).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
