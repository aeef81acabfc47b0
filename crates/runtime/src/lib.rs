//! The common base of Muster's long-running programs: logging, graceful shutdown, back-off, and the HTTP endpoints for
//! health and metrics.

pub mod backoff;
pub mod http;
pub mod log;
pub mod memory;
pub mod process;
pub mod shutdown;
