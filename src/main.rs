//! The `sendtrail` program.

use std::process::ExitCode;

use clap::Parser;
use sendtrail::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match sendtrail::commands::run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
