//! The TLS configuration of hub and clients: TLS 1.3 only, HTTP/2 only, no session resumption.

use std::{
    sync::{Arc, LazyLock, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::SingleCertAndKey,
    version::TLS13,
};

use crate::{Credentials, PkiError, TrustBundle, clock::TlsClock, renewable::Renewable};

/// The server name in every hub's certificate. Clients check it whatever the hub's address is. Only a hub
/// gets a server certificate from the fleet's authority, so this name proves as much as the address would,
/// and it stays valid when the hub moves.
pub const HUB_SERVER_NAME: &str = "hub.muster.internal";

const ALPN: &[u8] = b"h2";

/// Returns the crypto provider. It is passed explicitly, so that no process-wide default is needed or changed.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

/// The hub's TLS configuration, which can be replaced while the hub runs.
///
/// A client may connect without a certificate, because it has none before it enrols. Each service checks whether it
/// requires one. If the client presents a certificate, it must be genuine and valid, or the handshake fails. The only
/// exception is an agent's expired certificate, which is accepted for renewal; see [`crate::RENEWAL_GRACE`].
#[derive(Debug)]
pub struct ServerTls {
    config: RwLock<Arc<ServerConfig>>,
    grace: Duration,
}

impl ServerTls {
    /// Creates a configuration that presents `credentials` and trusts clients whose certificate is signed by one of
    /// `trust`. Agents' certificates are accepted until `grace` after their expiry.
    ///
    /// # Errors
    /// [`PkiError::Tls`] if TLS can't use one of them.
    pub fn new(
        trust: &TrustBundle,
        credentials: &Credentials,
        grace: Duration,
    ) -> Result<Self, PkiError> {
        let config = server_config(trust, credentials, grace)?;
        Ok(Self {
            config: RwLock::new(config),
            grace,
        })
    }

    /// Replaces `trust` and `credentials` for new connections.
    ///
    /// # Errors
    /// [`PkiError::Tls`] if TLS can't use one of them. The configuration then stays as it was.
    pub fn update(&self, trust: &TrustBundle, credentials: &Credentials) -> Result<(), PkiError> {
        let config = server_config(trust, credentials, self.grace)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Returns the configuration for the next connection. Call this again for every connection.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn server_config(
    trust: &TrustBundle,
    credentials: &Credentials,
    grace: Duration,
) -> Result<Arc<ServerConfig>, PkiError> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(trust.roots()?), provider())
        .allow_unauthenticated()
        .build()
        .map(|inner| Arc::new(Renewable { inner, grace }))
        .map_err(|source| PkiError::Tls {
            source: source.into(),
        })?;
    let own = Arc::new(SingleCertAndKey::from(credentials.certified_key()?));
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(TlsClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| PkiError::Tls {
            source: source.into(),
        })?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would not present its certificate again, so its expiry, its authority and its
    // revocation would not be checked again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Returns a client's TLS configuration. It trusts hubs whose certificate is signed by one of `trust` and
/// presents `credentials` if there are any. Connect with [`HUB_SERVER_NAME`] as the server name.
///
/// # Errors
/// [`PkiError::Tls`] if TLS can't use one of them.
pub fn client_config(
    trust: &TrustBundle,
    credentials: Option<&Credentials>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(TlsClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| PkiError::Tls {
            source: source.into(),
        })?
        .with_root_certificates(trust.roots()?);
    let mut config = match credentials {
        Some(own) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.certified_key()?))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
