//! An export from the command line.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::Export;
use crate::client::Api;

/// How often to ask how far it is.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// How often in a row it may go unanswered.
const MAX_UNANSWERED: u32 = 120;

/// Begins an export, waits until it is there, and downloads it.
///
/// # Errors
/// What the server refuses, and what keeps files from being written.
pub async fn run(args: &Export) -> anyhow::Result<()> {
    let api = Api::new(&args.admin.url, &args.admin.admin_key);
    let mut wanted = json!({"dataset": args.dataset, "format": args.format});
    for (name, value) in [("from", &args.from), ("to", &args.to), ("account_id", &args.account)] {
        if let Some(value) = value {
            wanted[name] = value.as_str().into();
        }
    }
    if let Some(filters) = &args.filters {
        wanted["filters"] = serde_json::from_str(filters).context("--filters is JSON")?;
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let mut before = std::fs::read_dir(&args.out).with_context(|| format!("list {}", args.out.display()))?;
    if before.next().is_some() {
        bail!("{} is not empty: what is there besides the export would be no part of its seal", args.out.display());
    }
    let begun = api.post("/api/v1/admin/exports", &wanted).await?;
    let id = text(&begun["export"]["export_id"]);
    eprintln!("export {id}");
    let path = format!("/api/v1/admin/exports/{id}");
    let mut unanswered = 0;
    let done = loop {
        let export = match api.get(&path).await {
            Ok(mut told) => told["export"].take(),
            // It goes on, also when the server restarts.
            Err(error) if unanswered < MAX_UNANSWERED => {
                unanswered += 1;
                eprint!("\r{error:#}; asking again");
                tokio::time::sleep(ASK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        unanswered = 0;
        match text(&export["status"]) {
            "done" => break export,
            "failed" | "cancelled" => bail!("the export {}: {}", text(&export["status"]), text(&export["error"])),
            _ => {
                let progress = &export["progress"];
                eprint!("\r{} of {} days, {} rows", progress["parts_done"], progress["parts_total"], progress["rows"]);
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    };
    eprintln!();
    for file in done["files"].as_array().into_iter().flatten() {
        let name = text(&file["name"]);
        if name.contains(['/', '\\']) {
            bail!("{name:?} is no name of a file");
        }
        let bytes = api.download(&format!("{path}/files/{name}"), &args.out.join(name)).await?;
        println!("{name}  {} rows, {bytes} bytes", file["rows"]);
    }
    println!("check it with: sendtrail verify {}", args.out.display());
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
