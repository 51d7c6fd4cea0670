//! The state machine of every account, and what surrounds it: store, delivery, dispatcher, sinks and projections.

pub mod core;
