//! Events as clients see them.

use std::collections::HashMap;

use sendtrail_schemas::block::Block;
use sendtrail_schemas::event::{Event, Tags};
use sendtrail_schemas::ids::delivery_id;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::time::Millis;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{DeliveryOf, DeliveryState};

/// One event of `/events`.
#[derive(Serialize, ToSchema)]
pub struct EventView {
    event_id: String,
    event_type: &'static str,
    occurred_at: Millis,
    received_at: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_occurred_at: Option<Millis>,
    partition: u32,
    seq: u64,
    offset: u64,
    message_id: Option<String>,
    send_id: Option<String>,
    recipient: Option<String>,
    from: Option<String>,
    subject: Option<String>,
    configuration_set_name: Option<String>,
    customer_id: Option<String>,
    category: Option<String>,
    tags: Tags,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    unique: bool,
    counted: bool,
    history: bool,
    /// The block of its type, under the type's name.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    block: BlockView,
    deliveries: Vec<DeliveryView>,
}

/// How the delivery of the event to one destination stands.
#[derive(Serialize, ToSchema)]
pub struct DeliveryView {
    delivery_id: String,
    destination_id: String,
    /// `pending`, `failed`, `delivered` or `gave_up`.
    status: &'static str,
    attempts: u32,
    last_status_code: Option<u32>,
    created_at: Millis,
    delivered_at: Option<Millis>,
}

/// A block under its name.
struct BlockView(Option<Block>);

impl Serialize for BlockView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.0 {
            None => {}
            Some(Block::Bounce(block)) => map.serialize_entry("bounce", block)?,
            Some(Block::Complaint(block)) => map.serialize_entry("complaint", block)?,
            Some(Block::Delivery(block)) => map.serialize_entry("delivery", block)?,
            Some(Block::Open(block)) => map.serialize_entry("open", block)?,
            Some(Block::Click(block)) => map.serialize_entry("click", block)?,
            Some(Block::Reject(block)) => map.serialize_entry("reject", block)?,
            Some(Block::DeliveryDelay(block)) => map.serialize_entry("deliveryDelay", block)?,
            Some(Block::RenderingFailure(block)) => map.serialize_entry("renderingFailure", block)?,
            Some(Block::Reply(block)) => map.serialize_entry("reply", block)?,
            Some(Block::Subscription(block)) => map.serialize_entry("subscription", block)?,
            Some(Block::StatusChange(block)) => map.serialize_entry("status", block)?,
            Some(Block::WebhookChange(block)) => map.serialize_entry("webhook", block)?,
            Some(Block::Lifecycle(block)) => map.serialize_entry("lifecycle", block)?,
            Some(Block::Activity(block)) => map.serialize_entry("activity", block)?,
        }
        map.end()
    }
}

/// Shows an event with its deliveries; of those of events before `known_since`, what is still known. When nothing is known
/// of any, none are shown.
pub fn event(event: Event, known: Option<&HashMap<DeliveryOf, DeliveryState>>, known_since: Millis) -> EventView {
    let states = known.into_iter().flat_map(|known| {
        let state = |of: DeliveryOf| delivery(&event, &of, known.get(&of), known_since);
        deliveries(&event).filter_map(state)
    });
    let states = states.collect();
    let some = |text: String| (!text.is_empty()).then_some(text);
    EventView {
        event_type: event.kind().name(),
        occurred_at: event.occurred(),
        received_at: event.received(),
        original_occurred_at: event.original_occurred_at.map(Millis),
        partition: event.partition,
        seq: event.seq,
        offset: event.offset,
        event_id: event.event_id,
        message_id: some(event.message_id),
        send_id: event.send_id,
        recipient: some(event.recipient),
        from: event.from,
        subject: event.subject,
        configuration_set_name: event.configuration_set_name,
        customer_id: event.customer_id,
        category: event.category,
        tags: event.tags,
        metadata: event.metadata.and_then(|text| RawValue::from_string(text).ok()),
        unique: event.unique,
        counted: event.counted,
        history: event.history,
        block: BlockView(event.block),
        deliveries: states,
    }
}

/// The deliveries of an event.
pub fn deliveries(event: &Event) -> impl Iterator<Item = DeliveryOf> + '_ {
    let of = |destination| DeliveryOf {
        partition: event.partition,
        seq: event.seq,
        received_at: event.received(),
        destination,
    };
    event.destinations().map(of)
}

fn delivery(
    event: &Event,
    of: &DeliveryOf,
    state: Option<&DeliveryState>,
    known_since: Millis,
) -> Option<DeliveryView> {
    // Forgotten is not pending.
    if state.is_none() && of.received_at < known_since {
        return None;
    }
    let delivered = state.filter(|state| state.status == DeliveryStatus::Delivered);
    Some(DeliveryView {
        delivery_id: delivery_id(event.account(), of.partition, of.seq, of.destination).to_string(),
        destination_id: of.destination.to_string(),
        delivered_at: delivered.map(|state| state.finished_at),
        status: state.map_or(DeliveryStatus::Pending, |state| state.status).name(),
        attempts: state.map_or(0, |state| state.attempts),
        last_status_code: state.and_then(|state| state.last_status_code),
        created_at: of.received_at,
    })
}

/// What a message has come to, by its events in any order.
pub fn message_status(events: &[Event]) -> &'static str {
    let any = |wanted: &dyn Fn(&Event) -> bool| events.iter().any(wanted);
    let of = |kind: EventType| move |event: &Event| event.kind() == kind;
    if any(&of(EventType::Complaint)) {
        "complained"
    } else if any(&Event::is_permanent_bounce) {
        "bounced"
    } else if any(&of(EventType::Reject)) {
        "rejected"
    } else if any(&of(EventType::RenderingFailure)) {
        "failed"
    } else if any(&of(EventType::Delivery)) {
        "delivered"
    } else if any(&of(EventType::Bounce)) {
        "bounced"
    } else if any(&of(EventType::DeliveryDelay)) {
        "delayed"
    } else {
        "queued"
    }
}
