//! A whole fleet as its users have it, for the scenarios in `scenarios/`: three kind clusters in three
//! regions, a Git server, and Muster installed with its charts.

mod fleet;
mod world;

pub use fleet::{App, CLUSTERS, HUB_CLUSTER, PORT};
pub use world::{Levels, World};
