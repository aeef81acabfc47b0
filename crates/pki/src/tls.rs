//! TLS for both sides: 1.3 only, HTTP/2 only, no resumption.

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

/// The name that every hub's certificate has and every client checks, at whatever address the hub is
/// reached. Only a hub gets a server's certificate from the fleet's authority, so this proves as much
/// as the address would, and lasts when a hub moves.
pub const HUB_SERVER_NAME: &str = "hub.muster.internal";

const ALPN: &[u8] = b"h2";

/// Named here, so that no process-wide default is needed or disturbed.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

/// The hub's side of TLS, which can change while it is used.
///
/// A client may come without a certificate (that is how it enrols); the services ask for what they
/// need. One that is shown must be genuine and in its time, or the handshake fails; an agent's that has
/// ended is let in to be renewed, see [`crate::RENEWAL_GRACE`].
#[derive(Debug)]
pub struct ServerTls {
    config: RwLock<Arc<ServerConfig>>,
    grace: Duration,
}

impl ServerTls {
    /// Shows `credentials`, and trusts clients that one of `trust` has signed; agents for `grace` after the end
    /// of their certificate.
    ///
    /// # Errors
    /// When TLS can't use one of them.
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

    /// Replaces both for connections that begin from now on.
    ///
    /// # Errors
    /// When TLS can't use one of them; nothing has changed then.
    pub fn update(&self, trust: &TrustBundle, credentials: &Credentials) -> Result<(), PkiError> {
        let config = server_config(trust, credentials, self.grace)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// What the next connection is to be accepted with. Ask again for each.
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
    // A resumed session would not show its certificate again, to be checked against its end, the
    // authorities and the revocations of today.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The client's side of TLS: trusts hubs that one of `trust` has signed, and shows `credentials` if
/// there are any. Dial with [`HUB_SERVER_NAME`] as the server's name.
///
/// # Errors
/// When TLS can't use one of them.
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
