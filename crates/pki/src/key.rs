//! Private keys, and the certificate requests and credentials made with them. Their `Debug` output hides the key.

use std::{fmt, time::SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    PkiError,
    identity::{parse, validity},
    tls::provider,
};

/// A private key of a hub, an agent or a person. It never leaves the machine or cluster where it was generated.
pub struct Key(pub(crate) KeyPair);

impl Key {
    /// Generates a new key.
    ///
    /// # Errors
    /// [`PkiError::Key`] if the system's random number generator fails.
    pub fn generate() -> Result<Self, PkiError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|source| PkiError::Key { source })
    }

    /// Reads a key from PKCS#8 in PEM form.
    ///
    /// # Errors
    /// [`PkiError::Key`] if the text is not a key, or is a key of another type.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|source| PkiError::Key { source })
    }

    /// Returns the key itself, as PKCS#8 in PEM form. It is a secret: treat it as one.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Returns a request for a certificate for this key. The request does not name the client; the hub knows who
    /// it is.
    ///
    /// # Errors
    /// [`PkiError::Key`] if the system's random number generator fails.
    pub fn request(&self) -> Result<String, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(&self.0)
            .and_then(|request| request.pem())
            .map_err(|source| PkiError::Key { source })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A certificate with its key, which one side of a connection presents to the other.
#[derive(Debug)]
pub struct Credentials {
    certificate: CertificateDer<'static>,
    key: Key,
}

impl Credentials {
    /// Combines a certificate in PEM form with its key.
    ///
    /// # Errors
    /// [`PkiError`] if the certificate is malformed or belongs to another key.
    pub fn new(certificate: &str, key: Key) -> Result<Self, PkiError> {
        let certificate =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| PkiError::Pem {
                what: "certificate",
            })?;
        if parse(&certificate)?.public_key().subject_public_key.data != key.0.public_key_raw() {
            return Err(PkiError::OtherKey);
        }
        Ok(Self { certificate, key })
    }

    /// Returns the certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the certificate in PEM form.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE", self.certificate.as_ref()))
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the start and the end of the certificate's validity.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] if the certificate is malformed.
    pub fn validity(&self) -> Result<(SystemTime, SystemTime), PkiError> {
        parse(&self.certificate).map(|certificate| validity(&certificate))
    }

    pub(crate) fn certified_key(&self) -> Result<CertifiedKey, PkiError> {
        let key = PrivateKeyDer::Pkcs8(self.key.0.serialize_der().into());
        CertifiedKey::from_der(vec![self.certificate.clone()], key, &provider()).map_err(|source| {
            PkiError::Tls {
                source: source.into(),
            }
        })
    }
}
