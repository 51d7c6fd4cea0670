//! Events once more, the oldest first: what replays and recoveries are made of.
//!
//! Sources answer newest first, so time is cut into slices that hold no more than a page, each of which is turned round; a
//! slice that holds more is cut again, and slices grow while little happens. What comes while a replay is read is not of it
//! ([`ReplayQuery::below`]), so a slice is the same whenever it is read again, and where it ends need not be remembered.

use std::collections::{HashMap, HashSet};

use sendtrail_schemas::block::Block;
use sendtrail_schemas::destination::{Destination, ReplayQuery};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::time::{DAY, HOUR, Millis};
use sendtrail_schemas::topic::partition_of;

use crate::analytics::{EventQuery, Place, Position};
use crate::show::deliveries;
use crate::{Answered, Deliveries, DeliveryOf, DeliveryState, Error, Query, Source};

/// The first slice, milliseconds.
const FIRST_SLICE: i64 = HOUR;
/// Events of one millisecond, at most; beyond, the rest of it is left out.
const OF_ONE_MOMENT: usize = 200_000;
/// Events of a slice, at most.
const SLICE: usize = 1_000;
/// How long it is known at hand how a delivery stands, at least, milliseconds.
const AT_HAND: i64 = 29 * DAY;

/// Some events, oldest first.
#[derive(Debug, Default)]
pub struct OldestFirst {
    /// They.
    pub events: Vec<Event>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Millis>,
}

/// Where a reading of deliveries stands: a time, and the last delivery of the slice from there that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// Of the slice.
    pub from: Millis,
    /// The event's number, and where it went; none: nothing of the slice was told.
    pub told: Option<(u64, DestinationId)>,
}

/// Some of the deliveries that are asked for once more, of the oldest events first.
#[derive(Debug, Default)]
pub struct AgainPage {
    /// They.
    pub deliveries: Vec<Again>,
    /// Events that were looked at for the first time.
    pub events: u64,
    /// Where to go on; `None`: that was all.
    pub next: Option<Bookmark>,
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

    /// Some deliveries of what a replay asks for, at most `limit` of one slice. What is delivered meanwhile is not asked for any
    /// more, so it is remembered which was told last, not how many were.
    ///
    /// # Errors
    /// [`Error`]; of statuses that nobody here knows, [`Error::Port`].
    pub async fn again(
        &self,
        account: AccountId,
        query: &ReplayQuery,
        Bookmark { from, told }: Bookmark,
        limit: usize,
    ) -> Result<AgainPage, Error> {
        if told.is_none() && from.0 <= query.from {
            // It begins; what is not seen then is never told again.
            self.settled_somewhere(account).await?;
        }
        let mut wanted = EventQuery::of(account, SLICE);
        wanted.kinds = query.event_types().filter(|kind| *kind != EventType::Unspecified).collect();
        wanted.below = query.below;
        let OldestFirst { events, next } = match query.seq {
            Some(seq) => {
                // Whoever asks for one event knows when it was received.
                let partition = partition_of(account, self.parts().partitions);
                wanted.place = Some(Place { partition, seq, received_at: Millis(query.from) });
                OldestFirst { events: self.page_of(wanted).await?, next: None }
            }
            None => self.oldest(wanted, from.max(Millis(query.from)), Millis(query.to)).await?,
        };
        let count = if told.is_none() { events.len() as u64 } else { 0 };
        let told_at = told.and_then(|(seq, _)| events.iter().position(|event| event.seq == seq));
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
                // One that takes nothing would only be noted as having failed.
                let takes =
                    |id| config.as_deref().and_then(|config| config.destination(id)).is_some_and(|to| to.enabled);
                all.retain(|of| takes(of.destination));
                all.sort_unstable_by_key(|of| of.destination);
                all.into_iter().map(move |of| (at, of))
            })
            .filter(|(at, of)| {
                let Some((told_at, (_, to))) = told_at.zip(told) else { return true };
                *at > told_at || *at == told_at && of.destination > to
            })
            .collect();
        let keys: Vec<DeliveryOf> = of.iter().map(|(_, of)| *of).collect();
        let states = if keys.is_empty() { None } else { self.states_of(account, &keys).await? };
        let statuses: Vec<DeliveryStatus> = query.statuses().collect();
        if !statuses.is_empty() && states.is_none() && !keys.is_empty() {
            return Err(Error::Port("how deliveries stand is not known to this server".into()));
        }
        let mut deliveries = Vec::new();
        for (at, of) in of {
            let state = states.as_ref().and_then(|states| states.get(&of));
            let status = state.map_or(DeliveryStatus::Pending, |state| state.status);
            if statuses.is_empty() || statuses.contains(&status) {
                if deliveries.len() == limit {
                    let last = deliveries.last().map(|last: &Again| (last.event.seq, last.destination));
                    return Ok(AgainPage { deliveries, events: count, next: Some(Bookmark { from, told: last }) });
                }
                let attempts = state.map_or(0, |state| state.attempts);
                deliveries.push(Again { event: events[at].clone(), destination: of.destination, attempts });
            }
        }
        Ok(AgainPage { deliveries, events: count, next: next.map(|from| Bookmark { from, told: None }) })
    }

    /// How deliveries stand; of those that are kept at hand no longer, as their archive has it.
    async fn states_of(
        &self,
        account: AccountId,
        keys: &[DeliveryOf],
    ) -> Result<Option<HashMap<DeliveryOf, DeliveryState>>, Error> {
        let Some(mut states) = self.parts().deliveries.states(account, keys).await? else { return Ok(None) };
        let old = self.parts().clock.now().plus(-AT_HAND);
        let missing: Vec<DeliveryOf> =
            keys.iter().filter(|of| of.received_at < old && !states.contains_key(of)).copied().collect();
        if !missing.is_empty() {
            states.extend(self.parts().attempts.states(account, &missing).await?.unwrap_or_default());
        }
        Ok(Some(states))
    }
}

/// Whether an event would go to a destination, had that been there.
fn would_get(to: &Destination, event: &Event, config: Option<&sendtrail_schemas::account::AccountConfig>) -> bool {
    let set = to.id().and_then(|id| config?.set_of(id)).and_then(|set| set.id());
    let of_set = set.is_none() || set == event.config_set();
    let is_told = !matches!(&event.block, Some(Block::Subscription(change)) if !change.is_unsubscribe());
    // What is told once a call was told of another of its events.
    of_set && is_told && to.wants(event.kind(), event.is_permanent_bounce(), false)
}
