//! The process that reads and renders commits, as a program of its own: this crate's tests run hubs whose
//! program is no `muster`.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_worker::serve()
}
