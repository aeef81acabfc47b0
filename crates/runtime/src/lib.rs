//! What every long-running part of Muster needs around its own work: logging, an orderly end, delays
//! between retries, and the HTTP pages for health and metrics.

pub mod backoff;
pub mod http;
pub mod log;
pub mod memory;
pub mod process;
pub mod shutdown;
