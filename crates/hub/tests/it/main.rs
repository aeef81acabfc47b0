//! Tests of the whole hub, with a real Git repository, real mTLS and gRPC, and its store on disk. The agents run the
//! agent's own stream code; only the cluster behind it is in memory instead of an API server.

#![allow(
    clippy::unwrap_used,
    reason = "clippy sees only the test functions as tests"
)]

mod agents;
mod approvals;
mod builds;
mod check;
mod clashes;
mod copied_keys;
mod delivery;
mod ended;
mod fixture;
mod hostile_agents;
mod hostile_commits;
mod kept_out;
mod lifetimes;
mod moves;
mod raw;
mod relay;
mod renames;
mod repository;
mod slow;
mod terms;
mod writers;
