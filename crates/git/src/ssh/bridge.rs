//! Passes bytes between libgit2 and the program of an SSH session.
//!
//! libgit2 connects to a loopback port as to a `git://` server. Other users of this machine can connect to the
//! port, too. The bridge therefore serves only one connection, which must ask for a path that nobody can guess.

use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use russh::ChannelMsg;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::session::Session;
use crate::{
    cause::Cause,
    connection::{ConnectionError, Limits},
};

/// The longest request line (gitprotocol-pack(5)) that is read, in bytes. libgit2's is shorter.
const MAX_REQUEST: usize = 256;
/// The maximum number of open connections that have not sent their request yet.
const MAX_ASKING: usize = 64;
/// How long a connection may take to send its request.
const ASKS_WITHIN: Duration = Duration::from_secs(2);
/// The maximum number of bytes of the program's standard error that are stored.
const MAX_SAID: usize = 4096;

/// A loopback port for one connection of libgit2.
pub(super) struct Bridge {
    listener: TcpListener,
    port: u16,
    /// The path that libgit2 asks for.
    secret: String,
}

/// How the program or the connection to it ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// The reason why the connection failed, or `None` if it did not fail.
    pub(super) failure: Option<ConnectionError>,
    /// The exit status of the program.
    pub(super) status: Option<u32>,
    /// What the program wrote to its standard error, on one line.
    pub(super) said: String,
}

impl Bridge {
    pub(super) fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            port: listener.local_addr()?.port(),
            listener,
            secret: format!("/{:032x}", rand::random::<u128>()),
        })
    }

    /// Returns the URL that libgit2 must connect to.
    pub(super) fn url(&self) -> String {
        format!("git://127.0.0.1:{}{}", self.port, self.secret)
    }

    /// Waits for libgit2's connection, and passes bytes in both directions until one side ends it or it stalls. Returns
    /// early if `done` is cancelled before libgit2 has connected.
    pub(super) async fn run(
        self,
        session: Session,
        host: &str,
        limits: Limits,
        done: &CancellationToken,
    ) -> Ended {
        let client = tokio::select! {
            client = self.accept() => client,
            () = done.cancelled() => return Ended::default(),
        };
        match client {
            Ok(client) => pass(client, session, host, limits).await,
            Err(error) => Ended {
                failure: Some(ConnectionError::Loopback(error)),
                ..Ended::default()
            },
        }
    }

    /// Waits for the connection that knows the secret.
    async fn accept(&self) -> io::Result<TcpStream> {
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
        let mut asking = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if asking.len() < MAX_ASKING => {
                    let (mut client, _) = accepted?;
                    asking.push(async move {
                        let asked = timeout(ASKS_WITHIN, request(&mut client)).await;
                        (asked, client)
                    });
                }
                Some((asked, client)) = asking.next() => {
                    if matches!(asked, Ok(Ok(path)) if path == self.secret) {
                        client.set_nodelay(true)?;
                        return Ok(client);
                    }
                }
            }
        }
    }
}

/// Reads the first line of a `git://` connection and returns the path in it.
async fn request(client: &mut TcpStream) -> io::Result<String> {
    let mut length = [0; 4];
    client.read_exact(&mut length).await?;
    let length = std::str::from_utf8(&length).ok();
    let length = length.and_then(|digits| usize::from_str_radix(digits, 16).ok());
    let length = length.and_then(|length| length.checked_sub(4));
    let length = length.filter(|length| *length <= MAX_REQUEST);
    let mut line = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
    client.read_exact(&mut line).await?;
    let line = String::from_utf8_lossy(&line);
    let asked = line.strip_prefix("git-upload-pack ").unwrap_or_default();
    Ok(asked.split('\0').next().unwrap_or_default().to_owned())
}

/// Passes bytes until the program or libgit2 closes the connection, or nothing moves for too long.
async fn pass(mut client: TcpStream, session: Session, host: &str, limits: Limits) -> Ended {
    let Session { channel, handle } = session;
    let (mut output, input) = channel.split();
    let (mut from_client, mut to_client) = client.split();
    let moved = Cell::new(Instant::now());
    let mut ended = Ended::default();
    let mut said = Vec::new();

    let upload = async {
        let mut input = input.make_writer();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match from_client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    moved.set(Instant::now());
                    input.write_all(&buffer[..length]).await?;
                    moved.set(Instant::now());
                }
            }
        }
        // The program ends when its input does.
        input.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    let download = async {
        loop {
            let message = output.wait().await;
            moved.set(Instant::now());
            match message {
                Some(ChannelMsg::Data { data }) => {
                    if to_client.write_all(&data).await.is_err() {
                        // libgit2 has what it needs.
                        return None;
                    }
                    moved.set(Instant::now());
                }
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                    let room = MAX_SAID.saturating_sub(said.len());
                    said.extend_from_slice(&data[..room.min(data.len())]);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => ended.status = Some(exit_status),
                Some(ChannelMsg::Close) => return None,
                Some(_) => {}
                None if handle.is_closed() && ended.status.is_none() => {
                    let text = "the server closed it".to_owned();
                    return Some(ConnectionError::Broken(Cause::Said(text)));
                }
                None => return None,
            }
        }
    };
    let stall = async {
        loop {
            let idle = moved.get().elapsed();
            match limits.stall.checked_sub(idle) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    };
    let failure = tokio::select! {
        failure = download => failure,
        Err(error) = upload => {
            Some(ConnectionError::Broken(Cause::Said(error.to_string())))
        }
        () = stall => Some(ConnectionError::Stalled {
            host: host.to_owned(),
            after: limits.stall,
        }),
    };
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    Ended {
        failure,
        said: lines.collect::<Vec<_>>().join("; "),
        ..ended
    }
}

#[cfg(test)]
mod tests;
