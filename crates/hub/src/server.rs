//! The listener: accepts TCP connections, does the TLS handshake with the fleet's certificates, and passes the caller's
//! identity to the services.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use muster_pki::{Certified, ServerTls};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{
    authority::Peer,
    connection_limit::{Place, Pool},
    metrics::Metrics,
};

/// The time limit of a TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// The most connections in their handshake at the same time. After an outage all agents connect at once.
const HANDSHAKES: usize = 2048;
/// The most connections without a certificate, which are agents that enrol.
const GUESTS: usize = 64;
/// The most connections without a certificate from one address.
const GUESTS_OF_ONE: usize = 16;
/// The lifetime of a connection without a certificate.
const GUEST_FOR: Duration = Duration::from_secs(20);

/// A connection with its caller's identity.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    guest: Option<Guest>,
}

/// The limit of a connection without a certificate: it ends after [`GUEST_FOR`], or when its place is taken.
struct Guest {
    ends: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: Place,
}

impl Guest {
    fn new(place: Place) -> Self {
        let evicted = place.evicted.clone();
        let ends = async move {
            tokio::select! {
                () = evicted.cancelled() => {}
                () = tokio::time::sleep(GUEST_FOR) => {}
            }
        };
        Self {
            ends: Box::pin(ends),
            _place: place,
        }
    }
}

impl Connection {
    /// Returns an error once the time of a connection without a certificate is over.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = self
            .guest
            .as_mut()
            .is_some_and(|guest| guest.ends.as_mut().poll(cx).is_ready());
        if over {
            // A future must not be polled again after it is ready.
            self.guest = None;
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The channels to the two gRPC servers.
#[derive(Clone)]
pub(crate) struct Incoming {
    /// Receives connections with a certificate.
    pub(crate) certified: mpsc::Sender<io::Result<Connection>>,
    /// Receives connections without a certificate.
    pub(crate) guests: mpsc::Sender<io::Result<Connection>>,
}

/// Accepts connections until `stop` fires. Connections that are already open can't keep it from accepting others.
/// Failed handshakes are counted and logged.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    metrics: Metrics,
    incoming: Incoming,
    stop: CancellationToken,
) {
    let handshakes = Pool::new(HANDSHAKES, HANDSHAKES);
    let guests = Pool::new(GUESTS, GUESTS_OF_ONE);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely too many files are open: wait until some are closed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = handshakes.enter(address.ip());
        let (tls, metrics, incoming) = (tls.config(), metrics.clone(), incoming.clone());
        let guests = Arc::clone(&guests);
        tokio::spawn(async move {
            let shake = handshake(stream, address, TlsAcceptor::from(tls));
            let shake = tokio::time::timeout(HANDSHAKE_WITHIN, shake);
            let shaken = tokio::select! {
                shaken = shake => shaken,
                () = place.evicted.cancelled() => {
                    let why = "too many TLS handshakes at once; this was the oldest one of its address";
                    metrics.refuse("crowded", &address.to_string(), why);
                    return;
                }
            };
            drop(place);
            match shaken {
                Ok(Ok(mut connection)) => {
                    let to = if connection.peer.certified.is_some() {
                        &incoming.certified
                    } else {
                        connection.guest = Some(Guest::new(guests.enter(address.ip())));
                        &incoming.guests
                    };
                    let _ = to.send(Ok(connection)).await;
                }
                Ok(Err(error)) => metrics.refuse("tls", &address.to_string(), &error.to_string()),
                Err(_) => metrics.refuse("tls", &address.to_string(), "no TLS handshake in 10 s"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let certified = match certificate {
        Some(certificate) => Some(Arc::new(
            Certified::of(certificate).map_err(io::Error::other)?,
        )),
        None => None,
    };
    Ok(Connection {
        stream,
        peer: Peer { address, certified },
        guest: None,
    })
}
