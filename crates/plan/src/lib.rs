//! Pure decision functions, without I/O: what to apply and delete, in which order, and an object's health.

pub mod compose;
pub mod controlled;
pub mod delivery;
pub mod drift;
mod expression;
pub mod fields;
pub mod handover;
pub mod health;
pub mod ignore;
pub mod immutable;
pub mod order;
pub mod ownership;
pub mod people;
pub mod placement;
pub mod prune;
pub mod retry;
pub mod unions;
pub mod writer_rule;
