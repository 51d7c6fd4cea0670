//! The port through which events are asked for.

use async_trait::async_trait;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::rollup::{Apart, Rollup};
use sendtrail_schemas::time::{Hour, Millis};

use crate::Error;

/// Where an event stands in the order of `/events`: newest first by these four.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// When it happened.
    pub occurred_at: Millis,
    /// Its identifier.
    pub event_id: String,
    /// Its partition.
    pub partition: u32,
    /// Its number there.
    pub seq: u64,
}

impl Position {
    /// Of an event.
    pub fn of(event: &Event) -> Self {
        Self {
            occurred_at: event.occurred(),
            event_id: event.event_id.clone(),
            partition: event.partition,
            seq: event.seq,
        }
    }
}

/// A tag to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFilter(String);

/// Bytes of a tag's name, and of its value, at most: what the door takes.
const MAX_TAG: usize = 256;

impl TagFilter {
    /// Reads `key:value` or `key`.
    pub fn parse(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// What it may mean: a name, or a name and a value. Names may hold colons, too; neither is longer than any that is kept, so
    /// that there are few.
    pub fn meanings(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let parted = self.0.match_indices(':').map(|(at, _)| (&self.0[..at], &self.0[at + 1..]));
        let may_be = |(name, value): &(&str, &str)| name.len() <= MAX_TAG && value.len() <= MAX_TAG;
        std::iter::once((&*self.0, None)).chain(parted.filter(may_be).map(|(name, value)| (name, Some(value))))
    }

    /// Whether tags have it.
    pub fn matches(&self, tags: &sendtrail_schemas::event::Tags) -> bool {
        self.meanings().any(|(key, value)| tags.get(key).is_some_and(|found| value.is_none_or(|value| value == found)))
    }
}

/// One event, by its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its partition.
    pub partition: u32,
    /// Its number there.
    pub seq: u64,
    /// When it was received, by which it is found sooner.
    pub received_at: Millis,
}

/// What lists of events leave out unless they are asked for it: it is of no message.
pub const UNASKED: EventType = EventType::ConfigurationChanged;

/// Which events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventQuery {
    /// Whose.
    pub account: AccountId,
    /// That happened at or after.
    pub from: Option<Millis>,
    /// That happened before.
    pub to: Option<Millis>,
    /// Of these types; empty: all but [`UNASKED`].
    pub kinds: Vec<EventType>,
    /// To this address, compared without case.
    pub recipient: Option<String>,
    /// Of this message.
    pub message_id: Option<String>,
    /// Through this configuration set.
    pub configuration_set_name: Option<String>,
    /// With this tag.
    pub tag: Option<TagFilter>,
    /// This one only.
    pub place: Option<Place>,
    /// Numbered below this in the account's partition.
    pub below: Option<u64>,
    /// After this one, in the order of the page.
    pub before: Option<Position>,
    /// At most so many.
    pub limit: usize,
}

impl EventQuery {
    /// All events of an account.
    pub fn of(account: AccountId, limit: usize) -> Self {
        Self {
            account,
            from: None,
            to: None,
            kinds: Vec::new(),
            recipient: None,
            message_id: None,
            configuration_set_name: None,
            tag: None,
            place: None,
            below: None,
            before: None,
            limit,
        }
    }
}

/// Events, wherever they are kept.
///
/// Guarantees: every acknowledged event that readers have settled on is seen exactly once, whatever is being written
/// or merged meanwhile.
#[async_trait]
pub trait Analytics: Send + Sync + 'static {
    /// The newest events that match, newest first.
    ///
    /// # Errors
    /// [`Error`].
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Error>;

    /// Sums by hour and by what is told apart, counted from the events themselves; for hours that no sums are kept of.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Excess`]: they would be more rows than this process holds.
    async fn scan(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        apart: &Apart,
    ) -> Result<Vec<(Hour, Rollup)>, Error>;

    /// When what it answers was true, if that is not now.
    fn as_of(&self) -> Option<Millis> {
        None
    }
}
