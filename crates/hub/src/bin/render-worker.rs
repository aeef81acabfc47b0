//! The worker process that reads and renders commits, as a separate program for this crate's tests, whose hubs don't
//! run in the `muster` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_worker::serve()
}
