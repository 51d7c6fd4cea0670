//! What auditors run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use sendtrail_audit::{Options, Report, SEALS, Subject, verify_export, verify_table};
use sendtrail_processor::archive::{ATTEMPTS, EVENTS, Layout, Table};
use sendtrail_schemas::time::Millis;

use crate::cli::Verify;
use crate::config::Config;
use crate::keys;

/// The tables of an archive.
static LAYOUTS: [&Layout; 2] = [&EVENTS, &ATTEMPTS];

/// Checks a folder.
///
/// # Errors
/// What keeps it from being checked at all.
pub async fn verify(args: &Verify) -> anyhow::Result<ExitCode> {
    let mut options = Options::default();
    for key in &args.keys {
        options.keys.push(key.parse()?);
    }
    if let Some(seen) = &args.seen {
        let (number, hash) = seen.split_once(':').context("--seen is a number, a colon and a hash")?;
        options.seen = Some((number.parse().context("--seen begins with a number")?, hash.to_lowercase()));
    }
    let path = args.path.canonicalize().with_context(|| format!("find {}", args.path.display()))?;
    let tables: Vec<PathBuf> =
        LAYOUTS.iter().map(|layout| path.join(layout.name())).filter(|below| below.is_dir()).collect();
    if path.join("seal.json").is_file() {
        // Whoever put an export's seal there would have the archive passed over.
        let of_table = [path.join("_delta_log"), path.join(SEALS)].iter().any(|part| part.exists());
        if of_table || !tables.is_empty() {
            bail!(
                "{} holds an archive, and the seal of an export: take seal.json away, or look who put it there",
                path.display()
            );
        }
        let asked = options.clone();
        let report = tokio::task::spawn_blocking(move || verify_export(&path, &asked)).await??;
        print(&report, &options);
        return Ok(outcome(report.holds()));
    }
    if tables.is_empty() {
        let table = table(&path).await?;
        if !path.join(SEALS).is_dir() {
            bail!("{} has no seals: no day is over yet, or sealing is turned off", path.display());
        }
        let report = check(table, &options).await?;
        print(&report, &options);
        return Ok(outcome(report.holds()));
    }
    if options.seen.is_some() {
        bail!("--seen is of one table: give {} or its like", tables[0].display());
    }
    let mut reports = Vec::new();
    for folder in &tables {
        let table = table(folder).await?;
        let first = table.files().iter().map(|file| Millis::of_day(file.day).day_text()).min();
        let report = if folder.join(SEALS).is_dir() { Some(check(table, &options).await?) } else { None };
        reports.push((folder, first, report));
    }
    let Some(through) = reports.iter().filter_map(|(.., report)| report.as_ref()?.through.clone()).max() else {
        bail!("{} has no seals: no day is over yet, or sealing is turned off", path.display());
    };
    let mut holds = true;
    for (folder, first, report) in reports {
        println!("{}", folder.display());
        if let Some(report) = report {
            print(&report, &options);
            holds &= report.holds();
            continue;
        }
        // Of webhooks there may be none for a long time.
        match first.filter(|first| *first <= through) {
            Some(day) => {
                println!("FAULT  there are no seals, and there are rows of {day}, which is over");
                holds = false;
            }
            None => println!("no day of it is over yet"),
        }
    }
    for layout in LAYOUTS.iter().filter(|layout| !path.join(layout.name()).is_dir()) {
        println!("FAULT  there is no {}, which every archive has", path.join(layout.name()).display());
        holds = false;
    }
    Ok(outcome(holds))
}

fn outcome(holds: bool) -> ExitCode {
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn table(folder: &Path) -> anyhow::Result<Table> {
    let found = Table::find_any(&LAYOUTS, folder).await?;
    found.with_context(|| {
        format!("{} is neither an archive nor an export: it has no _delta_log and no seal.json", folder.display())
    })
}

async fn check(table: Table, options: &Options) -> anyhow::Result<Report> {
    let (dataset, folder, options) = (table.layout().dataset, table.root().to_owned(), options.clone());
    let files: Vec<String> = table.files().iter().map(|file| file.path.clone()).collect();
    let committed = table.last_tombstone().await?;
    Ok(tokio::task::spawn_blocking(move || verify_table(dataset, &folder, &files, committed, &options)).await??)
}

fn print(report: &Report, options: &Options) {
    for fault in &report.faults {
        println!("FAULT  {}", fault.told(report.number));
    }
    let told = report.faults.len() as u64;
    if report.fault_count > told {
        println!("       and {} more", report.fault_count - told);
    }
    if let Some(Subject::Export { dataset, export_id, account_id, request }) = &report.subject {
        let whose = account_id.as_deref().unwrap_or("all accounts");
        println!("export {export_id} of {dataset}, of {whose}, asked for as {request}");
    }
    println!(
        "{} seals hold, over {} rows in {} files; {} rows were erased, {} are not sealed yet",
        report.seals, report.rows, report.files, report.erased, report.unsealed
    );
    if report.void > 0 {
        println!("{} tombstones came to nothing, or their erasure is not over yet", report.void);
    }
    if options.keys.is_empty() {
        for key in &report.keys {
            println!("signed by {key}, as the seals say themselves: give --key to be sure whose it is");
        }
    }
    if let Some((number, hash)) = &report.last {
        println!("last seal {number}:{hash}");
    }
    println!("{}", if report.holds() { "everything is as it was sealed" } else { "NOT as it was sealed" });
}

/// Prints the public key.
///
/// # Errors
/// When there is none, and none can be made.
pub fn print_key(config: &Config) -> anyhow::Result<()> {
    println!("{}", keys::seal_key(&config.data.dir, config)?.public());
    Ok(())
}
