//! When to stop.

use tokio::signal::unix::{SignalKind, signal as unix_signal};

/// Resolves at the first SIGINT or SIGTERM after this call.
///
/// # Errors
/// When signals cannot be listened for.
pub fn signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = unix_signal(SignalKind::interrupt())?;
    let mut terminate = unix_signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
