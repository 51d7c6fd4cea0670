//! Every decision, as pure functions of the log: no clock, no randomness, no IO, no `async`.

pub mod account;
pub mod effects;
pub mod invariants;
pub mod overlay;
pub mod policy;
pub mod quota;
pub mod rows;
pub mod source;
pub mod step;
pub mod webhook;
pub mod window;

#[cfg(test)]
mod tests;
