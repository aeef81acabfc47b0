//! Reads and renders commits in a separate process, the worker, so that nothing in the repository can crash or block
//! the hub. The worker is the same binary. It gets no environment variables and no files. Its memory is limited, and so
//! is its processor time for each app. An app that crashes the worker is identified and left out.

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
pub use wire::{AsRole, Writers};
