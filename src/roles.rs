//! What a server does: everything, or some of it while others do the rest.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use sendtrail_eventlog::kafka::Part;
use sendtrail_schemas::topic::Topic;
use serde::{Deserialize, Serialize};

/// One of the things that a server does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes what clients write.
    Ingest,
    /// Decides, and reads Kafka sources.
    Processor,
    /// Hands mail over.
    Delivery,
    /// Posts webhooks.
    Dispatcher,
    /// Files events: the archive, sums, ClickHouse.
    Sinks,
    /// Answers what clients ask.
    Query,
}

impl Role {
    /// All.
    pub const ALL: [Self; 6] =
        [Self::Ingest, Self::Processor, Self::Delivery, Self::Dispatcher, Self::Sinks, Self::Query];

    /// As in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Processor => "processor",
            Self::Delivery => "delivery",
            Self::Dispatcher => "dispatcher",
            Self::Sinks => "sinks",
            Self::Query => "query",
        }
    }

    /// That of which there is one at a time.
    fn part(self) -> Option<Part> {
        match self {
            Self::Ingest | Self::Query => None,
            Self::Processor => Some(Part::Processor),
            Self::Delivery => Some(Part::Delivery),
            Self::Dispatcher => Some(Part::Dispatcher),
            Self::Sinks => Some(Part::Sinks),
        }
    }

    /// The topics that it reads, and writes to.
    pub fn topics(self) -> &'static [Topic] {
        match self {
            Self::Ingest => &[Topic::Intake, Topic::DeadLetter],
            Self::Processor => &[Topic::Intake, Topic::Events, Topic::Mail, Topic::DeadLetter],
            Self::Delivery => &[Topic::Intake, Topic::Mail],
            Self::Dispatcher => &[Topic::Intake, Topic::Events, Topic::Attempts],
            // It tells when an erasure is over.
            Self::Sinks => &[Topic::Intake, Topic::Events, Topic::Attempts, Topic::DeadLetter],
            Self::Query => &[Topic::Intake],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text.trim());
        found.ok_or_else(|| format!("there is no role {text}: {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What one server does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// These.
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Self {
        Self(roles.into_iter().collect())
    }

    /// All but one.
    pub fn without(&self, role: Role) -> Self {
        Self(self.0.iter().copied().filter(|other| *other != role).collect())
    }

    /// Whether it does something.
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Whether it does anything at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it does everything.
    pub fn is_all(&self) -> bool {
        self.0.len() == Role::ALL.len()
    }

    /// Whether clients speak to it.
    pub fn has_clients(&self) -> bool {
        self.has(Role::Ingest) || self.has(Role::Query)
    }

    /// What it does of which there is one at a time, in the order in which it is waited for.
    pub fn parts(&self) -> Vec<Part> {
        Part::ALL.into_iter().filter(|part| self.0.iter().any(|role| role.part() == Some(*part))).collect()
    }

    /// The topics that it reads, and writes to.
    pub fn topics(&self) -> Vec<Topic> {
        let needed: BTreeSet<Topic> = self.0.iter().flat_map(|role| role.topics()).copied().collect();
        needed.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_everything_needs_every_topic_and_part() {
        let all = Roles::of(Role::ALL);
        assert_eq!((all.topics(), all.parts()), (Topic::ALL.to_vec(), Part::ALL.to_vec()));
        let front = Roles::of([Role::Query, Role::Ingest]);
        assert_eq!((front.topics(), front.parts()), (vec![Topic::Intake, Topic::DeadLetter], vec![]));
    }

    #[test]
    fn names_are_read() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!("sink".parse::<Role>().unwrap_err().contains("sinks"));
    }
}
