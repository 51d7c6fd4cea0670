//! Logs and metrics.

use std::io::IsTerminal;
use std::sync::Once;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

use crate::config::Telemetry;
use crate::metrics;

/// Libraries that tell at `info` what only their authors want to know; the settings may ask for more.
const QUIET: &str = "lsm_tree=warn,fjall=warn,buoyant_kernel=warn,delta_kernel=warn,deltalake_core=warn";
/// Where seconds fall, for histograms.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 1_800.0];

/// Begins to log to standard error: for people on a terminal, as JSON otherwise. Only the first call counts.
///
/// # Errors
/// When the directives do not parse.
pub fn log(settings: &Telemetry) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.log))?;
    let json = match settings.format.as_str() {
        "json" => true,
        "pretty" => false,
        _ => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    // A second call is made only by tests, which log to the first's.
    let _ = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    log_panics();
    Ok(())
}

/// The exit code of a program whose reader ended: 128 and SIGPIPE, as shells have it.
const READER_ENDED: i32 = 141;

/// Ends the program in silence, as others do, when whoever reads its output has ended: `sendtrail accounts list | head`.
pub fn end_with_reader() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What `println` says.
        if panic.payload().downcast_ref::<String>().is_some_and(|said| said.starts_with("failed printing to stdout")) {
            std::process::exit(READER_ENDED);
        }
        before(panic);
    }));
}

/// A panic is a line of the log like any other.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tracing::error!(%panic, "panic");
            before(panic);
        }));
    });
}

/// The metrics of this process.
///
/// # Errors
/// When another recorder was installed before.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut handle = HANDLE.lock();
    if let Some(handle) = &*handle {
        return Ok(handle.clone());
    }
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?;
    let installed = handle.insert(builder.install_recorder()?).clone();
    metrics::describe();
    Ok(installed)
}
