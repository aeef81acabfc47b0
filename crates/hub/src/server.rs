//! The listener: TCP, TLS with the fleet's certificates, and the caller's identity for the services.

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
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{authority::Peer, metrics::Metrics};

/// A handshake takes no longer than this.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes under way at once: they cost processor time, and after an outage all agents come back.
const HANDSHAKES: usize = 128;

/// A connection with its caller's identity.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
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
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections until told to stop. What fails its handshake is counted and logged.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    metrics: Metrics,
    connections: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, most likely: let some go before the next.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let (tls, metrics, connections) = (tls.config(), metrics.clone(), connections.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let shake = handshake(stream, address, TlsAcceptor::from(tls));
            match tokio::time::timeout(HANDSHAKE_WITHIN, shake).await {
                Ok(Ok(connection)) => {
                    let _ = connections.send(Ok(connection)).await;
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
    })
}
