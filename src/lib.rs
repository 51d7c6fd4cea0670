//! Sendtrail: send mail, stream delivery events, and know what happened to every message.
//!
//! The rooms are crates; this one puts them together ([`app`]) and is the command line.
#![allow(clippy::print_stdout, reason = "a command line program prints")]

pub mod app;
pub mod audit;
pub mod backbone;
pub mod cli;
pub mod clickhouse;
pub mod client;
pub mod commands;
pub mod config;
mod demo;
mod elsewhere;
mod export;
pub mod health;
pub mod keys;
mod loadgen;
mod metrics;
mod openapi;
mod ownership;
mod ports;
mod properties;
pub mod rebuild;
mod reception;
pub mod roles;
mod server;
mod shutdown;
mod sources;
mod steward;
pub mod telemetry;
