//! Reads and renders commits in a process of its own, so that nothing in the repository can end or hold up
//! the process that asks. The worker is the same binary; it has no environment and no files, a bound on its
//! memory, and for each app a budget of processor time. An app that ends it is found and left out.

mod child;
mod journal;
mod outcome;
mod overseer;
mod pack;
mod process;
mod sizes;
mod verdicts;
mod wire;

pub use child::serve;
pub use outcome::{AppFacts, Facts, Outcome, RegionFacts};
pub use process::{Limits, Program, WorkError, Worker};
pub use wire::AsRole;
