//! What is decided about webhooks: how an event is told, signed and tried again, and when a receiver is left alone.

pub mod breaker;
pub mod envelope;
pub mod retry;
pub mod signature;
pub mod turns;
