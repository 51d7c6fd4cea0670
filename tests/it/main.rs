//! Scenarios through the real HTTP surface, one file each.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it is a test, and a skipped one says so")]

mod adversary;
mod archive;
mod audit;
mod backfill;
mod binary;
mod clickhouse;
mod codes;
mod corpus;
mod crash;
mod cursors;
mod dead_letters;
mod destinations;
mod dialects;
mod document;
mod events;
mod exports;
mod faults;
mod grafana;
mod idempotency;
mod kafka;
mod keys;
mod late;
mod pause;
mod quotas;
mod replay;
mod restart;
mod roles;
mod send;
mod ses;
mod sources;
mod stats;
mod support;
mod suppression;
mod tenants;
mod webhooks;
