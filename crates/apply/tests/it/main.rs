//! Integration tests of the apply engine against a real API server.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

mod content;
mod definitions;
mod drift;
mod every_kind;
mod faults;
mod fights;
mod fixture;
mod generated;
mod immutable;
mod jobs;
mod killed;
mod leaving;
mod lifecycle;
mod namespaces;
mod not_deleted;
mod order;
mod ownership;
mod people;
mod prune;
mod prune_order;
mod quiet;
mod reasons;
mod replaced;
mod shared;
mod slow;
mod stored_generation;
mod unions;
mod unreachable;
