//! The pure decisions: what to apply and prune in which order, and how well an object is.

pub mod compose;
pub mod delivery;
pub mod health;
pub mod order;
pub mod placement;
pub mod prune;
