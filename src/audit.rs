//! What auditors run.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use sendtrail_audit::{Options, Report, SEALS, Subject, verify_export, verify_table};
use sendtrail_processor::archive::{EVENTS, Table};

use crate::cli::Verify;
use crate::config::Config;
use crate::keys;

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
    let report = check(&args.path, options.clone()).await?;
    print(&report, &options);
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check(path: &Path, options: Options) -> anyhow::Result<Report> {
    let path = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
    let below = path.join(EVENTS.name);
    let folder = if below.is_dir() { below } else { path.clone() };
    if path.join("seal.json").is_file() {
        // Whoever put an export's seal there would have the archive passed over.
        if [folder.join("_delta_log"), folder.join(SEALS)].iter().any(|part| part.exists()) {
            bail!(
                "{} holds an archive, and the seal of an export: take seal.json away, or look who put it there",
                path.display()
            );
        }
        return Ok(tokio::task::spawn_blocking(move || verify_export(&path, &options)).await??);
    }
    let Some(table) = Table::find(&EVENTS, &folder).await? else {
        bail!("{} is neither an archive nor an export: it has no _delta_log and no seal.json", folder.display());
    };
    let files: Vec<String> = table.files().iter().map(|file| file.path.clone()).collect();
    if !folder.join(SEALS).is_dir() {
        bail!("{} has no seals: no day is over yet, or sealing is turned off", folder.display());
    }
    Ok(tokio::task::spawn_blocking(move || verify_table(&folder, &files, &options)).await??)
}

fn print(report: &Report, options: &Options) {
    for fault in &report.faults {
        println!("FAULT  {fault}");
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
