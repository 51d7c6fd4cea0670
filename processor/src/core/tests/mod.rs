//! The core against fixed scenarios and against a plain model.

mod activity;
mod erasures;
mod golden;
mod house;
mod machine;
mod properties;
mod reference;
mod scenarios;
mod webhooks;
