//! A whole fleet for the scenarios in `scenarios/`, as in production: three kind clusters in three regions, a Git
//! server, and Muster installed with its charts.

mod fleet;
mod world;

pub use fleet::{App, CLUSTERS, HUB_CLUSTER, PORT};
pub use world::{Levels, World};
