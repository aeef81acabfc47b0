//! Finds free loopback ports for servers that can't choose one themselves.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;
use rand::RngExt;

/// The ports to choose from. They are below the range of ports for outgoing connections, so that no connection takes
/// the port of a stopped server before it starts again.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// Returns a port that no process listens on right now. Another process may take it before the caller does, so the
/// caller must be ready to try another one.
///
/// # Errors
/// Fails if no free port is found.
pub fn free() -> anyhow::Result<u16> {
    let mut random = rand::rng();
    (0..100)
        .map(|_| random.random_range(RANGE))
        .find(|port| is_free(*port))
        .context("no free loopback port: a hundred tries between 15000 and 32000 failed")
}

/// Returns true if no process listens on the port right now.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
