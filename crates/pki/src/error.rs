//! What can be wrong with keys and certificates.

use std::error::Error;

/// Why a key, a certificate or a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The text has no such PEM block, or a broken one.
    #[error("no {what} in PEM form was found")]
    Pem {
        /// What was looked for.
        what: &'static str,
    },
    /// A key could not be made or used.
    #[error("the key can't be used: it must be ECDSA P-256 in PKCS#8")]
    Key {
        /// What the library said.
        source: rcgen::Error,
    },
    /// A certificate can't be parsed.
    #[error("the certificate is malformed")]
    Certificate {
        /// What the library said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The certificate may not sign others.
    #[error("the certificate is not that of a certificate authority")]
    NotACa,
    /// Certificate and key are not of one pair.
    #[error("the key does not belong to the certificate")]
    OtherKey,
    /// The request can't be parsed, or its sender does not hold the key in it.
    #[error("the certificate request is malformed or not signed by its own key")]
    Request {
        /// What the library said.
        source: rcgen::Error,
    },
    /// The request is for a key of another kind.
    #[error("the certificate request is for a key that is not ECDSA P-256")]
    RequestKey,
    /// The certificate could not be signed.
    #[error("the certificate can't be signed")]
    Sign {
        /// What the library said.
        source: rcgen::Error,
    },
    /// The authority's own certificate ends before the one that was asked for would begin.
    #[error("the certificate authority has expired: rotate it")]
    CaExpired,
    /// A name for a server is neither a DNS name nor an address.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    ServerName {
        /// The name.
        name: String,
    },
    /// The certificate names nobody of this system.
    #[error("the certificate names {found:?}, which is no identity of muster")]
    NoIdentity {
        /// The names in it.
        found: Vec<String>,
    },
    /// There is nothing to trust.
    #[error("there is no certificate authority to trust")]
    NoTrust,
    /// TLS refused the certificate or key.
    #[error("the TLS configuration is refused")]
    Tls {
        /// What the library said.
        source: Box<dyn Error + Send + Sync>,
    },
}
