//! The fleet's certificate authority, owned by the hub.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, DnsName, pem::PemObject};

use crate::{
    Credentials, HUB_SERVER_NAME, Identity, Key, PkiError, TrustBundle,
    clock::SKEW,
    identity::{parse, validity},
};

const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The length of an uncompressed P-256 point in bytes.
const POINT: usize = 65;

/// A self-signed certificate authority with its key.
pub struct Ca {
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Creates a new authority that is valid for ten years from `now`.
    ///
    /// # Errors
    /// [`PkiError`] if the system's random number generator fails.
    pub fn create(now: SystemTime) -> Result<Self, PkiError> {
        let key = Key::generate()?.0;
        let mut params = CertificateParams::default();
        let serial = serial();
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LIFETIME).into();
        // The random part lets people distinguish two authorities of one fleet by name.
        let short: String = serial
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        params.distinguished_name = named(&format!("muster CA {short}"));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .map_err(|source| PkiError::Sign { source })?;
        Self::new(certificate.into(), key)
    }

    /// Reads certificate and key from the text that [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// [`PkiError`] if one of them is missing or malformed, or the key does not belong to the certificate.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Pem {
                what: "certificate",
            })?;
        let key =
            rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
                PkiError::Pem {
                    what: "private key",
                }
            })?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|source| PkiError::Key { source })?;
        Self::new(certificate, key)
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, PkiError> {
        let parsed = parse(&certificate)?;
        if !parsed.is_ca() {
            return Err(PkiError::NotACa);
        }
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(PkiError::OtherKey);
        }
        let not_after = validity(&parsed).1;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|source| {
            PkiError::Certificate {
                source: source.into(),
            }
        })?;
        Ok(Self {
            certificate,
            not_after,
            issuer,
        })
    }

    /// Returns the certificate and key in PEM form. The text contains a secret: treat it as one.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let certificate = pem::encode(&pem::Pem::new("CERTIFICATE", self.certificate.as_ref()));
        certificate + &self.issuer.key().serialize_pem()
    }

    /// Returns the bytes of the private key, from which other keys are derived.
    pub(crate) fn secret(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Returns the authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the authority's name, which is unique within a fleet.
    ///
    /// # Errors
    /// [`PkiError`] if the certificate is malformed.
    pub fn name(&self) -> Result<String, PkiError> {
        Ok(parse(&self.certificate)?.subject().to_string())
    }

    /// Returns the end of the authority's validity. Rotate it long before that.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Returns a bundle that trusts only this authority.
    ///
    /// # Errors
    /// [`PkiError`] if the certificate is malformed.
    pub fn trust(&self) -> Result<TrustBundle, PkiError> {
        TrustBundle::new([self.certificate.clone()])
    }

    /// Signs a client's certificate, valid for `lifetime` from `now`, and returns it in PEM form. Only the
    /// public key is taken from the request; `identity` says who the client is.
    ///
    /// # Errors
    /// [`PkiError`] if the request is malformed, not signed by its own key, or for a key of another type, or
    /// if the authority has expired.
    pub fn sign(
        &self,
        request: &str,
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|source| PkiError::Request { source })?;
        // `algorithm` is that of the request's signature, not of the key. Only the key's length shows its type.
        let key = request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != POINT {
            return Err(PkiError::RequestKey);
        }
        let uri = identity.to_string();
        let name = SanType::URI(uri.try_into().map_err(|source| PkiError::Sign { source })?);
        let common_name = match identity {
            Identity::Agent { cluster, .. } => cluster.to_string(),
            Identity::Admin(name) => name.to_string(),
        };
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(&key, &common_name, vec![name], client, lifetime, now)
    }

    /// Creates a key and certificate for the hub itself, valid for `lifetime` from `now`. The certificate names
    /// [`HUB_SERVER_NAME`], which Muster's own clients check, and `names`: DNS names and IP addresses of the hub.
    ///
    /// # Errors
    /// [`PkiError`] if a name is neither a DNS name nor an IP address, or if the authority has expired.
    pub fn hub_credentials(
        &self,
        names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Credentials, PkiError> {
        let mut all = Vec::with_capacity(names.len() + 1);
        for name in std::iter::once(HUB_SERVER_NAME).chain(names.iter().map(String::as_str)) {
            all.push(server_name(name)?);
        }
        let key = Key::generate()?;
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        let certificate = self.issue(&key.0, "muster hub", all, server, lifetime, now)?;
        Credentials::new(&certificate, key)
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        if now >= self.not_after {
            return Err(PkiError::CaExpired);
        }
        let mut params = CertificateParams::default();
        params.not_before = (now - SKEW).into();
        params.not_after = (now + lifetime).min(self.not_after).into();
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        params.distinguished_name = named(common_name);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(|source| PkiError::Sign { source })?;
        Ok(certificate.pem())
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn server_name(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let invalid = || PkiError::ServerName {
        name: name.to_owned(),
    };
    DnsName::try_from(name).map_err(|_| invalid())?;
    Ok(SanType::DnsName(
        name.to_owned().try_into().map_err(|_| invalid())?,
    ))
}

/// Returns a random serial number of 127 bits. RFC 5280 requires a positive number, and the highest bit is the sign.
fn serial() -> [u8; 16] {
    (rand::random::<u128>() >> 1).to_be_bytes()
}
