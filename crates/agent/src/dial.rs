//! Connections to the hub: TCP, and TLS with the fleet's own CA. The hub's certificate identifies it,
//! whatever its address is.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use muster_pki::{Credentials, HUB_SERVER_NAME, PkiError, TrustBundle, client_config};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// The time limit for TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection without traffic for this long is checked with an HTTP/2 ping.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// The HTTP/2 receive window, for each stream and for the connection, in bytes.
const WINDOW: u32 = 256 * 1024;

/// The reason why a hub can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The certificates can't be used.
    #[error("the certificates can't be used")]
    Pki(#[from] PkiError),
    /// The connection failed.
    #[error("no connection to the hub at {hub}")]
    Connect {
        /// The hub's address.
        hub: String,
        /// The transport error.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to a hub at HOST:PORT. Without credentials, the hub allows only enrolment.
///
/// # Errors
/// [`DialError`] if there is no connection within ten seconds.
pub async fn dial(
    hub: &str,
    trust: &TrustBundle,
    credentials: Option<&Credentials>,
) -> Result<Channel, DialError> {
    let tls = TlsConnector::from(Arc::clone(&client_config(trust, credentials)?));
    let address = hub.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(HUB_SERVER_NAME).map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("https://hub.muster.internal")
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let connecting = endpoint.connect_with_connector(connect);
    connecting.await.map_err(|source| DialError::Connect {
        hub: hub.to_owned(),
        source,
    })
}
