//! Named points at which tests make the program end, or a device fail. In a build without the feature of the same name, which
//! only tests ask for, they are nothing.

use std::io;

/// Every point, for whoever picks one. `reach` ends the program there; `fails` has the next operation fail.
pub const POINTS: &[&str] = &[
    "log.written",
    "log.synced",
    "log.segment",
    "outputs.before",
    "outputs.durable",
    "checkpoint.before",
    "checkpoint.durable",
    "archive.written",
    "archive.committed",
    "projections.before",
    "projections.durable",
    "merge.written",
    "merge.committed",
    "seal.written",
    "erase.buried",
    "erase.committed",
    "erase.told",
    "mail.handed",
    "attempt.posted",
    "attempt.recorded",
    "clickhouse.claimed",
    "clickhouse.inserted",
    "snapshot.before",
    "snapshot.written",
    "intake.before",
    "intake.archived",
    "key.made",
];

/// Ends the program at once, as by SIGKILL, when a test says so of this point: `FAILPOINTS="log.synced=6*off->return"`.
pub fn reach(point: &'static str) {
    debug_assert!(POINTS.contains(&point), "{point} is not in the list");
    fail::fail_point!(point, |_| std::process::abort());
}

/// The error that a test says comes next at this point, by its number (`28` is a full disk): `FAILPOINTS="log.write=return(28)"`.
///
/// # Errors
/// That one.
pub fn fails(point: &'static str) -> io::Result<()> {
    fail::fail_point!(point, |number| {
        let number = number.and_then(|number| number.parse().ok()).unwrap_or(5);
        Err(io::Error::from_raw_os_error(number))
    });
    let _ = point;
    Ok(())
}

/// How many hours a test has this process's clock be wrong: `FAILPOINTS="clock.shifted=return(-24)"`.
pub fn hours_of_shift() -> i64 {
    fail::fail_point!("clock.shifted", |hours| hours.and_then(|hours| hours.parse().ok()).unwrap_or(0));
    0
}
