//! Measurements: `cargo bench -- core archive door exact exports growth intake kafka clickhouse query source webhooks`, or some of them. Figures are in
//! docs/PERFORMANCE.md. The log and its rivals are in `benches/log`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it measures and prints")]

mod archive;
mod bare;
mod clickhouse;
mod core;
mod door;
mod exact;
mod exports;
mod growth;
mod intake;
mod kafka;
mod query;
mod source;
mod webhooks;

use std::time::{Duration, Instant};

/// As in the program: events are many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let all: [(&str, fn()); 12] = [
        ("core", core::run),
        ("archive", archive::run),
        ("door", door::run),
        ("exact", exact::run),
        ("exports", exports::run),
        ("growth", growth::run),
        ("intake", intake::run),
        ("kafka", kafka::run),
        ("clickhouse", clickhouse::run),
        ("query", query::run),
        ("source", source::run),
        ("webhooks", webhooks::run),
    ];
    for (name, run) in all {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("\n{name}");
            run();
        }
    }
}

/// Prints how many a second.
fn rate(what: &str, count: u64, took: Duration) {
    println!("  {what:<58} {:>12.0} /s", count as f64 / took.as_secs_f64());
}

/// Prints the median of several runs.
fn median(what: &str, runs: usize, mut run: impl FnMut()) {
    run();
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("  {what:<58} {:>10.2} ms", times[runs / 2].as_secs_f64() * 1e3);
}
