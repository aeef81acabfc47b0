//! The errors of keys and certificates.

use std::error::Error;

/// The reason why a key, a certificate or a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The text has no PEM block of the expected kind, or the block is malformed.
    #[error("no {what} in PEM form was found")]
    Pem {
        /// The kind of PEM block that was expected.
        what: &'static str,
    },
    /// A key could not be generated or used.
    #[error("the key can't be used: it must be ECDSA P-256 in PKCS#8")]
    Key {
        /// The library's error.
        source: rcgen::Error,
    },
    /// A certificate can't be parsed.
    #[error("the certificate is malformed")]
    Certificate {
        /// The library's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The certificate is not allowed to sign others.
    #[error("the certificate is not that of a certificate authority")]
    NotACa,
    /// The certificate and the key do not belong together.
    #[error("the key does not belong to the certificate")]
    OtherKey,
    /// The request can't be parsed, or its sender does not hold the key in it.
    #[error("the certificate request is malformed or not signed by its own key")]
    Request {
        /// The library's error.
        source: rcgen::Error,
    },
    /// The request is for a key of another type.
    #[error("the certificate request is for a key that is not ECDSA P-256")]
    RequestKey,
    /// The certificate could not be signed.
    #[error("the certificate can't be signed")]
    Sign {
        /// The library's error.
        source: rcgen::Error,
    },
    /// The authority's own certificate has expired.
    #[error("the certificate authority has expired: rotate it")]
    CaExpired,
    /// A server name is neither a DNS name nor an IP address.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    ServerName {
        /// The name.
        name: String,
    },
    /// The certificate does not name a client of Muster.
    #[error("the certificate names {found:?}, which is not a muster identity")]
    NoIdentity {
        /// The names in the certificate.
        found: Vec<String>,
    },
    /// The trust bundle would be empty.
    #[error("there is no certificate authority to trust")]
    NoTrust,
    /// TLS refused the certificate or key.
    #[error("the TLS configuration is refused")]
    Tls {
        /// The library's error.
        source: Box<dyn Error + Send + Sync>,
    },
}
