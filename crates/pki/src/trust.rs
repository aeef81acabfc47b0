//! The certificate authorities that are currently trusted: one, or two while one replaces the other.

use std::fmt::Write as _;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{PkiError, identity::parse};

/// A set of trusted certificate authorities. To replace an authority, first add its successor on all sides. Then let
/// the hub present a certificate of the successor. Remove the old one when none of its certificates is in use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle(Vec<CertificateDer<'static>>);

impl TrustBundle {
    /// Returns a bundle of these authorities, without duplicates.
    ///
    /// # Errors
    /// [`PkiError`] if there are none, or one of them is not a certificate authority.
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

    /// Reads a bundle from concatenated certificates in PEM form.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and [`PkiError::Pem`] if the text is malformed.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let authorities: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        Self::new(authorities.map_err(|_| PkiError::Pem {
            what: "certificate",
        })?)
    }

    /// Returns the certificates in PEM form, concatenated.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, authority| {
            let block = pem::Pem::new("CERTIFICATE", authority.as_ref());
            let _ = write!(text, "{block}");
            text
        })
    }

    /// Returns the certificates.
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
