//! Free loopback ports for servers that cannot choose one themselves.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;
use rand::RngExt;

/// Below the range from which systems take the ports of outgoing connections, so that a port
/// that a stopped server will want again is not taken meanwhile.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// A port that nobody listens on right now. Another process may take it before its user does, so
/// that the user must be ready to try again with another one.
///
/// # Errors
/// When none is found.
pub fn free() -> anyhow::Result<u16> {
    let mut random = rand::rng();
    (0..100)
        .map(|_| random.random_range(RANGE))
        .find(|port| is_free(*port))
        .context("no free loopback port: a hundred tries between 15000 and 32000 failed")
}

/// Whether nobody listens on the port right now.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
