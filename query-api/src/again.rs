//! Events once more, the oldest first: what replays and recoveries are made of.
//!
//! Sources answer newest first, so time is cut into slices that hold no more than a page, each of which is turned round; a
//! slice that holds more is cut again, and slices grow while little happens.

use std::collections::HashSet;

use sendtrail_schemas::destination::{Destination, ReplayQuery};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::time::{HOUR, Millis};
use sendtrail_schemas::topic::partition_of;

use crate::analytics::{EventQuery, Place, Position};
use crate::show::deliveries;
use crate::{Answered, DeliveryOf, Error, Query, Source};

/// The first slice, milliseconds.
const FIRST_SLICE: i64 = HOUR;
/// Events of one millisecond, at most; beyond, the rest of it is left out.
const OF_ONE_MOMENT: usize = 200_000;
/// Events of a slice, at most.
const SLICE: usize = 1_000;

/// Some events, oldest first.
#[derive(Debug, Default)]
pub struct OldestFirst {
    /// They.
    pub events: Vec<Event>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Millis>,
}

/// A delivery that is asked for once more.
#[derive(Debug)]
pub struct Again {
    /// Of what.
    pub event: Event,
    /// Where to.
    pub destination: DestinationId,
    /// Attempts that there were, as far as is known.
    pub attempts: u32,
}

impl Query {
    /// Events from a time on, oldest first: at least one slice that has any, or all that are left.
    async fn oldest(&self, mut wanted: EventQuery, from: Millis, to: Millis) -> Result<OldestFirst, Error> {
        let (mut from, mut width) = (from, FIRST_SLICE);
        wanted.limit = SLICE;
        while from < to {
            let until = Millis(from.0.saturating_add(width)).min(to);
            let slice = EventQuery { from: Some(from), to: Some(until), ..wanted.clone() };
            let mut events = self.page_of(slice.clone()).await?;
            if events.len() >= SLICE && until.0 - from.0 > 1 {
                width = (until.0 - from.0) / 2;
                continue;
            }
            if events.len() >= SLICE {
                events = self.moment(slice, events).await?;
            }
            if !events.is_empty() {
                events.reverse();
                return Ok(OldestFirst { events, next: (until < to).then_some(until) });
            }
            (from, width) = (until, width.saturating_mul(4));
        }
        Ok(OldestFirst::default())
    }

    async fn page_of(&self, wanted: EventQuery) -> Result<Vec<Event>, Error> {
        let events = |source: Source| {
            let wanted = wanted.clone();
            async move { source.analytics.events(wanted).await }
        };
        let Answered { value, .. } = self.answered(wanted.account, events).await?;
        Ok(value)
    }

    /// Everything of one millisecond, page by page.
    async fn moment(&self, mut wanted: EventQuery, mut events: Vec<Event>) -> Result<Vec<Event>, Error> {
        loop {
            wanted.before = events.last().map(Position::of);
            let page = self.page_of(wanted.clone()).await?;
            let whole = page.len() < wanted.limit;
            events.extend(page);
            if whole || events.len() >= OF_ONE_MOMENT {
                return Ok(events);
            }
        }
    }

    /// The deliveries of a slice of what a replay asks for: also how many events there were, and where to go on.
    ///
    /// # Errors
    /// [`Error`]; of statuses that nobody here knows, [`Error::Port`].
    pub async fn again(
        &self,
        account: AccountId,
        query: &ReplayQuery,
        from: Millis,
    ) -> Result<(Vec<Again>, u64, Option<Millis>), Error> {
        let mut wanted = EventQuery::of(account, SLICE);
        wanted.kinds = query.event_types().filter(|kind| *kind != EventType::Unspecified).collect();
        let OldestFirst { events, next } = match query.seq {
            Some(seq) => {
                // Whoever asks for one event knows when it was received.
                let partition = partition_of(account, self.parts().partitions);
                wanted.place = Some(Place { partition, seq, received_at: Millis(query.from) });
                OldestFirst { events: self.page_of(wanted).await?, next: None }
            }
            None => self.oldest(wanted, from.max(Millis(query.from)), Millis(query.to)).await?,
        };
        let count = events.len() as u64;
        let asked: HashSet<&[u8]> = query.destination_ids.iter().map(Vec::as_slice).collect();
        let config = self.parts().directory.account(account);
        let of: Vec<(usize, DeliveryOf)> = events
            .iter()
            .enumerate()
            .flat_map(|(at, event)| {
                let mut all: Vec<DeliveryOf> = deliveries(event).collect();
                if !asked.is_empty() {
                    all.retain(|of| asked.contains(of.destination.bytes().as_slice()));
                    // One that was made later may ask for what came before.
                    let late = config.iter().flat_map(|config| config.destinations());
                    let late = late.filter(|dest| asked.contains(dest.destination_id.as_slice()));
                    let missing: Vec<DeliveryOf> = late
                        .filter(|dest| would_get(dest, event, config.as_deref()))
                        .filter_map(Destination::id)
                        .filter(|id| !all.iter().any(|of| of.destination == *id))
                        .map(|destination| DeliveryOf {
                            partition: event.partition,
                            seq: event.seq,
                            received_at: event.received(),
                            destination,
                        })
                        .collect();
                    all.extend(missing);
                }
                all.into_iter().map(move |of| (at, of))
            })
            .collect();
        let keys: Vec<DeliveryOf> = of.iter().map(|(_, of)| *of).collect();
        let states = if keys.is_empty() { None } else { self.parts().deliveries.states(account, &keys).await? };
        let statuses: Vec<DeliveryStatus> = query.statuses().collect();
        if !statuses.is_empty() && states.is_none() && !keys.is_empty() {
            return Err(Error::Port("how deliveries stand is not known to this server".into()));
        }
        let mut again = Vec::new();
        for (at, of) in of {
            let state = states.as_ref().and_then(|states| states.get(&of));
            let status = state.map_or(DeliveryStatus::Pending, |state| state.status);
            if statuses.is_empty() || statuses.contains(&status) {
                let attempts = state.map_or(0, |state| state.attempts);
                again.push(Again { event: events[at].clone(), destination: of.destination, attempts });
            }
        }
        Ok((again, count, next))
    }
}

/// Whether an event would go to a destination, had that been there.
fn would_get(to: &Destination, event: &Event, config: Option<&sendtrail_schemas::account::AccountConfig>) -> bool {
    let set = to.id().and_then(|id| config?.set_of(id)).and_then(|set| set.id());
    let of_set = set.is_none() || set == event.config_set();
    of_set && to.wants(event.kind(), true)
}
