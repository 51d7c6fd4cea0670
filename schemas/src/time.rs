//! Time as the log tells it: milliseconds since the Unix epoch, UTC.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, NaiveDate, SecondsFormat, TimeZone, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Error;

/// Milliseconds in a second.
pub const SECOND: i64 = 1_000;
/// Milliseconds in a minute.
pub const MINUTE: i64 = 60 * SECOND;
/// Milliseconds in an hour.
pub const HOUR: i64 = 60 * MINUTE;
/// Milliseconds in a day.
pub const DAY: i64 = 24 * HOUR;

/// An instant in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub i64);

/// Hours since the epoch: the name of an hourly bucket.
pub type Hour = i32;
/// Days since the epoch: the name of a daily bucket.
pub type Day = i32;

/// See [`Millis::shift_wall`].
static SHIFT: AtomicI64 = AtomicI64::new(0);

impl Millis {
    /// The wall clock. For adapters only: decisions take their time from the log.
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    pub fn wall() -> Self {
        Self(Utc::now().timestamp_millis() + SHIFT.load(Ordering::Relaxed))
    }

    /// Shifts this process's wall clock: for tests that stand in for a machine whose clock is wrong.
    pub fn shift_wall(by: i64) {
        SHIFT.store(by, Ordering::Relaxed);
    }

    /// The hour in which this instant lies.
    pub fn hour(self) -> Hour {
        self.0.div_euclid(HOUR) as Hour
    }

    /// The UTC day in which this instant lies.
    pub fn day(self) -> Day {
        self.0.div_euclid(DAY) as Day
    }

    /// The first instant of an hour.
    pub fn of_hour(hour: Hour) -> Self {
        Self(i64::from(hour) * HOUR)
    }

    /// The first instant of a day.
    pub fn of_day(day: Day) -> Self {
        Self(i64::from(day) * DAY)
    }

    /// This instant moved by `millis`, saturating.
    #[must_use]
    pub fn plus(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Reads RFC 3339 ("2026-05-03T12:34:56.123Z", any offset), to the millisecond.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the text that does not parse.
    pub fn parse(text: &str) -> Result<Self, Error> {
        parse_nanos(text).map(|nanos| Self(nanos.div_euclid(1_000_000)))
    }

    /// Reads a day "2026-05-03", its first instant.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the text that does not parse.
    pub fn parse_day(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Malformed(format!("{text:?} is not a day YYYY-MM-DD"));
        if text.len() != 10 {
            return Err(malformed());
        }
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| malformed())?;
        let time = date.and_hms_opt(0, 0, 0).ok_or_else(malformed)?;
        Ok(Self(time.and_utc().timestamp_millis()))
    }

    /// "2026-05-03", the UTC day.
    pub fn day_text(self) -> String {
        self.date_time().format("%Y-%m-%d").to_string()
    }

    /// "2026-05-03T12:00:00Z", the hour in which this instant lies.
    pub fn hour_text(self) -> String {
        Self::of_hour(self.hour()).date_time().format("%Y-%m-%dT%H:00:00Z").to_string()
    }

    fn date_time(self) -> DateTime<Utc> {
        // Only a stamp beyond chrono's year 262142 falls out; no clock gives one.
        Utc.timestamp_millis_opt(self.0).single().unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// Reads RFC 3339 to the nanosecond: what tells two facts apart must not be rounded.
///
/// # Errors
/// [`Error::Malformed`] with the text, also for years outside 1678 to 2261, which nanoseconds cannot hold.
pub fn parse_nanos(text: &str) -> Result<i64, Error> {
    DateTime::parse_from_rfc3339(text)
        .ok()
        .and_then(|time| time.timestamp_nanos_opt())
        .ok_or_else(|| Error::Malformed(format!("{text:?} is not an RFC 3339 time")))
}

impl fmt::Display for Millis {
    /// "2026-05-03T12:34:56.123Z".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.date_time().to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl fmt::Debug for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for Millis {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl utoipa::ToSchema for Millis {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_rfc_3339() {
        let time = Millis::parse("2026-05-03T14:34:56.123456+02:00").unwrap();
        assert_eq!(time.to_string(), "2026-05-03T12:34:56.123Z");
        assert_eq!(time.hour_text(), "2026-05-03T12:00:00Z");
        assert_eq!(time.day_text(), "2026-05-03");
        assert_eq!(Millis::parse_day("2026-05-03").unwrap(), Millis::of_day(time.day()));
        assert!(Millis::parse("2026-05-03").is_err());
        assert!(Millis::parse_day("2026-5-3").is_err());
        assert!(Millis::parse_day("2026-02-30").is_err());
    }

    #[test]
    fn hours_before_the_epoch_round_down() {
        assert_eq!(Millis(-1).hour(), -1);
        assert_eq!(Millis(-1).day(), -1);
    }
}
