//! The `sendtrail` program.

use std::process::ExitCode;

use clap::Parser;
use sendtrail::cli::Cli;

/// Events are many small allocations that one thread makes and another frees (docs/PERFORMANCE.md has the figures).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
