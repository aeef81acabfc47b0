//! The connection to a remote, with time limits.
//!
//! libgit2 blocks in the kernel until the other side answers. For SSH it therefore gets the address of a
//! relay on the loopback interface instead of the remote's. The relay connects with a timeout, ends
//! stalled connections, can be stopped by another thread, and knows exactly what went wrong. It does not
//! change the SSH traffic, which stays encrypted end to end.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

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
    /// The relay can't be started on this machine.
    #[error("this machine gives no loopback port or thread for the connection")]
    Loopback(#[source] io::Error),
}

/// Stops the running operation of a mirror and all later ones.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    token: CancellationToken,
    relay: Mutex<Weak<Shared>>,
}

impl Stop {
    pub(crate) fn stop(&self) {
        self.token.cancel();
        if let Some(relay) = lock(&self.relay).upgrade() {
            relay.close();
        }
    }

    pub(crate) async fn stopped(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// A relay on a loopback port. It stops when it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    host: String,
    port: u16,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    open: Vec<TcpStream>,
    failure: Option<ConnectionError>,
}

impl Relay {
    /// Opens a relay to this host and port.
    pub(crate) fn open(
        host: &str,
        port: u16,
        limits: Limits,
        stop: &Stop,
    ) -> Result<Self, ConnectionError> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(ConnectionError::Loopback)?;
        let address = listener.local_addr().map_err(ConnectionError::Loopback)?;
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            port,
            limits,
            state: Mutex::default(),
        });
        *lock(&stop.relay) = Arc::downgrade(&shared);
        if stop.is_stopped() {
            shared.close();
        }
        let accepting = shared.clone();
        let acceptor = thread::Builder::new()
            .name("git-relay".into())
            .spawn(move || accepting.accept(&listener))
            .map_err(ConnectionError::Loopback)?;
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Returns the loopback port that leads to the remote.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns and clears the reason why the connection failed, if it did.
    pub(crate) fn failure(&self) -> Option<ConnectionError> {
        lock(&self.shared.state).failure.take()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.close();
        // The acceptor blocks until a connection arrives, so this opens one.
        if TcpStream::connect(self.address).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            // The acceptor has no result.
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for stream in state.open.drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn fail(&self, failure: ConnectionError) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.failure.get_or_insert(failure);
        }
    }

    /// Registers the stream for [`Shared::close`]. Returns false if that was already called.
    fn keep(&self, stream: &TcpStream) -> io::Result<bool> {
        let stream = stream.try_clone()?;
        let mut state = lock(&self.state);
        if !state.closed {
            state.open.push(stream);
        }
        Ok(!state.closed)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if lock(&self.state).closed {
                return;
            }
            let shared = self.clone();
            let serve = move |client: io::Result<TcpStream>| -> io::Result<()> {
                let client = client?;
                thread::Builder::new()
                    .name("git-relay".into())
                    .spawn(move || {
                        if let Err(error) = shared.serve(&client) {
                            // libgit2 sees a closed connection and returns its own error.
                            tracing::debug!(%error, "a connection to the Git remote ended");
                        }
                        // This is explicit because `close` has a copy of the stream. It may be closed already.
                        let _ = client.shutdown(Shutdown::Both);
                    })?;
                Ok(())
            };
            if let Err(error) = serve(client) {
                self.fail(ConnectionError::Loopback(error));
                return;
            }
        }
    }

    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        if !self.keep(client)? {
            return Ok(());
        }
        let remote = match self.dial() {
            Ok(remote) => remote,
            Err(failure) => {
                self.fail(failure);
                return Ok(());
            }
        };
        if !self.keep(&remote)? {
            return remote.shutdown(Shutdown::Both);
        }
        for stream in [client, &remote] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.limits.stall))?;
            stream.set_write_timeout(Some(self.limits.stall))?;
        }
        let clock = Clock {
            start: Instant::now(),
            last: AtomicU64::new(0),
        };
        let copy = |from, to| {
            let end = copy(from, to, &clock, self.limits.stall);
            // This must be set before libgit2 sees the end of the connection and the failure is read.
            if end == End::Stalled {
                self.fail(ConnectionError::Stalled {
                    host: self.host.clone(),
                    after: self.limits.stall,
                });
            }
            if end != End::Finished {
                for stream in [client, &remote] {
                    // The other direction may have closed it already.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| copy(client, &remote));
            copy(&remote, client);
        });
        Ok(())
    }

    fn dial(&self) -> Result<TcpStream, ConnectionError> {
        let host = || self.host.clone();
        let resolve = |source| ConnectionError::Resolve {
            host: host(),
            source,
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in (&*self.host, self.port)
            .to_socket_addrs()
            .map_err(resolve)?
        {
            match TcpStream::connect_timeout(&address, self.limits.connect) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(ConnectionError::Connect {
            host: host(),
            port: self.port,
            source: last,
        })
    }
}

/// How one direction of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The sender closed its side. The other direction continues.
    Finished,
    /// Nothing moved in either direction.
    Stalled,
    /// An error on either side.
    Broken,
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, clock: &Clock, stall: Duration) -> End {
    let mut buffer = [0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                return match to.shutdown(Shutdown::Write) {
                    Ok(()) => End::Finished,
                    Err(_) => End::Broken,
                };
            }
            Ok(length) => {
                clock.tick();
                match to.write_all(&buffer[..length]) {
                    Ok(()) => clock.tick(),
                    Err(error) if waited(&error) => return End::Stalled,
                    Err(_) => return End::Broken,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if waited(&error) => {
                if clock.idle() >= stall {
                    return End::Stalled;
                }
            }
            Err(_) => return End::Broken,
        }
    }
}

/// Records when bytes were last transferred on a connection.
struct Clock {
    start: Instant,
    /// The time of the last transfer, in milliseconds after the start.
    last: AtomicU64,
}

impl Clock {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn tick(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn idle(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

fn waited(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Limits = Limits {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(150),
    };

    fn server() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn client(relay: &Relay) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap()
    }

    fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A connection reset also counts as the end.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn bytes_pass_both_ways_until_both_have_ended() {
        let (listener, port) = server();
        let relay = Relay::open("127.0.0.1", port, Limits::default(), &Stop::default()).unwrap();
        let mut near = client(&relay);
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"ask").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&far), b"ask");
        far.write_all(b"answer").unwrap();
        drop(far);
        assert_eq!(read_to_end(&near), b"answer");
        assert!(relay.failure().is_none());
    }

    #[test]
    fn silence_ends_the_connection() {
        let (listener, port) = server();
        let relay = Relay::open("127.0.0.1", port, QUICK, &Stop::default()).unwrap();
        let near = client(&relay);
        let far = listener.accept().unwrap();
        assert_eq!(read_to_end(&near), b"");
        assert!(matches!(
            relay.failure(),
            Some(ConnectionError::Stalled { .. })
        ));
        drop(far);
    }

    #[test]
    fn a_closed_port_and_an_unknown_name_are_told_apart() {
        let (listener, port) = server();
        drop(listener);
        let relay = Relay::open("127.0.0.1", port, QUICK, &Stop::default()).unwrap();
        assert_eq!(read_to_end(&client(&relay)), b"");
        assert!(matches!(
            relay.failure(),
            Some(ConnectionError::Connect { .. })
        ));
        let relay = Relay::open("no-such-host.invalid", 1, QUICK, &Stop::default()).unwrap();
        assert_eq!(read_to_end(&client(&relay)), b"");
        assert!(matches!(
            relay.failure(),
            Some(ConnectionError::Resolve { .. })
        ));
    }

    #[test]
    fn a_stop_cuts_what_is_under_way_and_what_comes_later() {
        let (listener, port) = server();
        let stop = Stop::default();
        let relay = Relay::open("127.0.0.1", port, Limits::default(), &stop).unwrap();
        let near = client(&relay);
        let far = listener.accept().unwrap();
        stop.stop();
        assert_eq!(read_to_end(&near), b"");
        drop(far);
        let relay = Relay::open("127.0.0.1", port, Limits::default(), &stop).unwrap();
        assert_eq!(read_to_end(&client(&relay)), b"");
    }
}
