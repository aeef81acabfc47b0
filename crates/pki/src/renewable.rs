//! Lets agents with an expired certificate connect to renew it, so that a cluster that was cut off for days
//! reconnects without help.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{Certified, Identity};

/// The default grace period after an agent's certificate has expired. During this time the agent can use the
/// certificate only to renew it. The period covers a long weekend.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(72 * 60 * 60);

/// Accepts what the inner verifier accepts, and agents' certificates that expired within the grace period. The
/// service behind the connection must check [`Certified::not_after`].
#[derive(Debug)]
pub(crate) struct Renewable {
    pub(crate) inner: Arc<dyn ClientCertVerifier>,
    /// How long after its expiry an agent's certificate is accepted.
    pub(crate) grace: Duration,
}

/// Returns the time when an agent's certificate expired, if that is within the grace period.
fn last_moment(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
    grace: Duration,
) -> Option<UnixTime> {
    let certified = Certified::of(certificate).ok()?;
    if !matches!(certified.identity, Identity::Agent { .. }) {
        return None;
    }
    let end = certified
        .not_after
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    let ago = now.as_secs().checked_sub(end.as_secs())?;
    (ago <= grace.as_secs()).then(|| UnixTime::since_unix_epoch(end))
}

impl ClientCertVerifier for Renewable {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let expired = |error: &Error| {
            matches!(
                error,
                Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. }
                )
            )
        };
        match self.inner.verify_client_cert(certificate, chain, now) {
            Err(error) if expired(&error) => match last_moment(certificate, now, self.grace) {
                Some(then) => self.inner.verify_client_cert(certificate, chain, then),
                None => Err(error),
            },
            verified => verified,
        }
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
