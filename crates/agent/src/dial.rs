//! A connection to the hub: TCP, and TLS with the fleet's own CA. The hub is known by its certificate,
//! whatever the address.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use muster_pki::{Credentials, HUB_SERVER_NAME, PkiError, TrustBundle, client_config};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// TCP and TLS together take no longer than this.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection that is silent this long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// What HTTP/2 keeps for one direction, in bytes.
const WINDOW: u32 = 256 * 1024;

/// Why a hub can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The certificates can't be used.
    #[error("the certificates can't be used")]
    Pki(#[from] PkiError),
    /// No connection.
    #[error("no connection to the hub at {hub}")]
    Connect {
        /// Its address.
        hub: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to a hub at HOST:PORT; without credentials only enrolment is open.
///
/// # Errors
/// [`DialError`] where there is no connection within ten seconds.
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
