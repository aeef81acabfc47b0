//! The connection to a remote, with time limits.

use std::{io, time::Duration};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::cause::Cause;

/// The time limits for a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The time limit for a TCP connection to one of the remote's addresses.
    pub connect: Duration,
    /// The longest time without a byte in either direction.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
        }
    }
}

/// The reason why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The host's name can't be resolved.
    #[error("the name {host} can't be resolved; check it, and the DNS of this machine")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's error.
        #[source]
        source: io::Error,
    },
    /// None of the host's addresses accepts a connection.
    #[error(
        "no connection to {host} port {port}; check that it is up and that no firewall blocks it"
    )]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// The error of the last address.
        #[source]
        source: io::Error,
    },
    /// The host sent nothing for too long.
    #[error("{host} has sent nothing for {} s", after.as_secs())]
    Stalled {
        /// The host.
        host: String,
        /// The time without a byte.
        after: Duration,
    },
    /// The other side ended the connection early.
    #[error("the connection broke")]
    Broken(#[source] Cause),
    /// The loopback connection between libgit2 and the SSH session can't be created.
    #[error("this machine can't provide the loopback port or thread that fetching over SSH needs")]
    Loopback(#[source] io::Error),
}

/// Stops the running operation of a mirror and all later ones.
#[derive(Debug, Default)]
pub(crate) struct Stop(CancellationToken);

impl Stop {
    pub(crate) fn stop(&self) {
        self.0.cancel();
    }

    pub(crate) async fn stopped(&self) {
        self.0.cancelled().await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Connects to the first address of the host that accepts a connection.
pub(crate) async fn dial(
    host: &str,
    port: u16,
    limits: Limits,
) -> Result<TcpStream, ConnectionError> {
    let resolved = tokio::net::lookup_host((host, port)).await;
    let addresses = resolved.map_err(|source| ConnectionError::Resolve {
        host: host.to_owned(),
        source,
    })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match tokio::time::timeout(limits.connect, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream
                    .set_nodelay(true)
                    .map_err(|error| ConnectionError::Broken(Cause::Said(error.to_string())))?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::from(io::ErrorKind::TimedOut),
        }
    }
    Err(ConnectionError::Connect {
        host: host.to_owned(),
        port,
        source: last,
    })
}
