//! Every decision, as pure functions of the log: no clock, no randomness, no IO, no `async`.

pub mod account;
pub mod effects;
pub mod envelope;
pub mod overlay;
pub mod policy;
pub mod quota;
pub mod retry;
pub mod rows;
pub mod signature;
pub mod source;
pub mod step;
pub mod window;

#[cfg(test)]
mod tests;
