//! The authorities that are trusted at the moment: one, or two while one replaces the other.

use std::fmt::Write as _;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{PkiError, identity::parse};

/// Certificates of authorities. To rotate an authority, its successor is added on all sides first; the
/// hub then signs with it; the old one is taken out when no certificate of it is left in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle(Vec<CertificateDer<'static>>);

impl TrustBundle {
    /// A bundle of these authorities.
    ///
    /// # Errors
    /// When there is none, or one of them is no authority.
    pub fn new(
        authorities: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, PkiError> {
        let mut bundle: Vec<CertificateDer<'static>> = Vec::new();
        for authority in authorities {
            if !parse(&authority)?.is_ca() {
                return Err(PkiError::NotACa);
            }
            if !bundle.contains(&authority) {
                bundle.push(authority);
            }
        }
        if bundle.is_empty() {
            Err(PkiError::NoTrust)
        } else {
            Ok(Self(bundle))
        }
    }

    /// Reads certificates in PEM form, one after the other.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the text is broken.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let authorities: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        Self::new(authorities.map_err(|_| PkiError::Pem {
            what: "certificate",
        })?)
    }

    /// The certificates in PEM form, one after the other.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, authority| {
            let block = pem::Pem::new("CERTIFICATE", authority.as_ref());
            let _ = write!(text, "{block}");
            text
        })
    }

    /// The certificates.
    #[must_use]
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    pub(crate) fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        for authority in &self.0 {
            roots
                .add(authority.clone())
                .map_err(|source| PkiError::Tls {
                    source: source.into(),
                })?;
        }
        Ok(roots)
    }
}
